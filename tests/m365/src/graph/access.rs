//! Whose mailbox a call goes to, and whether this token and this person may: two independent questions. The scope is in
//! the token, the grant is in Exchange; both are needed for another's mailbox
//! (<https://learn.microsoft.com/graph/outlook-share-messages-folders>).

use serde_json::Value;

use super::call::Call;
use super::odata;
use super::refusal::{Content, Refusal, Reply};
use crate::Sim;
use crate::auth::Caller;
use crate::directory::{Mailbox, MailboxRight, User};

/// What a handler wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// What `Mail.ReadBasic` is enough for.
    MailBasic,
    MailRead,
    MailWrite,
    MailSend,
    /// What `Calendars.ReadBasic` is enough for.
    CalendarBasic,
    CalendarRead,
    CalendarWrite,
    ContactsRead,
    ContactsWrite,
    TranslateIds,
}

impl Need {
    /// Scopes good for one's own mailbox and for another's, from the permission tables of the API pages.
    fn scopes(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Self::MailBasic => (
                &[
                    "Mail.ReadBasic",
                    "Mail.ReadBasic.Shared",
                    "Mail.Read",
                    "Mail.ReadWrite",
                    "Mail.Read.Shared",
                    "Mail.ReadWrite.Shared",
                ],
                &["Mail.ReadBasic.Shared", "Mail.Read.Shared", "Mail.ReadWrite.Shared"],
            ),
            Self::CalendarBasic => (
                &[
                    "Calendars.ReadBasic",
                    "Calendars.Read",
                    "Calendars.ReadWrite",
                    "Calendars.Read.Shared",
                    "Calendars.ReadWrite.Shared",
                ],
                &["Calendars.Read.Shared", "Calendars.ReadWrite.Shared"],
            ),
            // No mail is read: the least is what signing in gives.
            Self::TranslateIds => (
                &[
                    "User.Read",
                    "User.ReadWrite",
                    "Mail.ReadBasic",
                    "Mail.Read",
                    "Mail.ReadWrite",
                    "Mail.Read.Shared",
                    "Mail.ReadWrite.Shared",
                ],
                &["Mail.Read.Shared", "Mail.ReadWrite.Shared"],
            ),
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
    /// The token reads only what the basic scope of the family shows.
    pub(crate) basic: bool,
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
    let calendar = matches!(need, Need::CalendarBasic | Need::CalendarRead | Need::CalendarWrite);
    // With only a right to send, one may send: from one's own mailbox. This path needs Full Access as well.
    if !right.full_access && !calendar {
        // Exchange hides what may not be seen (microsoftgraph/microsoft-graph-docs#11233).
        return Err(Refusal::new(
            404,
            "ErrorItemNotFound",
            "The specified object was not found in the store., Default folder Root not found.",
        ));
    }
    let whole = match need {
        Need::MailBasic => Need::MailRead,
        Need::CalendarBasic => Need::CalendarRead,
        need => need,
    };
    let (own_scopes, shared_scopes) = whole.scopes();
    let basic = !caller.has(if own { own_scopes } else { shared_scopes });
    Ok(Entry { owner, own, right, basic })
}

/// What the basic scopes do not show
/// (<https://learn.microsoft.com/graph/permissions-reference#mailreadbasic>): of a message, or of an event.
const HIDDEN: &[&str] = &[
    "body",
    "bodyPreview",
    "uniqueBody",
    "attachments",
    "extensions",
    "singleValueExtendedProperties",
    "multiValueExtendedProperties",
];

/// A basic token may not ask for what is hidden either, and does "not include permission to search".
pub(crate) fn check_basic(call: &Call) -> Result<(), Refusal> {
    let hidden = |name: &str| HIDDEN.iter().any(|hidden| hidden.eq_ignore_ascii_case(name));
    let mut named = Vec::new();
    if let Some(Ok(filter)) = call.query("filter").map(odata::parse_filter) {
        odata::properties(&filter, &mut named);
    }
    let filtered = named.iter().any(|path| path.split('/').next().is_some_and(hidden));
    let expanded =
        call.query("expand").is_some_and(|names| names.split([',', '(']).any(|name| hidden(name.trim())));
    if call.query("search").is_some() || filtered || expanded { Err(Refusal::denied()) } else { Ok(()) }
}

/// Takes out of an answer what the basic scopes do not show.
pub(crate) fn only_basic(mut reply: Reply) -> Reply {
    if let Content::Json(body) = &mut reply.body {
        let strip = |item: &mut Value| {
            if let Some(map) = item.as_object_mut() {
                map.retain(|name, _| !HIDDEN.contains(&name.as_str()));
            }
        };
        match body.get_mut("value").and_then(Value::as_array_mut) {
            Some(items) => items.iter_mut().for_each(strip),
            None => strip(body),
        }
    }
    reply
}
