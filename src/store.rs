//! The store: one SQL text, two engines.
//!
//! The invariant: a transaction is a closure that is handed a [`Tx`] and nothing that reaches the network;
//! what it wrote is committed exactly when it returned `Ok`. Statements run unchanged on PostgreSQL and on
//! SQLite: no `NOW()`, no `SKIP LOCKED`, no JSON operators; time comes in as a parameter.

pub mod api_key;
pub mod attachment;
pub mod backfill;
pub mod connection;
pub mod dead_letter;
pub mod effect;
pub mod folder;
pub mod gate;
pub mod job;
pub mod lease;
pub mod link;
pub mod mailbox;
pub mod message;
pub mod notice;
pub mod outbox;
pub mod parked;
mod pool;
pub mod queue;
pub mod queue_pause;
pub mod subscription;
pub mod tool;

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use scoped_futures::ScopedBoxFuture;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, SqlitePool};
use tokio::time::timeout;

use crate::outcome::{Classify, Disposition};
use pool::{Lent, Pool};

/// For a whole transaction. A server that fell silent ends no connection by itself, and whoever waits for it
/// holds up all that wait for him.
const TRANSACTION: Duration = Duration::from_secs(15);
/// For the listings of people.
const READING: Duration = Duration::from_mins(1);

/// Runs one statement on whichever engine the transaction is of. `binds` are evaluated once.
///
/// `sql!(tx, all Row, "SELECT …", a, b)` gives `Vec<Row>`, `one`/`optional` a tuple or row, `execute` the
/// number of rows touched.
#[macro_export]
macro_rules! sql {
    ($tx:expr, execute, $text:expr $(, $bind:expr)* $(,)?) => {
        match $crate::store::counted($tx) {
            $crate::store::Tx::Postgres(tx) => sqlx::query($text)$(.bind($bind))*.execute(&mut **tx).await.map(|done| done.rows_affected()),
            $crate::store::Tx::Sqlite(tx) => sqlx::query($text)$(.bind($bind))*.execute(&mut **tx).await.map(|done| done.rows_affected()),
        }
    };
    ($tx:expr, all $row:ty, $text:expr $(, $bind:expr)* $(,)?) => {
        match $crate::store::counted($tx) {
            $crate::store::Tx::Postgres(tx) => sqlx::query_as::<_, $row>($text)$(.bind($bind))*.fetch_all(&mut **tx).await,
            $crate::store::Tx::Sqlite(tx) => sqlx::query_as::<_, $row>($text)$(.bind($bind))*.fetch_all(&mut **tx).await,
        }
    };
    ($tx:expr, optional $row:ty, $text:expr $(, $bind:expr)* $(,)?) => {
        match $crate::store::counted($tx) {
            $crate::store::Tx::Postgres(tx) => sqlx::query_as::<_, $row>($text)$(.bind($bind))*.fetch_optional(&mut **tx).await,
            $crate::store::Tx::Sqlite(tx) => sqlx::query_as::<_, $row>($text)$(.bind($bind))*.fetch_optional(&mut **tx).await,
        }
    };
    ($tx:expr, one $row:ty, $text:expr $(, $bind:expr)* $(,)?) => {
        match $crate::store::counted($tx) {
            $crate::store::Tx::Postgres(tx) => sqlx::query_as::<_, $row>($text)$(.bind($bind))*.fetch_one(&mut **tx).await,
            $crate::store::Tx::Sqlite(tx) => sqlx::query_as::<_, $row>($text)$(.bind($bind))*.fetch_one(&mut **tx).await,
        }
    };
}

