//! The table `mailboxes`: shared mailboxes exposed to a workspace.
//!
//! The invariant: at most one sync of a mailbox is out at a time. Handing one out empties `due_at`; only the sync
//! that is out, or whoever finds that it is no more, sets it again.

use chrono::{DateTime, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use super::{Result, StoreError, Tx};
use crate::{sql, sql_many};

/// What a mailbox can be.
pub mod state {
    /// Its access has not been proven yet.
    pub const CONNECTING: &str = "connecting";
    pub const CONNECTED: &str = "connected";
    /// Connected, and not to be reached at present.
    pub const DEGRADED: &str = "degraded";
    pub const DISCONNECTING: &str = "disconnecting";
    pub const DISCONNECTED: &str = "disconnected";
}

#[derive(Debug, Clone, FromRow)]
pub struct Mailbox {
    pub id: Uuid,
    pub workspace: String,
    /// The service account's user, through whose connection it is reached.
    pub user_name: String,
    /// Lower case.
    pub address: String,
    pub state: String,
    pub code: Option<String>,
    pub message: Option<String>,
    /// Fixed when the mailbox is connected: older mail is not filled in.
    pub floor: DateTime<Utc>,
    /// What is known of what can be done with it, as JSON.
    pub capabilities: String,
    pub rung: String,
    pub rung_reason: String,
    pub rung_since: DateTime<Utc>,
    pub proven_at: Option<DateTime<Utc>>,
    pub checked_at: Option<DateTime<Utc>>,
    pub round: i64,
    pub due_at: Option<DateTime<Utc>>,
    pub out_since: Option<DateTime<Utc>>,
    pub tree_at: Option<DateTime<Utc>>,
    pub tend_at: Option<DateTime<Utc>>,
    pub receipt: Option<String>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl Mailbox {
    /// Nothing is begun in it any more.
    pub fn ends(&self) -> bool {
        matches!(self.state.as_str(), state::DISCONNECTING | state::DISCONNECTED)
    }
}

macro_rules! columns {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            "id, workspace, user_name, address, state, code, message, floor, capabilities, rung, rung_reason, \
             rung_since, proven_at, checked_at, round, due_at, out_since, tree_at, tend_at, receipt, \
             created_at, updated_at",
            $after
        )
    };
}

pub async fn find(tx: &mut Tx, id: Uuid) -> Result<Option<Mailbox>> {
    Ok(sql!(tx, optional Mailbox, columns!("SELECT ", " FROM mailboxes WHERE id = $1"), id)?)
}

pub async fn find_by_address(tx: &mut Tx, workspace: &str, address: &str) -> Result<Option<Mailbox>> {
    Ok(sql!(
        tx,
        optional Mailbox,
        columns!("SELECT ", " FROM mailboxes WHERE workspace = $1 AND address = $2"),
        workspace,
        address.to_lowercase(),
    )?)
}

