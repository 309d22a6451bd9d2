//! The table `tools`: the permission grid as the administrator wrote it.

use chrono::{DateTime, Utc};

use super::{Result, Tx};
use crate::{sql, sql_many};

/// `(workspace, tool pattern, level)`.
pub type Rule = (String, String, String);

pub async fn of_workspaces(tx: &mut Tx, workspaces: &[String]) -> Result<Vec<Rule>> {
    if workspaces.is_empty() {
        return Ok(Vec::new());
    }
    Ok(sql_many!(tx, all Rule, |query| {
        query.push("SELECT workspace, tool, level FROM tools WHERE workspace IN (");
        let mut list = query.separated(", ");
        for workspace in workspaces {
            list.push_bind(workspace.clone());
        }
        query.push(")");
    })?)
}

pub async fn set(tx: &mut Tx, workspace: &str, tool: &str, level: &str, now: DateTime<Utc>) -> Result<()> {
    sql!(
        tx,
        execute,
        "INSERT INTO tools (workspace, tool, level, updated_at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (workspace, tool) DO UPDATE SET level = excluded.level, updated_at = excluded.updated_at",
        workspace,
        tool,
        level,
        now,
    )?;
    Ok(())
}

/// Denies everything again.
pub async fn clear(tx: &mut Tx, workspace: &str) -> Result<()> {
    sql!(tx, execute, "DELETE FROM tools WHERE workspace = $1", workspace)?;
    Ok(())
}
