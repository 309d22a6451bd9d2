//! `$batch` (<https://learn.microsoft.com/graph/json-batching>): up to 20 calls, each with its own status. Graph feeds
//! Outlook at most four of them at a time, so a batch without `dependsOn` holds all four slots of every mailbox it
//! names (<https://learn.microsoft.com/graph/throttling-limits>).

use std::collections::{BTreeSet, HashMap};

use axum::body::to_bytes;
use axum::response::Response;
use base64::Engine as _;
use bytes::Bytes;
use http::Method;
use serde_json::{Map, Value, json};

use super::call::Call;
use super::refusal::{Answer, Refusal, Reply};
use super::{only, schema};
use crate::Sim;
use crate::gateway::{self, CallContext};
use crate::journal::{Area, Bearer};
use crate::referee::Quota;

struct Step {
    id: String,
    method: Method,
    url: String,
    headers: Map<String, Value>,
    body: Option<Value>,
    depends_on: Vec<String>,
}

fn bad(text: String) -> Refusal {
    Refusal::bad("BadRequest", text)
}

fn read(call: &Call) -> Result<Vec<Step>, Refusal> {
    let map = schema::object(&call.body)?;
    let Some(requests) = map.get("requests").and_then(Value::as_array) else {
        return Err(bad("Invalid batch payload format.".into()));
    };
    if requests.is_empty() || requests.len() > 20 {
        return Err(bad(format!(
            "Number of batch request steps must be between 1 and 20; found {}.",
            requests.len()
        )));
    }
    let mut seen = BTreeSet::new();
    let mut steps = Vec::new();
    for request in requests {
        let text = |name: &str| request[name].as_str().map(str::to_owned);
        let id = text("id")
            .filter(|id| !id.is_empty())
            .ok_or_else(|| bad("Every batch request needs an 'id'.".into()))?;
        if !seen.insert(id.to_lowercase()) {
            return Err(bad(format!("Request Id has to be unique in a batch. Duplicate: {id}.")));
        }
        let method = text("method")
            .and_then(|method| Method::from_bytes(method.to_uppercase().as_bytes()).ok())
            .ok_or_else(|| bad(format!("Request {id} has no valid 'method'.")))?;
        let url = text("url").ok_or_else(|| bad(format!("Request {id} has no 'url'.")))?;
        if url.contains("://") {
            return Err(bad(format!("Request {id}: the url must be relative to the version.")));
        }
        let headers = request["headers"].as_object().cloned().unwrap_or_default();
        let body = request.get("body").filter(|body| !body.is_null()).cloned();
        let typed = headers.keys().any(|name| name.eq_ignore_ascii_case("content-type"));
        if body.is_some() && !typed {
            return Err(bad(format!(
                "Write request id : {id} does not contain Content-Type header or body."
            )));
        }
        let depends_on: Vec<String> = request["dependsOn"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|id| id.as_str().map(str::to_owned))
            .collect();
        if let Some(unknown) = depends_on.iter().find(|parent| !seen.contains(&parent.to_lowercase())) {
            return Err(bad(format!("Request {id} depends on '{unknown}', which does not come before it.")));
        }
        steps.push(Step { id, method, url, headers, body, depends_on });
    }
    Ok(steps)
}

fn request(call: &Call, step: &Step) -> Option<http::Request<Bytes>> {
    let url = step.url.trim_start_matches('/');
    // A space is not allowed in a request line, and clients write filters with them.
    let uri = format!("/v1.0/{}", url.replace(' ', "%20"));
    let mut builder = http::Request::builder().method(step.method.clone()).uri(uri);
    if let Some(token) = call.headers.get(http::header::AUTHORIZATION) {
        builder = builder.header(http::header::AUTHORIZATION, token);
    }
    for (name, value) in &step.headers {
        if !name.eq_ignore_ascii_case("authorization") {
            builder = builder.header(name.as_str(), value.as_str().unwrap_or_default());
        }
    }
    let body = match &step.body {
        None => Bytes::new(),
        Some(Value::String(text)) => Bytes::from(text.clone()),
        Some(value) => Bytes::from(value.to_string()),
    };
    builder.header(http::header::CONTENT_LENGTH, body.len()).body(body).ok()
}

