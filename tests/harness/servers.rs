//! The servers that a suite needs: given by the environment, or found at the usual localhost addresses.
//!
//! The invariant: where a server is missing the suite says so in one line and passes; with `CI=true` it fails.

use std::collections::HashSet;
use std::io::Write;
use std::net::ToSocketAddrs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use url::Url;
use uuid::Uuid;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Held for reading by every test on the broker, and for writing by the one that raises an alarm on it.
static CALM: LazyLock<Arc<RwLock<()>>> = LazyLock::new(Arc::default);
static TOLD: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(Mutex::default);

/// A RabbitMQ server that nobody brings into trouble while this lives.
pub struct Amqp {
    pub url: String,
    _calm: OwnedRwLockReadGuard<()>,
}

pub async fn amqp() -> Option<Amqp> {
    let url = found("FOLLOWTHROUGH_TEST_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672", 5672, "RabbitMQ")?;
    Some(Amqp { url, _calm: CALM.clone().read_owned().await })
}

/// The server alone: no other test of this process uses it while this lives.
pub struct AmqpAlone {
    pub url: String,
    _alone: OwnedRwLockWriteGuard<()>,
}

pub async fn amqp_alone() -> Option<AmqpAlone> {
    let url = found("FOLLOWTHROUGH_TEST_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672", 5672, "RabbitMQ")?;
    Some(AmqpAlone { url, _alone: CALM.clone().write_owned().await })
}

/// A fresh, empty database, gone when this is dropped.
pub struct Database {
    pub url: String,
    server: String,
    name: String,
}

pub async fn postgres() -> Option<Database> {
    let server = found(
        "FOLLOWTHROUGH_TEST_DATABASE_URL",
        "postgres://postgres@127.0.0.1:5432/test",
        5432,
        "PostgreSQL",
    )?;
    let name = format!("followthrough_{}", Uuid::now_v7().simple());
    execute(&server, &format!("CREATE DATABASE {name} TEMPLATE template0")).await.expect("a fresh database");
    let mut url = Url::parse(&server).expect("a database URL");
    url.set_path(&name);
    Some(Database { url: url.into(), server, name })
}

impl Database {
    pub async fn count(&self, query: &'static str) -> i64 {
        let mut connection = PgConnection::connect(&self.url).await.expect("the database");
        sqlx::query_scalar(query).fetch_one(&mut connection).await.expect("a count")
    }

    /// As when its server became a standby, or is a server again: whoever was connected must connect again.
    pub async fn read_only(&self, on: bool) {
        let word = if on { "on" } else { "off" };
        let alter = format!("ALTER DATABASE {} SET default_transaction_read_only = {word}", self.name);
        execute(&self.server, &alter).await.expect("the server's consent");
        self.cut().await;
    }

    /// Ends every connection to it but our own.
    pub async fn cut(&self) {
        let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                      WHERE datname = current_database() AND pid <> pg_backend_pid()";
        execute(&self.url, others).await.expect("a connection of one's own");
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (server, drop) =
            (self.server.clone(), format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name));
        // A test that leaves a database behind is untidy, not wrong.
        finish(async move { execute(&server, &drop).await.map_err(|error| error.to_string()) });
    }
}

async fn execute(url: &str, statement: &str) -> sqlx::Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned())).execute(&mut connection).await?;
    connection.close().await
}

/// Runs the last act of a test from a `Drop`, where nothing can be awaited, also while a panic unwinds.
pub fn finish(act: impl Future<Output = Result<(), String>> + Send + 'static) {
    let ended = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|error| error.to_string())?.block_on(act)
    });
    if let Ok(Err(error)) = ended.join() {
        tell(&format!("left behind: {error}"));
    }
}

/// A port for a listener that comes later: below those that the system gives to whoever asks for any.
pub fn port() -> u16 {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let number = std::process::id().wrapping_mul(16).wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed));
    20_000 + u16::try_from(number % 10_000).expect("small")
}

/// Past the capture of the test runner.
pub fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn found(variable: &'static str, usual: &str, port: u16, what: &'static str) -> Option<String> {
    let given = environment(variable);
    let url = given.clone().unwrap_or_else(|| usual.to_owned());
    let parsed = Url::parse(&url).unwrap_or_else(|_| panic!("{variable} is no URL"));
    let host = parsed.host_str().unwrap_or("127.0.0.1").trim_matches(['[', ']']);
    let address = (host, parsed.port().unwrap_or(port));
    let reached = address.to_socket_addrs().is_ok_and(|mut addresses| {
        addresses.any(|address| std::net::TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).is_ok())
    });
    if reached {
        return Some(url);
    }
    let line = format!("{what} is not at {host}:{}; its suites are left out (set {variable})", address.1);
    assert!(given.is_none() && environment("CI").as_deref() != Some("true"), "{line}");
    if TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(what) {
        tell(&line);
    }
    None
}

#[expect(clippy::disallowed_methods, reason = "the environment of the tests enters here")]
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
