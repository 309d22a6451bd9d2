//! Events made, changed, cancelled and answered. Whoever organises an event with attendees cannot do it silently: each
//! change that concerns them is kept as an invitation, update or cancellation that was sent.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value, json};

use super::access::Entry;
use super::calendar::{find, reply};
use super::call::{Call, Segment};
use super::event_rules::{addresses, go_online, settle_props, uid};
use super::ids::Kind;
use super::mail::if_match;
use super::message::Address;
use super::odata::Options;
use super::refusal::{Answer, Refusal, Reply};
use super::state::{GraphState, Invitation};
use super::store::{Event, Happened, Mailbox};
use super::{compose, schema};
use crate::Sim;

/// <https://learn.microsoft.com/graph/api/user-post-events>
pub(crate) fn create(sim: &Sim, call: &Call, entry: &Entry, calendar: Option<u64>) -> Answer {
    call.wants_small()?;
    call.wants_json()?;
    let mut map = schema::object(&call.body)?;
    schema::entity("event", &mut map)?;
    if !map.contains_key("start") || !map.contains_key("end") {
        return Err(Refusal::bad(
            "ErrorPropertyValidationFailure",
            "At least one property failed validation.",
        ));
    }
    let names = compose::names(sim, &entry.owner.tenant);
    let mut graph = sim.graph();
    let (reuse, delay) = (graph.switches.transaction_reuse_creates, graph.switches.join_url_delay_ms);
    let mailbox = graph.ensure(&entry.owner);
    let sent = Value::Object(map.clone()).to_string();
    // "custom identifier … for the server to avoid redundant POST operations in case of client retries". Seen: 201 and no
    // second event. The same id with other content is UNVERIFIED: a switch, by default the old event.
    if let Some(transaction) = map.get("transactionId").and_then(Value::as_str).filter(|id| !id.is_empty()) {
        let before = mailbox.events.values().find(|event| {
            !event.deleted && event.props.get("transactionId").and_then(Value::as_str) == Some(transaction)
        });
        if let Some(before) = before
            && (before.sent == sent || !reuse)
        {
            let key = before.key;
            return reply(call, entry, mailbox, key, None, 201, &Options::default());
        }
    }
    let key = mailbox.key();
    let mut event = Event {
        key,
        calendar: calendar.unwrap_or_else(|| mailbox.default_calendar()),
        stay: 1,
        change: 0,
        created: call.now,
        modified: call.now,
        start: call.now,
        end: call.now,
        start_zone: "UTC".into(),
        end_zone: "UTC".into(),
        props: Map::new(),
        extended: Vec::new(),
        attachments: Vec::new(),
        organizer: Address::new(&entry.owner.display_name, &entry.address()),
        organised_here: true,
        uid: uid(mailbox.guid, key),
        cancelled: false,
        deleted: false,
        join_at: None,
        sent,
    };
    settle_props(&mut event, &map, &names, true)?;
    go_online(
        &mut event,
        mailbox.guid,
        call.now + TimeDelta::milliseconds(i64::try_from(delay).unwrap_or_default()),
    );
    event.change = mailbox.note_event(key, 1, Happened::Created);
    mailbox.events.insert(key, event);
    invite(&mut graph, entry, key, "request", None, None, call.now);
    reply(call, entry, graph.ensure(&entry.owner), key, None, 201, &Options::default())
}

fn invite(
    graph: &mut GraphState,
    entry: &Entry,
    key: u64,
    kind: &'static str,
    to: Option<Vec<String>>,
    comment: Option<String>,
    at: DateTime<Utc>,
) {
    let mailbox = graph.ensure(&entry.owner);
    let Some(event) = mailbox.events.get(&key) else { return };
    let to = to.unwrap_or_else(|| addresses(event));
    if to.is_empty() || !event.organised_here {
        return;
    }
    let invitation = Invitation {
        kind,
        mailbox: mailbox.address.clone(),
        event_id: mailbox.id(Kind::Event, key, None),
        ical_uid: event.uid.clone(),
        subject: event.props.get("subject").and_then(Value::as_str).unwrap_or_default().to_owned(),
        start: event.start,
        end: event.end,
        to,
        comment,
        at,
    };
    graph.invitations.push(invitation);
}

/// What attendees are not told of.
const PRIVATE: &[&str] = &[
    "categories",
    "reminderMinutesBeforeStart",
    "isReminderOn",
    "showAs",
    "singleValueExtendedProperties",
    "multiValueExtendedProperties",
];

