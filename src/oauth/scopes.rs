//! Which scopes each integration asks for, and whether what was granted is enough.
//!
//! The invariant: what is asked for is exactly the list the integration was approved with, never one more;
//! a token is asked for one resource at a time.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a connection is for.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Integration {
    OutlookEmail,
    OutlookCalendar,
    Dynamics,
    Teams,
    SharedMailbox,
}

impl Integration {
    pub const ALL: [Self; 5] =
        [Self::OutlookEmail, Self::OutlookCalendar, Self::Dynamics, Self::Teams, Self::SharedMailbox];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OutlookEmail => "outlook-email",
            Self::OutlookCalendar => "outlook-calendar",
            Self::Dynamics => "dynamics",
            Self::Teams => "teams",
            Self::SharedMailbox => "shared-mailbox",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|integration| integration.as_str() == text)
    }

    /// The scopes of the resource; the environment's own is made by [`scopes`].
    fn of_graph(self) -> &'static [&'static str] {
        match self {
            Self::OutlookEmail => &[
                "User.Read",
                "Contacts.Read",
                "People.Read",
                "User.ReadBasic.All",
                "Mail.ReadWrite",
                "Mail.Send",
            ],
            Self::OutlookCalendar => &[
                "User.Read",
                "Contacts.Read",
                "People.Read",
                "User.ReadBasic.All",
                "Calendars.ReadWrite",
                "Calendars.Read.Shared",
            ],
            Self::Dynamics => &[],
            Self::Teams => &[
                "User.Read",
                "Calendars.Read.Shared",
                "Calendars.ReadWrite",
                "OnlineMeetings.ReadWrite",
                "Group.Read.All",
                "Channel.ReadBasic.All",
                "ChannelMessage.Send",
            ],
            Self::SharedMailbox => {
                &["User.Read", "Mail.Read.Shared", "Mail.ReadWrite.Shared", "Mail.Send.Shared"]
            }
        }
    }

    fn of_sign_in(self) -> &'static [&'static str] {
        match self {
            Self::OutlookEmail | Self::OutlookCalendar => &["openid", "offline_access", "email", "profile"],
            Self::Teams => &["openid", "offline_access", "email"],
            Self::Dynamics | Self::SharedMailbox => &["openid", "offline_access"],
        }
    }
}

impl fmt::Display for Integration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an access token is for. One token reaches one of these and no other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Resource {
    Graph,
    /// An environment, or Dataverse's list of them, by its URL without a slash at the end.
    Dataverse(String),
}

impl Resource {
    /// The resource an integration works on.
    pub fn of(integration: Integration, environment: &str) -> Self {
        match integration {
            Integration::Dynamics => Self::Dataverse(environment.trim_end_matches('/').to_owned()),
            _ => Self::Graph,
        }
    }

    /// The scopes that a token for this resource is asked with.
    pub fn scopes(&self, integration: Integration) -> Vec<String> {
        match self {
            Self::Graph => owned(integration.of_graph()),
            Self::Dataverse(url) => vec![format!("{url}/user_impersonation")],
        }
    }
}

/// All that an integration asks a user for, sign-in included. `environment` is Dataverse's URL, or that of
/// the discovery service for a user whose environment is not known yet.
pub fn scopes(integration: Integration, environment: &str) -> Vec<String> {
    let mut scopes = owned(integration.of_sign_in());
    scopes.extend(Resource::of(integration, environment).scopes(integration));
    scopes
}

/// The scopes that are needed and were not granted, sign-in scopes aside: Entra does not list those
/// reliably, and the refresh token and the id token prove them.
pub fn missing(needed: &[String], granted: &[String]) -> Vec<String> {
    needed
        .iter()
        .filter(|scope| !is_sign_in(scope) && !granted.iter().any(|granted| same(granted, scope)))
        .cloned()
        .collect()
}

/// Is everything that is needed among what was granted?
pub fn granted_covers(granted: &[String], needed: &[String]) -> bool {
    missing(needed, granted).is_empty()
}

