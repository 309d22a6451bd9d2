//! Releasing parked jobs: what a person put right goes on, what a person found out is settled.
//!
//! The invariant: a job whose outcome nobody knows moves only with a person's word on what happened, and
//! what it intended is settled in the transaction that moves it. An approval is given nowhere but there.

use chrono::{DateTime, Utc};
use scoped_futures::ScopedFutureExt;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::outbox;
use crate::outcome::Cause;
use crate::services::Services;
use crate::store::job::{self, Ending, JobRow, state};
use crate::store::outbox::Owed;
use crate::store::parked::{self, Which};
use crate::store::{Result, StoreError, Tx};
use crate::submit;

/// The code of a job that ended by a person's word.
const CONFIRMED: &str = "confirmed_by_operator";

/// What a person found at Microsoft where the fleet could not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Found {
    /// It is there: the job ends as succeeded, without a result.
    Made,
    /// It is not there: the job is done again.
    NotMade,
}

/// What releasing did to one job, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Released {
    pub workspace: String,
    pub id: String,
    pub done: bool,
    /// Why not: `waits_for_approval`, `outcome_required`, `outcome_unexpected`, `job_<state>`, `not_found`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// Releases parked jobs, or tells what would happen. Each moves by itself, so that one that cannot holds up
/// no other.
pub async fn release(
    services: &Services,
    which: &Which,
    found: Option<Found>,
    by: &str,
    dry_run: bool,
) -> Result<Vec<Released>> {
    let waiting =
        services.store.read(|tx| async move { parked::list(tx, which).await }.scope_boxed()).await?;
    let mut released = Vec::with_capacity(waiting.len());
    for one in waiting {
        let mut refused = refusal(&one.state, one.cause.as_deref(), found);
        if refused.is_none() && !dry_run {
            refused = one_job(services, &one.workspace, &one.id, found, by).await?;
        }
        let done = refused.is_none() && !dry_run;
        released.push(Released { workspace: one.workspace, id: one.id, done, refused });
    }
    for id in &which.ids {
        if !released.iter().any(|one| one.id == *id) {
            let workspace = which.workspace.clone().unwrap_or_default();
            let refused = Some("not_found".to_owned());
            released.push(Released { workspace, id: id.clone(), done: false, refused });
        }
    }
    Ok(released)
}

fn refusal(state: &str, cause: Option<&str>, found: Option<Found>) -> Option<String> {
    if state != state::PARKED {
        return Some(format!("job_{state}"));
    }
    match (cause.and_then(Cause::parse), found) {
        (Some(Cause::Approval), _) => Some("waits_for_approval".to_owned()),
        (Some(Cause::Ambiguous), None) => Some("outcome_required".to_owned()),
        (Some(Cause::Ambiguous), Some(_)) | (_, None) => None,
        (_, Some(_)) => Some("outcome_unexpected".to_owned()),
    }
}

async fn one_job(
    services: &Services,
    workspace: &str,
    id: &str,
    found: Option<Found>,
    by: &str,
) -> Result<Option<String>> {
    let now = services.clock.now();
    let handoff = &services.handoff;
    let (refused, rows) = services
        .store
        .transaction("release", |tx| {
            async move {
                // Read again: it may have moved on since it was listed.
                let Some(row) = job::find(tx, workspace, id).await? else {
                    return Ok((Some("not_found".to_owned()), Vec::new()));
                };
                if let Some(refused) = refusal(&row.state, row.cause.as_deref(), found) {
                    return Ok((Some(refused), Vec::new()));
                }
                let Some(owed) = settle(tx, &row, found, by, now).await? else {
                    return Ok((Some("moved_on".to_owned()), Vec::new()));
                };
                let rows = outbox::owe(tx, &[owed], handoff, now).await?;
                Ok::<_, StoreError>((None, rows))
            }
            .scope_boxed()
        })
        .await?;
    if refused.is_none() {
        tracing::info!(workspace, job = id, by, ?found, "a parked job was released");
    }
    handoff.give(rows);
    Ok(refused)
}

async fn settle(
    tx: &mut Tx,
    row: &JobRow,
    found: Option<Found>,
    by: &str,
    now: DateTime<Utc>,
) -> Result<Option<Owed>> {
    let key = (row.workspace.clone(), row.id.clone());
    // The job first: what it intended is ours to settle only if it is still ours to move.
    match found {
        None => submit::requeue(tx, row, now).await,
        Some(Found::NotMade) => {
            let owed = submit::requeue(tx, row, now).await?;
            if owed.is_some() {
                parked::void_intents(tx, &key).await?;
            }
            Ok(owed)
        }
        Some(Found::Made) => {
            let ending = Ending {
                key,
                fence: row.fence,
                state: state::SUCCEEDED,
                cause: None,
                code: Some(CONFIRMED.to_owned()),
                message: Some(format!("{by} found that it was done")),
                result: None,
                due_at: None,
                attempt_delta: 0,
                finished: true,
                parked_grant: None,
            };
            if !job::end_unheld(tx, &ending, None, now).await? {
                return Ok(None);
            }
            parked::confirm_intents(tx, &ending.key, now).await?;
            let data = json!({"result": null, "code": CONFIRMED});
            Ok(Some(submit::ended(row, state::SUCCEEDED, data, now)))
        }
    }
}
