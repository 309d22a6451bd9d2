//! All of Graph's state: the mailboxes, what left them, and the switches that choose between behaviours that are not
//! documented. Mail on its way is settled by the clock whenever anyone looks, so a frozen clock freezes transport too.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::access;
use super::delta::DeltaStates;
use super::message::Address;
use super::store::{Change, Mailbox};
use super::subscriptions::Subscriptions;
use super::uploads::Uploads;
use crate::directory::User;

/// What a delegated subscription on another's mailbox gets (pains R1: both happen in the field).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SharedSubscribe {
    /// 403, as documented.
    #[default]
    Refuse,
    /// 201, renewals succeed, and nothing ever arrives.
    AcceptButSilent,
    /// It works. Some older anecdotes say so; nothing documented does.
    Works,
}

/// Behaviours that are UNVERIFIED or differ in the field. The defaults are what the fact sheets recommend to assume.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is one independent lever of the control page")]
pub struct Switches {
    /// `createReply` marks the original read, as seen in inbox-zero#1086.
    pub reply_marks_read: bool,
    /// `createReply` honours `message.singleValueExtendedProperties`. UNVERIFIED, so: no.
    pub reply_keeps_extended: bool,
    /// `comment` shows up in the reply draft. A documented known issue says it does not.
    pub reply_keeps_comment: bool,
    /// What transport takes gets another change key at once. UNVERIFIED, but to mark a message as submitted
    /// is to change it.
    pub submit_changes_key: bool,
    /// From `send` to Sent Items.
    pub send_delay_ms: u64,
    /// The marker property survives Drafts → Sent Items. UNVERIFIED in the documents.
    pub extended_survive_send: bool,
    /// The immutable id survives sending, as documented; some in the field saw it change.
    pub immutable_id_survives_send: bool,
    /// Mail to mailboxes of the directory is put into their Inbox.
    pub deliver: bool,
    /// The same `transactionId` with other content makes a second event. UNVERIFIED, so: the old one is given back.
    pub transaction_reuse_creates: bool,
    /// `onlineMeeting` is null for this long after the 201.
    pub join_url_delay_ms: u64,
    /// `$search` does not see messages younger than this.
    pub search_lag_ms: u64,
    /// PATCH of subject, body and recipients of a message that is no draft: refused from 31 Dec 2026 without
    /// `Mail-Advanced.ReadWrite` (pains F5).
    pub guard_sensitive: bool,
    /// `createUploadSession` in another's mailbox: 403 (docs known issue; current state UNVERIFIED).
    pub shared_upload: bool,
    pub shared_subscribe: SharedSubscribe,
    /// A filtered delta round ends here without a word (<https://learn.microsoft.com/graph/delta-query-messages>).
    pub delta_cap: usize,
    /// How many generations of a folder's delta state are kept; older links are `SyncStateNotFound`.
    pub delta_generations: u64,
    /// Every n-th delta page is empty but has a next link; 0 is never.
    pub delta_empty_every: u64,
    /// Every n-th delta page repeats the item before it; 0 is never.
    pub delta_repeat_every: u64,
    /// Every n-th page of delta or lists answers `SyncStateNotFound` when it is delta's; 0 is never.
    pub delta_expire_every: u64,
    /// Every n-th delta or list page is cut to half; 0 is never.
    pub short_page_every: u64,
    /// Every n-th list page gives its own link again instead of the next; 0 is never.
    pub repeat_link_every: u64,
    /// Next links point to another host: no client may follow with its token.
    pub foreign_links: bool,
    /// Longest life of a subscription (<https://learn.microsoft.com/graph/api/resources/subscription>).
    pub subscription_minutes: i64,
    /// After this long a subscription's token has lapsed and its notifications wait for another
    /// (<https://learn.microsoft.com/graph/change-notifications-delivery-webhooks>).
    pub subscription_token_minutes: i64,
    pub notify_delay_ms: u64,
    /// Notifications are dropped with this percentage.
    pub notify_drop_percent: u8,
    /// How often each notification is delivered.
    pub notify_times: u32,
    /// Nothing is delivered although subscriptions look alive (pains R5).
    pub notify_silent: bool,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            reply_marks_read: true,
            reply_keeps_extended: false,
            reply_keeps_comment: false,
            submit_changes_key: true,
            send_delay_ms: 0,
            extended_survive_send: true,
            immutable_id_survives_send: true,
            deliver: true,
            transaction_reuse_creates: false,
            join_url_delay_ms: 0,
            search_lag_ms: 0,
            guard_sensitive: true,
            shared_upload: false,
            shared_subscribe: SharedSubscribe::Refuse,
            delta_cap: 5_000,
            delta_generations: 8,
            delta_empty_every: 0,
            delta_repeat_every: 0,
            delta_expire_every: 0,
            short_page_every: 0,
            repeat_link_every: 0,
            foreign_links: false,
            subscription_minutes: 10_080,
            subscription_token_minutes: 60,
            notify_delay_ms: 0,
            notify_drop_percent: 0,
            notify_times: 1,
            notify_silent: false,
        }
    }
}

