//! The app registration: who we are to Entra, and where its cloud's doors are.
//!
//! The invariant: what is wrong with the settings is found here, at start; a Dataverse environment outside
//! the allowed hosts never becomes a resource.

use chrono::{DateTime, Utc};
use oauth2::{CsrfToken, PkceCodeChallenge, PkceCodeVerifier};
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;
use uuid::Uuid;

use super::credential::Credential;
use super::scopes::{self, Integration, Resource};
use crate::config::{Cloud, Microsoft};
use crate::dataverse::{allowed_host, environment as origin, host_patterns};

/// Who signs in where the tenant is not known yet: work and school accounts of any tenant.
pub const ANY_TENANT: &str = "organizations";

#[derive(Debug, Clone)]
pub struct App {
    pub client_id: String,
    pub(super) credential: Credential,
    pub(super) login: Url,
    pub graph: Url,
    pub discovery: Url,
    public: Url,
    dataverse_hosts: Vec<String>,
    /// Bare scopes mean the global Graph; another cloud's are spelled out.
    spelled_out: bool,
}

/// All that makes one sign-in.
pub struct Authorize<'a> {
    pub integration: Integration,
    pub environment: &'a str,
    pub state: String,
    pub nonce: &'a str,
    pub verifier: &'a SecretString,
    pub account: Option<&'a str>,
    pub claims: Option<&'a str>,
}

impl App {
    /// # Errors
    /// Names the setting that is wrong.
    pub fn new(settings: &Microsoft, public_url: &Url) -> Result<Self, String> {
        let client_id = settings.client_id.as_deref().unwrap_or_default().trim();
        if Uuid::parse_str(client_id).is_err() {
            let shape = match client_id.len() {
                0 => "missing".to_owned(),
                length => format!("{length} characters"),
            };
            return Err(format!(
                "microsoft.client_id: {shape}; expected the app registration's client id, a GUID"
            ));
        }
        for (key, url) in [
            ("microsoft.login_url", settings.login_url()),
            ("microsoft.graph_url", settings.graph_url()),
            ("microsoft.discovery_url", settings.discovery_url()),
            ("http.public_url", public_url.clone()),
        ] {
            let plain = url.scheme() == "http" && crate::http::loopback(&url);
            if !(url.scheme() == "https" || plain) || url.query().is_some() || !url.username().is_empty() {
                return Err(format!(
                    "{key}: expected an https:// URL without user, query or fragment (http:// on this machine only)"
                ));
            }
        }
        let dataverse_hosts = host_patterns(&settings.dataverse_hosts);
        if let Some(index) = dataverse_hosts
            .iter()
            .position(|host| host.trim_start_matches("*.").is_empty() || host.contains("://"))
        {
            return Err(format!(
                "microsoft.dataverse_hosts: entry {}: expected a host or `*.` and a host",
                index + 1
            ));
        }
        Ok(Self {
            client_id: client_id.to_owned(),
            credential: Credential::new(settings)?,
            login: settings.login_url(),
            graph: settings.graph_url(),
            discovery: settings.discovery_url(),
            public: public_url.clone(),
            dataverse_hosts,
            spelled_out: settings.cloud != Cloud::Global,
        })
    }

    /// The environment as it is stored and compared: its origin, on an allowed host.
    pub fn environment(&self, text: &str) -> Option<String> {
        let url = Url::parse(text).ok()?;
        let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        (bare && allowed_host(&self.dataverse_hosts, &url)).then(|| origin(&url))
    }

    /// What a client of this integration calls a resource by; `None` for what its tokens are not for.
    pub fn resource(&self, integration: Integration, url: &str) -> Option<Resource> {
        let parsed = Url::parse(url).ok()?;
        match integration {
            Integration::Dynamics if origin(&parsed) == origin(&self.discovery) => {
                Some(Resource::Dataverse(origin(&parsed)))
            }
            Integration::Dynamics => self.environment(url).map(Resource::Dataverse),
            _ => (origin(&parsed) == origin(&self.graph)).then_some(Resource::Graph),
        }
    }

