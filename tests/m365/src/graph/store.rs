//! What the mailboxes hold. Every change goes through [`Mailbox`], which keeps three things in step with it: the index
//! of each folder by time of arrival, the folder's change log (what delta reads), and the queue of changes that
//! subscriptions are told of.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::ids::{self, ItemId, Kind};
use super::message::Message;

/// Well-known folder names and what Outlook calls them
/// (<https://learn.microsoft.com/graph/api/resources/mailfolder>): name, display name, parent, hidden.
const WELL_KNOWN: &[(&str, &str, Option<&str>, bool)] = &[
    ("msgfolderroot", "Top of Information Store", None, false),
    ("inbox", "Inbox", Some("msgfolderroot"), false),
    ("drafts", "Drafts", Some("msgfolderroot"), false),
    ("sentitems", "Sent Items", Some("msgfolderroot"), false),
    ("deleteditems", "Deleted Items", Some("msgfolderroot"), false),
    ("junkemail", "Junk Email", Some("msgfolderroot"), false),
    ("archive", "Archive", Some("msgfolderroot"), false),
    ("outbox", "Outbox", Some("msgfolderroot"), false),
    ("conversationhistory", "Conversation History", Some("msgfolderroot"), false),
    ("clutter", "Clutter", Some("msgfolderroot"), true),
    ("syncissues", "Sync Issues", Some("msgfolderroot"), true),
    ("conflicts", "Conflicts", Some("syncissues"), true),
    ("localfailures", "Local Failures", Some("syncissues"), true),
    ("serverfailures", "Server Failures", Some("syncissues"), true),
    ("scheduled", "Scheduled", Some("msgfolderroot"), true),
    ("recoverableitemsdeletions", "Deletions", None, true),
    ("searchfolders", "Finder", None, true),
];

#[derive(Debug, Clone)]
pub(crate) struct Folder {
    pub(crate) key: u64,
    pub(crate) name: String,
    pub(crate) well_known: Option<&'static str>,
    pub(crate) parent: Option<u64>,
    pub(crate) hidden: bool,
    /// A search folder's filter: it holds nothing of its own.
    pub(crate) search: Option<SearchFolder>,
    /// Messages by arrival.
    pub(crate) items: BTreeSet<(DateTime<Utc>, u64)>,
    /// The newest entry of a message counts.
    pub(crate) log: Vec<Logged>,
    pub(crate) change: u64,
    pub(crate) deleted: bool,
}

/// One line of a folder's change log. `stay` is the one the message had here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Logged {
    pub(crate) change: u64,
    pub(crate) key: u64,
    pub(crate) stay: u32,
    pub(crate) happened: Happened,
}

#[derive(Debug, Clone)]
pub(crate) struct SearchFolder {
    pub(crate) sources: Vec<u64>,
    pub(crate) nested: bool,
    pub(crate) filter: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Happened {
    Created,
    Updated,
    /// Deleted, or moved away: the folder cannot tell which.
    Removed,
}

/// A calendar event: its writable properties as they were sent, the rest computed when it is shown.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) key: u64,
    pub(crate) calendar: u64,
    pub(crate) stay: u32,
    pub(crate) change: u64,
    pub(crate) created: DateTime<Utc>,
    pub(crate) modified: DateTime<Utc>,
    pub(crate) start: DateTime<Utc>,
    pub(crate) end: DateTime<Utc>,
    pub(crate) start_zone: String,
    pub(crate) end_zone: String,
    pub(crate) props: Map<String, Value>,
    pub(crate) extended: Vec<(String, String)>,
    pub(crate) attachments: Vec<super::message::Attachment>,
    pub(crate) organizer: super::message::Address,
    pub(crate) organised_here: bool,
    pub(crate) uid: String,
    pub(crate) cancelled: bool,
    pub(crate) deleted: bool,
    /// When the join link becomes visible.
    pub(crate) join_at: Option<DateTime<Utc>>,
    /// What was sent at creation, to tell a replay from a reuse of a transaction id.
    pub(crate) sent: String,
}

#[derive(Debug, Clone)]
pub(crate) struct Calendar {
    pub(crate) key: u64,
    pub(crate) name: String,
    pub(crate) default: bool,
}

