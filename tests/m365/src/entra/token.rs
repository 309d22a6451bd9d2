//! The token endpoint: a code or a refresh token in, tokens of one resource out.
//!
//! `entra/identity-platform/v2-oauth2-auth-code-flow#redeem-a-code-for-an-access-token`, `refresh-tokens`.

use std::collections::HashMap;

use axum::extract::{Path, State};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use chrono::TimeDelta;
use http::HeaderMap;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::error::EntraError;
use super::issue::{Issue, answer, granted};
use super::scope::Scopes;
use super::{Code, RefreshToken, client, metadata, policy};
use crate::Sim;
use crate::answer::Answer;
use crate::directory::User;

type Parameters = HashMap<String, String>;

pub(crate) async fn endpoint(
    State(sim): State<Sim>,
    Path(segment): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let form: Parameters = url::form_urlencoded::parse(&body).into_owned().collect();
    let correlation = headers.get("client-request-id").and_then(|v| v.to_str().ok()).map(str::to_owned);
    respond(&sim, &segment, &headers, &form).map_err(|error| error.into_answer(&sim, correlation.as_deref()))
}

fn respond(sim: &Sim, segment: &str, headers: &HeaderMap, form: &Parameters) -> Result<Response, EntraError> {
    let segment = segment.to_ascii_lowercase();
    if !["common", "organizations"].contains(&segment.as_str()) && sim.directory().tenant(&segment).is_none()
    {
        return Err(metadata::unknown_tenant(&segment));
    }
    let kind = headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !kind.starts_with("application/x-www-form-urlencoded") {
        return Err(EntraError::missing("grant_type"));
    }
    let grant_type = form.get("grant_type").ok_or_else(|| EntraError::missing("grant_type"))?;
    let app = client::authenticate(sim, &segment, headers, form)?;
    let claims = match form.get("claims") {
        None => false,
        Some(text) => {
            if !serde_json::from_str::<Value>(text).is_ok_and(|claims| claims.is_object()) {
                return Err(EntraError::invalid_request(50_161, "The claims parameter is not valid JSON."));
            }
            // Only asking for the capability is not an answer to a challenge.
            text.contains("nbf") || text.contains("acrs") || !text.contains("xms_cc")
        }
    };
    let issue = match grant_type.as_str() {
        "authorization_code" => by_code(sim, &segment, &app.client_id, form)?,
        "refresh_token" => by_refresh_token(sim, &segment, &app.client_id, form)?,
        "client_credentials" => {
            let message = "The application has no application permissions; only delegated flows are allowed.";
            return Err(EntraError::new("unauthorized_client", 700_025, message));
        }
        other => {
            let message = format!("The app requested an unsupported grant type '{other}'.");
            return Err(EntraError::new("unsupported_grant_type", 70_003, message));
        }
    };
    if app.disabled_in.contains(&issue.user.tenant) {
        let message = format!("Application '{}'({}) is disabled.", app.client_id, app.name);
        return Err(EntraError::new("unauthorized_client", 7_000_112, message));
    }
    Ok(answer(sim, &app.client_id, form, claims, issue))
}

