//! Messages in motion: move, copy, and the translation of ids
//! (<https://learn.microsoft.com/graph/outlook-immutable-id>). A move changes the default id; the old one finds nothing.

use http::Method;
use serde_json::{Value, json};

use super::access::{self, Entry, Need};
use super::call::{Call, Segment};
use super::ids::ItemId;
use super::mail::{Scope, entity_reply, find};
use super::odata::Options;
use super::refusal::{Answer, Refusal, Reply};
use super::{compose, folders, only, schema, send};
use crate::Sim;

/// <https://learn.microsoft.com/graph/api/message-move>, <https://learn.microsoft.com/graph/api/message-copy>
pub(crate) fn relocate(
    sim: &Sim,
    call: &Call,
    entry: &Entry,
    scope: Scope,
    id: &Segment,
    verb: &str,
) -> Answer {
    call.wants_json()?;
    let parameters = schema::parameters(verb, &[("DestinationId", "Edm.String")], &call.body)?;
    let destination = parameters
        .get("DestinationId")
        .and_then(Value::as_str)
        .ok_or_else(|| send::missing(verb, "DestinationId"))?;
    let mut graph = sim.graph();
    let mailbox = graph.ensure(&entry.owner);
    let key = find(mailbox, scope, id)?;
    let destination = Segment {
        raw: destination.to_owned(),
        name: destination.to_ascii_lowercase(),
        arguments: String::new(),
    };
    let to = folders::find(mailbox, &destination)?;
    let key = if verb == "move" {
        mailbox.relocate(key, to, call.now);
        key
    } else {
        let mut copy = mailbox.messages.get(&key).cloned().ok_or_else(Refusal::not_found)?;
        copy.created = call.now;
        mailbox.insert(to, copy)
    };
    entity_reply(call, entry, mailbox, key, 201, &Options::default())
}

/// <https://learn.microsoft.com/graph/api/user-translateexchangeids>: at most 1,000 ids; only the two REST formats.
pub(crate) fn translate(sim: &Sim, call: &Call, owner: Option<&str>) -> Answer {
    only(call, &[Method::POST])?;
    let entry = access::enter(sim, &call.caller, owner, Need::TranslateIds)?;
    let declared =
        [("InputIds", "*Edm.String"), ("TargetIdType", "Edm.String"), ("SourceIdType", "Edm.String")];
    let parameters = schema::parameters("translateExchangeIds", &declared, &call.body)?;
    let target = parameters.get("TargetIdType").and_then(Value::as_str).unwrap_or_default();
    let immutable = match target.to_ascii_lowercase().as_str() {
        "restimmutableentryid" | "immutableentryid" => true,
        "restid" | "entryid" => false,
        _ => {
            return Err(Refusal::bad(
                "ErrorInvalidArgument",
                format!("Requested value '{target}' was not found."),
            ));
        }
    };
    let input = compose::strings(parameters.get("InputIds").unwrap_or(&Value::Null));
    if input.len() > 1000 {
        return Err(Refusal::bad("ErrorInvalidArgument", "The number of ids must not be greater than 1000."));
    }
    let mut graph = sim.graph();
    let mailbox = graph.ensure(&entry.owner);
    let mut found = Vec::new();
    for source in input {
        let id = ItemId::parse(&source).ok_or_else(Refusal::malformed_id)?;
        let stay = mailbox.messages.get(&id.key).map_or(id.stay.unwrap_or(1), |message| message.stay);
        let target = ItemId { stay: (!immutable).then_some(stay), ..id }.text();
        found.push(json!({"sourceId": source, "targetId": target}));
    }
    let context = format!("{}/$metadata#Collection(microsoft.graph.convertIdResult)", call.base);
    Ok(Reply::json(200, json!({"@odata.context": context, "value": found})))
}
