//! Jobs: submit, look, decide.
//!
//! The invariant: a job is answered with 202 only once it is durable, and a decision is bound to exactly the
//! payload that was shown.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use scoped_futures::ScopedFutureExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::error::{ApiError, Result};
use super::request::{Body, Path, Query, Raw, cursor, limit, position};
use crate::api_key::Caller;
use crate::broker::MAX_BODY;
use crate::job::{Envelope, decode};
use crate::outcome::Cause;
use crate::registry::Registry;
use crate::store::job::{self, Filter, JobRow, state};
use crate::submit::{self, Decided, Submitted};

pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(submit_job, list_jobs))
        .routes(routes!(show_job))
        .routes(routes!(approve_job))
        .routes(routes!(reject_job))
}

/// A job, for people and programs.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct JobView {
    pub workspace: String,
    pub id: String,
    pub kind: String,
    pub user: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meeting: Option<String>,
    /// `queued`, `running`, `waiting`, `parked`, `succeeded`, `dead`, `expired`, `rejected` or `cancelled`.
    pub state: String,
    /// Why it is parked: `approval`, `needs_user`, `needs_admin`, `operator`, `ambiguous`, `mailbox_full`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The stable code of its last failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The tool whose level decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    pub attempts: i32,
    /// SHA-256 of kind, user and payload: what an approval is bound to.
    pub digest: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<DateTime<Utc>>,
    /// When it is tried next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<DateTime<Utc>>,
    /// What an approver reads; only of one job that waits for an approval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rendering: Option<String>,
    /// Only of one job, not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Value>,
    /// Only of one job, not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
}

impl JobView {
    /// Without content.
    pub fn listed(row: JobRow) -> Self {
        Self {
            digest: hex(&row.digest),
            due_at: row.due_at.filter(|_| row.state == state::WAITING),
            workspace: row.workspace,
            id: row.id,
            kind: row.kind,
            user: row.user_name,
            meeting: row.meeting,
            state: row.state,
            cause: row.cause,
            code: row.code,
            message: row.message,
            tool: row.tool,
            attempts: row.attempt,
            not_before: row.not_before,
            expires_at: row.expires_at,
            decided_by: row.approved_by,
            note: row.note,
            created_at: row.created_at,
            updated_at: row.updated_at,
            finished_at: row.finished_at,
            rendering: None,
            payload: None,
            result: None,
        }
    }

    /// With its payload and result.
    pub fn whole(row: JobRow, registry: &Registry) -> Self {
        let payload: Option<Value> = serde_json::from_str(&row.payload).ok();
        let result = row.result.as_deref().and_then(|result| serde_json::from_str(result).ok());
        let asks = row.cause.as_deref() == Some(Cause::Approval.as_str());
        let job = payload
            .as_ref()
            .filter(|_| asks)
            .and_then(|payload| (registry.find(&row.kind)?.decode)(payload).ok());
        Self { rendering: job.map(|job| job.render()), payload, result, ..Self::listed(row) }
    }
}

pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct AcceptedJob {
    pub id: String,
    /// `queued`, or where the same job already is.
    pub state: String,
}

/// Submit a job
///
/// The same body as on RabbitMQ. Durable once answered; the same job again is the same job and acts once.
#[utoipa::path(
    post, path = "/v1/jobs", tag = "jobs", security(("api_key" = ["publisher"])),
    request_body = Envelope,
    responses(
        (status = 202, description = "It is durable", body = AcceptedJob),
        (status = 400, description = "`invalid_json`, `invalid_envelope`, `unknown_kind`, `invalid_payload`",
         body = super::error::ErrorBody),
        (status = 409, description = "`id_reused`: the id belongs to another payload",
         body = super::error::ErrorBody),
        (status = 413, description = "`too_large`: more than 8 MiB", body = super::error::ErrorBody),
    ),
)]
async fn submit_job(
    State(api): State<Api>,
    caller: Caller,
    Raw(body): Raw,
) -> Result<(StatusCode, Json<AcceptedJob>)> {
    let decoded = decode(&api.services.registry, &body)?;
    caller.in_workspace(&decoded.envelope.workspace)?;
    // The message is written anew, and could grow past what a broker takes: 1e300 has 301 digits.
    if decoded.payload.len() + 4096 > MAX_BODY && body.len() < decoded.payload.len() {
        let message = format!("the largest body has {MAX_BODY} bytes");
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message));
    }
    match submit::submit(&api.services, &decoded).await? {
        Submitted::Accepted { state } => {
            Ok((StatusCode::ACCEPTED, Json(AcceptedJob { id: decoded.envelope.id, state })))
        }
        Submitted::IdReused => {
            Err(ApiError::conflict("id_reused", "the id belongs to a job with another payload").at("id"))
        }
    }
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct JobQuery {
    workspace: Option<String>,
    state: Option<String>,
    kind: Option<String>,
    user: Option<String>,
    meeting: Option<String>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// 1 to 200, 50 by default.
    limit: Option<i64>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct JobPage {
    pub jobs: Vec<JobView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// List jobs, newest first
#[utoipa::path(
    get, path = "/v1/jobs", tag = "jobs", security(("api_key" = ["publisher"])), params(JobQuery),
    responses((status = 200, description = "One page", body = JobPage)),
)]
async fn list_jobs(
    State(api): State<Api>,
    caller: Caller,
    Query(query): Query<JobQuery>,
) -> Result<Json<JobPage>> {
    if query.state.as_deref().is_some_and(|asked| !state::ALL.contains(&asked)) {
        return Err(ApiError::bad("invalid_query", "state", format!("expected {}", state::ALL.join(", "))));
    }
    let limit = limit(query.limit)?;
    let filter = &Filter {
        workspace: caller.narrowed(query.workspace)?,
        state: query.state,
        kind: query.kind,
        user: query.user,
        meeting: query.meeting,
        after: position(query.cursor.as_deref())?,
        limit,
    };
    let rows = api.services.store.read(|tx| async move { job::list(tx, filter).await }.scope_boxed()).await?;
    let full = i64::try_from(rows.len()).is_ok_and(|rows| rows == limit);
    let last = rows.last().map(|row| cursor(&(row.created_at, &row.workspace, &row.id)));
    Ok(Json(JobPage {
        jobs: rows.into_iter().map(JobView::listed).collect(),
        next_cursor: last.filter(|_| full),
    }))
}

