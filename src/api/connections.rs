//! Connections: sign-in links, the list, disconnecting.
//!
//! The invariant: nothing of a token is ever read here, and a link's secret leaves in the one answer that
//! made it.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use scoped_futures::ScopedFutureExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::Api;
use super::error::{ApiError, Result};
use super::request::{Body, Path, Query, cursor, limit, position};
use crate::api_key::Caller;
use crate::disconnect;
use crate::oauth::links::NewLink;
use crate::oauth::scopes::Integration;
use crate::oauth::{Consent, ConsentError};
use crate::outcome::Classify;
use crate::store::connection::{self, Connection, Status};
use crate::vault::VaultError;

pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(create_connection, list_connections))
        .routes(routes!(request_admin_consent))
        .routes(routes!(show_connection, disconnect_connection))
}

/// One user's consent for one integration.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ConnectionView {
    pub id: Uuid,
    pub workspace: String,
    pub user: String,
    pub integration: Integration,
    pub status: Status,
    /// The stable code of why it is not connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// One line for the person who must act.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The sign-in name, as Entra last said it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_id: Option<String>,
    pub scopes: Vec<String>,
    /// Dataverse's URL; of `dynamics` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refreshed_at: Option<DateTime<Utc>>,
    /// What was ended, and what could not be; while it is being disconnected and afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Value>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl From<Connection> for ConnectionView {
    fn from(connection: Connection) -> Self {
        let ends = matches!(connection.status, Status::Disconnecting | Status::Disconnected);
        Self {
            receipt: connection.last_receipt().filter(|_| ends),
            id: connection.id,
            workspace: connection.workspace,
            user: connection.user_name,
            integration: connection.integration,
            status: connection.status,
            code: connection.cause,
            message: connection.message,
            account: connection.account,
            tenant_id: connection.tenant_id,
            object_id: connection.object_id,
            scopes: connection.scopes,
            environment: connection.environment,
            refreshed_at: connection.refreshed_at,
            created_at: connection.created_at,
            updated_at: connection.updated_at,
        }
    }
}

impl From<ConsentError> for ApiError {
    fn from(error: ConsentError) -> Self {
        let code = match error {
            ConsentError::Invalid { .. } => "invalid_body".into(),
            ref error => error.code(),
        };
        let refused = Self::new(error.status(), code, error.to_string());
        match error {
            ConsentError::Invalid { path, .. } => refused.at(path),
            ConsentError::Store(error) => error.into(),
            ConsentError::Seal(_) => {
                tracing::error!(%error, "what is sealed cannot be read");
                refused
            }
            _ => refused,
        }
    }
}

impl From<VaultError> for ApiError {
    fn from(error: VaultError) -> Self {
        tracing::warn!(%error, "the vault failed a request");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error.code(), "the connection's tokens cannot be reached")
    }
}

impl Api {
    /// Signing in needs the app registration's settings.
    pub(super) fn consent(&self) -> Result<&Consent> {
        self.consent.as_ref().ok_or_else(|| {
            let message = "microsoft.client_id and its secret or certificate are not set on this server";
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "microsoft_not_configured", message)
        })
    }
}

/// Whose consent is asked, and for what.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct NewConnection {
    workspace: String,
    user: String,
    integration: Integration,
    /// The sign-in name that is expected; another one is refused.
    account: Option<String>,
    /// Where the browser goes in the end, with `code` and `connection`.
    return_to: Option<String>,
    /// Dataverse's URL; the workspace's pinned one when absent. Of `dynamics` only.
    environment: Option<String>,
    /// Another Entra object may take the place of the one that is connected.
    #[serde(default)]
    replace: bool,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct CreatedConnection {
    pub id: Uuid,
    /// The one-time link to sign in with; shown once.
    pub url: String,
    pub expires_at: DateTime<Utc>,
}

