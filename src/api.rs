//! The HTTP API.
//!
//! The invariant: the OpenAPI document is made from the handlers, and the document decides who may call them
//! ([`gate`]); what is not public needs a key.

mod around;
pub mod attachments;
pub mod connections;
pub mod dead_letters;
pub mod environments;
pub mod error;
pub mod gate;
pub mod jobs;
pub mod mailboxes;
pub mod probes;
pub mod queues;
pub mod release;
mod request;
mod sign_in;
pub mod tools;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::{Router, middleware};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, ResponseBuilder};
use utoipa_axum::router::OpenApiRouter;

use crate::broker::MAX_BODY;
use crate::intake::{self, Intake};
use crate::oauth::Consent;
use crate::services::Services;
use crate::vault::Vault;
use error::{ApiError, ErrorBody};
use gate::Gate;

/// What the handlers share.
#[derive(Clone)]
pub struct Api {
    pub services: Arc<Services>,
    /// Absent where no app registration is set.
    pub vault: Option<Vault>,
    consent: Option<Consent>,
    /// Cancelled when a drain begins: readiness ends first.
    pub stopping: CancellationToken,
    pub metrics: PrometheusHandle,
    /// Where this process takes Microsoft's notifications.
    pub intake: Option<Intake>,
}

impl Api {
    pub fn new(services: Arc<Services>, vault: Option<Vault>, stopping: CancellationToken) -> Self {
        let consent = vault.clone().map(Consent::new);
        Self { services, vault, consent, stopping, metrics: crate::telemetry::metrics(), intake: None }
    }
}

/// Everything that one listener serves. `probes` are left out where they have a listener of their own.
pub fn router(api: Api, probes: bool) -> Router {
    let document = openapi();
    let gate = Gate::new(api.services.clone(), &document);
    let (protected, _) = protected().split_for_parts();
    let (public, _) = sign_in::routes().split_for_parts();
    let mut router = Router::new()
        .merge(public)
        .merge(protected.route_layer(middleware::from_fn_with_state(gate, gate::pass)))
        .with_state(api.clone());
    if let Some(intake) = api.intake.clone() {
        let (taken, _) = intake::routes().split_for_parts();
        router = router.merge(taken.with_state(intake));
    }
    if probes {
        router = router.merge(probes::router(api));
    }
    router
        .fallback(async || ApiError::not_found())
        .method_not_allowed_fallback(async || {
            let message = "this address takes another method";
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(around::around))
}

/// Probes and metrics alone, for a listener of their own.
pub fn probes(api: Api) -> Router {
    probes::router(api)
}

fn protected() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .merge(jobs::routes())
        .merge(release::routes())
        .merge(connections::routes())
        .merge(mailboxes::routes())
        .merge(attachments::routes())
        .merge(tools::routes())
        .merge(environments::routes())
        .merge(dead_letters::routes())
        .merge(queues::routes())
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Followthrough",
        description = "Carries jobs made of promises to their end in Microsoft 365 and Dynamics 365, as the \
                       signed-in user. Calls need an API key (`Authorization: Bearer …`) whose role is the one \
                       named or a later one of publisher, operator, admin. A key that is bound to a workspace \
                       is answered `forbidden_workspace` (403) where a request names another one, and \
                       `not_found` (404) for things of another one that are named by id.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    components(schemas(ErrorBody))
)]
struct Document;

/// The document of all calls.
pub fn openapi() -> OpenApi {
    use utoipa::OpenApi as _;
    let (_, mut document) = OpenApiRouter::with_openapi(Document::openapi())
        .merge(protected())
        .merge(sign_in::routes())
        .split_for_parts();
    document.merge(intake::routes().into_openapi());
    let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(
        "Made by `followthrough key create`, shown once. Roles: publisher, operator, admin",
    ));
    if let Some(components) = &mut document.components {
        components.add_security_scheme(gate::SCHEME, SecurityScheme::Http(scheme.build()));
    }
    let refused = ResponseBuilder::new()
        .description("Refused: `unauthorized` (401), `forbidden_role`, `forbidden_workspace` (403), `not_found` (404), …")
        .content(
            "application/json",
            ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody"))).build(),
        )
        .build();
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            operation.responses.responses.insert("default".to_owned(), RefOr::T(refused.clone()));
        }
    }
    document
}
