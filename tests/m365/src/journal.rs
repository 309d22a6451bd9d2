//! The request log: one entry per simulated call, kept with its body for assertions.

use std::collections::VecDeque;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Sim;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Area {
    Entra,
    Graph,
    Discovery,
    Dataverse,
}

impl Area {
    pub fn of(path: &str) -> Self {
        if path.starts_with("/v1.0/") {
            Self::Graph
        } else if path.starts_with("/api/discovery/") {
            Self::Discovery
        } else if path.starts_with("/api/") {
            Self::Dataverse
        } else {
            Self::Entra
        }
    }
}

/// What the bearer token of a call says, read without checking it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Bearer {
    pub oid: String,
    pub upn: String,
    pub app: String,
    pub tenant: String,
    pub audience: String,
    pub scopes: Vec<String>,
    pub token_id: String,
}

#[derive(Clone, Debug)]
pub struct Call {
    pub id: u64,
    /// The batch this is a part of.
    pub part_of: Option<u64>,
    pub area: Area,
    pub request_id: String,
    pub client_request_id: Option<String>,
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: http::HeaderMap,
    pub body: Bytes,
    pub bearer: Option<Bearer>,
    /// The `oid` of the mailbox it goes to, for Outlook calls.
    pub mailbox: Option<String>,
    pub started: DateTime<Utc>,
    pub ended: Option<DateTime<Utc>>,
    /// What was answered; none when the connection was closed instead.
    pub status: Option<u16>,
    pub answer: Bytes,
    pub fault: Option<String>,
}

impl Call {
    pub fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }

    pub fn form(&self, field: &str) -> Option<String> {
        url::form_urlencoded::parse(&self.body)
            .find(|(name, _)| name == field)
            .map(|(_, value)| value.into_owned())
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    fn listed(&self) -> Value {
        json!({
            "id": self.id, "part_of": self.part_of, "area": self.area, "request_id": self.request_id,
            "client_request_id": self.client_request_id, "method": self.method, "path": self.path,
            "query": self.query, "body_size": self.body.len(), "body": String::from_utf8_lossy(&self.body),
            "bearer": self.bearer, "mailbox": self.mailbox, "started": self.started, "ended": self.ended,
            "status": self.status, "fault": self.fault, "answer": String::from_utf8_lossy(&self.answer),
        })
    }
}

pub struct Journal {
    calls: VecDeque<Call>,
    last_id: u64,
    kept: usize,
}

impl Default for Journal {
    fn default() -> Self {
        Self { calls: VecDeque::new(), last_id: 0, kept: 100_000 }
    }
}

impl Journal {
    pub(crate) fn open(&mut self, mut call: Call) -> u64 {
        self.last_id += 1;
        call.id = self.last_id;
        self.calls.push_back(call);
        while self.calls.len() > self.kept {
            self.calls.pop_front();
        }
        self.last_id
    }

    pub(crate) fn edit(&mut self, id: u64, change: impl FnOnce(&mut Call)) {
        // From the end: the call is nearly always among the latest.
        if let Some(call) = self.calls.iter_mut().rev().find(|call| call.id == id) {
            change(call);
        }
    }

    pub fn list(&self, from: u64) -> Value {
        self.calls.iter().filter(|call| call.id > from).map(Call::listed).collect()
    }
}

impl Sim {
    /// Every call so far, oldest first; parts of a batch follow their batch.
    pub fn calls(&self) -> Vec<Call> {
        self.journal().calls.iter().cloned().collect()
    }

    /// Calls to paths that begin so, with this method.
    pub fn calls_to(&self, method: &str, path: &str) -> Vec<Call> {
        let journal = self.journal();
        let fits = |call: &&Call| call.method == method && call.path.starts_with(path);
        journal.calls.iter().filter(fits).cloned().collect()
    }

    /// How many calls are kept; a benchmark wants few.
    pub fn keep_calls(&self, most: usize) {
        self.journal().kept = most;
    }

    /// Forgets the calls, not the numbering.
    pub fn clear_calls(&self) {
        self.journal().calls.clear();
    }
}
