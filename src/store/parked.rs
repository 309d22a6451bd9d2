//! The tables `jobs` and `effects` as those see them who release what is parked.
//!
//! The invariant: an effect whose outcome nobody knows is settled only together with its job, in the
//! transaction that releases or ends it.

use chrono::{DateTime, Utc};
use sqlx::FromRow;

use super::job::Key;
use super::{Result, Tx};
use crate::{sql, sql_many};

/// Which jobs: those named, or all parked ones that fit.
#[derive(Debug, Clone, Default)]
pub struct Which {
    pub workspace: Option<String>,
    pub ids: Vec<String>,
    pub kind: Option<String>,
    pub cause: Option<&'static str>,
    pub code: Option<String>,
    pub limit: i64,
}

/// A job without its payload: there may be many, and payloads are large.
#[derive(Debug, Clone, FromRow)]
pub struct Waiting {
    pub workspace: String,
    pub id: String,
    pub state: String,
    pub cause: Option<String>,
}

/// The longest waiting first. Named ones in whatever state they are; of the others none that waits for an
/// approval, which has its own verb.
pub async fn list(tx: &mut Tx, which: &Which) -> Result<Vec<Waiting>> {
    Ok(sql_many!(tx, all Waiting, |query| {
        query.push("SELECT workspace, id, state, cause FROM jobs WHERE ");
        if which.ids.is_empty() {
            query.push("state = 'parked' AND cause <> 'approval'");
        } else {
            query.push("id IN (");
            let mut list = query.separated(", ");
            for id in &which.ids {
                list.push_bind(id.clone());
            }
            query.push(")");
        }
        for (column, value) in [
            ("workspace", which.workspace.as_deref()),
            ("kind", which.kind.as_deref()),
            ("cause", which.cause),
            ("code", which.code.as_deref()),
        ] {
            if let Some(value) = value {
                query.push(" AND ").push(column).push(" = ").push_bind(value.to_owned());
            }
        }
        query.push(" ORDER BY created_at, workspace, id LIMIT ").push_bind(which.limit);
    })?)
}

/// What was intended and never confirmed is known not to have happened.
pub async fn void_intents(tx: &mut Tx, key: &Key) -> Result<()> {
    sql!(
        tx,
        execute,
        "DELETE FROM effects WHERE workspace = $1 AND job_id = $2 AND state = 'intended'",
        &key.0,
        &key.1,
    )?;
    Ok(())
}

/// What was intended is known to have happened, though nobody has its answer.
pub async fn confirm_intents(tx: &mut Tx, key: &Key, now: DateTime<Utc>) -> Result<()> {
    sql!(
        tx,
        execute,
        "UPDATE effects SET state = 'confirmed', result = 'null', request = NULL, updated_at = $3 \
         WHERE workspace = $1 AND job_id = $2 AND state = 'intended'",
        &key.0,
        &key.1,
        now,
    )?;
    Ok(())
}
