//! Rows: created, changed and deleted under the rules of their table, with a trail of what was written.

mod platform;

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use platform::{compute, settle_status};

use super::error::CrmError;
use super::payload::Changes;
use super::schema::Table;

#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) id: String,
    pub(crate) version: u64,
    /// By logical name; a lookup is `{"table","id"}`.
    pub(crate) values: BTreeMap<String, Value>,
    /// Parties of an activity, as they were sent.
    pub(crate) collections: BTreeMap<String, Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    Create,
    Read,
    Update,
    Delete,
}

/// One write, for assertions: what was sent, what really changed, what was ignored without a word.
#[derive(Clone, Debug, Serialize)]
pub struct Write {
    pub environment: String,
    pub at: DateTime<Utc>,
    pub user: String,
    pub operation: Operation,
    pub table: String,
    pub id: String,
    pub sent: Vec<String>,
    /// Column to (before, after).
    pub changed: BTreeMap<String, (Value, Value)>,
    /// Sent although they had this value already: fires flows and fills the audit for nothing.
    pub unchanged: Vec<String>,
    pub ignored: Vec<String>,
}

#[derive(Default)]
struct Trail {
    sent: Vec<String>,
    changed: BTreeMap<String, (Value, Value)>,
    unchanged: Vec<String>,
    ignored: Vec<String>,
}

/// Who acts.
#[derive(Clone, Debug)]
pub(crate) struct Actor {
    pub(crate) user: String,
    pub(crate) upn: String,
    pub(crate) now: DateTime<Utc>,
    pub(crate) detect_duplicates: bool,
}

pub struct Organisation {
    pub(crate) name: String,
    pub(crate) tables: Vec<Table>,
    pub(crate) rows: BTreeMap<&'static str, BTreeMap<String, Row>>,
    pub(crate) business_unit: String,
    pub(crate) id: String,
    pub(crate) metadata_version: u64,
    pub(crate) writes: Vec<Write>,
    pub(crate) duplicate_status: u16,
    version: u64,
}

pub(crate) fn timestamp(at: DateTime<Utc>) -> Value {
    Value::String(at.to_rfc3339_opts(SecondsFormat::Secs, true))
}

impl Organisation {
    pub(crate) fn new(name: &str, tables: Vec<Table>, business_unit: &str, id: &str) -> Self {
        Self {
            name: name.to_owned(),
            tables,
            rows: BTreeMap::new(),
            business_unit: business_unit.to_owned(),
            id: id.to_owned(),
            metadata_version: 470_000,
            writes: Vec::new(),
            duplicate_status: 500,
            version: 470_866,
        }
    }

    pub(crate) fn table(&self, logical: &str) -> Option<&Table> {
        self.tables.iter().find(|table| table.logical == logical)
    }

    pub(crate) fn table_of_set(&self, set: &str) -> Result<Table, CrmError> {
        self.tables.iter().find(|table| table.set == set).cloned().ok_or_else(|| CrmError::no_segment(set))
    }

    pub(crate) fn row(&self, table: &str, id: &str) -> Option<&Row> {
        self.rows.get(table)?.get(&id.to_ascii_lowercase())
    }

    pub(crate) fn required_row(&self, table: &Table, id: &str) -> Result<Row, CrmError> {
        self.row(table.logical, id).cloned().ok_or_else(|| CrmError::no_row(table.schema, id))
    }

    pub(crate) fn by_key(
        &self,
        table: &Table,
        values: &[(String, Value)],
    ) -> Result<Option<String>, CrmError> {
        let names: Vec<&str> = values.iter().map(|(name, _)| name.as_str()).collect();
        let is_key = table
            .keys
            .iter()
            .any(|key| key.columns.len() == names.len() && key.columns.iter().all(|c| names.contains(c)));
        if !is_key {
            let message = format!(
                "The key in the request URI is not valid for resource 'Microsoft.Dynamics.CRM.{}'.",
                table.logical
            );
            return Err(CrmError::query(message));
        }
        let rows = self.rows.get(table.logical);
        let fits = |row: &&Row| {
            values.iter().all(|(name, value)| {
                let stored = row.values.get(name).unwrap_or(&Value::Null);
                super::filter::order(stored, value) == Some(std::cmp::Ordering::Equal)
            })
        };
        Ok(rows.and_then(|rows| rows.values().find(fits)).map(|row| row.id.clone()))
    }

