//! A process from its settings to its end: built, running, drained on a signal.
//!
//! The invariant: whatever is wrong is found before anything is taken from a queue; after the first signal
//! nothing new is taken, the second one cuts off what still runs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{self, Api};
use crate::auth::{TokenSource, Tokens};
use crate::broker::Broker;
use crate::broker::embedded::Embedded;
use crate::broker::rabbit::Rabbit;
use crate::clock::Clock;
use crate::config::Config;
use crate::connected::Announce;
use crate::fleet::{Fleet, Parts, Role, Tuning};
use crate::http::Http;
use crate::intake::Intake;
use crate::listener;
use crate::microsoft::Microsoft;
use crate::oauth::app::App;
use crate::oauth::client::Entra;
use crate::outcome::{Cause, Failure};
use crate::registry::Registry;
use crate::store::Store;
use crate::store::connection::Connection;
use crate::telemetry;
use crate::vault::Vault;
use crate::vault::seal::Keys;

/// More than a listener gives the answers under way.
const CLOSING: Duration = Duration::from_secs(6);

/// A running process.
pub struct Process {
    pub fleet: Fleet,
    pub vault: Option<Vault>,
    /// Where the HTTP interface listens, when it does.
    pub address: Option<SocketAddr>,
    listeners: TaskTracker,
    /// Ends the listeners, after the drain: probes answer until then.
    closed: CancellationToken,
}

