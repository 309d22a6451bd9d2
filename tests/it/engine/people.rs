//! What waits for a person, and what comes of the decision.

use followthrough::dead;
use followthrough::release::{Found, release};
use followthrough::store::parked::Which;
use followthrough::store::{StoreError, dead_letter};
use followthrough::submit::{self, Decided};
use followthrough_tests::engine::Engine;
use scoped_futures::ScopedFutureExt;
use serde_json::json;

super::on_both_pairs!(
    a_tool_that_nobody_allowed_is_denied_and_makes_no_call,
    a_tool_that_asks_waits_for_an_approval_and_then_runs,
    a_rejected_job_never_runs,
    a_job_without_a_connection_waits_for_its_user,
    a_dead_letter_is_replayed_once_its_cause_is_gone,
    a_replayed_dead_letter_has_all_its_attempts_again,
    what_is_discarded_while_it_is_replayed_is_not_done,
    a_write_in_doubt_is_told_of_by_a_person_however_its_job_would_end,
    a_job_expires_unseen_and_another_waits_for_its_time,
);

async fn a_tool_that_nobody_allowed_is_denied_and_makes_no_call(world: Engine) {
    world.set_tool("test.write", "deny").await;
    let fleet = world.process().await;
    world.publish(&[world.envelope("j1", "test.write", json!({}))]).await;
    world.until_state("j1", "dead").await;
    let row = world.job("j1").await.expect("the row");
    assert_eq!((row.code.as_deref(), row.attempt), (Some("tool_denied"), 0));
    assert_eq!(world.outside.started(), 0);
    world.until("its dead letter is there", || async { world.dead_letters().await.len() == 1 }).await;
    world.at_rest().await;
    fleet.drain().await;
}

async fn a_tool_that_asks_waits_for_an_approval_and_then_runs(world: Engine) {
    world.set_tool("test.write", "ask").await;
    let fleet = world.process().await;
    let envelope = world.envelope("j1", "test.write", json!({}));
    world.publish(std::slice::from_ref(&envelope)).await;
    world.until_state("j1", "parked").await;
    // The publisher's repetition changes nothing.
    world.publish(&[envelope]).await;
    world.at_rest().await;
    assert_eq!((world.state("j1").await.as_str(), world.outside.started()), ("parked", 0));
    let services = &fleet.services;
    let approve = || submit::approve(services, &world.workspace, "j1", "grace@acme.example", None);
    assert_eq!(approve().await.expect("the store"), Decided::Done);
    assert_ne!(approve().await.expect("the store"), Decided::Done, "an approval is single use");
    world.until_state("j1", "succeeded").await;
    assert_eq!(world.outside.effects(), 2);
    world.at_rest().await;
    fleet.drain().await;
}

async fn a_rejected_job_never_runs(world: Engine) {
    world.set_tool("test.write", "ask").await;
    let fleet = world.process().await;
    world.publish(&[world.envelope("j1", "test.write", json!({}))]).await;
    world.until_state("j1", "parked").await;
    let no = submit::reject(&fleet.services, &world.workspace, "j1", "grace@acme.example", Some("no")).await;
    assert_eq!(no.expect("the store"), Decided::Done);
    world.publish(&[world.envelope("j1", "test.write", json!({}))]).await;
    world.at_rest().await;
    assert_eq!((world.state("j1").await.as_str(), world.outside.started()), ("rejected", 0));
    fleet.drain().await;
}

async fn a_job_without_a_connection_waits_for_its_user(world: Engine) {
    let fleet = world.process().await;
    world.publish(&[world.envelope("j1", "test.mail", json!({}))]).await;
    world.until_state("j1", "parked").await;
    let row = world.job("j1").await.expect("the row");
    assert_eq!((row.cause.as_deref(), row.code.as_deref()), (Some("needs_user"), Some("not_connected")));
    world.at_rest().await;
    fleet.drain().await;
}

