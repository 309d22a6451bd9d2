//! What Microsoft tells of changes: handshakes, notifications and lifecycle events.
//!
//! The invariant: 202 is said only after all that had to be kept is committed, and nothing else is done before it. Each
//! item is believed by the client state of its own subscription, and whoever does not know that changes nothing and
//! learns nothing. What is kept says only that something may have changed; the polls find out what did.
//! <https://learn.microsoft.com/graph/change-notifications-delivery-webhooks>

mod item;
mod store;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{OriginalUri, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::BytesMut;
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use url::Url;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::error::ApiError;
use crate::batch::Batcher;
use crate::config::Config;
use crate::http::loopback;
use crate::services::Services;
use item::Item;

const NOTIFICATIONS: &str = "graph/notifications";
const LIFECYCLE: &str = "graph/lifecycle";

const LARGEST_TOKEN: usize = 4 * 1024;
const LARGEST_BODY: usize = 1024 * 1024;
/// Bodies under way and their items, from the first byte to the commit. Whoever finds it used up comes again.
const MEMORY: usize = 32 * 1024 * 1024;
/// Requests that wait for a commit.
const ROOM: usize = 8 * 1024;
/// Microsoft waits 3 seconds the first time and 10 afterwards. What is committed after all is found a duplicate when it
/// comes again.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where Microsoft is asked to send notifications.
#[derive(Debug, Clone)]
pub enum Callbacks {
    /// The settings want no push.
    Off,
    /// Microsoft sends to https only.
    NoHttps,
    At {
        notifications: Url,
        lifecycle: Url,
    },
}

impl Callbacks {
    pub fn of(config: &Config) -> Self {
        if config.mailbox.push { Self::at(&config.http.public_url) } else { Self::Off }
    }

    /// Below the public URL. Plain http is for simulators on this machine.
    pub fn at(public: &Url) -> Self {
        if public.scheme() != "https" && !loopback(public) {
            return Self::NoHttps;
        }
        let below = |path: &str| {
            let mut url = public.clone();
            if let Ok(mut segments) = url.path_segments_mut() {
                segments.pop_if_empty().extend(path.split('/'));
            }
            url
        };
        Self::At { notifications: below(NOTIFICATIONS), lifecycle: below(LIFECYCLE) }
    }
}

/// What one request told. It holds the memory it was given until it is committed, however long its sender waits.
#[derive(Clone)]
struct Post {
    items: Arc<[Item]>,
    _memory: Arc<OwnedSemaphorePermit>,
}

/// The intake of one process.
#[derive(Clone)]
pub struct Intake {
    posts: Batcher<Post, ()>,
    memory: Arc<Semaphore>,
}

impl Intake {
    pub fn start(services: &Services) -> Self {
        let (store, clock) = (services.store.clone(), services.clock.clone());
        let posts = Batcher::with_room(ROOM, move |posts: Arc<[Post]>| {
            let (store, now) = (store.clone(), clock.now());
            async move { store::keep(&store, &posts, now).await }
        });
        Self { posts, memory: Arc::new(Semaphore::new(MEMORY)) }
    }

    async fn take(&self, body: Body) -> Result<(), ApiError> {
        let mut memory = self.memory.clone().try_acquire_many_owned(0).map_err(|_| busy())?;
        let body = self.read(body, &mut memory).await?;
        let items: Arc<[Item]> = item::read(&body)
            .ok_or_else(|| {
                // Cut off on the way, or nobody's that we know: Microsoft sends it again, whole.
                let message = "expected a JSON object with an array named value";
                ApiError::new(StatusCode::BAD_REQUEST, "no_notification", message)
            })?
            .into();
        drop(body);
        if items.is_empty() {
            return Ok(());
        }
        let post = Post { items, _memory: Arc::new(memory) };
        self.posts.try_submit(post).await.ok_or_else(busy)?.map_err(|error| {
            tracing::warn!(%error, "notifications could not be stored");
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", "come again later")
        })
    }

    /// Memory is taken for what has arrived, so that nobody can reserve it by a promise.
    async fn read(&self, mut body: Body, memory: &mut OwnedSemaphorePermit) -> Result<BytesMut, ApiError> {
        let mut read = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let incomplete = |_| {
                let message = "the body ended before it was complete";
                ApiError::new(StatusCode::BAD_REQUEST, "body_incomplete", message)
            };
            let Ok(chunk) = frame.map_err(incomplete)?.into_data() else { continue };
            if read.len() + chunk.len() > LARGEST_BODY {
                let message = format!("the largest body has {LARGEST_BODY} bytes");
                return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message));
            }
            let size = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
            memory.merge(self.memory.clone().try_acquire_many_owned(size).map_err(|_| busy())?);
            read.extend_from_slice(&chunk);
        }
        Ok(read)
    }
}

fn busy() -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "come again later")
}

pub fn routes() -> OpenApiRouter<Intake> {
    OpenApiRouter::new().routes(routes!(notify, shake_hands)).routes(routes!(tell, shake_hands_too))
}

/// Notifications
///
/// For Microsoft. Each item is believed by its own subscription's client state; what is not believed is ignored. 202
/// is said once everything is stored. With `validationToken` it is the handshake, whatever the body says.
#[utoipa::path(
    post, path = "/graph/notifications", tag = "microsoft",
    params(("validationToken" = Option<String>, Query)), request_body = serde_json::Value,
    responses(
        (status = 202, description = "Stored, or ignored"),
        (status = 200, description = "The token, decoded", content_type = "text/plain", body = String),
        (status = 400, description = "`no_notification`, `token_too_long`"),
        (status = 413, description = "`too_large`"),
        (status = 503, description = "Nothing is stored yet: `store_unavailable`, `overloaded`"),
    ),
)]
async fn notify(State(intake): State<Intake>, OriginalUri(uri): OriginalUri, body: Body) -> Response {
    answer(&intake, uri.query(), Some(body)).await
}

