//! Tenants, users, shared mailboxes, and who may do what in whose mailbox.
//!
//! Users are keyed by `oid`; names are looked up without regard to case, as in Entra.

use serde::{Deserialize, Serialize};

pub const ACME: &str = "aaaaaaaa-0000-4000-8000-00000000acbe";
pub const GLOBEX: &str = "bbbbbbbb-0000-4000-8000-000000910be0";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tenant {
    pub id: String,
    pub domain: String,
    pub name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mailbox {
    /// In Exchange Online.
    Enabled,
    /// Known to the directory, but kept on premises: Graph answers `MailboxNotEnabledForRESTAPI`.
    OnPremises,
    None,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct User {
    pub tenant: String,
    pub oid: String,
    pub upn: String,
    pub mail: Option<String>,
    pub display_name: String,
    #[serde(default)]
    pub is_guest: bool,
    /// A shared mailbox is a user whose sign-in is blocked.
    #[serde(default)]
    pub is_shared_mailbox: bool,
    pub account_enabled: bool,
    pub mailbox: Mailbox,
}

impl User {
    pub fn given_name(&self) -> &str {
        self.display_name.split(' ').next().unwrap_or("")
    }

    pub fn surname(&self) -> &str {
        self.display_name.split_once(' ').map_or("", |(_, rest)| rest)
    }
}

/// What `user` may do in `mailbox` (both by `oid`).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct MailboxRight {
    pub mailbox: String,
    pub user: String,
    #[serde(default)]
    pub full_access: bool,
    #[serde(default)]
    pub send_as: bool,
    #[serde(default)]
    pub send_on_behalf: bool,
}

pub struct Directory {
    pub tenants: Vec<Tenant>,
    pub users: Vec<User>,
    pub rights: Vec<MailboxRight>,
}

impl Directory {
    pub fn tenant(&self, name: &str) -> Option<&Tenant> {
        self.tenants.iter().find(|t| t.id.eq_ignore_ascii_case(name) || t.domain.eq_ignore_ascii_case(name))
    }

    pub fn by_oid(&self, oid: &str) -> Option<&User> {
        self.users.iter().find(|u| u.oid.eq_ignore_ascii_case(oid))
    }

    /// By object id, user principal name or mail address, in every tenant.
    pub fn find(&self, name: &str) -> Option<&User> {
        self.users.iter().find(|user| user.is_called(name))
    }

    pub fn find_in(&self, tenant: &str, name: &str) -> Option<&User> {
        self.users.iter().find(|user| user.tenant == tenant && user.is_called(name))
    }

    pub fn find_mut(&mut self, name: &str) -> Option<&mut User> {
        self.users.iter_mut().find(|user| user.is_called(name))
    }

    /// What `user` may do in `mailbox`; an owner may do everything in their own.
    pub fn right(&self, mailbox: &str, user: &str) -> MailboxRight {
        let own = mailbox == user;
        let granted = self.rights.iter().find(|r| r.mailbox == mailbox && r.user == user);
        MailboxRight {
            mailbox: mailbox.to_owned(),
            user: user.to_owned(),
            full_access: own || granted.is_some_and(|r| r.full_access),
            send_as: own || granted.is_some_and(|r| r.send_as),
            send_on_behalf: own || granted.is_some_and(|r| r.send_on_behalf),
        }
    }

    pub fn set_right(&mut self, right: MailboxRight) {
        self.rights.retain(|r| !(r.mailbox == right.mailbox && r.user == right.user));
        self.rights.push(right);
    }
}

impl User {
    pub fn is_called(&self, name: &str) -> bool {
        self.oid.eq_ignore_ascii_case(name)
            || self.upn.eq_ignore_ascii_case(name)
            || self.mail.as_deref().is_some_and(|mail| mail.eq_ignore_ascii_case(name))
    }
}

impl Default for Directory {
    fn default() -> Self {
        let mut directory = Self { tenants: Vec::new(), users: Vec::new(), rights: Vec::new() };
        for (id, domain, name) in [(ACME, "acme.example", "Acme"), (GLOBEX, "globex.example", "Globex")] {
            directory.tenants.push(Tenant { id: id.into(), domain: domain.into(), name: name.into() });
        }
        let people = [
            (ACME, "ada", "Ada Byron"),
            (ACME, "bob", "Bob Keller"),
            (ACME, "carol", "Carol Núñez"),
            (ACME, "dave", "Dave Osei"),
            (ACME, "eve", "Eve Lindqvist"),
            (ACME, "frank", "Frank Moreau"),
            (ACME, "svc-shared", "Shared Mailbox Service"),
            (ACME, "support", "Acme Support"),
            (ACME, "sales", "Acme Sales"),
            (GLOBEX, "hal", "Hal Fischer"),
        ];
        for (number, (tenant, name, display_name)) in people.into_iter().enumerate() {
            let domain = if tenant == ACME { "acme.example" } else { "globex.example" };
            let shared = matches!(name, "support" | "sales");
            directory.users.push(User {
                tenant: tenant.into(),
                oid: format!("00000000-0000-4000-8000-0000000000{:02}", number + 1),
                upn: format!("{name}@{domain}"),
                mail: Some(format!("{name}@{domain}")),
                display_name: display_name.into(),
                is_guest: false,
                is_shared_mailbox: shared,
                account_enabled: !shared,
                mailbox: Mailbox::Enabled,
            });
        }
        for (mailbox, user) in [("support", "svc-shared"), ("sales", "svc-shared"), ("support", "ada")] {
            let oid = |name: &str| {
                directory.find(&format!("{name}@acme.example")).map(|u| u.oid.clone()).unwrap_or_default()
            };
            let right = MailboxRight {
                mailbox: oid(mailbox),
                user: oid(user),
                full_access: true,
                send_as: user == "svc-shared",
                send_on_behalf: false,
            };
            directory.rights.push(right);
        }
        directory
    }
}
