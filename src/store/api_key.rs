//! The table `api_keys`: hashes of what was shown once.

use chrono::{DateTime, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use super::{Result, Tx};
use crate::sql;

#[derive(Debug, Clone, FromRow)]
pub struct ApiKey {
    pub id: Uuid,
    pub name: String,
    pub role: String,
    pub workspace: Option<String>,
    pub hash: Vec<u8>,
    pub created_at: DateTime<Utc>,
    pub revoked_at: Option<DateTime<Utc>>,
}

pub async fn insert(tx: &mut Tx, key: &ApiKey) -> Result<()> {
    sql!(
        tx,
        execute,
        "INSERT INTO api_keys (id, name, role, workspace, hash, created_at) VALUES ($1, $2, $3, $4, $5, $6)",
        key.id,
        &key.name,
        &key.role,
        key.workspace.as_deref(),
        &key.hash,
        key.created_at,
    )?;
    Ok(())
}

pub async fn find_by_hash(tx: &mut Tx, hash: &[u8]) -> Result<Option<ApiKey>> {
    Ok(sql!(
        tx,
        optional ApiKey,
        "SELECT id, name, role, workspace, hash, created_at, revoked_at FROM api_keys WHERE hash = $1",
        hash,
    )?)
}

/// Oldest first; a fleet has few.
pub async fn list(tx: &mut Tx) -> Result<Vec<ApiKey>> {
    Ok(sql!(
        tx,
        all ApiKey,
        "SELECT id, name, role, workspace, hash, created_at, revoked_at FROM api_keys ORDER BY created_at, id",
    )?)
}

/// `false` when there is no such key, or it was revoked before.
pub async fn revoke(tx: &mut Tx, id: Uuid, now: DateTime<Utc>) -> Result<bool> {
    let done = sql!(
        tx,
        execute,
        "UPDATE api_keys SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL",
        id,
        now,
    )?;
    Ok(done == 1)
}
