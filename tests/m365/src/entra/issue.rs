//! What a granted request is answered with: an access token of one resource, a new refresh token, an id token.

use std::collections::{BTreeSet, HashMap};

use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use serde_json::{Value, json};

use super::authorize::random_text;
use super::error::EntraError;
use super::scope::{Permission, Scopes, expand_default};
use super::{RefreshToken, mint};
use crate::Sim;
use crate::answer::answer_json;
use crate::auth::GRAPH;
use crate::directory::User;

type Parameters = HashMap<String, String>;

/// What is to be issued once everything was checked.
pub(super) struct Issue {
    pub(super) user: User,
    /// Of this request, and of the first leg.
    pub(super) scopes: Scopes,
    pub(super) first_leg: Scopes,
    pub(super) nonce: Option<String>,
    pub(super) resource: String,
    pub(super) granted: Vec<String>,
}

/// The resource, and all that the user consented to there: a token carries more than was asked for.
pub(super) fn granted(
    sim: &Sim,
    client_id: &str,
    user: &User,
    scopes: &Scopes,
) -> Result<(String, Vec<String>), EntraError> {
    let consented = sim.entra().consented(&user.tenant, &user.oid, client_id);
    let resource = scopes.resources().first().map_or_else(|| GRAPH.to_owned(), |first| (*first).to_owned());
    let withheld = sim.entra().policy.withhold.clone();
    let missing = scopes
        .permissions
        .iter()
        .map(expand_default)
        .any(|wanted| !covers(&consented, &wanted) && !withheld.contains(&wanted.name));
    if missing {
        let message = format!(
            "The user or administrator has not consented to use the application with ID '{client_id}'. Send an \
             interactive authorization request for this user and resource."
        );
        return Err(EntraError::invalid_grant(65_001, message).suberror("consent_required"));
    }
    let mut names: Vec<String> = consented
        .iter()
        .filter(|permission| same_service(permission, &resource) && !withheld.contains(&permission.name))
        .map(|permission| permission.name.clone())
        .collect();
    names.sort();
    names.dedup();
    Ok((resource, names))
}

/// All environments of a tenant and the discovery service are one service principal with one permission, so consent to
/// one is consent to all: `webapi/discovery-service`, `authenticate-oauth`.
fn covers(consented: &BTreeSet<Permission>, wanted: &Permission) -> bool {
    consented.iter().any(|have| have.name == wanted.name && same_service(have, &wanted.resource))
}

fn same_service(permission: &Permission, resource: &str) -> bool {
    (permission.resource == GRAPH) == (resource == GRAPH)
}

pub(super) fn answer(
    sim: &Sim,
    client_id: &str,
    form: &Parameters,
    with_claims: bool,
    issue: Issue,
) -> Response {
    let Issue { user, scopes, first_leg, nonce, resource, granted } = issue;
    let policy = sim.entra().policy.clone();
    let lifetime = policy.access_seconds;
    let oidc = scopes.oidc.iter().filter(|scope| *scope != "offline_access").cloned();
    let mut scp = granted.clone();
    let mut shown: Vec<String> = granted
        .iter()
        .map(|name| match (&scopes.graph_prefix, resource == GRAPH) {
            (None, true) => name.clone(),
            (Some(prefix), true) => format!("{prefix}/{name}"),
            (_, false) => format!("{resource}/{name}"),
        })
        .collect();
    if resource == GRAPH {
        scp.extend(oidc.clone());
        shown.extend(oidc);
    } else if scopes.permissions.iter().any(|permission| permission.name == ".default") {
        shown.push(format!("{resource}/.default"));
    }
    let access_token = mint::access_token(
        sim,
        &mint::Grant {
            user: &user,
            app: client_id,
            audience: &resource,
            scopes: &scp,
            lifetime_seconds: lifetime,
            with_claims,
        },
    );
    let mut body = json!({
        "token_type": "Bearer",
        "scope": shown.join(" "),
        "expires_in": lifetime,
        "ext_expires_in": lifetime,
        "access_token": access_token,
    });
    if scopes.has("offline_access") {
        let token = format!("1.{}", random_text(sim, 180));
        let value = RefreshToken {
            app: client_id.to_owned(),
            oid: user.oid.clone(),
            scopes: first_leg,
            issued: sim.now(),
            rotated: None,
            uses: Vec::new(),
        };
        sim.entra().refresh_tokens.insert(token.clone(), value);
        body["refresh_token"] = Value::String(token);
    }
    if scopes.has("openid") {
        body["id_token"] = Value::String(id_token(sim, client_id, &user, &scopes, nonce.as_deref()));
    }
    if form.get("client_info").map(String::as_str) == Some("1") {
        let info = json!({"uid": user.oid, "utid": user.tenant}).to_string();
        body["client_info"] = Value::String(URL_SAFE_NO_PAD.encode(info));
    }
    answer_json(StatusCode::OK, &body)
}

fn id_token(sim: &Sim, client_id: &str, user: &User, scopes: &Scopes, nonce: Option<&str>) -> String {
    let now = sim.now().timestamp();
    let mut claims = json!({
        "aud": client_id,
        "iss": format!("{}/{}/v2.0", sim.base_url(), user.tenant),
        "iat": now, "nbf": now, "exp": now + 3_900,
        "rh": "1.", "sub": mint::pairwise(&user.oid, client_id),
        "tid": user.tenant, "uti": sim.guid(), "ver": "2.0",
    });
    // `oid`, `name` and `preferred_username` need the profile scope: `id-token-claims-reference`.
    if scopes.has("profile") {
        claims["oid"] = json!(user.oid);
        claims["name"] = json!(user.display_name);
        claims["preferred_username"] = json!(user.upn);
    }
    if let (true, Some(mail)) = (scopes.has("email"), &user.mail) {
        claims["email"] = json!(mail);
    }
    if let Some(nonce) = nonce {
        claims["nonce"] = json!(nonce);
    }
    mint::sign(&claims)
}
