//! `doctor`: what is wrong, and what to do about it.
//!
//! The invariant: it changes nothing of the fleet (a token that is refreshed on the way is stored like any
//! other), every line that is not ok says what to do, and one that fails makes the command fail.

mod mailbox;

use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;
use scoped_futures::ScopedFutureExt;
use secrecy::ExposeSecret;
use serde::Serialize;
use uuid::Uuid;

use super::output::{Output, print, say};
use crate::broker::rabbit::Rabbit;
use crate::broker::{Broker, BrokerError};
use crate::clock::Clock;
use crate::config::{Config, TopologyMode};
use crate::fleet::Tuning;
use crate::http::{Call, Http};
use crate::lifecycle;
use crate::microsoft::Microsoft;
use crate::oauth::app::App;
use crate::oauth::scopes::{self, Integration};
use crate::outcome::Classify;
use crate::registry::Registry;
use crate::store::Store;
use crate::store::connection::{self, Connection, Status};
use crate::vault::Vault;
use crate::vault::seal::Keys;

/// As many connections are looked at when none is named.
const CONNECTIONS: i64 = 50;
/// Entra refuses assertions and codes from a clock that is further off.
const SKEW: chrono::TimeDelta = chrono::TimeDelta::seconds(60);

#[derive(Subcommand)]
pub(super) enum What {
    /// One connection: its status, scopes and token
    Connection { id: Uuid },
    /// One shared mailbox: its access, how its mail reaches us, and why not better
    Mailbox { id: Uuid },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Health {
    Ok,
    Warn,
    Fail,
}

#[derive(Debug, Serialize)]
struct Finding {
    check: String,
    health: Health,
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, check: &str, health: Health, found: impl Into<String>, advice: Option<&str>) {
        let (check, found, advice) = (check.to_owned(), found.into(), advice.map(str::to_owned));
        self.0.push(Finding { check, health, found, advice });
    }

    fn ok(&mut self, check: &str, found: impl Into<String>) {
        self.add(check, Health::Ok, found, None);
    }

    fn warn(&mut self, check: &str, found: impl Into<String>, advice: &str) {
        self.add(check, Health::Warn, found, Some(advice));
    }

    fn fail(&mut self, check: &str, found: impl Into<String>, advice: &str) {
        self.add(check, Health::Fail, found, Some(advice));
    }

    fn tell(&self, output: Output) -> bool {
        if output.json {
            print(&self.0);
        } else {
            for finding in &self.0 {
                let word = match finding.health {
                    Health::Ok => "ok  ",
                    Health::Warn => "warn",
                    Health::Fail => "FAIL",
                };
                say(&format!("{word}  {:12} {}", finding.check, finding.found));
                if let Some(advice) = &finding.advice {
                    say(&format!("      {:12} -> {advice}", ""));
                }
            }
        }
        self.0.iter().all(|finding| finding.health != Health::Fail)
    }
}

pub(super) async fn run(
    loaded: Result<Config, String>,
    registry: Registry,
    what: Option<What>,
    output: Output,
) -> bool {
    let mut findings = Findings::default();
    match loaded {
        Ok(config) => look(&config, registry, what, &mut findings).await,
        Err(message) => findings.fail("settings", message, "correct these settings"),
    }
    findings.tell(output)
}

async fn look(config: &Config, registry: Registry, what: Option<What>, findings: &mut Findings) {
    findings.ok("settings", "valid");
    let clock = Clock::system();
    keys(config, findings);
    let store = database(config, findings).await;
    broker(config, &registry, &clock, findings).await;
    let http = match Http::new(&config.microsoft, clock.clone()) {
        Ok(http) => http,
        Err(message) => return findings.fail("microsoft", message, "correct this setting"),
    };
    entra(config, &http, &clock, findings).await;
    if !registration(config, findings) {
        return;
    }
    let Some(store) = store else { return };
    let vault = match lifecycle::vault(config, &registry, &store, &http, &clock) {
        Ok(Some(vault)) => vault,
        Ok(None) => return,
        Err(message) => return findings.fail("vault keys", message, "correct vault.keys"),
    };
    let found = match what {
        Some(What::Connection { id }) => one(&store, id).await,
        Some(What::Mailbox { id }) => {
            let microsoft = Microsoft::new(&config.microsoft, http, Arc::new(vault.clone()), clock);
            return mailbox::check(&store, &vault, |connection| microsoft.graph(connection), id, findings)
                .await;
        }
        None => some(&store).await,
    };
    match found {
        Ok(found) if found.is_empty() && what.is_some() => {
            findings.fail(
                "connection",
                "there is none with this id",
                "`connections list` shows those there are",
            );
        }
        Ok(found) => {
            for connection in found {
                check_connection(&vault, &connection, findings).await;
            }
        }
        Err(error) => findings.fail("connections", error.to_string(), "see `database` above"),
    }
}

