//! What an administrator would find at Microsoft, without what differs between two runs of the same story.
//!
//! The invariant: two worlds in which the same was done once are equal, and a second write of anything shows.

use serde_json::{Map, Value, json};

use super::World;

const TABLES: [&str; 5] = ["account", "contact", "opportunity", "lead", "new_promise"];
/// Who writes what a story changes behind the fleet's back.
const SYSTEM: &str = "system";
const MESSAGE: [&str; 11] = [
    "subject",
    "from",
    "toRecipients",
    "ccRecipients",
    "bccRecipients",
    "body",
    "importance",
    "isRead",
    "isDraft",
    "singleValueExtendedProperties",
    "hasAttachments",
];
const EVENT: [&str; 12] = [
    "subject",
    "start",
    "end",
    "originalStartTimeZone",
    "attendees",
    "body",
    "location",
    "isOnlineMeeting",
    "onlineMeetingProvider",
    "transactionId",
    "reminderMinutesBeforeStart",
    "isReminderOn",
];

#[derive(Clone, PartialEq)]
pub struct Snapshot(pub Value);

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl World {
    pub fn snapshot(&self) -> Snapshot {
        let sim = self.sim();
        let users: Vec<String> = sim.directory().users.iter().map(|user| user.upn.clone()).collect();
        let mut mailboxes = Map::new();
        for user in users {
            let mut graph = sim.graph();
            let mailbox = graph.mailbox(&user);
            let inbox = mailbox.inbox();
            let shown = |folder: Vec<Value>| -> Value {
                let mut shown: Vec<Value> = folder.iter().map(|message| one(message, &inbox)).collect();
                shown.sort_by_cached_key(ToString::to_string);
                shown.into()
            };
            let events: Vec<Value> = mailbox.events().iter().map(|event| only(event, &EVENT)).collect();
            let seen = json!({
                "drafts": shown(mailbox.drafts()), "inbox": shown(inbox.clone()), "sent": shown(mailbox.sent()),
                "events": events, "deleted_events": mailbox.deleted_events().len(),
            });
            mailboxes.insert(user, seen);
        }
        let (sent, mut invitations) = {
            let graph = sim.graph();
            let invitations: Vec<Value> = graph
                .invitations()
                .into_iter()
                .map(|one| json!({"kind": one.kind, "from": one.mailbox, "subject": one.subject, "to": one.to}))
                .collect();
            (graph.sent_mail().len(), invitations)
        };
        invitations.sort_by_cached_key(ToString::to_string);
        Snapshot(json!({
            "subscriptions": sim.subscriptions().as_array().map_or(0, Vec::len),
            "mailboxes": mailboxes, "sent": sent, "invitations": invitations,
            "rows": TABLES.iter().map(|table| (*table, self.rows(table))).collect::<std::collections::BTreeMap<_, _>>(),
            "writes": self.writes(),
        }))
    }

    /// What the fleet wrote to Dataverse: columns that changed, that did not, and that were ignored.
    pub fn writes(&self) -> Vec<Value> {
        let writes = self.sim().dataverse_writes().into_iter().filter(|write| write.user != SYSTEM);
        writes
            .map(|write| {
                json!({
                    "operation": write.operation, "table": write.table, "id": write.id, "sent": write.sent,
                    "changed": write.changed.keys().collect::<Vec<_>>(), "unchanged": write.unchanged,
                    "ignored": write.ignored,
                })
            })
            .collect()
    }

    fn rows(&self, table: &str) -> Vec<Value> {
        let mut rows = self.sim().dataverse_rows(table);
        for row in rows.iter_mut().filter_map(Value::as_object_mut) {
            row.retain(|column, _| !matches!(column.as_str(), "modifiedon" | "createdon" | "versionnumber"));
        }
        rows
    }
}

fn one(message: &Value, inbox: &[Value]) -> Value {
    let mut shown = only(message, &MESSAGE);
    let answers = inbox.iter().find(|other| other["conversationId"] == message["conversationId"]);
    shown["conversation"] = answers.map_or(Value::Null, |other| other["subject"].clone());
    let files = message["attachments"].as_array().into_iter().flatten();
    shown["files"] = files.map(|file| only(file, &["name", "contentType", "size"])).collect();
    shown
}

fn only(value: &Value, names: &[&str]) -> Value {
    names.iter().map(|name| ((*name).to_owned(), value[*name].clone())).collect::<Map<_, _>>().into()
}
