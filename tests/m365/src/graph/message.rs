//! One mail message. It is kept typed and small, since a mailbox may hold a hundred thousand of them, and shown as JSON
//! one property at a time, so that a filter makes only what it looks at.

use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use super::ids::Kind;
use super::odata::Lookup;
use super::store::Mailbox;

/// A name and an address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Address {
    pub name: String,
    pub address: String,
}

impl Address {
    pub fn new(name: &str, address: &str) -> Self {
        Self { name: name.to_owned(), address: address.to_owned() }
    }

    pub(crate) fn value(&self) -> Value {
        json!({"emailAddress": {"name": self.name, "address": self.address}})
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attachment {
    pub(crate) key: u64,
    pub(crate) modified: DateTime<Utc>,
    pub(crate) name: String,
    pub(crate) content_type: Option<String>,
    pub(crate) inline: bool,
    pub(crate) content_id: Option<String>,
    pub(crate) content_location: Option<String>,
    pub(crate) content: AttachmentContent,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AttachmentContent {
    File(Arc<[u8]>),
    Item(Box<Value>),
    Reference,
}

impl Attachment {
    pub(crate) fn size(&self) -> usize {
        match &self.content {
            AttachmentContent::File(bytes) => bytes.len(),
            AttachmentContent::Item(item) => item.to_string().len(),
            AttachmentContent::Reference => 0,
        }
    }

    pub(crate) fn kind(&self) -> &'static str {
        match self.content {
            AttachmentContent::File(_) => "fileAttachment",
            AttachmentContent::Item(_) => "itemAttachment",
            AttachmentContent::Reference => "referenceAttachment",
        }
    }
}

#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is one property of the resource")]
pub(crate) struct Message {
    pub(crate) key: u64,
    pub(crate) folder: u64,
    pub(crate) stay: u32,
    pub(crate) change: u64,
    pub(crate) created: DateTime<Utc>,
    pub(crate) modified: DateTime<Utc>,
    pub(crate) received: DateTime<Utc>,
    pub(crate) sent: DateTime<Utc>,
    pub(crate) subject: Option<String>,
    pub(crate) html: bool,
    pub(crate) content: Arc<str>,
    /// Where the quoted original starts, for `uniqueBody`.
    pub(crate) quoted_at: Option<usize>,
    pub(crate) importance: &'static str,
    pub(crate) categories: Vec<String>,
    pub(crate) sender: Option<Address>,
    pub(crate) from: Option<Address>,
    pub(crate) to: Vec<Address>,
    pub(crate) cc: Vec<Address>,
    pub(crate) bcc: Vec<Address>,
    pub(crate) reply_to: Vec<Address>,
    pub(crate) internet_message_id: String,
    pub(crate) conversation: Arc<str>,
    pub(crate) conversation_index: String,
    pub(crate) read: bool,
    pub(crate) draft: bool,
    pub(crate) delivery_receipt: bool,
    pub(crate) read_receipt: bool,
    pub(crate) inference: &'static str,
    pub(crate) flag: Option<Box<Value>>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) extended: Vec<(String, String)>,
    pub(crate) multi: Vec<(String, Vec<String>)>,
    pub(crate) attachments: Vec<Attachment>,
    /// Taken by transport: it is still shown as a draft until it has moved.
    pub(crate) submitted: bool,
}

impl Message {
    pub(crate) fn empty(now: DateTime<Utc>) -> Self {
        Self {
            key: 0,
            folder: 0,
            stay: 1,
            change: 0,
            created: now,
            modified: now,
            received: now,
            sent: now,
            subject: None,
            html: false,
            content: "".into(),
            quoted_at: None,
            importance: "normal",
            categories: Vec::new(),
            sender: None,
            from: None,
            to: Vec::new(),
            cc: Vec::new(),
            bcc: Vec::new(),
            reply_to: Vec::new(),
            internet_message_id: String::new(),
            conversation: "".into(),
            conversation_index: String::new(),
            read: true,
            draft: true,
            delivery_receipt: false,
            read_receipt: false,
            inference: "focused",
            flag: None,
            headers: Vec::new(),
            extended: Vec::new(),
            multi: Vec::new(),
            attachments: Vec::new(),
            submitted: false,
        }
    }

    pub(crate) fn recipients(&self) -> impl Iterator<Item = &Address> {
        self.to.iter().chain(&self.cc).chain(&self.bcc)
    }

