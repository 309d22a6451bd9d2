//! Settings: one struct, one source of defaults, refused at start when wrong.
//!
//! The invariant: an error names the key, the shape of the value (never a secret's value) and what is
//! expected. The environment wins over the file; `<KEY>_FILE` reads a secret from a file.

mod check;
mod keys;
mod load;
mod value;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::value::{Dict, Value};

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::Url;

use crate::broker::Rung;
pub use keys::{KEYS, Key, Shape};
pub use load::{ConfigError, Problem};

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub database: Database,
    pub broker: Broker,
    pub http: Http,
    pub microsoft: Microsoft,
    pub vault: Vault,
    pub retry: Retry,
    pub workers: Workers,
    pub mailbox: Mailbox,
    pub telemetry: Telemetry,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// May hold a password: never printed.
    pub url: SecretString,
    /// Another machine may be reached without TLS.
    pub plaintext: bool,
    pub connections: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Broker {
    /// `embedded`, `amqp://…` or `amqps://…`; may hold a password: never printed.
    pub url: SecretString,
    /// Another machine may be reached without TLS.
    pub plaintext: bool,
    pub prefix: String,
    pub topology: TopologyMode,
    pub ca_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TopologyMode {
    Declare,
    Verify,
    Export,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    pub listen: std::net::SocketAddr,
    pub public_url: Url,
    /// Probes and metrics on a listener of their own; on the main one when absent.
    pub metrics_listen: Option<std::net::SocketAddr>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Microsoft {
    pub client_id: Option<String>,
    pub client_secret: Option<SecretString>,
    /// PEM with the certificate and its private key, or a path to such a file through `_FILE`.
    pub client_certificate: Option<SecretString>,
    pub cloud: Cloud,
    pub login_url: Option<Url>,
    pub graph_url: Option<Url>,
    pub discovery_url: Option<Url>,
    /// Host patterns (`*.dynamics.com`); environments outside are refused.
    #[serde(default)]
    pub dataverse_hosts: Vec<String>,
    pub ca_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cloud {
    Global,
    Usgov,
    UsgovDod,
    China,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vault {
    /// `id:base64(32 bytes)`, newest first.
    #[serde(default)]
    pub keys: Vec<SecretString>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// The delays between attempts, and so the retry queues.
    pub ladder: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workers {
    pub concurrency: u16,
    #[serde(default)]
    pub kinds: BTreeMap<String, KindSettings>,
    /// How long a job stays a silent worker's before another may take it over.
    pub lease: String,
    /// How long running jobs may finish after SIGTERM.
    pub drain: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KindSettings {
    pub concurrency: Option<u16>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mailbox {
    pub poll: String,
    pub slots: u16,
    /// How long a mailbox is watched after an unanswered send.
    pub unanswered: String,
    /// Microsoft is asked to tell of changes.
    pub push: bool,
    /// Larger attachments are kept without their content.
    pub attachment_bytes: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Telemetry {
    pub log: Option<LogFormat>,
    /// Which spans and events are written, as `RUST_LOG` would say it.
    pub level: String,
    pub otlp_endpoint: Option<Url>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Pretty,
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self::read(load::defaults()).expect("the defaults fit, as a test proves")
    }
}

impl Default for Microsoft {
    fn default() -> Self {
        Config::default().microsoft
    }
}

impl Default for Retry {
    fn default() -> Self {
        Config::default().retry
    }
}

impl Config {
    /// Defaults, file, environment; the later wins. Refuses with everything that is wrong.
    pub fn load(
        path: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let config = Self::read(load::merge(path, environment)?)
            .map_err(|key| ConfigError(vec![Problem::new(key, "cannot be read")]))?;
        config.check()?;
        Ok(config)
    }

    /// The key that does not fit its type: the shapes were checked, so there is none.
    fn read(tree: Dict) -> Result<Self, String> {
        Value::from(tree).deserialize().map_err(|error| error.path.join("."))
    }

    /// One machine, one process: nothing outside shares its state.
    pub fn is_embedded(&self) -> bool {
        self.database.url.expose_secret().starts_with("sqlite:") && self.broker.is_embedded()
    }
}

impl Broker {
    pub fn is_embedded(&self) -> bool {
        self.url.expose_secret() == "embedded"
    }
}

impl Microsoft {
    pub fn login_url(&self) -> Url {
        self.login_url.clone().unwrap_or_else(|| self.cloud.urls().0)
    }

    pub fn graph_url(&self) -> Url {
        self.graph_url.clone().unwrap_or_else(|| self.cloud.urls().1)
    }

    pub fn discovery_url(&self) -> Url {
        self.discovery_url.clone().unwrap_or_else(|| self.cloud.urls().2)
    }
}

impl Cloud {
    /// Sign-in, Graph and Dataverse discovery of each cloud.
    /// <https://learn.microsoft.com/graph/deployments>,
    /// <https://learn.microsoft.com/power-apps/developer/data-platform/discovery-service>
    fn urls(self) -> (Url, Url, Url) {
        let (login, graph, discovery) = match self {
            Self::Global => (
                "https://login.microsoftonline.com",
                "https://graph.microsoft.com",
                "https://globaldisco.crm.dynamics.com",
            ),
            Self::Usgov => (
                "https://login.microsoftonline.us",
                "https://graph.microsoft.us",
                "https://globaldisco.crm.microsoftdynamics.us",
            ),
            Self::UsgovDod => (
                "https://login.microsoftonline.us",
                "https://dod-graph.microsoft.us",
                "https://globaldisco.crm.appsplatform.us",
            ),
            Self::China => (
                "https://login.partner.microsoftonline.cn",
                "https://microsoftgraph.chinacloudapi.cn",
                "https://globaldisco.crm.dynamics.cn",
            ),
        };
        let url = |text| Url::parse(text).expect("a literal URL");
        (url(login), url(graph), url(discovery))
    }
}

impl Retry {
    /// The ladder as delays. Checked at start, so later code need not refuse it.
    pub fn rungs(&self) -> Result<Vec<Rung>, String> {
        self.ladder
            .iter()
            .map(|name| Ok(Rung { name: name.clone(), delay: duration("retry.ladder", name)? }))
            .collect()
    }
}

/// `250ms`, `10s`, `5m`, `2h`, `1d`.
pub fn duration(key: &str, text: &str) -> Result<Duration, String> {
    let wrong = || format!("{key}: {text:?} is no duration; expected a whole number with ms, s, m, h or d");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let millis = match &text[digits..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    Ok(Duration::from_millis(number.checked_mul(millis).ok_or_else(wrong)?))
}

#[cfg(test)]
mod tests;
