//! A job is declared once: its payload type, with one [`Spec`].
//!
//! The invariant: everything else about a kind (its queue, schema, documents, permission, scope check, law
//! tests) is derived from what is written here, and nothing a publisher sends gets past [`decode`] unless it
//! fits its kind's type to the last field.

mod strict;

use std::borrow::Cow;
use std::time::Duration;

use chrono::{DateTime, Datelike, Utc};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::broker::MAX_BODY;
use crate::context::Context;
use crate::oauth::scopes::Integration;
use crate::outcome::Failure;
use crate::registry::{Entry, ErasedJob, Registry};
use strict::Strict;

/// What an envelope has besides its payload, at most.
const MOST_AROUND: usize = 4096;
const LONGEST_PATH: usize = 512;
const LONGEST_MESSAGE: usize = 1024;

/// One kind of work. The type is the payload; its doc comment is the kind's description.
pub trait Job: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    const SPEC: Spec;
    type Result: Serialize + JsonSchema + Send + 'static;

    /// What the type alone cannot refuse.
    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }

    /// One operation on one type of object: what an administrator allows.
    fn tool(&self) -> Cow<'static, str> {
        Cow::Borrowed(Self::SPEC.kind)
    }

    /// The shared mailbox it works in, where that is not the user's own.
    fn mailbox(&self) -> Option<&str> {
        None
    }

    /// The consent it needs; a payload that names a shared mailbox needs another one than its kind's usual.
    fn integration(&self) -> Option<Integration> {
        Self::SPEC.integration
    }

    /// The permissions it needs of that consent.
    fn scopes(&self) -> &'static [&'static str] {
        Self::SPEC.scopes
    }

    /// What an approver reads before deciding.
    fn render(&self) -> String;

    fn run(&self, cx: &Context) -> impl Future<Output = Result<Self::Result, Failure>> + Send;
}

/// What is fixed about a kind.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// A stable dotted string, never a type name; also the routing key.
    pub kind: &'static str,
    pub integration: Option<Integration>,
    /// The permissions it needs of the connection's consent.
    pub scopes: &'static [&'static str],
    pub gate: Gate,
    /// How many of its gate's permits it holds while it runs: as many calls as it makes at once.
    pub permits: u16,
    /// What the platform asks for by itself, where this kind is how it is done.
    pub duty: Option<Duty>,
    /// How often it is tried before it is a dead letter.
    pub attempts: u16,
    pub timeout: Duration,
    /// The tools that payloads of this kind may need, for the permission grid: `crm.<table>.update`.
    pub tool_pattern: &'static str,
    /// A payload that is documented, validated and run by the law tests.
    pub example: &'static str,
}

/// What the platform has done by a job without knowing the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// Payload `{address, backfill_days}`.
    ConnectMailbox,
    /// Payload `{mailbox, round}`. Made by the fleet for itself: a success is no news.
    SyncMailbox,
    /// Payload `{mailbox, number}`.
    FillMailbox,
    /// Payload `{mailbox}`. Takes away only, so no administrator has to allow it.
    DisconnectMailbox,
    /// Payload `{connection}`. Takes away only, too.
    DisconnectConnection,
}

/// Whose concurrency limit at Microsoft a job counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    None,
    /// One of the mailbox's slots: the user's own, or the shared one the payload names.
    Mailbox,
    /// One of the CRM user's slots in an environment.
    CrmUser,
}

/// A payload that cannot be accepted, and where in it the fault is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    pub code: &'static str,
    /// A JSON path within the payload: `to[0].email`.
    pub path: String,
    pub message: String,
}

impl Invalid {
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: "invalid_payload", path: path.into(), message: message.into() }
    }

    #[must_use]
    pub fn code(mut self, code: &'static str) -> Self {
        self.code = code;
        self
    }
}

/// What a publisher sends: the same JSON on RabbitMQ and over HTTP.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// The idempotency key: 1–128 characters of `[A-Za-z0-9._:@/-]`, unique within the workspace.
    pub id: String,
    pub kind: String,
    pub workspace: String,
    /// Who the job acts for.
    pub user: String,
    /// Ties the jobs of one meeting together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meeting: Option<String>,
    /// Not tried before this moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<DateTime<Utc>>,
    /// Not tried after this moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<DateTime<Utc>>,
    /// W3C trace context of the publisher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    pub payload: Value,
}

