//! Answers of Microsoft, laid down: rows, cursor and events in one transaction.
//!
//! The invariant: the cursor is written first, under its version, and nothing is when somebody else moved it or when the
//! mailbox is being ended. An id that left its folder is only doubted here; what became of it is found out by id.

use std::collections::{BTreeSet, HashMap, HashSet};

use chrono::{DateTime, Utc};
use scoped_futures::ScopedFutureExt;
use serde_json::json;

use super::Mailboxes;
use super::attachments::Attaching;
use super::content::{Detail, Laid, differs, laid_over};
use crate::event::Event;
use crate::graph::changes::Told;
use crate::outbox;
use crate::outcome::Failure;
use crate::store::backfill::{self, Backfill};
use crate::store::folder::{self, Folder};
use crate::store::mailbox::{self, Mailbox};
use crate::store::message::{self, Mark, Message, PRESENT, REMOVED};
use crate::store::outbox::Owed;
use crate::store::{StoreError, Tx, attachment};

/// What one page changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Taken {
    pub created: Vec<String>,
    pub updated: Vec<String>,
    /// Not seen by this backfill before.
    pub found: usize,
    /// Said to be gone, and never heard of.
    pub unknown: Vec<String>,
}

impl Taken {
    pub fn changes(&self) -> usize {
        self.created.len() + self.updated.len()
    }
}

/// One page of a folder, and where the folder is followed from after it.
pub struct PollPage<'a> {
    pub folder: &'a Folder,
    pub told: &'a [Told],
    /// Ids that took the place of others: new, old.
    pub replaced: &'a [(String, String)],
    /// The page belongs to the folder's sweep, and is its last one when `true`.
    pub sweep: Option<bool>,
}

/// One page of a backfill.
pub struct FillPage<'a> {
    pub folder: &'a Folder,
    pub told: &'a [Told],
    pub replaced: &'a [(String, String)],
    /// Where it goes on in this folder; empty when the folder is done.
    pub before: Option<DateTime<Utc>>,
    pub number: i64,
    pub requests: usize,
}

impl Mailboxes {
    /// Lays down a page of a poll.
    pub async fn take(&self, mailbox: &Mailbox, page: PollPage<'_>) -> Result<Taken, Failure> {
        let (now, most, page) = (self.now(), self.services.attachment_bytes, &page);
        let (handoff, store) = (&self.services.handoff, &self.services.store);
        let taken: Result<_, StoreError> = store
            .transaction("mailbox_page", |tx| {
                async move {
                    if !mailbox::hold(tx, mailbox.id).await? || !folder::advance(tx, page.folder, now).await?
                    {
                        return Ok(None);
                    }
                    let mark = page.sweep.map(|_| (Mark::Sweep, page.folder.sweep));
                    let laid = Laying { mailbox, folder: &page.folder.id, mark, past: false, most, now };
                    let (taken, owed) = laid.lay(tx, page.told, page.replaced).await?;
                    if page.sweep == Some(true) {
                        let folder = page.folder;
                        let span = folder.sweep_floor.zip(folder.sweep_from);
                        if let Some(span) = span {
                            message::doubt_unseen(tx, mailbox.id, &folder.id, folder.sweep, span, now)
                                .await?;
                        }
                    }
                    let rows = outbox::owe(tx, &owed, handoff, now).await?;
                    Ok(Some((taken, rows)))
                }
                .scope_boxed()
            })
            .await;
        let Some((taken, rows)) = taken? else {
            return Err(Failure::retry(
                "cursor_moved",
                "another sync went on with this folder, or the mailbox ends",
            ));
        };
        handoff.give(rows);
        Ok(taken)
    }

    /// Lays down a page of a backfill; `None` when it was cancelled, somebody else went on with it, or the mailbox ends.
    pub async fn take_fill(
        &self,
        mailbox: &Mailbox,
        page: FillPage<'_>,
    ) -> Result<Option<(Taken, Backfill)>, Failure> {
        let (now, most, page) = (self.now(), self.services.attachment_bytes, &page);
        let (handoff, store) = (&self.services.handoff, &self.services.store);
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let taken: Result<_, StoreError> = store
            .transaction("backfill_page", |tx| {
                async move {
                    let held = mailbox::hold(tx, mailbox.id).await?;
                    if !held || !folder::fill(tx, page.folder, page.before, now).await? {
                        return Ok(None);
                    }
                    let mark = Some((Mark::Backfill, page.number));
                    let laid = Laying { mailbox, folder: &page.folder.id, mark, past: true, most, now };
                    let (taken, owed) = laid.lay(tx, page.told, page.replaced).await?;
                    let counted = (count(taken.found), count(page.requests));
                    let counted = backfill::count(tx, mailbox.id, page.number, counted, now).await?;
                    // A page that comes after the cancelling is stored all the same: its rows are true.
                    let Some(backfill) = counted else { return Ok(None) };
                    let rows = outbox::owe(tx, &owed, handoff, now).await?;
                    Ok(Some((taken, backfill, rows)))
                }
                .scope_boxed()
            })
            .await;
        let Some((taken, backfill, rows)) = taken? else { return Ok(None) };
        handoff.give(rows);
        Ok(Some((taken, backfill)))
    }

