//! The table `jobs`: the ledger.
//!
//! The invariant: every write after a claim names the fence it was claimed with; a row whose fence moved on
//! is not touched.

use chrono::{DateTime, Utc};
use sqlx::FromRow;

use super::{Result, Tx, padded};
use crate::{sql, sql_many};

/// `(workspace, id)`.
pub type Key = (String, String);

/// The states of a job.
pub mod state {
    /// Accepted over HTTP or released by a person; its message is owed to the queue.
    pub const QUEUED: &str = "queued";
    pub const RUNNING: &str = "running";
    /// Waits for time.
    pub const WAITING: &str = "waiting";
    /// Waits for a person.
    pub const PARKED: &str = "parked";
    pub const SUCCEEDED: &str = "succeeded";
    pub const DEAD: &str = "dead";
    pub const EXPIRED: &str = "expired";
    pub const REJECTED: &str = "rejected";
    pub const CANCELLED: &str = "cancelled";

    pub const ALL: [&str; 9] =
        [QUEUED, RUNNING, WAITING, PARKED, SUCCEEDED, DEAD, EXPIRED, REJECTED, CANCELLED];

    pub const UNFINISHED: [&str; 4] = [QUEUED, RUNNING, WAITING, PARKED];

    pub fn is_final(state: &str) -> bool {
        matches!(state, SUCCEEDED | DEAD | EXPIRED | REJECTED | CANCELLED)
    }
}

/// A whole row, for people and for releasing.
#[derive(Debug, Clone, FromRow)]
pub struct JobRow {
    pub workspace: String,
    pub id: String,
    pub kind: String,
    pub user_name: String,
    pub meeting: Option<String>,
    pub tool: Option<String>,
    pub payload: String,
    pub digest: Vec<u8>,
    pub traceparent: Option<String>,
    pub state: String,
    pub cause: Option<String>,
    pub code: Option<String>,
    pub message: Option<String>,
    pub result: Option<String>,
    pub attempt: i32,
    pub crashes: i32,
    pub fence: i64,
    pub due_at: Option<DateTime<Utc>>,
    pub not_before: Option<DateTime<Utc>>,
    pub expires_at: Option<DateTime<Utc>>,
    pub approved_by: Option<String>,
    pub approved_at: Option<DateTime<Utc>>,
    pub note: Option<String>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub finished_at: Option<DateTime<Utc>>,
}

/// What a claim needs to know of an existing row.
#[derive(Debug, Clone, FromRow)]
pub struct Standing {
    pub workspace: String,
    pub id: String,
    pub digest: Vec<u8>,
    pub state: String,
    pub attempt: i32,
    pub crashes: i32,
    pub fence: i64,
    pub lease_until: Option<DateTime<Utc>>,
    pub due_at: Option<DateTime<Utc>>,
    pub approved_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
}

/// A row as a claim or a submission first writes it.
#[derive(Debug, Clone)]
pub struct NewJob {
    pub workspace: String,
    pub id: String,
    pub kind: String,
    pub user_name: String,
    pub meeting: Option<String>,
    pub tool: Option<String>,
    pub payload: String,
    pub digest: Vec<u8>,
    pub traceparent: Option<String>,
    pub state: &'static str,
    pub attempt: i32,
    pub fence: i64,
    pub holder: Option<String>,
    pub lease_until: Option<DateTime<Utc>>,
    pub gate: Option<String>,
    /// Of its gate, while it runs.
    pub permits: i32,
    pub due_at: Option<DateTime<Utc>>,
    pub not_before: Option<DateTime<Utc>>,
    pub expires_at: Option<DateTime<Utc>>,
    pub now: DateTime<Utc>,
}

/// What the fleet did for itself is not kept: the row of one finished job.
pub async fn forget(tx: &mut Tx, workspace: &str, id: &str) -> Result<()> {
    sql!(
        tx,
        execute,
        "DELETE FROM jobs WHERE workspace = $1 AND id = $2 AND finished_at IS NOT NULL",
        workspace,
        id,
    )?;
    Ok(())
}

