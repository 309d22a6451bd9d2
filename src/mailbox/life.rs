//! A mailbox while it is connected, and what its publisher hears of it.
//!
//! The invariant: every change of state commits with its event, and each is told once.

use std::time::Duration;

use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use scoped_futures::ScopedFutureExt;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Mailboxes;
use super::backfill::AHEAD;
use super::ladder::Capabilities;
use crate::event::Event;
use crate::job::Duty;
use crate::outbox;
use crate::outcome::{Cause, Failure};
use crate::registry::Registry;
use crate::store::job::JobRow;
use crate::store::mailbox::{self, Mailbox, state};
use crate::store::outbox::Owed;
use crate::store::{Result, StoreError, Tx, attachment, folder, job};
use crate::submit::{self, Wish};

/// What came of asking for a mailbox to be connected.
#[derive(Debug, Clone)]
pub enum Registered {
    /// Its access is to be proven now.
    New(Mailbox),
    /// The same user asked before.
    Known(Mailbox),
    /// Another user of this workspace has it.
    Taken(Mailbox),
}

impl Registered {
    pub fn mailbox(self) -> Mailbox {
        match self {
            Self::New(mailbox) | Self::Known(mailbox) | Self::Taken(mailbox) => mailbox,
        }
    }
}

/// The row of a mailbox that is to be connected, in the caller's transaction.
pub(crate) async fn register(
    tx: &mut Tx,
    workspace: &str,
    user: &str,
    address: &str,
    days: u16,
    now: DateTime<Utc>,
) -> Result<Registered> {
    // Exchange compares whole seconds.
    let floor = (now - TimeDelta::days(days.into())).trunc_subsecs(0);
    if let Some(made) = mailbox::register(tx, workspace, user, address, floor, now).await? {
        return Ok(Registered::New(made));
    }
    let known = mailbox::find_by_address(tx, workspace, address).await?;
    let known = known.ok_or_else(|| StoreError::Corrupt("a mailbox that was just there is gone".into()))?;
    Ok(if known.user_name == user { Registered::Known(known) } else { Registered::Taken(known) })
}

impl Mailboxes {
    pub async fn register(&self, user: &str, address: &str, days: u16) -> Result<Registered, Failure> {
        let (workspace, now) = (self.workspace.as_str(), self.now());
        let store = &self.services.store;
        let registered: Result<_, StoreError> = store
            .transaction("mailbox_register", |tx| {
                async move { register(tx, workspace, user, address, days, now).await }.scope_boxed()
            })
            .await;
        Ok(registered?)
    }

    /// Access is proven and the tree is known: from now on it is followed, and filled back to its floor. Jobs that
    /// waited for the access go on.
    pub async fn opened(&self, mailbox: &Mailbox, capabilities: &Capabilities) -> Result<(), Failure> {
        let (now, told) = (self.now(), capabilities.text());
        let (registry, handoff, store) =
            (&self.services.registry, &self.services.handoff, &self.services.store);
        let told = told.as_str();
        let rows: Result<_, StoreError> = store
            .transaction("mailbox_opened", |tx| {
                async move {
                    let first = mailbox.state == state::CONNECTING;
                    if !mailbox::connected(tx, mailbox.id, told, now).await? {
                        return Ok(Vec::new());
                    }
                    let mut owed =
                        vec![event(mailbox, "connected", json!({"capabilities": capabilities}), now)];
                    if first && mailbox.floor < mailbox.created_at - TimeDelta::hours(1) {
                        owed.extend(want_fill(tx, registry, mailbox, mailbox.floor, now).await?);
                        // However long the backfill waits for its turn: no look takes the past for news.
                        folder::begin_fill(tx, mailbox.id, now + AHEAD, mailbox.floor).await?;
                    }
                    for row in
                        waiting(tx, registry, mailbox, &[Duty::ConnectMailbox, Duty::FillMailbox]).await?
                    {
                        owed.extend(submit::requeue(tx, &row, now).await?);
                    }
                    outbox::owe(tx, &owed, handoff, now).await
                }
                .scope_boxed()
            })
            .await;
        handoff.give(rows?);
        Ok(())
    }

    /// It cannot be reached: told once per reason. The cursors stay where they are.
    pub async fn degraded(&self, mailbox: &Mailbox, failure: &Failure) -> Result<(), Failure> {
        let now = self.now();
        let (handoff, store) = (&self.services.handoff, &self.services.store);
        let (code, message) = (&*failure.code, failure.message.as_str());
        let rows: Result<_, StoreError> = store
            .transaction("mailbox_degraded", |tx| {
                async move {
                    let owed: Vec<_> = degrade(tx, mailbox, code, message, now).await?.into_iter().collect();
                    outbox::owe(tx, &owed, handoff, now).await
                }
                .scope_boxed()
            })
            .await;
        handoff.give(rows?);
        Ok(())
    }

