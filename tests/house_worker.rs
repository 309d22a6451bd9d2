//! A worker process of the house's stories: all jobs, beside the simulated Microsoft 365, and one that can be killed.

use clap::Parser;
use followthrough::fleet::Role;
use followthrough::lifecycle;
use followthrough_tests::world;
use followthrough_workers::JOBS;

#[derive(Parser)]
struct Options {
    #[arg(long)]
    microsoft: String,
    #[arg(long)]
    database: String,
    #[arg(long)]
    amqp: String,
    #[arg(long)]
    prefix: String,
    /// Seals and opens the tokens of the story's connections.
    #[arg(long)]
    vault_key: String,
}

#[tokio::main]
async fn main() -> Result<(), String> {
    let options = Options::parse();
    let mut config = world::settings(&options.microsoft, &options.database, Some(&options.amqp));
    config.broker.prefix = options.prefix;
    config.vault.keys = vec![options.vault_key.into()];
    Box::pin(lifecycle::run(&config, JOBS, &Role::ALL, None)).await
}
