//! `mailbox.backfill`: reads the mail of the past, newest first, while live mail flows.
//!
//! The invariant: it reads and writes nothing at Microsoft, it holds at most half of the mailbox's permits, and wherever
//! it is cut off the next slice goes on behind the last page that was laid down.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use followthrough::context::Context;
use followthrough::effect::Intent;
use followthrough::graph::Graph;
use followthrough::graph::arrivals::{Arrivals, Place, Window};
use followthrough::job::{Duty, Gate, Invalid, Job, STORABLE, Spec, is_storable};
use followthrough::mailbox::backfill::Stand;
use followthrough::mailbox::pages::FillPage;
use followthrough::oauth::scopes::Integration;
use followthrough::outcome::{Cause, Disposition, Failure};
use followthrough::store::backfill::{Backfill, state};
use followthrough::store::folder::Folder;
use followthrough::store::mailbox::{self, Mailbox};
use futures::future::{OptionFuture, join, join_all};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::sync::{look_at_tree, no_access, replaced};
use super::{READ, connect, said};

/// Short enough for a drain to wait for.
const SLICE: TimeDelta = TimeDelta::seconds(15);
/// Calls at once.
const LANES: u16 = 2;
/// A tree that was looked at within this is that of now.
const TREE: TimeDelta = TimeDelta::seconds(10);
/// Folders in which something is missing are read again this often.
const AGAIN: i64 = 2;

/// Fills a connected mailbox back, by days or to a moment.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MailboxBackfill {
    /// The mailbox's address or id.
    pub mailbox: String,
    /// 1 to 365 days back from when it begins; or `since`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub days: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<DateTime<Utc>>,
}

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct MailboxFilled {
    /// `completed` or `cancelled`.
    pub state: String,
    /// Different messages that Microsoft showed.
    pub found: i64,
    /// Of these, the ones that are kept, counted from what is there at the end.
    pub stored: i64,
}

impl Job for MailboxBackfill {
    const SPEC: Spec = Spec {
        kind: "mailbox.backfill",
        integration: Some(Integration::SharedMailbox),
        scopes: READ,
        gate: Gate::Mailbox,
        permits: LANES,
        duty: Some(Duty::FillMailbox),
        attempts: 8,
        timeout: Duration::from_mins(5),
        tool_pattern: connect::TOOL,
        example: r#"{"mailbox": "support@acme.example", "days": 30}"#,
    };
    type Result = MailboxFilled;

    fn check(&self) -> Result<(), Invalid> {
        if self.mailbox.is_empty() {
            return Err(Invalid::new("mailbox", "expected an address or an id"));
        }
        if self.since.is_some_and(|since| !is_storable(since)) {
            return Err(Invalid::new("since", STORABLE));
        }
        match (self.days, self.since) {
            (Some(1..=connect::MOST_DAYS), None) | (None, Some(_)) => Ok(()),
            (Some(_), None) => Err(Invalid::new("days", "expected 1 to 365 days")),
            _ => Err(Invalid::new("days", "expected either days or since")),
        }
    }

    fn tool(&self) -> std::borrow::Cow<'static, str> {
        connect::TOOL.into()
    }

    fn mailbox(&self) -> Option<&str> {
        Some(&self.mailbox)
    }

    fn render(&self) -> String {
        format!("Read the mail of the past in {}.", self.mailbox)
    }

    async fn run(&self, cx: &Context) -> Result<MailboxFilled, Failure> {
        let mailbox = super::of_payload(cx, &self.mailbox).await?;
        if !matches!(mailbox.state.as_str(), mailbox::state::CONNECTED | mailbox::state::DEGRADED) {
            // Ended meanwhile, or not begun: there is nothing to fill.
            return Ok(MailboxFilled { state: state::CANCELLED.into(), found: 0, stored: 0 });
        }
        match self.fill(cx, &mailbox).await {
            Ok(filled) => filled.ok_or_else(Failure::continues),
            Err(failure) => Err(put_off(cx, said(cx, &mailbox, failure).await)),
        }
    }
}

impl MailboxBackfill {
    /// `None` while there is more to read.
    async fn fill(&self, cx: &Context, mailbox: &Mailbox) -> Result<Option<MailboxFilled>, Failure> {
        let number = self.begin(cx, mailbox).await?;
        match cx.mailboxes().fill(mailbox, number).await? {
            Stand::Runs(backfill) => slice(cx, mailbox, &backfill).await,
            over => Ok(ended(over)),
        }
    }

