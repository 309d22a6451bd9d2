//! RabbitMQ: quorum queues, confirmed publications, manual acknowledgements, a supervisor of our own.
//!
//! The invariant: every await on lapin is bounded, nothing of a lost session is used again, and no error or log line
//! holds a credential. `lapin` is named in this file's folder and nowhere else.

mod address;
mod consumer;
mod fault;
mod link;
mod publisher;
mod rescue;
mod table;
mod topology;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use secrecy::SecretString;
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::buffer::{Buffer, Feed};
use super::{Broker, BrokerError, Depth, Health, Outgoing, Source, Subscription, Topology};
use crate::clock::Clock;
use crate::config::TopologyMode;
use address::Address;
use fault::Fault;
use link::{Link, Pulse, Role};
use publisher::Publisher;

/// What a log filter must hold: lapin logs a returned message with its whole body.
pub const QUIET: &str = "lapin::returned_messages=off";

const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);
/// A missing object seen by twenty consumers at once is declared once.
const BETWEEN_REPAIRS: Duration = Duration::from_secs(1);

/// The broker of a fleet of more than one process.
pub struct Rabbit {
    core: Arc<Core>,
    instance: String,
    subscriptions: AtomicU64,
}

struct Core {
    topology: Arc<Topology>,
    mode: TopologyMode,
    consume: Arc<Link>,
    publish: Arc<Link>,
    publisher: Publisher,
    pulse: Arc<Pulse>,
    closing: CancellationToken,
    repaired: Mutex<Option<Instant>>,
    rescuing: Mutex<()>,
}

impl Rabbit {
    /// Connects, and declares or checks the topology. What needs a person (a wrong password, objects that clash with
    /// ours) is `Misconfigured`; a broker that is away is `Unavailable`, after at most about twenty seconds.
    pub async fn connect(
        url: &SecretString,
        topology: Topology,
        mode: TopologyMode,
        ca: Option<PathBuf>,
        clock: Clock,
        instance: &str,
    ) -> Result<Arc<Self>, BrokerError> {
        let address = Arc::new(Address::parse(url, ca.as_deref()).await?);
        let topology = Arc::new(topology);
        let pulse = Arc::new(Pulse::new());
        let closing = CancellationToken::new();
        let link = |role, what: &str| {
            Arc::new(Link::new(
                role,
                address.clone(),
                format!("followthrough/{what}/{instance}"),
                topology.clone(),
                mode,
                pulse.clone(),
                closing.clone(),
            ))
        };
        let consume = link(Role::Consume, "consume");
        let publish = link(Role::Publish, "publish");
        let publisher = Publisher::new(publish.clone(), topology.clone(), clock);
        let core = Core {
            topology,
            mode,
            consume,
            publish,
            publisher,
            pulse,
            closing,
            repaired: Mutex::default(),
            rescuing: Mutex::default(),
        };
        // Dropped on an early return: the supervisor of the first link must not outlive a failed start.
        let guard = core.closing.clone().drop_guard();
        core.consume.start().await?;
        core.publish.start().await?;
        guard.disarm();
        Ok(Arc::new(Self {
            core: Arc::new(core),
            instance: instance.to_owned(),
            subscriptions: AtomicU64::new(0),
        }))
    }
}

impl Drop for Rabbit {
    fn drop(&mut self) {
        self.core.closing.cancel();
    }
}

impl Core {
    /// Declares the topology again after an object was found missing; by one caller at a time, and not in a hot loop.
    async fn repair(&self) {
        let mut repaired = self.repaired.lock().await;
        if self.mode != TopologyMode::Declare || repaired.is_some_and(|last| last.elapsed() < BETWEEN_REPAIRS)
        {
            return;
        }
        let repair = async {
            let session = self.consume.session().await;
            self.topology.ensure(&session.connection, self.mode).await
        };
        let outcome = tokio::select! {
            outcome = repair => outcome,
            () = self.closing.cancelled() => return,
        };
        if let Err(error) = outcome {
            tracing::error!(%error, "the broker's objects cannot be declared again");
        }
        *repaired = Some(Instant::now());
    }
}

#[async_trait]
impl Broker for Rabbit {
    async fn publish(&self, window: &[Outgoing]) -> Vec<Result<(), BrokerError>> {
        let published = self.core.publisher.publish(window).await;
        if published.missing {
            self.core.repair().await;
        }
        published.answers
    }

    async fn subscribe(&self, source: Source, prefetch: u16) -> Result<Box<dyn Subscription>, BrokerError> {
        if let Source::Jobs { kind } = &source
            && !self.core.topology.kinds.contains(kind)
        {
            return Err(BrokerError::Misconfigured(format!("there is no queue for the kind `{kind}`")));
        }
        let queue = topology::short(&self.core.topology.queue(&source))?;
        let number = self.subscriptions.fetch_add(1, Ordering::Relaxed);
        let tag = topology::short(&format!("followthrough.{}.{number}", self.instance))?;
        let buffer = Arc::new(Buffer::default());
        let stop = CancellationToken::new();
        let pump = consumer::Pump {
            core: self.core.clone(),
            source,
            queue,
            tag,
            prefetch,
            buffer: buffer.clone(),
            stop: stop.clone(),
        };
        let pump = tokio::spawn(pump.run());
        Ok(Box::new(Feed::new(buffer, self.health(), stop, pump)))
    }

    async fn depth(&self, source: &Source) -> Result<Depth, BrokerError> {
        self.core.depth(source).await
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.core.pulse.health()
    }

    async fn close(&self) {
        self.core.closing.cancel();
        tokio::join!(self.core.consume.ended(), self.core.publish.ended());
    }
}

/// No await on lapin goes without this: some of them never end.
async fn bounded<T>(limit: Duration, answer: impl Future<Output = lapin::Result<T>>) -> Result<T, Fault> {
    match timeout(limit, answer).await {
        Ok(answer) => answer.map_err(Fault::from),
        Err(_) => Err(Fault::transient("the broker did not answer in time")),
    }
}
