//! Push is a hint, and believed only while it proves itself.
//!
//! The invariant: a mailbox stands on the rung `push` only while notifications told of what polls saw as well; an
//! accepted subscription alone is no evidence. All that a poll and a notification know of one message meets in the
//! table of notices, whoever comes first.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};
use scoped_futures::ScopedFutureExt;
use uuid::Uuid;

use super::Mailboxes;
use super::ladder::{Capability, Proof};
use super::life::learn;
use crate::outcome::Failure;
use crate::store::folder::Folder;
use crate::store::mailbox::{self, Mailbox};
use crate::store::notice::{self, Awaited};
use crate::store::subscription::{self, Subscription, state};
use crate::store::{StoreError, Tx};

/// Microsoft promises three minutes at most.
/// <https://learn.microsoft.com/graph/change-notifications-overview#latency>
const LATE: TimeDelta = TimeDelta::minutes(5);
/// Messages in a row that no notification told of.
const SILENCE: i32 = 3;
/// After so long without a single one, a subscription that was accepted is taken for mute.
const MUTE: TimeDelta = TimeDelta::days(1);
/// What no poll has seen by then is none of its business: a change of a change, or gone again.
const KEPT: TimeDelta = TimeDelta::hours(1);

/// A change that a poll found.
#[derive(Debug, Clone)]
pub struct SeenChange {
    pub id: String,
    /// The message is new.
    pub created: bool,
    /// When Microsoft received or changed it.
    pub at: DateTime<Utc>,
}

/// Where a mailbox stands by its subscriptions, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    rung: &'static str,
    reason: &'static str,
    capability: Proof,
}

impl Mailboxes {
    /// Compares what one poll of a folder saw with what notifications told of it.
    pub async fn judge(
        &self,
        mailbox: &Mailbox,
        folder: &Folder,
        seen: &[SeenChange],
    ) -> Result<(), Failure> {
        let (now, mailbox, folder) = (self.now(), mailbox.id, folder.id.as_str());
        let store = &self.services.store;
        let found: Result<_, StoreError> = store
            .read(|tx| async move { subscription::live_in(tx, mailbox, folder).await }.scope_boxed())
            .await;
        // Most folders have none.
        let Some(live) = found? else { return Ok(()) };
        let live = &live;
        let fell_silent: Result<bool, StoreError> = store
            .transaction("judge", |tx| {
                async move {
                    let fell_silent = weigh(tx, live, seen, now).await?;
                    stand(tx, mailbox, now).await?;
                    Ok(fell_silent)
                }
                .scope_boxed()
            })
            .await;
        if fell_silent? {
            tracing::warn!(%mailbox, "notifications failed to tell of messages; it is polled all the same");
            metrics::counter!("followthrough_mailbox_delivery_silence_total").increment(1);
        }
        Ok(())
    }
}

/// Says whether a proven subscription has just fallen silent.
async fn weigh(
    tx: &mut Tx,
    live: &Subscription,
    seen: &[SeenChange],
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let (mailbox, folder) = (live.mailbox_id, live.folder_id.as_str());
    let waiting = notice::awaited(tx, mailbox, folder).await?;
    let mut messages: BTreeMap<&str, DateTime<Utc>> =
        seen.iter().map(|change| (change.id.as_str(), change.at)).collect();
    messages.extend(waiting.iter().map(|awaited| (awaited.message_id.as_str(), awaited.received_at)));
    let ids: Vec<&str> = messages.keys().copied().collect();
    let told: HashSet<String> = notice::take(tx, mailbox, folder, &ids).await?.into_iter().collect();

    let known: HashSet<&str> = waiting.iter().map(|awaited| awaited.message_id.as_str()).collect();
    // What was there before the subscription is nobody's news.
    let owed = |change: &&SeenChange| change.created && live.live_at.is_some_and(|at| at < change.at);
    let new = seen.iter().filter(owed).filter(|change| !known.contains(change.id.as_str()));
    let new: HashMap<&str, DateTime<Utc>> = new.map(|change| (change.id.as_str(), change.at)).collect();
    let is_late = |at: DateTime<Utc>| at + LATE < now;
    let (mut ended, mut to_wait) = (Vec::new(), Vec::new());
    // When, and whether a notification told of it.
    let mut verdicts: Vec<(DateTime<Utc>, bool)> = Vec::new();
    for (id, at) in &messages {
        let is_told = told.contains(*id);
        if is_told {
            verdicts.push((*at, true));
        } else if is_late(*at) && (known.contains(id) || new.contains_key(id)) {
            verdicts.push((*at, false));
        } else if let Some(at) = new.get(id) {
            to_wait.push(Awaited { message_id: (*id).to_owned(), received_at: *at });
        }
        if known.contains(id) && (is_told || is_late(*at)) {
            ended.push(*id);
        }
    }
    notice::wait_for(tx, mailbox, folder, &to_wait).await?;
    notice::forgo(tx, mailbox, folder, &ended).await?;
    if seen.is_empty() {
        // The poll is through: nothing that it is about to see is still unmatched.
        notice::expire(tx, mailbox, folder, now - KEPT).await?;
    }
    if verdicts.is_empty() {
        return Ok(false);
    }
    verdicts.sort_unstable();
    let unannounced =
        verdicts.iter().fold(
            live.unannounced,
            |unannounced, (_, is_told)| {
                if *is_told { 0 } else { unannounced.saturating_add(1) }
            },
        );
    let proof = verdicts.iter().any(|(_, is_told)| *is_told).then_some(now);
    subscription::judged(tx, live.id, proof.or(live.proven_at), unannounced).await?;
    if proof.is_some() {
        mailbox::proven(tx, mailbox, now).await?;
    }
    let was_proven = live.proven_at.is_some() && live.unannounced < SILENCE;
    Ok((was_proven || proof.is_some()) && unannounced >= SILENCE)
}

