//! The live account: one line for each thing worth telling, read off the ledger as any client could.
//!
//! The invariant: it only watches. What it misses changes nothing.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use followthrough::store::job::{JobRow, state};

use crate::script::{Promise, first_name};
use crate::stage::Stage;

pub(crate) struct Account {
    started: Instant,
    /// Jobs that were told of, with the state and attempt they were told with.
    told: Mutex<HashMap<String, (String, i32)>>,
}

impl Account {
    pub(crate) fn begin(stage: &Stage) -> Self {
        println!("Followthrough and a simulated Microsoft 365, in one process: {}.\n", stage.kept_in);
        Self { started: Instant::now(), told: Mutex::default() }
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    pub(crate) fn say(&self, line: &str) {
        println!("{:5.1}s  {line}", self.seconds());
    }

    /// Looks at the ledger and says what is new, as far as it is more than a job that just went well.
    pub(crate) fn follow(&self, promises: &[Promise], rows: &[JobRow]) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for promise in promises {
            let Some(row) = rows.iter().find(|row| row.id == promise.envelope.id) else { continue };
            let now = (row.state.clone(), row.attempt);
            let before = told.get(&row.id);
            if before == Some(&now) {
                continue;
            }
            if let Some(line) = line(promise, row, before.is_some()) {
                self.say(&line);
                told.insert(row.id.clone(), now);
            }
        }
    }
}

/// What there is to say of a job, `again` when it was spoken of before.
fn line(promise: &Promise, row: &JobRow, again: bool) -> Option<String> {
    let (name, code) = (&promise.name, row.code.as_deref().unwrap_or_default());
    let message = row.message.as_deref().unwrap_or_default();
    match row.state.as_str() {
        state::WAITING => Some(match code {
            "throttled" => format!("{name}: Microsoft is busy (429) and named a time; it waits for that"),
            "unanswered" => {
                format!("{name}: the answer got lost; before it is tried again, its effect is looked for")
            }
            _ => format!("{name} is tried again later: {code}, {message}"),
        }),
        state::PARKED if row.cause.as_deref() == Some("approval") => {
            let tool = row.tool.as_deref().unwrap_or_default();
            Some(format!("{name} waits for an approval: the tool {tool} is set to ask"))
        }
        state::PARKED => {
            Some(format!("{name} waits for {}: {code}, {message}", first_name(&promise.envelope.user)))
        }
        state::DEAD => Some(format!("{name} is a dead letter: {code}, {message}")),
        state::SUCCEEDED if again => {
            let tries = if row.attempt == 1 { "try" } else { "tries" };
            Some(format!("{name} is done after {} {tries}", row.attempt))
        }
        _ => None,
    }
}