/// Runs one statement built with [`sqlx::QueryBuilder`] (multi-row `VALUES`) on either engine. `$build` is a
/// closure-like block that is expanded once per engine and fills the builder.
#[macro_export]
macro_rules! sql_many {
    ($tx:expr, execute, |$builder:ident| $build:block) => {
        match $crate::store::counted($tx) {
            $crate::store::Tx::Postgres(tx) => {
                let mut $builder = sqlx::QueryBuilder::<sqlx::Postgres>::new("");
                $build
                $builder.build().execute(&mut **tx).await.map(|done| done.rows_affected())
            }
            $crate::store::Tx::Sqlite(tx) => {
                let mut $builder = sqlx::QueryBuilder::<sqlx::Sqlite>::new("");
                $build
                $builder.build().execute(&mut **tx).await.map(|done| done.rows_affected())
            }
        }
    };
    ($tx:expr, all $row:ty, |$builder:ident| $build:block) => {
        match $crate::store::counted($tx) {
            $crate::store::Tx::Postgres(tx) => {
                let mut $builder = sqlx::QueryBuilder::<sqlx::Postgres>::new("");
                $build
                $builder.build_query_as::<$row>().fetch_all(&mut **tx).await
            }
            $crate::store::Tx::Sqlite(tx) => {
                let mut $builder = sqlx::QueryBuilder::<sqlx::Sqlite>::new("");
                $build
                $builder.build_query_as::<$row>().fetch_all(&mut **tx).await
            }
        }
    };
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the database refused or did not answer: {0}")]
    Database(#[from] sqlx::Error),
    #[error("the database's schema cannot be used: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error("`database.url` must begin with postgres:// or sqlite://")]
    Url,
    #[error("the schema has {applied} of {wanted} migrations; run `followthrough migrate`")]
    Schema { applied: usize, wanted: usize },
    #[error("the code around a statement panicked")]
    Panicked,
    #[error("a stored value cannot be read: {0}")]
    Corrupt(String),
    #[error("the database did not answer in time")]
    Silent,
}

impl StoreError {
    /// What the statement holds is at fault, and would be tomorrow. A server that stops, starts, is full, has no
    /// connection left or became a standby says no as well, in words of its own, and means nothing by it.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Database(sqlx::Error::Database(error)) => {
                error.code().is_some_and(|code| condemns_the_content(&code))
            }
            Self::Database(sqlx::Error::Encode(_)) | Self::Panicked => true,
            _ => false,
        }
    }

    /// Serialisation failures, deadlocks and a busy SQLite: the same transaction may succeed when run again.
    fn is_conflict(&self) -> bool {
        let Self::Database(sqlx::Error::Database(error)) = self else { return false };
        matches!(error.code().as_deref(), Some("40001" | "40P01" | "5" | "6" | "261" | "517"))
    }
}

/// PostgreSQL's classes 22 (data exception), 23 (constraint) and 54 (program limit), of five characters; SQLite's
/// `TOOBIG`, `CONSTRAINT`, `MISMATCH` and `RANGE`, whose extended codes carry theirs in the lowest byte.
fn condemns_the_content(code: &str) -> bool {
    if code.len() == 5 {
        return ["22", "23", "54"].iter().any(|class| code.starts_with(class));
    }
    code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 18 | 19 | 20 | 25))
}

impl Classify for StoreError {
    fn disposition(&self) -> Disposition {
        Disposition::Retry { after: None }
    }

    fn code(&self) -> std::borrow::Cow<'static, str> {
        "store_unavailable".into()
    }
}

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");
static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");
const APPLIED: &str = "SELECT version FROM _sqlx_migrations WHERE success ORDER BY version";

/// A database that was never migrated has no table of migrations.
fn applied(versions: std::result::Result<Vec<i64>, sqlx::Error>) -> Result<Vec<i64>> {
    match versions {
        Err(sqlx::Error::Database(_)) => Ok(Vec::new()),
        versions => Ok(versions?),
    }
}

#[derive(Clone)]
pub struct Store {
    engine: Engine,
    commits: Arc<AtomicU64>,
}

#[derive(Clone)]
enum Engine {
    Postgres(Pool),
    /// One writer and many readers, as SQLite itself has it: a second writer would only wait.
    Sqlite {
        write: SqlitePool,
        read: SqlitePool,
    },
}

/// How PostgreSQL commits. SQLite does it in one way: it has no way to go to the server, and always waits for
/// the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Commit {
    Durable,
    /// On the disk within a second.
    Soon,
    /// One statement, durable with its answer.
    Alone,
}

/// One open transaction of either engine.
pub enum Tx {
    Postgres(Lent),
    Sqlite(sqlx::Transaction<'static, Sqlite>),
}

impl Store {
    pub async fn connect(url: &str, connections: u32) -> Result<Self> {
        let engine = if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            let options = postgres(url)?;
            Engine::Postgres(Pool::connect(options, connections).await?)
        } else if url.starts_with("sqlite:") {
            let options = SqliteConnectOptions::from_str(url)?
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                .busy_timeout(Duration::from_secs(10))
                .foreign_keys(true)
                .statement_cache_capacity(500);
            make_private(options.get_filename());
            let write = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
            let read = SqlitePoolOptions::new().max_connections(4).connect_with(options).await?;
            Engine::Sqlite { write, read }
        } else {
            return Err(StoreError::Url);
        };
        Ok(Self { engine, commits: Arc::default() })
    }

    /// Brings the schema up to date; forward only.
    pub async fn migrate(&self) -> Result<()> {
        match &self.engine {
            Engine::Postgres(pool) => POSTGRES.run(&pool.for_migrations().await?).await?,
            Engine::Sqlite { write, .. } => SQLITE.run(write).await?,
        }
        Ok(())
    }

