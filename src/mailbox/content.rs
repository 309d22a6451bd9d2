//! What is kept of a message, and how what Graph tells of it is laid over what is known.
//!
//! The invariant: a property that was not told keeps its value; what cannot be read is left out, never guessed.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::graph::changes::Told;
use crate::store::message::{Message, PRESENT};

/// Wide enough for a line of text on any screen.
const TEXT_WIDTH: usize = 100;

/// Everything beyond what is searched by.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema, utoipa::ToSchema)]
pub struct Detail {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Address>,
    /// Who sent it, where that is not who it is from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender: Option<Address>,
    #[serde(default)]
    pub to: Vec<Address>,
    #[serde(default)]
    pub cc: Vec<Address>,
    #[serde(default)]
    pub bcc: Vec<Address>,
    #[serde(default)]
    pub reply_to: Vec<Address>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modified_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub importance: Option<String>,
    /// `notFlagged`, `flagged` or `complete`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flag: Option<String>,
    #[serde(default)]
    pub categories: Vec<String>,
    /// The body as it was sent; absent where it was sent as plain text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub html: Option<String>,
    /// The body as plain text, made of the html where there is one.
    #[serde(default)]
    pub text: String,
    /// Absent where Exchange keeps none, as for drafts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<Vec<Header>>,
    #[serde(default)]
    pub attachments: Vec<Attachment>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub web_link: Option<String>,
}

#[derive(Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema, utoipa::ToSchema)]
pub struct Address {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub email: String,
}

#[derive(Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema, utoipa::ToSchema)]
pub struct Header {
    pub name: String,
    pub value: String,
}

#[derive(Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema, utoipa::ToSchema)]
pub struct Attachment {
    pub id: String,
    /// `file`, `item` (a message, an event or a contact) or `reference` (a link to a file elsewhere).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    #[serde(default)]
    pub size: i64,
    #[serde(default)]
    pub inline: bool,
    /// Is its content here? Said where a message is shown, never stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
}

/// What there is of an attachment's content.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// It is here.
    Kept,
    /// It will be fetched.
    Wanted,
    /// It is larger than what is kept.
    TooLarge,
    /// Microsoft does not give it.
    Refused,
    /// There is none, or none is kept.
    None,
}

