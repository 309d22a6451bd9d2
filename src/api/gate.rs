//! Who gets past the door.
//!
//! The invariant: a protected route answers only a caller whose key is known, live and of the role that the
//! OpenAPI document names for the route. A route the document does not name lets nobody in.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use scoped_futures::ScopedFutureExt;
use utoipa::openapi::OpenApi;
use utoipa::openapi::path::Operation;

use super::error::{ApiError, Result};
use crate::api_key::{self, Caller, Role};
use crate::services::Services;
use crate::store::api_key::find_by_hash;

/// The name of the security scheme; its scopes are roles.
pub const SCHEME: &str = "api_key";

/// The least role of each route.
#[derive(Clone)]
pub struct Gate {
    services: Arc<Services>,
    roles: Arc<BTreeMap<(String, String), Role>>,
}

impl Gate {
    pub fn new(services: Arc<Services>, document: &OpenApi) -> Self {
        let roles = operations(document)
            .filter_map(|(method, path, operation)| {
                Some(((method.to_owned(), path.to_owned()), role_of(operation)?))
            })
            .collect();
        Self { services, roles: Arc::new(roles) }
    }

    async fn caller(&self, headers: &HeaderMap) -> Result<Caller> {
        let key = bearer(headers).ok_or_else(ApiError::unauthorized)?;
        let hash = api_key::hash(key);
        let hash = hash.as_slice();
        let store = &self.services.store;
        let stored = store.read(|tx| async move { find_by_hash(tx, hash).await }.scope_boxed()).await?;
        stored.and_then(|stored| Caller::of(stored, hash)).ok_or_else(ApiError::unauthorized)
    }
}

/// Every operation of the document: method in capitals, path, operation.
pub fn operations(document: &OpenApi) -> impl Iterator<Item = (&'static str, &str, &Operation)> {
    document.paths.paths.iter().flat_map(|(path, item)| {
        [("GET", &item.get), ("PUT", &item.put), ("POST", &item.post), ("DELETE", &item.delete)]
            .into_iter()
            .filter_map(move |(method, operation)| Some((method, path.as_str(), operation.as_ref()?)))
    })
}

/// The role an operation needs, as the document writes it; `None` for a public one.
pub fn role_of(operation: &Operation) -> Option<Role> {
    let written = serde_json::to_value(operation.security.as_ref()?).ok()?;
    written.as_array()?.iter().find_map(|scheme| Role::parse(scheme.get(SCHEME)?.get(0)?.as_str()?))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

pub async fn pass(
    State(gate): State<Gate>,
    matched: MatchedPath,
    mut request: Request,
    next: Next,
) -> Result<Response> {
    let caller = gate.caller(request.headers()).await?;
    let method = if *request.method() == Method::HEAD { &Method::GET } else { request.method() };
    let needed = gate.roles.get(&(method.to_string(), matched.as_str().to_owned()));
    if needed.is_none_or(|needed| caller.role < *needed) {
        let message = format!("this key's role is {}, which is not enough", caller.role.as_str());
        return Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden_role", message));
    }
    tracing::Span::current().record("key", caller.name.as_str());
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}