async fn a_dead_letter_is_replayed_once_its_cause_is_gone(world: Engine) {
    world.set_tool("test.write", "deny").await;
    let fleet = world.process().await;
    world.publish(&[world.envelope("j1", "test.write", json!({}))]).await;
    world.until("its dead letter is there", || async { world.dead_letters().await.len() == 1 }).await;
    world.set_tool("test.write", "allow").await;
    let filter = dead_letter::Filter { limit: 10, ..Default::default() };
    let rehearsed = dead::replay(&fleet.services, &filter, "ops", true).await.expect("the store");
    assert_eq!((rehearsed.len(), rehearsed[0].done, rehearsed[0].refused.clone()), (1, false, None));
    assert_eq!(world.state("j1").await, "dead", "a rehearsal changes nothing");
    let replayed = dead::replay(&fleet.services, &filter, "ops", false).await.expect("the store");
    assert!(replayed[0].done);
    world.until_state("j1", "succeeded").await;
    assert_eq!(dead::replay(&fleet.services, &filter, "ops", false).await.expect("the store").len(), 0);
    assert_eq!((world.outside.effects(), world.outside.doubled()), (2, 0));
    world.at_rest().await;
    fleet.drain().await;
}

async fn a_replayed_dead_letter_has_all_its_attempts_again(world: Engine) {
    let fleet = world.process().await;
    let faults = ["unavailable"; 8];
    world.publish(&[world.envelope("j1", "test.write", json!({"faults": faults}))]).await;
    world.until("its dead letter is there", || async { world.dead_letters().await.len() == 1 }).await;
    let filter = dead_letter::Filter { limit: 10, ..Default::default() };
    let replayed = dead::replay(&fleet.services, &filter, "ops", false).await.expect("the store");
    assert!(replayed[0].done);
    world.until_state("j1", "succeeded").await;
    assert_eq!(world.job("j1").await.map(|row| row.attempt), Some(3), "two more failures, then the effect");
    world.at_rest().await;
    fleet.drain().await;
}

async fn what_is_discarded_while_it_is_replayed_is_not_done(world: Engine) {
    const MANY: usize = 30;
    world.set_tool("test.write", "deny").await;
    let fleet = world.process().await;
    let name = |n: usize| format!("j{n}");
    let envelopes: Vec<_> = (0..MANY).map(|n| world.envelope(&name(n), "test.write", json!({}))).collect();
    world.publish(&envelopes).await;
    world.until("all are dead", || async { world.dead_letters().await.len() == MANY }).await;
    world.set_tool("test.write", "allow").await;
    let filter = dead_letter::Filter { limit: 100, ..Default::default() };
    // Each replay reads the letter before it writes, so that the discards overtake it.
    let (replayed, discarded) = tokio::join!(
        dead::replay(&fleet.services, &filter, "ops", false),
        dead::discard(&fleet.services, &filter, "ops", false),
    );
    let done = |handled: &[dead::Handled]| handled.iter().filter(|one| one.done).count();
    let (replayed, discarded) = (replayed.expect("the store"), discarded.expect("the store"));
    assert_eq!(done(&replayed) + done(&discarded), MANY, "each is settled once");
    assert_ne!(done(&discarded), 0, "they met");
    let count = |n: usize| i64::try_from(n).expect("few");
    world.at_rest().await;
    world
        .until("those that were replayed are done", || async {
            world.states().await.get("succeeded").copied().unwrap_or_default() >= count(done(&replayed))
        })
        .await;
    assert_eq!(world.states().await.get("dead"), Some(&count(done(&discarded))));
    fleet.drain().await;
}

/// The job's first write was intended, and its worker lost before it could say more.
async fn lost_in_a_write(world: &Engine, id: &str) {
    let (workspace, now) = (world.workspace.as_str(), world.clock.now());
    let planted: Result<_, StoreError> = world
        .store
        .transaction("plant", |tx| {
            async move {
                followthrough::sql!(
                    tx,
                    execute,
                    "INSERT INTO effects (workspace, job_id, step, effect_id, state, fence, created_at, updated_at) \
                     VALUES ($1, $2, 'first', $3, 'intended', 1, $4, $4)",
                    workspace,
                    id,
                    uuid::Uuid::now_v7(),
                    now,
                )?;
                Ok(())
            }
            .scope_boxed()
        })
        .await;
    planted.expect("the rows");
}

