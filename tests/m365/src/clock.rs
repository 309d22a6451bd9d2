//! The virtual clock: real time plus an offset, or a standstill.
//!
//! Tokens, throttles, codes and timestamps all read this clock, so that ninety days pass in one call.

use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;

#[derive(Default)]
pub struct Clock(Mutex<Setting>);

#[derive(Default)]
struct Setting {
    offset: TimeDelta,
    frozen_at: Option<DateTime<Utc>>,
}

impl Clock {
    pub fn now(&self) -> DateTime<Utc> {
        let setting = self.0.lock();
        setting.frozen_at.unwrap_or_else(|| Utc::now() + setting.offset)
    }

    pub fn advance(&self, by: TimeDelta) {
        let mut setting = self.0.lock();
        setting.offset += by;
        if let Some(at) = &mut setting.frozen_at {
            *at += by;
        }
    }

    pub fn set(&self, to: DateTime<Utc>) {
        let mut setting = self.0.lock();
        setting.offset = to - Utc::now();
        if setting.frozen_at.is_some() {
            setting.frozen_at = Some(to);
        }
    }

    /// Stops the clock; only [`Clock::advance`] and [`Clock::set`] move it then.
    pub fn freeze(&self, stop: bool) {
        let mut setting = self.0.lock();
        match (stop, setting.frozen_at) {
            (true, None) => setting.frozen_at = Some(Utc::now() + setting.offset),
            (false, Some(at)) => {
                setting.offset = at - Utc::now();
                setting.frozen_at = None;
            }
            _ => {}
        }
    }
}
