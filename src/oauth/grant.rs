//! What a sign-in brought becomes the connection's grant.
//!
//! The invariant: the grant is stored, with the jobs it releases and the event about it, in one transaction
//! that also spends the link; nothing is called with the new token before.

use scoped_futures::ScopedFutureExt as _;
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use super::client::Issued;
use super::identity::{Identity, IdentityError, names_of_access_token};
use super::scopes::{self, Integration};
use super::{Consent, ConsentError, Landing};
use crate::store::connection::{self, Connection, Grant, Status};
use crate::store::link::{self, Link};
use crate::store::{StoreError, Tx};
use crate::vault::token_place;

/// How the transaction that stores a grant ended.
enum Stored {
    Done(Box<Connection>),
    LinkSpent,
    Disconnecting,
    WrongAccount(&'static str),
}

impl Consent {
    pub(super) async fn identity(&self, issued: &Issued, link: &Link) -> Result<Identity, IdentityError> {
        let token = issued.id_token.as_ref().ok_or(IdentityError::Refused("there is none"))?;
        self.signing_keys
            .identify(self.vault.entra(), token, issued.client_info.as_deref(), &link.nonce)
            .await
    }

    pub(super) async fn store_grant(
        &self,
        link: &Link,
        connection: &Connection,
        issued: Issued,
        identity: Identity,
        needed: &[String],
    ) -> Result<Landing, ConsentError> {
        let now = self.vault.clock().now();
        let Some(refresh_token) = &issued.refresh_token else {
            return Ok(self.again(
                link,
                connection,
                "missing_scopes",
                "Microsoft gave no lasting consent; sign in again and allow all that is asked for.",
            ));
        };
        let mut granted: Vec<String> = issued.scopes.iter().map(|scope| scopes::bare(scope)).collect();
        if granted.is_empty() {
            // RFC 6749: what is not said is as it was asked.
            granted = needed.to_vec();
        }
        let missing = scopes::missing(needed, &granted);
        let (status, cause, message) = if missing.is_empty() {
            (Status::Connected, None, None)
        } else {
            let admin = missing.iter().any(|scope| scopes::needs_admin(scope));
            let status = if admin { Status::NeedsAdmin } else { Status::NeedsUser };
            let message = format!("Not granted: {}.", missing.join(", "));
            (status, Some("missing_scopes".to_owned()), Some(message))
        };
        let grant = &Grant {
            status,
            cause,
            message,
            tenant_id: identity.tenant_id.clone(),
            object_id: identity.object_id.clone(),
            account: identity.names.first().cloned(),
            scopes: granted,
            environment: link.environment.clone(),
            refresh_token: self
                .vault
                .keys()
                .seal(token_place(&connection.id), refresh_token.expose_secret().as_bytes()),
        };
        let (identity, changes) = (&identity, self.vault.changes());
        let access_token = &issued.access_token;
        let stored = self
            .vault
            .store()
            .transaction("connection.grant", |tx| {
                async move {
                    // Read again: another sign-in may have come first.
                    let Some(current) = connection::find(tx, link.connection_id).await? else {
                        return Ok(Stored::LinkSpent);
                    };
                    // Its tokens are about to be wiped: what came now would go with them, or outlive them.
                    if current.status == Status::Disconnecting {
                        return Ok(Stored::Disconnecting);
                    }
                    if let Some(why) = wrong_account(tx, link, &current, identity, access_token).await? {
                        return Ok(Stored::WrongAccount(why));
                    }
                    if !link::spend(tx, link.id, now).await? {
                        return Ok(Stored::LinkSpent);
                    }
                    // What else was handed out for it has served its purpose, and would only wait for a finder.
                    link::end_all(tx, current.id, now).await?;
                    if !connection::save_grant(tx, current.id, grant, now).await? {
                        return Ok(Stored::Disconnecting);
                    }
                    let Some(saved) = connection::find(tx, current.id).await? else {
                        return Ok(Stored::LinkSpent);
                    };
                    changes.changed(tx, &saved, now).await?;
                    Ok::<_, StoreError>(Stored::Done(Box::new(saved)))
                }
                .scope_boxed()
            })
            .await?;
        match stored {
            Stored::Done(saved) => {
                // Tokens of an earlier grant are somebody else's, perhaps.
                self.vault.forget(saved.id);
                tracing::info!(connection = %saved.id, status = saved.status.as_str(), "a grant was stored");
                Ok(self.landed(link, &saved))
            }
            Stored::LinkSpent => Err(ConsentError::UsedLink),
            Stored::Disconnecting => Err(ConsentError::Disconnecting),
            Stored::WrongAccount(why) => Ok(self.again(link, connection, "wrong_account", why)),
        }
    }

