//! Attachments below 3 MB (<https://learn.microsoft.com/graph/api/message-post-attachments>); larger ones go through
//! [`super::uploads`].

use chrono::{DateTime, Utc};
use http::Method;
use serde_json::{Map, Value, json};

use super::access::Entry;
use super::call::{Call, Segment};
use super::ids::{ItemId, Kind, in_context};
use super::mail::{self, Scope};
use super::message::{Attachment, AttachmentContent, Message, View, stamp};
use super::odata::{self, Options};
use super::refusal::{Answer, Content, Refusal, Reply};
use super::{list, mime, only, schema, uploads};
use crate::Sim;

/// "under 3 MB" (<https://learn.microsoft.com/graph/outlook-large-attachments>)
pub(crate) const DIRECT_LIMIT: usize = 3 * 1024 * 1024;

/// Adds an attachment from checked JSON.
pub(crate) fn add(message: &mut Message, item: &Value) -> Result<(), Refusal> {
    let text = |name: &str| item.get(name).and_then(Value::as_str).map(str::to_owned);
    let kind = text("@odata.type").unwrap_or_default();
    let content = if kind.ends_with("itemAttachment") {
        AttachmentContent::Item(Box::new(item.get("item").cloned().unwrap_or(Value::Null)))
    } else if kind.ends_with("referenceAttachment") {
        AttachmentContent::Reference
    } else if kind.ends_with("fileAttachment") {
        let bytes = text("contentBytes").and_then(|bytes| schema::binary(&bytes)).ok_or_else(|| {
            Refusal::bad("ErrorInvalidArgument", "The value of 'contentBytes' must not be empty.")
        })?;
        if bytes.len() >= DIRECT_LIMIT {
            return Err(Refusal::new(
                413,
                "RequestEntityTooLarge",
                "The attachment is too large; use an upload session for attachments of 3 MB and more.",
            ));
        }
        AttachmentContent::File(bytes.into())
    } else {
        return Err(Refusal::bad(
            "RequestBodyRead",
            "Cannot create an abstract type 'microsoft.graph.attachment'; name the type with '@odata.type'.",
        ));
    };
    let name = text("name")
        .filter(|name| !name.is_empty())
        .ok_or_else(|| Refusal::bad("ErrorInvalidArgument", "The attachment's 'name' is required."))?;
    let content_type = text("contentType")
        .or_else(|| matches!(content, AttachmentContent::File(_)).then(|| guess(&name).to_owned()));
    message.attachments.push(Attachment {
        key: 0,
        modified: message.modified,
        name,
        content_type,
        inline: item.get("isInline").and_then(Value::as_bool).unwrap_or_default(),
        content_id: text("contentId"),
        content_location: text("contentLocation"),
        content,
    });
    Ok(())
}

fn guess(name: &str) -> &'static str {
    match name.rsplit('.').next().unwrap_or_default().to_ascii_lowercase().as_str() {
        "txt" => "text/plain",
        "html" | "htm" => "text/html",
        "pdf" => "application/pdf",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "ics" => "text/calendar",
        "csv" => "text/csv",
        "docx" => "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        "xlsx" => "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        _ => "application/octet-stream",
    }
}

pub(crate) fn show(view: &View<'_>, attachment: &Attachment, content: bool) -> Value {
    use base64::Engine as _;
    let mut all = json!({
        "@odata.type": format!("#microsoft.graph.{}", attachment.kind()),
        "@odata.mediaContentType": attachment.content_type,
        "id": view.mailbox.id(Kind::Attachment, attachment.key, (!view.immutable).then_some(view.message.stay)),
        "lastModifiedDateTime": stamp(attachment.modified),
        "name": attachment.name,
        "contentType": attachment.content_type,
        "size": attachment.size(),
        "isInline": attachment.inline,
    });
    if let AttachmentContent::File(bytes) = &attachment.content {
        all["contentId"] = attachment.content_id.clone().into();
        all["contentLocation"] = attachment.content_location.clone().into();
        if content {
            all["contentBytes"] = base64::engine::general_purpose::STANDARD.encode(bytes).into();
        }
    }
    all
}

fn context(call: &Call, entry: &Entry, message: &str, options: &Options) -> String {
    format!(
        "{}/$metadata#users('{}')/messages('{}')/attachments{}",
        call.base,
        entry.owner.oid,
        in_context(message),
        options.context_suffix()
    )
}

fn options(call: &Call) -> Result<Options, Refusal> {
    // `contentBytes` belongs to a derived type; the clients select it all the same.
    Options::read(&call.query, "fileAttachment")
}

const ALWAYS: &[&str] = &["@odata.type", "@odata.mediaContentType", "id", "item"];

/// An attachment, with the item that it is when that was asked for
/// (<https://learn.microsoft.com/graph/api/attachment-get>).
fn shown(view: &View<'_>, attachment: &Attachment, options: &Options) -> Value {
    let mut all = show(view, attachment, true);
    if let (AttachmentContent::Item(item), Some(_)) =
        (&attachment.content, options.expands("microsoft.graph.itemAttachment/item"))
    {
        all["item"] = Value::clone(item);
        if let Some(kind) = item["@odata.type"].as_str() {
            all["item"]["@odata.type"] = format!("#{}", kind.trim_start_matches('#')).into();
        }
        all["item"]["id"] = "".into();
    }
    all
}

