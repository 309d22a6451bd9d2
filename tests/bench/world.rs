//! What the contenders share: a fresh database, objects of our own at the broker, the fake Microsoft, users who
//! have consented.

use std::collections::{BTreeMap, HashMap};
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use followthrough::broker::rabbit::Rabbit;
use followthrough::broker::{Broker, Outgoing, Target, Topology};
use followthrough::clock::Clock;
use followthrough::config::{Config, TopologyMode};
use followthrough::fleet::Tuning;
use followthrough::oauth::scopes::Integration;
use followthrough::store::connection::{self, Grant, Status};
use followthrough::store::{Store, job, tool};
use followthrough::vault::seal::Keys;
use followthrough::vault::token_place;
use followthrough_tests::broker::{Folder, delete};
use followthrough_tests::servers::{self, Amqp, Database};
use followthrough_workers::JOBS;
use futures::StreamExt;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use scoped_futures::ScopedFutureExt;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sqlx::Connection as _;
use uuid::Uuid;

use crate::child::Process;
use crate::fake::{self, Count};

pub(crate) type Failure = Box<dyn std::error::Error>;

const KIND: &str = "email.draft";
const WINDOW: usize = 200;
const BODY: &str = "Hi Bob,\n\nthanks for the good talk today. As agreed we send the revised offer with the \
     longer support window by Friday, and you check with your legal team whether the data processing \
     agreement of last year still holds.\n\n**Next step:** a short call on Tuesday at ten.\n\nBest, Ada\n";

pub(crate) struct World {
    pub(crate) amqp: Amqp,
    pub(crate) topology: Topology,
    pub(crate) settings: std::path::PathBuf,
    pub(crate) fake_url: String,
    pub(crate) events: Events,
    metrics_url: String,
    store: Store,
    broker: Arc<dyn Broker>,
    http: reqwest::Client,
    users: usize,
    _fake: Process,
    _folder: Folder,
    database: Database,
}

