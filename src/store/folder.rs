//! The table `mailbox_folders`: where each folder of a mailbox is followed from.
//!
//! The invariant: a folder's cursor is written with the rows of the page it came with, and only by whoever read the
//! version that stands in the row. The backfill has cursors of its own, so that it and the polls never wait for each
//! other.

use chrono::{DateTime, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use super::{Result, Tx, padded};
use crate::{sql, sql_many};

pub const PRESENT: &str = "present";
pub const GONE: &str = "gone";

#[derive(Debug, Clone, FromRow)]
pub struct Folder {
    pub mailbox_id: Uuid,
    pub id: String,
    pub parent_id: Option<String>,
    pub name: String,
    pub well_known: Option<String>,
    pub hidden: bool,
    pub state: String,
    /// `delta`, or `list` where delta is refused.
    pub rung: String,
    pub link: Option<String>,
    /// `next` within a round, `delta` between two.
    pub link_kind: Option<String>,
    pub link_version: i64,
    pub sweep: i64,
    pub sweep_before: Option<DateTime<Utc>>,
    pub sweep_from: Option<DateTime<Utc>>,
    pub sweep_floor: Option<DateTime<Utc>>,
    /// What it holds is to be read again as a whole.
    pub lost_at: Option<DateTime<Utc>>,
    pub fill_before: Option<DateTime<Utc>>,
    pub fill_floor: Option<DateTime<Utc>>,
    /// How often it was read again since it was filled.
    pub fill_again: i64,
    /// Since when less is stored than Microsoft counts.
    pub doubted_at: Option<DateTime<Utc>>,
    pub newest: Option<DateTime<Utc>>,
    pub due_at: Option<DateTime<Utc>>,
    pub noticed_at: Option<DateTime<Utc>>,
    pub polled_at: Option<DateTime<Utc>>,
    pub changed_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl Folder {
    pub fn is_well_known(&self, name: &str) -> bool {
        self.well_known.as_deref() == Some(name)
    }

    /// When it is to be looked at: at once where it may have changed, or a sweep is under way.
    pub fn next_look(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        let at_once = self.noticed_at > self.polled_at || self.sweep_before.is_some();
        if at_once { now } else { self.due_at.unwrap_or(now) }
    }

    /// Something is left to be filled in.
    pub fn fills(&self) -> bool {
        self.fill_before.is_some()
    }
}

/// What Microsoft tells of a folder.
#[derive(Debug, Clone)]
pub struct Seen {
    pub id: String,
    pub parent_id: Option<String>,
    pub name: String,
    pub well_known: Option<String>,
    pub hidden: bool,
}

const COLUMNS: &str = "mailbox_id, id, parent_id, name, well_known, hidden, state, rung, link, link_kind, \
     link_version, sweep, sweep_before, sweep_from, sweep_floor, lost_at, fill_before, fill_floor, fill_again, doubted_at, newest, due_at, \
     noticed_at, polled_at, changed_at, created_at, updated_at";

/// All that are there, Inbox and Sent Items first.
pub async fn of_mailbox(tx: &mut Tx, mailbox: Uuid) -> Result<Vec<Folder>> {
    let mut folders = sql_many!(tx, all Folder, |query| {
        query.push("SELECT ").push(COLUMNS).push(" FROM mailbox_folders WHERE state = 'present' AND mailbox_id = ");
        query.push_bind(mailbox);
        query.push(" ORDER BY id");
    })?;
    folders.sort_by_key(|folder| (!folder.is_well_known("inbox"), !folder.is_well_known("sentitems")));
    Ok(folders)
}

pub async fn find(tx: &mut Tx, mailbox: Uuid, id: &str) -> Result<Option<Folder>> {
    Ok(sql_many!(tx, all Folder, |query| {
        query.push("SELECT ").push(COLUMNS).push(" FROM mailbox_folders WHERE mailbox_id = ");
        query.push_bind(mailbox);
        query.push(" AND id = ").push_bind(id.to_owned());
    })?
    .pop())
}

/// Writes down what was seen of one folder; one that is back begins anew.
pub async fn saw(tx: &mut Tx, mailbox: Uuid, seen: &Seen, now: DateTime<Utc>) -> Result<()> {
    sql!(
        tx,
        execute,
        "INSERT INTO mailbox_folders (mailbox_id, id, parent_id, name, well_known, hidden, state, rung, due_at, \
         created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, 'present', 'delta', $7, $7, $7) \
         ON CONFLICT (mailbox_id, id) DO UPDATE SET parent_id = excluded.parent_id, name = excluded.name, \
         well_known = COALESCE(excluded.well_known, mailbox_folders.well_known), hidden = excluded.hidden, \
         due_at = CASE WHEN mailbox_folders.state = 'gone' THEN excluded.due_at ELSE mailbox_folders.due_at END, \
         polled_at = CASE WHEN mailbox_folders.state = 'gone' THEN NULL ELSE mailbox_folders.polled_at END, \
         fill_floor = CASE WHEN mailbox_folders.state = 'gone' THEN NULL ELSE mailbox_folders.fill_floor END, \
         sweep_from = CASE WHEN mailbox_folders.state = 'gone' THEN NULL ELSE mailbox_folders.sweep_from END, \
         newest = CASE WHEN mailbox_folders.state = 'gone' THEN NULL ELSE mailbox_folders.newest END, \
         state = 'present', updated_at = excluded.updated_at \
         WHERE mailbox_folders.name <> excluded.name OR mailbox_folders.hidden <> excluded.hidden \
         OR mailbox_folders.state <> 'present' OR COALESCE(mailbox_folders.parent_id, '') <> COALESCE(excluded.parent_id, '') \
         OR COALESCE(mailbox_folders.well_known, '') <> COALESCE(excluded.well_known, mailbox_folders.well_known, '')",
        mailbox,
        &seen.id,
        seen.parent_id.as_deref(),
        &seen.name,
        seen.well_known.as_deref(),
        seen.hidden,
        now,
    )?;
    Ok(())
}

/// A folder that is gone takes its cursors along; its messages are looked for by id.
pub async fn gone(tx: &mut Tx, mailbox: Uuid, id: &str, now: DateTime<Utc>) -> Result<()> {
    sql!(
        tx,
        execute,
        "UPDATE mailbox_folders SET state = 'gone', link = NULL, link_kind = NULL, link_version = link_version + 1, \
         sweep_before = NULL, fill_before = NULL, due_at = NULL, updated_at = $3 \
         WHERE mailbox_id = $1 AND id = $2 AND state = 'present'",
        mailbox,
        id,
        now,
    )?;
    Ok(())
}

/// Forgets every folder and its cursors, as when a mailbox is connected anew.
pub async fn forget(tx: &mut Tx, mailbox: Uuid) -> Result<()> {
    sql!(tx, execute, "DELETE FROM mailbox_folders WHERE mailbox_id = $1", mailbox)?;
    Ok(())
}

/// Writes the cursor of a poll, if nobody else did since it was read.
pub async fn advance(tx: &mut Tx, folder: &Folder, now: DateTime<Utc>) -> Result<bool> {
    let written = sql!(
        tx,
        execute,
        "UPDATE mailbox_folders SET rung = $4, link = $5, link_kind = $6, link_version = link_version + 1, \
         sweep = $7, sweep_before = $8, sweep_from = $9, sweep_floor = $10, newest = $11, \
         due_at = $12, polled_at = $13, changed_at = $14, lost_at = $15, updated_at = $16 \
         WHERE mailbox_id = $1 AND id = $2 AND link_version = $3",
        folder.mailbox_id,
        &folder.id,
        folder.link_version,
        &folder.rung,
        folder.link.as_deref(),
        folder.link_kind.as_deref(),
        folder.sweep,
        folder.sweep_before,
        folder.sweep_from,
        folder.sweep_floor,
        folder.newest,
        folder.due_at,
        folder.polled_at,
        folder.changed_at,
        folder.lost_at,
        now,
    )?;
    Ok(written == 1)
}

/// It is not looked at before then, unless something is noticed in it.
pub async fn put_off(tx: &mut Tx, folder: &Folder, due_at: DateTime<Utc>) -> Result<()> {
    sql!(
        tx,
        execute,
        "UPDATE mailbox_folders SET due_at = $3 WHERE mailbox_id = $1 AND id = $2",
        folder.mailbox_id,
        &folder.id,
        due_at,
    )?;
    Ok(())
}

/// Where the backfill goes on in a folder, if nobody else moved it since it was read.
pub async fn fill(
    tx: &mut Tx,
    folder: &Folder,
    before: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Result<bool> {
    let written = sql!(
        tx,
        execute,
        "UPDATE mailbox_folders SET fill_before = $4, updated_at = $5 \
         WHERE mailbox_id = $1 AND id = $2 AND fill_before = $3",
        folder.mailbox_id,
        &folder.id,
        folder.fill_before,
        before,
        now,
    )?;
    Ok(written == 1)
}

/// Every folder is filled from `before` down to `floor`.
pub async fn begin_fill(
    tx: &mut Tx,
    mailbox: Uuid,
    before: DateTime<Utc>,
    floor: DateTime<Utc>,
) -> Result<()> {
    sql!(
        tx,
        execute,
        "UPDATE mailbox_folders SET fill_before = $2, fill_floor = $3, fill_again = 0, doubted_at = NULL \
         WHERE mailbox_id = $1 AND state = 'present'",
        mailbox,
        before,
        floor,
    )?;
    Ok(())
}

/// One is filled once more.
pub async fn fill_again(tx: &mut Tx, folder: &Folder, before: DateTime<Utc>) -> Result<()> {
    sql!(
        tx,
        execute,
        "UPDATE mailbox_folders SET fill_before = $3, fill_again = fill_again + 1, doubted_at = NULL \
         WHERE mailbox_id = $1 AND id = $2 AND state = 'present'",
        folder.mailbox_id,
        &folder.id,
        before,
    )?;
    Ok(())
}

/// Less is stored of it than Microsoft counts.
pub async fn doubt(tx: &mut Tx, folder: &Folder, now: DateTime<Utc>) -> Result<()> {
    sql!(
        tx,
        execute,
        "UPDATE mailbox_folders SET doubted_at = $3 WHERE mailbox_id = $1 AND id = $2",
        folder.mailbox_id,
        &folder.id,
        now,
    )?;
    Ok(())
}

pub async fn end_fill(tx: &mut Tx, mailbox: Uuid) -> Result<()> {
    sql!(tx, execute, "UPDATE mailbox_folders SET fill_before = NULL WHERE mailbox_id = $1", mailbox)?;
    Ok(())
}

/// Notifications say that these folders may have changed.
pub async fn noticed(tx: &mut Tx, folders: &[(Uuid, String)], now: DateTime<Utc>) -> Result<()> {
    if folders.is_empty() {
        return Ok(());
    }
    sql_many!(tx, execute, |query| {
        query.push("UPDATE mailbox_folders SET noticed_at = ").push_bind(now);
        query.push(" WHERE (mailbox_id, id) IN (");
        query.push_values(padded(folders, |(_, id)| id.len()), |mut row, ((mailbox, id), _)| {
            row.push_bind(*mailbox).push_bind(id.clone());
        });
        query.push(")");
    })?;
    Ok(())
}

/// All folders of these mailboxes may have changed.
pub async fn all_noticed(tx: &mut Tx, mailboxes: &[Uuid], now: DateTime<Utc>) -> Result<()> {
    for mailbox in mailboxes {
        sql!(
            tx,
            execute,
            "UPDATE mailbox_folders SET noticed_at = $2 WHERE mailbox_id = $1 AND state = 'present'",
            *mailbox,
            now,
        )?;
    }
    Ok(())
}
