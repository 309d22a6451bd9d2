//! Refreshing one connection's token: lease, ask, save, and only then use.
//!
//! The invariant: a rotated refresh token is committed, by compare-and-swap on the version it replaces,
//! before its access token is handed out; a refusal counts only against the token that is still in the row.

mod verdict;

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use scoped_futures::ScopedFutureExt as _;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::OwnedMutexGuard;
use uuid::Uuid;

use super::cache::{AccessToken, Held, Slot, Turn, Unsaved};
use super::{Vault, VaultError, interrupted, not_connected, token_place};
use crate::oauth::client::{Issued, TokenError};
use crate::oauth::scopes::{self, Resource};
use crate::outcome::Classify as _;
use crate::store::Tx;
use crate::store::connection::{self, Connection, Sealed, Status};

/// Longer than the slowest token request with its save; what a process that died leaves others to wait for.
const LEASE: TimeDelta = TimeDelta::seconds(60);
const POLL: Duration = Duration::from_millis(100);
/// How often a token is tried that turned out to have been replaced meanwhile.
const TRIES: u32 = 4;
const SAVES: u32 = 5;
const EARLY: Duration = Duration::from_mins(5);

/// What is asked for.
pub(super) struct Ask {
    pub(super) id: Uuid,
    /// The connection's own, if none is named.
    pub(super) resource: Option<Resource>,
    pub(super) claims: Option<String>,
    /// Also when the connection waits for somebody.
    pub(super) waiting_too: bool,
}

enum Leased {
    Mine(Box<Connection>, Sealed),
    Elsewhere,
}

/// What one request came to.
enum Outcome {
    Done(AccessToken),
    /// The row had moved on: again, with what is there now.
    Again,
}

impl Vault {
    /// [`Vault::refresh`], until the vault closes. An unsaved token keeps its lease all the same.
    pub(super) async fn refresh_until_cut(
        self,
        slot: Arc<Slot>,
        mut turn: OwnedMutexGuard<Turn>,
        ask: Ask,
    ) -> Result<AccessToken, VaultError> {
        tokio::select! {
            biased;
            refreshed = self.refresh(&slot, &mut turn, &ask) => return refreshed,
            () = self.0.cut.cancelled() => {}
        }
        if turn.unsaved.is_none() {
            self.release(ask.id).await;
        }
        Err(interrupted(self.clock().now()))
    }

    /// Only for whoever has the turn.
    async fn refresh(&self, slot: &Slot, turn: &mut Turn, ask: &Ask) -> Result<AccessToken, VaultError> {
        self.0.cache.sweep(self.clock().now());
        for _ in 0..TRIES {
            if let Some(token) = self.settle(slot, turn, ask).await? {
                return Ok(token);
            }
            let (connection, sealed) = self.lease(ask.id, ask.waiting_too).await?;
            match self.ask(slot, turn, ask, &connection, sealed).await {
                Ok(Outcome::Done(token)) => return Ok(token),
                Ok(Outcome::Again) => {}
                Err(error) => {
                    // An unsaved token keeps the lease: until it is saved, nobody else should ask.
                    if turn.unsaved.is_none() {
                        self.release(ask.id).await;
                    }
                    metrics::counter!("followthrough_token_failures_total", "code" => error.code().into_owned())
                        .increment(1);
                    return Err(error);
                }
            }
        }
        Err(VaultError::Busy(self.clock().now() + TimeDelta::seconds(1)))
    }

    /// Waits for the right to refresh.
    async fn lease(&self, id: Uuid, waiting_too: bool) -> Result<(Connection, Sealed), VaultError> {
        let give_up = self.clock().now() + LEASE;
        let holder = self.0.holder.as_str();
        loop {
            let now = self.clock().now();
            let leased = self
                .0
                .store
                .transaction("vault.lease", |tx| {
                    async move { lease(tx, id, holder, waiting_too, now).await }.scope_boxed()
                })
                .await?;
            match leased {
                Leased::Mine(connection, sealed) => return Ok((*connection, sealed)),
                Leased::Elsewhere if now >= give_up => {
                    return Err(VaultError::Busy(now + TimeDelta::seconds(1)));
                }
                Leased::Elsewhere => self.clock().sleep(POLL).await,
            }
        }
    }

