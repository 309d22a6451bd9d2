//! Below a row: a single property, what a lookup points to, and the lookup itself (`$ref`).
//!
//! `webapi/associate-disassociate-entities-using-web-api`, `webapi/update-delete-entities-using-web-api`.

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::{Call, Reply};
use crate::dataverse::address::{Key, Segment};
use crate::dataverse::error::CrmError;
use crate::dataverse::render::etag;
use crate::dataverse::rights::Rules;
use crate::dataverse::store::{Actor, Operation, Organisation, reference};
use crate::dataverse::{payload, query};

impl Call<'_> {
    /// A property of a row, or what a lookup of it points to.
    pub(super) fn below(
        &self,
        org: &mut Organisation,
        rules: &mut Rules,
        actor: &Actor,
        key: &Key,
        rest: &[Segment],
    ) -> Result<Reply, CrmError> {
        let row = self.find(org, key)?.ok_or_else(|| self.missing(key))?;
        let name = rest[0].name.as_str();
        let is_ref = rest.get(1).is_some_and(|segment| segment.name == "$ref");
        let relation = self.table.navigation(name).cloned();
        let method = self.request.method.as_str();
        let changes = match (method, &relation, is_ref) {
            ("GET", Some(relation), false) if rest.len() == 1 => {
                rules.check(actor, relation.target, Operation::Read, None)?;
                let found = row.values.get(&relation.column).and_then(reference);
                let found = found.filter(|(target, _)| *target == relation.target);
                let Some((target, id)) = found else { return Ok(Reply::empty(StatusCode::NO_CONTENT)) };
                let table = org.table(target).cloned().ok_or_else(|| CrmError::no_segment(name))?;
                let row = org.required_row(&table, id)?;
                let inner = Call {
                    table,
                    preferences: self.preferences.clone(),
                    options: self.options.clone(),
                    request: self.request,
                };
                return Ok(Reply::json(StatusCode::OK, inner.shown(org, &row)?).with("etag", etag(&row)));
            }
            ("GET", None, false) if self.table.column(name).is_some() => {
                rules.check(actor, self.table.logical, Operation::Read, Some(&row.id))?;
                let value = row.values.get(name).cloned().unwrap_or_default();
                let context = format!("{}$metadata#{}({})/{name}", self.request.base, self.table.set, row.id);
                return Ok(if value.is_null() {
                    Reply::empty(StatusCode::NO_CONTENT)
                } else {
                    Reply::json(StatusCode::OK, json!({"@odata.context": context, "value": value}))
                });
            }
            ("GET", None, false) if rest.len() == 1 => {
                let (table, column) =
                    query::collection(org, &self.table, name).ok_or_else(|| CrmError::no_segment(name))?;
                rules.check(actor, table.logical, Operation::Read, None)?;
                let request = self.request;
                let link = format!("{}/{name}", self.address(&row.id));
                let place = (request.base.as_str(), link.as_str(), request.query.as_str());
                let (annotations, size) = (&self.preferences.annotations, self.preferences.page_size);
                let within = Some((column.as_str(), row.id.as_str()));
                let body = query::page(org, &table, &self.options, annotations, size, within, place)?;
                return Ok(self.preferred(Reply::json(StatusCode::OK, body)));
            }
            ("DELETE", Some(_), true) => Map::from_iter([(format!("{name}@odata.bind"), Value::Null)]),
            ("PUT", Some(_), true) => {
                let body = self.request.object()?;
                let target = body
                    .get("@odata.id")
                    .cloned()
                    .ok_or_else(|| CrmError::payload("@odata.id is missing."))?;
                Map::from_iter([(format!("{name}@odata.bind"), target)])
            }
            ("PUT", None, false) => {
                let value = self.request.object()?.get("value").cloned();
                let value = value.ok_or_else(|| CrmError::payload("The property 'value' is missing."))?;
                Map::from_iter([(name.to_owned(), value)])
            }
            ("DELETE", None, false) => Map::from_iter([(name.to_owned(), Value::Null)]),
            _ => return Err(CrmError::no_segment(name)),
        };
        self.conditions(Some(&row), key)?;
        let changes = payload::read(org, &self.table, &changes, false)?;
        rules.check(actor, self.table.logical, Operation::Update, Some(&row.id))?;
        rules.plugin(self.table.logical, Operation::Update)?;
        org.update(actor, &self.table, &row.id, changes)?;
        Ok(Reply::empty(StatusCode::NO_CONTENT))
    }
}
