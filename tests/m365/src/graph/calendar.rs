//! Calendars and the way to an event: paths, reading, what a response carries
//! (<https://learn.microsoft.com/graph/api/resources/event>). Writing is [`super::event_write`].

use chrono::{DateTime, Utc};
use http::Method;
use serde_json::{Map, Value, json};

use super::access::{self, Entry, Need};
use super::call::{Call, Segment};
use super::event_view::{EventView, OCCURRENCE};
use super::ids::{ItemId, Kind};
use super::odata::{self, Options};
use super::refusal::{Answer, Refusal, Reply};
use super::state::GraphState;
use super::store::{Calendar, Mailbox};
use super::timezones::{self, Zone};
use super::{event_list, event_write, folders, list, only, schedule, schema};
use crate::Sim;

pub(crate) fn handle(sim: &Sim, call: &Call, owner: Option<&str>, at: usize) -> Answer {
    let segments = &call.segments[at..];
    let last = segments.last().map_or("", |segment| segment.name.as_str());
    let need = match last {
        _ if call.method == Method::GET => Need::CalendarBasic,
        // The least for event: forward is Calendars.Read.
        "forward" => Need::CalendarRead,
        _ => Need::CalendarWrite,
    };
    // Reading free and busy times is a POST, and needs no more than reading.
    if last == "getschedule" {
        return schedule::get_schedule(sim, call, owner);
    }
    let entry = access::enter(sim, &call.caller, owner, need)?;
    if entry.basic {
        access::check_basic(call)?;
        return dispatch(sim, call, &entry, need, segments).map(access::only_basic);
    }
    dispatch(sim, call, &entry, need, segments)
}

fn dispatch(sim: &Sim, call: &Call, entry: &Entry, need: Need, segments: &[Segment]) -> Answer {
    let mut graph = sim.graph();
    let address = graph.ensure(&entry.owner).address.clone();
    if !entry.right.full_access {
        // Shared or delegated in Outlook (<https://learn.microsoft.com/graph/outlook-get-shared-events-calendars>).
        let share = graph
            .calendar_shares
            .iter()
            .find(|(owner, reader, _)| *owner == address && *reader == call.caller.oid);
        match (share, need) {
            (None, _) => {
                return Err(Refusal::new(
                    404,
                    "ErrorItemNotFound",
                    "The specified object was not found in the store.",
                ));
            }
            (Some((_, _, false)), Need::CalendarWrite) => return Err(Refusal::denied()),
            _ => {}
        }
    }
    let mailbox = graph.ensure(&entry.owner);
    let (calendar, rest) = match segments[0].name.as_str() {
        "calendar" => (Some(mailbox.default_calendar()), &segments[1..]),
        "calendars" => match &segments[1..] {
            [] => return calendars(&mut graph, call, entry),
            [id, rest @ ..] => {
                let parsed = ItemId::parse(&id.raw)
                    .filter(|id| id.kind == Kind::Calendar)
                    .ok_or_else(Refusal::malformed_id)?;
                mailbox.calendars.iter().find(|one| one.key == parsed.key).ok_or_else(Refusal::not_found)?;
                (Some(parsed.key), rest)
            }
        },
        _ => (None, segments),
    };
    match rest {
        [] => {
            only(call, &[Method::GET, Method::PATCH, Method::DELETE])?;
            let options = Options::read(&call.query, "calendar")?;
            if call.method != Method::GET {
                change_calendar(mailbox, call, calendar.unwrap_or_default())?;
            }
            if call.method == Method::DELETE {
                return Ok(Reply::empty(204));
            }
            let calendar = mailbox
                .calendars
                .iter()
                .find(|one| Some(one.key) == calendar)
                .ok_or_else(Refusal::not_found)?;
            let mut shown = show_calendar(mailbox, calendar, entry);
            shown = folders::select(shown, &options, &["id"]);
            shown["@odata.context"] = calendar_context(call, entry, &options);
            Ok(Reply::json(200, shown))
        }
        [step] if step.name == "calendarview" => event_list::calendar_view(&mut graph, call, entry, calendar),
        [first, step] if first.name == "calendarview" && step.name == "delta" => {
            Err(Refusal::unsupported("event: delta"))
        }
        [step] if step.name == "events" => match call.method {
            Method::GET => event_list::events(&mut graph, call, entry, calendar),
            Method::POST => {
                drop(graph);
                event_write::create(sim, call, entry, calendar)
            }
            _ => Err(Refusal::method()),
        },
        [step, last] if step.name == "events" && last.name == "$count" => {
            only(call, &[Method::GET])?;
            event_list::count(&mut graph, call, entry, calendar)
        }
        [step, id, rest @ ..] if step.name == "events" => {
            drop(graph);
            event(sim, call, entry, id, rest)
        }
        [step, ..] => Err(Refusal::no_segment(&step.raw)),
    }
}

