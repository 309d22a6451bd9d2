//! Drafts: made with a marker, found by it, and never touched when they are no drafts any more.
//!
//! The invariant: whatever is deleted or rewritten here was looked at first and was an unsent draft.
//! <https://learn.microsoft.com/graph/api/resources/message>

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use chrono::{DateTime, Utc};
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use super::{Graph, GraphError, immutable, literal, parse};
use crate::http::{Call, add_query};

/// The extended property that carries the id of the effect that made a draft. Extended properties work in
/// shared mailboxes, where open extensions are refused. The name is case-sensitive and must never change:
/// drafts that exist are found by it.
const MARKER: &str = "String {6a2ff1b6-8f6e-4f27-9d0c-5b1f3c4f7a10} Name FollowthroughEffect";
const SUMMARY: &str = "id,changeKey,internetMessageId,conversationId,webLink,isDraft,isRead,subject,createdDateTime,lastModifiedDateTime";
/// Markers are unique but for lost answers; more than this many copies is somebody else's bug.
const MOST_COPIES: usize = 50;

/// What is kept of a message: ids and state, no content but the subject.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Message {
    pub id: String,
    /// Another one after every change.
    pub change_key: Option<String>,
    pub internet_message_id: Option<String>,
    pub conversation_id: Option<String>,
    pub web_link: Option<String>,
    #[serde(default)]
    pub is_draft: bool,
    #[serde(default)]
    pub is_read: bool,
    #[serde(default)]
    pub subject: Option<String>,
    pub created_date_time: Option<DateTime<Utc>>,
    pub last_modified_date_time: Option<DateTime<Utc>>,
    /// Only where it was asked for.
    pub body: Option<Body>,
    #[serde(default)]
    single_value_extended_properties: Vec<Property>,
    /// Does the id survive a move to another folder? Not in every mailbox.
    #[serde(skip)]
    pub immutable: bool,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Body {
    pub content_type: String,
    pub content: String,
}

/// A body never shows itself in a log.
impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Body({}, {} bytes)", self.content_type, self.content.len())
    }
}

#[derive(Debug, Clone, Deserialize)]
struct Property {
    id: String,
    value: String,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Attachment {
    pub id: String,
    pub name: Option<String>,
    /// As Exchange counts, which is a little more than the file.
    #[serde(default)]
    pub size: u64,
}

impl Message {
    /// The effect that made this draft, if one of ours did and the marker was asked for.
    pub fn marker(&self) -> Option<&str> {
        let ours = |property: &&Property| property.id.eq_ignore_ascii_case(MARKER);
        self.single_value_extended_properties.iter().find(ours).map(|property| property.value.as_str())
    }
}

/// The property that marks a message as made by `effect`, for the body of a create or an update.
pub fn marked(effect: &str) -> Value {
    json!([{ "id": MARKER, "value": effect }])
}

/// A file inside the body of a create or as the body of an upload.
pub fn file_attachment(name: &str, content_type: &str, content: &[u8]) -> Value {
    json!({
        "@odata.type": "#microsoft.graph.fileAttachment",
        "name": name,
        "contentType": content_type,
        "contentBytes": BASE64_STANDARD.encode(content),
    })
}

impl Graph {
    /// Creates a draft. The message carries its own [`marked`] property and its attachments: one call, so
    /// there is no half draft.
    pub async fn create_draft(&self, message: &Value) -> Result<Message, GraphError> {
        const NAME: &str = "graph.create_draft";
        let call = Call::post(NAME, self.url(&["messages"])).json(message);
        self.created(NAME, call).await
    }

    /// The messages made by `effect`, oldest first: drafts, and what became of drafts.
    ///
    /// Drafts first, because a filter over a whole mailbox takes Exchange long.
    pub async fn find_by_marker(&self, effect: &str) -> Result<Vec<Message>, GraphError> {
        for path in [&["mailFolders", "drafts", "messages"][..], &["messages"]] {
            let mut found = self.filtered("graph.find_draft", path, &has_marker(effect)).await?;
            if !found.is_empty() {
                found.sort_by(|a, b| (a.created_date_time, &a.id).cmp(&(b.created_date_time, &b.id)));
                return Ok(found);
            }
        }
        Ok(Vec::new())
    }

    /// What `effect` left behind, as one message: the oldest is kept, later copies that are still drafts are
    /// deleted. Copies come from a create whose answer was lost, so they are identical.
    pub async fn settle_copies(&self, effect: &str) -> Result<Option<Message>, GraphError> {
        let mut found = self.find_by_marker(effect).await?;
        // A copy that was sent is the one that counts, whatever its age.
        found.sort_by_key(|message| message.is_draft);
        let mut found = found.into_iter();
        let kept = found.next();
        for copy in found.filter(|copy| copy.is_draft) {
            self.delete_draft(&copy.id).await?;
        }
        Ok(kept)
    }

    /// One message, without its body.
    pub async fn message(&self, id: &str) -> Result<Message, GraphError> {
        self.message_with(id, SUMMARY).await
    }

    /// One message with its body.
    pub async fn message_with_body(&self, id: &str) -> Result<Message, GraphError> {
        self.message_with(id, &format!("{SUMMARY},body")).await
    }

