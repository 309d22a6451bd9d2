//! What only the embedded broker has: a clock that decides, and a store that outlives the process.

use std::collections::HashSet;
use std::time::Duration;

use followthrough::broker::{Broker, Source, Target};
use followthrough::clock::Clock;
use followthrough_tests::broker::{Engine, World, body, job, jobs, next, owe, to, until, within};
use futures::FutureExt;

/// A world whose time moves only when told.
async fn still(engine: Engine) -> (World, Clock) {
    let clock = Clock::manual("2026-11-24T12:00:00Z".parse().expect("a moment"));
    (World::with_clock(engine, clock.clone()).await.expect("SQLite needs no server"), clock)
}

/// A process that is killed answers nothing and says no farewell.
fn kill(held: impl Sized) {
    std::mem::forget(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rung_is_due_exactly_when_the_clock_says_so() {
    let (world, clock) = still(Engine::Sqlite).await;
    let broker = world.embedded().await;
    let mut drafts = broker.subscribe(jobs("email.draft"), 5).await.expect("a subscription");
    owe(&*broker, &[to(Target::Rung { rung: "2s".into(), kind: "email.draft".into() }, "a")]).await;
    clock.advance(Duration::from_millis(1999));
    let depth = broker.depth(&jobs("email.draft")).await.expect("a depth");
    assert_eq!(depth.ready, 0);
    assert!(drafts.next().now_or_never().is_none());
    clock.advance(Duration::from_millis(1));
    assert_eq!(body(&next(&mut drafts).await), "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_process_held_is_delivered_again_when_its_lease_ends() {
    let (world, clock) = still(Engine::Sqlite).await;
    let killed = world.embedded().await;
    let mut held = killed.subscribe(jobs("email.draft"), 1).await.expect("a subscription");
    owe(&*killed, &[job("email.draft", "a")]).await;
    let delivery = next(&mut held).await;
    drop(killed);
    let killed_at = clock.now();
    kill((held, delivery));
    let broker = world.embedded().await;
    let mut drafts = broker.subscribe(jobs("email.draft"), 1).await.expect("a subscription");
    clock.advance(Duration::from_secs(5));
    assert!(drafts.next().now_or_never().is_none());
    // The lease is looked at every few seconds: moves the time on until the message is there.
    let again = within("the claim to be freed", async {
        loop {
            clock.advance(Duration::from_secs(1));
            let look = tokio::time::timeout(Duration::from_millis(20), drafts.next());
            if let Ok(again) = look.await {
                break again.expect("an open subscription");
            }
        }
    })
    .await;
    assert!(clock.now() >= killed_at + Duration::from_secs(15));
    assert_eq!((body(&again), again.meta.deliveries), ("a", 1));
    again.receipt.ack().await.expect("an acknowledgement");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_dropped_again_and_again_is_a_dead_letter_at_last() {
    let (world, _) = still(Engine::Sqlite).await;
    let broker = world.embedded().await;
    let mut drafts = broker.subscribe(jobs("email.draft"), 1).await.expect("a subscription");
    let mut dead = broker.subscribe(Source::Dead, 1).await.expect("a subscription");
    owe(&*broker, &[job("email.draft", "poison")]).await;
    for deliveries in 0..=20 {
        let delivery = next(&mut drafts).await;
        assert_eq!(delivery.meta.deliveries, deliveries);
        drop(delivery);
    }
    let letter = next(&mut dead).await;
    assert_eq!((body(&letter), letter.meta.death.as_deref()), ("poison", Some("delivery_limit")));
    drop(letter);
    // Among the dead letters there is no limit: nothing is lost from there.
    for deliveries in 1..=30 {
        assert_eq!(next(&mut dead).await.meta.deliveries, deliveries);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn returning_what_was_not_started_costs_nothing() {
    let (world, _) = still(Engine::Sqlite).await;
    let broker = world.embedded().await;
    let mut drafts = broker.subscribe(jobs("email.draft"), 1).await.expect("a subscription");
    owe(&*broker, &[job("email.draft", "patient")]).await;
    for _ in 0..50 {
        next(&mut drafts).await.receipt.requeue().await.expect("a requeue");
    }
    assert_eq!(next(&mut drafts).await.meta.deliveries, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_reach_who_listens_in_the_process_and_nobody_else() {
    let (world, _) = still(Engine::Sqlite).await;
    let broker = world.embedded().await;
    let event = to(Target::Event { kind: "job.succeeded.email.draft".into() }, "{}");
    owe(&*broker, std::slice::from_ref(&event)).await;
    let mut events = broker.local_events().expect("the embedded broker tells");
    owe(&*broker, &[event.clone(), job("email.draft", "a")]).await;
    assert_eq!(events.recv().await.expect("an event").message_id, event.message_id);
    assert!(events.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_on_the_same_store_is_heard() {
    let world = World::open(Engine::Sqlite).await.expect("SQLite needs no server");
    let (fleet, command_line) = (world.embedded().await, world.embedded().await);
    let mut drafts = fleet.subscribe(jobs("email.draft"), 1).await.expect("a subscription");
    // The subscriber has found its queue empty and sleeps.
    until("the subscription", || async {
        fleet.depth(&jobs("email.draft")).await.is_ok_and(|depth| depth.consumers == 1)
    })
    .await;
    owe(&*command_line, &[job("email.draft", "submitted")]).await;
    command_line.close().await;
    assert_eq!(body(&next(&mut drafts).await), "submitted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_whose_connections_are_cut_loses_and_strands_nothing() {
    let Some(world) = World::open(Engine::Postgres).await else { return };
    let broker = world.embedded().await;
    let mut drafts = broker.subscribe(jobs("email.draft"), 10).await.expect("a subscription");
    let total = 200;
    let publishing = async {
        for chunk in 0..total / 10 {
            let window: Vec<_> =
                (0..10).map(|number| job("email.draft", &(chunk * 10 + number).to_string())).collect();
            owe(&*broker, &window).await;
        }
    };
    let consuming = async {
        let mut done = HashSet::new();
        while done.len() < total {
            let delivery = next(&mut drafts).await;
            if delivery.receipt.ack().await.is_ok() {
                done.insert(body(&delivery).to_owned());
                if done.len() % 60 == 30 {
                    world.cut_database().await;
                }
            }
        }
    };
    tokio::join!(publishing, consuming);
    // Whatever a lost answer left behind comes again, and nothing stays claimed by nobody.
    let draining = async {
        while let Some(again) = drafts.next().await {
            let _ = again.receipt.ack().await;
        }
    };
    tokio::select! {
        () = draining => panic!("the subscription ended"),
        () = until("an empty table", || async { world.queue_messages().await == 0 }) => {}
    }
}
