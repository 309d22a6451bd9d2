//! `dead`: list, group by cause, show, replay, discard.

use clap::{Args, Subcommand};
use scoped_futures::ScopedFutureExt;
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use super::Desk;
use super::output::{Output, moment, print};
use crate::api::dead_letters::{DeadLetterView, state};
use crate::dead::{self, Handled};
use crate::store::dead_letter::{self, Filter};

#[derive(Subcommand)]
pub(super) enum Command {
    /// List dead letters, newest first
    List {
        #[command(flatten)]
        narrow: Narrow,
        /// open, replayed, discarded or all
        #[arg(long, default_value = "open", value_parser = ["open", "replayed", "discarded", "all"])]
        state: String,
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        limit: i64,
        /// Group the open ones by what caused them
        #[arg(long)]
        causes: bool,
    },
    /// Show one with its message, headers and history
    Show { id: Uuid },
    /// Send them through the front door again
    Replay(Selection),
    /// Close them without another try
    Discard(Selection),
}

#[derive(Args)]
pub(super) struct Narrow {
    #[arg(long)]
    workspace: Option<String>,
    #[arg(long)]
    kind: Option<String>,
    #[arg(long)]
    code: Option<String>,
}

#[derive(Args)]
pub(super) struct Selection {
    ids: Vec<Uuid>,
    #[command(flatten)]
    narrow: Narrow,
    /// Every open one, where neither ids nor a filter are given
    #[arg(long)]
    all: bool,
    /// Tell what would happen and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
struct CauseRow {
    code: String,
    kind: Option<String>,
    count: i64,
}

pub(super) async fn run(desk: &Desk, command: Command, output: Output) -> Result<bool, String> {
    match command {
        Command::List { narrow, causes: true, .. } => causes(desk, narrow, output).await,
        Command::List { narrow, state: asked, limit, .. } => {
            let filter = Filter { state: state(Some(&asked)).flatten(), limit, ..narrow.filter() };
            let letters = read(desk, &filter).await?;
            let header = ["WHEN", "ID", "WORKSPACE", "KIND", "JOB", "CODE", "ATTEMPTS", "STATE"];
            output.list(&letters, &header, |letter| {
                vec![
                    moment(letter.created_at),
                    letter.id.to_string(),
                    letter.workspace.clone().unwrap_or_default(),
                    letter.kind.clone().unwrap_or_default(),
                    letter.job_id.clone().unwrap_or_default(),
                    letter.code.clone(),
                    letter.attempts.to_string(),
                    letter.state.clone(),
                ]
            });
            Ok(true)
        }
        Command::Show { id } => {
            let store = &desk.services.store;
            let found = store.read(|tx| async move { dead_letter::find(tx, id).await }.scope_boxed());
            let letter = found.await.map_err(|error| error.to_string())?;
            print(&DeadLetterView::whole(letter.ok_or_else(|| format!("no dead letter {id}"))?));
            Ok(true)
        }
        Command::Replay(selection) => handle(desk, selection, output, true).await,
        Command::Discard(selection) => handle(desk, selection, output, false).await,
    }
}

impl Command {
    /// Nothing is replayed or discarded that was not asked for.
    pub(super) fn check(&self) -> Result<(), String> {
        let (Self::Replay(selection) | Self::Discard(selection)) = self else { return Ok(()) };
        let narrow = &selection.narrow;
        let narrowed = narrow.workspace.is_some() || narrow.kind.is_some() || narrow.code.is_some();
        if selection.ids.is_empty() && !narrowed && !selection.all {
            return Err("which ones? Give ids, a filter, or --all".to_owned());
        }
        Ok(())
    }
}

impl Narrow {
    fn filter(self) -> Filter {
        Filter { workspace: self.workspace, kind: self.kind, code: self.code, ..Filter::default() }
    }
}

async fn read(desk: &Desk, filter: &Filter) -> Result<Vec<DeadLetterView>, String> {
    let store = &desk.services.store;
    let letters = store.read(|tx| async move { dead_letter::list(tx, filter).await }.scope_boxed()).await;
    Ok(letters.map_err(|error| error.to_string())?.into_iter().map(DeadLetterView::listed).collect())
}

async fn causes(desk: &Desk, narrow: Narrow, output: Output) -> Result<bool, String> {
    let workspace = narrow.workspace.as_deref();
    let store = &desk.services.store;
    let rows = store.read(|tx| async move { dead_letter::causes(tx, workspace).await }.scope_boxed()).await;
    let fits = |asked: &Option<String>, found: &str| asked.as_deref().is_none_or(|asked| asked == found);
    let rows: Vec<CauseRow> = rows
        .map_err(|error| error.to_string())?
        .into_iter()
        .map(|(code, kind, count)| CauseRow { code, kind, count })
        .filter(|row| {
            fits(&narrow.code, &row.code) && fits(&narrow.kind, row.kind.as_deref().unwrap_or_default())
        })
        .collect();
    output.list(&rows, &["COUNT", "CODE", "KIND"], |row| {
        vec![row.count.to_string(), row.code.clone(), row.kind.clone().unwrap_or_default()]
    });
    Ok(true)
}

async fn handle(desk: &Desk, selection: Selection, output: Output, replay: bool) -> Result<bool, String> {
    let Selection { ids, narrow, dry_run, .. } = selection;
    let asked = ids.clone();
    let limit = i64::from(i32::MAX);
    let filter = Filter { ids, limit, ..narrow.filter() };
    let (services, by) = (&desk.services, desk.by.as_str());
    let handled = if replay {
        dead::replay(services, &filter, by, dry_run).await
    } else {
        dead::discard(services, &filter, by, dry_run).await
    };
    let mut handled = handled.map_err(|error| error.to_string())?;
    for id in asked {
        if !handled.iter().any(|one| one.id == id) {
            handled.push(Handled { id, done: false, refused: Some("not_found".to_owned()) });
        }
    }
    if output.json {
        print(&json!({"dry_run": dry_run, "handled": handled}));
    } else {
        output.list(&handled, &["ID", "OUTCOME"], |one| {
            let outcome = match (&one.refused, one.done, replay) {
                (Some(code), ..) => format!("refused: {code}"),
                (None, true, true) => "replayed".to_owned(),
                (None, true, false) => "discarded".to_owned(),
                (None, false, true) => "would be replayed".to_owned(),
                (None, false, false) => "would be discarded".to_owned(),
            };
            vec![one.id.to_string(), outcome]
        });
    }
    Ok(handled.iter().all(|one| one.refused.is_none()))
}