    /// A message that was looked for stands in the mailbox; `replaced` names it where it goes by a new id: new, old.
    pub async fn take_found(
        &self,
        mailbox: &Mailbox,
        told: &Told,
        replaced: &[(String, String)],
    ) -> Result<Taken, Failure> {
        let (now, most) = (self.now(), self.services.attachment_bytes);
        let (handoff, store) = (&self.services.handoff, &self.services.store);
        let taken: Result<_, StoreError> = store
            .transaction("mailbox_found", |tx| {
                async move {
                    if !mailbox::hold(tx, mailbox.id).await? {
                        return Ok((Taken::default(), Vec::new()));
                    }
                    let laid = Laying { mailbox, folder: "", mark: None, past: false, most, now };
                    let (taken, owed) = laid.lay(tx, std::slice::from_ref(told), replaced).await?;
                    let rows = outbox::owe(tx, &owed, handoff, now).await?;
                    Ok((taken, rows))
                }
                .scope_boxed()
            })
            .await;
        let (taken, rows) = taken?;
        handoff.give(rows);
        Ok(taken)
    }

    /// A message that was looked for by id stands nowhere any more.
    pub async fn take_gone(&self, mailbox: &Mailbox, message: &Message) -> Result<(), Failure> {
        let now = self.now();
        let (handoff, store) = (&self.services.handoff, &self.services.store);
        let rows: Result<_, StoreError> = store
            .transaction("mailbox_gone", |tx| {
                async move {
                    let mut owed = Vec::new();
                    if mailbox::hold(tx, mailbox.id).await?
                        && message::remove(tx, mailbox.id, &message.id, now).await?
                    {
                        owed.push(event(mailbox, "removed", message, false, now));
                    }
                    outbox::owe(tx, &owed, handoff, now).await
                }
                .scope_boxed()
            })
            .await;
        handoff.give(rows?);
        Ok(())
    }

    /// Messages that left their folder and were not looked for yet.
    pub async fn doubtful(&self, mailbox: &Mailbox, limit: i64) -> Result<Vec<Message>, Failure> {
        let id = mailbox.id;
        let store = &self.services.store;
        let rows: Result<_, StoreError> =
            store.read(|tx| async move { message::doubtful(tx, id, limit).await }.scope_boxed()).await;
        Ok(rows?)
    }

    /// Which of these are known.
    pub async fn known(&self, mailbox: &Mailbox, told: &[Told]) -> Result<HashSet<String>, Failure> {
        Ok(self.rows(mailbox, told).await?.into_iter().map(|row| row.id).collect())
    }

    /// Which of these are known with all that is kept of them. A delta tells of no attachments: of a draft that got its
    /// first one, or was sent, all is read anew.
    pub async fn kept_whole(&self, mailbox: &Mailbox, told: &[Told]) -> Result<HashSet<String>, Failure> {
        let rows = self.rows(mailbox, told).await?;
        let told: HashMap<&str, &Told> = told.iter().map(|one| (one.id.as_str(), one)).collect();
        let whole = |row: &Message| {
            let Some(one) = told.get(row.id.as_str()) else { return false };
            let attached = one.flag("hasAttachments") == Some(true);
            one.flag("isDraft").is_none_or(|draft| draft == row.is_draft)
                && (!attached || !Detail::read(&row.detail).attachments.is_empty())
        };
        Ok(rows.into_iter().filter(whole).map(|row| row.id).collect())
    }

    async fn rows(&self, mailbox: &Mailbox, told: &[Told]) -> Result<Vec<Message>, Failure> {
        let ids: Vec<String> = told.iter().map(|one| one.id.clone()).collect();
        let (id, ids) = (mailbox.id, &ids);
        let store = &self.services.store;
        let rows: Result<_, StoreError> =
            store.read(|tx| async move { message::by_ids(tx, id, ids).await }.scope_boxed()).await;
        Ok(rows?)
    }

    /// Messages that may be known under other ids: new, old. The old ones are to be looked for.
    pub async fn rivals(&self, mailbox: &Mailbox, told: &[Told]) -> Result<Vec<(String, String)>, Failure> {
        let known = self.known(mailbox, told).await?;
        let new: Vec<(&str, &str)> = told
            .iter()
            .filter(|one| !one.removed && !known.contains(&one.id))
            .filter_map(|one| Some((one.id.as_str(), one.text("internetMessageId")?)))
            .collect();
        let names: BTreeSet<String> = new.iter().map(|(_, name)| (*name).to_owned()).collect();
        let (id, names) = (mailbox.id, &names.into_iter().collect::<Vec<_>>());
        let store = &self.services.store;
        let named: Result<_, StoreError> =
            store.read(|tx| async move { message::named(tx, id, names).await }.scope_boxed()).await;
        let here: HashSet<&str> = told.iter().filter(|one| !one.removed).map(|one| one.id.as_str()).collect();
        let mut old: HashMap<String, Vec<String>> = HashMap::new();
        for (id, name) in named?.into_iter().filter(|(id, _)| !here.contains(id.as_str())) {
            old.entry(name).or_default().push(id);
        }
        let pairs = new.iter().flat_map(|(new, name)| {
            let old = old.get(*name).map(Vec::as_slice).unwrap_or_default();
            old.iter().map(|old| ((*new).to_owned(), old.clone()))
        });
        Ok(pairs.collect())
    }
}

