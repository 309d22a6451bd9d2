//! Publishers: submitting, looking, deciding, connecting.

use axum::http::StatusCode;
use followthrough::api_key::Role;
use followthrough::fleet::Role as Part;
use followthrough_tests::engine::Engine;
use serde_json::{Value, json};

use super::Desk;
use crate::engine::on_both_pairs;

on_both_pairs!(
    the_same_submission_three_times_is_one_job_that_acts_once,
    lists_are_paged_without_gaps_or_repeats,
    a_job_that_asks_runs_only_after_a_yes_to_exactly_its_payload,
    a_link_is_handed_out_once_and_leads_to_microsoft,
);

async fn the_same_submission_three_times_is_one_job_that_acts_once(world: Engine) {
    let desk = Desk::open(&world, &[Part::Workers]);
    let key = desk.key(Role::Publisher, Some(&world.workspace)).await;
    let job = world.envelope("mtg/1:a", "test.write", json!({}));
    for _ in 0..3 {
        let accepted = desk.post(&key, "/v1/jobs", &job).await;
        assert_eq!(accepted.status, StatusCode::ACCEPTED, "{:?}", accepted.body);
        assert_eq!(accepted.body["id"], "mtg/1:a");
    }
    let other = world.envelope("mtg/1:a", "test.write", json!({"faults": ["lost_before"]}));
    let refused = desk.post(&key, "/v1/jobs", &other).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (409, "id_reused"));
    world.until_state("mtg/1:a", "succeeded").await;
    assert_eq!((world.outside.effects(), world.outside.doubled()), (2, 0));
    let shown = desk.get(&key, &format!("/v1/jobs/{}/mtg%2F1:a", world.workspace)).await;
    assert_eq!(shown.body["state"], "succeeded", "{:?}", shown.body);
    assert_eq!(shown.body["result"]["times"], json!(2));
    assert_eq!(shown.body["payload"], json!({}));
    let accepted = desk.post(&key, "/v1/jobs", &job).await;
    assert_eq!(accepted.body["state"], "succeeded");
    let listed = desk.get(&key, "/v1/jobs").await;
    let jobs = listed.body["jobs"].as_array().expect("jobs");
    assert_eq!(jobs.len(), 1);
    assert!(jobs[0].get("payload").is_none() && jobs[0].get("result").is_none());
    world.at_rest().await;
    desk.fleet.drain().await;
}

async fn lists_are_paged_without_gaps_or_repeats(world: Engine) {
    let desk = Desk::open(&world, &[]);
    let key = desk.key(Role::Publisher, None).await;
    for number in 0..7 {
        let mut job = world.envelope(&format!("job-{number}"), "test.write", json!({}));
        job["meeting"] = json!(format!("m{}", number % 2));
        assert_eq!(desk.post(&key, "/v1/jobs", &job).await.status, StatusCode::ACCEPTED);
    }
    let base = format!("/v1/jobs?workspace={}&limit=3", world.workspace);
    let (mut seen, mut next, mut pages) = (Vec::new(), None, 0);
    loop {
        let path = next.map_or_else(|| base.clone(), |cursor: String| format!("{base}&cursor={cursor}"));
        let page = desk.get(&key, &path).await.body;
        let jobs = page["jobs"].as_array().expect("jobs");
        seen.extend(jobs.iter().map(|job| job["id"].as_str().unwrap_or_default().to_owned()));
        pages += 1;
        match page["next_cursor"].as_str() {
            Some(cursor) => next = Some(cursor.to_owned()),
            None => break,
        }
    }
    assert_eq!(pages, 3);
    let expected: Vec<String> = (0..7).rev().map(|number| format!("job-{number}")).collect();
    assert_eq!(seen, expected);
    let narrowed = desk.get(&key, &format!("{base}&meeting=m1&state=queued&kind=test.write")).await;
    assert_eq!(narrowed.body["jobs"].as_array().map(Vec::len), Some(3));
    let nobody = desk.get(&key, &format!("{base}&user=nobody")).await;
    assert_eq!(nobody.body["jobs"], json!([]));
    desk.fleet.drain().await;
}