/// What every store and format can hold.
pub const STORABLE: &str = "expected a year from 1970 to 9999";

pub fn is_storable(moment: DateTime<Utc>) -> bool {
    (1970..=9999).contains(&moment.year())
}

pub const ADDRESS: &str = "expected an e-mail address";

/// What can be one; whether anybody reads mail there is not for us to know.
pub fn is_address(text: &str) -> bool {
    let odd = |c: char| c.is_control() || c.is_whitespace() || "<>,;\"()[]\\".contains(c);
    text.len() <= 320
        && !text.contains(odd)
        && text.split_once('@').is_some_and(|(local, domain)| {
            !local.is_empty()
                && local.len() <= 64
                && !domain.is_empty()
                && !domain.contains('@')
                && !domain.starts_with('.')
                && !domain.ends_with('.')
        })
}

/// An envelope that fits a registered kind.
pub struct Decoded {
    pub envelope: Envelope,
    pub entry: &'static Entry,
    pub job: Box<dyn ErasedJob>,
    /// The payload with sorted keys: what is stored, digested and replayed.
    pub payload: String,
    pub digest: Vec<u8>,
}

/// A message that no attempt can make sense of. Nothing in it repeats the content.
#[derive(Debug, Clone)]
pub struct Undecodable {
    pub code: &'static str,
    pub message: String,
    pub path: Option<String>,
    /// As far as it could be read.
    pub workspace: Option<String>,
    pub id: Option<String>,
    pub kind: Option<String>,
    pub user: Option<String>,
}

/// Reads a message strictly.
pub fn decode(registry: &Registry, body: &[u8]) -> Result<Decoded, Undecodable> {
    if body.len() > MAX_BODY {
        let message = format!("the body has {} bytes; the largest is {MAX_BODY}", body.len());
        return Err(Undecodable::bare("too_large", message));
    }
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| Undecodable::bare("invalid_json", format!("no JSON: {}", place(&error))))?;
    if !value.is_object() {
        return Err(Undecodable::bare("invalid_envelope", "expected an object"));
    }
    let envelope: Envelope = serde_path_to_error::deserialize(&value)
        .map_err(|error| Undecodable::from_json(&error).identified(&value))?;
    decode_envelope(registry, envelope)
}

/// Checks an envelope that was already read (over HTTP).
pub fn decode_envelope(registry: &Registry, mut envelope: Envelope) -> Result<Decoded, Undecodable> {
    let refuse = |code, path: &str, message: String, envelope: &Envelope| Undecodable {
        code,
        message: cut(message, LONGEST_MESSAGE),
        path: Some(cut(path.to_owned(), LONGEST_PATH)),
        workspace: Some(clipped(&envelope.workspace)),
        id: Some(clipped(&envelope.id)),
        kind: Some(clipped(&envelope.kind)),
        user: Some(clipped(&envelope.user)),
    };
    let id_fits = |c: char| c.is_ascii_alphanumeric() || "._:@/-".contains(c);
    if envelope.id.is_empty() || envelope.id.len() > 128 || !envelope.id.chars().all(id_fits) {
        let message = "expected 1 to 128 characters of [A-Za-z0-9._:@/-]".to_owned();
        return Err(refuse("invalid_envelope", "id", message, &envelope));
    }
    for (path, text) in [
        ("workspace", Some(&envelope.workspace)),
        ("user", Some(&envelope.user)),
        ("meeting", envelope.meeting.as_ref()),
    ] {
        if text.is_some_and(|text| text.is_empty() || text.len() > 256 || text.chars().any(char::is_control))
        {
            let message = "expected 1 to 256 bytes without control characters".to_owned();
            return Err(refuse("invalid_envelope", path, message, &envelope));
        }
    }
    for (path, moment) in [("not_before", envelope.not_before), ("expires_at", envelope.expires_at)] {
        if moment.is_some_and(|moment| !is_storable(moment)) {
            return Err(refuse("invalid_envelope", path, STORABLE.to_owned(), &envelope));
        }
    }
    // Anything else starts no trace and fails no job.
    envelope.traceparent = envelope.traceparent.filter(|told| is_traceparent(told));
    let Some(entry) = registry.find(&envelope.kind) else {
        return Err(refuse("unknown_kind", "kind", "no job of this kind exists".to_owned(), &envelope));
    };
    if !envelope.payload.is_object() {
        return Err(refuse("invalid_payload", "payload", "expected an object".to_owned(), &envelope));
    }
    let job = (entry.decode)(&envelope.payload).map_err(|invalid| {
        refuse(invalid.code, &join("payload", &invalid.path), invalid.message, &envelope)
    })?;
    let payload = envelope.payload.to_string();
    // As the fleet writes it: a job that could not be published again could not be retried.
    if payload.len() > MAX_BODY - MOST_AROUND {
        let message =
            format!("the payload has {} bytes; the largest is {}", payload.len(), MAX_BODY - MOST_AROUND);
        return Err(refuse("too_large", "payload", message, &envelope));
    }
    let digest = digest(&envelope.kind, &envelope.user, &payload);
    Ok(Decoded { envelope, entry, job, payload, digest })
}

