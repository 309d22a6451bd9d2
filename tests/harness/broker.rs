//! Worlds for the stories about brokers: the same few verbs on RabbitMQ, on SQLite and on PostgreSQL.
//!
//! The invariant: every world has objects of its own and leaves none behind, be it that its test panicked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use followthrough::broker::embedded::Embedded;
use followthrough::broker::rabbit::Rabbit;
use followthrough::broker::{
    Broker, BrokerError, Delivery, Outgoing, Rung, Source, Subscription, Target, Topology,
};
use followthrough::clock::Clock;
use followthrough::config::TopologyMode;
use followthrough::store::Store;
use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use uuid::Uuid;

use crate::servers::{self, Amqp, Database};

/// Nothing in these stories takes longer, unless it is stuck.
const PATIENCE: Duration = Duration::from_secs(90);
const GLANCE: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Rabbit,
    Sqlite,
    Postgres,
}

pub struct World {
    pub topology: Topology,
    pub clock: Clock,
    back: Back,
}

enum Back {
    Rabbit { amqp: Amqp },
    Embedded { store: Store, database: Option<Database>, _folder: Option<Folder> },
}

/// A folder of its own below the system's, gone when dropped.
pub struct Folder(pub std::path::PathBuf);

impl Folder {
    pub fn fresh() -> Self {
        let folder = std::env::temp_dir().join(format!("followthrough-{}", Uuid::now_v7().simple()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Two kinds and two short rungs under a prefix of their own.
pub fn topology() -> Topology {
    let rung = |seconds: u64| Rung { name: format!("{seconds}s"), delay: Duration::from_secs(seconds) };
    Topology {
        prefix: format!("test-{}", Uuid::now_v7().simple()),
        kinds: vec!["email.draft".into(), "event.create".into()],
        rungs: vec![rung(1), rung(2)],
    }
}

impl World {
    /// `None` where the server is missing.
    pub async fn open(engine: Engine) -> Option<Self> {
        Self::with_clock(engine, Clock::system()).await
    }

    pub async fn with_clock(engine: Engine, clock: Clock) -> Option<Self> {
        let back = match engine {
            Engine::Rabbit => Back::Rabbit { amqp: servers::amqp().await? },
            Engine::Sqlite => {
                let folder = Folder::fresh();
                let store = store(&format!("sqlite://{}/queue.db", folder.0.display())).await;
                Back::Embedded { store, database: None, _folder: Some(folder) }
            }
            Engine::Postgres => {
                let database = servers::postgres().await?;
                let store = store(&database.url).await;
                Back::Embedded { store, database: Some(database), _folder: None }
            }
        };
        Some(Self { topology: topology(), clock, back })
    }

    /// A broker of one more process on the same objects.
    pub async fn connect(&self) -> Arc<dyn Broker> {
        match &self.back {
            Back::Rabbit { amqp } => self.rabbit(&amqp.url).await.expect("RabbitMQ"),
            Back::Embedded { .. } => self.embedded().await,
        }
    }

    pub async fn rabbit(&self, url: &str) -> Result<Arc<Rabbit>, BrokerError> {
        let (topology, clock) = (self.topology.clone(), self.clock.clone());
        Rabbit::connect(&url.to_owned().into(), topology, TopologyMode::Declare, None, clock, "test").await
    }

    pub async fn embedded(&self) -> Arc<Embedded> {
        let Back::Embedded { store, .. } = &self.back else { panic!("not a world of the embedded broker") };
        let (topology, clock) = (self.topology.clone(), self.clock.clone());
        Embedded::start(store.clone(), topology, clock, "test").await.expect("the embedded broker")
    }

    /// Ends every connection to the database of this world, as a restart of the server would.
    pub async fn cut_database(&self) {
        let Back::Embedded { database: Some(database), .. } = &self.back else {
            panic!("not a world on PostgreSQL")
        };
        database.cut().await;
    }

    /// The messages of all queues, claimed ones too.
    pub async fn queue_messages(&self) -> i64 {
        let Back::Embedded { database: Some(database), .. } = &self.back else {
            panic!("not a world on PostgreSQL")
        };
        database.count("SELECT COUNT(*) FROM queue_messages").await
    }

    /// The server's URL, for worlds on RabbitMQ.
    pub fn url(&self) -> &str {
        let Back::Rabbit { amqp } = &self.back else { panic!("not a world on RabbitMQ") };
        &amqp.url
    }
}

async fn store(url: &str) -> Store {
    let store = Store::connect(url, 8).await.expect("a store");
    store.migrate().await.expect("a schema");
    store
}

impl Drop for World {
    fn drop(&mut self) {
        if let Back::Rabbit { amqp } = &self.back {
            let (url, topology) = (amqp.url.clone(), self.topology.clone());
            servers::finish(async move { delete(&url, &topology).await.map_err(|error| error.to_string()) });
        }
    }
}

/// Deletes all objects of a topology; those that never were are no error to RabbitMQ.
pub async fn delete(url: &str, topology: &Topology) -> lapin::Result<()> {
    let connection = lapin::Connection::connect(url, lapin::ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let definitions = topology.definitions("/");
    let names = |of: &str| -> Vec<String> {
        let objects = definitions[of].as_array().cloned().unwrap_or_default();
        objects.iter().filter_map(|object| Some(object["name"].as_str()?.to_owned())).collect()
    };
    for queue in names("queues") {
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
    }
    for exchange in names("exchanges") {
        channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await?;
    }
    connection.close(200, "done".into()).await
}

pub fn job(kind: &str, body: &str) -> Outgoing {
    to(Target::Job { kind: kind.into() }, body)
}

pub fn to(target: Target, body: &str) -> Outgoing {
    Outgoing {
        message_id: Uuid::now_v7(),
        target,
        content_type: "application/json",
        body: body.to_owned().into(),
        headers: BTreeMap::new(),
    }
}

pub fn jobs(kind: &str) -> Source {
    Source::Jobs { kind: kind.into() }
}

pub fn body(delivery: &Delivery) -> &str {
    std::str::from_utf8(&delivery.body).expect("a body of text")
}

/// The next delivery, or a failed test.
pub async fn next(subscription: &mut Box<dyn Subscription>) -> Delivery {
    within("a delivery", subscription.next()).await.expect("an open subscription")
}

/// Publishes, however often it takes, as the outbox relay does.
pub async fn owe(broker: &dyn Broker, messages: &[Outgoing]) {
    let mut owed = messages.to_vec();
    within("all to be published", async {
        while !owed.is_empty() {
            let answers = broker.publish(&owed).await;
            owed = owed
                .into_iter()
                .zip(answers)
                .filter(|(_, answer)| answer.is_err())
                .map(|(owed, _)| owed)
                .collect();
            if !owed.is_empty() {
                Clock::system().sleep(GLANCE).await;
            }
        }
    })
    .await;
}

pub async fn within<T>(what: &str, act: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, act).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// Waits until a condition holds that nobody announces.
pub async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    within(what, async {
        while !holds().await {
            Clock::system().sleep(GLANCE).await;
        }
    })
    .await;
}
