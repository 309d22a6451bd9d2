//! Answers that no service gave, and what every answer wears.

use std::collections::BTreeMap;

use axum::body::{Body, to_bytes};
use axum::response::Response;
use chrono::{DateTime, Utc};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::CallContext;
use crate::Sim;
use crate::answer::{WantsInnerError, answer_json, dataverse_error, empty, graph_error};
use crate::journal::Area;
use crate::referee::{Quota, Reason, Refusal, http_date};

pub(super) fn made_up(
    sim: &Sim,
    status: u16,
    headers: &BTreeMap<String, String>,
    body: &Value,
    quota: Option<&Quota>,
) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = match body {
        Value::Null => empty(status),
        Value::String(text) => {
            let mut response = empty(status);
            *response.body_mut() = Body::from(text.clone());
            response
        }
        json => answer_json(status, json),
    };
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().insert(name, value);
        }
    }
    let retry_after = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    let throttling = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    if let (Some(quota), Some(retry_after), true) = (quota, retry_after, throttling) {
        sim.referee().penalise(quota, sim.now(), retry_after);
    }
    response
}

/// 429 bodies: `graph/throttling` for Graph, `api-limits` for Dataverse.
pub(crate) fn refused(sim: &Sim, area: Area, refusal: &Refusal) -> Response {
    if refusal.violation && sim.referee().limits.strict {
        return graph_error(
            StatusCode::INTERNAL_SERVER_ERROR,
            "SimulatorViolation",
            "See GET /_sim/referee.",
        );
    }
    let status = StatusCode::TOO_MANY_REQUESTS;
    let mut response = match (area, refusal.reason) {
        (Area::Dataverse, Reason::Requests) => dataverse_error(
            status,
            "0x80072322",
            "Number of requests exceeded the limit of 6000 over time window of 300 seconds.",
        ),
        (Area::Dataverse, Reason::Execution) => dataverse_error(
            status,
            "0x80072321",
            "Combined execution time of incoming requests exceeded limit of 1200000 milliseconds over time window of \
             300 seconds. Decrease number of concurrent requests or reduce the duration of requests and try again later.",
        ),
        (Area::Dataverse, Reason::Concurrency) => {
            dataverse_error(status, "0x80072326", "Number of concurrent requests exceeded the limit of 52.")
        }
        (_, Reason::Concurrency) => {
            graph_error(status, "ApplicationThrottled", "Application is over its MailboxConcurrency limit.")
        }
        _ => graph_error(status, "TooManyRequests", "Please retry again later."),
    };
    if let Some(value) = refusal.retry_after.as_deref().and_then(|v| HeaderValue::try_from(v).ok()) {
        response.headers_mut().insert(header::RETRY_AFTER, value);
    }
    response
}

/// What is left of the service protection limits: `api-limits#monitoring-limits`, meant for looking at, not for pacing.
pub(super) fn with_what_is_left(
    sim: &Sim,
    area: Area,
    quota: Option<&Quota>,
    mut response: Response,
) -> Response {
    if let (Area::Dataverse, Some(quota)) = (area, quota) {
        let (requests, seconds) = sim.referee().left(quota);
        let headers = response.headers_mut();
        headers.insert("x-ms-ratelimit-burst-remaining-xrm-requests", HeaderValue::from(requests));
        headers.insert("x-ms-ratelimit-time-remaining-xrm-requests", HeaderValue::from(seconds));
    }
    response
}

/// The headers every answer carries, and `innerError` of Graph's errors.
pub(super) async fn dress(sim: &Sim, area: Area, context: &CallContext, mut response: Response) -> Response {
    let now = sim.now();
    if area == Area::Graph && response.extensions_mut().remove::<WantsInnerError>().is_some() {
        response = with_inner_error(context, now, response).await;
    }
    // Graph's own JSON says so in its type; errors and raw content do not.
    let odata = response
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .is_some_and(|kind| kind.contains("odata.metadata="));
    let headers = response.headers_mut();
    let mut set = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    set("date", &http_date(now));
    match area {
        Area::Graph => {
            set("request-id", &context.request_id);
            set("client-request-id", context.client_request_id.as_ref().unwrap_or(&context.request_id));
            let where_it_ran = json!({"ServerInfo": {"DataCenter": "Simulated", "Slice": "E", "Ring": "1",
                "ScaleUnit": "000", "RoleInstance": "M365SIM"}});
            set("x-ms-ags-diagnostic", &where_it_ran.to_string());
            set("cache-control", "no-cache");
            if odata {
                set("odata-version", "4.0");
            }
        }
        Area::Dataverse | Area::Discovery => {
            set("x-ms-service-request-id", &context.request_id);
            set("req_id", &context.request_id);
            set("odata-version", "4.0");
        }
        Area::Entra => {
            set("x-ms-request-id", &context.request_id);
            set("cache-control", "no-store, no-cache");
            if let Some(id) = &context.client_request_id {
                set("client-request-id", id);
            }
        }
    }
    response
}

async fn with_inner_error(context: &CallContext, now: DateTime<Utc>, response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    let bytes = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let Ok(mut json) = serde_json::from_slice::<Value>(&bytes) else {
        return Response::from_parts(parts, Body::from(bytes));
    };
    json["error"]["innerError"] = json!({
        "date": now.format("%Y-%m-%dT%H:%M:%S").to_string(),
        "request-id": context.request_id,
        "client-request-id": context.client_request_id.as_ref().unwrap_or(&context.request_id),
    });
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(json.to_string()))
}
