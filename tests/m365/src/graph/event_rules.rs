//! The rules of an event that do not follow from the metadata: its times, its attendees, its online meeting
//! (<https://learn.microsoft.com/graph/api/resources/event>).

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::body;
use super::compose::{self, Names};
use super::event_view::blob;
use super::refusal::Refusal;
use super::store::Event;
use super::timezones::Zone;

/// `dateTime` has no offset; the zone stands beside it (<https://learn.microsoft.com/graph/api/resources/datetimetimezone>).
/// What an offset does there is UNVERIFIED; one that contradicts the zone is refused, so that no client relies on luck.
pub(crate) fn moment(value: &Value) -> Result<(DateTime<Utc>, String, NaiveDateTime), Refusal> {
    let invalid =
        || Refusal::bad("ErrorPropertyValidationFailure", "At least one property failed validation.");
    let text = value["dateTime"].as_str().ok_or_else(invalid)?;
    let zone = Zone::named(value["timeZone"].as_str().unwrap_or_default())?;
    let local = if let Some(bare) = text.strip_suffix('Z').filter(|_| zone == Zone::utc()) {
        bare.parse::<NaiveDateTime>().map_err(|_| invalid())?
    } else {
        text.parse::<NaiveDateTime>()
            .or_else(|_| NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M"))
            .map_err(|_| invalid())?
    };
    Ok((zone.moment(local), zone.name, local))
}

/// The rules of an event that do not follow from the metadata; fills in what the service adds.
pub(crate) fn settle_props(
    event: &mut Event,
    sent: &Map<String, Value>,
    names: &Names,
    create: bool,
) -> Result<(), Refusal> {
    let (mut start_local, mut end_local) = (None, None);
    for (name, value) in sent {
        match name.as_str() {
            "start" => {
                let (at, zone, local) = moment(value)?;
                (event.start, event.start_zone, start_local) = (at, zone, Some(local));
            }
            "end" => {
                let (at, zone, local) = moment(value)?;
                (event.end, event.end_zone, end_local) = (at, zone, Some(local));
            }
            "body" => {
                let mut value = value.clone();
                if value["contentType"] == "html" {
                    value["content"] =
                        body::stored_html(value["content"].as_str().unwrap_or_default()).into();
                }
                event.props.insert(name.clone(), value);
            }
            "attendees" => {
                event.props.insert(name.clone(), attendees(value, event.props.get("attendees"), names)?);
            }
            "location" => {
                let mut value = value.clone();
                if let (Some(place), Some(map)) =
                    (value["displayName"].as_str().map(str::to_owned), value.as_object_mut())
                {
                    map.entry("locationType").or_insert_with(|| "default".into());
                    map.insert("uniqueId".into(), place.clone().into());
                    map.insert("uniqueIdType".into(), "private".into());
                    if !sent.contains_key("locations") {
                        let one = json!({"displayName": place, "locationType": map["locationType"], "uniqueId": place, "uniqueIdType": "private"});
                        event.props.insert("locations".into(), json!([one]));
                    }
                }
                event.props.insert(name.clone(), value);
            }
            "recurrence" if value.is_object() => {
                event.props.insert(name.clone(), recurrence(value, &event.start_zone));
            }
            "locations" => {
                let mut value = value.clone();
                for one in value.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
                    one.entry("locationType").or_insert_with(|| "default".into());
                    one.entry("uniqueIdType").or_insert_with(|| "unknown".into());
                }
                // Without a location, the names together are one.
                if !sent.contains_key("location") {
                    let names: Vec<&str> = value
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(|one| one["displayName"].as_str())
                        .collect();
                    let name = names.join("; ");
                    event.props.insert("location".into(), json!({"displayName": name, "locationType": "default", "uniqueId": name, "uniqueIdType": "private"}));
                }
                event.props.insert(name.clone(), value);
            }
            "singleValueExtendedProperties" => {
                for property in value.as_array().into_iter().flatten() {
                    let id = compose::property_id(property)?;
                    event.extended.retain(|(found, _)| *found != id);
                    if let Some(value) = property["value"].as_str() {
                        event.extended.push((id, value.to_owned()));
                    }
                }
            }
            // "Once set, cannot be changed"; a transaction id "cannot be changed by a later update".
            "transactionId" if !create => {}
            "isOnlineMeeting" | "onlineMeetingProvider" | "onlineMeeting"
                if event.props.get("isOnlineMeeting") == Some(&Value::Bool(true)) => {}
            "transactionId"
            | "subject"
            | "importance"
            | "sensitivity"
            | "isAllDay"
            | "isReminderOn"
            | "reminderMinutesBeforeStart"
            | "showAs"
            | "categories"
            | "responseRequested"
            | "allowNewTimeProposals"
            | "hideAttendees"
            | "recurrence"
            | "isOnlineMeeting"
            | "onlineMeetingProvider" => {
                event.props.insert(name.clone(), value.clone());
            }
            _ => {}
        }
    }
    check_times(event, start_local, end_local)
}

/// A pattern and range as the samples show them: with what nobody sends.
fn recurrence(sent: &Value, zone: &str) -> Value {
    let mut value = sent.clone();
    let pattern = json!({"month": 0, "dayOfMonth": 0, "firstDayOfWeek": "sunday", "index": "first"});
    let range = json!({"recurrenceTimeZone": zone, "numberOfOccurrences": 0});
    for (part, defaults) in [("pattern", pattern), ("range", range)] {
        let Some(part) = value[part].as_object_mut() else { continue };
        for (name, default) in defaults.as_object().into_iter().flatten() {
            part.entry(name.clone()).or_insert_with(|| default.clone());
        }
    }
    value
}

