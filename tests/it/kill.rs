//! Worker processes that are killed, crash or are restarted in the middle of their work.
//!
//! The invariant: the process is a real one and dies by a signal; what it wrote outside stays written.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use followthrough_tests::engine::{Engine, Pair};
use followthrough_tests::outside::Outside;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use url::Url;
use uuid::Uuid;

/// A job that was taken by a killed process is somebody else's after this.
/// Of a worker that is killed: its story waits for this to end.
const SHORT: Duration = Duration::from_secs(3);
/// Of one that must not lose a job however busy the machine is.
const LONG: Duration = Duration::from_secs(30);
const KILLS: usize = 50;
const JOBS: usize = 500;

struct Workers<'a> {
    world: &'a Engine,
    outside: Url,
    drain: Duration,
    lease: Duration,
}

/// Killed when dropped, so that a failed story leaves none behind.
pub(crate) struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Worker {
    pub(crate) fn start(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Self(child.expect("the worker's binary"))
    }

    /// `kill -9`.
    pub(crate) fn kill(self) {
        drop(self);
    }

    /// SIGTERM, and then all the time it takes.
    pub(crate) fn terminate(&self) {
        let sent = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "a living process");
    }

    pub(crate) fn is_gone(&mut self) -> bool {
        self.0.try_wait().expect("a child").is_some()
    }
}

impl Workers<'_> {
    fn start(&self) -> Worker {
        Worker::start(
            Command::new(env!("CARGO_BIN_EXE_engine-worker"))
                .args(["--amqp", self.world.amqp_url.as_deref().expect("a world on servers")])
                .args(["--database", &self.world.database_url])
                .args(["--prefix", self.world.prefix()])
                .args(["--outside", self.outside.as_str()])
                .args(["--lease-millis", &self.lease.as_millis().to_string()])
                .args(["--drain-millis", &self.drain.as_millis().to_string()])
                .args(["--concurrency", "8"]),
        )
    }
}

/// Says with which seed the story can be told again, when it ends badly.
struct Seed(u64);

impl Seed {
    fn fresh() -> (Self, StdRng) {
        let seed = Uuid::now_v7().as_u64_pair().1;
        (Self(seed), StdRng::seed_from_u64(seed))
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            followthrough_tests::servers::tell(&format!("the seed was {}", self.0));
        }
    }
}

/// Two writes each, of which some are slow enough to be struck in the middle.
fn jobs(world: &Engine, ids: std::ops::Range<usize>, chance: &mut StdRng) -> Vec<Value> {
    ids.map(|n| {
        let (first, second) = match chance.random_range(0..4) {
            0 => (json!(["slow"]), json!([])),
            1 => (json!([]), json!(["slow"])),
            _ => (json!([]), json!([])),
        };
        let mut envelope =
            world.envelope(&format!("j{n}"), "test.write", json!({"faults": first, "second": second}));
        envelope["user"] = json!(format!("user{}@acme.example", n % 40));
        envelope
    })
    .collect()
}

async fn succeeded(world: &Engine) -> usize {
    usize::try_from(world.states().await.get("succeeded").copied().unwrap_or_default()).unwrap_or_default()
}

