//! What can be set about Entra: who signs in by itself, what tenants allow, how long things live, what fails next.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::app::App;
use super::scope::Scopes;
use super::{Challenge, EntraError};
use crate::Sim;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Who signs in without a page. `*` is whoever the `login_hint` names.
    pub auto: Option<String>,
    /// Signs in this account whatever the hint says: the browser that was signed in as somebody else.
    pub sign_in_as: Option<String>,
    /// The person presses Cancel: `AADSTS65004`.
    pub decline: bool,
    /// Users may consent for themselves. Otherwise everything needs an administrator: `AADSTS90094`.
    pub user_consent: bool,
    /// Permissions that are asked for but not granted; of earlier consents, missing from tokens from now on.
    pub withhold: Vec<String>,
    pub admins: Vec<String>,
    /// A refresh token that was rotated longer ago than the grace is refused, and noted by the referee. Entra itself
    /// leaves old refresh tokens valid (`refresh-tokens#token-lifetime`); this mode proves that nobody relies on it.
    pub strict_reuse: bool,
    pub reuse_grace_seconds: i64,
    pub refresh_days: i64,
    pub access_seconds: i64,
    /// The same refresh token with the same scope more often than this within a minute: `AADSTS50196`.
    pub loop_limit: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            auto: None,
            sign_in_as: None,
            decline: false,
            user_consent: true,
            withhold: Vec::new(),
            admins: vec!["ada@acme.example".into(), "hal@globex.example".into()],
            strict_reuse: false,
            reuse_grace_seconds: 30,
            refresh_days: 90,
            access_seconds: 3_599,
            loop_limit: 30,
        }
    }
}

/// The next token requests of a user (or, without one, of anybody) fail so.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Planned {
    #[serde(default)]
    pub user: Option<String>,
    pub error: String,
    #[serde(default)]
    pub error_codes: Vec<u64>,
    #[serde(default)]
    pub suberror: Option<String>,
    #[serde(default)]
    pub claims: Option<Value>,
    #[serde(default)]
    pub description: Option<String>,
    /// 0 is until it is cleared.
    #[serde(default = "one")]
    pub times: u32,
    /// `refresh_token` or `authorization_code`; both when absent.
    #[serde(default)]
    pub grant_type: Option<String>,
}

fn one() -> u32 {
    1
}

impl Planned {
    pub fn new(user: &str, error: &str, code: u64) -> Self {
        Self {
            user: Some(user.into()),
            error: error.into(),
            error_codes: vec![code],
            suberror: None,
            claims: None,
            description: None,
            times: 1,
            grant_type: None,
        }
    }

    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = times;
        self
    }

    #[must_use]
    pub fn suberror(mut self, suberror: &str) -> Self {
        self.suberror = Some(suberror.into());
        self
    }

    #[must_use]
    pub fn claims(mut self, claims: Value) -> Self {
        self.claims = Some(claims);
        self
    }

    fn as_error(&self) -> EntraError {
        EntraError {
            error: self.error.clone(),
            code: self.error_codes.first().copied().unwrap_or(50_000),
            codes: self.error_codes.clone(),
            message: self.description.clone().unwrap_or_else(|| "A planned failure of the simulator.".into()),
            suberror: self.suberror.as_deref().map(Into::into),
            claims: self.claims.as_ref().map(|claims| claims.to_string().into()),
        }
    }
}

/// The planned failure that this request meets, if any.
pub(super) fn planned(sim: &Sim, upn: &str, grant_type: &str) -> Result<(), EntraError> {
    let mut entra = sim.entra();
    let fits = |plan: &Planned| {
        plan.user.as_deref().is_none_or(|user| user.eq_ignore_ascii_case(upn))
            && plan.grant_type.as_deref().is_none_or(|kind| kind == grant_type)
    };
    let Some(at) = entra.planned.iter().position(fits) else { return Ok(()) };
    let error = entra.planned[at].as_error();
    match entra.planned[at].times {
        0 => {}
        1 => {
            entra.planned.remove(at);
        }
        _ => entra.planned[at].times -= 1,
    }
    Err(error)
}

impl Sim {
    /// Who signs in without a page (`*`: whoever the login hint names); none shows the page again.
    pub fn auto_sign_in(&self, user: Option<&str>) {
        self.entra().policy.auto = user.map(str::to_owned);
    }

    pub fn entra_policy(&self, change: impl FnOnce(&mut Policy)) {
        change(&mut self.entra().policy);
    }

    /// Lets coming token requests fail.
    pub fn fail_token_requests(&self, planned: Planned) {
        self.entra().planned.push(planned);
    }

    pub fn clear_planned_failures(&self) {
        self.entra().planned.clear();
    }

    /// Every call of the user is answered with a claims challenge until a token was asked for with claims.
    pub fn challenge(&self, user: &str, claims: &Value) {
        let oid = self.oid_of(user);
        let since_ms = self.now().timestamp_millis();
        self.entra().challenges.push(Challenge { oid, since_ms, claims: claims.to_string() });
    }

    /// Ends the user's sessions: every refresh token issued before now answers `AADSTS50173`.
    pub fn revoke_sessions(&self, user: &str) {
        let (oid, now) = (self.oid_of(user), self.now());
        self.entra().revoked_at.insert(oid, now);
    }

    /// Takes back what the user consented to.
    pub fn withdraw_consent(&self, user: &str) {
        let oid = self.oid_of(user);
        self.entra().user_consents.retain(|(who, _), _| *who != oid);
    }

    /// Consents for a whole tenant, as an administrator would.
    pub fn consent_for_tenant(&self, tenant: &str, scope: &str) -> bool {
        let Some(id) = self.directory().tenant(tenant).map(|tenant| tenant.id.clone()) else { return false };
        let Ok(scopes) = Scopes::parse(self, scope) else { return false };
        self.entra().consent_for_tenant(&id, super::CLIENT_ID, &scopes.permissions);
        true
    }

    /// Adds an app registration, or replaces the one with the same client id.
    pub fn put_app(&self, app: App) {
        let mut entra = self.entra();
        entra.apps.retain(|known| known.client_id != app.client_id);
        entra.apps.push(app);
    }

    /// Changes the seeded registration.
    pub fn change_app(&self, change: impl FnOnce(&mut App)) {
        if let Some(app) = self.entra().apps.iter_mut().find(|app| app.client_id == super::CLIENT_ID) {
            change(app);
        }
    }

    fn oid_of(&self, user: &str) -> String {
        self.directory().find(user).map_or_else(|| user.to_owned(), |user| user.oid.clone())
    }
}
