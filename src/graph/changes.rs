//! What changed in a folder: delta rounds; and single messages, wherever they are.
//!
//! The invariant: a caller decides from what was told alone; a property that was not told is absent, not empty, and a
//! link is followed only to where it came from.
//! <https://learn.microsoft.com/graph/delta-query-messages>

use chrono::{DateTime, Utc};
use http::HeaderValue;
use serde::Deserialize;
use serde_json::{Map, Value};
use url::Url;

use super::{Graph, GraphError, PREFER, literal, moment, parse};
use crate::http::{Call, add_query};

/// Everything that is kept of a message. `internetMessageHeaders` is documented for lists and single messages; where
/// a delta does not bring it the message is read once more.
const SELECT: &str = "id,internetMessageId,conversationId,subject,from,sender,toRecipients,ccRecipients,bccRecipients,\
     replyTo,receivedDateTime,sentDateTime,lastModifiedDateTime,importance,flag,categories,isRead,isDraft,\
     hasAttachments,body,internetMessageHeaders,parentFolderId,webLink";
const EXPAND: &str = "attachments($select=id,name,contentType,size,isInline)";
/// As many messages with their bodies as one answer should hold.
pub const PAGE: usize = 100;
/// What is asked of a message that is too much when it comes whole: everything but its content.
const LEAN: &str = "id,internetMessageId,conversationId,subject,from,sender,toRecipients,ccRecipients,\
     receivedDateTime,sentDateTime,createdDateTime,lastModifiedDateTime,importance,isRead,isDraft,flag,categories,\
     hasAttachments,parentFolderId,webLink";

/// One item of an answer: a message, or the word that an id is not in the folder any more.
#[derive(Clone)]
pub struct Told {
    pub id: String,
    pub removed: bool,
    pub fields: Map<String, Value>,
}

/// Content never shows itself in a log.
impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Told").field("id", &self.id).field("removed", &self.removed).finish_non_exhaustive()
    }
}

impl Told {
    pub fn received(&self) -> Option<DateTime<Utc>> {
        self.at("receivedDateTime")
    }

    pub fn at(&self, name: &str) -> Option<DateTime<Utc>> {
        DateTime::parse_from_rfc3339(self.text(name)?).ok().map(|at| at.to_utc())
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.fields.get(name)?.as_str()
    }

    pub fn flag(&self, name: &str) -> Option<bool> {
        self.fields.get(name)?.as_bool()
    }

    /// Is all there that is kept of a message?
    pub fn is_whole(&self) -> bool {
        // Pictures within the text do not count as attachments (<https://learn.microsoft.com/graph/api/resources/message>).
        let body = || self.fields.get("body").and_then(|body| body["content"].as_str()).unwrap_or_default();
        let attached = (self.flag("hasAttachments") == Some(true) || body().contains("\"cid:"))
            && !self.fields.contains_key("attachments");
        self.fields.contains_key("body")
            && self.fields.contains_key("internetMessageHeaders")
            && self.fields.contains_key("parentFolderId")
            && self.received().is_some()
            && !attached
    }
}

/// Where a delta goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cursor {
    /// Within the round.
    Next(String),
    /// With the next round.
    Delta(String),
}

#[derive(Debug)]
pub struct DeltaPage {
    pub items: Vec<Told>,
    pub cursor: Cursor,
}

#[derive(Deserialize)]
pub(super) struct Page {
    pub(super) value: Vec<Map<String, Value>>,
    #[serde(rename = "@odata.nextLink")]
    pub(super) next: Option<String>,
    #[serde(rename = "@odata.deltaLink")]
    delta: Option<String>,
    #[serde(rename = "@odata.count")]
    pub(super) count: Option<i64>,
}