fn event(sim: &Sim, call: &Call, entry: &Entry, id: &Segment, rest: &[Segment]) -> Answer {
    match rest {
        [] => match call.method {
            Method::GET => {
                let options = Options::read(&call.query, "event")?;
                let mut graph = sim.graph();
                let mailbox = graph.ensure(&entry.owner);
                let (key, number) = find(mailbox, id)?;
                reply(call, entry, mailbox, key, number, 200, &options)
            }
            Method::PATCH => event_write::update(sim, call, entry, id),
            Method::DELETE => event_write::delete(sim, call, entry, id),
            _ => Err(Refusal::method()),
        },
        [step] if step.name == "instances" => event_list::instances(sim, call, entry, id),
        [step] => {
            only(call, &[Method::POST])?;
            match step.name.as_str() {
                "cancel" => event_write::cancel(sim, call, entry, id),
                "forward" => event_write::forward(sim, call, entry, id),
                "dismissreminder" | "snoozereminder" => {
                    event_write::reminder(sim, call, entry, id, &step.name)
                }
                "accept" | "decline" | "tentativelyaccept" => {
                    event_write::respond(sim, call, entry, id, &step.name)
                }
                _ => Err(Refusal::no_segment(&step.raw)),
            }
        }
        [step, ..] => Err(Refusal::no_segment(&step.raw)),
    }
}

pub(crate) fn find(mailbox: &Mailbox, id: &Segment) -> Result<(u64, Option<u32>), Refusal> {
    let parsed =
        ItemId::parse(&id.raw).filter(|id| id.kind == Kind::Event).ok_or_else(Refusal::malformed_id)?;
    let event =
        mailbox.events.get(&parsed.key).filter(|event| !event.deleted).ok_or_else(Refusal::not_found)?;
    let number = parsed.stay.filter(|stay| stay & OCCURRENCE != 0).map(|stay| stay & !OCCURRENCE);
    let current = number.is_some() || parsed.stay.is_none_or(|stay| stay == event.stay);
    if parsed.mailbox == mailbox.guid && current {
        Ok((event.key, number))
    } else {
        Err(Refusal::not_found())
    }
}

pub(crate) fn shown(options: &Options, view: &EventView<'_>) -> Map<String, Value> {
    let mut map = view.all();
    if map.get("transactionId").is_some_and(Value::is_null) {
        // "Only returned in an event response payload if an app has set it."
        map.remove("transactionId");
    }
    if let Some(names) = &options.select {
        if names.iter().any(|name| name == "originalStart") {
            map.insert("originalStart".into(), view.original_start());
        }
        map.retain(|name, _| name == "@odata.etag" || name == "id" || names.contains(name));
    }
    if let Some(expand) = options.expands("singleValueExtendedProperties")
        && let Some((_, filter)) = expand.options.iter().find(|(name, _)| name == "filter")
        && let Ok(filter) = odata::parse_filter(filter)
    {
        let all = view.event.extended.iter().map(|(id, value)| json!({"id": id, "value": value}));
        let found: Vec<Value> = all.filter(|property| odata::matches(&filter, property)).collect();
        if !found.is_empty() {
            map.insert("singleValueExtendedProperties".into(), Value::Array(found));
        }
    }
    map
}

pub(crate) fn reply(
    call: &Call,
    entry: &Entry,
    mailbox: &Mailbox,
    key: u64,
    number: Option<u32>,
    status: u16,
    options: &Options,
) -> Answer {
    let event = mailbox.events.get(&key).ok_or_else(Refusal::not_found)?;
    let zone = call.prefer.zone.clone().unwrap_or_else(Zone::utc);
    let occurrence = match number {
        None => None,
        Some(number) => {
            let all = event_list::occurrences(event, DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC);
            Some(all.into_iter().find(|(found, ..)| *found == number).ok_or_else(Refusal::not_found)?)
        }
    };
    let view = EventView {
        mailbox,
        event,
        zone: &zone,
        immutable: call.prefer.immutable,
        text: call.prefer.text,
        now: call.now,
        occurrence,
    };
    let mut map = shown(options, &view);
    let users = format!("{}/users('{}')", call.base, entry.owner.oid);
    let calendar = mailbox.calendar_id(event.calendar);
    map.insert(
        "@odata.context".into(),
        format!(
            "{}/$metadata#users('{}')/events{}/$entity",
            call.base,
            entry.owner.oid,
            options.context_suffix()
        )
        .into(),
    );
    map.insert(
        "calendar@odata.associationLink".into(),
        format!("{users}/calendars('{calendar}')/$ref").into(),
    );
    map.insert("calendar@odata.navigationLink".into(), format!("{users}/calendars('{calendar}')").into());
    let etag = format!("W/\"{}\"", mailbox.change_key(event.change));
    let mut reply = Reply::json(status, Value::Object(map)).with(http::header::ETAG, etag);
    if status == 201 {
        reply = reply.with(http::header::LOCATION, format!("{users}/events('{}')", view.id()));
    }
    Ok(reply)
}

