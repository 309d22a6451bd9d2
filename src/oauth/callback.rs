//! What comes back from Entra's pages, and what it makes of a connection.
//!
//! The invariant: what was refused spends nothing, and a connection that works is never harmed by a sign-in
//! that failed.

use chrono::TimeDelta;
use scoped_futures::ScopedFutureExt as _;
use serde::Deserialize;
use tracing::Instrument as _;

use super::client::TokenError;
use super::grant::return_to;
use super::identity::IdentityError;
use super::links::with_connection;
use super::scopes::{self, Integration};
use super::state::{self, Purpose};
use super::verdict::{Meaning, Refusal, Verdict};
use super::{Consent, ConsentError, Landing};
use crate::store::StoreError;
use crate::store::connection::{self, Connection, Status};
use crate::store::lease;
use crate::store::link::{self, Link};

/// How long after an administrator's visit the connections that waited are not all tried again.
const BETWEEN_ROUNDS: TimeDelta = TimeDelta::minutes(5);

/// The parameters of `GET /oauth/callback`.
#[derive(Default, Deserialize)]
pub struct SignInAnswer {
    pub state: Option<String>,
    pub code: Option<String>,
    pub error: Option<String>,
    pub error_description: Option<String>,
}

/// The parameters of `GET /oauth/admin-consent`.
#[derive(Default, Deserialize)]
pub struct AdminAnswer {
    pub state: Option<String>,
    pub error: Option<String>,
    pub error_description: Option<String>,
    pub admin_consent: Option<String>,
}

impl Consent {
    /// The end of a sign-in. What a person can do something about is a [`Landing`]; an error is ours.
    pub async fn callback(&self, answer: SignInAnswer) -> Result<Landing, ConsentError> {
        // A browser that goes away between Entra's answer and our commit must not lose the consent.
        let consent = self.clone();
        let finish = async move { consent.finish(answer).await };
        tokio::spawn(finish.in_current_span()).await.unwrap_or(Err(ConsentError::Interrupted))
    }

    async fn finish(&self, answer: SignInAnswer) -> Result<Landing, ConsentError> {
        let now = self.vault.clock().now();
        let state = answer.state.as_deref().unwrap_or_default();
        let Some(Purpose::SignIn { link }) = state::read(self.vault.keys(), state, now) else {
            return Err(ConsentError::State);
        };
        let (link, connection) = self.link(link).await?.ok_or(ConsentError::UnknownLink)?;
        if link.used_at.is_some() {
            return Err(ConsentError::UsedLink);
        }
        if !link.is_open(now) {
            return Err(ConsentError::ExpiredLink);
        }
        if let Some(error) = &answer.error {
            let refusal = Refusal::of_redirect(error, answer.error_description.as_deref());
            return self.refused(&link, &connection, &refusal).await;
        }
        let code = answer.code.filter(|code| !code.is_empty()).ok_or(ConsentError::State)?;
        let app = &self.vault.entra().app;
        let environment = app.environment_or_discovery(link.environment.as_deref());
        let needed = scopes::scopes(connection.integration, &environment);
        let verifier = self.verifier(&link)?;
        let issued = match self.vault.entra().redeem(code, &verifier, needed.clone()).await {
            Ok(issued) => issued,
            Err(TokenError::Refused(refusal)) => return self.refused(&link, &connection, &refusal).await,
            Err(error) => {
                tracing::warn!(connection = %connection.id, %error, "a sign-in could not be completed");
                return Ok(self.again(
                    &link,
                    &connection,
                    "entra_unavailable",
                    "Microsoft cannot answer now; try again in a minute.",
                ));
            }
        };
        let identity = match self.identity(&issued, &link).await {
            Ok(identity) => identity,
            Err(error) => {
                tracing::warn!(connection = %connection.id, %error, "a sign-in was not believed");
                let code = match error {
                    IdentityError::PersonalAccount => "personal_account",
                    IdentityError::Refused(_) => "identity_refused",
                    IdentityError::Keys | IdentityError::Http(_) => "entra_unavailable",
                };
                return Ok(self.again(&link, &connection, code, &error.to_string()));
            }
        };
        self.store_grant(&link, &connection, issued, identity, &needed).await
    }

    /// The end of an administrator's visit. Its `tenant` is never believed: the consent shows in what users'
    /// tokens can do from now on.
    pub async fn admin_callback(&self, answer: AdminAnswer) -> Result<Landing, ConsentError> {
        // A browser that goes away must not leave the rest of the connections waiting.
        let consent = self.clone();
        let finish = async move { consent.finish_admin(answer).await };
        tokio::spawn(finish.in_current_span()).await.unwrap_or(Err(ConsentError::Interrupted))
    }

