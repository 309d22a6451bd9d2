//! The table `attachments`: the content of what is attached to the messages of the shared inbox.
//!
//! The invariant: a row is written once for each attachment and its content at most once; whoever ends a wanted one
//! finds it wanted, or leaves it as it is.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use super::{Result, Tx, padded};
use crate::{sql, sql_many};

pub const WANTED: &str = "wanted";
pub const KEPT: &str = "kept";
pub const REFUSED: &str = "refused";

/// One whose content is to be fetched.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Wanted {
    pub mailbox_id: Uuid,
    pub message_id: String,
    pub id: String,
    pub size: i64,
    pub received_at: DateTime<Utc>,
    /// How often it was asked for in vain.
    pub tries: i32,
}

/// What is known of the content of one, without it.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Known {
    pub message_id: String,
    pub id: String,
    pub state: String,
    pub size: i64,
    pub code: Option<String>,
}

/// A row of one column that may be empty.
type Single<T> = (Option<T>,);

/// Rows that are there already stay as they are.
pub async fn want(tx: &mut Tx, wanted: &[Wanted], now: DateTime<Utc>) -> Result<()> {
    // A statement holds only so many values.
    for some in wanted.chunks(256) {
        sql_many!(tx, execute, |query| {
            query.push(
                "INSERT INTO attachments (mailbox_id, message_id, id, state, size, received_at, due_at, ",
            );
            query.push("created_at, updated_at) ");
            query.push_values(padded(some, |_| 0), |mut row, (wanted, _)| {
                row.push_bind(wanted.mailbox_id)
                    .push_bind(wanted.message_id.clone())
                    .push_bind(wanted.id.clone())
                    .push_bind(WANTED)
                    .push_bind(wanted.size)
                    .push_bind(wanted.received_at)
                    .push_bind(now)
                    .push_bind(now)
                    .push_bind(now);
            });
            query.push(" ON CONFLICT (mailbox_id, message_id, id) DO NOTHING");
        })?;
    }
    Ok(())
}

/// The message goes by another id now.
pub async fn rename_message(tx: &mut Tx, mailbox: Uuid, from: &str, to: &str) -> Result<()> {
    sql!(
        tx,
        execute,
        "UPDATE attachments SET message_id = $3 WHERE mailbox_id = $1 AND message_id = $2",
        mailbox,
        from,
        to,
    )?;
    Ok(())
}

/// And so does what is attached to it.
pub async fn rename(tx: &mut Tx, mailbox: Uuid, message: &str, from: &str, to: &str) -> Result<()> {
    sql!(
        tx,
        execute,
        "UPDATE attachments SET id = $4 WHERE mailbox_id = $1 AND message_id = $2 AND id = $3",
        mailbox,
        message,
        from,
        to,
    )?;
    Ok(())
}

/// It is not attached to the message any more.
pub async fn remove(tx: &mut Tx, mailbox: Uuid, message: &str, id: &str) -> Result<()> {
    sql!(
        tx,
        execute,
        "DELETE FROM attachments WHERE mailbox_id = $1 AND message_id = $2 AND id = $3",
        mailbox,
        message,
        id,
    )?;
    Ok(())
}

/// The one to fetch next: of at most `most` bytes, of the newest message. With 0 there is none.
pub async fn next(tx: &mut Tx, mailbox: Uuid, most: u32, now: DateTime<Utc>) -> Result<Option<Wanted>> {
    Ok(sql!(
        tx,
        optional Wanted,
        "SELECT mailbox_id, message_id, id, size, received_at, tries FROM attachments \
         WHERE mailbox_id = $1 AND state = 'wanted' AND size <= $2 AND $2 > 0 AND due_at <= $3 \
         ORDER BY received_at DESC, message_id, id LIMIT 1",
        mailbox,
        i64::from(most),
        now,
    )?)
}

/// When one is to be fetched.
pub async fn due(tx: &mut Tx, mailbox: Uuid, most: u32) -> Result<Option<DateTime<Utc>>> {
    let (due,) = sql!(
        tx,
        one Single<DateTime<Utc>>,
        "SELECT MIN(due_at) FROM attachments \
         WHERE mailbox_id = $1 AND state = 'wanted' AND size <= $2 AND $2 > 0",
        mailbox,
        i64::from(most),
    )?;
    Ok(due)
}

pub async fn keep(tx: &mut Tx, wanted: &Wanted, content: &Bytes, now: DateTime<Utc>) -> Result<()> {
    sql!(
        tx,
        execute,
        "UPDATE attachments SET state = 'kept', content = $4, code = NULL, updated_at = $5 \
         WHERE mailbox_id = $1 AND message_id = $2 AND id = $3 AND state = 'wanted'",
        wanted.mailbox_id,
        &wanted.message_id,
        &wanted.id,
        content.as_ref(),
        now,
    )?;
    Ok(())
}

/// It will not be asked for again.
pub async fn refuse(tx: &mut Tx, wanted: &Wanted, code: &str, now: DateTime<Utc>) -> Result<()> {
    sql!(
        tx,
        execute,
        "UPDATE attachments SET state = 'refused', code = $4, updated_at = $5 \
         WHERE mailbox_id = $1 AND message_id = $2 AND id = $3 AND state = 'wanted'",
        wanted.mailbox_id,
        &wanted.message_id,
        &wanted.id,
        code,
        now,
    )?;
    Ok(())
}

/// It is asked for again at `due`.
pub async fn put_off(
    tx: &mut Tx,
    wanted: &Wanted,
    code: &str,
    due: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<()> {
    sql!(
        tx,
        execute,
        "UPDATE attachments SET tries = tries + 1, code = $4, due_at = $5, updated_at = $6 \
         WHERE mailbox_id = $1 AND message_id = $2 AND id = $3 AND state = 'wanted'",
        wanted.mailbox_id,
        &wanted.message_id,
        &wanted.id,
        code,
        due,
        now,
    )?;
    Ok(())
}

/// There is nothing to be had, and nothing to be said against asking when it is told of again.
pub async fn forget(tx: &mut Tx, wanted: &Wanted) -> Result<()> {
    sql!(
        tx,
        execute,
        "DELETE FROM attachments WHERE mailbox_id = $1 AND message_id = $2 AND id = $3 AND state = 'wanted'",
        wanted.mailbox_id,
        &wanted.message_id,
        &wanted.id,
    )?;
    Ok(())
}

/// What is known of those of these messages.
pub async fn of_messages(tx: &mut Tx, mailbox: Uuid, messages: &[String]) -> Result<Vec<Known>> {
    if messages.is_empty() {
        return Ok(Vec::new());
    }
    Ok(sql_many!(tx, all Known, |query| {
        query.push("SELECT message_id, id, state, size, code FROM attachments WHERE mailbox_id = ");
        query.push_bind(mailbox).push(" AND message_id IN (");
        let mut list = query.separated(", ");
        for (id, _) in padded(messages, |_| 0) {
            list.push_bind(id.clone());
        }
        query.push(")");
    })?)
}

pub async fn content(tx: &mut Tx, mailbox: Uuid, message: &str, id: &str) -> Result<Option<Vec<u8>>> {
    let found = sql!(
        tx,
        optional Single<Vec<u8>>,
        "SELECT content FROM attachments \
         WHERE mailbox_id = $1 AND message_id = $2 AND id = $3 AND state = 'kept'",
        mailbox,
        message,
        id,
    )?;
    Ok(found.and_then(|(content,)| content))
}
