//! What an update means in a table's own terms: which columns to read, how they differ, what to send.
//!
//! The invariant: every column of the payload is in the plan or the payload is refused with the column's
//! path. Dataverse would ignore some of them and answer success.

use std::collections::BTreeMap;

use chrono::DateTime;
use followthrough::dataverse::metadata::Column;
use followthrough::dataverse::{Reference, Row, Table, lookup_property};
use followthrough::job::Invalid;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{CrmUpdate, Lookup};

/// The tables behind an owner: the lookup itself says only `owner`.
const OWNERS: [&str; 2] = ["systemuser", "team"];

pub(super) struct Plan {
    /// What `$select` names.
    pub(super) read: Vec<String>,
    columns: BTreeMap<String, Planned>,
}

enum Planned {
    Value {
        wanted: Value,
        kind: String,
        readable: bool,
    },
    /// The navigation property and what is written to it.
    Lookup {
        wanted: Option<Lookup>,
        binding: String,
        target: Value,
    },
}

impl Plan {
    /// `sets` are the entity sets of the tables that lookups point to.
    pub(super) fn new(
        job: &CrmUpdate,
        table: &Table,
        sets: &BTreeMap<String, String>,
    ) -> Result<Self, Invalid> {
        if let Some(key) = &job.key
            && !table.has_key(key)
        {
            let message = "these columns are no alternate key of the table";
            return Err(Invalid::new("key", message).code("unknown_key"));
        }
        let mut read = vec![table.id_column.clone()];
        let mut columns = BTreeMap::new();
        for (name, value) in &job.values {
            let path = format!("values.{name}");
            let column = writable(table, name, &path)?;
            if column.is_lookup() {
                return Err(Invalid::new(path, "a lookup goes into lookups").code("wrong_column_type"));
            }
            if !fits(value, &column.kind) {
                let message = format!("expected a value of a {}", column.kind);
                return Err(Invalid::new(path, message).code("wrong_column_type"));
            }
            if column.readable {
                read.push(name.clone());
            }
            let wanted = on_the_wire(value);
            columns.insert(
                name.clone(),
                Planned::Value { wanted, kind: column.kind.clone(), readable: column.readable },
            );
        }
        for (name, lookup) in &job.lookups {
            let path = format!("lookups.{name}");
            let column = writable(table, name, &path)?;
            if !column.is_lookup() {
                return Err(Invalid::new(path, "the column is no lookup").code("wrong_column_type"));
            }
            read.push(lookup_property(name));
            let (navigation, target) = match lookup {
                None => (first_navigation(column, &path)?, Value::Null),
                Some(lookup) => {
                    let set = sets.get(&lookup.table).map(String::as_str).unwrap_or_default();
                    let navigation = navigation(column, &lookup.table, &path)?;
                    (navigation, json!(format!("/{set}({})", lookup.id)))
                }
            };
            let binding = format!("{navigation}@odata.bind");
            columns.insert(name.clone(), Planned::Lookup { wanted: lookup.clone(), binding, target });
        }
        Ok(Self { read, columns })
    }

    /// The columns that do not hold their value yet.
    pub(super) fn differences(&self, row: &Row) -> Vec<String> {
        let differs = |(name, planned): &(&String, &Planned)| match planned {
            Planned::Value { readable: false, .. } => true,
            Planned::Value { wanted, kind, .. } => {
                !same(wanted, row.values.get(*name).unwrap_or(&Value::Null), kind)
            }
            Planned::Lookup { wanted, .. } => !points_to(row.reference(name).as_ref(), wanted.as_ref()),
        };
        self.columns.iter().filter(differs).map(|(name, _)| name.clone()).collect()
    }

    /// The body that writes these columns and no others.
    pub(super) fn body(&self, columns: &[String]) -> Map<String, Value> {
        let part = |name: &String| match self.columns.get(name)? {
            Planned::Value { wanted, .. } => Some((name.clone(), wanted.clone())),
            Planned::Lookup { binding, target, .. } => Some((binding.clone(), target.clone())),
        };
        columns.iter().filter_map(part).collect()
    }
}

fn writable<'a>(table: &'a Table, name: &str, path: &str) -> Result<&'a Column, Invalid> {
    match table.columns.get(name) {
        None => Err(Invalid::new(path, "the table has no such column").code("unknown_column")),
        Some(column) if !column.updatable => {
            Err(Invalid::new(path, "the column cannot be updated").code("read_only_column"))
        }
        Some(column) => Ok(column),
    }
}

/// The navigation property that leads to `table`: a polymorphic lookup has one per table.
fn navigation(column: &Column, table: &str, path: &str) -> Result<String, Invalid> {
    let direct = column.targets.iter().find(|target| target.table == table);
    let owner = || column.targets.first().filter(|_| column.kind == "OwnerType" && OWNERS.contains(&table));
    direct.or_else(owner).map(|target| target.navigation.clone()).ok_or_else(|| {
        let allowed: Vec<&str> = column.targets.iter().map(|target| target.table.as_str()).collect();
        let message = format!("the lookup points to {}", allowed.join(" or "));
        Invalid::new(format!("{path}.table"), message).code("wrong_lookup_table")
    })
}

