//! Dead letters: look, replay, discard.
//!
//! The invariant: a listing holds no content; nothing is replayed or discarded that the request did not ask
//! for by id or by a filter it wrote out.

use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use scoped_futures::ScopedFutureExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::Api;
use super::error::{ApiError, Result};
use super::request::{Body, Path, Query, cursor, limit, position};
use crate::api_key::Caller;
use crate::dead::{self, Handled};
use crate::store::dead_letter::{self, DISCARDED, DeadLetter, Filter, OPEN, REPLAYED};

/// As many are handled by one request.
const AT_ONCE: i64 = 1000;

pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list_dead_letters))
        .routes(routes!(show_dead_letter))
        .routes(routes!(replay_dead_letters))
        .routes(routes!(discard_dead_letters))
}

/// A message that will not be tried again unless somebody replays it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct DeadLetterView {
    pub id: Uuid,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Who gave up: `worker`, `publisher` (undecodable, unroutable) or `broker` (delivery limit, expiry).
    pub source: String,
    pub code: String,
    pub message: String,
    /// Where in the message the fault is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    pub attempts: i32,
    /// `open`, `replayed` or `discarded`.
    pub state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settled_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settled_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    /// The message: JSON, or text. Only of one dead letter, not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<Value>,
    /// The message where it is no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history: Option<Value>,
}

impl DeadLetterView {
    /// Without content.
    pub fn listed(letter: DeadLetter) -> Self {
        Self {
            id: letter.id,
            workspace: letter.workspace,
            kind: letter.kind,
            job_id: letter.job_id,
            user: letter.user_name,
            source: letter.source,
            code: letter.code,
            message: letter.message,
            path: letter.path,
            attempts: letter.attempts,
            state: letter.state,
            settled_by: letter.settled_by,
            settled_at: letter.settled_at,
            created_at: letter.created_at,
            body: None,
            body_base64: None,
            headers: None,
            history: None,
        }
    }

    pub fn whole(letter: DeadLetter) -> Self {
        let text = std::str::from_utf8(&letter.body).ok();
        let body = text.map(|text| serde_json::from_str(text).unwrap_or_else(|_| text.into()));
        let body_base64 = body.is_none().then(|| STANDARD.encode(&letter.body));
        let headers = serde_json::from_str(&letter.headers).ok();
        let history = serde_json::from_str(&letter.history).ok();
        Self { body, body_base64, headers, history, ..Self::listed(letter) }
    }
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct DeadLetterQuery {
    workspace: Option<String>,
    kind: Option<String>,
    code: Option<String>,
    /// `open` (default), `replayed`, `discarded` or `all`.
    state: Option<String>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// 1 to 200, 50 by default.
    limit: Option<i64>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct DeadLetterPage {
    pub dead_letters: Vec<DeadLetterView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// List dead letters, newest first
#[utoipa::path(
    get, path = "/v1/dead-letters", tag = "dead letters", security(("api_key" = ["operator"])),
    params(DeadLetterQuery),
    responses((status = 200, description = "One page", body = DeadLetterPage)),
)]
async fn list_dead_letters(
    State(api): State<Api>,
    caller: Caller,
    Query(query): Query<DeadLetterQuery>,
) -> Result<Json<DeadLetterPage>> {
    let state = state(query.state.as_deref()).ok_or_else(|| {
        ApiError::bad("invalid_query", "state", "expected open, replayed, discarded or all")
    })?;
    let limit = limit(query.limit)?;
    let filter = Filter {
        ids: Vec::new(),
        workspace: caller.narrowed(query.workspace)?,
        kind: query.kind,
        code: query.code,
        state,
        after: position(query.cursor.as_deref())?,
        limit,
    };
    let letters = list(&api, &filter).await?;
    let full = i64::try_from(letters.len()).is_ok_and(|letters| letters == limit);
    let last = letters.last().map(|letter| cursor(&(letter.created_at, letter.id)));
    Ok(Json(DeadLetterPage {
        dead_letters: letters.into_iter().map(DeadLetterView::listed).collect(),
        next_cursor: last.filter(|_| full),
    }))
}

/// The state a listing is narrowed to; `None` for a word that is none.
pub fn state(asked: Option<&str>) -> Option<Option<&'static str>> {
    match asked {
        None => Some(Some(OPEN)),
        Some("all") => Some(None),
        Some(word) => [OPEN, REPLAYED, DISCARDED].into_iter().find(|state| *state == word).map(Some),
    }
}

