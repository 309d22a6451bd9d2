//! Tokens: signed with a real key, so that a client which checks them has something to check.
//!
//! Claims: `entra/identity-platform/access-token-claims-reference` and `id-token-claims-reference`.

use std::sync::OnceLock;

use jsonwebtoken::jwk::{AlgorithmParameters, Jwk};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::{KeyPair, PKCS_RSA_SHA256, RsaKeySize};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Sim;
use crate::directory::User;

pub(crate) const KEY_ID: &str = "m365sim-signing-key-1";

struct SigningKey {
    private: EncodingKey,
    public: DecodingKey,
    modulus: String,
    exponent: String,
}

/// One key for the process: making an RSA key is slow and its value proves nothing.
fn signing_key() -> &'static SigningKey {
    static KEY: OnceLock<SigningKey> = OnceLock::new();
    KEY.get_or_init(|| {
        let pair =
            KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).expect("RSA keys can be made");
        let private = EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes()).expect("its PEM is RSA");
        let jwk = Jwk::from_encoding_key(&private, Algorithm::RS256).expect("an RSA key has a public part");
        let AlgorithmParameters::RSA(rsa) = jwk.algorithm else { unreachable!("it is an RSA key") };
        let public = DecodingKey::from_rsa_components(&rsa.n, &rsa.e).expect("its own components");
        SigningKey { private, public, modulus: rsa.n, exponent: rsa.e }
    })
}

pub(crate) fn jwks(issuer: &str) -> Value {
    let key = signing_key();
    json!({"keys": [{"kty": "RSA", "use": "sig", "kid": KEY_ID, "x5t": KEY_ID, "alg": "RS256",
        "n": key.modulus, "e": key.exponent, "issuer": issuer}]})
}

pub(crate) fn sign(claims: &Value) -> String {
    let mut header = Header::new(Algorithm::RS256);
    header.kid = Some(KEY_ID.into());
    jsonwebtoken::encode(&header, claims, &signing_key().private).expect("claims are plain JSON")
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct AccessClaims {
    pub(crate) aud: String,
    pub(crate) iss: String,
    pub(crate) iat: i64,
    pub(crate) nbf: i64,
    pub(crate) exp: i64,
    pub(crate) appid: String,
    pub(crate) oid: String,
    pub(crate) tid: String,
    pub(crate) upn: String,
    pub(crate) scp: String,
    pub(crate) uti: String,
    pub(crate) ver: String,
    pub(crate) sub: String,
    /// When it was issued to the millisecond, and whether a `claims` parameter asked for it: what a challenge checks.
    pub(crate) xms_sim_issued: i64,
    pub(crate) xms_sim_claims: bool,
}

pub(crate) fn verify(_sim: &Sim, token: &str) -> Option<AccessClaims> {
    let mut validation = Validation::new(Algorithm::RS256);
    // Audience and lifetime are the resource's to check, on the virtual clock.
    validation.validate_aud = false;
    validation.validate_exp = false;
    validation.required_spec_claims.clear();
    jsonwebtoken::decode::<AccessClaims>(token, &signing_key().public, &validation)
        .ok()
        .map(|data| data.claims)
}

pub(crate) struct Grant<'a> {
    pub(crate) user: &'a User,
    pub(crate) app: &'a str,
    pub(crate) audience: &'a str,
    pub(crate) scopes: &'a [String],
    pub(crate) lifetime_seconds: i64,
    pub(crate) with_claims: bool,
}

pub(crate) fn access_token(sim: &Sim, grant: &Grant<'_>) -> String {
    let now = sim.now();
    let claims = AccessClaims {
        aud: grant.audience.to_owned(),
        iss: format!("https://sts.windows.net/{}/", grant.user.tenant),
        iat: now.timestamp(),
        nbf: now.timestamp(),
        exp: now.timestamp() + grant.lifetime_seconds,
        appid: grant.app.to_owned(),
        oid: grant.user.oid.clone(),
        tid: grant.user.tenant.clone(),
        upn: grant.user.upn.clone(),
        scp: grant.scopes.join(" "),
        uti: sim.guid(),
        ver: "1.0".into(),
        sub: pairwise(&grant.user.oid, grant.audience),
        xms_sim_issued: now.timestamp_millis(),
        xms_sim_claims: grant.with_claims,
    };
    sign(&serde_json::to_value(claims).expect("claims are plain JSON"))
}

/// `sub` is another value for each app: `id-token-claims-reference`.
pub(crate) fn pairwise(oid: &str, app: &str) -> String {
    use base64::Engine as _;
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(format!("{oid}|{app}").as_bytes());
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(digest)
}

impl Sim {
    /// A Graph token of this user for these scopes, without the detour of signing in.
    pub fn graph_token(&self, user: &str, scopes: &[&str]) -> String {
        self.token_for(user, crate::auth::GRAPH, scopes)
    }

    /// A token of the default Dataverse environment.
    pub fn dataverse_token(&self, user: &str) -> String {
        let audience = self.base_url().to_owned();
        self.token_for(user, &audience, &["user_impersonation"])
    }

    pub fn token_for(&self, user: &str, audience: &str, scopes: &[&str]) -> String {
        let user = self.directory().find(user).cloned().expect("a user of the directory");
        let scopes: Vec<String> = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        let grant = Grant {
            user: &user,
            app: super::CLIENT_ID,
            audience,
            scopes: &scopes,
            lifetime_seconds: 3599,
            with_claims: false,
        };
        access_token(self, &grant)
    }
}
