//! `bench throughput`: the fleet beside a bare consumer, round by round in one run.

use std::time::{Duration, Instant};

use clap::Args;
use followthrough::clock::Clock;

use crate::child::{Process, pause};
use crate::report::{Memory, Percentiles, Report, Round, Steady};
use crate::world::{Failure, World};
use crate::{bare, report};

#[derive(Args)]
pub(crate) struct Options {
    /// One line of JSON instead of the table
    #[arg(long)]
    json: bool,
    /// Jobs per round of the fleet
    #[arg(long, default_value_t = 20_000)]
    jobs: usize,
    /// Users among whom the jobs are spread
    #[arg(long, default_value_t = 256)]
    users: usize,
    /// Jobs per second of the open loop
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Seconds of the open loop
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// Rounds of either contender
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Jobs that a worker process runs at once
    #[arg(long, default_value_t = 256)]
    concurrency: u16,
    /// The same for the bare consumer, which prefetches twice as many
    #[arg(long, default_value_t = 100)]
    bare_concurrency: u16,
    /// Messages queued while memory is watched; 0 leaves that part out
    #[arg(long, default_value_t = 100_000)]
    queued: usize,
}

/// The bare consumer is that much faster: its rounds are longer in jobs, not in time.
const BARE_FACTOR: usize = 3;
const PATIENCE: Duration = Duration::from_mins(5);

pub(crate) async fn run(options: &Options) -> Result<(), Failure> {
    let world = World::open(options.users, options.concurrency).await?;
    let mut report = Report::new(options.jobs, options.users, options.concurrency, options.rate);
    let worker = world.worker().await?;
    pause(3_000).await;
    report.memory.idle = worker.look().resident;
    report.alone = alone(&world).await?;
    report.steady = steady(&world, &worker, options).await?;
    worker.drain().await?;
    for round in 0..options.rounds {
        report.bare.push(bare_round(&world, options, round).await?);
        report.fleet.push(fleet_round(&world, options, round).await?);
        report.tell_round(round);
    }
    report.states = world.states().await?;
    if options.queued > 0 {
        report.memory = memory(&world, options, report.memory).await?;
    }
    if options.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        report.print();
    }
    Ok(())
}

/// Polls until at least `count` says so.
async fn reach<F: Future<Output = Result<u64, Failure>>>(
    what: &str,
    at_least: u64,
    count: impl Fn() -> F,
) -> Result<(u64, Instant), Failure> {
    let started = Instant::now();
    loop {
        let reached = count().await?;
        if reached >= at_least {
            return Ok((reached, Instant::now()));
        }
        if started.elapsed() > PATIENCE {
            return Err(format!("{what}: {reached} of {at_least} after {PATIENCE:?}").into());
        }
        pause(10).await;
    }
}

/// From the crossing of 10 % to that of 85 %.
async fn window(world: &World, process: &Process, jobs: usize) -> Result<Round, Failure> {
    let jobs = jobs as u64;
    let effects = || async { Ok(world.seen().await?.effects) };
    let (from, started) = reach("10 % drained", jobs / 10, effects).await?;
    let before = process.look();
    let counted = world.counters().await.unwrap_or_default();
    let committed = world.committed().await?;
    let (until, ended) = reach("85 % drained", jobs * 85 / 100, effects).await?;
    let after = process.look();
    let counters = world.counters().await.unwrap_or_default();
    let recommitted = world.committed().await?;
    let done = report::number(until - from);
    let seen = world.seen().await?;
    // The counters are read a moment later than the clock; what was done meanwhile is not theirs to count.
    let counted_jobs = report::number(seen.effects.min(jobs) - from);
    Ok(Round {
        jobs_per_second: done / (ended - started).as_secs_f64(),
        cpu_micros_per_job: after.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e6 / done,
        commits_per_job: (counters.commits - counted.commits) / counted_jobs,
        statements_per_job: (counters.statements - counted.statements) / counted_jobs,
        postgres_commits_per_job: report::signed(recommitted - committed) / counted_jobs,
        peak: after.peak,
        ..Round::default()
    })
}

