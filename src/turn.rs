//! Per-user turns within one process: cheaper than asking the ledger for a permit that is not there.
//!
//! The invariant: one busy user holds only a few of a process's hands. Who gets no turn soon asks the ledger
//! all the same, and is deferred by it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::clock::Clock;

/// As many as Microsoft serves at once for one mailbox.
const RUNNING: usize = 4;
/// Deliveries of one user that may wait in this process beyond those that run.
const WAITING: usize = 2;
/// How long they wait before they are deferred instead.
const PATIENCE: Duration = Duration::from_millis(500);

#[derive(Default)]
pub struct Turns(Mutex<HashMap<String, Weak<Turn>>>);

struct Turn {
    running: Arc<Semaphore>,
    waiting: Semaphore,
}

/// Held while the user's job runs; `None` inside means that patience ran out.
pub struct Taken {
    _permit: Option<OwnedSemaphorePermit>,
    _turn: Arc<Turn>,
}

impl Turns {
    pub async fn take(&self, workspace: &str, user: &str, clock: &Clock) -> Taken {
        let turn = self.of(format!("{workspace}\u{0}{user}"));
        let permit = match turn.running.clone().try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) => match turn.waiting.try_acquire() {
                Ok(_waiting) => tokio::select! {
                    permit = turn.running.clone().acquire_owned() => permit.ok(),
                    () = clock.sleep(PATIENCE) => None,
                },
                Err(_) => None,
            },
        };
        Taken { _permit: permit, _turn: turn }
    }

    fn of(&self, key: String) -> Arc<Turn> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(&key).and_then(Weak::upgrade) {
            return turn;
        }
        if turns.len() > 1024 {
            turns.retain(|_, turn| turn.strong_count() > 0);
        }
        let turn =
            Arc::new(Turn { running: Arc::new(Semaphore::new(RUNNING)), waiting: Semaphore::new(WAITING) });
        turns.insert(key, Arc::downgrade(&turn));
        turn
    }
}
