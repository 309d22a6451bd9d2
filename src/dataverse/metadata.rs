//! What tables there are and what may be written to them.
//!
//! The invariant: nobody's memory of a table outlives ten minutes, or the moment Dataverse denies knowing
//! it. Dataverse ignores a column it may not write without a word, so what is not known here is not sent.
//! <https://learn.microsoft.com/power-apps/developer/data-platform/webapi/query-metadata-web-api>

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::Mutex;

use super::{Dataverse, DataverseError};
use crate::http::add_query;

const BELIEVED: TimeDelta = TimeDelta::minutes(10);
/// A stream of jobs with a misspelt column must not become a stream of metadata queries.
const DOUBTED: TimeDelta = TimeDelta::seconds(30);
const MOST_REMEMBERED: usize = 2_000;

/// A table, as far as writing to it is concerned.
#[derive(Debug, Clone)]
pub struct Table {
    /// The logical name, e.g. `account`.
    pub name: String,
    /// The name in addresses, e.g. `accounts`.
    pub set: String,
    pub id_column: String,
    /// Does a version in `If-Match` count here?
    pub versioned: bool,
    pub columns: BTreeMap<String, Column>,
    /// The columns of each alternate key.
    pub keys: Vec<Vec<String>>,
}

#[derive(Debug, Clone)]
pub struct Column {
    /// `StringType`, `LookupType`, …: `AttributeTypeName`, because `AttributeType` calls two types `Virtual`.
    pub kind: String,
    pub updatable: bool,
    pub readable: bool,
    /// For a lookup: which table by which navigation property. More than one when it is polymorphic.
    pub targets: Vec<Target>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub table: String,
    /// Case-sensitive, and often not the column's name.
    pub navigation: String,
}

impl Column {
    pub fn is_lookup(&self) -> bool {
        matches!(self.kind.as_str(), "LookupType" | "CustomerType" | "OwnerType") || !self.targets.is_empty()
    }

    /// Is it written in quotes in an address?
    pub fn is_text(&self) -> bool {
        matches!(self.kind.as_str(), "StringType" | "MemoType" | "EntityNameType")
    }
}

impl Table {
    /// Are these exactly the columns of one of the alternate keys?
    pub fn has_key(&self, columns: &Map<String, Value>) -> bool {
        let same = |key: &Vec<String>| {
            key.len() == columns.len() && key.iter().all(|column| columns.contains_key(column))
        };
        self.keys.iter().any(same)
    }
}

/// The tables that are remembered, of all environments. Cloning shares the memory.
#[derive(Clone, Default)]
pub struct Definitions(Arc<Mutex<HashMap<(String, String), Known>>>);

struct Known {
    table: Arc<Table>,
    read: DateTime<Utc>,
}

impl Definitions {
    pub(super) async fn table(
        &self,
        dataverse: &Dataverse,
        name: &str,
        doubted: bool,
    ) -> Result<Arc<Table>, DataverseError> {
        let key = (dataverse.environment.to_string(), name.to_owned());
        let now = dataverse.clock.now();
        let believed = if doubted { DOUBTED } else { BELIEVED };
        if let Some(known) = self.0.lock().await.get(&key)
            && now - known.read < believed
        {
            return Ok(known.table.clone());
        }
        // Not under the lock: one slow environment must not hold up the others. Two that ask at once both ask.
        let table = Arc::new(read(dataverse, name).await?);
        let mut remembered = self.0.lock().await;
        if remembered.len() >= MOST_REMEMBERED {
            remembered.clear();
        }
        remembered.insert(key, Known { table: table.clone(), read: now });
        Ok(table)
    }

