//! What every simulated call goes through, in this order: it is written down, meets the faults, the limits, is
//! executed, and its answer is dressed and written down.
//!
//! A call is executed in a task of its own: as with a real server, a client that goes away does not undo it.

mod dress;

use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde_json::Value;
use tokio::time::sleep;
use tower::ServiceExt;

use crate::answer::{empty, graph_error};
use crate::fault::{Effect, Subject, When};
use crate::journal::{Area, Bearer, Call};
use crate::referee::Quota;
use crate::server::Connection;
use crate::{Sim, controls, dataverse, discovery, entra, graph};
pub(crate) use dress::refused;
use dress::{dress, made_up, with_what_is_left};

/// Larger than anything a documented request may be.
const LARGEST_BODY: usize = 160 * 1024 * 1024;
const KEPT_ANSWER: usize = 64 * 1024;

/// The call that is being executed; handlers find it in the request's extensions.
#[derive(Clone, Debug)]
pub struct CallContext {
    pub id: u64,
    pub request_id: String,
    pub client_request_id: Option<String>,
}

pub(crate) fn routes() -> Router<Sim> {
    Router::new()
        .merge(entra::router())
        .merge(graph::router())
        .merge(discovery::router())
        .merge(dataverse::router())
}

pub(crate) fn app(sim: &Sim) -> Router {
    let simulated = routes()
        .fallback(unknown_route)
        .layer(middleware::from_fn_with_state(sim.clone(), gateway))
        .with_state(sim.clone());
    controls::router().with_state(sim.clone()).fallback_service(simulated)
}

async fn unknown_route(request: Request) -> Response {
    let path = request.uri().path();
    match Area::of(path) {
        Area::Graph => graph_error(
            StatusCode::BAD_REQUEST,
            "BadRequest",
            &format!("Resource not found for the segment '{}'.", path.rsplit('/').next().unwrap_or("")),
        ),
        Area::Dataverse => dataverse::unknown_segment(path),
        _ => empty(StatusCode::NOT_FOUND),
    }
}

