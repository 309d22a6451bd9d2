//! The AsyncAPI document: what publishers send and receive over RabbitMQ.
//!
//! The invariant: channels and messages are derived from the registry; payloads are the committed schemas,
//! by reference.

use serde_json::{Map, Value, json};

use super::{about, payload_schema, result_schema};
use crate::broker::header;
use crate::event::{CONTENT_TYPE, TYPE_PREFIX};
use crate::job::Envelope;
use crate::outcome::Cause;
use crate::registry::{Entry, Registry};

/// <https://github.com/asyncapi/bindings/tree/master/amqp>: 0.4.0 says the same of what is used here, but the
/// AsyncAPI project's own parser (3.6) refuses any number other than this one.
const BINDING: &str = "0.3.0";
const PREFIX: &str = "followthrough";

pub(super) fn document(registry: Registry) -> Value {
    let mut parts = Parts::default();
    for entry in registry.entries() {
        parts.job(entry);
        for (state, about, data) in ENDS {
            parts.end(entry, state, about, data);
        }
    }
    for status in ["connected", "needs_user", "needs_admin", "disconnected"] {
        parts.connection(status);
    }
    for (kind, about, data) in MAILBOX {
        parts.mailbox(kind, about, data());
    }
    parts.dead_letters();
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Followthrough",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Publish jobs to the exchange followthrough.jobs with the kind as routing key, \
                persistent and mandatory, at most 8 MiB. Events come back through followthrough.events, at \
                least once, ordered per subject. The prefix followthrough is the setting broker.prefix.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"rabbitmq": {"host": "localhost:5672", "protocol": "amqp"}},
        "channels": parts.channels,
        "operations": parts.operations,
        "components": {"messages": parts.messages},
    })
}

/// What is in an event's `data` beside what all of them have.
type Data = fn(&Entry) -> Value;

const ENDS: [(&str, &str, Data); 5] = [
    (
        "succeeded",
        "The job's effects are made. Without a result and with the code confirmed_by_operator where an operator \
         found that they are.",
        |entry| {
            let result = json!({"$ref": format!("./{}", result_schema(entry.spec.kind))});
            json!({"result": {"anyOf": [result, {"type": "null"}]}, "code": CODE()})
        },
    ),
    (
        "parked",
        "The job waits for a person.",
        |_| json!({"cause": {"enum": Cause::ALL.map(Cause::as_str)}, "code": CODE(), "message": TEXT()}),
    ),
    (
        "dead",
        "The job will not be tried again unless an operator replays it.",
        |_| json!({"code": CODE(), "message": TEXT()}),
    ),
    (
        "expired",
        "The job's expires_at passed before it was done.",
        |_| json!({"code": CODE(), "message": TEXT()}),
    ),
    ("rejected", "An approver said no.", |_| json!({"by": TEXT(), "note": {"type": ["string", "null"]}})),
];

type Told = fn() -> Value;

/// What is told of a shared mailbox: type, meaning, and what `data` holds besides the mailbox.
const MAILBOX: &[(&str, &str, Told)] = &[
    (
        "connected",
        "Its access is proven, for the first time or again.",
        || json!({"capabilities": {"type": "object"}}),
    ),
    (
        "degraded",
        "It cannot be reached; the cursors are kept.",
        || json!({"code": CODE(), "message": TEXT()}),
    ),
    ("disconnected", "It is ended; its messages are kept.", || json!({"receipt": {"type": "object"}})),
    ("backfill.progress", "How far the mail of the past has come.", FILLED),
    ("backfill.completed", "The mail of the past is there.", FILLED),
    ("backfill.cancelled", "The mail of the past is not read any further.", FILLED),
    ("message.created", "A message is there that was not.", MESSAGE),
    ("message.updated", "A message is different, or in another folder.", MESSAGE),
    ("message.removed", "A message is nowhere in the mailbox any more.", MESSAGE),
];

