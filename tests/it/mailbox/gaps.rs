//! What would be missed by a fleet that trusts its cursors, its connections or its own uptime.

use followthrough::store::message::Message;
use followthrough_tests::logs;
use followthrough_tests::world::{ADA, Pair};
use m365_sim::graph::Fill;
use serde_json::json;

use super::support::{
    SHARED, connect, connected, consented, count, created, deliver, filled, folders, in_step, leave,
    once_each, rough, row, settled, stored, throttled, tidy_up, told,
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
        let (said, folders) = (logs::count(&["delta link was lost", &id]), folders(&world).await.len());
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
