//! The queues of the embedded broker.
//!
//! The invariant: a row is claimed by at most one live instance, and leaves the table only by an acknowledgement of
//! the instance that claims it.

use chrono::{DateTime, Utc};

use super::{Result, Tx};
use crate::{sql, sql_many};

/// SQLite and PostgreSQL bound the parameters of one statement.
const ROWS: usize = 1_000;

// The formatter takes a tuple behind a word for a call, and drops its comma.
type Seq = (i64,);
type Name = (String,);
type Due = (DateTime<Utc>,);

/// A message to be kept.
#[derive(Debug, Clone)]
pub struct New {
    pub queue: String,
    pub routing_key: String,
    pub message_id: String,
    pub content_type: &'static str,
    pub body: bytes::Bytes,
    pub headers: String,
    pub visible_at: DateTime<Utc>,
}

#[derive(Debug, sqlx::FromRow)]
pub struct Row {
    pub seq: i64,
    pub routing_key: String,
    pub message_id: String,
    pub content_type: String,
    pub body: Vec<u8>,
    pub headers: String,
    pub death: Option<String>,
    pub visible_at: DateTime<Utc>,
    /// With the present delivery.
    pub deliveries: i32,
    pub created_at: DateTime<Utc>,
}

pub async fn insert(tx: &mut Tx, rows: &[New], now: DateTime<Utc>) -> Result<()> {
    for rows in rows.chunks(ROWS) {
        sql_many!(tx, execute, |builder| {
            builder.push(
                "INSERT INTO queue_messages
                 (queue, routing_key, message_id, content_type, body, headers, visible_at, created_at) ",
            );
            builder.push_values(rows, |mut values, row| {
                values
                    .push_bind(row.queue.as_str())
                    .push_bind(row.routing_key.as_str())
                    .push_bind(row.message_id.as_str())
                    .push_bind(row.content_type)
                    .push_bind(&row.body[..])
                    .push_bind(row.headers.as_str())
                    .push_bind(row.visible_at)
                    .push_bind(now);
            });
        })?;
    }
    Ok(())
}