    pub(crate) fn create(
        &mut self,
        actor: &Actor,
        table: &Table,
        id: &str,
        changes: Changes,
    ) -> Result<Row, CrmError> {
        let id = id.to_ascii_lowercase();
        if self.row(table.logical, &id).is_some() {
            return Err(CrmError::duplicate_id());
        }
        let mut row =
            Row { id: id.clone(), version: 0, values: BTreeMap::new(), collections: changes.collections };
        row.values.insert(table.id.to_owned(), Value::String(id));
        for (name, value) in &changes.values {
            row.values.insert(name.clone(), value.clone());
        }
        self.fill(actor, table, &mut row);
        settle_status(table, &mut row, &changes.values, true)?;
        compute(table, &mut row);
        self.check_keys(table, &row)?;
        self.check_duplicates(actor, table, &row)?;
        let changed = row.values.iter().map(|(name, value)| (name.clone(), (Value::Null, value.clone())));
        let changed = changed.filter(|(name, _)| changes.sent.contains(name)).collect();
        let trail = Trail { changed, sent: changes.sent, ignored: changes.ignored, ..Trail::default() };
        self.put(actor, table, &mut row, Operation::Create, trail);
        Ok(row)
    }

    pub(crate) fn update(
        &mut self,
        actor: &Actor,
        table: &Table,
        id: &str,
        changes: Changes,
    ) -> Result<Row, CrmError> {
        let mut row = self.required_row(table, id)?;
        let before = row.values.clone();
        let mut unchanged = Vec::new();
        for (name, value) in &changes.values {
            let old = before.get(name).unwrap_or(&Value::Null);
            if old == value {
                unchanged.push(name.clone());
            }
            row.values.insert(name.clone(), value.clone());
        }
        row.collections.extend(changes.collections);
        settle_status(table, &mut row, &changes.values, false)?;
        compute(table, &mut row);
        self.check_keys(table, &row)?;
        self.check_duplicates(actor, table, &row)?;
        let changed = row
            .values
            .iter()
            .filter_map(|(name, new)| {
                let old = before.get(name).unwrap_or(&Value::Null);
                (old != new).then(|| (name.clone(), (old.clone(), new.clone())))
            })
            .collect();
        if table.column("modifiedon").is_some() {
            row.values.insert("modifiedon".into(), timestamp(actor.now));
            row.values.insert("modifiedby".into(), json!({"table": "systemuser", "id": actor.user}));
        }
        let trail = Trail { sent: changes.sent, changed, unchanged, ignored: changes.ignored };
        self.put(actor, table, &mut row, Operation::Update, trail);
        Ok(row)
    }

    pub(crate) fn delete(&mut self, actor: &Actor, table: &Table, id: &str) -> Result<(), CrmError> {
        let mut row = self.required_row(table, id)?;
        self.put(actor, table, &mut row, Operation::Delete, Trail::default());
        if let Some(rows) = self.rows.get_mut(table.logical) {
            rows.remove(&row.id);
        }
        Ok(())
    }

    /// Stores the row under a new version and writes the trail.
    fn put(&mut self, actor: &Actor, table: &Table, row: &mut Row, operation: Operation, trail: Trail) {
        self.version += 1;
        row.version = self.version;
        row.values.insert("versionnumber".into(), json!(self.version));
        self.rows.entry(table.logical).or_default().insert(row.id.clone(), row.clone());
        self.writes.push(Write {
            environment: self.name.clone(),
            at: actor.now,
            user: actor.upn.clone(),
            operation,
            table: table.logical.to_owned(),
            id: row.id.clone(),
            sent: trail.sent,
            changed: trail.changed,
            unchanged: trail.unchanged,
            ignored: trail.ignored,
        });
    }

    /// A row that was always there: no trail.
    pub(crate) fn seed(&mut self, table: &'static str, id: &str, values: Value, now: DateTime<Utc>) {
        let Some(table) = self.table(table).cloned() else { return };
        let Value::Object(values) = values else { return };
        let actor = Actor { user: String::new(), upn: "system".into(), now, detect_duplicates: false };
        let id_value = Value::String(id.to_owned());
        let mut row = Row {
            id: id.to_owned(),
            version: 0,
            values: values.into_iter().collect(),
            collections: BTreeMap::new(),
        };
        row.values.insert(table.id.to_owned(), id_value);
        self.fill(&actor, &table, &mut row);
        let none: Vec<(String, Value)> = Vec::new();
        let _ = settle_status(&table, &mut row, &none, true);
        compute(&table, &mut row);
        self.version += 1;
        row.version = self.version;
        row.values.insert("versionnumber".into(), json!(self.version));
        self.rows.entry(table.logical).or_default().insert(row.id.clone(), row);
    }
}

/// A lookup value, if this is one.
pub(crate) fn reference(value: &Value) -> Option<(&str, &str)> {
    let map: &Map<String, Value> = value.as_object()?;
    Some((map.get("table")?.as_str()?, map.get("id")?.as_str()?))
}