/// The handshake of notifications
///
/// For Microsoft and for whoever wants to see that the address is reached.
#[utoipa::path(
    get, path = "/graph/notifications", tag = "microsoft", params(("validationToken" = String, Query)),
    responses((status = 200, description = "The token, decoded", content_type = "text/plain", body = String)),
)]
async fn shake_hands(State(intake): State<Intake>, OriginalUri(uri): OriginalUri) -> Response {
    answer(&intake, uri.query(), None).await
}

/// Lifecycle events
///
/// For Microsoft: a subscription wants a fresh token, was removed, or has missed something. As `/graph/notifications`.
#[utoipa::path(
    post, path = "/graph/lifecycle", tag = "microsoft",
    params(("validationToken" = Option<String>, Query)), request_body = serde_json::Value,
    responses(
        (status = 202, description = "Stored, or ignored"),
        (status = 200, description = "The token, decoded", content_type = "text/plain", body = String),
        (status = 400, description = "`no_notification`, `token_too_long`"),
        (status = 413, description = "`too_large`"),
        (status = 503, description = "Nothing is stored yet: `store_unavailable`, `overloaded`"),
    ),
)]
async fn tell(State(intake): State<Intake>, OriginalUri(uri): OriginalUri, body: Body) -> Response {
    answer(&intake, uri.query(), Some(body)).await
}

/// The handshake of lifecycle events
///
/// For Microsoft and for whoever wants to see that the address is reached.
#[utoipa::path(
    get, path = "/graph/lifecycle", tag = "microsoft", params(("validationToken" = String, Query)),
    responses((status = 200, description = "The token, decoded", content_type = "text/plain", body = String)),
)]
async fn shake_hands_too(State(intake): State<Intake>, OriginalUri(uri): OriginalUri) -> Response {
    answer(&intake, uri.query(), None).await
}

async fn answer(intake: &Intake, query: Option<&str>, body: Option<Body>) -> Response {
    let started = Instant::now();
    let response = match (query.and_then(token), body) {
        (Some(token), _) => echo(token),
        (None, None) => {
            let message = "expected the parameter validationToken";
            ApiError::new(StatusCode::BAD_REQUEST, "no_token", message).into_response()
        }
        (None, Some(body)) => match timeout(PATIENCE, intake.take(body)).await {
            Ok(Ok(())) => StatusCode::ACCEPTED.into_response(),
            Ok(Err(error)) => error.into_response(),
            Err(_) => busy().into_response(),
        },
    };
    match response.status() {
        StatusCode::OK => count("handshake", 1),
        StatusCode::ACCEPTED => {}
        StatusCode::SERVICE_UNAVAILABLE => count("unstored", 1),
        _ => count("refused", 1),
    }
    metrics::histogram!("followthrough_intake_seconds").record(started.elapsed().as_secs_f64());
    response
}

/// The token as Microsoft wrote it, byte by byte. As text that no browser may take for anything else it is harmless,
/// and no handshake waits for the store.
fn echo(token: Vec<u8>) -> Response {
    if token.len() > LARGEST_TOKEN {
        let message = format!("the longest token has {LARGEST_TOKEN} bytes");
        return ApiError::new(StatusCode::BAD_REQUEST, "token_too_long", message).into_response();
    }
    let headers =
        [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (headers, token).into_response()
}

fn token(query: &str) -> Option<Vec<u8>> {
    let raw = query.split('&').find_map(|pair| match pair.split_once('=') {
        Some(("validationToken", raw)) => Some(raw),
        None if pair == "validationToken" => Some(""),
        _ => None,
    })?;
    let spaced: Vec<u8> = raw.bytes().map(|byte| if byte == b'+' { b' ' } else { byte }).collect();
    Some(percent_encoding::percent_decode(&spaced).collect())
}

fn count(outcome: &'static str, times: u64) {
    metrics::counter!("followthrough_intake_total", "outcome" => outcome).increment(times);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_decoded_to_its_bytes() {
        for (query, expected) in [
            ("validationToken=a%20b+c%2Bd", &b"a b c+d"[..]),
            ("x=1&validationToken=%3Cscript%3E&y=2", b"<script>"),
            ("validationToken=%ff%00", b"\xff\0"),
            ("validationToken=", b""),
            ("validationToken", b""),
        ] {
            assert_eq!(token(query).as_deref(), Some(expected), "{query}");
        }
        assert_eq!(token("xvalidationToken=1&validationtoken=2"), None);
    }

    #[test]
    fn callbacks_stand_below_the_public_url_and_need_https() {
        let at = |url: &str| match Callbacks::at(&Url::parse(url).unwrap()) {
            Callbacks::At { notifications, lifecycle } => format!("{notifications} {lifecycle}"),
            other => format!("{other:?}"),
        };
        assert_eq!(
            at("https://a.example/sub/"),
            "https://a.example/sub/graph/notifications https://a.example/sub/graph/lifecycle"
        );
        assert_eq!(
            at("http://127.0.0.1:8080"),
            "http://127.0.0.1:8080/graph/notifications http://127.0.0.1:8080/graph/lifecycle"
        );
        assert_eq!(at("http://a.example"), "NoHttps");
    }
}
