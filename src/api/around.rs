//! What happens around every request: its id, its span, its numbers, its headers.
//!
//! The invariant: no log line or label holds a query, a body or a concrete path; a handler that panics
//! answers like any other fault of ours.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use tracing::Instrument;
use uuid::Uuid;

use super::error::ApiError;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

pub(super) async fn around(request: Request, next: Next) -> Response {
    let id = request_id(&request);
    let method = label(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let span = tracing::info_span!(
        "api",
        method = method,
        route = route,
        request = id.to_str().unwrap_or_default(),
        key = tracing::field::Empty,
        status = tracing::field::Empty,
    );
    let started = Instant::now();
    let answer = AssertUnwindSafe(next.run(request)).catch_unwind().instrument(span.clone()).await;
    let mut response = answer.unwrap_or_else(|_| ApiError::internal().into_response());
    let status = response.status();
    span.record("status", status.as_u16());
    span.in_scope(|| {
        if status.is_server_error() {
            tracing::warn!("refused");
        } else {
            tracing::debug!("answered");
        }
    });
    metrics::counter!(
        "followthrough_api_requests_total",
        "method" => method, "route" => route.clone(), "status" => status.as_u16().to_string(),
    )
    .increment(1);
    metrics::histogram!("followthrough_api_request_seconds", "method" => method, "route" => route)
        .record(started.elapsed().as_secs_f64());
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    for (name, value) in GUARDS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// A method that anybody may invent would be a label without end.
fn label(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "CONNECT", "TRACE"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("other")
}

/// Answers hold what belongs to one caller, and pages of ours load nothing and are framed by nobody.
const GUARDS: [(HeaderName, &str); 5] = [
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; \
         frame-ancestors 'none'",
    ),
];

/// The caller's own id where it is harmless, else a new one.
fn request_id(request: &Request) -> HeaderValue {
    let safe = |value: &&HeaderValue| {
        value.to_str().is_ok_and(|text| {
            (1..=128).contains(&text.len())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "._:@/-".contains(c))
        })
    };
    request.headers().get(REQUEST_ID).filter(safe).cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&Uuid::now_v7().to_string()).unwrap_or(HeaderValue::from_static("unknown"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_that_somebody_invents_is_no_label_of_its_own() {
        for (method, expected) in [("GET", "GET"), ("DELETE", "DELETE"), ("get", "other"), ("PWN-1", "other")]
        {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(label(&method), expected);
        }
    }
}
