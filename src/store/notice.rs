//! The table `notices`: what notifications told and no poll has seen yet, and the other way round.
//!
//! The invariant: a notification is one row however often it comes, and a row that waits for its other half ends when
//! that comes, or in its time.

use chrono::{DateTime, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use super::{Result, Tx, padded};
use crate::{sql, sql_many};

/// A message that a poll saw and no notification has told of yet.
const AWAITED: &str = "awaited";
/// SQLite takes 32,766 parameters, and a long statement holds up its neighbours.
const CHUNK: usize = 500;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Notice {
    pub mailbox_id: Uuid,
    pub folder_id: String,
    pub message_id: String,
    /// `created`, `updated` or `deleted`.
    pub change: String,
}

#[derive(Debug, Clone, FromRow)]
pub struct Awaited {
    pub message_id: String,
    /// When Microsoft received the message.
    pub received_at: DateTime<Utc>,
}

/// Stores what is not there yet, and says how many that were. Sorted, so that two processes with the same news wait for
/// each other in one order.
pub async fn insert(tx: &mut Tx, notices: &[Notice], now: DateTime<Utc>) -> Result<u64> {
    let mut stored = 0;
    for chunk in notices.chunks(CHUNK) {
        stored += sql_many!(tx, execute, |query| {
            query.push("INSERT INTO notices (mailbox_id, folder_id, message_id, change, received_at) ");
            query.push_values(padded(chunk, |one| one.message_id.len()), |mut row, (one, _)| {
                row.push_bind(one.mailbox_id)
                    .push_bind(one.folder_id.clone())
                    .push_bind(one.message_id.clone())
                    .push_bind(one.change.clone())
                    .push_bind(now);
            });
            query.push(" ON CONFLICT DO NOTHING");
        })?;
    }
    Ok(stored)
}

/// Takes out what notifications told of these messages, and says of which they did.
pub async fn take(tx: &mut Tx, mailbox: Uuid, folder: &str, messages: &[&str]) -> Result<Vec<String>> {
    let mut told = Vec::new();
    for chunk in messages.chunks(CHUNK) {
        let taken = sql_many!(tx, all(String,), |query| {
            query.push("DELETE FROM notices WHERE change <> 'awaited' AND mailbox_id = ").push_bind(mailbox);
            query.push(" AND folder_id = ").push_bind(folder.to_owned());
            query.push(" AND message_id IN (");
            let mut list = query.separated(", ");
            for (id, _) in padded(chunk, |id| id.len()) {
                list.push_bind((*id).to_owned());
            }
            query.push(") RETURNING message_id");
        })?;
        told.extend(taken.into_iter().map(|(id,)| id));
    }
    Ok(told)
}

/// The messages of a folder whose notifications are still to come.
pub async fn awaited(tx: &mut Tx, mailbox: Uuid, folder: &str) -> Result<Vec<Awaited>> {
    Ok(sql!(
        tx,
        all Awaited,
        "SELECT message_id, received_at FROM notices \
         WHERE change = 'awaited' AND mailbox_id = $1 AND folder_id = $2 ORDER BY received_at",
        mailbox,
        folder,
    )?)
}

/// Waits for the notification of these.
pub async fn wait_for(tx: &mut Tx, mailbox: Uuid, folder: &str, messages: &[Awaited]) -> Result<()> {
    for chunk in messages.chunks(CHUNK) {
        sql_many!(tx, execute, |query| {
            query.push("INSERT INTO notices (mailbox_id, folder_id, message_id, change, received_at) ");
            query.push_values(padded(chunk, |one| one.message_id.len()), |mut row, (one, _)| {
                row.push_bind(mailbox)
                    .push_bind(folder.to_owned())
                    .push_bind(one.message_id.clone())
                    .push_bind(AWAITED)
                    .push_bind(one.received_at);
            });
            query.push(" ON CONFLICT DO NOTHING");
        })?;
    }
    Ok(())
}

/// Waits no longer for these.
pub async fn forgo(tx: &mut Tx, mailbox: Uuid, folder: &str, messages: &[&str]) -> Result<()> {
    for chunk in messages.chunks(CHUNK) {
        sql_many!(tx, execute, |query| {
            query.push("DELETE FROM notices WHERE change = 'awaited' AND mailbox_id = ").push_bind(mailbox);
            query.push(" AND folder_id = ").push_bind(folder.to_owned());
            query.push(" AND message_id IN (");
            let mut list = query.separated(", ");
            for (id, _) in padded(chunk, |id| id.len()) {
                list.push_bind((*id).to_owned());
            }
            query.push(")");
        })?;
    }
    Ok(())
}

/// Forgets what notifications told so long ago.
pub async fn expire(tx: &mut Tx, mailbox: Uuid, folder: &str, before: DateTime<Utc>) -> Result<u64> {
    Ok(sql!(
        tx,
        execute,
        "DELETE FROM notices WHERE change <> 'awaited' AND mailbox_id = $1 AND folder_id = $2 AND received_at < $3",
        mailbox,
        folder,
        before,
    )?)
}

/// Forgets all of a mailbox.
pub async fn forget(tx: &mut Tx, mailbox: Uuid) -> Result<()> {
    sql!(tx, execute, "DELETE FROM notices WHERE mailbox_id = $1", mailbox)?;
    Ok(())
}
