//! The benchmarks: `bench throughput` measures the fleet beside a bare consumer that does the same outward
//! work, `bench intake` what Microsoft waits for beside a bare handler, `bench backfill` how fast a mailbox's past is read. Its
//! README has the method and the figures.
//!
//! The invariant: a contender is a process of its own, all of them share the machine in one run, and nothing
//! of a run is left behind.

mod backfill;
mod bare;
mod child;
mod fake;
mod intake;
mod report;
mod throughput;
mod worker;
mod world;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "bench", about = "Measures the fleet; see tests/bench/README.md")]
struct Cli {
    #[command(subcommand)]
    run: Run,
}

#[derive(Subcommand)]
enum Run {
    /// Jobs per second beside a bare consumer, latency, commits, CPU and memory
    Throughput(throughput::Options),
    /// Notifications per second beside a bare handler: latency, and whether all are kept
    Intake(intake::Options),
    /// The mail of a mailbox's past: how fast it is read, beside what its permits allow
    Backfill(backfill::Options),
    /// The fake Microsoft
    #[command(name = fake::NAME, hide = true)]
    Fake,
    /// The bare consumer
    #[command(name = bare::NAME, hide = true)]
    Bare(bare::Options),
    /// The fleet's worker process
    #[command(name = worker::NAME, hide = true)]
    Worker(worker::Options),
    /// The fleet's intake process
    #[command(name = intake::NAME, hide = true)]
    ServeIntake(intake::Child),
    /// The bare handler of notifications
    #[command(name = intake::BARE, hide = true)]
    ServeBareIntake(intake::BareChild),
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    match Cli::parse().run {
        Run::Throughput(options) => throughput::run(&options).await,
        Run::Fake => fake::run().await,
        Run::Bare(options) => bare::run(&options).await,
        Run::Worker(options) => worker::run(&options).await,
        Run::Intake(options) => intake::run(&options).await,
        Run::Backfill(options) => Box::pin(backfill::run(&options)).await,
        Run::ServeIntake(options) => intake::serve(&options).await,
        Run::ServeBareIntake(options) => intake::serve_bare(&options).await,
    }
}
