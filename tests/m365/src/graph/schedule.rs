//! Free and busy times (<https://learn.microsoft.com/graph/api/calendar-getschedule>) and suggestions for meetings
//! (<https://learn.microsoft.com/graph/api/user-findmeetingtimes>). Someone who cannot be read is an error of that one
//! item, never "free".

use chrono::{DateTime, Datelike, TimeDelta, Timelike, Utc, Weekday};
use http::Method;
use serde_json::{Value, json};

use super::access::{self, Need};
use super::call::Call;
use super::compose;
use super::event_list::occurrences;
use super::event_rules::moment;
use super::only;
use super::refusal::{Answer, Refusal, Reply};
use super::schema;
use super::send::missing;
use super::state::GraphState;
use super::store::Event;
use super::timezones::Zone;
use crate::Sim;
use crate::directory;

/// The zone every simulated mailbox is set to.
pub(crate) const MAILBOX_ZONE: &str = "W. Europe Standard Time";

type Span = (DateTime<Utc>, DateTime<Utc>);
type Busy = (DateTime<Utc>, DateTime<Utc>, char, String);

/// What stands in someone's default calendar in a window: start, end, digit, subject.
fn busy(graph: &mut GraphState, address: &str, from: DateTime<Utc>, to: DateTime<Utc>) -> Vec<Busy> {
    let mailbox = graph.open(address);
    let calendar = mailbox.default_calendar();
    let digit = |event: &Event| match event.props.get("showAs").and_then(Value::as_str).unwrap_or("busy") {
        "free" | "workingElsewhere" => '0',
        "tentative" => '1',
        "oof" => '3',
        _ => '2',
    };
    let mut found: Vec<Busy> = mailbox
        .events
        .values()
        .filter(|event| !event.deleted && event.calendar == calendar)
        .flat_map(|event| {
            let subject = event.props.get("subject").and_then(Value::as_str).unwrap_or_default().to_owned();
            occurrences(event, from, to)
                .into_iter()
                .map(move |(_, start, end)| (start, end, digit(event), subject.clone()))
        })
        .collect();
    found.sort();
    found
}

/// The people of a tenant with a readable mailbox.
fn known(sim: &Sim, tenant: &str, address: &str) -> Option<String> {
    let directory = sim.directory();
    directory
        .find_in(tenant, address)
        .filter(|user| user.mailbox == directory::Mailbox::Enabled)
        .map(access::address)
}

pub(crate) fn get_schedule(sim: &Sim, call: &Call, owner: Option<&str>) -> Answer {
    only(call, &[Method::POST])?;
    call.wants_json()?;
    let entry = access::enter(sim, &call.caller, owner, Need::CalendarRead)?;
    let declared = [
        ("Schedules", "*Edm.String"),
        ("StartTime", "dateTimeTimeZone"),
        ("EndTime", "dateTimeTimeZone"),
        ("AvailabilityViewInterval", "Edm.Int32"),
    ];
    let parameters = schema::parameters("getSchedule", &declared, &call.body)?;
    let part = |name: &str| parameters.get(name).ok_or_else(|| missing("getSchedule", name));
    let schedules = compose::strings(part("Schedules")?);
    let ((from, ..), (to, ..)) = (moment(part("StartTime")?)?, moment(part("EndTime")?)?);
    let interval = parameters.get("AvailabilityViewInterval").and_then(Value::as_i64).unwrap_or(30);
    // <https://learn.microsoft.com/graph/outlook-get-free-busy-schedule>: 20 schedules, less than 62 days, 5 to 1440 minutes.
    if schedules.is_empty() || schedules.len() > 20 {
        return Err(Refusal::bad(
            "ErrorInvalidParameter",
            "The number of schedules must be between 1 and 20.",
        ));
    }
    if to <= from || to - from >= TimeDelta::days(62) {
        return Err(Refusal::bad(
            "ErrorInvalidParameter",
            "The requested time duration specified for FreeBusyViewOptions.TimeWindow is not between the allowed limits.",
        ));
    }
    if !(5..=1440).contains(&interval) {
        return Err(Refusal::bad(
            "ErrorInvalidParameter",
            "The merged free/busy interval must be between 5 and 1440 minutes.",
        ));
    }
    let zone = call.prefer.zone.clone().unwrap_or_else(Zone::utc);
    let mut value = Vec::new();
    for schedule in schedules {
        let Some(address) = known(sim, &entry.owner.tenant, &schedule) else {
            value.push(json!({
                "scheduleId": schedule, "availabilityView": "", "scheduleItems": [], "workingHours": Value::Null,
                "error": {"message": "Microsoft.Exchange.InfoWorker.Common.Availability.MailRecipientNotFoundException: Unable to resolve e-mail address.", "responseCode": "ErrorMailRecipientNotFound"},
            }));
            continue;
        };
        let mut graph = sim.graph();
        let found = busy(&mut graph, &address, from, to);
        let own = address == entry.address();
        let mut view = String::new();
        let mut slot = from;
        while slot < to {
            let end = slot + TimeDelta::minutes(interval);
            let digit = found
                .iter()
                .filter(|(start, until, ..)| *start < end && *until > slot)
                .map(|(.., digit, _)| *digit)
                .max();
            view.push(digit.unwrap_or('0'));
            slot = end;
        }
        let items: Vec<Value> = found
            .iter()
            .map(|(start, end, digit, subject)| {
                let status = match digit {
                    '0' => "free",
                    '1' => "tentative",
                    '3' => "oof",
                    _ => "busy",
                };
                let mut item =
                    json!({"status": status, "start": zone.value(*start), "end": zone.value(*end)});
                // Subjects only where the owner's sharing allows: by default an organisation sees times.
                if own {
                    item["isPrivate"] = false.into();
                    item["subject"] = subject.clone().into();
                }
                item
            })
            .collect();
        value.push(json!({
            "scheduleId": schedule, "availabilityView": view, "scheduleItems": items,
            "workingHours": {"daysOfWeek": ["monday", "tuesday", "wednesday", "thursday", "friday"],
                "startTime": "08:00:00.0000000", "endTime": "17:00:00.0000000",
                "timeZone": {"name": MAILBOX_ZONE}},
        }));
    }
    let context = format!("{}/$metadata#Collection(microsoft.graph.scheduleInformation)", call.base);
    Ok(Reply::json(200, json!({"@odata.context": context, "value": value})))
}