    /// Refuses a schema that is not the one this program was built with.
    pub async fn check_schema(&self) -> Result<()> {
        let (migrations, applied) = match &self.engine {
            Engine::Postgres(pool) => {
                (&POSTGRES, applied(sqlx::query_scalar(APPLIED).fetch_all(&mut *pool.lend().await?).await)?)
            }
            Engine::Sqlite { read, .. } => {
                (&SQLITE, applied(sqlx::query_scalar(APPLIED).fetch_all(read).await)?)
            }
        };
        let wanted: Vec<i64> = migrations.iter().map(|migration| migration.version).collect();
        if applied == wanted {
            return Ok(());
        }
        Err(StoreError::Schema { applied: applied.len(), wanted: wanted.len() })
    }

    /// Runs `work` in one transaction, again from the start when the engine reports a conflict.
    pub async fn transaction<'a, T, E, F>(&self, name: &'static str, work: F) -> Result<T, E>
    where
        F: for<'t> Fn(&'t mut Tx) -> ScopedBoxFuture<'a, 't, Result<T, E>> + Send + 'a,
        E: From<StoreError> + MaybeConflict,
    {
        self.run(name, Commit::Durable, work).await
    }

    /// The same for work that is one statement and commits by itself: no `BEGIN`, no `COMMIT` to wait for.
    pub async fn statement<'a, T, E, F>(&self, name: &'static str, work: F) -> Result<T, E>
    where
        F: for<'t> Fn(&'t mut Tx) -> ScopedBoxFuture<'a, 't, Result<T, E>> + Send + 'a,
        E: From<StoreError> + MaybeConflict,
    {
        self.run(name, Commit::Alone, work).await
    }

    /// The same for what may be lost when the database server itself crashes a moment later: its commit waits
    /// for no disk.
    pub async fn transaction_soon_durable<'a, T, E, F>(&self, name: &'static str, work: F) -> Result<T, E>
    where
        F: for<'t> Fn(&'t mut Tx) -> ScopedBoxFuture<'a, 't, Result<T, E>> + Send + 'a,
        E: From<StoreError> + MaybeConflict,
    {
        self.run(name, Commit::Soon, work).await
    }

    async fn run<'a, T, E, F>(&self, name: &'static str, commit: Commit, work: F) -> Result<T, E>
    where
        F: for<'t> Fn(&'t mut Tx) -> ScopedBoxFuture<'a, 't, Result<T, E>> + Send + 'a,
        E: From<StoreError> + MaybeConflict,
    {
        let mut tries = 0;
        loop {
            let committed = timeout(TRANSACTION, async {
                let mut tx = self.begin(commit).await?;
                match work(&mut tx).await {
                    Ok(value) => tx.commit().await.map(|()| value).map_err(E::from),
                    Err(error) => {
                        tx.rollback().await;
                        Err(error)
                    }
                }
            });
            let committed = committed.await.unwrap_or_else(|_| Err(StoreError::Silent.into()));
            match committed {
                Err(error) if error.is_conflict() && tries < 5 => {
                    tries += 1;
                    tracing::debug!(transaction = name, tries, "conflict, running again");
                }
                Ok(value) => {
                    self.commits.fetch_add(1, Ordering::Relaxed);
                    metrics::counter!("followthrough_store_commits_total", "transaction" => name)
                        .increment(1);
                    return Ok(value);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Runs reads that need no lock. SQLite's readers do not wait for its writer.
    pub async fn read<'a, T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: for<'t> FnOnce(&'t mut Tx) -> ScopedBoxFuture<'a, 't, Result<T, E>> + Send + 'a,
        E: From<StoreError>,
    {
        let read = timeout(READING, async {
            let mut tx = match &self.engine {
                Engine::Postgres(pool) => Tx::Postgres(pool.begin(Commit::Durable).await?),
                Engine::Sqlite { read, .. } => Tx::Sqlite(read.begin().await.map_err(StoreError::from)?),
            };
            let value = work(&mut tx).await;
            tx.rollback().await;
            value
        });
        read.await.unwrap_or_else(|_| Err(StoreError::Silent.into()))
    }

    /// Does the database answer?
    pub async fn ping(&self) -> Result<()> {
        match &self.engine {
            Engine::Postgres(pool) => pool.ping().await?,
            Engine::Sqlite { read, .. } => sqlx::query("SELECT 1").execute(read).await.map(|_| ())?,
        }
        Ok(())
    }

    /// Commits since the start of the process, for the benchmark and the metrics.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    pub fn is_sqlite(&self) -> bool {
        matches!(self.engine, Engine::Sqlite { .. })
    }

    pub async fn close(&self) {
        match &self.engine {
            Engine::Postgres(pool) => pool.close().await,
            Engine::Sqlite { write, read } => {
                read.close().await;
                write.close().await;
            }
        }
    }

    async fn begin(&self, commit: Commit) -> Result<Tx> {
        Ok(match &self.engine {
            Engine::Postgres(pool) => Tx::Postgres(pool.begin(commit).await?),
            Engine::Sqlite { write, .. } => Tx::Sqlite(write.begin_with("BEGIN IMMEDIATE").await?),
        })
    }
}

/// The rows of a statement, the lightest of them repeated until there are as many as some other batch has: each
/// number of rows is a statement of its own, to be prepared and kept on every connection. With each row comes
/// whether it is a repetition; statements that would act on one twice must see to it that they do not.
pub(crate) fn padded<R>(rows: &[R], weight: impl Fn(&R) -> usize) -> impl Iterator<Item = (&R, bool)> {
    let sizes =
        if rows.len() <= 8 { rows.len().next_power_of_two() } else { rows.len().next_multiple_of(16) };
    let lightest = rows.iter().min_by_key(|row| weight(row));
    let again = lightest.into_iter().cycle().take(sizes - rows.len());
    rows.iter().map(|row| (row, false)).chain(again.map(|row| (row, true)))
}

/// Whoever else has an account on this machine has no business in the file. SQLite gives the files beside it the same
/// mode, and says itself what is wrong with a path.
fn make_private(file: &Path) {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let _ = options.open(file);
}

/// On this machine without TLS, unless it is asked for: the driver sends a statement in TLS records of 16 KB and does
/// not tell the kernel to send each at once (`TCP_NODELAY`), so that on loopback every large one waits 40 ms for an
/// acknowledgement.
fn postgres(url: &str) -> Result<PgConnectOptions> {
    let options =
        PgConnectOptions::from_str(url)?.application_name("followthrough").statement_cache_capacity(500);
    let here = matches!(options.get_host(), "localhost" | "127.0.0.1" | "::1" | "[::1]");
    let unasked = matches!(options.get_ssl_mode(), PgSslMode::Prefer | PgSslMode::Allow);
    Ok(if here && unasked { options.ssl_mode(PgSslMode::Disable) } else { options })
}

/// The host that a PostgreSQL URL may be reached at without TLS. As the driver reads it: its parameters may name
/// another host than the one that stands in its place.
pub fn plain_host(url: &str) -> Option<String> {
    let options = url.starts_with("postgres").then(|| PgConnectOptions::from_str(url).ok()).flatten()?;
    let enforced =
        matches!(options.get_ssl_mode(), PgSslMode::Require | PgSslMode::VerifyCa | PgSslMode::VerifyFull);
    (!enforced && options.get_socket().is_none()).then(|| options.get_host().to_owned())
}

/// Called by the statement macros alone.
pub fn counted(tx: &mut Tx) -> &mut Tx {
    metrics::counter!("followthrough_store_statements_total").increment(1);
    tx
}

impl Tx {
    async fn commit(self) -> Result<()> {
        match self {
            Self::Postgres(tx) => tx.commit().await?,
            Self::Sqlite(tx) => tx.commit().await?,
        }
        Ok(())
    }

    /// A failed rollback needs no answer: the connection is closed and the engine rolls back by itself.
    async fn rollback(self) {
        let _ = match self {
            Self::Postgres(tx) => tx.rollback().await,
            Self::Sqlite(tx) => tx.rollback().await.map_err(StoreError::from),
        };
    }
}

/// Errors that can say whether running the transaction again may help.
pub trait MaybeConflict {
    fn is_conflict(&self) -> bool;
}

impl MaybeConflict for StoreError {
    fn is_conflict(&self) -> bool {
        Self::is_conflict(self)
    }
}

#[cfg(test)]
mod tests {
    use super::{Store, condemns_the_content};

    #[cfg(unix)]
    #[tokio::test]
    async fn a_file_is_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let place = std::env::temp_dir().join(format!("followthrough-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&place).expect("a place for a file");
        let file = place.join("fleet.db");
        let store = Store::connect(&format!("sqlite://{}", file.display()), 2).await.expect("a file");
        store.migrate().await.expect("its tables");
        for file in std::fs::read_dir(&place).expect("the place").flatten() {
            let mode = file.metadata().expect("a file").permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{:?}", file.file_name());
        }
        std::fs::remove_dir_all(&place).expect("ours");
    }

    #[test]
    fn a_server_in_trouble_condemns_nothing_that_it_was_given() {
        for content in ["22021", "22P05", "23505", "54000", "18", "19", "1555", "20", "25"] {
            assert!(condemns_the_content(content), "{content}");
        }
        let troubles = [
            // Shut down, starting up, too many connections, full, out of memory, a standby, cancelled, a deadlock,
            // no right, no table; then SQLite: busy, read-only, an error of the disk, full.
            "57P01", "57P03", "53300", "53100", "53200", "25006", "57014", "40P01", "42501", "42P01", "5",
            "8", "10", "778", "13",
        ];
        for trouble in troubles {
            assert!(!condemns_the_content(trouble), "{trouble}");
        }
    }
}