/// Claims what is due, oldest first.
pub async fn claim(
    tx: &mut Tx,
    queue: &str,
    holder: &str,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Row>> {
    let mut rows = sql!(
        tx,
        all Row,
        "UPDATE queue_messages SET claimed_by = $1, deliveries = deliveries + 1
         WHERE claimed_by IS NULL AND seq IN (
             SELECT seq FROM queue_messages WHERE queue = $2 AND visible_at <= $3 AND claimed_by IS NULL
             ORDER BY visible_at, seq LIMIT $4)
         RETURNING seq, routing_key, message_id, content_type, body, headers, death, visible_at, deliveries, created_at",
        holder,
        queue,
        now,
        limit,
    )?;
    rows.sort_by_key(|row| (row.visible_at, row.seq));
    Ok(rows)
}

/// When the next message of the queue is due.
pub async fn next_due(tx: &mut Tx, queue: &str) -> Result<Option<DateTime<Utc>>> {
    let due = sql!(
        tx,
        optional Due,
        "SELECT visible_at FROM queue_messages WHERE queue = $1 AND claimed_by IS NULL
         ORDER BY visible_at, seq LIMIT 1",
        queue,
    )?;
    Ok(due.map(|(due,)| due))
}

/// Acknowledges; returns those that were still ours.
pub async fn delete(tx: &mut Tx, holder: &str, seqs: &[i64]) -> Result<Vec<i64>> {
    let mut deleted = Vec::with_capacity(seqs.len());
    for seqs in seqs.chunks(ROWS) {
        let rows = sql_many!(tx, all Seq, |builder| {
            builder.push("DELETE FROM queue_messages WHERE claimed_by = ").push_bind(holder);
            within(&mut builder, seqs);
            builder.push(" RETURNING seq");
        })?;
        deleted.extend(rows.into_iter().map(|(seq,)| seq));
    }
    Ok(deleted)
}

/// Gives back what was not started: that delivery does not count.
pub async fn requeue(tx: &mut Tx, holder: &str, seqs: &[i64]) -> Result<Vec<i64>> {
    let mut returned = Vec::with_capacity(seqs.len());
    for seqs in seqs.chunks(ROWS) {
        let rows = sql_many!(tx, all Seq, |builder| {
            builder
                .push("UPDATE queue_messages SET claimed_by = NULL, deliveries = deliveries - 1 WHERE claimed_by = ")
                .push_bind(holder);
            within(&mut builder, seqs);
            builder.push(" RETURNING seq");
        })?;
        returned.extend(rows.into_iter().map(|(seq,)| seq));
    }
    Ok(returned)
}

/// Gives back what was dropped without an answer, as by a crash; whatever has been delivered more than `limit`
/// times goes to the queue `dead`.
pub async fn release(
    tx: &mut Tx,
    holder: &str,
    seqs: &[i64],
    dead: &str,
    limit: i32,
    now: DateTime<Utc>,
) -> Result<()> {
    for seqs in seqs.chunks(ROWS) {
        sql_many!(tx, execute, |builder| {
            builder
                .push("UPDATE queue_messages SET claimed_by = NULL, death = 'delivery_limit', deliveries = 0, visible_at = ")
                .push_bind(now)
                .push(", queue = ")
                .push_bind(dead)
                .push(" WHERE queue <> ")
                .push_bind(dead)
                .push(" AND deliveries > ")
                .push_bind(limit)
                .push(" AND claimed_by = ")
                .push_bind(holder);
            within(&mut builder, seqs);
        })?;
        sql_many!(tx, execute, |builder| {
            builder.push("UPDATE queue_messages SET claimed_by = NULL WHERE claimed_by = ").push_bind(holder);
            within(&mut builder, seqs);
        })?;
    }
    Ok(())
}

/// Gives back everything an instance holds that goes away in order.
pub async fn requeue_all(tx: &mut Tx, holder: &str) -> Result<()> {
    sql!(
        tx,
        execute,
        "UPDATE queue_messages SET claimed_by = NULL, deliveries = deliveries - 1 WHERE claimed_by = $1",
        holder,
    )?;
    Ok(())
}

/// The instances that hold claims.
pub async fn holders(tx: &mut Tx) -> Result<Vec<String>> {
    let holders = sql!(
        tx,
        all Name,
        "SELECT DISTINCT claimed_by FROM queue_messages WHERE claimed_by IS NOT NULL",
    )?;
    Ok(holders.into_iter().map(|(holder,)| holder).collect())
}

pub async fn held(tx: &mut Tx, holder: &str) -> Result<Vec<i64>> {
    let held = sql!(tx, all Seq, "SELECT seq FROM queue_messages WHERE claimed_by = $1", holder)?;
    Ok(held.into_iter().map(|(seq,)| seq).collect())
}

pub async fn ready(tx: &mut Tx, queue: &str, now: DateTime<Utc>) -> Result<i64> {
    let (ready,) = sql!(
        tx,
        one Seq,
        "SELECT COUNT(*) FROM queue_messages WHERE queue = $1 AND visible_at <= $2 AND claimed_by IS NULL",
        queue,
        now,
    )?;
    Ok(ready)
}

/// Grows when anybody, in whatever process, publishes.
pub async fn last(tx: &mut Tx) -> Result<i64> {
    let (last,) = sql!(tx, one Seq, "SELECT COALESCE(MAX(seq), 0) FROM queue_messages")?;
    Ok(last)
}

fn within<D>(builder: &mut sqlx::QueryBuilder<D>, seqs: &[i64])
where
    D: sqlx::Database,
    i64: for<'q> sqlx::Encode<'q, D> + sqlx::Type<D>,
{
    builder.push(" AND seq IN (");
    let mut list = builder.separated(", ");
    for seq in seqs {
        list.push_bind(*seq);
    }
    builder.push(")");
}
