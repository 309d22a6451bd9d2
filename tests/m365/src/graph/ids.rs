//! Item and folder ids in Outlook's two formats: the default one, which a move changes, and the immutable one, which it
//! does not. An id is only ever decoded, never looked up by its text, so a lower-cased or truncated id is malformed, as
//! it is at Microsoft (<https://learn.microsoft.com/graph/outlook-immutable-id>: ids are case-sensitive).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use uuid::Uuid;

/// What an id names. The number is part of the id, so a folder's id is malformed where a message's is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Message = 0x46,
    Folder = 0x2e,
    Event = 0x47,
    Calendar = 0x2f,
    Attachment = 0x48,
    Contact = 0x49,
}

/// A decoded id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ItemId {
    pub(crate) mailbox: Uuid,
    pub(crate) kind: Kind,
    pub(crate) key: u64,
    /// Which stay in a folder the id was given for; `None` is the immutable format.
    pub(crate) stay: Option<u32>,
}

/// The first bytes of both formats: they make the familiar `AAMkA…` and `AAkAL…`.
const DEFAULT: [u8; 4] = [0x00, 0x03, 0x24, 0x00];
const IMMUTABLE: [u8; 4] = [0x00, 0x09, 0x00, 0x2e];

/// An id inside an `@odata.context` is percent-encoded.
pub(crate) fn in_context(id: &str) -> String {
    id.replace('=', "%3D")
}

impl ItemId {
    pub(crate) fn text(&self) -> String {
        let mut bytes = Vec::with_capacity(72);
        bytes.extend(if self.stay.is_some() { DEFAULT } else { IMMUTABLE });
        bytes.extend(self.mailbox.hyphenated().to_string().as_bytes());
        bytes.extend([self.kind as u8, 0, 0, 0]);
        bytes.extend(self.key.to_be_bytes());
        bytes.extend(self.stay.unwrap_or(0).to_be_bytes());
        bytes.extend(check(&bytes).to_be_bytes());
        bytes.extend([0, 0]);
        URL_SAFE.encode(bytes)
    }

    /// `None` where Graph answers `ErrorInvalidIdMalformed`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        // A '/' or '+' of the standard alphabet is accepted as the service does for ids from other APIs.
        let text = text.replace('/', "-").replace('+', "_");
        let bytes = URL_SAFE.decode(text).ok()?;
        if bytes.len() != 62 {
            return None;
        }
        let (body, tail) = bytes.split_at(56);
        if u32::from_be_bytes(tail[..4].try_into().ok()?) != check(body) {
            return None;
        }
        let immutable = match body[..4].try_into().ok()? {
            DEFAULT => false,
            IMMUTABLE => true,
            _ => return None,
        };
        let kind = match body[40] {
            0x46 => Kind::Message,
            0x2e => Kind::Folder,
            0x47 => Kind::Event,
            0x2f => Kind::Calendar,
            0x48 => Kind::Attachment,
            0x49 => Kind::Contact,
            _ => return None,
        };
        let stay = u32::from_be_bytes(body[52..56].try_into().ok()?);
        Some(Self {
            mailbox: Uuid::try_parse_ascii(&body[4..40]).ok()?,
            kind,
            key: u64::from_be_bytes(body[44..52].try_into().ok()?),
            stay: (!immutable).then_some(stay),
        })
    }
}

/// FNV-1a: enough that a changed letter is noticed.
fn check(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// A conversation's id, in the shape of Outlook's (`AAQkA…`).
pub(crate) fn conversation(mailbox: Uuid, seed: u64) -> String {
    let mut bytes = vec![0x00, 0x04, 0x24, 0x00];
    bytes.extend(mailbox.hyphenated().to_string().as_bytes());
    bytes.extend([0x00, 0x10, 0x00]);
    bytes.extend(u128::from(seed).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835).to_be_bytes());
    URL_SAFE.encode(bytes)
}

/// A change key: the etag's inside.
pub(crate) fn change_key(mailbox: Uuid, change: u64) -> String {
    let mut bytes = vec![0x09, 0x00, 0x00, 0x00, 0x16, 0x00, 0x00, 0x00];
    bytes.extend(&mailbox.as_bytes()[..12]);
    bytes.extend(change.to_be_bytes());
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_the_journey_and_a_changed_letter_makes_it_malformed() {
        let id = ItemId { mailbox: Uuid::from_u128(7), kind: Kind::Message, key: 41, stay: Some(3) };
        let text = id.text();
        assert!(text.starts_with("AAMkA"), "{text}");
        assert_eq!(ItemId::parse(&text), Some(id));
        assert_eq!(ItemId::parse(&text.to_lowercase()), None);
        assert_eq!(ItemId::parse(&text[..text.len() - 4]), None);
        let immutable = ItemId { stay: None, ..id }.text();
        assert!(immutable.starts_with("AAkAL"), "{immutable}");
        assert_eq!(ItemId::parse(&immutable).map(|id| id.stay), Some(None));
    }
}
