//! The world as a person would describe it, without ids, times and change keys: two runs ended alike when these are
//! equal. The invariant: nothing in it depends on how often or in what order calls were tried.

use serde_json::{Map, Value, json};

use super::message::{Address, Message};
use super::state::GraphState;
use super::store::{Event, Mailbox};

impl GraphState {
    /// All mailboxes that hold anything, what left them, and what attendees were told.
    pub fn world(&self) -> Value {
        let mut mailboxes = Map::new();
        for mailbox in self.mailboxes.values() {
            let shown = mailbox_world(mailbox);
            if shown.as_object().is_some_and(|map| !map.is_empty()) {
                mailboxes.insert(mailbox.address.clone(), shown);
            }
        }
        let sent = sorted(self.sink.iter().map(|mail| {
            json!({"from": mail.from, "to": mail.to, "cc": mail.cc, "bcc": mail.bcc,
            "subject": mail.subject, "content": mail.content, "attachments": mail.attachments})
        }));
        let told = sorted(self.invitations.iter().map(|one| {
            json!({"kind": one.kind, "subject": one.subject, "to": one.to,
            "start": one.start, "end": one.end, "comment": one.comment})
        }));
        json!({"mailboxes": mailboxes, "sent": sent, "invitations": told})
    }
}

fn sorted(values: impl Iterator<Item = Value>) -> Value {
    let mut all: Vec<Value> = values.collect();
    all.sort_by_key(Value::to_string);
    Value::Array(all)
}

fn mailbox_world(mailbox: &Mailbox) -> Value {
    let mut shown = Map::new();
    for folder in mailbox.folders.values().filter(|folder| !folder.items.is_empty() && !folder.deleted) {
        let messages = folder.items.iter().filter_map(|(_, key)| mailbox.messages.get(key));
        shown.insert(folder.name.clone(), sorted(messages.map(message_world)));
    }
    let events: Vec<&Event> = mailbox.events.values().filter(|event| !event.deleted).collect();
    if !events.is_empty() {
        shown.insert("events".into(), sorted(events.into_iter().map(event_world)));
    }
    Value::Object(shown)
}

fn message_world(message: &Message) -> Value {
    let list =
        |addresses: &[Address]| addresses.iter().map(|one| one.address.to_lowercase()).collect::<Vec<_>>();
    let mut marks = message.extended.clone();
    marks.sort();
    json!({
        "subject": message.subject, "content": message.content.as_ref(), "html": message.html,
        "from": list(message.from.as_slice()), "to": list(&message.to), "cc": list(&message.cc), "bcc": list(&message.bcc),
        "draft": message.draft, "read": message.read, "importance": message.importance, "categories": message.categories,
        "marks": marks, "attachments": message.attachments.iter().map(|one| json!([one.name, one.size()])).collect::<Value>(),
    })
}

fn event_world(event: &Event) -> Value {
    // The join link is made from a number of the mailbox, so it stands for itself only.
    let mut props = event.props.clone();
    let link =
        props.remove("onlineMeeting").and_then(|meeting| meeting["joinUrl"].as_str().map(str::to_owned));
    if let (Some(link), Some(body)) = (link, props.get_mut("body"))
        && let Some(content) = body["content"].as_str()
    {
        body["content"] = content.replace(&link, "join-link").into();
    }
    json!({"start": event.start, "end": event.end, "zone": event.start_zone, "cancelled": event.cancelled, "properties": props})
}
