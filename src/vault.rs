//! The vault: sealed refresh tokens in, short-lived access tokens out.
//!
//! The invariant: an access token is handed out only after the refresh token that came with it is committed;
//! nobody refreshes one connection's token twice at a time, in this process or in the fleet; and only an
//! answer that a person can do something about ever changes a connection's status.

mod cache;
mod refresh;
mod rotate;
pub mod seal;
mod tokens;

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use scoped_futures::ScopedFutureExt as _;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;
use uuid::Uuid;

pub use cache::AccessToken;
use cache::{Cache, Wanted};
pub use rotate::Rotation;
use seal::{Keys, Place, SealError};
pub use tokens::ConnectionTokens;

use crate::clock::Clock;
use crate::oauth::client::Entra;
use crate::oauth::scopes::Resource;
use crate::oauth::verdict::Meaning;
use crate::outcome::{Cause, Classify, Disposition};
use crate::store::connection::{self, Connection, Status};
use crate::store::{MaybeConflict, Store, StoreError, Tx, link};

/// What the rest of the house does about a connection whose status changed: the event, and the jobs that are
/// released or end. Runs in the transaction of the change.
#[async_trait]
pub trait Changes: Send + Sync {
    async fn changed(
        &self,
        tx: &mut Tx,
        connection: &Connection,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError>;
}

/// Nobody listens.
#[async_trait]
impl Changes for () {
    async fn changed(&self, _: &mut Tx, _: &Connection, _: DateTime<Utc>) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Why there is no access token.
#[derive(Debug, Clone, thiserror::Error)]
pub enum VaultError {
    #[error("the connection is {0}")]
    NotConnected(&'static str),
    #[error("{}", .0.message())]
    NeedsUser(Meaning),
    #[error("{}", .0.message())]
    NeedsAdmin(Meaning),
    /// Whoever runs this fleet must act; the connection is not to blame.
    #[error("{}", .0.message())]
    Operator(Meaning),
    /// Our own credential is bad: every connection would get the same answer. Nothing is asked with it until
    /// then; jobs wait and go on by themselves once it was put right.
    #[error("{}", .0.message())]
    BadCredential(Meaning, DateTime<Utc>),
    #[error("Entra gives no token now ({code})")]
    Unavailable { code: Cow<'static, str>, until: DateTime<Utc>, wait: Duration },
    #[error("Entra saw the same request too often; not asked again before {0}")]
    CoolDown(DateTime<Utc>),
    /// Another process has been refreshing this connection's token for longer than anybody should wait.
    #[error("another process is refreshing this connection's token")]
    Busy(DateTime<Utc>),
    #[error("{0} is no resource that this fleet may ask tokens for")]
    Foreign(String),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Store(Arc<StoreError>),
}

impl From<StoreError> for VaultError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl MaybeConflict for VaultError {
    fn is_conflict(&self) -> bool {
        matches!(self, Self::Store(error) if MaybeConflict::is_conflict(error.as_ref()))
    }
}

impl Classify for VaultError {
    fn disposition(&self) -> Disposition {
        match self {
            Self::NotConnected(_) | Self::NeedsUser(_) => Disposition::Park(Cause::NeedsUser),
            Self::NeedsAdmin(_) => Disposition::Park(Cause::NeedsAdmin),
            Self::Operator(_) | Self::Seal(_) => Disposition::Park(Cause::Operator),
            Self::Unavailable { wait, .. } => Disposition::Retry { after: Some(*wait) },
            Self::BadCredential(_, until) | Self::CoolDown(until) | Self::Busy(until) => {
                Disposition::Defer { until: *until }
            }
            Self::Foreign(_) => Disposition::Reject,
            Self::Store(error) => error.disposition(),
        }
    }

    fn code(&self) -> Cow<'static, str> {
        match self {
            Self::NotConnected(_) => "not_connected".into(),
            Self::NeedsUser(meaning)
            | Self::NeedsAdmin(meaning)
            | Self::Operator(meaning)
            | Self::BadCredential(meaning, _) => meaning.code.into(),
            Self::Unavailable { code, .. } => code.clone(),
            Self::CoolDown(_) => "entra_loop_detected".into(),
            Self::Busy(_) => "token_busy".into(),
            Self::Foreign(_) => "foreign_resource".into(),
            Self::Seal(SealError::Damaged) => "sealed_value_damaged".into(),
            Self::Seal(SealError::UnknownKey(_)) => "vault_key_missing".into(),
            Self::Store(error) => error.code(),
        }
    }
}

/// Where a connection's refresh token is sealed.
pub fn token_place(id: &Uuid) -> Place<'_> {
    Place { table: "connections", row: id.as_bytes(), column: "refresh_token" }
}

/// Cloning is cheap and shares the tokens.
#[derive(Clone)]
pub struct Vault(Arc<Inner>);

struct Inner {
    store: Store,
    keys: Keys,
    entra: Entra,
    changes: Arc<dyn Changes>,
    /// This process, as the holder of leases.
    holder: String,
    cache: Cache,
    /// Until when our own credential is known to be refused.
    refused: Mutex<Option<(DateTime<Utc>, VaultError)>>,
    /// Refreshes under way; they outlive whoever asked.
    refreshes: TaskTracker,
    cut: CancellationToken,
}

impl Vault {
    pub fn new(store: Store, keys: Keys, entra: Entra, changes: Arc<dyn Changes>) -> Self {
        Self(Arc::new(Inner {
            store,
            keys,
            entra,
            changes,
            holder: Uuid::now_v7().to_string(),
            cache: Cache::default(),
            refused: Mutex::default(),
            refreshes: TaskTracker::new(),
            cut: CancellationToken::new(),
        }))
    }

