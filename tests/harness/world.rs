//! The whole house beside the simulated Microsoft 365: real processes, a real HTTP API, real sign-ins.
//!
//! The invariant: a world that is closed has nothing in hand, nothing owed and nothing queued; nobody panicked,
//! Microsoft's referee saw no foul, and every dead letter was expected.

mod people;
mod snapshot;

use std::ops::Deref;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use chrono::TimeDelta;
use followthrough::broker::embedded::Embedded;
use followthrough::broker::rabbit::Rabbit;
use followthrough::broker::{Broker, Source, Topology};
use followthrough::clock::Clock;
use followthrough::config::{Config, TopologyMode};
use followthrough::fleet::{Role, Tuning};
use followthrough::http::Http;
use followthrough::lifecycle::Process;
use followthrough::registry::Registry;
use followthrough::store::Store;
use followthrough::vault::seal::Keys;
use followthrough_workers::JOBS;
use m365_sim::Sim;
use m365_sim::entra::{CLIENT_ID, CLIENT_SECRET};
use secrecy::SecretString;
use url::Url;
use uuid::Uuid;

use crate::broker::{Folder, delete};
pub use crate::engine::Pair;
use crate::events::Events;
use crate::inside::Inside;
use crate::servers::{self, Amqp, Database};
use crate::{broker, logs, time};

pub use people::Page;
pub use snapshot::Snapshot;

pub const ADA: &str = "ada@acme.example";
pub const BOB: &str = "bob@acme.example";
pub const WORKSPACE: &str = "acme";
/// What links and redirects say; a request goes to a process of this world instead.
const PUBLIC: &str = "http://localhost:8080/";
const DRAIN: Duration = Duration::from_secs(80);

pub struct World {
    inside: Inside,
    pub pair: Pair,
    pub running: m365_sim::Running,
    pub config: Config,
    /// Of the processes to come.
    pub roles: Vec<Role>,
    pub events: Events,
    /// Those that live; on the embedded pair there can be only one.
    pub processes: Vec<Process>,
    /// The codes of the dead letters that the story is about.
    expected_dead: Mutex<Vec<String>>,
    /// The referee's rules that the story breaks on purpose.
    forgiven: Mutex<Vec<&'static str>>,
    /// Made or found last, by a link.
    last_connection: Mutex<Uuid>,
    key: SecretString,
    http: Http,
    topology: Topology,
    closed: bool,
    /// The story's own hand on the queues, while no process lives.
    own: Arc<dyn Broker>,
    _listening: Option<lapin::Connection>,
    _database: Option<Database>,
    _folder: Option<Folder>,
    amqp: Option<Amqp>,
}

impl World {
    /// One process with every role. `None` where a server is missing.
    pub async fn open(pair: Pair) -> Option<Self> {
        Self::open_with(pair, |_| {}).await
    }

    pub async fn open_with(pair: Pair, change: impl FnOnce(&mut Config)) -> Option<Self> {
        let mut world = Self::closed(pair, change).await?;
        world.start().await;
        Some(world)
    }

    /// Nobody works yet.
    pub async fn closed(pair: Pair, change: impl FnOnce(&mut Config)) -> Option<Self> {
        Self::closed_at(pair, Clock::system(), change).await
    }

    /// One process with every role, in a world whose time a story can move on with [`World::pass`].
    pub async fn open_moving(pair: Pair, change: impl FnOnce(&mut Config)) -> Option<Self> {
        let mut world = Self::closed_at(pair, time::moving(), change).await?;
        world.start().await;
        Some(world)
    }

