//! `tools`: the permission grid of a workspace.

use clap::Subcommand;

use super::Desk;
use super::output::{Output, print};
use crate::api::tools::{Grid, read, write};
use crate::permission::{Level, is_known};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Show the levels that are set; everything else is denied
    Get { workspace: String },
    /// Set levels and leave the others as they are
    Set {
        workspace: String,
        /// For example email.draft=allow or 'crm.*.update=ask'
        #[arg(required = true, value_parser = level, value_name = "TOOL=LEVEL")]
        levels: Vec<(String, Level)>,
    },
}

fn level(text: &str) -> Result<(String, Level), String> {
    let (tool, level) = text.split_once('=').ok_or("expected tool=level")?;
    let level = Level::parse(level).ok_or("expected one of the levels allow, ask, deny")?;
    Ok((tool.to_owned(), level))
}

pub(super) async fn run(desk: &Desk, command: Command, output: Output) -> Result<bool, String> {
    let services = &desk.services;
    let workspace = match command {
        Command::Get { workspace } => workspace,
        Command::Set { workspace, levels } => {
            let unknown = levels.iter().find(|(tool, _)| !is_known(tool, &services.registry));
            if let Some((tool, _)) = unknown {
                return Err(format!("unknown_tool: no job has the tool {tool}"));
            }
            let grid: Grid = levels.into_iter().collect();
            write(services, &workspace, &grid, false).await.map_err(|error| error.to_string())?;
            workspace
        }
    };
    let grid = read(services, &workspace).await.map_err(|error| error.to_string())?;
    if output.json {
        print(&grid);
    } else {
        let rows: Vec<(String, Level)> = grid.into_iter().collect();
        output.list(&rows, &["TOOL", "LEVEL"], |(tool, level)| vec![tool.clone(), level.as_str().to_owned()]);
    }
    Ok(true)
}