    /// Inline attachments do not count (<https://learn.microsoft.com/graph/api/resources/message>).
    pub(crate) fn has_attachments(&self) -> bool {
        self.attachments.iter().any(|attachment| !attachment.inline)
    }
}

/// Properties of a response without `$select`, as in the samples of the message pages.
pub(crate) const DEFAULT: &[&str] = &[
    "@odata.etag",
    "id",
    "createdDateTime",
    "lastModifiedDateTime",
    "changeKey",
    "categories",
    "receivedDateTime",
    "sentDateTime",
    "hasAttachments",
    "internetMessageId",
    "subject",
    "bodyPreview",
    "importance",
    "parentFolderId",
    "conversationId",
    "conversationIndex",
    "isDeliveryReceiptRequested",
    "isReadReceiptRequested",
    "isRead",
    "isDraft",
    "webLink",
    "inferenceClassification",
    "body",
    "sender",
    "from",
    "toRecipients",
    "ccRecipients",
    "bccRecipients",
    "replyTo",
    "flag",
];

/// How an instant is written: mail has no fraction, events have seven digits.
pub(crate) fn stamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// A message with what is needed to show it.
pub(crate) struct View<'a> {
    pub(crate) mailbox: &'a Mailbox,
    pub(crate) message: &'a Message,
    pub(crate) immutable: bool,
    pub(crate) text: bool,
}

impl View<'_> {
    pub(crate) fn id(&self) -> String {
        self.mailbox.id(Kind::Message, self.message.key, (!self.immutable).then_some(self.message.stay))
    }

    fn list(addresses: &[Address]) -> Value {
        addresses.iter().map(Address::value).collect()
    }

    fn body(&self, content: &str) -> Value {
        let message = self.message;
        if self.text && message.html {
            json!({"contentType": "text", "content": super::body::text_of(content)})
        } else {
            json!({"contentType": if message.html { "html" } else { "text" }, "content": content})
        }
    }

    pub(crate) fn property(&self, name: &str) -> Option<Value> {
        let m = self.message;
        Some(match name {
            "@odata.etag" => format!("W/\"{}\"", self.mailbox.change_key(m.change)).into(),
            "id" => self.id().into(),
            "createdDateTime" => stamp(m.created).into(),
            "lastModifiedDateTime" => stamp(m.modified).into(),
            "changeKey" => self.mailbox.change_key(m.change).into(),
            "categories" => json!(m.categories),
            "receivedDateTime" => stamp(m.received).into(),
            "sentDateTime" => stamp(m.sent).into(),
            "hasAttachments" => m.has_attachments().into(),
            "internetMessageId" => m.internet_message_id.clone().into(),
            "subject" => m.subject.clone().unwrap_or_default().into(),
            "bodyPreview" => super::body::preview(m.html, &m.content).into(),
            "importance" => m.importance.into(),
            "parentFolderId" => self.mailbox.folder_id(m.folder).into(),
            "conversationId" => m.conversation.as_ref().into(),
            "conversationIndex" => m.conversation_index.clone().into(),
            "isDeliveryReceiptRequested" => m.delivery_receipt.into(),
            "isReadReceiptRequested" => m.read_receipt.into(),
            "isRead" => m.read.into(),
            "isDraft" => m.draft.into(),
            "webLink" => self.web_link().into(),
            "inferenceClassification" => m.inference.into(),
            "body" => self.body(&m.content),
            "uniqueBody" => self.body(&m.content[..m.quoted_at.unwrap_or(m.content.len())]),
            "sender" => m.sender.as_ref().map_or(Value::Null, Address::value),
            "from" => m.from.as_ref().map_or(Value::Null, Address::value),
            "toRecipients" => Self::list(&m.to),
            "ccRecipients" => Self::list(&m.cc),
            "bccRecipients" => Self::list(&m.bcc),
            "replyTo" => Self::list(&m.reply_to),
            "flag" => m.flag.as_deref().cloned().unwrap_or_else(|| json!({"flagStatus": "notFlagged"})),
            // Returned only when it is selected, and never from a POST.
            "internetMessageHeaders" => {
                m.headers.iter().map(|(name, value)| json!({"name": name, "value": value})).collect()
            }
            "singleValueExtendedProperties" => {
                m.extended.iter().map(|(id, value)| json!({"id": id, "value": value})).collect()
            }
            "multiValueExtendedProperties" => {
                m.multi.iter().map(|(id, value)| json!({"id": id, "value": value})).collect()
            }
            _ => return None,
        })
    }

    fn web_link(&self) -> String {
        let id: String = url::form_urlencoded::byte_serialize(
            self.mailbox.id(Kind::Message, self.message.key, Some(self.message.stay)).as_bytes(),
        )
        .collect();
        format!("https://outlook.office365.com/owa/?ItemID={id}&exvsurl=1&viewmodel=ReadMessageItem")
    }
}

impl Lookup for View<'_> {
    fn look(&self, property: &str) -> Option<Value> {
        self.property(property)
    }
}
