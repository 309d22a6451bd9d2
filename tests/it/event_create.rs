//! `event.create`: one event at the moment that was meant, and everybody invited once.

use followthrough_tests::world::{ADA, Pair, World};
use m365_sim::Fault;
use m365_sim::fault::When;
use serde_json::{Value, json};

async fn world() -> World {
    let world = World::open(Pair::Embedded).await.expect("the embedded pair is always there");
    world.connect(ADA, "outlook-calendar").await;
    world.sim().clear_calls();
    world
}

fn event(start: &str, end: &str, zone: &str) -> Value {
    json!({
        "subject": "Review", "start": start, "end": end, "time_zone": zone,
        "attendees": [{"email": "bob@acme.example"}, {"email": "carol@acme.example", "type": "optional"}],
    })
}

fn review() -> Value {
    event("2026-12-01T15:00:00", "2026-12-01T15:30:00", "Europe/Zurich")
}

fn events(world: &World) -> Vec<Value> {
    world.sim().graph().mailbox(ADA).events()
}

fn moment(at: &Value) -> String {
    assert_eq!(at["timeZone"], "UTC");
    at["dateTime"].as_str().expect("a time").chars().take(16).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_at_the_moment_that_its_zone_means() {
    let world = world().await;
    for (at, (start, zone, utc)) in [
        ("2026-07-01T15:00:00", "Europe/Zurich", "2026-07-01T13:00"),
        // Graph does not know these three names.
        ("2026-07-01T15:00:00", "Asia/Kathmandu", "2026-07-01T09:15"),
        ("2026-07-01T15:00:00", "Pacific/Chatham", "2026-07-01T02:15"),
        ("2026-07-01T15:00:00", "Antarctica/Troll", "2026-07-01T13:00"),
        // The hour that Berlin has twice: the first one.
        ("2026-10-25T02:30:00", "Europe/Berlin", "2026-10-25T00:30"),
        // The night in which Lord Howe moves by half an hour.
        ("2026-10-04T02:45:00", "Australia/Lord_Howe", "2026-10-03T15:45"),
    ]
    .into_iter()
    .enumerate()
    {
        let end = format!("{}T23:45:00", &start[..10]);
        world.run(&format!("zone-{at}"), "event.create", event(start, &end, zone), "succeeded").await;
        let made = events(&world);
        assert_eq!(made.len(), at + 1);
        assert_eq!(moment(&made[at]["start"]), utc, "{zone}");
    }
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_that_does_not_exist_is_refused_before_anybody_is_called() {
    let world = world().await;
    for (id, start, zone, code) in [
        ("gap", "2026-03-29T02:30:00", "Europe/Berlin", "nonexistent_time"),
        ("half a gap", "2026-10-04T02:15:00", "Australia/Lord_Howe", "nonexistent_time"),
        ("windows", "2026-03-29T12:30:00", "W. Europe Standard Time", "unknown_time_zone"),
    ] {
        let id = id.replace(' ', "-");
        let end = format!("{}T23:45:00", &start[..10]);
        world.publish(&[world.envelope(&id, "event.create", event(start, &end, zone))]).await;
        world.expect_dead(code);
    }
    world.until("they are refused", || async { world.dead_letters().await.len() == 3 }).await;
    for letter in world.dead_letters().await {
        let path = letter.path.expect("a path");
        assert!(path == "payload.start" || path == "payload.time_zone", "{path}");
    }
    assert!(world.sim().calls().is_empty());
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_answers_are_lost_is_one_event_and_one_invitation() {
    let world = world().await;
    world.sim().inject(Fault::status(504, When::After).method("POST").path("/v1.0/me/events").times(1));
    world.sim().inject(Fault::lost_after().method("GET").path("/v1.0/me/calendar*").times(2));
    world.run("lost", "event.create", review(), "succeeded").await;
    assert_eq!(events(&world).len(), 1);
    let invitations = world.sim().graph().invitations();
    assert_eq!(invitations.len(), 1, "{invitations:#?}");
    assert_eq!(invitations[0].to, ["bob@acme.example", "carol@acme.example"]);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_cannot_be_found_again_is_asked_for_under_the_same_transaction() {
    let world = world().await;
    let posted = "/v1.0/me/events";
    world.sim().inject(Fault::status(504, When::After).method("POST").path(posted).times(3));
    let nothing = Fault::status(200, When::Before).body(json!({"value": []})).method("GET");
    world.sim().inject(nothing.path("/v1.0/me/calendar*").times(3));
    let row = world.run("blind", "event.create", review(), "succeeded").await;
    let calls = world.sim().calls_to("POST", posted);
    assert_eq!((calls.len(), row.attempt), (4, 4));
    assert!(calls.iter().all(|call| call.body == calls[0].body), "the same bytes every time");
    assert_eq!((events(&world).len(), world.sim().graph().invitations().len()), (1, 1));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_teams_link_that_lags_behind_is_waited_for() {
    let world = world().await;
    world.sim().graph().switches.join_url_delay_ms = 1_200;
    let mut payload = review();
    payload["online_meeting"] = json!(true);
    let row = world.run("teams", "event.create", payload, "succeeded").await;
    let result: Value = serde_json::from_str(&row.result.expect("a result")).expect("JSON");
    let made = &events(&world)[0];
    assert_eq!(result["join_url"], made["onlineMeeting"]["joinUrl"]);
    assert!(result["join_url"].as_str().is_some_and(|url| url.starts_with("https://")), "{result}");
    assert_eq!((&result["event_id"], &result["ical_uid"]), (&made["id"], &made["iCalUId"]));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_of_the_payload_is_in_the_event() {
    let world = world().await;
    let mut payload = review();
    payload["body"] = json!({"format": "markdown", "content": "- the **price**"});
    payload["location"] = json!("Room 4");
    payload["reminder_minutes"] = json!(45);
    world.run("whole", "event.create", payload, "succeeded").await;
    let made = &events(&world)[0];
    assert_eq!((&made["subject"], &made["location"]["displayName"]), (&json!("Review"), &json!("Room 4")));
    assert!(made["body"]["content"].as_str().is_some_and(|html| html.contains("<strong>price</strong>")));
    assert_eq!((&made["reminderMinutesBeforeStart"], &made["isReminderOn"]), (&json!(45), &json!(true)));
    let types: Vec<_> =
        made["attendees"].as_array().expect("a list").iter().map(|one| one["type"].clone()).collect();
    assert_eq!(types, ["required", "optional"]);
    world.close().await;
}
