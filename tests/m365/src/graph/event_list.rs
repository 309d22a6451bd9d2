//! Lists of events: `events` gives single instances and series masters, `calendarView` everything in a window with series
//! expanded (<https://learn.microsoft.com/graph/api/user-list-calendarview>).

use chrono::{DateTime, Datelike, Days, Months, NaiveDate, NaiveDateTime, Utc, Weekday};
use http::Method;
use serde_json::Value;

use super::access::Entry;
use super::calendar::{find, shown};
use super::call::{Call, Segment};
use super::event_view::EventView;
use super::ids::{ItemId, in_context};
use super::odata::{self, Options};
use super::refusal::{Answer, Refusal};
use super::state::GraphState;
use super::store::{Event, Mailbox};
use super::timezones::Zone;
use super::{list, only};
use crate::Sim;

type Occurrence = (u32, DateTime<Utc>, DateTime<Utc>);

/// The occurrences of a series that overlap a window, counted from its first; a single event is its own occurrence 0.
pub(crate) fn occurrences(event: &Event, from: DateTime<Utc>, to: DateTime<Utc>) -> Vec<Occurrence> {
    let length = event.end - event.start;
    let overlaps =
        |start: DateTime<Utc>| start < to && (start + length > from || (length.is_zero() && start >= from));
    let Some(recurrence) = event.props.get("recurrence").filter(|recurrence| recurrence.is_object()) else {
        return if overlaps(event.start) { vec![(0, event.start, event.end)] } else { Vec::new() };
    };
    let zone = Zone::named(&event.start_zone).unwrap_or_else(|_| Zone::utc());
    let first: NaiveDateTime = zone.wall_clock(event.start);
    let (pattern, range) = (&recurrence["pattern"], &recurrence["range"]);
    let day = |name: &str| range[name].as_str().and_then(|text| text.parse::<NaiveDate>().ok());
    let begin = day("startDate").unwrap_or(first.date());
    let last = match range["type"].as_str() {
        Some("endDate") => day("endDate"),
        _ => None,
    };
    let limit = match range["type"].as_str() {
        Some("numbered") => range["numberOfOccurrences"].as_u64().unwrap_or(1),
        // Nobody looks further than this.
        _ => 2_000,
    };
    let mut found = Vec::new();
    for (number, date) in (0_u32..).zip(dates(pattern, begin).take(20_000)) {
        if last.is_some_and(|last| date > last) || u64::from(number) >= limit {
            break;
        }
        let start = zone.moment(date.and_time(first.time()));
        if start >= to {
            break;
        }
        if overlaps(start) {
            found.push((number + 1, start, start + length));
        }
    }
    found
}

/// The days of a pattern (<https://learn.microsoft.com/graph/api/resources/recurrencepattern>); the relative patterns are
/// taken as their first day only.
fn dates(pattern: &Value, begin: NaiveDate) -> Box<dyn Iterator<Item = NaiveDate>> {
    let interval = pattern["interval"].as_u64().unwrap_or(1).max(1);
    match pattern["type"].as_str().unwrap_or_default() {
        "daily" => Box::new((0..).map_while(move |n: u64| begin.checked_add_days(Days::new(n * interval)))),
        "weekly" => {
            let wanted: Vec<Weekday> = pattern["daysOfWeek"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|day| day.as_str()?.parse().ok())
                .collect();
            let wanted = if wanted.is_empty() { vec![begin.weekday()] } else { wanted };
            // Weeks begin on Sunday unless the pattern says otherwise.
            let offset = u64::from(begin.weekday().num_days_from_sunday());
            Box::new(
                (0..).map_while(move |n: u64| begin.checked_add_days(Days::new(n))).enumerate().filter_map(
                    move |(n, date)| {
                        let week = (n as u64 + offset) / 7;
                        (week.is_multiple_of(interval) && wanted.contains(&date.weekday())).then_some(date)
                    },
                ),
            )
        }
        "absoluteMonthly" | "absoluteYearly" => {
            let months = interval * if pattern["type"] == "absoluteYearly" { 12 } else { 1 };
            Box::new((0..).map_while(move |n: u64| {
                begin.checked_add_months(Months::new(u32::try_from(n * months).unwrap_or(u32::MAX)))
            }))
        }
        _ => Box::new(std::iter::once(begin)),
    }
}

