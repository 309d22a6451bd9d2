//! The roles of one process, started together and drained in order.
//!
//! The invariant: what was taken is ended or given back before the broker is closed, and what was owed is
//! relayed before the store is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attempt::Attempts;
use crate::broker::{Broker, BrokerError, Topology};
use crate::clock::Clock;
use crate::config::Config;
use crate::consumer::{Consumer, watch_pauses};
use crate::intake::Callbacks;
use crate::ledger::{Ledger, Rules};
use crate::microsoft::Microsoft;
use crate::outbox::{Handoff, Relay};
use crate::registry::Registry;
use crate::services::{Ladder, Services};
use crate::store::Store;
use crate::vault::Vault;
use crate::{dead, mailbox, schedule};

/// How long token requests under way may take to end, once nobody needs their tokens any more.
const REFRESHES: Duration = Duration::from_secs(2);

/// For writing down what was cut off.
const CUT_OFF: Duration = Duration::from_secs(10);

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Workers,
    Intake,
    Api,
    Scheduler,
    Console,
}

impl Role {
    pub const ALL: [Self; 5] = [Self::Workers, Self::Intake, Self::Api, Self::Scheduler, Self::Console];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Workers => "workers",
            Self::Intake => "intake",
            Self::Api => "api",
            Self::Scheduler => "scheduler",
            Self::Console => "console",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }
}

/// The numbers of the settings that the engine works by.
#[derive(Debug, Clone)]
pub struct Tuning {
    pub instance: String,
    pub lease: Duration,
    pub drain: Duration,
    pub slots: u16,
    pub poll: Duration,
    pub unanswered: Duration,
    pub attachment_bytes: u32,
    pub concurrency: u16,
    pub kinds: BTreeMap<String, u16>,
    pub ladder: Ladder,
    pub callbacks: Callbacks,
}

impl Tuning {
    pub fn of(config: &Config, instance: &str) -> Result<Self, String> {
        Ok(Self {
            instance: instance.to_owned(),
            lease: crate::config::duration("workers.lease", &config.workers.lease)?,
            drain: crate::config::duration("workers.drain", &config.workers.drain)?,
            slots: config.mailbox.slots,
            poll: crate::config::duration("mailbox.poll", &config.mailbox.poll)?,
            unanswered: crate::config::duration("mailbox.unanswered", &config.mailbox.unanswered)?,
            attachment_bytes: config.mailbox.attachment_bytes,
            concurrency: config.workers.concurrency,
            kinds: config
                .workers
                .kinds
                .iter()
                .filter_map(|(kind, settings)| Some((kind.clone(), settings.concurrency?)))
                .collect(),
            ladder: Ladder::new(config.retry.rungs()?),
            callbacks: Callbacks::of(config),
        })
    }

    pub fn topology(&self, prefix: &str, registry: &Registry) -> Topology {
        Topology { prefix: prefix.to_owned(), kinds: registry.kinds(), rungs: self.ladder.all() }
    }
}

/// What a fleet is made of before it runs.
pub struct Parts {
    pub registry: Registry,
    pub store: Store,
    pub broker: Arc<dyn Broker>,
    pub clock: Clock,
    pub microsoft: Microsoft,
    /// Keeps idle connections alive; absent without an app registration.
    pub vault: Option<Vault>,
    pub tuning: Tuning,
}

/// A running process.
pub struct Fleet {
    pub services: Arc<Services>,
    drain: Duration,
    /// Stops taking work.
    stop: CancellationToken,
    /// Cuts off what still runs.
    abort: CancellationToken,
    /// Ends what must outlive the attempts: leases, the relay.
    end: CancellationToken,
    attempts: TaskTracker,
    roles: TaskTracker,
    keepers: TaskTracker,
    relay: JoinHandle<()>,
    vault: Option<Vault>,
}

