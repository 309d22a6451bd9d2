//! WHAT is done: the jobs.
//!
//! The invariant: a job is one file and one line of [`JOBS`]; nothing else knows it by name.

pub mod connection_disconnect;
pub mod content;
pub mod crm_update;
pub mod email_draft;
pub mod email_send;
pub mod event_create;
pub mod mailbox;

use followthrough::registry::{Entry, Registry};

/// Every kind of job there is.
pub const JOBS: Registry = Registry::new(&[
    Entry::of::<email_draft::EmailDraft>(),
    Entry::of::<email_send::EmailSend>(),
    Entry::of::<event_create::EventCreate>(),
    Entry::of::<crm_update::CrmUpdate>(),
    Entry::of::<mailbox::connect::MailboxConnect>(),
    Entry::of::<mailbox::sync::MailboxSync>(),
    Entry::of::<mailbox::backfill::MailboxBackfill>(),
    Entry::of::<mailbox::disconnect::MailboxDisconnect>(),
    Entry::of::<connection_disconnect::ConnectionDisconnect>(),
]);
