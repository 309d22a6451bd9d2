//! The one place that sends: timeouts, size caps, spans and the only repeats made inside a process.
//!
//! The invariant: a creating call is written at most once per [`Http::send`], and an error says whether
//! it may have been written at all ([`HttpError::NotSent`] or [`HttpError::Unanswered`]). No address,
//! token or body of a call reaches a log.

mod error;

use std::borrow::Cow;
use std::error::Error as _;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backoff::backoff::Backoff as _;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};
use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::Instrument as _;
use url::{Host, Url};
use uuid::Uuid;

pub use self::error::HttpError;
use crate::clock::Clock;
use crate::config;
use crate::outcome::Classify as _;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);
/// Idle connections are let go early: a peer that closes first makes a creating call ambiguous.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const LARGEST_ANSWER: usize = 16 * 1024 * 1024;
/// All waits of one call together; whoever has to wait longer waits in a queue and holds no permit.
const LONGEST_WAIT: Duration = Duration::from_secs(3);

const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("client-request-id");
/// Graph, then Dataverse, then Entra.
const REQUEST_IDS: [&str; 3] = ["request-id", "x-ms-service-request-id", "x-ms-request-id"];

/// The HTTP client everything outward goes through. Cloning is cheap and shares the connections.
#[derive(Clone)]
pub struct Http(Arc<Inner>);

struct Inner {
    /// Through the proxy of the environment, if there is one.
    outside: reqwest::Client,
    /// Never through a proxy: what is on this machine is meant to stay on it.
    loopback: reqwest::Client,
    clock: Clock,
}

/// One outward call.
#[derive(Clone)]
pub struct Call {
    /// What it is called in spans and metrics, e.g. `graph.create_draft`; never holds anything variable.
    pub name: &'static str,
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: Option<Bytes>,
    pub repeat: Repeat,
    /// From the first byte of the request to the last of the answer.
    pub timeout: Duration,
    /// The most bytes of an answer that are read, after decompression.
    pub max_answer: usize,
}

/// May the call be made again when no useful answer came?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// Reads, and writes that leave the same state however often they arrive.
    Safe,
    /// Whatever creates or sends: its effect is looked for before anybody makes it again.
    Once,
}

/// An answer of any status: what it means is its client's business.
#[derive(Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Microsoft's own id of the request.
    pub request_id: Option<String>,
}

impl Http {
    /// # Errors
    /// Names the setting that is wrong.
    pub fn new(settings: &config::Microsoft, clock: Clock) -> Result<Self, String> {
        let mut roots = Vec::new();
        if let Some(path) = &settings.ca_file {
            let wrong = |what: &dyn fmt::Display| format!("microsoft.ca_file: {}: {what}", path.display());
            let pem = std::fs::read(path).map_err(|error| wrong(&error))?;
            roots = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| wrong(&error))?;
            if roots.is_empty() {
                return Err(wrong(&"holds no PEM certificate"));
            }
        }
        let build = |builder: reqwest::ClientBuilder| {
            builder.tls_certs_merge(roots.clone()).build().map_err(|error| format!("HTTP client: {error}"))
        };
        Ok(Self(Arc::new(Inner { outside: build(client())?, loopback: build(client().no_proxy())?, clock })))
    }

    /// Makes the call and reads the whole answer.
    ///
    /// A [`Repeat::Safe`] call is made again a few times when the connection failed or a gateway answered.
    /// An answer that asks for patience (429, or any `Retry-After`) always goes up: the others who wait
    /// for the same mailbox must hear of it, and they hear of it from the gate.
    pub async fn send(&self, call: Call) -> Result<Answer, HttpError> {
        let span = tracing::info_span!(
            "http",
            call = call.name,
            method = %call.method,
            host = call.url.host_str().unwrap_or_default(),
            status = tracing::field::Empty,
            request_id = tracing::field::Empty,
        );
        self.send_in_span(call).instrument(span).await
    }

    async fn send_in_span(&self, call: Call) -> Result<Answer, HttpError> {
        let client = match (loopback(&call.url), call.url.scheme()) {
            (true, "http" | "https") => &self.0.loopback,
            (false, "https") => &self.0.outside,
            _ => return Err(HttpError::Insecure { call: call.name }),
        };
        let mut waits = waits();
        let mut waited = Duration::ZERO;
        loop {
            let outcome = attempt(client, &call).await;
            if call.repeat == Repeat::Once || !worth_repeating(&outcome) {
                return outcome;
            }
            let wait = waits.next_backoff().unwrap_or(LONGEST_WAIT);
            waited += wait;
            if waited > LONGEST_WAIT {
                return outcome;
            }
            tracing::debug!(wait_ms = wait.as_millis(), "no useful answer; asking again");
            self.0.clock.sleep(wait).await;
        }
    }
}

