//! Links that lead elsewhere or nowhere: to a foreign host, or to a delta that Microsoft has forgotten.

use followthrough::mailbox::pacer;
use followthrough_tests::logs;
use followthrough_tests::world::{Pair, World};
use m365_sim::Fault;
use m365_sim::fault::When;
use m365_sim::graph::Fill;
use serde_json::json;

use super::support::{
    SHARED, connect, consented, deliver, filled, held_ids, in_step, leave, once_each, row, stored_ids,
};

const FOREIGN: &str = "graph.microsoft.com.evil.example";
const REFUSED: Option<&str> = Some("foreign_link");

fn lead_elsewhere(world: &World, on: bool) {
    world.sim().graph().switches.foreign_links = on;
}

/// The look that is out says why it does not come back.
async fn refused(world: &World) -> bool {
    let mailbox = row(world).await;
    let job = world.job(&pacer::job_id(&mailbox, mailbox.round)).await;
    job.is_some_and(|job| job.code.as_deref() == REFUSED)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_link_to_a_foreign_host_is_followed_or_kept_and_no_message_lost_by_it() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = consented(pair).await else { continue };
        // More folders than a page shows.
        world.sim().graph().fill(SHARED, &Fill { messages: 600, folders: 60, ..Fill::default() });
        world.sim().graph().switches.short_page_every = 1;
        lead_elsewhere(&world, true);
        let payload = json!({"address": SHARED, "backfill_days": 31});
        world.publish(&[world.envelope("connect", "mailbox.connect", payload)]).await;
        let waits = || async { world.job("connect").await.is_some_and(|job| job.code.as_deref() == REFUSED) };
        world.until("the list of folders is refused", waits).await;
        lead_elsewhere(&world, false);
        world.until_state("connect", "succeeded").await;
        // Lists by time of arrival need no link; changes have no other way.
        lead_elsewhere(&world, true);
        filled(&world).await;
        assert_eq!(stored_ids(&world).await.len(), 600);
        deliver(&world, "Meanwhile");
        world.until("the changes are refused", || refused(&world)).await;
        lead_elsewhere(&world, false);
        in_step(&world).await;
        once_each(&world).await;
        assert!(!logs::lines().contains(FOREIGN), "nobody was called there");
        leave(&world).await;
        world.close().await;
    }
}

/// The next calls for the Inbox's changes: this one says that the delta is forgotten.
fn forgotten(world: &World, nth: u64) -> u64 {
    let inbox = world.sim().graph().mailbox(SHARED).folder_id("Inbox").expect("an Inbox");
    let body =
        json!({"error": {"code": "SyncStateNotFound", "message": "The sync state generation is not found"}});
    let lost = Fault::status(410, When::Before).body(body).nth(nth);
    world.sim().inject(lost.path(&format!("*/mailFolders/{inbox}/messages/delta")))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_may_be_forgotten_on_any_page_of_a_round() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = consented(pair).await else { continue };
        // While the folder is begun to be followed.
        let first = forgotten(&world, 1);
        connect(&world, 0).await;
        world.until("it was forgotten", || async { world.sim().fault_hits(first).1 == 1 }).await;
        in_step(&world).await;
        // With the link of the last round, then on each page of three.
        for nth in 1..=3 {
            let lost = forgotten(&world, nth);
            for number in 0..250 {
                deliver(&world, &format!("Round {nth}, {number}"));
            }
            world.until("it was forgotten", || async { world.sim().fault_hits(lost).1 == 1 }).await;
            in_step(&world).await;
        }
        assert_eq!(held_ids(&world).len(), 750);
        once_each(&world).await;
        leave(&world).await;
        world.close().await;
    }
}
