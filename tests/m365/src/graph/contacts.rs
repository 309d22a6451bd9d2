//! Personal contacts (<https://learn.microsoft.com/graph/api/user-list-contacts>): the default folder only, and of the
//! addresses only `eq` on `address` can be filtered.

use http::Method;
use serde_json::{Map, Value, json};

use super::access::{self, Entry, Need};
use super::call::{Call, Segment};
use super::event_view::fine_stamp;
use super::ids::{ItemId, Kind};
use super::list;
use super::odata::{self, Filter, Operator, Options};
use super::only;
use super::refusal::{Answer, Refusal, Reply};
use super::schema;
use super::store::{Contact, Happened, Mailbox};
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
    "yomiCompanyName",
    "yomiGivenName",
    "yomiSurname",
    "birthday",
];
const LISTS: &[&str] =
    &["emailAddresses", "imAddresses", "homePhones", "businessPhones", "children", "categories"];

const ADDRESSES: &[&str] = &["homeAddress", "businessAddress", "otherAddress"];

fn show(mailbox: &Mailbox, key: u64, contact: &Contact, call: &Call) -> Value {
    let change_key = mailbox.change_key(contact.change);
    let mut all = json!({
        "@odata.etag": format!("W/\"{change_key}\""),
        "id": mailbox.id(Kind::Contact, key, (!call.prefer.immutable).then_some(1)),
        "createdDateTime": fine_stamp(contact.created),
        "lastModifiedDateTime": fine_stamp(contact.modified),
        "changeKey": change_key,
        "parentFolderId": mailbox.folder_id(0),
    });
    for (names, unset) in [(TEXTS, Value::Null), (LISTS, json!([])), (ADDRESSES, json!({}))] {
        for name in names {
            let value = contact.props.get(*name).filter(|value| !value.is_null());
            all[*name] = value.unwrap_or(&unset).clone();
        }
    }
    all
}

/// The properties of a body.
fn read(call: &Call) -> Result<Map<String, Value>, Refusal> {
    call.wants_json()?;
    let mut map = schema::object(&call.body)?;
    // The sample of contact-update sends `"birthday": "1974-07-22"`.
    if let Some(Value::String(day)) = map.get_mut("birthday")
        && day.parse::<chrono::NaiveDate>().is_ok()
    {
        day.push_str("T00:00:00Z");
    }
    schema::entity("contact", &mut map)?;
    map.retain(|name, _| !name.contains('@'));
    Ok(map)
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
    let need = if call.method == Method::GET { Need::ContactsRead } else { Need::ContactsWrite };
    let entry = access::enter(sim, &call.caller, owner, need)?;
    let names = call.names();
    match &names[at..] {
        ["contacts"] => collection(sim, call, &entry, false),
        ["contacts", "$count"] => {
            only(call, &[Method::GET])?;
            collection(sim, call, &entry, true)
        }
        ["contacts", _] => one(sim, call, &entry, &call.segments[at + 1]),
        // Folders beside the default one are not simulated.
        ["contactfolders"] => {
            only(call, &[Method::GET])?;
            Ok(Reply::json(
                200,
                json!({
                    "@odata.context": format!("{}/$metadata#users('{}')/contactFolders", call.base, entry.owner.oid), "value": [],
                }),
            ))
        }
        _ => Err(Refusal::no_segment(&call.segments[at].raw)),
    }
}

/// <https://learn.microsoft.com/graph/api/contact-get>, `contact-update`, `contact-delete`
fn one(sim: &Sim, call: &Call, entry: &Entry, id: &Segment) -> Answer {
    only(call, &[Method::GET, Method::PATCH, Method::DELETE])?;
    let options = Options::read(&call.query, "contact")?;
    let parsed =
        ItemId::parse(&id.raw).filter(|id| id.kind == Kind::Contact).ok_or_else(Refusal::malformed_id)?;
    let mut graph = sim.graph();
    let mailbox = graph.ensure(&entry.owner);
    if parsed.mailbox != mailbox.guid || !mailbox.contacts.contains_key(&parsed.key) {
        return Err(Refusal::not_found());
    }
    if call.method == Method::DELETE {
        mailbox.contacts.remove(&parsed.key);
        mailbox.note_contact(parsed.key, Happened::Removed);
        return Ok(Reply::empty(204));
    }
    if call.method == Method::PATCH {
        let changed = read(call)?;
        let change = mailbox.note_contact(parsed.key, Happened::Updated);
        let contact = mailbox.contacts.get_mut(&parsed.key).ok_or_else(Refusal::not_found)?;
        contact.props.extend(changed);
        (contact.change, contact.modified) = (change, call.now);
    }
    entity(mailbox, call, entry, parsed.key, 200, &options)
}

fn entity(mailbox: &Mailbox, call: &Call, entry: &Entry, key: u64, status: u16, options: &Options) -> Answer {
    let contact = mailbox.contacts.get(&key).ok_or_else(Refusal::not_found)?;
    let mut body = super::folders::select(show(mailbox, key, contact, call), options, &["@odata.etag", "id"]);
    body["@odata.context"] = format!(
        "{}/$metadata#users('{}')/contacts{}/$entity",
        call.base,
        entry.owner.oid,
        options.context_suffix()
    )
    .into();
    Ok(Reply::json(status, body))
}

/// "The contact's display name": made of the names when it is not sent.
fn name(props: &mut Map<String, Value>) {
    if props.get("displayName").is_some_and(Value::is_string) {
        return;
    }
    let parts: Vec<&str> =
        ["givenName", "surname"].iter().filter_map(|name| props.get(*name)?.as_str()).collect();
    if !parts.is_empty() {
        let whole = parts.join(" ");
        props.insert("displayName".into(), whole.into());
    }
}

fn collection(sim: &Sim, call: &Call, entry: &Entry, counted: bool) -> Answer {
    let options = Options::read(&call.query, "contact")?;
    if let Some(filter) = &options.filter {
        check(filter)?;
    }
    let mut graph = sim.graph();
    let mailbox = graph.ensure(&entry.owner);
    match call.method {
        Method::POST => {
            let mut props = read(call)?;
            name(&mut props);
            let key = mailbox.key();
            let change = mailbox.note_contact(key, Happened::Created);
            let contact = Contact { change, created: call.now, modified: call.now, props };
            mailbox.contacts.insert(key, contact);
            entity(mailbox, call, entry, key, 201, &Options::default())
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
            if counted {
                return Ok(list::plain_count(all.len()));
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