/// <https://learn.microsoft.com/graph/api/event-update>
pub(crate) fn update(sim: &Sim, call: &Call, entry: &Entry, id: &Segment) -> Answer {
    call.wants_small()?;
    call.wants_json()?;
    let mut map = schema::object(&call.body)?;
    schema::entity("event", &mut map)?;
    let names = compose::names(sim, &entry.owner.tenant);
    let mut graph = sim.graph();
    let mailbox = graph.ensure(&entry.owner);
    let (key, number) = find(mailbox, id)?;
    if number.is_some() {
        return Err(Refusal::unsupported("Changing one occurrence of a series"));
    }
    let mut event = mailbox.events.get(&key).cloned().ok_or_else(Refusal::not_found)?;
    if_match(call, &mailbox.change_key(event.change))?;
    let before = addresses(&event);
    settle_props(&mut event, &map, &names, false)?;
    // The join block gone from the body: "the meeting goes offline".
    let url =
        event.props.get("onlineMeeting").and_then(|meeting| meeting["joinUrl"].as_str()).map(str::to_owned);
    match url {
        Some(url)
            if map.contains_key("body")
                && !event.props["body"]["content"].as_str().unwrap_or_default().contains(&url) =>
        {
            event.props.remove("onlineMeeting");
            event.props.insert("isOnlineMeeting".into(), false.into());
            event.props.insert("onlineMeetingProvider".into(), "unknown".into());
        }
        Some(_) => {}
        None => go_online(&mut event, mailbox.guid, call.now),
    }
    event.modified = call.now;
    event.change = mailbox.note_event(key, event.stay, Happened::Updated);
    let after = addresses(&event);
    mailbox.events.insert(key, event);
    let told: Vec<&String> =
        map.keys().filter(|name| !name.contains('@') && !PRIVATE.contains(&name.as_str())).collect();
    let only_attendees = told.len() == 1 && told[0] == "attendees";
    let same = |one: &String, list: &[String]| list.iter().any(|found| found.eq_ignore_ascii_case(one));
    let removed: Vec<String> = before.iter().filter(|one| !same(one, &after)).cloned().collect();
    if !told.is_empty() {
        // "only the attendees that changed get a meeting update"
        let added = after.iter().filter(|one| !same(one, &before)).cloned().collect();
        invite(&mut graph, entry, key, "update", only_attendees.then_some(added), None, call.now);
        invite(&mut graph, entry, key, "cancellation", Some(removed), None, call.now);
    }
    if call.prefer.minimal {
        return Ok(
            Reply::empty(204).with(http::HeaderName::from_static("preference-applied"), "return=minimal")
        );
    }
    reply(call, entry, graph.ensure(&entry.owner), key, None, 200, &Options::default())
}

/// <https://learn.microsoft.com/graph/api/event-cancel>: the organiser only; the event goes to the Deleted Items.
pub(crate) fn cancel(sim: &Sim, call: &Call, entry: &Entry, id: &Segment) -> Answer {
    call.wants_json()?;
    let mut parameters = schema::parameters("cancel", &[("Comment", "Edm.String")], &call.body)?;
    let comment = parameters.remove("Comment").and_then(|text| text.as_str().map(str::to_owned));
    let mut graph = sim.graph();
    let mailbox = graph.ensure(&entry.owner);
    let (key, number) = find(mailbox, id)?;
    if number.is_some() {
        return Err(Refusal::unsupported("Cancelling one occurrence of a series"));
    }
    if !mailbox.events.get(&key).is_some_and(|event| event.organised_here) {
        return Err(Refusal::bad(
            "ErrorInvalidRequest",
            "Your request can't be completed. You need to be an organizer to cancel a meeting.",
        ));
    }
    invite(&mut graph, entry, key, "cancellation", None, comment, call.now);
    remove(graph.ensure(&entry.owner), key, call.now, true);
    Ok(Reply::empty(202))
}

pub(crate) fn remove(mailbox: &mut Mailbox, key: u64, now: DateTime<Utc>, cancelled: bool) {
    let Some(stay) = mailbox.events.get(&key).map(|event| event.stay) else { return };
    let change = mailbox.note_event(key, stay, Happened::Removed);
    if let Some(event) = mailbox.events.get_mut(&key) {
        event.deleted = true;
        event.cancelled = cancelled;
        event.modified = now;
        event.change = change;
    }
}

