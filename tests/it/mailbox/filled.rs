//! What a backfill asks Microsoft for, and what it does not ask for twice.

use chrono::TimeDelta;
use followthrough::store::StoreError;
use followthrough_tests::world::{ADA, Pair, World};
use http::Method;
use m365_sim::Fault;
use m365_sim::fault::When;
use m365_sim::graph::{Fill, NewMessage};
use scoped_futures::ScopedFutureExt;
use serde_json::json;

use super::support::{
    SHARED, connect, consented, end, filled, folders, heard, in_step, leave, once_each, pass_until, row,
    stored_ids,
};

/// Lists of a folder's past, without the counts.
fn lists(world: &World, folder: &str) -> usize {
    let path = format!("/mailFolders/{folder}/messages");
    let calls = world.sim().calls();
    calls.iter().filter(|call| call.path.ends_with(&path) && call.query.contains("$orderby")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_moves_into_a_folder_that_was_read_does_not_make_it_be_read_again() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = consented(pair).await else { continue };
        world.sim().graph().fill(SHARED, &Fill { messages: 1_000, folders: 4, ..Fill::default() });
        let (inbox, quiet) = {
            let mut graph = world.sim().graph();
            let mailbox = graph.mailbox(SHARED);
            (mailbox.folder_id("Inbox").expect("Inbox"), mailbox.folder_id("Project 2").expect("a folder"))
        };
        // Its first list: the call before it counts.
        let list = Fault::hold(When::Before).method("GET");
        let held = world.sim().inject(list.path(&format!("*/mailFolders/{inbox}/messages")).nth(2));
        connect(&world, 31).await;
        world.until("the Inbox is about to be read", || async { world.sim().holds(held) }).await;
        let others_are_read = || async {
            let all = folders(&world).await;
            let mut others = all.iter().filter(|folder| folder.id != inbox);
            others.all(|folder| folder.polled_at.is_some() && !folder.fills())
        };
        world.until("the others are read and looked at", others_are_read).await;
        let before = lists(&world, &quiet);
        assert!(before > 1, "{before}");
        {
            let mut graph = world.sim().graph();
            let mut mailbox = graph.mailbox(SHARED);
            let ids: Vec<String> = mailbox.folder("Project 1").iter().take(9).filter_map(id).collect();
            assert!(ids.len() == 9 && ids.iter().all(|id| mailbox.move_message(id, "Project 2")));
        }
        world.sim().release(held);
        filled(&world).await;
        assert_eq!(lists(&world, &quiet), before, "it was read again");
        in_step(&world).await;
        once_each(&world).await;
        let ended = &heard(&world, "mailbox.backfill.completed")[0]["data"];
        assert_eq!(ended["found"], 1_000, "{ended}");
        leave(&world).await;
        world.close().await;
    }
}

