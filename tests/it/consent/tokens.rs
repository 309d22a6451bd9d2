//! Tokens under load: asked for once, rotated by one at a time, renewed when a resource challenges them.

use chrono::TimeDelta;
use followthrough_tests::world::{ADA, Pair, World};
use serde_json::{Value, json};

fn drafts(world: &World, from: usize, count: usize) -> Vec<Value> {
    let payload = |n: usize| json!({"to": [{"email": "bob@contoso.example"}], "subject": format!("j{n}"), "body": {"format": "text", "content": "."}});
    (from..from + count).map(|n| world.envelope(&format!("j{n}"), "email.draft", payload(n))).collect()
}

async fn all_succeed(world: &World, count: i64) {
    let done = || async { world.states().await.get("succeeded") == Some(&count) };
    world.until("all are done", done).await;
}

fn token_requests(world: &World) -> Vec<m365_sim::journal::Call> {
    let calls = world.sim().calls_to("POST", "/").into_iter();
    calls.filter(|call| call.form("grant_type").as_deref() == Some("refresh_token")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_jobs_of_one_user_with_an_expired_token_make_one_token_request() {
    let world = World::open_moving(Pair::Embedded, |_| {}).await.expect("the embedded pair is always there");
    world.connect(ADA, "outlook-email").await;
    world.publish(&drafts(&world, 0, 1)).await;
    all_succeed(&world, 1).await;
    world.at_rest().await;
    world.pass(TimeDelta::hours(1));
    world.sim().clear_calls();
    world.publish(&drafts(&world, 1, 200)).await;
    all_succeed(&world, 201).await;
    assert_eq!(token_requests(&world).len(), 1);
    assert_eq!(world.sim().graph().mailbox(ADA).drafts().len(), 201);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn four_processes_never_show_entra_a_token_that_was_rotated() {
    let Some(mut world) = World::open_moving(Pair::Servers, |config| config.database.connections = 4).await
    else {
        return;
    };
    for _ in 0..3 {
        world.start().await;
    }
    world.sim().entra_policy(|policy| {
        policy.strict_reuse = true;
        policy.reuse_grace_seconds = 0;
        policy.loop_limit = 1_000;
    });
    world.connect(ADA, "outlook-email").await;
    world.connect(ADA, "outlook-calendar").await;
    for (batch, done) in [10, 20, 30, 40].into_iter().enumerate() {
        world.publish(&drafts(&world, batch * 10, 10)).await;
        all_succeed(&world, done).await;
        world.at_rest().await;
        // Every process needs a new one.
        world.pass(TimeDelta::hours(1));
    }
    assert!(token_requests(&world).len() > 4, "{}", token_requests(&world).len());
    assert_eq!(world.sim().graph().mailbox(ADA).drafts().len(), 40);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claims_challenge_is_answered_with_its_claims_and_costs_no_attempt() {
    let world = World::open(Pair::Embedded).await.expect("the embedded pair is always there");
    world.connect(ADA, "outlook-email").await;
    world.publish(&drafts(&world, 0, 1)).await;
    all_succeed(&world, 1).await;
    world.sim().clear_calls();
    world.sim().play("claims-challenge", ADA);
    world.publish(&drafts(&world, 1, 1)).await;
    all_succeed(&world, 2).await;
    assert_eq!(world.job("j1").await.expect("the row").attempt, 1);
    let asked = token_requests(&world);
    assert_eq!(asked.len(), 1);
    assert!(asked[0].form("claims").is_some_and(|claims| claims.contains("nbf")));
    assert_eq!(world.sim().graph().mailbox(ADA).drafts().len(), 2, "the challenged call was not made twice");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entra_that_is_down_delays_and_parks_nobody() {
    let world = World::open(Pair::Embedded).await.expect("the embedded pair is always there");
    let id = world.connect(ADA, "outlook-email").await;
    let down = m365_sim::Fault::status(503, m365_sim::fault::When::Before).header("Retry-After", "1");
    world.sim().inject(down.area(m365_sim::journal::Area::Entra).times(3));
    world.publish(&drafts(&world, 0, 5)).await;
    all_succeed(&world, 5).await;
    assert_eq!(world.connection(id).await.status.as_str(), "connected");
    assert_eq!(token_requests(&world).len(), 4, "three refused, one answered, whoever asked");
    world.close().await;
}