/// Scopes that no user can consent to, whatever the tenant's settings.
/// <https://learn.microsoft.com/graph/permissions-reference>
pub fn needs_admin(scope: &str) -> bool {
    same(scope, "Group.Read.All")
}

pub fn is_sign_in(scope: &str) -> bool {
    ["openid", "offline_access", "email", "profile"].iter().any(|name| scope.eq_ignore_ascii_case(name))
}

/// A granted scope as it is kept and compared: Graph's come back bare or behind Graph's URL, others only
/// behind their resource, sometimes with a second slash.
pub fn bare(scope: &str) -> String {
    let (start, rest) =
        scope.split_once("://").map_or(("", scope), |(_, rest)| (&scope[..scope.len() - rest.len()], rest));
    match rest.rsplit_once('/') {
        Some((host, name)) if host.contains("graph.microsoft") || host.starts_with("microsoftgraph.") => {
            name.to_owned()
        }
        _ => format!("{start}{}", rest.replace("//", "/")),
    }
}

fn same(one: &str, other: &str) -> bool {
    bare(one).eq_ignore_ascii_case(&bare(other))
}

fn owned(scopes: &[&str]) -> Vec<String> {
    scopes.iter().map(|scope| (*scope).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Vec<String> {
        text.split(", ").map(str::to_owned).collect()
    }

    #[test]
    fn each_integration_asks_for_its_list_and_nothing_else() {
        let environment = "https://org.crm4.dynamics.com";
        let expected = [
            (
                Integration::OutlookEmail,
                "openid, offline_access, email, profile, User.Read, Contacts.Read, People.Read, User.ReadBasic.All, Mail.ReadWrite, Mail.Send",
            ),
            (
                Integration::OutlookCalendar,
                "openid, offline_access, email, profile, User.Read, Contacts.Read, People.Read, User.ReadBasic.All, Calendars.ReadWrite, Calendars.Read.Shared",
            ),
            (
                Integration::Dynamics,
                "openid, offline_access, https://org.crm4.dynamics.com/user_impersonation",
            ),
            (
                Integration::Teams,
                "openid, offline_access, User.Read, email, Calendars.Read.Shared, Calendars.ReadWrite, OnlineMeetings.ReadWrite, Group.Read.All, Channel.ReadBasic.All, ChannelMessage.Send",
            ),
            (
                Integration::SharedMailbox,
                "openid, offline_access, User.Read, Mail.Read.Shared, Mail.ReadWrite.Shared, Mail.Send.Shared",
            ),
        ];
        for (integration, text) in expected {
            let (mut asked, mut wanted) = (scopes(integration, environment), list(text));
            asked.sort();
            wanted.sort();
            assert_eq!(asked, wanted, "{integration}");
        }
    }

    #[test]
    fn names_read_back() {
        for integration in Integration::ALL {
            assert_eq!(Integration::parse(integration.as_str()), Some(integration));
            let json = serde_json::to_string(&integration).expect("a string");
            assert_eq!(json, format!("\"{integration}\""));
        }
        assert_eq!(Integration::parse("Outlook-Email"), None);
    }

    #[test]
    fn a_grant_is_compared_however_entra_spells_it() {
        let needed = scopes(Integration::SharedMailbox, "");
        let bare = list("user.read, Mail.Read.Shared, Mail.ReadWrite.Shared, Mail.Send.Shared");
        assert!(granted_covers(&bare, &needed));
        let long: Vec<_> = bare.iter().map(|scope| format!("https://graph.microsoft.com/{scope}")).collect();
        assert!(granted_covers(&long, &needed));
        assert_eq!(missing(&needed, &bare[..3]), ["Mail.Send.Shared"]);
        let crm = scopes(Integration::Dynamics, "https://a.crm.dynamics.com");
        assert!(granted_covers(&list("https://a.crm.dynamics.com//user_impersonation"), &crm));
        assert!(!granted_covers(&list("https://b.crm.dynamics.com/user_impersonation"), &crm));
        assert!(!granted_covers(&list("user_impersonation"), &crm));
    }
}
