//! Laws, looped over every registered job: whatever goes wrong on the way, the world ends as if nothing had.

mod calls;
mod cases;
mod drains;
mod payloads;
mod secrets;
mod sight;
