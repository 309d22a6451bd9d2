//! Who calls a resource, and whether the token is good for it.
//!
//! The checks a resource makes: `entra/identity-platform/access-tokens#validate-tokens`; the challenge of continuous
//! access evaluation: `entra/identity-platform/claims-challenge`.

use std::collections::BTreeSet;

use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::Sim;
use crate::answer::{Refused, empty, graph_error};
use crate::entra::mint;

pub const GRAPH: &str = "https://graph.microsoft.com";
pub const GRAPH_APP: &str = "00000003-0000-0000-c000-000000000000";
pub const GLOBAL_DISCOVERY: &str = "https://globaldisco.crm.dynamics.com";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    Graph,
    Discovery,
    /// With the environment's URL, which is the audience.
    Dataverse(String),
}

#[derive(Clone, Debug)]
pub struct Caller {
    pub tenant: String,
    pub oid: String,
    pub upn: String,
    pub app: String,
    pub scopes: BTreeSet<String>,
    pub token_id: String,
}

impl Caller {
    pub fn has(&self, any_of: &[&str]) -> bool {
        any_of.iter().any(|scope| self.scopes.contains(*scope))
    }

    /// Mail, calendar and the like: 403 `ErrorAccessDenied`.
    pub fn require(&self, any_of: &[&str]) -> Result<(), Refused> {
        if self.has(any_of) {
            return Ok(());
        }
        let message = "Access is denied. Check credentials and try again.";
        Err(graph_error(StatusCode::FORBIDDEN, "ErrorAccessDenied", message).into())
    }

    /// Users, groups and other directory objects: 403 `Authorization_RequestDenied`.
    pub fn require_directory(&self, any_of: &[&str]) -> Result<(), Refused> {
        if self.has(any_of) {
            return Ok(());
        }
        let message = "Insufficient privileges to complete the operation.";
        Err(graph_error(StatusCode::FORBIDDEN, "Authorization_RequestDenied", message).into())
    }
}

/// Checks the bearer token of a call for `resource`.
pub fn authorize(sim: &Sim, headers: &HeaderMap, resource: &Resource) -> Result<Caller, Refused> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let token = match (values.next().map(HeaderValue::to_str), values.next()) {
        (Some(Ok(value)), None) => value.strip_prefix("Bearer ").map(str::trim),
        _ => None,
    };
    let Some(token) = token.filter(|token| !token.is_empty()) else {
        return Err(unauthorized(resource, "Access token is empty.").into());
    };
    let Some(claims) = mint::verify(sim, token) else {
        return Err(
            unauthorized(resource, "IDX14100: JWT is not well formed or its signature is invalid.").into()
        );
    };
    let now = sim.now().timestamp();
    if claims.exp <= now || claims.nbf > now + 300 {
        return Err(unauthorized(resource, "Lifetime validation failed, the token is expired.").into());
    }
    if !audience_fits(sim, resource, &claims.aud) {
        return Err(unauthorized(resource, "Access token validation failure. Invalid audience.").into());
    }
    if let Some(challenge) = sim.entra().challenge_for(&claims) {
        return Err(challenged(resource, &challenge).into());
    }
    Ok(Caller {
        tenant: claims.tid,
        oid: claims.oid,
        upn: claims.upn,
        app: claims.appid,
        scopes: claims.scp.split_whitespace().map(str::to_owned).collect(),
        token_id: claims.uti,
    })
}

fn audience_fits(sim: &Sim, resource: &Resource, audience: &str) -> bool {
    match resource {
        Resource::Graph => audience == GRAPH || audience == GRAPH_APP,
        // The discovery service is served on the simulator's own address too.
        Resource::Discovery => {
            audience.trim_end_matches('/') == GLOBAL_DISCOVERY || audience == sim.base_url()
        }
        Resource::Dataverse(url) => audience.trim_end_matches('/') == url,
    }
}

fn unauthorized(resource: &Resource, message: &str) -> Response {
    let mut response = match resource {
        Resource::Graph => graph_error(StatusCode::UNAUTHORIZED, "InvalidAuthenticationToken", message),
        // Dataverse says it in the header alone: `webapi/authenticate-oauth`.
        _ => empty(StatusCode::UNAUTHORIZED),
    };
    let authority = "https://login.microsoftonline.com/common/oauth2/authorize";
    let value = match resource {
        Resource::Graph => {
            format!("Bearer realm=\"\", authorization_uri=\"{authority}\", client_id=\"{GRAPH_APP}\"")
        }
        Resource::Discovery => {
            format!("Bearer authorization_uri={authority}, resource_id={GLOBAL_DISCOVERY}/")
        }
        Resource::Dataverse(url) => format!("Bearer authorization_uri={authority}, resource_id={url}/"),
    };
    if let Ok(value) = HeaderValue::try_from(value) {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
    }
    response
}

fn challenged(resource: &Resource, claims: &str) -> Response {
    let message = "Continuous access evaluation resulted in challenge with result: InteractionRequired and code: \
                   TokenIssuedBeforeRevocationTimestamp";
    let mut response = unauthorized(resource, message);
    let value = format!(
        "Bearer realm=\"\", authorization_uri=\"https://login.microsoftonline.com/common/oauth2/authorize\", \
         error=\"insufficient_claims\", claims=\"{}\"",
        STANDARD.encode(claims)
    );
    if let Ok(value) = HeaderValue::try_from(value) {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
    }
    response
}
