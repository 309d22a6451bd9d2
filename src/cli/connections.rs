//! `connections`: list, disconnect.

use clap::Subcommand;
use scoped_futures::ScopedFutureExt;
use uuid::Uuid;

use super::Desk;
use super::output::{Output, moment};
use crate::api::connections::ConnectionView;
use crate::disconnect;
use crate::store::connection::{self, Status};

#[derive(Subcommand)]
pub(super) enum Command {
    /// List connections, oldest first
    List {
        #[arg(long)]
        workspace: Option<String>,
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        limit: i64,
    },
    /// End a connection's mailboxes and wipe its tokens; its jobs park until the user signs in again
    Disconnect { id: Uuid },
}

pub(super) async fn run(desk: &Desk, command: Command, output: Output) -> Result<bool, String> {
    match command {
        Command::List { workspace, limit } => {
            let workspace = workspace.as_deref();
            let store = &desk.services.store;
            let rows = store
                .read(|tx| async move { connection::list(tx, workspace, None, limit).await }.scope_boxed())
                .await
                .map_err(|error| error.to_string())?;
            let rows: Vec<ConnectionView> = rows.into_iter().map(ConnectionView::from).collect();
            let header = ["ID", "WORKSPACE", "USER", "INTEGRATION", "STATUS", "WHY", "REFRESHED"];
            output.list(&rows, &header, |row| {
                vec![
                    row.id.to_string(),
                    row.workspace.clone(),
                    row.user.clone(),
                    row.integration.to_string(),
                    row.status.as_str().to_owned(),
                    row.code.clone().unwrap_or_default(),
                    row.refreshed_at.map(moment).unwrap_or_default(),
                ]
            });
            Ok(true)
        }
        Command::Disconnect { id } => {
            let asked = disconnect::ask(&desk.services, desk.vault()?, id).await;
            let asked = asked.map_err(|error| error.to_string())?;
            let asked = asked.ok_or_else(|| format!("no connection {id}"))?;
            let text = if asked.status == Status::Disconnecting {
                format!("{id} is being disconnected: its mailboxes end first, its tokens are wiped last")
            } else {
                format!("{id} is disconnected")
            };
            output.done(&ConnectionView::from(asked), &text);
            Ok(true)
        }
    }
}