async fn gateway(State(sim): State<Sim>, mut request: Request, next: Next) -> Response {
    let connection = request.extensions_mut().remove::<Connection>();
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, LARGEST_BODY).await else {
        return empty(StatusCode::PAYLOAD_TOO_LARGE);
    };
    let request = Request::from_parts(parts, body);
    let work = tokio::spawn(handle(sim, request, None, move |request| next.run(request)));
    match (work.await, connection) {
        (Ok(Some(response)), _) => response,
        // A panic in a handler is a bug here: better a torn connection than a plausible answer.
        (Ok(None) | Err(_), Some(connection)) => connection.abort().await,
        (Ok(None) | Err(_), None) => empty(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

/// Executes one part of a batch: its own entry in the log, its own limits, no faults of the connection.
///
/// `counted` is false when the batch as a whole already holds the mailbox's slots.
pub async fn part(sim: &Sim, of: &CallContext, request: http::Request<Bytes>, counted: bool) -> Response {
    let routes = sim.routes().fallback(unknown_route);
    let run = move |request: Request| async move {
        match routes.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    };
    let part = Part { of: of.id, counted };
    handle(sim.clone(), request, Some(part), run).await.unwrap_or_else(|| empty(StatusCode::BAD_GATEWAY))
}

struct Part {
    of: u64,
    counted: bool,
}

async fn handle<R, F>(sim: Sim, request: http::Request<Bytes>, part: Option<Part>, run: R) -> Option<Response>
where
    R: FnOnce(Request) -> F,
    F: Future<Output = Response>,
{
    let (mut parts, body) = request.into_parts();
    let call = entry(&sim, &parts, &body, part.as_ref());
    let Call { area, started, .. } = call;
    let (method, path, bearer) = (call.method.clone(), call.path.clone(), call.bearer.clone());
    let quota = quota_of(area, call.mailbox.as_ref(), bearer.as_ref());
    let (request_id, client_request_id) = (call.request_id.clone(), call.client_request_id.clone());
    let id = sim.journal().open(call);
    let context = CallContext { id, request_id, client_request_id };
    parts.extensions.insert(context.clone());
    let counted = part.as_ref().is_none_or(|part| part.counted);

    let subject = Subject {
        method: &method,
        path: &path,
        area,
        user: bearer.as_ref().map(|bearer| bearer.upn.as_str()),
        body: &body,
    };
    let fault = if part.is_none() { sim.faults().take(&subject) } else { None };
    let (rule, fault) = fault.unzip();
    let rule = rule.unwrap_or_default();
    if let Some(fault) = &fault {
        let name = serde_json::to_string(fault).unwrap_or_default();
        sim.journal().edit(id, |call| call.fault = Some(name));
        sim.changed();
    }
    let response = match fault {
        Some(Effect::Lost(When::Before)) => {
            close(&sim, id, None).await;
            return None;
        }
        Some(Effect::Answer { status, headers, body, when: When::Before }) => {
            made_up(&sim, status, &headers, &body, quota.as_ref())
        }
        fault => {
            let entered = match &quota {
                Some(quota) if counted => sim.referee().enter(quota, sim.now(), Some(id), 1),
                _ => Ok(()),
            };
            let response = if let Err(refusal) = entered {
                refused(&sim, area, &refusal)
            } else {
                let request = Request::from_parts(parts, Body::from(body.clone()));
                match fault {
                    Some(Effect::Hold { hold: When::Before }) => sim.released(rule).await,
                    Some(Effect::Delay { delay_ms }) => sleep(Duration::from_millis(delay_ms)).await,
                    _ => {}
                }
                // Inside the slot: a slow call is what makes others meet the limit. What is computed here is part of it.
                let latency = Some(sim.referee().limits.latency_ms).filter(|millis| *millis > 0);
                let latency = latency.map(|millis| sleep(Duration::from_millis(millis)));
                let response = run(request).await;
                if let Some(latency) = latency {
                    latency.await;
                }
                if let (Some(quota), true) = (&quota, counted) {
                    sim.referee().leave(quota, started, sim.now(), 1);
                }
                with_what_is_left(&sim, area, quota.as_ref(), response)
            };
            match fault {
                Some(Effect::Lost(When::After)) => {
                    close(&sim, id, None).await;
                    return None;
                }
                Some(Effect::Hold { hold: When::After }) => {
                    sim.released(rule).await;
                    response
                }
                Some(Effect::Answer { status, headers, body, .. }) => {
                    made_up(&sim, status, &headers, &body, quota.as_ref())
                }
                _ => response,
            }
        }
    };
    if response.status().is_client_error() || response.status().is_server_error() {
        let who = bearer.as_ref().map_or("", |bearer| bearer.upn.as_str());
        let key = format!("{who} {method} {path} {}", body.len());
        sim.referee().note_failure(&key, id, sim.now());
    }
    close(&sim, id, Some(dress(&sim, area, &context, response).await)).await
}

/// The call as the journal keeps it, before anything was done with it.
fn entry(sim: &Sim, parts: &http::request::Parts, body: &Bytes, part: Option<&Part>) -> Call {
    let path = parts.uri.path().to_owned();
    let area = Area::of(&path);
    let bearer = read_bearer(&parts.headers);
    let text = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    Call {
        id: 0,
        part_of: part.map(|part| part.of),
        area,
        request_id: sim.guid(),
        client_request_id: text("client-request-id").or_else(|| text("x-ms-client-request-id")),
        method: parts.method.to_string(),
        mailbox: mailbox_of(sim, area, &path, bearer.as_ref()),
        path,
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers.clone(),
        body: body.clone(),
        bearer,
        started: sim.now(),
        ended: None,
        status: None,
        answer: Bytes::new(),
        fault: None,
    }
}

/// Whose quota the call is counted against.
fn quota_of(area: Area, mailbox: Option<&String>, bearer: Option<&Bearer>) -> Option<Quota> {
    match (mailbox, area, bearer) {
        (Some(mailbox), _, Some(bearer)) => {
            Some(Quota::Mailbox { app: bearer.app.clone(), mailbox: mailbox.clone() })
        }
        (_, Area::Dataverse, Some(bearer)) => Some(Quota::CrmUser { user: bearer.oid.clone() }),
        _ => None,
    }
}

async fn close(sim: &Sim, id: u64, response: Option<Response>) -> Option<Response> {
    let now = sim.now();
    let Some(response) = response else {
        sim.journal().edit(id, |call| call.ended = Some(now));
        sim.changed();
        return None;
    };
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    sim.journal().edit(id, |call| {
        call.ended = Some(now);
        call.status = Some(parts.status.as_u16());
        call.answer = body.slice(..body.len().min(KEPT_ANSWER));
    });
    sim.changed();
    Some(Response::from_parts(parts, Body::from(body)))
}

/// The mailbox that an Outlook call goes to: only those count against Outlook's limits.
pub(crate) fn mailbox_of(sim: &Sim, area: Area, path: &str, bearer: Option<&Bearer>) -> Option<String> {
    const OUTLOOK: [&str; 13] = [
        "messages",
        "mailfolders",
        "sendmail",
        "events",
        "calendar",
        "calendars",
        "calendarview",
        "calendargroups",
        "contacts",
        "contactfolders",
        "mailboxsettings",
        "outlook",
        "findmeetingtimes",
    ];
    if area != Area::Graph {
        return None;
    }
    let bearer = bearer?;
    let mut segments = path.trim_start_matches("/v1.0/").split('/');
    let first = segments.next()?.to_ascii_lowercase();
    let (owner, what) = if first == "me" {
        (bearer.oid.clone(), segments.next()?)
    } else if first == "users" {
        let name = segments.next()?.replace("%40", "@");
        let owner = sim.directory().find_in(&bearer.tenant, &name).map(|user| user.oid.clone());
        (owner.unwrap_or(name), segments.next()?)
    } else {
        return None;
    };
    let what = what.split(['(', '?']).next().unwrap_or(what).to_ascii_lowercase();
    OUTLOOK.contains(&what.as_str()).then_some(owner)
}

/// Reads the claims without checking anything: the log wants to know who claims to call.
fn read_bearer(headers: &HeaderMap) -> Option<Bearer> {
    let token = headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")?;
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&payload).ok()?;
    let text = |name: &str| claims[name].as_str().unwrap_or_default().to_owned();
    Some(Bearer {
        oid: text("oid"),
        upn: text("upn"),
        app: text("appid"),
        tenant: text("tid"),
        audience: text("aud"),
        scopes: text("scp").split_whitespace().map(str::to_owned).collect(),
        token_id: text("uti"),
    })
}