    pub fn entra(&self) -> &Entra {
        &self.0.entra
    }

    pub fn keys(&self) -> &Keys {
        &self.0.keys
    }

    pub fn store(&self) -> &Store {
        &self.0.store
    }

    pub fn changes(&self) -> &dyn Changes {
        self.0.changes.as_ref()
    }

    pub fn clock(&self) -> &Clock {
        &self.0.entra.clock
    }

    /// A token for one resource, from memory or fresh.
    pub async fn access(&self, id: Uuid, resource: &Resource) -> Result<AccessToken, VaultError> {
        self.get(id, resource, Wanted::default()).await
    }

    /// The token with this serial was refused: another one, with the claims (JSON) of the challenge if there
    /// was one. Whoever comes with a token that was replaced already gets its successor.
    pub async fn rejected(
        &self,
        id: Uuid,
        resource: &Resource,
        serial: u64,
        claims: Option<&str>,
    ) -> Result<AccessToken, VaultError> {
        self.get(id, resource, Wanted { after: serial, claims, ..Wanted::default() }).await
    }

    async fn get(
        &self,
        id: Uuid,
        resource: &Resource,
        wanted: Wanted<'_>,
    ) -> Result<AccessToken, VaultError> {
        let slot = self.0.cache.slot(id);
        if let Some(token) = slot.fresh(resource, wanted, self.clock().now()) {
            return Ok(token);
        }
        let mut turn = slot.turn.clone().lock_owned().await;
        // Whoever had the turn before us may have brought what we want, or learnt that it cannot be had.
        let now = self.clock().now();
        if let Some(token) = slot.fresh(resource, wanted, now) {
            return Ok(token);
        }
        let known =
            turn.failed.take_if(|(until, _)| now >= *until).map_or_else(|| turn.failed.clone(), |_| None);
        if let Some((_, error)) = known.or_else(|| self.refused(now)) {
            return slot.usable(resource, wanted, now).ok_or(error);
        }
        let ask = refresh::Ask {
            id,
            resource: Some(resource.clone()),
            claims: wanted.claims.map(str::to_owned),
            waiting_too: false,
        };
        // The turn goes with the task: a caller that gives up neither loses a rotated token nor lets the
        // next one start a second refresh beside this one.
        match self
            .0
            .refreshes
            .spawn(self.clone().refresh_until_cut(slot.clone(), turn, ask).in_current_span())
            .await
        {
            Ok(Ok(token)) => Ok(token),
            Ok(Err(
                error @ (VaultError::Unavailable { .. }
                | VaultError::CoolDown(_)
                | VaultError::Operator(_)
                | VaultError::BadCredential(..)),
            )) => slot.usable(resource, wanted, self.clock().now()).ok_or(error),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(interrupted(now)),
        }
    }

    /// Refreshes the connection's own token although nobody needs one now: Microsoft forgets what is idle.
    /// A connection that waits for somebody is tried too, and works again when its token does.
    pub async fn keep_alive(&self, id: Uuid) -> Result<(), VaultError> {
        let slot = self.0.cache.slot(id);
        let turn = slot.turn.clone().lock_owned().await;
        let now = self.clock().now();
        let known = turn.failed.clone().filter(|(until, _)| now < *until);
        if let Some((_, error)) = known.or_else(|| self.refused(now)) {
            return Err(error);
        }
        let ask = refresh::Ask { id, resource: None, claims: None, waiting_too: true };
        match self
            .0
            .refreshes
            .spawn(self.clone().refresh_until_cut(slot.clone(), turn, ask).in_current_span())
            .await
        {
            Ok(result) => result.map(drop),
            Err(_) => Ok(()),
        }
    }

