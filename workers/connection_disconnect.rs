//! `connection.disconnect`: ends a user's consent, with all that was begun with it.
//!
//! The invariant: its mailboxes end first and its tokens last, each step is written down before the next begins, and a
//! consent that was given after it was asked for is left alone.

use std::time::Duration;

use chrono::TimeDelta;
use followthrough::context::Context;
use followthrough::job::{Duty, Gate, Invalid, Job, Spec};
use followthrough::outcome::{Disposition, Failure};
use followthrough::store::connection::Connection;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::mailbox::disconnect::{put_off, unwind};

/// Many mailboxes take long while Microsoft is slow: the rest is another slice.
const SLICE: TimeDelta = TimeDelta::seconds(30);

/// Disconnects a user: the mailboxes reached through the consent are disconnected, then its tokens are wiped.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConnectionDisconnect {
    /// The connection's id.
    pub connection: String,
}

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct ConnectionDisconnected {
    /// What was ended, when, and what could not be.
    pub receipt: Value,
}

impl Job for ConnectionDisconnect {
    const SPEC: Spec = Spec {
        kind: "connection.disconnect",
        integration: None,
        scopes: &[],
        gate: Gate::None,
        permits: 1,
        duty: Some(Duty::DisconnectConnection),
        attempts: 8,
        timeout: Duration::from_mins(5),
        tool_pattern: "connection.disconnect",
        example: r#"{"connection": "019a4c3e-7b51-7c08-9a57-2f1f6f0e8d11"}"#,
    };
    type Result = ConnectionDisconnected;

    fn check(&self) -> Result<(), Invalid> {
        self.id().map(drop)
    }

    fn render(&self) -> String {
        format!("Disconnect the connection {}.", self.connection)
    }

    async fn run(&self, cx: &Context) -> Result<ConnectionDisconnected, Failure> {
        let found = match self.id() {
            Ok(id) => cx.connections().find(id).await?,
            Err(_) => None,
        };
        let connection = found
            .ok_or_else(|| Failure::reject("unknown_connection", "this user has no such connection here"))?;
        let ended = end(cx, &connection).await;
        Ok(ConnectionDisconnected { receipt: ended.map_err(|failure| put_off(cx, failure))? })
    }
}

impl ConnectionDisconnect {
    fn id(&self) -> Result<Uuid, Invalid> {
        self.connection.parse().map_err(|_| Invalid::new("connection", "expected a connection's id"))
    }
}

async fn end(cx: &Context, connection: &Connection) -> Result<Value, Failure> {
    let ours = cx.connections();
    if let Some(receipt) = ours.ended(connection) {
        return Ok(receipt);
    }
    let unwound = unwind_all(cx, connection).await;
    ours.step(connection).await?;
    unwound?;
    ours.disconnected(connection).await
}

/// One mailbox that cannot be ended yet keeps none of the others waiting.
async fn unwind_all(cx: &Context, connection: &Connection) -> Result<(), Failure> {
    let until = cx.now() + SLICE;
    let mut waits = Ok(());
    for mailbox in cx.connections().disconnecting(connection).await? {
        if cx.now() > until {
            return Err(Failure::continues());
        }
        match unwind(cx, &mailbox).await {
            Ok(_) => {}
            Err(failure) if matches!(failure.disposition, Disposition::Defer { .. }) => waits = Err(failure),
            Err(failure) => return Err(failure),
        }
    }
    waits
}