    fn landed(&self, link: &Link, saved: &Connection) -> Landing {
        let (code, message) = match saved.status {
            Status::Connected => ("connected", "Connected. You can close this page.".to_owned()),
            _ => ("missing_scopes", saved.message.clone().unwrap_or_default()),
        };
        let mut landing = Landing::new(code, &message);
        landing.success = saved.status == Status::Connected;
        landing.connection = Some(saved.id);
        landing.return_to = return_to(link);
        if saved.status == Status::NeedsAdmin {
            let environment = saved.environment.as_deref();
            landing.admin_consent_url =
                Some(self.admin_url(&saved.workspace, saved.integration, environment, None));
        }
        landing
    }
}

pub(super) fn return_to(link: &Link) -> Option<Url> {
    Url::parse(link.return_to.as_deref()?).ok()
}

/// Why this identity may not have this connection. Names only ever refuse; what is connected is an object of
/// a tenant, and that must stay the same unless the publisher said that it may be replaced.
async fn wrong_account(
    tx: &mut Tx,
    link: &Link,
    connection: &Connection,
    identity: &Identity,
    access_token: &SecretString,
) -> Result<Option<&'static str>, StoreError> {
    let same = |other: &Connection| {
        other.tenant_id.as_deref().is_none_or(|tenant| tenant.eq_ignore_ascii_case(&identity.tenant_id))
            && other
                .object_id
                .as_deref()
                .is_none_or(|object| object.eq_ignore_ascii_case(&identity.object_id))
    };
    if !link.replaces && !same(connection) {
        return Ok(Some(
            "This connection belongs to another account. Sign in with the account it was made with.",
        ));
    }
    let Some(expected) = &link.account else { return Ok(None) };
    let another = Some("Another account was expected. Sign in with the one you were asked for.");
    let is_expected = |name: &str| name.to_lowercase() == expected.to_lowercase();
    if !identity.names.is_empty() {
        let named = identity.names.iter().any(|name| is_expected(name));
        return Ok(if named { None } else { another });
    }
    // Without the scope `profile` the id token names nobody, but the access token beside it mostly does.
    let names = names_of_access_token(access_token);
    if !names.is_empty() && !names.iter().any(|name| is_expected(name)) {
        return Ok(another);
    }
    // The user's connections may know the object that goes by the expected name.
    let keys: Vec<_> = Integration::ALL
        .into_iter()
        .map(|integration| (connection.workspace.clone(), connection.user_name.clone(), integration))
        .collect();
    let known = connection::find_many(tx, &keys).await?;
    let mut vouching = known.iter().filter(|other| {
        // One that may be replaced says nothing about whom it is replaced by.
        let replaced = other.id == connection.id && link.replaces;
        !replaced && other.object_id.is_some() && other.account.as_deref().is_some_and(is_expected)
    });
    // Every one that knows must agree, and if nothing else named the account, one must know.
    let right = match vouching.next() {
        Some(first) => same(first) && vouching.all(same),
        None => !names.is_empty(),
    };
    Ok(if right { None } else { another })
}
