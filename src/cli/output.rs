//! How commands answer: a table for people, JSON for programs.
//!
//! The invariant: with `--json` standard output holds exactly one JSON value; everything else that is said
//! goes to standard error.

use std::io::Write;

use serde::Serialize;

#[derive(Clone, Copy)]
pub(super) struct Output {
    pub json: bool,
}

impl Output {
    pub(super) fn done(self, value: &impl Serialize, text: &str) {
        if self.json {
            print(value);
        } else {
            say(text);
        }
    }

    /// A listing. `columns` are computed for people only.
    pub(super) fn list<T: Serialize>(self, rows: &[T], header: &[&str], columns: impl Fn(&T) -> Vec<String>) {
        if self.json {
            return print(&rows);
        }
        let cells: Vec<Vec<String>> = rows.iter().map(columns).collect();
        let width = |column: usize| {
            let cells = cells.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain([header[column].len()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..header.len()).map(width).collect();
        let put = |row: Vec<&str>| {
            let padded: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            say(padded.join("  ").trim_end());
        };
        put(header.to_vec());
        for row in &cells {
            put(row.iter().map(String::as_str).collect());
        }
    }
}

pub(super) fn print(value: &impl Serialize) {
    say(&serde_json::to_string_pretty(value).unwrap_or_default());
}

/// A reader that has seen enough (`| head`) is no fault.
pub(super) fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Nobody has to listen.
pub(super) fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A moment as people read it.
pub(super) fn moment(at: chrono::DateTime<chrono::Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S").to_string()
}