/// <https://learn.microsoft.com/graph/api/event-delete>: for the organiser, attendees get a cancellation as well.
pub(crate) fn delete(sim: &Sim, call: &Call, entry: &Entry, id: &Segment) -> Answer {
    let mut graph = sim.graph();
    let mailbox = graph.ensure(&entry.owner);
    let (key, number) = find(mailbox, id)?;
    if number.is_some() {
        return Err(Refusal::unsupported("Deleting one occurrence of a series"));
    }
    let change = mailbox.events.get(&key).map(|event| event.change).unwrap_or_default();
    if_match(call, &mailbox.change_key(change))?;
    invite(&mut graph, entry, key, "cancellation", None, None, call.now);
    remove(graph.ensure(&entry.owner), key, call.now, false);
    Ok(Reply::empty(204))
}

/// <https://learn.microsoft.com/graph/api/event-accept> and its sisters: attendees only.
pub(crate) fn respond(sim: &Sim, call: &Call, entry: &Entry, id: &Segment, verb: &str) -> Answer {
    call.wants_json()?;
    let declared =
        [("SendResponse", "Edm.Boolean"), ("Comment", "Edm.String"), ("ProposedNewTime", "timeSlot")];
    schema::parameters(verb, &declared, &call.body)?;
    let mut graph = sim.graph();
    let mailbox = graph.ensure(&entry.owner);
    let (key, _) = find(mailbox, id)?;
    let response = match verb {
        "accept" => "accepted",
        "decline" => "declined",
        _ => "tentativelyAccepted",
    };
    let stay = mailbox.events.get(&key).map_or(1, |event| event.stay);
    if mailbox.events.get(&key).is_some_and(|event| event.organised_here) {
        return Err(Refusal::bad(
            "ErrorInvalidRequest",
            "Your request can't be completed. You can't respond to this meeting because you're the meeting organizer.",
        ));
    }
    let change = mailbox.note_event(key, stay, Happened::Updated);
    if let Some(event) = mailbox.events.get_mut(&key) {
        event.props.insert(
            "responseStatus".into(),
            json!({"response": response, "time": super::message::stamp(call.now)}),
        );
        event.change = change;
        event.deleted = verb == "decline";
    }
    Ok(Reply::empty(202))
}

/// The sample of event: forward spells inner names in Pascal case too (`EmailAddress`).
fn camel(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(camel),
        Value::Object(map) => {
            *map = std::mem::take(map)
                .into_iter()
                .map(|(name, mut inner)| {
                    camel(&mut inner);
                    let rest = name.get(1..).unwrap_or_default();
                    let first = name.get(..1).unwrap_or(&name).to_ascii_lowercase();
                    (first + rest, inner)
                })
                .collect();
        }
        _ => {}
    }
}

/// <https://learn.microsoft.com/graph/api/event-forward>
pub(crate) fn forward(sim: &Sim, call: &Call, entry: &Entry, id: &Segment) -> Answer {
    call.wants_json()?;
    let mut body = Value::Object(schema::object(&call.body)?);
    camel(&mut body);
    let declared = [("ToRecipients", "*recipient"), ("Comment", "Edm.String")];
    let parameters = schema::parameters("forward", &declared, body.to_string().as_bytes())?;
    let to: Vec<String> = parameters
        .get("ToRecipients")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|one| one["emailAddress"]["address"].as_str().map(str::to_owned))
        .collect();
    if to.is_empty() {
        return Err(super::send::missing("forward", "ToRecipients"));
    }
    let comment = parameters.get("Comment").and_then(Value::as_str).map(str::to_owned);
    let mut graph = sim.graph();
    let (key, _) = find(graph.ensure(&entry.owner), id)?;
    invite(&mut graph, entry, key, "forward", Some(to), comment, call.now);
    Ok(Reply::empty(202))
}

/// <https://learn.microsoft.com/graph/api/event-dismissreminder>, <https://learn.microsoft.com/graph/api/event-snoozereminder>:
/// 200 without a body. No reminder is ever shown here, so there is nothing to keep.
pub(crate) fn reminder(sim: &Sim, call: &Call, entry: &Entry, id: &Segment, verb: &str) -> Answer {
    if verb == "snoozereminder" {
        call.wants_json()?;
        let declared = [("NewReminderTime", "dateTimeTimeZone")];
        if !schema::parameters(verb, &declared, &call.body)?.contains_key("NewReminderTime") {
            return Err(super::send::missing(verb, "NewReminderTime"));
        }
    }
    find(sim.graph().ensure(&entry.owner), id)?;
    Ok(Reply::empty(200))
}
