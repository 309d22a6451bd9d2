//! What Graph refuses and what it answers, through HTTP as a client meets it.

use chrono::TimeDelta;
use m365_sim::graph::{Fill, NewMessage, SharedSubscribe};
use m365_sim::{Options, Running, start};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

#[path = "graph/calendar.rs"]
mod calendar;
#[path = "graph/mail.rs"]
mod mail;
#[path = "graph/people.rs"]
mod people;
#[path = "graph/samples.rs"]
mod samples;
#[path = "graph/subscriptions.rs"]
mod subscriptions;
#[path = "graph/sync.rs"]
mod sync;

const ADA: &str = "ada@acme.example";
const OWN: &[&str] = &[
    "User.Read",
    "Mail.ReadWrite",
    "Mail.Send",
    "Calendars.ReadWrite",
    "Calendars.Read.Shared",
    "Mail.Read",
    "Contacts.Read",
    "People.Read",
    "User.ReadBasic.All",
];
const SHARED: &[&str] = &["User.Read", "Mail.Read.Shared", "Mail.ReadWrite.Shared", "Mail.Send.Shared"];
const MARKER: &str = "String {66f5a359-4659-4830-9070-00047ec6ac6e} Name Intent";

struct Client {
    http: reqwest::Client,
    base: String,
    token: String,
    prefer: Option<String>,
}

impl Client {
    fn new(running: &Running, user: &str, scopes: &[&str]) -> Self {
        Self {
            http: reqwest::Client::new(),
            base: running.base_url(),
            token: running.sim.graph_token(user, scopes),
            prefer: None,
        }
    }

    fn immutable(mut self) -> Self {
        self.prefer = Some("IdType=\"ImmutableId\"".into());
        self
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let url =
            if path.starts_with("http") { path.to_owned() } else { format!("{}/v1.0{path}", self.base) };
        let mut request = self.http.request(method, url).bearer_auth(&self.token);
        if let Some(prefer) = &self.prefer {
            request = request.header("prefer", prefer);
        }
        request
    }

    async fn finish(request: reqwest::RequestBuilder) -> (StatusCode, Value) {
        let response = request.send().await.expect("an answer");
        let status = response.status();
        let text = response.text().await.expect("a body");
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        Self::finish(self.request(Method::GET, path)).await
    }

    async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        Self::finish(self.request(Method::POST, path).json(body)).await
    }

    async fn patch(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        Self::finish(self.request(Method::PATCH, path).json(body)).await
    }

    async fn bare(&self, method: Method, path: &str) -> (StatusCode, Value) {
        Self::finish(self.request(method, path).header("content-length", "0")).await
    }
}

fn code(body: &Value) -> &str {
    body["error"]["code"].as_str().unwrap_or_default()
}

fn id(body: &Value) -> String {
    body["id"].as_str().expect("an id").to_owned()
}

async fn running() -> Running {
    start(Options::default()).await.expect("a free port")
}

fn draft() -> Value {
    json!({"subject": "Hello", "body": {"contentType": "HTML", "content": "They were <b>awesome</b>!"},
        "toRecipients": [{"emailAddress": {"address": "bob@acme.example"}}],
        "singleValueExtendedProperties": [{"id": MARKER, "value": "intent-1"}]})
}
