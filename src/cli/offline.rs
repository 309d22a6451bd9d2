//! What a command beside the fleet has: the store, and nothing that reaches the queue.
//!
//! The invariant: what a command owes to the queue is left unclaimed, so the fleet's relay takes it at its
//! next look.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::auth::TokenSource;
use crate::broker::{Broker, BrokerError, Depth, Health, Outgoing, Source, Subscription};
use crate::clock::Clock;
use crate::config::Config;
use crate::fleet::Tuning;
use crate::http::Http;
use crate::ledger::{Ledger, Rules};
use crate::lifecycle::NoRegistration;
use crate::microsoft::Microsoft;
use crate::outbox::Handoff;
use crate::registry::Registry;
use crate::services::Services;
use crate::store::Store;
use crate::vault::Vault;

pub(super) fn services(
    config: &Config,
    registry: Registry,
    store: Store,
    clock: Clock,
    http: Http,
    vault: Option<&Vault>,
) -> Result<Services, String> {
    let tuning = Tuning::of(config, "cli")?;
    let handoff = Handoff::nobody();
    let rules = Rules { registry, instance: tuning.instance, lease: tuning.lease, slots: tuning.slots };
    let ledger = Ledger::start(&store, &clock, rules, &handoff);
    let tokens: Arc<dyn TokenSource> = match vault {
        Some(vault) => Arc::new(vault.clone()),
        None => Arc::new(NoRegistration),
    };
    let microsoft = Microsoft::new(&config.microsoft, http, tokens, clock.clone());
    let broker = Arc::new(Absent);
    let Tuning { ladder, unanswered, poll, attachment_bytes, callbacks, .. } = tuning;
    Ok(Services {
        registry,
        store,
        broker,
        clock,
        ledger,
        handoff,
        ladder,
        unanswered,
        microsoft,
        vault: vault.cloned(),
        poll,
        attachment_bytes,
        callbacks,
    })
}

struct Absent;

fn absent() -> BrokerError {
    BrokerError::Unavailable("commands work on the store only".to_owned())
}

#[async_trait]
impl Broker for Absent {
    async fn publish(&self, window: &[Outgoing]) -> Vec<Result<(), BrokerError>> {
        window.iter().map(|_| Err(absent())).collect()
    }

    async fn subscribe(&self, _: Source, _: u16) -> Result<Box<dyn Subscription>, BrokerError> {
        Err(absent())
    }

    async fn depth(&self, _: &Source) -> Result<Depth, BrokerError> {
        Err(absent())
    }

    fn health(&self) -> watch::Receiver<Health> {
        watch::channel(Health::Connecting).1
    }

    async fn close(&self) {}
}