async fn a_write_in_doubt_is_told_of_by_a_person_however_its_job_would_end(world: Engine) {
    world.set_tool("test.write", "ask").await;
    let fleet = world.process().await;
    let services = &fleet.services;
    let in_doubt = async |id: &str| {
        world
            .until(&format!("{id} waits for a person's word"), || async {
                let row = world.job(id).await.expect("the row");
                assert!(!followthrough::store::job::state::is_final(&row.state), "{id} is {}", row.state);
                row.cause.as_deref() == Some("ambiguous")
            })
            .await;
    };
    let waits = async |id: &str, expires: bool| {
        let mut envelope = world.envelope(id, "test.write", json!({}));
        if expires {
            envelope["expires_at"] = json!(world.clock.now() + chrono::TimeDelta::seconds(10));
        }
        world.publish(&[envelope]).await;
        world.until_state(id, "parked").await;
        lost_in_a_write(&world, id).await;
    };
    waits("late", true).await;
    waits("rejected", false).await;
    waits("denied", false).await;

    let by = "grace@acme.example";
    let no = submit::reject(services, &world.workspace, "rejected", by, Some("no")).await;
    assert_eq!(no.expect("the store"), Decided::Done);
    in_doubt("rejected").await;
    let again = submit::reject(services, &world.workspace, "rejected", by, None).await;
    assert_ne!(again.expect("the store"), Decided::Done, "it asks for something else now");

    world.set_tool("test.write", "deny").await;
    submit::approve(services, &world.workspace, "denied", by, None).await.expect("the store");
    in_doubt("denied").await;

    let patience = chrono::TimeDelta::hours(1);
    world
        .until("its time is over", || async {
            submit::sweep(services, &[], patience).await.expect("the store");
            let row = world.job("late").await.expect("the row");
            assert_ne!(row.state, "expired");
            row.cause.as_deref() == Some("ambiguous")
        })
        .await;

    // Nobody has done anything, and with a person's word all but the last go on.
    assert_eq!(world.outside.started(), 0);
    world.set_tool("test.write", "allow").await;
    let ids = ["rejected", "denied"];
    let which = Which { ids: ids.map(str::to_owned).to_vec(), limit: 10, ..Default::default() };
    let released = release(services, &which, Some(Found::NotMade), by, false).await.expect("the store");
    assert!(released.iter().all(|one| one.done), "{released:?}");
    for id in ids {
        world.until_state(id, "succeeded").await;
    }
    assert_eq!((world.outside.effects(), world.outside.doubled()), (4, 0));
    world.at_rest().await;
    fleet.drain().await;
}

async fn a_job_expires_unseen_and_another_waits_for_its_time(world: Engine) {
    let mut late = world.envelope("late", "test.write", json!({}));
    late["expires_at"] = json!(world.clock.now() - chrono::TimeDelta::seconds(1));
    let fleet = world.process().await;
    let mut early = world.envelope("early", "test.write", json!({}));
    let not_before = world.clock.now() + chrono::TimeDelta::seconds(10);
    early["not_before"] = json!(not_before);
    world.publish(&[late, early]).await;
    world.until_state("late", "expired").await;
    world.until_state("early", "waiting").await;
    world.until_state("early", "succeeded").await;
    let row = world.job("early").await.expect("the row");
    let began = row.updated_at;
    assert!(began >= not_before - chrono::TimeDelta::seconds(1), "began {began}, not before {not_before}");
    assert_eq!((row.attempt, world.outside.effects()), (1, 2));
    world.at_rest().await;
    fleet.drain().await;
}
