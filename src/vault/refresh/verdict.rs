//! What an answer of Entra's changes about its connection.
//!
//! The invariant: a status changes only against the token that was refused or accepted, and is told of once.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use scoped_futures::ScopedFutureExt as _;
use uuid::Uuid;

use super::{Ask, Outcome, fail};
use crate::oauth::client::Issued;
use crate::oauth::scopes::{self, Resource};
use crate::oauth::verdict::{Meaning, Refusal, Verdict};
use crate::store::StoreError;
use crate::store::connection::{self, Connection, Status};
use crate::vault::cache::Turn;
use crate::vault::{Vault, VaultError};

const COOL_DOWN: TimeDelta = TimeDelta::minutes(5);
const REFUSED_REGISTRATION: TimeDelta = TimeDelta::seconds(30);

impl Vault {
    pub(super) async fn refused_by_entra(
        &self,
        turn: &mut Turn,
        ask: &Ask,
        connection: &Connection,
        refusal: &Refusal,
        foreign: bool,
    ) -> Result<Outcome, VaultError> {
        let now = self.clock().now();
        let meaning = refusal.meaning();
        tracing::warn!(connection = %ask.id, %refusal, code = meaning.code, "Entra refused a refresh");
        let (status, error) = match meaning.verdict {
            Verdict::NeedsUser => (Status::NeedsUser, VaultError::NeedsUser(meaning)),
            Verdict::NeedsAdmin => (Status::NeedsAdmin, VaultError::NeedsAdmin(meaning)),
            Verdict::Operator => {
                let until = now + REFUSED_REGISTRATION;
                let ours = refusal.blames_credential();
                let error = if ours {
                    VaultError::BadCredential(meaning, until)
                } else {
                    VaultError::Operator(meaning)
                };
                turn.failed = Some((until, error.clone()));
                if ours {
                    tracing::error!(%refusal, "{}", meaning.message());
                    metrics::counter!("followthrough_credential_refusals_total").increment(1);
                    self.set_refused(until, error.clone());
                }
                return Err(error);
            }
            Verdict::CoolDown => {
                let error = VaultError::CoolDown(now + COOL_DOWN);
                turn.failed = Some((now + COOL_DOWN, error.clone()));
                return Err(error);
            }
            Verdict::Retry => return Err(fail(turn, meaning.code.into(), Duration::from_secs(10), now)),
        };
        // What is wrong with some other environment says nothing about the connection's own work.
        if foreign && matches!(meaning.code, "consent_required" | "resource_not_available") {
            return Err(error);
        }
        let claims = refusal.claims.as_deref().or(ask.claims.as_deref());
        if self.declare(connection, status, meaning, claims, now).await? {
            Err(error)
        } else {
            Ok(Outcome::Again)
        }
    }

    /// Says once that a person must act, unless the refused token is no longer the one in the row: then
    /// another process has rotated it, and `false` asks for another try with what is there now.
    async fn declare(
        &self,
        refused: &Connection,
        status: Status,
        meaning: Meaning,
        claims: Option<&str>,
        now: DateTime<Utc>,
    ) -> Result<bool, VaultError> {
        let holder = self.0.holder.as_str();
        let changes = self.changes();
        Ok(self
            .0
            .store
            .transaction("vault.needs", |tx| {
                async move {
                    let told =
                        connection::needs(tx, refused, status, meaning.code, meaning.message(), claims, now)
                            .await?;
                    connection::release_token(tx, refused.id, holder).await?;
                    connection::tried(tx, refused.id, now).await?;
                    let Some(current) = connection::find(tx, refused.id).await? else { return Ok(true) };
                    if told {
                        changes.changed(tx, &current, now).await?;
                    }
                    Ok::<_, StoreError>(current.token_version == refused.token_version)
                }
                .scope_boxed()
            })
            .await?)
    }

    /// The connection's own resource refuses tokens of this grant, however fresh: its user must sign in. Said
    /// once, and not of a grant that has come since.
    pub(in crate::vault) async fn pause(
        &self,
        id: Uuid,
        grant: i64,
        resource: &Resource,
        claims: Option<&str>,
    ) -> Result<(), VaultError> {
        let (now, changes) = (self.clock().now(), self.changes());
        let app = &self.0.entra.app;
        let meaning = Meaning { verdict: Verdict::NeedsUser, code: "interaction_required" };
        let told = self
            .0
            .store
            .transaction("vault.pause", |tx| {
                async move {
                    let Some(current) = connection::find(tx, id).await? else { return Ok(false) };
                    let environment = app.environment_or_discovery(current.environment.as_deref());
                    let own = Resource::of(current.integration, &environment);
                    let same = current.status == Status::Connected && current.grant_number == grant;
                    if !same || *resource != own {
                        return Ok(false);
                    }
                    let (code, message) = (meaning.code, meaning.message());
                    let told = connection::needs(tx, &current, Status::NeedsUser, code, message, claims, now)
                        .await?;
                    if told && let Some(paused) = connection::find(tx, id).await? {
                        changes.changed(tx, &paused, now).await?;
                    }
                    Ok::<_, StoreError>(told)
                }
                .scope_boxed()
            })
            .await?;
        if told {
            self.forget(id);
            tracing::warn!(connection = %id, "fresh tokens are refused: its user must sign in again");
        }
        Ok(())
    }

    /// A grant that waited for somebody was accepted: it is good again if it covers what is needed.
    pub(super) async fn works_again(
        &self,
        connection: &Connection,
        own: &Resource,
        issued: &Issued,
        now: DateTime<Utc>,
    ) -> Result<(), VaultError> {
        let mut granted = connection.scopes.clone();
        for scope in issued.scopes.iter().map(|scope| scopes::bare(scope)) {
            if !granted.iter().any(|have| have.eq_ignore_ascii_case(&scope)) {
                granted.push(scope);
            }
        }
        if connection.status == Status::Connected
            || !scopes::granted_covers(&granted, &own.scopes(connection.integration))
        {
            return Ok(());
        }
        let (id, granted, changes) = (connection.id, granted.as_slice(), self.changes());
        self.0
            .store
            .transaction("vault.works_again", |tx| {
                async move {
                    if connection::works_again(tx, id, granted, now).await?
                        && let Some(current) = connection::find(tx, id).await?
                    {
                        changes.changed(tx, &current, now).await?;
                    }
                    Ok::<_, StoreError>(())
                }
                .scope_boxed()
            })
            .await?;
        Ok(())
    }
}
