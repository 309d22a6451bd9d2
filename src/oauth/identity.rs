//! Who signed in: the id token, checked against Entra's published keys.
//!
//! The invariant: an identity is what a signed token says of tenant and object, never an address; a token
//! counts only for the nonce it was asked with, for this app, from the issuer of its own tenant.

use std::collections::HashMap;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use subtle::ConstantTimeEq as _;
use tokio::sync::Mutex;
use url::Url;

use super::app::ANY_TENANT;
use super::client::Entra;
use crate::http::{Call, HttpError};

/// The tenant of personal Microsoft accounts.
const CONSUMERS: &str = "9188040d-6c67-4c5b-b112-36a304b66dad";
/// How far Entra's clock and ours may be apart.
const SKEW: TimeDelta = TimeDelta::minutes(5);
/// Keys are fetched again after this, and for an unknown key no more often than [`REFETCH`].
const KEYS_LIVE: TimeDelta = TimeDelta::hours(24);
const REFETCH: TimeDelta = TimeDelta::minutes(5);

/// Who signed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub tenant_id: String,
    pub object_id: String,
    /// The names the token gives, best first: to show and to compare with what was expected.
    pub names: Vec<String>,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum IdentityError {
    #[error("the id token is not what was asked for: {0}")]
    Refused(&'static str),
    #[error("personal Microsoft accounts cannot be connected; a work or school account is needed")]
    PersonalAccount,
    #[error("Entra's signing keys cannot be read")]
    Keys,
    #[error(transparent)]
    Http(#[from] HttpError),
}

/// Entra's signing keys, fetched when needed.
#[derive(Default)]
pub struct SigningKeys(Mutex<Option<Fetched>>);

struct Fetched {
    at: DateTime<Utc>,
    issuer: String,
    keys: HashMap<String, Key>,
}

#[derive(Clone)]
struct Key {
    key: DecodingKey,
    /// The only issuer this key may speak for, perhaps with a placeholder for the tenant.
    issuer: Option<String>,
}

#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    jwks_uri: Url,
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<JwksKey>,
}

#[derive(Deserialize)]
struct JwksKey {
    kid: Option<String>,
    kty: String,
    n: Option<String>,
    e: Option<String>,
    issuer: Option<String>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    exp: i64,
    nbf: Option<i64>,
    tid: String,
    sub: String,
    oid: Option<String>,
    nonce: Option<String>,
    preferred_username: Option<String>,
    upn: Option<String>,
}

#[derive(Deserialize)]
struct ClientInfo {
    uid: String,
    utid: String,
}

impl SigningKeys {
    /// Reads an id token that came straight from the token endpoint.
    pub async fn identify(
        &self,
        entra: &Entra,
        token: &SecretString,
        client_info: Option<&str>,
        nonce: &str,
    ) -> Result<Identity, IdentityError> {
        let refused = IdentityError::Refused;
        let header =
            jsonwebtoken::decode_header(token.expose_secret()).map_err(|_| refused("it is no token"))?;
        if header.alg != Algorithm::RS256 {
            return Err(refused("it is not signed with RS256"));
        }
        let kid = header.kid.ok_or(refused("it names no key"))?;
        let (key, issuer) = self.find(entra, &kid).await?.ok_or(refused("its key is not Entra's"))?;
        let mut validation = Validation::new(Algorithm::RS256);
        validation.set_audience(&[&entra.app.client_id]);
        validation.set_required_spec_claims(&["exp", "aud", "iss"]);
        // Checked below against our own clock.
        validation.validate_exp = false;
        let claims = jsonwebtoken::decode::<Claims>(token.expose_secret(), &key.key, &validation)
            .map_err(|_| refused("its signature or audience is wrong"))?
            .claims;
        let now = entra.clock.now();
        let time = |seconds| DateTime::from_timestamp(seconds, 0).ok_or(refused("its times are wrong"));
        if now >= time(claims.exp)? + SKEW
            || claims.nbf.map(time).transpose()?.is_some_and(|nbf| now + SKEW < nbf)
        {
            return Err(refused("it is not valid now"));
        }
        if !bool::from(claims.nonce.unwrap_or_default().as_bytes().ct_eq(nonce.as_bytes())) {
            return Err(refused("its nonce is another one"));
        }
        if claims.tid.eq_ignore_ascii_case(CONSUMERS) {
            return Err(IdentityError::PersonalAccount);
        }
        if uuid::Uuid::parse_str(&claims.tid).is_err() {
            return Err(refused("its tenant is no GUID"));
        }
        let of_tenant = |template: &str| template.replace("{tenantid}", &claims.tid) == claims.iss;
        if !of_tenant(&issuer) || !key.issuer.as_deref().is_none_or(of_tenant) {
            return Err(refused("its issuer is another one"));
        }
        let object_id =
            claims.oid.or_else(|| of_client_info(client_info?, &claims.tid)).unwrap_or(claims.sub);
        // Not `email`: whoever administers a tenant may write any address there.
        let names = [claims.preferred_username, claims.upn].into_iter().flatten().collect();
        Ok(Identity { tenant_id: claims.tid, object_id, names })
    }

    async fn find(&self, entra: &Entra, kid: &str) -> Result<Option<(Key, String)>, IdentityError> {
        // Held while fetching: those who come meanwhile want the same keys.
        let mut held = self.0.lock().await;
        let now = entra.clock.now();
        let known = |held: &Option<Fetched>| {
            held.as_ref().and_then(|fetched| Some((fetched.keys.get(kid)?.clone(), fetched.issuer.clone())))
        };
        let age = held.as_ref().map(|fetched| now - fetched.at);
        let stale = match (age, known(&held)) {
            (None, _) => true,
            (Some(age), Some(_)) => age > KEYS_LIVE,
            (Some(age), None) => age > REFETCH,
        };
        if stale {
            *held = Some(fetch(entra, now).await?);
        }
        Ok(known(&held))
    }
}

/// <https://learn.microsoft.com/entra/identity-platform/v2-protocols-oidc>
async fn fetch(entra: &Entra, now: DateTime<Utc>) -> Result<Fetched, IdentityError> {
    let metadata_url = entra.app.at(&[ANY_TENANT, "v2.0", ".well-known", "openid-configuration"]);
    let metadata: Metadata = get(entra, "entra.metadata", metadata_url.clone()).await?;
    if metadata.jwks_uri.origin() != metadata_url.origin() {
        return Err(IdentityError::Keys);
    }
    let jwks: Jwks = get(entra, "entra.keys", metadata.jwks_uri).await?;
    let keys = jwks.keys.into_iter().filter(|key| key.kty == "RSA").filter_map(|key| {
        let decoding = DecodingKey::from_rsa_components(&key.n?, &key.e?).ok()?;
        Some((key.kid?, Key { key: decoding, issuer: key.issuer }))
    });
    Ok(Fetched { at: now, issuer: metadata.issuer, keys: keys.collect() })
}

async fn get<T: serde::de::DeserializeOwned>(
    entra: &Entra,
    name: &'static str,
    url: Url,
) -> Result<T, IdentityError> {
    let mut call = Call::get(name, url);
    call.timeout = std::time::Duration::from_secs(10);
    call.max_answer = 1024 * 1024;
    let answer = entra.http.send(call).await?;
    if !answer.status.is_success() {
        return Err(IdentityError::Keys);
    }
    answer.json().map_err(|_| IdentityError::Keys)
}

/// The sign-in names in an access token that has just come from the token endpoint. Nobody but its resource can
/// check it, so what it says may only ever refuse; what cannot be read names nobody.
pub(super) fn names_of_access_token(token: &SecretString) -> Vec<String> {
    #[derive(Deserialize)]
    struct Names {
        preferred_username: Option<String>,
        upn: Option<String>,
        unique_name: Option<String>,
    }
    let read = || {
        let payload = token.expose_secret().split('.').nth(1)?;
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
        let names: Names = serde_json::from_slice(&bytes).ok()?;
        Some([names.preferred_username, names.upn, names.unique_name].into_iter().flatten().collect())
    };
    read().unwrap_or_default()
}

/// The object id of somebody who is at home in the tenant that signed them in; a guest's is another one.
fn of_client_info(text: &str, tenant: &str) -> Option<String> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()?;
    let info: ClientInfo = serde_json::from_slice(&bytes).ok()?;
    info.utid.eq_ignore_ascii_case(tenant).then_some(info.uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> SecretString {
        format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims)).into()
    }

    #[test]
    fn an_access_token_names_its_user_by_sign_in_names_only() {
        let names = |claims: &str| names_of_access_token(&token(claims));
        let all =
            r#"{"upn":"u@a","unique_name":"n@a","preferred_username":"p@a","email":"e@a","name":"Ada"}"#;
        assert_eq!(names(all), ["p@a", "u@a", "n@a"]);
        assert_eq!(names(r#"{"upn":"u@a"}"#), ["u@a"]);
        assert!(names(r#"{"email":"e@a"}"#).is_empty());
    }

    #[test]
    fn an_access_token_that_cannot_be_read_names_nobody() {
        for text in ["", "opaque", "a.b.c", "e30.!!.x", "EwBAA8l6BAAU"] {
            assert!(names_of_access_token(&text.into()).is_empty(), "{text}");
        }
    }
}
