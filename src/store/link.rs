//! One-time sign-in links.
//!
//! The invariant: a link is spent by the one callback that stored a grant with it, never by being opened,
//! so that neither a preview nor a refused sign-in costs the user the link.

use chrono::{DateTime, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use super::{Result, Tx};
use crate::sql;

#[derive(Clone, FromRow)]
pub struct Link {
    pub id: Uuid,
    pub connection_id: Uuid,
    pub secret_hash: Vec<u8>,
    /// The sign-in name that is expected.
    pub account: Option<String>,
    /// May another account take the place of the one that is connected?
    pub replaces: bool,
    pub return_to: Option<String>,
    pub environment: Option<String>,
    pub nonce: String,
    /// The sealed PKCE verifier.
    pub verifier: Vec<u8>,
    pub used_at: Option<DateTime<Utc>>,
    pub expires_at: DateTime<Utc>,
    pub created_at: DateTime<Utc>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Link {
    pub fn is_open(&self, now: DateTime<Utc>) -> bool {
        self.used_at.is_none() && now < self.expires_at
    }
}

const COLUMNS: &str = "id, connection_id, secret_hash, account, replaces, return_to, environment, nonce, verifier, used_at, expires_at, created_at";

pub async fn insert(tx: &mut Tx, link: &Link) -> Result<()> {
    sql!(
        tx,
        execute,
        "INSERT INTO sign_in_links (id, connection_id, secret_hash, account, replaces, return_to, environment,
             nonce, verifier, expires_at, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        link.id,
        link.connection_id,
        &link.secret_hash,
        &link.account,
        link.replaces,
        &link.return_to,
        &link.environment,
        &link.nonce,
        &link.verifier,
        link.expires_at,
        link.created_at,
    )?;
    Ok(())
}

pub async fn by_hash(tx: &mut Tx, hash: &[u8]) -> Result<Option<Link>> {
    let text = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM sign_in_links WHERE secret_hash = $1"));
    Ok(sql!(tx, optional Link, text, hash)?)
}

pub async fn by_id(tx: &mut Tx, id: Uuid) -> Result<Option<Link>> {
    let text = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM sign_in_links WHERE id = $1"));
    Ok(sql!(tx, optional Link, text, id)?)
}

/// Spends the link; `false` when it was spent or ran out.
pub async fn spend(tx: &mut Tx, id: Uuid, now: DateTime<Utc>) -> Result<bool> {
    let spent = sql!(
        tx,
        execute,
        "UPDATE sign_in_links SET used_at = $2 WHERE id = $1 AND used_at IS NULL AND expires_at > $2",
        id,
        now,
    )?;
    Ok(spent == 1)
}

/// Ends every open link of a connection that was connected or disconnected.
pub async fn end_all(tx: &mut Tx, connection: Uuid, now: DateTime<Utc>) -> Result<()> {
    sql!(
        tx,
        execute,
        "UPDATE sign_in_links SET used_at = $2 WHERE connection_id = $1 AND used_at IS NULL",
        connection,
        now,
    )?;
    Ok(())
}

/// Forgets links that ran out before `before`; their verifiers are of no use to anybody.
pub async fn forget(tx: &mut Tx, before: DateTime<Utc>) -> Result<u64> {
    Ok(sql!(tx, execute, "DELETE FROM sign_in_links WHERE expires_at < $1", before)?)
}

/// Sealed verifiers after `after`, for sealing them again.
pub async fn sealed_after(tx: &mut Tx, after: Uuid, limit: i64) -> Result<Vec<(Uuid, Vec<u8>)>> {
    Ok(sql!(
        tx,
        all(Uuid, Vec<u8>),
        "SELECT id, verifier FROM sign_in_links WHERE id > $1 AND used_at IS NULL ORDER BY id LIMIT $2",
        after,
        limit,
    )?)
}

/// Puts the same verifier under another seal.
pub async fn reseal(tx: &mut Tx, id: Uuid, old: &[u8], new: &[u8]) -> Result<bool> {
    let done = sql!(
        tx,
        execute,
        "UPDATE sign_in_links SET verifier = $3 WHERE id = $1 AND verifier = $2",
        id,
        old,
        new,
    )?;
    Ok(done == 1)
}
