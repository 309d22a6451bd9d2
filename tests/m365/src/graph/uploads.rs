//! Upload sessions for attachments of 3 to 150 MB (<https://learn.microsoft.com/graph/outlook-large-attachments>): the
//! address is a secret of its own on another host, so it is served outside `/v1.0` and refuses a bearer token.

use std::collections::HashMap;

use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::response::Response;
use chrono::{DateTime, TimeDelta, Utc};
use http::{Method, header};
use serde_json::{Value, json};
use uuid::Uuid;

use super::access::Entry;
use super::attachments::{DIRECT_LIMIT, attach};
use super::call::{Call, Segment};
use super::ids::Kind;
use super::mail::{self, Scope};
use super::message::{Attachment, AttachmentContent, stamp};
use super::refusal::{Answer, Refusal, Reply};
use super::{only, schema, send};
use crate::Sim;

pub(crate) const ROUTE: &str = "/api/v2.0/attachment-sessions/{secret}";
const LARGEST: usize = 150 * 1024 * 1024;
/// "keep each PUT under 4 MB"
const LARGEST_CHUNK: usize = 4 * 1024 * 1024;

#[derive(Default)]
pub(crate) struct Uploads(HashMap<String, Session>);

struct Session {
    mailbox: String,
    message: u64,
    item: Value,
    size: usize,
    received: Vec<u8>,
    expires: DateTime<Utc>,
}

pub(crate) fn create(sim: &Sim, call: &Call, entry: &Entry, scope: Scope, id: &Segment) -> Answer {
    only(call, &[Method::POST])?;
    call.wants_json()?;
    let parameters =
        schema::parameters("createUploadSession", &[("AttachmentItem", "attachmentItem")], &call.body)?;
    let item = parameters
        .get("AttachmentItem")
        .cloned()
        .ok_or_else(|| send::missing("createUploadSession", "AttachmentItem"))?;
    let size = item
        .get("size")
        .and_then(Value::as_u64)
        .and_then(|size| usize::try_from(size).ok())
        .unwrap_or_default();
    let mut graph = sim.graph();
    // Documented as a known issue: delegated, on a message of a shared mailbox (fact sheet §6.3).
    if !entry.own && !graph.switches.shared_upload {
        return Err(Refusal::denied());
    }
    let mailbox = graph.ensure(&entry.owner);
    let key = mail::find(mailbox, scope, id)?;
    if size < DIRECT_LIMIT {
        return Err(Refusal::bad(
            "ErrorAttachmentSizeShouldNotBeLessThanMinimumSize",
            "Attachment size must be greater than the minimum size.",
        ));
    }
    if size > LARGEST {
        return Err(Refusal::bad(
            "ErrorAttachmentSizeLimitExceeded",
            "The attachment exceeds the maximum size of 150 MB.",
        ));
    }
    let number = mailbox.key();
    let secret =
        Uuid::new_v5(&mailbox.guid, format!("upload {key} {number}").as_bytes()).simple().to_string();
    let expires = call.now + TimeDelta::hours(2);
    let address = mailbox.address.clone();
    let session = Session { mailbox: address, message: key, item, size, received: Vec::new(), expires };
    graph.uploads.0.insert(secret.clone(), session);
    let root = call.base.trim_end_matches("/v1.0");
    Ok(Reply::json(
        201,
        json!({
            "@odata.context": format!("{}/$metadata#microsoft.graph.uploadSession", call.base),
            "uploadUrl": format!("{root}{}", ROUTE.replace("{secret}", &secret)),
            "expirationDateTime": stamp(expires),
            "nextExpectedRanges": ["0-"],
        }),
    ))
}

