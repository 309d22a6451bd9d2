//! A worker process of the engine's stories: one that can be killed. Its jobs write in the world of the test.

use std::time::Duration;

use clap::Parser;
use followthrough::fleet::Tuning;
use followthrough_tests::engine;
use followthrough_tests::outside::{Outside, REGISTRY};
use tokio::signal::unix::{SignalKind, signal};
use url::Url;

#[derive(Parser)]
struct Options {
    #[arg(long)]
    amqp: String,
    #[arg(long)]
    database: String,
    #[arg(long)]
    prefix: String,
    #[arg(long)]
    outside: Url,
    #[arg(long)]
    lease_millis: u64,
    #[arg(long)]
    drain_millis: u64,
    #[arg(long)]
    concurrency: u16,
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let options = Options::parse();
    let mut terminate = signal(SignalKind::terminate())?;
    Outside::reach(options.outside);
    let tuning = Tuning {
        lease: Duration::from_millis(options.lease_millis),
        drain: Duration::from_millis(options.drain_millis),
        concurrency: options.concurrency,
        ..engine::tuning()
    };
    let topology = tuning.topology(&options.prefix, &REGISTRY);
    let fleet = engine::workers(&options.amqp, &options.database, &topology, tuning).await;
    terminate.recv().await;
    fleet.drain().await;
    Ok(())
}
