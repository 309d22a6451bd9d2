//! A JSON body read against its table.
//!
//! Unknown names are refused; columns that may not be written are passed over without a word
//! (`entity-attribute-metadata`); lookups are set through navigation properties only
//! (`webapi/associate-disassociate-entities-using-web-api`).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::error::CrmError;
use super::schema::{Column, Kind, Table};
use super::store::Organisation;

#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    pub(crate) id: Option<String>,
    pub(crate) values: Vec<(String, Value)>,
    pub(crate) collections: BTreeMap<String, Value>,
    pub(crate) sent: Vec<String>,
    pub(crate) ignored: Vec<String>,
}

pub(crate) fn read(
    org: &Organisation,
    table: &Table,
    body: &Map<String, Value>,
    create: bool,
) -> Result<Changes, CrmError> {
    let mut changes = Changes::default();
    for (name, value) in body {
        if let Some(navigation) = name.strip_suffix("@odata.bind") {
            bind(org, table, navigation, value, &mut changes)?;
        } else if name.contains('@') {
            // Annotations of a row that was read are tolerated when it is sent back.
        } else if name.ends_with("_activity_parties") && table.is_activity {
            parties(org, value)?;
            changes.collections.insert(name.clone(), value.clone());
            changes.sent.push(name.clone());
        } else if let Some(relation) =
            table.navigation(name).filter(|_| table.column(name).is_none() || value.is_null())
        {
            if !value.is_null() {
                return Err(CrmError::payload(format!("A deep insert of '{name}' is not simulated.")));
            }
            changes.sent.push(relation.column.clone());
            changes.values.push((relation.column.clone(), Value::Null));
        } else {
            column(table, name, value, create, &mut changes)?;
        }
    }
    Ok(changes)
}

fn column(
    table: &Table,
    name: &str,
    value: &Value,
    create: bool,
    changes: &mut Changes,
) -> Result<(), CrmError> {
    if table.lookup_value(name).is_some() || table.column(name).is_some_and(|column| column.kind.is_lookup())
    {
        let message = "CRM do not support direct update of Entity Reference properties, Use Navigation properties \
                       instead.";
        return Err(CrmError::payload(message));
    }
    let Some(column) = table.column(name) else {
        return Err(CrmError::payload(format!(
            "The property '{name}' does not exist on type 'Microsoft.Dynamics.CRM.{}'. Make sure to only use property \
             names that are defined by the type.",
            table.logical
        )));
    };
    if name == table.id {
        let id = value.as_str().and_then(|text| uuid::Uuid::parse_str(text).ok());
        let id = id.ok_or_else(|| cannot_convert(value, "Edm.Guid"))?;
        changes.id = Some(id.to_string());
        return Ok(());
    }
    let value = check(table, column, value)?;
    changes.sent.push(name.to_owned());
    if if create { column.create } else { column.update } {
        changes.values.push((name.to_owned(), value));
    } else {
        changes.ignored.push(name.to_owned());
    }
    Ok(())
}

fn bind(
    org: &Organisation,
    table: &Table,
    navigation: &str,
    value: &Value,
    changes: &mut Changes,
) -> Result<(), CrmError> {
    let Some(relation) = table.navigation(navigation) else {
        return Err(CrmError::payload(format!(
            "An undeclared property '{navigation}' which only has property annotations in the payload but no property \
             value was found in the payload. In OData, only declared navigation properties and declared named streams \
             can be represented as properties without values."
        )));
    };
    changes.sent.push(relation.column.clone());
    let writable = table.column(&relation.column).is_some_and(|column| column.update);
    let value = match value {
        Value::Null => Value::Null,
        Value::String(path) => {
            let (target, id) = target_of(org, path)?;
            // `ownerid` takes users and teams; there are only users here.
            if target != relation.target {
                let message = format!("A resource of type '{target}' cannot be bound to '{navigation}'.");
                return Err(CrmError::payload(message));
            }
            json!({"table": target, "id": id})
        }
        other => return Err(cannot_convert(other, "Edm.String")),
    };
    if writable {
        changes.values.push((relation.column.clone(), value));
    } else {
        changes.ignored.push(relation.column.clone());
    }
    Ok(())
}

/// The row that `/contacts(<guid>)` (or its full URL, or a key) names; it must be there.
pub(crate) fn target_of(org: &Organisation, path: &str) -> Result<(&'static str, String), CrmError> {
    let last = path.rsplit('/').next().unwrap_or(path);
    let bad = || CrmError::payload(format!("The reference '{path}' is not a valid entity reference."));
    let segment = super::address::Segment::parse(last).map_err(|_| bad())?;
    let table = org.table_of_set(&segment.name)?;
    let id = match segment.key.ok_or_else(bad)? {
        super::address::Key::Id(id) => org.required_row(&table, &id)?.id,
        super::address::Key::Alternate(values) => {
            org.by_key(&table, &values)?.ok_or_else(|| CrmError::no_row_by_key(table.schema))?
        }
    };
    Ok((table.logical, id))
}