    /// Where an integration works for a user who named no environment.
    pub fn environment_or_discovery(&self, environment: Option<&str>) -> String {
        environment.map_or_else(|| origin(&self.discovery), str::to_owned)
    }

    /// One scope parameter.
    pub fn spell(&self, scopes: &[String]) -> Vec<String> {
        scopes
            .iter()
            .map(|scope| {
                if self.spelled_out && !scopes::is_sign_in(scope) && !scope.contains("://") {
                    format!("{}/{scope}", origin(&self.graph))
                } else {
                    scope.clone()
                }
            })
            .collect()
    }

    pub fn token_url(&self, tenant: &str) -> Url {
        self.at(&[tenant, "oauth2", "v2.0", "token"])
    }

    pub fn authorize_url(&self, request: Authorize<'_>) -> Url {
        let scopes = self.spell(&scopes::scopes(request.integration, request.environment));
        let verifier = PkceCodeVerifier::new(request.verifier.expose_secret().to_owned());
        let client = oauth2::basic::BasicClient::new(oauth2::ClientId::new(self.client_id.clone()))
            .set_auth_uri(oauth2::AuthUrl::from_url(self.at(&[ANY_TENANT, "oauth2", "v2.0", "authorize"])))
            .set_redirect_uri(oauth2::RedirectUrl::from_url(self.redirect_url()));
        let state = CsrfToken::new(request.state);
        let mut url = client
            .authorize_url(|| state)
            .add_scopes(scopes.into_iter().map(oauth2::Scope::new))
            .set_pkce_challenge(PkceCodeChallenge::from_code_verifier_sha256(&verifier))
            .add_extra_param("response_mode", "query")
            .add_extra_param("nonce", request.nonce)
            // The object id comes in the id token only with the scope `profile`, which not every
            // integration may ask for; it always comes in the client info.
            .add_extra_param("client_info", "1")
            .add_extra_param("prompt", "select_account");
        if let Some(account) = request.account {
            url = url.add_extra_param("login_hint", account);
        }
        if let Some(claims) = request.claims {
            url = url.add_extra_param("claims", claims);
        }
        url.url().0
    }

    /// The administrator's page; its scopes are the integration's, sign-in included.
    /// <https://learn.microsoft.com/entra/identity-platform/v2-admin-consent>
    pub fn admin_consent_url(
        &self,
        integration: Integration,
        environment: &str,
        tenant: Option<&str>,
        state: &str,
    ) -> Url {
        let scopes = self.spell(&scopes::scopes(integration, environment));
        let mut url = self.at(&[tenant.unwrap_or(ANY_TENANT), "v2.0", "adminconsent"]);
        url.query_pairs_mut()
            .append_pair("client_id", &self.client_id)
            .append_pair("scope", &scopes.join(" "))
            .append_pair("redirect_uri", self.public_at(&["oauth", "admin-consent"]).as_str())
            .append_pair("state", state);
        url
    }

    pub fn redirect_url(&self) -> Url {
        self.public_at(&["oauth", "callback"])
    }

    pub fn link_url(&self, link: &str) -> Url {
        self.public_at(&["connect", link])
    }

    pub(super) fn credential_parameters(
        &self,
        token_url: &Url,
        now: DateTime<Utc>,
    ) -> Vec<(&'static str, SecretString)> {
        self.credential.parameters(&self.client_id, token_url, now)
    }

    pub(super) fn at(&self, path: &[&str]) -> Url {
        below(&self.login, path)
    }

    fn public_at(&self, path: &[&str]) -> Url {
        below(&self.public, path)
    }
}

