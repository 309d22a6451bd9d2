//! What carries jobs between processes: few verbs, two implementations, one contract.
//!
//! The invariant: [`Broker::publish`] answers `Ok` for a message only when it is durable *and* routed to a
//! queue; a [`Delivery`] that was not acknowledged comes back. Attempts are never counted here.

mod buffer;
pub mod embedded;
pub mod rabbit;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

/// The largest body a publisher may send.
pub const MAX_BODY: usize = 8 * 1024 * 1024;

/// Our own headers. Everything else a publisher sends is stripped on every republish.
pub mod header {
    /// How often the job had been tried when this copy was owed to the queue: tells the owed copy from a twin.
    pub const ATTEMPT: &str = "x-followthrough-attempt";
    /// How often this copy was put off without an attempt; a longer rung is chosen as it grows.
    pub const DEFERRED: &str = "x-followthrough-deferred";
    /// The stable code and the message of a dead letter.
    pub const CODE: &str = "x-followthrough-code";
    pub const MESSAGE: &str = "x-followthrough-message";
    pub const PATH: &str = "x-followthrough-path";
    pub const ATTEMPTS: &str = "x-followthrough-attempts";
    pub const TRACEPARENT: &str = "traceparent";
    pub const TRACESTATE: &str = "tracestate";

    /// What may travel on a republish. An allow-list, because `x-death` makes RabbitMQ drop a message as a cycle,
    /// `CC` makes copies, and the next broker version will have another header of that sort.
    pub fn travels(name: &str) -> bool {
        name.starts_with("x-followthrough-") || name == TRACEPARENT || name == TRACESTATE
    }
}

/// Where a message goes, by role; only the broker knows exchanges and queues.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// The work queue of a kind.
    Job { kind: String },
    /// A delay queue that returns to the work queue of a kind. `rung` is the delay's name: `10s`, `5m`.
    Rung { rung: String, kind: String },
    /// The dead letters.
    Dead { kind: String },
    /// The events, by CloudEvents type without the prefix.
    Event { kind: String },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job { kind } => write!(f, "job:{kind}"),
            Self::Rung { rung, kind } => write!(f, "rung:{rung}:{kind}"),
            Self::Dead { kind } => write!(f, "dead:{kind}"),
            Self::Event { kind } => write!(f, "event:{kind}"),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (role, rest) = text.split_once(':').ok_or_else(|| text.to_owned())?;
        let kind = rest.to_owned();
        match role {
            "job" => Ok(Self::Job { kind }),
            "dead" => Ok(Self::Dead { kind }),
            "event" => Ok(Self::Event { kind }),
            "rung" => rest
                .split_once(':')
                .map(|(rung, kind)| Self::Rung { rung: rung.to_owned(), kind: kind.to_owned() })
                .ok_or_else(|| text.to_owned()),
            _ => Err(text.to_owned()),
        }
    }
}

/// A message to publish.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Unique: the same message published twice carries the same id.
    pub message_id: Uuid,
    pub target: Target,
    pub content_type: &'static str,
    pub body: Bytes,
    pub headers: BTreeMap<String, String>,
}

/// What came with a delivery, as far as the sender and the broker told.
#[derive(Debug, Clone, Default)]
pub struct Meta {
    pub message_id: Option<String>,
    pub kind: Option<String>,
    pub correlation_id: Option<String>,
    pub content_type: Option<String>,
    pub timestamp: Option<DateTime<Utc>>,
    pub routing_key: String,
    pub redelivered: bool,
    /// How often this copy was delivered before, as the broker counts it.
    pub deliveries: u32,
    /// Why the broker dead-lettered it (`rejected`, `expired`, `delivery_limit`), where it did.
    pub death: Option<String>,
    /// Lossless as far as JSON can hold it; hostile values were made harmless.
    pub headers: BTreeMap<String, Value>,
}

impl Meta {
    /// A header as text, whatever type it came in.
    pub fn text(&self, name: &str) -> Option<String> {
        match self.headers.get(name)? {
            Value::String(text) => Some(text.clone()),
            Value::Null => None,
            other => Some(other.to_string()),
        }
    }

