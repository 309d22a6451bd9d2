//! The exchanges, queues and bindings of the fleet, as data: declared, checked or exported from one list.
//!
//! The invariant: arguments never change under one name, and every argument works on RabbitMQ 3.10 and 4.x. What
//! operators may tune is a policy, never an argument.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ExchangeKind};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::fault::Fault;
use crate::broker::{BrokerError, Source, Topology};
use crate::config::TopologyMode;

/// A leader may have to be elected before a quorum queue answers.
const DECLARE_TIMEOUT: Duration = Duration::from_secs(15);

/// Returns before a crashing job is taken for dead. A crash guard only: attempts are counted in the ledger.
const DELIVERY_LIMIT: i64 = 20;

/// "Unlimited": -1 means the opposite before 4.0.
const NO_LIMIT: i64 = 1_000_000;

enum Object {
    Exchange { name: String, kind: &'static str, arguments: Vec<(&'static str, Value)> },
    Queue { name: String, arguments: Vec<(&'static str, Value)> },
    Binding { exchange: String, queue: String, key: String },
}

impl Topology {
    pub(super) fn jobs(&self) -> String {
        format!("{}.jobs", self.prefix)
    }

    pub(super) fn events(&self) -> String {
        format!("{}.events", self.prefix)
    }

    /// The exchange and the queue of the dead letters have one name.
    pub(super) fn dead(&self) -> String {
        format!("{}.dead", self.prefix)
    }

    /// The exchange and the queue of a rung have one name.
    pub(super) fn retry(&self, rung: &str) -> String {
        format!("{}.retry.{rung}", self.prefix)
    }

    pub(super) fn queue(&self, source: &Source) -> String {
        match source {
            Source::Jobs { kind } => format!("{}.{kind}", self.prefix),
            Source::Dead => self.dead(),
        }
    }

    /// In an order in which nothing refers to what does not exist yet.
    fn objects(&self) -> Vec<Object> {
        let exchange = |name: String, kind, arguments| Object::Exchange { name, kind, arguments };
        let queue = |name: String, mut arguments: Vec<(&'static str, Value)>| {
            arguments.push(("x-queue-type", json!("quorum")));
            Object::Queue { name, arguments }
        };
        let bind = |exchange: &str, queue: &str, key: &str| Object::Binding {
            exchange: exchange.into(),
            queue: queue.into(),
            key: key.into(),
        };
        // At-most-once without `reject-publish`, and silently so.
        let returns_to = |exchange: &str, limit: i64| {
            vec![
                ("x-dead-letter-exchange", json!(exchange)),
                ("x-dead-letter-strategy", json!("at-least-once")),
                ("x-overflow", json!("reject-publish")),
                ("x-delivery-limit", json!(limit)),
            ]
        };
        let (jobs, dead) = (self.jobs(), self.dead());
        let mut objects = vec![
            exchange(dead.clone(), "fanout", vec![]),
            // Looking at it in the management page costs a delivery each time: the limit must never be reached.
            queue(dead.clone(), vec![("x-delivery-limit", json!(NO_LIMIT))]),
            bind(&dead, &dead, ""),
            exchange(jobs.clone(), "topic", vec![("alternate-exchange", json!(dead))]),
            exchange(self.events(), "topic", vec![]),
        ];
        for kind in &self.kinds {
            let name = self.queue(&Source::Jobs { kind: kind.clone() });
            objects.push(queue(name.clone(), returns_to(&dead, DELIVERY_LIMIT)));
            objects.push(bind(&jobs, &name, kind));
        }
        for rung in &self.rungs {
            let name = self.retry(&rung.name);
            let delay = u64::try_from(rung.delay.as_millis()).unwrap_or(u64::MAX);
            let mut arguments = returns_to(&jobs, NO_LIMIT);
            arguments.push(("x-message-ttl", json!(delay)));
            objects.push(exchange(name.clone(), "fanout", vec![]));
            objects.push(queue(name.clone(), arguments));
            objects.push(bind(&name, &name, ""));
        }
        objects
    }

    /// RabbitMQ definitions, for those who let nobody but the operator create objects.
    pub fn definitions(&self, vhost: &str) -> Value {
        let table = |arguments: Vec<(&'static str, Value)>| {
            arguments
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect::<serde_json::Map<_, _>>()
        };
        let (mut exchanges, mut queues, mut bindings) = (vec![], vec![], vec![]);
        for object in self.objects() {
            match object {
                Object::Exchange { name, kind, arguments } => exchanges.push(json!({
                    "name": name, "vhost": vhost, "type": kind, "durable": true,
                    "auto_delete": false, "internal": false, "arguments": table(arguments),
                })),
                Object::Queue { name, arguments } => queues.push(json!({
                    "name": name, "vhost": vhost, "durable": true, "auto_delete": false,
                    "arguments": table(arguments),
                })),
                Object::Binding { exchange, queue, key } => bindings.push(json!({
                    "source": exchange, "vhost": vhost, "destination": queue, "destination_type": "queue",
                    "routing_key": key, "arguments": {},
                })),
            }
        }
        json!({ "exchanges": exchanges, "queues": queues, "bindings": bindings })
    }

    /// Makes sure that the objects are there, on a channel of its own: a clash closes the channel.
    pub(super) async fn ensure(
        &self,
        connection: &Connection,
        mode: TopologyMode,
    ) -> Result<(), BrokerError> {
        if mode == TopologyMode::Export {
            return Ok(());
        }
        let passive = mode == TopologyMode::Verify;
        let channel = bounded(connection.create_channel()).await.map_err(BrokerError::from)?;
        for object in self.objects() {
            match object {
                Object::Exchange { name, kind, arguments } => {
                    let options = ExchangeDeclareOptions { passive, durable: true, ..Default::default() };
                    let declared = channel.exchange_declare(
                        short(&name)?,
                        ExchangeKind::Custom(kind.to_owned()),
                        options,
                        fields(arguments),
                    );
                    bounded(declared)
                        .await
                        .map_err(|fault| fault.about(&format!("the exchange `{name}`")))?;
                }
                Object::Queue { name, arguments } => {
                    let options = QueueDeclareOptions { passive, durable: true, ..Default::default() };
                    let declared = channel.queue_declare(short(&name)?, options, fields(arguments));
                    bounded(declared).await.map_err(|fault| fault.about(&format!("the queue `{name}`")))?;
                }
                // A binding cannot be checked passively.
                Object::Binding { .. } if passive => {}
                Object::Binding { exchange, queue, key } => {
                    let bound = channel.queue_bind(
                        short(&queue)?,
                        short(&exchange)?,
                        short(&key)?,
                        QueueBindOptions::default(),
                        FieldTable::default(),
                    );
                    let object = format!("the binding of the queue `{queue}` to the exchange `{exchange}`");
                    bounded(bound).await.map_err(|fault| fault.about(&object))?;
                }
            }
        }
        retire(channel);
        Ok(())
    }
}

async fn bounded<T>(answer: impl Future<Output = lapin::Result<T>>) -> Result<T, Fault> {
    super::bounded(DECLARE_TIMEOUT, answer).await
}

/// Closes a channel that nobody waits for; bounded, because a blocked connection does not answer.
pub(super) fn retire(channel: Channel) {
    tokio::spawn(async move {
        let _ = timeout(super::CLOSE_TIMEOUT, channel.close(200, "done".into())).await;
    });
}

pub(super) fn short(name: &str) -> Result<ShortString, BrokerError> {
    ShortString::try_new(name)
        .map_err(|_| BrokerError::Misconfigured(format!("`{name}` is longer than the 255 bytes of a name")))
}

fn fields(arguments: Vec<(&'static str, Value)>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value {
            Value::Number(number) => AMQPValue::LongLongInt(number.as_i64().unwrap_or(i64::MAX)),
            Value::String(text) => AMQPValue::LongString(text.into()),
            _ => continue,
        };
        table.insert(name.into(), value);
    }
    table
}
