//! The authorization endpoint: who signs in, what they consent to, and the way back.
//!
//! `entra/identity-platform/v2-oauth2-auth-code-flow#request-an-authorization-code`. An error goes back on the redirect
//! only once the redirect URI is known to be the app's; before that it is a page.

use std::collections::{BTreeMap, HashMap};

use axum::Form;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::TimeDelta;
use http::{HeaderValue, StatusCode, header};
use rand::Rng;

use super::app::App;
use super::error::EntraError;
use super::scope::{Permission, Scopes, expand_default, needs_admin};
use super::{Code, metadata, page as html};
use crate::Sim;
use crate::directory::User;

type Parameters = HashMap<String, String>;

pub(crate) async fn page(
    State(sim): State<Sim>,
    Path(tenant): Path<String>,
    Query(parameters): Query<Parameters>,
) -> Response {
    answer(&sim, &tenant, &parameters, None)
}

pub(crate) async fn submit(
    State(sim): State<Sim>,
    Path(tenant): Path<String>,
    Form(mut parameters): Form<Parameters>,
) -> Response {
    let declined = parameters.remove("sim_decline").is_some();
    let account = parameters.remove("sim_account");
    let pressed = match (account, declined) {
        (_, true) => Some(Pressed::Cancel),
        (Some(account), false) => Some(Pressed::Account(account)),
        (None, false) => None,
    };
    answer(&sim, &tenant, &parameters, pressed)
}

enum Pressed {
    Account(String),
    Cancel,
}

fn answer(sim: &Sim, tenant: &str, parameters: &Parameters, pressed: Option<Pressed>) -> Response {
    let (app, redirect_uri) = match trusted_redirect(sim, tenant, parameters) {
        Ok(found) => found,
        Err(error) => return error.into_page(sim),
    };
    let policy = sim.entra().policy.clone();
    let pressed = pressed.or_else(|| {
        let hint = parameters.get("login_hint").cloned();
        let account =
            policy.auto.clone().map(|auto| if auto == "*" { hint.unwrap_or_default() } else { auto })?;
        if account.is_empty() {
            return None;
        }
        Some(if policy.decline { Pressed::Cancel } else { Pressed::Account(account) })
    });
    let checked = check(sim, parameters);
    let result = match (checked, pressed) {
        (Err(error), _) => Err(error),
        (Ok(_), Some(Pressed::Cancel)) => {
            Err(EntraError::new("access_denied", 65_004, "User declined to consent to access the app."))
        }
        (Ok(_), None) if parameters.get("prompt").map(String::as_str) == Some("none") => {
            let message = "Session information is not sufficient for single-sign-on.";
            Err(EntraError::new("login_required", 50_058, message))
        }
        (Ok(_), None) => return html::sign_in(sim, &app.name, parameters).into_response(),
        (Ok(asked), Some(Pressed::Account(account))) => {
            let account = policy.sign_in_as.unwrap_or(account);
            issue_code(sim, tenant, &app, &redirect_uri, parameters, asked, &account)
        }
    };
    go_back(sim, parameters, &redirect_uri, result)
}

fn trusted_redirect(sim: &Sim, tenant: &str, parameters: &Parameters) -> Result<(App, String), EntraError> {
    let multi = ["common", "organizations"].contains(&tenant);
    if !multi && sim.directory().tenant(tenant).is_none() {
        return Err(metadata::unknown_tenant(tenant));
    }
    let client_id = parameters.get("client_id").ok_or_else(|| EntraError::missing("client_id"))?;
    let app = sim.entra().app(client_id)?;
    let redirect_uri = parameters.get("redirect_uri").ok_or_else(|| EntraError::missing("redirect_uri"))?;
    if !app.may_redirect_to(redirect_uri) {
        let message = format!(
            "The redirect URI '{redirect_uri}' specified in the request does not match the redirect URIs configured for \
             the application '{client_id}'."
        );
        return Err(EntraError::invalid_request(50_011, message));
    }
    Ok((app, redirect_uri.clone()))
}

struct Asked {
    scopes: Scopes,
    challenge: Option<(String, bool)>,
}

fn check(sim: &Sim, parameters: &Parameters) -> Result<Asked, EntraError> {
    let get = |name: &str| parameters.get(name).map(String::as_str);
    match get("response_type") {
        Some("code") => {}
        None => return Err(EntraError::missing("response_type")),
        Some(other) => {
            let message = format!("The response_type '{other}' is not enabled for the application.");
            return Err(EntraError::new("unsupported_response_type", 700_054, message));
        }
    }
    if !matches!(get("response_mode"), None | Some("query" | "fragment" | "form_post")) {
        return Err(EntraError::invalid_request(90_014, "The response_mode is not valid."));
    }
    if !matches!(get("prompt"), None | Some("login" | "none" | "consent" | "select_account")) {
        return Err(EntraError::invalid_request(90_023, "The prompt value is not valid."));
    }
    if let Some(claims) = get("claims")
        && !serde_json::from_str::<serde_json::Value>(claims).is_ok_and(|claims| claims.is_object())
    {
        return Err(EntraError::invalid_request(50_161, "The claims parameter is not valid JSON."));
    }
    let challenge = match (get("code_challenge"), get("code_challenge_method")) {
        (None, None) => None,
        (None, Some(_)) => return Err(EntraError::missing("code_challenge")),
        (Some(challenge), Some("S256")) => {
            if URL_SAFE_NO_PAD.decode(challenge).map(|bytes| bytes.len()).ok() != Some(32) {
                return Err(EntraError::invalid_request(
                    501_491,
                    "Invalid size of Code_Challenge parameter.",
                ));
            }
            Some((challenge.to_owned(), true))
        }
        (Some(challenge), None | Some("plain")) => Some((challenge.to_owned(), false)),
        (Some(_), Some(_)) => {
            return Err(EntraError::invalid_request(501_481, "The code_challenge_method is not supported."));
        }
    };
    let scope = get("scope").filter(|scope| !scope.trim().is_empty());
    let scopes = Scopes::parse(sim, scope.ok_or_else(|| EntraError::missing("scope"))?)?;
    Ok(Asked { scopes, challenge })
}