/// A workspace's mailboxes, oldest first, after the one the last page ended with.
pub async fn list(
    tx: &mut Tx,
    workspace: Option<&str>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Mailbox>> {
    let after = after.unwrap_or_default();
    Ok(match workspace {
        Some(workspace) => sql!(
            tx,
            all Mailbox,
            columns!("SELECT ", " FROM mailboxes WHERE workspace = $1 AND id > $2 ORDER BY id LIMIT $3"),
            workspace,
            after,
            limit,
        )?,
        None => sql!(
            tx,
            all Mailbox,
            columns!("SELECT ", " FROM mailboxes WHERE id > $1 ORDER BY id LIMIT $2"),
            after,
            limit,
        )?,
    })
}

/// Those that one user's connection reaches and that are not disconnected.
pub async fn of_user(tx: &mut Tx, workspace: &str, user: &str) -> Result<Vec<Mailbox>> {
    Ok(sql!(
        tx,
        all Mailbox,
        columns!(
            "SELECT ",
            " FROM mailboxes WHERE workspace = $1 AND user_name = $2 AND state <> 'disconnected' ORDER BY id"
        ),
        workspace,
        user,
    )?)
}

/// Makes the row; `None` when the address is connected already.
pub async fn register(
    tx: &mut Tx,
    workspace: &str,
    user: &str,
    address: &str,
    floor: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<Option<Mailbox>> {
    Ok(sql!(
        tx,
        optional Mailbox,
        columns!(
            "INSERT INTO mailboxes (id, workspace, user_name, address, state, floor, capabilities, rung, \
             rung_reason, rung_since, created_at, updated_at) \
             VALUES ($1, $2, $3, $4, 'connecting', $5, '{}', 'delta', 'not_tried', $6, $6, $6) \
             ON CONFLICT (workspace, address) DO NOTHING RETURNING ",
            ""
        ),
        Uuid::now_v7(),
        workspace,
        user,
        address.to_lowercase(),
        floor,
        now,
    )?)
}

/// Access was proven: the mailbox is followed from now on. `false` when it was connected before.
pub async fn connected(tx: &mut Tx, id: Uuid, capabilities: &str, now: DateTime<Utc>) -> Result<bool> {
    sql!(
        tx,
        execute,
        "UPDATE mailboxes SET capabilities = $2, updated_at = $3 WHERE id = $1",
        id,
        capabilities,
        now,
    )?;
    let changed = sql!(
        tx,
        execute,
        "UPDATE mailboxes SET state = 'connected', code = NULL, message = NULL, \
         due_at = CASE WHEN out_since IS NULL THEN $2 ELSE due_at END, updated_at = $2 \
         WHERE id = $1 AND state IN ('connecting', 'degraded')",
        id,
        now,
    )?;
    Ok(changed == 1)
}

/// Says once why it is not reached; `false` when it said so already. One that is still being connected stays so.
pub async fn degrade(tx: &mut Tx, id: Uuid, code: &str, message: &str, now: DateTime<Utc>) -> Result<bool> {
    let changed = sql!(
        tx,
        execute,
        "UPDATE mailboxes SET state = CASE WHEN state = 'connected' THEN 'degraded' ELSE state END, \
         code = $2, message = $3, updated_at = $4 \
         WHERE id = $1 AND state IN ('connecting', 'connected', 'degraded') AND (code IS NULL OR code <> $2)",
        id,
        code,
        message,
        now,
    )?;
    Ok(changed == 1)
}

pub async fn capabilities(tx: &mut Tx, id: Uuid, capabilities: &str) -> Result<()> {
    sql!(tx, execute, "UPDATE mailboxes SET capabilities = $2 WHERE id = $1", id, capabilities)?;
    Ok(())
}

/// The mailbox stands on another rung of the ladder from now on; `false` when it stood there for that reason.
pub async fn stand(tx: &mut Tx, id: Uuid, rung: &str, reason: &str, now: DateTime<Utc>) -> Result<bool> {
    let changed = sql!(
        tx,
        execute,
        "UPDATE mailboxes SET rung_since = CASE WHEN rung = $2 THEN rung_since ELSE $4 END, rung = $2, \
         rung_reason = $3, updated_at = $4 WHERE id = $1 AND (rung <> $2 OR rung_reason <> $3)",
        id,
        rung,
        reason,
        now,
    )?;
    Ok(changed == 1)
}

/// A notification's message was seen by a poll as well.
pub async fn proven(tx: &mut Tx, id: Uuid, at: DateTime<Utc>) -> Result<()> {
    sql!(tx, execute, "UPDATE mailboxes SET proven_at = $2 WHERE id = $1", id, at)?;
    Ok(())
}

/// When its subscriptions are to be looked after next.
pub async fn tend(tx: &mut Tx, id: Uuid, at: DateTime<Utc>) -> Result<()> {
    sql!(tx, execute, "UPDATE mailboxes SET tend_at = $2 WHERE id = $1", id, at)?;
    Ok(())
}

pub async fn tree_changed(tx: &mut Tx, id: Uuid) -> Result<()> {
    sql!(tx, execute, "UPDATE mailboxes SET tree_at = NULL WHERE id = $1", id)?;
    Ok(())
}

pub async fn tree_seen(tx: &mut Tx, id: Uuid, at: DateTime<Utc>) -> Result<()> {
    sql!(tx, execute, "UPDATE mailboxes SET tree_at = $2 WHERE id = $1", id, at)?;
    Ok(())
}

/// Pages of one mailbox are laid down one after the other: a poll and the backfill may bring the same message. `false`
/// when it is being ended, or was: then nothing is laid down any more.
pub async fn hold(tx: &mut Tx, id: Uuid) -> Result<bool> {
    let held = sql!(
        tx,
        execute,
        "UPDATE mailboxes SET round = round WHERE id = $1 AND state NOT IN ('disconnecting', 'disconnected')",
        id,
    )?;
    Ok(held == 1)
}

/// Takes what is due: each is handed out once, whoever asks.
pub async fn hand_out(tx: &mut Tx, now: DateTime<Utc>, limit: i64) -> Result<Vec<Mailbox>> {
    Ok(sql!(
        tx,
        all Mailbox,
        columns!(
            "UPDATE mailboxes SET due_at = NULL, out_since = $1, round = round + 1 WHERE id IN \
             (SELECT id FROM mailboxes WHERE due_at <= $1 AND state IN ('connected', 'degraded') \
             ORDER BY due_at LIMIT $2) AND due_at <= $1 RETURNING ",
            ""
        ),
        now,
        limit,
    )?)
}

/// Mailboxes whose sync has been out for long, with the state of its job, if there is one.
pub async fn long_out(tx: &mut Tx, before: DateTime<Utc>, limit: i64) -> Result<Vec<Mailbox>> {
    Ok(sql!(
        tx,
        all Mailbox,
        columns!(
            "SELECT ",
            " FROM mailboxes WHERE due_at IS NULL AND out_since < $1 AND state IN ('connected', 'degraded') \
             ORDER BY out_since LIMIT $2"
        ),
        before,
        limit,
    )?)
}

/// The sync of this round is back; `false` when another one is out by now.
pub async fn come_back(
    tx: &mut Tx,
    id: Uuid,
    round: i64,
    due_at: DateTime<Utc>,
    checked_at: Option<DateTime<Utc>>,
) -> Result<bool> {
    let changed = sql!(
        tx,
        execute,
        "UPDATE mailboxes SET due_at = $3, out_since = NULL, checked_at = COALESCE($4, checked_at) \
         WHERE id = $1 AND round = $2 AND due_at IS NULL",
        id,
        round,
        due_at,
        checked_at,
    )?;
    Ok(changed == 1)
}

/// Something happened in these: their next sync is due now, unless one is out, which looks again before it ends.
pub async fn hurry(tx: &mut Tx, ids: &[Uuid], now: DateTime<Utc>) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    sql_many!(tx, execute, |query| {
        query.push("UPDATE mailboxes SET due_at = ").push_bind(now);
        query.push(" WHERE due_at > ").push_bind(now);
        query.push(" AND id IN (");
        let mut list = query.separated(", ");
        for id in ids {
            list.push_bind(*id);
        }
        query.push(")");
    })?;
    Ok(())
}

/// From now on nothing new is begun in it.
pub async fn disconnecting(tx: &mut Tx, id: Uuid, now: DateTime<Utc>) -> Result<bool> {
    let changed = sql!(
        tx,
        execute,
        "UPDATE mailboxes SET state = 'disconnecting', due_at = NULL, updated_at = $2 \
         WHERE id = $1 AND state NOT IN ('disconnecting', 'disconnected')",
        id,
        now,
    )?;
    Ok(changed == 1)
}

/// The steps of the disconnect that are done so far.
pub async fn receipt(tx: &mut Tx, id: Uuid, receipt: &str, now: DateTime<Utc>) -> Result<()> {
    sql!(
        tx,
        execute,
        "UPDATE mailboxes SET receipt = $2, updated_at = $3 WHERE id = $1 AND state = 'disconnecting'",
        id,
        receipt,
        now,
    )?;
    Ok(())
}

/// The end. The address is forgotten, so that it can be connected anew, as another mailbox.
pub async fn disconnected(tx: &mut Tx, id: Uuid, receipt: &str, now: DateTime<Utc>) -> Result<bool> {
    let changed = sql!(
        tx,
        execute,
        "UPDATE mailboxes SET state = 'disconnected', code = NULL, message = NULL, receipt = $2, address = $4, \
         updated_at = $3 WHERE id = $1 AND state = 'disconnecting'",
        id,
        receipt,
        now,
        format!("forgotten:{id}"),
    )?;
    Ok(changed == 1)
}

/// The row that must be there.
pub async fn get(tx: &mut Tx, id: Uuid) -> Result<Mailbox> {
    find(tx, id).await?.ok_or_else(|| StoreError::Corrupt(format!("the mailbox {id} is gone")))
}
