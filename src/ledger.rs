//! The ledger at speed: claims, intents and settlements of concurrent jobs share their commits.
//!
//! The invariant: an answer is given only after the transaction that carries it has committed. A lone job is
//! never kept waiting for company: a batch is whatever gathered while the previous one was committing.

mod claim;
mod settle;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use scoped_futures::ScopedFutureExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use claim::{Claim, ClaimRequest, Held};
pub use settle::Settlement;

pub use crate::batch::BatchError as LedgerError;
use crate::batch::Batcher;
use crate::clock::Clock;
use crate::outbox::Handoff;
use crate::registry::Registry;
use crate::store::effect::NewIntent;
use crate::store::job::{self, Key};
use crate::store::{Store, StoreError};

/// What the ledger is told at start.
#[derive(Clone)]
pub struct Rules {
    pub registry: Registry,
    /// This process: the holder of its leases and of its outbox claims.
    pub instance: String,
    pub lease: Duration,
    /// Permits per mailbox and per CRM user.
    pub slots: u16,
}

#[derive(Clone)]
pub struct Ledger {
    claims: Batcher<ClaimRequest, Claim>,
    intents: Batcher<NewIntent, bool>,
    settlements: Batcher<Settlement, bool>,
    store: Store,
    clock: Clock,
    rules: Arc<Rules>,
    leased_until: watch::Sender<Option<DateTime<Utc>>>,
    running: Arc<Mutex<HashSet<(Key, i64)>>>,
}

/// While it lives, the job's lease is renewed. A claim whose answer was lost has none, and runs out.
pub struct Leased {
    held: (Key, i64),
    running: Arc<Mutex<HashSet<(Key, i64)>>>,
}

impl Drop for Leased {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.held);
    }
}

impl Ledger {
    /// Starts the three batchers; they end when the last clone is dropped.
    pub fn start(store: &Store, clock: &Clock, rules: Rules, handoff: &Handoff) -> Self {
        let rules = Arc::new(rules);
        let claims = {
            let (store, clock, rules, handoff) =
                (store.clone(), clock.clone(), rules.clone(), handoff.clone());
            Batcher::start(move |batch: Arc<[ClaimRequest]>| {
                let (store, clock, rules, handoff) =
                    (store.clone(), clock.clone(), rules.clone(), handoff.clone());
                async move { claim::run(&store, &clock, &rules, &handoff, &batch).await }
            })
        };
        let intents = {
            let (store, clock) = (store.clone(), clock.clone());
            Batcher::start(move |batch: Arc<[NewIntent]>| {
                let (store, clock) = (store.clone(), clock.clone());
                async move { settle::intend(&store, &clock, &batch).await }
            })
        };
        let settlements = {
            let (store, clock, rules, handoff) =
                (store.clone(), clock.clone(), rules.clone(), handoff.clone());
            Batcher::start(move |batch: Arc<[Settlement]>| {
                let (store, clock, rules, handoff) =
                    (store.clone(), clock.clone(), rules.clone(), handoff.clone());
                async move { settle::run(&store, &clock, &rules, &handoff, &batch).await }
            })
        };
        let (leased_until, _) = watch::channel(None);
        Self {
            claims,
            intents,
            settlements,
            store: store.clone(),
            clock: clock.clone(),
            rules,
            leased_until,
            running: Arc::default(),
        }
    }

    /// Permits per mailbox and per CRM user.
    pub fn slots(&self) -> u16 {
        self.rules.slots
    }

    pub async fn claim(&self, request: ClaimRequest) -> Result<Claim, LedgerError> {
        loop {
            match self.claims.submit(request.clone()).await? {
                // Another delivery of the same job was in the batch, or took the row first: look again.
                Claim::Again => {}
                claim => return Ok(claim),
            }
        }
    }

    /// Commits the intent of an outward write; `false` when the job is no longer ours.
    pub async fn intend(&self, intent: NewIntent) -> Result<bool, LedgerError> {
        self.intents.submit(intent).await
    }

    /// Ends an attempt; `false` when the job is no longer ours and nothing was written.
    pub async fn settle(&self, settlement: Settlement) -> Result<bool, LedgerError> {
        self.settlements.submit(settlement).await
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    pub fn instance(&self) -> &str {
        &self.rules.instance
    }

    /// Renews the leases of this process until `stop`. While the store does not answer, the time until which
    /// our leases are known to hold stands still, and [`Ledger::lease_lost`] fires when it passes.
    pub async fn keep_leases(&self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let until = self.clock.now() + self.rules.lease;
            match self.renew(until).await {
                Ok(()) => {
                    self.leased_until.send_replace(Some(until));
                }
                Err(error) => tracing::warn!(%error, "leases could not be renewed"),
            }
            tokio::select! {
                () = self.clock.sleep(self.rules.lease / 4) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    async fn renew(&self, until: DateTime<Utc>) -> Result<(), StoreError> {
        let running: Vec<(Key, i64)> =
            self.running.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
        if running.is_empty() {
            // Nothing to renew, but a store that does not answer is as telling as with jobs.
            return self.store.ping().await;
        }
        let (holder, running) = (&self.rules.instance, &running);
        self.store
            .transaction("renew", |tx| {
                async move { job::renew(tx, holder, running, until).await }.scope_boxed()
            })
            .await
    }

    /// Marks the job as running here until the mark is dropped.
    pub fn leased(&self, held: &Held) -> Leased {
        let held = (held.key.clone(), held.fence);
        self.running.lock().unwrap_or_else(PoisonError::into_inner).insert(held.clone());
        Leased { held, running: self.running.clone() }
    }

    /// Resolves when this process can no longer be sure that the leases taken at `since` are still its own.
    pub async fn lease_lost(&self, since: DateTime<Utc>) {
        let mut until = self.leased_until.subscribe();
        loop {
            let renewed = (*until.borrow_and_update()).unwrap_or(since);
            let safe_until = renewed.max(since + self.rules.lease);
            tokio::select! {
                () = self.clock.sleep_until(safe_until) => {
                    if until.borrow().unwrap_or(since).max(since + self.rules.lease) <= self.clock.now() {
                        return;
                    }
                }
                changed = until.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }
}