/// A contact: its writable properties as they were sent.
#[derive(Debug, Clone)]
pub(crate) struct Contact {
    pub(crate) change: u64,
    pub(crate) created: DateTime<Utc>,
    pub(crate) modified: DateTime<Utc>,
    pub(crate) props: Map<String, Value>,
}

/// A change that subscriptions may want to hear of.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) mailbox: String,
    pub(crate) folder: Option<u64>,
    pub(crate) item: u64,
    pub(crate) kind: Kind,
    pub(crate) stay: u32,
    pub(crate) happened: Happened,
}

#[derive(Debug)]
pub(crate) struct Mailbox {
    /// Lower-case primary address.
    pub(crate) address: String,
    pub(crate) display_name: String,
    pub(crate) guid: Uuid,
    pub(crate) folders: BTreeMap<u64, Folder>,
    pub(crate) messages: HashMap<u64, Message>,
    pub(crate) calendars: Vec<Calendar>,
    pub(crate) events: BTreeMap<u64, Event>,
    pub(crate) contacts: BTreeMap<u64, Contact>,
    pub(crate) people: Vec<Value>,
    pub(crate) changes: Vec<Change>,
    next: u64,
    change: u64,
}

impl Mailbox {
    pub(crate) fn new(address: &str) -> Self {
        let address = address.to_lowercase();
        let mut mailbox = Self {
            guid: Uuid::new_v5(&Uuid::NAMESPACE_OID, address.as_bytes()),
            display_name: address.clone(),
            address,
            folders: BTreeMap::new(),
            messages: HashMap::new(),
            calendars: Vec::new(),
            events: BTreeMap::new(),
            contacts: BTreeMap::new(),
            people: Vec::new(),
            changes: Vec::new(),
            next: 1,
            change: 1,
        };
        for (name, display, parent, hidden) in WELL_KNOWN {
            let parent = parent.and_then(|parent| mailbox.well_known(parent));
            let key = mailbox.add_folder(display, parent, *hidden, None);
            if let Some(folder) = mailbox.folders.get_mut(&key) {
                folder.well_known = Some(name);
            }
        }
        let key = mailbox.key();
        mailbox.calendars.push(Calendar { key, name: "Calendar".into(), default: true });
        mailbox
    }

