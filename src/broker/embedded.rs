//! The broker of one machine: queues as rows of the store, the contract of RabbitMQ.
//!
//! The invariant: what was published is committed, what is claimed belongs to an instance with a live lease, and what
//! is due is delivered when the [`Clock`] says so, to a subscriber of any process on this store.

mod consumer;
mod writer;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use scoped_futures::ScopedFutureExt;
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::buffer::{Buffer, Feed};
use super::{
    Broker, BrokerError, Depth, Health, MAX_BODY, Outgoing, Source, Subscription, Target, Topology, header,
};
use crate::clock::Clock;
use crate::store::{Store, StoreError, lease, queue};
use writer::Writer;

/// The queue of the dead letters; kinds are dotted, so none is called that.
const DEAD: &str = "dead";
/// As on RabbitMQ: returns before a crashing job is taken for dead.
const DELIVERY_LIMIT: i32 = 20;
/// Claims of an instance that was killed are free after this long.
const LEASE: Duration = Duration::from_secs(15);
/// How soon a publication of another process is seen.
const LOOK: Duration = Duration::from_millis(500);
/// Looks between two renewals of the lease.
const RENEW_EVERY: u32 = 10;
/// Events a slow listener may be behind before it loses the oldest.
const EVENTS: usize = 4096;

pub struct Embedded {
    core: Arc<Core>,
    closing: CancellationToken,
}

struct Core {
    store: Store,
    clock: Clock,
    topology: Topology,
    /// Unique to this start of the process: what an earlier start had claimed is not ours.
    holder: String,
    queues: HashMap<String, Queue>,
    writer: Writer,
    freed: Arc<Notify>,
    events: broadcast::Sender<Outgoing>,
}

/// What this process knows of a queue.
#[derive(Default)]
struct Queue {
    /// Changes whenever there may be something to claim.
    changed: watch::Sender<()>,
    consumers: AtomicU64,
}

