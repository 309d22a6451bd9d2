//! Settling: the outcome, its effects' confirmations and what is owed to the broker commit together.

use std::collections::HashSet;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use scoped_futures::ScopedFutureExt;

use super::Rules;
use crate::clock::Clock;
use crate::outbox::{self, Handoff};
use crate::store::effect::{self, Confirmation, NewIntent, Void};
use crate::store::job::{self, Ending, Key};
use crate::store::outbox::Owed;
use crate::store::{Store, StoreError, gate};

/// The end of one attempt.
#[derive(Debug, Clone)]
pub struct Settlement {
    pub ending: Ending,
    pub confirmations: Vec<Confirmation>,
    pub voids: Vec<Void>,
    pub owed: Vec<Owed>,
    /// A throttle closes its gate for the whole fleet.
    pub cool_down: Option<(String, DateTime<Utc>)>,
}

pub(super) async fn intend(
    store: &Store,
    clock: &Clock,
    batch: &Arc<[NewIntent]>,
) -> Result<Vec<bool>, StoreError> {
    let now = clock.now();
    let held = store
        .statement("intend", |tx| async move { effect::intend(tx, batch, now).await }.scope_boxed())
        .await?;
    let held: HashSet<Key> = held.into_iter().collect();
    Ok(batch.iter().map(|intent| held.contains(&intent.key)).collect())
}

pub(super) async fn run(
    store: &Store,
    clock: &Clock,
    rules: &Rules,
    handoff: &Handoff,
    batch: &Arc<[Settlement]>,
) -> Result<Vec<bool>, StoreError> {
    debug_assert_eq!(rules.instance, handoff.instance());
    let now = clock.now();
    let (held, owed) = store
        .transaction("settle", |tx| {
            async move {
                let mut order: Vec<&Settlement> = batch.iter().collect();
                order.sort_by(|a, b| a.ending.key.cmp(&b.ending.key));
                let confirmations: Vec<Confirmation> =
                    order.iter().flat_map(|settlement| settlement.confirmations.clone()).collect();
                effect::confirm(tx, &confirmations, now).await?;
                for settlement in &order {
                    effect::void(tx, &settlement.voids).await?;
                }
                let endings: Vec<Ending> = order.iter().map(|settlement| settlement.ending.clone()).collect();
                let held: HashSet<Key> = job::end(tx, &endings, now).await?.into_iter().collect();
                let mut owed: Vec<Owed> = Vec::new();
                for settlement in &order {
                    if held.contains(&settlement.ending.key) {
                        owed.extend(settlement.owed.iter().cloned());
                    }
                    // A throttle is a fact about the mailbox, whoever holds the job by now.
                    if let Some((key, until)) = &settlement.cool_down {
                        gate::close(tx, key, *until).await?;
                    }
                }
                let owed = outbox::owe(tx, &owed, handoff, now).await?;
                Ok::<_, StoreError>((held, owed))
            }
            .scope_boxed()
        })
        .await?;
    handoff.give(owed);
    Ok(batch.iter().map(|settlement| held.contains(&settlement.ending.key)).collect())
}
