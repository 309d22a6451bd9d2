//! `EntityDefinitions`: the model, told in the words of the metadata API.
//!
//! `webapi/query-metadata-web-api`: no paging; type-specific properties only after a cast; a property that the (uncast)
//! type does not have cannot be selected.

mod attribute;

use serde_json::{Map, Value, json};
use uuid::Uuid;

use attribute::{attribute, base_attribute};

use super::address::{Key, Segment};
use super::error::CrmError;
use super::filter;
use super::query::Options;
use super::render::Annotations;
use super::schema::{Column, Relation, Table};
use super::store::Organisation;

const NAMESPACE: Uuid = Uuid::from_u128(0x3f5c_2a30_0000_4000_8000_0000_00da_7a7e);

fn id_of(name: &str) -> Value {
    json!(Uuid::new_v5(&NAMESPACE, name.as_bytes()).to_string())
}

fn label(text: &str) -> Value {
    let one = json!({"Label": text, "LanguageCode": 1033, "IsManaged": true, "MetadataId": id_of(text), "HasChanged": null});
    json!({"LocalizedLabels": [one], "UserLocalizedLabel": one})
}

fn managed(value: bool) -> Value {
    json!({"Value": value, "CanBeChanged": false, "ManagedPropertyLogicalName": "canmodify"})
}

pub(crate) fn serve(
    org: &Organisation,
    segments: &[Segment],
    options: &Options,
    annotations: &Annotations,
    base: &str,
) -> Result<Value, CrmError> {
    let (first, rest) = segments.split_first().ok_or_else(|| CrmError::no_segment(""))?;
    let Some(key) = &first.key else {
        let tables = org.tables.iter().map(|table| entity(table, options)).collect::<Result<Vec<_>, _>>()?;
        let value = filtered(tables, options)?;
        let mut body =
            json!({"@odata.context": format!("{base}$metadata#EntityDefinitions"), "value": value});
        if annotations.wants("Microsoft.Dynamics.CRM.globalmetadataversion") {
            body["@Microsoft.Dynamics.CRM.globalmetadataversion"] = json!(org.metadata_version.to_string());
        }
        return Ok(body);
    };
    let table = find(org, key)?;
    let Some((what, rest)) = rest.split_first() else {
        let mut shown = project(entity(table, options)?, options, "EntityMetadata")?;
        shown.insert("@odata.context".into(), json!(format!("{base}$metadata#EntityDefinitions/$entity")));
        return Ok(Value::Object(shown));
    };
    let context = format!("{base}$metadata#EntityDefinitions('{}')/{}", table.logical, what.name);
    match what.name.as_str() {
        "Attributes" => attributes(table, what, rest, options, &context),
        "ManyToOneRelationships" => {
            many(table.relations.iter().map(|r| relation(table, r)), options, &context)
        }
        "OneToManyRelationships" => {
            let all = org.tables.iter().flat_map(|other| {
                other.relations.iter().filter(|r| r.target == table.logical).map(|r| relation(other, r))
            });
            many(all, options, &context)
        }
        "Keys" => many(table.keys.iter().map(|key| key_json(table, key)), options, &context),
        other => Err(CrmError::no_segment(other)),
    }
}

fn find<'a>(org: &'a Organisation, key: &Key) -> Result<&'a Table, CrmError> {
    let found = match key {
        Key::Id(id) => org.tables.iter().find(|table| id_of(table.logical) == id.as_str()),
        Key::Alternate(values) => match values.as_slice() {
            [(name, value)] if name == "LogicalName" => {
                org.tables.iter().find(|table| value == table.logical)
            }
            _ => return Err(CrmError::query("The key in the request URI is not valid.")),
        },
    };
    found.ok_or_else(|| {
        let message = format!("Could not find an entity with specified logical name: {key:?}");
        CrmError::new(http::StatusCode::NOT_FOUND, "0x80060888", message)
    })
}

