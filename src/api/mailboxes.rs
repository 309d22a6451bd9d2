//! Shared mailboxes: connect, look, fill back, disconnect; and the mail that is kept of them.
//!
//! The invariant: content leaves here and nowhere else, to a key that may see the mailbox's workspace.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::Api;
use super::error::{ApiError, Result};
use super::request::{Body, Path, Query, cursor, limit, position};
use crate::api_key::Caller;
use crate::job::{ADDRESS, STORABLE, is_address, is_storable};
use crate::mailbox::attachments::{self, Contents};
use crate::mailbox::content::Detail;
use crate::mailbox::desk::{self, MailboxView};
use crate::mailbox::life::Registered;
use crate::store::mailbox::{Mailbox, state};
use crate::store::message::{Filter, Message};

/// As far back as a backfill may go.
const MOST_DAYS: u16 = 365;

pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(connect_mailbox, list_mailboxes))
        .routes(routes!(show_mailbox, disconnect_mailbox))
        .routes(routes!(start_backfill, cancel_backfill))
        .routes(routes!(list_messages))
        .routes(routes!(show_message))
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct NewMailbox {
    workspace: String,
    /// The service account's user, whose `shared-mailbox` consent it is reached through.
    user: String,
    address: String,
    /// 0 to 365; 30 by default.
    backfill_days: Option<u16>,
}

impl Api {
    pub(super) async fn mailbox(&self, caller: &Caller, id: Uuid) -> Result<Mailbox> {
        let found = desk::find(&self.services, id).await?;
        found.filter(|found| caller.may_see(Some(&found.workspace))).ok_or_else(ApiError::not_found)
    }
}

