//! Shared mailboxes: connected, followed, filled back, disconnected.
//!
//! The invariant: what is known of a mailbox is changed by one job at a time, and polling is the truth: nothing else is
//! believed before a poll saw it.

pub mod backfill;
pub mod connect;
pub mod disconnect;
pub mod subscriptions;
pub mod sync;
mod tree;

use followthrough::context::Context;
use followthrough::mailbox::ladder::{Capabilities, Capability, Proof};
use followthrough::outcome::{Cause, Disposition, Failure};
use followthrough::store::mailbox::Mailbox;

/// The permissions that reading a mailbox needs.
const READ: &[&str] = &["Mail.Read.Shared"];
/// These speak of the rights on the mailbox, not of the one job.
const DENIALS: &[&str] = &["no_mailbox_access", "send_as_denied", "access_denied"];

/// The mailbox that a payload names, if it is this user's.
async fn of_payload(cx: &Context, name: &str) -> Result<Mailbox, Failure> {
    let found = cx.mailboxes().find(name).await?.filter(|mailbox| mailbox.user_name == cx.user());
    found.ok_or_else(|| Failure::reject("unknown_mailbox", "this user has no such mailbox connected here"))
}

/// What a job that wrote in a mailbox has shown of it, if it is connected here. A remark: no job fails for it.
pub(crate) async fn shown<T>(
    cx: &Context,
    address: Option<&str>,
    came: &Result<T, Failure>,
    of: fn(&mut Capabilities) -> &mut Capability,
) {
    let seen = match came {
        Ok(_) => Capability::new(Proof::Proven, ""),
        Err(failure) if DENIALS.contains(&&*failure.code) => Capability::new(Proof::Refused, &failure.code),
        Err(_) => return,
    };
    let Some(address) = address else { return };
    if let Ok(Some(mailbox)) = cx.mailboxes().find(address).await
        && let Err(failure) = cx.mailboxes().learned(&mailbox, |known| *of(known) = seen.clone()).await
    {
        tracing::warn!(%failure, "what was seen of a mailbox could not be kept");
    }
}

/// A user, an administrator or an operator must act: the mailbox says so, once, and keeps its cursors.
async fn said(cx: &Context, mailbox: &Mailbox, failure: Failure) -> Failure {
    if let Disposition::Park(Cause::NeedsUser | Cause::NeedsAdmin | Cause::Operator | Cause::MailboxFull) =
        failure.disposition
        && let Err(error) = cx.mailboxes().degraded(mailbox, &failure).await
    {
        return error;
    }
    failure
}