async fn a_job_that_asks_runs_only_after_a_yes_to_exactly_its_payload(world: Engine) {
    world.set_tool("test.write", "ask").await;
    let desk = Desk::open(&world, &[Part::Workers]);
    let key = desk.key(Role::Publisher, Some(&world.workspace)).await;
    for id in ["yes", "no"] {
        let job = world.envelope(id, "test.write", json!({}));
        assert_eq!(desk.post(&key, "/v1/jobs", &job).await.status, StatusCode::ACCEPTED);
        world.until_state(id, "parked").await;
    }
    assert_eq!(world.outside.effects(), 0);
    let path = |id: &str, verb: &str| format!("/v1/jobs/{}/{id}{verb}", world.workspace);
    let shown = desk.get(&key, &path("yes", "")).await.body;
    assert_eq!((&shown["cause"], &shown["rendering"]), (&json!("approval"), &json!("two writes")));
    let digest = shown["digest"].as_str().expect("a digest");
    let decide = async |id: &str, verb: &str, body: Value| desk.post(&key, &path(id, verb), &body).await;

    let refused = decide("yes", "/approve", json!({"by": " "})).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (400, "invalid_body"));
    let refused = decide("yes", "/approve", json!({"by": "grace", "digest": "00"})).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (409, "digest_mismatch"));
    let approved = decide("yes", "/approve", json!({"by": "grace", "note": "fine", "digest": digest})).await;
    assert_eq!(approved.status, StatusCode::OK, "{:?}", approved.body);
    assert_eq!(approved.body["decided_by"], "grace");
    let again = decide("yes", "/approve", json!({"by": "grace"})).await;
    assert_eq!((again.status.as_u16(), again.code()), (409, "not_waiting"));
    let rejected = decide("no", "/reject", json!({"by": "grace"})).await;
    assert_eq!((rejected.status, &rejected.body["state"]), (StatusCode::OK, &json!("rejected")));
    let missing = decide("none", "/reject", json!({"by": "grace"})).await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    world.until_state("yes", "succeeded").await;
    assert_eq!(world.outside.effects(), 2);
    world.at_rest().await;
    desk.fleet.drain().await;
}

async fn a_link_is_handed_out_once_and_leads_to_microsoft(world: Engine) {
    let desk = Desk::open(&world, &[]);
    let key = desk.key(Role::Publisher, Some(&world.workspace)).await;
    let new = json!({
        "workspace": world.workspace, "user": "ada", "integration": "outlook-email", "account": "ada@acme.example",
    });
    let created = desk.post(&key, "/v1/connections", &new).await;
    assert_eq!(created.status, StatusCode::CREATED, "{:?}", created.body);
    let url = created.body["url"].as_str().expect("a link");
    let path = url.strip_prefix("http://127.0.0.1:8080").expect("below the public URL");
    let opened = desk.call(None, "GET", path, None).await;
    assert_eq!(opened.status, StatusCode::SEE_OTHER, "{:?}", opened.body);
    let location = opened.headers["location"].to_str().expect("a URL");
    assert!(location.starts_with("https://login.microsoftonline.com/"), "{location}");
    let page = desk.call(None, "GET", "/connect/unknown", None).await;
    assert_eq!(page.status, StatusCode::NOT_FOUND);
    assert!(
        page.headers["content-security-policy"].to_str().is_ok_and(|csp| csp.contains("default-src 'none'"))
    );
    let page =
        desk.call(None, "GET", "/oauth/callback?code=a&state=%3Cscript%3E&session_state=x", None).await;
    assert_eq!(page.status, StatusCode::BAD_REQUEST);
    assert!(
        page.body.as_str().is_some_and(|html| html.contains("state_invalid") && !html.contains("<script"))
    );

    let wrong = json!({"workspace": world.workspace, "user": "ada", "integration": "outlook-email", "return_to": "ftp://x"});
    let refused = desk.post(&key, "/v1/connections", &wrong).await;
    assert_eq!((refused.code(), &refused.body["error"]["path"]), ("invalid_body", &json!("return_to")));
    let wrong = json!({"workspace": world.workspace, "user": "ada", "integration": "fax"});
    assert_eq!(desk.post(&key, "/v1/connections", &wrong).await.code(), "invalid_body");

    let listed = desk.get(&key, "/v1/connections").await.body;
    assert_eq!(listed["connections"][0]["status"], "pending");
    assert!(!listed.to_string().contains("token"), "{listed}");
    let id = created.body["id"].as_str().expect("an id");
    let ended = desk.call(Some(&key), "DELETE", &format!("/v1/connections/{id}"), None).await;
    assert_eq!((ended.status, &ended.body["status"]), (StatusCode::OK, &json!("disconnected")));
    let opened = desk.call(None, "GET", path, None).await;
    assert_eq!(opened.status, StatusCode::GONE);
    desk.fleet.drain().await;
}
