//! One item of a notification, as far as it is used.
//!
//! The invariant: whatever stands in a body, what comes out is short, holds no control characters, and fits every
//! column. The client state itself is not kept, not even here.

use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// Ids of Exchange have some 150 characters.
const LONGEST_ID: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) subscription: String,
    /// SHA-256.
    pub(super) client_state: [u8; 32],
    pub(super) news: News,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    Change {
        change: &'static str,
        /// Absent where it could not be read: something has changed all the same.
        message: Option<String>,
    },
    /// `missed`: whatever happened in the mailbox, nobody told.
    Missed,
    /// Something is asked of the subscription.
    Asks(&'static str),
}

/// `None` for what is no notification at all. An item that cannot be read stands for nothing and spoils no other.
pub(super) fn read(body: &[u8]) -> Option<Vec<Item>> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let items = body.get("value")?.as_array()?;
    let read: Vec<Item> = items.iter().filter_map(item).collect();
    super::count("unknown", (items.len() - read.len()) as u64);
    Some(read)
}

fn item(item: &Value) -> Option<Item> {
    use crate::store::subscription::asked;
    let text = |name: &str| item.get(name).and_then(Value::as_str);
    let id = |text: &str| {
        let fits = (1..=LONGEST_ID).contains(&text.len()) && !text.chars().any(char::is_control);
        fits.then(|| text.to_owned())
    };
    let news = match (text("lifecycleEvent"), text("changeType")) {
        (Some("reauthorizationRequired"), _) => News::Asks(asked::REAUTHORIZE),
        (Some("subscriptionRemoved"), _) => News::Asks(asked::CREATE),
        (Some("missed"), _) => News::Missed,
        (Some(_), _) | (None, None) => return None,
        (None, Some(change)) => News::Change {
            change: ["created", "updated", "deleted"].into_iter().find(|known| change == *known)?,
            message: item.pointer("/resourceData/id").and_then(Value::as_str).and_then(id),
        },
    };
    let client_state = Sha256::digest(text("clientState").unwrap_or_default().as_bytes()).into();
    Some(Item { subscription: id(text("subscriptionId")?)?, client_state, news })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(item: &Value) -> Option<News> {
        let items = read(json!({"value": [item], "validationTokens": []}).to_string().as_bytes()).unwrap();
        items.into_iter().next().map(|item| item.news)
    }

    #[test]
    fn an_item_is_read_for_what_it_says_and_whatever_else_it_holds() {
        let change = |change: &str, id: Value| {
            of(&json!({"subscriptionId": "s", "changeType": change, "resourceData": {"id": id}, "new": [1]}))
        };
        let read = |change, message: Option<&str>| {
            Some(News::Change { change, message: message.map(str::to_owned) })
        };
        assert_eq!(change("created", json!("AA=")), read("created", Some("AA=")));
        assert_eq!(change("deleted", json!(7)), read("deleted", None));
        assert_eq!(change("updated", json!("a\u{0}b")), read("updated", None));
        assert_eq!(change("updated", json!("a".repeat(2000))), read("updated", None));
        assert_eq!(change("exploded", json!("AA=")), None);
        let event = |event: &str| of(&json!({"subscriptionId": "s", "lifecycleEvent": event}));
        assert_eq!(event("missed"), Some(News::Missed));
        assert_eq!(event("subscriptionRemoved"), Some(News::Asks("create")));
        assert_eq!(event("reauthorizationRequired"), Some(News::Asks("reauthorize")));
        assert_eq!(event("whatever"), None);
        for nothing in [json!(null), json!([]), json!("x"), json!({}), json!({"changeType": "created"})] {
            assert_eq!(of(&nothing), None, "{nothing}");
        }
    }

    #[test]
    fn what_is_no_notification_is_told_apart_from_an_empty_one() {
        assert_eq!(read(br#"{"value":[]}"#), Some(Vec::new()));
        for nothing in [&b""[..], b"{", b"[]", b"{}", br#"{"value":{}}"#, b"\xff"] {
            assert_eq!(read(nothing), None);
        }
    }
}
