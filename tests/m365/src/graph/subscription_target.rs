//! What a subscription's `resource` names (<https://learn.microsoft.com/graph/outlook-change-notifications-overview>).

use super::access;
use super::call::{self, Call};
use super::folders;
use super::ids::Kind;
use super::odata::{self, Filter};
use super::refusal::Refusal;
use crate::Sim;
use crate::directory::User;

pub(crate) struct Target {
    pub(crate) owner: User,
    pub(crate) folder: Option<u64>,
    pub(crate) kind: Kind,
    pub(crate) filter: Option<Filter>,
}

/// `me/messages`, `users/{id}/mailFolders('inbox')/messages`, `me/events`, `me/contacts`, with a `$filter` perhaps.
pub(crate) fn target(sim: &Sim, call: &Call, resource: &str) -> Result<Target, Refusal> {
    if resource.contains("://") {
        return Err(Refusal::bad("InvalidRequest", "The 'resource' must be relative to the service root."));
    }
    let unsupported = || {
        Refusal::bad(
            "ExtensionError",
            format!("Operation: Create; Exception: Invalid resource '{resource}'."),
        )
    };
    let (path, query) = resource.split_once('?').unwrap_or((resource, ""));
    let segments = call::segments(path);
    let (name, rest) = match segments.as_slice() {
        [me, rest @ ..] if me.name == "me" => (None, rest),
        [users, id, rest @ ..] if users.name == "users" => (Some(id.raw.as_str()), rest),
        _ => return Err(unsupported()),
    };
    let owner = access::owner(sim, &call.caller, name)?;
    let names: Vec<&str> = rest.iter().map(|segment| segment.name.as_str()).collect();
    let (folder, kind) = match names.as_slice() {
        ["messages"] => (None, Kind::Message),
        ["events"] => (None, Kind::Event),
        ["contacts"] => (None, Kind::Contact),
        ["mailfolders", _, "messages"] => {
            let mut graph = sim.graph();
            (Some(folders::find(graph.ensure(&owner), &rest[1])?), Kind::Message)
        }
        _ => return Err(unsupported()),
    };
    let entity = match kind {
        Kind::Event => "event",
        Kind::Contact => "contact",
        _ => "message",
    };
    let mut filter = None;
    for (name, value) in call::query(query) {
        match name.trim_start_matches('$').to_lowercase().as_str() {
            "filter" => {
                filter = Some(odata::checked_filter(&value, entity)?);
            }
            // Allowed with limits; it shapes resource data, which is not simulated.
            "select" => {}
            _ => return Err(unsupported()),
        }
    }
    Ok(Target { owner, folder, kind, filter })
}
