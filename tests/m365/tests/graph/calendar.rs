//! Events and people.

use super::*;

fn event() -> Value {
    json!({"subject": "Let's go for lunch", "body": {"contentType": "HTML", "content": "Does late morning work for you?"},
        "start": {"dateTime": "2026-04-15T12:00:00", "timeZone": "Pacific Standard Time"},
        "end": {"dateTime": "2026-04-15T14:00:00", "timeZone": "Pacific Standard Time"},
        "location": {"displayName": "Harry's Bar"},
        "attendees": [{"emailAddress": {"address": "samanthab@contoso.example", "name": "Samantha Booth"}, "type": "required"}],
        "isOnlineMeeting": true, "onlineMeetingProvider": "teamsForBusiness", "transactionId": "t-1"})
}

#[tokio::test]
async fn an_event_is_made_once_per_transaction_and_invites_once() {
    let running = running().await;
    running.sim.clock().freeze(true);
    running.sim.graph().switches.join_url_delay_ms = 1_000;
    let ada = Client::new(&running, ADA, OWN).immutable();
    let (status, made) = ada.post("/me/events", &event()).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(made["start"], json!({"dateTime": "2026-04-15T19:00:00.0000000", "timeZone": "UTC"}));
    assert_eq!(made["originalStartTimeZone"], "Pacific Standard Time");
    assert_eq!(made["responseStatus"]["response"], "organizer");
    assert_eq!(made["onlineMeeting"], Value::Null, "the link lags");
    running.sim.clock().advance(TimeDelta::seconds(2));
    let path = format!("/me/events/{}", id(&made));
    let (_, read) = ada.get(&path).await;
    assert!(
        read["onlineMeeting"]["joinUrl"]
            .as_str()
            .expect("a link")
            .starts_with("https://teams.microsoft.com/")
    );
    let (status, again) = ada.post("/me/events", &event()).await;
    assert_eq!((status.as_u16(), id(&again)), (201, id(&made)));
    let mut other = event();
    other["subject"] = "Other".into();
    assert_eq!(id(&ada.post("/me/events", &other).await.1), id(&made), "UNVERIFIED: the old one");
    assert_eq!(running.sim.graph().mailbox(ADA).events().len(), 1);
    assert_eq!(running.sim.graph().invitations().len(), 1);
    assert_eq!(ada.patch(&path, &json!({"categories": ["x"]})).await.0, 200);
    assert_eq!(running.sim.graph().invitations().len(), 1, "categories are private");
    let both = json!({"attendees": [event()["attendees"][0], {"emailAddress": {"address": "new@contoso.example"}, "type": "optional"}]});
    ada.patch(&path, &both).await;
    assert_eq!(running.sim.graph().invitations()[1].to, ["new@contoso.example"]);
    assert_eq!(ada.post(&format!("{path}/cancel"), &json!({"Comment": "Cancelled."})).await.0, 202);
    assert_eq!(ada.get(&path).await.0, 404);
    assert_eq!(running.sim.graph().invitations()[2].comment.as_deref(), Some("Cancelled."));
}