/// Emptying a lookup by any of its navigation properties empties it.
fn first_navigation(column: &Column, path: &str) -> Result<String, Invalid> {
    column
        .targets
        .first()
        .map(|target| target.navigation.clone())
        .ok_or_else(|| Invalid::new(path, "the lookup has no navigation property").code("wrong_column_type"))
}

/// Can a column of this type hold it? What is not listed is for Dataverse to judge.
/// <https://learn.microsoft.com/power-apps/developer/data-platform/webapi/web-api-properties>
fn fits(value: &Value, kind: &str) -> bool {
    match (kind, value) {
        (_, Value::Null) => true,
        ("MultiSelectPicklistType", value) => value.is_array() || value.is_string(),
        (_, Value::Array(_)) => false,
        ("IntegerType" | "PicklistType" | "StateType" | "StatusType", value) => value.is_i64(),
        ("DecimalType" | "DoubleType" | "MoneyType", value) => value.is_number(),
        ("BooleanType", value) => value.is_boolean(),
        ("StringType" | "MemoType" | "DateTimeType" | "UniqueidentifierType", value) => value.is_string(),
        _ => true,
    }
}

/// A list of choices goes over the wire as text.
fn on_the_wire(value: &Value) -> Value {
    match value {
        Value::Array(choices) => {
            let numbers: Vec<String> = choices.iter().map(Value::to_string).collect();
            json!(numbers.join(","))
        }
        value => value.clone(),
    }
}

fn points_to(now: Option<&Reference>, wanted: Option<&Lookup>) -> bool {
    match (now, wanted) {
        (None, None) => true,
        (Some(now), Some(wanted)) => {
            now.id == wanted.id && now.table.as_ref().is_none_or(|table| *table == wanted.table)
        }
        _ => false,
    }
}

/// The same value, in whatever spelling: 1 and 1.0, two writings of one moment, a choice list in another order.
fn same(wanted: &Value, now: &Value, kind: &str) -> bool {
    match (wanted, now) {
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => a == b,
            _ => a.as_f64() == b.as_f64(),
        },
        (Value::String(a), Value::String(b)) => a == b || same_text(a, b, kind),
        // An empty text is stored as none.
        (Value::String(text), Value::Null) => text.is_empty(),
        _ => wanted == now,
    }
}

