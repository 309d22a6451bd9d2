//! A clock that goes like the system's, and can be moved on: days pass in a story that takes seconds.
//!
//! The invariant: it never stands still and never goes back.

use std::time::Duration;

use followthrough::clock::Clock;

const TICK: Duration = Duration::from_millis(10);

/// Begins at the system's time, and goes on until the story's runtime ends.
pub fn moving() -> Clock {
    let real = Clock::system();
    let mut last = real.now();
    let moving = Clock::manual(last);
    let driven = moving.clone();
    tokio::spawn(async move {
        loop {
            real.sleep(TICK).await;
            let now = real.now();
            driven.advance((now - last).to_std().unwrap_or_default());
            last = now;
        }
    });
    moving
}
