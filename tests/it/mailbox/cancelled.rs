//! A backfill that somebody cancels, and the one that is begun after it.

use followthrough_tests::world::{Pair, World};
use http::Method;
use m365_sim::Fault;
use m365_sim::fault::When;
use m365_sim::graph::Fill;
use serde_json::{Value, json};

use super::support::{
    SHARED, connect, consented, count, filled, heard, in_step, leave, lose, once_each, row,
};

/// The state in a job's result, once it has succeeded.
async fn came_to(world: &World, job: &str) -> Value {
    world.until_state(job, "succeeded").await;
    let result = world.job(job).await.expect("the row").result.expect("a result");
    serde_json::from_str::<Value>(&result).expect("JSON")["state"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_backfill_ends_with_its_page_keeps_what_was_read_and_is_in_no_other_ones_way() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = consented(pair).await else { continue };
        world.sim().graph().fill(SHARED, &Fill { messages: 1_500, folders: 6, ..Fill::default() });
        connect(&world, 0).await;
        let backfill = format!("/v1/mailboxes/{}/backfill", row(&world).await.id);
        let ask = async |method, body: Option<&Value>| {
            let (status, answer) = world.api(method, &backfill, body).await;
            (status.as_u16(), answer["error"]["code"].clone())
        };
        // Behind the counts of all folders, in the middle of the lists.
        let list = || {
            let list = Fault::hold(When::Before).method("GET");
            world.sim().inject(list.path("*/mailFolders/*/messages").nth(40))
        };
        let held = list();
        let old = world.envelope("old", "mailbox.backfill", json!({"mailbox": SHARED, "days": 40}));
        world.publish(std::slice::from_ref(&old)).await;
        world.until("a list is under way", || async { world.sim().holds(held) }).await;
        assert_eq!(ask(Method::POST, Some(&json!({"days": 40}))).await, (409, json!("backfill_running")));
        assert_eq!(ask(Method::DELETE, None).await.0, 200);
        assert_eq!(ask(Method::DELETE, None).await, (409, json!("no_backfill")));
        world.sim().release(held);
        assert_eq!(came_to(&world, "old").await, "cancelled");
        let read = count(&world).await;
        assert!((1..1_500).contains(&read), "{read}");

        let held = list();
        assert_eq!(ask(Method::POST, Some(&json!({"days": 40}))).await.0, 202);
        world.until("the next one is under way", || async { world.sim().holds(held) }).await;
        for is_over in [false, true] {
            if is_over {
                world.sim().release(held);
                filled(&world).await;
            }
            // A worker that was lost had it in hand, and it comes back.
            lose(&world, "old").await;
            world.publish(std::slice::from_ref(&old)).await;
            assert_eq!(came_to(&world, "old").await, "cancelled");
        }
        in_step(&world).await;
        once_each(&world).await;
        let ended = heard(&world, "mailbox.backfill.completed");
        assert_eq!((ended.len(), &ended[0]["data"]["found"]), (1, &json!(1_500)), "{ended:?}");
        let cancelled = heard(&world, "mailbox.backfill.cancelled");
        assert_eq!((cancelled.len(), &cancelled[0]["data"]["stored"]), (1, &json!(read)), "{cancelled:?}");
        leave(&world).await;
        world.close().await;
    }
}
