//! The fleet's worker process, as `followthrough run --role workers` is one: settings from a file, the real
//! list of jobs, a drain on SIGTERM.

use std::path::PathBuf;

use clap::Args;
use followthrough::config::Config;
use followthrough::fleet::Role;
use followthrough::{lifecycle, telemetry};
use followthrough_workers::JOBS;

pub(crate) const NAME: &str = "serve-worker";

#[derive(Args)]
pub(crate) struct Options {
    #[arg(long)]
    settings: PathBuf,
    /// Hand out the looks at mailboxes as well
    #[arg(long)]
    scheduler: bool,
}

pub(crate) async fn run(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::load(Some(&options.settings), std::iter::empty())?;
    telemetry::log(&config.telemetry)?;
    let roles: &[Role] = if options.scheduler { &[Role::Workers, Role::Scheduler] } else { &[Role::Workers] };
    tokio::select! {
        ended = lifecycle::run(&config, JOBS, roles, None) => Ok(ended?),
        () = crate::child::parent_gone() => Ok(()),
    }
}
