//! The tree of folders, as it was seen last.
//!
//! The invariant: a folder that was not seen is gone only when the whole tree was read without a fault and nobody else
//! wrote it down meanwhile; of a mailbox that is being ended nothing is written down.

use std::collections::HashSet;

use scoped_futures::ScopedFutureExt;

use super::Mailboxes;
use crate::outcome::Failure;
use crate::store::folder::{self, Seen};
use crate::store::mailbox::{self, Mailbox};
use crate::store::{StoreError, message};

impl Mailboxes {
    /// Writes down the whole tree, read since `mailbox` was: new folders, renamed ones, those that are gone.
    pub async fn saw_tree(&self, mailbox: &Mailbox, seen: &[Seen]) -> Result<(), Failure> {
        let (id, now) = (mailbox.id, self.now());
        let store = &self.services.store;
        let written: Result<_, StoreError> = store
            .transaction("mailbox_tree", |tx| {
                async move {
                    if !mailbox::hold(tx, id).await? || mailbox::get(tx, id).await?.tree_at != mailbox.tree_at
                    {
                        return Ok(());
                    }
                    let known = folder::of_mailbox(tx, id).await?;
                    for one in seen {
                        folder::saw(tx, id, one, now).await?;
                    }
                    let there: HashSet<&str> = seen.iter().map(|one| one.id.as_str()).collect();
                    for lost in known.iter().filter(|folder| !there.contains(folder.id.as_str())) {
                        folder::gone(tx, id, &lost.id, now).await?;
                        message::doubt_folder(tx, id, &lost.id, now).await?;
                    }
                    mailbox::tree_seen(tx, id, now).await
                }
                .scope_boxed()
            })
            .await;
        Ok(written?)
    }
}