/// Takes over an existing row: the fence moves, the lease is ours.
#[derive(Debug, Clone)]
pub struct Takeover {
    pub key: Key,
    pub expected_fence: i64,
    pub crashed: bool,
    pub tool: String,
    pub gate: Option<String>,
    pub permits: i32,
}

/// How a held row ends its attempt.
#[derive(Debug, Clone)]
pub struct Ending {
    pub key: Key,
    pub fence: i64,
    pub state: &'static str,
    pub cause: Option<&'static str>,
    pub code: Option<String>,
    pub message: Option<String>,
    pub result: Option<String>,
    pub due_at: Option<DateTime<Utc>>,
    /// `-1` takes back an attempt that never was one (drained, deferred). Where no attempt is left to count, no lost worker
    /// is either.
    pub attempt_delta: i32,
    pub finished: bool,
    /// The grant that did not do, where the job waits for a better one.
    pub parked_grant: Option<i64>,
}

impl Ending {
    /// Of a row that nobody holds: its last word.
    pub fn last(row: &JobRow, state: &'static str, code: &str, message: &str) -> Self {
        Self {
            key: (row.workspace.clone(), row.id.clone()),
            fence: row.fence,
            state,
            cause: None,
            code: Some(code.to_owned()),
            message: Some(message.to_owned()),
            result: None,
            due_at: None,
            attempt_delta: 0,
            finished: true,
            parked_grant: None,
        }
    }
}

pub async fn standing(tx: &mut Tx, keys: &[Key]) -> Result<Vec<Standing>> {
    Ok(sql_many!(tx, all Standing, |query| {
        query.push(
            "SELECT workspace, id, digest, state, attempt, crashes, fence, lease_until, due_at, approved_at, \
             created_at FROM jobs WHERE (workspace, id) IN (",
        );
        query.push_values(padded(keys, |_| 0), |mut row, ((workspace, id), _)| {
            row.push_bind(workspace.clone()).push_bind(id.clone());
        });
        query.push(")");
    })?)
}

/// Inserts rows that do not exist yet; returns the keys that were new.
pub async fn insert(tx: &mut Tx, jobs: &[NewJob]) -> Result<Vec<Key>> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    Ok(sql_many!(tx, all Key, |query| {
        query.push(
            "INSERT INTO jobs (workspace, id, kind, user_name, meeting, tool, payload, digest, traceparent, \
             state, attempt, fence, holder, lease_until, gate, permits, due_at, not_before, expires_at, created_at, \
             updated_at) ",
        );
        // A repetition meets its own row and does nothing.
        query.push_values(padded(jobs, |job| job.payload.len()), |mut row, (job, _)| {
            row.push_bind(job.workspace.clone())
                .push_bind(job.id.clone())
                .push_bind(job.kind.clone())
                .push_bind(job.user_name.clone())
                .push_bind(job.meeting.clone())
                .push_bind(job.tool.clone())
                .push_bind(job.payload.clone())
                .push_bind(job.digest.clone())
                .push_bind(job.traceparent.clone())
                .push_bind(job.state)
                .push_bind(job.attempt)
                .push_bind(job.fence)
                .push_bind(job.holder.clone())
                .push_bind(job.lease_until)
                .push_bind(job.gate.clone())
                .push_bind(job.permits)
                .push_bind(job.due_at)
                .push_bind(job.not_before)
                .push_bind(job.expires_at)
                .push_bind(job.now)
                .push_bind(job.now);
        });
        query.push(" ON CONFLICT (workspace, id) DO NOTHING RETURNING workspace, id");
    })?)
}

