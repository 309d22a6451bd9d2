//! Operators and administrators: dead letters, queues, the permission grid, the environment.

use axum::http::StatusCode;
use followthrough::api_key::Role;
use followthrough::fleet::Role as Part;
use followthrough_tests::engine::Engine;
use serde_json::json;

use super::Desk;
use crate::engine::on_both_pairs;

on_both_pairs!(
    a_replay_is_tried_dry_and_then_sends_the_job_again,
    a_parked_job_is_released_and_an_unclear_one_only_with_its_outcome,
    a_paused_queue_is_left_alone_until_it_is_resumed,
    a_grid_is_replaced_as_a_whole,
    an_environment_is_pinned_only_on_an_allowed_host,
);

async fn a_replay_is_tried_dry_and_then_sends_the_job_again(world: Engine) {
    let desk = Desk::open(&world, &[Part::Workers]);
    let publisher = desk.key(Role::Publisher, Some(&world.workspace)).await;
    let operator = desk.key(Role::Operator, Some(&world.workspace)).await;
    // Refused the first time only: a replay succeeds.
    let job = world.envelope("dies", "test.write", json!({"faults": ["refused"]}));
    assert_eq!(desk.post(&publisher, "/v1/jobs", &job).await.status, StatusCode::ACCEPTED);
    world.until("the dead letter is collected", || async { !world.dead_letters().await.is_empty() }).await;
    let listed = desk.get(&operator, "/v1/dead-letters?code=refused").await.body;
    let letter = &listed["dead_letters"][0];
    assert_eq!((&letter["job_id"], &letter["state"]), (&json!("dies"), &json!("open")), "{listed}");
    assert!(letter.get("body").is_none() && letter.get("headers").is_none());
    let id = letter["id"].as_str().expect("an id");
    let shown = desk.get(&operator, &format!("/v1/dead-letters/{id}")).await.body;
    assert_eq!(shown["body"]["payload"], json!({"faults": ["refused"]}));

    for wrong in [json!({}), json!({"ids": []}), json!({"ids": [id], "filter": {}})] {
        let refused = desk.post(&operator, "/v1/dead-letters/replay", &wrong).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (400, "invalid_body"), "{wrong}");
    }
    let selection = json!({"filter": {"code": "refused"}, "dry_run": true});
    let dry = desk.post(&operator, "/v1/dead-letters/replay", &selection).await.body;
    assert_eq!(dry, json!({"dry_run": true, "handled": [{"id": id, "done": false}], "more": false}));
    assert_eq!(world.state("dies").await, "dead");
    let stranger = "018f0000-0000-7000-8000-000000000000";
    let selection = json!({"ids": [id, stranger]});
    let replayed = desk.post(&operator, "/v1/dead-letters/replay", &selection).await.body;
    assert_eq!(replayed["handled"][0], json!({"id": id, "done": true}));
    assert_eq!(replayed["handled"][1]["refused"], "not_found");
    world.until_state("dies", "succeeded").await;
    let shown = desk.get(&operator, &format!("/v1/dead-letters/{id}")).await.body;
    assert_eq!((&shown["state"], &shown["settled_by"]), (&json!("replayed"), &json!("key:test-operator")));
    let again = desk.post(&operator, "/v1/dead-letters/discard", &json!({"ids": [id]})).await.body;
    assert_eq!(again["handled"][0]["done"], json!(false));
    world.at_rest().await;
    desk.fleet.drain().await;
}

