//! The stage: the simulator and a whole process of the fleet, spoken to as their users do, over HTTP and the queue.
//!
//! The invariant: nothing is shared between the two but what goes over a socket, and nothing is left behind.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use followthrough::api_key::{self, Role as KeyRole};
use followthrough::broker::{Outgoing, Source, Target};
use followthrough::clock::Clock;
use followthrough::config::Config;
use followthrough::fleet::{Role, Tuning};
use followthrough::http::{Call, Http};
use followthrough::job::Envelope;
use followthrough::lifecycle::Process;
use followthrough::store::api_key::ApiKey;
use followthrough::store::dead_letter::DeadLetter;
use followthrough::store::job::JobRow;
use followthrough::store::{Store, StoreError, dead_letter, job, outbox};
use followthrough::vault::seal::Keys;
use followthrough_tests::broker::{Folder, delete};
use followthrough_workers::JOBS;
use m365_sim::entra::{CLIENT_ID, CLIENT_SECRET};
use m365_sim::{Options, Running};
use reqwest::Method;
use scoped_futures::ScopedFutureExt as _;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use url::Url;
use uuid::Uuid;

use crate::Arguments;

/// Short, so that nobody waits for long; a real fleet waits from seconds to hours.
const LADDER: &str = "1s,2s,4s";

pub(crate) struct Stage {
    pub(crate) microsoft: Running,
    pub(crate) workspace: String,
    pub(crate) api: Url,
    pub(crate) key: SecretString,
    pub(crate) clock: Clock,
    /// What the account says about where things are kept.
    pub(crate) kept_in: String,
    process: Process,
    /// As any browser or script would: no redirect is followed by itself.
    http: Http,
    config: Config,
    _folder: Option<Folder>,
}

impl Stage {
    pub(crate) async fn set(arguments: &Arguments) -> Result<Self, String> {
        let clock = Clock::system();
        let listen = |usual| if arguments.once { free(0) } else { free(usual).or_else(|_| free(0)) };
        let options = Options { listen: listen(9365)?, ..Options::default() };
        let microsoft = m365_sim::start(options).await.map_err(|error| error.to_string())?;
        let unique = Uuid::now_v7().simple().to_string()[20..].to_owned();
        let folder = arguments.database.is_none().then(Folder::fresh);
        let file = |folder: &Folder| format!("sqlite://{}", folder.0.join("followthrough.db").display());
        let database = arguments.database.clone().or(folder.as_ref().map(file)).unwrap_or_default();
        // Another run's jobs in the same database are no concern of this one.
        let workspace = if folder.is_some() { "acme".to_owned() } else { format!("acme-{unique}") };
        let kept_in = format!(
            "jobs in {}, messages in {}",
            if folder.is_some() { "SQLite (a temporary folder)" } else { "PostgreSQL" },
            if arguments.broker.is_some() { "RabbitMQ" } else { "the embedded queue" },
        );
        let address = listen(8080)?;
        let settings = settings(&database, arguments.broker.as_deref(), address, &microsoft, &unique);
        let config = Config::load(None, settings.into_iter()).map_err(|error| error.to_string())?;
        let store = Store::connect(&database, 2).await.map_err(|error| format!("--database: {error}"))?;
        store.migrate().await.map_err(|error| format!("--database: {error}"))?;
        let key = key(&store, &clock).await.map_err(|error| error.to_string())?;
        store.close().await;
        let process = Process::start(&config, JOBS, &Role::ALL, None, clock.clone()).await?;
        let http = Http::new(&config.microsoft, clock.clone())?;
        let api = config.http.public_url.clone();
        Ok(Self { microsoft, workspace, api, key, clock, kept_in, process, http, config, _folder: folder })
    }

    /// One call of the API, as the publisher, operator or admin makes it.
    pub(crate) async fn call(&self, method: Method, path: &str, body: &Value) -> Result<Value, String> {
        let url = self.api.join(path).map_err(|error| error.to_string())?;
        let call = Call::new("demo.api", method, url).bearer(&self.key);
        let call = if body.is_null() { call } else { call.json(body) };
        let answer = self.http.send(call).await.map_err(|error| error.to_string())?;
        let told: Value = answer.json().unwrap_or_default();
        if answer.status.is_success() { Ok(told) } else { Err(format!("{path}: {} {told}", answer.status)) }
    }

    /// A one-time link, as a publisher hands it to a user.
    pub(crate) async fn link(&self, user: &str, integration: &str) -> Result<Url, String> {
        let body =
            json!({"workspace": self.workspace, "user": user, "integration": integration, "account": user});
        let made = self.call(Method::POST, "/v1/connections", &body).await?;
        Url::parse(made["url"].as_str().unwrap_or_default()).map_err(|error| error.to_string())
    }

    /// Opens a link as a browser does, all the way to the page that says "Connected".
    pub(crate) async fn open(&self, link: Url) -> Result<(), String> {
        let mut url = link;
        for _ in 0..8 {
            let answer = self.http.send(Call::get("demo.browser", url.clone())).await;
            let answer = answer.map_err(|error| error.to_string())?;
            let Some(to) = answer.headers.get("location").and_then(|to| to.to_str().ok()) else {
                let page = String::from_utf8_lossy(&answer.body);
                let connected = answer.status.is_success() && page.contains("<h1>Connected</h1>");
                return if connected { Ok(()) } else { Err(format!("the sign-in ended at: {page}")) };
            };
            url = url.join(to).map_err(|error| error.to_string())?;
        }
        Err("the sign-in goes in circles".to_owned())
    }

