//! Links: what a publisher hands to a user, and what a user hands to an administrator.
//!
//! The invariant: a link's secret is stored as a hash only, and opening a link changes nothing, so previews
//! and second clicks are harmless.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use scoped_futures::ScopedFutureExt as _;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use url::Url;
use uuid::Uuid;

use super::app::Authorize;
use super::scopes::Integration;
use super::state::{self, Purpose};
use super::{Consent, ConsentError, Landing, verifier_place};
use crate::store::connection::{self, Connection, Status};
use crate::store::link::{self, Link};
use crate::store::{StoreError, Tx};

const LIVE: TimeDelta = TimeDelta::hours(24);
const FORGET: TimeDelta = TimeDelta::days(7);
/// Names of workspaces, users and accounts are short.
const LONGEST: usize = 256;

/// What a publisher asks for.
#[derive(Debug, Clone)]
pub struct NewLink<'a> {
    pub workspace: &'a str,
    pub user: &'a str,
    pub integration: Integration,
    /// The sign-in name that is expected; another one is refused.
    pub account: Option<&'a str>,
    /// Where the browser goes in the end.
    pub return_to: Option<&'a str>,
    /// Dataverse's URL; the workspace's own, or the list of environments, when absent.
    pub environment: Option<&'a str>,
    /// May another Entra object take the place of the one that is connected?
    pub replace: bool,
}

/// A link that was made. Its URL is shown once.
pub struct Created {
    pub id: Uuid,
    pub url: Url,
    pub expires_at: DateTime<Utc>,
}

impl fmt::Debug for Created {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Created").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Consent {
    /// Makes the connection if there is none yet, and a link to sign in with. `id` is the connection's.
    pub async fn create_link(&self, new: NewLink<'_>) -> Result<Created, ConsentError> {
        let environment = self.checked(&new)?;
        let now = self.vault.clock().now();
        let secret = random();
        let (id, verifier) = (Uuid::now_v7(), random());
        let link = Link {
            id,
            connection_id: Uuid::nil(),
            secret_hash: hash(secret.expose_secret()),
            account: new.account.map(|account| account.trim().to_owned()),
            replaces: new.replace,
            return_to: new.return_to.map(str::to_owned),
            environment,
            nonce: random().expose_secret().to_owned(),
            verifier: self.vault.keys().seal(verifier_place(&id), verifier.expose_secret().as_bytes()),
            used_at: None,
            expires_at: now + LIVE,
            created_at: now,
        };
        let (new, link) = (&new, &link);
        let connection = self
            .vault
            .store()
            .transaction("connection.link", |tx| {
                async move {
                    let connection =
                        connection::ensure(tx, new.workspace, new.user, new.integration, now).await?;
                    if connection.status == Status::Disconnecting {
                        return Err(ConsentError::Disconnecting);
                    }
                    let mut link = Link { connection_id: connection.id, ..link.clone() };
                    if new.integration == Integration::Dynamics && link.environment.is_none() {
                        link.environment = match connection.environment {
                            Some(known) => Some(known),
                            None => connection::pinned_environment(tx, new.workspace).await?,
                        };
                    }
                    link::insert(tx, &link).await?;
                    Ok(connection.id)
                }
                .scope_boxed()
            })
            .await?;
        let url = self.vault.entra().app.link_url(secret.expose_secret());
        Ok(Created { id: connection, url, expires_at: link.expires_at })
    }

    /// Where an opened link leads: Entra's sign-in page.
    pub async fn open_link(&self, secret: &str) -> Result<Url, ConsentError> {
        let hash = &hash(secret);
        let found = self
            .vault
            .store()
            .read(|tx| {
                async move {
                    let Some(link) = link::by_hash(tx, hash).await? else { return Ok(None) };
                    with_connection(tx, link).await
                }
                .scope_boxed()
            })
            .await?;
        let Some((link, connection)) = found else { return Err(ConsentError::UnknownLink) };
        self.sign_in_url(&link, &connection)
    }

    /// The page on which an administrator of the tenant consents for everybody.
    pub async fn admin_consent_link(
        &self,
        workspace: &str,
        integration: Integration,
    ) -> Result<Url, ConsentError> {
        short("workspace", workspace)?;
        let environment = self
            .vault
            .store()
            .read(|tx| async move { connection::pinned_environment(tx, workspace).await }.scope_boxed())
            .await?;
        Ok(self.admin_url(workspace, integration, environment.as_deref(), None))
    }

