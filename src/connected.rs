//! What a connection's change means for everybody else: its event, and the jobs that waited for it.
//!
//! The invariant: both are written in the transaction of the change, so that no job waits for a connection
//! that works again, and no publisher is told of one that does not.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::event::Event;
use crate::outbox;
use crate::registry::Registry;
use crate::store::connection::{Connection, Status};
use crate::store::{StoreError, Tx};
use crate::submit;
use crate::vault::Changes;

/// The vault's [`Changes`], outside of tests.
#[derive(Clone)]
pub struct Announce {
    pub registry: Registry,
}

#[async_trait]
impl Changes for Announce {
    async fn changed(
        &self,
        tx: &mut Tx,
        connection: &Connection,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        // Nothing has happened yet that a publisher does not know.
        if connection.status == Status::Pending {
            return Ok(());
        }
        let event = Event {
            kind: &format!("connection.{}", connection.status.as_str()),
            about: "connection",
            subject: &connection.id.to_string(),
            workspace: &connection.workspace,
            traceparent: None,
            data: data(connection),
            now,
        };
        outbox::leave(tx, &[event.owed()], now).await?;
        if connection.status == Status::Connected {
            let (workspace, user) = (&connection.workspace, &connection.user_name);
            submit::release_for_connection(tx, &self.registry, workspace, user, connection.integration, now)
                .await?;
        }
        Ok(())
    }
}

fn data(connection: &Connection) -> Value {
    let mut data = json!({
        "connection": connection.id,
        "user": connection.user_name,
        "integration": connection.integration,
        "status": connection.status,
    });
    if connection.status == Status::Disconnected {
        data["receipt"] = json!(connection.last_receipt());
    }
    if let Some(cause) = &connection.cause {
        data["code"] = json!(cause);
        data["message"] = json!(connection.message);
    }
    data
}
