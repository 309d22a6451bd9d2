//! The mail of the past: begun once, counted page by page, cancelled by a word.
//!
//! The invariant: a backfill belongs to the job that began it; whoever comes with another one finds it busy.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use scoped_futures::ScopedFutureExt;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Mailboxes;
use super::life::event;
use crate::outbox;
use crate::outcome::Failure;
use crate::store::backfill::{self, Backfill, state};
use crate::store::folder::{self, Folder};
use crate::store::mailbox::{self, Mailbox};
use crate::store::{StoreError, Tx, message};

/// Mail may arrive with a time a little ahead of ours.
pub(super) const AHEAD: TimeDelta = TimeDelta::minutes(5);
/// How often its progress is told.
const TELL: TimeDelta = TimeDelta::seconds(5);

#[derive(Debug, Clone)]
pub enum Stand {
    Runs(Backfill),
    Over(Backfill),
    /// Cancelled, and another one was begun since.
    Replaced {
        stored: i64,
    },
}

impl Mailboxes {
    /// Begins a backfill for this job, or finds the one it began; its number, or `None` while another one runs.
    pub async fn begin_fill(
        &self,
        mailbox: &Mailbox,
        job: Uuid,
        floor: DateTime<Utc>,
    ) -> Result<Option<i64>, Failure> {
        let (id, now) = (mailbox.id, self.now());
        let store = &self.services.store;
        let begun: Result<_, StoreError> = store
            .transaction("backfill_begin", |tx| {
                async move {
                    if let Some(known) = backfill::find(tx, id).await?.filter(|known| known.id == job) {
                        return Ok(Some(known.number));
                    }
                    let Some(begun) = backfill::begin(tx, id, job, floor, now).await? else {
                        return Ok(None);
                    };
                    folder::begin_fill(tx, id, now + AHEAD, floor).await?;
                    Ok(Some(begun.number))
                }
                .scope_boxed()
            })
            .await;
        Ok(begun?)
    }

    /// The number of the one that this job began, while it is the mailbox's last.
    pub async fn begun_fill(&self, mailbox: &Mailbox, job: Uuid) -> Result<Option<i64>, Failure> {
        let last = self.last_fill(mailbox).await?;
        Ok(last.filter(|last| last.id == job).map(|last| last.number))
    }

    /// What has become of one.
    pub async fn fill(&self, mailbox: &Mailbox, number: i64) -> Result<Stand, Failure> {
        let id = mailbox.id;
        match self.last_fill(mailbox).await? {
            Some(last) if last.number == number && last.state == state::RUNNING => Ok(Stand::Runs(last)),
            Some(last) if last.number == number => Ok(Stand::Over(last)),
            _ => {
                let store = &self.services.store;
                let stored: Result<_, StoreError> = store
                    .read(|tx| async move { message::count_filled(tx, id, number).await }.scope_boxed())
                    .await;
                Ok(Stand::Replaced { stored: stored? })
            }
        }
    }

    async fn last_fill(&self, mailbox: &Mailbox) -> Result<Option<Backfill>, Failure> {
        let id = mailbox.id;
        let store = &self.services.store;
        let last: Result<_, StoreError> =
            store.read(|tx| async move { backfill::find(tx, id).await }.scope_boxed()).await;
        Ok(last?)
    }

    /// As many as the folders say they hold.
    pub async fn expects(&self, backfill: &Backfill, expected: i64) -> Result<(), Failure> {
        let (id, number) = (backfill.mailbox_id, backfill.number);
        let store = &self.services.store;
        let written: Result<_, StoreError> = store
            .transaction("backfill_expect", |tx| {
                async move { backfill::expect(tx, id, number, expected).await }.scope_boxed()
            })
            .await;
        Ok(written?)
    }

    /// Was all of its past read that is to be kept? Not when somebody cancelled that.
    pub async fn is_filled(&self, mailbox: &Mailbox) -> Result<bool, Failure> {
        Ok(self.last_fill(mailbox).await?.is_none_or(|filled| filled.state == state::COMPLETED))
    }

    /// How many of a folder are stored, of those that arrived in a span of time.
    pub async fn stored_between(
        &self,
        folder: &Folder,
        span: (DateTime<Utc>, DateTime<Utc>),
    ) -> Result<i64, Failure> {
        let store = &self.services.store;
        let count: Result<_, StoreError> = store
            .read(|tx| {
                async move { message::count_between(tx, folder.mailbox_id, &folder.id, span).await }
                    .scope_boxed()
            })
            .await;
        Ok(count?)
    }