const FILLED: Told = || {
    let count = || json!({"type": ["integer", "null"]});
    let moment = || json!({"type": ["string", "null"], "format": "date-time"});
    json!({
        "state": TEXT(), "since": moment(), "found": count(), "stored": count(), "expected": count(),
        "requests": count(), "per_second": {"type": "number"}, "seconds_left": count(), "started_at": moment(),
        "finished_at": moment(),
    })
};

const MESSAGE: Told = || {
    let maybe = || json!({"type": ["string", "null"]});
    json!({
        "message": TEXT(), "folder": TEXT(), "internet_message_id": maybe(), "conversation_id": maybe(),
        "received_at": {"type": "string", "format": "date-time"}, "is_read": {"type": "boolean"},
        "is_draft": {"type": "boolean"},
        "backfill": {"type": "boolean", "description": "It is mail of the past."},
    })
};

const CODE: fn() -> Value =
    || json!({"type": "string", "description": "Stable, snake_case: what software decides by."});
const TEXT: fn() -> Value = || json!({"type": "string"});

#[derive(Default)]
struct Parts {
    channels: Map<String, Value>,
    operations: Map<String, Value>,
    messages: Map<String, Value>,
}

impl Parts {
    /// The channel of one routing key, its message and the operation on it.
    fn add(&mut self, name: &str, exchange: &str, key: &str, action: &str, message: Value) {
        let title = message["title"].clone();
        self.channels.insert(
            name.to_owned(),
            json!({
                "address": key,
                "title": title,
                "messages": {name: {"$ref": format!("#/components/messages/{name}")}},
                "bindings": {"amqp": {
                    "is": "routingKey",
                    "exchange": {
                        "name": exchange, "type": "topic", "durable": true, "autoDelete": false, "vhost": "/",
                    },
                    "bindingVersion": BINDING,
                }},
            }),
        );
        let mut amqp = json!({"deliveryMode": 2, "bindingVersion": BINDING});
        if action == "receive" {
            amqp["mandatory"] = json!(true);
            amqp["ack"] = json!(true);
        }
        self.operations.insert(
            name.to_owned(),
            json!({
                "action": action,
                "channel": {"$ref": format!("#/channels/{name}")},
                "messages": [{"$ref": format!("#/channels/{name}/messages/{name}")}],
                "bindings": {"amqp": amqp},
            }),
        );
        self.messages.insert(name.to_owned(), message);
    }

    fn job(&mut self, entry: &Entry) {
        let kind = entry.spec.kind;
        let mut envelope = schemars::schema_for!(Envelope).to_value();
        if let Some(fields) = envelope.as_object_mut() {
            fields.remove("$schema");
        }
        envelope["properties"]["kind"] = json!({"const": kind});
        envelope["properties"]["payload"] = json!({"$ref": format!("./{}", payload_schema(kind))});
        let example: Value = serde_json::from_str(entry.spec.example).unwrap_or_default();
        let message = json!({
            "name": kind,
            "title": kind,
            "summary": about(entry),
            "contentType": "application/json",
            "headers": {"type": "object", "properties": {header::TRACEPARENT: {
                "type": "string", "description": "W3C trace context; comes back with the job's events.",
            }}},
            "payload": envelope,
            "bindings": {"amqp": {
                "contentEncoding": "utf-8", "messageType": kind, "bindingVersion": BINDING,
            }},
            "examples": [{"name": "example", "payload": {
                "id": "mtg-4711-1", "kind": kind, "workspace": "acme", "user": "ada@acme.example",
                "meeting": "mtg-4711", "payload": example,
            }}],
        });
        self.add(kind, &format!("{PREFIX}.jobs"), kind, "receive", message);
    }

    fn end(&mut self, entry: &Entry, state: &str, about: &str, data: Data) {
        let kind = entry.spec.kind;
        let mut data = data(entry);
        for (name, schema) in [
            ("id", TEXT()),
            ("kind", json!({"const": kind})),
            ("user", TEXT()),
            ("meeting", json!({"type": ["string", "null"]})),
            ("attempts", json!({"type": "integer"})),
        ] {
            data[name] = schema;
        }
        self.event(&format!("job.{state}.{kind}"), "The job's id.", about, data);
    }

