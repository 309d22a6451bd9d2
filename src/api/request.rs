//! What handlers read from a request, refused in our own shape.
//!
//! The invariant: no rejection of the framework reaches a caller as it is, and no refusal repeats what was
//! sent.

use std::borrow::Cow;

use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;

use super::error::{ApiError, Result};
use crate::api_key::Caller;
use crate::broker::MAX_BODY;
use crate::job::{is_storable, without_content};

/// The raw body, at most as large as a job's message may be.
pub(super) struct Raw(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        let is_json = request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split(';').next())
            .map(|kind| kind.trim().to_ascii_lowercase())
            .is_some_and(|kind| kind == "application/json" || kind.ends_with("+json"));
        if !is_json {
            return Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "expected the header Content-Type: application/json",
            ));
        }
        match Bytes::from_request(request, state).await {
            Ok(bytes) => Ok(Self(bytes)),
            Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large",
                format!("the largest body has {MAX_BODY} bytes"),
            )),
            Err(_) => Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                "body_incomplete",
                "the body ended before it was complete",
            )),
        }
    }
}

/// A JSON body, to the last field.
pub(super) struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        let Raw(bytes) = Raw::from_request(request, state).await?;
        let mut reader = serde_json::Deserializer::from_slice(&bytes);
        let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            let path = error.path().to_string();
            let code = if error.inner().is_data() { "invalid_body" } else { "invalid_json" };
            let refused = ApiError::new(StatusCode::BAD_REQUEST, code, without_content(error.inner()));
            if path == "." { refused } else { refused.at(path) }
        })?;
        reader.end().map_err(|_| {
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", "there is more than one JSON value")
        })?;
        // What holds no escape of it holds no NUL, and most bodies are not read twice.
        if bytes.windows(6).any(|window| window == br"\u0000") && json_holds(&bytes, |c| c == '\0') {
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_body", "a text holds a NUL"));
        }
        Ok(Self(value))
    }
}

/// The query's parameters, to the last one.
pub(super) struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let pairs = pairs_of(parts);
        if pairs.clone().any(|(_, value)| value.chars().any(char::is_control)) {
            let message = "a parameter holds a control character";
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_query", message));
        }
        read_pairs(pairs).map(Self)
    }
}

/// The parameters that Entra sends a browser back with. Its descriptions have several lines, which are made one.
pub(super) struct Redirected<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Redirected<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let in_one_line = |value: Cow<'_, str>| value.replace(char::is_control, " ").into();
        read_pairs(pairs_of(parts).map(|(name, value)| (name, in_one_line(value)))).map(Self)
    }
}

fn pairs_of(parts: &Parts) -> url::form_urlencoded::Parse<'_> {
    url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes())
}

fn read_pairs<'a, T: DeserializeOwned>(
    pairs: impl Iterator<Item = (Cow<'a, str>, Cow<'a, str>)>,
) -> Result<T> {
    let reader = serde::de::value::MapDeserializer::new(pairs.map(|(name, value)| (name, Text(value))));
    T::deserialize(reader).map_err(|error| {
        let message = error.to_string();
        // serde quotes the names it knows and the one it does not; a value is never among them.
        let named = message.starts_with("unknown field")
            || message.starts_with("missing field")
            || message.starts_with("duplicate field");
        let message = if named { message } else { "a parameter has the wrong type".to_owned() };
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_query", message)
    })
}

/// A query's value: text that is a number where a number is wanted.
struct Text<'a>(Cow<'a, str>);

impl<'de> serde::de::IntoDeserializer<'de, serde::de::value::Error> for Text<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> serde::Deserializer<'de> for Text<'de> {
    type Error = serde::de::value::Error;

    fn deserialize_any<V: serde::de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_string(self.0.into_owned())
    }

    fn deserialize_i64<V: serde::de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        let number = self.0.parse().map_err(|_| serde::de::Error::custom("no number"))?;
        visitor.visit_i64(number)
    }

    fn deserialize_option<V: serde::de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_some(self)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// The variable parts of the path, percent-decoded.
