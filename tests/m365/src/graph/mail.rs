//! Messages: the paths that lead to one, and create, read, update, delete, move, copy
//! (<https://learn.microsoft.com/graph/api/resources/message>). A message is found by id in either format whatever
//! the path says; a default id from before a move finds nothing.

use http::Method;
use serde_json::{Map, Value};

use super::access::{self, Entry, Need};
use super::call::{Call, Segment};
use super::compose::{self, Names};
use super::ids::{ItemId, Kind};
use super::message::{self, Message, View};
use super::odata::{self, Options};
use super::refusal::{Answer, Refusal, Reply};
use super::schema;
use super::store::Mailbox;
use super::{attachments, delta, folders, list, mail_move, mime, only, reply, send};
use crate::Sim;

/// Where a list of messages is taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The whole mailbox, Deleted Items included.
    All,
    Folder(u64),
}

pub(crate) fn handle(sim: &Sim, call: &Call, owner: Option<&str>, at: usize) -> Answer {
    let need = match (&call.method, call.names().last().copied()) {
        (_, Some("send" | "reply" | "replyall" | "forward")) => Need::MailSend,
        // "Mail.ReadBasic" is the least for messages and folders, not for what hangs on a message.
        (&Method::GET, _) if call.names().iter().any(|name| matches!(*name, "attachments" | "$value")) => {
            Need::MailRead
        }
        (&Method::GET, _) => Need::MailBasic,
        _ => Need::MailWrite,
    };
    let entry = access::enter(sim, &call.caller, owner, need)?;
    sim.graph().ensure(&entry.owner);
    if entry.basic {
        access::check_basic(call)?;
        return dispatch(sim, call, &entry, at).map(access::only_basic);
    }
    dispatch(sim, call, &entry, at)
}

fn dispatch(sim: &Sim, call: &Call, entry: &Entry, at: usize) -> Answer {
    let segments = &call.segments[at..];
    if segments[0].name == "messages" {
        return messages(sim, call, entry, Scope::All, &segments[1..]);
    }
    // mailFolders/{id}/childFolders/{id}/…/messages/…
    let mut rest = &segments[1..];
    let mut folder = None;
    loop {
        match rest {
            [] => return folders::collection(sim, call, entry, folder),
            [step] if step.name == "delta" && folder.is_none() => return folders::delta(sim, call, entry),
            [step] if step.name == "$count" => return folders::count(sim, call, entry, folder),
            [id, tail @ ..] => {
                let key = {
                    let mut graph = sim.graph();
                    folders::find(graph.ensure(&entry.owner), id)?
                };
                folder = Some(key);
                match tail {
                    [] => return folders::one(sim, call, entry, key),
                    [step, tail @ ..] if step.name == "messages" => {
                        return messages(sim, call, entry, Scope::Folder(key), tail);
                    }
                    [step, tail @ ..] if step.name == "childfolders" => rest = tail,
                    [step] if matches!(step.name.as_str(), "move" | "copy") => {
                        return folders::relocate(sim, call, entry, key, &step.name);
                    }
                    [step, ..] => return Err(Refusal::no_segment(&step.raw)),
                }
            }
        }
    }
}