fn worth_repeating(outcome: &Result<Answer, HttpError>) -> bool {
    match outcome {
        // Not 500: Dataverse refuses duplicates with it, and no waiting heals that.
        Ok(answer) => {
            matches!(answer.status.as_u16(), 502..=504) && !answer.headers.contains_key(RETRY_AFTER)
        }
        Err(HttpError::NotSent { .. } | HttpError::Unanswered { .. }) => true,
        Err(HttpError::TooLarge { .. } | HttpError::Insecure { .. } | HttpError::Withheld { .. }) => false,
    }
}

/// `backoff` is unmaintained (RUSTSEC-2025-0012) and used for this computation only; it neither sleeps nor
/// reads the time here.
fn waits() -> ExponentialBackoff {
    ExponentialBackoffBuilder::new()
        .with_initial_interval(Duration::from_millis(250))
        .with_multiplier(2.0)
        .with_max_interval(Duration::from_secs(2))
        .with_max_elapsed_time(None)
        .build()
}

#[expect(clippy::disallowed_methods, reason = "this is the edge where sending happens")]
fn client() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        // Whether a call is made again is decided here and nowhere below.
        .retry(reqwest::retry::never())
        .referer(false)
        .gzip(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
}

async fn attempt(client: &reqwest::Client, call: &Call) -> Result<Answer, HttpError> {
    let started = Instant::now();
    let outcome = exchange(client, call).await;
    let status = match &outcome {
        Ok(answer) => Cow::Owned(answer.status.as_u16().to_string()),
        Err(error) => error.code(),
    };
    let span = tracing::Span::current();
    span.record("status", status.as_ref());
    if let Ok(Answer { request_id: Some(id), .. }) = &outcome {
        span.record("request_id", id);
    }
    metrics::counter!("followthrough_http_requests_total", "call" => call.name, "status" => status.into_owned())
        .increment(1);
    metrics::histogram!("followthrough_http_request_duration_seconds", "call" => call.name)
        .record(started.elapsed().as_secs_f64());
    match &outcome {
        Ok(_) => tracing::debug!("answered"),
        Err(error) => tracing::warn!(%error, "no answer"),
    }
    outcome
}

async fn exchange(client: &reqwest::Client, call: &Call) -> Result<Answer, HttpError> {
    let write = !matches!(call.method, Method::GET | Method::HEAD);
    let unanswered =
        |error: reqwest::Error| HttpError::Unanswered { call: call.name, reason: reason(error), write };
    let too_large = || HttpError::TooLarge { call: call.name, limit: call.max_answer, write };

    let mut request = client
        .request(call.method.clone(), call.url.clone())
        .headers(call.headers.clone())
        .header(USER_AGENT, concat!("followthrough/", env!("CARGO_PKG_VERSION")))
        .header(CLIENT_REQUEST_ID, Uuid::now_v7().to_string())
        .timeout(call.timeout);
    if let Some(body) = &call.body {
        request = request.body(body.clone());
    } else if write {
        // Some of Microsoft's front ends answer 411 to a POST that does not say it is empty.
        request = request.header(CONTENT_LENGTH, 0);
    }
    let mut response = request.send().await.map_err(|error| {
        if error.is_connect() || error.is_builder() {
            HttpError::NotSent { call: call.name, reason: reason(error) }
        } else {
            unanswered(error)
        }
    })?;
    if response.content_length().is_some_and(|length| length > call.max_answer as u64) {
        return Err(too_large());
    }
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(unanswered)? {
        if body.len() + chunk.len() > call.max_answer {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    let headers = std::mem::take(response.headers_mut());
    let request_id = REQUEST_IDS
        .iter()
        .find_map(|name| headers.get(*name)?.to_str().ok())
        .map(|id| id.chars().take(64).collect());
    Ok(Answer { status: response.status(), headers, body: body.freeze(), request_id })
}

/// What went wrong, without the address it went wrong at: paths hold mailbox names.
fn reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Is this an address of the machine itself, where plain http is no risk?
pub fn loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Adds to the query, with spaces as `%20`: a `+` in an `OData` expression is read as a space by some services
/// and as a plus by others.
pub fn add_query(url: &mut Url, pairs: &[(&str, &str)]) {
    let mut query = url.query().unwrap_or_default().to_owned();
    for (name, value) in pairs {
        if !query.is_empty() {
            query.push('&');
        }
        query.push_str(name);
        query.push('=');
        query.extend(
            url::form_urlencoded::byte_serialize(value.as_bytes()).map(|part| part.replace('+', "%20")),
        );
    }
    url.set_query(Some(&query));
}

/// Whatever a proxy says: nobody is sent away for longer.
const LONGEST_ABSENCE: Duration = Duration::from_hours(1);

/// How long the other side asks to be left alone: seconds or an HTTP date. The caller adds its own floor
/// and jitter (Microsoft's value is often just 1).
pub fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => (DateTime::parse_from_rfc2822(text).ok()?.to_utc() - now).to_std().unwrap_or_default(),
    };
    Some(wait.min(LONGEST_ABSENCE))
}

