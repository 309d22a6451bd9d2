//! Mail folders: well-known names in place of ids, children by children, hidden ones only when asked for, search folders
//! among them (<https://learn.microsoft.com/graph/api/user-list-mailfolders>).

use http::Method;
use serde_json::{Map, Value, json};

use super::access::Entry;
use super::call::{Call, Segment};
use super::ids::{ItemId, Kind, in_context};
use super::list;
use super::mail::Scope;
use super::odata::{self, Options};
use super::only;
use super::refusal::{Answer, Content, Refusal, Reply};
use super::schema;
use super::send::missing;
use super::store::{Folder, Mailbox, SearchFolder};
use crate::Sim;

pub(crate) fn find(mailbox: &Mailbox, id: &Segment) -> Result<u64, Refusal> {
    if let Some(key) = mailbox.well_known(&id.name) {
        return Ok(key);
    }
    let parsed =
        ItemId::parse(&id.raw).filter(|id| id.kind == Kind::Folder).ok_or_else(Refusal::malformed_id)?;
    match mailbox.folders.get(&parsed.key) {
        Some(folder) if parsed.mailbox == mailbox.guid && !folder.deleted => Ok(folder.key),
        // An id of another mailbox, or of a folder that is gone.
        _ => Err(Refusal::new(
            404,
            "ErrorItemNotFound",
            "The specified object was not found in the store., The process failed to get the correct properties.",
        )),
    }
}

fn show(mailbox: &Mailbox, folder: &Folder, options: &Options) -> Value {
    let (total, unread) = if folder.search.is_none() {
        let unread =
            folder.items.iter().filter(|(_, key)| mailbox.messages.get(key).is_some_and(|m| !m.read)).count();
        (folder.items.len(), unread)
    } else {
        let keys = list::matching(mailbox, Scope::Folder(folder.key), None);
        let unread = keys.iter().filter(|key| mailbox.messages.get(key).is_some_and(|m| !m.read)).count();
        (keys.len(), unread)
    };
    let mut all = json!({
        "id": mailbox.folder_id(folder.key),
        "displayName": folder.name,
        "parentFolderId": folder.parent.map(|parent| mailbox.folder_id(parent)),
        "childFolderCount": mailbox.children(folder.key).count(),
        "unreadItemCount": unread,
        "totalItemCount": total,
        "isHidden": folder.hidden,
    });
    if let Some(search) = &folder.search {
        all["@odata.type"] = "#microsoft.graph.mailSearchFolder".into();
        all["isSupported"] = true.into();
        all["includeNestedFolders"] = search.nested.into();
        all["sourceFolderIds"] = search.sources.iter().map(|key| mailbox.folder_id(*key)).collect();
        all["filterQuery"] = search.filter.clone().into();
    }
    if options.expands("childFolders").is_some() {
        let plain = Options::default();
        all["childFolders"] = mailbox
            .children(folder.key)
            .filter(|child| !child.hidden)
            .map(|child| show(mailbox, child, &plain))
            .collect();
    }
    select(all, options, &["@odata.type", "id", "childFolders"])
}

