//! `crm.update`: changes columns of one row of any Dataverse table.
//!
//! The invariant: a column is either known to be writable or refused by name before anything is sent, only
//! what differs is written, and a row that is not there is never created.

mod plan;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use followthrough::context::Context;
use followthrough::dataverse::{Dataverse, DataverseError, Key, Row, Table};
use followthrough::effect::Intent;
use followthrough::job::{Gate, Invalid, Job, Spec};
use followthrough::oauth::scopes::Integration;
use followthrough::outcome::Failure;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use self::plan::Plan;
use crate::content::check_line;

const MOST_COLUMNS: usize = 500;
/// A row that changes under us this often is being worked on: come back later.
const MOST_COMPARISONS: usize = 3;

/// Updates columns of one existing row, as the user. Columns that already hold the value are left alone, so
/// that nothing in the CRM is set off for no reason.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CrmUpdate {
    /// The table's logical name, e.g. `account`.
    pub table: String,
    /// The row's id. Either this or `key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// The columns of one of the table's alternate keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Map<String, Value>>,
    /// Logical column names and their new values; `null` empties a column.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub values: Map<String, Value>,
    /// Lookup columns and the rows they shall point to; `null` empties a lookup.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lookups: BTreeMap<String, Option<Lookup>>,
    /// The version (`etag`) that the row must still have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_match: Option<String>,
}

/// A row to point to.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lookup {
    /// Its table's logical name.
    pub table: String,
    pub id: Uuid,
}

/// The row as it is now.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct CrmUpdated {
    pub id: Uuid,
    pub etag: String,
    /// The columns that were written; empty when all of them held their values already.
    pub changed: Vec<String>,
}

impl Job for CrmUpdate {
    const SPEC: Spec = Spec {
        kind: "crm.update",
        integration: Some(Integration::Dynamics),
        scopes: &["user_impersonation"],
        gate: Gate::CrmUser,
        permits: 1,
        duty: None,
        attempts: 8,
        timeout: Duration::from_mins(2),
        tool_pattern: "crm.<table>.update",
        example: r#"{"table": "account", "id": "7d3c3a52-5e0f-4d5a-9f0e-0b3b6d7a1c11",
            "values": {"description": "Wants the offer by Friday.", "numberofemployees": 120},
            "lookups": {"primarycontactid": {"table": "contact", "id": "2f6a3b1e-97c4-4f0d-8a55-6d1c0e9b7f22"}}}"#,
    };
    type Result = CrmUpdated;

    fn check(&self) -> Result<(), Invalid> {
        check_name(&self.table, "table")?;
        match (&self.id, &self.key) {
            (Some(_), None) => {}
            (None, Some(key)) => check_values(key, "key")?,
            _ => return Err(Invalid::new("id", "expected either id or key")),
        }
        check_values(&self.values, "values")?;
        for (column, lookup) in &self.lookups {
            check_name(column, &format!("lookups.{column}"))?;
            if let Some(lookup) = lookup {
                check_name(&lookup.table, &format!("lookups.{column}.table"))?;
            }
            if self.values.contains_key(column) {
                return Err(Invalid::new(format!("lookups.{column}"), "the column is in values too"));
            }
        }
        match self.values.len() + self.lookups.len() {
            0 => return Err(Invalid::new("values", "expected at least one column in values or lookups")),
            1..=MOST_COLUMNS => {}
            _ => return Err(Invalid::new("values", format!("expected at most {MOST_COLUMNS} columns"))),
        }
        match &self.if_match {
            Some(etag) if etag.is_empty() || !etag.is_ascii() => {
                Err(Invalid::new("if_match", "expected an etag such as W/\"1234\""))
            }
            Some(etag) => check_line(etag, "if_match", 256),
            None => Ok(()),
        }
    }

    fn tool(&self) -> Cow<'static, str> {
        Cow::Owned(format!("crm.{}.update", self.table))
    }

    fn render(&self) -> String {
        let mut text = format!("Update of a row of {}", self.table);
        if let Some(id) = self.id {
            let _ = write!(text, " ({id})");
        }
        for (column, value) in self.key.iter().flatten() {
            let _ = write!(text, " where {column} = {value}");
        }
        text.push('\n');
        for (column, value) in &self.values {
            let _ = writeln!(text, "{column} = {value}");
        }
        for (column, lookup) in &self.lookups {
            let _ = match lookup {
                Some(lookup) => writeln!(text, "{column} -> {} {}", lookup.table, lookup.id),
                None => writeln!(text, "{column} -> nothing"),
            };
        }
        text
    }

    async fn run(&self, cx: &Context) -> Result<CrmUpdated, Failure> {
        let dataverse = cx.dataverse()?;
        let (table, plan) = self.plan(&dataverse).await?;
        let (table, plan, dataverse) = (table.as_ref(), &plan, &dataverse);
        let row = self.row(dataverse, table, plan).await?;
        let wanted = plan.differences(&row);
        let request = serde_json::to_string(&wanted)
            .map_err(|error| Failure::reject("invalid_request", error.to_string()))?;
        let row = &row;
        cx.effect("row")
            .request(request)
            .perform(
                // The row was read after the intent was found, so it shows what an earlier try did.
                |intent| async move {
                    let still = plan.differences(row);
                    let intended = columns(&intent)?;
                    if intended.iter().any(|column| still.contains(column)) {
                        return Ok(None);
                    }
                    if still.is_empty() { updated(table, row, intended).map(Some) } else { Ok(None) }
                },
                |intent| self.write(dataverse, table, plan, row.clone(), intent),
            )
            .await
    }
}