fn messages(sim: &Sim, call: &Call, entry: &Entry, scope: Scope, rest: &[Segment]) -> Answer {
    match rest {
        [] if call.method == Method::GET => list::messages(sim, call, entry, scope),
        [] if call.method == Method::POST => create(sim, call, entry, scope),
        [] => Err(Refusal::method()),
        [step] if step.name == "$count" => list::count(sim, call, entry, scope),
        [step] if step.name == "delta" => match scope {
            // Delta exists per folder only (microsoftgraph/microsoft-graph-docs#2153).
            Scope::All => Err(Refusal::bad(
                "ErrorInvalidRequest",
                "Change tracking is not supported against 'microsoft.graph.message' at this scope.",
            )),
            Scope::Folder(folder) => delta::messages(sim, call, entry, folder),
        },
        [id] => match call.method {
            Method::GET => get(sim, call, entry, scope, id),
            Method::PATCH => update(sim, call, entry, scope, id),
            Method::DELETE => delete(sim, call, entry, scope, id),
            _ => Err(Refusal::method()),
        },
        [id, step] if step.name == "$value" => {
            only(call, &[Method::GET])?;
            let mut graph = sim.graph();
            let mailbox = graph.ensure(&entry.owner);
            let key = find(mailbox, scope, id)?;
            let message = mailbox.messages.get(&key).ok_or_else(Refusal::not_found)?;
            Ok(Reply {
                body: super::refusal::Content::Bytes("text/plain".into(), mime::write(message).into()),
                ..Reply::empty(200)
            })
        }
        [id, step] => {
            only(call, &[Method::POST, Method::GET])?;
            match step.name.as_str() {
                "attachments" => attachments::collection(sim, call, entry, scope, id),
                _ if call.method == Method::GET => Err(Refusal::no_segment(&step.raw)),
                "createreply" => reply::create(sim, call, entry, scope, id, reply::Way::Reply),
                "createreplyall" => reply::create(sim, call, entry, scope, id, reply::Way::All),
                "createforward" => reply::create(sim, call, entry, scope, id, reply::Way::Forward),
                "reply" => reply::send_now(sim, call, entry, scope, id, reply::Way::Reply),
                "replyall" => reply::send_now(sim, call, entry, scope, id, reply::Way::All),
                "forward" => reply::send_now(sim, call, entry, scope, id, reply::Way::Forward),
                "send" => send::send_draft(sim, call, entry, scope, id),
                "move" | "copy" => mail_move::relocate(sim, call, entry, scope, id, &step.name),
                "permanentdelete" => {
                    let mut graph = sim.graph();
                    let mailbox = graph.ensure(&entry.owner);
                    let key = find(mailbox, scope, id)?;
                    mailbox.remove(key);
                    Ok(Reply::empty(204))
                }
                _ => Err(Refusal::no_segment(&step.raw)),
            }
        }
        [id, step, rest @ ..] if step.name == "attachments" => {
            attachments::one(sim, call, entry, scope, id, rest)
        }
        [_, step, ..] => Err(Refusal::no_segment(&step.raw)),
    }
}

/// The message an id names.
pub(crate) fn find(mailbox: &Mailbox, scope: Scope, id: &Segment) -> Result<u64, Refusal> {
    let parsed =
        ItemId::parse(&id.raw).filter(|id| id.kind == Kind::Message).ok_or_else(Refusal::malformed_id)?;
    let message = mailbox.messages.get(&parsed.key).ok_or_else(Refusal::not_found)?;
    let current = parsed.stay.is_none_or(|stay| stay == message.stay);
    let inside = match scope {
        Scope::All => true,
        Scope::Folder(folder) => folder == message.folder,
    };
    if parsed.mailbox == mailbox.guid && current && inside {
        Ok(message.key)
    } else {
        Err(Refusal::not_found())
    }
}

/// One message as a response shows it.
pub(crate) fn show(view: &View<'_>, options: &Options) -> Map<String, Value> {
    let mut map = Map::new();
    match &options.select {
        // The etag and the id come along whatever is selected.
        Some(names) => {
            for name in ["@odata.etag", "id"].into_iter().chain(names.iter().map(String::as_str)) {
                if let Some(value) = view.property(name) {
                    map.insert(name.to_owned(), value);
                }
            }
        }
        None => {
            for name in message::DEFAULT {
                if let Some(value) = view.property(name) {
                    map.insert((*name).to_owned(), value);
                }
            }
        }
    }
    for name in ["singleValueExtendedProperties", "multiValueExtendedProperties"] {
        // They are never in a response unless they are expanded
        // (<https://learn.microsoft.com/graph/api/singlevaluelegacyextendedproperty-get>).
        map.remove(name);
        if let Some(expand) = options.expands(name)
            && let Some((_, filter)) = expand.options.iter().find(|(name, _)| name == "filter")
            && let Ok(filter) = odata::parse_filter(filter)
            && let Some(Value::Array(all)) = view.property(name)
        {
            let found: Vec<Value> =
                all.into_iter().filter(|property| odata::matches(&filter, property)).collect();
            if !found.is_empty() {
                map.insert(name.to_owned(), Value::Array(found));
            }
        }
    }
    if let Some(expand) = options.expands("attachments") {
        let names = expand.options.iter().find(|(name, _)| name == "select").map(|(_, names)| names);
        let chosen = Options {
            select: names.map(|names| names.split(',').map(|name| name.trim().to_owned()).collect()),
            ..Options::default()
        };
        let always = ["@odata.type", "@odata.mediaContentType", "id"];
        let content =
            chosen.select.as_ref().is_none_or(|names| names.iter().any(|name| name == "contentBytes"));
        let all = view.message.attachments.iter();
        let all =
            all.map(|one| folders::select(attachments::show(view, one, content), &chosen, &always)).collect();
        map.insert("attachments".to_owned(), all);
    }
    map
}

