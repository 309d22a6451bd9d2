//! A worker process of the house's stories: all jobs, beside the simulated Microsoft 365, and one that can be killed.

use std::net::SocketAddr;

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
    /// Takes notifications there, and does nothing else.
    #[arg(long)]
    intake: Option<SocketAddr>,
}

#[tokio::main]
async fn main() -> Result<(), String> {
    let options = Options::parse();
    let mut config = world::settings(&options.microsoft, &options.database, Some(&options.amqp));
    config.broker.prefix = options.prefix;
    config.vault.keys = vec![options.vault_key.into()];
    // It is there to be killed, and its story waits for this to end.
    config.workers.lease = "5s".into();
    let intake = options.intake.inspect(|listen| config.http.listen = *listen);
    let roles: &[Role] = if intake.is_some() { &[Role::Intake] } else { &Role::ALL };
    Box::pin(lifecycle::run(&config, JOBS, roles, None)).await
}
