//! Three days in which nobody ran, and five thousand messages that came meanwhile.

use chrono::TimeDelta;
use followthrough_tests::world::{Pair, World};
use m365_sim::graph::NewMessage;

use super::support::{SHARED, connect, count, created, deliver, in_step, leave, once_each, only_read, order};

const MISSED: i32 = 5_000;

/// A mailbox that is followed, then three days later what came: one message every 52 seconds.
async fn away(pair: Pair) -> Option<(World, Vec<String>)> {
    let mut world = World::open_moving(pair, |_| {}).await?;
    world.connect(followthrough_tests::world::ADA, "shared-mailbox").await;
    connect(&world, 0).await;
    deliver(&world, "Before");
    in_step(&world).await;
    world.until("it is told of", || async { created(&world).len() == 1 }).await;
    world.stop().await;
    let (start, days) = (world.sim().now(), TimeDelta::days(3));
    let missed = (1..=MISSED)
        .map(|n| {
            let received = Some(start + days / MISSED * n);
            let mail = NewMessage::new("Nora <nora@customer.example>", "Missed", "<p>Hello</p>");
            world.sim().graph().mailbox(SHARED).deliver(NewMessage { received, ..mail })
        })
        .collect();
    world.pass(days);
    Some((world, missed))
}

async fn back(mut world: World) -> World {
    world.start().await;
    world.until("all are stored", || async { count(&world).await > MISSED as usize }).await;
    in_step(&world).await;
    once_each(&world).await;
    only_read(&world);
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_messages_of_three_days_are_told_of_in_the_order_they_came() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some((world, missed)) = away(pair).await else { continue };
        let world = back(world).await;
        assert_eq!(order(&world)[1..], missed);
        leave(&world).await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_messages_of_three_days_are_there_though_the_delta_link_died_meanwhile() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some((world, missed)) = away(pair).await else { continue };
        world.sim().graph().expire_delta(SHARED);
        let world = back(world).await;
        let known = created(&world);
        assert!(missed.iter().all(|id| known.contains_key(id)));
        leave(&world).await;
        world.close().await;
    }
}