pub(super) struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        let decoded = RawPathParams::from_request_parts(parts, state).await;
        let decoded = decoded.map_err(|_| ApiError::not_found())?;
        if decoded.iter().any(|(_, text)| text.chars().any(char::is_control)) {
            let message = "the address holds a control character";
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_path", message));
        }
        let path = <axum::extract::Path<T> as FromRequestParts<S>>::from_request_parts(parts, state).await;
        path.map(|path| Self(path.0)).map_err(|_| ApiError::not_found())
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        parts.extensions.get::<Self>().cloned().ok_or_else(ApiError::unauthorized)
    }
}

/// How many rows a page has.
pub(super) fn limit(asked: Option<i64>) -> Result<i64> {
    match asked.unwrap_or(50) {
        limit @ 1..=200 => Ok(limit),
        _ => Err(ApiError::bad("invalid_query", "limit", "expected a number from 1 to 200")),
    }
}

/// Where the next page begins; opaque to callers.
pub(super) fn cursor<T: Serialize>(position: &T) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(position).unwrap_or_default())
}

/// A place in a listing.
pub(super) trait Position: DeserializeOwned {
    /// For lists in the order of time.
    fn time(&self) -> Option<DateTime<Utc>>;
}

impl Position for Uuid {
    fn time(&self) -> Option<DateTime<Utc>> {
        None
    }
}

impl<A: DeserializeOwned> Position for (DateTime<Utc>, A) {
    fn time(&self) -> Option<DateTime<Utc>> {
        Some(self.0)
    }
}

impl<A: DeserializeOwned, B: DeserializeOwned> Position for (DateTime<Utc>, A, B) {
    fn time(&self) -> Option<DateTime<Utc>> {
        Some(self.0)
    }
}

pub(super) fn position<T: Position>(cursor: Option<&str>) -> Result<Option<T>> {
    let Some(cursor) = cursor else { return Ok(None) };
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok().filter(|bytes| !json_holds(bytes, char::is_control));
    match bytes.and_then(|bytes| serde_json::from_slice::<T>(&bytes).ok()) {
        Some(position) if position.time().is_none_or(is_storable) => Ok(Some(position)),
        _ => Err(ApiError::bad("invalid_cursor", "cursor", "expected a next_cursor of an earlier page")),
    }
}

/// Does a text in it hold such a character? `PostgreSQL`'s text takes no NUL.
fn json_holds(json: &[u8], which: fn(char) -> bool) -> bool {
    fn held(value: &Value, which: fn(char) -> bool) -> bool {
        match value {
            Value::String(text) => text.chars().any(which),
            Value::Array(values) => values.iter().any(|value| held(value, which)),
            Value::Object(fields) => {
                fields.iter().any(|(name, value)| name.chars().any(which) || held(value, which))
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => false,
        }
    }
    serde_json::from_slice(json).is_ok_and(|value| held(&value, which))
}

impl Caller {
    /// Refuses a workspace that the request itself names; nothing was looked up, so nothing is told.
    pub fn in_workspace(&self, workspace: &str) -> Result<()> {
        if self.may_see(Some(workspace)) { Ok(()) } else { Err(ApiError::foreign_workspace()) }
    }

    /// The workspace a listing is narrowed to.
    pub fn narrowed(&self, asked: Option<String>) -> Result<Option<String>> {
        match asked {
            Some(workspace) => self.in_workspace(&workspace).map(|()| Some(workspace)),
            None => Ok(self.workspace.clone()),
        }
    }

    /// What belongs to no workspace is out of reach for a key that is bound to one.
    pub fn of_fleet(&self) -> Result<()> {
        if self.workspace.is_none() { Ok(()) } else { Err(ApiError::foreign_workspace()) }
    }
}