/// Look at one job
///
/// With its payload and result. An id with a slash is percent-encoded.
#[utoipa::path(
    get, path = "/v1/jobs/{workspace}/{id}", tag = "jobs", security(("api_key" = ["publisher"])),
    params(("workspace" = String, Path), ("id" = String, Path)),
    responses((status = 200, description = "The job", body = JobView)),
)]
async fn show_job(
    State(api): State<Api>,
    caller: Caller,
    Path((workspace, id)): Path<(String, String)>,
) -> Result<Json<JobView>> {
    caller.in_workspace(&workspace)?;
    let row = find(&api, &workspace, &id).await?;
    Ok(Json(JobView::whole(row, &api.services.registry)))
}

async fn find(api: &Api, workspace: &str, id: &str) -> Result<JobRow> {
    let store = &api.services.store;
    let row = store.read(|tx| async move { job::find(tx, workspace, id).await }.scope_boxed()).await?;
    row.ok_or_else(ApiError::not_found)
}

/// A person's decision.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct Decision {
    /// Who decides.
    by: String,
    note: Option<String>,
    /// The digest of the payload that was shown; another one is refused.
    digest: Option<String>,
}

/// Approve a job that asks
///
/// Once, for exactly this payload, until the job expires.
#[utoipa::path(
    post, path = "/v1/jobs/{workspace}/{id}/approve", tag = "jobs", security(("api_key" = ["publisher"])),
    params(("workspace" = String, Path), ("id" = String, Path)), request_body = Decision,
    responses(
        (status = 200, description = "It is queued again", body = JobView),
        (status = 409, description = "`not_waiting`, `expired`, `digest_mismatch`",
         body = super::error::ErrorBody),
    ),
)]
async fn approve_job(
    State(api): State<Api>,
    caller: Caller,
    Path((workspace, id)): Path<(String, String)>,
    Body(decision): Body<Decision>,
) -> Result<Json<JobView>> {
    decide(&api, &caller, &workspace, &id, &decision, true).await
}

/// Reject a job that asks
///
/// Ends it.
#[utoipa::path(
    post, path = "/v1/jobs/{workspace}/{id}/reject", tag = "jobs", security(("api_key" = ["publisher"])),
    params(("workspace" = String, Path), ("id" = String, Path)), request_body = Decision,
    responses(
        (status = 200, description = "It is rejected", body = JobView),
        (status = 409, description = "`not_waiting`, `expired`, `digest_mismatch`",
         body = super::error::ErrorBody),
    ),
)]
async fn reject_job(
    State(api): State<Api>,
    caller: Caller,
    Path((workspace, id)): Path<(String, String)>,
    Body(decision): Body<Decision>,
) -> Result<Json<JobView>> {
    decide(&api, &caller, &workspace, &id, &decision, false).await
}

async fn decide(
    api: &Api,
    caller: &Caller,
    workspace: &str,
    id: &str,
    decision: &Decision,
    yes: bool,
) -> Result<Json<JobView>> {
    caller.in_workspace(workspace)?;
    let fits = |text: &str, longest| text.len() <= longest && !text.chars().any(char::is_control);
    if decision.by.trim().is_empty() || !fits(&decision.by, 256) {
        return Err(ApiError::bad(
            "invalid_body",
            "by",
            "expected 1 to 256 bytes without control characters",
        ));
    }
    let note = decision.note.as_deref();
    if note.is_some_and(|note| note.len() > 4096 || note.contains('\0')) {
        return Err(ApiError::bad("invalid_body", "note", "expected at most 4096 bytes"));
    }
    // Of one id, payload and expiry never change: what is checked here still holds when it is decided.
    let row = find(api, workspace, id).await?;
    if decision.digest.as_deref().is_some_and(|digest| !digest.eq_ignore_ascii_case(&hex(&row.digest))) {
        let message = "the payload is not the one that was shown";
        return Err(ApiError::conflict("digest_mismatch", message).at("digest"));
    }
    if row.state == state::PARKED && row.expires_at.is_some_and(|at| at <= api.services.clock.now()) {
        return Err(ApiError::conflict("expired", "the job's expires_at has passed"));
    }
    let decided = if yes {
        submit::approve(&api.services, workspace, id, &decision.by, note).await?
    } else {
        submit::reject(&api.services, workspace, id, &decision.by, note).await?
    };
    match decided {
        Decided::Done => {
            let row = find(api, workspace, id).await?;
            Ok(Json(JobView::whole(row, &api.services.registry)))
        }
        Decided::NotFound => Err(ApiError::not_found()),
        Decided::NotWaiting { state } => {
            let message = format!("it waits for no decision: its state is {state}");
            Err(ApiError::conflict("not_waiting", message))
        }
    }
}