/// A mail that left: what the world outside saw.
#[derive(Debug, Clone, Serialize)]
pub struct SentMail {
    pub mailbox: String,
    pub from: String,
    pub sender: String,
    pub to: Vec<String>,
    pub cc: Vec<String>,
    pub bcc: Vec<String>,
    pub subject: String,
    pub content_type: &'static str,
    pub content: String,
    pub internet_message_id: String,
    pub conversation_id: String,
    pub attachments: Vec<String>,
    pub extended: Vec<(String, String)>,
    pub at: DateTime<Utc>,
    pub saved: bool,
}

/// A meeting request, update or cancellation that attendees got.
#[derive(Debug, Clone, Serialize)]
pub struct Invitation {
    /// `request`, `update`, `cancellation` or `forward`.
    pub kind: &'static str,
    pub mailbox: String,
    pub event_id: String,
    pub ical_uid: String,
    pub subject: String,
    pub start: DateTime<Utc>,
    pub end: DateTime<Utc>,
    pub to: Vec<String>,
    pub comment: Option<String>,
    pub at: DateTime<Utc>,
}

/// A message that transport has taken.
#[derive(Debug, Clone)]
pub(crate) struct Pending {
    pub(crate) due: DateTime<Utc>,
    pub(crate) mailbox: String,
    pub(crate) key: u64,
    pub(crate) save: bool,
    pub(crate) sender: Address,
    pub(crate) from: Address,
}

#[derive(Default)]
pub struct GraphState {
    pub(crate) mailboxes: HashMap<String, Mailbox>,
    pub switches: Switches,
    pub(crate) sink: Vec<SentMail>,
    pub(crate) invitations: Vec<Invitation>,
    pub(crate) pending: Vec<Pending>,
    pub(crate) subscriptions: Subscriptions,
    pub(crate) uploads: Uploads,
    pub(crate) delta: DeltaStates,
    /// The clock when anyone last looked.
    pub(crate) seen: Option<DateTime<Utc>>,
    /// (owner, reader's oid, may write): calendars shared or delegated in Outlook.
    pub(crate) calendar_shares: Vec<(String, String, bool)>,
    /// Pages served so far, for the switches that count.
    pub(crate) pages: u64,
    /// Addresses of mailboxes that the directory knows, kept up as calls come in: mail to them arrives.
    pub(crate) local: HashMap<String, String>,
    /// Other addresses a mailbox goes by.
    pub(crate) aliases: HashMap<String, String>,
}

impl GraphState {
    /// The mailbox of a user of the directory, made at first sight.
    pub(crate) fn ensure(&mut self, user: &User) -> &mut Mailbox {
        let address = access::address(user);
        let upn = user.upn.to_lowercase();
        if upn != address {
            self.aliases.insert(upn, address.clone());
        }
        let mailbox = self.open(&address);
        mailbox.display_name.clone_from(&user.display_name);
        mailbox
    }

    /// The mailbox of an address, made at first sight.
    pub(crate) fn open(&mut self, address: &str) -> &mut Mailbox {
        let mut address = address.to_lowercase();
        if let Some(primary) = self.aliases.get(&address) {
            address.clone_from(primary);
        }
        self.mailboxes.entry(address.clone()).or_insert_with(|| Mailbox::new(&address))
    }

    /// Lets transport do what is due.
    pub fn settle(&mut self, now: DateTime<Utc>) {
        self.seen = Some(now);
        let (due, later) =
            std::mem::take(&mut self.pending).into_iter().partition(|pending| pending.due <= now);
        self.pending = later;
        let due: Vec<Pending> = due;
        for pending in due {
            super::send::transport(self, &pending);
        }
    }

    pub(crate) fn send_delay(&self) -> TimeDelta {
        TimeDelta::milliseconds(i64::try_from(self.switches.send_delay_ms).unwrap_or(i64::MAX))
    }

    /// All changes since the last call, for the notifier.
    pub(crate) fn take_changes(&mut self) -> Vec<Change> {
        self.mailboxes.values_mut().flat_map(|mailbox| std::mem::take(&mut mailbox.changes)).collect()
    }
}
