//! An event as a response shows it: the properties that were sent, the ones the service computes, and times in the zone
//! of `Prefer: outlook.timezone`, UTC without it (<https://learn.microsoft.com/graph/api/resources/event>).

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value, json};

use super::body;
use super::ids::Kind;
use super::store::{Event, Mailbox};
use super::timezones::Zone;

pub(crate) struct EventView<'a> {
    pub(crate) mailbox: &'a Mailbox,
    pub(crate) event: &'a Event,
    pub(crate) zone: &'a Zone,
    pub(crate) immutable: bool,
    pub(crate) text: bool,
    pub(crate) now: DateTime<Utc>,
    /// Which occurrence of a series, with its start and end.
    pub(crate) occurrence: Option<(u32, DateTime<Utc>, DateTime<Utc>)>,
}

/// Marks an id's stay as the number of an occurrence.
pub(crate) const OCCURRENCE: u32 = 0x8000_0000;

pub(crate) fn fine_stamp(at: DateTime<Utc>) -> String {
    format!("{}.{:07}Z", at.format("%Y-%m-%dT%H:%M:%S"), at.timestamp_subsec_nanos() / 100)
}

/// The Teams block that the service puts into the body of an online meeting; taking it out takes the meeting away.
pub(crate) fn blob(join_url: &str) -> String {
    format!(
        "<br><div>________________________________________________________________________________</div><div class=\"me-email-text\"><div>Microsoft Teams meeting</div><div><a href=\"{join_url}\" class=\"me-email-link\">Join the meeting now</a></div></div>"
    )
}

impl EventView<'_> {
    pub(crate) fn id(&self) -> String {
        let stay = match (self.occurrence, self.immutable) {
            (Some((number, ..)), _) => Some(OCCURRENCE | number),
            (None, true) => None,
            (None, false) => Some(self.event.stay),
        };
        self.mailbox.id(Kind::Event, self.event.key, stay)
    }

    fn prop(&self, name: &str, default: Value) -> Value {
        self.event.props.get(name).filter(|value| !value.is_null()).cloned().unwrap_or(default)
    }

    fn body(&self) -> Value {
        let sent = self.event.props.get("body").cloned().unwrap_or(Value::Null);
        let content = sent["content"].as_str().unwrap_or_default();
        if self.text {
            let text =
                if sent["contentType"] == "html" { body::text_of(content) } else { content.to_owned() };
            return json!({"contentType": "text", "content": text});
        }
        // "Currently, this operation returns event bodies in only HTML format" (event-get).
        let html = if sent["contentType"] == "html" || content.is_empty() {
            content.to_owned()
        } else {
            body::stored_html(&body::escape(content).replace('\n', "<br>\n"))
        };
        json!({"contentType": "html", "content": html})
    }

    fn online_meeting(&self) -> Value {
        let visible = self.event.join_at.is_some_and(|at| at <= self.now);
        if visible { self.prop("onlineMeeting", Value::Null) } else { Value::Null }
    }

    pub(crate) fn all(&self) -> Map<String, Value> {
        let (event, mailbox) = (self.event, self.mailbox);
        let key = mailbox.change_key(event.change);
        let id = self.id();
        let (start, end) = self.occurrence.map_or((event.start, event.end), |(_, start, end)| (start, end));
        let series = event.props.get("recurrence").is_some_and(Value::is_object);
        let kind = match (self.occurrence.is_some(), series) {
            (true, _) => "occurrence",
            (false, true) => "seriesMaster",
            (false, false) => "singleInstance",
        };
        let body = self.body();
        let preview: String =
            body::preview(body["contentType"] == "html", body["content"].as_str().unwrap_or_default());
        let link: String = url::form_urlencoded::byte_serialize(id.as_bytes()).collect();
        let organiser = event.organised_here;
        let mut all = json!({
            "@odata.etag": format!("W/\"{key}\""),
            "id": id,
            "createdDateTime": fine_stamp(event.created),
            "lastModifiedDateTime": fine_stamp(event.modified),
            "changeKey": key,
            "categories": self.prop("categories", json!([])),
            "transactionId": self.prop("transactionId", Value::Null),
            "originalStartTimeZone": event.start_zone,
            "originalEndTimeZone": event.end_zone,
            "iCalUId": event.uid,
            "reminderMinutesBeforeStart": self.prop("reminderMinutesBeforeStart", json!(15)),
            "isReminderOn": self.prop("isReminderOn", json!(true)),
            "hasAttachments": event.attachments.iter().any(|one| !one.inline),
            "subject": self.prop("subject", json!("")),
            "bodyPreview": preview,
            "importance": self.prop("importance", json!("normal")),
            "sensitivity": self.prop("sensitivity", json!("normal")),
            "isAllDay": self.prop("isAllDay", json!(false)),
            "isCancelled": event.cancelled,
            "isOrganizer": organiser,
            "responseRequested": self.prop("responseRequested", json!(true)),
            "seriesMasterId": self.occurrence.map(|_| mailbox.id(Kind::Event, event.key, Some(event.stay))),
            "showAs": self.prop("showAs", json!("busy")),
            "type": kind,
            "webLink": format!("https://outlook.office365.com/owa/?itemid={link}&exvsurl=1&path=/calendar/item"),
            "onlineMeetingUrl": Value::Null,
            "isOnlineMeeting": self.prop("isOnlineMeeting", json!(false)),
            "onlineMeetingProvider": self.prop("onlineMeetingProvider", json!("unknown")),
            "allowNewTimeProposals": self.prop("allowNewTimeProposals", json!(true)),
            "occurrenceId": Value::Null,
            "isDraft": false,
            "hideAttendees": self.prop("hideAttendees", json!(false)),
        });
        // In two steps: one `json!` of this size exceeds the macro's recursion limit.
        all["responseStatus"] = if organiser {
            json!({"response": "organizer", "time": "0001-01-01T00:00:00Z"})
        } else {
            self.prop("responseStatus", json!({"response": "notResponded", "time": "0001-01-01T00:00:00Z"}))
        };
        all["body"] = body;
        all["start"] = self.zone.value(start);
        all["end"] = self.zone.value(end);
        all["location"] = self.prop("location", json!({
            "displayName": "", "locationType": "default", "uniqueIdType": "unknown", "address": {}, "coordinates": {},
        }));
        all["locations"] = self.prop("locations", json!([]));
        all["recurrence"] =
            if self.occurrence.is_some() { Value::Null } else { self.prop("recurrence", Value::Null) };
        all["attendees"] = self.prop("attendees", json!([]));
        all["organizer"] = event.organizer.value();
        all["onlineMeeting"] = self.online_meeting();
        let Value::Object(mut map) = all else { return Map::new() };
        map.remove("occurrenceId");
        map
    }

    pub(crate) fn original_start(&self) -> Value {
        self.occurrence
            .map_or(Value::Null, |(_, start, _)| start.to_rfc3339_opts(SecondsFormat::Secs, true).into())
    }
}
