//! What no setting alone can tell: the rules between them.
//!
//! The invariant: every broken rule is told, with the key to change.

use std::net::IpAddr;

use secrecy::ExposeSecret;
use url::Url;

use super::{Config, ConfigError, Problem, keys};

impl Config {
    /// What no setting alone can tell.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        let mut refuse = |key: &str, message: &str| problems.push(Problem::new(key, message));
        if self.vault.keys.is_empty() && !self.is_embedded() {
            refuse(
                "vault.keys",
                "absent, but required with PostgreSQL or RabbitMQ, where other processes must share it; \
                 expected id:base64(32 bytes), newest first (openssl rand -base64 32 makes one)",
            );
        }
        let microsoft = &self.microsoft;
        match (&microsoft.client_id, &microsoft.client_secret, &microsoft.client_certificate) {
            (_, Some(_), Some(_)) => refuse(
                "microsoft.client_certificate",
                "given beside microsoft.client_secret; expected one of the two",
            ),
            (Some(_), None, None) => refuse(
                "microsoft.client_secret",
                "absent; expected it or microsoft.client_certificate, since microsoft.client_id is given",
            ),
            (None, Some(_), None) | (None, None, Some(_)) => refuse(
                "microsoft.client_id",
                "absent; expected it beside the app registration's secret or certificate",
            ),
            _ => {}
        }
        if self.http.metrics_listen == Some(self.http.listen) && self.http.listen.port() != 0 {
            refuse("http.metrics_listen", "is http.listen; expected another address, or leave it out");
        }
        if self.broker.ca_file.is_some() && !self.broker.url.expose_secret().starts_with("amqps://") {
            refuse("broker.ca_file", "given without TLS; expected broker.url to begin with amqps://");
        }
        if !self.broker.plaintext && amqp_in_the_open(self.broker.url.expose_secret()) {
            refuse(
                "broker.url",
                "without TLS to another machine; expected amqps://, or broker.plaintext = true on a private network",
            );
        }
        if !self.database.plaintext && postgres_in_the_open(self.database.url.expose_secret()) {
            refuse(
                "database.url",
                "without TLS to another machine; expected sslmode=verify-full (or verify-ca, require), or \
                 database.plaintext = true on a private network",
            );
        }
        if self.telemetry.otlp_endpoint.is_some() {
            refuse(
                "telemetry.otlp_endpoint",
                "this build exports no traces; leave it out (logs carry trace ids, /metrics has the numbers)",
            );
        }
        if problems.is_empty() { Ok(()) } else { Err(ConfigError(problems)) }
    }

    /// Settings of kinds that no job of this build has.
    pub fn check_kinds(&self, kinds: &[String]) -> Result<(), ConfigError> {
        let unknown = self.workers.kinds.keys().filter(|kind| !kinds.contains(kind));
        let problems: Vec<Problem> = unknown
            .map(|kind| {
                let hint = keys::nearest(kind, kinds.iter().map(String::as_str))
                    .map_or_else(String::new, |near| format!("; did you mean {near}?"));
                Problem::new(format!("workers.kinds.{kind}"), format!("no job of this kind exists{hint}"))
            })
            .collect();
        if problems.is_empty() { Ok(()) } else { Err(ConfigError(problems)) }
    }
}

fn amqp_in_the_open(url: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    url.scheme() == "amqp" && !url.host_str().is_some_and(this_machine)
}

fn postgres_in_the_open(url: &str) -> bool {
    crate::store::plain_host(url).is_some_and(|host| !this_machine(&host))
}

fn this_machine(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    // A path is a socket's.
    host == "localhost" || host.starts_with('/') || address.is_ok_and(|address| address.is_loopback())
}