    /// The user's connections that are usable now.
    pub(crate) async fn connected(&self, user: &str) -> Result<usize, String> {
        let path = format!("/v1/connections?workspace={}&limit=200", self.workspace);
        let listed = self.call(Method::GET, &path, &Value::Null).await?;
        let all = listed["connections"].as_array().cloned().unwrap_or_default();
        Ok(all.iter().filter(|one| one["user"] == user && one["status"] == "connected").count())
    }

    /// What a publisher puts on the queue.
    pub(crate) async fn publish(&self, envelope: &Envelope) -> Result<(), String> {
        let message = Outgoing {
            message_id: Uuid::now_v7(),
            target: Target::Job { kind: envelope.kind.clone() },
            content_type: "application/json",
            body: serde_json::to_vec(envelope).map_err(|error| error.to_string())?.into(),
            headers: BTreeMap::new(),
        };
        let answers = self.process.fleet.services.broker.publish(&[message]).await;
        answers.into_iter().try_for_each(|answer| answer.map_err(|error| error.to_string()))
    }

    /// Whole, with their results.
    pub(crate) async fn jobs(&self) -> Result<Vec<JobRow>, String> {
        let filter =
            &job::Filter { workspace: Some(self.workspace.clone()), limit: 1000, ..job::Filter::default() };
        let whole: Result<_, StoreError> = self
            .store()
            .read(|tx| {
                async move {
                    let mut whole = Vec::new();
                    for row in job::list(tx, filter).await? {
                        whole.extend(job::find(tx, &row.workspace, &row.id).await?);
                    }
                    Ok(whole)
                }
                .scope_boxed()
            })
            .await;
        whole.map_err(|error| error.to_string())
    }

    pub(crate) async fn dead_letters(&self) -> Result<Vec<DeadLetter>, String> {
        let workspace = Some(self.workspace.clone());
        let filter = &dead_letter::Filter { workspace, limit: 1000, ..dead_letter::Filter::default() };
        let rows =
            self.store().read(|tx| async move { dead_letter::list(tx, filter).await }.scope_boxed()).await;
        rows.map_err(|error| error.to_string())
    }

    /// Messages that are committed and not yet confirmed, or that wait in a work queue.
    pub(crate) async fn under_way(&self) -> Result<u64, String> {
        let owed = self.store().read(|tx| async move { outbox::backlog(tx).await }.scope_boxed()).await;
        let mut under_way = u64::try_from(owed.map_err(|error| error.to_string())?.0).unwrap_or(u64::MAX);
        for source in JOBS.kinds().into_iter().map(|kind| Source::Jobs { kind }).chain([Source::Dead]) {
            let depth = self.process.fleet.services.broker.depth(&source).await;
            under_way += depth.map_err(|error| error.to_string())?.ready;
        }
        Ok(under_way)
    }

    pub(crate) async fn pause(&self, duration: Duration) {
        self.clock.sleep(duration).await;
    }

    fn store(&self) -> &Store {
        &self.process.fleet.services.store
    }

    /// Drains the fleet and takes down what was put up.
    pub(crate) async fn strike(self) -> Result<(), String> {
        self.process.drain().await;
        self.microsoft.shutdown().await;
        if !self.config.broker.is_embedded() {
            let topology = Tuning::of(&self.config, "demo")?.topology(&self.config.broker.prefix, &JOBS);
            let deleted = delete(self.config.broker.url.expose_secret(), &topology).await;
            deleted.map_err(|error| format!("the demo's queues are left behind: {error}"))?;
        }
        Ok(())
    }
}

fn settings(
    database: &str,
    broker: Option<&str>,
    address: SocketAddr,
    microsoft: &Running,
    unique: &str,
) -> Vec<(String, String)> {
    let base = microsoft.base_url();
    let keys = Keys::generate("demo");
    [
        ("DATABASE_URL", database),
        ("BROKER_URL", broker.unwrap_or("embedded")),
        ("BROKER_PREFIX", &format!("followthrough-demo-{unique}")),
        ("HTTP_LISTEN", &address.to_string()),
        ("HTTP_PUBLIC_URL", &format!("http://{address}")),
        ("MICROSOFT_CLIENT_ID", CLIENT_ID),
        ("MICROSOFT_CLIENT_SECRET", CLIENT_SECRET),
        ("MICROSOFT_LOGIN_URL", &base),
        ("MICROSOFT_GRAPH_URL", &base),
        ("MICROSOFT_DISCOVERY_URL", &base),
        ("MICROSOFT_DATAVERSE_HOSTS", "127.0.0.1"),
        ("VAULT_KEYS", keys.expose_secret()),
        ("RETRY_LADDER", LADDER),
        ("MAILBOX_POLL", "2s"),
    ]
    .into_iter()
    .map(|(name, value)| (format!("FOLLOWTHROUGH_{name}"), value.to_owned()))
    .collect()
}

/// A free address of this machine: the usual port, or with 0 any.
fn free(port: u16) -> Result<SocketAddr, String> {
    let at = SocketAddr::from(([127, 0, 0, 1], port));
    TcpListener::bind(at).and_then(|listener| listener.local_addr()).map_err(|error| format!("{at}: {error}"))
}

/// An administrator's key, as `followthrough key create --role admin` makes it.
async fn key(store: &Store, clock: &Clock) -> Result<SecretString, StoreError> {
    let (shown, hash) = api_key::generate();
    let key = &ApiKey {
        id: Uuid::now_v7(),
        name: "demo".to_owned(),
        role: KeyRole::Admin.as_str().to_owned(),
        workspace: None,
        hash,
        created_at: clock.now(),
        revoked_at: None,
    };
    store
        .transaction("demo.key", |tx| {
            async move { followthrough::store::api_key::insert(tx, key).await }.scope_boxed()
        })
        .await?;
    Ok(shown)
}
