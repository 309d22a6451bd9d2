//! Effects happen once.

use followthrough_tests::engine::Engine;
use serde_json::json;

super::on_both_pairs!(
    a_job_published_three_times_acts_once,
    a_lost_answer_is_found_again_and_not_repeated,
    a_lost_request_is_sent_again,
    a_confirmed_step_is_not_made_again_when_a_later_one_fails,
    a_panic_is_a_failed_attempt_and_the_worker_lives,
    a_job_that_always_fails_ends_as_one_dead_letter,
    what_cannot_be_probed_waits_for_a_person_when_its_answer_is_lost,
    what_cannot_be_probed_is_tried_again_when_it_was_refused_for_sure,
    a_drain_loses_nothing_and_counts_nothing,
);

async fn a_job_published_three_times_acts_once(world: Engine) {
    let fleet = world.process().await;
    let envelope = world.envelope("j1", "test.write", json!({}));
    world.publish(&[envelope.clone(), envelope.clone()]).await;
    world.until_state("j1", "succeeded").await;
    world.publish(&[envelope]).await;
    world.at_rest().await;
    fleet.drain().await;
    assert_eq!((world.outside.effects(), world.outside.doubled(), world.outside.started()), (2, 0, 1));
}

async fn a_lost_answer_is_found_again_and_not_repeated(world: Engine) {
    let fleet = world.process().await;
    let payload = json!({"faults": ["lost_after"], "second": ["lost_after"]});
    world.publish(&[world.envelope("j1", "test.write", payload)]).await;
    world.until_state("j1", "succeeded").await;
    assert_eq!((world.outside.effects(), world.outside.doubled()), (2, 0));
    assert_eq!(world.outside.probes(), 2, "each lost answer was probed for");
    world.at_rest().await;
    fleet.drain().await;
}

async fn a_lost_request_is_sent_again(world: Engine) {
    let fleet = world.process().await;
    let payload = json!({"faults": ["lost_before", "lost_before", "lost_after"]});
    world.publish(&[world.envelope("j1", "test.write", payload)]).await;
    world.until_state("j1", "succeeded").await;
    assert_eq!((world.outside.effects(), world.outside.doubled()), (2, 0));
    world.at_rest().await;
    fleet.drain().await;
}

async fn a_confirmed_step_is_not_made_again_when_a_later_one_fails(world: Engine) {
    let fleet = world.process().await;
    let payload = json!({"second": ["unavailable", "unavailable"]});
    world.publish(&[world.envelope("j1", "test.write", payload)]).await;
    world.until_state("j1", "succeeded").await;
    assert_eq!((world.outside.effects(), world.outside.doubled(), world.outside.probes()), (2, 0, 0));
    assert_eq!(world.job("j1").await.map(|row| row.attempt), Some(3));
    world.at_rest().await;
    fleet.drain().await;
}

async fn a_panic_is_a_failed_attempt_and_the_worker_lives(world: Engine) {
    let fleet = world.process().await;
    world
        .publish(&[
            world.envelope("j1", "test.write", json!({"faults": ["panic"]})),
            world.envelope("j2", "test.write", json!({})),
        ])
        .await;
    world.until_state("j1", "succeeded").await;
    world.until_state("j2", "succeeded").await;
    assert_eq!(world.job("j1").await.map(|row| row.attempt), Some(2));
    world.at_rest().await;
    fleet.drain().await;
}

async fn a_job_that_always_fails_ends_as_one_dead_letter(world: Engine) {
    let fleet = world.process().await;
    let faults = ["unavailable"; 6];
    world.publish(&[world.envelope("j1", "test.write", json!({"faults": faults}))]).await;
    world.until_state("j1", "dead").await;
    world.until("the dead letter is collected", || async { !world.dead_letters().await.is_empty() }).await;
    let letters = world.dead_letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].code.as_str(), letters[0].attempts), ("unavailable", 6));
    assert_eq!((letters[0].source.as_str(), letters[0].job_id.as_deref()), ("worker", Some("j1")));
    world.at_rest().await;
    fleet.drain().await;
}

async fn what_cannot_be_probed_waits_for_a_person_when_its_answer_is_lost(world: Engine) {
    let fleet = world.process().await;
    world.publish(&[world.envelope("j1", "test.post", json!({"faults": ["lost_after"]}))]).await;
    world.until_state("j1", "parked").await;
    let row = world.job("j1").await.expect("the row");
    assert_eq!((row.cause.as_deref(), row.code.as_deref()), (Some("ambiguous"), Some("ambiguous")));
    assert_eq!((world.outside.effects(), world.outside.doubled()), (1, 0));
    world.at_rest().await;
    fleet.drain().await;
}

async fn what_cannot_be_probed_is_tried_again_when_it_was_refused_for_sure(world: Engine) {
    let fleet = world.process().await;
    world.publish(&[world.envelope("j1", "test.post", json!({"faults": ["unavailable"]}))]).await;
    world.until_state("j1", "succeeded").await;
    assert_eq!((world.outside.effects(), world.outside.doubled()), (1, 0));
    world.at_rest().await;
    fleet.drain().await;
}

async fn a_drain_loses_nothing_and_counts_nothing(mut world: Engine) {
    world.tuning.drain = std::time::Duration::ZERO;
    let fleet = world.process().await;
    let envelopes: Vec<_> = (0..40)
        .map(|n| world.envelope(&format!("j{n}"), "test.write", json!({"second": ["hang"]})))
        .collect();
    world.publish(&envelopes).await;
    world.until("some hang", || async { world.outside.started() >= 8 }).await;
    if world.amqp_url.is_none() {
        // The embedded broker and its store belong to the world: the drain would close them for good.
        world.outside.gate.open();
        world.until("all are done", || async { world.states().await.get("succeeded") == Some(&40) }).await;
        fleet.drain().await;
        return;
    }
    fleet.drain().await;
    let rows = world.states().await;
    assert_eq!(rows.get("running"), None, "a drained process holds no job: {rows:?}");
    world.outside.gate.open();
    let next = world.process().await;
    world.until("all are done", || async { world.states().await.get("succeeded") == Some(&40) }).await;
    for n in 0..40 {
        let row = world.job(&format!("j{n}")).await.expect("the row");
        assert_eq!(
            (row.attempt, row.crashes),
            (1, 0),
            "what was cut off was no attempt and no crash: {row:?}"
        );
    }
    assert_eq!((world.outside.effects(), world.outside.doubled()), (80, 0));
    world.at_rest().await;
    next.drain().await;
}
