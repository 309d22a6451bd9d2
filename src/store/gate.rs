//! The table `gates`: cool-downs, and the lock under which permits are counted.

use chrono::{DateTime, Utc};

use super::{Result, Tx, padded};
use crate::{sql, sql_many};

/// Shared mailboxes count for themselves, whoever's token is used.
pub fn of_mailbox(tenant: &str, name: &str) -> String {
    format!("mailbox:{tenant}:{name}")
}

/// Locks the gates of a claim, in order, and tells until when each is closed. Whoever holds the lock may
/// count running jobs and add to them; nobody else does meanwhile.
pub async fn lock(tx: &mut Tx, keys: &[String]) -> Result<Vec<(String, Option<DateTime<Utc>>)>> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    debug_assert!(keys.is_sorted(), "locks are taken in one order, or two claims wait for each other");
    Ok(sql_many!(tx, all(String, Option<DateTime<Utc>>), |query| {
        query.push("WITH v(v_key) AS (");
        query.push_values(padded(keys, |_| 0), |mut row, (key, repeated)| {
            row.push_bind((!repeated).then(|| key.clone()));
        });
        query.push(") INSERT INTO gates (key) SELECT v_key FROM v WHERE v_key IS NOT NULL");
        query.push(" ON CONFLICT (key) DO UPDATE SET touched = gates.touched + 1 RETURNING key, not_before");
    })?)
}

/// Until when it is closed, or was.
pub async fn closed_until(tx: &mut Tx, key: &str) -> Result<Option<DateTime<Utc>>> {
    let sql = "SELECT key, not_before FROM gates WHERE key = $1 AND not_before IS NOT NULL";
    let found = sql!(tx, optional(String, DateTime<Utc>), sql, key)?;
    Ok(found.map(|(_, not_before)| not_before))
}

/// Closes a gate until `until`; a later closing time that is already there stays.
pub async fn close(tx: &mut Tx, key: &str, until: DateTime<Utc>) -> Result<()> {
    sql!(
        tx,
        execute,
        "INSERT INTO gates (key, not_before, strikes) VALUES ($1, $2, 1) \
         ON CONFLICT (key) DO UPDATE SET strikes = gates.strikes + 1, \
         not_before = CASE WHEN gates.not_before > excluded.not_before THEN gates.not_before \
         ELSE excluded.not_before END",
        key,
        until,
    )?;
    Ok(())
}