fn many(all: impl Iterator<Item = Value>, options: &Options, context: &str) -> Result<Value, CrmError> {
    let value = filtered(all.collect(), options)?;
    Ok(json!({"@odata.context": context, "value": value}))
}

fn filtered(all: Vec<Value>, options: &Options) -> Result<Vec<Value>, CrmError> {
    let filter = options.filter.as_deref().map(filter::parse).transpose()?;
    let mut kept = Vec::new();
    for item in all {
        let holds = match &filter {
            None => true,
            Some(filter) => filter.holds(&|path| {
                let mut value = &item;
                for step in path.split('/') {
                    value = value.get(step).ok_or_else(|| CrmError::no_property(path, "Metadata"))?;
                }
                Ok(value.clone())
            })?,
        };
        if holds {
            kept.push(Value::Object(project(item, options, "Metadata")?));
        }
    }
    Ok(kept)
}

/// Keeps what was selected and expanded; the id and the type always stay.
fn project(item: Value, options: &Options, kind: &str) -> Result<Map<String, Value>, CrmError> {
    let Value::Object(all) = item else { return Ok(Map::new()) };
    let Some(select) = &options.select else { return Ok(all) };
    for name in select {
        if !all.contains_key(name) {
            return Err(CrmError::no_property(name, kind));
        }
    }
    let expanded = |name: &str| options.expand.iter().any(|(wanted, _)| wanted == name);
    Ok(all
        .into_iter()
        .filter(|(name, _)| {
            select.contains(name) || expanded(name) || name == "MetadataId" || name.starts_with("@odata.")
        })
        .collect())
}

fn entity(table: &Table, options: &Options) -> Result<Value, CrmError> {
    let mut all = json!({
        "MetadataId": id_of(table.logical),
        "LogicalName": table.logical,
        "SchemaName": table.schema,
        "EntitySetName": table.set,
        "LogicalCollectionName": table.set,
        "CollectionSchemaName": table.set,
        "PrimaryIdAttribute": table.id,
        "PrimaryNameAttribute": table.name,
        "PrimaryImageAttribute": null,
        "ObjectTypeCode": table.number,
        "DisplayName": label(table.label),
        "DisplayCollectionName": label(table.set),
        "Description": label(&format!("{} of the simulated organisation.", table.label)),
        "IsActivity": table.is_activity,
        "IsIntersect": false,
        "IsPrivate": false,
        "IsCustomEntity": table.is_custom(),
        "IsManaged": !table.is_custom(),
        "IsOptimisticConcurrencyEnabled": table.optimistic,
        "IsValidForAdvancedFind": true,
        "IsLogicalEntity": false,
        "IsActivityParty": false,
        "IsChildEntity": false,
        "HasNotes": table.user_owned && table.logical != "annotation",
        "HasActivities": matches!(table.logical, "account" | "contact" | "lead" | "opportunity" | "incident"),
        "IsCustomizable": managed(true),
        "IsDuplicateDetectionEnabled": managed(matches!(table.logical, "account" | "contact" | "lead")),
        "TableType": "Standard",
        "DataProviderId": null,
        "OwnershipType": if table.user_owned { "UserOwned" } else { "BusinessOwned" },
        "CanTriggerWorkflow": true,
        "ChangeTrackingEnabled": true,
    });
    for (name, inner) in &options.expand {
        let value = match name.as_str() {
            "Attributes" => {
                filtered(table.columns.iter().map(|c| base_attribute(table, c)).collect(), inner)?
            }
            "ManyToOneRelationships" => {
                filtered(table.relations.iter().map(|r| relation(table, r)).collect(), inner)?
            }
            "Keys" => filtered(table.keys.iter().map(|key| key_json(table, key)).collect(), inner)?,
            other => return Err(CrmError::no_property(other, "EntityMetadata")),
        };
        all[name.as_str()] = Value::Array(value);
    }
    Ok(all)
}