impl Call {
    /// Repeatable unless it is a POST; both can be said otherwise.
    pub fn new(name: &'static str, method: Method, url: Url) -> Self {
        let repeat = if method == Method::POST { Repeat::Once } else { Repeat::Safe };
        Self {
            name,
            method,
            url,
            headers: HeaderMap::new(),
            body: None,
            repeat,
            timeout: ANSWER_TIMEOUT,
            max_answer: LARGEST_ANSWER,
        }
    }

    pub fn get(name: &'static str, url: Url) -> Self {
        Self::new(name, Method::GET, url)
    }

    pub fn post(name: &'static str, url: Url) -> Self {
        Self::new(name, Method::POST, url)
    }

    /// A token that cannot be a header is left out, and the other side says what it thinks of that.
    #[must_use]
    pub fn bearer(mut self, token: &SecretString) -> Self {
        if let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret())) {
            value.set_sensitive(true);
            self.headers.insert(AUTHORIZATION, value);
        }
        self
    }

    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.append(name, value);
        self
    }

    #[must_use]
    pub fn json(self, body: &impl Serialize) -> Self {
        let body = serde_json::to_vec(body).expect("our own bodies have string keys only");
        self.bytes("application/json; charset=utf-8", body.into())
    }

    #[must_use]
    pub fn bytes(mut self, content_type: &'static str, body: Bytes) -> Self {
        self.headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        self.body = Some(body);
        self
    }
}

/// The name and the host; the rest is content.
impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("name", &self.name)
            .field("host", &self.url.host())
            .finish_non_exhaustive()
    }
}

impl Answer {
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.body)
    }
}

