//! The table `paused_queues`: kinds from which no worker takes jobs.

use chrono::{DateTime, Utc};

use super::{Result, Tx};
use crate::sql;

pub async fn list(tx: &mut Tx) -> Result<Vec<String>> {
    let kinds = sql!(tx, all(String,), "SELECT kind FROM paused_queues ORDER BY kind")?;
    Ok(kinds.into_iter().map(|(kind,)| kind).collect())
}

pub async fn pause(tx: &mut Tx, kind: &str, by: &str, now: DateTime<Utc>) -> Result<()> {
    sql!(
        tx,
        execute,
        "INSERT INTO paused_queues (kind, paused_by, paused_at) VALUES ($1, $2, $3) ON CONFLICT (kind) DO NOTHING",
        kind,
        by,
        now,
    )?;
    Ok(())
}

pub async fn resume(tx: &mut Tx, kind: &str) -> Result<()> {
    sql!(tx, execute, "DELETE FROM paused_queues WHERE kind = $1", kind)?;
    Ok(())
}
