//! Personal contacts (<https://learn.microsoft.com/graph/api/user-list-contacts>): the default folder only, and of the
//! addresses only `eq` on `address` can be filtered.

use http::Method;
use serde_json::{Map, Value, json};

use super::access::{self, Entry, Need};
use super::call::Call;
use super::event_view::fine_stamp;
use super::ids::{ItemId, Kind};
use super::list;
use super::odata::{self, Filter, Operator, Options};
use super::refusal::{Answer, Refusal, Reply};
use super::schema;
use super::store::Mailbox;
use crate::Sim;

const TEXTS: &[&str] = &[
    "displayName",
    "givenName",
    "surname",
    "middleName",
    "nickName",
    "title",
    "fileAs",
    "jobTitle",
    "companyName",
    "department",
    "officeLocation",
    "profession",
    "businessHomePage",
    "assistantName",
    "manager",
    "mobilePhone",
    "spouseName",
    "personalNotes",
    "generation",
    "initials",
];
const LISTS: &[&str] =
    &["emailAddresses", "imAddresses", "homePhones", "businessPhones", "children", "categories"];

fn show(mailbox: &Mailbox, key: u64, contact: &Map<String, Value>, call: &Call) -> Value {
    let change_key = mailbox.change_key(key);
    let mut all = json!({
        "@odata.etag": format!("W/\"{change_key}\""),
        "id": mailbox.id(Kind::Contact, key, (!call.prefer.immutable).then_some(1)),
        "createdDateTime": fine_stamp(chrono::DateTime::UNIX_EPOCH),
        "lastModifiedDateTime": fine_stamp(chrono::DateTime::UNIX_EPOCH),
        "changeKey": change_key,
        "parentFolderId": mailbox.folder_id(0),
        "birthday": Value::Null, "homeAddress": {}, "businessAddress": {}, "otherAddress": {},
    });
    for name in TEXTS {
        all[*name] = contact.get(*name).cloned().unwrap_or(Value::Null);
    }
    for name in LISTS {
        all[*name] = contact.get(*name).cloned().unwrap_or_else(|| json!([]));
    }
    all
}

/// `emailAddresses/any(a:a/address eq 'x@y')` and nothing else inside the collection.
fn check(filter: &Filter) -> Result<(), Refusal> {
    match filter {
        Filter::And(left, right) | Filter::Or(left, right) => check(left).and_then(|()| check(right)),
        Filter::Not(inner) => check(inner),
        Filter::Lambda { path, body, .. } if path[0] == "emailAddresses" => match body.as_deref() {
            Some(Filter::Compare(path, Operator::Eq, _))
                if path.last().is_some_and(|last| last == "address") =>
            {
                Ok(())
            }
            _ => Err(Refusal::bad(
                "ErrorInvalidUrlQueryFilter",
                "The filter expression contains property path 'emailAddresses' in any or all that is not supported.",
            )),
        },
        _ => Ok(()),
    }
}

pub(crate) fn handle(sim: &Sim, call: &Call, owner: Option<&str>, at: usize) -> Answer {
    let entry = access::enter(sim, &call.caller, owner, Need::ContactsRead)?;
    let names = call.names();
    match &names[at..] {
        ["contacts"] => collection(sim, call, &entry),
        ["contacts", _] => {
            let parsed = ItemId::parse(&call.segments[at + 1].raw)
                .filter(|id| id.kind == Kind::Contact)
                .ok_or_else(Refusal::malformed_id)?;
            let mut graph = sim.graph();
            let mailbox = graph.ensure(&entry.owner);
            let contact = mailbox.contacts.get(&parsed.key).ok_or_else(Refusal::not_found)?;
            let mut body = show(mailbox, parsed.key, contact, call);
            body["@odata.context"] =
                format!("{}/$metadata#users('{}')/contacts/$entity", call.base, entry.owner.oid).into();
            Ok(Reply::json(200, body))
        }
        ["contactfolders"] => Ok(Reply::json(
            200,
            json!({
                "@odata.context": format!("{}/$metadata#users('{}')/contactFolders", call.base, entry.owner.oid), "value": [],
            }),
        )),
        _ => Err(Refusal::no_segment(&call.segments[at].raw)),
    }
}

fn collection(sim: &Sim, call: &Call, entry: &Entry) -> Answer {
    let options = Options::read(&call.query, "contact")?;
    if let Some(filter) = &options.filter {
        check(filter)?;
    }
    let mut graph = sim.graph();
    let mailbox = graph.ensure(&entry.owner);
    match call.method {
        Method::POST => {
            if !call.caller.has(&["Contacts.ReadWrite", "Contacts.ReadWrite.Shared"]) {
                return Err(Refusal::denied());
            }
            let mut map = schema::object(&call.body)?;
            schema::entity("contact", &mut map)?;
            let key = mailbox.key();
            mailbox.contacts.insert(key, map.clone());
            let mut body = show(mailbox, key, &map, call);
            body["@odata.context"] =
                format!("{}/$metadata#users('{}')/contacts/$entity", call.base, entry.owner.oid).into();
            Ok(Reply::json(201, body))
        }
        Method::GET => {
            let mut all: Vec<Value> = mailbox
                .contacts
                .iter()
                .map(|(key, contact)| show(mailbox, *key, contact, call))
                .filter(|one| options.filter.as_ref().is_none_or(|filter| odata::matches(filter, one)))
                .collect();
            if let Some(search) = &options.search {
                let wanted = search.trim_matches('"').to_lowercase();
                all.retain(|one| one.to_string().to_lowercase().contains(&wanted));
            }
            for order in options.order.iter().rev() {
                all.sort_by(|left, right| {
                    let ordering = odata::compare(&left[&order.path[0]], &right[&order.path[0]]);
                    if order.descending { ordering.reverse() } else { ordering }
                });
            }
            let all = all
                .into_iter()
                .map(|one| super::folders::select(one, &options, &["@odata.etag", "id"]))
                .collect();
            let context = format!(
                "{}/$metadata#users('{}')/contacts{}",
                call.base,
                entry.owner.oid,
                options.context_suffix()
            );
            Ok(list::page(&mut graph, call, &options, 10, &context, all))
        }
        _ => Err(Refusal::method()),
    }
}
