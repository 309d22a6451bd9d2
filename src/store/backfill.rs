//! The table `backfills`: how far the mail of the past has come.
//!
//! The invariant: one at a time per mailbox, counted with the rows it stored, and cancelled by a word that the next
//! page's commit reads.

use chrono::{DateTime, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use super::{Result, Tx};
use crate::sql;

pub mod state {
    pub const RUNNING: &str = "running";
    pub const COMPLETED: &str = "completed";
    pub const CANCELLED: &str = "cancelled";
}

#[derive(Debug, Clone, FromRow)]
pub struct Backfill {
    pub mailbox_id: Uuid,
    /// Of the job that does it.
    pub id: Uuid,
    pub number: i64,
    pub floor: DateTime<Utc>,
    pub state: String,
    /// Different messages that Microsoft showed.
    pub found: i64,
    /// Of these, the ones that were not there before.
    pub stored: i64,
    pub expected: Option<i64>,
    pub requests: i64,
    /// When its progress was told of last.
    pub told_at: Option<DateTime<Utc>>,
    pub started_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub finished_at: Option<DateTime<Utc>>,
}

macro_rules! columns {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            "mailbox_id, id, number, floor, state, found, stored, expected, requests, told_at, started_at, updated_at, \
             finished_at",
            $after
        )
    };
}

pub async fn find(tx: &mut Tx, mailbox: Uuid) -> Result<Option<Backfill>> {
    Ok(sql!(tx, optional Backfill, columns!("SELECT ", " FROM backfills WHERE mailbox_id = $1"), mailbox)?)
}

/// Begins the next one; `None` while one runs.
pub async fn begin(
    tx: &mut Tx,
    mailbox: Uuid,
    id: Uuid,
    floor: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<Option<Backfill>> {
    Ok(sql!(
        tx,
        optional Backfill,
        columns!(
            "INSERT INTO backfills (mailbox_id, id, number, floor, state, started_at, updated_at) \
             VALUES ($1, $2, 1, $3, 'running', $4, $4) \
             ON CONFLICT (mailbox_id) DO UPDATE SET id = excluded.id, number = backfills.number + 1, \
             floor = excluded.floor, \
             state = 'running', found = 0, stored = 0, expected = NULL, requests = 0, told_at = NULL, \
             started_at = excluded.started_at, updated_at = excluded.updated_at, finished_at = NULL \
             WHERE backfills.state <> 'running' RETURNING ",
            ""
        ),
        mailbox,
        id,
        floor,
        now,
    )?)
}

/// Counts one page, laid down in the same transaction; `None` when it was cancelled meanwhile.
pub async fn count(
    tx: &mut Tx,
    mailbox: Uuid,
    number: i64,
    (found, requests): (i64, i64),
    now: DateTime<Utc>,
) -> Result<Option<Backfill>> {
    Ok(sql!(
        tx,
        optional Backfill,
        columns!(
            "UPDATE backfills SET found = found + $3, stored = stored + $3, requests = requests + $4, \
             updated_at = $5 WHERE mailbox_id = $1 AND number = $2 AND state = 'running' RETURNING ",
            ""
        ),
        mailbox,
        number,
        found,
        requests,
        now,
    )?)
}

pub async fn expect(tx: &mut Tx, mailbox: Uuid, number: i64, expected: i64) -> Result<()> {
    sql!(
        tx,
        execute,
        "UPDATE backfills SET expected = $3 WHERE mailbox_id = $1 AND number = $2",
        mailbox,
        number,
        expected,
    )?;
    Ok(())
}

pub async fn told(tx: &mut Tx, mailbox: Uuid, number: i64, now: DateTime<Utc>) -> Result<()> {
    sql!(
        tx,
        execute,
        "UPDATE backfills SET told_at = $3 WHERE mailbox_id = $1 AND number = $2",
        mailbox,
        number,
        now,
    )?;
    Ok(())
}

/// Ends the one that runs; `None` when none does. What is stored of it is counted once more, from what is there.
pub async fn end(
    tx: &mut Tx,
    mailbox: Uuid,
    state: &'static str,
    now: DateTime<Utc>,
) -> Result<Option<Backfill>> {
    let ended = sql!(
        tx,
        execute,
        "UPDATE backfills SET state = $2, updated_at = $3, finished_at = $3 \
         WHERE mailbox_id = $1 AND state = 'running'",
        mailbox,
        state,
        now,
    )?;
    if ended == 0 {
        return Ok(None);
    }
    // By itself: PostgreSQL would count as of before a page that was being laid down when the row was waited for.
    Ok(sql!(
        tx,
        optional Backfill,
        columns!(
            "UPDATE backfills SET stored = (SELECT COUNT(*) FROM messages \
             WHERE messages.mailbox_id = backfills.mailbox_id AND messages.backfill = backfills.number) \
             WHERE mailbox_id = $1 RETURNING ",
            ""
        ),
        mailbox,
    )?)
}
