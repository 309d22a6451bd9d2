//! Microsoft Graph: mail, calendar, batches, subscriptions.
//!
//! Everything under `/v1.0` comes to one dispatcher, because `OData` spells one resource in many ways (`mailFolders/inbox`,
//! `mailFolders('inbox')`, `delta()`, `microsoft.graph.delta()`): `call` undoes the spellings, `access` decides whether
//! this token and this person may enter the mailbox, `schema` checks a body against Microsoft's own metadata, and only
//! then does a handler run. Handlers are plain functions over `GraphState`; what they answer is JSON as the API pages
//! show it. Invariant: no handler changes anything before everything that could refuse the call has been checked.

mod access;
mod assertions;
mod attachments;
mod batch;
mod body;
mod calendar;
mod call;
mod compose;
mod contacts;
mod control;
mod delta;
mod event_list;
mod event_rules;
mod event_view;
mod event_write;
mod folders;
mod generator;
mod ids;
mod list;
mod mail;
mod mail_move;
mod message;
mod mime;
mod notifier;
mod odata;
mod people;
mod refusal;
mod reply;
mod schedule;
mod schema;
mod search;
mod send;
mod state;
mod store;
mod subscription_target;
mod subscriptions;
mod timezones;
mod uploads;
mod world;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use http::Method;

pub use assertions::{MailboxRef, NewMessage};
pub use control::CONTROLS;
pub use generator::Fill;
pub use message::Address;
pub use state::{GraphState, Invitation, SentMail, SharedSubscribe, Switches};

use crate::Sim;
use crate::auth::{Resource, authorize};
use crate::gateway::CallContext;
use call::{Call, Prefer};
use refusal::{Answer, Refusal};

/// Everything under `/v1.0`, and the upload sessions, whose address is another host's at Microsoft.
pub fn router() -> Router<Sim> {
    Router::new().route("/v1.0/{*path}", any(dispatch)).route(uploads::ROUTE, any(uploads::serve))
}

/// Everything under `/_sim/graph`.
pub fn controls() -> Router<Sim> {
    control::router()
}

async fn dispatch(State(sim): State<Sim>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let context = parts.extensions.get::<CallContext>().cloned();
    let caller = match authorize(&sim, &parts.headers, &Resource::Graph) {
        Ok(caller) => caller,
        Err(refused) => return axum::response::IntoResponse::into_response(refused),
    };
    let Ok(body) = to_bytes(body, usize::MAX).await else {
        return Refusal::bad("BadRequest", "Unable to read the request body.").into_response();
    };
    let prefer = match Prefer::read(&parts.headers) {
        Ok(prefer) => prefer,
        Err(refusal) => return refusal.into_response(),
    };
    // Without a length or chunks there is no body to speak of, and a POST must say so: 411.
    let path = parts.uri.path().to_owned();
    let call = Call {
        segments: call::segments(path.trim_start_matches("/v1.0")),
        query: call::query(parts.uri.query().unwrap_or_default()),
        base: format!("{}/v1.0", sim.base_url()),
        now: sim.now(),
        method: parts.method,
        headers: parts.headers,
        http2: parts.version >= http::Version::HTTP_2,
        body,
        path,
        caller,
        prefer,
    };
    sim.graph().settle(call.now);
    let answer = match call.names().first().copied() {
        Some("$batch") => batch::run(&sim, &call, context.as_ref()).await,
        Some("subscriptions") => subscriptions::handle(&sim, &call).await,
        _ => route(&sim, &call),
    };
    notifier::wake(&sim);
    match call.confirm(answer) {
        Ok(reply) => reply.into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

/// The synchronous part: everything that belongs to a person or their mailbox.
fn route(sim: &Sim, call: &Call) -> Answer {
    let names = call.names();
    let (owner, rest) = match names.as_slice() {
        ["me", ..] => (None, 1),
        ["users"] => return people::users(sim, call, false),
        ["users", "$count"] => return people::users(sim, call, true),
        ["users", _, ..] => (Some(call.segments[1].raw.as_str()), 2),
        [] => return Err(Refusal::bad("BadRequest", "Empty path.")),
        [first, ..] => return Err(Refusal::no_segment(first)),
    };
    let tail: Vec<&str> = names[rest..].to_vec();
    match tail.as_slice() {
        [] => people::user(sim, call, owner),
        ["messages" | "mailfolders", ..] => mail::handle(sim, call, owner, rest),
        ["sendmail"] => send::send_mail(sim, call, owner),
        ["translateexchangeids"] => mail_move::translate(sim, call, owner),
        ["events" | "calendar" | "calendars" | "calendarview", ..] => {
            calendar::handle(sim, call, owner, rest)
        }
        ["findmeetingtimes"] => schedule::find_meeting_times(sim, call, owner),
        ["outlook", "supportedtimezones"] => calendar::supported_time_zones(call, rest + 1),
        ["contacts" | "contactfolders", ..] => contacts::handle(sim, call, owner, rest),
        ["people"] => people::people(sim, call, owner),
        ["mailboxsettings"] => people::mailbox_settings(sim, call, owner, None),
        ["mailboxsettings", _] => people::mailbox_settings(sim, call, owner, Some(&call.segments[rest + 1])),
        [segment, ..] => Err(Refusal::no_segment(segment)),
    }
}

/// The verb of a call on a resource that knows only these.
fn only(call: &Call, methods: &[Method]) -> Result<(), Refusal> {
    if methods.contains(&call.method) { Ok(()) } else { Err(Refusal::method()) }
}