/// Connect a shared mailbox
///
/// Makes the job that proves the access; the mailbox says what is missing while it is `connecting`. Asking again
/// tries again.
#[utoipa::path(
    post, path = "/v1/mailboxes", tag = "mailboxes", security(("api_key" = ["publisher"])),
    request_body = NewMailbox,
    responses(
        (status = 201, description = "Its access is being proven", body = MailboxView),
        (status = 409, description = "`mailbox_exists`: it is connected in this workspace", body = super::error::ErrorBody),
    ),
)]
async fn connect_mailbox(
    State(api): State<Api>,
    caller: Caller,
    Body(new): Body<NewMailbox>,
) -> Result<(StatusCode, Json<MailboxView>)> {
    caller.in_workspace(&new.workspace)?;
    let days = new.backfill_days.unwrap_or(30);
    if days > MOST_DAYS {
        return Err(ApiError::bad("invalid_body", "backfill_days", "expected 0 to 365 days"));
    }
    for (path, text) in [("workspace", &new.workspace), ("user", &new.user)] {
        if text.is_empty() || text.len() > 256 || text.chars().any(char::is_control) {
            let message = "expected 1 to 256 bytes without control characters";
            return Err(ApiError::bad("invalid_body", path, message));
        }
    }
    let address = new.address.trim();
    if !is_address(address) {
        return Err(ApiError::bad("invalid_body", "address", ADDRESS));
    }
    let registered = desk::connect(&api.services, &new.workspace, &new.user, address, days).await?;
    if let Registered::Taken(known) | Registered::Known(known) = &registered
        && (known.state != state::CONNECTING || matches!(registered, Registered::Taken(_)))
    {
        let message = format!("it is {} in this workspace as {}", known.state, known.id);
        return Err(ApiError::conflict("mailbox_exists", message));
    }
    let view = desk::show(&api.services, registered.mailbox()).await?;
    Ok((StatusCode::CREATED, Json(view)))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct MailboxQuery {
    workspace: Option<String>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// 1 to 200, 50 by default.
    limit: Option<i64>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct MailboxPage {
    pub mailboxes: Vec<MailboxView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// List shared mailboxes, oldest first
#[utoipa::path(
    get, path = "/v1/mailboxes", tag = "mailboxes", security(("api_key" = ["publisher"])), params(MailboxQuery),
    responses((status = 200, description = "One page", body = MailboxPage)),
)]
async fn list_mailboxes(
    State(api): State<Api>,
    caller: Caller,
    Query(query): Query<MailboxQuery>,
) -> Result<Json<MailboxPage>> {
    let workspace = caller.narrowed(query.workspace)?;
    let (after, limit) = (position(query.cursor.as_deref())?, limit(query.limit)?);
    let mailboxes = desk::list(&api.services, workspace.as_deref(), after, limit).await?;
    let full = i64::try_from(mailboxes.len()).is_ok_and(|rows| rows == limit);
    let next_cursor = mailboxes.last().map(|row| cursor(&row.id)).filter(|_| full);
    Ok(Json(MailboxPage { mailboxes, next_cursor }))
}

/// Show a shared mailbox
///
/// What can be done with it, which rung of the ladder it stands on and why, how far its backfill is.
#[utoipa::path(
    get, path = "/v1/mailboxes/{id}", tag = "mailboxes", security(("api_key" = ["publisher"])),
    params(("id" = Uuid, Path)),
    responses((status = 200, description = "As it is known now", body = MailboxView)),
)]
async fn show_mailbox(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Json<MailboxView>> {
    let mailbox = api.mailbox(&caller, id).await?;
    Ok(Json(desk::show(&api.services, mailbox).await?))
}

/// Disconnect a shared mailbox
///
/// Ends its backfill and its subscriptions and forgets its address; the messages are kept. The receipt says what was
/// done once the state is `disconnected`.
#[utoipa::path(
    delete, path = "/v1/mailboxes/{id}", tag = "mailboxes", security(("api_key" = ["publisher"])),
    params(("id" = Uuid, Path)),
    responses((status = 202, description = "Nothing new is begun in it", body = MailboxView)),
)]
async fn disconnect_mailbox(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<(StatusCode, Json<MailboxView>)> {
    let mailbox = api.mailbox(&caller, id).await?;
    desk::disconnect(&api.services, &mailbox).await?;
    Ok((StatusCode::ACCEPTED, Json(desk::show(&api.services, mailbox).await?)))
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct NewBackfill {
    /// 1 to 365.
    days: u16,
}

/// Fill a mailbox back
#[utoipa::path(
    post, path = "/v1/mailboxes/{id}/backfill", tag = "mailboxes", security(("api_key" = ["publisher"])),
    params(("id" = Uuid, Path)), request_body = NewBackfill,
    responses(
        (status = 202, description = "It begins", body = MailboxView),
        (status = 409, description = "`backfill_running` or `mailbox_not_connected`", body = super::error::ErrorBody),
    ),
)]
async fn start_backfill(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<Uuid>,
    Body(new): Body<NewBackfill>,
) -> Result<(StatusCode, Json<MailboxView>)> {
    let mailbox = api.mailbox(&caller, id).await?;
    if !(1..=MOST_DAYS).contains(&new.days) {
        return Err(ApiError::bad("invalid_body", "days", "expected 1 to 365 days"));
    }
    if !matches!(mailbox.state.as_str(), state::CONNECTED | state::DEGRADED) {
        let message = format!("the mailbox is {}", mailbox.state);
        return Err(ApiError::conflict("mailbox_not_connected", message));
    }
    if !desk::fill(&api.services, &mailbox, new.days).await? {
        return Err(ApiError::conflict("backfill_running", "another one runs; cancel it first"));
    }
    Ok((StatusCode::ACCEPTED, Json(desk::show(&api.services, mailbox).await?)))
}