async fn list(api: &Api, filter: &Filter) -> Result<Vec<DeadLetter>> {
    let store = &api.services.store;
    Ok(store.read(|tx| async move { dead_letter::list(tx, filter).await }.scope_boxed()).await?)
}

/// Look at one dead letter
///
/// With its message, headers and history.
#[utoipa::path(
    get, path = "/v1/dead-letters/{id}", tag = "dead letters", security(("api_key" = ["operator"])),
    params(("id" = Uuid, Path)),
    responses((status = 200, description = "The dead letter", body = DeadLetterView)),
)]
async fn show_dead_letter(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Json<DeadLetterView>> {
    let found =
        api.services.store.read(|tx| async move { dead_letter::find(tx, id).await }.scope_boxed()).await?;
    // Whose it is is known only after looking, so a foreign one is as good as absent.
    let letter = found.filter(|letter| caller.workspace.is_none() || letter.workspace == caller.workspace);
    Ok(Json(DeadLetterView::whole(letter.ok_or_else(ApiError::not_found)?)))
}

/// Which dead letters: by `ids` or by `filter`, one of the two.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct Selection {
    ids: Option<Vec<Uuid>>,
    filter: Option<SelectionFilter>,
    /// Tells what would happen and changes nothing.
    #[serde(default)]
    dry_run: bool,
}

/// All of these; `{}` is every open dead letter.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct SelectionFilter {
    workspace: Option<String>,
    kind: Option<String>,
    code: Option<String>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct HandledLetters {
    pub dry_run: bool,
    pub handled: Vec<Handled>,
    /// The filter may match more than one request handles: ask again.
    pub more: bool,
}

/// Replay dead letters
///
/// Each goes through the front door again: permission, consent and limits are those of now.
#[utoipa::path(
    post, path = "/v1/dead-letters/replay", tag = "dead letters", security(("api_key" = ["operator"])),
    request_body = Selection,
    responses((status = 200, description = "What was or would be done to each", body = HandledLetters)),
)]
async fn replay_dead_letters(
    State(api): State<Api>,
    caller: Caller,
    Body(selection): Body<Selection>,
) -> Result<Json<HandledLetters>> {
    let filter = selected(&caller, &selection)?;
    let handled = dead::replay(&api.services, &filter, &caller.signature(), selection.dry_run).await?;
    Ok(Json(answer(&filter, selection.dry_run, handled)))
}

/// Discard dead letters
///
/// They stay listed, closed.
#[utoipa::path(
    post, path = "/v1/dead-letters/discard", tag = "dead letters", security(("api_key" = ["operator"])),
    request_body = Selection,
    responses((status = 200, description = "What was or would be done to each", body = HandledLetters)),
)]
async fn discard_dead_letters(
    State(api): State<Api>,
    caller: Caller,
    Body(selection): Body<Selection>,
) -> Result<Json<HandledLetters>> {
    let filter = selected(&caller, &selection)?;
    let handled = dead::discard(&api.services, &filter, &caller.signature(), selection.dry_run).await?;
    Ok(Json(answer(&filter, selection.dry_run, handled)))
}

fn selected(caller: &Caller, selection: &Selection) -> Result<Filter> {
    match (&selection.ids, &selection.filter) {
        (Some(ids), None) if (1..=1000).contains(&ids.len()) => Ok(Filter {
            ids: ids.clone(),
            workspace: caller.workspace.clone(),
            limit: AT_ONCE,
            ..Filter::default()
        }),
        (Some(_), None) => Err(ApiError::bad("invalid_body", "ids", "expected 1 to 1000 ids")),
        (None, Some(filter)) => Ok(Filter {
            workspace: caller.narrowed(filter.workspace.clone())?,
            kind: filter.kind.clone(),
            code: filter.code.clone(),
            limit: AT_ONCE,
            ..Filter::default()
        }),
        _ => Err(ApiError::bad("invalid_body", "ids", "expected either ids or filter")),
    }
}

fn answer(filter: &Filter, dry_run: bool, mut handled: Vec<Handled>) -> HandledLetters {
    let more = filter.ids.is_empty() && i64::try_from(handled.len()).is_ok_and(|count| count == AT_ONCE);
    for id in &filter.ids {
        if !handled.iter().any(|one| one.id == *id) {
            handled.push(Handled { id: *id, done: false, refused: Some("not_found".to_owned()) });
        }
    }
    HandledLetters { dry_run, handled, more }
}