    async fn message_with(&self, id: &str, select: &str) -> Result<Message, GraphError> {
        const NAME: &str = "graph.get_message";
        let mut url = self.url(&["messages", id]);
        add_query(&mut url, &[("$select", select), ("$expand", &expand_marker())]);
        let answer = self.send(Call::get(NAME, url), &[200]).await?;
        let mut message: Message = parse(NAME, &answer, false)?;
        message.immutable = immutable(&answer);
        Ok(message)
    }

    /// Creates a reply draft: recipients, subject and the quoted thread are Exchange's. It carries no marker
    /// yet; [`Graph::update_message`] adds it, and [`Graph::unmarked_replies`] finds one that was left between
    /// the two. Text goes in with the update too: a `comment` does not reach the draft.
    pub async fn create_reply(&self, original: &str) -> Result<Message, GraphError> {
        const NAME: &str = "graph.create_reply";
        let call = Call::post(NAME, self.url(&["messages", original, "createReply"]));
        self.created(NAME, call).await
    }

    /// Drafts of the conversation made at or after `since` that no effect has marked, with their bodies,
    /// oldest first.
    pub async fn unmarked_replies(
        &self,
        conversation: &str,
        since: DateTime<Utc>,
    ) -> Result<Vec<Message>, GraphError> {
        let mut url = self.url(&["mailFolders", "drafts", "messages"]);
        let filter = format!("conversationId eq {}", literal(conversation));
        let select = format!("{SUMMARY},body");
        add_query(&mut url, &[("$filter", &filter), ("$select", &select), ("$expand", &expand_marker())]);
        let mut found = self.messages("graph.find_reply", url).await?;
        found.retain(|draft| {
            draft.is_draft
                && draft.marker().is_none()
                && draft.created_date_time.is_some_and(|at| at >= since)
        });
        found.sort_by(|a, b| (a.created_date_time, &a.id).cmp(&(b.created_date_time, &b.id)));
        Ok(found)
    }

    /// Changes the named properties. On a message that is no draft only state (such as `isRead`) may change.
    pub async fn update_message(&self, id: &str, changes: &Value) -> Result<Message, GraphError> {
        const NAME: &str = "graph.update_message";
        let call = Call::new(NAME, Method::PATCH, self.url(&["messages", id])).json(changes);
        let answer = self.send(call, &[200]).await?;
        let mut message: Message = parse(NAME, &answer, true)?;
        message.immutable = immutable(&answer);
        Ok(message)
    }

    /// Deletes a draft, after making sure that it is one. One that is gone already is as good as deleted.
    pub async fn delete_draft(&self, id: &str) -> Result<(), GraphError> {
        match self.message(id).await {
            Ok(message) if !message.is_draft => return Ok(()),
            Ok(_) => {}
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error),
        }
        let call = Call::new("graph.delete_draft", Method::DELETE, self.url(&["messages", id]));
        match self.send(call, &[204]).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Adds a file of less than 3 MB to a draft.
    pub async fn add_attachment(&self, message: &str, file: &Value) -> Result<Attachment, GraphError> {
        const NAME: &str = "graph.add_attachment";
        let call = Call::post(NAME, self.url(&["messages", message, "attachments"])).json(file);
        let answer = self.send(call, &[201]).await?;
        parse(NAME, &answer, true)
    }

    /// May the user see the Drafts of this mailbox? Exchange says "not found" of whatever one may not see.
    pub async fn sees_drafts(&self) -> Result<bool, GraphError> {
        let mut url = self.url(&["mailFolders", "drafts"]);
        add_query(&mut url, &[("$select", "id")]);
        match self.send(Call::get("graph.get_drafts", url), &[200]).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The names and sizes of a message's attachments.
    pub async fn attachments(&self, message: &str) -> Result<Vec<Attachment>, GraphError> {
        let mut url = self.url(&["messages", message, "attachments"]);
        add_query(&mut url, &[("$select", "id,name,size")]);
        Ok(self.list("graph.list_attachments", url, 1_000).await?.0)
    }

    async fn created(&self, name: &'static str, call: Call) -> Result<Message, GraphError> {
        let answer = self.send(call, &[201]).await?;
        let mut message: Message = parse(name, &answer, true)?;
        message.immutable = immutable(&answer);
        Ok(message)
    }

    /// Messages of a place that fit a filter, without their bodies.
    pub(super) async fn filtered(
        &self,
        name: &'static str,
        path: &[&str],
        filter: &str,
    ) -> Result<Vec<Message>, GraphError> {
        let mut url = self.url(path);
        add_query(&mut url, &[("$filter", filter), ("$select", SUMMARY)]);
        self.messages(name, url).await
    }

    async fn messages(&self, name: &'static str, mut url: Url) -> Result<Vec<Message>, GraphError> {
        add_query(&mut url, &[("$top", "50")]);
        let (mut messages, lasting) = self.list::<Message>(name, url, MOST_COPIES).await?;
        for message in &mut messages {
            message.immutable = lasting;
        }
        Ok(messages)
    }
}

/// The filter for what `effect` made.
pub(super) fn has_marker(effect: &str) -> String {
    format!(
        "singleValueExtendedProperties/Any(ep: ep/id eq {} and ep/value eq {})",
        literal(MARKER),
        literal(effect)
    )
}

fn expand_marker() -> String {
    format!("singleValueExtendedProperties($filter=id eq {})", literal(MARKER))
}
