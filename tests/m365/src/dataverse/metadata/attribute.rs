//! Columns in the words of the metadata API.

use serde_json::{Value, json};

use super::{id_of, label, managed};
use crate::dataverse::schema::{Choice, Column, Kind, Required, Table};

/// The properties that every attribute has.
pub(super) fn base_attribute(table: &Table, column: &Column) -> Value {
    let (type_name, attribute_type, metadata_type) = column.kind.names();
    let (level, is_custom) = (column.required, column.logical.starts_with("new_"));
    json!({
        "@odata.type": format!("#Microsoft.Dynamics.CRM.{metadata_type}"),
        "MetadataId": id_of(&format!("{}.{}", table.logical, column.logical)),
        "LogicalName": column.logical,
        "SchemaName": column.schema,
        "EntityLogicalName": table.logical,
        "AttributeType": attribute_type,
        "AttributeTypeName": {"Value": type_name},
        "AttributeOf": column.attribute_of,
        "DisplayName": label(&column.label),
        "Description": label(""),
        "IsValidForCreate": column.create,
        "IsValidForUpdate": column.update,
        "IsValidForRead": column.read,
        "IsPrimaryId": column.logical == table.id,
        "IsPrimaryName": column.logical == table.name,
        "IsCustomAttribute": is_custom,
        "IsLogical": column.attribute_of.is_some(),
        "IsManaged": !is_custom,
        "IsRetrievable": true,
        "IsSearchable": false,
        "IsFilterable": true,
        "IsSortableEnabled": managed(true),
        "IsSecured": false,
        "IsValidODataAttribute": column.attribute_of.is_none(),
        "ColumnNumber": 1,
        "SourceType": 0,
        "RequiredLevel": {
            "Value": match level {
                Required::None => "None",
                Required::SystemRequired => "SystemRequired",
                Required::ApplicationRequired => "ApplicationRequired",
                Required::Recommended => "Recommended",
            },
            "CanBeChanged": level != Required::SystemRequired,
            "ManagedPropertyLogicalName": "canmodifyrequirementlevelsettings",
        },
    })
}

pub(super) fn attribute(table: &Table, column: &Column) -> Value {
    let mut all = base_attribute(table, column);
    let own = match &column.kind {
        Kind::Text { max, format } => {
            json!({"MaxLength": max, "Format": format, "FormatName": {"Value": format}, "DatabaseLength": max * 2})
        }
        Kind::Memo { max } => {
            json!({"MaxLength": max, "Format": "TextArea", "FormatName": {"Value": "TextArea"}})
        }
        Kind::Integer { min, max } => json!({"MinValue": min, "MaxValue": max, "Format": "None"}),
        Kind::BigInt => json!({"MinValue": i64::MIN, "MaxValue": i64::MAX}),
        Kind::Decimal { min, max, precision }
        | Kind::Double { min, max, precision }
        | Kind::Money { min, max, precision } => {
            json!({"MinValue": min, "MaxValue": max, "Precision": precision})
        }
        Kind::Boolean => json!({"DefaultValue": false, "OptionSet": {
            "OptionSetType": "Boolean",
            "TrueOption": {"Value": 1, "Label": label("Yes")}, "FalseOption": {"Value": 0, "Label": label("No")}}}),
        Kind::Picklist(all) | Kind::MultiSelect(all) | Kind::State(all) | Kind::Status(all) => json!({
            "DefaultFormValue": -1, "GlobalOptionSet": null, "OptionSet": option_set(table, column, all)}),
        Kind::DateTime { date_only } => json!({
            "Format": if *date_only { "DateOnly" } else { "DateAndTime" },
            "DateTimeBehavior": {"Value": if *date_only { "DateOnly" } else { "UserLocal" }},
            "ImeMode": "Auto"}),
        Kind::Lookup(targets) | Kind::Customer(targets) => json!({"Targets": targets, "Format": "None"}),
        Kind::Owner => json!({"Targets": ["systemuser", "team"], "Format": "None"}),
        Kind::UniqueId | Kind::EntityName | Kind::Virtual => json!({}),
    };
    if let (Some(all), Value::Object(own)) = (all.as_object_mut(), own) {
        all.extend(own);
    }
    all
}

fn option_set(table: &Table, column: &Column, choices: &[Choice]) -> Value {
    let is_status = matches!(column.kind, Kind::Status(_));
    let options: Vec<Value> = choices
        .iter()
        .map(|choice| {
            let mut option = json!({"Value": choice.value, "Label": label(choice.label), "Description": label(""),
                "Color": null, "IsManaged": true, "ExternalValue": "", "ParentValues": []});
            if is_status {
                option["State"] = json!(choice.state);
            }
            option
        })
        .collect();
    json!({
        "MetadataId": id_of(&format!("{}.{}.options", table.logical, column.logical)),
        "Name": format!("{}_{}", table.logical, column.logical),
        "IsGlobal": false,
        "IsCustomOptionSet": table.is_custom(),
        "OptionSetType": match &column.kind { Kind::State(_) => "State", Kind::Status(_) => "Status", _ => "Picklist" },
        "DisplayName": label(&column.label),
        "Options": options,
    })
}