/// Takes existing rows over, each only while its fence is the one that was read.
pub async fn take_over(
    tx: &mut Tx,
    takeovers: &[Takeover],
    holder: &str,
    lease_until: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<Vec<Key>> {
    if takeovers.is_empty() {
        return Ok(Vec::new());
    }
    Ok(sql_many!(tx, all Key, |query| {
        query.push("WITH v(v_workspace, v_id, v_fence, v_crashed, v_tool, v_gate, v_permits) AS (");
        query.push_values(padded(takeovers, |_| 0), |mut row, (takeover, _)| {
            row.push_bind(takeover.key.0.clone())
                .push_bind(takeover.key.1.clone())
                .push_bind(takeover.expected_fence)
                .push_bind(i32::from(takeover.crashed))
                .push_bind(takeover.tool.clone())
                .push_bind(takeover.gate.clone())
                .push_bind(takeover.permits);
        });
        query.push(
            ") UPDATE jobs SET state = 'running', attempt = attempt + 1, crashes = crashes + v_crashed, \
             fence = fence + 1, tool = v_tool, gate = v_gate, permits = v_permits, cause = NULL, due_at = NULL, holder = ",
        );
        query.push_bind(holder.to_owned());
        query.push(", lease_until = ").push_bind(lease_until);
        query.push(", updated_at = ").push_bind(now);
        query.push(
            " FROM v WHERE workspace = v_workspace AND id = v_id AND fence = v_fence \
             AND state IN ('queued', 'waiting', 'running') RETURNING workspace, id",
        );
    })?)
}

/// Ends attempts; returns the keys whose fence still held.
pub async fn end(tx: &mut Tx, endings: &[Ending], now: DateTime<Utc>) -> Result<Vec<Key>> {
    if endings.is_empty() {
        return Ok(Vec::new());
    }
    Ok(sql_many!(tx, all Key, |query| {
        query.push(
            "WITH v(v_workspace, v_id, v_fence, v_state, v_cause, v_code, v_message, v_result, v_due, \
             v_delta, v_finished, v_grant) AS (",
        );
        let weight = |ending: &Ending| ending.result.as_ref().map_or(0, String::len);
        query.push_values(padded(endings, weight), |mut row, (ending, _)| {
            row.push_bind(ending.key.0.clone())
                .push_bind(ending.key.1.clone())
                .push_bind(ending.fence)
                .push_bind(ending.state)
                .push_bind(ending.cause)
                .push_bind(ending.code.clone())
                .push_bind(ending.message.clone())
                .push_bind(ending.result.clone())
                .push_bind(ending.due_at)
                .push_bind(ending.attempt_delta)
                .push_bind(ending.finished.then_some(now))
                .push_bind(ending.parked_grant);
        });
        query.push(
            ") UPDATE jobs SET state = v_state, cause = v_cause, code = v_code, message = v_message, \
             result = v_result, due_at = v_due, attempt = attempt + v_delta, \
             crashes = CASE WHEN attempt + v_delta = 0 THEN 0 ELSE crashes END, finished_at = v_finished, \
             parked_grant = v_grant, fence = fence + 1, holder = NULL, lease_until = NULL, gate = NULL, updated_at = ",
        );
        query.push_bind(now);
        query.push(
            " FROM v WHERE workspace = v_workspace AND id = v_id AND fence = v_fence AND state = 'running' \
             RETURNING workspace, id",
        );
    })?)
}

/// Ends a row that nobody holds (found expired, denied or parked while it was being claimed).
pub async fn end_unheld(
    tx: &mut Tx,
    ending: &Ending,
    tool: Option<&str>,
    now: DateTime<Utc>,
) -> Result<bool> {
    let ended = sql!(
        tx,
        execute,
        "UPDATE jobs SET state = $4, cause = $5, code = $6, message = $7, due_at = $8, finished_at = $9, \
         tool = COALESCE($10, tool), parked_grant = $12, fence = fence + 1, holder = NULL, \
         lease_until = NULL, gate = NULL, updated_at = $11 \
         WHERE workspace = $1 AND id = $2 AND fence = $3 \
         AND state IN ('queued', 'waiting', 'running', 'parked')",
        &ending.key.0,
        &ending.key.1,
        ending.fence,
        ending.state,
        ending.cause,
        ending.code.as_deref(),
        ending.message.as_deref(),
        ending.due_at,
        ending.finished.then_some(now),
        tool,
        now,
        ending.parked_grant,
    )?;
    Ok(ended == 1)
}

/// Prolongs the leases of what this holder runs.
pub async fn renew(tx: &mut Tx, holder: &str, held: &[(Key, i64)], until: DateTime<Utc>) -> Result<()> {
    sql_many!(tx, execute, |query| {
        query.push("UPDATE jobs SET lease_until = ").push_bind(until);
        query.push(" WHERE state = 'running' AND holder = ").push_bind(holder.to_owned());
        query.push(" AND (workspace, id, fence) IN (");
        query.push_values(padded(held, |_| 0), |mut row, (((workspace, id), fence), _)| {
            row.push_bind(workspace.clone()).push_bind(id.clone()).push_bind(*fence);
        });
        query.push(")");
    })?;
    Ok(())
}

/// How many live permits each gate has given out.
pub async fn running_at(tx: &mut Tx, gates: &[String], now: DateTime<Utc>) -> Result<Vec<(String, i64)>> {
    if gates.is_empty() {
        return Ok(Vec::new());
    }
    Ok(sql_many!(tx, all(String, i64), |query| {
        query.push("SELECT gate, SUM(permits) FROM jobs WHERE state = 'running' AND lease_until > ");
        query.push_bind(now);
        query.push(" AND gate IN (");
        let mut list = query.separated(", ");
        for (gate, _) in padded(gates, |_| 0) {
            list.push_bind(gate.clone());
        }
        query.push(") GROUP BY gate");
    })?)
}

/// Does a job of this (workspace, user) and of one of these kinds run behind this gate?
pub async fn runs_at(
    tx: &mut Tx,
    gate: &str,
    (workspace, user): (&str, &str),
    kinds: &[String],
    now: DateTime<Utc>,
) -> Result<bool> {
    let found = sql_many!(tx, all(i64,), |query| {
        query.push("SELECT COUNT(*) FROM jobs WHERE state = 'running' AND lease_until > ").push_bind(now);
        query.push(" AND gate = ").push_bind(gate.to_owned());
        query.push(" AND workspace = ").push_bind(workspace.to_owned());
        query.push(" AND user_name = ").push_bind(user.to_owned());
        query.push(" AND kind IN (");
        let mut list = query.separated(", ");
        for kind in kinds {
            list.push_bind(kind.clone());
        }
        query.push(")");
    })?;
    Ok(found.iter().any(|(count,)| *count > 0))
}

const COLUMNS: &str = "workspace, id, kind, user_name, meeting, tool, payload, digest, traceparent, state, \
     cause, code, message, result, attempt, crashes, fence, due_at, not_before, expires_at, approved_by, \
     approved_at, note, created_at, updated_at, finished_at";

pub async fn find(tx: &mut Tx, workspace: &str, id: &str) -> Result<Option<JobRow>> {
    Ok(sql_many!(tx, all JobRow, |query| {
        query.push("SELECT ").push(COLUMNS).push(" FROM jobs WHERE workspace = ");
        query.push_bind(workspace.to_owned());
        query.push(" AND id = ").push_bind(id.to_owned());
    })?
    .pop())
}

/// What a listing may be narrowed by. The cursor is the last row's `(created_at, workspace, id)`.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub workspace: Option<String>,
    pub state: Option<String>,
    pub kind: Option<String>,
    pub user: Option<String>,
    pub meeting: Option<String>,
    pub after: Option<(DateTime<Utc>, String, String)>,
    pub limit: i64,
}