    pub(crate) fn key(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn change(&mut self) -> u64 {
        self.change += 1;
        self.change
    }

    pub(crate) fn last_change(&self) -> u64 {
        self.change
    }

    pub(crate) fn well_known(&self, name: &str) -> Option<u64> {
        self.folders.values().find(|f| f.well_known == Some(name) && !f.deleted).map(|folder| folder.key)
    }

    /// A well-known folder that every mailbox has.
    pub(crate) fn folder(&self, name: &str) -> u64 {
        self.well_known(name).unwrap_or_default()
    }

    pub(crate) fn add_folder(
        &mut self,
        name: &str,
        parent: Option<u64>,
        hidden: bool,
        search: Option<SearchFolder>,
    ) -> u64 {
        let (key, change) = (self.key(), self.change());
        let folder = Folder {
            key,
            name: name.to_owned(),
            well_known: None,
            parent,
            hidden,
            search,
            items: BTreeSet::new(),
            log: Vec::new(),
            change,
            deleted: false,
        };
        self.folders.insert(key, folder);
        key
    }

    fn note(&mut self, folder: u64, item: u64, stay: u32, happened: Happened) -> u64 {
        let change = self.change();
        if let Some(folder) = self.folders.get_mut(&folder) {
            folder.log.push(Logged { change, key: item, stay, happened });
        }
        self.changes.push(Change {
            mailbox: self.address.clone(),
            folder: Some(folder),
            item,
            kind: Kind::Message,
            stay,
            happened,
        });
        change
    }

    /// Puts a new message into a folder and gives it its key.
    pub(crate) fn insert(&mut self, folder: u64, mut message: Message) -> u64 {
        let key = self.key();
        message.key = key;
        message.folder = folder;
        message.stay = 1;
        message.received = whole(message.received);
        message.change = self.note(folder, key, 1, Happened::Created);
        if message.conversation.is_empty() {
            message.conversation = ids::conversation(self.guid, key).into();
        }
        if let Some(folder) = self.folders.get_mut(&folder) {
            folder.items.insert((message.received, key));
        }
        self.messages.insert(key, message);
        key
    }

    /// Changes a message in place; the index follows when the time of arrival changes.
    pub(crate) fn edit<T>(
        &mut self,
        key: u64,
        now: DateTime<Utc>,
        edit: impl FnOnce(&mut Message) -> T,
    ) -> Option<T> {
        let (folder, stay) = self.messages.get(&key).map(|message| (message.folder, message.stay))?;
        let change = self.note(folder, key, stay, Happened::Updated);
        let message = self.messages.get_mut(&key)?;
        let before = message.received;
        let result = edit(message);
        message.received = whole(message.received);
        message.modified = now;
        message.change = change;
        let after = message.received;
        if before != after
            && let Some(folder) = self.folders.get_mut(&folder)
        {
            folder.items.remove(&(before, key));
            folder.items.insert((after, key));
        }
        Some(result)
    }

    /// Moves a message: the default id changes, the immutable one does not
    /// (<https://learn.microsoft.com/graph/outlook-immutable-id>).
    pub(crate) fn relocate(&mut self, key: u64, to: u64, now: DateTime<Utc>) {
        let Some((from, stay, received)) = self.messages.get(&key).map(|m| (m.folder, m.stay, m.received))
        else {
            return;
        };
        if from == to {
            return;
        }
        self.note(from, key, stay, Happened::Removed);
        let change = self.note(to, key, stay + 1, Happened::Created);
        if let Some(folder) = self.folders.get_mut(&from) {
            folder.items.remove(&(received, key));
        }
        if let Some(folder) = self.folders.get_mut(&to) {
            folder.items.insert((received, key));
        }
        if let Some(message) = self.messages.get_mut(&key) {
            message.folder = to;
            message.stay = stay + 1;
            message.change = change;
            message.modified = now;
        }
    }

    /// Removes a message for good.
    pub(crate) fn remove(&mut self, key: u64) -> Option<Message> {
        let message = self.messages.remove(&key)?;
        self.note(message.folder, key, message.stay, Happened::Removed);
        if let Some(folder) = self.folders.get_mut(&message.folder) {
            folder.items.remove(&(message.received, key));
        }
        Some(message)
    }

    pub(crate) fn note_event(&mut self, key: u64, stay: u32, happened: Happened) -> u64 {
        self.note_item(Kind::Event, key, stay, happened)
    }

    pub(crate) fn note_contact(&mut self, key: u64, happened: Happened) -> u64 {
        self.note_item(Kind::Contact, key, 1, happened)
    }

    fn note_item(&mut self, kind: Kind, item: u64, stay: u32, happened: Happened) -> u64 {
        let change = self.change();
        let mailbox = self.address.clone();
        self.changes.push(Change { mailbox, folder: None, item, kind, stay, happened });
        change
    }

    pub(crate) fn default_calendar(&self) -> u64 {
        self.calendars.iter().find(|calendar| calendar.default).map_or(0, |calendar| calendar.key)
    }

    pub(crate) fn id(&self, kind: Kind, key: u64, stay: Option<u32>) -> String {
        ItemId { mailbox: self.guid, kind, key, stay }.text()
    }

    /// Folder ids do not change and take no immutable form.
    pub(crate) fn folder_id(&self, key: u64) -> String {
        self.id(Kind::Folder, key, Some(0))
    }

    pub(crate) fn calendar_id(&self, key: u64) -> String {
        self.id(Kind::Calendar, key, Some(0))
    }

    pub(crate) fn change_key(&self, change: u64) -> String {
        ids::change_key(self.guid, change)
    }

    /// Whether a message stands in a folder, or in what a search folder shows.
    pub(crate) fn children(&self, parent: u64) -> impl Iterator<Item = &Folder> {
        self.folders.values().filter(move |folder| folder.parent == Some(parent) && !folder.deleted)
    }
}

/// Arrival is kept in whole seconds, as it is shown: an index finer than its display would break paging by it.
fn whole(at: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp(at.timestamp(), 0).unwrap_or(at)
}