fn keys(config: &Config, findings: &mut Findings) {
    if config.vault.keys.is_empty() {
        return findings.ok("vault keys", "made at the first start, beside the database");
    }
    match Keys::parse(&config.vault.keys) {
        Ok(_) => findings.ok("vault keys", format!("{} readable", config.vault.keys.len())),
        Err(error) => findings.fail("vault keys", error.to_string(), "correct vault.keys"),
    }
}

async fn database(config: &Config, findings: &mut Findings) -> Option<Store> {
    let url = config.database.url.expose_secret();
    let file = url.strip_prefix("sqlite:").map(|rest| rest.trim_start_matches("//"));
    let file = file.map(|file| file.split('?').next().unwrap_or(file));
    if file.is_some_and(|file| !std::path::Path::new(file).exists()) {
        findings.ok("database", "SQLite; the file is made at the first start");
        return None;
    }
    let store = match Store::connect(url, 2).await {
        Ok(store) => store,
        Err(error) => {
            findings.fail(
                "database",
                error.to_string(),
                "see that the server runs and database.url is right",
            );
            return None;
        }
    };
    let engine = if store.is_sqlite() { "SQLite" } else { "PostgreSQL" };
    match store.check_schema().await {
        Ok(()) => findings.ok("database", format!("{engine}, the schema is current")),
        Err(error) => {
            findings.fail("database", error.to_string(), "run `followthrough migrate`");
            return None;
        }
    }
    Some(store)
}

async fn broker(config: &Config, registry: &Registry, clock: &Clock, findings: &mut Findings) {
    if config.broker.is_embedded() {
        return findings.ok("broker", "embedded in the database");
    }
    let tuning = match Tuning::of(config, "doctor") {
        Ok(tuning) => tuning,
        Err(message) => return findings.fail("broker", message, "correct this setting"),
    };
    let topology = tuning.topology(&config.broker.prefix, registry);
    let (url, ca) = (&config.broker.url, config.broker.ca_file.clone());
    // Looks and declares nothing, whatever the settings allow.
    let mode = TopologyMode::Verify;
    match Rabbit::connect(url, topology, mode, ca, clock.clone(), "doctor").await {
        Ok(rabbit) => {
            findings.ok("broker", "RabbitMQ, every object is there and as it should be");
            rabbit.close().await;
        }
        Err(BrokerError::Misconfigured(message)) if message.contains("NOT_FOUND") => {
            match config.broker.topology {
                TopologyMode::Declare => {
                    let advice = "the fleet declares it at its next start";
                    findings.warn("broker", format!("RabbitMQ, but {message}"), advice);
                }
                TopologyMode::Verify | TopologyMode::Export => {
                    let advice = "import the definitions that `followthrough topology` prints";
                    findings.fail("broker", message, advice);
                }
            }
        }
        Err(error @ BrokerError::Misconfigured(_)) => {
            let advice =
                "correct broker.url, or remove the object that clashes, or set another broker.prefix";
            findings.fail("broker", error.to_string(), advice);
        }
        Err(error) => {
            findings.fail("broker", error.to_string(), "see that RabbitMQ runs and broker.url is right");
        }
    }
}

