//! The end of a mailbox, step by step.
//!
//! The invariant: each step is committed with what the receipt says of it, and any of them may be done again. No mail is
//! laid down once the end was asked for, and what was under way by then has ended before anything is deleted.

use chrono::{DateTime, Utc};
use scoped_futures::ScopedFutureExt;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Mailboxes;
use super::backfill::end;
use super::life::{event, waiting};
use crate::job::Duty;
use crate::oauth::scopes::Integration;
use crate::outbox;
use crate::outcome::Failure;
use crate::registry::Registry;
use crate::store::backfill::{self, state as filling};
use crate::store::job::{self, Ending};
use crate::store::mailbox::{self, Mailbox};
use crate::store::outbox::Owed;
use crate::store::{Result, StoreError, Tx, connection, folder, gate, notice, subscription};
use crate::submit;

/// What is done in a mailbox while it is connected.
const WORK: [Duty; 3] = [Duty::ConnectMailbox, Duty::SyncMailbox, Duty::FillMailbox];

/// Nothing new is begun in it from now on, its backfill ends, and nobody waits for it any more. Whoever asks again
/// changes nothing.
pub(crate) async fn begin(
    tx: &mut Tx,
    registry: &Registry,
    mailbox: &Mailbox,
    now: DateTime<Utc>,
) -> Result<Vec<Owed>> {
    let mut owed = Vec::new();
    if mailbox::disconnecting(tx, mailbox.id, now).await? {
        owed.extend(give_up_waiting(tx, registry, mailbox, now).await?);
    }
    let row = mailbox::get(tx, mailbox.id).await?;
    let mut receipt = receipt_of(&row).unwrap_or_else(|| json!({"mailbox": row.id, "asked_at": now}));
    // One that began in the very moment ends here, too.
    let cancelled = end(tx, mailbox, filling::CANCELLED, now).await?;
    if !cancelled.is_empty() {
        let found = backfill::find(tx, mailbox.id).await?.map(|ended| ended.found);
        receipt["backfill"] = json!({"cancelled_at": now, "found": found});
        owed.extend(cancelled);
    }
    mailbox::receipt(tx, mailbox.id, &receipt.to_string(), now).await?;
    Ok(owed)
}

/// What its disconnect has come to.
pub fn receipt_of(mailbox: &Mailbox) -> Option<Value> {
    serde_json::from_str(mailbox.receipt.as_deref()?).ok()
}

impl Mailboxes {
    /// The first step. Gives what is known of the steps so far.
    pub async fn disconnecting(&self, mailbox: &Mailbox) -> Result<Value, Failure> {
        let now = self.now();
        let (registry, handoff, store) =
            (&self.services.registry, &self.services.handoff, &self.services.store);
        let begun: Result<_, StoreError> = store
            .transaction("mailbox_disconnecting", |tx| {
                async move {
                    let owed = begin(tx, registry, mailbox, now).await?;
                    let receipt = receipt_of(&mailbox::get(tx, mailbox.id).await?);
                    Ok((receipt.unwrap_or_default(), outbox::owe(tx, &owed, handoff, now).await?))
                }
                .scope_boxed()
            })
            .await;
        let (receipt, rows) = begun?;
        handoff.give(rows);
        Ok(receipt)
    }

    /// Does a look at it, or a slice of its backfill, still run? It began before the end was asked for, and may be
    /// making a subscription.
    pub async fn at_work(&self, mailbox: &Mailbox) -> Result<bool, Failure> {
        let now = self.now();
        let (kinds, store) = (&self.services.registry.kinds_for(&WORK), &self.services.store);
        let (workspace, user) = (mailbox.workspace.as_str(), mailbox.user_name.as_str());
        let runs: Result<_, StoreError> = store
            .read(|tx| {
                async move {
                    let through =
                        connection::find_for(tx, workspace, user, Integration::SharedMailbox).await?;
                    let Some(tenant) = through.and_then(|through| through.tenant_id) else {
                        return Ok(false);
                    };
                    let gate = gate::of_mailbox(&tenant, &mailbox.address);
                    job::runs_at(tx, &gate, (workspace, user), kinds, now).await
                }
                .scope_boxed()
            })
            .await;
        Ok(runs?)
    }

    /// A step is done.
    pub async fn step(&self, mailbox: &Mailbox, receipt: &Value) -> Result<(), Failure> {
        let (id, now, text) = (mailbox.id, self.now(), receipt.to_string());
        let text = text.as_str();
        let store = &self.services.store;
        let written: Result<_, StoreError> = store
            .transaction("mailbox_receipt", |tx| {
                async move { mailbox::receipt(tx, id, text, now).await }.scope_boxed()
            })
            .await;
        Ok(written?)
    }

    /// The end: address, cursors and subscriptions are forgotten, messages stay, the receipt is told. Gives the receipt
    /// that was told, whoever came first.
    pub async fn disconnected(&self, mailbox: &Mailbox, mut receipt: Value) -> Result<Value, Failure> {
        let (id, now) = (mailbox.id, self.now());
        receipt["disconnected_at"] = json!(now);
        let (handoff, store, told) = (&self.services.handoff, &self.services.store, &receipt);
        let ended: Result<_, StoreError> = store
            .transaction("mailbox_disconnected", |tx| {
                async move {
                    let mut owed = Vec::new();
                    if mailbox::disconnected(tx, id, &told.to_string(), now).await? {
                        forget(tx, id).await?;
                        owed.push(event(mailbox, "disconnected", json!({"receipt": told}), now));
                    }
                    let kept = receipt_of(&mailbox::get(tx, id).await?);
                    Ok((kept, outbox::owe(tx, &owed, handoff, now).await?))
                }
                .scope_boxed()
            })
            .await;
        let (kept, rows) = ended?;
        handoff.give(rows);
        Ok(kept.unwrap_or(receipt))
    }
}

/// Notifications of what could not be deleted come from a subscription that nobody knows.
async fn forget(tx: &mut Tx, mailbox: Uuid) -> Result<()> {
    folder::forget(tx, mailbox).await?;
    subscription::forget(tx, mailbox).await?;
    notice::forget(tx, mailbox).await
}

/// The jobs that wait for its access end, and say so.
async fn give_up_waiting(
    tx: &mut Tx,
    registry: &Registry,
    mailbox: &Mailbox,
    now: DateTime<Utc>,
) -> Result<Vec<Owed>> {
    let mut owed = Vec::new();
    for row in waiting(tx, registry, mailbox, &WORK).await? {
        let message = "the mailbox was disconnected before its access was given";
        let ending = Ending::last(&row, job::state::REJECTED, "mailbox_disconnected", message);
        if job::end_unheld(tx, &ending, None, now).await? {
            let told = json!({"code": "mailbox_disconnected"});
            owed.push(submit::ended(&row, job::state::REJECTED, told, now));
        }
    }
    Ok(owed)
}