impl CrmUpdate {
    /// What is to be written, in the table's own terms. A column that memory does not know is looked up anew
    /// once: somebody may have just added it.
    async fn plan(&self, dataverse: &Dataverse) -> Result<(std::sync::Arc<Table>, Plan), Failure> {
        let mut targets = BTreeMap::new();
        for (column, lookup) in &self.lookups {
            let Some(lookup) = lookup else { continue };
            let target = dataverse.table(&lookup.table).await;
            let target = target.map_err(|error| named(error, &format!("lookups.{column}.table")))?;
            targets.insert(lookup.table.clone(), target.set.clone());
        }
        let table = dataverse.table(&self.table).await.map_err(|error| named(error, "table"))?;
        let plan = match Plan::new(self, &table, &targets) {
            Ok(plan) => return Ok((table, plan)),
            Err(_) => dataverse.table_now(&self.table).await.map_err(|error| named(error, "table"))?,
        };
        match Plan::new(self, &plan, &targets) {
            Ok(fresh) => Ok((plan, fresh)),
            Err(invalid) => {
                let message = format!("payload.{}: {}", invalid.path, invalid.message);
                Err(Failure::reject(invalid.code, message))
            }
        }
    }

    async fn row(&self, dataverse: &Dataverse, table: &Table, plan: &Plan) -> Result<Row, Failure> {
        let key = match (&self.id, &self.key) {
            (Some(id), _) => Key::Id(*id),
            (None, key) => Key::Alternate(key.clone().unwrap_or_default()),
        };
        dataverse.row(table, &key, &plan.read).await.map_err(|error| {
            if error.is_not_found() {
                let path = if self.id.is_some() { "id" } else { "key" };
                return Failure::reject("not_found", format!("payload.{path}: the table has no such row"));
            }
            error.into()
        })
    }