fn view<'a>(
    mailbox: &'a Mailbox,
    event: &'a Event,
    zone: &'a Zone,
    call: &Call,
    occurrence: Option<Occurrence>,
) -> EventView<'a> {
    EventView {
        mailbox,
        event,
        zone,
        immutable: call.prefer.immutable,
        text: call.prefer.text,
        now: call.now,
        occurrence,
    }
}

fn context(call: &Call, entry: &Entry, what: &str, options: &Options) -> String {
    format!("{}/$metadata#users('{}')/{what}{}", call.base, entry.owner.oid, options.context_suffix())
}

/// Filters and orders events; both look at times in UTC.
fn arrange<'a>(
    mailbox: &'a Mailbox,
    call: &Call,
    options: &Options,
    mut all: Vec<(&'a Event, Option<Occurrence>)>,
) -> Vec<Value> {
    let utc = Zone::utc();
    let zone = call.prefer.zone.clone().unwrap_or_else(Zone::utc);
    let value = |event: &'a Event, occurrence: Option<Occurrence>| {
        let mut all = view(mailbox, event, &utc, call, occurrence).all();
        let extended =
            event.extended.iter().map(|(id, value)| serde_json::json!({"id": id, "value": value})).collect();
        all.insert("singleValueExtendedProperties".into(), Value::Array(extended));
        Value::Object(all)
    };
    if let Some(filter) = &options.filter {
        all.retain(|(event, occurrence)| odata::matches(filter, &value(event, *occurrence)));
    }
    for order in options.order.iter().rev() {
        let at = |event: &'a Event, occurrence| {
            let mut value = value(event, occurrence);
            for step in &order.path {
                value = value.get(step).cloned().unwrap_or(Value::Null);
            }
            value
        };
        all.sort_by(|left, right| {
            let ordering = odata::compare(&at(left.0, left.1), &at(right.0, right.1));
            if order.descending { ordering.reverse() } else { ordering }
        });
    }
    all.into_iter()
        .map(|(event, occurrence)| {
            Value::Object(shown(options, &view(mailbox, event, &zone, call, occurrence)))
        })
        .collect()
}

/// The events of a calendar that a query finds, as it wants them shown.
fn listed(
    graph: &mut GraphState,
    call: &Call,
    entry: &Entry,
    calendar: Option<u64>,
    options: &Options,
) -> Result<Vec<Value>, Refusal> {
    refuse_search(options)?;
    list::check_order(options)?;
    let mailbox = graph.ensure(&entry.owner);
    let calendar = calendar.unwrap_or_else(|| mailbox.default_calendar());
    let mut found: Vec<(&Event, Option<Occurrence>)> = mailbox
        .events
        .values()
        .filter(|event| !event.deleted && event.calendar == calendar)
        .map(|event| (event, None))
        .collect();
    // The order without $orderby is not documented; the newest first is what is seen.
    found.sort_by_key(|(event, _)| std::cmp::Reverse(event.created));
    Ok(arrange(mailbox, call, options, found))
}

/// <https://learn.microsoft.com/graph/api/user-list-events>
pub(crate) fn events(graph: &mut GraphState, call: &Call, entry: &Entry, calendar: Option<u64>) -> Answer {
    let options = Options::read(&call.query, "event")?;
    let all = listed(graph, call, entry, calendar, &options)?;
    let context = context(call, entry, &place(graph, call, entry, "events"), &options);
    Ok(list::page(graph, call, &options, 10, &context, all))
}

pub(crate) fn count(graph: &mut GraphState, call: &Call, entry: &Entry, calendar: Option<u64>) -> Answer {
    let options = Options::read(&call.query, "event")?;
    Ok(list::plain_count(listed(graph, call, entry, calendar, &options)?.len()))
}

/// Where a list was asked for: `calendar/events` is not `events` in a context.
fn place(graph: &mut GraphState, call: &Call, entry: &Entry, what: &str) -> String {
    let at =
        call.segments.iter().position(|segment| matches!(segment.name.as_str(), "calendar" | "calendars"));
    match at {
        Some(at) if call.segments[at].name == "calendar" => format!("calendar/{what}"),
        Some(at) => {
            let raw = call.segments.get(at + 1).map_or("", |id| id.raw.as_str());
            let mailbox = graph.ensure(&entry.owner);
            let key = ItemId::parse(raw).map_or_else(|| mailbox.default_calendar(), |id| id.key);
            format!("calendars('{}')/{what}", in_context(&mailbox.calendar_id(key)))
        }
        None => what.to_owned(),
    }
}

