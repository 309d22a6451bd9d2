//! What a backfill asks Microsoft for, and what it does not ask for twice.

use chrono::{TimeDelta, Utc};
use followthrough_tests::world::Pair;
use m365_sim::graph::NewMessage;

use super::support::{SHARED, connect, consented, filled, heard, leave, once_each, stored_ids};

#[tokio::test(flavor = "multi_thread")]
async fn a_second_that_holds_more_messages_than_any_page_stops_nothing() {
    const OF_ONE_SECOND: usize = 2_300;
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = consented(pair).await else { continue };
        let days_ago = |days| Some(Utc::now() - TimeDelta::days(days));
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