fn parties(org: &Organisation, value: &Value) -> Result<(), CrmError> {
    let all = value.as_array().ok_or_else(|| cannot_convert(value, "Collection(activityparty)"))?;
    for party in all {
        let party = party.as_object().ok_or_else(|| cannot_convert(party, "activityparty"))?;
        for (name, value) in party {
            match name.as_str() {
                "participationtypemask" if value.is_i64() => {}
                "addressused" if value.is_string() => {}
                name if name.starts_with("partyid_") && name.ends_with("@odata.bind") => {
                    target_of(org, value.as_str().unwrap_or_default())?;
                }
                name if name.starts_with('@') => {}
                other => {
                    let message = format!(
                        "The property '{other}' does not exist on type 'Microsoft.Dynamics.CRM.activityparty'."
                    );
                    return Err(CrmError::payload(message));
                }
            }
        }
    }
    Ok(())
}

fn cannot_convert(value: &Value, kind: &str) -> CrmError {
    CrmError::payload(format!("Cannot convert the literal '{value}' to the expected type '{kind}'."))
}

/// The value as it is stored, if its column takes it.
fn check(table: &Table, column: &Column, value: &Value) -> Result<Value, CrmError> {
    if value.is_null() {
        return Ok(Value::Null);
    }
    let out_of_range = || {
        // Whole numbers have a code of their own, all other ranges share one.
        let code = if matches!(column.kind, Kind::Integer { .. }) { "0x8004432f" } else { "0x80044330" };
        CrmError::validation(
            code,
            format!(
                "The value of '{}' on record of type '{}' is outside the valid range.",
                column.logical, table.logical
            ),
        )
    };
    match &column.kind {
        Kind::Text { max, .. } | Kind::Memo { max } => {
            let text = value.as_str().ok_or_else(|| cannot_convert(value, "Edm.String"))?;
            if text.encode_utf16().count() > *max {
                let message = format!(
                    "The length of the '{}' attribute of the '{}' entity exceeded the maximum allowed length of '{max}'.",
                    column.logical, table.logical
                );
                return Err(CrmError::validation("0x80044331", message));
            }
            Ok(value.clone())
        }
        Kind::Integer { min, max } => {
            let number = value.as_i64().ok_or_else(|| cannot_convert(value, "Edm.Int32"))?;
            if number < *min || number > *max { Err(out_of_range()) } else { Ok(value.clone()) }
        }
        Kind::BigInt => value.as_i64().map(Value::from).ok_or_else(|| cannot_convert(value, "Edm.Int64")),
        Kind::Decimal { min, max, precision } | Kind::Money { min, max, precision } => {
            let number = value.as_f64().ok_or_else(|| cannot_convert(value, "Edm.Decimal"))?;
            if number < *min || number > *max {
                return Err(out_of_range());
            }
            Ok(json!(round(number, *precision)))
        }
        Kind::Double { min, max, precision } => {
            let number = value.as_f64().ok_or_else(|| cannot_convert(value, "Edm.Double"))?;
            if number < *min || number > *max {
                Err(out_of_range())
            } else {
                Ok(json!(round(number, *precision)))
            }
        }
        Kind::Boolean => value.as_bool().map(Value::Bool).ok_or_else(|| cannot_convert(value, "Edm.Boolean")),
        Kind::Picklist(choices) | Kind::State(choices) | Kind::Status(choices) => {
            let number = value.as_i64().ok_or_else(|| cannot_convert(value, "Edm.Int32"))?;
            if choices.iter().any(|choice| choice.value == number) {
                return Ok(value.clone());
            }
            let accepted: Vec<String> = choices.iter().map(|choice| choice.value.to_string()).collect();
            let message = format!(
                "The value {number} of '{}' on record of type '{}' is outside the valid range. Accepted Values: {}",
                column.logical,
                table.logical,
                accepted.join(",")
            );
            Err(CrmError::validation("0x8004431a", message))
        }
        Kind::MultiSelect(choices) => {
            let text = value.as_str().ok_or_else(|| cannot_convert(value, "Edm.String"))?;
            for word in text.split(',') {
                let number = word.trim().parse::<i64>().map_err(|_| cannot_convert(value, "Edm.String"))?;
                if !choices.iter().any(|choice| choice.value == number) {
                    return Err(out_of_range());
                }
            }
            Ok(value.clone())
        }
        Kind::DateTime { date_only: true } => {
            let text = value.as_str().ok_or_else(|| cannot_convert(value, "Edm.Date"))?;
            chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d")
                .map_err(|_| cannot_convert(value, "Edm.Date"))?;
            Ok(value.clone())
        }
        Kind::DateTime { date_only: false } => {
            let text = value.as_str().ok_or_else(|| cannot_convert(value, "Edm.DateTimeOffset"))?;
            let moment = chrono::DateTime::parse_from_rfc3339(text)
                .map_err(|_| cannot_convert(value, "Edm.DateTimeOffset"))?;
            Ok(super::store::timestamp(moment.to_utc()))
        }
        Kind::UniqueId => {
            let id = value.as_str().and_then(|text| uuid::Uuid::parse_str(text).ok());
            id.map(|id| Value::String(id.to_string())).ok_or_else(|| cannot_convert(value, "Edm.Guid"))
        }
        Kind::Lookup(_) | Kind::Customer(_) | Kind::Owner | Kind::EntityName | Kind::Virtual => {
            Ok(value.clone())
        }
    }
}

fn round(number: f64, precision: u32) -> f64 {
    let factor = 10_f64.powi(i32::try_from(precision).unwrap_or(2));
    (number * factor).round() / factor
}