async fn shown(id: &str, response: Response) -> Value {
    let (parts, body) = response.into_parts();
    let bytes = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let headers: Map<String, Value> = parts
        .headers
        .iter()
        .filter(|(name, _)| {
            let name = name.as_str();
            !matches!(
                name,
                "date" | "request-id" | "client-request-id" | "x-ms-ags-diagnostic" | "content-length"
            )
        })
        .map(|(name, value)| (canonical(name.as_str()), value.to_str().unwrap_or_default().into()))
        .collect();
    let mut shown = json!({"id": id, "status": parts.status.as_u16(), "headers": headers});
    if !bytes.is_empty() {
        // What is not JSON is base64 (json-batching, "Response format").
        shown["body"] = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| base64::engine::general_purpose::STANDARD.encode(&bytes).into());
    }
    shown
}

/// `Retry-After`, not `retry-after`: names in the inner headers are plain JSON and some clients look them up as written.
fn canonical(name: &str) -> String {
    if name == "odata-version" {
        return "OData-Version".into();
    }
    let up = |word: &str| {
        let mut chars = word.chars();
        chars.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + chars.as_str())
    };
    name.split('-').map(up).collect::<Vec<_>>().join("-")
}

pub(crate) async fn run(sim: &Sim, call: &Call, context: Option<&CallContext>) -> Answer {
    only(call, &[Method::POST])?;
    call.wants_json()?;
    call.wants_small()?;
    let steps = read(call)?;
    let Some(context) = context else { return Err(Refusal::bad("BadRequest", "Batches cannot be nested.")) };
    if steps.iter().any(|step| step.url.trim_start_matches('/').to_lowercase().starts_with("$batch")) {
        return Err(Refusal::bad("BadRequest", "Batches cannot be nested."));
    }
    let serial = steps.iter().any(|step| !step.depends_on.is_empty());
    let mut held: Vec<Quota> = Vec::new();
    let mut full: HashMap<String, crate::referee::Refusal> = HashMap::new();
    let bearer = Bearer {
        oid: call.caller.oid.clone(),
        upn: call.caller.upn.clone(),
        app: call.caller.app.clone(),
        tenant: call.caller.tenant.clone(),
        ..Bearer::default()
    };
    let mailbox = |step: &Step| gateway_mailbox(sim, step, &bearer);
    if !serial {
        let mailboxes: BTreeSet<String> = steps.iter().filter_map(mailbox).collect();
        for mailbox in mailboxes {
            let count = steps
                .iter()
                .filter(|step| gateway_mailbox(sim, step, &bearer).as_ref() == Some(&mailbox))
                .count();
            let quota = Quota::Mailbox { app: call.caller.app.clone(), mailbox: mailbox.clone() };
            // A batch of one takes one slot, of many all four.
            let weight = u32::try_from(count.min(4)).unwrap_or(4);
            match sim.referee().enter(&quota, call.now, Some(context.id), weight) {
                Ok(()) => held.push(quota),
                Err(refusal) => {
                    full.insert(mailbox, refusal);
                }
            }
        }
    }
    let mut answers = Vec::new();
    let mut failed: BTreeSet<String> = BTreeSet::new();
    for step in &steps {
        let response = if step.depends_on.iter().any(|parent| failed.contains(&parent.to_lowercase())) {
            Refusal::new(
                424,
                "FailedDependency",
                "The request failed because a request it depends on failed.",
            )
            .into_response()
        } else if let Some(refusal) = mailbox(step).and_then(|mailbox| full.get(&mailbox)) {
            gateway::refused(sim, Area::Graph, refusal)
        } else {
            match request(call, step) {
                Some(request) => Box::pin(gateway::part(sim, context, request, serial)).await,
                None => {
                    Refusal::bad("BadRequest", format!("Request {} is malformed.", step.id)).into_response()
                }
            }
        };
        if !response.status().is_success() {
            failed.insert(step.id.to_lowercase());
        }
        answers.push(shown(&step.id, response).await);
    }
    let now = sim.now();
    for quota in &held {
        let count = steps.iter().filter(|step| matches!(quota, Quota::Mailbox { mailbox, .. } if gateway_mailbox(sim, step, &bearer).as_ref() == Some(mailbox))).count();
        sim.referee().leave(quota, call.now, now, u32::try_from(count.min(4)).unwrap_or(4));
    }
    // The order of the answers is not promised; turning it round keeps clients from relying on it.
    answers.reverse();
    Ok(Reply::json(200, json!({"responses": answers})))
}

fn gateway_mailbox(sim: &Sim, step: &Step, bearer: &Bearer) -> Option<String> {
    let path = format!("/v1.0/{}", step.url.trim_start_matches('/').split('?').next().unwrap_or_default());
    gateway::mailbox_of(sim, Area::Graph, &path, Some(bearer))
}