/// Writes down where the mailbox stands by its subscriptions.
pub(super) async fn stand(tx: &mut Tx, mailbox: Uuid, now: DateTime<Utc>) -> Result<(), StoreError> {
    let subscriptions = subscription::of_mailbox(tx, mailbox).await?;
    let Some(standing) = standing(&subscriptions, now) else { return Ok(()) };
    let why = subscriptions.iter().find_map(|one| one.message.as_deref());
    stand_at(tx, mailbox, standing, why, now).await
}

/// Push is not wanted or not to be had here.
pub(super) async fn stand_without(
    tx: &mut Tx,
    mailbox: Uuid,
    reason: &'static str,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    stand_at(tx, mailbox, Standing { rung: "delta", reason, capability: Proof::Unproven }, None, now).await
}

async fn stand_at(
    tx: &mut Tx,
    mailbox: Uuid,
    standing: Standing,
    why: Option<&str>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    // A rung below `delta` is none of push's business.
    let known = mailbox::get(tx, mailbox).await?;
    if matches!(known.rung.as_str(), "push" | "delta") {
        mailbox::stand(tx, mailbox, standing.rung, standing.reason, now).await?;
    }
    let push = Capability {
        message: why.map(str::to_owned),
        ..Capability::new(standing.capability, standing.reason)
    };
    learn(tx, mailbox, |known| known.push = push).await
}

/// The worst of them is the mailbox's: one folder that falls silent is enough not to rely on push.
fn standing(subscriptions: &[Subscription], now: DateTime<Utc>) -> Option<Standing> {
    let live: Vec<&Subscription> = subscriptions.iter().filter(|one| one.is_live()).collect();
    let proven = |one: &&Subscription| one.proven_at.is_some();
    let silent = |one: &&Subscription| one.unannounced >= SILENCE;
    let mute = |one: &&Subscription| {
        one.proven_at.is_none()
            && one.notices == 0
            && one.unannounced > 0
            && one.live_at.is_some_and(|at| at + MUTE <= now)
    };
    let (rung, reason, capability) = if live.iter().any(|one| proven(one) && silent(one)) {
        ("delta", "push_missed_changes", Proof::Unproven)
    } else if live.iter().any(proven) {
        ("push", "proven", Proof::Proven)
    } else if live.iter().any(mute) {
        ("delta", "webhook_silent", Proof::Unproven)
    } else if !live.is_empty() {
        ("delta", "webhook_unproven", Proof::Unproven)
    } else if let Some(refused) = subscriptions.iter().find(|one| one.state == state::REFUSED) {
        let reason = match refused.code.as_deref() {
            Some("webhook_unreachable") => "webhook_unreachable",
            _ => "webhook_unsupported",
        };
        ("delta", reason, Proof::Refused)
    } else {
        return None;
    };
    Some(Standing { rung, reason, capability })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(change: impl FnOnce(&mut Subscription)) -> Subscription {
        let now = DateTime::UNIX_EPOCH;
        let mut one = Subscription {
            id: Uuid::nil(),
            mailbox_id: Uuid::nil(),
            folder_id: String::new(),
            graph_id: None,
            client_state: Vec::new(),
            state: state::LIVE.to_owned(),
            code: None,
            message: None,
            expires_at: None,
            renew_at: None,
            asked: None,
            live_at: Some(now),
            presented_at: None,
            checked_at: None,
            notices: 0,
            noticed_at: None,
            proven_at: None,
            unannounced: 0,
            created_at: now,
            updated_at: now,
        };
        change(&mut one);
        one
    }

    #[test]
    fn a_mailbox_stands_where_its_worst_subscription_puts_it() {
        let now = DateTime::UNIX_EPOCH + MUTE;
        let stands = |subscriptions: &[Subscription]| {
            standing(subscriptions, now).map(|standing| (standing.rung, standing.reason))
        };
        let proven = || one(|one| one.proven_at = Some(now));
        let silent = one(|one| (one.proven_at, one.unannounced) = (Some(now), SILENCE));
        let unproven = || one(|one| one.unannounced = 0);
        let mute = one(|one| one.unannounced = 1);
        let refused = |code: &str| {
            one(|one| (one.state, one.code) = (state::REFUSED.to_owned(), Some(code.to_owned())))
        };
        assert_eq!(stands(&[]), None);
        assert_eq!(stands(&[one(|one| one.state = state::CREATING.to_owned())]), None);
        assert_eq!(stands(&[unproven()]), Some(("delta", "webhook_unproven")));
        assert_eq!(stands(&[mute]), Some(("delta", "webhook_silent")));
        assert_eq!(stands(&[proven(), unproven()]), Some(("push", "proven")));
        assert_eq!(stands(&[proven(), silent]), Some(("delta", "push_missed_changes")));
        assert_eq!(
            stands(&[refused("webhook_unsupported"), unproven()]),
            Some(("delta", "webhook_unproven"))
        );
        assert_eq!(stands(&[refused("webhook_unsupported")]), Some(("delta", "webhook_unsupported")));
        assert_eq!(stands(&[refused("webhook_unreachable")]), Some(("delta", "webhook_unreachable")));
    }
}
