//! The table `outbox`: what a committed state still owes to the broker.

use chrono::{DateTime, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use super::{Result, Tx, padded};
use crate::{sql, sql_many};

/// Rows in one statement: both engines limit its parameters.
const MOST_ROWS: usize = 500;

/// A message to be owed.
#[derive(Debug, Clone)]
pub struct Owed {
    pub message_id: Uuid,
    /// Messages of one subject leave in the order they were written.
    pub subject: String,
    pub target: String,
    pub body: String,
    pub headers: String,
}

#[derive(Debug, Clone, FromRow)]
pub struct OwedRow {
    pub seq: i64,
    pub message_id: Uuid,
    pub subject: String,
    pub target: String,
    pub body: String,
    pub headers: String,
    /// Until then nobody else relays it.
    pub claimed_until: DateTime<Utc>,
}

/// Writes messages, already claimed for `holder` unless an older message of the subject still waits.
/// Returns `(message_id, seq, claimed)`.
pub async fn owe(
    tx: &mut Tx,
    messages: &[Owed],
    holder: &str,
    until: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<Vec<(Uuid, i64, bool)>> {
    let mut rows = Vec::with_capacity(messages.len());
    for messages in messages.chunks(MOST_ROWS) {
        rows.extend(owe_some(tx, messages, holder, until, now).await?);
    }
    Ok(rows)
}

async fn owe_some(
    tx: &mut Tx,
    messages: &[Owed],
    holder: &str,
    until: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<Vec<(Uuid, i64, bool)>> {
    let rows = sql_many!(tx, all(Uuid, i64, Option<String>), |query| {
        query.push("WITH v(v_message, v_subject, v_target, v_body, v_headers, v_holder, v_until) AS (");
        query.push_values(padded(messages, |message| message.body.len()), |mut row, (message, repeated)| {
            row.push_bind((!repeated).then_some(message.message_id))
                .push_bind(message.subject.clone())
                .push_bind(message.target.clone())
                .push_bind(message.body.clone())
                .push_bind(message.headers.clone())
                .push_bind(holder.to_owned())
                .push_bind(until);
        });
        // Asked once for a subject: what has left is in the index still, until it is cleaned up.
        query.push(
            "), waiting(w_subject) AS (SELECT v_subject FROM (SELECT DISTINCT v_subject FROM v) AS s \
             WHERE EXISTS (SELECT 1 FROM outbox WHERE subject = v_subject)) \
             INSERT INTO outbox (message_id, subject, target, body, headers, created_at, claimed_by, \
             claimed_until) SELECT v_message, v_subject, v_target, v_body, v_headers, ",
        );
        query.push_bind(now);
        query.push(
            ", CASE WHEN v_subject IN (SELECT w_subject FROM waiting) THEN NULL ELSE v_holder END, \
             CASE WHEN v_subject IN (SELECT w_subject FROM waiting) THEN NULL ELSE v_until END \
             FROM v WHERE v_message IS NOT NULL RETURNING message_id, seq, claimed_by",
        );
    })?;
    Ok(rows.into_iter().map(|(id, seq, holder)| (id, seq, holder.is_some())).collect())
}

/// Claims the oldest messages that nobody relays. A message waits while another one of its subject is still being
/// relayed, or put off: whatever is claimed is older.
pub async fn claim(
    tx: &mut Tx,
    holder: &str,
    now: DateTime<Utc>,
    until: DateTime<Utc>,
    limit: usize,
) -> Result<Vec<OwedRow>> {
    // One relay claims at a time, so that what it reads about older claims is settled.
    super::gate::lock(tx, &["\u{1}outbox".to_owned()]).await?;
    let mut rows = sql!(
        tx,
        all OwedRow,
        "UPDATE outbox SET claimed_by = $1, claimed_until = $3 WHERE seq IN ( \
            SELECT seq FROM outbox WHERE (claimed_until IS NULL OR claimed_until < $2) AND subject NOT IN ( \
                SELECT subject FROM outbox WHERE claimed_until >= $2) \
            ORDER BY seq LIMIT $4) \
         RETURNING seq, message_id, subject, target, body, headers, claimed_until",
        holder,
        now,
        until,
        i64::try_from(limit).unwrap_or(i64::MAX),
    )?;
    rows.sort_by_key(|row| row.seq);
    Ok(rows)
}

pub async fn sent(tx: &mut Tx, seqs: &[i64]) -> Result<()> {
    if seqs.is_empty() {
        return Ok(());
    }
    sql_many!(tx, execute, |query| {
        query.push("DELETE FROM outbox WHERE seq IN (");
        let mut list = query.separated(", ");
        for (seq, _) in padded(seqs, |_| 0) {
            list.push_bind(*seq);
        }
        query.push(")");
    })?;
    Ok(())
}

/// Keeps a message that could not be sent, for another try not before `until`.
pub async fn keep(tx: &mut Tx, seq: i64, error: &str, until: DateTime<Utc>) -> Result<()> {
    sql!(
        tx,
        execute,
        "UPDATE outbox SET attempts = attempts + 1, last_error = $2, claimed_by = NULL, claimed_until = $3 \
         WHERE seq = $1",
        seq,
        error,
        until,
    )?;
    Ok(())
}

/// Clears away what has left. Until that is done PostgreSQL walks past all of it in search of what has not, and its own
/// cleaning comes by once a minute, or never where it is turned off. SQLite leaves nothing behind.
pub async fn tidy(tx: &mut Tx) -> Result<()> {
    if matches!(tx, Tx::Postgres(_)) {
        sql!(tx, execute, "VACUUM (SKIP_LOCKED, TRUNCATE FALSE) outbox")?;
    }
    Ok(())
}

/// How many messages are owed, and since when the oldest.
pub async fn backlog(tx: &mut Tx) -> Result<(i64, Option<DateTime<Utc>>)> {
    Ok(sql!(tx, one(i64, Option<DateTime<Utc>>), "SELECT COUNT(*), MIN(created_at) FROM outbox")?)
}