/// The end comes after the start; an all-day event starts and ends at midnight of one zone.
fn check_times(
    event: &Event,
    start_local: Option<NaiveDateTime>,
    end_local: Option<NaiveDateTime>,
) -> Result<(), Refusal> {
    let invalid = |text: &str| Refusal::bad("ErrorInvalidRequest", text);
    if event.end < event.start {
        return Err(Refusal::bad(
            "ErrorCalendarEndDateIsEarlierThanStartDate",
            "The event's end time is before its start time.",
        ));
    }
    if event.props.get("isAllDay") == Some(&Value::Bool(true)) {
        let local = |at: DateTime<Utc>, zone: &str| Zone::named(zone).map(|zone| zone.wall_clock(at));
        let start = start_local.map_or_else(|| local(event.start, &event.start_zone), Ok)?;
        let end = end_local.map_or_else(|| local(event.end, &event.end_zone), Ok)?;
        let midnight = |at: NaiveDateTime| at.time() == chrono::NaiveTime::MIN;
        if !midnight(start) || !midnight(end) {
            return Err(invalid(
                "The Event.Start and Event.End properties for an all-day event need to be set to midnight.",
            ));
        }
        if event.start_zone != event.end_zone {
            return Err(invalid("The start and end of an all-day event must be in the same time zone."));
        }
        if end - start < TimeDelta::hours(24) {
            return Err(invalid("The duration of an event marked as All day must be at least 24 hours."));
        }
    }
    Ok(())
}

/// The whole collection is replaced; an answer someone gave stays.
fn attendees(value: &Value, before: Option<&Value>, names: &Names) -> Result<Value, Refusal> {
    let sent = value.as_array().cloned().unwrap_or_default();
    // <https://learn.microsoft.com/graph/api/resources/event>: 500.
    if sent.len() > 500 {
        return Err(Refusal::bad(
            "ErrorInvalidArgument",
            "The maximum number of attendees (500) for an event was exceeded.",
        ));
    }
    let mut all = Vec::new();
    for one in &sent {
        let Some(address) = compose::address(one, names).filter(|address| !address.address.is_empty()) else {
            return Err(Refusal::bad(
                "ErrorInvalidRecipients",
                "At least one recipient is not valid., Recipient(s) missing an email address.",
            ));
        };
        let known = before.and_then(Value::as_array).into_iter().flatten().find(|found| {
            found["emailAddress"]["address"]
                .as_str()
                .is_some_and(|found| found.eq_ignore_ascii_case(&address.address))
        });
        let status = known.map_or_else(
            || json!({"response": "none", "time": "0001-01-01T00:00:00Z"}),
            |known| known["status"].clone(),
        );
        let mut shown = address.value();
        shown["type"] =
            one.get("type").filter(|kind| kind.is_string()).cloned().unwrap_or_else(|| "required".into());
        shown["status"] = status;
        all.push(shown);
    }
    Ok(Value::Array(all))
}

pub(crate) fn addresses(event: &Event) -> Vec<String> {
    let all = event.props.get("attendees").and_then(Value::as_array);
    all.into_iter()
        .flatten()
        .filter_map(|one| one["emailAddress"]["address"].as_str().map(str::to_owned))
        .collect()
}

pub(crate) fn uid(guid: Uuid, key: u64) -> String {
    let id = Uuid::new_v5(&guid, format!("event {key}").as_bytes()).simple().to_string().to_uppercase();
    format!("040000008200E00074C5B7101A82E00800000000{}000000000000000010000000{id}", &id[..16])
}

/// Sets up the online meeting of an event that asks for one (<https://learn.microsoft.com/graph/outlook-calendar-online-meetings>).
pub(crate) fn go_online(event: &mut Event, guid: Uuid, at: DateTime<Utc>) {
    if event.props.get("isOnlineMeeting") != Some(&Value::Bool(true))
        || event.props.contains_key("onlineMeeting")
    {
        return;
    }
    let id = Uuid::new_v5(&guid, format!("meeting {}", event.key).as_bytes()).simple().to_string();
    let url =
        format!("https://teams.microsoft.com/l/meetup-join/19%3ameeting_{id}%40thread.v2/0?context=%7b%7d");
    let conference: String = id.chars().filter(char::is_ascii_digit).take(9).collect();
    event.props.insert(
        "onlineMeeting".into(),
        json!({"joinUrl": url, "conferenceId": conference, "tollNumber": "+1 323-555-0166"}),
    );
    event.props.insert("onlineMeetingProvider".into(), "teamsForBusiness".into());
    event.join_at = Some(at);
    let before =
        event.props.get("body").cloned().unwrap_or_else(|| json!({"contentType": "html", "content": ""}));
    let text = before["content"].as_str().unwrap_or_default();
    let html = if before["contentType"] == "html" {
        body::stored_html(text)
    } else {
        body::stored_html(&body::escape(text).replace('\n', "<br>\n"))
    };
    let end = html.rfind("</body>").unwrap_or(html.len());
    let content = format!("{}{}{}", &html[..end], blob(&url), &html[end..]);
    event.props.insert("body".into(), json!({"contentType": "html", "content": content}));
}
