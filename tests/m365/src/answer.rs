//! The error shapes of the three services.
//!
//! Graph: `learn.microsoft.com/graph/errors`. Dataverse: `webapi/compose-http-requests-handle-errors`.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

/// The error of a Graph call; the gateway fills in `innerError` with date and request ids.
pub fn graph_error(status: StatusCode, code: &str, message: &str) -> Response {
    let body = json!({"error": {"code": code, "message": message}});
    let mut response = answer_json(status, &body);
    response.extensions_mut().insert(WantsInnerError);
    response
}

/// The error of a Dataverse call: no inner error unless annotations were asked for.
pub fn dataverse_error(status: StatusCode, code: &str, message: &str) -> Response {
    let body = json!({"error": {"code": code, "message": message}});
    let mut response = answer_json(status, &body);
    let kind = HeaderValue::from_static("application/json; odata.metadata=minimal");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

pub fn answer_json(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

pub fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// Marks a Graph error whose `innerError` is still to be written.
#[derive(Clone, Copy)]
pub(crate) struct WantsInnerError;

/// An answer that ends a handler early. Boxed, because it is the rare way out of every handler.
#[derive(Debug)]
pub struct Refused(Box<Response>);

impl From<Response> for Refused {
    fn from(response: Response) -> Self {
        Self(Box::new(response))
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        *self.0
    }
}

/// What handlers return.
pub type Answer = Result<Response, Refused>;
