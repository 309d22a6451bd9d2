//! Rows as JSON, with the annotations that `Prefer: odata.include-annotations` asks for.
//!
//! `webapi/compose-http-requests-handle-errors#request-annotations`, `webapi/web-api-properties`.

use http::HeaderMap;
use serde_json::{Map, Value};

use super::schema::{Kind, Table};
use super::store::{Organisation, Row, reference};

#[derive(Clone, Debug, Default)]
pub(crate) struct Annotations(Vec<String>);

/// What `Prefer` says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Preferences {
    pub(crate) representation: bool,
    pub(crate) page_size: Option<usize>,
    pub(crate) annotations: Annotations,
    pub(crate) continue_on_error: bool,
}

impl Annotations {
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => pattern == name,
        })
    }

    pub(crate) fn any(&self) -> bool {
        !self.0.is_empty()
    }
}

impl Preferences {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        for value in headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok()) {
            for part in split_preferences(value) {
                let (name, value) = part.split_once('=').unwrap_or((part, ""));
                let value = value.trim().trim_matches('"');
                match name.trim() {
                    "return" => found.representation = value == "representation",
                    "odata.maxpagesize" => found.page_size = value.parse().ok(),
                    "odata.include-annotations" => {
                        found.annotations.0 = value.split(',').map(|name| name.trim().to_owned()).collect();
                    }
                    "odata.continue-on-error" => found.continue_on_error = true,
                    _ => {}
                }
            }
        }
        found
    }
}

/// Commas inside quotes belong to the list of annotations.
fn split_preferences(value: &str) -> Vec<&str> {
    let (mut parts, mut start, mut quoted) = (Vec::new(), 0, false);
    for (at, c) in value.char_indices() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => {
                parts.push(value[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(value[start..].trim());
    parts
}

pub(crate) fn etag(row: &Row) -> String {
    format!("W/\"{}\"", row.version)
}

pub(crate) fn render(
    org: &Organisation,
    table: &Table,
    row: &Row,
    select: Option<&[String]>,
    annotations: &Annotations,
) -> Map<String, Value> {
    let mut shown = Map::new();
    shown.insert("@odata.etag".into(), Value::String(etag(row)));
    let wanted = |property: &str, column: &str| match select {
        None => true,
        Some(names) => names.iter().any(|name| {
            name == property || table.navigation(name).is_some_and(|relation| relation.column == column)
        }),
    };
    for column in &table.columns {
        if column.attribute_of.is_some() || !column.read {
            continue;
        }
        let value = row.values.get(&column.logical).cloned().unwrap_or_default();
        if !column.kind.is_lookup() {
            if column.logical == table.id || wanted(&column.logical, &column.logical) {
                if let Some(text) = formatted(&column.kind, &value)
                    && annotations.wants("OData.Community.Display.V1.FormattedValue")
                {
                    let name = format!("{}@OData.Community.Display.V1.FormattedValue", column.logical);
                    shown.insert(name, Value::String(text));
                }
                shown.insert(column.logical.clone(), value);
            }
            continue;
        }
        let property = format!("_{}_value", column.logical);
        if !wanted(&property, &column.logical) {
            continue;
        }
        let Some((target, id)) = reference(&value) else {
            shown.insert(property, Value::Null);
            continue;
        };
        let mut note = |name: &str, text: String| {
            if annotations.wants(name) {
                shown.insert(format!("{property}@{name}"), Value::String(text));
            }
        };
        note("Microsoft.Dynamics.CRM.lookuplogicalname", target.to_owned());
        let relation = table.relations.iter().find(|r| r.column == column.logical && r.target == target);
        if let Some(relation) = relation {
            note("Microsoft.Dynamics.CRM.associatednavigationproperty", relation.navigation.clone());
        }
        let name = org
            .table(target)
            .and_then(|table| org.row(target, id)?.values.get(table.name)?.as_str().map(str::to_owned));
        note("OData.Community.Display.V1.FormattedValue", name.unwrap_or_default());
        shown.insert(property, Value::String(id.to_owned()));
    }
    shown
}

fn formatted(kind: &Kind, value: &Value) -> Option<String> {
    match (kind, value) {
        (_, Value::Null) => None,
        (Kind::Boolean, Value::Bool(yes)) => Some(if *yes { "Yes" } else { "No" }.to_owned()),
        (Kind::Picklist(all) | Kind::State(all) | Kind::Status(all), value) => {
            let number = value.as_i64()?;
            all.iter().find(|choice| choice.value == number).map(|choice| choice.label.to_owned())
        }
        (Kind::MultiSelect(all), Value::String(text)) => {
            let labels: Vec<&str> = text
                .split(',')
                .filter_map(|word| word.trim().parse::<i64>().ok())
                .filter_map(|number| all.iter().find(|choice| choice.value == number))
                .map(|choice| choice.label)
                .collect();
            Some(labels.join("; "))
        }
        (Kind::Money { .. }, value) => value.as_f64().map(|number| format!("€{number:.2}")),
        (Kind::Integer { .. } | Kind::Decimal { .. } | Kind::Double { .. }, value) => Some(value.to_string()),
        (Kind::DateTime { .. }, Value::String(text)) => Some(text.clone()),
        _ => None,
    }
}
