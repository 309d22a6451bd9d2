//! A backfill whose worker process is killed again and again, while Microsoft is at its roughest.
//!
//! The invariant: the process is a real one and dies by a signal, with a call of the mailbox under way.

use std::process::Command;
use std::time::Duration;

use followthrough::store::job;
use followthrough_tests::world::{Pair, World};
use m365_sim::Fault;
use m365_sim::fault::When;
use m365_sim::graph::Fill;
use scoped_futures::ScopedFutureExt;
use secrecy::ExposeSecret;

use super::support::{
    connect, consented, deliver, heard, held_ids, in_step, leave, once_each, only_read, rough, throttled,
    tidy_up,
};
use crate::kill::Worker;

const MESSAGES: usize = 5_000;
/// What a killed process had in hand to publish is another's after half a minute.
const PATIENCE: Duration = Duration::from_mins(3);

fn start(world: &World) -> Worker {
    let config = &world.config;
    Worker::start(
        Command::new(env!("CARGO_BIN_EXE_house-worker"))
            .args(["--microsoft", &world.running.base_url()])
            .args(["--database", config.database.url.expose_secret()])
            .args(["--amqp", config.broker.url.expose_secret()])
            .args(["--prefix", &config.broker.prefix])
            .args(["--vault-key", config.vault.keys[0].expose_secret()]),
    )
}

/// How often a worker was lost while it filled the mailbox.
async fn crashes(world: &World) -> i32 {
    let filter = &job::Filter { kind: Some("mailbox.backfill".into()), limit: 10, ..Default::default() };
    let rows = world.store.read(|tx| async move { job::list(tx, filter).await }.scope_boxed()).await;
    rows.expect("the store answers").iter().map(|row| row.crashes).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_whose_worker_is_killed_three_times_finds_every_message_once() {
    let Some(mut world) = consented(Pair::Servers).await else { return };
    world
        .sim()
        .graph()
        .fill(super::support::SHARED, &Fill { messages: MESSAGES, folders: 10, ..Fill::default() });
    rough(&world);
    world.stop().await;
    let mut worker = start(&world);
    connect(&world, 31).await;
    // Lists that nobody has answered yet or whose answer is on its way, then the changes of a folder.
    for (number, (path, when)) in
        [("*/messages", When::Before), ("*/messages", When::After), ("*/messages/delta", When::After)]
            .into_iter()
            .enumerate()
    {
        throttled(&world, 1, 2);
        let held = world.sim().inject(Fault::hold(when).method("GET").path(path).nth(8));
        world.within(PATIENCE, "a call is under way", || async { world.sim().holds(held) }).await;
        deliver(&world, &format!("Live {number}"));
        tidy_up(&world, number * 7);
        worker.kill();
        world.sim().release(held);
        worker = start(&world);
    }
    let over = || async { heard(&world, "mailbox.backfill.completed").len() == 1 };
    world.within(PATIENCE, "the backfill is over", over).await;
    in_step(&world).await;
    assert_eq!(held_ids(&world).len(), MESSAGES + 3);
    world.within(PATIENCE, "nothing is owed", || async { world.owed().await == 0 }).await;
    once_each(&world).await;
    only_read(&world);
    assert!(crashes(&world).await > 0, "no kill struck the backfill: the story told nothing");
    let found = heard(&world, "mailbox.backfill.completed")[0]["data"]["found"].as_u64();
    assert!(found.is_some_and(|found| found <= (MESSAGES + 3) as u64), "counted twice: {found:?}");
    worker.terminate();
    while !worker.is_gone() {
        world.clock.sleep(Duration::from_millis(20)).await;
    }
    world.start().await;
    leave(&world).await;
    world.close().await;
}