/// `$search` is not documented for events.
fn refuse_search(options: &Options) -> Result<(), Refusal> {
    if options.search.is_some() {
        return Err(Refusal::bad(
            "ErrorInvalidUrlQuery",
            "The query parameter '$search' is not supported for 'event' resources.",
        ));
    }
    Ok(())
}

/// A bound: an offset in it counts, without one it is UTC, and `Prefer` changes nothing about that. An offset whose plus
/// was not percent-encoded has a space in its place and is refused.
fn bound(call: &Call, name: &str) -> Result<DateTime<Utc>, Refusal> {
    let text = call.query(name).ok_or_else(|| {
        Refusal::bad("ErrorInvalidParameter", "This request requires a time window specified by the query string parameters StartDateTime and EndDateTime.")
    })?;
    DateTime::parse_from_rfc3339(text)
        .map(|at| at.to_utc())
        .ok()
        .or_else(|| text.parse::<NaiveDateTime>().ok().map(|local| local.and_utc()))
        .or_else(|| {
            text.parse::<NaiveDate>()
                .ok()
                .and_then(|day| day.and_hms_opt(0, 0, 0))
                .map(|local| local.and_utc())
        })
        .ok_or_else(|| {
            Refusal::bad(
                "ErrorInvalidParameter",
                format!("The value '{text}' of parameter '{name}' is invalid."),
            )
        })
}

pub(crate) fn view_bounds(call: &Call) -> Result<(DateTime<Utc>, DateTime<Utc>), Refusal> {
    let (from, to) = (bound(call, "startDateTime")?, bound(call, "endDateTime")?);
    if to < from {
        return Err(Refusal::bad("ErrorInvalidParameter", "The end of the time window is before its start."));
    }
    Ok((from, to))
}

pub(crate) fn calendar_view(
    graph: &mut GraphState,
    call: &Call,
    entry: &Entry,
    calendar: Option<u64>,
) -> Answer {
    only(call, &[Method::GET])?;
    let (from, to) = view_bounds(call)?;
    let options = Options::read(&call.query, "event")?;
    refuse_search(&options)?;
    // "createdDateTime and lastModifiedDateTime cannot be selected" on the page of calendarView.
    if let Some(name) = options
        .select
        .iter()
        .flatten()
        .find(|name| matches!(name.as_str(), "createdDateTime" | "lastModifiedDateTime"))
    {
        return Err(Refusal::bad(
            "ErrorInvalidProperty",
            format!("The property '{name}' does not support selection here."),
        ));
    }
    let mailbox = graph.ensure(&entry.owner);
    let calendar = calendar.unwrap_or_else(|| mailbox.default_calendar());
    let mut found: Vec<(&Event, Option<Occurrence>)> = Vec::new();
    for event in mailbox.events.values().filter(|event| !event.deleted && event.calendar == calendar) {
        let series = event.props.get("recurrence").is_some_and(Value::is_object);
        found.extend(occurrences(event, from, to).into_iter().map(|one| (event, series.then_some(one))));
    }
    found.sort_by_key(|(event, occurrence)| occurrence.map_or(event.start, |(_, start, _)| start));
    let all = arrange(mailbox, call, &options, found);
    let context = context(call, entry, &place(graph, call, entry, "calendarView"), &options);
    Ok(list::page(graph, call, &options, 10, &context, all))
}

/// <https://learn.microsoft.com/graph/api/event-list-instances>
pub(crate) fn instances(sim: &Sim, call: &Call, entry: &Entry, id: &Segment) -> Answer {
    only(call, &[Method::GET])?;
    let (from, to) = view_bounds(call)?;
    let options = Options::read(&call.query, "event")?;
    let mut graph = sim.graph();
    let mailbox = graph.ensure(&entry.owner);
    let (key, _) = find(mailbox, id)?;
    let event = mailbox.events.get(&key).ok_or_else(Refusal::not_found)?;
    let found = occurrences(event, from, to).into_iter().map(|one| (event, Some(one))).collect();
    let all = arrange(mailbox, call, &options, found);
    let context = context(call, entry, "events", &options);
    Ok(list::page(&mut graph, call, &options, 10, &context, all))
}