impl Fleet {
    /// Starts `roles`; workers take only the kinds in `only`, or all.
    pub fn start(parts: Parts, roles: &[Role], only: Option<&[String]>) -> Self {
        let Parts { registry, store, broker, clock, mut microsoft, vault, tuning } = parts;
        microsoft.listen(store.clone());
        let (handoff, backlog) = Handoff::new(&tuning.instance);
        let rules =
            Rules { registry, instance: tuning.instance.clone(), lease: tuning.lease, slots: tuning.slots };
        let ledger = Ledger::start(&store, &clock, rules, &handoff);
        let services = Arc::new(Services {
            registry,
            store: store.clone(),
            broker: broker.clone(),
            clock: clock.clone(),
            ledger,
            handoff,
            ladder: tuning.ladder.clone(),
            unanswered: tuning.unanswered,
            microsoft,
            vault: vault.clone(),
            poll: tuning.poll,
            attachment_bytes: tuning.attachment_bytes,
            callbacks: tuning.callbacks.clone(),
        });
        let (stop, abort, end) =
            (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let (attempts, running, keepers) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());
        let relay = Relay { store, broker, clock, instance: tuning.instance.clone() };
        let relay = tokio::spawn(relay.run(backlog, end.clone()));
        if roles.contains(&Role::Workers) {
            let (ledger, ended) = (services.ledger.clone(), end.clone());
            keepers.spawn(async move { ledger.keep_leases(ended).await });
            let (paused, pauses) = watch::channel(Vec::new());
            running.spawn(watch_pauses(services.clone(), paused, stop.clone()));
            let runner = Arc::new(Attempts::new(services.clone(), abort.clone()));
            let kinds = registry.kinds().into_iter();
            for kind in kinds.filter(|kind| only.is_none_or(|only| only.contains(kind))) {
                let consumer = Consumer {
                    concurrency: tuning.kinds.get(&kind).copied().unwrap_or(tuning.concurrency),
                    kind: kind.clone(),
                    attempts: runner.clone(),
                    paused: pauses.clone(),
                };
                let (tasks, stop) = (attempts.clone(), stop.clone());
                running.spawn(async move {
                    report(&kind, consumer.run(tasks, stop).await);
                });
            }
            let (services, stop) = (services.clone(), stop.clone());
            running.spawn(async move { report("dead letters", dead::collect(services, stop).await) });
        }
        if roles.contains(&Role::Scheduler) {
            running.spawn(schedule::run(services.clone(), vault.clone(), stop.clone()));
            running.spawn(mailbox::pacer::run(services.clone(), stop.clone()));
        }
        let (drain, roles) = (tuning.drain, running);
        Self { services, drain, stop, abort, end, attempts, roles, keepers, relay, vault }
    }

    /// Tells everything that listens that the process is about to end: readiness goes first.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// Stops taking work, lets running jobs end until the drain's time is over, cuts off the rest, relays
    /// what is owed and closes.
    pub async fn drain(self) {
        self.stop.cancel();
        self.roles.close();
        self.attempts.close();
        let ended = async {
            self.roles.wait().await;
            self.attempts.wait().await;
        };
        let cut_off = tokio::select! {
            () = ended => false,
            () = self.services.clock.sleep(self.drain) => true,
            () = self.abort.cancelled() => true,
        };
        if cut_off {
            tracing::warn!(jobs = self.attempts.len(), "the drain's time is over, cutting off");
            self.abort.cancel();
            // Whoever does not end by himself now holds nothing that the broker does not give back.
            tokio::select! {
                () = self.attempts.wait() => {}
                () = self.services.clock.sleep(CUT_OFF) => {}
            }
        }
        if let Some(vault) = &self.vault {
            vault.close(REFRESHES).await;
        }
        self.end.cancel();
        self.keepers.close();
        self.keepers.wait().await;
        let _ = self.relay.await;
        let relay = Relay {
            store: self.services.store.clone(),
            broker: self.services.broker.clone(),
            clock: self.services.clock.clone(),
            instance: self.services.ledger.instance().to_owned(),
        };
        tokio::select! {
            flushed = relay.flush() => if let Err(error) = flushed {
                tracing::warn!(%error, "what is owed is relayed by another process, or after the next start");
            },
            () = self.services.clock.sleep(Duration::from_secs(5)) => {}
        }
        self.services.broker.close().await;
        self.services.store.close().await;
    }

    /// Cuts off running jobs at once instead of at the drain's end.
    pub fn abort(&self) -> CancellationToken {
        self.abort.clone()
    }
}

fn report(what: &str, ended: Result<(), BrokerError>) {
    if let Err(error) = ended {
        tracing::error!(what, %error, "cannot take messages");
    }
}
