//! Entra ID: sign-in, consent and tokens, v2.0 endpoints only.
//!
//! Pages: `entra/identity-platform/v2-oauth2-auth-code-flow`, `refresh-tokens`, `scopes-oidc`, `v2-admin-consent`.
//! Device code, implicit flow and application permissions are not offered.

mod admin_consent;
pub mod app;
mod authorize;
mod client;
mod controls;
mod error;
mod issue;
mod metadata;
pub(crate) mod mint;
mod page;
pub mod policy;
mod scope;
mod token;

use std::collections::{BTreeSet, HashMap, HashSet};

use axum::Router;
use axum::routing::{get, post};
use chrono::{DateTime, Utc};

use crate::Sim;
use app::App;
pub(crate) use controls::{CONTROLS, router as controls};
use error::EntraError;
use mint::AccessClaims;
use policy::{Planned, Policy};
use scope::{Permission, Scopes, expand_default};

/// The seeded app registration.
pub const CLIENT_ID: &str = "c11e0000-0000-4000-8000-0000000000f1";
pub const CLIENT_SECRET: &str = "sim~secret.of-the_seeded-app";

pub struct EntraState {
    pub policy: Policy,
    apps: Vec<App>,
    codes: HashMap<String, Code>,
    refresh_tokens: HashMap<String, RefreshToken>,
    user_consents: HashMap<(String, String), BTreeSet<Permission>>,
    tenant_consents: HashMap<(String, String), BTreeSet<Permission>>,
    planned: Vec<Planned>,
    assertions: HashSet<String>,
    challenges: Vec<Challenge>,
    revoked_at: HashMap<String, DateTime<Utc>>,
}

impl Default for EntraState {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            apps: vec![App::seeded()],
            codes: HashMap::new(),
            refresh_tokens: HashMap::new(),
            user_consents: HashMap::new(),
            tenant_consents: HashMap::new(),
            planned: Vec::new(),
            assertions: HashSet::new(),
            challenges: Vec::new(),
            revoked_at: HashMap::new(),
        }
    }
}

#[derive(Clone)]
struct Code {
    app: String,
    segment: String,
    redirect_uri: String,
    oid: String,
    scopes: Scopes,
    challenge: Option<(String, bool)>,
    nonce: Option<String>,
    expires: DateTime<Utc>,
    redeemed: bool,
}

#[derive(Clone)]
struct RefreshToken {
    app: String,
    oid: String,
    /// What the first leg asked for: a refresh without `scope` means its first resource.
    scopes: Scopes,
    issued: DateTime<Utc>,
    rotated: Option<DateTime<Utc>>,
    uses: Vec<(DateTime<Utc>, String)>,
}

struct Challenge {
    oid: String,
    since_ms: i64,
    claims: String,
}

impl EntraState {
    /// A challenge holds until a token comes that was asked for with `claims` after it.
    pub(crate) fn challenge_for(&self, token: &AccessClaims) -> Option<String> {
        let unmet = |c: &&Challenge| {
            c.oid == token.oid && !(token.xms_sim_claims && token.xms_sim_issued >= c.since_ms)
        };
        self.challenges.iter().find(unmet).map(|challenge| challenge.claims.clone())
    }

    fn app(&self, client_id: &str) -> Result<App, EntraError> {
        self.apps.iter().find(|app| app.client_id.eq_ignore_ascii_case(client_id)).cloned().ok_or_else(|| {
            let message = format!(
                "Application with identifier '{client_id}' was not found in the directory. This can happen if the \
                 application has not been installed by the administrator of the tenant or consented to by any user in \
                 the tenant."
            );
            EntraError::new("unauthorized_client", 700_016, message)
        })
    }

    fn remember_assertion(&mut self, jti: &str) -> bool {
        self.assertions.insert(jti.to_owned())
    }

    /// What the user or the whole tenant consented to, for this app.
    fn consented(&self, tenant: &str, oid: &str, app: &str) -> BTreeSet<Permission> {
        let user = self.user_consents.get(&(oid.to_owned(), app.to_owned()));
        let all = self.tenant_consents.get(&(tenant.to_owned(), app.to_owned()));
        user.into_iter().chain(all).flatten().cloned().collect()
    }

    fn consent(&mut self, oid: &str, app: &str, permissions: &[Permission]) {
        let granted = self.user_consents.entry((oid.to_owned(), app.to_owned())).or_default();
        granted.extend(permissions.iter().map(expand_default));
    }

    fn consent_for_tenant(&mut self, tenant: &str, app: &str, permissions: &[Permission]) {
        let granted = self.tenant_consents.entry((tenant.to_owned(), app.to_owned())).or_default();
        granted.extend(permissions.iter().map(expand_default));
    }
}

pub(crate) fn router() -> Router<Sim> {
    Router::new()
        .route("/{tenant}/oauth2/v2.0/authorize", get(authorize::page).post(authorize::submit))
        .route("/{tenant}/oauth2/v2.0/token", post(token::endpoint))
        .route("/{tenant}/v2.0/adminconsent", get(admin_consent::endpoint))
        .route("/{tenant}/v2.0/.well-known/openid-configuration", get(metadata::configuration))
        .route("/{tenant}/discovery/v2.0/keys", get(metadata::keys))
        .route("/common/discovery/instance", get(metadata::instance))
}
