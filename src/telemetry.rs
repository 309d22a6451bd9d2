//! What a process tells about itself: logs on standard error, numbers for Prometheus.
//!
//! The invariant: every metric is described in [`METRICS`], and no label or log line holds content, a secret
//! or an address.

mod metric;
mod sample;

use std::io::IsTerminal;
use std::sync::OnceLock;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{FilterFn, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::broker::rabbit::QUIET;
use crate::config::{LogFormat, Telemetry};

pub use metric::{Kind, METRICS, Metric};
pub use sample::sample;

/// From a millisecond of our own work to the minutes a large upload takes.
const SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// Logs as the settings say. Once per process; a second call is told that somebody was first.
pub fn log(settings: &Telemetry) -> Result<(), String> {
    let filter = EnvFilter::try_new(format!("{},{QUIET}", settings.level))
        .map_err(|error| format!("telemetry.level: {error}"))?;
    let terminal = std::io::stderr().is_terminal();
    let format = settings.log.unwrap_or(if terminal { LogFormat::Pretty } else { LogFormat::Json });
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Pretty => lines.with_ansi(terminal).finish().with(capped()).try_init(),
        LogFormat::Json => {
            lines.json().flatten_event(true).with_current_span(false).finish().with(capped()).try_init()
        }
    }
    .map_err(|error| error.to_string())
}

/// These write frames, headers and statements, and so passwords, tokens and content, below `info`.
const TALKATIVE: [&str; 7] = ["lapin", "amq_protocol", "hyper", "h2", "rustls", "reqwest", "sqlx"];

/// Keeps them at `info` whatever the level says, also where it names them or a part of them.
fn capped() -> FilterFn {
    filter_fn(|metadata| {
        let library = metadata.target().split("::").next().unwrap_or_default();
        let talkative = TALKATIVE.iter().any(|name| {
            library.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        });
        !talkative || *metadata.level() <= Level::INFO
    })
}

/// The process's numbers. The first call installs the recorder, so it comes before anything is counted.
pub fn metrics() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let recorder =
                PrometheusBuilder::new().set_buckets(SECONDS).expect("there are buckets").build_recorder();
            let handle = recorder.handle();
            // Somebody else's recorder (an embedding program's) stays; ours then renders nothing.
            if ::metrics::set_global_recorder(recorder).is_ok() {
                metric::describe();
            }
            handle
        })
        .clone()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn libraries_that_write_frames_and_headers_stay_at_info_whatever_the_level_says() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter("trace,lapin=trace,hyper::proto=debug,sqlx=trace")
            .with_writer(move || writer.clone())
            .finish()
            .with(capped());
        tracing::subscriber::with_default(subscriber, || {
            tracing::trace!(target: "amq_protocol::frames", "planted");
            tracing::debug!(target: "hyper::proto", "planted");
            tracing::debug!(target: "hyper_util::client", "planted");
            tracing::debug!(target: "sqlx::query", "planted");
            tracing::debug!(target: "h2", "planted");
            tracing::info!(target: "lapin", "connected");
            tracing::trace!(target: "followthrough::http", "sent");
            tracing::debug!(target: "hyperion", "another name");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(!text.contains("planted"), "{text}");
        for expected in ["connected", "sent", "another name"] {
            assert!(text.contains(expected), "{expected} is missing in {text}");
        }
    }
}
