//! `event.create`: an event in the user's own calendar, with invitations and a Teams link.
//!
//! The invariant: one job asks for one event with the same bytes and the same transaction id on every
//! attempt. Exchange sends the invitations itself, so a second event would be a second invitation.

mod local_time;

use std::fmt::Write as _;
use std::time::Duration;

use chrono::{DateTime, Utc};
use followthrough::context::Context;
use followthrough::graph::Graph;
use followthrough::graph::calendar::Event;
use followthrough::job::{Gate, Invalid, Job, Spec};
use followthrough::oauth::scopes::Integration;
use followthrough::outcome::Failure;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::content::{Address, Body, check_line};

/// <https://learn.microsoft.com/graph/api/resources/event>
const MOST_ATTENDEES: usize = 500;
/// Four weeks, as far ahead as Outlook offers to remind.
const EARLIEST_REMINDER: u32 = 4 * 7 * 24 * 60;
/// What is left of the request's 4 MB for the text.
const LONGEST_BODY: usize = 1_000_000;
/// The Teams link can lag behind the event.
const LINK_WAITS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

/// Creates an event in the user's calendar. Exchange invites the attendees at once.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventCreate {
    pub subject: String,
    /// Local time in `time_zone`, without an offset: `2026-11-24T15:00:00`. A time that the zone's clocks
    /// skip is refused (`nonexistent_time`); of a time they show twice the first is meant.
    pub start: String,
    /// Local time like `start`, and after it; of a time shown twice the first after `start`.
    pub end: String,
    /// Any IANA name, e.g. `Europe/Zurich`.
    pub time_zone: String,
    /// At most 500.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attendees: Vec<Attendee>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Body>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// A Teams meeting to join by link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub online_meeting: Option<bool>,
    /// Minutes before the start, at most four weeks; the calendar's own default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reminder_minutes: Option<u32>,
}

/// Somebody to invite.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Attendee {
    pub email: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `required` when absent.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<AttendeeType>,
}

#[derive(Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttendeeType {
    Required,
    Optional,
    /// A room or equipment.
    Resource,
}

/// The event that was made.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct EventCreated {
    /// Survives moves between calendars where the mailbox supports immutable ids (`immutable_id`).
    pub event_id: String,
    pub immutable_id: bool,
    /// The same in every attendee's calendar.
    pub ical_uid: Option<String>,
    /// Opens the event in Outlook on the web.
    pub web_link: Option<String>,
    /// The Teams link; absent when Exchange had not made it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join_url: Option<String>,
}

impl Job for EventCreate {
    const SPEC: Spec = Spec {
        kind: "event.create",
        integration: Some(Integration::OutlookCalendar),
        scopes: &["Calendars.ReadWrite"],
        gate: Gate::Mailbox,
        permits: 1,
        duty: None,
        attempts: 8,
        timeout: Duration::from_mins(2),
        tool_pattern: "event.create",
        example: r#"{"subject": "Review of the offer", "start": "2026-12-01T15:00:00", "end": "2026-12-01T15:30:00",
            "time_zone": "Europe/Zurich", "attendees": [{"email": "bob@contoso.example", "name": "Bob", "type": "required"}],
            "body": {"format": "text", "content": "The points of our last meeting."}, "location": "Room 4",
            "online_meeting": true, "reminder_minutes": 15}"#,
    };
    type Result = EventCreated;

    fn check(&self) -> Result<(), Invalid> {
        check_line(&self.subject, "subject", 998)?;
        if let Some(location) = &self.location {
            check_line(location, "location", 512)?;
        }
        self.times()?;
        if self.attendees.len() > MOST_ATTENDEES {
            let message = format!("expected at most {MOST_ATTENDEES} attendees");
            return Err(Invalid::new("attendees", message).code("too_many_attendees"));
        }
        for (i, attendee) in self.attendees.iter().enumerate() {
            attendee.address().check(&format!("attendees[{i}]"))?;
        }
        if self.body.as_ref().is_some_and(|body| body.content.len() > LONGEST_BODY) {
            return Err(Invalid::new("body.content", format!("expected at most {LONGEST_BODY} bytes")));
        }
        if self.reminder_minutes.is_some_and(|minutes| minutes > EARLIEST_REMINDER) {
            return Err(Invalid::new("reminder_minutes", format!("expected at most {EARLIEST_REMINDER}")));
        }
        Ok(())
    }

    fn render(&self) -> String {
        let mut text =
            format!("Event: {}\n{} to {} ({})\n", self.subject, self.start, self.end, self.time_zone);
        if let Some(location) = &self.location {
            let _ = writeln!(text, "Where: {location}");
        }
        if self.online_meeting == Some(true) {
            text.push_str("With a Teams link\n");
        }
        if !self.attendees.is_empty() {
            let shown: Vec<String> =
                self.attendees.iter().map(|attendee| attendee.address().shown()).collect();
            let _ = writeln!(text, "Invited at once: {}", shown.join(", "));
        }
        if let Some(body) = &self.body {
            let _ = write!(text, "\n{}", body.content);
        }
        text
    }

    async fn run(&self, cx: &Context) -> Result<EventCreated, Failure> {
        let graph = &cx.graph()?;
        let (start, end) = self.times().map_err(|invalid| {
            Failure::reject(invalid.code, format!("payload.{}: {}", invalid.path, invalid.message))
        })?;
        let request = self.event(&cx.effect_id("event").to_string(), start, end).to_string();
        let made =
            cx.effect("event")
                .request(request)
                .perform(
                    |intent| async move {
                        let transaction = intent.id.to_string();
                        Ok(graph.find_event(start, end, &transaction).await?.map(created))
                    },
                    |intent| async move {
                        Ok(created(graph.create_event(intent.request.into_bytes().into()).await?))
                    },
                )
                .await?;
        if self.online_meeting == Some(true) && made.join_url.is_none() {
            return Ok(self.with_link(cx, graph, made).await);
        }
        Ok(made)
    }
}