    pub(super) async fn forget(&self, environment: &str, name: &str) {
        self.0.lock().await.remove(&(environment.to_owned(), name.to_owned()));
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Described {
    logical_name: String,
    entity_set_name: Option<String>,
    primary_id_attribute: Option<String>,
    #[serde(default)]
    is_optimistic_concurrency_enabled: bool,
    #[serde(default)]
    attributes: Vec<DescribedColumn>,
    #[serde(default)]
    many_to_one_relationships: Vec<Relationship>,
    #[serde(default)]
    keys: Vec<EntityKey>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribedColumn {
    logical_name: String,
    attribute_type_name: Option<Named>,
    attribute_of: Option<String>,
    is_valid_for_update: Option<bool>,
    is_valid_for_read: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Relationship {
    referencing_attribute: String,
    referenced_entity: String,
    referencing_entity_navigation_property_name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EntityKey {
    #[serde(default)]
    key_attributes: Vec<String>,
}

async fn read(dataverse: &Dataverse, name: &str) -> Result<Table, DataverseError> {
    // A logical name is a word; anything else would end up in the address as something else.
    if name.is_empty() || name.len() > 128 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(DataverseError::UnknownTable { table: "(not a name)".into() });
    }
    let mut url = dataverse.url(&format!("EntityDefinitions(LogicalName='{name}')"));
    add_query(
        &mut url,
        &[
            ("$select", "LogicalName,EntitySetName,PrimaryIdAttribute,IsOptimisticConcurrencyEnabled"),
            (
                "$expand",
                "Attributes($select=LogicalName,AttributeTypeName,AttributeOf,IsValidForUpdate,IsValidForRead),\
                 ManyToOneRelationships($select=ReferencingAttribute,ReferencedEntity,ReferencingEntityNavigationPropertyName),\
                 Keys($select=KeyAttributes)",
            ),
        ],
    );
    match dataverse.get::<Described>("dataverse.get_table", url).await {
        Ok(entity) => table(entity).ok_or_else(|| DataverseError::UnknownTable { table: name.to_owned() }),
        Err(error) if error.is_not_found() || error.is_unknown_set() => {
            Err(DataverseError::UnknownTable { table: name.to_owned() })
        }
        Err(error) => Err(error),
    }
}

/// None for a table that the Web API does not serve.
fn table(entity: Described) -> Option<Table> {
    let mut columns: BTreeMap<String, Column> = entity
        .attributes
        .into_iter()
        // A column "of" another one is its shadow (a lookup's name, a picture's address): never written.
        .filter(|attribute| attribute.attribute_of.is_none())
        .map(|attribute| {
            let column = Column {
                kind: attribute.attribute_type_name.map(|named| named.value).unwrap_or_default(),
                updatable: attribute.is_valid_for_update.unwrap_or(false),
                readable: attribute.is_valid_for_read.unwrap_or(true),
                targets: Vec::new(),
            };
            (attribute.logical_name, column)
        })
        .collect();
    for relationship in entity.many_to_one_relationships {
        let Some(column) = columns.get_mut(&relationship.referencing_attribute) else { continue };
        let Some(navigation) = relationship.referencing_entity_navigation_property_name else { continue };
        let target = Target { table: relationship.referenced_entity, navigation };
        if !column.targets.contains(&target) {
            column.targets.push(target);
        }
    }
    Some(Table {
        name: entity.logical_name,
        set: entity.entity_set_name?,
        id_column: entity.primary_id_attribute?,
        versioned: entity.is_optimistic_concurrency_enabled,
        columns,
        keys: entity.keys.into_iter().map(|key| key.key_attributes).collect(),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// An account as Dataverse describes it, shortened.
    pub(in crate::dataverse) fn account() -> Table {
        let column = |name: &str, kind: &str, updatable: bool| {
            json!({"LogicalName": name, "AttributeTypeName": {"Value": kind}, "AttributeOf": null,
                   "IsValidForUpdate": updatable, "IsValidForRead": true})
        };
        let entity = json!({
            "MetadataId": "70816501-edb9-4740-a16c-6a5efbc05d84",
            "LogicalName": "account", "EntitySetName": "accounts", "PrimaryIdAttribute": "accountid",
            "IsOptimisticConcurrencyEnabled": true,
            "Attributes": [
                column("accountid", "UniqueidentifierType", false),
                column("accountnumber", "StringType", true),
                column("numberofemployees", "IntegerType", true),
                column("createdon", "DateTimeType", false),
                column("parentaccountid", "LookupType", true),
                column("ownerid", "OwnerType", true),
                {"LogicalName": "parentaccountidname", "AttributeOf": "parentaccountid", "IsValidForUpdate": false},
            ],
            "ManyToOneRelationships": [
                {"ReferencingAttribute": "parentaccountid", "ReferencedEntity": "account",
                 "ReferencingEntityNavigationPropertyName": "parentaccountid"},
                {"ReferencingAttribute": "ownerid", "ReferencedEntity": "owner",
                 "ReferencingEntityNavigationPropertyName": "ownerid"},
            ],
            "Keys": [{"KeyAttributes": ["accountnumber"]}],
        });
        table(serde_json::from_value(entity).expect("as documented")).expect("served by the Web API")
    }

    #[test]
    fn a_definition_says_what_may_be_written_and_by_which_name() {
        let account = account();
        assert_eq!((account.set.as_str(), account.id_column.as_str()), ("accounts", "accountid"));
        assert!(account.columns["accountnumber"].updatable && !account.columns["createdon"].updatable);
        assert!(!account.columns.contains_key("parentaccountidname"));
        assert_eq!(
            account.columns["ownerid"].targets,
            [Target { table: "owner".into(), navigation: "ownerid".into() }]
        );
        let columns = |columns: Value| columns.as_object().expect("columns").clone();
        assert!(account.has_key(&columns(json!({"accountnumber": "7"}))));
        assert!(!account.has_key(&columns(json!({"accountnumber": "7", "createdon": "x"}))));
    }
}
