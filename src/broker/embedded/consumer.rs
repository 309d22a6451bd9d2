//! One subscription of the embedded broker: claims up to the free places of its prefetch, as soon as something is due.
//!
//! The invariant: at most `prefetch` messages are claimed and unanswered, and each of them is answered, given back or
//! dropped, which gives it back too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Core;
use crate::broker::buffer::Buffer;
use crate::broker::{BrokerError, Delivery, Meta, Receipt};
use crate::store::queue::Row;

/// After the store refused a claim.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

pub(super) struct Pump {
    hand: Arc<Hand>,
    prefetch: usize,
    buffer: Arc<Buffer>,
    stop: CancellationToken,
    changed: watch::Receiver<()>,
}

/// What the pump shares with its receipts.
struct Hand {
    core: Arc<Core>,
    queue: String,
    unanswered: AtomicUsize,
    freed: Notify,
}

impl Pump {
    pub(super) fn new(
        core: Arc<Core>,
        queue: String,
        prefetch: u16,
        buffer: Arc<Buffer>,
        stop: CancellationToken,
    ) -> Self {
        let changed =
            core.queue(&queue).map_or_else(|| watch::channel(()).1, |queue| queue.changed.subscribe());
        let hand = Arc::new(Hand { core, queue, unanswered: AtomicUsize::new(0), freed: Notify::new() });
        Self { hand, prefetch: usize::from(prefetch.max(1)), buffer, stop, changed }
    }

    pub(super) async fn run(mut self) {
        let _counted = Counted::new(self.hand.clone());
        let stop = self.stop.clone();
        stop.run_until_cancelled(self.fill()).await;
        for delivery in self.buffer.close() {
            let _ = delivery.receipt.requeue().await;
        }
    }

    async fn fill(&mut self) {
        let hand = self.hand.clone();
        loop {
            let free = self.prefetch.saturating_sub(hand.unanswered.load(Ordering::Acquire));
            if free == 0 {
                hand.freed.notified().await;
                continue;
            }
            // Marked before the claim: what is published while it runs is seen after it.
            self.changed.mark_unchanged();
            let claimed = match hand.core.writer.claim(&hand.queue, free).await {
                Ok(claimed) => claimed,
                Err(error) => {
                    tracing::warn!(queue = hand.queue, %error, "messages cannot be claimed");
                    let _ = timeout(AFTER_FAILURE, std::future::pending::<()>()).await;
                    continue;
                }
            };
            let full = claimed.rows.len() >= free;
            for row in claimed.rows {
                self.buffer.push(received(&hand, row));
            }
            if full {
                continue;
            }
            let due = async {
                match claimed.next {
                    Some(due) => hand.core.clock.sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.changed.changed() => if changed.is_err() { return },
                () = due => {}
            }
        }
    }
}

/// Counts the consumers of a queue for its depth.
struct Counted(Arc<Hand>);

impl Counted {
    fn new(hand: Arc<Hand>) -> Self {
        if let Some(queue) = hand.core.queue(&hand.queue) {
            queue.consumers.fetch_add(1, Ordering::Relaxed);
        }
        Self(hand)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(queue) = self.0.core.queue(&self.0.queue) {
            queue.consumers.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn received(hand: &Arc<Hand>, row: Row) -> Delivery {
    hand.unanswered.fetch_add(1, Ordering::AcqRel);
    let before = u32::try_from(row.deliveries - 1).unwrap_or_default();
    let meta = Meta {
        message_id: Some(row.message_id),
        kind: Some(row.routing_key.clone()),
        correlation_id: None,
        content_type: Some(row.content_type),
        timestamp: Some(row.created_at),
        routing_key: row.routing_key,
        redelivered: before > 0,
        deliveries: before,
        death: row.death,
        headers: serde_json::from_str(&row.headers).unwrap_or_default(),
    };
    let receipt = Claim { seq: row.seq, hand: hand.clone(), answered: AtomicBool::new(false) };
    Delivery { body: row.body.into(), meta, receipt: Box::new(receipt) }
}

struct Claim {
    seq: i64,
    hand: Arc<Hand>,
    answered: AtomicBool,
}

impl Claim {
    /// The first answer counts, as on a broker's channel. Its place in the prefetch is free when the guard is dropped,
    /// be it because the caller went away.
    fn first(&self) -> Result<Place<'_>, BrokerError> {
        if self.answered.swap(true, Ordering::AcqRel) {
            Err(BrokerError::AckLost)
        } else {
            Ok(Place(&self.hand))
        }
    }
}

struct Place<'a>(&'a Hand);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.unanswered.fetch_sub(1, Ordering::AcqRel);
        self.0.freed.notify_one();
    }
}

#[async_trait]
impl Receipt for Claim {
    async fn ack(&self) -> Result<(), BrokerError> {
        let _place = self.first()?;
        self.hand.core.writer.ack(self.seq).await
    }

    async fn requeue(&self) -> Result<(), BrokerError> {
        let _place = self.first()?;
        let given_back = self.hand.core.writer.requeue(self.seq).await;
        self.hand.core.wake(&self.hand.queue);
        given_back
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Ok(_place) = self.first() {
            self.hand.core.writer.release(self.seq);
            // Claims that are asked for from here on are served after it.
            self.hand.core.wake(&self.hand.queue);
            self.hand.core.wake(super::DEAD);
        }
    }
}
