//! Every setting, once: its name, default, shape and what it is for.
//!
//! The invariant: defaults, refusals, environment names and the README's table all come from [`KEYS`]; a test
//! compares its names with the fields that the settings' types read.

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Dotted, as in the file's sections.
    pub name: &'static str,
    /// A TOML literal.
    pub default: Option<&'static str>,
    pub shape: Shape,
    /// Never printed, and may be given as `<KEY>_FILE`.
    pub secret: bool,
    pub about: &'static str,
}

/// What a value must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Text,
    /// `true` or `false`.
    Switch,
    Number {
        least: u32,
        most: u32,
    },
    OneOf(&'static [&'static str]),
    /// `10s`, between the two.
    Duration {
        least: &'static str,
        most: &'static str,
    },
    Ladder,
    Url,
    Address,
    Guid,
    /// A file that can be read and holds certificates.
    Certificates,
    DatabaseUrl,
    BrokerUrl,
    Prefix,
    Hosts,
    SealingKeys,
    /// PEM of a certificate with its private key.
    Identity,
    LogLevel,
}

const fn key(name: &'static str, default: Option<&'static str>, shape: Shape, about: &'static str) -> Key {
    Key { name, default, shape, secret: false, about }
}

const fn secret(name: &'static str, default: Option<&'static str>, shape: Shape, about: &'static str) -> Key {
    Key { name, default, shape, secret: true, about }
}

/// The setting whose middle is the name of a kind.
pub(super) const PER_KIND: (&str, &str) = ("workers.kinds.", ".concurrency");

