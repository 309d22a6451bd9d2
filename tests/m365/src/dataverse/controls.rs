//! `/_sim/dataverse`.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::rights::{Denial, PlugIn};
use super::store::{Actor, Write};
use super::{EnvironmentInfo, payload};
use crate::Sim;

pub(crate) const CONTROLS: &[(&str, &str)] = &[
    (
        "GET|PUT /_sim/dataverse/environments",
        "what discovery lists: {name,url,tenant,state,...}; url null is the simulator itself",
    ),
    ("GET|DELETE /_sim/dataverse/writes", "every write: columns sent, changed, unchanged, ignored"),
    ("GET /_sim/dataverse/rows/{table}", "the rows of the default environment"),
    ("POST /_sim/dataverse/edit", "{table,id,values}: somebody else changes (or makes) a row"),
    ("GET|POST|DELETE /_sim/dataverse/denials", "{user,table?,operation?,row?,lack:privilege|row|role}"),
    ("GET|POST|DELETE /_sim/dataverse/plugins", "{table,operation,message,times}: 400 0x80040265"),
    (
        "PUT /_sim/dataverse/duplicate-status",
        "{status}: how a duplicate rule answers (500 as in the sample, or 412)",
    ),
    ("POST /_sim/dataverse/schema", "{table,optimistic}: changes the table and the metadata version"),
    ("POST /_sim/dataverse/spend", "{user,seconds}: uses up execution time"),
];

pub(crate) fn router() -> Router<Sim> {
    Router::new()
        .route("/environments", get(environments).put(put_environment))
        .route("/writes", get(writes).delete(clear_writes))
        .route("/rows/{table}", get(rows))
        .route("/edit", post(edit))
        .route("/denials", get(denials).post(deny).delete(allow))
        .route("/plugins", get(plug_ins).post(plug_in).delete(unplug))
        .route("/duplicate-status", put(duplicate_status))
        .route("/schema", post(schema))
        .route("/spend", post(spend))
}

async fn environments(State(sim): State<Sim>) -> Json<Vec<EnvironmentInfo>> {
    Json(sim.environments())
}

async fn put_environment(State(sim): State<Sim>, Json(info): Json<EnvironmentInfo>) -> StatusCode {
    sim.put_environment(info);
    StatusCode::NO_CONTENT
}

async fn writes(State(sim): State<Sim>) -> Json<Vec<Write>> {
    Json(sim.dataverse_writes())
}

async fn clear_writes(State(sim): State<Sim>) -> StatusCode {
    sim.clear_dataverse_writes();
    StatusCode::NO_CONTENT
}

async fn rows(State(sim): State<Sim>, Path(table): Path<String>) -> Json<Vec<Value>> {
    Json(sim.dataverse_rows(&table))
}

#[derive(Deserialize)]
struct Edit {
    table: String,
    id: String,
    values: Map<String, Value>,
}

async fn edit(State(sim): State<Sim>, Json(edit): Json<Edit>) -> Result<StatusCode, (StatusCode, String)> {
    sim.edit_row(&edit.table, &edit.id, &Value::Object(edit.values))
        .map(|()| StatusCode::NO_CONTENT)
        .map_err(|message| (StatusCode::BAD_REQUEST, message))
}

async fn denials(State(sim): State<Sim>) -> Json<Vec<Denial>> {
    Json(sim.dataverse().rules.denials.clone())
}

async fn deny(State(sim): State<Sim>, Json(denial): Json<Denial>) -> StatusCode {
    sim.deny(denial);
    StatusCode::NO_CONTENT
}

async fn allow(State(sim): State<Sim>) -> StatusCode {
    sim.dataverse_allow();
    StatusCode::NO_CONTENT
}

async fn plug_ins(State(sim): State<Sim>) -> Json<Vec<PlugIn>> {
    Json(sim.dataverse().rules.plug_ins.clone())
}

async fn plug_in(State(sim): State<Sim>, Json(rule): Json<PlugIn>) -> StatusCode {
    sim.plug_in(rule);
    StatusCode::NO_CONTENT
}