#[tokio::test]
async fn times_without_sense_are_refused() {
    let running = running().await;
    let ada = Client::new(&running, ADA, OWN);
    let with = |start: Value, end: Value, all_day: bool| {
        let mut event = event();
        (event["start"], event["end"], event["isAllDay"]) = (start, end, all_day.into());
        event["transactionId"] = Value::Null;
        event
    };
    let at = |time: &str, zone: &str| json!({"dateTime": time, "timeZone": zone});
    for (event, expected) in [
        (
            with(
                at("2026-04-15T12:00:00", "Europe/Zurich"),
                at("2026-04-15T13:00:00", "Europe/Zurich"),
                false,
            ),
            "TimeZoneNotSupportedException",
        ),
        (
            with(at("2026-04-15T12:00:00", ""), at("2026-04-15T13:00:00", "UTC"), false),
            "TimeZoneNotSupportedException",
        ),
        (
            with(at("2026-04-15T12:00:00+02:00", "UTC"), at("2026-04-15T13:00:00", "UTC"), false),
            "ErrorPropertyValidationFailure",
        ),
        (
            with(at("2026-04-15T12:00:00", "UTC"), at("2026-04-15T11:00:00", "UTC"), false),
            "ErrorCalendarEndDateIsEarlierThanStartDate",
        ),
        (
            with(at("2026-04-15T12:00:00", "UTC"), at("2026-04-16T12:00:00", "UTC"), true),
            "ErrorInvalidRequest",
        ),
    ] {
        let (status, answer) = ada.post("/me/events", &event).await;
        assert_eq!((status, code(&answer)), (StatusCode::BAD_REQUEST, expected), "{event}");
    }
    let (_, made) = ada
        .post(
            "/me/events",
            &with(
                at("2026-04-15T00:00:00", "Europe/Berlin"),
                at("2026-04-16T00:00:00", "Europe/Berlin"),
                true,
            ),
        )
        .await;
    assert_eq!(made["start"]["dateTime"], "2026-04-14T22:00:00.0000000");
    let quoted = ada.request(Method::GET, "/me/events").header("prefer", "outlook.timezone='UTC'");
    assert_eq!(Client::finish(quoted).await.0, 500);
    let view = |from: &str, to: &str| format!("/me/calendarView?startDateTime={from}&endDateTime={to}");
    assert_eq!(
        ada.get(&view("2026-04-14T22:00:00%2B00:00", "2026-04-15T00:00:00")).await.1["value"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    assert_eq!(
        ada.get(&view("2026-04-14T22:00:00+00:00", "2026-04-15T00:00:00")).await.0,
        400,
        "the plus became a space"
    );
    assert_eq!(
        ada.get(&format!("{}&$select=createdDateTime", view("2026-04-14", "2026-04-15"))).await.0,
        400
    );
    assert!(running.sim.graph().mailbox(ADA).events().len() == 1);
}

#[tokio::test]
async fn a_weekly_series_is_expanded_in_the_view_and_stays_one_master_in_the_list() {
    let running = running().await;
    let ada = Client::new(&running, ADA, OWN);
    let series = json!({"subject": "Let's go for lunch", "start": {"dateTime": "2026-09-07T12:00:00", "timeZone": "Pacific Standard Time"},
        "end": {"dateTime": "2026-09-07T14:00:00", "timeZone": "Pacific Standard Time"},
        "recurrence": {"pattern": {"type": "weekly", "interval": 1, "daysOfWeek": ["Monday"]},
            "range": {"type": "endDate", "startDate": "2026-09-07", "endDate": "2026-12-31"}}});
    let (status, made) = ada.post("/me/events", &series).await;
    assert_eq!((status.as_u16(), made["type"].as_str()), (201, Some("seriesMaster")), "{made}");
    let (_, view) =
        ada.get("/me/calendarView?startDateTime=2026-10-26T00:00:00&endDateTime=2026-11-09T00:00:00").await;
    let starts: Vec<&str> = view["value"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["start"]["dateTime"].as_str())
        .collect();
    // The clocks go back on the first of November.
    assert_eq!(starts, ["2026-10-26T19:00:00.0000000", "2026-11-02T20:00:00.0000000"]);
    let occurrence = id(&view["value"][1]);
    assert_eq!(ada.get(&format!("/me/events/{occurrence}")).await.1["type"], "occurrence");
    assert_eq!(ada.get("/me/events").await.1["value"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn people_are_found_by_the_rules_of_each_directory() {
    let running = running().await;
    let ada = Client::new(&running, ADA, OWN);
    let search = "/users?$search=\"displayName:bob\" OR \"mail:bob\"&$select=id,displayName,mail&$count=true";
    assert_eq!(ada.get(search).await.0, 400, "without ConsistencyLevel");
    let eventual = ada.request(Method::GET, search).header("consistencylevel", "eventual");
    let (_, found) = Client::finish(eventual).await;
    assert_eq!(
        (found["value"][0]["displayName"].as_str(), found["@odata.count"].as_u64()),
        (Some("Bob Keller"), Some(1))
    );
    running.sim.graph().mailbox(ADA).add_contact("Robert Paulson", "rp@club.example");
    let contacts = "/me/contacts?$filter=emailAddresses/any(a:a/address eq 'rp@club.example')";
    assert_eq!(ada.get(contacts).await.1["value"][0]["displayName"], "Robert Paulson");
    assert_eq!(
        code(&ada.get("/me/contacts?$filter=emailAddresses/any(a:startswith(a/address,'rp'))").await.1),
        "ErrorInvalidUrlQueryFilter"
    );
    assert_eq!(ada.get("/me/people?$search=\"kelle\"").await.1["value"][0]["displayName"], "Bob Keller");
    let slots = json!({"attendees": [{"type": "required", "emailAddress": {"address": "bob@acme.example"}}], "meetingDuration": "PT1H",
        "timeConstraint": {"activityDomain": "work", "timeSlots": [{"start": {"dateTime": "2026-04-13T08:00:00", "timeZone": "UTC"}, "end": {"dateTime": "2026-04-13T18:00:00", "timeZone": "UTC"}}]}});
    let (status, found) = ada.post("/me/findMeetingTimes", &slots).await;
    assert_eq!(
        (status.as_u16(), found["meetingTimeSuggestions"][0]["confidence"].as_f64()),
        (200, Some(100.0)),
        "{found}"
    );
}

#[tokio::test]
async fn events_are_counted_and_a_list_says_which_calendar_it_is_of() {
    let running = running().await;
    let ada = Client::new(&running, ADA, OWN);
    ada.post("/me/events", &event()).await;
    assert_eq!(ada.get("/me/events/$count").await, (StatusCode::OK, json!(1)));
    assert_eq!(ada.get("/me/calendar/events/$count?$filter=subject eq 'x'").await.1, json!(0));
    let context =
        async |path: &str| ada.get(path).await.1["@odata.context"].as_str().expect("a context").to_owned();
    assert!(context("/me/events").await.ends_with("')/events"));
    assert!(context("/me/calendar/events").await.ends_with("')/calendar/events"));
    let (_, made) = ada.post("/me/calendars", &json!({"name": "Volunteer"})).await;
    assert!(made["@odata.context"].as_str().is_some_and(|at| at.ends_with("')/calendars/$entity")), "{made}");
    assert!(context(&format!("/me/calendars/{}", id(&made))).await.ends_with("')/calendars/$entity"));
    let found = context(&format!("/me/calendars/{}/events", id(&made))).await;
    assert!(found.contains("')/calendars('") && found.ends_with("')/events"), "{found}");
}

#[tokio::test]
async fn a_calendar_is_renamed_and_deleted_with_what_is_in_it_unless_it_is_the_default() {
    let running = running().await;
    let ada = Client::new(&running, ADA, OWN);
    let (_, made) = ada.post("/me/calendars", &json!({"name": "Volunteer"})).await;
    let path = format!("/me/calendars/{}", id(&made));
    let (status, renamed) = ada.patch(&path, &json!({"name": "Social events"})).await;
    assert_eq!((status.as_u16(), renamed["name"].as_str()), (200, Some("Social events")), "{renamed}");
    assert_eq!(ada.patch("/me/calendar", &json!({"name": "Mine"})).await.1["name"], "Mine");
    let (_, inside) = ada.post(&format!("{path}/events"), &event()).await;
    assert_eq!(ada.bare(Method::DELETE, &path).await.0, 204);
    assert_eq!(ada.get(&path).await.0, 404);
    assert_eq!(ada.get(&format!("/me/events/{}", id(&inside))).await.0, 404);
    assert_eq!(ada.bare(Method::DELETE, "/me/calendar").await.0, 400);
}

#[tokio::test]
async fn a_meeting_is_forwarded_and_its_reminder_put_off() {
    let running = running().await;
    let ada = Client::new(&running, ADA, OWN);
    let (_, made) = ada.post("/me/events", &event()).await;
    let path = format!("/me/events/{}", id(&made));
    // As the sample spells it.
    let sample = json!({"ToRecipients": [{"EmailAddress": {"Address": "danas@contoso.com", "Name": "Dana Swope"}}],
        "Comment": "Dana, hope you can make this meeting."});
    let reader = Client::new(&running, ADA, &["Calendars.Read"]);
    assert_eq!(reader.post(&format!("{path}/forward"), &sample).await.0, 202);
    let told = running.sim.graph().invitations().last().map(|one| (one.kind, one.to.clone()));
    assert_eq!(told, Some(("forward", vec!["danas@contoso.com".to_owned()])));
    assert_eq!(ada.post(&format!("{path}/forward"), &json!({"Comment": "x"})).await.0, 400);
    assert_eq!(ada.bare(Method::POST, &format!("{path}/dismissReminder")).await.0, 200);
    let later = json!({"newReminderTime": {"dateTime": "2026-04-15T11:55:00", "timeZone": "UTC"}});
    assert_eq!(ada.post(&format!("{path}/snoozeReminder"), &later).await.0, 200);
    assert_eq!(ada.post(&format!("{path}/snoozeReminder"), &json!({})).await.0, 400);
    assert_eq!(reader.bare(Method::POST, &format!("{path}/dismissReminder")).await.0, 403);
}
