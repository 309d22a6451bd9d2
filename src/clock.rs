//! Time enters here and nowhere else.
//!
//! The invariant: every moment the fleet stores or compares comes from one [`Clock`], truncated to the
//! microsecond that PostgreSQL keeps, so that a time read back equals the time written.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};
use tokio::sync::Notify;

/// The system's time, or a manual one that moves only when told.
#[derive(Clone, Default)]
pub struct Clock(Option<Arc<Manual>>);

struct Manual {
    now: Mutex<DateTime<Utc>>,
    moved: Notify,
}

impl Clock {
    pub fn system() -> Self {
        Self(None)
    }

    /// A clock that stands still at `now` until [`Clock::advance`] moves it.
    pub fn manual(now: DateTime<Utc>) -> Self {
        let now = Mutex::new(now.trunc_subsecs(6));
        Self(Some(Arc::new(Manual { now, moved: Notify::new() })))
    }

    #[expect(clippy::disallowed_methods, reason = "this is the edge where time enters")]
    pub fn now(&self) -> DateTime<Utc> {
        match &self.0 {
            None => Utc::now().trunc_subsecs(6),
            Some(manual) => *manual.now.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
        }
    }

    /// Moves a manual clock and wakes whoever sleeps on it; the system's clock cannot be moved.
    pub fn advance(&self, by: Duration) {
        if let Some(manual) = &self.0 {
            *manual.now.lock().unwrap_or_else(std::sync::PoisonError::into_inner) += by;
            manual.moved.notify_waiters();
        }
    }

    pub async fn sleep(&self, duration: Duration) {
        self.sleep_until(self.now() + duration).await;
    }

    #[expect(clippy::disallowed_methods, reason = "this is the edge where waiting enters")]
    pub async fn sleep_until(&self, until: DateTime<Utc>) {
        let Some(manual) = &self.0 else {
            tokio::time::sleep((until - self.now()).to_std().unwrap_or_default()).await;
            return;
        };
        loop {
            let moved = manual.moved.notified();
            tokio::pin!(moved);
            // Registered before the time is read: an advance between the two is not missed.
            moved.as_mut().enable();
            if self.now() >= until {
                return;
            }
            moved.await;
        }
    }
}
