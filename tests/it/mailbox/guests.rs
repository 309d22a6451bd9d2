//! A mailbox that is filled, followed and written to at once, by two processes: never more calls than it has slots.
//!
//! The simulator's referee judges; `World::close` asks it.

use chrono::TimeDelta;
use followthrough_tests::world::{ADA, Pair, World};
use futures::future::join_all;
use m365_sim::Fault;
use m365_sim::fault::When;
use m365_sim::graph::{Fill, NewMessage};
use m365_sim::referee::Limits;
use serde_json::{Value, json};

use super::support::{
    SHARED, connect, deliver, end, filled, heard, held_ids, in_step, leave, once_each, pass_until, stored_ids,
};

const DRAFTS: usize = 3;
const STEP: TimeDelta = TimeDelta::seconds(1);

fn drafts(world: &World) -> Vec<Value> {
    let draft = json!({"to": [{"email": "bob@contoso.example"}], "subject": ".", "mailbox": SHARED, "body": {"format": "text", "content": "."}});
    (0..DRAFTS).map(|n| world.envelope(&format!("draft{n}"), "email.draft", draft.clone())).collect()
}

async fn drafted(world: &World) -> bool {
    for n in 0..DRAFTS {
        let state = world.state(&format!("draft{n}")).await;
        assert_ne!(state, "dead");
        if state != "succeeded" {
            return false;
        }
    }
    true
}

/// A month of mail, some of it in two folders: the same mail under two ids costs a look of its own.
fn fill(world: &World) {
    let mut graph = world.sim().graph();
    graph.fill(SHARED, &Fill { messages: 1_000, folders: 4, ..Fill::default() });
    let mut mailbox = graph.mailbox(SHARED);
    for number in 1..=30 {
        for folder in ["Inbox", "Sent Items"] {
            mailbox.deliver(NewMessage {
                received: Some(world.sim().now() - TimeDelta::hours(number)),
                folder: Some(folder.into()),
                internet_message_id: Some(format!("<{number}@acme.example>")),
                ..NewMessage::new("Support <support@acme.example>", "To ourselves", "<p>Hello</p>")
            });
        }
    }
}

/// Two processes; each call takes a while, and Microsoft bears as many at once as we say.
async fn two_processes(slots: u16) -> Option<World> {
    let world = World::open_moving(Pair::Servers, |config| {
        config.mailbox.slots = slots;
        // Several worlds beside one another, of a server that has a hundred connections for all stories.
        config.database.connections = 3;
        // Time goes twenty times as fast: a slice of a backfill is done within a second.
        config.workers.lease = "1h".into();
        config.mailbox.poll = "4m".into();
    });
    let mut world = world.await?;
    world.start().await;
    world.connect(ADA, "shared-mailbox").await;
    let limits = world.sim().limits();
    world.sim().set_limits(Limits { latency_ms: 100, outlook_concurrent: slots.into(), ..limits });
    fill(&world);
    Some(world)
}

/// Calls of a backfill that wait until they are released.
fn hold() -> Fault {
    Fault::hold(When::Before).method("GET").path("*/mailFolders/*/messages")
}

async fn finish(world: World) {
    let over = || async { !heard(&world, "mailbox.backfill.completed").is_empty() };
    pass_until(&world, STEP, "the backfill is over", over).await;
    let in_step = || async { stored_ids(&world).await == held_ids(&world) };
    pass_until(&world, STEP, "it is in step", in_step).await;
    once_each(&world).await;
    Box::pin(end(world, STEP)).await;
}

async fn side_by_side(slots: u16) {
    let Some(world) = two_processes(slots).await else { return };
    // In the middle of all the calls that it may make at once.
    let held = world.sim().inject(hold().nth(20).times((slots / 2).into()));
    connect(&world, 31).await;
    world.until("it is being filled", || async { world.sim().holds(held) }).await;
    world.publish(&drafts(&world)).await;
    deliver(&world, "Live");
    world.until("the drafts are there", || drafted(&world)).await;
    assert!(world.sim().holds(held));
    world.sim().release(held);
    finish(world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_takes_half_of_the_slots_at_most() {
    join_all((2..=4).map(|slots| Box::pin(side_by_side(slots)))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_with_the_only_slot_lets_others_in_between_its_slices() {
    let Some(world) = two_processes(1).await else { return };
    let mut held = world.sim().inject(hold().nth(20));
    connect(&world, 31).await;
    world.until("it is being filled", || async { world.sim().holds(held) }).await;
    world.publish(&drafts(&world)).await;
    for _ in 0..8 {
        // The slice is over once this call is.
        world.pass(TimeDelta::seconds(20));
        let next = world.sim().inject(hold());
        world.sim().release(held);
        held = next;
        pass_until(&world, STEP, "the next slice", || async { world.sim().holds(held) }).await;
        if drafted(&world).await {
            break;
        }
    }
    assert!(drafted(&world).await, "the backfill kept the slot");
    world.sim().release(held);
    finish(world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mailbox_that_has_too_much_at_once_is_left_alone_for_a_while_and_nothing_fails() {
    let Some(world) = two_processes(4).await else { return };
    let body = json!({"error": {"code": "ApplicationThrottled", "message": "Application is over its MailboxConcurrency limit."}});
    let hits: Vec<u64> = [3, 20]
        .into_iter()
        .map(|nth| {
            let refused = Fault::status(429, When::Before).header("retry-after", "1").body(body.clone());
            world.sim().inject(refused.path("*/mailFolders/*/messages").method("GET").nth(nth))
        })
        .collect();
    connect(&world, 31).await;
    world.publish(&drafts(&world)).await;
    let over = || async {
        !heard(&world, "mailbox.backfill.completed").is_empty()
            && drafted(&world).await
            && stored_ids(&world).await == held_ids(&world)
    };
    pass_until(&world, STEP, "all is done", over).await;
    once_each(&world).await;
    for hit in hits {
        assert_eq!(world.sim().fault_hits(hit).1, 1);
    }
    assert_eq!(world.events.of("mailbox.degraded").len(), 0);
    Box::pin(end(world, STEP)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_with_one_permit_makes_one_call_at_a_time() {
    let opened = World::open_with(Pair::Embedded, |config| config.mailbox.slots = 1);
    let Some(world) = opened.await else { return };
    world.connect(ADA, "shared-mailbox").await;
    let limits = world.sim().limits();
    world.sim().set_limits(Limits { latency_ms: 30, outlook_concurrent: 1, ..limits });
    fill(&world);
    connect(&world, 31).await;
    filled(&world).await;
    in_step(&world).await;
    let looked_for = world.sim().calls_to("GET", &format!("/v1.0/users/{SHARED}/messages/")).len();
    assert!(looked_for >= 30, "only {looked_for} were looked for by id");
    once_each(&world).await;
    leave(&world).await;
    world.close().await;
}