impl Embedded {
    pub async fn start(
        store: Store,
        topology: Topology,
        clock: Clock,
        instance: &str,
    ) -> Result<Arc<Self>, BrokerError> {
        let holder = format!("{instance}/{}", uuid::Uuid::now_v7());
        let names = topology.kinds.iter().cloned().chain([DEAD.to_owned()]);
        let freed = Arc::new(Notify::new());
        let core = Arc::new(Core {
            writer: Writer::start(store.clone(), clock.clone(), holder.clone(), freed.clone()),
            freed,
            queues: names.map(|name| (name, Queue::default())).collect(),
            events: broadcast::Sender::new(EVENTS),
            store,
            clock,
            topology,
            holder,
        });
        core.renew().await.map_err(unavailable)?;
        let closing = CancellationToken::new();
        let (keeper, stop) = (core.clone(), closing.clone());
        tokio::spawn(async move { stop.run_until_cancelled(keeper.keep()).await });
        Ok(Arc::new(Self { core, closing }))
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

impl Core {
    fn queue(&self, name: &str) -> Option<&Queue> {
        self.queues.get(name)
    }

    fn wake(&self, queue: &str) {
        if let Some(queue) = self.queue(queue) {
            queue.changed.send_replace(());
        }
    }

    /// Keeps our lease, frees the claims of the dead, and notices what other processes publish.
    async fn keep(&self) {
        let (mut looks, mut last) = (0, 0);
        loop {
            tokio::select! {
                () = self.clock.sleep(LOOK) => looks += 1,
                () = self.freed.notified() => {
                    self.queues.keys().for_each(|name| self.wake(name));
                    continue;
                }
            }
            let seen = self.store.read(|tx| async move { queue::last(tx).await }.scope_boxed()).await;
            if seen.is_ok_and(|seen| std::mem::replace(&mut last, seen) != seen) {
                self.queues.keys().for_each(|name| self.wake(name));
            }
            if looks % RENEW_EVERY == 0 {
                if let Err(error) = self.renew().await {
                    tracing::warn!(%error, "the lease of the embedded broker cannot be renewed");
                }
                // What another living process gave back shows in nothing that we look at.
                self.queues.keys().for_each(|name| self.wake(name));
            }
        }
    }

    async fn renew(&self) -> Result<(), StoreError> {
        let (now, me) = (self.clock.now(), self.holder.as_str());
        let freed = self.store.transaction("queue_lease", |tx| {
            async move {
                lease::hold(tx, &lease_of(me), me, now, now + LEASE).await?;
                let mut freed = 0;
                for holder in queue::holders(tx).await? {
                    let name = lease_of(&holder);
                    if holder != me && !lease::live(tx, &name, now).await? {
                        let held = queue::held(tx, &holder).await?;
                        queue::release(tx, &holder, &held, DEAD, DELIVERY_LIMIT, now).await?;
                        lease::release(tx, &name, &holder).await?;
                        freed += held.len();
                    }
                }
                Ok::<_, StoreError>(freed)
            }
            .scope_boxed()
        });
        let freed = freed.await?;
        if freed > 0 {
            tracing::info!(messages = freed, "messages of an ended process are delivered again");
            self.queues.keys().for_each(|name| self.wake(name));
        }
        Ok(())
    }

    /// The row of a message; `None` for an event, which goes to no queue.
    fn row(&self, message: &Outgoing, now: DateTime<Utc>) -> Result<Option<queue::New>, BrokerError> {
        if message.body.len() > MAX_BODY {
            return Err(BrokerError::TooLarge(message.body.len()));
        }
        let (queue, kind, visible_at) = match &message.target {
            Target::Event { .. } => return Ok(None),
            Target::Job { kind } => (kind, kind, now),
            Target::Dead { kind } => (&DEAD.to_owned(), kind, now),
            Target::Rung { rung, kind } => {
                let rung = self.topology.rung(rung);
                let rung = rung.ok_or_else(|| BrokerError::Unroutable(message.target.to_string()))?;
                (kind, kind, now + rung.delay)
            }
        };
        let headers: serde_json::Map<_, _> = message
            .headers
            .iter()
            .filter(|(name, _)| header::travels(name))
            .map(|(name, value)| (name.clone(), value.as_str().into()))
            .collect();
        Ok(Some(queue::New {
            // As RabbitMQ's alternate exchange does it: what no queue takes is a dead letter, not a loss.
            queue: if self.queues.contains_key(queue) { queue.clone() } else { DEAD.to_owned() },
            routing_key: kind.clone(),
            message_id: message.message_id.to_string(),
            content_type: message.content_type,
            body: message.body.clone(),
            headers: serde_json::Value::Object(headers).to_string(),
            visible_at,
        }))
    }
}

#[async_trait]
impl Broker for Embedded {
    async fn publish(&self, window: &[Outgoing]) -> Vec<Result<(), BrokerError>> {
        let now = self.core.clock.now();
        let mut rows = Vec::with_capacity(window.len());
        let mut answers: Vec<_> =
            window.iter().map(|message| self.core.row(message, now).map(|row| rows.extend(row))).collect();
        if !rows.is_empty() {
            let mut queues: Vec<_> = rows.iter().map(|row| row.queue.clone()).collect();
            queues.sort_unstable();
            queues.dedup();
            match self.core.writer.publish(rows).await {
                Ok(()) => queues.iter().for_each(|queue| self.core.wake(queue)),
                Err(error) => {
                    answers
                        .iter_mut()
                        .filter(|answer| answer.is_ok())
                        .for_each(|answer| *answer = Err(error.clone()));
                }
            }
        }
        for (message, answer) in window.iter().zip(&answers) {
            if answer.is_ok() && matches!(message.target, Target::Event { .. }) {
                // No listener is no error.
                let _ = self.core.events.send(message.clone());
            }
        }
        answers
    }

    async fn subscribe(&self, source: Source, prefetch: u16) -> Result<Box<dyn Subscription>, BrokerError> {
        let name = name_of(&source);
        if self.core.queue(&name).is_none() {
            return Err(BrokerError::Misconfigured(format!("there is no queue for the kind `{name}`")));
        }
        let buffer = Arc::new(Buffer::default());
        let stop = self.closing.child_token();
        let pump = consumer::Pump::new(self.core.clone(), name, prefetch, buffer.clone(), stop.clone());
        let pump = tokio::spawn(pump.run());
        Ok(Box::new(Feed::new(buffer, self.health(), stop, pump)))
    }

    async fn depth(&self, source: &Source) -> Result<Depth, BrokerError> {
        let (name, now) = (name_of(source), self.core.clock.now());
        let Some(queue) = self.core.queue(&name) else {
            return Err(BrokerError::Misconfigured(format!("there is no queue for the kind `{name}`")));
        };
        let name = name.as_str();
        let ready = self.core.store.read(|tx| async move { queue::ready(tx, name, now).await }.scope_boxed());
        let ready = ready.await.map_err(unavailable)?;
        Ok(Depth {
            ready: u64::try_from(ready).unwrap_or_default(),
            consumers: queue.consumers.load(Ordering::Relaxed),
        })
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.core.writer.health()
    }

    fn local_events(&self) -> Option<broadcast::Receiver<Outgoing>> {
        Some(self.core.events.subscribe())
    }

    async fn close(&self) {
        self.closing.cancel();
        self.core.writer.close().await;
        let me = self.core.holder.as_str();
        let left = self.core.store.transaction("queue_close", |tx| {
            async move {
                queue::requeue_all(tx, me).await?;
                lease::release(tx, &lease_of(me), me).await
            }
            .scope_boxed()
        });
        if let Err(error) = left.await {
            tracing::warn!(%error, "claims are left to their lease");
        }
    }
}

fn name_of(source: &Source) -> String {
    match source {
        Source::Jobs { kind } => kind.clone(),
        Source::Dead => DEAD.to_owned(),
    }
}

fn lease_of(holder: &str) -> String {
    format!("queue:{holder}")
}

#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err")]
fn unavailable(error: StoreError) -> BrokerError {
    BrokerError::Unavailable(error.to_string())
}
