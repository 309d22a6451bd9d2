//! The README's tables: jobs, settings, metrics.
//!
//! The invariant: a table stands between `<!-- name:begin -->` and `<!-- name:end -->`; what is around it is
//! written by people and kept to the byte.

use std::fmt::Write as _;
use std::io;

use super::about;
use crate::config::KEYS;
use crate::registry::Registry;
use crate::telemetry::METRICS;

pub(super) fn fill(text: &str, registry: Registry) -> io::Result<String> {
    let mut text = text.to_owned();
    for (name, table) in [("jobs", jobs(registry)), ("settings", settings()), ("metrics", metrics())] {
        let (begin, end) = (format!("<!-- {name}:begin -->"), format!("<!-- {name}:end -->"));
        let place = text.find(&begin).map(|at| at + begin.len());
        let place = place.and_then(|from| Some((from, from + text[from..].find(&end)?)));
        let (from, to) = place.ok_or_else(|| {
            io::Error::other(format!("README.md: the markers {begin} and {end} are missing"))
        })?;
        text.replace_range(from..to, &format!("\n{table}"));
    }
    Ok(text)
}

fn jobs(registry: Registry) -> String {
    let mut table = String::from(
        "| kind | does | consent | permissions | tool | attempts |\n|---|---|---|---|---|---|\n",
    );
    for entry in registry.entries() {
        let spec = &entry.spec;
        let consent = spec.integration.map_or_else(|| "—".to_owned(), |one| format!("`{one}`"));
        let scopes: Vec<String> = spec.scopes.iter().map(|scope| format!("`{scope}`")).collect();
        let _ = writeln!(
            table,
            "| [`{kind}`](workers/schemas/{kind}.json) ([result](workers/schemas/{kind}.result.json)) | {} | \
             {consent} | {} | `{}` | {} |",
            line(&about(entry)),
            scopes.join(", "),
            spec.tool_pattern,
            spec.attempts,
            kind = spec.kind,
        );
    }
    table
}

fn settings() -> String {
    let mut table = String::from("| setting | default | |\n|---|---|---|\n");
    for key in KEYS {
        let default = key.default.map_or_else(|| "—".to_owned(), |default| format!("`{default}`"));
        let secret = if key.secret { " (secret: also `<KEY>_FILE`)" } else { "" };
        let _ = writeln!(table, "| `{}` | {default} | {}{secret} |", key.name, line(key.about));
    }
    table
}

fn metrics() -> String {
    let mut table = String::from("| metric | type | labels | |\n|---|---|---|---|\n");
    for metric in METRICS {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let _ = writeln!(
            table,
            "| `{}` | {} | {} | {} |",
            metric.name,
            metric.kind.as_str(),
            labels.join(", "),
            line(metric.about)
        );
    }
    table
}

/// One line that does not end its cell.
fn line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_markers_is_written() {
        let empty = Registry::new(&[]);
        let text = "a\n<!-- jobs:begin -->stale<!-- jobs:end -->\nb <!-- settings:begin --><!-- settings:end -->\
                    <!-- metrics:begin -->\n<!-- metrics:end -->c";
        let filled = fill(text, empty).unwrap();
        assert!(filled.starts_with("a\n<!-- jobs:begin -->\n| kind |") && filled.ends_with("-->c"));
        assert!(filled.contains("`database.url`") && filled.contains("followthrough_attempts_total"));
        assert!(!filled.contains("stale"));
        assert_eq!(fill(&filled, empty).unwrap(), filled);
        assert!(fill("nothing", empty).unwrap_err().to_string().contains("jobs:begin"));
    }
}
