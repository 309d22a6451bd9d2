//! `/_sim/graph`: the same as the assertions, as JSON, for tests in another process.

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::assertions::NewMessage;
use super::generator::Fill;
use super::state::Switches;
use super::{notifier, subscriptions};
use crate::Sim;

/// What `GET /_sim` says about these controls: (call, what it does).
pub const CONTROLS: &[(&str, &str)] = &[
    (
        "GET|PATCH /_sim/graph/switches",
        "behaviours that are undocumented or faulty; PATCH names what to change",
    ),
    ("GET /_sim/graph/world", "everything without ids and times: two runs ended alike when these are equal"),
    ("GET /_sim/graph/sent", "every mail that left"),
    ("GET /_sim/graph/invitations", "every invitation, update and cancellation"),
    (
        "GET /_sim/graph/mailboxes/{address}/folders/{name}",
        "messages, newest first, hidden properties included",
    ),
    ("GET /_sim/graph/mailboxes/{address}/events?deleted", "events"),
    (
        "POST /_sim/graph/mailboxes/{address}/deliver",
        "{from,to,cc,subject,html|text,received,folder,in_reply_to,…} → {id}",
    ),
    ("POST /_sim/graph/mailboxes/{address}/fill", "{messages,folders,days,seed}: realistic messages"),
    ("POST /_sim/graph/mailboxes/{address}/move", "{id,folder,desktop}: as a person in Outlook would"),
    ("POST /_sim/graph/mailboxes/{address}/contacts", "{display_name,email}"),
    ("POST /_sim/graph/mailboxes/{address}/people", "{display_name,email}"),
    ("POST /_sim/graph/mailboxes/{address}/expire-delta", "every delta link answers SyncStateNotFound"),
    ("POST /_sim/graph/mailboxes/{address}/share-calendar", "{with,write}: as in Outlook"),
    ("GET /_sim/graph/subscriptions", "live subscriptions, client states included, and what was delivered"),
    ("DELETE /_sim/graph/subscriptions/{id}", "removed without a word"),
    (
        "POST /_sim/graph/subscriptions/{id}/lifecycle",
        "{event}: missed|subscriptionRemoved|reauthorizationRequired",
    ),
];

pub(crate) fn router() -> Router<Sim> {
    Router::new()
        .route("/switches", get(switches).patch(set_switches))
        .route("/world", get(world))
        .route("/sent", get(sent))
        .route("/invitations", get(invitations))
        .route("/mailboxes/{address}/folders/{name}", get(folder))
        .route("/mailboxes/{address}/events", get(events))
        .route("/mailboxes/{address}/deliver", post(deliver))
        .route("/mailboxes/{address}/fill", post(fill))
        .route("/mailboxes/{address}/move", post(relocate))
        .route("/mailboxes/{address}/contacts", post(contact))
        .route("/mailboxes/{address}/people", post(person))
        .route("/mailboxes/{address}/expire-delta", post(expire_delta))
        .route("/mailboxes/{address}/share-calendar", post(share))
        .route("/subscriptions", get(list_subscriptions))
        .route("/subscriptions/{id}", axum::routing::delete(drop_subscription))
        .route("/subscriptions/{id}/lifecycle", post(lifecycle))
}

async fn switches(State(sim): State<Sim>) -> Json<Switches> {
    Json(sim.graph().switches.clone())
}

async fn set_switches(
    State(sim): State<Sim>,
    Json(change): Json<Value>,
) -> Result<Json<Switches>, (StatusCode, String)> {
    let mut graph = sim.graph();
    let mut all = serde_json::to_value(&graph.switches).unwrap_or_default();
    for (name, value) in change.as_object().into_iter().flatten() {
        all[name] = value.clone();
    }
    graph.switches =
        serde_json::from_value(all).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
    Ok(Json(graph.switches.clone()))
}

async fn world(State(sim): State<Sim>) -> Json<Value> {
    let now = sim.now();
    let mut graph = sim.graph();
    graph.settle(now);
    Json(graph.world())
}