    /// Something was found out of what can be done with it.
    pub async fn learned(
        &self,
        mailbox: &Mailbox,
        change: impl Fn(&mut Capabilities) + Sync,
    ) -> Result<(), Failure> {
        let (id, change) = (mailbox.id, &change);
        let mut known = Capabilities::read(&mailbox.capabilities);
        change(&mut known);
        if known.text() == mailbox.capabilities {
            return Ok(());
        }
        let store = &self.services.store;
        let written: Result<_, StoreError> = store
            .transaction("mailbox_learned", |tx| async move { learn(tx, id, change).await }.scope_boxed())
            .await;
        Ok(written?)
    }

    /// The rung it is followed on; with why.
    pub async fn stands(&self, mailbox: &Mailbox, rung: &str, reason: &str) -> Result<(), Failure> {
        let (id, now) = (mailbox.id, self.now());
        let store = &self.services.store;
        let written: Result<_, StoreError> = store
            .transaction("mailbox_rung", |tx| {
                async move { mailbox::stand(tx, id, rung, reason, now).await }.scope_boxed()
            })
            .await;
        written?;
        Ok(())
    }

    /// A sync is back: the next one is due when the first of its folders is, or something is to be fetched, but not
    /// before `pause` is over.
    pub async fn come_back(&self, mailbox: &Mailbox, round: i64, pause: Duration) -> Result<(), Failure> {
        let (id, now, most) = (mailbox.id, self.now(), self.services.attachment_bytes);
        let (rested, longest) = (now + self.pace() / 4, now + self.pace() * 5);
        let store = &self.services.store;
        let written: Result<_, StoreError> = store
            .transaction("mailbox_back", |tx| {
                async move {
                    let folders = folder::of_mailbox(tx, id).await?;
                    let due = folders.iter().map(|folder| folder.next_look(now));
                    // Between two rounds of fetching, others get at the mailbox's slots.
                    let content = attachment::due(tx, id, most).await?.map(|due| due.max(rested));
                    let due = due.chain(content).min().unwrap_or(longest).min(longest).max(now + pause);
                    mailbox::come_back(tx, id, round, due, Some(now)).await
                }
                .scope_boxed()
            })
            .await;
        written?;
        Ok(())
    }
}

/// It cannot be reached, or may not be: told once per reason.
pub(crate) async fn degrade(
    tx: &mut Tx,
    mailbox: &Mailbox,
    code: &str,
    message: &str,
    now: DateTime<Utc>,
) -> Result<Option<Owed>> {
    let news = mailbox::degrade(tx, mailbox.id, code, message, now).await?;
    Ok(news.then(|| event(mailbox, "degraded", json!({"code": code, "message": message}), now)))
}

/// Lays what was found out over what is known by now: several jobs learn of one mailbox.
pub(super) async fn learn(tx: &mut Tx, id: Uuid, change: impl FnOnce(&mut Capabilities)) -> Result<()> {
    if !mailbox::hold(tx, id).await? {
        return Ok(());
    }
    let before = mailbox::get(tx, id).await?.capabilities;
    let mut known = Capabilities::read(&before);
    change(&mut known);
    let known = known.text();
    if known == before { Ok(()) } else { mailbox::capabilities(tx, id, &known).await }
}

/// Jobs of these duties that wait for the access to this mailbox.
pub(super) async fn waiting(
    tx: &mut Tx,
    registry: &Registry,
    mailbox: &Mailbox,
    duties: &[Duty],
) -> Result<Vec<JobRow>> {
    let kinds = registry.kinds_for(duties);
    let causes = [Cause::NeedsAdmin.as_str(), Cause::NeedsUser.as_str()];
    let parked = job::parked_for(tx, &mailbox.workspace, &mailbox.user_name, &causes, &kinds, 1_000).await?;
    let id = mailbox.id.to_string();
    let ours = |row: &JobRow| {
        let payload: Value = serde_json::from_str(&row.payload).unwrap_or_default();
        let name = payload["address"].as_str().or_else(|| payload["mailbox"].as_str());
        name.is_some_and(|name| name == id || name.eq_ignore_ascii_case(&mailbox.address))
    };
    Ok(parked.into_iter().filter(ours).collect())
}

/// The job that fills a mailbox from now back to `floor`.
pub(crate) async fn want_fill(
    tx: &mut Tx,
    registry: &Registry,
    mailbox: &Mailbox,
    floor: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<Option<Owed>> {
    let wish = Wish {
        workspace: &mailbox.workspace,
        user: &mailbox.user_name,
        id: &format!("mailbox-backfill/{}", Uuid::now_v7()),
        payload: json!({"mailbox": mailbox.id, "since": floor}),
    };
    submit::want(tx, registry, Duty::FillMailbox, wish, now).await
}

pub(super) fn event(mailbox: &Mailbox, what: &str, mut data: Value, now: DateTime<Utc>) -> Owed {
    data["mailbox"] = json!(mailbox.id);
    data["address"] = json!(mailbox.address);
    data["user"] = json!(mailbox.user_name);
    Event {
        kind: &format!("mailbox.{what}"),
        about: "mailbox",
        subject: &mailbox.id.to_string(),
        workspace: &mailbox.workspace,
        traceparent: None,
        data,
        now,
    }
    .owed()
}