    async fn closed_at(pair: Pair, clock: Clock, change: impl FnOnce(&mut Config)) -> Option<Self> {
        logs::listen();
        let (folder, database, amqp) = match pair {
            Pair::Embedded => (Some(Folder::fresh()), None, None),
            Pair::Servers => (None, Some(servers::postgres().await?), Some(servers::amqp().await?)),
        };
        let running = m365_sim::start(m365_sim::Options::default()).await.expect("a free port");
        // Word of a 429 reaches the other process through the ledger: on a loaded machine not at once.
        running.sim.set_limits(m365_sim::referee::Limits { grace_ms: 1000, ..running.sim.limits() });
        running.sim.auto_sign_in(Some("*"));
        let url = match (&database, &folder) {
            (Some(database), _) => database.url.clone(),
            (None, Some(folder)) => format!("sqlite://{}/followthrough.db", folder.0.display()),
            (None, None) => unreachable!("one of the two is there"),
        };
        let mut config = settings(&running.base_url(), &url, amqp.as_ref().map(|amqp| amqp.url.as_str()));
        change(&mut config);
        config.check().expect("right settings");
        let store = Store::connect(&url, 4).await.expect("the database");
        store.migrate().await.expect("the schema");
        let tuning = Tuning::of(&config, "story").expect("right settings");
        let topology = tuning.topology(&config.broker.prefix, &JOBS);
        let own: Arc<dyn Broker> = match &amqp {
            None => Embedded::start(store.clone(), topology.clone(), clock.clone(), "story")
                .await
                .expect("a broker"),
            Some(amqp) => {
                let (url, declare) = (amqp.url.clone().into(), TopologyMode::Declare);
                Rabbit::connect(&url, topology.clone(), declare, None, clock.clone(), "story")
                    .await
                    .expect("RabbitMQ")
            }
        };
        let events = Events::default();
        let mut listening = None;
        if let Some(amqp) = &amqp {
            let exchange = format!("{}.events", topology.prefix);
            listening = Some(events.bind(&amqp.url, &exchange).await.expect("a queue of events"));
        }
        let http = Http::new(&config.microsoft, clock.clone()).expect("right settings");
        let inside =
            Inside { workspace: WORKSPACE.into(), store, clock, broker: own.clone(), kinds: JOBS.kinds() };
        let key = people::api_key(&inside).await;
        for tool in ["email.draft", "email.send", "event.create", "crm.*.update", "mailbox.connect"] {
            inside.set_tool(tool, "allow").await;
        }
        Some(Self {
            inside,
            pair,
            running,
            config,
            roles: Role::ALL.to_vec(),
            events,
            processes: Vec::new(),
            expected_dead: Mutex::default(),
            forgiven: Mutex::default(),
            last_connection: Mutex::default(),
            key,
            http,
            topology,
            closed: false,
            own,
            _listening: listening,
            _database: database,
            _folder: folder,
            amqp,
        })
    }

    pub fn sim(&self) -> &Sim {
        &self.running.sim
    }

    pub fn last_connection(&self) -> Uuid {
        *self.last_connection.lock().expect("no story panics here")
    }

    /// Moves our time and Microsoft's. What runs meanwhile loses its lease.
    pub fn pass(&self, time: TimeDelta) {
        // Theirs first: whoever wakes up because of ours must not come early.
        self.sim().clock().advance(time);
        self.clock.advance(time.to_std().expect("forward"));
    }

    pub fn registry(&self) -> Registry {
        JOBS
    }

    /// One more process with every role.
    pub async fn start(&mut self) {
        assert!(self.pair == Pair::Servers || self.processes.is_empty(), "one machine, one process");
        let clock = self.clock.clone();
        let start = Process::start(&self.config, JOBS, &self.roles, None, clock);
        let process = Box::pin(start).await.expect("a process");
        let broker = process.fleet.services.broker.clone();
        if let Some(told) = broker.local_events() {
            self.events.listen(told);
            // What is published here is seen by the workers at once.
            self.inside.broker = broker;
        }
        self.processes.push(process);
    }

    /// Stops the oldest process as a signal would.
    pub async fn stop(&mut self) {
        self.inside.broker = self.own.clone();
        let process = self.processes.remove(0);
        broker::within("a process to drain", async { tokio::time::timeout(DRAIN, process.drain()).await })
            .await
            .expect("drained");
    }

    /// Stops the oldest process as a second signal would: what still runs is cut off.
    pub async fn cut(&mut self) {
        self.processes[0].fleet.abort().cancel();
        self.stop().await;
    }