    /// Forgets links that ran out a while ago; for the scheduler. Until then they can still say that they did.
    pub async fn forget_links(&self) -> Result<u64, ConsentError> {
        let before = self.vault.clock().now() - FORGET;
        let forgotten = self
            .vault
            .store()
            .transaction("links.forget", |tx| async move { link::forget(tx, before).await }.scope_boxed())
            .await?;
        Ok(forgotten)
    }

    pub(super) fn admin_url(
        &self,
        workspace: &str,
        integration: Integration,
        environment: Option<&str>,
        link: Option<Uuid>,
    ) -> Url {
        let app = &self.vault.entra().app;
        let purpose = Purpose::AdminConsent { workspace: workspace.to_owned(), integration, link };
        let until = self.vault.clock().now() + state::ADMIN_CONSENT;
        let state = state::write(self.vault.keys(), purpose, until);
        app.admin_consent_url(integration, &app.environment_or_discovery(environment), None, &state)
    }

    pub(super) fn sign_in_url(&self, link: &Link, connection: &Connection) -> Result<Url, ConsentError> {
        let now = self.vault.clock().now();
        if link.used_at.is_some() {
            return Err(ConsentError::UsedLink);
        }
        if !link.is_open(now) {
            return Err(ConsentError::ExpiredLink);
        }
        let app = &self.vault.entra().app;
        let verifier = self.verifier(link)?;
        let until = (now + state::SIGN_IN).min(link.expires_at);
        Ok(app.authorize_url(Authorize {
            integration: connection.integration,
            environment: &app.environment_or_discovery(link.environment.as_deref()),
            state: state::write(self.vault.keys(), Purpose::SignIn { link: link.id }, until),
            nonce: &link.nonce,
            verifier: &verifier,
            account: link.account.as_deref().or(connection.account.as_deref().filter(|_| !link.replaces)),
            claims: connection.claims.as_deref(),
        }))
    }

    pub(super) fn verifier(&self, link: &Link) -> Result<SecretString, ConsentError> {
        let plain = self.vault.keys().open(verifier_place(&link.id), &link.verifier)?;
        Ok(String::from_utf8_lossy(plain.expose_secret()).into_owned().into())
    }

    fn checked(&self, new: &NewLink<'_>) -> Result<Option<String>, ConsentError> {
        short("workspace", new.workspace)?;
        short("user", new.user)?;
        if let Some(account) = new.account {
            short("account", account)?;
        }
        if let Some(text) = new.return_to {
            let right = text.len() <= 2048
                && Url::parse(text).is_ok_and(|url| url.scheme() == "https" || crate::http::loopback(&url));
            if !right {
                return Err(ConsentError::Invalid { path: "return_to", expected: "an https:// URL" });
            }
        }
        match (new.environment, new.integration) {
            (None, _) => Ok(None),
            (Some(text), Integration::Dynamics) => {
                let expected = "the URL of a Dataverse environment on one of the allowed hosts";
                let known = self.vault.entra().app.environment(text);
                known.map(Some).ok_or(ConsentError::Invalid { path: "environment", expected })
            }
            (Some(_), _) => {
                Err(ConsentError::Invalid { path: "environment", expected: "nothing, except for dynamics" })
            }
        }
    }
}

impl Landing {
    /// Where the browser goes, when the publisher named a place: with what happened, and nothing secret.
    pub fn redirect(&self) -> Option<Url> {
        let mut url = self.return_to.clone()?;
        let mut query = url.query_pairs_mut();
        query.append_pair("code", self.code);
        if let Some(connection) = self.connection {
            query.append_pair("connection", &connection.to_string());
        }
        drop(query);
        Some(url)
    }
}

pub(super) async fn with_connection(
    tx: &mut Tx,
    link: Link,
) -> Result<Option<(Link, Connection)>, StoreError> {
    let connection = connection::find(tx, link.connection_id).await?;
    Ok(connection.map(|connection| (link, connection)))
}

fn short(path: &'static str, text: &str) -> Result<(), ConsentError> {
    let right = !text.trim().is_empty() && text.len() <= LONGEST && !text.chars().any(char::is_control);
    if right { Ok(()) } else { Err(ConsentError::Invalid { path, expected: "1 to 256 characters" }) }
}

/// 256 bits nobody can guess, as a URL may carry them.
fn random() -> SecretString {
    let bytes: [u8; 32] = rand::random();
    BASE64_URL_SAFE_NO_PAD.encode(bytes).into()
}

/// The secret is random already, so a plain hash keeps it.
fn hash(secret: &str) -> Vec<u8> {
    Sha256::digest(secret.as_bytes()).to_vec()
}
