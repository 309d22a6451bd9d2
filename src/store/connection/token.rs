//! The sealed token in a connection's row: storing a grant, the lease on refreshing it, its rotation.
//!
//! The invariant: every write says which token it replaces, by version or by its very bytes, and whoever is
//! late changes nothing.

use chrono::{DateTime, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use super::Status;
use crate::sql;
use crate::store::{Result, Tx};

/// What a sign-in brought.
#[derive(Clone)]
pub struct Grant {
    pub status: Status,
    pub cause: Option<String>,
    pub message: Option<String>,
    pub tenant_id: String,
    pub object_id: String,
    pub account: Option<String>,
    pub scopes: Vec<String>,
    pub environment: Option<String>,
    /// Sealed for this row.
    pub refresh_token: Vec<u8>,
}

/// Stores a sign-in, unless the connection is being disconnected. A refresh that is under way loses its
/// compare-and-swap: the grant is newer.
pub async fn save_grant(tx: &mut Tx, id: Uuid, grant: &Grant, now: DateTime<Utc>) -> Result<bool> {
    let saved = sql!(
        tx,
        execute,
        "UPDATE connections SET status = $2, cause = $3, message = $4, tenant_id = $5, object_id = $6,
             account = $7, scopes = $8, environment = COALESCE($9, environment), refresh_token = $10, claims = NULL,
             grant_number = grant_number + 1, token_version = token_version + 1,
             refresh_holder = NULL, refresh_until = NULL, refreshed_at = $11, updated_at = $11
         WHERE id = $1 AND status <> 'disconnecting'",
        id,
        grant.status.as_str(),
        &grant.cause,
        &grant.message,
        &grant.tenant_id,
        &grant.object_id,
        &grant.account,
        grant.scopes.join(" "),
        &grant.environment,
        &grant.refresh_token,
        now,
    )?;
    Ok(saved == 1)
}

/// The sealed token and its version, for whoever holds the lease on refreshing it.
#[derive(Clone, FromRow)]
pub struct Sealed {
    pub refresh_token: Option<Vec<u8>>,
    pub token_version: i64,
}

/// Takes the lease on refreshing this connection's token; `None` while another holder's is live.
pub async fn lease_token(
    tx: &mut Tx,
    id: Uuid,
    holder: &str,
    now: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Result<Option<Sealed>> {
    Ok(sql!(
        tx,
        optional Sealed,
        "UPDATE connections SET refresh_holder = $2, refresh_until = $4
         WHERE id = $1 AND (refresh_holder IS NULL OR refresh_holder = $2 OR refresh_until <= $3)
         RETURNING refresh_token, token_version",
        id,
        holder,
        now,
        until,
    )?)
}

pub async fn release_token(tx: &mut Tx, id: Uuid, holder: &str) -> Result<()> {
    sql!(
        tx,
        execute,
        "UPDATE connections SET refresh_holder = NULL, refresh_until = NULL WHERE id = $1 AND refresh_holder = $2",
        id,
        holder,
    )?;
    Ok(())
}

/// Puts the rotated token in the place of the one of this version and gives the lease back; `false` when the
/// row has moved on, and then the new token must be forgotten.
pub async fn save_rotated(
    tx: &mut Tx,
    id: Uuid,
    version: i64,
    refresh_token: &[u8],
    now: DateTime<Utc>,
) -> Result<bool> {
    let saved = sql!(
        tx,
        execute,
        "UPDATE connections SET refresh_token = $3, token_version = token_version + 1, refreshed_at = $4,
             refresh_holder = NULL, refresh_until = NULL
         WHERE id = $1 AND token_version = $2 AND refresh_token IS NOT NULL",
        id,
        version,
        refresh_token,
        now,
    )?;
    Ok(saved == 1)
}

/// Sealed tokens after `after`, for sealing them again.
pub async fn sealed_after(tx: &mut Tx, after: Uuid, limit: i64) -> Result<Vec<(Uuid, Vec<u8>)>> {
    Ok(sql!(
        tx,
        all(Uuid, Vec<u8>),
        "SELECT id, refresh_token FROM connections WHERE id > $1 AND refresh_token IS NOT NULL ORDER BY id LIMIT $2",
        after,
        limit,
    )?)
}

pub async fn sealed(tx: &mut Tx, id: Uuid) -> Result<Option<Sealed>> {
    Ok(sql!(
        tx,
        optional Sealed,
        "SELECT refresh_token, token_version FROM connections WHERE id = $1",
        id,
    )?)
}

/// Puts the same token under another seal; its version stays, so a refresh under way is not disturbed.
pub async fn reseal(tx: &mut Tx, id: Uuid, old: &[u8], new: &[u8]) -> Result<bool> {
    let done = sql!(
        tx,
        execute,
        "UPDATE connections SET refresh_token = $3 WHERE id = $1 AND refresh_token = $2",
        id,
        old,
        new,
    )?;
    Ok(done == 1)
}
