//! Being a good guest: permits and cool-downs hold across processes.

use followthrough::oauth::scopes::Integration;
use followthrough_tests::engine::Engine;
use serde_json::json;

super::on_both_pairs!(
    never_more_than_four_jobs_of_one_mailbox_run_at_once,
    a_throttle_closes_the_mailbox_for_everybody_and_is_no_failure,
    large_jobs_run_a_few_at_a_time_and_small_ones_beside_them,
);

async fn never_more_than_four_jobs_of_one_mailbox_run_at_once(world: Engine) {
    world.connect("ada@acme.example", Integration::OutlookEmail).await;
    let mut fleets = vec![world.process().await];
    if world.amqp_url.is_some() {
        fleets.push(world.process().await);
    }
    let envelopes: Vec<_> =
        (0..60).map(|n| world.envelope(&format!("j{n}"), "test.mail", json!({}))).collect();
    world.publish(&envelopes).await;
    world.until("all are done", || async { world.states().await.get("succeeded") == Some(&60) }).await;
    assert!(world.outside.most_running() <= 4, "{} at once", world.outside.most_running());
    assert_eq!((world.outside.effects(), world.outside.doubled()), (120, 0));
    world.at_rest().await;
    for fleet in fleets {
        fleet.drain().await;
    }
}

async fn a_throttle_closes_the_mailbox_for_everybody_and_is_no_failure(world: Engine) {
    world.connect("ada@acme.example", Integration::OutlookEmail).await;
    let fleet = world.process().await;
    world.publish(&[world.envelope("j1", "test.mail", json!({"faults": ["throttled"]}))]).await;
    world.until("the first was throttled", || async { world.state("j1").await == "waiting" }).await;
    let due_at = world.job("j1").await.and_then(|row| row.due_at).expect("a time");
    world.publish(&[world.envelope("j2", "test.mail", json!({}))]).await;
    world.until_state("j2", "succeeded").await;
    let second = world.job("j2").await.expect("the row");
    let finished_at = second.finished_at.expect("a time");
    assert!(finished_at >= due_at, "the second did not wait: {finished_at}, closed until {due_at}");
    assert_eq!(second.attempt, 1);
    world.until_state("j1", "succeeded").await;
    world.at_rest().await;
    fleet.drain().await;
}

async fn large_jobs_run_a_few_at_a_time_and_small_ones_beside_them(world: Engine) {
    let fleet = world.process().await;
    for n in 0..10 {
        let mut body =
            world.envelope(&format!("large-{n}"), "test.write", json!({"faults": ["hang"]})).to_string();
        body.push_str(&" ".repeat(3 << 20));
        world.publish_raw("test.write", body.into_bytes()).await;
    }
    world.publish(&[world.envelope("small", "test.write", json!({}))]).await;
    world.until_state("small", "succeeded").await;
    world.until("some of the large run", || async { world.outside.started() >= 6 }).await;
    world.outside.gate.open();
    world.until("all are done", || async { world.states().await.get("succeeded") == Some(&11) }).await;
    assert!(world.outside.most_running() <= 6, "{} at once", world.outside.most_running());
    assert_eq!((world.outside.effects(), world.outside.doubled()), (22, 0));
    world.at_rest().await;
    fleet.drain().await;
}