/// Runs until a signal ends it.
pub async fn run(
    config: &Config,
    registry: Registry,
    roles: &[Role],
    only: Option<&[String]>,
) -> Result<(), String> {
    telemetry::metrics();
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
    let process = Process::start(config, registry, roles, only, Clock::system()).await?;
    if let Some(address) = process.address {
        tracing::info!(%address, "listening");
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("draining; another signal cuts off what still runs");
    let hurry = process.fleet.abort();
    let drained = process.drain();
    tokio::pin!(drained);
    tokio::select! {
        () = &mut drained => return Ok(()),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::warn!("cutting off");
    hurry.cancel();
    drained.await;
    Ok(())
}

impl Process {
    /// Builds everything from the settings and starts it. The schema is brought up to date in the embedded
    /// mode; elsewhere `migrate` is a step of the deployment, and an older schema is refused.
    pub async fn start(
        config: &Config,
        registry: Registry,
        roles: &[Role],
        only: Option<&[String]>,
        clock: Clock,
    ) -> Result<Self, String> {
        let instance = instance();
        let tuning = Tuning::of(config, &instance)?;
        let serving = roles.iter().any(|role| matches!(role, Role::Api | Role::Intake | Role::Console));
        let probes_apart = config.http.metrics_listen.is_some();
        // Bound before anything is taken from a queue: a port that is taken is a wrong setting too.
        let probes_at = bind(config.http.metrics_listen).await?;
        // A worker without the API still answers its orchestrator.
        let main_at = bind((serving || !probes_apart).then_some(config.http.listen)).await?;
        let store = store(config).await?;
        let broker = broker(config, &registry, &tuning, &store, &clock).await?;
        let http = Http::new(&config.microsoft, clock.clone())?;
        let vault = vault(config, &registry, &store, &http, &clock)?;
        let tokens: Arc<dyn TokenSource> = match &vault {
            Some(vault) => Arc::new(vault.clone()),
            None => Arc::new(NoRegistration),
        };
        let microsoft = Microsoft::new(&config.microsoft, http, tokens, clock.clone());
        let parts = Parts { registry, store, broker, clock, microsoft, vault: vault.clone(), tuning };
        let fleet = Fleet::start(parts, roles, only);
        let closed = CancellationToken::new();
        let listeners = TaskTracker::new();
        let address = main_at.as_ref().and_then(|listener| listener.local_addr().ok());
        let mut api = Api::new(fleet.services.clone(), vault.clone(), fleet.stopping().clone());
        api.intake = roles.contains(&Role::Intake).then(|| Intake::start(&fleet.services));
        listeners.spawn(telemetry::sample(fleet.services.clone(), closed.clone()));
        if let Some(listener) = probes_at {
            serve(listener, api::probes(api.clone()), &listeners, &closed);
        }
        if let Some(listener) = main_at {
            let router = if serving { api::router(api, !probes_apart) } else { api::probes(api) };
            serve(listener, router, &listeners, &closed);
        }
        Ok(Self { fleet, vault, address, listeners, closed })
    }

    pub async fn drain(self) {
        self.fleet.drain().await;
        self.closed.cancel();
        self.listeners.close();
        // A browser that keeps its connection open must not outlast the orchestrator's patience.
        if timeout(CLOSING, self.listeners.wait()).await.is_err() {
            tracing::warn!("the listeners did not end in time");
        }
    }
}

/// Opens the store of the settings, with a schema that fits.
pub async fn store(config: &Config) -> Result<Store, String> {
    let url = config.database.url.expose_secret();
    let store = Store::connect(url, config.database.connections)
        .await
        .map_err(|error| format!("database.url: {error}"))?;
    if store.is_sqlite() {
        store.migrate().await.map_err(|error| format!("database.url: {error}"))?;
    } else {
        store.check_schema().await.map_err(|error| format!("database.url: {error}"))?;
    }
    Ok(store)
}

/// Connects to the broker of the settings.
pub async fn broker(
    config: &Config,
    registry: &Registry,
    tuning: &Tuning,
    store: &Store,
    clock: &Clock,
) -> Result<Arc<dyn Broker>, String> {
    let topology = tuning.topology(&config.broker.prefix, registry);
    if config.broker.is_embedded() {
        let embedded = Embedded::start(store.clone(), topology, clock.clone(), &tuning.instance).await;
        return Ok(embedded.map_err(|error| format!("broker.url: {error}"))?);
    }
    let ca = config.broker.ca_file.clone();
    let (url, mode) = (&config.broker.url, config.broker.topology);
    let rabbit = Rabbit::connect(url, topology, mode, ca, clock.clone(), &tuning.instance).await;
    Ok(rabbit.map_err(|error| format!("broker.url: {error}"))?)
}

/// The keys of the settings, or those that the embedded mode makes for itself.
pub fn keys(config: &Config) -> Result<Keys, String> {
    Keys::of(config).map_err(|error| error.to_string())
}

/// `None` without an app registration: nobody can connect then, and jobs wait for their users.
pub fn vault(
    config: &Config,
    registry: &Registry,
    store: &Store,
    http: &Http,
    clock: &Clock,
) -> Result<Option<Vault>, String> {
    if config.microsoft.client_id.is_none() {
        return Ok(None);
    }
    let app = App::new(&config.microsoft, &config.http.public_url)?;
    let entra = Entra { app, http: http.clone(), clock: clock.clone() };
    let announce = Arc::new(Announce { registry: *registry });
    Ok(Some(Vault::new(store.clone(), keys(config)?, entra, announce)))
}

async fn bind(at: Option<SocketAddr>) -> Result<Option<TcpListener>, String> {
    let Some(at) = at else { return Ok(None) };
    TcpListener::bind(at).await.map(Some).map_err(|error| format!("http.listen: {at}: {error}"))
}

fn serve(listener: TcpListener, router: axum::Router, listeners: &TaskTracker, closed: &CancellationToken) {
    listeners.spawn(listener::serve(listener, router, closed.clone()));
}

/// Unique to this start of the process, and telling to an operator.
fn instance() -> String {
    let unique = uuid::Uuid::now_v7().simple().to_string();
    format!("{}-{}", std::process::id(), &unique[20..])
}

pub(crate) struct NoRegistration;

impl TokenSource for NoRegistration {
    fn of(&self, _: &Connection) -> Arc<dyn Tokens> {
        Arc::new(Self)
    }
}

#[async_trait]
impl Tokens for NoRegistration {
    async fn access(&self, _: &str) -> Result<SecretString, Failure> {
        let message = "no app registration is set (microsoft.client_id)";
        Err(Failure::park(Cause::Operator, "no_app_registration", message))
    }

    async fn rejected(&self, resource: &str, _: Option<String>) -> Result<SecretString, Failure> {
        self.access(resource).await
    }
}