fn id(message: &serde_json::Value) -> Option<String> {
    Some(message["id"].as_str()?.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_that_holds_more_messages_than_any_page_stops_nothing() {
    const OF_ONE_SECOND: usize = 2_300;
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = consented(pair).await else { continue };
        let days_ago = |days| Some(world.clock.now() - TimeDelta::days(days));
        let same = days_ago(7);
        for number in 0..OF_ONE_SECOND {
            let mail = NewMessage::new("Nora <nora@customer.example>", &format!("Import {number}"), ".");
            world.sim().deliver(SHARED, NewMessage { received: same, ..mail });
        }
        for (subject, received) in [("Before", days_ago(8)), ("After", days_ago(6))] {
            let mail = NewMessage::new("Nora <nora@customer.example>", subject, ".");
            world.sim().deliver(SHARED, NewMessage { received, ..mail });
        }
        connect(&world, 31).await;
        filled(&world).await;
        assert_eq!(stored_ids(&world).await.len(), OF_ONE_SECOND + 2);
        let ended = &heard(&world, "mailbox.backfill.completed")[0]["data"];
        assert_eq!(ended["found"], ended["stored"], "{ended}");
        assert!(ended["requests"].as_u64().is_some_and(|requests| requests <= 45), "{ended}");
        once_each(&world).await;
        leave(&world).await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_that_were_made_since_the_tree_was_looked_at_are_read_with_the_others() {
    const STEP: TimeDelta = TimeDelta::seconds(20);
    for pair in [Pair::Embedded, Pair::Servers] {
        let moving = World::open_moving(pair, |config| config.workers.lease = "1h".into());
        let Some(world) = moving.await else { continue };
        world.connect(ADA, "shared-mailbox").await;
        connect(&world, 0).await;
        let later = world.clock.now() + TimeDelta::minutes(2);
        pass_until(&world, STEP, "two minutes are over", || async { world.clock.now() > later }).await;
        world.sim().graph().fill(SHARED, &Fill { messages: 300, folders: 5, ..Fill::default() });
        let path = format!("/v1/mailboxes/{}/backfill", row(&world).await.id);
        assert_eq!(world.api(Method::POST, &path, Some(&json!({"days": 40}))).await.0, 202);
        let over = || async { !heard(&world, "mailbox.backfill.completed").is_empty() };
        pass_until(&world, STEP, "the backfill is over", over).await;
        let ended = &heard(&world, "mailbox.backfill.completed")[0]["data"];
        assert_eq!(ended["found"], 300, "{ended}");
        Box::pin(end(world, STEP)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_were_lost_before_a_slice_was_done_are_not_held_against_the_next() {
    const STEP: TimeDelta = TimeDelta::seconds(5);
    for pair in [Pair::Embedded, Pair::Servers] {
        let moving = World::open_moving(pair, |config| config.workers.lease = "1h".into());
        let Some(world) = moving.await else { continue };
        world.connect(ADA, "shared-mailbox").await;
        connect(&world, 0).await;
        let later = world.clock.now() + TimeDelta::minutes(1);
        pass_until(&world, STEP, "a minute is over", || async { world.clock.now() > later }).await;
        world.sim().graph().fill(SHARED, &Fill { messages: 500, folders: 4, ..Fill::default() });
        let tree = Fault::status(503, When::Before).path(&format!("/v1.0/users/{SHARED}/mailFolders"));
        world.sim().inject(tree.times(0));
        let asked = world.envelope("fill", "mailbox.backfill", json!({"mailbox": SHARED, "days": 40}));
        world.publish(&[asked]).await;
        world.until("it waits", || async { world.state("fill").await == "waiting" }).await;
        // As if it had cost nine workers by then.
        let lost: Result<_, StoreError> = world
            .store
            .transaction("lost", |tx| {
                async move {
                    let sql =
                        "UPDATE jobs SET attempt = 9, crashes = 9 WHERE id = 'fill' AND state = 'waiting'";
                    Ok(followthrough::sql!(tx, execute, sql)?)
                }
                .scope_boxed()
            })
            .await;
        assert_eq!(lost.expect("the store answers"), 1);
        world.sim().clear_faults();
        let list = Fault::hold(When::Before).method("GET").path("*/mailFolders/*/messages");
        let held = world.sim().inject(list.nth(20));
        pass_until(&world, STEP, "a list is under way", || async { world.sim().holds(held) }).await;
        // Longer than a slice takes.
        world.pass(TimeDelta::seconds(20));
        world.sim().release(held);
        let over = || async { !heard(&world, "mailbox.backfill.completed").is_empty() };
        pass_until(&world, STEP, "the backfill is over", over).await;
        world.until_state("fill", "succeeded").await;
        let row = world.job("fill").await.expect("the row");
        assert_eq!((row.attempt, row.crashes), (1, 0), "{row:?}");
        assert_eq!(heard(&world, "mailbox.backfill.completed")[0]["data"]["found"], 500);
        Box::pin(end(world, STEP)).await;
    }
}