/// Sums of a worker's own counters.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counters {
    pub(crate) commits: f64,
    pub(crate) statements: f64,
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "the benchmark looks at its parties from outside")]
    pub(crate) async fn open(users: usize, concurrency: u16) -> Result<Self, Failure> {
        let missing = "the benchmark needs RabbitMQ and PostgreSQL";
        let (amqp, database) =
            (servers::amqp().await.ok_or(missing)?, servers::postgres().await.ok_or(missing)?);
        let mut fake = Process::start(&[fake::NAME.to_owned()])?;
        let fake_url = format!("http://{}", fake.line().await?);
        let listen = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let prefix = format!("bench-{}", Uuid::now_v7().simple());
        let key = Keys::generate("bench");
        let folder = Folder::fresh();
        let settings = folder.0.join("bench.toml");
        std::fs::write(
            &settings,
            format!(
                "[database]\nurl = {:?}\n[broker]\nurl = {:?}\nprefix = {prefix:?}\n\
                 [http]\nlisten = \"{listen}\"\n[workers]\nconcurrency = {concurrency}\n\
                 [vault]\nkeys = [{:?}]\n[microsoft]\nclient_id = \"00000000-0000-4000-8000-000000000001\"\n\
                 client_secret = \"none\"\nlogin_url = {fake_url:?}\ngraph_url = {fake_url:?}\n",
                database.url,
                amqp.url,
                key.expose_secret(),
            ),
        )?;
        let config = Config::load(Some(&settings), std::iter::empty())?;
        let topology = Tuning::of(&config, "bench")?.topology(&prefix, &JOBS);
        let mode = TopologyMode::Declare;
        let broker =
            Rabbit::connect(&config.broker.url, topology.clone(), mode, None, Clock::system(), "bench")
                .await?;
        let store = Store::connect(&database.url, 2).await?;
        store.migrate().await?;
        let events = Events::listen(&amqp.url, &prefix).await?;
        let world = Self {
            amqp,
            topology,
            settings,
            fake_url,
            events,
            metrics_url: format!("http://{listen}/metrics"),
            store,
            broker,
            http: reqwest::Client::builder().no_proxy().build()?,
            users,
            _fake: fake,
            _folder: folder,
            database,
        };
        world.consent(&Keys::parse(&[key])?).await?;
        Ok(world)
    }

    async fn consent(&self, keys: &Keys) -> Result<(), Failure> {
        let now = Clock::system().now();
        let integration = Integration::OutlookEmail;
        for user in 0..self.users {
            let name = user_name(user);
            let name = name.as_str();
            self.store
                .transaction("consent", |tx| {
                    async move {
                        let row = connection::ensure(tx, "bench", name, integration, now).await?;
                        let grant = Grant {
                            status: Status::Connected,
                            cause: None,
                            message: None,
                            tenant_id: "00000000-0000-4000-8000-00000000000a".to_owned(),
                            object_id: row.id.to_string(),
                            account: Some(name.to_owned()),
                            scopes: followthrough::oauth::scopes::scopes(integration, ""),
                            environment: None,
                            refresh_token: keys.seal(token_place(&row.id), b"refresh-0"),
                        };
                        connection::save_grant(tx, row.id, &grant, now).await
                    }
                    .scope_boxed()
                })
                .await?;
        }
        self.store
            .transaction("tools", |tx| {
                async move { tool::set(tx, "bench", KIND, "allow", now).await }.scope_boxed()
            })
            .await?;
        Ok(())
    }

    fn message(&self, run: &str, number: usize) -> Outgoing {
        let envelope = json!({
            "id": format!("{run}-{number}"),
            "kind": KIND,
            "workspace": "bench",
            "user": user_name(number % self.users),
            "meeting": format!("m-{}", number / 3),
            "payload": {
                "to": [{"email": "bob@contoso.example", "name": "Bob"}],
                "subject": "What we agreed on",
                "body": {"format": "text", "content": BODY},
            },
        });
        Outgoing {
            message_id: Uuid::now_v7(),
            target: Target::Job { kind: KIND.to_owned() },
            content_type: "application/json",
            body: envelope.to_string().into(),
            headers: BTreeMap::new(),
        }
    }

    /// Publishes `jobs` messages, confirmed, in windows.
    pub(crate) async fn preload(&self, run: &str, jobs: usize) -> Result<(), Failure> {
        let mut number = 0;
        while number < jobs {
            let until = jobs.min(number + WINDOW);
            let window: Vec<Outgoing> = (number..until).map(|number| self.message(run, number)).collect();
            for answer in self.broker.publish(&window).await {
                answer?;
            }
            number = until;
        }
        Ok(())
    }

    /// Publishes one message in the background.
    pub(crate) fn publish(&self, run: &str, number: usize) {
        let (broker, message) = (self.broker.clone(), self.message(run, number));
        tokio::spawn(async move { broker.publish(&[message]).await });
    }

    pub(crate) fn queue(&self) -> String {
        format!("{}.{KIND}", self.topology.prefix)
    }

    pub(crate) async fn purge(&self) -> Result<(), Failure> {
        let connection = Connection::connect(&self.amqp.url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.queue_purge(self.queue().into(), QueuePurgeOptions::default()).await?;
        connection.close(200, "done".into()).await?;
        Ok(())
    }

    pub(crate) async fn seen(&self) -> Result<Count, Failure> {
        Ok(self.http.get(format!("{}/count", self.fake_url)).send().await?.json().await?)
    }

    pub(crate) async fn forget(&self) -> Result<(), Failure> {
        self.http.delete(format!("{}/count", self.fake_url)).send().await?.error_for_status()?;
        self.events.forget();
        Ok(())
    }

    /// A worker that answers.
    pub(crate) async fn worker(&self) -> Result<Process, Failure> {
        let settings = self.settings.display().to_string();
        let worker = Process::start(&[crate::worker::NAME.to_owned(), "--settings".to_owned(), settings])?;
        for _ in 0..500 {
            if self.http.get(&self.metrics_url).send().await.is_ok() {
                return Ok(worker);
            }
            crate::child::pause(20).await;
        }
        Err("the worker did not start".into())
    }

    pub(crate) async fn counters(&self) -> Result<Counters, Failure> {
        let text = self.http.get(&self.metrics_url).send().await?.text().await?;
        let sum = |name: &str| {
            let lines = text.lines().filter(|line| line.starts_with(name));
            lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
        };
        Ok(Counters {
            commits: sum("followthrough_store_commits_total"),
            statements: sum("followthrough_store_statements_total"),
        })
    }

    /// How many transactions PostgreSQL itself says were committed in our database, asked from another one.
    pub(crate) async fn committed(&self) -> Result<i64, Failure> {
        let mut url = url::Url::parse(&self.database.url)?;
        let name = url.path().trim_start_matches('/').to_owned();
        url.set_path("postgres");
        let mut connection = sqlx::PgConnection::connect(url.as_str()).await?;
        let count = sqlx::query_scalar("SELECT xact_commit FROM pg_stat_database WHERE datname = $1")
            .bind(name)
            .fetch_one(&mut connection)
            .await?;
        connection.close().await?;
        Ok(count)
    }

    /// How many jobs are in each state.
    pub(crate) async fn states(&self) -> Result<BTreeMap<String, i64>, Failure> {
        let rows: Vec<(String, String, i64)> =
            self.store.read(|tx| async move { job::counts(tx).await }.scope_boxed()).await?;
        Ok(rows.into_iter().map(|(_, state, count)| (state, count)).collect())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let (url, topology) = (self.amqp.url.clone(), self.topology.clone());
        servers::finish(async move { delete(&url, &topology).await.map_err(|error| error.to_string()) });
    }
}

fn user_name(number: usize) -> String {
    format!("user{number}@bench.example")
}

/// The publisher's side: a queue on the events exchange, and when each job's event came first.
#[derive(Clone)]
pub(crate) struct Events(Arc<Mutex<Heard>>);

#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) first: HashMap<String, Instant>,
    pub(crate) again: u64,
    pub(crate) others: u64,
}

impl Events {
    async fn listen(amqp: &str, prefix: &str) -> Result<Self, Failure> {
        let connection = Connection::connect(amqp, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let queue = format!("{prefix}.events.bench");
        let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue.as_str().into(), exclusive, FieldTable::default()).await?;
        let exchange = format!("{prefix}.events");
        channel
            .queue_bind(
                queue.as_str().into(),
                exchange.into(),
                "#".into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let mut events =
            channel.basic_consume(queue.into(), "bench".into(), options, FieldTable::default()).await?;
        let heard = Self(Arc::default());
        let keeper = heard.clone();
        tokio::spawn(async move {
            // Both must live as long as the consumer.
            let _open = (connection, channel);
            while let Some(Ok(delivery)) = events.next().await {
                let at = Instant::now();
                let event: Value = serde_json::from_slice(&delivery.data).unwrap_or_default();
                let subject = event["subject"].as_str().unwrap_or_default().to_owned();
                let mut heard = keeper.lock();
                if event["type"] != "followthrough.job.succeeded.email.draft" {
                    heard.others += 1;
                } else if let Some(known) = heard.first.insert(subject.clone(), at) {
                    heard.first.insert(subject, known);
                    heard.again += 1;
                }
            }
        });
        Ok(heard)
    }

    pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn count(&self) -> usize {
        self.lock().first.len()
    }

    fn forget(&self) {
        *self.lock() = Heard::default();
    }
}