impl EventCreate {
    fn times(&self) -> Result<(DateTime<Utc>, DateTime<Utc>), Invalid> {
        local_time::between(&self.start, &self.end, &self.time_zone)
    }

    /// UTC, because Graph knows only some of the IANA names.
    fn event(&self, transaction: &str, start: DateTime<Utc>, end: DateTime<Utc>) -> Value {
        let moment = |time: DateTime<Utc>| json!({ "dateTime": time.format("%Y-%m-%dT%H:%M:%S").to_string(), "timeZone": "UTC" });
        let mut event = json!({
            "subject": self.subject,
            "start": moment(start),
            "end": moment(end),
            "transactionId": transaction,
        });
        if !self.attendees.is_empty() {
            event["attendees"] = self.attendees.iter().map(Attendee::graph).collect();
        }
        if let Some(body) = &self.body {
            event["body"] = body.item_body();
        }
        if let Some(location) = &self.location {
            event["location"] = json!({ "displayName": location });
        }
        if self.online_meeting == Some(true) {
            event["isOnlineMeeting"] = json!(true);
            event["onlineMeetingProvider"] = json!("teamsForBusiness");
        }
        if let Some(minutes) = self.reminder_minutes {
            event["isReminderOn"] = json!(true);
            event["reminderMinutesBeforeStart"] = json!(minutes);
        }
        event
    }

    /// Reads the event again until it has its link. The event is made: no answer here can fail the job.
    async fn with_link(&self, cx: &Context, graph: &Graph, made: EventCreated) -> EventCreated {
        for wait in LINK_WAITS {
            match graph.event(&made.event_id).await {
                Ok(event) if event.join_url().is_some() => {
                    return EventCreated { join_url: event.join_url().map(str::to_owned), ..made };
                }
                Ok(_) => cx.clock().sleep(wait).await,
                Err(_) => return made,
            }
        }
        made
    }
}

impl Attendee {
    fn address(&self) -> Address {
        Address { email: self.email.clone(), name: self.name.clone() }
    }

    fn graph(&self) -> Value {
        let mut attendee = self.address().recipient();
        attendee["type"] = json!(self.kind.unwrap_or(AttendeeType::Required));
        attendee
    }
}

fn created(event: Event) -> EventCreated {
    EventCreated {
        join_url: event.join_url().map(str::to_owned),
        immutable_id: event.immutable,
        event_id: event.id,
        ical_uid: event.ical_uid,
        web_link: event.web_link,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(changes: &Value) -> Result<EventCreate, Invalid> {
        let mut payload: Value =
            serde_json::from_str(EventCreate::SPEC.example).expect("the example is JSON");
        for (name, value) in changes.as_object().expect("fields") {
            payload[name] = value.clone();
        }
        let job: EventCreate = serde_json::from_value(payload).expect("the shape is right");
        job.check().map(|()| job)
    }

    #[test]
    fn the_example_is_a_good_payload_and_nothing_of_it_is_lost() {
        let job = job(&json!({})).unwrap_or_else(|invalid| panic!("{invalid:?}"));
        let example: Value = serde_json::from_str(EventCreate::SPEC.example).expect("JSON");
        assert_eq!(serde_json::to_value(&job).expect("serializable"), example);
        assert!(job.render().contains("Invited at once: Bob <bob@contoso.example>"));
    }

    #[test]
    fn the_event_is_in_utc_and_the_same_bytes_every_time() {
        let job = job(&json!({})).unwrap_or_else(|invalid| panic!("{invalid:?}"));
        let (start, end) = job.times().unwrap_or_else(|invalid| panic!("{invalid:?}"));
        let event = job.event("t-1", start, end);
        assert_eq!(event["start"], json!({"dateTime": "2026-12-01T14:00:00", "timeZone": "UTC"}));
        assert_eq!(event["attendees"][0]["type"], "required");
        assert_eq!(event["onlineMeetingProvider"], "teamsForBusiness");
        assert_eq!(event.to_string(), job.event("t-1", start, end).to_string());
    }

    #[test]
    fn each_fault_is_named_with_its_path() {
        let many: Vec<Value> = (0..501).map(|i| json!({"email": format!("a{i}@x.example")})).collect();
        for (changes, path, code) in [
            (json!({"attendees": many}), "attendees", "too_many_attendees"),
            (json!({"attendees": [{"email": "x"}]}), "attendees[0].email", "invalid_address"),
            (json!({"time_zone": "W. Europe Standard Time"}), "time_zone", "unknown_time_zone"),
            (json!({"start": "2026-12-01T15:00:00Z"}), "start", "invalid_payload"),
            (json!({"end": "2026-12-01T15:00:00"}), "end", "end_not_after_start"),
            (json!({"reminder_minutes": 40_321}), "reminder_minutes", "invalid_payload"),
            (json!({"subject": "a\nb"}), "subject", "invalid_payload"),
        ] {
            let invalid = job(&changes).err().unwrap_or_else(|| panic!("{path} should be refused"));
            assert_eq!((invalid.path.as_str(), invalid.code), (path, code));
        }
    }
}