/// Of a listing: what may be large is for those who ask for one job.
const LISTED: &str = "workspace, id, kind, user_name, meeting, tool, '' AS payload, digest, traceparent, state, \
     cause, code, message, NULL AS result, attempt, crashes, fence, due_at, not_before, expires_at, approved_by, \
     approved_at, note, created_at, updated_at, finished_at";

/// Newest first, without payloads and results.
pub async fn list(tx: &mut Tx, filter: &Filter) -> Result<Vec<JobRow>> {
    Ok(sql_many!(tx, all JobRow, |query| {
        query.push("SELECT ").push(LISTED).push(" FROM jobs WHERE 1 = 1");
        for (column, value) in [
            ("workspace", &filter.workspace),
            ("state", &filter.state),
            ("kind", &filter.kind),
            ("user_name", &filter.user),
            ("meeting", &filter.meeting),
        ] {
            if let Some(value) = value {
                query.push(" AND ").push(column).push(" = ").push_bind(value.clone());
            }
        }
        if let Some((created_at, workspace, id)) = &filter.after {
            query.push(" AND (created_at, workspace, id) < (").push_bind(*created_at);
            query.push(", ").push_bind(workspace.clone());
            query.push(", ").push_bind(id.clone()).push(")");
        }
        query.push(" ORDER BY created_at DESC, workspace DESC, id DESC LIMIT ").push_bind(filter.limit);
    })?)
}

