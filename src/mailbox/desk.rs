//! What publishers and operators ask of mailboxes: connect one, fill it back, end it, look at it.
//!
//! The invariant: an answer that something will be done is given once its job is durable.

use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use scoped_futures::ScopedFutureExt;
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::backfill::{end, progress};
use super::disconnect;
use super::ladder::{Capabilities, meaning};
use super::life::{Registered, register, want_fill};
use crate::job::Duty;
use crate::outbox;
use crate::services::Services;
use crate::store::backfill::{self, state as filling};
use crate::store::job::{self, state as job_state};
use crate::store::mailbox::{self, Mailbox, state};
use crate::store::message::{self, Filter, Message};
use crate::store::{Result, Tx, folder};
use crate::submit::{self, Wish};

/// A shared mailbox, as far as it is known.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct MailboxView {
    pub id: Uuid,
    pub workspace: String,
    /// Through whose consent it is reached.
    pub user: String,
    pub address: String,
    /// `connecting`, `connected`, `degraded`, `disconnecting` or `disconnected`.
    pub state: String,
    /// The stable code of why it is not reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// One line for the person who must act.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    pub capabilities: Capabilities,
    pub delivery: Delivery,
    /// Mail from then on is kept.
    pub since: DateTime<Utc>,
    pub folders: usize,
    /// The last look at it that went well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checked_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backfill: Option<Value>,
    /// What was ended, and when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Value>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// How mail reaches us from it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Delivery {
    /// `push` (notifications, proven), `delta` (polled by changes) or `list` (polled by time of arrival).
    pub rung: String,
    /// A stable code of why.
    pub reason: String,
    /// What it means.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meaning: Option<&'static str>,
    pub since: DateTime<Utc>,
    /// The last notification whose message a poll saw as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_proven_at: Option<DateTime<Utc>>,
    /// How long nobody has looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blind_seconds: Option<i64>,
}

/// Asks for a mailbox to be connected. One that still waits for its access is tried again.
pub async fn connect(
    services: &Services,
    workspace: &str,
    user: &str,
    address: &str,
    days: u16,
) -> Result<Registered> {
    let now = services.clock.now();
    let (registry, handoff) = (&services.registry, &services.handoff);
    let (registered, rows) = services
        .store
        .transaction("mailbox_connect", |tx| {
            async move {
                let registered = register(tx, workspace, user, address, days, now).await?;
                let mut owed = Vec::new();
                if let Registered::New(mailbox) | Registered::Known(mailbox) = &registered
                    && mailbox.state == state::CONNECTING
                {
                    let id = next_connect(tx, mailbox).await?;
                    let payload = json!({"address": mailbox.address, "backfill_days": days});
                    let wish = Wish { workspace, user, id: &id, payload };
                    owed.extend(submit::want_again(tx, registry, Duty::ConnectMailbox, wish, now).await?);
                }
                let rows = outbox::owe(tx, &owed, handoff, now).await?;
                Ok::<_, crate::store::StoreError>((registered, rows))
            }
            .scope_boxed()
        })
        .await?;
    handoff.give(rows);
    Ok(registered)
}

/// The job that connects it, behind those that ended without: one that was rejected is never run again.
async fn next_connect(tx: &mut Tx, mailbox: &Mailbox) -> Result<String> {
    let first = format!("mailbox-connect/{}", mailbox.id);
    let (mut id, mut number) = (first.clone(), 1);
    while let Some(row) = job::find(tx, &mailbox.workspace, &id).await? {
        if row.state == job_state::DEAD || !job_state::is_final(&row.state) {
            break;
        }
        number += 1;
        id = format!("{first}/{number}");
    }
    Ok(id)
}

/// Asks for a mailbox to be filled back; `false` while a backfill runs.
pub async fn fill(services: &Services, mailbox: &Mailbox, days: u16) -> Result<bool> {
    let now = services.clock.now();
    let floor = (now - TimeDelta::days(days.into())).trunc_subsecs(0);
    let (registry, handoff) = (&services.registry, &services.handoff);
    let rows = services
        .store
        .transaction("mailbox_fill", |tx| {
            async move {
                let running = backfill::find(tx, mailbox.id).await?;
                if running.is_some_and(|running| running.state == filling::RUNNING) {
                    return Ok(None);
                }
                let owed: Vec<_> = want_fill(tx, registry, mailbox, floor, now).await?.into_iter().collect();
                Ok::<_, crate::store::StoreError>(Some(outbox::owe(tx, &owed, handoff, now).await?))
            }
            .scope_boxed()
        })
        .await?;
    let Some(rows) = rows else { return Ok(false) };
    handoff.give(rows);
    Ok(true)
}