pub const KEYS: &[Key] = &[
    secret(
        "database.url",
        Some(r#""sqlite://followthrough.db""#),
        Shape::DatabaseUrl,
        "`sqlite://<file>` or `postgres://…`",
    ),
    key(
        "database.plaintext",
        Some("false"),
        Shape::Switch,
        "allows PostgreSQL on another machine without TLS (`sslmode=require`, `verify-ca` or `verify-full`): for \
         private networks only",
    ),
    key(
        "database.connections",
        Some("10"),
        Shape::Number { least: 1, most: 1000 },
        "the most connections one process opens to PostgreSQL",
    ),
    secret("broker.url", Some(r#""embedded""#), Shape::BrokerUrl, "`embedded`, `amqp://…` or `amqps://…`"),
    key(
        "broker.prefix",
        Some(r#""followthrough""#),
        Shape::Prefix,
        "what the names of all exchanges and queues begin with",
    ),
    key(
        "broker.topology",
        Some(r#""declare""#),
        Shape::OneOf(&["declare", "verify", "export"]),
        "`declare` makes what is missing at RabbitMQ, `verify` only looks, `export` leaves both to you",
    ),
    key(
        "broker.plaintext",
        Some("false"),
        Shape::Switch,
        "allows `amqp://` to another machine, without TLS: for private networks only",
    ),
    key("broker.ca_file", None, Shape::Certificates, "an extra root certificate for `amqps://`"),
    key("http.listen", Some(r#""127.0.0.1:8080""#), Shape::Address, "where the API listens"),
    key(
        "http.public_url",
        Some(r#""http://127.0.0.1:8080""#),
        Shape::Url,
        "how browsers and Microsoft reach it: redirect URIs, notification URLs, links",
    ),
    key(
        "http.metrics_listen",
        None,
        Shape::Address,
        "probes and metrics on a listener of their own; on `http.listen` when absent",
    ),
    key("microsoft.client_id", None, Shape::Guid, "the Entra app registration"),
    secret("microsoft.client_secret", None, Shape::Text, "its secret; or a certificate, not both"),
    secret(
        "microsoft.client_certificate",
        None,
        Shape::Identity,
        "its certificate with the private key, PEM",
    ),
    key(
        "microsoft.cloud",
        Some(r#""global""#),
        Shape::OneOf(&["global", "usgov", "usgov-dod", "china"]),
        "sets the addresses below",
    ),
    key("microsoft.login_url", None, Shape::Url, "`https://login.microsoftonline.com` in the global cloud"),
    key("microsoft.graph_url", None, Shape::Url, "`https://graph.microsoft.com` in the global cloud"),
    key(
        "microsoft.discovery_url",
        None,
        Shape::Url,
        "`https://globaldisco.crm.dynamics.com` in the global cloud",
    ),
    key(
        "microsoft.dataverse_hosts",
        None,
        Shape::Hosts,
        "environments outside are refused; `*.dynamics.com` in the global cloud",
    ),
    key(
        "microsoft.ca_file",
        None,
        Shape::Certificates,
        "an extra root certificate (private proxies, the simulator)",
    ),
    secret(
        "vault.keys",
        None,
        Shape::SealingKeys,
        "`id:base64(32 bytes)`, newest first; made at the first start where database and broker are \
         embedded, required elsewhere",
    ),
    key(
        "retry.ladder",
        Some(r#"["10s", "1m", "5m", "30m", "2h"]"#),
        Shape::Ladder,
        "the delays between attempts, and so the retry queues",
    ),
    key(
        "workers.concurrency",
        Some("16"),
        Shape::Number { least: 1, most: 1000 },
        "jobs of one kind that a process runs at once",
    ),
    key(
        "workers.kinds.<kind>.concurrency",
        None,
        Shape::Number { least: 1, most: 1000 },
        "the same for one kind",
    ),
    key(
        "workers.lease",
        Some(r#""30s""#),
        Shape::Duration { least: "5s", most: "1h" },
        "how long a job stays a silent worker's before another may take it over",
    ),
    key(
        "workers.drain",
        Some(r#""25s""#),
        Shape::Duration { least: "0s", most: "1h" },
        "how long running jobs may finish after SIGTERM",
    ),
    key(
        "mailbox.poll",
        Some(r#""60s""#),
        Shape::Duration { least: "1s", most: "1d" },
        "how often a shared mailbox is looked at",
    ),
    key(
        "mailbox.slots",
        Some("4"),
        Shape::Number { least: 1, most: 4 },
        "calls at once to one mailbox; Microsoft serves no more than 4",
    ),
    key(
        "mailbox.unanswered",
        Some(r#""2m""#),
        Shape::Duration { least: "1m", most: "1h" },
        "how long a mailbox is watched after a send that nobody answered, before it is sent again or parked",
    ),
    key(
        "mailbox.push",
        Some("true"),
        Shape::Switch,
        "asks Microsoft to tell of changes in shared mailboxes, which it may refuse; polling goes on in any case",
    ),
    key(
        "mailbox.attachment_bytes",
        Some("1048576"),
        Shape::Number { least: 0, most: 33_554_432 },
        "attachments of shared mailboxes up to this size are kept with their content, larger ones by name only; 0 \
         keeps no content",
    ),
    key("telemetry.log", None, Shape::OneOf(&["pretty", "json"]), "`pretty` on a terminal, `json` elsewhere"),
    key(
        "telemetry.level",
        Some(r#""info""#),
        Shape::LogLevel,
        "`warn`, or by module: `info,followthrough::http=debug`",
    ),
    key("telemetry.otlp_endpoint", None, Shape::Url, "reserved: this build exports no traces and refuses it"),
];

impl Key {
    pub fn find(name: &str) -> Option<&'static Self> {
        let per_kind = kind_of(name).is_some();
        KEYS.iter().find(|key| key.name == name || (per_kind && key.name.contains('<')))
    }

    /// Where it stands in the environment.
    pub fn environment(&self) -> String {
        format!("{ENVIRONMENT}{}", self.name.replace('.', "_").to_uppercase())
    }
}

pub(super) const ENVIRONMENT: &str = "FOLLOWTHROUGH_";

/// The kind that a setting of its own names.
pub(super) fn kind_of(name: &str) -> Option<&str> {
    let kind = name.strip_prefix(PER_KIND.0)?.strip_suffix(PER_KIND.1)?;
    (!kind.is_empty()).then_some(kind)
}

/// The known name that was most probably meant.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::normalized_damerau_levenshtein(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.55)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, candidate)| candidate)
}