async fn bare_round(world: &World, options: &Options, round: usize) -> Result<Round, Failure> {
    let jobs = options.jobs * BARE_FACTOR;
    world.forget().await?;
    world.preload(&format!("bare{round}"), jobs).await?;
    let arguments = [
        bare::NAME.to_owned(),
        format!("--amqp={}", world.amqp.url),
        format!("--queue={}", world.queue()),
        format!("--fake={}", world.fake_url),
        format!("--jobs={jobs}"),
        format!("--concurrency={}", options.bare_concurrency),
        format!("--prefetch={}", options.bare_concurrency * 2),
    ];
    let mut process = Process::start(&arguments)?;
    let mut measured = window(world, &process, jobs).await?;
    process.wait().await?;
    let seen = world.seen().await?;
    measured.doubled = seen.posts - seen.effects;
    measured.lost = (jobs as u64).saturating_sub(seen.effects);
    Ok(measured)
}

async fn fleet_round(world: &World, options: &Options, round: usize) -> Result<Round, Failure> {
    let jobs = options.jobs;
    world.forget().await?;
    world.preload(&format!("fleet{round}"), jobs).await?;
    let worker = world.worker().await?;
    let mut measured = window(world, &worker, jobs).await?;
    let heard = || async { Ok(world.events.count() as u64) };
    reach("every job's event", jobs as u64, heard).await?;
    worker.drain().await?;
    let seen = world.seen().await?;
    measured.doubled = seen.posts - seen.effects;
    measured.lost = (jobs as u64).saturating_sub(seen.effects);
    measured.events_again = world.events.lock().again;
    measured.events_other = world.events.lock().others;
    Ok(measured)
}

/// One job at a time, with nothing else to share a commit with.
async fn alone(world: &World) -> Result<Steady, Failure> {
    const JOBS: usize = 100;
    world.forget().await?;
    burst(world, "warm").await?;
    world.forget().await?;
    let before = world.counters().await?;
    let mut waits = Vec::with_capacity(JOBS);
    for number in 0..JOBS {
        let started = Instant::now();
        world.publish("alone", number);
        while world.events.count() <= number {
            pause(1).await;
        }
        waits.push(started.elapsed());
    }
    let after = world.counters().await?;
    Ok(Steady {
        latency: Percentiles::of(waits),
        commits_per_job: (after.commits - before.commits) / report::number(JOBS as u64),
        statements_per_job: (after.statements - before.statements) / report::number(JOBS as u64),
        ..Steady::default()
    })
}

/// Twice each user's first job: tokens and prepared statements are there afterwards.
async fn burst(world: &World, run: &str) -> Result<(), Failure> {
    const JOBS: usize = 1_000;
    world.preload(run, JOBS).await?;
    reach("the warm-up", JOBS as u64, || async { Ok(world.events.count() as u64) }).await?;
    Ok(())
}

/// Open loop: jobs are published by the clock, whether the fleet keeps up or not, and waited for from the
/// moment they should have been published.
async fn steady(world: &World, worker: &Process, options: &Options) -> Result<Steady, Failure> {
    world.forget().await?;
    let jobs = (options.rate * options.seconds) as usize;
    let interval = Duration::from_secs(1) / options.rate;
    let (before, look) = (world.counters().await?, worker.look());
    let started = Instant::now();
    let mut due = Vec::with_capacity(jobs);
    for number in 0..jobs {
        let at = started + interval * u32::try_from(number)?;
        Clock::system().sleep(at.saturating_duration_since(Instant::now())).await;
        world.publish("steady", number);
        due.push(at);
    }
    reach("the events of the open loop", jobs as u64, || async { Ok(world.events.count() as u64) }).await?;
    let (after, relook) = (world.counters().await?, worker.look());
    let waits = {
        let heard = world.events.lock();
        due.iter()
            .enumerate()
            .filter_map(|(number, due)| Some(*heard.first.get(&format!("steady-{number}"))? - *due))
            .collect()
    };
    let jobs = report::number(jobs as u64);
    Ok(Steady {
        latency: Percentiles::of(waits),
        commits_per_job: (after.commits - before.commits) / jobs,
        statements_per_job: (after.statements - before.statements) / jobs,
        cpu_micros_per_job: relook.cpu.saturating_sub(look.cpu).as_secs_f64() * 1e6 / jobs,
    })
}

/// The most that a worker holds while the queue is long.
async fn memory(world: &World, options: &Options, known: Memory) -> Result<Memory, Failure> {
    world.forget().await?;
    world.preload("queued", options.queued).await?;
    let worker = world.worker().await?;
    let at_least = (options.queued / 10) as u64;
    reach("a tenth of the long queue", at_least, || async { Ok(world.seen().await?.effects) }).await?;
    let queued = worker.look().peak;
    worker.kill().await?;
    world.purge().await?;
    Ok(Memory { queued, ..known })
}