/// Cancel a backfill
///
/// What was read stays.
#[utoipa::path(
    delete, path = "/v1/mailboxes/{id}/backfill", tag = "mailboxes", security(("api_key" = ["publisher"])),
    params(("id" = Uuid, Path)),
    responses(
        (status = 200, description = "It ends with the page that is on its way", body = MailboxView),
        (status = 409, description = "`no_backfill`: none runs", body = super::error::ErrorBody),
    ),
)]
async fn cancel_backfill(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Json<MailboxView>> {
    let mailbox = api.mailbox(&caller, id).await?;
    if !desk::cancel_fill(&api.services, &mailbox).await? {
        return Err(ApiError::conflict("no_backfill", "no backfill of this mailbox runs"));
    }
    Ok(Json(desk::show(&api.services, mailbox).await?))
}

/// One message, without its body in a list.
#[derive(Serialize, utoipa::ToSchema)]
pub struct MessageView {
    pub id: String,
    pub folder: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internet_message_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<String>,
    pub received_at: DateTime<Utc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    pub is_read: bool,
    pub is_draft: bool,
    /// `present`, `doubtful` (gone from its folder, looked for at present) or `removed`.
    pub state: String,
    #[serde(flatten)]
    pub detail: Detail,
}

impl MessageView {
    fn whole(message: Message, contents: &Contents) -> Self {
        let mut detail = Detail::read(&message.detail);
        contents.tell(&message.id, &mut detail);
        Self {
            detail,
            id: message.id,
            folder: message.folder_id,
            internet_message_id: message.internet_message_id,
            conversation_id: message.conversation_id,
            received_at: message.received_at,
            subject: message.subject,
            is_read: message.is_read,
            is_draft: message.is_draft,
            state: message.state,
        }
    }

    fn listed(message: Message, contents: &Contents) -> Self {
        let mut view = Self::whole(message, contents);
        (view.detail.html, view.detail.headers) = (None, None);
        // As much as a list shows of it.
        let cut = view.detail.text.floor_char_boundary(255);
        view.detail.text.truncate(cut);
        view
    }
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct MessageQuery {
    /// A folder's id, or `inbox`, `sentitems`, `drafts`, `deleteditems`.
    folder: Option<String>,
    /// Received then or later.
    since: Option<DateTime<Utc>>,
    conversation: Option<String>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// 1 to 200, 50 by default.
    limit: Option<i64>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct MessagePage {
    pub messages: Vec<MessageView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// List a mailbox's messages, newest first
///
/// Without html and headers, and with the first 255 bytes of the text.
#[utoipa::path(
    get, path = "/v1/mailboxes/{id}/messages", tag = "mailboxes", security(("api_key" = ["publisher"])),
    params(("id" = Uuid, Path), MessageQuery),
    responses((status = 200, description = "One page", body = MessagePage)),
)]
async fn list_messages(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<Uuid>,
    Query(query): Query<MessageQuery>,
) -> Result<Json<MessagePage>> {
    let mailbox = api.mailbox(&caller, id).await?;
    if query.since.is_some_and(|since| !is_storable(since)) {
        return Err(ApiError::bad("invalid_query", "since", STORABLE));
    }
    let filter = Filter {
        folder: query.folder,
        since: query.since,
        conversation: query.conversation,
        after: position(query.cursor.as_deref())?,
        limit: limit(query.limit)?,
    };
    let rows = desk::messages(&api.services, mailbox.id, &filter).await?;
    let full = i64::try_from(rows.len()).is_ok_and(|rows| rows == filter.limit);
    let next_cursor = rows.last().map(|row| cursor(&(row.received_at, &row.id))).filter(|_| full);
    let ids: Vec<String> = rows.iter().map(|row| row.id.clone()).collect();
    let contents = attachments::contents(&api.services, mailbox.id, &ids).await?;
    let messages = rows.into_iter().map(|row| MessageView::listed(row, &contents)).collect();
    Ok(Json(MessagePage { messages, next_cursor }))
}

/// Show one message, whole
#[utoipa::path(
    get, path = "/v1/mailboxes/{id}/messages/{message}", tag = "mailboxes",
    security(("api_key" = ["publisher"])), params(("id" = Uuid, Path), ("message" = String, Path)),
    responses((status = 200, description = "With body, headers and its attachments", body = MessageView)),
)]
async fn show_message(
    State(api): State<Api>,
    caller: Caller,
    Path((id, message)): Path<(Uuid, String)>,
) -> Result<Json<MessageView>> {
    let mailbox = api.mailbox(&caller, id).await?;
    let found = desk::message(&api.services, mailbox.id, &message).await?;
    let contents = attachments::contents(&api.services, mailbox.id, &[message]).await?;
    Ok(Json(MessageView::whole(found.ok_or_else(ApiError::not_found)?, &contents)))
}
