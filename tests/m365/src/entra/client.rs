//! How the app proves who it is: a secret, or an assertion signed with a registered certificate.
//!
//! `entra/identity-platform/certificate-credentials` and `v2-oauth2-auth-code-flow#request-an-access-token-with-a-certificate-credential`.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::{HeaderMap, header};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::app::App;
use super::error::EntraError;
use crate::Sim;

const BEARER_ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// Finds the app and checks its credential.
pub(crate) fn authenticate(
    sim: &Sim,
    tenant_segment: &str,
    headers: &HeaderMap,
    form: &HashMap<String, String>,
) -> Result<App, EntraError> {
    let basic = basic_credentials(headers);
    let (client_id, secret) = match &basic {
        Some((id, secret)) => (Some(id), Some(secret)),
        None => (form.get("client_id"), form.get("client_secret")),
    };
    let client_id = client_id.filter(|id| !id.is_empty()).ok_or_else(|| EntraError::missing("client_id"))?;
    let app = sim.entra().app(client_id)?;
    match (secret, form.get("client_assertion")) {
        (_, Some(assertion)) => {
            if form.get("client_assertion_type").map(String::as_str) != Some(BEARER_ASSERTION) {
                return Err(EntraError::missing("client_assertion_type"));
            }
            check_assertion(sim, tenant_segment, &app, assertion)?;
        }
        (Some(secret), None) => check_secret(sim, &app, secret)?,
        (None, None) => {
            let message = "The request body must contain the following parameter: 'client_assertion' or \
                           'client_secret'.";
            return Err(EntraError::invalid_client(7_000_218, message));
        }
    }
    Ok(app)
}

fn basic_credentials(headers: &HeaderMap) -> Option<(String, String)> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let text = String::from_utf8(STANDARD.decode(value.trim()).ok()?).ok()?;
    let (id, secret) = text.split_once(':')?;
    // RFC 6749 §2.3.1: both are form-encoded before they are joined.
    let decode = |part: &str| {
        url::form_urlencoded::parse(format!("v={part}").as_bytes())
            .next()
            .map(|(_, value)| value.into_owned())
            .unwrap_or_default()
    };
    Some((decode(id), decode(secret)))
}

fn check_secret(sim: &Sim, app: &App, secret: &str) -> Result<(), EntraError> {
    let Some(known) = app.secrets.iter().find(|known| known.value == secret) else {
        let message = format!(
            "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, \
             not the client secret ID, for a secret added to app '{}'.",
            app.client_id
        );
        return Err(EntraError::invalid_client(7_000_215, message));
    };
    if known.expires.is_some_and(|at| at <= sim.now()) {
        let message = format!("The provided client secret keys for app '{}' are expired.", app.client_id);
        return Err(EntraError::invalid_client(7_000_222, message));
    }
    Ok(())
}

fn check_assertion(sim: &Sim, tenant_segment: &str, app: &App, assertion: &str) -> Result<(), EntraError> {
    let malformed = || EntraError::invalid_client(50_027, "JWT token is invalid or malformed.");
    let mut parts = assertion.split('.');
    let header = parts.next().and_then(|part| URL_SAFE_NO_PAD.decode(part).ok()).ok_or_else(malformed)?;
    let header: Value = serde_json::from_slice(&header).map_err(|_| malformed())?;
    let algorithm = match header["alg"].as_str() {
        Some("PS256") => Algorithm::PS256,
        Some("RS256") => Algorithm::RS256,
        _ => return Err(malformed()),
    };
    let certificate = app
        .certificates
        .iter()
        .find(|certificate| names_certificate(&header, &certificate.pem))
        .ok_or_else(|| {
            let message = "Client assertion failed signature validation. The certificate with the given thumbprint is \
                           not registered on the application.";
            EntraError::invalid_client(700_027, message)
        })?;
    let key = DecodingKey::from_rsa_pem(certificate.pem.as_bytes()).map_err(|_| malformed())?;
    let mut validation = Validation::new(algorithm);
    validation.validate_aud = false;
    validation.validate_exp = false;
    validation.required_spec_claims.clear();
    let claims = jsonwebtoken::decode::<Value>(assertion, &key, &validation)
        .map_err(|_| EntraError::invalid_client(700_027, "Client assertion contains an invalid signature."))?
        .claims;
    check_claims(sim, tenant_segment, app, &claims)
}

fn check_claims(sim: &Sim, tenant_segment: &str, app: &App, claims: &Value) -> Result<(), EntraError> {
    let base = sim.base_url();
    let mut audiences =
        vec![format!("{base}/{tenant_segment}/oauth2/v2.0/token"), format!("{base}/{tenant_segment}/v2.0")];
    if let Some(tenant) = sim.directory().tenant(tenant_segment) {
        audiences.push(format!("{base}/{}/oauth2/v2.0/token", tenant.id));
        audiences.push(format!("{base}/{}/v2.0", tenant.id));
    }
    if !claims["aud"].as_str().is_some_and(|aud| audiences.iter().any(|known| known == aud)) {
        let message = "Assertion audience claim does not match the Realm issuer.";
        return Err(EntraError::invalid_client(50_013, message));
    }
    if claims["iss"] != app.client_id.as_str() || claims["sub"] != app.client_id.as_str() {
        let message = "Subject must match issuer claim in the client assertion.";
        return Err(EntraError::invalid_client(50_048, message));
    }
    // A NumericDate may have a fraction, and MSAL for Python sends one.
    let date = |name: &str| {
        let seconds = claims[name].as_f64()?;
        i64::try_from(std::time::Duration::try_from_secs_f64(seconds).ok()?.as_secs()).ok()
    };
    let now = sim.now().timestamp();
    // Five minutes of clock skew are forgiven.
    if date("exp").is_none_or(|until| until + 300 < now) || date("nbf").is_some_and(|from| from > now + 300) {
        let message = "Client assertion is not within its valid time range.";
        return Err(EntraError::invalid_client(700_024, message));
    }
    // `certificate-credentials` asks for a unique jti; a replay is a fault of the app even where it would pass.
    let Some(jti) = claims["jti"].as_str().filter(|jti| !jti.is_empty()) else {
        return Err(EntraError::invalid_client(50_027, "The assertion carries no jti."));
    };
    if !sim.entra().remember_assertion(jti) {
        sim.referee().flag("assertion_replayed", format!("jti {jti} was used before"), None, sim.now());
        return Err(EntraError::invalid_client(700_027, "The client assertion was used before."));
    }
    Ok(())
}

fn names_certificate(header: &Value, pem: &str) -> bool {
    let Some(der) = der_of(pem) else { return false };
    match (header["x5t#S256"].as_str(), header["x5t"].as_str()) {
        (Some(thumbprint), _) => {
            URL_SAFE_NO_PAD.encode(Sha256::digest(&der)) == thumbprint.trim_end_matches('=')
        }
        (None, Some(thumbprint)) => {
            let sha1 = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, &der);
            URL_SAFE_NO_PAD.encode(sha1.as_ref()) == thumbprint.trim_end_matches('=')
        }
        (None, None) => false,
    }
}

fn der_of(pem: &str) -> Option<Vec<u8>> {
    let (_, rest) = pem.split_once("-----BEGIN CERTIFICATE-----")?;
    let (body, _) = rest.split_once("-----END CERTIFICATE-----")?;
    STANDARD.decode(body.split_whitespace().collect::<String>()).ok()
}
