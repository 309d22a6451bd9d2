//! Hands out what is due: one sync of a mailbox at a time, as an ordinary job.
//!
//! The invariant: handing out is one statement, so any number of processes may do it at once. A sync that is lost is
//! found out by its job's row, never by a guess at how long it takes.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use scoped_futures::ScopedFutureExt;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::job::Duty;
use crate::outbox;
use crate::services::Services;
use crate::store::job::{self, state};
use crate::store::mailbox::{self, Mailbox};
use crate::store::{Result, Tx};
use crate::submit::{self, Wish};

const OURS: &str = "mailbox-sync/";
/// Mailboxes per look.
const MOST: i64 = 100;
/// A sync that has been out for so long is looked after.
const LONG_OUT: TimeDelta = TimeDelta::minutes(1);
/// Access that an administrator must give is looked for this often.
const PROBE: TimeDelta = TimeDelta::minutes(15);

pub async fn run(services: Arc<Services>, stop: CancellationToken) {
    if services.registry.for_duty(Duty::SyncMailbox).is_none() {
        return;
    }
    // A notification is worth as much as the next look here is near.
    let tick = (services.poll / 8).clamp(Duration::from_millis(50), Duration::from_secs(1));
    let mut look_after_at = services.clock.now();
    while !stop.is_cancelled() {
        if let Err(error) = hand_out(&services).await {
            tracing::debug!(%error, "mailboxes that are due cannot be handed out");
        }
        if services.clock.now() >= look_after_at {
            if let Err(error) = look_after(&services).await {
                tracing::debug!(%error, "mailboxes whose sync is out cannot be read");
            }
            look_after_at = services.clock.now() + LONG_OUT / 2;
        }
        tokio::select! {
            () = services.clock.sleep(tick) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// The id of a sync's job; two rounds back it is forgotten.
pub fn job_id(mailbox: &Mailbox, round: i64) -> String {
    format!("{OURS}{}/{round}", mailbox.id)
}

/// Did the fleet make this job for itself? Then its success is no news.
pub fn made(id: &str) -> bool {
    id.starts_with(OURS)
}

async fn hand_out(services: &Services) -> Result<()> {
    let now = services.clock.now();
    let (registry, handoff) = (&services.registry, &services.handoff);
    let rows = services
        .store
        .transaction("mailbox_hand_out", |tx| {
            async move {
                let mut owed = Vec::new();
                for mailbox in mailbox::hand_out(tx, now, MOST).await? {
                    job::forget(tx, &mailbox.workspace, &job_id(&mailbox, mailbox.round - 2)).await?;
                    let wish = Wish {
                        workspace: &mailbox.workspace,
                        user: &mailbox.user_name,
                        id: &job_id(&mailbox, mailbox.round),
                        payload: json!({"mailbox": mailbox.id, "round": mailbox.round}),
                    };
                    owed.extend(submit::want(tx, registry, Duty::SyncMailbox, wish, now).await?);
                }
                outbox::owe(tx, &owed, handoff, now).await
            }
            .scope_boxed()
        })
        .await?;
    handoff.give(rows);
    Ok(())
}

async fn look_after(services: &Services) -> Result<()> {
    let now = services.clock.now();
    let (registry, handoff) = (&services.registry, &services.handoff);
    let rows = services
        .store
        .transaction("mailbox_look_after", |tx| {
            async move {
                let mut owed = Vec::new();
                for mailbox in mailbox::long_out(tx, now - LONG_OUT, MOST).await? {
                    look_after_one(tx, &mailbox, now).await?;
                }
                let kinds = [Duty::ConnectMailbox, Duty::SyncMailbox, Duty::FillMailbox]
                    .map(|duty| registry.for_duty(duty));
                for kind in kinds.into_iter().flatten().map(|entry| entry.spec.kind) {
                    for row in job::waiting_for_admin(tx, kind, now - PROBE, MOST).await? {
                        owed.extend(submit::requeue(tx, &row, now).await?);
                    }
                }
                outbox::owe(tx, &owed, handoff, now).await
            }
            .scope_boxed()
        })
        .await?;
    handoff.give(rows);
    Ok(())
}

/// Its job ended without coming back: the mailbox is due again. Otherwise it is at work, or waits for its time or for
/// somebody.
async fn look_after_one(tx: &mut Tx, mailbox: &Mailbox, now: DateTime<Utc>) -> Result<()> {
    let row = job::find(tx, &mailbox.workspace, &job_id(mailbox, mailbox.round)).await?;
    if row.is_none_or(|row| state::is_final(&row.state)) {
        mailbox::come_back(tx, mailbox.id, mailbox.round, now, None).await?;
    }
    Ok(())
}
