//! Connections: one user's consent for one integration.
//!
//! The invariant: a refresh token changes only together with `token_version`, and only by whoever read the
//! version it replaces; a person's grant changes only together with `grant_number`. The row type carries no
//! token, so that listing connections cannot leak one.

mod token;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::FromRow;
use uuid::Uuid;

use super::{Result, StoreError, Tx, padded};
pub use token::{
    Grant, Sealed, lease_token, release_token, reseal, save_grant, save_rotated, sealed, sealed_after,
};

use crate::oauth::scopes::Integration;
use crate::{sql, sql_many};

/// Can jobs be done with it, and if not, who must act?
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// A link was made and nobody has signed in yet.
    Pending,
    Connected,
    NeedsUser,
    NeedsAdmin,
    /// Nothing new is begun with it; its tokens are wiped once its mailboxes are ended.
    Disconnecting,
    Disconnected,
}

impl Status {
    pub const ALL: [Self; 6] = [
        Self::Pending,
        Self::Connected,
        Self::NeedsUser,
        Self::NeedsAdmin,
        Self::Disconnecting,
        Self::Disconnected,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Connected => "connected",
            Self::NeedsUser => "needs_user",
            Self::NeedsAdmin => "needs_admin",
            Self::Disconnecting => "disconnecting",
            Self::Disconnected => "disconnected",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    pub id: Uuid,
    pub workspace: String,
    pub user_name: String,
    pub integration: Integration,
    pub status: Status,
    /// The code of why it is not connected.
    pub cause: Option<String>,
    /// One line for the person who must act.
    pub message: Option<String>,
    pub tenant_id: Option<String>,
    pub object_id: Option<String>,
    /// The sign-in name, to show; never to decide by.
    pub account: Option<String>,
    /// What was granted.
    pub scopes: Vec<String>,
    pub environment: Option<String>,
    /// What the next sign-in must satisfy.
    pub claims: Option<String>,
    /// Counts the grants and disconnects: a token of an earlier grant must not be used.
    pub grant_number: i64,
    pub token_version: i64,
    pub refreshed_at: Option<DateTime<Utc>>,
    /// Of its last disconnect, as JSON; kept when it is connected again.
    pub receipt: Option<String>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl Connection {
    /// What is known of the disconnect that is under way, or the beginning of one.
    pub fn receipt_so_far(&self, now: DateTime<Utc>) -> Value {
        let begun = self.last_receipt().filter(|_| self.status == Status::Disconnecting);
        begun.unwrap_or_else(|| json!({"connection": self.id, "asked_at": now, "mailboxes": []}))
    }

    /// Of its last disconnect.
    pub fn last_receipt(&self) -> Option<Value> {
        serde_json::from_str(self.receipt.as_deref()?).ok()
    }

    /// Was this granted? Dataverse's only scope is named without its environment.
    pub fn allows(&self, scope: &str) -> bool {
        self.scopes.iter().any(|granted| {
            let name = granted.rsplit('/').next().unwrap_or_default();
            granted.eq_ignore_ascii_case(scope)
                || (scope == "user_impersonation" && name.eq_ignore_ascii_case(scope))
        })
    }
}

#[derive(FromRow)]
struct Row {
    id: Uuid,
    workspace: String,
    user_name: String,
    integration: String,
    status: String,
    cause: Option<String>,
    message: Option<String>,
    tenant_id: Option<String>,
    object_id: Option<String>,
    account: Option<String>,
    scopes: String,
    environment: Option<String>,
    claims: Option<String>,
    grant_number: i64,
    token_version: i64,
    refreshed_at: Option<DateTime<Utc>>,
    receipt: Option<String>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl TryFrom<Row> for Connection {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self> {
        let corrupt = |column: &str| StoreError::Corrupt(format!("connections.{column} of {}", row.id));
        Ok(Self {
            integration: Integration::parse(&row.integration).ok_or_else(|| corrupt("integration"))?,
            status: Status::parse(&row.status).ok_or_else(|| corrupt("status"))?,
            id: row.id,
            workspace: row.workspace,
            user_name: row.user_name,
            cause: row.cause,
            message: row.message,
            tenant_id: row.tenant_id,
            object_id: row.object_id,
            account: row.account,
            scopes: row.scopes.split_whitespace().map(str::to_owned).collect(),
            environment: row.environment,
            claims: row.claims,
            grant_number: row.grant_number,
            token_version: row.token_version,
            refreshed_at: row.refreshed_at,
            receipt: row.receipt,
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }
}

/// A statement over connections that gives whole rows.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, workspace, user_name, integration, status, cause, message, tenant_id, object_id, account,
                 scopes, environment, claims, grant_number, token_version, refreshed_at, receipt, created_at,
                 updated_at
             FROM connections ",
            $rest
        )
    };
}

fn rows(rows: Vec<Row>) -> Result<Vec<Connection>> {
    rows.into_iter().map(Connection::try_from).collect()
}

pub async fn find(tx: &mut Tx, id: Uuid) -> Result<Option<Connection>> {
    sql!(tx, optional Row, select!("WHERE id = $1"), id)?.map(Connection::try_from).transpose()
}

pub async fn find_for(
    tx: &mut Tx,
    workspace: &str,
    user: &str,
    integration: Integration,
) -> Result<Option<Connection>> {
    sql!(
        tx,
        optional Row,
        select!("WHERE workspace = $1 AND user_name = $2 AND integration = $3"),
        workspace,
        user,
        integration.as_str(),
    )?
    .map(Connection::try_from)
    .transpose()
}

/// All that exist of these (workspace, user, integration), in no order, in one statement.
pub async fn find_many(tx: &mut Tx, keys: &[(String, String, Integration)]) -> Result<Vec<Connection>> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let found = sql_many!(tx, all Row, |builder| {
        builder.push(select!("WHERE (workspace, user_name, integration) IN ("));
        builder.push_values(padded(keys, |_| 0), |mut row, ((workspace, user, integration), _)| {
            row.push_bind(workspace.as_str()).push_bind(user.as_str()).push_bind(integration.as_str());
        });
        builder.push(")");
    })?;
    rows(found)
}

/// A workspace's connections, oldest first, after the one the last page ended with.
pub async fn list(
    tx: &mut Tx,
    workspace: Option<&str>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Connection>> {
    let after = after.unwrap_or_default();
    rows(match workspace {
        Some(workspace) => sql!(
            tx,
            all Row,
            select!("WHERE workspace = $1 AND id > $2 ORDER BY id LIMIT $3"),
            workspace,
            after,
            limit,
        )?,
        None => sql!(tx, all Row, select!("WHERE id > $1 ORDER BY id LIMIT $2"), after, limit)?,
    })
}

/// Those of one integration that wait for somebody and still hold a grant.
pub async fn waiting_with_grant(
    tx: &mut Tx,
    workspace: &str,
    integration: Integration,
    status: Status,
) -> Result<Vec<Connection>> {
    rows(sql!(
        tx,
        all Row,
        select!("WHERE workspace = $1 AND integration = $2 AND status = $3 AND refresh_token IS NOT NULL ORDER BY id"),
        workspace,
        integration.as_str(),
        status.as_str(),
    )?)
}

/// Makes the row if there is none; gives the one that is there either way.
pub async fn ensure(
    tx: &mut Tx,
    workspace: &str,
    user: &str,
    integration: Integration,
    now: DateTime<Utc>,
) -> Result<Connection> {
    sql!(
        tx,
        execute,
        "INSERT INTO connections (id, workspace, user_name, integration, status, created_at, updated_at)
         VALUES ($1, $2, $3, $4, 'pending', $5, $5)
         ON CONFLICT (workspace, user_name, integration) DO NOTHING",
        Uuid::now_v7(),
        workspace,
        user,
        integration.as_str(),
        now,
    )?;
    find_for(tx, workspace, user, integration)
        .await?
        .ok_or_else(|| StoreError::Corrupt("a connection that was just made is gone".into()))
}

/// Says that a person must act, once: `false` when it says so already, when the token that was refused is no
/// longer the one in the row, or when the connection ends anyway. The grant stays.
pub async fn needs(
    tx: &mut Tx,
    connection: &Connection,
    status: Status,
    cause: &str,
    message: &str,
    claims: Option<&str>,
    now: DateTime<Utc>,
) -> Result<bool> {
    let changed = sql!(
        tx,
        execute,
        "UPDATE connections SET status = $3, cause = $4, message = $5, claims = COALESCE($6, claims), updated_at = $7
         WHERE id = $1 AND token_version = $2 AND status <> $3
             AND status NOT IN ('disconnecting', 'disconnected')",
        connection.id,
        connection.token_version,
        status.as_str(),
        cause,
        message,
        claims,
        now,
    )?;
    Ok(changed == 1)
}

/// A refused token is not tried again by the next look for idle ones.
pub async fn tried(tx: &mut Tx, id: Uuid, now: DateTime<Utc>) -> Result<()> {
    sql!(tx, execute, "UPDATE connections SET refreshed_at = $2 WHERE id = $1", id, now)?;
    Ok(())
}

/// A grant that waited for somebody works again; `false` when it did not wait.
pub async fn works_again(tx: &mut Tx, id: Uuid, scopes: &[String], now: DateTime<Utc>) -> Result<bool> {
    let changed = sql!(
        tx,
        execute,
        "UPDATE connections SET status = 'connected', cause = NULL, message = NULL, claims = NULL, scopes = $2,
             updated_at = $3
         WHERE id = $1 AND status IN ('needs_user', 'needs_admin') AND refresh_token IS NOT NULL",
        id,
        scopes.join(" "),
        now,
    )?;
    Ok(changed == 1)
}

/// From now on no job is given it; `false` when it is being disconnected, or was.
pub async fn disconnecting(tx: &mut Tx, id: Uuid, receipt: &str, now: DateTime<Utc>) -> Result<bool> {
    let changed = sql!(
        tx,
        execute,
        "UPDATE connections SET status = 'disconnecting', cause = NULL, message = NULL, claims = NULL, receipt = $2,
             updated_at = $3
         WHERE id = $1 AND status NOT IN ('disconnecting', 'disconnected')",
        id,
        receipt,
        now,
    )?;
    Ok(changed == 1)
}

/// The steps of the disconnect that are done so far.
pub async fn receipt(tx: &mut Tx, id: Uuid, receipt: &str, now: DateTime<Utc>) -> Result<()> {
    sql!(
        tx,
        execute,
        "UPDATE connections SET receipt = $2, updated_at = $3 WHERE id = $1 AND status = 'disconnecting'",
        id,
        receipt,
        now,
    )?;
    Ok(())
}

/// Wipes the token and ends the connection; `false` when it was disconnected before.
pub async fn disconnect(tx: &mut Tx, id: Uuid, receipt: &str, now: DateTime<Utc>) -> Result<bool> {
    let changed = sql!(
        tx,
        execute,
        "UPDATE connections SET status = 'disconnected', cause = NULL, message = NULL, refresh_token = NULL,
             claims = NULL, scopes = '', grant_number = grant_number + 1, token_version = token_version + 1,
             refresh_holder = NULL, refresh_until = NULL, receipt = $2, updated_at = $3
         WHERE id = $1 AND status <> 'disconnected'",
        id,
        receipt,
        now,
    )?;
    Ok(changed == 1)
}

/// What the next sign-in must satisfy.
pub async fn demand(tx: &mut Tx, id: Uuid, claims: &str) -> Result<()> {
    sql!(tx, execute, "UPDATE connections SET claims = $2 WHERE id = $1", id, claims)?;
    Ok(())
}

#[derive(FromRow)]
struct Environment {
    url: String,
}

/// The Dataverse environment a workspace has settled on.
pub async fn pinned_environment(tx: &mut Tx, workspace: &str) -> Result<Option<String>> {
    let found = sql!(
        tx,
        optional Environment,
        "SELECT url FROM crm_environments WHERE workspace = $1",
        workspace,
    )?;
    Ok(found.map(|environment| environment.url))
}

/// The workspace works in this environment from now on, and so do its connections; gives those that work.
pub async fn pin_environment(
    tx: &mut Tx,
    workspace: &str,
    environment: &str,
    now: DateTime<Utc>,
) -> Result<Vec<Connection>> {
    sql!(
        tx,
        execute,
        "INSERT INTO crm_environments (workspace, url, updated_at) VALUES ($1, $2, $3)
         ON CONFLICT (workspace) DO UPDATE SET url = excluded.url, updated_at = excluded.updated_at",
        workspace,
        environment,
        now,
    )?;
    sql!(
        tx,
        execute,
        "UPDATE connections SET environment = $2, updated_at = $3 WHERE workspace = $1 AND integration = 'dynamics'",
        workspace,
        environment,
        now,
    )?;
    rows(sql!(
        tx,
        all Row,
        select!("WHERE workspace = $1 AND integration = 'dynamics' AND status = 'connected' ORDER BY id"),
        workspace,
    )?)
}

#[derive(FromRow)]
struct IdOnly {
    id: Uuid,
}

/// Those whose token nobody has used since, the waiting ones among them: Microsoft forgets an idle token
/// after 90 days, and what waited may work again.
pub async fn idle(tx: &mut Tx, since: DateTime<Utc>, limit: i64) -> Result<Vec<Uuid>> {
    let found = sql!(
        tx,
        all IdOnly,
        "SELECT id FROM connections WHERE refresh_token IS NOT NULL AND refreshed_at < $1 ORDER BY refreshed_at LIMIT $2",
        since,
        limit,
    )?;
    Ok(found.into_iter().map(|row| row.id).collect())
}
