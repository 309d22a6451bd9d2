//! The command line.
//!
//! The invariant: commands work on the store directly, so they work when no server runs; what they submit or
//! replay is owed to the queue and leaves as soon as the fleet runs. Exit codes: 0 done, 1 failed, 2 wrong
//! usage.

mod connections;
mod dead;
mod doctor;
mod job;
mod key;
mod mailboxes;
mod offline;
mod output;
mod tools;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::clock::Clock;
use crate::config::Config;
use crate::fleet::{Role, Tuning};
use crate::http::Http;
use crate::registry::Registry;
use crate::services::Services;
use crate::store::Store;
use crate::vault::Vault;
use crate::{docs, lifecycle, telemetry};
use output::Output;

#[derive(Parser)]
#[command(
    name = "followthrough",
    version,
    about = "Carries jobs made of promises to their end in Microsoft 365 and Dynamics 365, as the signed-in user",
    propagate_version = true
)]
struct Cli {
    /// The settings; without it followthrough.toml where there is one
    #[arg(long, global = true, value_name = "FILE", env = "FOLLOWTHROUGH_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the fleet's roles until SIGTERM
    Run {
        /// Some of the roles; all by default
        #[arg(long, value_delimiter = ',', value_parser = role)]
        role: Vec<Role>,
        /// Workers take only these kinds
        #[arg(long, value_delimiter = ',', value_name = "KIND")]
        only: Option<Vec<String>>,
    },
    /// Bring the database's schema up to date
    Migrate,
    /// Find out what is wrong, and what to do about it
    Doctor {
        #[command(subcommand)]
        what: Option<doctor::What>,
    },
    /// Submit jobs and look at them
    #[command(subcommand)]
    Job(job::Command),
    /// Look at dead letters, replay or discard them
    #[command(subcommand)]
    Dead(dead::Command),
    /// Make and revoke API keys
    #[command(subcommand)]
    Key(key::Command),
    /// Look at a workspace's permission grid, or set levels
    #[command(subcommand)]
    Tools(tools::Command),
    /// Look at connections, or end one
    #[command(subcommand)]
    Connections(connections::Command),
    /// Look at shared mailboxes, fill one back, or end one
    #[command(subcommand)]
    Mailboxes(mailboxes::Command),
    /// The keys that seal refresh tokens
    #[command(subcommand)]
    Vault(VaultCommand),
    /// Print the RabbitMQ objects as definitions, for those who create them themselves
    Topology {
        #[arg(long, default_value = "/")]
        vhost: String,
    },
    /// Write the generated documents
    Docs {
        /// The root of the source tree
        #[arg(long, default_value = ".")]
        root: PathBuf,
        /// Write nothing; fail where something is not up to date
        #[arg(long)]
        check: bool,
    },
    /// Print a completion script
    Completions { shell: clap_complete::Shell },
}

#[derive(Subcommand)]
enum VaultCommand {
    /// Seal everything with the newest key, while the fleet works
    Rotate,
}

fn role(text: &str) -> Result<Role, String> {
    Role::parse(text).ok_or_else(|| format!("expected {}", Role::ALL.map(Role::as_str).join(", ")))
}

/// The process's whole life: reads its arguments and environment, returns its exit code.
pub async fn main(registry: Registry) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // Help and version are answers, not faults.
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    let environment: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
        .collect();
    match Box::pin(dispatch(cli, registry, environment)).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(Fault::Failed(message)) => {
            output::complain(&format!("error: {message}"));
            ExitCode::FAILURE
        }
        Err(Fault::Usage(message)) => {
            output::complain(&format!("error: {message}\n\nFor more information, try '--help'."));
            ExitCode::from(2)
        }
    }
}

enum Fault {
    Failed(String),
    /// What was asked for cannot be meant.
    Usage(String),
}

impl From<String> for Fault {
    fn from(message: String) -> Self {
        Self::Failed(message)
    }
}

/// `false` is a failure that was already told.
async fn dispatch(
    cli: Cli,
    registry: Registry,
    environment: BTreeMap<String, String>,
) -> Result<bool, Fault> {
    let output = Output { json: cli.json };
    match cli.command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "followthrough", &mut script);
            output::say(&String::from_utf8_lossy(&script));
            return Ok(true);
        }
        Command::Docs { root, check } => return Ok(write_docs(registry, &root, check)?),
        _ => {}
    }
    let loaded = load(cli.config.as_deref(), &registry, &environment);
    if let Command::Doctor { what } = cli.command {
        return Ok(doctor::run(loaded, registry, what, output).await);
    }
    let config = loaded?;
    telemetry::log(&config.telemetry)?;
    let user = environment.get("USER").map_or("unknown", String::as_str);
    let desk = async || Desk::open(&config, registry, user).await;
    match cli.command {
        Command::Run { role, only } => {
            let roles = if role.is_empty() { Role::ALL.to_vec() } else { role };
            if let Some(kind) = only.iter().flatten().find(|kind| registry.find(kind).is_none()) {
                return Err(Fault::Usage(format!("--only: no job of the kind {kind} exists")));
            }
            lifecycle::run(&config, registry, &roles, only.as_deref()).await?;
            Ok(true)
        }
        Command::Migrate => {
            let url = secrecy::ExposeSecret::expose_secret(&config.database.url);
            let store = Store::connect(url, 2).await.map_err(|error| format!("database.url: {error}"))?;
            store.migrate().await.map_err(|error| error.to_string())?;
            output.done(&"migrated", "the schema is up to date");
            Ok(true)
        }
        Command::Job(command) => {
            command.check().map_err(Fault::Usage)?;
            Ok(job::run(&desk().await?, command, output).await?)
        }
        Command::Dead(command) => {
            command.check().map_err(Fault::Usage)?;
            Ok(dead::run(&desk().await?, command, output).await?)
        }
        Command::Key(command) => Ok(key::run(&desk().await?, command, output).await?),
        Command::Tools(command) => Ok(tools::run(&desk().await?, command, output).await?),
        Command::Connections(command) => Ok(connections::run(&desk().await?, command, output).await?),
        Command::Mailboxes(command) => Ok(mailboxes::run(&desk().await?, command, output).await?),
        Command::Vault(VaultCommand::Rotate) => Ok(rotate(&desk().await?, output).await?),
        Command::Topology { vhost } => {
            let topology = Tuning::of(&config, "cli")?.topology(&config.broker.prefix, &registry);
            output::print(&topology.definitions(&vhost));
            Ok(true)
        }
        Command::Doctor { .. } | Command::Docs { .. } | Command::Completions { .. } => Ok(true),
    }
}