    async fn finish_admin(&self, answer: AdminAnswer) -> Result<Landing, ConsentError> {
        let now = self.vault.clock().now();
        let state = answer.state.as_deref().unwrap_or_default();
        let purpose = state::read(self.vault.keys(), state, now);
        let Some(Purpose::AdminConsent { workspace, integration, link }) = purpose else {
            return Err(ConsentError::State);
        };
        // Entra says `admin_consent=True` beside an error too.
        if let Some(error) = &answer.error {
            let refusal = Refusal::of_redirect(error, answer.error_description.as_deref());
            tracing::warn!(%workspace, %integration, %refusal, "an administrator's consent failed");
            return Ok(Landing::new("admin_consent_refused", "The administrator's consent was not given."));
        }
        if !answer.admin_consent.as_deref().is_some_and(|said| said.eq_ignore_ascii_case("true")) {
            return Err(ConsentError::State);
        }
        if self.first_in_a_while(&workspace, integration).await? {
            self.try_again(&workspace, integration).await?;
        }
        let mut landing =
            Landing::new("admin_consented", "The administrator has consented. Users can sign in now.");
        landing.success = true;
        if let Some(link) = link
            && let Some((link, connection)) = self.link(link).await?
        {
            landing.continue_url = self.sign_in_url(&link, &connection).ok();
            landing.connection = Some(connection.id);
        }
        Ok(landing)
    }

    /// A page that is loaded again and again makes no storm of token requests. The lease is nobody's to give
    /// back: it runs out.
    async fn first_in_a_while(
        &self,
        workspace: &str,
        integration: Integration,
    ) -> Result<bool, ConsentError> {
        let now = self.vault.clock().now();
        let name = &format!("admin-consent:{integration}:{workspace}");
        let holder = &uuid::Uuid::now_v7().to_string();
        let first = self
            .vault
            .store()
            .transaction("connection.admin_round", |tx| {
                async move { lease::hold(tx, name, holder, now, now + BETWEEN_ROUNDS).await }.scope_boxed()
            })
            .await?;
        Ok(first)
    }

    /// Connections that waited for the administrator and still hold a grant may work without their users.
    async fn try_again(&self, workspace: &str, integration: Integration) -> Result<(), ConsentError> {
        let mut waiting = Vec::new();
        for status in [Status::NeedsAdmin, Status::NeedsUser] {
            waiting.extend(
                self.vault
                    .store()
                    .read(|tx| {
                        async move { connection::waiting_with_grant(tx, workspace, integration, status).await }
                            .scope_boxed()
                    })
                    .await?,
            );
        }
        for connection in waiting {
            if let Err(error) = self.vault.keep_alive(connection.id).await {
                tracing::info!(connection = %connection.id, %error, "still waits after the administrator's consent");
            }
        }
        Ok(())
    }

    async fn link(&self, id: uuid::Uuid) -> Result<Option<(Link, Connection)>, ConsentError> {
        Ok(self
            .vault
            .store()
            .read(|tx| {
                async move {
                    let Some(link) = link::by_id(tx, id).await? else { return Ok(None) };
                    with_connection(tx, link).await
                }
                .scope_boxed()
            })
            .await?)
    }

    /// Entra said no, on the redirect or at the token endpoint.
    async fn refused(
        &self,
        link: &Link,
        connection: &Connection,
        refusal: &Refusal,
    ) -> Result<Landing, ConsentError> {
        let mut meaning = refusal.meaning();
        tracing::warn!(connection = %connection.id, %refusal, code = meaning.code, "Entra refused a sign-in");
        // The user was just asked: whoever is missing now is the administrator.
        if meaning.code == "consent_required" {
            meaning = Meaning { verdict: Verdict::NeedsAdmin, code: "admin_consent_required" };
        }
        if meaning.verdict == Verdict::NeedsAdmin {
            self.tell_admin(connection, meaning).await?;
        }
        if let Some(claims) = &refusal.claims {
            let id = connection.id;
            self.vault
                .store()
                .transaction("connection.claims", |tx| {
                    async move { connection::demand(tx, id, claims).await }.scope_boxed()
                })
                .await?;
        }
        let mut landing = self.again(link, connection, meaning.code, meaning.message());
        if meaning.code == "admin_consent_required" {
            let environment = link.environment.as_deref();
            landing.admin_consent_url = Some(self.admin_url(
                &connection.workspace,
                connection.integration,
                environment,
                Some(link.id),
            ));
        }
        Ok(landing)
    }

    /// A connection that works is left as it is.
    async fn tell_admin(&self, connection: &Connection, meaning: Meaning) -> Result<(), ConsentError> {
        if matches!(connection.status, Status::Connected | Status::Disconnected) {
            return Ok(());
        }
        let (now, changes) = (self.vault.clock().now(), self.vault.changes());
        self.vault
            .store()
            .transaction("connection.needs_admin", |tx| {
                async move {
                    let (code, message) = (meaning.code, meaning.message());
                    let told =
                        connection::needs(tx, connection, Status::NeedsAdmin, code, message, None, now)
                            .await?;
                    if told && let Some(current) = connection::find(tx, connection.id).await? {
                        changes.changed(tx, &current, now).await?;
                    }
                    Ok::<_, StoreError>(())
                }
                .scope_boxed()
            })
            .await?;
        Ok(())
    }

    /// A sign-in that came to nothing and may be repeated with the same link.
    pub(super) fn again(
        &self,
        link: &Link,
        connection: &Connection,
        code: &'static str,
        message: &str,
    ) -> Landing {
        let mut landing = Landing::new(code, message);
        landing.connection = Some(connection.id);
        landing.return_to = return_to(link);
        landing.continue_url = self.sign_in_url(link, connection).ok();
        landing
    }
}