    /// A connection that could not be kept alive is tried again only when its turn comes round: those that
    /// always fail must not stand before all others.
    pub async fn tried(&self, id: Uuid) -> Result<(), VaultError> {
        let now = self.clock().now();
        let tried = self
            .0
            .store
            .transaction("vault.tried", |tx| {
                async move { connection::tried(tx, id, now).await }.scope_boxed()
            })
            .await;
        Ok(tried?)
    }

    /// Lets refreshes under way end and save what they got. What takes longer than `patience` is cut off and
    /// its lease given back, or the next process would wait for it.
    pub async fn close(&self, patience: Duration) {
        self.0.refreshes.close();
        tokio::select! {
            () = self.0.refreshes.wait() => {}
            () = self.clock().sleep(patience) => {
                self.0.cut.cancel();
                self.0.refreshes.wait().await;
            }
        }
    }

    /// Connections that nobody has refreshed for `older_than`, the longest idle first.
    pub async fn idle_connections(&self, older_than: TimeDelta, limit: i64) -> Result<Vec<Uuid>, VaultError> {
        let since = self.clock().now() - older_than;
        self.0
            .store
            .read(|tx| async move { Ok(connection::idle(tx, since, limit).await?) }.scope_boxed())
            .await
    }

    /// Wipes the tokens and ends the connection, with the receipt of all that was ended; its open links end with it.
    /// `None` when there is no such connection. Microsoft's side of the consent remains: users end it under My Apps.
    pub async fn disconnect(&self, id: Uuid) -> Result<Option<Connection>, VaultError> {
        let now = self.clock().now();
        let changes = self.changes();
        let ended = self
            .0
            .store
            .transaction("disconnect", |tx| {
                async move {
                    let Some(found) = connection::find(tx, id).await? else { return Ok(None) };
                    let kept =
                        connection::sealed(tx, id).await?.is_some_and(|kept| kept.refresh_token.is_some());
                    let mut receipt = found.receipt_so_far(now);
                    receipt["tokens"] = json!(if kept { "wiped" } else { "none" });
                    receipt["disconnected_at"] = json!(now);
                    let changed = connection::disconnect(tx, id, &receipt.to_string(), now).await?;
                    let Some(connection) = connection::find(tx, id).await? else { return Ok(None) };
                    if changed {
                        link::end_all(tx, id, now).await?;
                        changes.changed(tx, &connection, now).await?;
                    }
                    Ok::<_, StoreError>(Some(connection))
                }
                .scope_boxed()
            })
            .await?;
        self.forget(id);
        Ok(ended)
    }

    /// Drops what this process holds of a connection whose grant changed.
    pub fn forget(&self, id: Uuid) {
        self.0.cache.forget(id);
    }

    fn refused(&self, now: DateTime<Utc>) -> Option<(DateTime<Utc>, VaultError)> {
        let refused = self.0.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.clone().filter(|(until, _)| now < *until)
    }

    fn set_refused(&self, until: DateTime<Utc>, error: VaultError) {
        *self.0.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some((until, error));
    }
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vault(secret)")
    }
}

/// Nobody knows whether Entra answered; the token in the row is as good as before.
fn interrupted(now: DateTime<Utc>) -> VaultError {
    VaultError::Unavailable { code: "refresh_interrupted".into(), until: now, wait: Duration::from_secs(1) }
}

/// What a status that is not `connected` means for a job.
fn not_connected(connection: &Connection) -> VaultError {
    match connection.status {
        Status::Pending => VaultError::NotConnected("not connected yet"),
        Status::Disconnected => VaultError::NotConnected("disconnected"),
        Status::NeedsAdmin => VaultError::NeedsAdmin(meaning(connection)),
        Status::NeedsUser | Status::Connected | Status::Disconnecting => {
            VaultError::NeedsUser(meaning(connection))
        }
    }
}

fn meaning(connection: &Connection) -> Meaning {
    Meaning::of_code(connection.cause.as_deref().unwrap_or_default(), connection.status == Status::NeedsAdmin)
}