async fn all_once(world: &Engine, jobs: usize) {
    let done = || async {
        let dead: Vec<_> =
            world.dead_letters().await.into_iter().map(|dead| (dead.job_id, dead.code)).collect();
        assert!(dead.is_empty(), "{dead:?}");
        succeeded(world).await == jobs
    };
    world.within(Duration::from_mins(5), "all are done", done).await;
    assert_eq!((world.outside.effects(), world.outside.doubled()), (2 * jobs, 0));
    world.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_kills_over_five_hundred_jobs_lose_nothing_and_double_nothing() {
    let Some(world) = Engine::open(Pair::Servers).await else { return };
    let (_seed, mut chance) = Seed::fresh();
    let workers = Workers {
        world: &world,
        outside: Outside::serve().await,
        drain: Duration::from_secs(10),
        lease: SHORT,
    };
    let mut worker = workers.start();
    for kill in 0..KILLS {
        let (each, before) = (JOBS / KILLS, world.outside.effects());
        world.publish(&jobs(&world, kill * each..(kill + 1) * each, &mut chance)).await;
        // Most of the time the worker is at work when it is struck, sometimes it is still starting.
        if chance.random_range(0..10) > 0 {
            let moves =
                || async { world.outside.effects() > before || succeeded(&world).await == kill * each };
            world.until("the worker writes", moves).await;
        }
        world.clock.sleep(Duration::from_millis(chance.random_range(0..120))).await;
        worker.kill();
        worker = workers.start();
    }
    all_once(&world, JOBS).await;
    let crashed = {
        let mut crashed = 0;
        for n in 0..JOBS {
            crashed += world.job(&format!("j{n}")).await.expect("the row").crashes;
        }
        crashed
    };
    assert!(crashed > 0, "no kill struck a running job: the story told nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_crashes_its_worker_becomes_a_dead_letter_and_its_neighbours_are_done() {
    let Some(world) = Engine::open(Pair::Servers).await else { return };
    let (_seed, mut chance) = Seed::fresh();
    let workers = Workers {
        world: &world,
        outside: Outside::serve().await,
        drain: Duration::from_secs(10),
        lease: SHORT,
    };
    let mut envelopes = jobs(&world, 0..49, &mut chance);
    envelopes.insert(25, world.envelope("crasher", "test.write", json!({"faults": ["abort"]})));
    world.publish(&envelopes).await;
    let mut worker = workers.start();
    let mut starts = 1;
    while world.state("crasher").await != "dead" || succeeded(&world).await < 49 {
        assert!(starts < 20 && world.state("crasher").await != "parked", "{:?}", world.states().await);
        if worker.is_gone() {
            worker = workers.start();
            starts += 1;
        }
        world.clock.sleep(Duration::from_millis(20)).await;
    }
    world.until("the dead letter is collected", || async { !world.dead_letters().await.is_empty() }).await;
    let letters = world.dead_letters().await;
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!((letters[0].code.as_str(), letters[0].job_id.as_deref()), ("crash_loop", Some("crasher")));
    assert_eq!((world.outside.effects(), world.outside.doubled()), (98, 0));
    world.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_loses_nothing_and_counts_no_attempt() {
    let Some(world) = Engine::open(Pair::Servers).await else { return };
    let (_seed, mut chance) = Seed::fresh();
    // Without patience, so that what runs is cut off.
    let workers =
        Workers { world: &world, outside: Outside::serve().await, drain: Duration::ZERO, lease: LONG };
    let mut running = [workers.start(), workers.start()];
    for restart in 0..5 {
        let before = world.outside.effects();
        world.publish(&jobs(&world, restart * 60..(restart + 1) * 60, &mut chance)).await;
        world.until("they write", || async { world.outside.effects() > before }).await;
        world.clock.sleep(Duration::from_millis(chance.random_range(0..60))).await;
        let old = &mut running[restart % 2];
        old.terminate();
        let started = world.clock.now();
        while !old.is_gone() {
            assert!((world.clock.now() - started).num_seconds() < 90, "the drain has no end");
            world.clock.sleep(Duration::from_millis(5)).await;
        }
        *old = workers.start();
    }
    all_once(&world, 300).await;
    for n in 0..300 {
        let row = world.job(&format!("j{n}")).await.expect("the row");
        assert_eq!((row.attempt, row.crashes), (1, 0), "a drain is no attempt and no crash: {row:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_processes_is_killed_and_the_other_finishes() {
    let Some(world) = Engine::open(Pair::Servers).await else { return };
    let (_seed, mut chance) = Seed::fresh();
    let workers = Workers {
        world: &world,
        outside: Outside::serve().await,
        drain: Duration::from_secs(10),
        lease: SHORT,
    };
    let (one, _other) = (workers.start(), workers.start());
    world.publish(&jobs(&world, 0..200, &mut chance)).await;
    world.until("some are done", || async { succeeded(&world).await >= 20 }).await;
    one.kill();
    all_once(&world, 200).await;
}
