//! Shared mailboxes: connected, filled back, kept in step, disconnected.

mod attached;
mod away;
mod cancelled;
mod consents;
mod disconnect;
mod filled;
mod follow;
mod gaps;
mod guests;
mod killed;
mod large;
mod links;
mod neighbours;
mod polls;
mod silence;
pub(crate) mod support;
mod throttled;
mod unequal;
mod wrong;
