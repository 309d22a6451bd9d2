//! What one process shares among its roles.

use std::sync::Arc;
use std::time::Duration;

use crate::broker::{Broker, Rung};
use crate::clock::Clock;
use crate::intake::Callbacks;
use crate::ledger::Ledger;
use crate::microsoft::Microsoft;
use crate::outbox::Handoff;
use crate::registry::Registry;
use crate::store::Store;
use crate::vault::Vault;

pub struct Services {
    pub registry: Registry,
    pub store: Store,
    pub broker: Arc<dyn Broker>,
    pub clock: Clock,
    pub ledger: Ledger,
    pub handoff: Handoff,
    pub ladder: Ladder,
    /// How long a mailbox may take to show what became of a write that nobody answered.
    pub unanswered: Duration,
    pub microsoft: Microsoft,
    /// Absent without an app registration.
    pub vault: Option<Vault>,
    /// How often a shared mailbox is looked at.
    pub poll: Duration,
    /// The content of larger attachments is not kept; with 0, of none.
    pub attachment_bytes: u32,
    /// Where Microsoft sends notifications.
    pub callbacks: Callbacks,
}

/// The retry ladder: which delay follows which attempt.
#[derive(Debug, Clone)]
pub struct Ladder {
    /// For what waits without having been tried: no permit, a twin that runs.
    pub short: Rung,
    pub rungs: Vec<Rung>,
}

impl Ladder {
    pub fn new(rungs: Vec<Rung>) -> Self {
        let short = Rung { name: "1s".to_owned(), delay: std::time::Duration::from_secs(1) };
        Self { short, rungs }
    }

    /// Every delay queue that must exist.
    pub fn all(&self) -> Vec<Rung> {
        let mut all = vec![self.short.clone()];
        all.extend(self.rungs.iter().filter(|rung| rung.name != self.short.name).cloned());
        all
    }

    /// The rung after a failed attempt; a neighbour now and then, so that a mass failure spreads out.
    pub fn after_attempt(&self, attempt: i32, chance: f64) -> &Rung {
        let last = self.rungs.len().saturating_sub(1);
        let step = usize::try_from(attempt - 1).unwrap_or(0);
        let step = if chance < 0.2 { step + 1 } else { step };
        self.rungs.get(step.min(last)).unwrap_or(&self.short)
    }

    /// The longest rung that does not overshoot `wait`, or the shortest of all.
    pub fn within(&self, wait: std::time::Duration) -> &Rung {
        std::iter::once(&self.short)
            .chain(&self.rungs)
            .filter(|rung| rung.delay <= wait)
            .max_by_key(|rung| rung.delay)
            .unwrap_or(&self.short)
    }
}