fn by_code(sim: &Sim, segment: &str, client_id: &str, form: &Parameters) -> Result<Issue, EntraError> {
    let code = form.get("code").ok_or_else(|| EntraError::missing("code"))?;
    let redirect_uri = form.get("redirect_uri").ok_or_else(|| EntraError::missing("redirect_uri"))?;
    let mut known = sim.entra().codes.get(code).cloned().ok_or_else(|| {
        EntraError::invalid_grant(9_002_313, "Invalid request. Request is malformed or invalid.")
    })?;
    if known.app != client_id {
        return Err(EntraError::invalid_grant(700_003, "The code was issued to another application."));
    }
    if known.segment != segment {
        let message = "Provided Authorization Code is intended to use against other tenant, thus rejected.";
        return Err(EntraError::invalid_grant(700_005, message));
    }
    if known.redeemed {
        let message = "OAuth2 Authorization code was already redeemed, please retry with a new valid code or use an \
                       existing refresh token.";
        return Err(EntraError::invalid_grant(54_005, message));
    }
    if known.expires <= sim.now() {
        let message = "The provided authorization code or refresh token has expired due to inactivity. Send a new \
                       interactive authorization request for this user and resource.";
        return Err(EntraError::invalid_grant(70_008, message));
    }
    if known.redirect_uri != *redirect_uri {
        let message = format!(
            "The reply address '{redirect_uri}' does not match the reply address '{}' provided when requesting \
             Authorization code.",
            known.redirect_uri
        );
        return Err(EntraError::invalid_grant(500_112, message));
    }
    check_verifier(&known, form.get("code_verifier"))?;
    let user = user_by_oid(sim, &known.oid)?;
    policy::planned(sim, &user.upn, "authorization_code")?;
    let scopes = match form.get("scope").map(|scope| scope.trim()).filter(|scope| !scope.is_empty()) {
        Some(scope) => Scopes::parse(sim, scope).map_err(at_token_endpoint)?,
        None if known.scopes.resources().len() <= 1 => known.scopes.clone(),
        None => {
            let message = "Provided value for the input parameter scope cannot be empty when requesting an access token \
                           using the provided authorization code. Please specify a valid scope.";
            return Err(EntraError::invalid_request(28_003, message));
        }
    };
    if scopes.resources().len() > 1 {
        let message = "The provided value for the input parameter scope isn't valid because it contains more than one \
                       resource.";
        return Err(EntraError::invalid_request(700_022, message));
    }
    // The first leg's openid and offline_access count, as the documented request repeats only the resource's scopes.
    let mut scopes = scopes;
    scopes.oidc.extend(known.scopes.oidc.iter().cloned());
    let (resource, granted) = granted(sim, client_id, &user, &scopes)?;
    known.redeemed = true;
    let (first_leg, nonce) = (known.scopes.clone(), known.nonce.clone());
    sim.entra().codes.insert(code.clone(), known);
    Ok(Issue { user, scopes, first_leg, nonce, resource, granted })
}

fn check_verifier(code: &Code, verifier: Option<&String>) -> Result<(), EntraError> {
    let Some((challenge, hashed)) = &code.challenge else { return Ok(()) };
    let Some(verifier) = verifier else {
        let message = "The Code_Verifier parameter is missing for the request with a Code_Challenge.";
        return Err(EntraError::invalid_grant(50_148, message));
    };
    let computed =
        if *hashed { URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes())) } else { verifier.clone() };
    if computed != *challenge {
        let message =
            "The Code_Verifier does not match the code_challenge supplied in the authorization request.";
        return Err(EntraError::invalid_grant(501_481, message));
    }
    Ok(())
}

fn by_refresh_token(
    sim: &Sim,
    segment: &str,
    client_id: &str,
    form: &Parameters,
) -> Result<Issue, EntraError> {
    let presented = form.get("refresh_token").ok_or_else(|| EntraError::missing("refresh_token"))?;
    let known = sim.entra().refresh_tokens.get(presented).cloned().filter(|known| known.app == client_id);
    let known = known.ok_or_else(|| {
        let message = "The request was denied because one or more scopes requested are unauthorized or expired, or the \
                       refresh token is malformed.";
        EntraError::invalid_grant(70_000, message)
    })?;
    let now = sim.now();
    if ["common", "organizations"].contains(&segment) {
        let what = format!("a refresh token was sent to /{segment}, not to the tenant of its connection");
        sim.referee().flag("refresh_on_common", what, None, now);
    }
    let user = user_by_oid(sim, &known.oid)?;
    policy::planned(sim, &user.upn, "refresh_token")?;
    check_life(sim, presented, &known)?;
    check_loop(sim, presented, form.get("scope").map_or("", String::as_str))?;
    let tenant = sim.directory().tenant(segment).map(|tenant| tenant.id.clone());
    if tenant.is_some_and(|tenant| tenant != user.tenant) {
        let message = format!("User account '{}' does not exist in tenant '{segment}'.", user.upn);
        return Err(EntraError::invalid_grant(50_020, message));
    }
    let mut scopes = match form.get("scope").map(|scope| scope.trim()).filter(|scope| !scope.is_empty()) {
        Some(scope) => Scopes::parse(sim, scope).map_err(at_token_endpoint)?,
        None => known.scopes.clone(),
    };
    // Several resources: the token is for the first, and nothing says so.
    if let Some(first) = scopes.resources().first().map(|first| (*first).to_owned()) {
        scopes.permissions.retain(|permission| permission.resource == first);
    }
    // A refresh token was issued, so the first leg had offline_access: the next one comes without asking.
    scopes.oidc.insert("offline_access".into());
    let (resource, granted) = granted(sim, client_id, &user, &scopes)?;
    if let Some(known) = sim.entra().refresh_tokens.get_mut(presented) {
        known.rotated.get_or_insert(now);
    }
    Ok(Issue { user, scopes, first_leg: known.scopes, nonce: None, resource, granted })
}