impl Detail {
    pub fn read(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    fn apply(&mut self, told: &Told) {
        for (name, value) in &told.fields {
            match name.as_str() {
                "from" => self.from = address(value),
                "sender" => self.sender = address(value),
                "toRecipients" => self.to = addresses(value),
                "ccRecipients" => self.cc = addresses(value),
                "bccRecipients" => self.bcc = addresses(value),
                "replyTo" => self.reply_to = addresses(value),
                "sentDateTime" => self.sent_at = told.at("sentDateTime"),
                "lastModifiedDateTime" => self.modified_at = told.at("lastModifiedDateTime"),
                "importance" => self.importance = text(value),
                "flag" => self.flag = text(&value["flagStatus"]),
                "categories" => self.categories = texts(value),
                "body" => self.body(value),
                "internetMessageHeaders" => self.headers = headers(value),
                "attachments" => self.attachments = attachments(value),
                "webLink" => self.web_link = text(value),
                _ => {}
            }
        }
        if self.sender == self.from {
            self.sender = None;
        }
    }

    fn body(&mut self, body: &Value) {
        let content = body["content"].as_str().unwrap_or_default();
        if body["contentType"].as_str().is_some_and(|kind| kind.eq_ignore_ascii_case("html")) {
            if self.html.as_deref() != Some(content) {
                self.text = plain(content);
                self.html = Some(content.to_owned());
            }
        } else {
            content.clone_into(&mut self.text);
            self.html = None;
        }
    }
}

/// A message as it is known now, and its attachments where they were told.
pub(super) struct Laid {
    pub(super) row: Message,
    pub(super) attached: Option<Attached>,
}

pub(super) struct Attached {
    pub(super) before: Vec<Attachment>,
    pub(super) now: Vec<Attachment>,
}

/// Lays what was told over what is known. `None` where too little is known to keep it.
pub(super) fn laid_over(
    known: Option<&Message>,
    told: &Told,
    mailbox: Uuid,
    folder: &str,
    now: DateTime<Utc>,
) -> Option<Laid> {
    let received_at = told.received().or(known.map(|known| known.received_at))?;
    let mut detail = known.map(|known| Detail::read(&known.detail)).unwrap_or_default();
    let before = detail.attachments.clone();
    detail.apply(told);
    let or_known = |name: &str, known: Option<&String>| match told.fields.get(name) {
        Some(value) => text(value),
        None => known.cloned(),
    };
    let folder_id = told.text("parentFolderId").unwrap_or(folder).to_owned();
    // Each folder counts its own sweeps.
    let swept = known.filter(|known| known.folder_id == folder_id).map_or(0, |known| known.sweep);
    let row = Message {
        mailbox_id: mailbox,
        id: told.id.clone(),
        folder_id,
        internet_message_id: or_known(
            "internetMessageId",
            known.and_then(|known| known.internet_message_id.as_ref()),
        ),
        conversation_id: or_known("conversationId", known.and_then(|known| known.conversation_id.as_ref())),
        received_at,
        subject: or_known("subject", known.and_then(|known| known.subject.as_ref())),
        is_read: told.flag("isRead").or(known.map(|known| known.is_read)).unwrap_or(false),
        is_draft: told.flag("isDraft").or(known.map(|known| known.is_draft)).unwrap_or(false),
        detail: serde_json::to_string(&detail).unwrap_or_default(),
        state: PRESENT.to_owned(),
        sweep: swept,
        backfill: known.map_or(0, |known| known.backfill),
        created_at: known.map_or(now, |known| known.created_at),
        updated_at: now,
    };
    let attached =
        told.fields.contains_key("attachments").then_some(Attached { before, now: detail.attachments });
    Some(Laid { row, attached })
}

/// Is there anything that a publisher would want to hear of?
pub(super) fn differs(known: &Message, new: &Message) -> bool {
    let same =
        Message { sweep: known.sweep, backfill: known.backfill, updated_at: known.updated_at, ..new.clone() };
    if *known == same {
        return false;
    }
    // Exchange touches the time of a message that it otherwise leaves alone.
    let (mut before, mut after) = (Detail::read(&known.detail), Detail::read(&new.detail));
    before.modified_at = None;
    after.modified_at = None;
    before != after || Message { detail: known.detail.clone(), ..same } != *known
}

/// NUL cannot be kept by PostgreSQL.
fn clean(text: &str) -> String {
    if text.contains('\0') { text.replace('\0', "") } else { text.to_owned() }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(clean)
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(text).collect()
}

fn address(value: &Value) -> Option<Address> {
    let inner = &value["emailAddress"];
    let email = text(&inner["address"]);
    let name = text(&inner["name"]).filter(|name| !name.is_empty() && Some(name) != email.as_ref());
    (email.is_some() || name.is_some()).then(|| Address { name, email: email.unwrap_or_default() })
}

fn addresses(value: &Value) -> Vec<Address> {
    value.as_array().into_iter().flatten().filter_map(address).collect()
}

fn headers(value: &Value) -> Option<Vec<Header>> {
    let all = value.as_array()?.iter();
    Some(
        all.filter_map(|one| Some(Header { name: text(&one["name"])?, value: text(&one["value"])? }))
            .collect(),
    )
}

fn attachments(value: &Value) -> Vec<Attachment> {
    let all = value.as_array().into_iter().flatten();
    all.filter_map(|one| {
        Some(Attachment {
            id: text(&one["id"])?,
            kind: text(&one["@odata.type"]).and_then(|name| kind(&name).map(str::to_owned)),
            name: text(&one["name"]),
            content_type: text(&one["contentType"]),
            size: one["size"].as_i64().unwrap_or(0),
            inline: one["isInline"].as_bool().unwrap_or(false),
            content: None,
        })
    })
    .collect()
}

/// `#microsoft.graph.fileAttachment` → `file`. <https://learn.microsoft.com/graph/api/resources/attachment>
fn kind(name: &str) -> Option<&'static str> {
    let name = name.rsplit('.').next().unwrap_or_default();
    [("fileAttachment", "file"), ("itemAttachment", "item"), ("referenceAttachment", "reference")]
        .into_iter()
        .find_map(|(theirs, ours)| name.eq_ignore_ascii_case(theirs).then_some(ours))
}

/// Html as a person would read it. What the renderer cannot lay out is kept without its marks.
fn plain(html: &str) -> String {
    html2text::from_read(html.as_bytes(), TEXT_WIDTH).unwrap_or_default().trim().to_owned()
}
