//! What a `scope` parameter asks for.
//!
//! `entra/identity-platform/scopes-oidc`: a scope is `resource/permission`, bare names belong to Graph, and
//! `.default` stands for all that was consented to. Permissions: `graph/permissions-reference`.

use std::collections::BTreeSet;

use super::error::EntraError;
use crate::Sim;
use crate::auth::{GLOBAL_DISCOVERY, GRAPH, GRAPH_APP};

pub(crate) const OIDC: [&str; 4] = ["openid", "profile", "email", "offline_access"];

/// Delegated permissions of Graph that an ordinary user may consent to.
const GRAPH_PERMISSIONS: &[&str] = &[
    "Calendars.Read",
    "Calendars.Read.Shared",
    "Calendars.ReadBasic",
    "Calendars.ReadWrite",
    "Calendars.ReadWrite.Shared",
    "Channel.ReadBasic.All",
    "ChannelMessage.Send",
    "Chat.Read",
    "Chat.ReadWrite",
    "ChatMessage.Send",
    "Contacts.Read",
    "Contacts.Read.Shared",
    "Contacts.ReadWrite",
    "Files.Read",
    "Files.ReadWrite",
    "Mail.Read",
    "Mail.Read.Shared",
    "Mail.ReadBasic",
    "Mail.ReadBasic.Shared",
    "Mail.ReadWrite",
    "Mail.ReadWrite.Shared",
    "Mail.Send",
    "Mail.Send.Shared",
    "MailboxSettings.Read",
    "MailboxSettings.ReadWrite",
    "OnlineMeetings.Read",
    "OnlineMeetings.ReadWrite",
    "People.Read",
    "Tasks.ReadWrite",
    "Team.ReadBasic.All",
    "User.Read",
    "User.ReadBasic.All",
    "User.ReadWrite",
];

/// Those for which only an administrator can consent.
const ADMIN_PERMISSIONS: &[&str] = &[
    "ChannelMessage.Read.All",
    "DelegatedPermissionGrant.ReadWrite.All",
    "Directory.Read.All",
    "Directory.ReadWrite.All",
    "Group.Read.All",
    "Group.ReadWrite.All",
    "Mail-Advanced.ReadWrite",
    "Mail-Advanced.ReadWrite.Shared",
    "People.Read.All",
    "User.Read.All",
    "User.ReadWrite.All",
    "User.RevokeSessions.All",
];

pub(crate) fn needs_admin(permission: &Permission) -> bool {
    permission.resource == GRAPH && ADMIN_PERMISSIONS.contains(&permission.name.as_str())
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Permission {
    pub(crate) resource: String,
    pub(crate) name: String,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Scopes {
    pub(crate) oidc: BTreeSet<String>,
    /// In the order they were asked for: the first resource wins.
    pub(crate) permissions: Vec<Permission>,
    /// What stood in front of Graph's permissions; answers use the same spelling.
    pub(crate) graph_prefix: Option<String>,
}

impl Scopes {
    pub(crate) fn has(&self, oidc: &str) -> bool {
        self.oidc.contains(oidc)
    }

    pub(crate) fn resources(&self) -> Vec<&str> {
        let mut resources: Vec<&str> = Vec::new();
        for permission in &self.permissions {
            if !resources.contains(&permission.resource.as_str()) {
                resources.push(&permission.resource);
            }
        }
        resources
    }

    pub(crate) fn parse(sim: &Sim, text: &str) -> Result<Self, EntraError> {
        let mut scopes = Self::default();
        for word in text.split_whitespace() {
            if OIDC.contains(&word.to_ascii_lowercase().as_str()) {
                scopes.oidc.insert(word.to_ascii_lowercase());
                continue;
            }
            // The resource is everything before the last slash: `scopes-oidc#the-default-scope`.
            let (resource, name) = match word.rsplit_once('/') {
                Some((resource, name)) => (known_resource(sim, resource, name)?, name),
                None => (GRAPH.to_owned(), word),
            };
            if let Some((prefix, _)) = word.rsplit_once('/').filter(|_| resource == GRAPH) {
                scopes.graph_prefix = Some(prefix.to_owned());
            }
            let name = canonical(&resource, name)?;
            let permission = Permission { resource, name };
            if !scopes.permissions.contains(&permission) {
                scopes.permissions.push(permission);
            }
        }
        Ok(scopes)
    }
}

fn known_resource(sim: &Sim, resource: &str, name: &str) -> Result<String, EntraError> {
    let plain = resource.trim_end_matches('/');
    // The simulator's address is Graph's too, as in clouds where Graph has another host; the permission tells which.
    if plain == sim.base_url() && canonical(GRAPH, name).is_ok() && name != ".default" {
        return Ok(GRAPH.to_owned());
    }
    if [GRAPH, GRAPH_APP].contains(&plain) || plain == format!("api://{GRAPH_APP}") {
        return Ok(GRAPH.to_owned());
    }
    if plain == GLOBAL_DISCOVERY || sim.dataverse().is_environment_url(sim.base_url(), plain) {
        return Ok(resource.to_owned());
    }
    let message = format!(
        "The resource principal named {resource} was not found in the tenant. This can happen if the application has \
         not been installed by the administrator of the tenant or consented to by any user in the tenant."
    );
    Err(EntraError::new("invalid_resource", 500_011, message))
}

fn canonical(resource: &str, name: &str) -> Result<String, EntraError> {
    if name == ".default" {
        return Ok(name.to_owned());
    }
    let known = if resource == GRAPH {
        GRAPH_PERMISSIONS.iter().chain(ADMIN_PERMISSIONS).find(|known| known.eq_ignore_ascii_case(name))
    } else {
        ["user_impersonation"].iter().find(|known| known.eq_ignore_ascii_case(name))
    };
    known.map(|known| (*known).to_owned()).ok_or_else(|| {
        let message = format!(
            "The application asked for scope '{name}' that doesn't exist on the resource '{resource}'."
        );
        EntraError::new("invalid_client", 650_053, message)
    })
}

/// `.default` as what was consented to: the delegated permissions the registration lists, for the seeded app Graph's
/// `User.Read` and Dataverse's only one.
pub(crate) fn expand_default(permission: &Permission) -> Permission {
    let name = match (permission.name.as_str(), permission.resource == GRAPH) {
        (".default", true) => "User.Read",
        (".default", false) => "user_impersonation",
        (name, _) => name,
    };
    Permission { resource: permission.resource.clone(), name: name.to_owned() }
}
