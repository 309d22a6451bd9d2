//! Refusals: one shape, stable codes.
//!
//! The invariant: whatever goes wrong, the answer is `{"error":{"code","message","path"?}}`, and a fault of
//! ours tells the caller no more than that it is one.

use std::borrow::Cow;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::job::Undecodable;
use crate::store::StoreError;

#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: Cow<'static, str>,
    message: Cow<'static, str>,
    path: Option<String>,
}

/// The body of every refusal.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ErrorDetail {
    /// Stable, `snake_case`: what software decides by.
    #[schema(example = "invalid_payload")]
    pub code: String,
    /// For people; may change.
    pub message: String,
    /// Where in the request the fault is: `payload.to[0].email`, `cursor`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

pub type Result<T, E = ApiError> = std::result::Result<T, E>;

impl ApiError {
    pub fn new(
        status: StatusCode,
        code: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { status, code: code.into(), message: message.into(), path: None }
    }

    pub fn bad(code: &'static str, path: impl Into<String>, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message).at(path)
    }

    #[must_use]
    pub fn at(mut self, path: impl Into<String>) -> Self {
        self.path = Some(path.into());
        self
    }

    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this address")
    }

    pub fn conflict(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::CONFLICT, code, message)
    }

    pub fn unauthorized() -> Self {
        let message = "expected the header Authorization: Bearer <api key> with a key that is valid";
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }

    pub fn foreign_workspace() -> Self {
        let message = "this key is bound to another workspace";
        Self::new(StatusCode::FORBIDDEN, "forbidden_workspace", message)
    }

    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "a fault of ours; the log knows more")
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        tracing::warn!(%error, "the store failed a request");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", "the database does not answer")
    }
}

impl From<Undecodable> for ApiError {
    fn from(undecodable: Undecodable) -> Self {
        let status = match undecodable.code {
            "too_large" => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        };
        let mut error = Self::new(status, undecodable.code, undecodable.message);
        error.path = undecodable.path;
        error
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let detail =
            ErrorDetail { code: self.code.into_owned(), message: self.message.into_owned(), path: self.path };
        let mut response = (self.status, Json(ErrorBody { error: detail })).into_response();
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
        }
        response
    }
}
