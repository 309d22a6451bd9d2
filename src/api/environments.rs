//! Which Dynamics environment a workspace works in.
//!
//! The invariant: only an environment on an allowed host is pinned, and the connections and waiting jobs of
//! the workspace follow it in the same transaction.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use scoped_futures::ScopedFutureExt;
use serde::{Deserialize, Serialize};
use url::Url;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::error::{ApiError, Result};
use super::request::{Body, Path, Query};
use crate::api_key::Caller;
use crate::dataverse::{self, allowed_host, discovery};
use crate::oauth::scopes::Integration;
use crate::outcome::{Disposition, Failure};
use crate::store::StoreError;
use crate::store::connection::{self, Connection, Status};
use crate::submit;

pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(list_environments)).routes(routes!(pin_environment))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct EnvironmentQuery {
    /// Whose environments; the user must have connected `dynamics`.
    user: String,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct EnvironmentView {
    /// What to pin.
    pub environment: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unique_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The workspace works in this one.
    pub pinned: bool,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct EnvironmentList {
    pub environments: Vec<EnvironmentView>,
}

/// Discover a user's Dynamics environments
///
/// Asks Microsoft with the user's connection.
#[utoipa::path(
    get, path = "/v1/workspaces/{workspace}/dynamics/environments", tag = "workspaces",
    security(("api_key" = ["admin"])), params(("workspace" = String, Path), EnvironmentQuery),
    responses(
        (status = 200, description = "Those that are enabled and on allowed hosts", body = EnvironmentList),
        (status = 409, description = "`not_connected`, or what the user must do first",
         body = super::error::ErrorBody),
        (status = 502, description = "Microsoft did not answer as it should", body = super::error::ErrorBody),
    ),
)]
async fn list_environments(
    State(api): State<Api>,
    caller: Caller,
    Path(workspace): Path<String>,
    Query(query): Query<EnvironmentQuery>,
) -> Result<Json<EnvironmentList>> {
    caller.in_workspace(&workspace)?;
    let services = &api.services;
    let (workspace, user) = (workspace.as_str(), query.user.as_str());
    let (found, pinned) = services
        .store
        .read(|tx| {
            async move {
                Ok::<_, StoreError>((
                    connection::find_for(tx, workspace, user, Integration::Dynamics).await?,
                    connection::pinned_environment(tx, workspace).await?,
                ))
            }
            .scope_boxed()
        })
        .await?;
    let connected = found.filter(|connection| connection.status == Status::Connected);
    let Some(connection) = connected else {
        return Err(ApiError::conflict("not_connected", "the user has not connected dynamics"));
    };
    let microsoft = &services.microsoft;
    let instances = discovery::instances(
        &microsoft.http,
        microsoft.tokens.of(&connection),
        &microsoft.discovery_url,
        &microsoft.dataverse_hosts,
        connection.tenant_id.as_deref().unwrap_or_default(),
        services.clock.now(),
    )
    .await
    .map_err(|error| not_discovered(error.into()))?;
    let environments = instances
        .into_iter()
        .map(|instance| {
            let environment = dataverse::environment(&instance.api_url);
            EnvironmentView {
                pinned: pinned.as_ref() == Some(&environment),
                environment,
                name: instance.friendly_name,
                unique_name: instance.unique_name,
                region: instance.region,
                version: instance.version,
            }
        })
        .collect();
    Ok(Json(EnvironmentList { environments }))
}

fn not_discovered(failure: Failure) -> ApiError {
    let status = match failure.disposition {
        Disposition::Park(_) => StatusCode::CONFLICT,
        _ => StatusCode::BAD_GATEWAY,
    };
    ApiError::new(status, failure.code, failure.message)
}

#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PinnedEnvironment {
    /// `https://acme.crm4.dynamics.com`
    pub environment: String,
}

/// Pin the workspace's Dynamics environment
///
/// The connections of the workspace work in it from now on; jobs that waited for a choice go on.
#[utoipa::path(
    put, path = "/v1/workspaces/{workspace}/dynamics/environment", tag = "workspaces",
    security(("api_key" = ["admin"])), params(("workspace" = String, Path)),
    request_body = PinnedEnvironment,
    responses((status = 200, description = "It is pinned", body = PinnedEnvironment)),
)]
async fn pin_environment(
    State(api): State<Api>,
    caller: Caller,
    Path(workspace): Path<String>,
    Body(pinned): Body<PinnedEnvironment>,
) -> Result<Json<PinnedEnvironment>> {
    caller.in_workspace(&workspace)?;
    let services = &api.services;
    let url = Url::parse(&pinned.environment).ok();
    let bare = |url: &Url| url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    let hosts = &services.microsoft.dataverse_hosts;
    let Some(url) = url.filter(|url| bare(url) && allowed_host(hosts, url)) else {
        let message = "expected the URL of a Dataverse environment on one of the allowed hosts";
        return Err(ApiError::bad("invalid_body", "environment", message));
    };
    let environment = dataverse::environment(&url);
    let (now, name, text) = (services.clock.now(), workspace.as_str(), environment.as_str());
    let registry = &services.registry;
    let pinned: Vec<Connection> = services
        .store
        .transaction("pin_environment", |tx| {
            async move { connection::pin_environment(tx, name, text, now).await }.scope_boxed()
        })
        .await?;
    // A few at a time; whoever pins again goes on where this was cut off.
    for user in pinned.iter().map(|connection| connection.user_name.as_str()) {
        let release = || {
            services.store.transaction("release", |tx| {
                async move {
                    submit::release_for_connection(tx, registry, name, user, Integration::Dynamics, now).await
                }
                .scope_boxed()
            })
        };
        while release().await? > 0 {}
    }
    Ok(Json(PinnedEnvironment { environment }))
}
