//! What a client reads before it signs anybody in: endpoints and keys.
//!
//! `entra/identity-platform/v2-protocols-oidc#fetch-the-openid-configuration-document`.

use axum::Json;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::EntraError;
use super::mint;
use crate::Sim;
use crate::answer::Refused;

pub(crate) async fn configuration(
    State(sim): State<Sim>,
    Path(tenant): Path<String>,
) -> Result<Json<Value>, Refused> {
    let base = sim.base_url();
    // The issuer of `common` and `organizations` is a template that the reader fills from the token's tid.
    let multi = tenant.to_ascii_lowercase();
    let (segment, issuer) = if ["common", "organizations"].contains(&multi.as_str()) {
        (multi, "{tenantid}".to_owned())
    } else {
        let id = sim.directory().tenant(&tenant).map(|tenant| tenant.id.clone());
        let id = id.ok_or_else(|| unknown_tenant(&tenant).into_answer(&sim, None))?;
        (id.clone(), id)
    };
    Ok(Json(json!({
        "token_endpoint": format!("{base}/{segment}/oauth2/v2.0/token"),
        "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt", "client_secret_basic"],
        "jwks_uri": format!("{base}/{segment}/discovery/v2.0/keys"),
        "response_modes_supported": ["query", "fragment", "form_post"],
        "subject_types_supported": ["pairwise"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "response_types_supported": ["code"],
        "scopes_supported": ["openid", "profile", "email", "offline_access"],
        "issuer": format!("{base}/{issuer}/v2.0"),
        "request_uri_parameter_supported": false,
        "authorization_endpoint": format!("{base}/{segment}/oauth2/v2.0/authorize"),
        "claims_supported": ["sub", "iss", "aud", "exp", "iat", "nonce", "preferred_username", "name", "tid", "ver",
            "oid", "email"],
        "tenant_region_scope": "EU",
        "cloud_instance_name": "microsoftonline.com",
        "msgraph_host": "graph.microsoft.com",
    })))
}

pub(crate) async fn keys(State(sim): State<Sim>, Path(_tenant): Path<String>) -> Json<Value> {
    Json(mint::jwks(&format!("{}/{{tenantid}}/v2.0", sim.base_url())))
}

#[derive(Deserialize)]
pub(crate) struct Instance {
    authorization_endpoint: String,
}

/// MSAL asks this about authorities that it does not know.
pub(crate) async fn instance(
    State(sim): State<Sim>,
    Query(Instance { authorization_endpoint }): Query<Instance>,
) -> Json<Value> {
    let authority = authorization_endpoint.trim_end_matches("/oauth2/v2.0/authorize");
    let host = sim.base_url().split("//").nth(1).unwrap_or_default();
    Json(json!({
        "tenant_discovery_endpoint": format!("{authority}/v2.0/.well-known/openid-configuration"),
        "api-version": "1.1",
        "metadata": [{"preferred_network": host, "preferred_cache": host, "aliases": [host]}],
    }))
}

pub(crate) fn unknown_tenant(name: &str) -> EntraError {
    let message = format!(
        "Tenant '{name}' not found. Check to make sure you have the correct tenant ID and are signing into the correct \
         cloud."
    );
    EntraError::invalid_request(90_002, message)
}
