//! The permission grid of a workspace.
//!
//! The invariant: a `PUT` is the whole grid; what it does not name is denied again. A name that no job's tool
//! can have is refused, so that a typing error does not silently deny.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use scoped_futures::ScopedFutureExt;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::error::{ApiError, Result};
use super::request::{Body, Path};
use crate::api_key::Caller;
use crate::permission::{self, Level};
use crate::services::Services;
use crate::store::{self, StoreError, tool};

/// Tools or patterns (`crm.*.read`) and their levels.
pub type Grid = BTreeMap<String, Level>;

pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(get_tools, put_tools))
}

/// Look at the permission grid
///
/// What it does not name is denied.
#[utoipa::path(
    get, path = "/v1/workspaces/{workspace}/tools", tag = "workspaces", security(("api_key" = ["admin"])),
    params(("workspace" = String, Path)),
    responses((status = 200, description = "Level by tool or pattern", body = BTreeMap<String, Level>)),
)]
async fn get_tools(
    State(api): State<Api>,
    caller: Caller,
    Path(workspace): Path<String>,
) -> Result<Json<Grid>> {
    caller.in_workspace(&workspace)?;
    Ok(Json(read(&api.services, &workspace).await?))
}

/// Replace the permission grid
///
/// The body is the whole grid: a tool that it does not name is denied from now on.
#[utoipa::path(
    put, path = "/v1/workspaces/{workspace}/tools", tag = "workspaces", security(("api_key" = ["admin"])),
    params(("workspace" = String, Path)), request_body = BTreeMap<String, Level>,
    responses(
        (status = 200, description = "The grid as it is now", body = BTreeMap<String, Level>),
        (status = 400, description = "`unknown_tool`", body = super::error::ErrorBody),
    ),
)]
async fn put_tools(
    State(api): State<Api>,
    caller: Caller,
    Path(workspace): Path<String>,
    Body(grid): Body<Grid>,
) -> Result<Json<Grid>> {
    caller.in_workspace(&workspace)?;
    if let Some(tool) = grid.keys().find(|tool| !permission::is_known(tool, &api.services.registry)) {
        return Err(ApiError::bad(
            "unknown_tool",
            tool.chars().take(128).collect::<String>(),
            "no job has this tool",
        ));
    }
    write(&api.services, &workspace, &grid, true).await?;
    Ok(Json(read(&api.services, &workspace).await?))
}

/// The grid as it is stored; a level that cannot be read is shown as what it means.
pub async fn read(services: &Services, workspace: &str) -> store::Result<Grid> {
    let workspaces = &[workspace.to_owned()];
    let rules = services
        .store
        .read(|tx| async move { tool::of_workspaces(tx, workspaces).await }.scope_boxed())
        .await?;
    Ok(rules
        .into_iter()
        .map(|(_, tool, level)| (tool, Level::parse(&level).unwrap_or(Level::Deny)))
        .collect())
}

/// Writes these levels; with `replace` they are all there is.
pub async fn write(services: &Services, workspace: &str, grid: &Grid, replace: bool) -> store::Result<()> {
    let now = services.clock.now();
    services
        .store
        .transaction("tools", |tx| {
            async move {
                if replace {
                    tool::clear(tx, workspace).await?;
                }
                for (name, level) in grid {
                    tool::set(tx, workspace, name, level.as_str(), now).await?;
                }
                Ok::<_, StoreError>(())
            }
            .scope_boxed()
        })
        .await
}