fn load(
    file: Option<&Path>,
    registry: &Registry,
    environment: &BTreeMap<String, String>,
) -> Result<Config, String> {
    let usual = Path::new("followthrough.toml");
    let file = file.or_else(|| usual.exists().then_some(usual));
    let environment = environment.iter().map(|(name, value)| (name.clone(), value.clone()));
    let config = Config::load(file, environment).map_err(|error| error.to_string())?;
    config.check_kinds(&registry.kinds()).map_err(|error| error.to_string())?;
    Ok(config)
}

/// What a command works with: the store and the vault, no broker.
struct Desk {
    services: Services,
    vault: Option<Vault>,
    /// Whom its decisions are recorded as.
    by: String,
}

impl Desk {
    async fn open(config: &Config, registry: Registry, user: &str) -> Result<Self, String> {
        let store = lifecycle::store(config).await?;
        let clock = Clock::system();
        let http = Http::new(&config.microsoft, clock.clone())?;
        let vault = lifecycle::vault(config, &registry, &store, &http, &clock)?;
        let services = offline::services(config, registry, store, clock, http, vault.as_ref())?;
        Ok(Self { services, vault, by: format!("cli:{user}") })
    }

    fn vault(&self) -> Result<&Vault, String> {
        self.vault.as_ref().ok_or_else(|| {
            "no app registration is set (microsoft.client_id), so there are no tokens".to_owned()
        })
    }
}

async fn rotate(desk: &Desk, output: Output) -> Result<bool, String> {
    let rotation = desk.vault()?.rotate().await.map_err(|error| error.to_string())?;
    let text = format!(
        "sealed again: {}, already under the newest key: {}, unreadable: {}",
        rotation.resealed,
        rotation.already,
        rotation.unreadable.len()
    );
    output.done(&rotation, &text);
    Ok(rotation.unreadable.is_empty())
}

fn write_docs(registry: Registry, root: &Path, check: bool) -> Result<bool, String> {
    let mut current = true;
    for (path, content) in docs::render(registry, root).map_err(|error| error.to_string())? {
        let path = root.join(path);
        if std::fs::read_to_string(&path).is_ok_and(|written| written == content) {
            continue;
        }
        current = false;
        output::complain(&format!("{}{}", if check { "not up to date: " } else { "" }, path.display()));
        if !check {
            let written = path.parent().map_or(Ok(()), std::fs::create_dir_all);
            written.and_then(|()| std::fs::write(&path, content)).map_err(|error| error.to_string())?;
        }
    }
    Ok(current || !check)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_cannot_be_meant_is_wrong_usage() {
        for line in [
            "",
            "fly",
            "run --role pilots",
            "job list --state happy",
            "job list --limit 0",
            "job release one --outcome made",
            "job release --cause approval",
            "dead list --state lost",
            "dead show no-uuid",
            "key create --role king",
            "tools set acme",
            "tools set acme email.draft=maybe",
            "connections disconnect",
        ] {
            let words = std::iter::once("followthrough").chain(line.split_whitespace());
            assert!(Cli::try_parse_from(words).is_err_and(|error| error.use_stderr()), "{line}");
        }
        let words = ["followthrough", "dead", "discard", "--dry-run"];
        let Command::Dead(command) = Cli::try_parse_from(words).expect("it parses").command else {
            panic!("another command")
        };
        assert!(command.check().is_err());
        let words = ["followthrough", "job", "release", "--dry-run"];
        let Command::Job(command) = Cli::try_parse_from(words).expect("it parses").command else {
            panic!("another command")
        };
        assert!(command.check().is_err());
    }

    #[test]
    fn json_is_asked_for_anywhere() {
        for line in ["--json key list", "key list --json", "tools get acme --json"] {
            let words = std::iter::once("followthrough").chain(line.split_whitespace());
            assert!(Cli::try_parse_from(words).is_ok_and(|cli| cli.json), "{line}");
        }
    }
}
