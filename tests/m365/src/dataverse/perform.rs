//! One operation on an organisation, whether it came alone or as a part of a batch.
//!
//! Create and upsert: `webapi/create-entity-web-api`, `use-upsert-insert-update-record`. Conditional headers:
//! `webapi/perform-conditional-operations-using-web-api`.

mod property;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Map, Value, json};

use super::address::{Key, Segment, segments};
use super::error::CrmError;
use super::payload::{self, Changes};
use super::query::{self, Options};
use super::render::{Preferences, etag};
use super::rights::Rules;
use super::schema::Table;
use super::store::{Actor, Operation, Organisation, Row};

pub(crate) struct Request {
    pub(crate) method: Method,
    /// Behind `/api/data/v9.x/`, still percent-encoded.
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// `{environment}/api/data/v9.x/`
    pub(crate) base: String,
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Option<Value>,
}

impl Reply {
    fn empty(status: StatusCode) -> Self {
        Self { status, headers: Vec::new(), body: None }
    }

    fn json(status: StatusCode, body: Value) -> Self {
        Self { status, headers: Vec::new(), body: Some(body) }
    }

    fn with(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    fn object(&self) -> Result<Map<String, Value>, CrmError> {
        let kind = self.header("content-type").unwrap_or_default();
        if !kind.starts_with("application/json") {
            let message = format!("The content type '{kind}' is not supported for this request.");
            return Err(CrmError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "0x80060888", message));
        }
        match serde_json::from_slice(&self.body) {
            Ok(Value::Object(object)) => Ok(object),
            Ok(_) => Err(CrmError::payload("A JSON object was expected.")),
            Err(error) => Err(CrmError::payload(format!("Invalid JSON: {error}"))),
        }
    }
}

pub(crate) fn perform(
    org: &mut Organisation,
    rules: &mut Rules,
    actor: &Actor,
    request: &Request,
) -> Result<Reply, CrmError> {
    check_versions(request)?;
    let path = segments(&request.path)?;
    let Some(first) = path.first() else {
        return Ok(Reply::json(StatusCode::OK, service_document(org, request)));
    };
    let preferences = Preferences::of(&request.headers);
    let options = Options::from_query(&request.query)?;
    match (first.name.as_str(), &request.method) {
        ("WhoAmI", &Method::GET) => {
            let body = json!({
                "@odata.context": format!("{}$metadata#Microsoft.Dynamics.CRM.WhoAmIResponse", request.base),
                "BusinessUnitId": org.business_unit, "UserId": actor.user, "OrganizationId": org.id});
            return Ok(Reply::json(StatusCode::OK, body));
        }
        // A function is only found by GET: `web-api-client-errors`.
        ("WhoAmI", _) => return Err(CrmError::no_segment("WhoAmI")),
        ("EntityDefinitions", &Method::GET) => {
            let body = super::metadata::serve(org, &path, &options, &preferences.annotations, &request.base)?;
            return Ok(Reply::json(StatusCode::OK, body));
        }
        ("EntityDefinitions", _) => {
            let message = "Changing metadata is not simulated.";
            return Err(CrmError::new(StatusCode::NOT_IMPLEMENTED, "0x80040203", message));
        }
        _ => {}
    }
    let table = org.table_of_set(&first.name)?;
    let call = Call { table, preferences, options, request };
    match (&first.key, path.get(1..).unwrap_or_default(), request.method.as_str()) {
        (None, [], "GET") => call.list(org, rules, actor),
        (None, [], "POST") => call.create(org, rules, actor),
        (Some(key), [], "GET") => call.read(org, rules, actor, key),
        (Some(key), [], "PATCH") => call.upsert(org, rules, actor, key),
        (Some(key), [], "DELETE") => call.delete(org, rules, actor, key),
        (Some(key), rest @ [_, ..], _) => call.below(org, rules, actor, key, rest),
        (None, [Segment { name, .. }, ..], _) => Err(CrmError::no_segment(name)),
        _ => {
            let message = "The requested resource does not support this http method.";
            Err(CrmError::new(StatusCode::METHOD_NOT_ALLOWED, "0x80060888", message))
        }
    }
}

fn service_document(org: &Organisation, request: &Request) -> Value {
    let sets: Vec<Value> =
        org.tables.iter().map(|t| json!({"name": t.set, "kind": "EntitySet", "url": t.set})).collect();
    json!({"@odata.context": format!("{}$metadata", request.base), "value": sets})
}

