//! Queues: how full they are, and whether workers take from them.
//!
//! The invariant: a pause is kept in the store and holds for the whole fleet, so only a key that is bound to
//! no workspace sets it.

use axum::Json;
use axum::extract::State;
use scoped_futures::ScopedFutureExt;
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::error::{ApiError, Result};
use super::request::Path;
use crate::api_key::Caller;
use crate::broker::Source;
use crate::store::queue_pause;

pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list_queues))
        .routes(routes!(pause_queue))
        .routes(routes!(resume_queue))
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct QueueView {
    pub kind: String,
    /// Messages that wait for a worker; absent while the broker does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumers: Option<u64>,
    pub paused: bool,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct QueueList {
    pub queues: Vec<QueueView>,
    /// Messages on their way into the table of dead letters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead: Option<u64>,
}

/// List the queues
#[utoipa::path(
    get, path = "/v1/queues", tag = "queues", security(("api_key" = ["operator"])),
    responses((status = 200, description = "One per kind", body = QueueList)),
)]
async fn list_queues(State(api): State<Api>, caller: Caller) -> Result<Json<QueueList>> {
    caller.of_fleet()?;
    let services = &api.services;
    let paused = services.store.read(|tx| async move { queue_pause::list(tx).await }.scope_boxed()).await?;
    let mut queues = Vec::new();
    for kind in services.registry.kinds() {
        let depth = services.broker.depth(&Source::Jobs { kind: kind.clone() }).await.ok();
        queues.push(QueueView {
            ready: depth.map(|depth| depth.ready),
            consumers: depth.map(|depth| depth.consumers),
            paused: paused.contains(&kind),
            kind,
        });
    }
    let dead = services.broker.depth(&Source::Dead).await.ok().map(|depth| depth.ready);
    Ok(Json(QueueList { queues, dead }))
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct PauseState {
    pub kind: String,
    pub paused: bool,
}

/// Pause a queue
///
/// Workers take no more jobs of the kind within a second or two; running ones end.
#[utoipa::path(
    post, path = "/v1/queues/{kind}/pause", tag = "queues", security(("api_key" = ["operator"])),
    params(("kind" = String, Path)),
    responses((status = 200, description = "It is paused", body = PauseState)),
)]
async fn pause_queue(
    State(api): State<Api>,
    caller: Caller,
    Path(kind): Path<String>,
) -> Result<Json<PauseState>> {
    known(&api, &caller, &kind)?;
    let (by, now, name) = (&caller.signature(), api.services.clock.now(), kind.as_str());
    api.services
        .store
        .transaction("queue_pause", |tx| {
            async move { queue_pause::pause(tx, name, by, now).await }.scope_boxed()
        })
        .await?;
    Ok(Json(PauseState { kind, paused: true }))
}

/// Resume a queue
#[utoipa::path(
    post, path = "/v1/queues/{kind}/resume", tag = "queues", security(("api_key" = ["operator"])),
    params(("kind" = String, Path)),
    responses((status = 200, description = "Workers take from it", body = PauseState)),
)]
async fn resume_queue(
    State(api): State<Api>,
    caller: Caller,
    Path(kind): Path<String>,
) -> Result<Json<PauseState>> {
    known(&api, &caller, &kind)?;
    let name = kind.as_str();
    api.services
        .store
        .transaction("queue_resume", |tx| async move { queue_pause::resume(tx, name).await }.scope_boxed())
        .await?;
    Ok(Json(PauseState { kind, paused: false }))
}

fn known(api: &Api, caller: &Caller, kind: &str) -> Result<()> {
    caller.of_fleet()?;
    match api.services.registry.find(kind) {
        Some(_) => Ok(()),
        None => Err(ApiError::not_found()),
    }
}
