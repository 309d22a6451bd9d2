//! The table `messages`: the shared inbox.
//!
//! The invariant: an id is compared byte by byte and never changed in spelling; a message that left its folder is
//! `doubtful` until it was looked for by id, and only then `removed`.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use super::{Result, Tx, padded};
use crate::{sql, sql_many};

pub const PRESENT: &str = "present";
pub const DOUBTFUL: &str = "doubtful";
pub const REMOVED: &str = "removed";

#[derive(Clone, PartialEq, FromRow)]
pub struct Message {
    pub mailbox_id: Uuid,
    pub id: String,
    pub folder_id: String,
    pub internet_message_id: Option<String>,
    pub conversation_id: Option<String>,
    pub received_at: DateTime<Utc>,
    pub subject: Option<String>,
    pub is_read: bool,
    pub is_draft: bool,
    pub detail: String,
    pub state: String,
    /// The last sweep of its folder that saw it.
    pub sweep: i64,
    /// The last backfill that found it.
    pub backfill: i64,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// Content never shows itself in a log.
impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message").field("id", &self.id).field("state", &self.state).finish_non_exhaustive()
    }
}

const COLUMNS: &str = "mailbox_id, id, folder_id, internet_message_id, conversation_id, received_at, subject, \
     is_read, is_draft, detail, state, sweep, backfill, created_at, updated_at";

/// In one statement.
const MOST_LOOKS: usize = 64;
const MOST_NAMESAKES: i64 = 5;

pub async fn find(tx: &mut Tx, mailbox: Uuid, id: &str) -> Result<Option<Message>> {
    Ok(by_ids(tx, mailbox, &[id.to_owned()]).await?.pop())
}

/// One look into the index for each. As a list of ids PostgreSQL reads the whole mailbox for them, and goes on doing so,
/// when it made its plan while the table was small.
pub async fn by_ids(tx: &mut Tx, mailbox: Uuid, ids: &[String]) -> Result<Vec<Message>> {
    let mut found = Vec::new();
    for some in ids.chunks(MOST_LOOKS) {
        found.extend(sql_many!(tx, all Message, |query| {
            let mut looks = query.separated(" UNION ALL ");
            for (id, again) in padded(some, |_| 0) {
                looks.push("SELECT ").push_unseparated(COLUMNS).push_unseparated(" FROM messages WHERE mailbox_id = ");
                looks.push_bind_unseparated(mailbox).push_unseparated(" AND id = ");
                looks.push_bind_unseparated((!again).then(|| id.clone()));
            }
        })?);
    }
    Ok(found)
}

/// Ids and names of those that are here under one of these names (Message-IDs). A name that many have is none.
pub async fn named(tx: &mut Tx, mailbox: Uuid, names: &[String]) -> Result<Vec<(String, String)>> {
    let mut found: Vec<(String, String)> = Vec::new();
    for some in names.chunks(MOST_LOOKS) {
        found.extend(sql_many!(tx, all(String, String), |query| {
            let mut looks = query.separated(" UNION ALL ");
            for (name, again) in padded(some, |_| 0) {
                looks.push(
                    "SELECT id, internet_message_id FROM (SELECT id, internet_message_id FROM messages \
                     WHERE state <> 'removed' AND mailbox_id = ",
                );
                looks.push_bind_unseparated(mailbox).push_unseparated(" AND internet_message_id = ");
                looks.push_bind_unseparated((!again).then(|| name.clone()));
                looks.push_unseparated(" LIMIT ").push_bind_unseparated(MOST_NAMESAKES + 1);
                looks.push_unseparated(") AS looked");
            }
        })?);
    }
    let mut times: HashMap<String, i64> = HashMap::new();
    for (_, name) in &found {
        *times.entry(name.clone()).or_default() += 1;
    }
    found.retain(|(_, name)| times.get(name).is_some_and(|times| *times <= MOST_NAMESAKES));
    Ok(found)
}