/// `GET|POST messages/{id}/attachments`
pub(crate) fn collection(sim: &Sim, call: &Call, entry: &Entry, scope: Scope, id: &Segment) -> Answer {
    if call.method == Method::POST {
        return post(sim, call, entry, scope, id);
    }
    let options = options(call)?;
    let mut graph = sim.graph();
    let mailbox = graph.ensure(&entry.owner);
    let key = mail::find(mailbox, scope, id)?;
    let message = mailbox.messages.get(&key).ok_or_else(Refusal::not_found)?;
    let view = View { mailbox, message, immutable: call.prefer.immutable, text: false };
    let all: Vec<Value> = message
        .attachments
        .iter()
        .map(|attachment| shown(&view, attachment, &options))
        .filter(|one| options.filter.as_ref().is_none_or(|filter| odata::matches(filter, one)))
        .collect();
    let total = all.len();
    // Without `$top` all of them come at once.
    let page: Vec<Value> = all
        .into_iter()
        .skip(options.skip)
        .take(options.top.unwrap_or(usize::MAX))
        .map(|one| super::folders::select(one, &options, ALWAYS))
        .collect();
    let next = options.skip + page.len();
    let mut body = json!({"@odata.context": context(call, entry, &view.id(), &options), "value": page});
    if options.count {
        body["@odata.count"] = total.into();
    }
    if next < total {
        body["@odata.nextLink"] = list::next_link(&mut graph, call, "$skip", next.to_string()).into();
    }
    Ok(Reply::json(200, body))
}

fn post(sim: &Sim, call: &Call, entry: &Entry, scope: Scope, id: &Segment) -> Answer {
    call.wants_small()?;
    call.wants_json()?;
    let mut map: Map<String, Value> = schema::object(&call.body)?;
    schema::entity("attachment", &mut map)?;
    let mut graph = sim.graph();
    let mailbox = graph.ensure(&entry.owner);
    let key = mail::find(mailbox, scope, id)?;
    let mut edited = mailbox.messages.get(&key).cloned().ok_or_else(Refusal::not_found)?;
    edited.modified = call.now;
    add(&mut edited, &Value::Object(map))?;
    let number = attach(mailbox, key, edited, call.now);
    one_reply(call, entry, mailbox, key, number, 201, &Options::default())
}

/// Stores an edited message whose last attachment is new; gives back the attachment's key.
pub(crate) fn attach(
    mailbox: &mut super::store::Mailbox,
    key: u64,
    mut edited: Message,
    now: DateTime<Utc>,
) -> u64 {
    let number = mailbox.key();
    if let Some(last) = edited.attachments.last_mut() {
        last.key = number;
    }
    mailbox.edit(key, now, |message| message.attachments = edited.attachments);
    number
}

fn one_reply(
    call: &Call,
    entry: &Entry,
    mailbox: &super::store::Mailbox,
    key: u64,
    number: u64,
    status: u16,
    options: &Options,
) -> Answer {
    let message = mailbox.messages.get(&key).ok_or_else(Refusal::not_found)?;
    let attachment =
        message.attachments.iter().find(|one| one.key == number).ok_or_else(Refusal::not_found)?;
    let view = View { mailbox, message, immutable: call.prefer.immutable, text: false };
    let mut body = super::folders::select(shown(&view, attachment, options), options, ALWAYS);
    body["@odata.context"] = format!("{}/$entity", context(call, entry, &view.id(), options)).into();
    Ok(Reply::json(status, body))
}

/// `attachments/{id}`, `attachments/{id}/$value`, `attachments/createUploadSession`
pub(crate) fn one(
    sim: &Sim,
    call: &Call,
    entry: &Entry,
    scope: Scope,
    id: &Segment,
    rest: &[Segment],
) -> Answer {
    if let [step] = rest
        && step.name == "createuploadsession"
    {
        return uploads::create(sim, call, entry, scope, id);
    }
    let mut graph = sim.graph();
    let mailbox = graph.ensure(&entry.owner);
    let key = mail::find(mailbox, scope, id)?;
    if let [step] = rest
        && step.name == "$count"
    {
        let found = mailbox.messages.get(&key).map_or(0, |message| message.attachments.len());
        return Ok(Reply {
            body: Content::Bytes("text/plain".into(), found.to_string().into()),
            ..Reply::empty(200)
        });
    }
    let parsed = ItemId::parse(&rest[0].raw)
        .filter(|id| id.kind == Kind::Attachment)
        .ok_or_else(Refusal::malformed_id)?;
    let message = mailbox.messages.get(&key).ok_or_else(Refusal::not_found)?;
    let attachment =
        message.attachments.iter().find(|one| one.key == parsed.key).ok_or_else(Refusal::not_found)?;
    match &rest[1..] {
        [] if call.method == Method::GET => {
            one_reply(call, entry, mailbox, key, parsed.key, 200, &options(call)?)
        }
        [] if call.method == Method::DELETE => {
            mailbox.edit(key, call.now, |message| message.attachments.retain(|one| one.key != parsed.key));
            Ok(Reply::empty(204))
        }
        [] => Err(Refusal::method()),
        [step] if step.name == "$value" => {
            only(call, &[Method::GET])?;
            let (kind, bytes) = match &attachment.content {
                AttachmentContent::File(bytes) => {
                    let kind =
                        attachment.content_type.clone().unwrap_or_else(|| "application/octet-stream".into());
                    (kind, bytes::Bytes::copy_from_slice(bytes))
                }
                AttachmentContent::Item(item) => ("text/plain".to_owned(), mime::of_item(item).into()),
                // "Attempting to get the $value of a reference attachment returns HTTP 405."
                // (<https://learn.microsoft.com/graph/api/attachment-get>)
                AttachmentContent::Reference => {
                    return Err(Refusal::new(
                        405,
                        "ErrorInvalidRequest",
                        "A reference attachment has no raw value.",
                    ));
                }
            };
            Ok(Reply { body: Content::Bytes(kind, bytes), ..Reply::empty(200) })
        }
        [step, ..] => Err(Refusal::no_segment(&step.raw)),
    }
}