fn check_versions(request: &Request) -> Result<(), CrmError> {
    for name in ["odata-version", "odata-maxversion"] {
        if let Some(value) = request.header(name)
            && !matches!(value, "4.0" | "4.01")
        {
            let message = format!("The value '{value}' of the header '{name}' is not supported.");
            return Err(CrmError::query(message));
        }
    }
    Ok(())
}

struct Call<'a> {
    table: Table,
    preferences: Preferences,
    options: Options,
    request: &'a Request,
}

impl Call<'_> {
    fn address(&self, id: &str) -> String {
        format!("{}{}({id})", self.request.base, self.table.set)
    }

    fn list(&self, org: &Organisation, rules: &mut Rules, actor: &Actor) -> Result<Reply, CrmError> {
        rules.check(actor, self.table.logical, Operation::Read, None)?;
        let link = format!("{}{}", self.request.base, self.table.set);
        let place = (self.request.base.as_str(), link.as_str(), self.request.query.as_str());
        let preferences = &self.preferences;
        let body = query::page(
            org,
            &self.table,
            &self.options,
            &preferences.annotations,
            preferences.page_size,
            None,
            place,
        )?;
        Ok(self.preferred(Reply::json(StatusCode::OK, body)))
    }

    fn preferred(&self, reply: Reply) -> Reply {
        let mut applied = Vec::new();
        if let Some(size) = self.preferences.page_size {
            applied.push(format!("odata.maxpagesize={size}"));
        }
        if self.preferences.annotations.any() {
            applied.push("odata.include-annotations".to_owned());
        }
        if applied.is_empty() { reply } else { reply.with("preference-applied", applied.join(",")) }
    }

    fn shown(&self, org: &Organisation, row: &Row) -> Result<Value, CrmError> {
        query::check(org, &self.table, &self.options)?;
        let mut shown = query::show(org, &self.table, row, &self.options, &self.preferences.annotations)?;
        let fields =
            self.options.select.as_ref().map(|names| format!("({})", names.join(","))).unwrap_or_default();
        let context = format!("{}$metadata#{}{fields}/$entity", self.request.base, self.table.set);
        shown.insert("@odata.context".into(), Value::String(context));
        Ok(Value::Object(shown))
    }

    fn find(&self, org: &Organisation, key: &Key) -> Result<Option<Row>, CrmError> {
        Ok(match key {
            Key::Id(id) => org.row(self.table.logical, id).cloned(),
            Key::Alternate(values) => match values.as_slice() {
                [(name, value)] if name == self.table.id => {
                    org.row(self.table.logical, value.as_str().unwrap_or_default()).cloned()
                }
                _ => {
                    org.by_key(&self.table, values)?.and_then(|id| org.row(self.table.logical, &id).cloned())
                }
            },
        })
    }

    fn missing(&self, key: &Key) -> CrmError {
        match key {
            Key::Id(id) => CrmError::no_row(self.table.schema, id),
            Key::Alternate(_) => CrmError::no_row_by_key(self.table.schema),
        }
    }

    fn read(
        &self,
        org: &Organisation,
        rules: &mut Rules,
        actor: &Actor,
        key: &Key,
    ) -> Result<Reply, CrmError> {
        let row = self.find(org, key)?.ok_or_else(|| self.missing(key))?;
        rules.check(actor, self.table.logical, Operation::Read, Some(&row.id))?;
        let body = self.shown(org, &row)?;
        let tag = etag(&row);
        // A conditional read is never answered 304 with $expand or annotations.
        let plain = self.options.expand.is_empty() && !self.preferences.annotations.any();
        if plain && self.request.header("if-none-match") == Some(tag.as_str()) {
            return Ok(Reply::empty(StatusCode::NOT_MODIFIED).with("etag", tag));
        }
        Ok(self.preferred(Reply::json(StatusCode::OK, body).with("etag", tag)))
    }

    fn create(&self, org: &mut Organisation, rules: &mut Rules, actor: &Actor) -> Result<Reply, CrmError> {
        let changes = payload::read(org, &self.table, &self.request.object()?, true)?;
        rules.check(actor, self.table.logical, Operation::Create, None)?;
        let id = changes.id.clone().unwrap_or_else(|| rules.fresh_id());
        self.insert(org, rules, actor, &id, changes)
    }

    fn insert(
        &self,
        org: &mut Organisation,
        rules: &mut Rules,
        actor: &Actor,
        id: &str,
        changes: Changes,
    ) -> Result<Reply, CrmError> {
        rules.plugin(self.table.logical, Operation::Create)?;
        let row = org.create(actor, &self.table, id, changes)?;
        if self.preferences.representation {
            // With a body there is no OData-EntityId: `create-entity-web-api#create-with-data-returned`.
            return Ok(Reply::json(StatusCode::CREATED, self.shown(org, &row)?)
                .with("preference-applied", "return=representation".into())
                .with("etag", etag(&row)));
        }
        Ok(self.created_or_changed(&row))
    }

    fn created_or_changed(&self, row: &Row) -> Reply {
        let address = self.address(&row.id);
        Reply::empty(StatusCode::NO_CONTENT).with("location", address.clone()).with("odata-entityid", address)
    }

    /// Whether the headers let an existing row be touched, or a missing one be made.
    fn conditions(&self, row: Option<&Row>, key: &Key) -> Result<(), CrmError> {
        if self.request.headers.get_all("if-none-match").iter().count() > 1 {
            return Err(CrmError::query("The header If-None-Match has more than one value."));
        }
        // `If-None-Match: null` is what the documents send with every read; it means nothing here.
        let none_match = self.request.header("if-none-match").filter(|value| *value != "null");
        let if_match = self.request.header("if-match");
        if none_match.is_some() && if_match.is_some() {
            return Err(CrmError::query("If-Match and If-None-Match cannot be used together."));
        }
        match (row, if_match, none_match) {
            (Some(_), None, Some("*")) => Err(CrmError::duplicate_id()),
            (None, Some(_), _) => Err(self.missing(key)),
            (Some(row), Some(tag), _) if tag != "*" => {
                if !self.table.optimistic {
                    let message = format!(
                        "Optimistic concurrency isn't enabled for entity type {}. The IfVersionMatches behavior can only be \
                         used if optimistic concurrency is enabled.",
                        self.table.logical
                    );
                    return Err(CrmError::new(StatusCode::BAD_REQUEST, "0x80060883", message));
                }
                if tag == etag(row) { Ok(()) } else { Err(CrmError::version_mismatch()) }
            }
            _ => Ok(()),
        }
    }

    fn upsert(
        &self,
        org: &mut Organisation,
        rules: &mut Rules,
        actor: &Actor,
        key: &Key,
    ) -> Result<Reply, CrmError> {
        let body = self.request.object()?;
        let row = self.find(org, key)?;
        self.conditions(row.as_ref(), key)?;
        let mut changes = payload::read(org, &self.table, &body, row.is_none())?;
        if let Some(row) = row {
            if let Key::Alternate(values) = key {
                // Key columns in the body are dropped when the row is updated.
                changes.values.retain(|(name, _)| !values.iter().any(|(column, _)| column == name));
            }
            rules.check(actor, self.table.logical, Operation::Update, Some(&row.id))?;
            rules.plugin(self.table.logical, Operation::Update)?;
            let row = org.update(actor, &self.table, &row.id, changes)?;
            if self.preferences.representation {
                return Ok(Reply::json(StatusCode::OK, self.shown(org, &row)?)
                    .with("preference-applied", "return=representation".into())
                    .with("etag", etag(&row)));
            }
            return Ok(self.created_or_changed(&row));
        }
        rules.check(actor, self.table.logical, Operation::Create, None)?;
        let id = match key {
            Key::Id(id) => id.clone(),
            Key::Alternate(values) => {
                for (name, value) in values {
                    // A value in the body wins over the one in the address.
                    if !changes.values.iter().any(|(column, _)| column == name) {
                        changes.values.push((name.clone(), value.clone()));
                        changes.sent.push(name.clone());
                    }
                }
                changes.id.clone().unwrap_or_else(|| rules.fresh_id())
            }
        };
        self.insert(org, rules, actor, &id, changes)
    }

    fn delete(
        &self,
        org: &mut Organisation,
        rules: &mut Rules,
        actor: &Actor,
        key: &Key,
    ) -> Result<Reply, CrmError> {
        let row = self.find(org, key)?.ok_or_else(|| self.missing(key))?;
        self.conditions(Some(&row), key)?;
        rules.check(actor, self.table.logical, Operation::Delete, Some(&row.id))?;
        rules.plugin(self.table.logical, Operation::Delete)?;
        org.delete(actor, &self.table, &row.id)?;
        Ok(Reply::empty(StatusCode::NO_CONTENT))
    }
}