/// Writes whole rows; a row that is there keeps only the moment it was made.
pub async fn write(tx: &mut Tx, messages: &[Message]) -> Result<()> {
    if messages.is_empty() {
        return Ok(());
    }
    sql_many!(tx, execute, |query| {
        query.push("INSERT INTO messages (").push(COLUMNS).push(") ");
        query.push_values(messages, |mut row, message| {
            row.push_bind(message.mailbox_id)
                .push_bind(message.id.clone())
                .push_bind(message.folder_id.clone())
                .push_bind(message.internet_message_id.clone())
                .push_bind(message.conversation_id.clone())
                .push_bind(message.received_at)
                .push_bind(message.subject.clone())
                .push_bind(message.is_read)
                .push_bind(message.is_draft)
                .push_bind(message.detail.clone())
                .push_bind(message.state.clone())
                .push_bind(message.sweep)
                .push_bind(message.backfill)
                .push_bind(message.created_at)
                .push_bind(message.updated_at);
        });
        query.push(
            " ON CONFLICT (mailbox_id, id) DO UPDATE SET folder_id = excluded.folder_id, \
             internet_message_id = excluded.internet_message_id, conversation_id = excluded.conversation_id, \
             received_at = excluded.received_at, subject = excluded.subject, is_read = excluded.is_read, \
             is_draft = excluded.is_draft, detail = excluded.detail, state = excluded.state, \
             sweep = excluded.sweep, backfill = excluded.backfill, updated_at = excluded.updated_at",
        );
    })?;
    Ok(())
}

/// Marks rows that are as they were as seen by a sweep or found by a backfill.
pub async fn mark(tx: &mut Tx, mailbox: Uuid, ids: &[String], column: Mark, number: i64) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    sql_many!(tx, execute, |query| {
        query.push("UPDATE messages SET ").push(column.name()).push(" = ").push_bind(number);
        query.push(" WHERE mailbox_id = ").push_bind(mailbox).push(" AND id IN (");
        let mut list = query.separated(", ");
        for (id, _) in padded(ids, |_| 0) {
            list.push_bind(id.clone());
        }
        query.push(")");
    })?;
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    Sweep,
    Backfill,
}

impl Mark {
    fn name(self) -> &'static str {
        match self {
            Self::Sweep => "sweep",
            Self::Backfill => "backfill",
        }
    }
}

/// The same message under another id, as after a move with Outlook for the desktop.
pub async fn rename(tx: &mut Tx, mailbox: Uuid, from: &str, to: &str) -> Result<()> {
    sql!(tx, execute, "UPDATE messages SET id = $3 WHERE mailbox_id = $1 AND id = $2", mailbox, from, to)?;
    Ok(())
}

/// These left their folder. Ids that stand in another folder by now are none of this folder's business.
pub async fn doubt(
    tx: &mut Tx,
    mailbox: Uuid,
    folder: &str,
    ids: &[String],
    now: DateTime<Utc>,
) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    sql_many!(tx, execute, |query| {
        query.push("UPDATE messages SET state = 'doubtful', updated_at = ").push_bind(now);
        query.push(" WHERE mailbox_id = ").push_bind(mailbox);
        query.push(" AND folder_id = ").push_bind(folder.to_owned());
        query.push(" AND state = 'present' AND id IN (");
        let mut list = query.separated(", ");
        for (id, _) in padded(ids, |_| 0) {
            list.push_bind(id.clone());
        }
        query.push(")");
    })?;
    Ok(())
}

/// What a sweep from `from` down to `floor` should have seen in this folder and did not.
pub async fn doubt_unseen(
    tx: &mut Tx,
    mailbox: Uuid,
    folder: &str,
    sweep: i64,
    (floor, from): (DateTime<Utc>, DateTime<Utc>),
    now: DateTime<Utc>,
) -> Result<u64> {
    Ok(sql!(
        tx,
        execute,
        "UPDATE messages SET state = 'doubtful', updated_at = $6 WHERE mailbox_id = $1 AND folder_id = $2 \
         AND sweep < $3 AND received_at >= $4 AND received_at < $5 AND state = 'present'",
        mailbox,
        folder,
        sweep,
        floor,
        from,
        now,
    )?)
}

