//! App registrations: what an app is called, where it may be sent back to, how it proves itself.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct App {
    pub client_id: String,
    pub name: String,
    #[serde(default)]
    pub secrets: Vec<Secret>,
    #[serde(default)]
    pub certificates: Vec<Certificate>,
    #[serde(default)]
    pub redirect_uris: Vec<String>,
    /// Any path on 127.0.0.1 and localhost is a redirect URI too. Real registrations know no such wildcard.
    #[serde(default)]
    pub any_loopback_redirect: bool,
    /// Tenants in which the app is disabled: `AADSTS7000112`.
    #[serde(default)]
    pub disabled_in: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Secret {
    pub value: String,
    #[serde(default)]
    pub expires: Option<DateTime<Utc>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Certificate {
    /// The certificate, PEM. Its thumbprints are what assertions name.
    pub pem: String,
}

impl App {
    pub(crate) fn seeded() -> Self {
        Self {
            client_id: super::CLIENT_ID.into(),
            name: "Followthrough (simulated registration)".into(),
            secrets: vec![Secret { value: super::CLIENT_SECRET.into(), expires: None }],
            certificates: Vec::new(),
            redirect_uris: vec!["https://followthrough.example/oauth/callback".into()],
            any_loopback_redirect: true,
            disabled_in: Vec::new(),
        }
    }

    /// Exact comparison: `entra/identity-platform/reply-url`.
    pub(crate) fn may_redirect_to(&self, uri: &str) -> bool {
        if self.redirect_uris.iter().any(|known| known == uri) {
            return true;
        }
        let Ok(url) = url::Url::parse(uri) else { return false };
        self.any_loopback_redirect
            && matches!(url.host_str(), Some("127.0.0.1" | "localhost"))
            && matches!(url.scheme(), "http" | "https")
            && url.fragment().is_none()
    }
}
