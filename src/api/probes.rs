//! Probes and numbers, for those who run the process.
//!
//! The invariant: ready means that a request could be served and its job leave: the store answers, the broker
//! takes publications and no drain has begun.

use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::{Json, Router, routing::get};
use scoped_futures::ScopedFutureExt;
use serde::Serialize;

use super::Api;
use crate::broker::Health;
use crate::store::queue_pause;

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    store: &'static str,
    broker: &'static str,
    draining: bool,
}

/// On the API's listener, or on one of their own.
pub fn router(api: Api) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(api)
}

async fn ready(State(api): State<Api>) -> impl IntoResponse {
    let services = &api.services;
    let look = services.store.read(|tx| async move { queue_pause::list(tx).await }.scope_boxed());
    let store = tokio::select! {
        looked = look => looked.is_ok(),
        () = services.clock.sleep(Duration::from_secs(2)) => false,
    };
    let health = *services.broker.health().borrow();
    let draining = api.stopping.is_cancelled();
    let ready = store && health == Health::Ready && !draining;
    let broker = match health {
        Health::Ready => "ready",
        Health::Blocked => "blocked",
        Health::Connecting => "connecting",
    };
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let store = if store { "ready" } else { "unreachable" };
    (status, Json(Readiness { ready, store, broker, draining }))
}

async fn metrics(State(api): State<Api>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], api.metrics.render())
}
