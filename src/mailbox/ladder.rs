//! What can be done with a mailbox, and how soon its folders are looked at again.
//!
//! The invariant: nothing is called proven that was not seen to work, and no notification ever lengthens a wait.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::store::folder::Folder;

/// A folder that changed this recently is looked at most often.
const HOT: chrono::TimeDelta = chrono::TimeDelta::minutes(10);

/// Can it be done?
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// Nobody tried.
    #[default]
    Unknown,
    /// It was accepted, and has shown no effect yet.
    Unproven,
    Proven,
    Refused,
}

/// One thing that can be done with a mailbox, or not, and why that is believed.
#[derive(
    Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, utoipa::ToSchema,
)]
pub struct Capability {
    pub state: Proof,
    /// A stable code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What Microsoft said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Capability {
    pub fn new(state: Proof, reason: &str) -> Self {
        Self { state, reason: (!reason.is_empty()).then(|| reason.to_owned()), message: None }
    }
}

/// What is known of a mailbox.
#[derive(
    Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, utoipa::ToSchema,
)]
pub struct Capabilities {
    /// Reading Inbox and Sent Items.
    #[serde(default)]
    pub read: Capability,
    /// Writing drafts.
    #[serde(default)]
    pub drafts: Capability,
    /// Sending as the mailbox or on its behalf: only a mail that was sent proves it.
    #[serde(default)]
    pub send: Capability,
    /// Following folders by their changes, instead of listing them.
    #[serde(default)]
    pub delta: Capability,
    /// Being told of changes by Microsoft.
    #[serde(default)]
    pub push: Capability,
    /// Attachments of 3 MB and more.
    #[serde(default)]
    pub big_attachments: Capability,
}

impl Capabilities {
    pub fn read(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    pub fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// What the reason of a rung means, for a person.
pub fn meaning(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "proven" => "notifications told of what polls saw",
        "webhook_unproven" => "Microsoft accepted the subscriptions and has not told of any message yet",
        "webhook_silent" => {
            "Microsoft accepted the subscriptions and tells of nothing, as it does for mailboxes of others \
             (https://learn.microsoft.com/graph/outlook-share-messages-folders); polling sees everything"
        }
        "webhook_unsupported" => {
            "Microsoft refuses subscriptions to a mailbox of others \
             (https://learn.microsoft.com/graph/outlook-share-messages-folders); polling sees everything"
        }
        "webhook_unreachable" => "Microsoft cannot reach http.public_url from the internet over https",
        "no_https" => "http.public_url is not https, so Microsoft would not send notifications to it",
        "push_missed_changes" => {
            "polls saw messages that no notification told of; push is not relied on until it does"
        }
        "not_tried" => "nothing was tried yet",
        reason if reason.starts_with("delta_refused") => {
            "Microsoft does not let the folders be followed by their changes (as in China, or while the mailbox is \
             full: https://learn.microsoft.com/graph/api/message-delta); they are listed by time of arrival"
        }
        "delta_too_large" => {
            "a change of a folder is larger than what is read of one answer; its folder is listed by time of arrival, and \
             tried again once a day"
        }
        _ => return None,
    })
}

/// When a folder that was looked at just now is due again. `chance` is in `0.0..1.0`.
pub fn next_look(folder: &Folder, poll: Duration, now: DateTime<Utc>, chance: f64) -> DateTime<Utc> {
    let quiet = folder.changed_at.map_or(chrono::TimeDelta::MAX, |at| now - at);
    let first = folder.is_well_known("inbox") || folder.is_well_known("sentitems");
    let wait = if quiet < HOT {
        poll / 4
    } else if first {
        poll
    } else {
        // As long as it has been quiet, in part; never more than five polls.
        let part = quiet.to_std().unwrap_or(Duration::MAX) / 20;
        part.clamp(poll, poll * 5)
    };
    now + wait.mul_f64(0.9 + 0.2 * chance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_is_never_further_away_than_five_polls() {
        let now = DateTime::UNIX_EPOCH + chrono::TimeDelta::days(20_000);
        let poll = Duration::from_mins(1);
        for (quiet, name, least, most) in [
            (None, "", 270, 330),
            (Some(0), "", 13, 17),
            (Some(30), "", 80, 100),
            (Some(60 * 24 * 300), "", 270, 330),
            (None, "inbox", 54, 66),
            (Some(5), "inbox", 13, 17),
        ] {
            let folder = Folder {
                changed_at: quiet.map(|minutes| now - chrono::TimeDelta::minutes(minutes)),
                well_known: Some(name.to_owned()),
                ..folder(now)
            };
            for chance in [0.0, 0.5, 0.99] {
                let wait = (next_look(&folder, poll, now, chance) - now).num_seconds();
                assert!((least..=most).contains(&wait), "{quiet:?} {name}: {wait} s");
            }
        }
    }

    fn folder(now: DateTime<Utc>) -> Folder {
        Folder {
            mailbox_id: uuid::Uuid::nil(),
            id: "f".into(),
            parent_id: None,
            name: "f".into(),
            well_known: None,
            hidden: false,
            state: "present".into(),
            rung: "delta".into(),
            link: None,
            link_kind: None,
            link_version: 0,
            sweep: 0,
            sweep_before: None,
            sweep_from: None,
            sweep_floor: None,
            lost_at: None,
            fill_before: None,
            fill_floor: None,
            fill_again: 0,
            doubted_at: None,
            newest: None,
            due_at: None,
            noticed_at: None,
            polled_at: None,
            changed_at: None,
            created_at: now,
            updated_at: now,
        }
    }
}