impl Graph {
    /// Begins to follow a folder: tells what arrived at or after `since`, and changes from now on.
    pub async fn begin_delta(&self, folder: &str, since: DateTime<Utc>) -> Result<DeltaPage, GraphError> {
        let mut url = self.url(&["mailFolders", folder, "messages", "delta"]);
        let filter = format!("receivedDateTime ge {}", moment(since));
        add_query(&mut url, &[("$select", SELECT), ("$filter", &filter)]);
        self.delta("graph.begin_delta", url).await
    }

    /// Goes on where a cursor points to.
    pub async fn go_on(&self, link: &str) -> Result<DeltaPage, GraphError> {
        const NAME: &str = "graph.delta";
        let url = self.link(NAME, link)?;
        self.delta(NAME, url).await
    }

    async fn delta(&self, name: &'static str, url: Url) -> Result<DeltaPage, GraphError> {
        let mut size = PAGE;
        let page: Page = loop {
            let call = Call::get(name, url.clone()).header(PREFER, page_of(size));
            match self.send(call, &[200]).await {
                Err(error) if error.is_too_much() && size > 1 => size = smaller(size),
                answer => break parse(name, &answer?, false)?,
            }
        };
        let cursor = match (page.next, page.delta) {
            (_, Some(link)) => Cursor::Delta(link),
            (Some(link), None) => Cursor::Next(link),
            (None, None) => {
                let what = "neither a next link nor a delta link".to_owned();
                return Err(GraphError::Unexpected { call: name, what, write: false });
            }
        };
        // A cursor that leads elsewhere is not written down.
        let (Cursor::Next(link) | Cursor::Delta(link)) = &cursor;
        self.link(name, link)?;
        Ok(DeltaPage { items: items(name, page.value)?, cursor })
    }

    /// One message, wherever in the mailbox it is; `None` when it is nowhere.
    pub async fn look_for(&self, id: &str) -> Result<Option<Told>, GraphError> {
        const NAME: &str = "graph.look_for_message";
        let ask = async |whole: bool| {
            let mut url = self.url(&["messages", id]);
            add_query(&mut url, selected(whole));
            self.send(Call::get(NAME, url), &[200]).await
        };
        let answer = match ask(true).await {
            Err(error) if error.is_too_much() => ask(false).await,
            answer => answer,
        };
        match answer {
            Ok(answer) => Ok(items(NAME, vec![parse(NAME, &answer, false)?])?.pop()),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The messages with this Message-ID, wherever in the mailbox they are.
    pub async fn named(&self, internet_message_id: &str) -> Result<Vec<Told>, GraphError> {
        const NAME: &str = "graph.find_by_message_id";
        let mut url = self.url(&["messages"]);
        let filter = format!("internetMessageId eq {}", literal(internet_message_id));
        add_query(
            &mut url,
            &[("$filter", &filter), ("$top", "10"), ("$select", SELECT), ("$expand", EXPAND)],
        );
        let page: Page = parse(NAME, &self.send(Call::get(NAME, url), &[200]).await?, false)?;
        items(NAME, page.value)
    }
}

/// A page that was too much is asked for again with so many.
pub(super) fn smaller(size: usize) -> usize {
    (size / 5).max(1)
}

fn page_of(size: usize) -> HeaderValue {
    HeaderValue::from_str(&format!("odata.maxpagesize={size}"))
        .unwrap_or(HeaderValue::from_static("odata.maxpagesize=1"))
}

pub(super) fn selected(whole: bool) -> &'static [(&'static str, &'static str)] {
    if whole { &[("$select", SELECT), ("$expand", EXPAND)] } else { &[("$select", LEAN)] }
}

pub(super) fn items(name: &'static str, value: Vec<Map<String, Value>>) -> Result<Vec<Told>, GraphError> {
    value
        .into_iter()
        .map(|fields| {
            let id = fields.get("id").and_then(Value::as_str).map(str::to_owned).ok_or_else(|| {
                GraphError::Unexpected { call: name, what: "an item without an id".to_owned(), write: false }
            })?;
            Ok(Told { id, removed: fields.contains_key("@removed"), fields })
        })
        .collect()
}
