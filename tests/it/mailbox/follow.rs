//! Live mail: what comes, changes, moves and goes.

use followthrough_tests::world::Pair;
use m365_sim::graph::NewMessage;

use super::support::{
    SHARED, connected, created, deliver, in_step, leave, settled, stored, stored_ids, told,
};

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_changes_moves_and_goes_is_seen_once() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = connected(pair, 0).await else { continue };
        let ids: Vec<String> = (0..5).map(|n| deliver(&world, &format!("Question {n}"))).collect();
        in_step(&world).await;
        {
            let mut graph = world.sim().graph();
            let mut mailbox = graph.mailbox(SHARED);
            mailbox.add_folder("Done");
            assert!(mailbox.mark_read(&ids[0], true));
            assert!(mailbox.move_message(&ids[1], "Archive"));
            assert!(mailbox.remove_message(&ids[2]));
        }
        in_step(&world).await;
        world
            .until("it is read", || async {
                stored(&world).await.iter().any(|row| row.id == ids[0] && row.is_read)
            })
            .await;
        world
            .until("the removal is told", || async { told(&world, "mailbox.message.removed").len() == 1 })
            .await;
        assert_eq!(told(&world, "mailbox.message.removed")[0]["data"]["message"], ids[2].as_str());
        let times = created(&world);
        assert!(ids.iter().all(|id| times.get(id) == Some(&1)), "{times:?}");
        let id = super::support::row(&world).await.id;
        leave(&world).await;
        // The mailbox is gone, its messages are kept.
        let (_, kept) = world.api(http::Method::GET, &format!("/v1/mailboxes/{id}/messages"), None).await;
        assert_eq!(kept["messages"].as_array().map(Vec::len), Some(4), "{kept}");
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_month_of_mail_is_filled_in_while_mail_comes() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = super::support::consented(pair).await else { continue };
        let fill = m365_sim::graph::Fill { messages: 1_500, folders: 6, ..Default::default() };
        world.sim().graph().fill(SHARED, &fill);
        super::support::connect(&world, 40).await;
        let live: Vec<String> = (0..10).map(|n| deliver(&world, &format!("Live {n}"))).collect();
        world
            .until("the backfill is over", || async { told(&world, "mailbox.backfill.completed").len() == 1 })
            .await;
        in_step(&world).await;
        assert_eq!(stored_ids(&world).await.len(), 1_510);
        let ended = told(&world, "mailbox.backfill.completed").remove(0);
        let (found, kept) = (ended["data"]["found"].as_u64(), ended["data"]["stored"].as_u64());
        assert!(found == kept && found >= Some(1_500), "{ended}");
        let times = created(&world);
        assert!(times.values().all(|times| *times == 1) && live.iter().all(|id| times.contains_key(id)));
        let writes = world.sim().calls();
        let mail = writes.iter().filter(|call| call.path.starts_with("/v1.0/users"));
        assert!(mail.clone().count() > 20 && mail.clone().all(|call| call.method == "GET"));
        let data = &told(&world, "mailbox.backfill.completed")[0]["data"];
        assert!(data["found"].as_i64().is_some_and(|found| found >= 1_500), "{data}");
        leave(&world).await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_with_outlook_for_the_desktop_is_no_second_message() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = connected(pair, 0).await else { continue };
        let id = world.sim().deliver(
            SHARED,
            NewMessage {
                internet_message_id: Some("<one@customer.example>".into()),
                ..NewMessage::new("Nora <nora@customer.example>", "Moved", "<p>Hello</p>")
            },
        );
        in_step(&world).await;
        settled(&world).await;
        let new = world.sim().graph().mailbox(SHARED).desktop_move(&id, "Archive").expect("moved");
        assert_ne!(id, new);
        in_step(&world).await;
        // Its new folder is a quiet one: what left the Inbox is missed long before it is seen there.
        let moved =
            || told(&world, "mailbox.message.updated").iter().any(|event| event["data"]["message"] == new);
        world.until("its new id is told", || async { moved() }).await;
        assert!(told(&world, "mailbox.message.removed").is_empty());
        assert_eq!(created(&world).len(), 1, "{:?}", created(&world));
        leave(&world).await;
        world.close().await;
    }
}