    /// Begun once: a job whose backfill was cancelled begins no other, and is in no other's way.
    async fn begin(&self, cx: &Context, mailbox: &Mailbox) -> Result<i64, Failure> {
        let floor = match (self.days, self.since) {
            (Some(days), _) => cx.now() - TimeDelta::days(days.into()),
            (None, since) => since.unwrap_or(mailbox.floor),
        };
        // Exchange compares whole seconds.
        let floor = floor.trunc_subsecs(0);
        let ours = cx.mailboxes();
        let begun = |intent: Intent| async move { cx.mailboxes().begun_fill(mailbox, intent.id).await };
        let begin = |intent: Intent| async move {
            // A folder that nobody knows yet would be left out, and not be missed.
            look_at_tree(cx, &cx.graph()?.of_mailbox(&mailbox.address), mailbox, TREE).await?;
            ours.begin_fill(mailbox, intent.id, floor).await?.ok_or_else(|| {
                let message = "another backfill of this mailbox runs; cancel it first";
                Failure::reject("backfill_running", message)
            })
        };
        cx.effect("backfill").perform(begun, begin).await
    }
}

/// `None` while it runs.
fn ended(stand: Stand) -> Option<MailboxFilled> {
    match stand {
        Stand::Runs(_) => None,
        Stand::Over(one) => Some(MailboxFilled { state: one.state, found: one.found, stored: one.stored }),
        Stand::Replaced { stored } => {
            Some(MailboxFilled { state: state::CANCELLED.into(), found: stored, stored })
        }
    }
}

/// However long Microsoft is away, a backfill only waits.
fn put_off(cx: &Context, failure: Failure) -> Failure {
    let after = match failure.disposition {
        Disposition::Retry { after } => after,
        // Reading needs no room, and a mailbox is tidied up without a word to us.
        Disposition::Park(Cause::MailboxFull) => None,
        _ => return failure,
    };
    Failure {
        disposition: Disposition::Defer {
            until: cx.now() + after.unwrap_or_default().max(cx.mailboxes().pace() / 4),
        },
        ..failure
    }
}

/// As much as fits into a slice; the result when that was the end.
async fn slice(
    cx: &Context,
    mailbox: &Mailbox,
    backfill: &Backfill,
) -> Result<Option<MailboxFilled>, Failure> {
    let graph = cx.graph()?.of_mailbox(&mailbox.address);
    let until = cx.now() + SLICE;
    if backfill.expected.is_none() {
        let counts = counts(cx, &graph, mailbox, backfill).await?;
        let expected = counts.iter().map(|(_, there)| there).sum();
        cx.mailboxes().expects(backfill, expected).await?;
    }
    loop {
        let folders = cx.mailboxes().folders(mailbox).await?.into_iter().filter(Folder::fills);
        let work =
            Work { cx, graph: &graph, mailbox, backfill, until, folders: Mutex::new(folders.collect()) };
        let lanes = (0..cx.permits().min(LANES)).map(|_| work.lane());
        let mut went = Went::Through;
        for lane in join_all(lanes).await {
            went = went.max(lane?);
        }
        match went {
            Went::Stopped => {
                // It runs if a folder was deleted while a page of it was on its way.
                return Ok(ended(cx.mailboxes().fill(mailbox, backfill.number).await?));
            }
            Went::OutOfTime => return Ok(None),
            Went::Through => {}
        }
        match proof(cx, &graph, mailbox, backfill).await? {
            Proof::Whole => break,
            Proof::Missing => {}
            Proof::Open => {
                let until = cx.now() + cx.mailboxes().pace() / 4;
                return Err(Failure::later(
                    until,
                    "looks_first",
                    "its folders are looked at before they are counted again",
                ));
            }
        }
    }
    cx.mailboxes().filled(mailbox).await?;
    Ok(ended(cx.mailboxes().fill(mailbox, backfill.number).await?))
}

/// What was there when it began. Both sides are counted up to then, or live mail would always be missing in one of them.
fn span(backfill: &Backfill) -> (DateTime<Utc>, DateTime<Utc>) {
    (backfill.floor, backfill.started_at.trunc_subsecs(0))
}

/// How many each folder holds, where Microsoft counts them; a lane asks for one at a time here, too.
async fn counts(
    cx: &Context,
    graph: &Graph,
    mailbox: &Mailbox,
    backfill: &Backfill,
) -> Result<Vec<(Folder, i64)>, Failure> {
    let folders = cx.mailboxes().folders(mailbox).await?;
    let count = |folder: Folder| async move {
        let there = graph.count_arrivals(&folder.id, span(backfill)).await?;
        Ok::<_, Failure>(there.map(|there| (folder, there)))
    };
    let lanes = usize::from(cx.permits().min(LANES));
    let counted = stream::iter(folders).map(count).buffer_unordered(lanes);
    counted.try_filter_map(|one| async move { Ok(one) }).try_collect().await
}

/// What the counts of all folders say.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Proof {
    Whole,
    /// Some are looked at first.
    Open,
    /// Some are read again.
    Missing,
}

