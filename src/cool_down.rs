//! What one process knows of those who asked to be left alone.
//!
//! The gate in the store keeps new jobs away. This keeps back the next call of a job that runs already, whichever process
//! was told: a call before the time is up makes Microsoft's penalty longer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use scoped_futures::ScopedFutureExt;

use crate::clock::Clock;
use crate::store::{Store, StoreError, gate};

/// What the store said counts for so long.
const FRESH: TimeDelta = TimeDelta::milliseconds(200);

/// Shared by all clients of a process.
#[derive(Clone)]
pub struct CoolDowns {
    clock: Clock,
    /// Where other processes leave word.
    store: Option<Store>,
    known: Arc<Mutex<HashMap<Arc<str>, Known>>>,
}

/// Of one gate.
#[derive(Default)]
struct Known {
    closed_until: DateTime<Utc>,
    /// When the store was asked last.
    as_of: DateTime<Utc>,
}

/// That of one gate, in the hands of a client.
#[derive(Clone)]
pub struct CoolDown {
    all: CoolDowns,
    gate: Arc<str>,
}

impl CoolDowns {
    pub fn new(clock: Clock) -> Self {
        Self { clock, store: None, known: Arc::default() }
    }

    /// From now on the word of other processes counts.
    pub fn listen(&mut self, store: Store) {
        self.store = Some(store);
    }

    pub fn of(&self, gate: &str) -> CoolDown {
        CoolDown { all: self.clone(), gate: gate.into() }
    }
}

impl CoolDown {
    /// A longer one that goes on already stays.
    pub fn begin(&self, wait: Duration) {
        self.note(|known, now| known.closed_until = known.closed_until.max(now + wait));
    }

    /// The gate was open by the store's word of then, as a claim reads it.
    pub fn was_open(&self, at: DateTime<Utc>) {
        self.note(|known, _| known.as_of = known.as_of.max(at));
    }

    /// What is left of it, as far as this process knows.
    pub fn left(&self) -> Option<Duration> {
        let known = self.all.known.lock().unwrap_or_else(PoisonError::into_inner);
        let until = known.get(&self.gate)?.closed_until;
        (until - self.all.clock.now()).to_std().ok().filter(|left| !left.is_zero())
    }

    /// What is left of it by the word of any process. A store that does not answer keeps nobody from Microsoft.
    pub async fn heard(&self) -> Option<Duration> {
        if let Some(left) = self.left() {
            return Some(left);
        }
        let (store, gate) = (self.all.store.as_ref()?, &*self.gate);
        let asked_at = self.all.clock.now();
        if self.is_fresh(asked_at) {
            return None;
        }
        // Boxed, or every call to Microsoft would be as large.
        let ask = store.read(|tx| async move { gate::closed_until(tx, gate).await }.scope_boxed());
        let said: Result<_, StoreError> = Box::pin(ask).await;
        // Only now: who asks meanwhile must not take the question for the answer.
        self.note(|known, _| {
            known.as_of = known.as_of.max(asked_at);
            if let Ok(Some(until)) = said {
                known.closed_until = known.closed_until.max(until);
            }
        });
        self.left()
    }

    fn is_fresh(&self, now: DateTime<Utc>) -> bool {
        let known = self.all.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&self.gate).is_some_and(|known| now - known.as_of < FRESH)
    }

    fn note(&self, change: impl FnOnce(&mut Known, DateTime<Utc>)) {
        let now = self.all.clock.now();
        let mut all = self.all.known.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, known| known.closed_until > now || now - known.as_of < FRESH);
        change(all.entry(self.gate.clone()).or_default(), now);
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
        assert_eq!(all.known.lock().expect("no panic").len(), 1, "what is over is forgotten");
    }
}