/// Parked jobs of one user that wait for `causes`, oldest first: the order in which they are released.
pub async fn parked_for(
    tx: &mut Tx,
    workspace: &str,
    user: &str,
    causes: &[&'static str],
    kinds: &[String],
    limit: i64,
) -> Result<Vec<JobRow>> {
    if kinds.is_empty() {
        return Ok(Vec::new());
    }
    Ok(sql_many!(tx, all JobRow, |query| {
        query.push("SELECT ").push(COLUMNS).push(" FROM jobs WHERE state = 'parked' AND workspace = ");
        query.push_bind(workspace.to_owned());
        query.push(" AND user_name = ").push_bind(user.to_owned());
        query.push(" AND cause IN (");
        let mut list = query.separated(", ");
        for cause in causes {
            list.push_bind(*cause);
        }
        query.push(") AND kind IN (");
        let mut list = query.separated(", ");
        for kind in kinds {
            list.push_bind(kind.clone());
        }
        query.push(") ORDER BY created_at, id LIMIT ").push_bind(limit);
    })?)
}

/// A job becomes queued again, with as many attempts as a new one when a person had a hand in it; its message
/// is written by the caller in the same transaction. Returns the attempts that count, or nothing when the job
/// moved on meanwhile.
pub async fn requeue(tx: &mut Tx, key: &Key, fence: i64, now: DateTime<Utc>) -> Result<Option<i32>> {
    let attempt = sql!(
        tx,
        optional(i32,),
        "UPDATE jobs SET state = 'queued', cause = NULL, due_at = $4, fence = fence + 1, finished_at = NULL, \
         approved_by = CASE WHEN state = 'dead' THEN NULL ELSE approved_by END, \
         approved_at = CASE WHEN state = 'dead' THEN NULL ELSE approved_at END, \
         attempt = CASE WHEN state IN ('parked', 'dead') THEN 0 ELSE attempt END, \
         crashes = CASE WHEN state = 'dead' THEN 0 ELSE crashes END, updated_at = $4 \
         WHERE workspace = $1 AND id = $2 AND fence = $3 \
         AND state IN ('parked', 'dead', 'queued', 'waiting', 'running') RETURNING attempt",
        &key.0,
        &key.1,
        fence,
        now,
    )?;
    Ok(attempt.map(|(attempt,)| attempt))
}

/// Records a person's yes, once: only on a job that waits for it.
pub async fn approve(
    tx: &mut Tx,
    key: &Key,
    by: &str,
    note: Option<&str>,
    now: DateTime<Utc>,
) -> Result<bool> {
    let done = sql!(
        tx,
        execute,
        "UPDATE jobs SET approved_by = $3, approved_at = $4, note = $5, updated_at = $4 \
         WHERE workspace = $1 AND id = $2 AND state = 'parked' AND cause = 'approval' AND approved_at IS NULL",
        &key.0,
        &key.1,
        by,
        now,
        note,
    )?;
    Ok(done == 1)
}

/// Records a person's no.
pub async fn reject(
    tx: &mut Tx,
    key: &Key,
    by: &str,
    note: Option<&str>,
    now: DateTime<Utc>,
) -> Result<bool> {
    let done = sql!(
        tx,
        execute,
        "UPDATE jobs SET state = 'rejected', cause = NULL, approved_by = $3, note = $5, finished_at = $4, \
         updated_at = $4, fence = fence + 1 \
         WHERE workspace = $1 AND id = $2 AND state = 'parked' AND cause = 'approval'",
        &key.0,
        &key.1,
        by,
        now,
        note,
    )?;
    Ok(done == 1)
}

/// Jobs of one kind whose copy in the queue must have been lost: due or leased long before `overdue`.
pub async fn overdue(tx: &mut Tx, kind: &str, overdue: DateTime<Utc>, limit: i64) -> Result<Vec<JobRow>> {
    Ok(sql_many!(tx, all JobRow, |query| {
        query.push("SELECT ").push(COLUMNS).push(" FROM jobs WHERE kind = ").push_bind(kind.to_owned());
        query.push(" AND ((state IN ('queued', 'waiting') AND due_at < ").push_bind(overdue);
        query.push(") OR (state = 'running' AND lease_until < ").push_bind(overdue);
        query.push(")) ORDER BY created_at LIMIT ").push_bind(limit);
    })?)
}

/// Jobs of one kind that have waited for an administrator since before `before`.
pub async fn waiting_for_admin(
    tx: &mut Tx,
    kind: &str,
    before: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<JobRow>> {
    Ok(sql_many!(tx, all JobRow, |query| {
        query.push("SELECT ").push(COLUMNS).push(" FROM jobs WHERE state = 'parked' AND cause = 'needs_admin'");
        query.push(" AND kind = ").push_bind(kind.to_owned());
        query.push(" AND updated_at < ").push_bind(before);
        query.push(" ORDER BY updated_at LIMIT ").push_bind(limit);
    })?)
}

/// Parked jobs whose connection has a newer grant than the one that did not do: they were parked while it
/// was being made.
pub async fn parked_behind_a_grant(
    tx: &mut Tx,
    kinds: &[(String, String)],
    limit: i64,
) -> Result<Vec<JobRow>> {
    if kinds.is_empty() {
        return Ok(Vec::new());
    }
    Ok(sql_many!(tx, all JobRow, |query| {
        query.push("SELECT ").push(COLUMNS);
        query.push(" FROM jobs j WHERE state = 'parked' AND cause IN ('needs_user', 'needs_admin')");
        query.push(" AND EXISTS (SELECT 1 FROM connections c WHERE c.workspace = j.workspace");
        query.push(" AND c.user_name = j.user_name AND c.status = 'connected'");
        query.push(" AND c.grant_number > COALESCE(j.parked_grant, 0) AND (j.kind, c.integration) IN (");
        query.push_values(kinds, |mut row, (kind, integration)| {
            row.push_bind(kind.clone()).push_bind(integration.clone());
        });
        query.push(")) ORDER BY created_at LIMIT ").push_bind(limit);
    })?)
}

/// Parked jobs whose publisher no longer wants them; one that may have been done is told of by a person only.
pub async fn parked_expired(tx: &mut Tx, now: DateTime<Utc>, limit: i64) -> Result<Vec<JobRow>> {
    Ok(sql_many!(tx, all JobRow, |query| {
        query.push("SELECT ").push(COLUMNS).push(" FROM jobs WHERE state = 'parked' AND expires_at < ");
        query.push_bind(now);
        query.push(" AND cause <> 'ambiguous' ORDER BY created_at LIMIT ").push_bind(limit);
    })?)
}

/// How many jobs of each kind are in each state.
pub async fn counts(tx: &mut Tx) -> Result<Vec<(String, String, i64)>> {
    Ok(sql!(tx, all(String, String, i64), "SELECT kind, state, COUNT(*) FROM jobs GROUP BY kind, state")?)
}

/// How many unfinished jobs of each kind are in each state. Each state has its own partial index, so that the
/// finished jobs of years are not counted along.
pub async fn unfinished(tx: &mut Tx) -> Result<Vec<(String, String, i64)>> {
    Ok(sql!(
        tx,
        all(String, String, i64),
        "SELECT kind, state, COUNT(*) FROM jobs WHERE state IN ('queued', 'waiting') GROUP BY kind, state \
         UNION ALL SELECT kind, state, COUNT(*) FROM jobs WHERE state = 'running' GROUP BY kind, state \
         UNION ALL SELECT kind, state, COUNT(*) FROM jobs WHERE state = 'parked' GROUP BY kind, state",
    )?)
}