/// An expanded extended property must say which.
pub(crate) fn check_expand(options: &Options) -> Result<(), Refusal> {
    for expand in &options.expand {
        if expand.name.ends_with("ValueExtendedProperties")
            && !expand.options.iter().any(|(name, _)| name == "filter")
        {
            return Err(Refusal::bad(
                "ErrorInvalidUrlQuery",
                format!("Expanding '{}' requires a $filter on 'id'.", expand.name),
            ));
        }
    }
    Ok(())
}

pub(crate) fn entity_reply(
    call: &Call,
    entry: &Entry,
    mailbox: &Mailbox,
    key: u64,
    status: u16,
    options: &Options,
) -> Answer {
    let message = mailbox.messages.get(&key).ok_or_else(Refusal::not_found)?;
    let view = View { mailbox, message, immutable: call.prefer.immutable, text: call.prefer.text };
    let mut map = show(&view, options);
    map.insert(
        "@odata.context".into(),
        format!(
            "{}/$metadata#users('{}')/messages{}/$entity",
            call.base,
            entry.owner.oid,
            options.context_suffix()
        )
        .into(),
    );
    let etag =
        view.property("@odata.etag").and_then(|etag| etag.as_str().map(str::to_owned)).unwrap_or_default();
    let mut reply = Reply::json(status, Value::Object(map)).with(http::header::ETAG, etag);
    if status == 201 {
        let id = view.id();
        reply = reply.with(
            http::header::LOCATION,
            format!("{}/users('{}')/messages('{id}')", call.base, entry.owner.oid),
        );
    }
    Ok(reply)
}

/// <https://learn.microsoft.com/graph/api/user-post-messages>
fn create(sim: &Sim, call: &Call, entry: &Entry, scope: Scope) -> Answer {
    call.wants_small()?;
    let names = compose::names(sim, &entry.owner.tenant);
    let message = read_message(call, entry, &names)?;
    let mut graph = sim.graph();
    let mailbox = graph.ensure(&entry.owner);
    let folder = match scope {
        Scope::All => mailbox.folder("drafts"),
        Scope::Folder(folder) => folder,
    };
    let key = put(mailbox, folder, message);
    entity_reply(call, entry, mailbox, key, 201, &Options::default())
}

/// A new message from a body in JSON or MIME.
fn read_message(call: &Call, entry: &Entry, names: &Names) -> Result<Message, Refusal> {
    let mut message = Message::empty(call.now);
    let owner = super::message::Address::new(&entry.owner.display_name, &entry.address());
    message.sender = Some(owner.clone());
    message.from = Some(owner);
    if call.is_mime() {
        mime::read(&mut message, &call.body, names)?;
    } else {
        call.wants_json()?;
        let mut map = schema::object(&call.body)?;
        schema::entity("message", &mut map)?;
        compose::apply(&mut message, &map, names, true)?;
    }
    Ok(message)
}

