//! A Microsoft that costs as little as it can: it issues tokens, takes drafts and counts them by their mark.
//!
//! The invariant: what it counts is what arrived, once per mark and in all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{RawQuery, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;

pub(crate) const NAME: &str = "serve-fake";

#[derive(Default)]
struct Seen {
    drafts: HashMap<String, u32>,
    posts: u64,
    tokens: u64,
}

type Shared = Arc<Mutex<Seen>>;

/// What arrived so far.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Count {
    /// Distinct marks.
    pub(crate) effects: u64,
    pub(crate) posts: u64,
    pub(crate) tokens: u64,
}

/// Tells its address on standard output and serves until its standard input ends.
pub(crate) async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let seen = Shared::default();
    let app = Router::new()
        .route("/v1.0/me/messages", post(draft).get(find))
        .route("/{tenant}/oauth2/v2.0/token", post(token))
        .route("/count", get(count).delete(forget))
        .with_state(seen);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    tokio::select! {
        served = axum::serve(listener, app) => served?,
        () = crate::child::parent_gone() => {}
    }
    Ok(())
}

#[derive(Deserialize)]
struct Draft {
    #[serde(rename = "singleValueExtendedProperties")]
    marks: Vec<Mark>,
}

#[derive(Deserialize)]
struct Mark {
    value: String,
}

fn open(seen: &Shared) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn message(mark: &str) -> Value {
    json!({
        "@odata.context": "https://graph.microsoft.com/v1.0/$metadata#users('48d31887')/messages/$entity",
        "id": format!("AAkALgAAAAAAHYQDEapmEc2byACqAC-EWg0AkbZuzlGgQUmDnkz0pPcMRgABjL1k-{mark}"),
        "internetMessageId": format!("<{mark}@contoso.example>"),
        "conversationId": "AAQkADAwATNiZmYAZC0xNjQzLTQ0MTktMDACLTAwCgAQAJ3oSc5ZQ0RBmOpTO1QzJKQ=",
        "webLink": "https://outlook.office365.com/owa/?ItemID=AAkALgAAAAAAHYQDEapmEc2byACqAC&exvsurl=1&viewmodel=ReadMessageItem",
        "isDraft": true,
        "isRead": true,
        "createdDateTime": "2026-01-05T09:00:00Z",
        "lastModifiedDateTime": "2026-01-05T09:00:00Z",
    })
}

async fn draft(State(seen): State<Shared>, Json(draft): Json<Draft>) -> impl IntoResponse {
    let mark = draft.marks.into_iter().next().map(|mark| mark.value).unwrap_or_default();
    let answer = message(&mark);
    {
        let mut seen = open(&seen);
        seen.posts += 1;
        *seen.drafts.entry(mark).or_default() += 1;
    }
    let headers = [
        (header::CONTENT_TYPE, "application/json; odata.metadata=minimal"),
        (HeaderName::from_static("preference-applied"), "IdType=\"ImmutableId\""),
        (HeaderName::from_static("request-id"), "0f3b1a52-8d1d-4ed8-8cd8-5b20a7b1f001"),
    ];
    (StatusCode::CREATED, headers, answer.to_string())
}

/// A probe for a mark, as `OData` spells it: found by looking for any known mark in the filter.
async fn find(State(seen): State<Shared>, RawQuery(query): RawQuery) -> Json<Value> {
    let query = query.unwrap_or_default();
    let found: Vec<Value> = open(&seen)
        .drafts
        .keys()
        .filter(|mark| query.contains(mark.as_str()))
        .map(|mark| message(mark))
        .collect();
    Json(json!({ "value": found }))
}

async fn token(State(seen): State<Shared>) -> Json<Value> {
    let number = {
        let mut seen = open(&seen);
        seen.tokens += 1;
        seen.tokens
    };
    // As long as a real one, which travels with every call.
    Json(json!({
        "token_type": "Bearer",
        "scope": "openid email profile offline_access Mail.ReadWrite Mail.Send User.Read",
        "expires_in": 4_800,
        "access_token": format!("{number:01600}"),
        "refresh_token": format!("refresh-{number:0900}"),
    }))
}

async fn count(State(seen): State<Shared>) -> Json<Count> {
    let seen = open(&seen);
    Json(Count { effects: seen.drafts.len() as u64, posts: seen.posts, tokens: seen.tokens })
}

async fn forget(State(seen): State<Shared>) {
    *open(&seen) = Seen::default();
}
