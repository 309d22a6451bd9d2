//! Dataverse: organisations with their metadata and rows, behind the Web API.
//!
//! An environment is chosen by the host of the call, as in the cloud: on the simulator's own address answers the default
//! environment, on `localhost` (where that is not the same) a second one. A token of one is refused by the other.

mod address;
mod batch;
mod controls;
mod error;
mod filter;
mod metadata;
mod model;
mod payload;
mod perform;
mod query;
mod render;
pub mod rights;
pub mod schema;
mod seed;
pub mod store;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use serde::{Deserialize, Serialize};

use crate::Sim;
use crate::answer::{Answer, Refused};
use crate::auth::{Resource, authorize};
pub(crate) use controls::{CONTROLS, router as controls};
use error::CrmError;
use rights::Rules;
pub use seed::row_id;
use store::{Actor, Organisation};

pub(crate) const SYSTEM_USER: &str = "5e5e0000-0000-4000-8000-0000000000ff";

/// What discovery says of an environment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EnvironmentInfo {
    pub name: String,
    pub unique_name: String,
    pub id: String,
    pub tenant: String,
    /// Where it answers. `None` is the simulator's own address, `localhost` its second name; any other URL is only
    /// listed.
    pub url: Option<String>,
    /// 0 is enabled, 1 is disabled.
    #[serde(default)]
    pub state: u8,
    /// Sign-in names of those who see it; empty is everybody of the tenant.
    #[serde(default)]
    pub users: Vec<String>,
}

pub(crate) struct Environment {
    pub(crate) info: EnvironmentInfo,
    pub(crate) org: Organisation,
}

pub struct DataverseState {
    pub(crate) environments: Vec<Environment>,
    pub(crate) rules: Rules,
}

impl Default for DataverseState {
    fn default() -> Self {
        Self { environments: seed::environments(), rules: Rules::default() }
    }
}

impl EnvironmentInfo {
    /// The URL of the environment on a simulator at `base_url`.
    pub fn address(&self, base_url: &str) -> String {
        match self.url.as_deref() {
            None => base_url.to_owned(),
            Some("localhost") => base_url.replacen("127.0.0.1", "localhost", 1),
            Some(url) => url.trim_end_matches('/').to_owned(),
        }
    }
}

impl DataverseState {
    pub(crate) fn is_environment_url(&self, base_url: &str, url: &str) -> bool {
        self.environments.iter().any(|environment| environment.info.address(base_url) == url)
    }

    pub(crate) fn default_org(&mut self) -> &mut Organisation {
        &mut self.environments[0].org
    }

    fn put(&mut self, info: EnvironmentInfo) {
        if let Some(known) = self.environments.iter_mut().find(|known| known.info.name == info.name) {
            known.info = info;
        } else {
            let org = seed::organisation(&info.name, &info.id);
            self.environments.push(Environment { info, org });
        }
    }
}

pub(crate) fn router() -> Router<Sim> {
    Router::new()
        .route("/api/data/{version}", any(endpoint))
        .route("/api/data/{version}/{*path}", any(endpoint))
}

async fn endpoint(
    State(sim): State<Sim>,
    Path(parameters): Path<Vec<(String, String)>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let version =
        parameters.iter().find(|(name, _)| name == "version").map_or("", |(_, value)| value.as_str());
    if !matches!(version, "v9.0" | "v9.1" | "v9.2") {
        return Err(unknown_segment(uri.path()).into());
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let scheme = sim.base_url().split("://").next().unwrap_or("http").to_owned();
    let here = format!("{scheme}://{host}");
    let found = {
        let state = sim.dataverse();
        state
            .environments
            .iter()
            .position(|environment| environment.info.address(sim.base_url()) == here)
            .map(|at| (at, state.environments[at].info.clone()))
    };
    let (at, info) = found.ok_or_else(|| CrmError::no_segment(host).into_answer())?;
    let caller = authorize(&sim, &headers, &Resource::Dataverse(here.clone()))?;
    caller_belongs(&caller, &info)?;
    // The raw path: a key may hold an encoded slash.
    let path = uri.path().splitn(5, '/').nth(4).unwrap_or_default().to_owned();
    let request = perform::Request {
        method,
        path,
        query: uri.query().unwrap_or_default().to_owned(),
        headers,
        body,
        base: format!("{here}/api/data/{version}/"),
    };
    let now = sim.now();
    let suppressed = request.headers.get("mscrm.suppressduplicatedetection");
    let mut state = sim.dataverse();
    let DataverseState { environments, rules } = &mut *state;
    let org = &mut environments[at].org;
    let user = seed::ensure_user(org, &caller, now).map_err(CrmError::into_answer)?;
    let actor = Actor {
        user,
        upn: caller.upn,
        now,
        detect_duplicates: suppressed.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"false")),
    };
    if request.path == "$batch" && request.method == Method::POST {
        return batch::serve(org, rules, &actor, &request).map_err(|error| error.into_answer().into());
    }
    let reply = perform::perform(org, rules, &actor, &request).map_err(CrmError::into_answer)?;
    Ok(respond(&reply))
}

fn respond(reply: &perform::Reply) -> Response {
    let body = reply.body.as_ref().map_or_else(Body::empty, |body| Body::from(body.to_string()));
    let mut response = (reply.status, body).into_response();
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    if reply.body.is_some() {
        let kind = HeaderValue::from_static("application/json; odata.metadata=minimal");
        headers.insert(header::CONTENT_TYPE, kind);
    }
    for (name, value) in &reply.headers {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(*name, value);
        }
    }
    response
}

fn caller_belongs(caller: &crate::auth::Caller, info: &EnvironmentInfo) -> Result<(), Refused> {
    let may = caller.tenant == info.tenant
        && info.state == 0
        && (info.users.is_empty() || info.users.iter().any(|user| user.eq_ignore_ascii_case(&caller.upn)));
    if may && caller.has(&["user_impersonation"]) {
        return Ok(());
    }
    let message = "The user is not a member of the organization.";
    Err(CrmError::new(StatusCode::FORBIDDEN, "0x80072560", message).into_answer().into())
}

pub(crate) fn unknown_segment(path: &str) -> Response {
    CrmError::no_segment(path.rsplit('/').next().unwrap_or_default()).into_answer()
}