/// How told items become rows, of a mailbox that is held.
struct Laying<'a> {
    mailbox: &'a Mailbox,
    /// Where they stand, unless they say so themselves.
    folder: &'a str,
    mark: Option<(Mark, i64)>,
    /// Mail of the past: its events say so.
    past: bool,
    /// Attachments up to this size are wanted with their content.
    most: u32,
    now: DateTime<Utc>,
}

impl Laying<'_> {
    async fn lay(
        &self,
        tx: &mut Tx,
        told: &[Told],
        replaced: &[(String, String)],
    ) -> Result<(Taken, Vec<Owed>), StoreError> {
        let id = self.mailbox.id;
        for (new, old) in replaced {
            message::rename(tx, id, old, new).await?;
            attachment::rename_message(tx, id, old, new).await?;
        }
        // The same item may come several times: the last word counts.
        let mut last: HashMap<&str, &Told> = HashMap::new();
        let mut order = Vec::new();
        for one in told {
            if last.insert(&one.id, one).is_none() {
                order.push(one.id.clone());
            }
        }
        let known: HashMap<String, Message> =
            message::by_ids(tx, id, &order).await?.into_iter().map(|row| (row.id.clone(), row)).collect();
        let (mut taken, mut owed) = (Taken::default(), Vec::new());
        let (mut written, mut as_it_was, mut left) = (Vec::new(), Vec::new(), Vec::new());
        let mut attaching = Attaching::default();
        for one in order.iter().filter_map(|id| last.get(id.as_str())) {
            let before = known.get(&one.id);
            if one.removed {
                match before {
                    Some(_) => left.push(one.id.clone()),
                    None => taken.unknown.push(one.id.clone()),
                }
                continue;
            }
            let laid = laid_over(before, one, id, self.folder, self.now);
            let Some(Laid { mut row, attached }) = laid else {
                tracing::warn!("a message without its time of arrival is passed over");
                continue;
            };
            if let Some(attached) = attached {
                let renamed = replaced.iter().any(|(new, _)| *new == row.id);
                attaching.add(&row, attached, renamed, self.most);
            }
            if let Some((mark, number)) = self.mark {
                if mark == Mark::Backfill && row.backfill != number {
                    taken.found += 1;
                }
                *match mark {
                    Mark::Sweep => &mut row.sweep,
                    Mark::Backfill => &mut row.backfill,
                } = number;
            }
            match before {
                Some(before) if before.state == PRESENT && !differs(before, &row) => {
                    as_it_was.push(row.id);
                    continue;
                }
                Some(before) if before.state != REMOVED => {
                    // One that was doubted and is found as it was is no news.
                    if differs(&Message { state: PRESENT.to_owned(), ..before.clone() }, &row) {
                        owed.push(event(self.mailbox, "updated", &row, self.past, self.now));
                    }
                    taken.updated.push(row.id.clone());
                }
                _ => {
                    owed.push(event(self.mailbox, "created", &row, self.past, self.now));
                    taken.created.push(row.id.clone());
                }
            }
            written.push(row);
        }
        let mut rest = written.as_slice();
        while !rest.is_empty() {
            // Few sizes are few statements to prepare.
            let (some, after) = rest.split_at(1 << rest.len().min(64).ilog2());
            message::write(tx, some).await?;
            rest = after;
        }
        if let Some((mark, number)) = self.mark {
            message::mark(tx, id, &as_it_was, mark, number).await?;
        }
        message::doubt(tx, id, self.folder, &left, self.now).await?;
        attaching.lay(tx, id, self.now).await?;
        Ok((taken, owed))
    }
}

/// Content is read over the API by those who may.
fn event(mailbox: &Mailbox, what: &str, message: &Message, past: bool, now: DateTime<Utc>) -> Owed {
    Event {
        kind: &format!("mailbox.message.{what}"),
        about: "mailbox",
        subject: &mailbox.id.to_string(),
        workspace: &mailbox.workspace,
        traceparent: None,
        data: json!({
            "mailbox": mailbox.id,
            "message": message.id,
            "folder": message.folder_id,
            "internet_message_id": message.internet_message_id,
            "conversation_id": message.conversation_id,
            "received_at": message.received_at,
            "is_read": message.is_read,
            "is_draft": message.is_draft,
            "backfill": past,
        }),
        now,
    }
    .owed()
}
