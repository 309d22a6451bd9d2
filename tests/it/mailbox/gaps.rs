//! What would be missed by a fleet that trusts its cursors, its connections or its own uptime.

use chrono::TimeDelta;
use followthrough::store::message::Message;
use followthrough::store::{StoreError, folder};
use followthrough_tests::logs;
use followthrough_tests::world::{ADA, Pair, World};
use m365_sim::Fault;
use m365_sim::fault::When;
use m365_sim::graph::{Fill, NewMessage};
use scoped_futures::ScopedFutureExt;
use serde_json::json;

use super::support::{
    SHARED, connect, connected, consented, count, created, deliver, end, filled, folders, held_ids, in_step,
    leave, once_each, pass_until, rough, row, settled, stored, stored_ids, throttled, tidy_up, told,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_delta_link_costs_no_message_and_doubles_none() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = connected(pair, 0).await else { continue };
        for round in 0..3 {
            for n in 0..5 {
                deliver(&world, &format!("Round {round}, {n}"));
            }
            if round == 1 {
                in_step(&world).await;
            }
            world.sim().graph().expire_delta(SHARED);
        }
        in_step(&world).await;
        world.until("all are told of", || async { created(&world).len() == 15 }).await;
        once_each(&world).await;
        leave(&world).await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_mail_that_changed_unseen_is_found_after_a_lost_delta_link() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(mut world) = consented(pair).await else { continue };
        world.sim().graph().fill(SHARED, &Fill { messages: 300, folders: 4, ..Fill::default() });
        connect(&world, 40).await;
        filled(&world).await;
        in_step(&world).await;
        world.stop().await;
        let old: Vec<String> = {
            let mut rows = stored(&world).await;
            rows.sort_by_key(|row| row.received_at);
            rows.into_iter().take(3).map(|row| row.id).collect()
        };
        {
            let mut graph = world.sim().graph();
            let mut mailbox = graph.mailbox(SHARED);
            let read = mailbox.message(&old[0]).is_some_and(|message| message["isRead"] == true);
            assert!(mailbox.mark_read(&old[0], !read));
            assert!(mailbox.move_message(&old[1], "Archive"));
            assert!(mailbox.remove_message(&old[2]));
        }
        let seen = |rows: &[Message]| rows.iter().find(|row| row.id == old[0]).map(|row| row.is_read);
        let before = seen(&stored(&world).await);
        world.sim().graph().expire_delta(SHARED);
        world.start().await;
        in_step(&world).await;
        world.until("the change is seen", || async { seen(&stored(&world).await) != before }).await;
        world
            .until("the removal is told", || async { told(&world, "mailbox.message.removed").len() == 1 })
            .await;
        assert_eq!(told(&world, "mailbox.message.removed")[0]["data"]["message"], old[2].as_str());
        settled(&world).await;
        let id = row(&world).await.id.to_string();
        let (said, folders) = (logs::warnings(&["delta link was lost", &id]), folders(&world).await.len());
        assert!(
            (1..=folders).contains(&said),
            "{said} warnings, {folders} folders: once for each that had a link"
        );
        leave(&world).await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_consent_parks_the_mailbox_once_and_a_new_one_closes_the_gap() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(mut world) = connected(pair, 0).await else { continue };
        deliver(&world, "Before");
        in_step(&world).await;
        world.sim().revoke_sessions(ADA);
        // A new process holds no access token that would go on working for an hour.
        world.stop().await;
        world.start().await;
        world.until("it says so", || async { row(&world).await.state == "degraded" }).await;
        for n in 0..30 {
            deliver(&world, &format!("Meanwhile {n}"));
        }
        world.connect(ADA, "shared-mailbox").await;
        in_step(&world).await;
        world.until("it is reached again", || async { row(&world).await.state == "connected" }).await;
        let id = row(&world).await.id.to_string();
        let told_of = || -> Vec<String> {
            let about = world.events.about(&id).into_iter();
            about.filter(|kind| !kind.starts_with("mailbox.message")).collect()
        };
        world.until("it is told", || async { told_of().len() >= 3 }).await;
        assert_eq!(told_of(), ["mailbox.connected", "mailbox.degraded", "mailbox.connected"]);
        world.until("all are told of", || async { created(&world).len() == 31 }).await;
        once_each(&world).await;
        leave(&world).await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_every_shape_throttles_and_cuts_lose_and_double_nothing() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(mut world) = consented(pair).await else { continue };
        world.sim().graph().fill(SHARED, &Fill { messages: 1_500, folders: 8, ..Fill::default() });
        rough(&world);
        connect(&world, 31).await;
        world.until("it has begun", || async { count(&world).await >= 200 }).await;
        throttled(&world, 1, 2);
        for n in 0..3 {
            let before = count(&world).await;
            deliver(&world, &format!("Live {n}"));
            tidy_up(&world, n * 7);
            world.cut().await;
            world.start().await;
            world
                .until("it goes on", || async {
                    count(&world).await > before || told(&world, "mailbox.backfill.completed").len() == 1
                })
                .await;
        }
        filled(&world).await;
        in_step(&world).await;
        once_each(&world).await;
        leave(&world).await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_delta_is_refused_the_folder_is_listed() {
    let Some(world) = consented(Pair::Embedded).await else { return };
    world.sim().inject(
        m365_sim::Fault::status(403, m365_sim::fault::When::Before)
            .body(json!({"error": {"code": "ErrorQuotaExceeded", "message": "full"}}))
            .path("*/messages/delta*")
            .times(0),
    );
    connect(&world, 0).await;
    deliver(&world, "Listed");
    in_step(&world).await;
    world.until("it says so", || async { row(&world).await.rung == "list" }).await;
    leave(&world).await;
    world.close().await;
}

/// Microsoft forgets how far this folder was followed, and what it holds is read again.
async fn forget(world: &World, folder: &str) {
    let sweeps = async || {
        let folders = folders(world).await;
        folders.into_iter().find(|known| known.id == folder).expect("the folder").sweep
    };
    let before = sweeps().await;
    let lost = json!({"error": {"code": "SyncStateNotFound", "message": "lost"}});
    let path = format!("*/mailFolders/{folder}/messages/delta");
    world.sim().inject(Fault::status(410, When::Before).body(lost).method("GET").path(&path));
    world.until("it is read again", || async { sweeps().await > before }).await;
    settled(world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_moved_between_folders_is_missed_where_it_stood_last() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(mut world) = consented(pair).await else { continue };
        world.sim().graph().mailbox(SHARED).add_folder("Later");
        connect(&world, 31).await;
        let id = deliver(&world, "Moves");
        in_step(&world).await;
        settled(&world).await;
        // The one folder was read more often than the other.
        let inbox = folders(&world).await.remove(0).id;
        for _ in 0..3 {
            forget(&world, &inbox).await;
        }
        assert!(world.sim().graph().mailbox(SHARED).move_message(&id, "Later"));
        in_step(&world).await;
        world.stop().await;
        assert!(world.sim().graph().mailbox(SHARED).remove_message(&id));
        world.sim().graph().expire_delta(SHARED);
        world.start().await;
        in_step(&world).await;
        leave(&world).await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_was_gone_for_a_while_is_read_anew() {
    const STEP: TimeDelta = TimeDelta::minutes(1);
    let moving = World::open_moving(Pair::Embedded, |config| config.workers.lease = "1h".into());
    let world = moving.await.expect("the embedded pair is always there");
    world.connect(ADA, "shared-mailbox").await;
    let later = world.sim().graph().mailbox(SHARED).add_folder("Later");
    connect(&world, 31).await;
    filled(&world).await;
    settled(&world).await;
    // As when a page of the tree misses it: nobody looks at it, and meanwhile old mail is moved there.
    let (mailbox, now, id) = (row(&world).await.id, world.clock.now(), later.as_str());
    let gone: Result<_, StoreError> = world
        .store
        .transaction("gone", |tx| async move { folder::gone(tx, mailbox, id, now).await }.scope_boxed())
        .await;
    gone.expect("the store answers");
    let received = Some(now - TimeDelta::days(10));
    let folder = Some("Later".to_owned());
    world.sim().deliver(
        SHARED,
        NewMessage { received, folder, ..NewMessage::new("Nora <n@x.example>", "Old", ".") },
    );
    let in_step = || async { stored_ids(&world).await == held_ids(&world) };
    pass_until(&world, STEP, "the old mail is here", in_step).await;
    Box::pin(end(world, STEP)).await;
}