/// Ends the backfill that runs; `false` when none does. The page that is on its way is the last one.
pub async fn cancel_fill(services: &Services, mailbox: &Mailbox) -> Result<bool> {
    let now = services.clock.now();
    let handoff = &services.handoff;
    let (cancelled, rows) = services
        .store
        .transaction("mailbox_cancel_fill", |tx| {
            async move {
                let owed = end(tx, mailbox, filling::CANCELLED, now).await?;
                let rows = outbox::owe(tx, &owed, handoff, now).await?;
                Ok::<_, crate::store::StoreError>((!owed.is_empty(), rows))
            }
            .scope_boxed()
        })
        .await?;
    handoff.give(rows);
    Ok(cancelled)
}

/// Asks for a mailbox to be ended: nothing new is begun in it from now on.
pub async fn disconnect(services: &Services, mailbox: &Mailbox) -> Result<()> {
    let now = services.clock.now();
    let (registry, handoff) = (&services.registry, &services.handoff);
    let rows = services
        .store
        .transaction("mailbox_disconnect", |tx| {
            async move {
                let wish = Wish {
                    workspace: &mailbox.workspace,
                    user: &mailbox.user_name,
                    id: &format!("mailbox-disconnect/{}", mailbox.id),
                    payload: json!({"mailbox": mailbox.id}),
                };
                let mut owed = disconnect::begin(tx, registry, mailbox, now).await?;
                owed.extend(submit::want_again(tx, registry, Duty::DisconnectMailbox, wish, now).await?);
                outbox::owe(tx, &owed, handoff, now).await
            }
            .scope_boxed()
        })
        .await?;
    handoff.give(rows);
    Ok(())
}

pub async fn list(
    services: &Services,
    workspace: Option<&str>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<MailboxView>> {
    let now = services.clock.now();
    services
        .store
        .read(|tx| {
            async move {
                let mut views = Vec::new();
                for row in mailbox::list(tx, workspace, after, limit).await? {
                    let folders = folder::of_mailbox(tx, row.id).await?.len();
                    let filled = backfill::find(tx, row.id).await?;
                    views.push(view(row, folders, filled.map(|filled| progress(&filled, now)), now));
                }
                Ok(views)
            }
            .scope_boxed()
        })
        .await
}

pub async fn find(services: &Services, id: Uuid) -> Result<Option<Mailbox>> {
    services.store.read(|tx| async move { mailbox::find(tx, id).await }.scope_boxed()).await
}

pub async fn show(services: &Services, row: Mailbox) -> Result<MailboxView> {
    let now = services.clock.now();
    services
        .store
        .read(|tx| {
            async move {
                let row = mailbox::get(tx, row.id).await?;
                let folders = folder::of_mailbox(tx, row.id).await?.len();
                let filled = backfill::find(tx, row.id).await?;
                Ok(view(row, folders, filled.map(|filled| progress(&filled, now)), now))
            }
            .scope_boxed()
        })
        .await
}

/// The stored messages of a mailbox. A folder may be named by its well-known name.
pub async fn messages(services: &Services, mailbox: Uuid, filter: &Filter) -> Result<Vec<Message>> {
    services
        .store
        .read(|tx| {
            async move {
                let mut filter = filter.clone();
                if let Some(name) = &filter.folder {
                    let known = folder::of_mailbox(tx, mailbox).await?;
                    let named = known.into_iter().find(|folder| folder.is_well_known(name));
                    filter.folder = Some(named.map_or_else(|| name.clone(), |folder| folder.id));
                }
                message::list(tx, mailbox, &filter).await
            }
            .scope_boxed()
        })
        .await
}

pub async fn message(services: &Services, mailbox: Uuid, id: &str) -> Result<Option<Message>> {
    services.store.read(|tx| async move { message::find(tx, mailbox, id).await }.scope_boxed()).await
}

fn view(row: Mailbox, folders: usize, backfill: Option<Value>, now: DateTime<Utc>) -> MailboxView {
    MailboxView {
        id: row.id,
        workspace: row.workspace,
        user: row.user_name,
        address: row.address,
        capabilities: Capabilities::read(&row.capabilities),
        delivery: Delivery {
            meaning: meaning(&row.rung_reason),
            rung: row.rung,
            reason: row.rung_reason,
            since: row.rung_since,
            last_proven_at: row.proven_at,
            blind_seconds: row.checked_at.map(|at| (now - at).num_seconds()),
        },
        state: row.state,
        code: row.code,
        message: row.message,
        since: row.floor,
        folders,
        checked_at: row.checked_at,
        backfill,
        receipt: row.receipt.and_then(|text| serde_json::from_str(&text).ok()),
        created_at: row.created_at,
        updated_at: row.updated_at,
    }
}