/// All of a folder that is gone.
pub async fn doubt_folder(tx: &mut Tx, mailbox: Uuid, folder: &str, now: DateTime<Utc>) -> Result<()> {
    sql!(
        tx,
        execute,
        "UPDATE messages SET state = 'doubtful', updated_at = $3 \
         WHERE mailbox_id = $1 AND folder_id = $2 AND state = 'present'",
        mailbox,
        folder,
        now,
    )?;
    Ok(())
}

pub async fn doubtful(tx: &mut Tx, mailbox: Uuid, limit: i64) -> Result<Vec<Message>> {
    Ok(sql_many!(tx, all Message, |query| {
        query.push("SELECT ").push(COLUMNS).push(" FROM messages WHERE state = 'doubtful' AND mailbox_id = ");
        query.push_bind(mailbox);
        query.push(" ORDER BY updated_at, id LIMIT ").push_bind(limit);
    })?)
}

/// It is nowhere in the mailbox. What was said of it is kept.
pub async fn remove(tx: &mut Tx, mailbox: Uuid, id: &str, now: DateTime<Utc>) -> Result<bool> {
    let removed = sql!(
        tx,
        execute,
        "UPDATE messages SET state = 'removed', updated_at = $3 \
         WHERE mailbox_id = $1 AND id = $2 AND state <> 'removed'",
        mailbox,
        id,
        now,
    )?;
    Ok(removed == 1)
}

/// What a listing may be narrowed by. The cursor is the last row's `(received_at, id)`.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub folder: Option<String>,
    pub since: Option<DateTime<Utc>>,
    pub conversation: Option<String>,
    pub after: Option<(DateTime<Utc>, String)>,
    pub limit: i64,
}

/// Newest first; what was removed is left out.
pub async fn list(tx: &mut Tx, mailbox: Uuid, filter: &Filter) -> Result<Vec<Message>> {
    Ok(sql_many!(tx, all Message, |query| {
        query.push("SELECT ").push(COLUMNS).push(" FROM messages WHERE mailbox_id = ").push_bind(mailbox);
        query.push(" AND state <> 'removed'");
        if let Some(folder) = &filter.folder {
            query.push(" AND folder_id = ").push_bind(folder.clone());
        }
        if let Some(conversation) = &filter.conversation {
            query.push(" AND conversation_id = ").push_bind(conversation.clone());
        }
        if let Some(since) = filter.since {
            query.push(" AND received_at >= ").push_bind(since);
        }
        if let Some((received_at, id)) = &filter.after {
            query.push(" AND (received_at, id) < (").push_bind(*received_at);
            query.push(", ").push_bind(id.clone()).push(")");
        }
        query.push(" ORDER BY received_at DESC, id DESC LIMIT ").push_bind(filter.limit);
    })?)
}

/// How many a backfill found, as far as no later one found them again.
pub async fn count_filled(tx: &mut Tx, mailbox: Uuid, backfill: i64) -> Result<i64> {
    let (count,) = sql!(
        tx,
        one(i64,),
        "SELECT COUNT(*) FROM messages WHERE mailbox_id = $1 AND backfill = $2",
        mailbox,
        backfill,
    )?;
    Ok(count)
}

/// How many of a folder are there from `floor` on.
pub async fn count_between(
    tx: &mut Tx,
    mailbox: Uuid,
    folder: &str,
    (from, to): (DateTime<Utc>, DateTime<Utc>),
) -> Result<i64> {
    let (count,) = sql!(
        tx,
        one(i64,),
        "SELECT COUNT(*) FROM messages WHERE mailbox_id = $1 AND folder_id = $2 AND received_at >= $3 \
         AND received_at < $4 AND state = 'present'",
        mailbox,
        folder,
        from,
        to,
    )?;
    Ok(count)
}