fn same_text(a: &str, b: &str, kind: &str) -> bool {
    match kind {
        "DateTimeType" => {
            let moment = |text: &str| DateTime::parse_from_rfc3339(text).ok();
            moment(a).is_some_and(|a| moment(b) == Some(a))
        }
        "UniqueidentifierType" => a.parse::<Uuid>().is_ok_and(|a| b.parse::<Uuid>().is_ok_and(|b| a == b)),
        "MultiSelectPicklistType" => {
            let choices = |text: &str| {
                let mut choices: Vec<String> =
                    text.split(',').map(|choice| choice.trim().to_owned()).collect();
                choices.sort_unstable();
                choices
            };
            choices(a) == choices(b)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use followthrough::dataverse::metadata::Target;

    use super::*;

    fn table() -> Table {
        let column = |kind: &str, updatable: bool, targets: &[(&str, &str)]| Column {
            kind: kind.into(),
            updatable,
            readable: true,
            targets: targets
                .iter()
                .map(|(table, navigation)| Target {
                    table: (*table).into(),
                    navigation: (*navigation).into(),
                })
                .collect(),
        };
        Table {
            name: "contact".into(),
            set: "contacts".into(),
            id_column: "contactid".into(),
            versioned: true,
            columns: [
                ("contactid", column("UniqueidentifierType", false, &[])),
                ("firstname", column("StringType", true, &[])),
                ("lastonholdtime", column("DateTimeType", true, &[])),
                ("creditlimit", column("MoneyType", true, &[])),
                ("interests", column("MultiSelectPicklistType", true, &[])),
                ("fullname", column("StringType", false, &[])),
                (
                    "parentcustomerid",
                    column(
                        "CustomerType",
                        true,
                        &[("account", "parentcustomerid_account"), ("contact", "parentcustomerid_contact")],
                    ),
                ),
                ("ownerid", column("OwnerType", true, &[("owner", "ownerid")])),
            ]
            .into_iter()
            .map(|(name, column)| (name.to_owned(), column))
            .collect(),
            keys: vec![vec!["emailaddress1".into()]],
        }
    }

    const ID: &str = "2f6a3b1e-97c4-4f0d-8a55-6d1c0e9b7f22";

    #[expect(clippy::needless_pass_by_value, reason = "the payloads are written in place")]
    fn plan(values: Value, lookups: Value) -> Result<Plan, Invalid> {
        let job = json!({"table": "contact", "id": ID, "values": values, "lookups": lookups});
        let job: CrmUpdate = serde_json::from_value(job).expect("the shape is right");
        let sets = [("account", "accounts"), ("contact", "contacts"), ("team", "teams"), ("lead", "leads")];
        Plan::new(&job, &table(), &sets.map(|(table, set)| (table.to_owned(), set.to_owned())).into())
    }

    fn row(values: Value) -> Row {
        let Value::Object(values) = values else { panic!("columns") };
        Row { etag: "W/\"1\"".into(), values }
    }

    #[test]
    fn only_what_differs_is_written() {
        let values = json!({"firstname": "Ada", "creditlimit": 100, "lastonholdtime": "2026-11-24T13:00:00+01:00",
                            "interests": [2, 1]});
        let plan = plan(values, json!({})).unwrap_or_else(|invalid| panic!("{invalid:?}"));
        let same =
            row(json!({"firstname": "Ada", "creditlimit": 100.0, "lastonholdtime": "2026-11-24T12:00:00Z",
                              "interests": "1,2"}));
        assert!(plan.differences(&same).is_empty());
        let other =
            row(json!({"firstname": "Bob", "creditlimit": 100.5, "lastonholdtime": null, "interests": "1"}));
        let differing = plan.differences(&other);
        assert_eq!(differing, ["creditlimit", "firstname", "interests", "lastonholdtime"]);
        assert_eq!(
            plan.body(&["firstname".into()]),
            *json!({"firstname": "Ada"}).as_object().expect("a body")
        );
        assert_eq!(plan.body(&differing)["interests"], "2,1");
    }

    #[test]
    fn a_lookup_is_written_by_the_navigation_property_of_its_table() {
        let lookups = json!({"parentcustomerid": {"table": "account", "id": ID}, "ownerid": {"table": "team", "id": ID}});
        let plan = plan(json!({}), lookups).unwrap_or_else(|invalid| panic!("{invalid:?}"));
        assert_eq!(plan.read, ["contactid", "_ownerid_value", "_parentcustomerid_value"]);
        let body = plan.body(&["parentcustomerid".into(), "ownerid".into()]);
        assert_eq!(body["parentcustomerid_account@odata.bind"], format!("/accounts({ID})"));
        assert_eq!(body["ownerid@odata.bind"], format!("/teams({ID})"));
        // The same id in the other table is another row.
        let elsewhere = row(json!({
            "_parentcustomerid_value": ID,
            "_parentcustomerid_value@Microsoft.Dynamics.CRM.lookuplogicalname": "contact",
            "_ownerid_value": ID,
            "_ownerid_value@Microsoft.Dynamics.CRM.lookuplogicalname": "team",
        }));
        assert_eq!(plan.differences(&elsewhere), ["parentcustomerid"]);
    }

    #[test]
    fn an_emptied_lookup_differs_only_while_it_points_somewhere() {
        let plan = plan(json!({}), json!({"parentcustomerid": null}))
            .unwrap_or_else(|invalid| panic!("{invalid:?}"));
        assert!(plan.differences(&row(json!({"_parentcustomerid_value": null}))).is_empty());
        assert_eq!(plan.differences(&row(json!({"_parentcustomerid_value": ID}))), ["parentcustomerid"]);
        assert_eq!(
            plan.body(&["parentcustomerid".into()])["parentcustomerid_account@odata.bind"],
            Value::Null
        );
    }

    #[test]
    fn a_column_that_would_be_ignored_is_refused_by_name() {
        for (values, lookups, path, code) in [
            (json!({"frstname": "x"}), json!({}), "values.frstname", "unknown_column"),
            (json!({"fullname": "x"}), json!({}), "values.fullname", "read_only_column"),
            (json!({"contactid": ID}), json!({}), "values.contactid", "read_only_column"),
            (json!({"creditlimit": "much"}), json!({}), "values.creditlimit", "wrong_column_type"),
            (json!({"firstname": [1]}), json!({}), "values.firstname", "wrong_column_type"),
            (json!({"ownerid": ID}), json!({}), "values.ownerid", "wrong_column_type"),
            (
                json!({}),
                json!({"firstname": {"table": "account", "id": ID}}),
                "lookups.firstname",
                "wrong_column_type",
            ),
            (
                json!({}),
                json!({"parentcustomerid": {"table": "lead", "id": ID}}),
                "lookups.parentcustomerid.table",
                "wrong_lookup_table",
            ),
        ] {
            let invalid = plan(values, lookups).err().unwrap_or_else(|| panic!("{path} should be refused"));
            assert_eq!((invalid.path.as_str(), invalid.code), (path, code));
        }
    }
}
