//! `mailbox.sync`: looks at what is due in one mailbox. Made by the fleet.
//!
//! The invariant: a folder's cursor moves only with the rows of the page it came with. A fault leaves every cursor where
//! the last page put it, so that the next look goes on there.

mod attachments;
mod folder;

use std::time::Duration;

use chrono::TimeDelta;
use followthrough::context::Context;
use followthrough::graph::Graph;
use followthrough::graph::changes::Told;
use followthrough::job::{Duty, Gate, Invalid, Job, Spec};
use followthrough::mailbox::ladder::{Capabilities, Capability, Proof};
use followthrough::oauth::scopes::Integration;
use followthrough::outcome::{Cause, Classify as _, Disposition, Failure};
use followthrough::store::folder::Folder;
use followthrough::store::mailbox::{Mailbox, state};
use followthrough::store::message::Message;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{READ, connect, said, subscriptions, tree};
use folder::Look;
pub(super) use folder::replaced;

/// The tree changes rarely; a folder that is new to us waits this long at most.
const TREE: TimeDelta = TimeDelta::minutes(10);
/// Messages that left their folder and are looked for by id in one run.
const DOUBTS: i64 = 200;
/// A look that takes longer goes on as another.
const SLICE: TimeDelta = TimeDelta::seconds(60);
/// More than these are not each for themselves.
const MOST_FAILED: usize = 3;
/// A sweep that takes longer goes on after the next look at what is new.
const SWEEP: TimeDelta = TimeDelta::seconds(15);

/// Keeps a connected mailbox in step. The fleet makes these by itself.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MailboxSync {
    /// The mailbox's address or id.
    pub mailbox: String,
    /// Which of the fleet's looks this is.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub round: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
fn is_zero(round: &i64) -> bool {
    *round == 0
}

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct MailboxSynced {
    /// Messages that are new or different.
    pub changes: usize,
}

impl Job for MailboxSync {
    const SPEC: Spec = Spec {
        kind: "mailbox.sync",
        integration: Some(Integration::SharedMailbox),
        scopes: READ,
        gate: Gate::Mailbox,
        permits: 1,
        duty: Some(Duty::SyncMailbox),
        attempts: 8,
        timeout: Duration::from_mins(5),
        tool_pattern: connect::TOOL,
        example: r#"{"mailbox": "support@acme.example"}"#,
    };
    type Result = MailboxSynced;

    fn check(&self) -> Result<(), Invalid> {
        if self.mailbox.is_empty() {
            Err(Invalid::new("mailbox", "expected an address or an id"))
        } else {
            Ok(())
        }
    }

    fn tool(&self) -> std::borrow::Cow<'static, str> {
        connect::TOOL.into()
    }

    fn mailbox(&self) -> Option<&str> {
        Some(&self.mailbox)
    }

    fn render(&self) -> String {
        format!("Look at what is new in {}.", self.mailbox)
    }

    async fn run(&self, cx: &Context) -> Result<MailboxSynced, Failure> {
        let mailbox = super::of_payload(cx, &self.mailbox).await?;
        if !matches!(mailbox.state.as_str(), state::CONNECTED | state::DEGRADED) {
            return Ok(MailboxSynced { changes: 0 });
        }
        match look(cx, &mailbox).await {
            Ok(seen) => {
                if mailbox.state == state::DEGRADED {
                    cx.mailboxes().opened(&mailbox, &Capabilities::read(&mailbox.capabilities)).await?;
                }
                let round = if self.round == 0 { mailbox.round } else { self.round };
                // One folder that fails is no reason to ask for it all the time.
                let pause = if seen.failed == 0 { Duration::ZERO } else { cx.mailboxes().pace() };
                cx.mailboxes().come_back(&mailbox, round, pause).await?;
                Ok(MailboxSynced { changes: seen.changes })
            }
            Err(failure) => Err(put_off(cx, said(cx, &mailbox, failure).await)),
        }
    }
}

/// What passes by itself is no failed attempt of a look: the same one, a poll later. So is a refusal: nothing that a
/// publisher said could be at fault, and a look that is given up would leave the mailbox unseen.
fn put_off(cx: &Context, failure: Failure) -> Failure {
    let after = match failure.disposition {
        Disposition::Retry { after } => after,
        // Reading needs no room, and a mailbox is tidied up without a word to us.
        Disposition::Reject | Disposition::Park(Cause::MailboxFull) => None,
        _ => return failure,
    };
    let wait = after.unwrap_or_default().max(cx.mailboxes().pace());
    Failure { disposition: Disposition::Defer { until: cx.now() + wait }, ..failure }
}

/// What one look came to.
#[derive(Default)]
struct Seen {
    changes: usize,
    refused: Option<String>,
    /// Folders with which something is wrong: they stand in no other's way.
    failed: usize,
}

