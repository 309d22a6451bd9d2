//! How Graph says no, and how it answers at all. Every refusal has Microsoft's envelope
//! (<https://learn.microsoft.com/graph/errors>); no handler builds an error body by itself.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use serde_json::Value;

/// A refusal: status, code, message for developers.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) location: Option<String>,
}

impl Refusal {
    pub(crate) fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            code: code.to_owned(),
            message: message.into(),
            location: None,
        }
    }

    pub(crate) fn bad(code: &str, message: impl Into<String>) -> Self {
        Self::new(400, code, message)
    }

    pub(crate) fn not_found() -> Self {
        Self::new(404, "ErrorItemNotFound", "The specified object was not found in the store.")
    }

    pub(crate) fn malformed_id() -> Self {
        Self::bad("ErrorInvalidIdMalformed", "Id is malformed.")
    }

    pub(crate) fn denied() -> Self {
        Self::new(403, "ErrorAccessDenied", "Access is denied. Check credentials and try again.")
    }

    pub(crate) fn no_segment(segment: &str) -> Self {
        Self::bad("BadRequest", format!("Resource not found for the segment '{segment}'."))
    }

    pub(crate) fn method() -> Self {
        Self::new(405, "UnknownError", "Specified HTTP method is not allowed for the request target.")
    }

    pub(crate) fn unsupported(what: &str) -> Self {
        Self::new(501, "NotImplemented", format!("{what} is not simulated."))
    }

    /// The gateway adds `innerError` with the ids of the call.
    pub(crate) fn into_response(self) -> Response {
        let mut response = crate::answer::graph_error(self.status, &self.code, &self.message);
        if let Some(location) = self.location.and_then(|location| HeaderValue::try_from(location).ok()) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }
}

/// What a handler answers: kept apart from HTTP so that `$batch` can wrap it.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: Vec<(HeaderName, String)>,
    pub(crate) body: Content,
}

#[derive(Debug, Clone)]
pub(crate) enum Content {
    Empty,
    Json(Value),
    Bytes(String, Bytes),
}

pub(crate) type Answer = Result<Reply, Refusal>;

impl Reply {
    pub(crate) fn empty(status: u16) -> Self {
        Self {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::OK),
            headers: Vec::new(),
            body: Content::Empty,
        }
    }

    pub(crate) fn json(status: u16, body: Value) -> Self {
        Self { body: Content::Json(body), ..Self::empty(status) }
    }

    pub(crate) fn with(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn into_response(self) -> Response {
        let mut response = match self.body {
            Content::Empty => Response::new(Body::empty()),
            Content::Json(value) => {
                let mut response = Response::new(Body::from(value.to_string()));
                // The parameters are what Graph sends, quoted from the samples of the API pages.
                response.headers_mut().insert(
                    header::CONTENT_TYPE,
                    HeaderValue::from_static(
                        "application/json;odata.metadata=minimal;odata.streaming=true;IEEE754Compatible=false;charset=utf-8",
                    ),
                );
                response
            }
            Content::Bytes(kind, bytes) => {
                let mut response = Response::new(Body::from(bytes));
                if let Ok(kind) = HeaderValue::from_str(&kind) {
                    response.headers_mut().insert(header::CONTENT_TYPE, kind);
                }
                response
            }
        };
        *response.status_mut() = self.status;
        for (name, value) in self.headers {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().append(name, value);
            }
        }
        response
    }
}