/// Keeps what was selected, and what is always there.
pub(crate) fn select(all: Value, options: &Options, always: &[&str]) -> Value {
    let (Some(names), Value::Object(map)) = (&options.select, &all) else { return all };
    let kept: Map<String, Value> = map
        .iter()
        .filter(|(name, _)| always.contains(&name.as_str()) || names.contains(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    Value::Object(kept)
}

fn context(call: &Call, entry: &Entry, mailbox: &Mailbox, parent: Option<u64>, options: &Options) -> String {
    let place = parent
        .map_or_else(String::new, |key| format!("('{}')/childFolders", in_context(&mailbox.folder_id(key))));
    format!(
        "{}/$metadata#users('{}')/mailFolders{place}{}",
        call.base,
        entry.owner.oid,
        options.context_suffix()
    )
}

/// `GET|POST mailFolders` and `GET|POST mailFolders/{id}/childFolders`.
pub(crate) fn collection(sim: &Sim, call: &Call, entry: &Entry, parent: Option<u64>) -> Answer {
    only(call, &[Method::GET, Method::POST])?;
    let mut graph = sim.graph();
    let mailbox = graph.ensure(&entry.owner);
    let parent_key = parent.unwrap_or_else(|| mailbox.folder("msgfolderroot"));
    if call.method == Method::POST {
        let key = create(call, mailbox, parent_key)?;
        let folder = mailbox.folders.get(&key).ok_or_else(Refusal::not_found)?;
        let mut body = show(mailbox, folder, &Options::default());
        body["@odata.context"] =
            format!("{}/$entity", context(call, entry, mailbox, parent, &Options::default())).into();
        return Ok(Reply::json(201, body));
    }
    let options = Options::read(&call.query, "mailFolder")?;
    let hidden = call.query("includeHiddenFolders").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let mut all: Vec<Value> = mailbox
        .children(parent_key)
        .filter(|folder| hidden || !folder.hidden)
        .map(|folder| show(mailbox, folder, &Options { select: None, ..options.clone() }))
        .filter(|folder| options.filter.as_ref().is_none_or(|filter| odata::matches(filter, folder)))
        .collect();
    // Outlook lists them by name.
    all.sort_by(|left, right| odata::compare(&left["displayName"], &right["displayName"]));
    if let Some(order) = options.order.first() {
        all.sort_by(|left, right| {
            let ordering = odata::compare(&left[&order.path[0]], &right[&order.path[0]]);
            if order.descending { ordering.reverse() } else { ordering }
        });
    }
    let all = all
        .into_iter()
        .map(|folder| select(folder, &options, &["@odata.type", "id", "childFolders"]))
        .collect();
    let context = context(call, entry, mailbox, parent, &options);
    Ok(list::page(&mut graph, call, &options, 10, &context, all))
}

/// <https://learn.microsoft.com/graph/api/user-post-mailfolders>,
/// <https://learn.microsoft.com/graph/api/mailsearchfolder-post>
fn create(call: &Call, mailbox: &mut Mailbox, parent: u64) -> Result<u64, Refusal> {
    call.wants_json()?;
    let mut map = schema::object(&call.body)?;
    schema::entity("mailFolder", &mut map)?;
    let name = map.get("displayName").and_then(Value::as_str).unwrap_or_default().trim().to_owned();
    if name.is_empty() {
        return Err(Refusal::bad("ErrorInvalidArgument", "The value of 'displayName' must not be empty."));
    }
    if mailbox.children(parent).any(|folder| folder.name.eq_ignore_ascii_case(&name)) {
        return Err(Refusal::new(
            409,
            "ErrorFolderExists",
            "A folder with the specified name already exists.",
        ));
    }
    let search = if let Some(filter) = map.get("filterQuery").and_then(Value::as_str) {
        let filter = search_filter(filter)?;
        let sources = search_sources(mailbox, &map)?;
        let nested = map.get("includeNestedFolders").and_then(Value::as_bool).unwrap_or_default();
        Some(SearchFolder { sources, nested, filter })
    } else {
        None
    };
    let hidden = map.get("isHidden").and_then(Value::as_bool).unwrap_or_default();
    Ok(mailbox.add_folder(&name, Some(parent), hidden, search))
}

fn search_filter(filter: &str) -> Result<String, Refusal> {
    odata::checked_filter(filter, "message")
        .map_err(|refusal| Refusal::bad("ErrorInvalidUrlQueryFilter", refusal.message))?;
    Ok(filter.to_owned())
}

fn search_sources(mailbox: &Mailbox, map: &Map<String, Value>) -> Result<Vec<u64>, Refusal> {
    super::compose::strings(map.get("sourceFolderIds").unwrap_or(&Value::Null))
        .into_iter()
        .map(|id| {
            find(mailbox, &Segment { name: id.to_ascii_lowercase(), raw: id, arguments: String::new() })
        })
        .collect()
}

/// <https://learn.microsoft.com/graph/api/mailsearchfolder-update>: what is not sent stays.
fn changed_search(
    mailbox: &Mailbox,
    search: &SearchFolder,
    map: &Map<String, Value>,
) -> Result<SearchFolder, Refusal> {
    let mut search = search.clone();
    if let Some(filter) = map.get("filterQuery").and_then(Value::as_str) {
        search.filter = search_filter(filter)?;
    }
    if map.contains_key("sourceFolderIds") {
        search.sources = search_sources(mailbox, map)?;
    }
    if let Some(nested) = map.get("includeNestedFolders").and_then(Value::as_bool) {
        search.nested = nested;
    }
    Ok(search)
}

pub(crate) fn count(sim: &Sim, call: &Call, entry: &Entry, parent: Option<u64>) -> Answer {
    only(call, &[Method::GET])?;
    let mut graph = sim.graph();
    let mailbox = graph.ensure(&entry.owner);
    let parent = parent.unwrap_or_else(|| mailbox.folder("msgfolderroot"));
    let found = mailbox.children(parent).filter(|folder| !folder.hidden).count();
    Ok(Reply { body: Content::Bytes("text/plain".into(), found.to_string().into()), ..Reply::empty(200) })
}

pub(crate) fn one(sim: &Sim, call: &Call, entry: &Entry, key: u64) -> Answer {
    only(call, &[Method::GET, Method::PATCH, Method::DELETE])?;
    let options = Options::read(&call.query, "mailFolder")?;
    let mut graph = sim.graph();
    let mailbox = graph.ensure(&entry.owner);
    match call.method {
        Method::PATCH => {
            call.wants_json()?;
            let mut map = schema::object(&call.body)?;
            let folder = mailbox.folders.get(&key).ok_or_else(Refusal::not_found)?;
            let kind = if folder.search.is_some() { "mailSearchFolder" } else { "mailFolder" };
            schema::entity(kind, &mut map)?;
            let search = folder.search.as_ref();
            let search = search.map(|search| changed_search(mailbox, search, &map)).transpose()?;
            let change = mailbox.change();
            let folder = mailbox.folders.get_mut(&key).ok_or_else(Refusal::not_found)?;
            if folder.well_known.is_some() {
                return Err(Refusal::bad("ErrorInvalidArgument", "Distinguished folders can't be renamed."));
            }
            if let Some(name) = map.get("displayName").and_then(Value::as_str) {
                name.clone_into(&mut folder.name);
            }
            folder.search = search;
            folder.change = change;
        }
        Method::DELETE => {
            remove(mailbox, key, call.now)?;
            return Ok(Reply::empty(204));
        }
        _ => {}
    }
    let folder = mailbox.folders.get(&key).ok_or_else(Refusal::not_found)?;
    let mut body = show(mailbox, folder, &options);
    body["@odata.context"] = format!("{}/$entity", context(call, entry, mailbox, None, &options)).into();
    Ok(Reply::json(200, body))
}

/// <https://learn.microsoft.com/graph/api/mailfolder-delete>: what was in it goes to the Deleted Items.
fn remove(mailbox: &mut Mailbox, key: u64, now: chrono::DateTime<chrono::Utc>) -> Result<(), Refusal> {
    let bin = mailbox.folder("deleteditems");
    let items: Vec<u64> = {
        let folder = mailbox.folders.get(&key).ok_or_else(Refusal::not_found)?;
        if folder.well_known.is_some() {
            return Err(Refusal::bad(
                "ErrorDeleteDistinguishedFolder",
                "Distinguished folders can't be deleted.",
            ));
        }
        folder.items.iter().map(|(_, item)| *item).collect()
    };
    for item in items {
        mailbox.relocate(item, bin, now);
    }
    let change = mailbox.change();
    if let Some(folder) = mailbox.folders.get_mut(&key) {
        folder.deleted = true;
        folder.change = change;
    }
    Ok(())
}

/// <https://learn.microsoft.com/graph/api/mailfolder-move>
pub(crate) fn relocate(sim: &Sim, call: &Call, entry: &Entry, key: u64, verb: &str) -> Answer {
    only(call, &[Method::POST])?;
    call.wants_json()?;
    if verb == "copy" {
        return Err(Refusal::unsupported("mailFolder: copy"));
    }
    let parameters = schema::parameters(verb, &[("DestinationId", "Edm.String")], &call.body)?;
    let to = parameters
        .get("DestinationId")
        .and_then(Value::as_str)
        .ok_or_else(|| missing(verb, "DestinationId"))?;
    let mut graph = sim.graph();
    let mailbox = graph.ensure(&entry.owner);
    let parent = find(
        mailbox,
        &Segment { raw: to.to_owned(), name: to.to_ascii_lowercase(), arguments: String::new() },
    )?;
    let change = mailbox.change();
    let folder = mailbox.folders.get_mut(&key).ok_or_else(Refusal::not_found)?;
    folder.parent = Some(parent);
    folder.change = change;
    let folder = mailbox.folders.get(&key).ok_or_else(Refusal::not_found)?;
    let mut body = show(mailbox, folder, &Options::default());
    body["@odata.context"] =
        format!("{}/$entity", context(call, entry, mailbox, None, &Options::default())).into();
    Ok(Reply::json(201, body))
}

/// <https://learn.microsoft.com/graph/api/mailfolder-delta>: the whole tree, flat; hidden folders as well. Coverage is
/// UNVERIFIED, which is why clients are told to recurse.
pub(crate) fn delta(sim: &Sim, call: &Call, entry: &Entry) -> Answer {
    only(call, &[Method::GET])?;
    let options = Options::read(&call.query, "mailFolder")?;
    let mut graph = sim.graph();
    let mailbox = graph.ensure(&entry.owner);
    let (since, after) = match call.query("deltatoken").or(call.query("skiptoken")) {
        None => (0, 0),
        Some(token) => {
            let mut parts = token.split('.').map(str::parse::<u64>);
            match (parts.next(), parts.next()) {
                (Some(Ok(since)), Some(Ok(after))) => (since, after),
                _ => return Err(Refusal::new(410, "SyncStateNotFound", "The sync state is not found.")),
            }
        }
    };
    let size = call.prefer.page_size.or(options.top).unwrap_or(10);
    let root = mailbox.folder("msgfolderroot");
    let changed: Vec<&Folder> = mailbox
        .folders
        .values()
        .filter(|folder| {
            folder.key != root && folder.parent.is_some() && folder.change > since && folder.key > after
        })
        .filter(|folder| since > 0 || !folder.deleted)
        .collect();
    let page: Vec<Value> = changed
        .iter()
        .take(size)
        .map(|folder| {
            if folder.deleted {
                json!({"id": mailbox.folder_id(folder.key), "@removed": {"reason": "deleted"}})
            } else {
                show(mailbox, folder, &options)
            }
        })
        .collect();
    let mut body = json!({
        "@odata.context": format!("{}/$metadata#Collection(microsoft.graph.mailFolder)", call.base),
        "value": page,
    });
    let mut query: Vec<(String, String)> =
        call.query.iter().filter(|(name, _)| name == "$select").cloned().collect();
    match changed.get(size.saturating_sub(1)) {
        Some(last) if changed.len() > size => {
            query.push(("$skiptoken".into(), format!("{since}.{}", last.key)));
            body["@odata.nextLink"] = call.link(&query).into();
        }
        _ => {
            query.push(("$deltatoken".into(), format!("{}.0", mailbox.last_change())));
            body["@odata.deltaLink"] = call.link(&query).into();
        }
    }
    Ok(Reply::json(200, body))
}
