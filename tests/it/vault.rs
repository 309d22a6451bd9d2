//! Consent and tokens, against the simulated Entra, on both engines.

mod announce;
mod identity;
mod refresh;
mod sign_in;
mod world;
