//! Whose mailbox a call goes to, and whether this token and this person may: two independent questions. The scope is in
//! the token, the grant is in Exchange; both are needed for another's mailbox
//! (<https://learn.microsoft.com/graph/outlook-share-messages-folders>).

use super::refusal::Refusal;
use crate::Sim;
use crate::auth::Caller;
use crate::directory::{Mailbox, MailboxRight, User};

/// What a handler wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    MailRead,
    MailWrite,
    MailSend,
    CalendarRead,
    CalendarWrite,
    ContactsRead,
    ContactsWrite,
}

impl Need {
    /// Scopes good for one's own mailbox and for another's, from the permission tables of the API pages.
    fn scopes(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Self::MailRead => (
                &["Mail.Read", "Mail.ReadWrite", "Mail.Read.Shared", "Mail.ReadWrite.Shared"],
                &["Mail.Read.Shared", "Mail.ReadWrite.Shared"],
            ),
            Self::MailWrite => (&["Mail.ReadWrite", "Mail.ReadWrite.Shared"], &["Mail.ReadWrite.Shared"]),
            Self::MailSend => (&["Mail.Send", "Mail.Send.Shared"], &["Mail.Send.Shared"]),
            Self::CalendarRead => (
                &[
                    "Calendars.Read",
                    "Calendars.ReadWrite",
                    "Calendars.Read.Shared",
                    "Calendars.ReadWrite.Shared",
                ],
                &["Calendars.Read.Shared", "Calendars.ReadWrite.Shared"],
            ),
            Self::CalendarWrite => {
                (&["Calendars.ReadWrite", "Calendars.ReadWrite.Shared"], &["Calendars.ReadWrite.Shared"])
            }
            Self::ContactsRead => (
                &["Contacts.Read", "Contacts.ReadWrite", "Contacts.Read.Shared", "Contacts.ReadWrite.Shared"],
                &["Contacts.Read.Shared", "Contacts.ReadWrite.Shared"],
            ),
            Self::ContactsWrite => {
                (&["Contacts.ReadWrite", "Contacts.ReadWrite.Shared"], &["Contacts.ReadWrite.Shared"])
            }
        }
    }
}

/// A mailbox the caller has been let into.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) owner: User,
    pub(crate) own: bool,
    pub(crate) right: MailboxRight,
}

impl Entry {
    /// The address the mailbox is kept under.
    pub(crate) fn address(&self) -> String {
        address(&self.owner)
    }
}

pub(crate) fn address(user: &User) -> String {
    user.mail.as_deref().unwrap_or(&user.upn).to_lowercase()
}

pub(crate) fn owner(sim: &Sim, caller: &Caller, name: Option<&str>) -> Result<User, Refusal> {
    let directory = sim.directory();
    let found = match name {
        None => directory.by_oid(&caller.oid),
        Some(name) => directory.find_in(&caller.tenant, name),
    };
    found.cloned().ok_or_else(|| {
        // E lists it beside `ErrorNonExistentMailbox` for an address no one has.
        Refusal::new(
            404,
            "ErrorInvalidUser",
            format!("The requested user '{}' is invalid.", name.unwrap_or(&caller.oid)),
        )
    })
}

pub(crate) fn enter(sim: &Sim, caller: &Caller, name: Option<&str>, need: Need) -> Result<Entry, Refusal> {
    let (own_scopes, shared_scopes) = need.scopes();
    // Without any scope of the family the answer does not depend on the mailbox.
    if !caller.has(own_scopes) {
        return Err(Refusal::denied());
    }
    let owner = owner(sim, caller, name)?;
    let own = owner.oid.eq_ignore_ascii_case(&caller.oid);
    if !own && !caller.has(shared_scopes) {
        // Full Access alone is not enough (microsoftgraph/microsoft-graph-explorer-v4#3786).
        return Err(Refusal::denied());
    }
    match owner.mailbox {
        Mailbox::Enabled => {}
        Mailbox::OnPremises => {
            return Err(Refusal::new(
                404,
                "MailboxNotEnabledForRESTAPI",
                "The mailbox is either inactive, soft-deleted, or is hosted on-premise.",
            ));
        }
        Mailbox::None => {
            return Err(Refusal::new(
                404,
                "ErrorNonExistentMailbox",
                "The SMTP address has no mailbox associated with it.",
            ));
        }
    }
    let right = sim.directory().right(&owner.oid, &caller.oid);
    // A calendar can be shared by itself; its module looks.
    let calendar = matches!(need, Need::CalendarRead | Need::CalendarWrite);
    // With only a right to send, one may send: from one's own mailbox. This path needs Full Access as well.
    if !right.full_access && !calendar {
        // Exchange hides what may not be seen (microsoftgraph/microsoft-graph-docs#11233).
        return Err(Refusal::new(
            404,
            "ErrorItemNotFound",
            "The specified object was not found in the store., Default folder Root not found.",
        ));
    }
    Ok(Entry { owner, own, right })
}