/// Stores a message and completes what only the store can know.
pub(crate) fn put(mailbox: &mut Mailbox, folder: u64, message: Message) -> u64 {
    let domain = mailbox.address.split_once('@').map_or("example", |(_, domain)| domain).to_owned();
    let guid = mailbox.guid;
    let key = mailbox.insert(folder, message);
    if let Some(message) = mailbox.messages.get_mut(&key) {
        compose::finish(message, guid, key, &domain);
        for (number, attachment) in message.attachments.iter_mut().enumerate() {
            attachment.key = (key << 16) | number as u64;
        }
    }
    key
}

/// <https://learn.microsoft.com/graph/api/message-get>
fn get(sim: &Sim, call: &Call, entry: &Entry, scope: Scope, id: &Segment) -> Answer {
    let options = Options::read(&call.query, "message")?;
    check_expand(&options)?;
    let mut graph = sim.graph();
    let mailbox = graph.ensure(&entry.owner);
    let key = find(mailbox, scope, id)?;
    entity_reply(call, entry, mailbox, key, 200, &options)
}

/// The etag of `If-Match` must be the current one: 412, as `OData` says; Exchange's own code is
/// `ErrorIrresolvableConflict` (<https://learn.microsoft.com/graph/errors>).
pub(crate) fn if_match(call: &Call, current: &str) -> Result<(), Refusal> {
    match call.header("if-match") {
        None | Some("*") => Ok(()),
        Some(given) if given.trim_start_matches("W/").trim_matches('"') == current => Ok(()),
        Some(_) => Err(Refusal::new(
            412,
            "ErrorIrresolvableConflict",
            "The send or update operation could not be performed because the change key passed in the request does not match the current change key for the item.",
        )),
    }
}

/// <https://learn.microsoft.com/graph/api/message-update>
fn update(sim: &Sim, call: &Call, entry: &Entry, scope: Scope, id: &Segment) -> Answer {
    call.wants_small()?;
    call.wants_json()?;
    let mut map = schema::object(&call.body)?;
    schema::entity("message", &mut map)?;
    let names = compose::names(sim, &entry.owner.tenant);
    let advanced = call.caller.has(&["Mail-Advanced.ReadWrite", "Mail-Advanced.ReadWrite.Shared"]);
    let mut graph = sim.graph();
    let guarded = graph.switches.guard_sensitive && !advanced;
    let mailbox = graph.ensure(&entry.owner);
    let key = find(mailbox, scope, id)?;
    let message = mailbox.messages.get(&key).ok_or_else(Refusal::not_found)?;
    if_match(call, &mailbox.change_key(message.change))?;
    let touched = compose::SENSITIVE.iter().find(|name| map.contains_key(**name));
    if let (false, Some(_)) = (message.draft, touched) {
        return Err(if guarded {
            Refusal::denied()
        } else {
            Refusal::bad("ErrorInvalidPropertySet", "The property can only be set on an unsent message.")
        });
    }
    let mut edited = message.clone();
    compose::apply(&mut edited, &map, &names, false)?;
    mailbox.edit(key, call.now, |message| {
        let change = message.change;
        *message = edited;
        message.change = change;
    });
    if call.prefer.minimal {
        return Ok(
            Reply::empty(204).with(http::HeaderName::from_static("preference-applied"), "return=minimal")
        );
    }
    entity_reply(call, entry, mailbox, key, 200, &Options::default())
}

/// <https://learn.microsoft.com/graph/api/message-delete>: to Deleted Items first, from there for good.
fn delete(sim: &Sim, call: &Call, entry: &Entry, scope: Scope, id: &Segment) -> Answer {
    let mut graph = sim.graph();
    let mailbox = graph.ensure(&entry.owner);
    let key = find(mailbox, scope, id)?;
    let message = mailbox.messages.get(&key).ok_or_else(Refusal::not_found)?;
    if_match(call, &mailbox.change_key(message.change))?;
    let bin = mailbox.folder("deleteditems");
    if message.folder == bin {
        mailbox.remove(key);
    } else {
        mailbox.relocate(key, bin, call.now);
    }
    Ok(Reply::empty(204))
}