async fn unplug(State(sim): State<Sim>) -> StatusCode {
    sim.dataverse().rules.plug_ins.clear();
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
struct Status {
    status: u16,
}

async fn duplicate_status(State(sim): State<Sim>, Json(Status { status }): Json<Status>) -> StatusCode {
    sim.dataverse().default_org().duplicate_status = status;
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
struct Schema {
    table: String,
    optimistic: bool,
}

async fn schema(State(sim): State<Sim>, Json(change): Json<Schema>) -> StatusCode {
    sim.change_schema(&change.table, |table| table.optimistic = change.optimistic);
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
struct Spend {
    user: String,
    seconds: i64,
}

async fn spend(State(sim): State<Sim>, Json(spend): Json<Spend>) -> StatusCode {
    let oid = sim.directory().find(&spend.user).map(|user| user.oid.clone()).unwrap_or_default();
    let now = sim.now();
    sim.referee().spend(&oid, now, spend.seconds);
    StatusCode::NO_CONTENT
}

impl Sim {
    /// Every write to every environment, oldest first.
    pub fn dataverse_writes(&self) -> Vec<Write> {
        let state = self.dataverse();
        let mut all: Vec<Write> = state.environments.iter().flat_map(|e| e.org.writes.clone()).collect();
        all.sort_by_key(|write| write.at);
        all
    }

    pub fn clear_dataverse_writes(&self) {
        for environment in &mut self.dataverse().environments {
            environment.org.writes.clear();
        }
    }

    /// A row of the default environment with all its columns, lookups as `{"table","id"}`.
    pub fn dataverse_row(&self, table: &str, id: &str) -> Option<Value> {
        let mut state = self.dataverse();
        let row = state.default_org().row(table, id)?;
        Some(json!(row.values))
    }

    pub fn dataverse_rows(&self, table: &str) -> Vec<Value> {
        let mut state = self.dataverse();
        let org = state.default_org();
        org.rows.get(table).into_iter().flat_map(|rows| rows.values()).map(|row| json!(row.values)).collect()
    }

    /// Somebody else changes a row, or makes it: new version, no privileges asked.
    pub fn edit_row(&self, table: &str, id: &str, values: &Value) -> Result<(), String> {
        let now = self.now();
        let mut state = self.dataverse();
        let org = state.default_org();
        let table = org.table(table).cloned().ok_or("no such table")?;
        let values = values.as_object().ok_or("an object is needed")?;
        let exists = org.row(table.logical, id).is_some();
        let actor =
            Actor { user: super::SYSTEM_USER.into(), upn: "system".into(), now, detect_duplicates: false };
        let changes = payload::read(org, &table, values, !exists).map_err(|error| error.message)?;
        let done = if exists {
            org.update(&actor, &table, id, changes)
        } else {
            org.create(&actor, &table, id, changes)
        };
        done.map(|_| ()).map_err(|error| error.message)
    }

    pub fn deny(&self, denial: Denial) {
        self.dataverse().rules.denials.push(denial);
    }

    /// Takes all denials back.
    pub fn dataverse_allow(&self) {
        self.dataverse().rules.denials.clear();
    }

    pub fn plug_in(&self, rule: PlugIn) {
        self.dataverse().rules.plug_ins.push(rule);
    }

    /// Changes a table of the default environment; its metadata gets a new version.
    pub fn change_schema(&self, table: &str, change: impl FnOnce(&mut super::schema::Table)) {
        let mut state = self.dataverse();
        let org = state.default_org();
        org.metadata_version += 1;
        if let Some(table) = org.tables.iter_mut().find(|known| known.logical == table) {
            change(table);
        }
    }

    /// What discovery lists.
    pub fn environments(&self) -> Vec<EnvironmentInfo> {
        self.dataverse().environments.iter().map(|environment| environment.info.clone()).collect()
    }

    /// Adds an environment to discovery, or replaces the one of that name.
    pub fn put_environment(&self, info: EnvironmentInfo) {
        self.dataverse().put(info);
    }
}
