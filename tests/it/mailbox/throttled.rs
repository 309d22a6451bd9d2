//! Hundreds of 429s in a row: the mailbox waits, and nobody is said to be at fault.

use chrono::{DateTime, TimeDelta, Utc};
use followthrough::cool_down::CoolDowns;
use followthrough::store::{StoreError, gate};
use followthrough_tests::world::{ADA, Pair, World};
use m365_sim::Fault;
use m365_sim::fault::When;
use m365_sim::graph::Fill;
use m365_sim::referee::Limits;
use scoped_futures::ScopedFutureExt;

use super::support::{
    SHARED, connect, consented, deliver, end, filled, held_ids, leave, once_each, pass_until, row,
    stored_ids, told,
};

const STEP: TimeDelta = TimeDelta::seconds(20);

#[tokio::test(flavor = "multi_thread")]
async fn however_often_microsoft_says_too_many_requests_nothing_is_given_up() {
    // The delay queues of RabbitMQ know no other time than the real one.
    for (pair, refusals) in [(Pair::Embedded, 300), (Pair::Servers, 12)] {
        let moving = World::open_moving(pair, |config| config.workers.lease = "1h".into());
        let Some(world) = moving.await else { continue };
        let connection = world.connect(ADA, "shared-mailbox").await;
        world.sim().graph().fill(SHARED, &Fill { messages: 150, folders: 2, ..Fill::default() });
        connect(&world, 31).await;
        let busy = Fault::status(429, When::Before).header("retry-after", "30");
        let busy = world.sim().inject(busy.path(&format!("/v1.0/users/{SHARED}/*")).times(0));
        deliver(&world, "Meanwhile");
        let often = || async { world.sim().fault_hits(busy).1 >= refusals };
        pass_until(&world, STEP, "it was refused often", often).await;
        assert_eq!(row(&world).await.state, "connected");
        assert_eq!(world.connection(connection).await.status.as_str(), "connected");
        assert!(told(&world, "mailbox.degraded").is_empty() && told(&world, "connection.needs").is_empty());
        assert!(told(&world, "job.dead").is_empty() && told(&world, "job.parked").is_empty());
        world.sim().clear_faults();
        let in_step = || async { stored_ids(&world).await == held_ids(&world) };
        pass_until(&world, STEP, "it goes on", in_step).await;
        let over = || async { told(&world, "mailbox.backfill.completed").len() == 1 };
        pass_until(&world, STEP, "the backfill is over", over).await;
        once_each(&world).await;
        Box::pin(end(world, STEP)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_lane_of_a_backfill_is_told_the_other_one_hears_before_its_next_call() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = consented(pair).await else { continue };
        let grace = TimeDelta::seconds(5);
        world.sim().set_limits(Limits { grace_ms: grace.num_milliseconds(), ..world.sim().limits() });
        world.sim().graph().fill(SHARED, &Fill { messages: 1_000, folders: 4, ..Fill::default() });
        let lists = |fault: Fault| fault.method("GET").path("*/mailFolders/*/messages");
        // Behind the counts of all folders.
        let under_way = world.sim().inject(lists(Fault::hold(When::Before)).nth(30));
        connect(&world, 31).await;
        world.until("a list is under way", || async { world.sim().holds(under_way) }).await;
        let busy = Fault::status(429, When::Before).header("retry-after", "15");
        let busy = world.sim().inject(lists(busy));
        world.until("the other lane is refused", || async { world.sim().fault_hits(busy).1 == 1 }).await;
        let refused_at = world.sim().now();
        world.until("the referee is strict", || async { world.sim().now() > refused_at + grace }).await;
        // It is answered, and would ask for the next page at once.
        world.sim().release(under_way);
        filled(&world).await;
        once_each(&world).await;
        leave(&world).await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_process_is_told_another_ones_backfill_hears_before_its_next_call() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = World::open(pair).await else { continue };
        let connection = world.connect(ADA, "shared-mailbox").await;
        world.sim().graph().fill(SHARED, &Fill { messages: 1_000, folders: 4, ..Fill::default() });
        let held = Fault::hold(When::Before).method("GET").path("*/mailFolders/*/messages");
        // Behind the counts of all folders, in both lanes.
        let under_way = [30, 31].map(|nth| world.sim().inject(held.clone().nth(nth)));
        connect(&world, 31).await;
        let both = || async { under_way.iter().all(|held| world.sim().holds(*held)) };
        world.until("both lanes wait", both).await;
        // As another process leaves word of a 429.
        let tenant = world.connection(connection).await.tenant_id.expect("a tenant");
        let until = world.clock.now() + TimeDelta::seconds(8);
        leave_word(&world, &gate::of_mailbox(&tenant, SHARED), until).await;
        // What was heard just before counts for a moment.
        let heard_at = world.clock.now() + TimeDelta::milliseconds(500);
        world.until("all ask again", || async { world.clock.now() > heard_at }).await;
        for held in under_way {
            world.sim().release(held);
        }
        filled(&world).await;
        let early = world
            .sim()
            .calls()
            .into_iter()
            .find(|call| call.path.contains(SHARED) && call.started > heard_at && call.started < until);
        assert!(early.is_none(), "{early:?}");
        once_each(&world).await;
        leave(&world).await;
        world.close().await;
    }
}

#[tokio::test]
async fn who_asks_while_another_one_asks_is_told_the_same() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = World::open(pair).await else { continue };
        let key = gate::of_mailbox("tenant", SHARED);
        leave_word(&world, &key, world.clock.now() + TimeDelta::hours(1)).await;
        let mut cool_downs = CoolDowns::new(world.clock.clone());
        cool_downs.listen(world.store.clone());
        let of_mailbox = cool_downs.of(&key);
        let (one, other) = tokio::join!(of_mailbox.heard(), of_mailbox.heard());
        assert!(one.is_some() && other.is_some(), "{one:?} {other:?}");
        world.close().await;
    }
}

/// As another process does that was told to wait.
async fn leave_word(world: &World, key: &str, until: DateTime<Utc>) {
    let close = world
        .store
        .transaction("throttled", |tx| async move { gate::close(tx, key, until).await }.scope_boxed());
    let closed: Result<_, StoreError> = close.await;
    closed.expect("the store answers");
}
