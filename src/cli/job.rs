//! `job`: submit, show, list, release.

use std::io::Read;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use scoped_futures::ScopedFutureExt;
use serde_json::json;

use super::Desk;
use super::output::{Output, moment, print};
use crate::api::jobs::JobView;
use crate::job::decode;
use crate::outcome::Cause;
use crate::release::{self, Found};
use crate::store::job::{self, Filter, state};
use crate::store::parked::Which;
use crate::submit::{self, Submitted};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Submit one job: the JSON that a publisher would send
    Submit {
        /// A file, or - for standard input
        file: PathBuf,
    },
    /// Show one job with its payload and result
    Show { workspace: String, id: String },
    /// List jobs, newest first
    List(List),
    /// Let parked jobs go on, once what they waited for was put right
    Release(Release),
}

#[derive(Args)]
pub(super) struct List {
    #[arg(long)]
    workspace: Option<String>,
    #[arg(long, value_parser = state::ALL)]
    state: Option<String>,
    #[arg(long)]
    kind: Option<String>,
    #[arg(long)]
    user: Option<String>,
    #[arg(long)]
    meeting: Option<String>,
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=10_000))]
    limit: i64,
}

#[derive(Args)]
pub(super) struct Release {
    /// Of one workspace
    #[arg(requires = "workspace", conflicts_with_all = ["kind", "cause", "code", "all"])]
    ids: Vec<String>,
    #[arg(long)]
    workspace: Option<String>,
    #[arg(long)]
    kind: Option<String>,
    #[arg(long, value_parser = RELEASABLE)]
    cause: Option<String>,
    #[arg(long)]
    code: Option<String>,
    /// Every parked one, where neither ids nor a filter are given
    #[arg(long)]
    all: bool,
    /// For ambiguous jobs: what was found at Microsoft
    #[arg(long)]
    outcome: Option<Found>,
    /// Tell what would happen and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// An approval is given by approving.
const RELEASABLE: [&str; 5] = ["needs_user", "needs_admin", "operator", "ambiguous", "mailbox_full"];

impl Command {
    /// Nothing is released that was not asked for.
    pub(super) fn check(&self) -> Result<(), String> {
        let Self::Release(release) = self else { return Ok(()) };
        let narrowed = release.workspace.is_some()
            || release.kind.is_some()
            || release.cause.is_some()
            || release.code.is_some();
        if release.ids.is_empty() && !narrowed && !release.all {
            return Err("which ones? Give ids, a filter, or --all".to_owned());
        }
        Ok(())
    }
}

pub(super) async fn run(desk: &Desk, command: Command, output: Output) -> Result<bool, String> {
    let store = &desk.services.store;
    match command {
        Command::Submit { file } => {
            let body = if file.as_os_str() == "-" {
                let mut body = Vec::new();
                std::io::stdin().read_to_end(&mut body).map(|_| body)
            } else {
                std::fs::read(&file)
            };
            let body = body.map_err(|error| format!("{}: {error}", file.display()))?;
            let decoded = decode(&desk.services.registry, &body).map_err(|refused| {
                let path = refused.path.map_or_else(String::new, |path| format!(" at {path}"));
                format!("{}{path}: {}", refused.code, refused.message)
            })?;
            let id = &decoded.envelope.id;
            match submit::submit(&desk.services, &decoded).await.map_err(|error| error.to_string())? {
                Submitted::Accepted { state } => {
                    output.done(&json!({"id": id, "state": state}), &format!("{id} is {state}"));
                    Ok(true)
                }
                Submitted::IdReused => Err(format!("id_reused: {id} belongs to a job with another payload")),
            }
        }
        Command::Show { workspace, id } => {
            let key = (workspace.as_str(), id.as_str());
            let row = store.read(|tx| async move { job::find(tx, key.0, key.1).await }.scope_boxed()).await;
            let row = row.map_err(|error| error.to_string())?;
            let row = row.ok_or_else(|| format!("{workspace} has no job {id}"))?;
            print(&JobView::whole(row, &desk.services.registry));
            Ok(true)
        }
        Command::List(list) => {
            let filter = &Filter {
                workspace: list.workspace,
                state: list.state,
                kind: list.kind,
                user: list.user,
                meeting: list.meeting,
                after: None,
                limit: list.limit,
            };
            let rows = store.read(|tx| async move { job::list(tx, filter).await }.scope_boxed()).await;
            let rows = rows.map_err(|error| error.to_string())?;
            let jobs: Vec<JobView> = rows.into_iter().map(JobView::listed).collect();
            let header = ["CREATED", "WORKSPACE", "ID", "KIND", "STATE", "WHY", "ATTEMPTS"];
            output.list(&jobs, &header, |job| {
                vec![
                    moment(job.created_at),
                    job.workspace.clone(),
                    job.id.clone(),
                    job.kind.clone(),
                    job.state.clone(),
                    job.cause.clone().or_else(|| job.code.clone()).unwrap_or_default(),
                    job.attempts.to_string(),
                ]
            });
            Ok(true)
        }
        Command::Release(asked) => release_jobs(desk, asked, output).await,
    }
}

async fn release_jobs(desk: &Desk, asked: Release, output: Output) -> Result<bool, String> {
    let Release { ids, workspace, kind, cause, code, outcome, dry_run, .. } = asked;
    let cause = cause.as_deref().and_then(Cause::parse).map(Cause::as_str);
    let which = Which { workspace, ids, kind, cause, code, limit: i64::from(i32::MAX) };
    let released = release::release(&desk.services, &which, outcome, &desk.by, dry_run).await;
    let released = released.map_err(|error| error.to_string())?;
    if output.json {
        print(&json!({"dry_run": dry_run, "released": released}));
    } else {
        output.list(&released, &["WORKSPACE", "ID", "OUTCOME"], |one| {
            let outcome = match (&one.refused, one.done) {
                (Some(code), _) => format!("refused: {code}"),
                (None, true) => "released".to_owned(),
                (None, false) => "would be released".to_owned(),
            };
            vec![one.workspace.clone(), one.id.clone(), outcome]
        });
    }
    Ok(released.iter().all(|one| one.refused.is_none()))
}