    async fn ask(
        &self,
        slot: &Slot,
        turn: &mut Turn,
        ask: &Ask,
        connection: &Connection,
        sealed: Sealed,
    ) -> Result<Outcome, VaultError> {
        let (Some(bytes), Some(tenant)) = (&sealed.refresh_token, &connection.tenant_id) else {
            return Err(VaultError::NotConnected("without a grant"));
        };
        let plain = self.0.keys.open(token_place(&ask.id), bytes)?;
        let refresh_token = SecretString::from(String::from_utf8_lossy(plain.expose_secret()).into_owned());
        let app = &self.0.entra.app;
        let environment = app.environment_or_discovery(connection.environment.as_deref());
        let own = Resource::of(connection.integration, &environment);
        let resource = ask.resource.clone().unwrap_or_else(|| own.clone());
        let wanted = asked_for(connection, &resource, ask.waiting_too);
        let answer = self.0.entra.refresh(tenant, &refresh_token, &wanted, ask.claims.as_deref()).await;
        let now = self.clock().now();
        match answer {
            Ok(issued) => {
                metrics::counter!("followthrough_tokens_refreshed_total").increment(1);
                turn.failed = None;
                let next = issued.refresh_token.as_ref().unwrap_or(&refresh_token);
                let sealed_next = self.0.keys.seal(token_place(&ask.id), next.expose_secret().as_bytes());
                turn.unsaved = Some(Unsaved {
                    version: sealed.token_version,
                    sealed: sealed_next,
                    held: self.held(resource, connection.grant_number, ask.claims.clone(), &issued, now),
                });
                let Some(token) = self.settle(slot, turn, ask).await? else { return Ok(Outcome::Again) };
                if ask.waiting_too {
                    self.works_again(connection, &own, &issued, now).await?;
                }
                Ok(Outcome::Done(token))
            }
            Err(TokenError::Refused(refusal)) => {
                let foreign = resource != own;
                self.refused_by_entra(turn, ask, connection, &refusal, foreign).await
            }
            Err(error) => Err(Self::unavailable(turn, &error, now)),
        }
    }

    /// Saves what is unsaved and hands its access token out; `None` when there is nothing, or when the row has
    /// moved on and the token is to be forgotten.
    async fn settle(
        &self,
        slot: &Slot,
        turn: &mut Turn,
        ask: &Ask,
    ) -> Result<Option<AccessToken>, VaultError> {
        let Some(unsaved) = &turn.unsaved else { return Ok(None) };
        let (id, version, sealed) = (ask.id, unsaved.version, unsaved.sealed.as_slice());
        let mut wait = POLL;
        let mut tries = 1;
        let saved = loop {
            let now = self.clock().now();
            let saved = self
                .0
                .store
                .transaction("vault.save", |tx| {
                    async move { connection::save_rotated(tx, id, version, sealed, now).await }.scope_boxed()
                })
                .await;
            match saved {
                Ok(saved) => break saved,
                Err(error) if tries >= SAVES => {
                    tracing::error!(connection = %id, %error, "a rotated token is not saved and so not used");
                    return Err(error.into());
                }
                Err(error) => tracing::warn!(connection = %id, %error, "saving a rotated token again"),
            }
            self.clock().sleep(wait).await;
            wait *= 2;
            tries += 1;
        };
        let Some(Unsaved { held, .. }) = turn.unsaved.take() else { return Ok(None) };
        if !saved {
            tracing::info!(connection = %id, "a token was refreshed while its connection changed; it is forgotten");
            return Ok(None);
        }
        let now = self.clock().now();
        let fits = ask.resource.as_ref().is_none_or(|resource| *resource == held.resource)
            && (ask.claims.is_none() || ask.claims == held.claims)
            && now < held.renew_at;
        let token = held.token.clone();
        slot.keep(held, now);
        Ok(fits.then_some(token))
    }

