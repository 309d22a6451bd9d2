//! CloudEvents 1.0 back to publishers.
//!
//! The invariant: an event is written in the transaction of the state it tells of, as a message owed by the
//! outbox; its `subject` orders it, and `data.workspace` is always there.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::broker::{Target, header};
use crate::store::outbox::Owed;

pub const CONTENT_TYPE: &str = "application/cloudevents+json";
pub const TYPE_PREFIX: &str = "followthrough.";

/// One event. `kind` is the CloudEvents type without the prefix: `job.succeeded.email.draft`.
pub struct Event<'a> {
    pub kind: &'a str,
    /// `job`, `connection` or `mailbox`: what the subject names.
    pub about: &'static str,
    pub subject: &'a str,
    pub workspace: &'a str,
    pub traceparent: Option<&'a str>,
    pub data: Value,
    pub now: DateTime<Utc>,
}

impl Event<'_> {
    pub fn owed(self) -> Owed {
        let id = Uuid::now_v7();
        let mut data = self.data;
        data["workspace"] = json!(self.workspace);
        let mut body = json!({
            "specversion": "1.0",
            "id": id,
            "source": "/followthrough",
            "type": format!("{TYPE_PREFIX}{}", self.kind),
            "subject": self.subject,
            "time": self.now.to_rfc3339_opts(SecondsFormat::Millis, true),
            "datacontenttype": "application/json",
            "data": data,
        });
        let mut headers = BTreeMap::new();
        if let Some(traceparent) = self.traceparent {
            body["traceparent"] = json!(traceparent);
            headers.insert(header::TRACEPARENT.to_owned(), traceparent.to_owned());
        }
        Owed {
            message_id: id,
            subject: format!("{}/{}/{}", self.about, self.workspace, self.subject),
            target: Target::Event { kind: self.kind.to_owned() }.to_string(),
            body: body.to_string(),
            headers: encode(&headers),
        }
    }
}

/// Headers as the outbox keeps them.
pub fn encode(headers: &BTreeMap<String, String>) -> String {
    serde_json::to_string(headers).unwrap_or_default()
}
