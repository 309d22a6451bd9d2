//! Consent of an administrator for the whole tenant.
//!
//! `entra/identity-platform/v2-admin-consent`: `common` is not allowed, and `admin_consent=True` comes back on errors too.

use std::collections::{BTreeMap, HashMap};

use axum::extract::{Path, Query, State};
use axum::response::Response;

use super::authorize::redirect;
use super::error::EntraError;
use super::scope::Scopes;
use crate::Sim;

pub(crate) async fn endpoint(
    State(sim): State<Sim>,
    Path(tenant): Path<String>,
    Query(parameters): Query<HashMap<String, String>>,
) -> Response {
    let get = |name: &str| parameters.get(name).cloned().ok_or_else(|| EntraError::missing(name));
    let trusted = get("client_id").and_then(|id| sim.entra().app(&id)).and_then(|app| {
        let uri = get("redirect_uri")?;
        if app.may_redirect_to(&uri) {
            Ok((app, uri))
        } else {
            Err(EntraError::invalid_request(50_011, "The redirect URI does not match the registered ones."))
        }
    });
    let (app, uri) = match trusted {
        Ok(found) => found,
        Err(error) => return error.into_page(&sim),
    };
    let mut back = BTreeMap::from([("admin_consent".to_owned(), "True".to_owned())]);
    if let Some(state) = parameters.get("state") {
        back.insert("state".into(), state.clone());
    }
    match grant(&sim, &tenant, &app.client_id, get("scope")) {
        Ok((tenant, scope)) => {
            back.insert("tenant".into(), tenant);
            back.insert("scope".into(), scope);
        }
        Err(error) => {
            let description = error.description(&sim.guid(), &sim.guid(), sim.now());
            back.insert("error".into(), error.error.clone());
            back.insert("error_description".into(), description);
        }
    }
    redirect(&uri, &back, false)
}

fn grant(
    sim: &Sim,
    segment: &str,
    app: &str,
    scope: Result<String, EntraError>,
) -> Result<(String, String), EntraError> {
    if segment == "common" {
        return Err(EntraError::invalid_request(90_009, "The tenant for this request may not be 'common'."));
    }
    let scope = scope?;
    let scopes = Scopes::parse(sim, &scope)?;
    let policy = sim.entra().policy.clone();
    if policy.decline {
        let message = "The resource owner or authorization server denied the request.";
        return Err(EntraError::new("consent_required", 65_004, message));
    }
    let admin = {
        let directory = sim.directory();
        let who = policy.sign_in_as.or(policy.auto.filter(|auto| auto != "*"));
        let name = who.or_else(|| policy.admins.first().cloned()).unwrap_or_default();
        directory.find(&name).cloned()
    };
    let admin = admin
        .filter(|user| policy.admins.iter().any(|admin| user.is_called(admin)))
        .ok_or_else(|| EntraError::new("access_denied", 90_093, "Calling principal cannot consent."))?;
    let tenant = match segment {
        "organizations" => admin.tenant.clone(),
        name => sim
            .directory()
            .tenant(name)
            .map(|tenant| tenant.id.clone())
            .ok_or_else(|| super::metadata::unknown_tenant(name))?,
    };
    if admin.tenant != tenant {
        return Err(EntraError::new("access_denied", 50_020, "The account does not exist in this tenant."));
    }
    sim.entra().consent_for_tenant(&tenant, app, &scopes.permissions);
    Ok((tenant, scope))
}