    /// Asks for a look at the mailbox before anything is said to be missing in a folder: what was moved there since the
    /// last one is in Microsoft's count and not yet in ours, and only the folder that it left tells of old mail.
    pub async fn look_first(&self, mailbox: &Mailbox, folder: &Folder) -> Result<(), Failure> {
        let (id, now) = (mailbox.id, self.now());
        let store = &self.services.store;
        let written: Result<_, StoreError> = store
            .transaction("backfill_look_first", |tx| {
                async move {
                    folder::doubt(tx, folder, now).await?;
                    folder::all_noticed(tx, &[id], now).await?;
                    mailbox::hurry(tx, &[id], now).await
                }
                .scope_boxed()
            })
            .await;
        Ok(written?)
    }

    /// A folder in which something is missing is read again.
    pub async fn fill_again(&self, folder: &Folder) -> Result<(), Failure> {
        let before = self.now() + AHEAD;
        let store = &self.services.store;
        let written: Result<_, StoreError> = store
            .transaction("backfill_again", |tx| {
                async move { folder::fill_again(tx, folder, before).await }.scope_boxed()
            })
            .await;
        Ok(written?)
    }

    /// Tells how far it is, now and then.
    pub async fn tell_progress(&self, mailbox: &Mailbox, backfill: &Backfill) -> Result<(), Failure> {
        let now = self.now();
        if backfill.told_at.is_some_and(|at| now - at < TELL) {
            return Ok(());
        }
        let (handoff, store) = (&self.services.handoff, &self.services.store);
        let rows: Result<_, StoreError> = store
            .transaction("backfill_told", |tx| {
                async move {
                    backfill::told(tx, mailbox.id, backfill.number, now).await?;
                    let owed = [event(mailbox, "backfill.progress", progress(backfill, now), now)];
                    outbox::owe(tx, &owed, handoff, now).await
                }
                .scope_boxed()
            })
            .await;
        handoff.give(rows?);
        Ok(())
    }

    /// Everything was found and stored.
    pub async fn filled(&self, mailbox: &Mailbox) -> Result<(), Failure> {
        let now = self.now();
        let (handoff, store) = (&self.services.handoff, &self.services.store);
        let rows: Result<_, StoreError> = store
            .transaction("backfill_end", |tx| {
                async move {
                    let owed = end(tx, mailbox, state::COMPLETED, now).await?;
                    outbox::owe(tx, &owed, handoff, now).await
                }
                .scope_boxed()
            })
            .await;
        handoff.give(rows?);
        Ok(())
    }
}

/// Ends the backfill that runs, with its event, in the caller's transaction.
pub(crate) async fn end(
    tx: &mut Tx,
    mailbox: &Mailbox,
    state: &'static str,
    now: DateTime<Utc>,
) -> crate::store::Result<Vec<crate::store::outbox::Owed>> {
    let Some(ended) = backfill::end(tx, mailbox.id, state, now).await? else { return Ok(Vec::new()) };
    folder::end_fill(tx, mailbox.id).await?;
    Ok(vec![event(mailbox, &format!("backfill.{state}"), progress(&ended, now), now)])
}

/// Counts, rate and time left, for events and the API.
pub fn progress(backfill: &Backfill, now: DateTime<Utc>) -> Value {
    let until = backfill.finished_at.unwrap_or(now);
    let seconds = (until - backfill.started_at).as_seconds_f64().max(0.001);
    let found = f64::from(u32::try_from(backfill.found).unwrap_or(u32::MAX));
    let rate = found / seconds;
    let left = backfill.expected.map(|expected| {
        let missing = f64::from(u32::try_from((expected - backfill.found).max(0)).unwrap_or(u32::MAX));
        if rate > 0.0 { Duration::from_secs_f64((missing / rate).min(1e9)).as_secs() } else { 0 }
    });
    json!({
        "state": backfill.state,
        "since": backfill.floor,
        "found": backfill.found,
        "stored": backfill.stored,
        "expected": backfill.expected,
        "requests": backfill.requests,
        "per_second": (rate * 10.0).round() / 10.0,
        "seconds_left": left.filter(|_| backfill.state == state::RUNNING),
        "started_at": backfill.started_at,
        "finished_at": backfill.finished_at,
    })
}
