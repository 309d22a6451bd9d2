//! What publishers are told: every event of a world, from RabbitMQ's exchange or from inside the embedded broker.
//!
//! The invariant: events are kept in the order they came, as they came.

use std::sync::{Arc, Mutex, PoisonError};

use followthrough::broker::Outgoing;
use futures::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use serde_json::Value;
use tokio::sync::broadcast;

#[derive(Clone, Default)]
pub struct Events(Arc<Mutex<Vec<Value>>>);

impl Events {
    fn add(&self, body: &[u8]) {
        let event = serde_json::from_slice(body).expect("an event is JSON");
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    /// Listens to one embedded broker until it is gone.
    pub fn listen(&self, mut told: broadcast::Receiver<Outgoing>) {
        let events = self.clone();
        tokio::spawn(async move {
            loop {
                match told.recv().await {
                    Ok(message) => events.add(&message.body),
                    Err(broadcast::error::RecvError::Lagged(missed)) => panic!("{missed} events missed"),
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        });
    }

    /// Listens as a publisher does: a queue of its own, bound to everything. It goes with its connection.
    pub async fn bind(&self, url: &str, exchange: &str) -> lapin::Result<lapin::Connection> {
        let connection = lapin::Connection::connect(url, lapin::ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare("".into(), options, FieldTable::default()).await?;
        let name = queue.name().clone();
        let (bind, none) = (QueueBindOptions::default(), FieldTable::default);
        channel.queue_bind(name.clone(), exchange.into(), "#".into(), bind, none()).await?;
        let consume = BasicConsumeOptions::default();
        let mut consumer = channel.basic_consume(name, "".into(), consume, none()).await?;
        let events = self.clone();
        tokio::spawn(async move {
            let _channel = channel;
            while let Some(Ok(delivery)) = consumer.next().await {
                events.add(&delivery.data);
                let _ = delivery.ack(BasicAckOptions::default()).await;
            }
        });
        Ok(connection)
    }

    pub fn all(&self) -> Vec<Value> {
        self.those(|event| Some(event.clone()))
    }

    /// Those whose type begins so, without `followthrough.`: `job.parked`.
    pub fn of(&self, kind: &str) -> Vec<Value> {
        let kind = format!("followthrough.{kind}");
        let fits = |event: &Value| event["type"].as_str().is_some_and(|told| told.starts_with(&kind));
        self.those(|event| fits(event).then(|| event.clone()))
    }

    /// Their types about one job, connection or mailbox, in order.
    pub fn about(&self, subject: &str) -> Vec<String> {
        let kind =
            |event: &Value| Some(event["type"].as_str()?.trim_start_matches("followthrough.").to_owned());
        self.those(|event| (event["subject"] == subject).then(|| kind(event)).flatten())
    }

    /// Looked through in place: there may be a hundred thousand of them, and a story asks again and again.
    fn those<T>(&self, pick: impl Fn(&Value) -> Option<T>) -> Vec<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(pick).collect()
    }
}