/// The account as a member or guest of the tenant that the segment names.
fn account_in(sim: &Sim, tenant: &str, account: &str) -> Result<User, EntraError> {
    let directory = sim.directory();
    let user = if ["common", "organizations"].contains(&tenant) {
        directory.users.iter().find(|user| !user.is_guest && user.is_called(account))
    } else {
        let id = directory.tenant(tenant).map(|tenant| tenant.id.clone()).unwrap_or_default();
        directory.find_in(&id, account)
    };
    let user = user.cloned().ok_or_else(|| {
        let message = format!(
            "User account '{account}' from identity provider does not exist in tenant '{tenant}' and cannot access the \
             application in that tenant."
        );
        EntraError::new("access_denied", 50_020, message)
    })?;
    if !user.account_enabled {
        return Err(EntraError::new("access_denied", 50_057, "The user account is disabled."));
    }
    Ok(user)
}

fn issue_code(
    sim: &Sim,
    tenant: &str,
    app: &App,
    redirect_uri: &str,
    parameters: &Parameters,
    asked: Asked,
    account: &str,
) -> Result<BTreeMap<String, String>, EntraError> {
    let user = account_in(sim, tenant, account)?;
    if app.disabled_in.contains(&user.tenant) {
        let message = format!("Application '{}'({}) is disabled.", app.client_id, app.name);
        return Err(EntraError::new("unauthorized_client", 7_000_112, message));
    }
    consent(sim, app, &user, &asked.scopes, parameters)?;
    let code = format!("1.{}", random_text(sim, 96));
    let code_value = Code {
        app: app.client_id.clone(),
        segment: tenant.to_ascii_lowercase(),
        redirect_uri: redirect_uri.to_owned(),
        oid: user.oid,
        scopes: asked.scopes,
        challenge: asked.challenge,
        nonce: parameters.get("nonce").cloned(),
        // "Authorization codes are short lived, typically expiring after about 10 minutes."
        expires: sim.now() + TimeDelta::minutes(10),
        redeemed: false,
    };
    sim.entra().codes.insert(code.clone(), code_value);
    Ok(BTreeMap::from([("code".to_owned(), code), ("session_state".to_owned(), sim.guid())]))
}

/// Pressing the account is pressing Accept, as far as the tenant lets a user accept.
fn consent(
    sim: &Sim,
    app: &App,
    user: &User,
    scopes: &Scopes,
    parameters: &Parameters,
) -> Result<(), EntraError> {
    let mut entra = sim.entra();
    let have = entra.consented(&user.tenant, &user.oid, &app.client_id);
    let withheld = entra.policy.withhold.clone();
    let missing: Vec<Permission> = scopes
        .permissions
        .iter()
        .map(expand_default)
        .filter(|permission| !have.contains(permission) && !withheld.contains(&permission.name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if parameters.get("prompt").map(String::as_str) == Some("none") {
        let message = "The user or administrator has not consented to use the application.";
        return Err(EntraError::new("interaction_required", 65_001, message).suberror("consent_required"));
    }
    let is_admin = entra.policy.admins.iter().any(|admin| user.is_called(admin));
    if !is_admin && (!entra.policy.user_consent || missing.iter().any(needs_admin)) {
        let message =
            "AdminConsentRequired: the application needs permissions that only an administrator can grant.";
        return Err(EntraError::new("consent_required", 90_094, message));
    }
    entra.consent(&user.oid, &app.client_id, &missing);
    Ok(())
}

fn go_back(
    sim: &Sim,
    parameters: &Parameters,
    redirect_uri: &str,
    result: Result<BTreeMap<String, String>, EntraError>,
) -> Response {
    let mut back = result.unwrap_or_else(|error| {
        let description = error.description(&sim.guid(), &sim.guid(), sim.now());
        let mut back = BTreeMap::from([
            ("error".to_owned(), error.error.clone()),
            ("error_description".to_owned(), description),
            ("error_uri".to_owned(), format!("{}/error?code={}", sim.base_url(), error.code)),
        ]);
        if let Some(suberror) = error.suberror {
            back.insert("error_subcode".into(), suberror.into());
        }
        back
    });
    if let Some(state) = parameters.get("state") {
        back.insert("state".into(), state.clone());
    }
    match parameters.get("response_mode").map(String::as_str) {
        Some("form_post") => html::form_post(redirect_uri, &back.into_iter().collect()).into_response(),
        mode => redirect(redirect_uri, &back, mode == Some("fragment")),
    }
}

pub(crate) fn redirect(to: &str, parameters: &BTreeMap<String, String>, fragment: bool) -> Response {
    let encoded = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
    let separator = match (fragment, to.contains('?')) {
        (true, _) => '#',
        (false, true) => '&',
        (false, false) => '?',
    };
    match HeaderValue::try_from(format!("{to}{separator}{encoded}")) {
        Ok(location) => (StatusCode::FOUND, [(header::LOCATION, location)]).into_response(),
        Err(_) => StatusCode::BAD_REQUEST.into_response(),
    }
}

pub(crate) fn random_text(sim: &Sim, bytes: usize) -> String {
    let mut buffer = vec![0_u8; bytes];
    sim.rng().fill(&mut buffer[..]);
    URL_SAFE_NO_PAD.encode(buffer)
}
