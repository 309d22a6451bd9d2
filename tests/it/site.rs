//! A site that Microsoft can tell of changes: our intake on a port of this machine, a shared mailbox with its folders in
//! the store, the simulator beside it. No worker runs: a story does by hand what the sync of a mailbox would do.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use followthrough::api::{self, Api};
use followthrough::auth::Tokens;
use followthrough::broker::embedded::Embedded;
use followthrough::clock::Clock;
use followthrough::config::Microsoft as Settings;
use followthrough::fleet::{Fleet, Parts, Role, Tuning};
use followthrough::graph::Graph;
use followthrough::http::{Answer, Call, Http};
use followthrough::intake::{Callbacks, Intake};
use followthrough::mailbox::{Mailboxes, SeenChange};
use followthrough::microsoft::Microsoft;
use followthrough::outcome::Failure;
use followthrough::store::folder::{self, Folder};
use followthrough::store::mailbox::{self, Mailbox};
use followthrough::store::subscription::{self, Subscription};
use followthrough::store::{Store, StoreError};
use followthrough_tests::broker::Folder as Directory;
use followthrough_tests::engine;
use followthrough_tests::servers::{Database, postgres};
use followthrough_workers::JOBS;
use followthrough_workers::mailbox::subscriptions;
use http::{HeaderValue, Method};
use m365_sim::graph::{NewMessage, SharedSubscribe};
use m365_sim::{Running, Sim};
use scoped_futures::ScopedFutureExt as _;
use secrecy::SecretString;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use url::Url;
use uuid::Uuid;

pub(crate) const WORKSPACE: &str = "acme";
pub(crate) const SUPPORT: &str = "support@acme.example";
const SERVICE: &str = "svc-shared@acme.example";
const SCOPES: &[&str] = &["User.Read", "Mail.Read.Shared", "Mail.ReadWrite.Shared", "Mail.Send.Shared"];
const PATIENCE: TimeDelta = TimeDelta::minutes(3);

pub(crate) struct Site {
    pub(crate) running: Running,
    pub(crate) clock: Clock,
    pub(crate) store: Store,
    pub(crate) fleet: Fleet,
    pub(crate) public: Url,
    pub(crate) graph: Graph,
    pub(crate) ours: Mailboxes,
    pub(crate) mailbox: Uuid,
    pub(crate) inbox: Folder,
    pub(crate) sent: Folder,
    /// Where the store is.
    pub(crate) url: String,
    http: Http,
    _kept: Kept,
}

