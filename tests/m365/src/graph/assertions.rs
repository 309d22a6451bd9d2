//! What tests in the same process see and do: `sim.graph().mailbox("ada@acme.example").drafts()`. Everything is shown as
//! Graph would show it, with immutable ids and with what Graph hides (markers, headers) laid open.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::attachments;
use super::body::stored_html;
use super::event_view::EventView;
use super::ids::{ItemId, Kind};
use super::list;
use super::mail::{Scope, put};
use super::message::{self, Address, Attachment, AttachmentContent, Message, View};
use super::state::{GraphState, Invitation, SentMail};
use super::store::{Event, Mailbox};
use super::subscriptions;
use super::timezones::Zone;
use crate::Sim;

/// A mail that comes in from outside.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NewMessage {
    /// `address` or `Name <address>`.
    pub from: String,
    /// The mailbox itself when empty.
    pub to: Vec<String>,
    pub cc: Vec<String>,
    pub reply_to: Vec<String>,
    pub subject: String,
    pub html: Option<String>,
    pub text: Option<String>,
    pub received: Option<DateTime<Utc>>,
    pub read: bool,
    /// A person's own, not sent yet; in Drafts when no folder is named.
    pub draft: bool,
    /// A folder's well-known or display name; the Inbox when absent.
    pub folder: Option<String>,
    pub internet_message_id: Option<String>,
    /// The internet message id of the mail this one answers: it joins that conversation.
    pub in_reply_to: Option<String>,
    pub headers: Vec<(String, String)>,
    /// (name, content type, text)
    pub attachments: Vec<(String, String, String)>,
}

impl NewMessage {
    pub fn new(from: &str, subject: &str, html: &str) -> Self {
        Self { from: from.into(), subject: subject.into(), html: Some(html.into()), ..Self::default() }
    }

    pub fn text(from: &str, subject: &str, text: &str) -> Self {
        Self { from: from.into(), subject: subject.into(), text: Some(text.into()), ..Self::default() }
    }
}

fn parse(text: &str) -> Address {
    match text.split_once('<') {
        Some((name, rest)) => Address::new(name.trim(), rest.trim_end_matches('>').trim()),
        None => Address::new(text.trim(), text.trim()),
    }
}

/// One mailbox in the hands of a test.
pub struct MailboxRef<'a> {
    mailbox: &'a mut Mailbox,
    now: DateTime<Utc>,
}

impl GraphState {
    /// The mailbox of an address; it is made when no call has touched it yet.
    pub fn mailbox(&mut self, address: &str) -> MailboxRef<'_> {
        let now = self.seen.unwrap_or_else(Utc::now);
        MailboxRef { mailbox: self.open(address), now }
    }

    /// Every mail that left, oldest first.
    pub fn sent_mail(&self) -> Vec<SentMail> {
        self.sink.clone()
    }

    /// Every invitation, update and cancellation that attendees got, oldest first.
    pub fn invitations(&self) -> Vec<Invitation> {
        self.invitations.clone()
    }

    /// Shares a calendar as its owner would in Outlook; `reader` is the object id of the other person.
    pub fn share_calendar(&mut self, owner: &str, reader: &str, write: bool) {
        self.calendar_shares.push((owner.to_lowercase(), reader.to_owned(), write));
    }

    /// Forgets the server's delta state of a mailbox: every link answers `SyncStateNotFound` from now on.
    pub fn expire_delta(&mut self, address: &str) {
        self.delta.forget(&address.to_lowercase());
    }
}

impl Sim {
    /// Lets a mail arrive now; gives back its immutable id.
    pub fn deliver(&self, address: &str, mut message: NewMessage) -> String {
        message.received.get_or_insert(self.now());
        self.graph().mailbox(address).deliver(message)
    }

    /// Every subscription, client states included, and how much was delivered to each.
    pub fn subscriptions(&self) -> Value {
        self.graph().subscriptions.report()
    }

    /// One that `user` made earlier, on the messages of a folder of somebody's mailbox, as Graph names both. It is mute.
    /// Gives its id.
    pub fn plant_subscription(&self, app: &str, user: &str, owner: &str, folder: &str, url: &str) -> String {
        subscriptions::plant(self, app, user, owner, folder, url)
    }

    /// Removes a subscription without a word.
    pub fn drop_subscription(&self, id: &str) -> bool {
        self.graph().subscriptions.remove(id)
    }

    /// Sends a lifecycle event: `missed`, `subscriptionRemoved` (which removes as well) or `reauthorizationRequired`.
    pub fn lifecycle_event(&self, id: &str, event: &str) -> bool {
        subscriptions::lifecycle(self, id, event)
    }
}