    fn held(
        &self,
        resource: Resource,
        grant: i64,
        claims: Option<String>,
        issued: &Issued,
        now: DateTime<Utc>,
    ) -> Held {
        let lifetime = issued.expires_in;
        // A short-lived token is not renewed from its first minute on.
        let last = lifetime.saturating_sub(EARLY.min(lifetime / 4));
        let renew = issued.refresh_in.map_or(last, |wish| wish.min(last));
        Held {
            resource,
            token: AccessToken { secret: issued.access_token.clone(), serial: self.0.cache.next_serial() },
            grant,
            claims,
            renew_at: now + renew,
            expires_at: now + lifetime,
        }
    }

    fn unavailable(turn: &mut Turn, error: &TokenError, now: DateTime<Utc>) -> VaultError {
        let (code, wait) = match error {
            TokenError::Unavailable { status: 429, retry_after } => ("entra_throttled".into(), *retry_after),
            TokenError::Unavailable { retry_after, .. } => ("entra_unavailable".into(), *retry_after),
            TokenError::Http(error) => (error.code(), Duration::from_secs(2)),
            TokenError::Unreadable(_) | TokenError::Refused(_) => {
                ("entra_unreadable".into(), Duration::from_secs(10))
            }
        };
        tracing::warn!(%error, "no token from Entra");
        fail(turn, code, wait.max(Duration::from_secs(1)), now)
    }

    /// A lease that cannot be given back runs out by itself.
    async fn release(&self, id: Uuid) {
        let holder = self.0.holder.as_str();
        let released = self
            .0
            .store
            .transaction("vault.release", |tx| {
                async move { connection::release_token(tx, id, holder).await }.scope_boxed()
            })
            .await;
        if let Err(error) = released {
            tracing::warn!(connection = %id, %error, "a refresh lease is left to run out");
        }
    }
}

async fn lease(
    tx: &mut Tx,
    id: Uuid,
    holder: &str,
    waiting_too: bool,
    now: DateTime<Utc>,
) -> Result<Leased, VaultError> {
    let sealed = connection::lease_token(tx, id, holder, now, now + LEASE).await?;
    let Some(connection) = connection::find(tx, id).await? else {
        return Err(VaultError::NotConnected("not known"));
    };
    let waits = matches!(connection.status, Status::NeedsUser | Status::NeedsAdmin);
    // An error rolls the lease back.
    // One that ends has its last calls to make.
    let works = matches!(connection.status, Status::Connected | Status::Disconnecting);
    if !(works || waits && waiting_too) {
        return Err(not_connected(&connection));
    }
    Ok(sealed.map_or(Leased::Elsewhere, |sealed| Leased::Mine(Box::new(connection), sealed)))
}

/// The scopes of one resource that were granted: asking for one that was not would be refused as a whole.
/// Who tries whether a consent has come meanwhile asks for all.
fn asked_for(connection: &Connection, resource: &Resource, all: bool) -> Vec<String> {
    let needed = resource.scopes(connection.integration);
    let missing = scopes::missing(&needed, &connection.scopes);
    if all || missing.len() == needed.len() {
        return needed;
    }
    needed.into_iter().filter(|scope| !missing.contains(scope)).collect()
}

fn fail(
    turn: &mut Turn,
    code: std::borrow::Cow<'static, str>,
    wait: Duration,
    now: DateTime<Utc>,
) -> VaultError {
    let until = now + wait;
    let error = VaultError::Unavailable { code, until, wait };
    turn.failed = Some((until, error.clone()));
    error
}