/// W3C trace context, version 00.
pub fn is_traceparent(text: &str) -> bool {
    let lengths: Vec<usize> = text.split('-').map(str::len).collect();
    lengths == [2, 32, 16, 2] && text.chars().all(|c| c == '-' || matches!(c, '0'..='9' | 'a'..='f'))
}

/// What makes two publications the same job: kind, user and payload, not when it may run.
pub fn digest(kind: &str, user: &str, payload: &str) -> Vec<u8> {
    let mut hash = Sha256::new();
    for part in [kind, user, payload] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().to_vec()
}

/// Reads a payload into its type; used through the registry.
pub(crate) fn decode_payload<J: Job>(payload: &Value) -> Result<J, Invalid> {
    let job: J = serde_path_to_error::deserialize(Strict(payload)).map_err(|error| {
        let path = error.path().to_string();
        Invalid::new(if path == "." { String::new() } else { path }, without_content(error.inner()))
    })?;
    job.check()?;
    Ok(job)
}

impl Undecodable {
    /// A job that was read well and cannot be taken all the same.
    pub fn of(decoded: &Decoded, code: &'static str, message: &str, path: Option<&str>) -> Self {
        let envelope = &decoded.envelope;
        Self {
            code,
            message: message.to_owned(),
            path: path.map(str::to_owned),
            workspace: Some(envelope.workspace.clone()),
            id: Some(envelope.id.clone()),
            kind: Some(envelope.kind.clone()),
            user: Some(envelope.user.clone()),
        }
    }

    fn bare(code: &'static str, message: impl Into<String>) -> Self {
        let message = cut(message.into(), LONGEST_MESSAGE);
        Self { code, message, path: None, workspace: None, id: None, kind: None, user: None }
    }

    fn from_json(error: &serde_path_to_error::Error<serde_json::Error>) -> Self {
        let path = error.path().to_string();
        let mut undecodable = Self::bare("invalid_envelope", without_content(error.inner()));
        undecodable.path = (path != ".").then(|| cut(path, LONGEST_PATH));
        undecodable
    }

    /// Adds what a lenient reading can still tell about whose message it was.
    fn identified(mut self, value: &Value) -> Self {
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(clipped);
        self.workspace = text("workspace");
        self.id = text("id");
        self.kind = text("kind");
        self.user = text("user");
        self
    }
}

/// serde's messages quote the offending value; this keeps what was expected and drops what was sent.
pub(crate) fn without_content(error: &serde_json::Error) -> String {
    let text = error.to_string();
    if text.starts_with("unknown field") || text.starts_with("missing field") || !error.is_data() {
        return text;
    }
    match text.rfind(", expected ") {
        Some(at) => format!("wrong type or value{}", &text[at..]),
        None => "wrong type or value".to_owned(),
    }
}

/// Where reading stopped, without what was read.
fn place(error: &serde_json::Error) -> String {
    let why = if error.is_eof() { "it ends too early" } else { "it is malformed" };
    format!("{why} at line {} column {}", error.line(), error.column())
}

fn clipped(text: impl AsRef<str>) -> String {
    cut(text.as_ref().chars().filter(|c| !c.is_control()).collect(), 255)
}

/// Publishers choose the names of fields, and these end in headers and rows.
fn cut(mut text: String, longest: usize) -> String {
    text.truncate(text.floor_char_boundary(longest));
    text.replace('\0', "")
}

fn join(head: &str, rest: &str) -> String {
    match rest.chars().next() {
        None => head.to_owned(),
        Some('[') => format!("{head}{rest}"),
        Some(_) => format!("{head}.{rest}"),
    }
}
