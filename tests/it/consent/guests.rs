//! Two processes as one good guest: never a fifth call in a mailbox, never one before its `Retry-After`.
//!
//! The simulator's referee judges; `World::close` asks it.

use followthrough_tests::world::{ADA, Pair, World};
use m365_sim::Fault;
use m365_sim::dataverse::row_id;
use m365_sim::fault::When;
use m365_sim::journal::Area;
use m365_sim::referee::{Limits, Throttle};
use serde_json::{Value, json};

async fn two_processes() -> Option<World> {
    let mut world = World::open(Pair::Servers).await?;
    world.start().await;
    for integration in ["outlook-email", "outlook-calendar", "dynamics"] {
        world.connect(ADA, integration).await;
    }
    for n in 0..50 {
        world.sim().edit_row("account", &account(n), &json!({"name": "Many"})).expect("a row");
    }
    world.sim().clear_calls();
    Some(world)
}

fn jobs(world: &World, count: usize) -> Vec<Value> {
    let draft = json!({"to": [{"email": "bob@contoso.example"}], "subject": ".", "body": {"format": "text", "content": "."}});
    let event = json!({"subject": ".", "start": "2026-12-01T15:00:00", "end": "2026-12-01T15:30:00", "time_zone": "UTC"});
    let row =
        |n: usize| json!({"table": "account", "id": account(n), "values": {"description": format!("{n}")}});
    (0..count)
        .map(|n| match n % 3 {
            0 => world.envelope(&format!("j{n}"), "email.draft", draft.clone()),
            1 => world.envelope(&format!("j{n}"), "event.create", event.clone()),
            _ => world.envelope(&format!("j{n}"), "crm.update", row(n)),
        })
        .collect()
}

/// Of every job its own: a row that many write at once is another story.
fn account(n: usize) -> String {
    row_id(1, 100 + u32::try_from(n).expect("few jobs"))
}

async fn all_succeed(world: &World, count: i64) {
    let done = || async { world.states().await.get("succeeded") == Some(&count) };
    world.until("all are done", done).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_and_calendar_of_one_user_never_meet_a_fifth_call() {
    let Some(world) = two_processes().await else { return };
    let mut limits = world.sim().limits();
    limits.latency_ms = 120;
    world.sim().set_limits(limits);
    world.publish(&jobs(&world, 45)).await;
    all_succeed(&world, 45).await;
    let drafts = world.sim().graph().mailbox(ADA).drafts().len();
    let events = world.sim().graph().mailbox(ADA).events().len();
    assert_eq!((drafts, events), (15, 15));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_mailbox_is_left_alone_by_both_processes_until_its_time() {
    let Some(world) = two_processes().await else { return };
    // What was claimed before the word of the 429 was written may be on its way for as long as a loaded machine takes.
    world.sim().set_limits(Limits { grace_ms: 6_000, ..world.sim().limits() });
    for (as_date, without_header) in [(false, false), (true, false)] {
        world.sim().throttle(Throttle {
            user: ADA.into(),
            calls: 1,
            retry_after_seconds: 6,
            as_date,
            without_header,
            area: Some(Area::Graph),
        });
    }
    world.publish(&jobs(&world, 18)).await;
    all_succeed(&world, 18).await;
    let refused: Vec<_> = world.sim().calls().into_iter().filter(|call| call.status == Some(429)).collect();
    assert!(refused.iter().all(|call| call.area == Area::Graph));
    assert!((2..=8).contains(&refused.len()), "{} calls were refused", refused.len());
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_crm_user_is_left_alone_and_mail_goes_on() {
    let Some(world) = two_processes().await else { return };
    world.sim().throttle(Throttle {
        user: ADA.into(),
        calls: 1,
        retry_after_seconds: 4,
        as_date: false,
        without_header: false,
        area: Some(Area::Dataverse),
    });
    world.sim().set_limits(Limits { grace_ms: 4_000, ..world.sim().limits() });
    let held = world.sim().inject(Fault::hold(When::Before).method("PATCH").path("/api/*").times(0));
    world.publish(&jobs(&world, 12)).await;
    world
        .until("mail and calendar are done", || async {
            world.states().await.get("succeeded").is_some_and(|done| *done >= 8)
        })
        .await;
    world.sim().release(held);
    all_succeed(&world, 12).await;
    world.close().await;
}
