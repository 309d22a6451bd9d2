//! `mailbox.disconnect`: ends a connected mailbox, step by step.
//!
//! The invariant: each step is written into the receipt before the next begins, so that it goes on after a crash where it
//! was; messages are kept. What Microsoft could not be asked to delete is tried again, but not for ever, and the receipt
//! says how that ended.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use followthrough::context::Context;
use followthrough::effect::Intent;
use followthrough::job::{Duty, Gate, Invalid, Job, Spec};
use followthrough::mailbox::disconnect::receipt_of;
use followthrough::outcome::{Cause, Disposition, Failure};
use followthrough::store::mailbox::{Mailbox, state};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::subscriptions;

/// Microsoft's outages last for hours. Whoever takes a consent back must not have his tokens kept for longer than a day
/// because of one, and a subscription that stays behind tells nobody anything and runs out within [`LIFE`] days.
const GIVE_UP: TimeDelta = TimeDelta::hours(24);
const LIFE: u8 = 7;
/// A look or a slice that is under way ends soon.
const UNDER_WAY: TimeDelta = TimeDelta::seconds(1);

/// Disconnects a shared mailbox: its backfill and its subscriptions end, its messages stay.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MailboxDisconnect {
    /// The mailbox's address or id.
    pub mailbox: String,
}

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct MailboxDisconnected {
    /// What was ended, and when.
    pub receipt: Value,
}

impl Job for MailboxDisconnect {
    const SPEC: Spec = Spec {
        kind: "mailbox.disconnect",
        integration: None,
        scopes: &[],
        gate: Gate::None,
        permits: 1,
        duty: Some(Duty::DisconnectMailbox),
        attempts: 8,
        timeout: Duration::from_mins(2),
        tool_pattern: "mailbox.disconnect",
        example: r#"{"mailbox": "support@acme.example"}"#,
    };
    type Result = MailboxDisconnected;

    fn check(&self) -> Result<(), Invalid> {
        if self.mailbox.is_empty() {
            Err(Invalid::new("mailbox", "expected an address or an id"))
        } else {
            Ok(())
        }
    }

    fn render(&self) -> String {
        format!("Disconnect the shared mailbox {}.", self.mailbox)
    }

    async fn run(&self, cx: &Context) -> Result<MailboxDisconnected, Failure> {
        let mailbox = self.meant(cx).await?;
        let unwound = unwind(cx, &mailbox).await;
        Ok(MailboxDisconnected { receipt: unwound.map_err(|failure| put_off(cx, failure))? })
    }
}

impl MailboxDisconnect {
    /// Decided once: after its last step the address is nobody's, or that of a mailbox which was connected since.
    async fn meant(&self, cx: &Context) -> Result<Mailbox, Failure> {
        let found = super::of_payload(cx, &self.mailbox).await.map(|mailbox| mailbox.id);
        let id = found.as_ref().map(Uuid::to_string).unwrap_or_default();
        let decided = |intent: Intent| async move { Ok(intent.request.parse().ok()) };
        let id: Uuid = cx.effect("mailbox").request(id).perform(decided, |_| async { found }).await?;
        super::of_payload(cx, &id.to_string()).await
    }
}

/// Every step from where the mailbox stands to its end; its receipt.
pub async fn unwind(cx: &Context, mailbox: &Mailbox) -> Result<Value, Failure> {
    if mailbox.state == state::DISCONNECTED {
        return Ok(receipt_of(mailbox).unwrap_or_default());
    }
    let ours = cx.mailboxes();
    let receipt = ours.disconnecting(mailbox).await?;
    if ours.at_work(mailbox).await? {
        let message = "what is under way in the mailbox ends first";
        return Err(Failure::later(cx.now() + UNDER_WAY, "mailbox_at_work", message));
    }
    let receipt = unsubscribe(cx, mailbox, receipt).await?;
    ours.disconnected(mailbox, receipt).await
}

/// However long something is away, an end that was asked for comes: it only waits.
pub fn put_off(cx: &Context, failure: Failure) -> Failure {
    let Disposition::Retry { after } = failure.disposition else { return failure };
    let until = cx.now() + after.unwrap_or_default().max(cx.mailboxes().pace());
    Failure { disposition: Disposition::Defer { until }, ..failure }
}

/// Deletes the subscriptions. While Microsoft is away the receipt says which are left and why, and it is tried again
/// until [`GIVE_UP`]; without a consent that works, they run out by themselves.
async fn unsubscribe(cx: &Context, mailbox: &Mailbox, mut receipt: Value) -> Result<Value, Failure> {
    let told = &receipt["subscriptions"];
    if told["state"] == "deleted" {
        return Ok(receipt);
    }
    let ours = cx.mailboxes();
    let known = ours.subscriptions(mailbox).await?;
    let mut deleted: Vec<Value> = told["deleted"].as_array().cloned().unwrap_or_default();
    let mut now_deleted = Vec::new();
    let ended = if known.is_empty() {
        Ok(())
    } else if let Some(graph) = ours.graph(mailbox).await? {
        subscriptions::end_of(&ours, &graph, mailbox, &mut now_deleted).await
    } else {
        Err(Failure::reject("not_connected", "there is no consent any more to delete them with"))
    };
    // The first answer counts: the second delete of what is gone says no more than that.
    for (id, status) in now_deleted {
        if deleted.iter().all(|one| one["id"] != id.as_str()) {
            deleted.push(json!({"id": id, "status": status}));
        }
    }
    let left: Vec<&str> = known
        .iter()
        .filter_map(|known| known.graph_id.as_deref())
        .filter(|id| deleted.iter().all(|one| one["id"] != *id))
        .collect();
    let Err(failure) = ended else {
        receipt["subscriptions"] = json!({"state": "deleted", "at": cx.now(), "deleted": deleted});
        ours.step(mailbox, &receipt).await?;
        return Ok(receipt);
    };
    if matches!(failure.disposition, Disposition::Interrupted | Disposition::Fenced) {
        return Err(failure);
    }
    receipt["subscriptions"] = json!({
        "state": "not_deleted", "at": cx.now(), "code": failure.code, "deleted": deleted, "not_deleted": left,
        "run_out_within_days": LIFE,
    });
    let again = passes(&failure) && cx.now() < asked_at(&receipt, mailbox) + GIVE_UP;
    receipt["subscriptions"]["tried_again"] = json!(again);
    ours.step(mailbox, &receipt).await?;
    if !again {
        return Ok(receipt);
    }
    // An operator's fault passes once it is put right, and nobody else has to know.
    let waits = matches!(failure.disposition, Disposition::Park(_));
    let disposition = if waits { Disposition::Retry { after: None } } else { failure.disposition };
    Err(put_off(cx, Failure { disposition, ..failure }))
}

/// Microsoft is away, or our registration is at fault. All else would be answered the same tomorrow.
fn passes(failure: &Failure) -> bool {
    matches!(
        failure.disposition,
        Disposition::Retry { .. } | Disposition::Defer { .. } | Disposition::Park(Cause::Operator)
    )
}

fn asked_at(receipt: &Value, mailbox: &Mailbox) -> DateTime<Utc> {
    let told = receipt["asked_at"].as_str().and_then(|at| at.parse().ok());
    told.unwrap_or(mailbox.updated_at)
}