    fn connection(&mut self, status: &str) {
        let about = match status {
            "connected" => "The user has signed in; jobs that waited for it are queued again.",
            "needs_user" => "The user must sign in again.",
            "needs_admin" => "An administrator of the tenant must consent.",
            _ => {
                "Its mailboxes are ended and its tokens are wiped; the receipt says what could not be deleted."
            }
        };
        let mut data = json!({
            "connection": {"type": "string", "format": "uuid"}, "user": TEXT(), "integration": TEXT(),
            "status": {"const": status}, "code": CODE(), "message": TEXT(),
        });
        if status == "disconnected" {
            data["receipt"] = json!({"type": "object"});
        }
        self.event(&format!("connection.{status}"), "The connection's id.", about, data);
    }

    fn mailbox(&mut self, what: &str, about: &str, mut data: Value) {
        data["mailbox"] = json!({"type": "string", "format": "uuid"});
        if !what.starts_with("message") {
            data["address"] = TEXT();
            data["user"] = TEXT();
        }
        self.event(&format!("mailbox.{what}"), "The mailbox's id.", about, data);
    }

    /// One of the `CloudEvents`. `kind` is its type without the prefix, and the routing key.
    fn event(&mut self, kind: &str, subject: &str, about: &str, mut data: Value) {
        data["workspace"] = TEXT();
        let message = json!({
            "name": kind,
            "title": format!("{TYPE_PREFIX}{kind}"),
            "summary": about,
            "contentType": CONTENT_TYPE,
            "payload": {
                "type": "object",
                "required": ["specversion", "id", "source", "type", "subject", "time", "data"],
                "properties": {
                    "specversion": {"const": "1.0"},
                    "id": {"type": "string", "format": "uuid"},
                    "source": {"const": "/followthrough"},
                    "type": {"const": format!("{TYPE_PREFIX}{kind}")},
                    "subject": {"type": "string", "description": subject},
                    "time": {"type": "string", "format": "date-time"},
                    "datacontenttype": {"const": "application/json"},
                    "traceparent": TEXT(),
                    "data": {"type": "object", "required": ["workspace"], "properties": data},
                },
            },
        });
        self.add(kind, &format!("{PREFIX}.events"), kind, "send", message);
    }

    fn dead_letters(&mut self) {
        let name = "dead-letters";
        let text = |about: &str| json!({"type": "string", "description": about});
        let message = json!({
            "name": name,
            "title": "A message that is given up",
            "summary": "As it came, with why in its headers. The fleet stores it in its table of dead letters.",
            "contentType": "application/json",
            "headers": {"type": "object", "properties": {
                header::CODE: text("The stable code; absent when the broker gave up, see x-death."),
                header::MESSAGE: text("One line for the operator."),
                header::PATH: text("Where in the message the fault is."),
                header::ATTEMPTS: text("How often it was tried."),
            }},
            "payload": {},
        });
        self.channels.insert(
            name.to_owned(),
            json!({
                "address": format!("{PREFIX}.dead"),
                "title": "Dead letters",
                "messages": {name: {"$ref": format!("#/components/messages/{name}")}},
                "bindings": {"amqp": {
                    "is": "queue",
                    "queue": {
                        "name": format!("{PREFIX}.dead"), "durable": true, "exclusive": false,
                        "autoDelete": false, "vhost": "/",
                    },
                    "bindingVersion": BINDING,
                }},
            }),
        );
        self.operations.insert(
            name.to_owned(),
            json!({
                "action": "receive",
                "channel": {"$ref": format!("#/channels/{name}")},
                "messages": [{"$ref": format!("#/channels/{name}/messages/{name}")}],
            }),
        );
        self.messages.insert(name.to_owned(), message);
    }
}
