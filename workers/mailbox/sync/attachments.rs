//! The content of attachments, once the folders were looked at: one after the other, the newest message's first.
//!
//! The invariant: live mail never waits for it, and no attachment stands in the way of another. What is about the mailbox
//! as a whole is found out by the next poll.

use chrono::TimeDelta;
use followthrough::context::Context;
use followthrough::graph::{Graph, GraphError};
use followthrough::mailbox::attachments::Fetched;
use followthrough::outcome::{Classify as _, Disposition, Failure};
use followthrough::store::mailbox::Mailbox;

/// The rest is for the next sync.
const SLICE: TimeDelta = TimeDelta::seconds(10);

pub(super) async fn fetch(cx: &Context, graph: &Graph, mailbox: &Mailbox) -> Result<(), Failure> {
    let ours = cx.mailboxes();
    let until = cx.now() + SLICE;
    let most = usize::try_from(ours.attachment_bytes()).unwrap_or(usize::MAX);
    while let Some(wanted) = ours.next_wanted(mailbox).await? {
        let fetched = match graph.attachment_content(&wanted.message_id, &wanted.id, most).await {
            Ok(Some(content)) => Fetched::Content(content),
            Ok(None) => Fetched::Gone,
            Err(GraphError::NoToken(failure)) => return Err(failure),
            // No fault of the attachment, and all who wait for the mailbox must hear of it.
            Err(error) if error.cool_down().is_some() => return Err(error.into()),
            Err(error) if error.disposition() == Disposition::Reject => {
                Fetched::Refused(error.code().into_owned())
            }
            Err(error) => Fetched::Failed(error.code().into_owned()),
        };
        ours.fetched(&wanted, &fetched).await?;
        if matches!(fetched, Fetched::Failed(_)) || cx.now() > until || ours.is_due(mailbox).await? {
            break;
        }
    }
    Ok(())
}
