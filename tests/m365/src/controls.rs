//! `/_sim`: the levers. Each is also a method of [`Sim`].

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::directory::MailboxRight;
use crate::fault::Fault;
use crate::referee::{Limits, Throttle};
use crate::{Sim, dataverse, entra, graph};

const CONTROLS: &[(&str, &str)] = &[
    ("GET /_sim", "this list and the seeded data"),
    ("GET|POST /_sim/clock", "the virtual clock; {advance_seconds} | {set} | {frozen}"),
    (
        "GET|POST|DELETE /_sim/faults",
        "{match:{method?,path?,area?,user?,body_contains?,nth,times},fault:\"before\"|\"after\"|{status,headers,body,when}|{delay_ms}|{hold:\"before\"|\"after\"}}",
    ),
    ("POST /_sim/faults/{id}/release", "lets held calls go on"),
    ("GET|POST /_sim/scenarios", "{name,user?}: a named state of affairs, made of the other controls"),
    ("GET|DELETE /_sim/calls?from=ID", "the request log"),
    ("POST /_sim/reset", "forgets calls, faults, throttles, violations and planned failures; keeps the data"),
    ("GET|DELETE /_sim/referee", "violations and limits"),
    ("GET|PUT /_sim/limits", "service limits, strict mode"),
    (
        "POST /_sim/throttle",
        "{user,calls,retry_after_seconds,as_date,without_header,area}: the next calls get 429",
    ),
    ("GET /_sim/directory", "tenants, users, mailbox rights"),
    ("PUT /_sim/directory/users", "add or replace a user"),
    ("PUT /_sim/directory/rights", "{mailbox,user,full_access,send_as,send_on_behalf} by address"),
];

pub(crate) fn router() -> Router<Sim> {
    Router::new()
        .route("/_sim", get(index))
        .route("/_sim/clock", get(clock).post(set_clock))
        .route("/_sim/faults", get(faults).post(add_fault).delete(clear_faults))
        .route("/_sim/faults/{id}/release", post(release))
        .route("/_sim/scenarios", get(scenarios).post(play))
        .route("/_sim/calls", get(calls).delete(clear_calls))
        .route("/_sim/referee", get(report).delete(clear_violations))
        .route("/_sim/limits", get(limits).put(set_limits))
        .route("/_sim/throttle", post(throttle))
        .route("/_sim/reset", post(reset))
        .route("/_sim/directory", get(directory))
        .route("/_sim/directory/users", axum::routing::put(put_user))
        .route("/_sim/directory/rights", axum::routing::put(put_right))
        .merge(entra::controls())
        .nest("/_sim/graph", graph::controls())
        .nest("/_sim/dataverse", dataverse::controls())
}

async fn index(State(sim): State<Sim>) -> Json<Value> {
    let all = [CONTROLS, entra::CONTROLS, graph::CONTROLS, dataverse::CONTROLS].concat();
    let controls: Vec<Value> = all.iter().map(|(call, does)| json!({"call": call, "does": does})).collect();
    Json(json!({
        "base_url": sim.base_url(),
        "controls": controls,
        "app": {"client_id": entra::CLIENT_ID, "client_secret": entra::CLIENT_SECRET},
        "directory": directory_json(&sim),
        "environments": sim.environments().iter().map(|info| json!({"name": info.name,
            "url": info.address(sim.base_url())})).collect::<Vec<_>>(),
    }))
}

fn directory_json(sim: &Sim) -> Value {
    let directory = sim.directory();
    json!({"tenants": directory.tenants, "users": directory.users, "rights": directory.rights})
}

async fn directory(State(sim): State<Sim>) -> Json<Value> {
    Json(directory_json(&sim))
}

async fn put_user(State(sim): State<Sim>, Json(user): Json<crate::directory::User>) -> StatusCode {
    sim.put_user(user);
    StatusCode::NO_CONTENT
}

async fn put_right(State(sim): State<Sim>, Json(right): Json<MailboxRight>) -> StatusCode {
    if sim.grant(right) { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND }
}

