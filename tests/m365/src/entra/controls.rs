//! `/_sim/signin` and `/_sim/entra`.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::Value;

use super::app::App;
use super::policy::{Planned, Policy};
use crate::Sim;

pub(crate) const CONTROLS: &[(&str, &str)] = &[
    ("POST /_sim/signin/auto", "{login}: signs in by itself; \"*\" follows login_hint, null shows the page"),
    (
        "GET|PUT /_sim/entra/policy",
        "auto, sign_in_as, decline, user_consent, withhold, admins, strict_reuse, lifetimes",
    ),
    (
        "GET|POST|DELETE /_sim/entra/failures",
        "{user?,error,error_codes,suberror?,claims?,times,grant_type?}: coming token requests fail",
    ),
    ("POST /_sim/entra/revoke", "{user}: ends the sessions (AADSTS50173)"),
    ("POST /_sim/entra/withdraw", "{user}: takes the consent back (AADSTS65001)"),
    (
        "POST /_sim/entra/challenge",
        "{user,claims}: 401 insufficient_claims until a token is asked for with claims",
    ),
    ("POST /_sim/entra/tenant-consent", "{tenant,scope}: as an administrator"),
    ("GET|PUT /_sim/entra/apps", "registrations: secrets, certificates (PEM), redirect URIs"),
];

pub(crate) fn router() -> Router<Sim> {
    Router::new()
        .route("/_sim/signin/auto", post(auto))
        .route("/_sim/entra/policy", get(policy).put(set_policy))
        .route("/_sim/entra/failures", get(failures).post(fail).delete(clear))
        .route("/_sim/entra/revoke", post(revoke))
        .route("/_sim/entra/withdraw", post(withdraw))
        .route("/_sim/entra/challenge", post(challenge))
        .route("/_sim/entra/tenant-consent", post(tenant_consent))
        .route("/_sim/entra/apps", get(apps).put(put_app))
}

#[derive(Deserialize)]
struct Login {
    login: Option<String>,
}

#[derive(Deserialize)]
struct Who {
    user: String,
}

#[derive(Deserialize)]
struct Challenge {
    user: String,
    claims: Value,
}

#[derive(Deserialize)]
struct TenantConsent {
    tenant: String,
    scope: String,
}

async fn auto(State(sim): State<Sim>, Json(Login { login }): Json<Login>) -> StatusCode {
    sim.auto_sign_in(login.as_deref());
    StatusCode::NO_CONTENT
}

async fn policy(State(sim): State<Sim>) -> Json<Policy> {
    Json(sim.entra().policy.clone())
}

async fn set_policy(State(sim): State<Sim>, Json(policy): Json<Policy>) -> StatusCode {
    sim.entra_policy(|current| *current = policy);
    StatusCode::NO_CONTENT
}

async fn failures(State(sim): State<Sim>) -> Json<Vec<Planned>> {
    Json(sim.entra().planned.clone())
}

async fn fail(State(sim): State<Sim>, Json(planned): Json<Planned>) -> StatusCode {
    sim.fail_token_requests(planned);
    StatusCode::NO_CONTENT
}

async fn clear(State(sim): State<Sim>) -> StatusCode {
    sim.clear_planned_failures();
    StatusCode::NO_CONTENT
}

async fn revoke(State(sim): State<Sim>, Json(Who { user }): Json<Who>) -> StatusCode {
    sim.revoke_sessions(&user);
    StatusCode::NO_CONTENT
}

async fn withdraw(State(sim): State<Sim>, Json(Who { user }): Json<Who>) -> StatusCode {
    sim.withdraw_consent(&user);
    StatusCode::NO_CONTENT
}

async fn challenge(State(sim): State<Sim>, Json(asked): Json<Challenge>) -> StatusCode {
    sim.challenge(&asked.user, &asked.claims);
    StatusCode::NO_CONTENT
}

async fn tenant_consent(State(sim): State<Sim>, Json(asked): Json<TenantConsent>) -> StatusCode {
    if sim.consent_for_tenant(&asked.tenant, &asked.scope) {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::BAD_REQUEST
    }
}

async fn apps(State(sim): State<Sim>) -> Json<Vec<App>> {
    Json(sim.entra().apps.clone())
}

async fn put_app(State(sim): State<Sim>, Json(app): Json<App>) -> StatusCode {
    sim.put_app(app);
    StatusCode::NO_CONTENT
}
