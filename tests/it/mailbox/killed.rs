//! Processes that are killed again and again: while they fill a mailbox and Microsoft is at its roughest, and while
//! they take its notifications.
//!
//! The invariant: each process is a real one and dies by a signal, with a call under way.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use chrono::TimeDelta;
use followthrough::clock::Clock;
use followthrough::http::{Call, Http};
use followthrough::store::{StoreError, folder, job, subscription};
use followthrough_tests::servers;
use followthrough_tests::world::{Pair, World};
use futures::future::join_all;
use m365_sim::Fault;
use m365_sim::fault::When;
use m365_sim::graph::Fill;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use scoped_futures::ScopedFutureExt;
use secrecy::ExposeSecret;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use url::Url;

use super::support::{
    connect, connected, consented, deliver, heard, held_ids, in_step, leave, once_each, only_read, rough,
    row, throttled, tidy_up,
};
use crate::kill::Worker;

const MESSAGES: usize = 5_000;
/// What a killed process had in hand to publish is another's after half a minute.
const PATIENCE: Duration = Duration::from_mins(3);

fn process(world: &World) -> Command {
    let config = &world.config;
    let mut command = Command::new(env!("CARGO_BIN_EXE_house-worker"));
    command
        .args(["--microsoft", &world.running.base_url()])
        .args(["--database", config.database.url.expose_secret()])
        .args(["--amqp", config.broker.url.expose_secret()])
        .args(["--prefix", &config.broker.prefix])
        .args(["--vault-key", config.vault.keys[0].expose_secret()]);
    command
}

/// One with every role.
pub(super) fn start(world: &World) -> Worker {
    Worker::start(&mut process(world))
}

/// How often a worker was lost while it filled the mailbox, since its last slice that was done.
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
    let struck = AtomicBool::new(false);
    let watch = || async {
        if crashes(&world).await > 0 {
            struck.store(true, Ordering::Relaxed);
        }
    };
    // Lists that nobody has answered yet or whose answer is on its way, then the changes of a folder.
    for (number, (path, when)) in
        [("*/messages", When::Before), ("*/messages", When::After), ("*/messages/delta", When::After)]
            .into_iter()
            .enumerate()
    {
        throttled(&world, 1, 2);
        let held = world.sim().inject(Fault::hold(when).method("GET").path(path).nth(8));
        let under_way = || async {
            watch().await;
            world.sim().holds(held)
        };
        world.within(PATIENCE, "a call is under way", under_way).await;
        deliver(&world, &format!("Live {number}"));
        tidy_up(&world, number * 7);
        worker.kill();
        world.sim().release(held);
        worker = start(&world);
    }
    let over = || async {
        watch().await;
        heard(&world, "mailbox.backfill.completed").len() == 1
    };
    world.within(PATIENCE, "the backfill is over", over).await;
    in_step(&world).await;
    assert_eq!(held_ids(&world).len(), MESSAGES + 3);
    world.within(PATIENCE, "nothing is owed", || async { world.owed().await == 0 }).await;
    once_each(&world).await;
    only_read(&world);
    assert!(struck.load(Ordering::Relaxed), "no kill struck the backfill: the story told nothing");
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

const STATE: &str = "the client state of the story";

/// A subscription to the Inbox that Microsoft calls by this id.
async fn planted(world: &World, graph_id: &str) {
    let (id, now) = (row(world).await.id, world.clock.now());
    let state: [u8; 32] = Sha256::digest(STATE.as_bytes()).into();
    let written: Result<_, StoreError> = world
        .store
        .transaction("plant", |tx| {
            async move {
                let inbox = folder::of_mailbox(tx, id).await?.remove(0);
                let one = subscription::create(tx, id, &inbox.id, &state, now).await?;
                let until = now + TimeDelta::days(3);
                subscription::accepted(tx, one, graph_id, until, until, now).await
            }
            .scope_boxed()
        })
        .await;
    written.expect("the subscription");
}

/// The messages that notifications told of.
async fn noticed(world: &World) -> BTreeSet<String> {
    let found = world.store.read(|tx| {
        async move {
            Ok::<_, StoreError>(followthrough::sql!(tx, all(String,), "SELECT message_id FROM notices")?)
        }
        .scope_boxed()
    });
    found.await.expect("the notices").into_iter().map(|(id,)| id).collect()
}

/// What Microsoft posts from several sides, one notification after the other, until it is told to stop.
#[derive(Default)]
struct Posts {
    next: AtomicUsize,
    taken: Mutex<BTreeSet<String>>,
    over: AtomicBool,
}

impl Posts {
    async fn post(&self, http: &Http, url: &Url) {
        while !self.over.load(Ordering::SeqCst) {
            let id = format!("m{}", self.next.fetch_add(1, Ordering::SeqCst));
            let item = json!({"subscriptionId": "s-1", "clientState": STATE, "changeType": "created",
                "resource": format!("Users/u/Messages/{id}"), "resourceData": {"id": id}});
            let call = Call::post("story.notify", url.clone()).json(&json!({"value": [item]}));
            match http.send(call).await {
                Ok(answer) if answer.status == 202 => drop(self.taken.lock().expect("no panic").insert(id)),
                Ok(answer) => assert_eq!(answer.status, 503, "what could not be stored is refused"),
                // Nobody listens, or was killed before it answered.
                Err(_) => Clock::system().sleep(Duration::from_millis(5)).await,
            }
        }
    }

    fn count(&self) -> usize {
        self.taken.lock().expect("no panic").len()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_intake_took_is_stored_though_it_is_killed_fifty_times() {
    let Some(mut world) = connected(Pair::Servers, 0).await else { return };
    // Nobody may judge the notifications meanwhile.
    world.stop().await;
    planted(&world, "s-1").await;
    let listen = SocketAddr::from(([127, 0, 0, 1], servers::port()));
    let url = Url::parse(&format!("http://{listen}/graph/notifications")).expect("a URL");
    let start = || Worker::start(process(&world).args(["--intake", &listen.to_string()]));
    let (http, posts) =
        (Http::new(&world.config.microsoft, Clock::system()).expect("right settings"), Posts::default());
    let kills = async {
        let mut chance = StdRng::seed_from_u64(50);
        for _ in 0..50 {
            let (intake, before) = (start(), posts.count());
            world.within(PATIENCE, "it takes some", || async { posts.count() > before }).await;
            world.clock.sleep(Duration::from_millis(chance.random_range(0..40))).await;
            intake.kill();
        }
        posts.over.store(true, Ordering::SeqCst);
    };
    tokio::join!(kills, join_all((0..8).map(|_| posts.post(&http, &url))));
    let (taken, stored) = (posts.taken.into_inner().expect("no panic"), noticed(&world).await);
    let lost: Vec<&String> = taken.difference(&stored).collect();
    assert!(lost.is_empty() && taken.len() >= 50, "of {} taken these are lost: {lost:?}", taken.len());
    world.start().await;
    leave(&world).await;
    world.close().await;
}