    /// Writes the differences under the version they were found in. When the row changed in between it is
    /// compared again, a few times; what the publisher compared with is never replaced by what we compared.
    async fn write(
        &self,
        dataverse: &Dataverse,
        table: &Table,
        plan: &Plan,
        mut row: Row,
        intent: Intent,
    ) -> Result<CrmUpdated, Failure> {
        let stale = |row: &Row| self.if_match.as_ref().is_some_and(|wanted| *wanted != row.etag);
        // A repeated try may itself be what changed the row: only its outcome can tell.
        if !intent.repeated && stale(&row) {
            return Err(row_changed());
        }
        let mut changed = columns(&intent)?;
        let id = row.id(table).ok_or_else(|| Failure::retry("unexpected_answer", "a row without its id"))?;
        for _ in 0..MOST_COMPARISONS {
            let differing = plan.differences(&row);
            if differing.is_empty() {
                return updated(table, &row, changed);
            }
            changed.extend(
                differing.iter().filter(|column| !changed.contains(column)).cloned().collect::<Vec<_>>(),
            );
            if stale(&row) {
                return Err(row_changed());
            }
            let body = plan.body(&differing);
            let version = if table.versioned { row.etag.as_str() } else { "*" };
            let outcome = match dataverse.update(table, id, version, &body).await {
                Err(error) if error.is_not_versioned() && self.if_match.is_none() => {
                    dataverse.update(table, id, "*", &body).await
                }
                outcome => outcome,
            };
            match outcome {
                Ok(now) => return Ok(CrmUpdated { id, etag: now.etag, changed }),
                Err(error) if error.is_row_changed() => row = self.row(dataverse, table, plan).await?,
                Err(error) if error.is_not_found() => {
                    let message = "the row, or one that its lookups shall point to, does not exist";
                    return Err(Failure { message: message.into(), ..error.into() });
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Failure::retry("row_changed", "the row keeps changing while it is compared"))
    }
}

fn updated(table: &Table, row: &Row, changed: Vec<String>) -> Result<CrmUpdated, Failure> {
    let id = row.id(table).ok_or_else(|| Failure::retry("unexpected_answer", "a row without its id"))?;
    Ok(CrmUpdated { id, etag: row.etag.clone(), changed })
}

fn row_changed() -> Failure {
    Failure::reject("row_changed", "payload.if_match: the row has another version now")
}

fn columns(intent: &Intent) -> Result<Vec<String>, Failure> {
    serde_json::from_str(&intent.request)
        .map_err(|error| Failure::reject("invalid_request", error.to_string()))
}

/// An unknown table, with the place in the payload that names it.
fn named(error: DataverseError, path: &str) -> Failure {
    match &error {
        DataverseError::UnknownTable { .. } => {
            Failure::reject("unknown_table", format!("payload.{path}: {error}"))
        }
        _ => error.into(),
    }
}

/// A logical name: it becomes part of addresses and of the tool's name.
fn check_name(name: &str, path: &str) -> Result<(), Invalid> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if name.is_empty() || name.len() > 128 || !name.bytes().all(fits) {
        return Err(Invalid::new(
            path,
            "expected a logical name of lower-case letters, digits and underscores",
        ));
    }
    Ok(())
}

fn check_values(values: &Map<String, Value>, path: &str) -> Result<(), Invalid> {
    if path == "key" && values.is_empty() {
        return Err(Invalid::new(path, "expected the columns of an alternate key"));
    }
    for (column, value) in values {
        let path = format!("{path}.{column}");
        check_name(column, &path)?;
        let plain = match value {
            Value::Object(_) => false,
            Value::Array(choices) => choices.iter().all(Value::is_i64),
            _ => true,
        };
        if !plain {
            let message = "expected a text, number, boolean, null or a list of choices; rows go into lookups";
            return Err(Invalid::new(path, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(changes: &Value) -> Result<CrmUpdate, Invalid> {
        let mut payload: Value = serde_json::from_str(CrmUpdate::SPEC.example).expect("the example is JSON");
        for (name, value) in changes.as_object().expect("fields") {
            payload[name] = value.clone();
        }
        let job: CrmUpdate = serde_json::from_value(payload).expect("the shape is right");
        job.check().map(|()| job)
    }

    #[test]
    fn the_example_is_a_good_payload_and_names_its_own_tool() {
        let job = job(&json!({})).unwrap_or_else(|invalid| panic!("{invalid:?}"));
        let example: Value = serde_json::from_str(CrmUpdate::SPEC.example).expect("JSON");
        assert_eq!(serde_json::to_value(&job).expect("serializable"), example);
        assert_eq!(Job::tool(&job), "crm.account.update");
        assert!(job.render().contains("primarycontactid -> contact 2f6a3b1e"));
    }

    #[test]
    fn each_fault_is_named_with_its_path() {
        for (changes, path) in [
            (json!({"table": "account)/x"}), "table"),
            (json!({"key": {"accountnumber": "7"}}), "id"),
            (json!({"id": null}), "id"),
            (json!({"id": null, "key": {}}), "key"),
            (json!({"values": {"a": {"b": 1}}}), "values.a"),
            (json!({"values": {"parent@odata.bind": "/x"}}), "values.parent@odata.bind"),
            (json!({"values": {"primarycontactid": 1}}), "lookups.primarycontactid"),
            (json!({"values": {}, "lookups": {}}), "values"),
            (json!({"if_match": ""}), "if_match"),
        ] {
            let invalid = job(&changes).err().unwrap_or_else(|| panic!("{path} should be refused"));
            assert_eq!(invalid.path, path);
        }
    }
}