fn check_life(sim: &Sim, presented: &str, known: &RefreshToken) -> Result<(), EntraError> {
    let now = sim.now();
    let (policy, revoked) = {
        let entra = sim.entra();
        (entra.policy.clone(), entra.revoked_at.get(&known.oid).copied())
    };
    if revoked.is_some_and(|at| known.issued <= at) {
        let message = "The provided grant has expired due to it being revoked, a fresh auth token is needed. The user \
                       might have changed or reset their password.";
        return Err(EntraError::invalid_grant(50_173, message).suberror("bad_token"));
    }
    if known.issued + TimeDelta::days(policy.refresh_days) <= now {
        let message = format!(
            "The refresh token has expired due to inactivity. The token was issued on {} and was inactive for \
             {}.00:00:00.",
            known.issued.format("%Y-%m-%dT%H:%M:%S%.6fZ"),
            policy.refresh_days
        );
        return Err(EntraError::invalid_grant(700_082, message));
    }
    let late = known.rotated.is_some_and(|at| at + TimeDelta::seconds(policy.reuse_grace_seconds) < now);
    if policy.strict_reuse && late {
        let end = &presented[presented.len().saturating_sub(6)..];
        let what = format!("a refresh token that was rotated before came again (…{end})");
        sim.referee().flag("refresh_reuse", what, None, now);
        let message = "The refresh token was used before and is no longer accepted.";
        return Err(EntraError::invalid_grant(70_000, message).suberror("bad_token"));
    }
    Ok(())
}

fn check_loop(sim: &Sim, presented: &str, scope: &str) -> Result<(), EntraError> {
    let now = sim.now();
    let mut entra = sim.entra();
    let limit = entra.policy.loop_limit;
    let Some(known) = entra.refresh_tokens.get_mut(presented) else { return Ok(()) };
    known.uses.retain(|(at, _)| *at + TimeDelta::seconds(60) > now);
    known.uses.push((now, scope.to_owned()));
    let times = known.uses.iter().filter(|(_, used)| used == scope).count();
    drop(entra);
    if times > limit {
        sim.referee().flag("token_loop", format!("the same refresh {times} times in a minute"), None, now);
        let message = "The server terminated an operation because it encountered a client request loop.";
        return Err(EntraError::invalid_grant(50_196, message));
    }
    Ok(())
}

/// What is unknown is `invalid_client` in the browser and `invalid_scope` here.
fn at_token_endpoint(error: EntraError) -> EntraError {
    if error.code == 650_053 { EntraError::new("invalid_scope", 70_011, error.message) } else { error }
}

fn user_by_oid(sim: &Sim, oid: &str) -> Result<User, EntraError> {
    let user = sim.directory().by_oid(oid).cloned();
    let user = user.ok_or_else(|| {
        EntraError::invalid_grant(50_034, "The user account does not exist in the directory.")
    })?;
    if !user.account_enabled {
        return Err(EntraError::invalid_grant(50_057, "The user account is disabled."));
    }
    Ok(user)
}
