//! What nobody asks for but must be done: sweeps, by one leader at a time.
//!
//! The invariant: each round runs in the process that holds the lease `scheduler`; another takes over when
//! it falls silent.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use scoped_futures::ScopedFutureExt;
use tokio_util::sync::CancellationToken;

use crate::broker::Source;
use crate::oauth::Consent;
use crate::services::Services;
use crate::store::{lease, queue_pause};
use crate::submit;
use crate::vault::Vault;

const NAME: &str = "scheduler";
const ROUND: Duration = Duration::from_secs(30);
const LEASE: TimeDelta = TimeDelta::seconds(90);
/// A job whose time passed this long ago without a delivery has lost its message.
const OVERDUE: TimeDelta = TimeDelta::minutes(15);
/// Connections idle for so long are refreshed, a few in a round.
const IDLE: TimeDelta = TimeDelta::days(7);
const PER_ROUND: i64 = 20;

pub async fn run(services: Arc<Services>, vault: Option<Vault>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        match lead(&services).await {
            Ok(true) => round(&services, vault.as_ref()).await,
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "the scheduler's lease cannot be read"),
        }
        tokio::select! {
            () = services.clock.sleep(ROUND) => {}
            () = stop.cancelled() => {}
        }
    }
    let instance = services.ledger.instance();
    let released = services
        .store
        .transaction("lease", |tx| async move { lease::release(tx, NAME, instance).await }.scope_boxed())
        .await;
    if let Err(error) = released {
        tracing::debug!(%error, "the scheduler's lease runs out by itself");
    }
}

async fn lead(services: &Services) -> crate::store::Result<bool> {
    let (now, instance) = (services.clock.now(), services.ledger.instance());
    services
        .store
        .transaction("lease", |tx| {
            async move { lease::hold(tx, NAME, instance, now, now + LEASE).await }.scope_boxed()
        })
        .await
}

async fn round(services: &Services, vault: Option<&Vault>) {
    match sweep(services).await {
        Ok((0, 0)) => {}
        Ok((released, expired)) => tracing::warn!(released, expired, "swept"),
        Err(error) => tracing::warn!(%error, "the sweep failed"),
    }
    if let Some(vault) = vault {
        tend(vault).await;
    }
}

/// What connections need over the months.
pub async fn tend(vault: &Vault) {
    keep_alive(vault).await;
    if let Err(error) = Consent::new(vault.clone()).forget_links().await {
        tracing::debug!(%error, "old sign-in links cannot be deleted");
    }
}

/// A copy that is missed may stand in a long or paused queue: such kinds are left alone.
async fn sweep(services: &Services) -> crate::store::Result<(usize, usize)> {
    let paused = services.store.read(|tx| async move { queue_pause::list(tx).await }.scope_boxed()).await?;
    let mut idle = Vec::new();
    for kind in services.registry.kinds().into_iter().filter(|kind| !paused.contains(kind)) {
        let depth = services.broker.depth(&Source::Jobs { kind: kind.clone() }).await;
        if depth.is_ok_and(|depth| depth.ready == 0) {
            idle.push(kind);
        }
    }
    submit::sweep(services, &idle, OVERDUE).await
}

/// Microsoft forgets a refresh token that nobody used for 90 days.
async fn keep_alive(vault: &Vault) {
    match vault.idle_connections(IDLE, PER_ROUND).await {
        Ok(idle) => {
            for id in idle {
                if let Err(error) = vault.keep_alive(id).await {
                    tracing::debug!(connection = %id, %error, "an idle connection could not be refreshed");
                    if let Err(error) = vault.tried(id).await {
                        tracing::debug!(connection = %id, %error, "it will be tried again at once");
                    }
                }
            }
        }
        Err(error) => tracing::debug!(%error, "idle connections cannot be read"),
    }
}
