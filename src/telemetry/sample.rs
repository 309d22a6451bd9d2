//! Gauges of what stands in the store and at the broker.
//!
//! The invariant: a series that was shown is shown again, as 0 when nothing is there any more.

use std::sync::Arc;
use std::time::Duration;

use scoped_futures::ScopedFutureExt;
use tokio_util::sync::CancellationToken;

use crate::broker::{Health, Source};
use crate::services::Services;
use crate::store::{Result, dead_letter, job, outbox};

const ROUND: Duration = Duration::from_secs(15);

/// Samples until `stop`.
pub async fn sample(services: Arc<Services>, stop: CancellationToken) {
    let handle = super::metrics();
    while !stop.is_cancelled() {
        if let Err(error) = of_store(&services).await {
            tracing::debug!(%error, "the store's gauges cannot be sampled");
        }
        of_broker(&services).await;
        // The exporter folds what histograms collected only when told to.
        handle.run_upkeep();
        tokio::select! {
            () = services.clock.sleep(ROUND) => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn of_store(services: &Services) -> Result<()> {
    let (jobs, letters, (owed, oldest)) = services
        .store
        .read(|tx| {
            async move {
                Ok::<_, crate::store::StoreError>((
                    job::unfinished(tx).await?,
                    dead_letter::open_count(tx).await?,
                    outbox::backlog(tx).await?,
                ))
            }
            .scope_boxed()
        })
        .await?;
    for kind in services.registry.kinds() {
        for state in job::state::UNFINISHED {
            let count = jobs.iter().find(|(known, at, _)| *known == kind && at == state);
            let count = count.map_or(0, |(_, _, count)| *count);
            metrics::gauge!("followthrough_jobs", "kind" => kind.clone(), "state" => state)
                .set(as_gauge(count));
        }
    }
    let age = oldest.map_or(0.0, |oldest| (services.clock.now() - oldest).as_seconds_f64());
    metrics::gauge!("followthrough_outbox_owed").set(as_gauge(owed));
    metrics::gauge!("followthrough_outbox_oldest_seconds").set(age);
    metrics::gauge!("followthrough_dead_letters_open").set(as_gauge(letters));
    Ok(())
}

async fn of_broker(services: &Services) {
    let ready = *services.broker.health().borrow() == Health::Ready;
    metrics::gauge!("followthrough_broker_ready").set(f64::from(u8::from(ready)));
    let jobs = services.registry.kinds().into_iter().map(|kind| (kind.clone(), Source::Jobs { kind }));
    for (queue, source) in jobs.chain([("dead".to_owned(), Source::Dead)]) {
        let Ok(depth) = services.broker.depth(&source).await else { return };
        let (ready, consumers) = (depth.ready.cast_signed(), depth.consumers.cast_signed());
        metrics::gauge!("followthrough_queue_ready", "queue" => queue.clone()).set(as_gauge(ready));
        metrics::gauge!("followthrough_queue_consumers", "queue" => queue).set(as_gauge(consumers));
    }
}

fn as_gauge(count: i64) -> f64 {
    f64::from(i32::try_from(count).unwrap_or(i32::MAX))
}
