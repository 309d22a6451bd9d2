//! Leases by name: one leader at a time for what must be done once in the fleet.

use chrono::{DateTime, Utc};

use super::{Result, Tx};
use crate::sql;

/// Takes or renews the lease; `false` when another holder's is still live.
pub async fn hold(
    tx: &mut Tx,
    name: &str,
    holder: &str,
    now: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Result<bool> {
    let held = sql!(
        tx,
        execute,
        "INSERT INTO leases (name, holder, until) VALUES ($1, $2, $3)
         ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
         WHERE leases.holder = excluded.holder OR leases.until < $4",
        name,
        holder,
        until,
        now,
    )?;
    Ok(held == 1)
}

pub async fn release(tx: &mut Tx, name: &str, holder: &str) -> Result<()> {
    sql!(tx, execute, "DELETE FROM leases WHERE name = $1 AND holder = $2", name, holder)?;
    Ok(())
}

type Holder = (String,);

/// Is anybody's lease of that name live?
pub async fn live(tx: &mut Tx, name: &str, now: DateTime<Utc>) -> Result<bool> {
    let held =
        sql!(tx, optional Holder, "SELECT holder FROM leases WHERE name = $1 AND until >= $2", name, now)?;
    Ok(held.is_some())
}
