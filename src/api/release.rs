//! Releasing parked jobs.
//!
//! The invariant: nothing is released that the request did not ask for by id or by a filter it wrote out.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::error::{ApiError, Result};
use super::request::Body;
use crate::api_key::Caller;
use crate::outcome::Cause;
use crate::release::{self, Found, Released};
use crate::store::parked::Which;

pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(release_jobs))
}

/// As many are released by one request.
const AT_ONCE: i64 = 1000;

/// Which parked jobs: by `ids` of one workspace or by `filter`, one of the two.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct Release {
    /// Required beside `ids`: they are unique only within a workspace.
    workspace: Option<String>,
    ids: Option<Vec<String>>,
    filter: Option<ReleaseFilter>,
    /// For jobs whose outcome nobody knows (`ambiguous`), and only for them: what was found at Microsoft.
    outcome: Option<Found>,
    /// Tells what would happen and changes nothing.
    #[serde(default)]
    dry_run: bool,
}

/// All of these; `{}` is every parked job that waits for no approval.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct ReleaseFilter {
    kind: Option<String>,
    /// Every cause but `approval`.
    cause: Option<Cause>,
    code: Option<String>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ReleasedJobs {
    pub dry_run: bool,
    pub released: Vec<Released>,
    /// The filter may match more than one request releases: ask again.
    pub more: bool,
}

/// Release parked jobs
///
/// Once what they waited for was put right: they are queued again, and permission, consent and limits are
/// those of now. A job that is `ambiguous` needs the `outcome`: `not_made` does it again, `made` ends it.
#[utoipa::path(
    post, path = "/v1/jobs/release", tag = "jobs", security(("api_key" = ["operator"])),
    request_body = Release,
    responses((status = 200, description = "What was or would be done to each", body = ReleasedJobs)),
)]
async fn release_jobs(
    State(api): State<Api>,
    caller: Caller,
    Body(asked): Body<Release>,
) -> Result<Json<ReleasedJobs>> {
    let workspace = caller.narrowed(asked.workspace)?;
    let which = match (asked.ids, asked.filter) {
        (Some(ids), None) => {
            if !(1..=1000).contains(&ids.len()) {
                return Err(ApiError::bad("invalid_body", "ids", "expected 1 to 1000 ids"));
            }
            if workspace.is_none() {
                return Err(ApiError::bad("invalid_body", "workspace", "expected the workspace of the ids"));
            }
            Which { workspace, ids, limit: AT_ONCE, ..Which::default() }
        }
        (None, Some(filter)) => {
            if filter.cause == Some(Cause::Approval) {
                let message = "an approval is given by approving the job";
                return Err(ApiError::bad("invalid_body", "filter.cause", message));
            }
            let cause = filter.cause.map(Cause::as_str);
            Which {
                workspace,
                kind: filter.kind,
                cause,
                code: filter.code,
                limit: AT_ONCE,
                ..Which::default()
            }
        }
        _ => return Err(ApiError::bad("invalid_body", "ids", "expected either ids or filter")),
    };
    let by = caller.signature();
    let released = release::release(&api.services, &which, asked.outcome, &by, asked.dry_run).await?;
    let more = which.ids.is_empty() && i64::try_from(released.len()).is_ok_and(|count| count == AT_ONCE);
    Ok(Json(ReleasedJobs { dry_run: asked.dry_run, released, more }))
}