/// Is less stored than Microsoft counts? Those folders are read again, unless a look at what has changed explains it.
async fn proof(
    cx: &Context,
    graph: &Graph,
    mailbox: &Mailbox,
    backfill: &Backfill,
) -> Result<Proof, Failure> {
    let mut proof = Proof::Whole;
    let seen = seen_as_of(cx, mailbox).await?;
    for (folder, there) in counts(cx, graph, mailbox, backfill).await? {
        let stored = cx.mailboxes().stored_between(&folder, span(backfill)).await?;
        if stored >= there {
            continue;
        }
        let Some(doubted_at) = folder.doubted_at else {
            cx.mailboxes().look_first(mailbox, &folder).await?;
            proof = proof.max(Proof::Open);
            continue;
        };
        let looked = seen >= Some(doubted_at) || cx.now() > doubted_at + cx.mailboxes().pace() * 10;
        if !looked {
            proof = proof.max(Proof::Open);
        } else if folder.fill_again < AGAIN {
            tracing::warn!(there, stored, "a folder holds more than was read of it; it is read again");
            cx.mailboxes().fill_again(&folder).await?;
            proof = proof.max(Proof::Missing);
        } else {
            tracing::warn!(there, stored, "a folder is said to hold more than can be read of it");
        }
    }
    Ok(proof)
}

/// All that happened in the mailbox before then is known; `None` while something is not.
async fn seen_as_of(cx: &Context, mailbox: &Mailbox) -> Result<Option<DateTime<Utc>>, Failure> {
    if !cx.mailboxes().doubtful(mailbox, 1).await?.is_empty() {
        return Ok(None);
    }
    let folders = cx.mailboxes().folders(mailbox).await?;
    Ok(folders.iter().map(|folder| folder.polled_at).min().flatten())
}

/// How a lane ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Went {
    Through,
    OutOfTime,
    /// Cancelled, or a folder is not there any more.
    Stopped,
}

struct Work<'a> {
    cx: &'a Context,
    graph: &'a Graph,
    mailbox: &'a Mailbox,
    backfill: &'a Backfill,
    until: DateTime<Utc>,
    folders: Mutex<VecDeque<Folder>>,
}

impl Work<'_> {
    /// One folder after the other, until none is left or the slice is over.
    async fn lane(&self) -> Result<Went, Failure> {
        loop {
            let next = self.folders.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(folder) = next else { return Ok(Went::Through) };
            match self.folder(folder).await? {
                Went::Through => {}
                ended => return Ok(ended),
            }
        }
    }

    async fn folder(&self, mut folder: Folder) -> Result<Went, Failure> {
        let (Some(before), Some(floor)) = (folder.fill_before, folder.fill_floor) else {
            return Ok(Went::Through);
        };
        let window = Window { from: floor, to: before, newest_first: true };
        let mut page = self.read(&folder, window.into()).await?;
        loop {
            let before = page.next.as_ref().map(Place::at);
            let next = page.next.take().filter(|_| self.cx.now() < self.until);
            // The next page is on its way while this one is laid down.
            let (laid, ahead) = join(
                self.lay_unless_in_doubt(&folder, &page, before),
                OptionFuture::from(next.map(|next| self.read(&folder, next))),
            )
            .await;
            let laid = if let Some(laid) = laid? {
                laid
            } else {
                // Only now, for a lane makes one call at a time.
                let replaced = replaced(self.cx, self.graph, self.mailbox, &page.items).await?;
                self.lay(&folder, &page, &replaced, before).await?
            };
            if !laid {
                return Ok(Went::Stopped);
            }
            folder.fill_before = before;
            match ahead {
                Some(ahead) => page = ahead?,
                None if before.is_some() => return Ok(Went::OutOfTime),
                None => return Ok(Went::Through),
            }
        }
    }

    async fn read(&self, folder: &Folder, place: Place) -> Result<Arrivals, Failure> {
        match self.graph.arrivals(&folder.id, place).await {
            Err(error) if error.is_not_found() => match self.graph.folder("inbox").await? {
                // The folder is gone; what stood in it is found where it is now.
                Some(_) => Ok(Arrivals { items: Vec::new(), next: None, requests: 1 }),
                None => Err(no_access(error)),
            },
            read => Ok(read?),
        }
    }

    /// `None`, and nothing laid down, when an item may be one that is stored under another id.
    async fn lay_unless_in_doubt(
        &self,
        folder: &Folder,
        page: &Arrivals,
        before: Option<DateTime<Utc>>,
    ) -> Result<Option<bool>, Failure> {
        if !self.cx.mailboxes().rivals(self.mailbox, &page.items).await?.is_empty() {
            return Ok(None);
        }
        self.lay(folder, page, &[], before).await.map(Some)
    }

    /// `false` when the backfill was cancelled, or the folder deleted.
    async fn lay(
        &self,
        folder: &Folder,
        page: &Arrivals,
        replaced: &[(String, String)],
        before: Option<DateTime<Utc>>,
    ) -> Result<bool, Failure> {
        let mailboxes = self.cx.mailboxes();
        let page = FillPage {
            folder,
            told: &page.items,
            replaced,
            before,
            number: self.backfill.number,
            requests: page.requests,
        };
        let Some((_, backfill)) = mailboxes.take_fill(self.mailbox, page).await? else { return Ok(false) };
        mailboxes.tell_progress(self.mailbox, &backfill).await?;
        Ok(true)
    }
}