/// `PT30M`, `PT1H30M`, `P1D`
fn duration(text: &str) -> Option<TimeDelta> {
    let rest = text.strip_prefix('P')?;
    let (days, time) = rest.split_once('T').unwrap_or((rest, ""));
    let mut total = TimeDelta::zero();
    for (part, units) in [(days, &[('D', 86_400)][..]), (time, &[('H', 3_600), ('M', 60), ('S', 1)])] {
        let mut number = String::new();
        for c in part.chars() {
            if c.is_ascii_digit() {
                number.push(c);
            } else {
                let (_, seconds) = units.iter().find(|(unit, _)| *unit == c)?;
                total += TimeDelta::seconds(number.parse::<i64>().ok()? * seconds);
                number.clear();
            }
        }
    }
    (total > TimeDelta::zero()).then_some(total)
}

pub(crate) fn find_meeting_times(sim: &Sim, call: &Call, owner: Option<&str>) -> Answer {
    only(call, &[Method::POST])?;
    call.wants_json()?;
    // `Calendars.Read` is not enough, on one's own mailbox either.
    if !call.caller.has(&["Calendars.Read.Shared", "Calendars.ReadWrite.Shared"]) {
        return Err(Refusal::denied());
    }
    let person = access::owner(sim, &call.caller, owner)?;
    // Another's: microsoftgraph/microsoft-graph-docs#9728.
    if person.oid != call.caller.oid {
        return Err(Refusal::bad("UnsupportedScenario", "This scenario is not supported."));
    }
    let declared = [
        ("attendees", "*attendeeBase"),
        ("locationConstraint", "locationConstraint"),
        ("timeConstraint", "timeConstraint"),
        ("meetingDuration", "Edm.Duration"),
        ("maxCandidates", "Edm.Int32"),
        ("isOrganizerOptional", "Edm.Boolean"),
        ("returnSuggestionReasons", "Edm.Boolean"),
        ("minimumAttendeePercentage", "Edm.Double"),
    ];
    let parameters = schema::parameters("findMeetingTimes", &declared, &call.body)?;
    let length = match parameters.get("meetingDuration").and_then(Value::as_str) {
        None => TimeDelta::minutes(30),
        Some(text) => duration(text)
            .ok_or_else(|| Refusal::bad("ErrorInvalidParameter", "MeetingDuration is invalid."))?,
    };
    let most = parameters.get("maxCandidates").and_then(Value::as_u64).unwrap_or(20);
    let least = parameters.get("minimumAttendeePercentage").and_then(Value::as_f64).unwrap_or(50.0);
    let constraint = parameters.get("timeConstraint").cloned().unwrap_or(Value::Null);
    let domain = constraint["activityDomain"].as_str().unwrap_or("work").to_owned();
    let windows = windows(&constraint, call.now)?;
    let asked: Vec<(Value, String)> = parameters
        .get("attendees")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|one| (one.clone(), one["emailAddress"]["address"].as_str().unwrap_or_default().to_lowercase()))
        .collect();
    let readable: Vec<Option<String>> =
        asked.iter().map(|(_, address)| known(sim, &person.tenant, address)).collect();
    let zone = call.prefer.zone.clone().unwrap_or_else(Zone::utc);
    let hours = Zone::named(MAILBOX_ZONE)?;
    let mut graph = sim.graph();
    let mine = access::address(&person);
    let mut found = Vec::new();
    for (from, to) in windows {
        let own = busy(&mut graph, &mine, from, to);
        let others: Vec<Option<Vec<Busy>>> = readable
            .iter()
            .map(|address| address.as_ref().map(|address| busy(&mut graph, address, from, to)))
            .collect();
        let mut start = from;
        while start + length <= to && (found.len() as u64) < most {
            let end = start + length;
            let taken =
                |list: &[Busy]| list.iter().any(|(s, e, digit, _)| *s < end && *e > start && *digit != '0');
            if works(&domain, &hours, start, end) && !taken(&own) {
                let states: Vec<&str> = others
                    .iter()
                    .map(|list| {
                        list.as_deref().map_or("unknown", |list| if taken(list) { "busy" } else { "free" })
                    })
                    .collect();
                let confidence = average(&states);
                if states.is_empty() || confidence >= least {
                    found.push(suggestion(&zone, start, end, confidence, &asked, &states));
                }
            }
            start += TimeDelta::minutes(30);
        }
    }
    found.sort_by(|left, right| {
        right["confidence"]
            .as_f64()
            .partial_cmp(&left["confidence"].as_f64())
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    for (order, suggestion) in found.iter_mut().enumerate() {
        suggestion["order"] = (order + 1).into();
    }
    let reason = if !found.is_empty() {
        ""
    } else if readable.iter().any(Option::is_none) {
        "attendeesUnavailableOrUnknown"
    } else {
        "attendeesUnavailable"
    };
    Ok(Reply::json(
        200,
        json!({
            "@odata.context": format!("{}/$metadata#microsoft.graph.meetingTimeSuggestionsResult", call.base),
            "emptySuggestionsReason": reason, "meetingTimeSuggestions": found,
        }),
    ))
}

/// The slots to look into; a week from now without any.
fn windows(constraint: &Value, now: DateTime<Utc>) -> Result<Vec<Span>, Refusal> {
    let mut windows = Vec::new();
    for slot in constraint["timeSlots"]
        .as_array()
        .or_else(|| constraint["timeslots"].as_array())
        .into_iter()
        .flatten()
    {
        windows.push((moment(&slot["start"])?.0, moment(&slot["end"])?.0));
    }
    if windows.is_empty() {
        windows.push((now, now + TimeDelta::days(7)));
    }
    Ok(windows)
}

/// Working hours are the mailbox's, in its own zone; the default domain hides evenings and weekends without a word, and
/// `personal` evenings only.
fn works(domain: &str, zone: &Zone, start: DateTime<Utc>, end: DateTime<Utc>) -> bool {
    if domain == "unrestricted" {
        return true;
    }
    let (start, end) = (zone.wall_clock(start), zone.wall_clock(end));
    let weekend = matches!(start.weekday(), Weekday::Sat | Weekday::Sun);
    let minutes = end.hour() * 60 + end.minute();
    let in_hours = start.hour() >= 8 && start.date() == end.date() && minutes <= 17 * 60;
    in_hours && (domain == "personal" || !weekend)
}

/// free 100, unknown 49, busy 0.
fn average(states: &[&str]) -> f64 {
    if states.is_empty() {
        return 100.0;
    }
    let sum: u32 = states
        .iter()
        .map(|state| match *state {
            "free" => 100,
            "unknown" => 49,
            _ => 0,
        })
        .sum();
    f64::from(sum) / f64::from(u32::try_from(states.len()).unwrap_or(1))
}

fn suggestion(
    zone: &Zone,
    start: DateTime<Utc>,
    end: DateTime<Utc>,
    confidence: f64,
    asked: &[(Value, String)],
    states: &[&str],
) -> Value {
    let attendees: Vec<Value> = asked
        .iter()
        .zip(states)
        .map(|((one, address), state)| json!({
            "availability": state,
            "attendee": {"type": one.get("type").cloned().unwrap_or_else(|| "required".into()), "emailAddress": {"address": address}},
        }))
        .collect();
    json!({
        "confidence": confidence, "organizerAvailability": "free", "suggestionReason": Value::Null,
        "meetingTimeSlot": {"start": zone.value(start), "end": zone.value(end)},
        "attendeeAvailability": attendees, "locations": [],
    })
}