async fn clock(State(sim): State<Sim>) -> Json<Value> {
    Json(json!({"now": sim.now()}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClockChange {
    advance_seconds: Option<i64>,
    set: Option<DateTime<Utc>>,
    frozen: Option<bool>,
}

async fn set_clock(State(sim): State<Sim>, Json(change): Json<ClockChange>) -> Json<Value> {
    if let Some(to) = change.set {
        sim.clock().set(to);
    }
    if let Some(seconds) = change.advance_seconds {
        sim.clock().advance(TimeDelta::seconds(seconds));
    }
    if let Some(stop) = change.frozen {
        sim.clock().freeze(stop);
    }
    Json(json!({"now": sim.now()}))
}

async fn faults(State(sim): State<Sim>) -> Json<Value> {
    Json(sim.faults().list())
}

async fn add_fault(State(sim): State<Sim>, Json(fault): Json<Fault>) -> Json<Value> {
    Json(json!({"id": sim.inject(fault)}))
}

async fn release(State(sim): State<Sim>, Path(id): Path<u64>) -> StatusCode {
    sim.release(id);
    StatusCode::NO_CONTENT
}

async fn scenarios() -> Json<Value> {
    Json(crate::scenario::ALL.iter().map(|(name, does)| json!({"name": name, "does": does})).collect())
}

#[derive(Deserialize)]
struct Play {
    name: String,
    user: Option<String>,
}

async fn play(State(sim): State<Sim>, Json(Play { name, user }): Json<Play>) -> StatusCode {
    if sim.play(&name, user.as_deref().unwrap_or("ada@acme.example")) {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::NOT_FOUND
    }
}

async fn clear_faults(State(sim): State<Sim>) -> StatusCode {
    sim.clear_faults();
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
struct From {
    #[serde(default)]
    from: u64,
}

async fn calls(State(sim): State<Sim>, Query(From { from }): Query<From>) -> Json<Value> {
    Json(sim.journal().list(from))
}

async fn clear_calls(State(sim): State<Sim>) -> StatusCode {
    sim.clear_calls();
    StatusCode::NO_CONTENT
}

async fn report(State(sim): State<Sim>) -> Json<Value> {
    Json(sim.referee().report())
}

async fn clear_violations(State(sim): State<Sim>) -> StatusCode {
    sim.clear_violations();
    StatusCode::NO_CONTENT
}

async fn limits(State(sim): State<Sim>) -> Json<Limits> {
    Json(sim.limits())
}

async fn set_limits(State(sim): State<Sim>, Json(limits): Json<Limits>) -> StatusCode {
    sim.set_limits(limits);
    StatusCode::NO_CONTENT
}

async fn reset(State(sim): State<Sim>) -> StatusCode {
    sim.reset();
    StatusCode::NO_CONTENT
}

async fn throttle(State(sim): State<Sim>, Json(throttle): Json<Throttle>) -> StatusCode {
    sim.throttle(throttle);
    StatusCode::NO_CONTENT
}

impl Sim {
    /// Forgets calls, faults, throttles, violations and planned failures; the data stays.
    pub fn reset(&self) {
        self.clear_faults();
        self.clear_calls();
        self.clear_planned_failures();
        self.referee().forget();
    }

    pub fn put_user(&self, user: crate::directory::User) {
        let mut directory = self.directory();
        directory.users.retain(|known| known.oid != user.oid);
        directory.users.push(user);
    }

    /// Sets what a user may do in a mailbox; both may be given by address. False when one is unknown.
    pub fn grant(&self, mut right: MailboxRight) -> bool {
        let mut directory = self.directory();
        let oid = |name: &str| directory.find(name).map(|user| user.oid.clone());
        let (Some(mailbox), Some(user)) = (oid(&right.mailbox), oid(&right.user)) else { return false };
        (right.mailbox, right.user) = (mailbox, user);
        directory.set_right(right);
        true
    }
}