fn attributes(
    table: &Table,
    segment: &Segment,
    rest: &[Segment],
    options: &Options,
    context: &str,
) -> Result<Value, CrmError> {
    let cast = rest.first().map(|segment| segment.name.as_str());
    let cast = match cast {
        None => None,
        Some(name) => Some(
            name.strip_prefix("Microsoft.Dynamics.CRM.")
                .filter(|name| name.ends_with("AttributeMetadata") && *name != "EnumAttributeMetadata")
                .ok_or_else(|| CrmError::no_segment(name))?,
        ),
    };
    for (name, _) in &options.expand {
        let choices = cast.is_some_and(|cast| {
            ["Picklist", "MultiSelectPicklist", "State", "Status", "Boolean"]
                .iter()
                .any(|kind| cast == format!("{kind}AttributeMetadata"))
        });
        if !(choices && (name == "OptionSet" || name == "GlobalOptionSet")) {
            return Err(CrmError::no_property(name, cast.unwrap_or("AttributeMetadata")));
        }
    }
    let show = |column: &Column| match (cast, options.select.is_some()) {
        // Uncast, only the common properties can be selected.
        (None, true) => base_attribute(table, column),
        (None, false) => {
            let mut all = attribute(table, column);
            if let Some(all) = all.as_object_mut() {
                all.remove("OptionSet");
                all.remove("GlobalOptionSet");
            }
            all
        }
        (Some(_), _) => {
            let mut all = attribute(table, column);
            if let Some(all) = all.as_object_mut() {
                all.remove("@odata.type");
                for name in ["OptionSet", "GlobalOptionSet"] {
                    if !options.expand.iter().any(|(wanted, _)| wanted == name) {
                        all.remove(name);
                    }
                }
            }
            all
        }
    };
    let is_cast = |column: &&Column| cast.is_none_or(|cast| column.kind.names().2 == cast);
    if let Some(key) = &segment.key {
        let name = match key {
            Key::Alternate(values) if values.len() == 1 && values[0].0 == "LogicalName" => {
                values[0].1.as_str().unwrap_or_default().to_owned()
            }
            Key::Id(id) => table
                .columns
                .iter()
                .find(|column| id_of(&format!("{}.{}", table.logical, column.logical)) == id.as_str())
                .map(|column| column.logical.clone())
                .unwrap_or_default(),
            Key::Alternate(_) => return Err(CrmError::query("The key in the request URI is not valid.")),
        };
        let column = table.columns.iter().filter(is_cast).find(|column| column.logical == name);
        let column = column.ok_or_else(|| {
            let message = format!("Could not find an attribute with specified name: {name}");
            CrmError::new(http::StatusCode::NOT_FOUND, "0x80060888", message)
        })?;
        let mut shown = project(show(column), options, "AttributeMetadata")?;
        shown.insert("@odata.context".into(), json!(format!("{context}/$entity")));
        return Ok(Value::Object(shown));
    }
    many(table.columns.iter().filter(is_cast).map(show), options, context)
}

fn relation(table: &Table, relation: &Relation) -> Value {
    json!({
        "MetadataId": id_of(&relation.schema),
        "SchemaName": relation.schema,
        "RelationshipType": "OneToManyRelationship",
        "ReferencingEntity": table.logical,
        "ReferencingAttribute": relation.column,
        "ReferencingEntityNavigationPropertyName": relation.navigation,
        "ReferencedEntity": relation.target,
        "ReferencedAttribute": if matches!(relation.target, "task" | "phonecall") { "activityid".to_owned() } else { format!("{}id", relation.target) },
        "ReferencedEntityNavigationPropertyName": relation.collection,
        "IsCustomRelationship": table.is_custom(),
        "IsHierarchical": false,
    })
}

fn key_json(table: &Table, key: &super::schema::Key) -> Value {
    json!({
        "MetadataId": id_of(&format!("{}.{}", table.logical, key.schema)),
        "LogicalName": key.schema,
        "SchemaName": key.schema,
        "EntityLogicalName": table.logical,
        "KeyAttributes": key.columns,
        "EntityKeyIndexStatus": "Active",
        "DisplayName": label(key.schema),
        "IsManaged": false,
    })
}
