//! The pages a browser sees: opened links, and what comes back from Entra.
//!
//! The invariant: a page loads nothing, frames nothing and is framed by nobody (the headers around every
//! answer), every word on it is escaped, and it says nothing that only a holder of the link may know.

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use url::Url;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::error::Result;
use super::request::{Path, Redirected};
use crate::oauth::callback::{AdminAnswer, SignInAnswer};
use crate::oauth::{ConsentError, Landing};

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(open_link))
        .routes(routes!(sign_in_callback))
        .routes(routes!(admin_consent_callback))
}

/// Open a sign-in link
///
/// For browsers: leads to Microsoft's sign-in page. Opening changes nothing.
#[utoipa::path(
    get, path = "/connect/{link}", tag = "browser", params(("link" = String, Path)),
    responses((status = 303, description = "To Microsoft"), (status = 410, description = "Used or expired")),
)]
async fn open_link(State(api): State<Api>, Path(link): Path<String>) -> Result<Response> {
    Ok(match api.consent()?.open_link(&link).await {
        Ok(url) => see_other(&url),
        Err(error) => refused(&error),
    })
}

/// The end of a sign-in
///
/// For browsers, sent by Microsoft.
#[utoipa::path(
    get, path = "/oauth/callback", tag = "browser",
    responses((status = 200, description = "What happened"), (status = 303, description = "To `return_to`")),
)]
async fn sign_in_callback(
    State(api): State<Api>,
    Redirected(answer): Redirected<SignInAnswer>,
) -> Result<Response> {
    Ok(landed(api.consent()?.callback(answer).await))
}

/// The end of an administrator's consent
///
/// For browsers, sent by Microsoft.
#[utoipa::path(
    get, path = "/oauth/admin-consent", tag = "browser",
    responses((status = 200, description = "What happened")),
)]
async fn admin_consent_callback(
    State(api): State<Api>,
    Redirected(answer): Redirected<AdminAnswer>,
) -> Result<Response> {
    Ok(landed(api.consent()?.admin_callback(answer).await))
}

fn landed(landed: Result<Landing, ConsentError>) -> Response {
    let landing = match landed {
        Ok(landing) => landing,
        Err(error) => return refused(&error),
    };
    // Somebody who still has to do something stays here, where it is said.
    let stays = landing.admin_consent_url.is_some() || landing.continue_url.is_some();
    if let Some(url) = landing.redirect().filter(|_| !stays) {
        return see_other(&url);
    }
    let title = if landing.success { "Connected" } else { "Not connected yet" };
    let mut links = Vec::new();
    if let Some(url) = &landing.admin_consent_url {
        links.push(("Page for your administrator", url));
    }
    if let Some(url) = &landing.continue_url {
        links.push(("Sign in again", url));
    }
    let back = landing.redirect();
    links.extend(back.as_ref().map(|url| ("Back", url)));
    let status = if landing.success { StatusCode::OK } else { StatusCode::CONFLICT };
    page(status, title, &landing.message, landing.code, &links)
}

fn refused(error: &ConsentError) -> Response {
    let message = match error {
        ConsentError::Store(_) | ConsentError::Seal(_) => {
            tracing::warn!(%error, "a sign-in failed on our side");
            "This does not work at the moment. Try again in a minute.".to_owned()
        }
        error => format!("Sorry: {error}."),
    };
    page(error.status(), "Not connected", &message, &error.code(), &[])
}

fn see_other(url: &Url) -> Response {
    match HeaderValue::from_str(url.as_str()) {
        Ok(location) => (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response(),
        Err(_) => super::error::ApiError::internal().into_response(),
    }
}

fn page(status: StatusCode, title: &str, message: &str, code: &str, links: &[(&str, &Url)]) -> Response {
    use std::fmt::Write as _;
    let links = links.iter().fold(String::new(), |mut html, (text, url)| {
        let _ = write!(html, "<p><a href=\"{}\">{}</a></p>", escaped(url.as_str()), escaped(text));
        html
    });
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\
         <style>body{{font:1.1rem/1.5 system-ui,sans-serif;max-width:34rem;margin:15vh auto;padding:0 1rem}}\
         small{{color:#666}}</style><h1>{title}</h1><p>{message}</p>{links}<small>{code}</small></html>",
        title = escaped(title),
        message = escaped(message),
        code = escaped(code),
    );
    (status, Html(html)).into_response()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}
