//! `cargo demo`: the fleet, a simulated Microsoft 365 and a sample workspace in one process.
//!
//! The invariant: what it says was made is what the simulator holds in the end, and it fails when that is not
//! what [`script`] promised.

mod account;
mod mailbox;
mod play;
mod script;
mod stage;
mod verdict;

use std::process::ExitCode;

use clap::Parser;
use serde_json::Value;

use account::Account;
use stage::Stage;
use verdict::Verdict;

/// Twelve meetings end, 36 promises are kept, a shared mailbox is kept in step: the whole fleet beside a simulated
/// Microsoft 365.
#[derive(Parser)]
#[command(name = "cargo demo", bin_name = "cargo demo")]
pub(crate) struct Arguments {
    /// Signs everybody in, runs to the end, fails if anything did not end as it should.
    #[arg(long)]
    once: bool,
    /// The last line of standard output is the outcome as JSON.
    #[arg(long)]
    json: bool,
    /// A RabbitMQ to use instead of the embedded queue. Queues of its own are made, and deleted in the end.
    #[arg(long, value_name = "URL")]
    broker: Option<String>,
    /// A PostgreSQL database to use instead of SQLite. The schema is made in it, and stays.
    #[arg(long, value_name = "URL")]
    database: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments).await {
        Ok(verdict) => {
            if arguments.json {
                match verdict.json() {
                    Ok(line) => println!("{line}"),
                    Err(error) => eprintln!("no outcome: {error}"),
                }
            }
            if verdict.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("the demo cannot go on: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<Verdict, String> {
    let stage = Stage::set(arguments).await?;
    let performed = tokio::select! {
        performed = perform(&stage, arguments) => performed,
        interrupted = wait_for_interrupt() => interrupted.and_then(|()| Err("interrupted".to_owned())),
    };
    if performed.is_ok() && !arguments.once {
        play::invite(&stage);
        wait_for_interrupt().await?;
        println!("\nDraining …");
    }
    // Taken down however it went.
    let struck = stage.strike().await;
    let verdict = performed?;
    struck.map(|()| verdict)
}

async fn perform(stage: &Stage, arguments: &Arguments) -> Result<Verdict, String> {
    let account = Account::begin(stage);
    play::connect(stage, &account, arguments.once).await?;
    let promises = play::perform(stage, &account).await?;
    let mut verdict = Verdict::of(stage, &promises, account.seconds()).await?;
    verdict.keep(mailbox::perform(stage, &account).await?, account.seconds());
    verdict.print();
    Ok(verdict)
}

async fn wait_for_interrupt() -> Result<(), String> {
    tokio::signal::ctrl_c().await.map_err(|error| error.to_string())
}

/// For people: no quotes, nothing where there is nothing.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