impl Seen {
    /// Gives the failure back when it concerns the whole mailbox.
    async fn add<T>(
        &mut self,
        cx: &Context,
        folder: &Folder,
        came: Result<T, Failure>,
    ) -> Result<Option<T>, Failure> {
        match came {
            Ok(came) => Ok(Some(came)),
            Err(failure) if is_of_folder(folder, &failure) && self.failed < MOST_FAILED => {
                cx.mailboxes().folder_failed(folder, &failure).await?;
                self.failed += 1;
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }
}

/// A network that fails, a throttle and what a person must do concern all folders; a refusal of the Inbox does, too.
fn is_of_folder(folder: &Folder, failure: &Failure) -> bool {
    match failure.disposition {
        Disposition::Reject => true,
        Disposition::Retry { .. } => {
            failure.cool_down.is_none() && !matches!(&*failure.code, "unreachable" | "unanswered")
        }
        Disposition::Park(Cause::NeedsAdmin) => !folder.is_well_known("inbox"),
        _ => false,
    }
}

async fn look(cx: &Context, mailbox: &Mailbox) -> Result<Seen, Failure> {
    let graph = cx.graph()?.of_mailbox(&mailbox.address);
    look_at_tree(cx, &graph, mailbox, TREE).await?;
    let mut seen = Seen::default();
    let look = Look { cx, graph: &graph, mailbox, until: cx.now() + SLICE };
    for folder in cx.mailboxes().folders(mailbox).await? {
        if cx.now() > look.until {
            break;
        }
        if folder.next_look(cx.now()) <= cx.now() {
            let came = look.at(folder.clone()).await;
            if let Some(looked) = seen.add(cx, &folder, came).await? {
                seen.changes += looked.changes;
                seen.refused = seen.refused.or(looked.refused);
            }
        }
    }
    // What is new in any folder comes before what is swept.
    let until = cx.now() + SWEEP;
    for folder in cx.mailboxes().folders(mailbox).await? {
        let came = look.sweep(folder.clone(), until).await;
        seen.changes += seen.add(cx, &folder, came).await?.unwrap_or_default();
    }
    look_for_doubtful(cx, &graph, mailbox).await?;
    tell_rung(cx, mailbox, seen.refused.take()).await?;
    attachments::fetch(cx, &graph, mailbox).await?;
    // Nothing depends on them, so nothing waits for them.
    if mailbox.tend_at.is_none_or(|at| at <= cx.now()) {
        subscriptions::tend(cx, &graph, mailbox).await?;
    }
    Ok(seen)
}

/// Unless it was looked at within `fresh`.
pub(super) async fn look_at_tree(
    cx: &Context,
    graph: &Graph,
    mailbox: &Mailbox,
    fresh: TimeDelta,
) -> Result<(), Failure> {
    if mailbox.tree_at.is_some_and(|at| cx.now() - at < fresh) && mailbox.state == state::CONNECTED {
        return Ok(());
    }
    let known: Vec<(String, String)> = cx
        .mailboxes()
        .folders(mailbox)
        .await?
        .into_iter()
        .filter_map(|folder| Some((folder.id, folder.well_known?)))
        .collect();
    let seen = tree::read(graph, &known).await.map_err(no_access)?;
    cx.mailboxes().saw_tree(mailbox, &seen).await
}

/// Exchange says "not found" of a mailbox that is not shared any more.
pub(super) fn no_access(error: followthrough::graph::GraphError) -> Failure {
    if error.is_not_found() {
        let message = "the user may not read the mailbox any more: grant Full Access on it in Exchange";
        return Failure { code: "no_mailbox_access".into(), message: message.into(), ..Failure::from(error) }
            .or_park(Cause::NeedsAdmin);
    }
    error.into()
}

/// Whatever left its folder stands in another one, or nowhere.
async fn look_for_doubtful(cx: &Context, graph: &Graph, mailbox: &Mailbox) -> Result<(), Failure> {
    let until = cx.now() + SWEEP;
    for message in cx.mailboxes().doubtful(mailbox, DOUBTS).await? {
        if cx.now() > until {
            break;
        }
        let found = match graph.look_for(&message.id).await {
            // It is there, and cannot be had.
            Err(error) if error.is_too_much() => continue,
            found => found?,
        };
        match found {
            Some(told) => drop(cx.mailboxes().take_found(mailbox, &told, &[]).await?),
            None => match renamed(cx, graph, mailbox, &message).await? {
                Some(told) => {
                    let replaced = [(told.id.clone(), message.id)];
                    cx.mailboxes().take_found(mailbox, &told, &replaced).await?;
                }
                None => cx.mailboxes().take_gone(mailbox, &message).await?,
            },
        }
    }
    Ok(())
}

/// Where a message stands that Outlook for the desktop moved: under an id that is new to us, in a folder whose turn to
/// be looked at may come long after the one it left.
async fn renamed(
    cx: &Context,
    graph: &Graph,
    mailbox: &Mailbox,
    message: &Message,
) -> Result<Option<Told>, Failure> {
    let Some(name) = &message.internet_message_id else { return Ok(None) };
    let mut found = graph.named(name).await?;
    let known = cx.mailboxes().known(mailbox, &found).await?;
    found.retain(|told| !known.contains(&told.id));
    Ok(found.pop())
}

/// Which rung the mailbox stands on, when the answers of this look say something new about it.
async fn tell_rung(cx: &Context, mailbox: &Mailbox, refused: Option<String>) -> Result<(), Failure> {
    // As it is by now: what looks after the subscriptions writes down what it found out, too.
    let Some(mailbox) = &cx.mailboxes().find(&mailbox.id.to_string()).await? else { return Ok(()) };
    let delta = match &refused {
        Some(reason) => Capability::new(Proof::Refused, reason),
        None => Capability::new(Proof::Proven, ""),
    };
    if let Some(reason) = refused {
        cx.mailboxes().stands(mailbox, "list", &reason).await?;
    } else if mailbox.rung == "list" || mailbox.rung_reason == "not_tried" {
        cx.mailboxes().stands(mailbox, "delta", "webhook_unproven").await?;
    }
    cx.mailboxes().learned(mailbox, |known| known.delta = delta.clone()).await
}

/// A refusal that is about following changes, not about the mailbox: the folder is listed instead. Returns why.
fn refuses_delta(error: &followthrough::graph::GraphError) -> Option<String> {
    let status = error.status()?.as_u16();
    let full = error.code() == "mailbox_full";
    (full || matches!(status, 400 | 403 | 404 | 405 | 501)).then(|| format!("delta_refused_{status}"))
}
