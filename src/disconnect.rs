//! The end of a whole connection: asked for, its mailboxes ended, its tokens wiped, a receipt given.
//!
//! The invariant: once it is asked for, no job is given the connection and nobody can sign in to it before it has ended.
//! The tokens go last, because what is deleted at Microsoft is deleted with them; they go with the receipt, in one commit.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use scoped_futures::ScopedFutureExt;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::job::Duty;
use crate::mailbox::disconnect::{begin as end_mailbox, receipt_of};
use crate::oauth::scopes::Integration;
use crate::outbox;
use crate::outcome::{Cause, Failure};
use crate::registry::Registry;
use crate::services::Services;
use crate::store::connection::{self, Connection, Status};
use crate::store::mailbox::{self, Mailbox, state};
use crate::store::outbox::Owed;
use crate::store::{Result, StoreError, Tx};
use crate::submit::{self, Wish};
use crate::vault::{Vault, VaultError};

/// Asks for the end of a connection. It is `disconnected` at once when it has no mailboxes, and `disconnecting` while a
/// job ends them. Whoever asks again changes nothing, but for a job that was given up.
pub async fn ask(services: &Services, vault: &Vault, id: Uuid) -> Result<Option<Connection>, VaultError> {
    let now = services.clock.now();
    let (registry, handoff) = (&services.registry, &services.handoff);
    let (asked, rows) = services
        .store
        .transaction("connection_disconnect", |tx| {
            async move {
                let mut owed = Vec::new();
                let Some(found) = connection::find(tx, id).await? else { return Ok((None, Vec::new())) };
                let goes_on = match found.status {
                    Status::Disconnected => false,
                    Status::Disconnecting => true,
                    _ => !mailboxes_of(tx, &found).await?.is_empty(),
                };
                if goes_on {
                    owed.extend(begin(tx, registry, &found, now).await?);
                    owed.extend(want(tx, registry, &found, now).await?);
                }
                let asked = connection::find(tx, id).await?;
                Ok::<_, StoreError>((asked, outbox::owe(tx, &owed, handoff, now).await?))
            }
            .scope_boxed()
        })
        .await?;
    handoff.give(rows);
    match asked {
        Some(asked) if asked.status != Status::Disconnecting => vault.disconnect(id).await,
        asked => Ok(asked),
    }
}

/// The mailboxes that are reached through this connection and have not ended.
async fn mailboxes_of(tx: &mut Tx, connection: &Connection) -> Result<Vec<Mailbox>> {
    if connection.integration != Integration::SharedMailbox {
        return Ok(Vec::new());
    }
    mailbox::of_user(tx, &connection.workspace, &connection.user_name).await
}

/// The first step, in one commit: the connection is given to no job any more, and nothing new is begun in its mailboxes.
async fn begin(
    tx: &mut Tx,
    registry: &Registry,
    connection: &Connection,
    now: DateTime<Utc>,
) -> Result<Vec<Owed>> {
    let mailboxes = mailboxes_of(tx, connection).await?;
    let mut receipt = json!({"connection": connection.id, "asked_at": now});
    receipt["mailboxes"] = mailboxes.iter().map(|one| json!({"mailbox": one.id})).collect();
    let mut owed = Vec::new();
    if connection::disconnecting(tx, connection.id, &receipt.to_string(), now).await? {
        for mailbox in &mailboxes {
            owed.extend(end_mailbox(tx, registry, mailbox, now).await?);
        }
    }
    Ok(owed)
}

/// One job for each disconnect; one that was given up is done again.
async fn want(
    tx: &mut Tx,
    registry: &Registry,
    connection: &Connection,
    now: DateTime<Utc>,
) -> Result<Option<Owed>> {
    let id = format!("connection-disconnect/{}/{}", connection.id, connection.grant_number);
    let wish = Wish {
        workspace: &connection.workspace,
        user: &connection.user_name,
        id: &id,
        payload: json!({"connection": connection.id}),
    };
    submit::want_again(tx, registry, Duty::DisconnectConnection, wish, now).await
}

/// One user's connections, in the hands of the job that ends one of them.
pub struct Connections {
    pub(crate) services: Arc<Services>,
    pub(crate) workspace: String,
    pub(crate) user: String,
    /// When the job was made.
    pub(crate) asked_at: DateTime<Utc>,
}

impl Connections {
    /// `None` when this user has no such connection here.
    pub async fn find(&self, id: Uuid) -> Result<Option<Connection>, Failure> {
        let store = &self.services.store;
        let found: Result<_> =
            store.read(|tx| async move { connection::find(tx, id).await }.scope_boxed()).await;
        let ours = |found: &Connection| found.workspace == self.workspace && found.user_name == self.user;
        Ok(found?.filter(ours))
    }

    /// The receipt, if the connection has ended since the job was made. A consent that came afterwards is another one,
    /// and is not ended with it.
    pub fn ended(&self, connection: &Connection) -> Option<Value> {
        let receipt = connection.last_receipt()?;
        let at: DateTime<Utc> = receipt["disconnected_at"].as_str()?.parse().ok()?;
        (connection.status == Status::Disconnected || at >= self.asked_at).then_some(receipt)
    }

    /// The first step. Gives the mailboxes that are still to be ended, the one that was tried longest ago first.
    pub async fn disconnecting(&self, connection: &Connection) -> Result<Vec<Mailbox>, Failure> {
        let now = self.services.clock.now();
        let (registry, handoff, store) =
            (&self.services.registry, &self.services.handoff, &self.services.store);
        let begun: Result<_> = store
            .transaction("connection_disconnecting", |tx| {
                async move {
                    let owed = begin(tx, registry, connection, now).await?;
                    let left = mailboxes_of(tx, connection).await?;
                    Ok((left, outbox::owe(tx, &owed, handoff, now).await?))
                }
                .scope_boxed()
            })
            .await;
        let (mut left, rows) = begun?;
        handoff.give(rows);
        left.retain(|mailbox| mailbox.state == state::DISCONNECTING);
        left.sort_by_key(|mailbox| mailbox.updated_at);
        Ok(left)
    }

    /// What its mailboxes have come to is written into the connection's own receipt.
    pub async fn step(&self, connection: &Connection) -> Result<(), Failure> {
        let (id, now) = (connection.id, self.services.clock.now());
        let store = &self.services.store;
        let written: Result<_> = store
            .transaction("connection_receipt", |tx| {
                async move {
                    let Some(found) = connection::find(tx, id).await? else { return Ok(()) };
                    let mut receipt = found.receipt_so_far(now);
                    for one in receipt["mailboxes"].as_array_mut().into_iter().flatten() {
                        let Some(mailbox) = one["mailbox"].as_str().and_then(|id| id.parse().ok()) else {
                            continue;
                        };
                        if let Some(told) = receipt_of(&mailbox::get(tx, mailbox).await?) {
                            *one = told;
                        }
                    }
                    connection::receipt(tx, id, &receipt.to_string(), now).await
                }
                .scope_boxed()
            })
            .await;
        Ok(written?)
    }

    /// The last step: the tokens are wiped, and the receipt is told.
    pub async fn disconnected(&self, connection: &Connection) -> Result<Value, Failure> {
        let vault = self.services.vault.as_ref().ok_or_else(|| {
            Failure::park(Cause::Operator, "no_app_registration", "no app registration is set here")
        })?;
        let ended = vault.disconnect(connection.id).await?;
        Ok(ended.and_then(|ended| ended.last_receipt()).unwrap_or_default())
    }
}
