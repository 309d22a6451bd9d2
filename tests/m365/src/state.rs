//! The one handle to everything the simulator knows.
//!
//! Each area has its own lock; code that needs two takes them one after the other, never nested, so that no order
//! of locking has to be kept.

use std::sync::{Arc, OnceLock};

use axum::Router;
use parking_lot::{Mutex, MutexGuard};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::clock::Clock;
use crate::dataverse::DataverseState;
use crate::directory::Directory;
use crate::entra::EntraState;
use crate::fault::Faults;
use crate::graph::GraphState;
use crate::journal::Journal;
use crate::referee::Referee;

#[derive(Clone)]
pub struct Sim(Arc<Inner>);

struct Inner {
    base_url: OnceLock<String>,
    routes: OnceLock<Router>,
    clock: Clock,
    rng: Mutex<StdRng>,
    directory: Mutex<Directory>,
    entra: Mutex<EntraState>,
    graph: Mutex<GraphState>,
    dataverse: Mutex<DataverseState>,
    faults: Mutex<Faults>,
    journal: Mutex<Journal>,
    referee: Mutex<Referee>,
    changed: Notify,
}

impl Sim {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Inner {
            base_url: OnceLock::new(),
            routes: OnceLock::new(),
            clock: Clock::default(),
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            directory: Mutex::default(),
            entra: Mutex::default(),
            graph: Mutex::default(),
            dataverse: Mutex::default(),
            faults: Mutex::default(),
            journal: Mutex::default(),
            referee: Mutex::default(),
            changed: Notify::new(),
        }))
    }

    pub(crate) fn bind(&self, base_url: String, routes: Router) {
        let _ = self.0.base_url.set(base_url);
        let _ = self.0.routes.set(routes);
    }

    /// `http(s)://127.0.0.1:port`, without a slash at the end.
    pub fn base_url(&self) -> &str {
        self.0.base_url.get().map_or("http://127.0.0.1", String::as_str)
    }

    /// The routes without the gateway: for the parts of a batch.
    pub(crate) fn routes(&self) -> Router {
        self.0.routes.get().cloned().unwrap_or_default()
    }

    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    pub fn now(&self) -> chrono::DateTime<chrono::Utc> {
        self.0.clock.now()
    }

    pub fn rng(&self) -> MutexGuard<'_, StdRng> {
        self.0.rng.lock()
    }

    /// A v4-shaped identifier drawn from the seeded source.
    pub fn guid(&self) -> String {
        let bytes: [u8; 16] = self.rng().random();
        uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
    }

    pub fn uuid(&self) -> Uuid {
        let bytes: [u8; 16] = self.rng().random();
        uuid::Builder::from_random_bytes(bytes).into_uuid()
    }

    pub fn directory(&self) -> MutexGuard<'_, Directory> {
        self.0.directory.lock()
    }

    pub fn entra(&self) -> MutexGuard<'_, EntraState> {
        self.0.entra.lock()
    }

    pub fn graph(&self) -> MutexGuard<'_, GraphState> {
        self.0.graph.lock()
    }

    pub fn dataverse(&self) -> MutexGuard<'_, DataverseState> {
        self.0.dataverse.lock()
    }

    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        self.0.faults.lock()
    }

    pub fn journal(&self) -> MutexGuard<'_, Journal> {
        self.0.journal.lock()
    }

    /// Wakes everybody who waits in [`Sim::until`].
    pub(crate) fn changed(&self) {
        self.0.changed.notify_waiters();
    }

    /// Waits until the condition holds; it is looked at after every call. Put a timeout around it.
    pub async fn until(&self, condition: impl Fn(&Self) -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.0.changed.notified());
            // Listening before looking, so that no change falls between the two.
            changed.as_mut().enable();
            if condition(self) {
                return;
            }
            changed.await;
        }
    }

    pub fn referee(&self) -> MutexGuard<'_, Referee> {
        self.0.referee.lock()
    }
}