fn below(base: &Url, path: &[&str]) -> Url {
    let mut url = base.clone();
    url.path_segments_mut().expect("an http(s) URL has a path").pop_if_empty().extend(path);
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Microsoft {
        Microsoft {
            client_id: Some("c11e0000-0000-4000-8000-0000000000f1".into()),
            client_secret: Some("planted".into()),
            ..Microsoft::default()
        }
    }

    fn app(settings: &Microsoft) -> App {
        App::new(settings, &Url::parse("https://hub.example/base/").expect("a URL")).expect("right settings")
    }

    #[test]
    fn environments_outside_the_allowed_hosts_are_refused() {
        let app = app(&settings());
        for (text, expected) in [
            ("https://org.crm4.dynamics.com", Some("https://org.crm4.dynamics.com")),
            ("https://org.crm4.dynamics.com/", Some("https://org.crm4.dynamics.com")),
            ("https://ORG.crm4.dynamics.com", Some("https://org.crm4.dynamics.com")),
            ("http://org.crm4.dynamics.com", None),
            ("https://dynamics.com", None),
            ("https://evildynamics.com", None),
            ("https://org.dynamics.com.evil.example", None),
            ("https://me@org.crm4.dynamics.com", None),
            ("https://org.crm4.dynamics.com/path", None),
            ("https://org.crm4.dynamics.com/?q", None),
            ("https://127.0.0.1:9365", None),
            ("org.crm4.dynamics.com", None),
        ] {
            assert_eq!(app.environment(text).as_deref(), expected, "{text}");
        }
        let graph = "https://graph.microsoft.com";
        assert_eq!(app.resource(Integration::Teams, graph), Some(Resource::Graph));
        assert_eq!(app.resource(Integration::Teams, "https://graph.example"), None);
        assert_eq!(app.resource(Integration::Dynamics, graph), None);
        let discovery = "https://globaldisco.crm.dynamics.com".to_owned();
        assert_eq!(app.resource(Integration::Dynamics, &discovery), Some(Resource::Dataverse(discovery)));
    }

    #[test]
    fn the_sign_in_carries_the_challenge_and_never_the_verifier() {
        let url = app(&settings()).authorize_url(Authorize {
            integration: Integration::SharedMailbox,
            environment: "",
            state: "s".into(),
            nonce: "n",
            verifier: &"planted-planted-planted-planted-planted-planted".into(),
            account: Some("ada@acme.example"),
            claims: Some("{}"),
        });
        let query: std::collections::HashMap<_, _> = url.query_pairs().into_owned().collect();
        assert!(
            url.as_str()
                .starts_with("https://login.microsoftonline.com/organizations/oauth2/v2.0/authorize?")
        );
        assert_eq!(query["redirect_uri"], "https://hub.example/base/oauth/callback");
        assert_eq!(
            query["scope"],
            "openid offline_access User.Read Mail.Read.Shared Mail.ReadWrite.Shared Mail.Send.Shared"
        );
        assert_eq!(query["code_challenge_method"], "S256");
        assert_eq!((query["state"].as_str(), query["nonce"].as_str()), ("s", "n"));
        assert_eq!(query["login_hint"], "ada@acme.example");
        assert_eq!(query["claims"], "{}");
        assert!(!url.as_str().contains("planted"));
    }

    #[test]
    fn other_clouds_spell_their_scopes_out() {
        let app = app(&Microsoft { cloud: Cloud::Usgov, ..settings() });
        let scopes =
            app.spell(&["openid".into(), "Mail.Send".into(), "https://a.example/user_impersonation".into()]);
        assert_eq!(
            scopes,
            ["openid", "https://graph.microsoft.us/Mail.Send", "https://a.example/user_impersonation"]
        );
        assert_eq!(app.token_url("t").as_str(), "https://login.microsoftonline.us/t/oauth2/v2.0/token");
    }

    #[test]
    fn wrong_settings_are_refused_by_name() {
        let public = Url::parse("http://127.0.0.1:8080").expect("a URL");
        let wrong = |settings: Microsoft| App::new(&settings, &public).expect_err("wrong");
        assert!(
            wrong(Microsoft { client_id: None, ..settings() }).starts_with("microsoft.client_id: missing")
        );
        assert!(
            wrong(Microsoft { client_id: Some("planted".into()), ..settings() }).contains("7 characters")
        );
        let login_url = Some(Url::parse("http://login.example").expect("a URL"));
        assert!(
            wrong(Microsoft { login_url, ..settings() })
                .starts_with("microsoft.login_url: expected an https://")
        );
        assert!(wrong(Microsoft { dataverse_hosts: vec!["*.".into()], ..settings() }).contains("entry 1"));
    }
}