/// Sign-in must be reachable, and our clock must be near theirs.
async fn entra(config: &Config, http: &Http, clock: &Clock, findings: &mut Findings) {
    let mut url = config.microsoft.login_url();
    url.set_path("/organizations/v2.0/.well-known/openid-configuration");
    let mut call = Call::get("entra.metadata", url.clone());
    call.timeout = Duration::from_secs(15);
    let host = url.host_str().unwrap_or_default().to_owned();
    let answer = match http.send(call).await {
        Ok(answer) if answer.status.is_success() => answer,
        Ok(answer) => {
            let found = format!("{host} answers {}", answer.status.as_u16());
            return findings.fail("entra", found, "see that microsoft.login_url is Entra's");
        }
        Err(error) => {
            let advice = "let this machine reach it over https (a proxy needs microsoft.ca_file)";
            return findings.fail("entra", format!("{host}: {error}"), advice);
        }
    };
    findings.ok("entra", format!("{host} is reachable"));
    let theirs = answer.headers.get(http::header::DATE).and_then(|date| date.to_str().ok());
    let theirs = theirs.and_then(|date| chrono::DateTime::parse_from_rfc2822(date).ok());
    match theirs.map(|theirs| clock.now() - theirs.to_utc()) {
        Some(skew) if skew.abs() > SKEW => {
            let found = format!("{} s off Microsoft's", skew.num_seconds());
            findings.fail("clock", found, "set this machine's clock by NTP");
        }
        Some(_) => findings.ok("clock", "as Microsoft's"),
        None => findings.warn("clock", "the answer has no Date to compare with", "compare it yourself"),
    }
}

/// Can anybody sign in?
fn registration(config: &Config, findings: &mut Findings) -> bool {
    if config.microsoft.client_id.is_none() {
        let advice = "register an app in Entra and set microsoft.client_id with its secret or certificate";
        findings.warn("registration", "none, so nobody can connect", advice);
        return false;
    }
    match App::new(&config.microsoft, &config.http.public_url) {
        Ok(app) => {
            let redirect = app.redirect_url();
            findings.ok("registration", format!("set; Entra must list the redirect URI {redirect}"));
            true
        }
        Err(message) => {
            findings.fail("registration", message, "correct these settings");
            false
        }
    }
}

async fn one(store: &Store, id: Uuid) -> crate::store::Result<Vec<Connection>> {
    let found = store.read(|tx| async move { connection::find(tx, id).await }.scope_boxed()).await?;
    Ok(found.into_iter().collect())
}

async fn some(store: &Store) -> crate::store::Result<Vec<Connection>> {
    store.read(|tx| async move { connection::list(tx, None, None, CONNECTIONS).await }.scope_boxed()).await
}

async fn check_connection(vault: &Vault, connection: &Connection, findings: &mut Findings) {
    let check = format!("{}/{} {}", connection.workspace, connection.user_name, connection.integration);
    let check = check.as_str();
    let message = connection.message.clone().unwrap_or_default();
    match connection.status {
        Status::Connected => {}
        Status::Pending => return findings.warn(check, "nobody has signed in yet", "open its sign-in link"),
        Status::Disconnecting => {
            let advice = "its receipt says what could not be deleted yet; it goes on by itself";
            return findings.warn(check, "being disconnected", advice);
        }
        Status::Disconnected => {
            return findings.warn(check, "disconnected", "make a new link where it is still wanted");
        }
        Status::NeedsUser => {
            let found = format!("needs its user: {message}");
            return findings.fail(check, found, "hand the user a new sign-in link (POST /v1/connections)");
        }
        Status::NeedsAdmin => {
            let found = format!("needs an administrator: {message}");
            let advice = "hand them the link of POST /v1/connections/admin-consent";
            return findings.fail(check, found, advice);
        }
    }
    let app = &vault.entra().app;
    let environment = app.environment_or_discovery(connection.environment.as_deref());
    let needed = scopes::scopes(connection.integration, &environment);
    let missing = scopes::missing(&needed, &connection.scopes);
    // Dataverse's one scope covers every environment of the tenant.
    if !missing.is_empty() && connection.integration != Integration::Dynamics {
        let found = format!("not granted: {}", missing.join(", "));
        return findings.fail(check, found, "hand the user a new sign-in link; some need an administrator");
    }
    match vault.keep_alive(connection.id).await {
        Ok(()) => findings.ok(check, "connected, and its token refreshes"),
        Err(error) => {
            let found = format!("{}: {error}", error.code());
            findings.fail(check, found, "the code says who can act: the user, an administrator, or you");
        }
    }
}
