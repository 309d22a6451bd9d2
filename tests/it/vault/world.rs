//! A vault beside the simulated Entra, on either engine.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use followthrough::clock::Clock;
use followthrough::config;
use followthrough::http::{Call, Http};
use followthrough::oauth::app::App;
use followthrough::oauth::callback::SignInAnswer;
use followthrough::oauth::client::Entra;
use followthrough::oauth::links::NewLink;
use followthrough::oauth::scopes::Integration;
use followthrough::oauth::{Consent, ConsentError, Landing};
use followthrough::store::connection::{self, Connection, Status};
use followthrough::store::{Store, StoreError, Tx};
use followthrough::vault::seal::Keys;
use followthrough::vault::{Changes, Vault};
use followthrough_tests::broker::Folder;
use followthrough_tests::servers::{Database, postgres};
use m365_sim::Options;
use m365_sim::entra::{CLIENT_ID, CLIENT_SECRET};
use scoped_futures::ScopedFutureExt as _;
use secrecy::SecretString;
use url::Url;
use uuid::Uuid;

pub(crate) const ADA: &str = "ada@acme.example";
pub(crate) const BOB: &str = "bob@acme.example";

/// Notes the statuses that were told of.
#[derive(Clone, Default)]
pub(crate) struct Told(Arc<Mutex<Vec<(Uuid, Status)>>>);

impl Told {
    pub(crate) fn take(&self) -> Vec<Status> {
        let mut told = self.0.lock().expect("no test panics while it tells");
        std::mem::take(&mut *told).into_iter().map(|(_, status)| status).collect()
    }
}

#[async_trait]
impl Changes for Told {
    async fn changed(&self, _: &mut Tx, connection: &Connection, _: DateTime<Utc>) -> Result<(), StoreError> {
        self.0.lock().expect("no test panics while it tells").push((connection.id, connection.status));
        Ok(())
    }
}

pub(crate) struct World {
    pub(crate) running: m365_sim::Running,
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) keys: Vec<SecretString>,
    pub(crate) told: Told,
    pub(crate) vault: Vault,
    pub(crate) consent: Consent,
    settings: config::Microsoft,
    _kept: Kept,
}