/// The upload address itself.
pub(crate) async fn serve(State(sim): State<Sim>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let secret = parts.uri.path().rsplit('/').next().unwrap_or_default().to_owned();
    let Ok(body) = to_bytes(body, LARGEST).await else {
        return Refusal::bad("BadRequest", "Unreadable body.").into_response();
    };
    let now = sim.now();
    let answer = step(&sim, &secret, &parts.method, &parts.headers, body.as_ref(), now);
    super::notifier::wake(&sim);
    match answer {
        Ok(reply) => reply.into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

fn step(
    sim: &Sim,
    secret: &str,
    method: &Method,
    headers: &http::HeaderMap,
    body: &[u8],
    now: DateTime<Utc>,
) -> Answer {
    // No Authorization header here: the address is already authenticated, and a token would leave the host of Graph.
    if headers.contains_key(header::AUTHORIZATION) {
        return Err(Refusal::new(
            401,
            "InvalidAuthenticationToken",
            "The upload URL is pre-authenticated; do not send an Authorization header.",
        ));
    }
    let mut graph = sim.graph();
    let session = graph
        .uploads
        .0
        .get_mut(secret)
        .filter(|session| session.expires > now)
        .ok_or_else(Refusal::not_found)?;
    match *method {
        Method::DELETE => {
            graph.uploads.0.remove(secret);
            return Ok(Reply::empty(204));
        }
        Method::GET => return Ok(Reply::json(200, progress(session))),
        Method::PUT => {}
        _ => return Err(Refusal::method()),
    }
    let text = |name: header::HeaderName| {
        headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    };
    if text(header::CONTENT_TYPE) != "application/octet-stream" {
        return Err(Refusal::new(415, "BadRequest", "Content-Type must be application/octet-stream."));
    }
    let (from, to, total) = range(text(header::CONTENT_RANGE))
        .ok_or_else(|| Refusal::bad("InvalidContentRange", "Content-Range is missing or malformed."))?;
    if body.len() >= LARGEST_CHUNK {
        return Err(Refusal::new(
            413,
            "RequestEntityTooLarge",
            "The maximum request length supported is 4MB.",
        ));
    }
    if total != session.size || to < from || to - from + 1 != body.len() || to >= total {
        return Err(Refusal::bad(
            "InvalidContentRange",
            "Content-Range does not fit the content or the session's size.",
        ));
    }
    if from != session.received.len() {
        return Err(Refusal::new(416, "InvalidStartOffset", "The uploaded fragment is out of order."));
    }
    session.received.extend_from_slice(body);
    if session.received.len() < session.size {
        return Ok(Reply::json(200, progress(session)));
    }
    let session = graph.uploads.0.remove(secret).ok_or_else(Refusal::not_found)?;
    let mailbox = graph.open(&session.mailbox);
    let mut edited = mailbox.messages.get(&session.message).cloned().ok_or_else(Refusal::not_found)?;
    let text = |name: &str| session.item.get(name).and_then(Value::as_str).map(str::to_owned);
    edited.attachments.push(Attachment {
        key: 0,
        modified: now,
        name: text("name").unwrap_or_default(),
        content_type: text("contentType").or_else(|| Some("application/octet-stream".into())),
        inline: session.item.get("isInline").and_then(Value::as_bool).unwrap_or_default(),
        content_id: text("contentId"),
        content_location: None,
        content: AttachmentContent::File(session.received.into()),
    });
    let number = attach(mailbox, session.message, edited, now);
    let stay = mailbox.messages.get(&session.message).map(|message| message.stay);
    let location = format!(
        "https://outlook.office.com/api/v2.0/Users('{}')/Messages('{}')/Attachments('{}')",
        mailbox.address,
        mailbox.id(Kind::Message, session.message, stay),
        mailbox.id(Kind::Attachment, number, stay),
    );
    Ok(Reply::empty(201).with(header::LOCATION, location))
}

fn progress(session: &Session) -> Value {
    json!({"expirationDateTime": stamp(session.expires), "nextExpectedRanges": [format!("{}-", session.received.len())]})
}

/// `bytes a-b/total`
fn range(text: &str) -> Option<(usize, usize, usize)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (from, to) = range.split_once('-')?;
    Some((from.parse().ok()?, to.parse().ok()?, total.parse().ok()?))
}
