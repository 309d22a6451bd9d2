//! The table `subscriptions`: where Microsoft was asked to tell of changes, one row to a folder.
//!
//! The invariant: the row with the hash of its client state is committed before Microsoft is asked for the
//! subscription, so that no notification comes from a subscription that nobody knows. The client state itself is kept
//! nowhere.

use chrono::{DateTime, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use super::{Result, Tx, padded};
use crate::{sql, sql_many};

/// What a subscription can be.
pub mod state {
    /// Microsoft is being asked for it, or was when the process ended.
    pub const CREATING: &str = "creating";
    pub const LIVE: &str = "live";
    pub const REFUSED: &str = "refused";
}

/// What a lifecycle event asks for.
pub mod asked {
    pub const REAUTHORIZE: &str = "reauthorize";
    pub const CREATE: &str = "create";
}

#[derive(Clone, FromRow)]
pub struct Subscription {
    pub id: Uuid,
    pub mailbox_id: Uuid,
    pub folder_id: String,
    pub graph_id: Option<String>,
    /// SHA-256.
    pub client_state: Vec<u8>,
    pub state: String,
    pub code: Option<String>,
    pub message: Option<String>,
    pub expires_at: Option<DateTime<Utc>>,
    /// When it is renewed, or tried again after a refusal.
    pub renew_at: Option<DateTime<Utc>>,
    pub asked: Option<String>,
    pub live_at: Option<DateTime<Utc>>,
    /// When Microsoft was last shown a token for it.
    pub presented_at: Option<DateTime<Utc>>,
    pub checked_at: Option<DateTime<Utc>>,
    pub notices: i64,
    pub noticed_at: Option<DateTime<Utc>>,
    pub proven_at: Option<DateTime<Utc>>,
    pub unannounced: i32,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription")
            .field("id", &self.id)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Subscription {
    pub fn is_live(&self) -> bool {
        self.state == state::LIVE
    }
}

const COLUMNS: &str = "id, mailbox_id, folder_id, graph_id, client_state, state, code, message, expires_at, \
     renew_at, asked, live_at, presented_at, checked_at, notices, noticed_at, proven_at, unannounced, created_at, \
     updated_at";

pub async fn of_mailbox(tx: &mut Tx, mailbox: Uuid) -> Result<Vec<Subscription>> {
    Ok(sql_many!(tx, all Subscription, |query| {
        query.push("SELECT ").push(COLUMNS).push(" FROM subscriptions WHERE mailbox_id = ");
        query.push_bind(mailbox);
        query.push(" ORDER BY id");
    })?)
}

/// That of one folder, if Microsoft accepted one.
pub async fn live_in(tx: &mut Tx, mailbox: Uuid, folder: &str) -> Result<Option<Subscription>> {
    Ok(sql_many!(tx, all Subscription, |query| {
        query.push("SELECT ").push(COLUMNS).push(" FROM subscriptions WHERE state = 'live' AND mailbox_id = ");
        query.push_bind(mailbox);
        query.push(" AND folder_id = ").push_bind(folder.to_owned());
    })?
    .pop())
}

/// Those that Microsoft calls so.
pub async fn by_graph_ids(tx: &mut Tx, ids: &[&str]) -> Result<Vec<Subscription>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    Ok(sql_many!(tx, all Subscription, |query| {
        query.push("SELECT ").push(COLUMNS).push(" FROM subscriptions WHERE graph_id IN (");
        let mut list = query.separated(", ");
        for (id, _) in padded(ids, |id| id.len()) {
            list.push_bind((*id).to_owned());
        }
        query.push(")");
    })?)
}

/// Those of these client states whose answer has not been stored yet.
pub async fn creating(tx: &mut Tx, client_states: &[&[u8]]) -> Result<Vec<Subscription>> {
    if client_states.is_empty() {
        return Ok(Vec::new());
    }
    Ok(sql_many!(tx, all Subscription, |query| {
        query.push("SELECT ").push(COLUMNS);
        query.push(" FROM subscriptions WHERE state = 'creating' AND client_state IN (");
        let mut list = query.separated(", ");
        for (hash, _) in padded(client_states, |_| 0) {
            list.push_bind(hash.to_vec());
        }
        query.push(")");
    })?)
}

/// Takes the folder's row anew, whatever stood there: Microsoft is about to be asked.
pub async fn create(
    tx: &mut Tx,
    mailbox: Uuid,
    folder: &str,
    client_state: &[u8],
    now: DateTime<Utc>,
) -> Result<Uuid> {
    remove_in(tx, mailbox, folder).await?;
    let id = Uuid::now_v7();
    sql!(
        tx,
        execute,
        "INSERT INTO subscriptions (id, mailbox_id, folder_id, client_state, state, created_at, updated_at) \
         VALUES ($1, $2, $3, $4, 'creating', $5, $5)",
        id,
        mailbox,
        folder,
        client_state,
        now,
    )?;
    Ok(id)
}

/// Microsoft accepted it; `false` when its row is gone.
pub async fn accepted(
    tx: &mut Tx,
    id: Uuid,
    graph_id: &str,
    expires_at: DateTime<Utc>,
    renew_at: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<bool> {
    let changed = sql!(
        tx,
        execute,
        "UPDATE subscriptions SET state = 'live', graph_id = $2, expires_at = $3, renew_at = $4, live_at = $5, \
         presented_at = $5, checked_at = $5, updated_at = $5 WHERE id = $1 AND state = 'creating'",
        id,
        graph_id,
        expires_at,
        renew_at,
        now,
    )?;
    Ok(changed == 1)
}

/// Microsoft refused it; it is tried again at `again_at`.
pub async fn refused(
    tx: &mut Tx,
    id: Uuid,
    code: &str,
    message: &str,
    again_at: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<()> {
    sql!(
        tx,
        execute,
        "UPDATE subscriptions SET state = 'refused', code = $2, message = $3, renew_at = $4, updated_at = $5 \
         WHERE id = $1 AND state = 'creating'",
        id,
        code,
        message,
        again_at,
        now,
    )?;
    Ok(())
}

/// What a call that presented a token brought. What was asked for in the meantime stays asked.
pub async fn presented(tx: &mut Tx, known: &Subscription, now: DateTime<Utc>) -> Result<()> {
    sql!(
        tx,
        execute,
        "UPDATE subscriptions SET expires_at = $2, renew_at = $3, presented_at = $4, checked_at = $4, \
         asked = CASE WHEN asked = $5 THEN NULL ELSE asked END, updated_at = $4 WHERE id = $1",
        known.id,
        known.expires_at,
        known.renew_at,
        now,
        known.asked.as_deref(),
    )?;
    Ok(())
}

/// Microsoft knows it still.
pub async fn checked(tx: &mut Tx, known: &Subscription, now: DateTime<Utc>) -> Result<()> {
    sql!(
        tx,
        execute,
        "UPDATE subscriptions SET expires_at = $2, checked_at = $3, \
         asked = CASE WHEN asked = $4 THEN NULL ELSE asked END, updated_at = $3 WHERE id = $1",
        known.id,
        known.expires_at,
        now,
        known.asked.as_deref(),
    )?;
    Ok(())
}

/// A lifecycle event asks for something; to be made again outweighs a fresh token.
pub async fn ask(tx: &mut Tx, id: Uuid, what: &str, now: DateTime<Utc>) -> Result<()> {
    sql!(
        tx,
        execute,
        "UPDATE subscriptions SET asked = $2, updated_at = $3 WHERE id = $1 AND (asked IS NULL OR asked <> 'create')",
        id,
        what,
        now,
    )?;
    Ok(())
}

/// So many notifications came through each of these.
pub async fn heard(tx: &mut Tx, counts: &[(Uuid, i64)], now: DateTime<Utc>) -> Result<()> {
    for (id, count) in counts {
        sql!(
            tx,
            execute,
            "UPDATE subscriptions SET notices = notices + $2, noticed_at = $3 WHERE id = $1",
            *id,
            *count,
            now,
        )?;
    }
    Ok(())
}

/// What the last poll said about its notifications.
pub async fn judged(tx: &mut Tx, id: Uuid, proven_at: Option<DateTime<Utc>>, unannounced: i32) -> Result<()> {
    sql!(
        tx,
        execute,
        "UPDATE subscriptions SET proven_at = $2, unannounced = $3 WHERE id = $1",
        id,
        proven_at,
        unannounced,
    )?;
    Ok(())
}

pub async fn remove(tx: &mut Tx, id: Uuid) -> Result<()> {
    sql!(tx, execute, "DELETE FROM subscriptions WHERE id = $1", id)?;
    Ok(())
}

/// Whatever a mailbox has.
pub async fn forget(tx: &mut Tx, mailbox: Uuid) -> Result<()> {
    sql!(tx, execute, "DELETE FROM subscriptions WHERE mailbox_id = $1", mailbox)?;
    Ok(())
}

async fn remove_in(tx: &mut Tx, mailbox: Uuid, folder: &str) -> Result<()> {
    sql!(tx, execute, "DELETE FROM subscriptions WHERE mailbox_id = $1 AND folder_id = $2", mailbox, folder,)?;
    Ok(())
}