/// What is gone when the world is.
enum Kept {
    File(#[expect(dead_code, reason = "held for its end")] Folder),
    Server(#[expect(dead_code, reason = "held for its end")] Database),
}

impl World {
    /// One on each engine that is there.
    pub(crate) async fn each() -> Vec<Self> {
        Self::each_with(|_| {}, &Clock::system()).await
    }

    pub(crate) async fn each_with(change: impl Fn(&mut config::Microsoft), clock: &Clock) -> Vec<Self> {
        let folder = Folder::fresh();
        let file = format!("sqlite://{}", folder.0.join("vault.db").display());
        let store = Store::connect(&file, 5).await.expect("a file");
        let mut worlds = vec![Self::on(store, Kept::File(folder), &change, clock).await];
        if let Some(database) = postgres().await {
            let store = Store::connect(&database.url, 10).await.expect("a fresh database");
            worlds.push(Self::on(store, Kept::Server(database), &change, clock).await);
        }
        worlds
    }

    async fn on(store: Store, kept: Kept, change: &impl Fn(&mut config::Microsoft), clock: &Clock) -> Self {
        store.migrate().await.expect("a fresh database");
        let running = m365_sim::start(Options::default()).await.expect("a free port");
        running.sim.auto_sign_in(Some("*"));
        let base = Url::parse(&running.base_url()).expect("a URL");
        let mut settings = config::Microsoft {
            client_id: Some(CLIENT_ID.into()),
            client_secret: Some(CLIENT_SECRET.into()),
            login_url: Some(base.clone()),
            graph_url: Some(base.clone()),
            discovery_url: Some(base),
            dataverse_hosts: vec!["127.0.0.1".into()],
            ..config::Microsoft::default()
        };
        change(&mut settings);
        let keys = vec![Keys::generate("test")];
        let told = Told::default();
        let vault = vault(&store, &settings, &keys, Arc::new(told.clone()), clock);
        let consent = Consent::new(vault.clone());
        Self { running, store, clock: clock.clone(), keys, told, vault, consent, settings, _kept: kept }
    }

    /// Another process over the same store.
    pub(crate) fn another_vault(&self) -> Vault {
        vault(&self.store, &self.settings, &self.keys, Arc::new(self.told.clone()), &self.clock)
    }

    pub(crate) fn vault_that_tells(&self, changes: Arc<dyn Changes>) -> Vault {
        vault(&self.store, &self.settings, &self.keys, changes, &self.clock)
    }

    pub(crate) fn vault_with(&self, keys: &[SecretString]) -> Vault {
        vault(&self.store, &self.settings, keys, Arc::new(self.told.clone()), &self.clock)
    }

    pub(crate) fn vault_with_settings(&self, change: impl Fn(&mut config::Microsoft)) -> Vault {
        let mut settings = self.settings.clone();
        change(&mut settings);
        vault(&self.store, &settings, &self.keys, Arc::new(self.told.clone()), &self.clock)
    }

    /// Makes a link, opens it and comes back.
    pub(crate) async fn sign_in(&self, new: NewLink<'_>) -> Landing {
        let created = self.consent.create_link(new).await.expect("a link");
        let secret = created.url.path_segments().and_then(Iterator::last).expect("a secret").to_owned();
        self.open(&secret).await.expect("a landing")
    }

    pub(crate) async fn open(&self, secret: &str) -> Result<Landing, ConsentError> {
        let url = self.consent.open_link(secret).await?;
        let back = self.visit(url).await;
        self.consent.callback(answer(&back)).await
    }

    /// What a browser is sent back with.
    pub(crate) async fn visit(&self, url: Url) -> HashMap<String, String> {
        let http = &self.vault.entra().http;
        let page = http.send(Call::get("test.browser", url)).await.expect("a page");
        let location = page.headers.get("location").unwrap_or_else(|| {
            panic!("no redirect but {} {}", page.status, String::from_utf8_lossy(&page.body))
        });
        let back = Url::parse(location.to_str().expect("text")).expect("a URL");
        back.query_pairs().into_owned().collect()
    }

    pub(crate) async fn connected(&self, user: &str, integration: Integration) -> Connection {
        let landing = self.sign_in(new_link(user, integration)).await;
        assert_eq!(landing.code, "connected", "{landing:?}");
        self.told.take();
        self.connection(landing.connection.expect("its connection")).await
    }

    pub(crate) async fn connection(&self, id: Uuid) -> Connection {
        let found = self.store.read(|tx| async move { connection::find(tx, id).await }.scope_boxed()).await;
        found.expect("the store answers").expect("there is one")
    }

    /// Refresh requests, and what became of them.
    pub(crate) fn refreshes(&self) -> Vec<u16> {
        self.token_requests("refresh_token").iter().filter_map(|call| call.status).collect()
    }

    pub(crate) fn token_requests(&self, grant_type: &str) -> Vec<m365_sim::journal::Call> {
        let calls = self.running.sim.calls_to("POST", "/");
        let fits = |call: &m365_sim::journal::Call| call.form("grant_type").as_deref() == Some(grant_type);
        calls.into_iter().filter(fits).collect()
    }

    pub(crate) fn no_violations(&self) {
        let violations = self.running.sim.violations();
        assert!(violations.is_empty(), "{violations:?}");
    }

    pub(crate) async fn execute(&self, statement: &'static str) {
        self.store
            .transaction("test", |tx| {
                async move {
                    followthrough::sql!(tx, execute, statement)?;
                    Ok::<_, StoreError>(())
                }
                .scope_boxed()
            })
            .await
            .expect(statement);
    }
}

/// The plainest request for a link.
pub(crate) fn new_link(user: &str, integration: Integration) -> NewLink<'_> {
    NewLink {
        workspace: "acme",
        user,
        integration,
        account: Some(user),
        return_to: None,
        environment: None,
        replace: false,
    }
}

fn vault(
    store: &Store,
    settings: &config::Microsoft,
    keys: &[SecretString],
    changes: Arc<dyn Changes>,
    clock: &Clock,
) -> Vault {
    let public = Url::parse("http://127.0.0.1:8080").expect("a URL");
    let app = App::new(settings, &public).expect("right settings");
    let http = Http::new(settings, clock.clone()).expect("right settings");
    let keys = Keys::parse(keys).expect("right keys");
    Vault::new(store.clone(), keys, Entra { app, http, clock: clock.clone() }, changes)
}

pub(crate) fn answer(back: &HashMap<String, String>) -> SignInAnswer {
    let get = |name: &str| back.get(name).cloned();
    SignInAnswer {
        state: get("state"),
        code: get("code"),
        error: get("error"),
        error_description: get("error_description"),
    }
}
