//! The table `effects`: one row per outward write, from intent to confirmation.

use chrono::{DateTime, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use super::job::Key;
use super::{Result, Tx, padded};
use crate::sql_many;

#[derive(Debug, Clone, FromRow)]
pub struct EffectRow {
    pub workspace: String,
    pub job_id: String,
    pub step: String,
    pub effect_id: Uuid,
    pub state: String,
    pub request: Option<String>,
    pub result: Option<String>,
    pub request_id: Option<String>,
    pub updated_at: DateTime<Utc>,
}

pub const INTENDED: &str = "intended";
pub const CONFIRMED: &str = "confirmed";

#[derive(Debug, Clone)]
pub struct NewIntent {
    pub key: Key,
    pub fence: i64,
    pub step: String,
    pub effect_id: Uuid,
    pub request: Option<String>,
}

#[derive(Debug, Clone)]
pub struct Confirmation {
    pub key: Key,
    pub fence: i64,
    pub step: String,
    pub result: String,
    pub request_id: Option<String>,
}

/// A write that is known not to have happened.
#[derive(Debug, Clone)]
pub struct Void {
    pub key: Key,
    pub fence: i64,
    pub step: String,
}

pub async fn of_jobs(tx: &mut Tx, keys: &[Key]) -> Result<Vec<EffectRow>> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    Ok(sql_many!(tx, all EffectRow, |query| {
        query.push(
            "SELECT workspace, job_id, step, effect_id, state, request, result, request_id, updated_at \
             FROM effects \
             WHERE (workspace, job_id) IN (",
        );
        query.push_values(padded(keys, |_| 0), |mut row, ((workspace, id), _)| {
            row.push_bind(workspace.clone()).push_bind(id.clone());
        });
        query.push(")");
    })?)
}

/// Was a write begun of which nobody knows what became?
pub async fn in_doubt(tx: &mut Tx, job: &Key) -> Result<bool> {
    Ok(of_jobs(tx, std::slice::from_ref(job)).await?.iter().any(|row| row.state == INTENDED))
}

/// Commits intents of jobs that still hold their fence; returns the `(workspace, job_id)` that do.
pub async fn intend(tx: &mut Tx, intents: &[NewIntent], now: DateTime<Utc>) -> Result<Vec<Key>> {
    Ok(sql_many!(tx, all Key, |query| {
        query.push("WITH v(v_workspace, v_job, v_fence, v_step, v_effect, v_request) AS (");
        let weight = |intent: &NewIntent| intent.request.as_ref().map_or(0, String::len);
        query.push_values(padded(intents, weight), |mut row, (intent, repeated)| {
            row.push_bind(intent.key.0.clone())
                .push_bind(intent.key.1.clone())
                // No row ever has this fence: one row may be written once by a statement.
                .push_bind(if repeated { -1 } else { intent.fence })
                .push_bind(intent.step.clone())
                .push_bind(intent.effect_id)
                .push_bind(intent.request.clone());
        });
        query.push(
            ") INSERT INTO effects (workspace, job_id, step, effect_id, state, request, fence, created_at, \
             updated_at) SELECT v_workspace, v_job, v_step, v_effect, 'intended', v_request, v_fence, ",
        );
        query.push_bind(now).push(", ").push_bind(now);
        query.push(
            " FROM v JOIN jobs ON workspace = v_workspace AND id = v_job AND fence = v_fence \
             WHERE state = 'running' \
             ON CONFLICT (workspace, job_id, step) DO UPDATE SET fence = excluded.fence, \
             updated_at = excluded.updated_at RETURNING workspace, job_id",
        );
    })?)
}

/// Confirms, also what an earlier holder intended and a probe found; a fence that moved on leaves the row to
/// its new holder.
pub async fn confirm(tx: &mut Tx, confirmations: &[Confirmation], now: DateTime<Utc>) -> Result<()> {
    if confirmations.is_empty() {
        return Ok(());
    }
    sql_many!(tx, execute, |query| {
        query.push("WITH v(v_workspace, v_job, v_fence, v_step, v_result, v_request_id) AS (");
        query.push_values(padded(confirmations, |row| row.result.len()), |mut row, (confirmation, _)| {
            row.push_bind(confirmation.key.0.clone())
                .push_bind(confirmation.key.1.clone())
                .push_bind(confirmation.fence)
                .push_bind(confirmation.step.clone())
                .push_bind(confirmation.result.clone())
                .push_bind(confirmation.request_id.clone());
        });
        // The request is kept only as long as it may have to be sent again.
        query.push(
            ") UPDATE effects SET state = 'confirmed', result = v_result, request_id = v_request_id, \
             request = NULL, updated_at = ",
        );
        query.push_bind(now);
        query.push(
            " FROM v WHERE workspace = v_workspace AND job_id = v_job AND step = v_step AND fence <= v_fence",
        );
    })?;
    Ok(())
}

pub async fn void(tx: &mut Tx, voids: &[Void]) -> Result<()> {
    for void in voids {
        crate::sql!(
            tx,
            execute,
            "DELETE FROM effects WHERE workspace = $1 AND job_id = $2 AND step = $3 AND fence = $4 \
             AND state = 'intended'",
            &void.key.0,
            &void.key.1,
            &void.step,
            void.fence,
        )?;
    }
    Ok(())
}
