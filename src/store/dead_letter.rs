//! The table `dead_letters`: what will not be tried again unless an operator says so.

use chrono::{DateTime, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use super::{Result, Tx};
use crate::{sql, sql_many};

pub const OPEN: &str = "open";
pub const REPLAYED: &str = "replayed";
pub const DISCARDED: &str = "discarded";

#[derive(Debug, Clone, FromRow)]
pub struct DeadLetter {
    pub id: Uuid,
    pub workspace: Option<String>,
    pub kind: Option<String>,
    pub job_id: Option<String>,
    pub user_name: Option<String>,
    /// Who gave up: `worker`, `publisher` (undecodable, unroutable) or `broker` (delivery limit, expiry).
    pub source: String,
    pub code: String,
    pub message: String,
    pub path: Option<String>,
    pub attempts: i32,
    pub body: Vec<u8>,
    pub headers: String,
    pub history: String,
    pub state: String,
    pub settled_by: Option<String>,
    pub settled_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
}

const COLUMNS: &str = "id, workspace, kind, job_id, user_name, source, code, message, path, attempts, body, \
     headers, history, state, settled_by, settled_at, created_at";
/// The same without the body: a page of bodies would be gigabytes.
const LISTED: &str = "id, workspace, kind, job_id, user_name, source, code, message, path, attempts, \
     substr(body, 1, 0) AS body, headers, history, state, settled_by, settled_at, created_at";

/// Stores one; the same message collected twice is stored once.
pub async fn insert(tx: &mut Tx, letter: &DeadLetter) -> Result<bool> {
    let stored = sql!(
        tx,
        execute,
        "INSERT INTO dead_letters (id, workspace, kind, job_id, user_name, source, code, message, path, \
         attempts, body, headers, history, state, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) ON CONFLICT (id) DO NOTHING",
        letter.id,
        letter.workspace.as_deref(),
        letter.kind.as_deref(),
        letter.job_id.as_deref(),
        letter.user_name.as_deref(),
        &letter.source,
        &letter.code,
        &letter.message,
        letter.path.as_deref(),
        letter.attempts,
        &letter.body,
        &letter.headers,
        &letter.history,
        &letter.state,
        letter.created_at,
    )?;
    Ok(stored == 1)
}

/// What a listing, a replay or a discard is narrowed by. The cursor is the last row's `(created_at, id)`.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub ids: Vec<Uuid>,
    pub workspace: Option<String>,
    pub kind: Option<String>,
    pub code: Option<String>,
    pub state: Option<&'static str>,
    pub after: Option<(DateTime<Utc>, Uuid)>,
    pub limit: i64,
}

/// One as a whole.
pub async fn find(tx: &mut Tx, id: Uuid) -> Result<Option<DeadLetter>> {
    Ok(sql_many!(tx, all DeadLetter, |query| {
        query.push("SELECT ").push(COLUMNS).push(" FROM dead_letters WHERE id = ").push_bind(id);
    })?
    .pop())
}

/// Newest first, without their bodies: see [`find`].
pub async fn list(tx: &mut Tx, filter: &Filter) -> Result<Vec<DeadLetter>> {
    Ok(sql_many!(tx, all DeadLetter, |query| {
        query.push("SELECT ").push(LISTED).push(" FROM dead_letters WHERE 1 = 1");
        for (column, value) in [
            ("workspace", filter.workspace.as_deref()),
            ("kind", filter.kind.as_deref()),
            ("code", filter.code.as_deref()),
            ("state", filter.state),
        ] {
            if let Some(value) = value {
                query.push(" AND ").push(column).push(" = ").push_bind(value.to_owned());
            }
        }
        if !filter.ids.is_empty() {
            query.push(" AND id IN (");
            let mut list = query.separated(", ");
            for id in &filter.ids {
                list.push_bind(*id);
            }
            query.push(")");
        }
        if let Some((created_at, id)) = filter.after {
            query.push(" AND (created_at, id) < (").push_bind(created_at);
            query.push(", ").push_bind(id).push(")");
        }
        query.push(" ORDER BY created_at DESC, id DESC LIMIT ").push_bind(filter.limit);
    })?)
}

/// How many wait for an operator.
pub async fn open_count(tx: &mut Tx) -> Result<i64> {
    let (count,) = sql!(tx, one(i64,), "SELECT COUNT(*) FROM dead_letters WHERE state = 'open'")?;
    Ok(count)
}

/// Open dead letters grouped by what caused them, most frequent first.
pub async fn causes(tx: &mut Tx, workspace: Option<&str>) -> Result<Vec<(String, Option<String>, i64)>> {
    Ok(sql_many!(tx, all(String, Option<String>, i64), |query| {
        query.push("SELECT code, kind, COUNT(*) FROM dead_letters WHERE state = 'open'");
        if let Some(workspace) = workspace {
            query.push(" AND workspace = ").push_bind(workspace.to_owned());
        }
        query.push(" GROUP BY code, kind ORDER BY COUNT(*) DESC, code");
    })?)
}

/// Closes an open one; `false` when somebody else already has.
pub async fn settle(tx: &mut Tx, id: Uuid, state: &str, by: &str, now: DateTime<Utc>) -> Result<bool> {
    let done = sql!(
        tx,
        execute,
        "UPDATE dead_letters SET state = $2, settled_by = $3, settled_at = $4 WHERE id = $1 AND state = 'open'",
        id,
        state,
        by,
        now,
    )?;
    Ok(done == 1)
}