/// Make a sign-in link
///
/// Makes the connection when there is none, and a one-time link for its user.
#[utoipa::path(
    post, path = "/v1/connections", tag = "connections", security(("api_key" = ["publisher"])),
    request_body = NewConnection,
    responses(
        (status = 201, description = "Hand the link to the user", body = CreatedConnection),
        (status = 409, description = "`connection_disconnecting`: it can be made anew once it is disconnected", body = super::error::ErrorBody),
        (status = 503, description = "`microsoft_not_configured`", body = super::error::ErrorBody),
    ),
)]
async fn create_connection(
    State(api): State<Api>,
    caller: Caller,
    Body(new): Body<NewConnection>,
) -> Result<(StatusCode, Json<CreatedConnection>)> {
    caller.in_workspace(&new.workspace)?;
    let link = NewLink {
        workspace: &new.workspace,
        user: &new.user,
        integration: new.integration,
        account: new.account.as_deref(),
        return_to: new.return_to.as_deref(),
        environment: new.environment.as_deref(),
        replace: new.replace,
    };
    let created = api.consent()?.create_link(link).await?;
    let (id, url, expires_at) = (created.id, created.url.to_string(), created.expires_at);
    Ok((StatusCode::CREATED, Json(CreatedConnection { id, url, expires_at })))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ConnectionQuery {
    workspace: Option<String>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// 1 to 200, 50 by default.
    limit: Option<i64>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ConnectionPage {
    pub connections: Vec<ConnectionView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// List connections, oldest first
#[utoipa::path(
    get, path = "/v1/connections", tag = "connections", security(("api_key" = ["publisher"])),
    params(ConnectionQuery),
    responses((status = 200, description = "One page", body = ConnectionPage)),
)]
async fn list_connections(
    State(api): State<Api>,
    caller: Caller,
    Query(query): Query<ConnectionQuery>,
) -> Result<Json<ConnectionPage>> {
    let workspace = caller.narrowed(query.workspace)?;
    let (workspace, limit) = (workspace.as_deref(), limit(query.limit)?);
    let after: Option<Uuid> = position(query.cursor.as_deref())?;
    let rows = api
        .services
        .store
        .read(|tx| async move { connection::list(tx, workspace, after, limit).await }.scope_boxed())
        .await?;
    let full = i64::try_from(rows.len()).is_ok_and(|rows| rows == limit);
    let last = rows.last().map(|row| cursor(&row.id));
    Ok(Json(ConnectionPage {
        connections: rows.into_iter().map(ConnectionView::from).collect(),
        next_cursor: last.filter(|_| full),
    }))
}

impl Api {
    /// Whose it is is known only after looking, so a foreign one is as good as absent.
    async fn connection(&self, caller: &Caller, id: Uuid) -> Result<Connection> {
        let store = &self.services.store;
        let found = store.read(|tx| async move { connection::find(tx, id).await }.scope_boxed()).await?;
        found.filter(|found| caller.may_see(Some(&found.workspace))).ok_or_else(ApiError::not_found)
    }
}

/// Show a connection
#[utoipa::path(
    get, path = "/v1/connections/{id}", tag = "connections", security(("api_key" = ["publisher"])),
    params(("id" = Uuid, Path)),
    responses((status = 200, description = "As it is known now", body = ConnectionView)),
)]
async fn show_connection(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Json<ConnectionView>> {
    Ok(Json(api.connection(&caller, id).await?.into()))
}

/// Disconnect
///
/// Ends the mailboxes that are reached through it, then wipes the tokens; jobs that need the connection park until its
/// user signs in again. The receipt says what was ended, and what could not be.
#[utoipa::path(
    delete, path = "/v1/connections/{id}", tag = "connections", security(("api_key" = ["publisher"])),
    params(("id" = Uuid, Path)),
    responses(
        (status = 200, description = "It is disconnected", body = ConnectionView),
        (status = 202, description = "It is `disconnecting`: its mailboxes end first", body = ConnectionView),
    ),
)]
async fn disconnect_connection(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<(StatusCode, Json<ConnectionView>)> {
    api.connection(&caller, id).await?;
    api.consent()?;
    let vault = api.vault.as_ref().ok_or_else(ApiError::internal)?;
    let asked = disconnect::ask(&api.services, vault, id).await?.ok_or_else(ApiError::not_found)?;
    let status = if asked.status == Status::Disconnecting { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((status, Json(asked.into())))
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct AdminConsentRequest {
    workspace: String,
    integration: Integration,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct AdminConsentLink {
    /// For an administrator of the customer's tenant.
    pub url: String,
}

/// Make an administrator's link
///
/// To the page on which an administrator of the tenant consents for everybody.
#[utoipa::path(
    post, path = "/v1/connections/admin-consent", tag = "connections",
    security(("api_key" = ["publisher"])), request_body = AdminConsentRequest,
    responses(
        (status = 200, description = "Hand the link to the administrator", body = AdminConsentLink),
        (status = 503, description = "`microsoft_not_configured`", body = super::error::ErrorBody),
    ),
)]
async fn request_admin_consent(
    State(api): State<Api>,
    caller: Caller,
    Body(request): Body<AdminConsentRequest>,
) -> Result<Json<AdminConsentLink>> {
    caller.in_workspace(&request.workspace)?;
    let url = api.consent()?.admin_consent_link(&request.workspace, request.integration).await?;
    Ok(Json(AdminConsentLink { url: url.into() }))
}