fn show_calendar(mailbox: &Mailbox, calendar: &Calendar, entry: &Entry) -> Value {
    json!({
        "id": mailbox.calendar_id(calendar.key), "name": calendar.name, "color": "auto", "hexColor": "",
        "changeKey": mailbox.change_key(calendar.key), "isDefaultCalendar": calendar.default, "canShare": entry.own, "canViewPrivateItems": entry.own,
        "canEdit": true, "allowedOnlineMeetingProviders": ["teamsForBusiness"],
        "defaultOnlineMeetingProvider": "teamsForBusiness", "isTallyingResponses": true, "isRemovable": !calendar.default,
        "owner": {"name": entry.owner.display_name, "address": entry.address()},
    })
}

fn calendar_context(call: &Call, entry: &Entry, options: &Options) -> Value {
    format!(
        "{}/$metadata#users('{}')/calendars{}/$entity",
        call.base,
        entry.owner.oid,
        options.context_suffix()
    )
    .into()
}

/// <https://learn.microsoft.com/graph/api/calendar-update>, <https://learn.microsoft.com/graph/api/calendar-delete>
fn change_calendar(mailbox: &mut Mailbox, call: &Call, key: u64) -> Result<(), Refusal> {
    let calendar = mailbox.calendars.iter_mut().find(|one| one.key == key).ok_or_else(Refusal::not_found)?;
    if call.method == Method::PATCH {
        call.wants_json()?;
        let mut map = schema::object(&call.body)?;
        schema::entity("calendar", &mut map)?;
        if let Some(name) = map.get("name").and_then(Value::as_str) {
            name.clone_into(&mut calendar.name);
        }
        return Ok(());
    }
    if calendar.default {
        return Err(Refusal::bad("ErrorCannotDeleteObject", "The default calendar can't be deleted."));
    }
    mailbox.calendars.retain(|one| one.key != key);
    let inside: Vec<u64> =
        mailbox.events.values().filter(|event| event.calendar == key).map(|event| event.key).collect();
    for event in inside {
        event_write::remove(mailbox, event, call.now, false);
    }
    Ok(())
}

fn calendars(graph: &mut GraphState, call: &Call, entry: &Entry) -> Answer {
    only(call, &[Method::GET, Method::POST])?;
    let mailbox = graph.ensure(&entry.owner);
    if call.method == Method::POST {
        call.wants_json()?;
        let mut map = schema::object(&call.body)?;
        schema::entity("calendar", &mut map)?;
        let key = mailbox.key();
        let name = map.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        mailbox.calendars.push(Calendar { key, name, default: false });
        let calendar = mailbox.calendars.last().ok_or_else(Refusal::not_found)?;
        let mut shown = show_calendar(mailbox, calendar, entry);
        shown["@odata.context"] = calendar_context(call, entry, &Options::default());
        return Ok(Reply::json(201, shown));
    }
    let options = Options::read(&call.query, "calendar")?;
    let all = mailbox
        .calendars
        .iter()
        .map(|one| folders::select(show_calendar(mailbox, one, entry), &options, &["id"]))
        .collect();
    let context =
        format!("{}/$metadata#users('{}')/calendars{}", call.base, entry.owner.oid, options.context_suffix());
    Ok(list::page(graph, call, &options, 10, &context, all))
}

/// <https://learn.microsoft.com/graph/api/outlookuser-supportedtimezones>
pub(crate) fn supported_time_zones(call: &Call, at: usize) -> Answer {
    only(call, &[Method::GET])?;
    if !call.caller.has(&["User.Read", "User.ReadBasic.All", "User.Read.All"]) {
        return Err(Refusal::denied());
    }
    let iana = call.segments[at].arguments.to_ascii_lowercase().contains("iana");
    Ok(Reply::json(
        200,
        json!({
            "@odata.context": format!("{}/$metadata#Collection(microsoft.graph.timeZoneInformation)", call.base),
            "value": timezones::supported(iana),
        }),
    ))
}
