//! Shared mailboxes as the jobs see them: what is known of each, and what a look at Microsoft changes about it.
//!
//! The invariant: rows, cursor and events of one answer commit together, under the version of the cursor that the
//! question was asked with. No transaction waits for the network.

pub mod attachments;
pub mod backfill;
pub mod content;
pub mod desk;
pub mod disconnect;
pub mod ladder;
pub mod life;
pub mod pacer;
pub mod pages;
mod push;
mod subscribed;
pub mod tree;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use scoped_futures::ScopedFutureExt;
use uuid::Uuid;

use crate::graph::Graph;
use crate::oauth::scopes::Integration;
use crate::outcome::Failure;
use crate::services::Services;
use crate::store::StoreError;
use crate::store::connection::{self, Connection, Status};
use crate::store::folder::{self, Folder};
use crate::store::gate;
use crate::store::mailbox::{self, Mailbox};

pub use push::SeenChange;
pub use subscribed::Wanted;

/// The mailboxes of one workspace, in the hands of a job.
#[derive(Clone)]
pub struct Mailboxes {
    pub(crate) services: Arc<Services>,
    pub(crate) workspace: String,
}

impl Mailboxes {
    pub fn new(services: Arc<Services>, workspace: &str) -> Self {
        Self { services, workspace: workspace.to_owned() }
    }

    /// How often a mailbox is looked at when nothing happens.
    pub fn pace(&self) -> std::time::Duration {
        self.services.poll
    }

    pub fn now(&self) -> DateTime<Utc> {
        self.services.clock.now()
    }

    /// By its id or its address; `None` when this workspace has none.
    pub async fn find(&self, name: &str) -> Result<Option<Mailbox>, Failure> {
        let (workspace, id) = (self.workspace.as_str(), Uuid::parse_str(name).ok());
        let found = self
            .services
            .store
            .read(|tx| {
                async move {
                    match id {
                        Some(id) => mailbox::find(tx, id).await,
                        None => mailbox::find_by_address(tx, workspace, name).await,
                    }
                }
                .scope_boxed()
            })
            .await?;
        Ok(found.filter(|found| found.workspace == workspace))
    }

    /// Microsoft as the mailbox's user, for work that no connection was asked for; `None` without a consent.
    pub async fn graph(&self, mailbox: &Mailbox) -> Result<Option<Graph>, Failure> {
        let (workspace, user) = (mailbox.workspace.as_str(), mailbox.user_name.as_str());
        let store = &self.services.store;
        let found: Result<_, StoreError> = store
            .read(|tx| {
                async move { connection::find_for(tx, workspace, user, Integration::SharedMailbox).await }
                    .scope_boxed()
            })
            .await;
        let works = |known: &Connection| matches!(known.status, Status::Connected | Status::Disconnecting);
        let connected = found?.filter(works);
        let microsoft = &self.services.microsoft;
        Ok(connected.map(|connection| {
            let gate =
                gate::of_mailbox(connection.tenant_id.as_deref().unwrap_or_default(), &mailbox.address);
            let cool_down = Some(microsoft.cool_down(&gate));
            microsoft.graph(&connection).behind(cool_down).of_mailbox(&mailbox.address)
        }))
    }

    /// Its tree has changed: the next look begins with it.
    pub async fn look_at_tree(&self, mailbox: &Mailbox) -> Result<(), Failure> {
        let id = mailbox.id;
        let store = &self.services.store;
        let written: Result<_, StoreError> = store
            .transaction("mailbox_tree", |tx| {
                async move { mailbox::tree_changed(tx, id).await }.scope_boxed()
            })
            .await;
        Ok(written?)
    }

    /// One folder cannot be followed at the moment: it is looked at less often, and the others as they are due.
    pub async fn folder_failed(&self, folder: &Folder, failure: &Failure) -> Result<(), Failure> {
        let (mailbox, code) = (folder.mailbox_id, failure.code.to_string());
        tracing::warn!(%mailbox, code, message = failure.message, "a folder cannot be followed at the moment");
        metrics::counter!("followthrough_mailbox_folder_failures_total", "code" => code).increment(1);
        let again_at = self.now() + self.pace() * 5;
        let store = &self.services.store;
        let written: Result<_, StoreError> = store
            .transaction("mailbox_folder_failed", |tx| {
                async move { folder::put_off(tx, folder, again_at).await }.scope_boxed()
            })
            .await;
        Ok(written?)
    }

    /// Microsoft forgot how far one of its folders was followed.
    pub fn lost_link(&self, mailbox: &Mailbox) {
        tracing::warn!(mailbox = %mailbox.id, "a folder's delta link was lost; what it holds is read again");
        metrics::counter!("followthrough_mailbox_links_lost_total").increment(1);
    }

    /// Its folders, Inbox and Sent Items first.
    pub async fn folders(&self, mailbox: &Mailbox) -> Result<Vec<Folder>, Failure> {
        let id = mailbox.id;
        let store = &self.services.store;
        let folders: Result<_, StoreError> =
            store.read(|tx| async move { folder::of_mailbox(tx, id).await }.scope_boxed()).await;
        Ok(folders?)
    }
}
