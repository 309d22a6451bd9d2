//! `mailboxes`: list, fill back, disconnect.

use clap::Subcommand;
use uuid::Uuid;

use super::Desk;
use super::output::{Output, moment};
use crate::mailbox::desk;
use crate::store::mailbox::{Mailbox, state};

#[derive(Subcommand)]
pub(super) enum Command {
    /// List shared mailboxes, oldest first
    List {
        #[arg(long)]
        workspace: Option<String>,
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        limit: i64,
    },
    /// Read a mailbox's mail of the past, or stop reading it
    Backfill {
        id: Uuid,
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=365))]
        days: u16,
        /// End the one that runs; what was read stays
        #[arg(long)]
        cancel: bool,
    },
    /// End a mailbox's backfill and subscriptions and forget its address; its messages are kept
    Disconnect { id: Uuid },
}

pub(super) async fn run(desk: &Desk, command: Command, output: Output) -> Result<bool, String> {
    match command {
        Command::List { workspace, limit } => {
            let listed = desk::list(&desk.services, workspace.as_deref(), None, limit).await;
            let rows = listed.map_err(|error| error.to_string())?;
            let header = ["ID", "WORKSPACE", "ADDRESS", "STATE", "WHY", "RUNG", "CHECKED", "BACKFILL"];
            output.list(&rows, &header, |row| {
                let filled =
                    row.backfill.as_ref().map(|filled| format!("{} {}", filled["state"], filled["found"]));
                vec![
                    row.id.to_string(),
                    row.workspace.clone(),
                    row.address.clone(),
                    row.state.clone(),
                    row.code.clone().unwrap_or_default(),
                    format!("{} ({})", row.delivery.rung, row.delivery.reason),
                    row.checked_at.map(moment).unwrap_or_default(),
                    filled.unwrap_or_default().replace('"', ""),
                ]
            });
            Ok(true)
        }
        Command::Backfill { id, cancel: true, .. } => {
            let mailbox = find(desk, id).await?;
            let ended =
                desk::cancel_fill(&desk.services, &mailbox).await.map_err(|error| error.to_string())?;
            if !ended {
                return Err("no backfill of this mailbox runs".to_owned());
            }
            told(desk, mailbox, output, "the backfill ends with the page that is on its way").await
        }
        Command::Backfill { id, days, .. } => {
            let mailbox = find(desk, id).await?;
            if !matches!(mailbox.state.as_str(), state::CONNECTED | state::DEGRADED) {
                return Err(format!("the mailbox is {}", mailbox.state));
            }
            let begun =
                desk::fill(&desk.services, &mailbox, days).await.map_err(|error| error.to_string())?;
            if !begun {
                return Err("another backfill of this mailbox runs; cancel it first".to_owned());
            }
            told(desk, mailbox, output, "the backfill begins").await
        }
        Command::Disconnect { id } => {
            let mailbox = find(desk, id).await?;
            desk::disconnect(&desk.services, &mailbox).await.map_err(|error| error.to_string())?;
            told(desk, mailbox, output, "the mailbox is being disconnected").await
        }
    }
}

async fn find(desk: &Desk, id: Uuid) -> Result<Mailbox, String> {
    let found = desk::find(&desk.services, id).await.map_err(|error| error.to_string())?;
    found.ok_or_else(|| format!("no mailbox {id}"))
}

async fn told(desk: &Desk, mailbox: Mailbox, output: Output, text: &str) -> Result<bool, String> {
    let view = desk::show(&desk.services, mailbox).await.map_err(|error| error.to_string())?;
    output.done(&view, text);
    Ok(true)
}
