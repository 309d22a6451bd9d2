//! Folders that are not like the others: one that fails, one that is not followed for a while, one that gets old mail.

use chrono::TimeDelta;
use followthrough_tests::world::{ADA, Pair, World};
use m365_sim::Fault;
use m365_sim::fault::When;
use m365_sim::graph::{Fill, NewMessage};
use serde_json::json;

use super::support::{
    SHARED, connect, connected, deliver, end, filled, folders, held_ids, in_step, leave, once_each,
    pass_until, row, settled, stored, stored_ids, told,
};

/// Shorter than what a job may take.
const STEP: TimeDelta = TimeDelta::minutes(4);

fn folder_id(world: &World, name: &str) -> String {
    world.sim().graph().mailbox(SHARED).folder_id(name).expect("the folder")
}

fn deliver_to(world: &World, folder: &str, subject: &str) -> String {
    let mail = NewMessage::new("Nora <nora@customer.example>", subject, "<p>Hello</p>");
    world.sim().deliver(SHARED, NewMessage { folder: Some(folder.into()), ..mail })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_fails_in_any_way_stops_no_other() {
    let corrupt = json!({"error": {"code": "ErrorItemCorrupt", "message": "corrupt"}});
    for pair in [Pair::Embedded, Pair::Servers] {
        for (status, body, path) in [
            (500, json!({}), "messages*"),
            (403, json!({}), "messages*"),
            (500, corrupt.clone(), "messages/delta*"),
            (504, json!({}), "messages/delta*"),
        ] {
            let Some(world) = connected(pair, 0).await else { continue };
            settled(&world).await;
            let path = format!("*/mailFolders/{}/{path}", folder_id(&world, "Sent Items"));
            let fault = Fault::status(status, When::Before).body(body).method("GET").path(&path).times(0);
            world.sim().inject(fault);
            // It comes behind the one that fails, which is looked at more often.
            let later = deliver_to(&world, "Archive", "Behind it");
            deliver_to(&world, "Sent Items", "In it");
            let before = deliver(&world, "Before it");
            let followed = || async {
                let stored = stored_ids(&world).await;
                stored.contains_key(&before) && stored.contains_key(&later)
            };
            world.until("the others are followed", followed).await;
            assert_eq!(row(&world).await.state, "connected");
            assert!(told(&world, "job.dead").is_empty() && told(&world, "job.parked").is_empty());
            world.sim().clear_faults();
            in_step(&world).await;
            once_each(&world).await;
            leave(&world).await;
            world.close().await;
        }
    }
}

/// A world that moves, in which a mailbox is filled and nothing is under way.
async fn at_rest() -> World {
    let moving = World::open_moving(Pair::Embedded, |config| config.workers.lease = "1h".into());
    let world = moving.await.expect("the embedded pair is always there");
    world.connect(ADA, "shared-mailbox").await;
    world.sim().graph().fill(SHARED, &Fill { messages: 60, folders: 2, ..Fill::default() });
    connect(&world, 31).await;
    filled(&world).await;
    settled(&world).await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn old_mail_that_is_dragged_in_from_elsewhere_is_found_within_a_day() {
    let world = at_rest().await;
    // Outside of what a delta tells of and of what is swept every day.
    let received = Some(world.clock.now() - TimeDelta::days(12));
    let mail = NewMessage::new("Nora <nora@customer.example>", "Dragged in", "<p>Hello</p>");
    let id = world.sim().deliver(SHARED, NewMessage { received, ..mail });
    let here = || async { stored_ids(&world).await.contains_key(&id) };
    pass_until(&world, STEP, "the old mail is here", here).await;
    once_each(&world).await;
    Box::pin(end(world, STEP)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_went_while_delta_was_refused_is_missed_once_it_is_to_be_had() {
    let world = at_rest().await;
    let full = json!({"error": {"code": "ErrorQuotaExceeded", "message": "full"}});
    let refused = Fault::status(403, When::Before).body(full).path("*/messages/delta*").times(0);
    world.sim().inject(refused);
    let listed = || async { folders(&world).await.iter().all(|folder| folder.rung == "list") };
    pass_until(&world, TimeDelta::minutes(2), "all are listed", listed).await;
    // Its owner makes room.
    let old = world.clock.now() - TimeDelta::days(5);
    let gone: Vec<String> = stored(&world)
        .await
        .into_iter()
        .filter(|row| row.received_at < old)
        .take(7)
        .map(|row| row.id)
        .collect();
    assert_eq!(gone.len(), 7);
    assert!(gone.iter().all(|id| world.sim().graph().mailbox(SHARED).remove_message(id)));
    world.sim().clear_faults();
    let missed = || async { stored_ids(&world).await == held_ids(&world) };
    pass_until(&world, STEP, "they are missed", missed).await;
    assert_eq!(told(&world, "mailbox.message.removed").len(), 7);
    Box::pin(end(world, STEP)).await;
}
