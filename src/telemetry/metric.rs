//! Every metric, once.
//!
//! The invariant: a name that the code counts by is in this table, as a test over the sources proves.

use metrics::Unit;

/// One metric, for `/metrics` and for the README.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub unit: Unit,
    pub labels: &'static [&'static str],
    pub about: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

const fn metric(
    name: &'static str,
    kind: Kind,
    unit: Unit,
    labels: &'static [&'static str],
    about: &'static str,
) -> Metric {
    Metric { name, kind, unit, labels, about }
}

use Kind::{Counter, Gauge, Histogram};

pub const METRICS: &[Metric] = &[
    metric(
        "followthrough_attempts_total",
        Counter,
        Unit::Count,
        &["kind", "verdict"],
        "attempts by how they ended",
    ),
    metric(
        "followthrough_attempt_seconds",
        Histogram,
        Unit::Seconds,
        &["kind"],
        "from a delivery to its settled end",
    ),
    metric(
        "followthrough_jobs",
        Gauge,
        Unit::Count,
        &["kind", "state"],
        "unfinished jobs in the ledger (the same in every process)",
    ),
    metric(
        "followthrough_queue_ready",
        Gauge,
        Unit::Count,
        &["queue"],
        "messages that wait for a worker (the same in every process)",
    ),
    metric(
        "followthrough_queue_consumers",
        Gauge,
        Unit::Count,
        &["queue"],
        "who takes messages from it (the same in every process)",
    ),
    metric(
        "followthrough_outbox_owed",
        Gauge,
        Unit::Count,
        &[],
        "messages committed but not yet confirmed by the broker",
    ),
    metric("followthrough_outbox_oldest_seconds", Gauge, Unit::Seconds, &[], "age of the oldest of them"),
    metric(
        "followthrough_dead_letters_open",
        Gauge,
        Unit::Count,
        &[],
        "dead letters that nobody replayed or discarded",
    ),
    metric(
        "followthrough_dead_letters_total",
        Counter,
        Unit::Count,
        &["code"],
        "dead letters collected, by cause",
    ),
    metric(
        "followthrough_acks_lost_total",
        Counter,
        Unit::Count,
        &[],
        "acknowledgements that did not reach the broker: the message comes again and is dropped",
    ),
    metric(
        "followthrough_broker_acks_lost_total",
        Counter,
        Unit::Count,
        &[],
        "the same as the connection to RabbitMQ saw it",
    ),
    metric(
        "followthrough_broker_reconnects_total",
        Counter,
        Unit::Count,
        &[],
        "connections to RabbitMQ made again",
    ),
    metric(
        "followthrough_broker_resubscribes_total",
        Counter,
        Unit::Count,
        &[],
        "consumers declared again after their channel or queue went away",
    ),
    metric(
        "followthrough_broker_ready",
        Gauge,
        Unit::Count,
        &[],
        "1 while the broker takes publications, else 0",
    ),
    metric(
        "followthrough_store_commits_total",
        Counter,
        Unit::Count,
        &["transaction"],
        "transactions committed",
    ),
    metric(
        "followthrough_store_statements_total",
        Counter,
        Unit::Count,
        &[],
        "statements run, without BEGIN and COMMIT",
    ),
    metric(
        "followthrough_http_requests_total",
        Counter,
        Unit::Count,
        &["call", "status"],
        "calls to Microsoft, by answer",
    ),
    metric(
        "followthrough_http_request_duration_seconds",
        Histogram,
        Unit::Seconds,
        &["call"],
        "how long Microsoft took",
    ),
    metric(
        "followthrough_tokens_refreshed_total",
        Counter,
        Unit::Count,
        &[],
        "token requests that Entra answered with tokens",
    ),
    metric(
        "followthrough_credential_refusals_total",
        Counter,
        Unit::Count,
        &[],
        "times that Entra refused this fleet's own secret or certificate; all connections wait meanwhile",
    ),
    metric(
        "followthrough_token_failures_total",
        Counter,
        Unit::Count,
        &["code"],
        "access tokens that could not be had, by cause",
    ),
    metric(
        "followthrough_intake_total",
        Counter,
        Unit::Count,
        &["outcome"],
        "notifications from Microsoft: `stored`, `duplicate`, `lifecycle`, `forged` or `unknown` by the item; \
         `handshake`, `unstored` (503) or `refused` by the request",
    ),
    metric(
        "followthrough_intake_seconds",
        Histogram,
        Unit::Seconds,
        &[],
        "how long Microsoft waited for an answer; more than 3 s slow all notifications down",
    ),
    metric(
        "followthrough_mailbox_delivery_silence_total",
        Counter,
        Unit::Count,
        &[],
        "times that notifications of a mailbox, proven before, failed to tell of three messages in a row",
    ),
    metric(
        "followthrough_mailbox_folder_failures_total",
        Counter,
        Unit::Count,
        &["code"],
        "looks at a folder that failed while the others of its mailbox went on, by the code of why",
    ),
    metric(
        "followthrough_mailbox_links_lost_total",
        Counter,
        Unit::Count,
        &[],
        "times that Microsoft forgot how far a folder was followed; what the folder holds is read again",
    ),
    metric(
        "followthrough_api_requests_total",
        Counter,
        Unit::Count,
        &["method", "route", "status"],
        "requests to our own API",
    ),
    metric(
        "followthrough_api_request_seconds",
        Histogram,
        Unit::Seconds,
        &["method", "route"],
        "how long we took",
    ),
];

pub(super) fn describe() {
    for metric in METRICS {
        match metric.kind {
            Counter => metrics::describe_counter!(metric.name, metric.unit, metric.about),
            Gauge => metrics::describe_gauge!(metric.name, metric.unit, metric.about),
            Histogram => metrics::describe_histogram!(metric.name, metric.unit, metric.about),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn named_in(directory: &Path, names: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                named_in(&path, names);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for macro_name in ["counter!(", "gauge!(", "histogram!("] {
                for (at, _) in text.match_indices(macro_name) {
                    let rest = text[at + macro_name.len()..].trim_start();
                    if let Some(name) = rest.strip_prefix('"').and_then(|rest| rest.split('"').next())
                        && name.starts_with("followthrough_")
                    {
                        names.insert(name.to_owned());
                    }
                }
            }
        }
    }

    #[test]
    fn the_table_names_exactly_what_the_code_counts() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut counted = BTreeSet::new();
        named_in(&root.join("src"), &mut counted);
        let named: BTreeSet<String> = METRICS.iter().map(|metric| metric.name.to_owned()).collect();
        assert_eq!(counted, named);
    }
}