async fn a_parked_job_is_released_and_an_unclear_one_only_with_its_outcome(world: Engine) {
    let desk = Desk::open(&world, &[Part::Workers]);
    let operator = desk.key(Role::Operator, Some(&world.workspace)).await;
    let path = "/v1/jobs/release";
    world.set_tool("test.mail", "ask").await;
    world.connect("ada", followthrough::oauth::scopes::Integration::OutlookEmail).await;
    world
        .publish(&[
            world.envelope("waits", "test.write", json!({"faults": ["needs_user"]})),
            world.envelope("made", "test.post", json!({"faults": ["lost_after"]})),
            world.envelope("not-made", "test.post", json!({"faults": ["lost_before"]})),
            world.envelope("asks", "test.mail", json!({})),
        ])
        .await;
    for id in ["waits", "made", "not-made", "asks"] {
        world.until_state(id, "parked").await;
    }
    for wrong in [
        json!({}),
        json!({"ids": []}),
        json!({"ids": ["waits"], "filter": {}}),
        json!({"filter": {"cause": "approval"}}),
    ] {
        let refused = desk.post(&operator, path, &wrong).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (400, "invalid_body"), "{wrong}");
    }
    let released = async |body: serde_json::Value| -> Vec<(String, bool, String)> {
        let answer = desk.post(&operator, path, &body).await.body;
        let text = |one: &serde_json::Value, name: &str| one[name].as_str().unwrap_or_default().to_owned();
        let released = answer["released"].as_array().unwrap_or_else(|| panic!("{answer}")).iter();
        let mut released: Vec<_> =
            released.map(|one| (text(one, "id"), one["done"] == json!(true), text(one, "refused"))).collect();
        released.sort();
        released
    };
    let one = |id: &str, done: bool, refused: &str| (id.to_owned(), done, refused.to_owned());
    let unclear = "outcome_required";
    assert_eq!(
        released(json!({"filter": {}, "dry_run": true})).await,
        [one("made", false, unclear), one("not-made", false, unclear), one("waits", false, "")],
    );
    assert_eq!(world.state("waits").await, "parked");
    // Without the operator's word nothing unclear moves, and a word on what is clear is a mistake.
    let all = ["waits", "asks", "nowhere"];
    assert_eq!(
        released(json!({"ids": all, "outcome": "not_made"})).await,
        [
            one("asks", false, "waits_for_approval"),
            one("nowhere", false, "not_found"),
            one("waits", false, "outcome_unexpected"),
        ],
    );
    assert_eq!(released(json!({"filter": {"cause": "needs_user"}})).await, [one("waits", true, "")]);
    assert_eq!(released(json!({"ids": ["made"], "outcome": "made"})).await, [one("made", true, "")]);
    let again = json!({"filter": {"cause": "ambiguous", "kind": "test.post"}, "outcome": "not_made"});
    assert_eq!(released(again.clone()).await, [one("not-made", true, "")]);
    for id in ["waits", "made", "not-made"] {
        world.until_state(id, "succeeded").await;
    }
    assert_eq!(released(again).await, []);
    assert_eq!(released(json!({"ids": ["made"]})).await, [one("made", false, "job_succeeded")]);
    let made = world.job("made").await.expect("the row");
    assert_eq!((made.code.as_deref(), made.result), (Some("confirmed_by_operator"), None));
    assert_eq!(made.message.as_deref(), Some("key:test-operator found that it was done"));
    // Two of the released write, one post each of the two others, and nothing twice.
    assert_eq!((world.outside.effects(), world.outside.doubled()), (4, 0));
    world.at_rest().await;
    desk.fleet.drain().await;
}

async fn a_paused_queue_is_left_alone_until_it_is_resumed(world: Engine) {
    let desk = Desk::open(&world, &[Part::Workers]);
    let key = desk.key(Role::Operator, None).await;
    let consumers = async || desk.get(&key, "/v1/queues").await.body["queues"][0]["consumers"].clone();
    world.until("a worker takes from it", || async { consumers().await == json!(1) }).await;
    let paused = desk.post(&key, "/v1/queues/test.write/pause", &json!({})).await;
    assert_eq!(paused.body, json!({"kind": "test.write", "paused": true}));
    world
        .until("no worker takes from it", || async {
            let queues = desk.get(&key, "/v1/queues").await.body;
            queues["queues"][0]["paused"] == json!(true) && queues["queues"][0]["consumers"] == json!(0)
        })
        .await;
    world.publish(&[world.envelope("waits", "test.write", json!({}))]).await;
    world
        .until("it is in the queue", || async {
            desk.get(&key, "/v1/queues").await.body["queues"][0]["ready"] == json!(1)
        })
        .await;
    assert_eq!(desk.post(&key, "/v1/queues/test.write/resume", &json!({})).await.status, StatusCode::OK);
    world.until_state("waits", "succeeded").await;
    world.at_rest().await;
    desk.fleet.drain().await;
}

async fn a_grid_is_replaced_as_a_whole(world: Engine) {
    let desk = Desk::open(&world, &[]);
    let key = desk.key(Role::Admin, Some(&world.workspace)).await;
    let path = format!("/v1/workspaces/{}/tools", world.workspace);
    let grid = json!({"test.*": "ask", "test.post": "deny"});
    let put = desk.call(Some(&key), "PUT", &path, Some(&grid)).await;
    assert_eq!((put.status, &put.body), (StatusCode::OK, &grid));
    assert_eq!(desk.get(&key, &path).await.body, grid);
    let refused = desk.call(Some(&key), "PUT", &path, Some(&json!({"test.post": "maybe"}))).await;
    assert_eq!(refused.code(), "invalid_body");
    assert_eq!(desk.get(&key, &path).await.body, grid);
    desk.fleet.drain().await;
}

async fn an_environment_is_pinned_only_on_an_allowed_host(world: Engine) {
    let desk = Desk::open(&world, &[]);
    let key = desk.key(Role::Admin, Some(&world.workspace)).await;
    let path = format!("/v1/workspaces/{}/dynamics/environment", world.workspace);
    for foreign in ["https://dynamics.com.evil.example", "http://acme.crm4.dynamics.com", "nonsense"] {
        let refused = desk.call(Some(&key), "PUT", &path, Some(&json!({"environment": foreign}))).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (400, "invalid_body"), "{foreign}");
    }
    let own = json!({"environment": "https://acme.crm4.dynamics.com/"});
    let pinned = desk.call(Some(&key), "PUT", &path, Some(&own)).await;
    assert_eq!(pinned.body, json!({"environment": "https://acme.crm4.dynamics.com"}));
    let found = desk.get(&key, &format!("{path}s?user=ada")).await;
    assert_eq!((found.status.as_u16(), found.code()), (409, "not_connected"));
    desk.fleet.drain().await;
}