    /// A header as a number, whatever width or spelling it came in.
    pub fn number(&self, name: &str) -> Option<i64> {
        self.text(name)?.trim().parse().ok()
    }
}

/// One message in our hands. Dropping it without an answer gives it back, as if its worker had crashed.
pub struct Delivery {
    pub body: Bytes,
    pub meta: Meta,
    pub receipt: Box<dyn Receipt>,
}

/// How a delivery is answered.
#[async_trait]
pub trait Receipt: Send + Sync {
    /// `Err` when the acknowledgement is lost: the message will come again.
    async fn ack(&self) -> Result<(), BrokerError>;
    /// Gives back a delivery that was not started.
    async fn requeue(&self) -> Result<(), BrokerError>;
}

/// The queues a process can take work from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    Jobs { kind: String },
    Dead,
}

/// An endless flow of deliveries that survives lost connections.
#[async_trait]
pub trait Subscription: Send {
    /// The next delivery; waits while the broker is away; `None` only after [`Subscription::cancel`].
    async fn next(&mut self) -> Option<Delivery>;
    /// Stops new deliveries and gives back what was buffered and not yet handed out.
    async fn cancel(&mut self);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    Connecting,
    Ready,
    /// The broker refuses publications (memory or disk alarm): stop taking work.
    Blocked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    pub ready: u64,
    pub consumers: u64,
}

#[async_trait]
pub trait Broker: Send + Sync {
    /// Publishes a window and answers per message, in order.
    async fn publish(&self, window: &[Outgoing]) -> Vec<Result<(), BrokerError>>;
    async fn subscribe(&self, source: Source, prefetch: u16) -> Result<Box<dyn Subscription>, BrokerError>;
    async fn depth(&self, source: &Source) -> Result<Depth, BrokerError>;
    fn health(&self) -> tokio::sync::watch::Receiver<Health>;
    /// What is published as an event in this process, where nobody outside could read it: the embedded broker
    /// has no queue of events.
    fn local_events(&self) -> Option<tokio::sync::broadcast::Receiver<Outgoing>> {
        None
    }
    /// Closes connections; what is unacknowledged goes back.
    async fn close(&self);
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum BrokerError {
    #[error("the broker is not reachable: {0}")]
    Unavailable(String),
    /// One queue did not take it (it is full): this message's trouble, not the broker's.
    #[error("a queue refused the message: {0}")]
    Refused(String),
    #[error("no queue takes messages for {0}")]
    Unroutable(String),
    #[error("the broker did not confirm in time")]
    Unconfirmed,
    #[error("the acknowledgement was lost")]
    AckLost,
    /// Needs a person: a wrong password, a missing permission, objects that clash with ours.
    #[error("{0}")]
    Misconfigured(String),
    #[error("the message has {0} bytes; the largest body is {MAX_BODY}")]
    TooLarge(usize),
}

/// What must exist at the broker, derived from the registry and the settings.
#[derive(Debug, Clone)]
pub struct Topology {
    pub prefix: String,
    pub kinds: Vec<String>,
    pub rungs: Vec<Rung>,
}

impl Topology {
    /// The rung of that name. A message may name a rung of an earlier ladder: the longest one that is not longer
    /// takes it, so that a changed setting strands nothing.
    pub fn rung(&self, name: &str) -> Option<&Rung> {
        let exact = self.rungs.iter().find(|rung| rung.name == name);
        exact.or_else(|| {
            let wanted = crate::config::duration("rung", name).ok()?;
            let shortest = self.rungs.iter().min_by_key(|rung| rung.delay);
            self.rungs.iter().filter(|rung| rung.delay <= wanted).max_by_key(|rung| rung.delay).or(shortest)
        })
    }
}

/// One step of the retry ladder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rung {
    /// `10s`, `5m`, `2h`: part of the queue's name.
    pub name: String,
    pub delay: Duration,
}