/// What is gone when the site is.
pub(crate) enum Kept {
    File(#[expect(dead_code, reason = "held for its end")] Directory),
    Server(#[expect(dead_code, reason = "held for its end")] Database),
}

pub(crate) struct Minted(pub(crate) Sim);

#[async_trait]
impl Tokens for Minted {
    async fn access(&self, _: &str) -> Result<SecretString, Failure> {
        Ok(self.0.graph_token(SERVICE, SCOPES).into())
    }

    async fn rejected(&self, resource: &str, _: Option<String>) -> Result<SecretString, Failure> {
        self.access(resource).await
    }
}

impl Site {
    /// One on each engine that is there.
    pub(crate) async fn each() -> Vec<Self> {
        let mut sites = vec![Self::on_sqlite(Clock::system(), true).await];
        sites.extend(Self::on_postgres(Clock::system()).await);
        sites
    }

    pub(crate) async fn on_sqlite(clock: Clock, push: bool) -> Self {
        let folder = Directory::fresh();
        let url = format!("sqlite://{}", folder.0.join("site.db").display());
        Self::on(url.clone(), url, Kept::File(folder), clock, push).await
    }

    pub(crate) async fn on_postgres(clock: Clock) -> Option<Self> {
        let database = postgres().await?;
        let url = database.url.clone();
        Some(Self::on(url.clone(), url, Kept::Server(database), clock, true).await)
    }

    /// A process that reaches its store at `reached`; the story itself looks at `url`.
    pub(crate) async fn on(url: String, reached: String, kept: Kept, clock: Clock, push: bool) -> Self {
        let store = Store::connect(&url, 8).await.expect("a database");
        store.migrate().await.expect("the schema");
        let running = m365_sim::start(m365_sim::Options::default()).await.expect("a free port");
        running.sim.graph().switches.shared_subscribe = SharedSubscribe::Works;
        running.sim.clock().set(clock.now());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let public = format!("http://{}", listener.local_addr().expect("bound"));
        let public = Url::parse(&public).expect("a URL");
        let callbacks = if push { Callbacks::at(&public) } else { Callbacks::Off };
        let fleet = fleet(&reached, &clock, callbacks).await;
        serve(&fleet, listener);
        let settings = Settings::default();
        // Its repeats wait for a moment of real time.
        let http = Http::new(&settings, Clock::system()).expect("an HTTP client");
        let base = Url::parse(&running.base_url()).expect("a URL");
        let tokens = Arc::new(Minted(running.sim.clone()));
        let graph = Graph::new(http.clone(), tokens, clock.clone(), &base);
        let (mailbox, inbox, sent) = connected(&running, &store, &http, clock.now()).await;
        let ours = Mailboxes::new(fleet.services.clone(), WORKSPACE);
        Self {
            running,
            clock,
            store,
            fleet,
            public,
            graph,
            ours,
            mailbox,
            inbox,
            sent,
            url,
            http,
            _kept: kept,
        }
    }

    pub(crate) fn sim(&self) -> &Sim {
        &self.running.sim
    }

    /// One more intake on the same store.
    pub(crate) async fn another(&self) -> (Fleet, Url) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let fleet = fleet(&self.url, &self.clock, Callbacks::Off).await;
        serve(&fleet, listener);
        (fleet, Url::parse(&url).expect("a URL"))
    }

    pub(crate) async fn row(&self) -> Mailbox {
        let id = self.mailbox;
        let found: Result<_, StoreError> =
            self.store.read(|tx| async move { mailbox::get(tx, id).await }.scope_boxed()).await;
        found.expect("the mailbox")
    }

    pub(crate) async fn folder(&self, folder: &Folder) -> Folder {
        let (mailbox, id) = (self.mailbox, folder.id.as_str());
        let found: Result<_, StoreError> =
            self.store.read(|tx| async move { folder::find(tx, mailbox, id).await }.scope_boxed()).await;
        found.expect("the store answers").expect("the folder")
    }

    pub(crate) async fn subscriptions(&self) -> Vec<Subscription> {
        let id = self.mailbox;
        let found: Result<_, StoreError> =
            self.store.read(|tx| async move { subscription::of_mailbox(tx, id).await }.scope_boxed()).await;
        found.expect("the subscriptions")
    }

    /// (message, change), awaited ones too.
    pub(crate) async fn notices(&self) -> Vec<(String, String)> {
        let sql = "SELECT message_id, change FROM notices ORDER BY message_id, change";
        let found = self.store.read(|tx| {
            async move { Ok::<_, StoreError>(followthrough::sql!(tx, all(String, String), sql)?) }
                .scope_boxed()
        });
        found.await.expect("the notices")
    }

    /// A subscription that Microsoft calls `graph_id`, or is still being asked for, with this client state.
    pub(crate) async fn plant(&self, folder: &str, graph_id: Option<&str>, client_state: &str) -> Uuid {
        let (mailbox, now) = (self.mailbox, self.clock.now());
        let hash: [u8; 32] = Sha256::digest(client_state.as_bytes()).into();
        let planted: Result<_, StoreError> = self
            .store
            .transaction("plant", |tx| {
                async move {
                    let id = subscription::create(tx, mailbox, folder, &hash, now).await?;
                    if let Some(graph_id) = graph_id {
                        let until = now + TimeDelta::hours(1);
                        subscription::accepted(tx, id, graph_id, until, until, now).await?;
                    }
                    Ok(id)
                }
                .scope_boxed()
            })
            .await;
        planted.expect("a subscription")
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_to(&self.public, path, body.to_string().into_bytes()).await
    }

    pub(crate) async fn post_to(&self, at: &Url, path: &str, body: Vec<u8>) -> Answer {
        let url = at.join(path).expect("a path");
        self.send(Call::post("story.notify", url).bytes("application/json", body.into())).await
    }

    pub(crate) async fn send(&self, call: Call) -> Answer {
        self.http.send(call).await.expect("an answer")
    }

    pub(crate) async fn until<F: Future<Output = bool>>(&self, what: &str, condition: impl Fn() -> F) {
        let clock = Clock::system();
        let started = clock.now();
        while !condition().await {
            assert!(clock.now() - started < PATIENCE, "not in time: {what}");
            clock.sleep(Duration::from_millis(10)).await;
        }
    }

    /// Moves our time and Microsoft's.
    pub(crate) fn pass(&self, time: TimeDelta) {
        self.clock.advance(time.to_std().expect("forward"));
        self.sim().clock().advance(time);
    }

    /// What the sync does at its start.
    pub(crate) async fn keep(&self) -> Result<(), Failure> {
        subscriptions::keep(&self.ours, &self.graph, &self.row().await).await
    }

    pub(crate) async fn end(&self) -> Result<Vec<(String, u16)>, Failure> {
        let mut ended = Vec::new();
        let all = subscriptions::end_of(&self.ours, &self.graph, &self.row().await, &mut ended).await;
        all.map(|()| ended)
    }

    /// What the sync says after a poll of the Inbox.
    pub(crate) async fn judge(&self, seen: &[SeenChange]) {
        let (row, folder) = (self.row().await, self.folder(&self.inbox).await);
        self.ours.judge(&row, &folder, seen).await.expect("a verdict");
    }

    /// A mail arrives, and a poll sees it.
    pub(crate) fn deliver(&self, subject: &str) -> SeenChange {
        let id = self.sim().deliver(SUPPORT, NewMessage::new("eve@acme.example", subject, "<p>Hi</p>"));
        SeenChange { id, created: true, at: self.sim().now() }
    }

    /// (rung, reason) of the mailbox.
    pub(crate) async fn rung(&self) -> (String, String) {
        let row = self.row().await;
        (row.rung, row.rung_reason)
    }

    /// Microsoft's live subscriptions.
    pub(crate) fn at_microsoft(&self) -> Vec<Value> {
        let now = self.sim().now();
        let report = self.sim().subscriptions();
        let lives = |one: &Value| {
            let until = one["expirationDateTime"].as_str().expect("an end");
            DateTime::parse_from_rfc3339(until).expect("a time") > now
        };
        report.as_array().into_iter().flatten().filter(|one| lives(one)).cloned().collect()
    }

    pub(crate) fn calls(&self, method: &str) -> usize {
        self.sim().calls_to(method, "/v1.0/subscriptions").len()
    }

    pub(crate) async fn close(self) {
        let violations = self.sim().violations();
        assert!(violations.is_empty(), "{violations:?}");
        self.fleet.drain().await;
    }
}

async fn fleet(url: &str, clock: &Clock, callbacks: Callbacks) -> Fleet {
    let store = Store::connect(url, 8).await.expect("a database");
    let tuning = Tuning { instance: format!("site-{}", Uuid::now_v7()), callbacks, ..engine::tuning() };
    let topology = tuning.topology("site", &JOBS);
    let broker = Embedded::start(store.clone(), topology, Clock::system(), &tuning.instance);
    let broker = broker.await.expect("the embedded broker");
    let settings = Settings::default();
    let http = Http::new(&settings, clock.clone()).expect("an HTTP client");
    let microsoft = Microsoft::new(&settings, http, Arc::new(engine::NoTokens), clock.clone());
    let clock = clock.clone();
    let parts = Parts { registry: JOBS, store, broker, clock, microsoft, vault: None, tuning };
    Fleet::start(parts, &[Role::Intake], None)
}

fn serve(fleet: &Fleet, listener: TcpListener) {
    let mut api = Api::new(fleet.services.clone(), None, fleet.stopping().clone());
    api.intake = Some(Intake::start(&fleet.services));
    let router = api::router(api, true);
    tokio::spawn(async move { axum::serve(listener, router).await });
}

/// The mailbox as its connect leaves it.
async fn connected(
    running: &Running,
    store: &Store,
    http: &Http,
    now: DateTime<Utc>,
) -> (Uuid, Folder, Folder) {
    let token = running.sim.graph_token(SERVICE, SCOPES).into();
    let mut seen = Vec::new();
    for name in ["inbox", "sentitems"] {
        let url = format!("{}/v1.0/users/{SUPPORT}/mailFolders/{name}", running.base_url());
        let immutable = HeaderValue::from_static("IdType=\"ImmutableId\"");
        let call = Call::new("story.folder", Method::GET, Url::parse(&url).expect("a URL"))
            .header(http::header::HeaderName::from_static("prefer"), immutable)
            .bearer(&token);
        let answer: Value = http.send(call).await.expect("an answer").json().expect("JSON");
        seen.push(folder::Seen {
            id: answer["id"].as_str().expect("an id").to_owned(),
            parent_id: None,
            name: name.to_owned(),
            well_known: Some(name.to_owned()),
            hidden: false,
        });
    }
    let seen = &seen;
    let made: Result<_, StoreError> = store
        .transaction("connect", |tx| {
            async move {
                let made = mailbox::register(tx, WORKSPACE, "svc", SUPPORT, now, now).await?;
                let id = made.expect("a new one").id;
                mailbox::connected(tx, id, &json!({"read": {"state": "proven"}}).to_string(), now).await?;
                for seen in seen {
                    folder::saw(tx, id, seen, now).await?;
                }
                let folders = folder::of_mailbox(tx, id).await?;
                Ok((id, folders[0].clone(), folders[1].clone()))
            }
            .scope_boxed()
        })
        .await;
    made.expect("a mailbox")
}