/// Its size only; the rest is content.
impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("status", &self.status)
            .field("bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    pub(crate) fn http() -> Http {
        Http::new(&config::Microsoft::default(), Clock::system()).expect("the defaults are good")
    }

    /// Answers each connection with the next of `answers` (the last one for ever); an empty one hangs up.
    pub(crate) async fn server(answers: Vec<String>) -> (Url, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/me", listener.local_addr().expect("bound"));
        let calls = Arc::new(AtomicUsize::new(0));
        let counter = calls.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let call = counter.fetch_add(1, Ordering::SeqCst);
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let answer = &answers[call.min(answers.len() - 1)];
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (Url::parse(&url).expect("a URL"), calls)
    }

    pub(crate) fn answer(status: &str, headers: &str, body: &str) -> String {
        let length = body.len();
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n{body}")
    }

    #[tokio::test]
    async fn a_read_is_asked_again_after_a_gateway_error_and_a_reset() {
        let (url, calls) = server(vec![
            answer("503 Busy", "", ""),
            String::new(),
            answer("200 OK", "request-id: r1\r\n", "{}"),
        ])
        .await;
        let answer = http().send(Call::get("test.read", url)).await.expect("the third try answers");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.request_id.as_deref(), Some("r1"));
        assert_eq!(calls.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn a_creating_call_is_written_once_whatever_happens() {
        let (url, calls) = server(vec![String::new()]).await;
        let error = http().send(Call::post("test.create", url)).await.expect_err("hung up");
        assert!(matches!(error, HttpError::Unanswered { .. }), "{error}");
        assert!(error.ambiguous());
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        let (url, calls) = server(vec![answer("503 Busy", "", "")]).await;
        let busy = http().send(Call::post("test.create", url)).await.expect("an answer");
        assert_eq!(busy.status, 503);
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn an_answer_that_asks_for_patience_goes_up_at_once() {
        for status in ["429 Slow", "503 Slow"] {
            let (url, calls) = server(vec![answer(status, "retry-after: 1\r\n", "")]).await;
            let slow = http().send(Call::get("test.read", url)).await.expect("an answer");
            assert_eq!(retry_after(&slow.headers, Clock::system().now()), Some(Duration::from_secs(1)));
            assert_eq!(calls.load(Ordering::SeqCst), 1);
        }
    }

    #[tokio::test]
    async fn a_refused_connection_wrote_nothing() {
        // Bound, so that it is nobody else's.
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
        let url = format!("http://{}/", socket.local_addr().expect("bound"));
        let call = Call::post("test.create", Url::parse(&url).expect("a URL"));
        let error = http().send(call).await.expect_err("nobody listens");
        assert!(matches!(error, HttpError::NotSent { .. }), "{error}");
        assert!(!error.ambiguous());
    }

    #[tokio::test]
    async fn a_silent_peer_ends_in_a_timeout_that_may_have_written() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/", listener.local_addr().expect("bound"));
        let mut call = Call::post("test.create", Url::parse(&url).expect("a URL"));
        call.timeout = Duration::from_millis(100);
        let error = http().send(call).await.expect_err("silence");
        assert!(matches!(error, HttpError::Unanswered { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_longer_answer_than_allowed_is_refused_with_and_without_a_length() {
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n8\r\n12345678\r\n0\r\n\r\n";
        for text in [answer("200 OK", "", "12345678"), chunked.to_owned()] {
            let (url, _) = server(vec![text]).await;
            let mut call = Call::get("test.read", url);
            call.max_answer = 7;
            let error = http().send(call).await.expect_err("eight bytes");
            assert!(matches!(error, HttpError::TooLarge { limit: 7, .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn plain_http_is_for_this_machine_only_and_a_redirect_is_not_followed() {
        let call = Call::get("test.read", Url::parse("http://graph.microsoft.com/").expect("a URL"));
        let error = http().send(call).await.expect_err("not sent");
        assert!(matches!(error, HttpError::Insecure { .. }), "{error}");
        let (url, calls) = server(vec![answer("302 Found", "location: /elsewhere\r\n", "")]).await;
        assert_eq!(http().send(Call::get("test.read", url)).await.expect("an answer").status, 302);
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_query_says_space_and_plus_apart() {
        let mut url = Url::parse("https://graph.microsoft.com/v1.0/me?a=b").expect("a URL");
        add_query(&mut url, &[("$filter", "x eq 'a+b c&d'")]);
        assert_eq!(url.query(), Some("a=b&$filter=x%20eq%20%27a%2Bb%20c%26d%27"));
    }

    #[test]
    fn patience_is_read_in_seconds_and_as_a_date() {
        let now = DateTime::parse_from_rfc3339("2026-11-24T12:00:00Z").expect("a time").to_utc();
        let read = |text: &'static str| {
            retry_after(&HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(text))]), now)
        };
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        assert_eq!(read("Tue, 24 Nov 2026 12:01:30 GMT"), Some(Duration::from_secs(90)));
        assert_eq!(read("Tue, 24 Nov 2026 11:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(read("soon"), None);
    }

    #[test]
    fn a_token_and_a_path_never_show() {
        let url = Url::parse("https://graph.microsoft.com/v1.0/users/ada@acme.example").expect("a URL");
        let call = Call::get("test.read", url).bearer(&"planted".into());
        let shown = format!("{call:?} {:?}", call.headers);
        assert!(!shown.contains("planted") && !shown.contains("ada@"), "{shown}");
    }
}