async fn sent(State(sim): State<Sim>) -> Json<Value> {
    let now = sim.now();
    let mut graph = sim.graph();
    graph.settle(now);
    Json(json!(graph.sent_mail()))
}

async fn invitations(State(sim): State<Sim>) -> Json<Value> {
    Json(json!(sim.graph().invitations()))
}

async fn folder(State(sim): State<Sim>, Path((address, name)): Path<(String, String)>) -> Json<Value> {
    let now = sim.now();
    let mut graph = sim.graph();
    graph.settle(now);
    Json(Value::Array(graph.mailbox(&address).folder(&name)))
}

#[derive(Deserialize)]
struct Which {
    deleted: Option<String>,
}

async fn events(
    State(sim): State<Sim>,
    Path(address): Path<String>,
    Query(which): Query<Which>,
) -> Json<Value> {
    let mut graph = sim.graph();
    let mailbox = graph.mailbox(&address);
    Json(Value::Array(if which.deleted.is_some() { mailbox.deleted_events() } else { mailbox.events() }))
}

async fn deliver(
    State(sim): State<Sim>,
    Path(address): Path<String>,
    Json(message): Json<NewMessage>,
) -> Json<Value> {
    let id = sim.deliver(&address, message);
    notifier::wake(&sim);
    Json(json!({"id": id}))
}

async fn fill(
    State(sim): State<Sim>,
    Path(address): Path<String>,
    Json(mut fill): Json<Fill>,
) -> Json<Value> {
    fill.until.get_or_insert(sim.now());
    let made = sim.graph().fill(&address, &fill);
    notifier::wake(&sim);
    Json(json!({"messages": made}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Move {
    id: String,
    folder: String,
    #[serde(default)]
    desktop: bool,
}

async fn relocate(
    State(sim): State<Sim>,
    Path(address): Path<String>,
    Json(to): Json<Move>,
) -> (StatusCode, Json<Value>) {
    let mut graph = sim.graph();
    let mut mailbox = graph.mailbox(&address);
    let id = if to.desktop {
        mailbox.desktop_move(&to.id, &to.folder)
    } else {
        mailbox.move_message(&to.id, &to.folder).then_some(to.id)
    };
    drop(graph);
    notifier::wake(&sim);
    (if id.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND }, Json(json!({"id": id})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Person {
    display_name: String,
    email: String,
}

async fn contact(
    State(sim): State<Sim>,
    Path(address): Path<String>,
    Json(who): Json<Person>,
) -> Json<Value> {
    Json(json!({"id": sim.graph().mailbox(&address).add_contact(&who.display_name, &who.email)}))
}

async fn person(State(sim): State<Sim>, Path(address): Path<String>, Json(who): Json<Person>) -> StatusCode {
    sim.graph().mailbox(&address).add_person(&who.display_name, &who.email);
    StatusCode::NO_CONTENT
}

async fn expire_delta(State(sim): State<Sim>, Path(address): Path<String>) -> StatusCode {
    sim.graph().expire_delta(&address);
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Share {
    with: String,
    #[serde(default)]
    write: bool,
}

async fn share(State(sim): State<Sim>, Path(address): Path<String>, Json(share): Json<Share>) -> StatusCode {
    let Some(oid) = sim.directory().find(&share.with).map(|user| user.oid.clone()) else {
        return StatusCode::NOT_FOUND;
    };
    sim.graph().share_calendar(&address, &oid, share.write);
    StatusCode::NO_CONTENT
}

async fn list_subscriptions(State(sim): State<Sim>) -> Json<Value> {
    Json(sim.graph().subscriptions.report())
}

async fn drop_subscription(State(sim): State<Sim>, Path(id): Path<String>) -> StatusCode {
    if sim.graph().subscriptions.remove(&id) { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Lifecycle {
    event: String,
}

async fn lifecycle(
    State(sim): State<Sim>,
    Path(id): Path<String>,
    Json(body): Json<Lifecycle>,
) -> StatusCode {
    if subscriptions::lifecycle(&sim, &id, &body.event) {
        StatusCode::ACCEPTED
    } else {
        StatusCode::NOT_FOUND
    }
}
