//! Entra's errors: one value, shown as JSON by the token endpoint and as parameters of a redirect by authorize.
//!
//! Shape and codes: `entra/identity-platform/reference-error-codes`.

use axum::response::{Html, IntoResponse, Response};
use chrono::{DateTime, Utc};
use http::StatusCode;
use serde_json::{Value, json};

use crate::Sim;
use crate::answer::{Refused, answer_json};

#[derive(Clone, Debug)]
pub(crate) struct EntraError {
    pub(crate) error: String,
    pub(crate) code: u64,
    pub(crate) codes: Vec<u64>,
    pub(crate) message: String,
    pub(crate) suberror: Option<Box<str>>,
    pub(crate) claims: Option<Box<str>>,
}

impl EntraError {
    pub(crate) fn new(error: &str, code: u64, message: impl Into<String>) -> Self {
        Self {
            error: error.into(),
            code,
            codes: vec![code],
            message: message.into(),
            suberror: None,
            claims: None,
        }
    }

    pub(crate) fn invalid_grant(code: u64, message: impl Into<String>) -> Self {
        Self::new("invalid_grant", code, message)
    }

    pub(crate) fn invalid_request(code: u64, message: impl Into<String>) -> Self {
        Self::new("invalid_request", code, message)
    }

    pub(crate) fn invalid_client(code: u64, message: impl Into<String>) -> Self {
        Self::new("invalid_client", code, message)
    }

    pub(crate) fn missing(parameter: &str) -> Self {
        let message = format!("The request body must contain the following parameter: '{parameter}'.");
        Self::invalid_request(900_144, message)
    }

    #[must_use]
    pub(crate) fn suberror(mut self, suberror: &str) -> Self {
        self.suberror = Some(suberror.into());
        self
    }

    /// The description as Entra writes it: with ids and time behind the text, each on a line of its own.
    pub(crate) fn description(&self, trace: &str, correlation: &str, now: DateTime<Utc>) -> String {
        format!(
            "AADSTS{}: {}\r\nTrace ID: {trace}\r\nCorrelation ID: {correlation}\r\nTimestamp: {}",
            self.code,
            self.message,
            now.format("%Y-%m-%d %H:%M:%SZ")
        )
    }

    pub(crate) fn into_answer(self, sim: &Sim, correlation: Option<&str>) -> Refused {
        let now = sim.now();
        let (trace, made) = (sim.guid(), sim.guid());
        let correlation = correlation.unwrap_or(&made);
        let status = match (self.error.as_str(), self.code) {
            // The tenant is throttled.
            (_, 90_055) => StatusCode::TOO_MANY_REQUESTS,
            ("invalid_client", _) => StatusCode::UNAUTHORIZED,
            ("temporarily_unavailable", _) => StatusCode::SERVICE_UNAVAILABLE,
            ("server_error", _) => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        };
        let mut body = json!({
            "error": self.error,
            "error_description": self.description(&trace, correlation, now),
            "error_codes": self.codes,
            "timestamp": now.format("%Y-%m-%d %H:%M:%SZ").to_string(),
            "trace_id": trace,
            "correlation_id": correlation,
            "error_uri": format!("{}/error?code={}", sim.base_url(), self.code),
        });
        if let Some(suberror) = self.suberror {
            body["suberror"] = Value::String(suberror.into());
        }
        if let Some(claims) = self.claims {
            body["claims"] = Value::String(claims.into());
        }
        answer_json(status, &body).into()
    }

    /// The page shown when the redirect URI cannot be trusted.
    pub(crate) fn into_page(self, sim: &Sim) -> Response {
        let text = self.description(&sim.guid(), &sim.guid(), sim.now());
        let page = format!(
            "<!doctype html><title>Sign in</title><h1>Sorry, but we’re having trouble signing you in.</h1><p>{}</p>",
            super::page::escape(&text)
        );
        (StatusCode::BAD_REQUEST, Html(page)).into_response()
    }
}
