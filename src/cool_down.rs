//! What one process knows of those who asked to be left alone.
//!
//! The gate in the store keeps new jobs away. This keeps back the next call of a job that runs already: a call
//! before the time is up makes Microsoft's penalty longer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::clock::Clock;

/// Shared by all clients of a process.
#[derive(Clone)]
pub struct CoolDowns {
    clock: Clock,
    until: Arc<Mutex<HashMap<Arc<str>, DateTime<Utc>>>>,
}

/// That of one gate, in the hands of a client.
#[derive(Clone)]
pub struct CoolDown {
    all: CoolDowns,
    gate: Arc<str>,
}

impl CoolDowns {
    pub fn new(clock: Clock) -> Self {
        Self { clock, until: Arc::default() }
    }

    pub fn of(&self, gate: &str) -> CoolDown {
        CoolDown { all: self.clone(), gate: gate.into() }
    }
}

impl CoolDown {
    /// A longer one that goes on already stays.
    pub fn begin(&self, wait: Duration) {
        let now = self.all.clock.now();
        let mut until = self.all.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.retain(|_, until| *until > now);
        let ours = until.entry(self.gate.clone()).or_insert(now);
        *ours = (*ours).max(now + wait);
    }

    /// What is left of it.
    pub fn left(&self) -> Option<Duration> {
        let until = self.all.until.lock().unwrap_or_else(PoisonError::into_inner).get(&self.gate).copied();
        (until? - self.all.clock.now()).to_std().ok().filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_of_a_gate_holds_for_that_gate_and_ends() {
        let clock = Clock::manual(DateTime::UNIX_EPOCH);
        let all = CoolDowns::new(clock.clone());
        let (ours, theirs) = (all.of("mailbox:t:a"), all.of("mailbox:t:b"));
        ours.begin(Duration::from_secs(30));
        all.of("mailbox:t:a").begin(Duration::from_secs(10));
        assert_eq!((ours.left(), theirs.left()), (Some(Duration::from_secs(30)), None));
        clock.advance(Duration::from_secs(29));
        assert_eq!(ours.left(), Some(Duration::from_secs(1)));
        clock.advance(Duration::from_secs(1));
        assert_eq!(ours.left(), None);
        theirs.begin(Duration::from_secs(1));
        assert_eq!(all.until.lock().expect("no panic").len(), 1, "what is over is forgotten");
    }
}
