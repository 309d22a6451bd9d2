//! Consent, from the first link to the last token: what users, administrators and operators do, and what waits for them.

mod guests;
mod people;
mod tokens;
