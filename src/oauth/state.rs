//! The `state` that travels through a browser and comes back.
//!
//! The invariant: nothing is believed of it before its signature was checked, and nothing after its end. It
//! carries no secret: whoever reads it learns which link was opened and nothing more.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::scopes::Integration;
use crate::vault::seal::Keys;

/// From the click on the link to the end of the sign-in.
pub const SIGN_IN: TimeDelta = TimeDelta::hours(1);
/// An administrator gets the link by mail and reads it next week.
pub const ADMIN_CONSENT: TimeDelta = TimeDelta::days(14);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "for", rename_all = "snake_case")]
pub enum Purpose {
    SignIn {
        link: Uuid,
    },
    AdminConsent {
        workspace: String,
        integration: Integration,
        /// The sign-in that waits for it.
        link: Option<Uuid>,
    },
}

#[derive(Serialize, Deserialize)]
struct Body {
    #[serde(flatten)]
    purpose: Purpose,
    until: i64,
}

/// Signed text for a URL.
pub fn write(keys: &Keys, purpose: Purpose, until: DateTime<Utc>) -> String {
    let body = Body { purpose, until: until.timestamp() };
    let json = serde_json::to_vec(&body).expect("a state has string keys only");
    let text = BASE64_URL_SAFE_NO_PAD.encode(json);
    let signature = BASE64_URL_SAFE_NO_PAD.encode(keys.sign(&signed(&text)));
    format!("{text}.{signature}")
}

/// What was signed; `None` for anything that was not, or that has ended.
pub fn read(keys: &Keys, state: &str, now: DateTime<Utc>) -> Option<Purpose> {
    let (text, signature) = state.split_once('.')?;
    let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).ok()?;
    if !keys.verify(&signed(text), &signature) {
        return None;
    }
    let body: Body = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
    (now.timestamp() < body.until).then_some(body.purpose)
}

fn signed(text: &str) -> Vec<u8> {
    [b"oauth state: ", text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_believed_only_as_it_was_signed_and_in_its_time() {
        let keys = Keys::parse(&[Keys::generate("a")]).expect("a key");
        let now = DateTime::UNIX_EPOCH;
        let purpose = Purpose::SignIn { link: Uuid::nil() };
        let state = write(&keys, purpose.clone(), now + SIGN_IN);
        assert_eq!(read(&keys, &state, now), Some(purpose));
        assert_eq!(read(&keys, &state, now + SIGN_IN), None);
        for index in 0..state.len() {
            let mut other = state.clone().into_bytes();
            other[index] = if other[index] == b'A' { b'B' } else { b'A' };
            let other = String::from_utf8(other).expect("ASCII");
            // The last character of base64 may carry bits that mean nothing.
            if index + 1 < state.len() {
                assert_eq!(read(&keys, &other, now), None, "byte {index}");
            }
        }
        let others = Keys::parse(&[Keys::generate("a")]).expect("a key");
        assert_eq!(read(&others, &state, now), None);
        for rubbish in ["", ".", "a.b", "…"] {
            assert_eq!(read(&keys, rubbish, now), None);
        }
    }
}
