//! How the fleet proves to Entra that it is the app: a secret, or a certificate whose key signs.
//!
//! The invariant: the secret and the key go into a token request and nowhere else; an error about them
//! says what is wrong and never what they are.

use std::fmt;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use url::Url;
use uuid::Uuid;

use crate::config::Microsoft;

#[derive(Clone)]
pub enum Credential {
    Secret(SecretString),
    Certificate { key: EncodingKey, thumbprint: String },
}

#[derive(Serialize)]
struct Assertion<'a> {
    aud: &'a str,
    iss: &'a str,
    sub: &'a str,
    jti: String,
    nbf: i64,
    iat: i64,
    exp: i64,
}

impl Credential {
    /// The one credential of the settings.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn new(settings: &Microsoft) -> Result<Self, String> {
        match (&settings.client_secret, &settings.client_certificate) {
            (Some(_), Some(_)) => {
                Err("microsoft.client_secret and microsoft.client_certificate: both are given; expected one"
                    .into())
            }
            (None, None) => {
                Err("microsoft.client_secret: missing; expected it or microsoft.client_certificate".into())
            }
            (Some(secret), None) if secret.expose_secret().trim().is_empty() => {
                Err("microsoft.client_secret: empty; expected the secret's value".into())
            }
            (Some(secret), None) => Ok(Self::Secret(secret.clone())),
            (None, Some(pem)) => {
                certificate(pem).map_err(|wrong| format!("microsoft.client_certificate: {wrong}"))
            }
        }
    }

    /// What proves the app in the body of one token request.
    pub fn parameters(
        &self,
        client_id: &str,
        token_url: &Url,
        now: DateTime<Utc>,
    ) -> Vec<(&'static str, SecretString)> {
        match self {
            Self::Secret(secret) => vec![("client_secret", secret.clone())],
            Self::Certificate { key, thumbprint } => vec![
                ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer".into()),
                ("client_assertion", assertion(key, thumbprint, client_id, token_url, now).into()),
            ],
        }
    }
}

/// <https://learn.microsoft.com/entra/identity-platform/certificate-credentials>
fn assertion(
    key: &EncodingKey,
    thumbprint: &str,
    client_id: &str,
    token_url: &Url,
    now: DateTime<Utc>,
) -> String {
    let mut header = Header::new(Algorithm::PS256);
    header.x5t_s256 = Some(thumbprint.to_owned());
    let claims = Assertion {
        aud: token_url.as_str(),
        iss: client_id,
        sub: client_id,
        jti: Uuid::now_v7().to_string(),
        // A clock that is a little fast must not make every token request fail.
        nbf: (now - TimeDelta::seconds(60)).timestamp(),
        iat: now.timestamp(),
        exp: (now + TimeDelta::minutes(5)).timestamp(),
    };
    jsonwebtoken::encode(&header, &claims, key).expect("the key signed when it was read")
}

/// A PEM text with one certificate and its RSA key, in any order.
fn certificate(pem: &SecretString) -> Result<Credential, String> {
    const EXPECTED: &str = "expected PEM with a CERTIFICATE and its RSA PRIVATE KEY";
    let blocks = blocks(pem.expose_secret());
    let der = blocks
        .iter()
        .find(|(label, _)| *label == "CERTIFICATE")
        .ok_or_else(|| format!("holds no CERTIFICATE; {EXPECTED}"))
        .and_then(|(_, text)| {
            decode(text).ok_or_else(|| format!("its CERTIFICATE is not base64; {EXPECTED}"))
        })?;
    let (label, text) = blocks
        .iter()
        .find(|(label, _)| label.ends_with("PRIVATE KEY"))
        .ok_or_else(|| format!("holds no PRIVATE KEY; {EXPECTED}"))?;
    if label.starts_with("ENCRYPTED") {
        return Err(format!("its key is encrypted; {EXPECTED}, not encrypted"));
    }
    let whole =
        SecretString::from(format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", text.trim()));
    // The library's own error is dropped: it may quote what it was given.
    let wrong_key = || format!("its key cannot be read as RSA; {EXPECTED}");
    let key = EncodingKey::from_rsa_pem(whole.expose_secret().as_bytes()).map_err(|_| wrong_key())?;
    let public = Jwk::from_encoding_key(&key, Algorithm::PS256).map_err(|_| wrong_key())?;
    let AlgorithmParameters::RSA(rsa) = public.algorithm else { return Err(wrong_key()) };
    let modulus = BASE64_URL_SAFE_NO_PAD.decode(rsa.n).map_err(|_| wrong_key())?;
    // A certificate carries its modulus in full; without it, Entra would refuse every signature.
    if modulus.is_empty() || !der.windows(modulus.len()).any(|window| window == modulus) {
        return Err("its key is not the key of its certificate; expected a pair".into());
    }
    let thumbprint = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(&der));
    Ok(Credential::Certificate { key, thumbprint })
}

/// The labelled blocks of a PEM text.
fn blocks(pem: &str) -> Vec<(&str, &str)> {
    pem.split("-----BEGIN ")
        .skip(1)
        .filter_map(|block| {
            let (label, rest) = block.split_once("-----")?;
            let (text, _) = rest.split_once("-----END ")?;
            Some((label.trim(), text))
        })
        .collect()
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let packed: String = text.split_whitespace().collect();
    BASE64_STANDARD.decode(packed).ok()
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Secret(_) => "Secret(secret)",
            Self::Certificate { .. } => "Certificate(secret)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(secret: Option<&str>, certificate: Option<&str>) -> Result<Credential, String> {
        Credential::new(&Microsoft {
            client_secret: secret.map(SecretString::from),
            client_certificate: certificate.map(SecretString::from),
            ..Microsoft::default()
        })
    }

    #[test]
    fn a_wrong_credential_is_refused_by_name_and_never_shown() {
        let block = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
        let cases = [
            (None, None, "missing"),
            (Some("planted"), Some("planted".to_owned()), "both are given"),
            (Some("  "), None, "empty"),
            (None, Some("planted".to_owned()), "holds no CERTIFICATE"),
            (None, Some(block("CERTIFICATE")), "holds no PRIVATE KEY"),
            (None, Some(block("CERTIFICATE") + &block("ENCRYPTED PRIVATE KEY")), "is encrypted"),
            (None, Some(block("CERTIFICATE") + &block("PRIVATE KEY")), "cannot be read as RSA"),
            (
                None,
                Some("-----BEGIN CERTIFICATE-----planted-----END CERTIFICATE-----".into()),
                "is not base64",
            ),
        ];
        for (secret, certificate, expected) in cases {
            let error = with(secret, certificate.as_deref()).expect_err(expected);
            assert!(error.starts_with("microsoft.client_") && error.contains(expected), "{error}");
            assert!(!error.contains("planted") && !error.contains("AAAA"), "{error}");
        }
        assert_eq!(format!("{:?}", with(Some("planted"), None)), "Ok(Secret(secret))");
    }
}
