//! What the platform does to a row by itself: fills columns, keeps states, keys and duplicates in order.

use serde_json::{Value, json};

use super::{Actor, Organisation, Row, timestamp};
use crate::dataverse::error::CrmError;
use crate::dataverse::schema::{Kind, Table};

impl Organisation {
    /// What the platform fills by itself.
    pub(super) fn fill(&self, actor: &Actor, table: &Table, row: &mut Row) {
        if !table.user_owned {
            return;
        }
        let me = json!({"table": "systemuser", "id": actor.user});
        for name in ["createdon", "modifiedon"] {
            row.values.insert(name.into(), timestamp(actor.now));
        }
        for name in ["createdby", "modifiedby"] {
            row.values.insert(name.into(), me.clone());
        }
        row.values.entry("ownerid".into()).or_insert(me);
        let unit = json!({"table": "businessunit", "id": self.business_unit});
        row.values.insert("owningbusinessunit".into(), unit);
        if table.is_activity {
            row.values.insert("activitytypecode".into(), Value::String(table.logical.to_owned()));
        }
        for column in &table.columns {
            if matches!(column.kind, Kind::Boolean) {
                row.values.entry(column.logical.clone()).or_insert(Value::Bool(false));
            }
        }
    }

    pub(super) fn check_keys(&self, table: &Table, row: &Row) -> Result<(), CrmError> {
        for key in &table.keys {
            let values: Vec<(String, Value)> = key
                .columns
                .iter()
                .map(|column| ((*column).to_owned(), row.values.get(*column).cloned().unwrap_or_default()))
                .collect();
            if values.iter().any(|(_, value)| value.is_null()) {
                continue;
            }
            if self.by_key(table, &values)?.is_some_and(|other| other != row.id) {
                return Err(CrmError::duplicate_key(key.schema));
            }
        }
        Ok(())
    }

    /// The default rules: account, contact and lead with the same mail address, accounts with the same name.
    /// `webapi/manage-duplicate-detection-create-update`: off unless the header turns suppression off.
    pub(super) fn check_duplicates(&self, actor: &Actor, table: &Table, row: &Row) -> Result<(), CrmError> {
        let columns: &[&str] = match table.logical {
            "account" => &["emailaddress1", "name"],
            "contact" | "lead" => &["emailaddress1"],
            _ => return Ok(()),
        };
        if !actor.detect_duplicates {
            return Ok(());
        }
        let same = |other: &Row, column: &str| {
            let (left, right) = (row.values.get(column), other.values.get(column));
            match (left.and_then(Value::as_str), right.and_then(Value::as_str)) {
                (Some(left), Some(right)) => left.eq_ignore_ascii_case(right),
                _ => false,
            }
        };
        let rows = self.rows.get(table.logical);
        let found = rows.is_some_and(|rows| {
            rows.values().any(|other| other.id != row.id && columns.iter().any(|column| same(other, column)))
        });
        if found {
            let status = http::StatusCode::from_u16(self.duplicate_status);
            let status = status.unwrap_or(http::StatusCode::PRECONDITION_FAILED);
            let message = "A record was not created or updated because a duplicate of the current record already exists.";
            return Err(CrmError::new(status, "0x80040333", message));
        }
        Ok(())
    }
}

/// State and reason fit together; each brings the other along when only one is given.
pub(super) fn settle_status(
    table: &Table,
    row: &mut Row,
    sent: &[(String, Value)],
    create: bool,
) -> Result<(), CrmError> {
    let Some(reasons) = table.column("statuscode").map(|column| column.kind.choices().to_vec()) else {
        return Ok(());
    };
    let was_sent = |name: &str| sent.iter().any(|(column, value)| column == name && !value.is_null());
    let state = row.values.get("statecode").and_then(Value::as_i64).unwrap_or(0);
    let reason = row.values.get("statuscode").and_then(Value::as_i64);
    let default = reasons.iter().find(|reason| reason.state == state).map_or(1, |reason| reason.value);
    let state_of =
        |value: i64| reasons.iter().find(|reason| reason.value == value).map(|reason| reason.state);
    let (state, reason) = match (was_sent("statecode"), was_sent("statuscode"), reason) {
        (true, true, Some(reason)) => (state, reason),
        (true, false, _) | (_, _, None) => (state, default),
        // A reason alone must belong to the present state, except at creation where it decides.
        (_, true, Some(reason)) if create => (state_of(reason).unwrap_or(state), reason),
        (_, _, Some(reason)) => (state, reason),
    };
    if state_of(reason) != Some(state) {
        let message =
            format!("{reason} is not a valid status code for state code {state} on {}.", table.logical);
        return Err(CrmError::new(http::StatusCode::BAD_REQUEST, "0x80048408", message));
    }
    row.values.insert("statecode".into(), json!(state));
    row.values.insert("statuscode".into(), json!(reason));
    Ok(())
}

pub(super) fn compute(table: &Table, row: &mut Row) {
    if matches!(table.logical, "contact" | "lead" | "systemuser") {
        let part = |name: &str| row.values.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let full = format!("{} {}", part("firstname"), part("lastname"));
        row.values.insert("fullname".into(), Value::String(full.trim().to_owned()));
    }
}
