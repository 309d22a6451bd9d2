//! The loop around attempts: one subscription per kind, bounded concurrency, pause, drain.
//!
//! The invariant: a drain loses nothing. Deliveries that were not started go back at once, running jobs get
//! until the drain's end, what is cut off then is returned uncounted.

use std::sync::Arc;
use std::time::Duration;

use scoped_futures::ScopedFutureExt;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attempt::{Attempts, Verdict};
use crate::broker::{BrokerError, Source};
use crate::services::Services;
use crate::store::queue_pause;

/// How often paused queues are looked up.
const PAUSE_POLL: Duration = Duration::from_secs(1);

pub struct Consumer {
    pub kind: String,
    pub concurrency: u16,
    pub attempts: Arc<Attempts>,
    pub paused: watch::Receiver<Vec<String>>,
}

impl Consumer {
    /// Runs until `stop`; then drains. Running attempts outlive this in `tasks`.
    pub async fn run(mut self, tasks: TaskTracker, stop: CancellationToken) -> Result<(), BrokerError> {
        let slots = Arc::new(Semaphore::new(self.concurrency.into()));
        while !stop.is_cancelled() {
            self.until_resumed(&stop).await;
            if stop.is_cancelled() {
                break;
            }
            let source = Source::Jobs { kind: self.kind.clone() };
            let broker = &self.attempts.services.broker;
            let mut deliveries =
                broker.subscribe(source, self.concurrency + self.concurrency / 4 + 1).await?;
            loop {
                // A free hand first: a delivery that nobody can start belongs to another process.
                let taken = async {
                    let slot = slots.clone().acquire_owned().await.ok()?;
                    Some((slot, deliveries.next().await?))
                };
                let taken = tokio::select! {
                    taken = taken => taken,
                    () = stop.cancelled() => break,
                    _ = self.paused.changed() => {
                        if self.is_paused() { break; }
                        continue;
                    }
                };
                let Some((slot, delivery)) = taken else { break };
                let attempts = self.attempts.clone();
                let kind = self.kind.clone();
                tasks.spawn(async move {
                    let started = attempts.services.clock.now();
                    let verdict = attempts.run(delivery).await;
                    drop(slot);
                    let seconds = (attempts.services.clock.now() - started).as_seconds_f64();
                    metrics::counter!("followthrough_attempts_total", "kind" => kind.clone(), "verdict" => name(verdict))
                        .increment(1);
                    metrics::histogram!("followthrough_attempt_seconds", "kind" => kind).record(seconds);
                });
            }
            deliveries.cancel().await;
        }
        Ok(())
    }

    fn is_paused(&self) -> bool {
        self.paused.borrow().contains(&self.kind)
    }

    async fn until_resumed(&mut self, stop: &CancellationToken) {
        while self.is_paused() {
            tokio::select! {
                changed = self.paused.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
        }
    }
}

/// Keeps the list of paused queues fresh for the consumers of this process.
pub async fn watch_pauses(
    services: Arc<Services>,
    paused: watch::Sender<Vec<String>>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        match services.store.read(|tx| async move { queue_pause::list(tx).await }.scope_boxed()).await {
            Ok(kinds) => {
                paused.send_if_modified(|known| {
                    let changed = *known != kinds;
                    *known = kinds;
                    changed
                });
            }
            Err(error) => tracing::debug!(%error, "paused queues cannot be read"),
        }
        tokio::select! {
            () = services.clock.sleep(PAUSE_POLL) => {}
            () = stop.cancelled() => {}
        }
    }
}

fn name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Succeeded => "succeeded",
        Verdict::Retried => "retried",
        Verdict::Deferred => "deferred",
        Verdict::Continued => "continued",
        Verdict::Parked => "parked",
        Verdict::Dead => "dead",
        Verdict::Expired => "expired",
        Verdict::Dropped => "dropped",
        Verdict::Returned => "returned",
        Verdict::Fenced => "fenced",
    }
}
