//! Between a broker's consumer loop and the one who asks for the next delivery.
//!
//! The invariant: [`Feed::next`] may be dropped at any await without losing a delivery, and what was never handed
//! out is given back when the feed is cancelled or dropped.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Delivery, Health, Subscription};

/// Bounded by the prefetch of the consumer that fills it.
#[derive(Default)]
pub(super) struct Buffer {
    inner: Mutex<Inner>,
    ready: Notify,
}

#[derive(Default)]
struct Inner {
    waiting: VecDeque<Delivery>,
    closed: bool,
}

impl Buffer {
    /// What nobody will ask for any more is dropped: its receipt gives it back.
    pub(super) fn push(&self, delivery: Delivery) {
        {
            let mut inner = self.lock();
            if inner.closed {
                return;
            }
            inner.waiting.push_back(delivery);
        }
        self.ready.notify_one();
    }

    /// Empties it: deliveries of a lost session cannot be answered and will come again.
    pub(super) fn take(&self) -> VecDeque<Delivery> {
        std::mem::take(&mut self.lock().waiting)
    }

    /// No more deliveries; what was waiting is returned to the caller.
    pub(super) fn close(&self) -> VecDeque<Delivery> {
        let waiting = {
            let mut inner = self.lock();
            inner.closed = true;
            std::mem::take(&mut inner.waiting)
        };
        self.ready.notify_one();
        waiting
    }

    async fn next(&self) -> Option<Delivery> {
        loop {
            {
                let mut inner = self.lock();
                if let Some(delivery) = inner.waiting.pop_front() {
                    return Some(delivery);
                }
                if inner.closed {
                    return None;
                }
            }
            // A permit is kept when the push came before this await.
            self.ready.notified().await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The subscription of both brokers: a buffer, and the task that fills it.
pub(super) struct Feed {
    buffer: Arc<Buffer>,
    health: watch::Receiver<Health>,
    stop: CancellationToken,
    pump: JoinHandle<()>,
}

impl Feed {
    /// `pump` ends soon after `stop` is cancelled, having given back what it holds and closed the buffer.
    pub(super) fn new(
        buffer: Arc<Buffer>,
        health: watch::Receiver<Health>,
        stop: CancellationToken,
        pump: JoinHandle<()>,
    ) -> Self {
        Self { buffer, health, stop, pump }
    }
}

#[async_trait]
impl Subscription for Feed {
    async fn next(&mut self) -> Option<Delivery> {
        loop {
            // While publications are refused, whatever a job owes could not be sent: take no more work.
            let _ = self.health.wait_for(|health| *health != Health::Blocked).await;
            let mut blocked = self.health.clone();
            tokio::select! {
                biased;
                Ok(_) = blocked.wait_for(|health| *health == Health::Blocked) => {}
                delivery = self.buffer.next() => return delivery,
            }
        }
    }

    async fn cancel(&mut self) {
        self.stop.cancel();
        if !self.pump.is_finished() {
            let _ = (&mut self.pump).await;
        }
        for delivery in self.buffer.close() {
            let _ = delivery.receipt.requeue().await;
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        // Not aborted: the pump gives back what it holds, also when nobody waits for it.
        self.stop.cancel();
    }
}