impl MailboxRef<'_> {
    fn show(&self, message: &Message) -> Value {
        let view = View { mailbox: self.mailbox, message, immutable: true, text: false };
        let mut all: Map<String, Value> = Map::new();
        let hidden = [
            "internetMessageHeaders",
            "singleValueExtendedProperties",
            "multiValueExtendedProperties",
            "uniqueBody",
        ];
        for name in message::DEFAULT.iter().copied().chain(hidden) {
            if let Some(value) = view.property(name) {
                all.insert(name.to_owned(), value);
            }
        }
        let attached = message.attachments.iter().map(|one| attachments::show(&view, one, true)).collect();
        all.insert("attachments".into(), attached);
        Value::Object(all)
    }

    /// The messages of a folder, by well-known or display name, newest first.
    pub fn folder(&self, name: &str) -> Vec<Value> {
        let Some(key) = self.key(name) else { return Vec::new() };
        list::matching(self.mailbox, Scope::Folder(key), None)
            .into_iter()
            .filter_map(|key| self.mailbox.messages.get(&key))
            .map(|message| self.show(message))
            .collect()
    }

    fn key(&self, name: &str) -> Option<u64> {
        self.mailbox.well_known(&name.to_lowercase()).or_else(|| {
            self.mailbox
                .folders
                .values()
                .find(|f| f.name.eq_ignore_ascii_case(name) && !f.deleted)
                .map(|f| f.key)
        })
    }

    pub fn drafts(&self) -> Vec<Value> {
        self.folder("drafts")
    }

    pub fn sent(&self) -> Vec<Value> {
        self.folder("sentitems")
    }

    pub fn inbox(&self) -> Vec<Value> {
        self.folder("inbox")
    }

    /// How many messages there are in all folders.
    pub fn len(&self) -> usize {
        self.mailbox.messages.len()
    }

    pub fn is_empty(&self) -> bool {
        self.mailbox.messages.is_empty()
    }

    /// A message by either id, wherever it is.
    pub fn message(&self, id: &str) -> Option<Value> {
        let id = ItemId::parse(id)?;
        self.mailbox.messages.get(&id.key).map(|message| self.show(message))
    }

    /// Every message's immutable id.
    pub fn message_ids(&self) -> Vec<String> {
        self.mailbox.messages.keys().map(|key| self.mailbox.id(Kind::Message, *key, None)).collect()
    }

    /// Events of all calendars, cancelled and deleted ones left out, in order of creation; times in UTC.
    pub fn events(&self) -> Vec<Value> {
        self.mailbox.events.values().filter(|event| !event.deleted).map(|event| self.event(event)).collect()
    }

    /// Events that were cancelled or deleted.
    pub fn deleted_events(&self) -> Vec<Value> {
        self.mailbox.events.values().filter(|event| event.deleted).map(|event| self.event(event)).collect()
    }

    fn event(&self, event: &Event) -> Value {
        let utc = Zone::utc();
        // Far enough for any join link to be visible.
        let now = self.now + TimeDelta::days(36_500);
        let view = EventView {
            mailbox: self.mailbox,
            event,
            zone: &utc,
            immutable: true,
            text: false,
            now,
            occurrence: None,
        };
        Value::Object(view.all())
    }

    /// Puts a mail into the mailbox; gives back its immutable id.
    pub fn deliver(&mut self, new: NewMessage) -> String {
        let at = new.received.unwrap_or(self.now);
        let mut message = Message::empty(at);
        message.draft = new.draft;
        message.read = new.read;
        message.subject = Some(new.subject);
        match (new.html, new.text) {
            (Some(html), _) => {
                message.html = true;
                message.content = stored_html(&html).into();
            }
            (None, text) => message.content = text.unwrap_or_default().into(),
        }
        let from = parse(&new.from);
        message.sender = Some(from.clone());
        message.from = Some(from);
        message.to = if new.to.is_empty() {
            vec![Address::new(&self.mailbox.display_name, &self.mailbox.address)]
        } else {
            new.to.iter().map(|one| parse(one)).collect()
        };
        message.cc = new.cc.iter().map(|one| parse(one)).collect();
        message.reply_to = new.reply_to.iter().map(|one| parse(one)).collect();
        message.internet_message_id = new.internet_message_id.unwrap_or_default();
        message.headers = new.headers;
        if let Some(ancestor) = new.in_reply_to {
            let known = self.mailbox.messages.values().find(|found| found.internet_message_id == ancestor);
            if let Some(known) = known {
                message.conversation = known.conversation.clone();
            }
            message.headers.push(("In-Reply-To".into(), ancestor));
        }
        for (name, content_type, text) in new.attachments {
            message.attachments.push(Attachment {
                key: 0,
                modified: at,
                name,
                content_type: Some(content_type),
                inline: false,
                content_id: None,
                content_location: None,
                content: AttachmentContent::File(text.into_bytes().into()),
            });
        }
        let folder = match &new.folder {
            None => self.mailbox.folder(if new.draft { "drafts" } else { "inbox" }),
            Some(name) => match self.key(name) {
                Some(key) => key,
                None => self.new_folder(name),
            },
        };
        let key = put(self.mailbox, folder, message);
        self.mailbox.id(Kind::Message, key, None)
    }

    /// Attaches what Graph would take as an attachment; gives back its immutable id.
    ///
    /// # Panics
    /// Where Graph would refuse it.
    pub fn attach(&mut self, id: &str, attachment: &Value) -> String {
        let key = ItemId::parse(id).expect("an id of ours").key;
        let mut message = self.mailbox.messages.get(&key).expect("it is there").clone();
        attachments::add(&mut message, attachment).unwrap_or_else(|refusal| panic!("{}", refusal.message));
        let number = attachments::attach(self.mailbox, key, message, self.now);
        self.mailbox.id(Kind::Attachment, number, None)
    }

    /// Takes an attachment off its message.
    pub fn detach(&mut self, id: &str, attachment: &str) -> bool {
        let (Some(id), Some(attachment)) = (ItemId::parse(id), ItemId::parse(attachment)) else {
            return false;
        };
        let now = self.now;
        let off = |message: &mut Message| message.attachments.retain(|one| one.key != attachment.key);
        self.mailbox.edit(id.key, now, off).is_some()
    }

    fn new_folder(&mut self, name: &str) -> u64 {
        let root = self.mailbox.folder("msgfolderroot");
        self.mailbox.add_folder(name, Some(root), false, None)
    }

    /// A folder beside the Inbox; gives back its id.
    pub fn add_folder(&mut self, name: &str) -> String {
        let key = self.key(name).unwrap_or_else(|| self.new_folder(name));
        self.mailbox.folder_id(key)
    }

    /// Moves a message as a person in Outlook would.
    pub fn move_message(&mut self, id: &str, folder: &str) -> bool {
        let (Some(id), Some(to)) = (ItemId::parse(id), self.key(folder)) else { return false };
        self.mailbox.relocate(id.key, to, self.now);
        true
    }

    /// A move by the desktop client: a new immutable id, the same internet message id (pains R27).
    pub fn desktop_move(&mut self, id: &str, folder: &str) -> Option<String> {
        let (id, to) = (ItemId::parse(id)?, self.key(folder)?);
        let message = self.mailbox.remove(id.key)?;
        // The ids of its attachments are made of its own: `put` makes new ones.
        let key = put(self.mailbox, to, message);
        Some(self.mailbox.id(Kind::Message, key, None))
    }

    /// Deletes a message for good.
    pub fn remove_message(&mut self, id: &str) -> bool {
        ItemId::parse(id).is_some_and(|id| self.mailbox.remove(id.key).is_some())
    }

    /// Changes the read state as a person would.
    pub fn mark_read(&mut self, id: &str, read: bool) -> bool {
        let now = self.now;
        ItemId::parse(id)
            .is_some_and(|id| self.mailbox.edit(id.key, now, |message| message.read = read).is_some())
    }

    /// A person edits a draft: its body is replaced, its change key moves on.
    pub fn edit_draft(&mut self, id: &str, html: &str) -> bool {
        let now = self.now;
        let content = stored_html(html);
        ItemId::parse(id).is_some_and(|id| {
            self.mailbox
                .edit(id.key, now, |message| {
                    message.html = true;
                    message.content = content.into();
                })
                .is_some()
        })
    }

    /// A person edits an event: any writable property, as JSON.
    pub fn edit_event(&mut self, id: &str, property: &str, value: Value) -> bool {
        let Some(id) = ItemId::parse(id) else { return false };
        let Some(stay) = self.mailbox.events.get(&id.key).map(|event| event.stay) else { return false };
        let change = self.mailbox.note_event(id.key, stay, super::store::Happened::Updated);
        let Some(event) = self.mailbox.events.get_mut(&id.key) else { return false };
        event.props.insert(property.to_owned(), value);
        event.change = change;
        event.modified = self.now;
        true
    }

    /// A contact of the person's default folder.
    pub fn add_contact(&mut self, display_name: &str, email: &str) -> String {
        let (key, change) = (self.mailbox.key(), self.mailbox.change());
        let contact = serde_json::json!({"displayName": display_name, "emailAddresses": [{"name": display_name, "address": email}]});
        if let Value::Object(props) = contact {
            let contact = super::store::Contact { change, created: self.now, modified: self.now, props };
            self.mailbox.contacts.insert(key, contact);
        }
        self.mailbox.id(Kind::Contact, key, Some(1))
    }

    /// Someone the person often deals with, for `/me/people`.
    pub fn add_person(&mut self, display_name: &str, email: &str) {
        self.mailbox.people.push(super::people::person(
            display_name,
            email,
            "ImplicitContact",
            self.mailbox.people.len(),
        ));
    }

    /// The folder's id by well-known or display name.
    pub fn folder_id(&self, name: &str) -> Option<String> {
        self.key(name).map(|key| self.mailbox.folder_id(key))
    }
}