    /// The story ends with a dead letter of this code; call it once for each.
    pub fn expect_dead(&self, code: &str) {
        self.expected_dead.lock().expect("no story panics here").push(code.to_owned());
    }

    /// The story breaks this rule of the referee on purpose.
    pub fn forgive(&self, rule: &'static str) {
        self.forgiven.lock().expect("no story panics here").push(rule);
    }

    pub fn no_violations(&self) {
        let forgiven = self.forgiven.lock().expect("no story panics here").clone();
        let mut violations = self.sim().violations();
        violations.retain(|violation| !forgiven.contains(&violation.rule));
        assert!(violations.is_empty(), "{violations:#?}");
    }

    async fn left(&self) -> u64 {
        let mut left = 0;
        for kind in self.kinds.clone() {
            left += self.broker.depth(&Source::Jobs { kind }).await.expect("the broker answers").ready;
        }
        left
    }

    /// The end of every story.
    pub async fn close(mut self) {
        self.at_rest().await;
        self.until("nobody waits for time", || async {
            let states = self.states().await;
            !["queued", "running", "waiting"].iter().any(|state| states.contains_key(*state))
        })
        .await;
        let mut expected = self.expected_dead.lock().expect("no story panics here").clone();
        expected.sort_unstable();
        self.until("its dead letters are there", || async {
            self.dead_letters().await.len() >= expected.len()
        })
        .await;
        while !self.processes.is_empty() {
            self.stop().await;
        }
        // A copy of a job that is done may have come back from a delay meanwhile: whoever comes next throws it away.
        if self.left().await > 0 {
            self.start().await;
            self.at_rest().await;
            self.stop().await;
        }
        for source in self.kinds.iter().map(|kind| Source::Jobs { kind: kind.clone() }).chain([Source::Dead])
        {
            let depth = self.broker.depth(&source).await.expect("the broker answers");
            assert_eq!(depth.ready, 0, "left in hand by the process that ended: {source:?}");
        }
        assert_eq!(self.owed().await, 0, "left owed by the process that ended");
        let mut dead: Vec<String> = self.dead_letters().await.into_iter().map(|letter| letter.code).collect();
        dead.sort_unstable();
        assert_eq!(dead, expected, "the dead letters");
        self.no_violations();
        assert_eq!(logs::panics(), Vec::<String>::new(), "somebody panicked");
        self.own.close().await;
        self.closed = true;
    }
}

impl Deref for World {
    type Target = Inside;

    fn deref(&self) -> &Inside {
        &self.inside
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(amqp) = &self.amqp {
            let (url, topology) = (amqp.url.clone(), self.topology.clone());
            servers::finish(async move { delete(&url, &topology).await.map_err(|error| error.to_string()) });
        }
        assert!(self.closed || std::thread::panicking(), "a story ends with World::close");
    }
}

/// As an operator would set them, with waits that fit a story.
pub fn settings(microsoft: &str, database: &str, amqp: Option<&str>) -> Config {
    let mut config = Config::default();
    let base = Url::parse(microsoft).expect("a URL");
    config.database.url = database.into();
    config.database.connections = 6;
    config.broker.url = amqp.unwrap_or("embedded").into();
    config.broker.prefix = format!("test-{}", Uuid::now_v7().simple());
    config.http.listen = ([127, 0, 0, 1], 0).into();
    config.http.public_url = Url::parse(PUBLIC).expect("a URL");
    config.microsoft.client_id = Some(CLIENT_ID.into());
    config.microsoft.client_secret = Some(CLIENT_SECRET.into());
    config.microsoft.login_url = Some(base.clone());
    config.microsoft.graph_url = Some(base.clone());
    config.microsoft.discovery_url = Some(base);
    config.microsoft.dataverse_hosts = vec!["127.0.0.1".into()];
    config.vault.keys = vec![Keys::generate("story")];
    config.retry.ladder = ["50ms", "100ms", "200ms", "400ms", "2s"].map(str::to_owned).to_vec();
    config.mailbox.poll = "1s".into();
    config.workers.drain = "20s".into();
    config.mailbox.unanswered = "200ms".into();
    config
}
