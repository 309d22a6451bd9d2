//! Worlds for stories about the engine: real processes' worth of roles on either pair of engines.
//!
//! The invariant: a world leaves nothing behind, and a story that ends well ends with an empty outbox.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use followthrough::auth::{TokenSource, Tokens};
use followthrough::broker::embedded::Embedded;
use followthrough::broker::rabbit::Rabbit;
use followthrough::broker::{Broker, Rung, Topology};
use followthrough::clock::Clock;
use followthrough::config::{Microsoft as Settings, TopologyMode};
use followthrough::fleet::{Fleet, Parts, Role, Tuning};
use followthrough::http::Http;
use followthrough::intake::Callbacks;
use followthrough::microsoft::Microsoft;
use followthrough::oauth::scopes::Integration;
use followthrough::services::Ladder;
use followthrough::store::{Store, StoreError};
use scoped_futures::ScopedFutureExt;
use uuid::Uuid;

use crate::broker::{Folder, delete};
use crate::inside::Inside;
use crate::outside::{Outside, REGISTRY};
use crate::servers::{self, Amqp, Database};

/// As in the field: a renewal that a busy machine holds up costs no job its worker.
const LEASE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pair {
    /// SQLite and the embedded broker: one process.
    Embedded,
    /// PostgreSQL and RabbitMQ: many.
    Servers,
}

pub struct Engine {
    inside: Inside,
    pub outside: Arc<Outside>,
    pub database_url: String,
    pub amqp_url: Option<String>,
    topology: Topology,
    pub tuning: Tuning,
    embedded: Option<Arc<Embedded>>,
    pub database: Option<Database>,
    _folder: Option<Folder>,
    _amqp: Option<Amqp>,
}

impl Engine {
    /// `None` where a server is missing.
    pub async fn open(pair: Pair) -> Option<Self> {
        let prefix = format!("test-{}", Uuid::now_v7().simple());
        let tuning = tuning();
        let topology = tuning.topology(&prefix, &REGISTRY);
        let clock = Clock::system();
        let workspace = format!("w{}", Uuid::now_v7().simple());
        let outside = Outside::of(&workspace);
        let (folder, database, amqp) = match pair {
            Pair::Embedded => (Some(Folder::fresh()), None, None),
            Pair::Servers => (None, Some(servers::postgres().await?), Some(servers::amqp().await?)),
        };
        let database_url = match (&database, &folder) {
            (Some(database), _) => database.url.clone(),
            (None, Some(folder)) => format!("sqlite://{}/followthrough.db", folder.0.display()),
            (None, None) => unreachable!("one of the two is there"),
        };
        let store = Store::connect(&database_url, 12).await.expect("the database");
        store.migrate().await.expect("the schema");
        let (broker, embedded): (Arc<dyn Broker>, _) = if let Some(amqp) = &amqp {
            (rabbit(&amqp.url, &topology, "publisher").await, None)
        } else {
            let embedded = Embedded::start(store.clone(), topology.clone(), clock.clone(), "test").await;
            let embedded = embedded.expect("the embedded broker");
            (embedded.clone(), Some(embedded))
        };
        let world = Self {
            inside: Inside { workspace, store, clock, broker, kinds: REGISTRY.kinds() },
            outside,
            database_url,
            amqp_url: amqp.as_ref().map(|amqp| amqp.url.clone()),
            topology,
            tuning,
            embedded,
            database,
            _folder: folder,
            _amqp: amqp,
        };
        for tool in ["test.write", "test.mail", "test.post"] {
            world.set_tool(tool, "allow").await;
        }
        Some(world)
    }

    /// One more process. On the embedded broker there can be only one.
    pub async fn process(&self) -> Fleet {
        self.process_at(self.amqp_url.as_deref(), &self.database_url).await
    }

    /// One more process that reaches its servers at these addresses.
    pub async fn process_at(&self, amqp: Option<&str>, database: &str) -> Fleet {
        match (&self.embedded, amqp) {
            (None, Some(url)) => workers(url, database, &self.topology, self.tuning.clone()).await,
            (Some(embedded), _) => {
                let tuning = Tuning { instance: instance(), ..self.tuning.clone() };
                start(self.store.clone(), embedded.clone(), tuning)
            }
            (None, None) => unreachable!("a world has a broker"),
        }
    }

    /// What the names of this world's objects at RabbitMQ begin with.
    pub fn prefix(&self) -> &str {
        &self.topology.prefix
    }

    /// A consent as the callback would have stored it, with all that the integration asks for.
    pub async fn connect(&self, user: &str, integration: Integration) {
        let (workspace, now) = (self.workspace.as_str(), self.clock.now());
        self.store
            .transaction("connect", |tx| {
                async move {
                    followthrough::sql!(
                        tx,
                        execute,
                        "INSERT INTO connections (id, workspace, user_name, integration, status, tenant_id, \
                         object_id, scopes, created_at, updated_at) \
                         VALUES ($1, $2, $3, $4, 'connected', 'tenant', $3, '', $5, $5)",
                        Uuid::now_v7(),
                        workspace,
                        user,
                        integration.as_str(),
                        now,
                    )?;
                    Ok::<_, StoreError>(())
                }
                .scope_boxed()
            })
            .await
            .expect("a connection");
    }
}

impl Deref for Engine {
    type Target = Inside;

    fn deref(&self) -> &Inside {
        &self.inside
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(url) = self.amqp_url.clone() {
            let topology = self.topology.clone();
            servers::finish(async move { delete(&url, &topology).await.map_err(|error| error.to_string()) });
        }
    }
}

/// What every process of these worlds works by, with delays that a story can wait for.
pub fn tuning() -> Tuning {
    let rung = |name: &str, millis| Rung { name: name.into(), delay: Duration::from_millis(millis) };
    Tuning {
        instance: String::new(),
        lease: LEASE,
        drain: Duration::from_secs(20),
        slots: 4,
        poll: Duration::from_secs(1),
        unanswered: Duration::from_millis(500),
        attachment_bytes: 1_048_576,
        concurrency: 16,
        kinds: BTreeMap::new(),
        ladder: Ladder::new(vec![rung("200ms", 200), rung("400ms", 400), rung("2s", 2000)]),
        callbacks: Callbacks::Off,
    }
}

/// The workers of one process on RabbitMQ and PostgreSQL.
pub async fn workers(amqp: &str, database: &str, topology: &Topology, tuning: Tuning) -> Fleet {
    let store = Store::connect(database, 12).await.expect("the database");
    let instance = instance();
    start(store, rabbit(amqp, topology, &instance).await, Tuning { instance, ..tuning })
}

fn instance() -> String {
    format!("test-{}", Uuid::now_v7().simple())
}

fn start(store: Store, broker: Arc<dyn Broker>, tuning: Tuning) -> Fleet {
    let (clock, settings) = (Clock::system(), Settings::default());
    let http = Http::new(&settings, clock.clone()).expect("an HTTP client");
    let microsoft = Microsoft::new(&settings, http, Arc::new(NoTokens), clock.clone());
    let parts = Parts { registry: REGISTRY, store, broker, clock, microsoft, vault: None, tuning };
    Fleet::start(parts, &[Role::Workers], None)
}

async fn rabbit(url: &str, topology: &Topology, instance: &str) -> Arc<dyn Broker> {
    let mode = TopologyMode::Declare;
    Rabbit::connect(&url.to_owned().into(), topology.clone(), mode, None, Clock::system(), instance)
        .await
        .expect("RabbitMQ")
}

/// For jobs that call nobody.
pub struct NoTokens;

impl TokenSource for NoTokens {
    fn of(&self, _: &followthrough::store::connection::Connection) -> Arc<dyn Tokens> {
        unreachable!("no story of the engine asks for a token")
    }
}
