//! What is known of a mailbox's subscriptions, changed step by step around the calls to Microsoft.
//!
//! The invariant: each step is a commit of its own, before the call or after it, and a lifecycle event that comes in
//! between is never overwritten.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use scoped_futures::{ScopedBoxFuture, ScopedFutureExt};
use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{Mailboxes, push};
use crate::graph::GraphError;
use crate::intake::Callbacks;
use crate::outcome::Failure;
use crate::store::mailbox::{self, Mailbox};
use crate::store::subscription::{self, Subscription};
use crate::store::{StoreError, Tx, folder, notice};

/// A subscription that is about to be asked for.
pub struct Wanted {
    pub id: Uuid,
    /// For Microsoft alone; the store has its hash.
    pub client_state: SecretString,
    mailbox: Uuid,
    folder: String,
}

impl Mailboxes {
    /// Where Microsoft sends notifications.
    pub fn callbacks(&self) -> &Callbacks {
        &self.services.callbacks
    }

    pub async fn subscriptions(&self, mailbox: &Mailbox) -> Result<Vec<Subscription>, Failure> {
        let (id, store) = (mailbox.id, &self.services.store);
        let found: Result<_, StoreError> =
            store.read(|tx| async move { subscription::of_mailbox(tx, id).await }.scope_boxed()).await;
        Ok(found?)
    }

    /// Before Microsoft is asked for it. Takes the place of whatever the folder had. Fails when the mailbox is being ended:
    /// nobody would delete what is made now.
    pub async fn about_to_subscribe(&self, mailbox: &Mailbox, folder: &str) -> Result<Wanted, Failure> {
        let secret: [u8; 32] = rand::random();
        let client_state = BASE64_URL_SAFE_NO_PAD.encode(secret);
        let hash: [u8; 32] = Sha256::digest(client_state.as_bytes()).into();
        let (now, mailbox) = (self.now(), mailbox.id);
        let id = self
            .committed(|tx| {
                async move {
                    if !mailbox::hold(tx, mailbox).await? {
                        return Ok(None);
                    }
                    subscription::create(tx, mailbox, folder, &hash, now).await.map(Some)
                }
                .scope_boxed()
            })
            .await?;
        let id = id.ok_or_else(|| {
            Failure::retry("mailbox_disconnecting", "the mailbox is being disconnected: nothing new is begun")
        })?;
        Ok(Wanted { id, client_state: client_state.into(), mailbox, folder: folder.to_owned() })
    }

    /// Microsoft accepted it. What came before it is polled for at once, so that there is no gap. `false` when nobody
    /// wants it any more.
    pub async fn subscribed(
        &self,
        wanted: &Wanted,
        graph_id: &str,
        expires_at: DateTime<Utc>,
    ) -> Result<bool, Failure> {
        let now = self.now();
        let renew_at = half_life(now, expires_at);
        self.committed(|tx| {
            async move {
                if !subscription::accepted(tx, wanted.id, graph_id, expires_at, renew_at, now).await? {
                    return Ok(false);
                }
                folder::noticed(tx, &[(wanted.mailbox, wanted.folder.clone())], now).await?;
                Ok(true)
            }
            .scope_boxed()
        })
        .await
    }

    /// Microsoft refused it, and is asked again after `wait`.
    pub async fn subscription_refused(
        &self,
        wanted: &Wanted,
        code: &str,
        message: &str,
        wait: TimeDelta,
    ) -> Result<(), Failure> {
        let now = self.now();
        self.committed(|tx| {
            async move { subscription::refused(tx, wanted.id, code, message, now + wait, now).await }
                .scope_boxed()
        })
        .await
    }

    /// Its life is longer now.
    pub async fn renewed(&self, known: &Subscription, expires_at: DateTime<Utc>) -> Result<(), Failure> {
        let now = self.now();
        let (expires_at, renew_at) = (Some(expires_at), Some(half_life(now, expires_at)));
        let known = &Subscription { expires_at, renew_at, ..known.clone() };
        self.committed(|tx| async move { subscription::presented(tx, known, now).await }.scope_boxed()).await
    }

    /// Microsoft was shown a fresh token for it.
    pub async fn reauthorized(&self, known: &Subscription) -> Result<(), Failure> {
        let now = self.now();
        self.committed(|tx| async move { subscription::presented(tx, known, now).await }.scope_boxed()).await
    }

    /// Microsoft knows it still, and this is its end.
    pub async fn still_subscribed(
        &self,
        known: &Subscription,
        expires_at: DateTime<Utc>,
    ) -> Result<(), Failure> {
        let now = self.now();
        let known = &Subscription { expires_at: Some(expires_at), ..known.clone() };
        self.committed(|tx| async move { subscription::checked(tx, known, now).await }.scope_boxed()).await
    }

    /// It is no more.
    pub async fn unsubscribed(&self, id: Uuid) -> Result<(), Failure> {
        self.committed(|tx| async move { subscription::remove(tx, id).await }.scope_boxed()).await
    }

    /// Nothing of what notifications told is waited for any longer.
    pub async fn forget_notices(&self, mailbox: &Mailbox) -> Result<(), Failure> {
        let id = mailbox.id;
        self.committed(|tx| async move { notice::forget(tx, id).await }.scope_boxed()).await
    }

    /// Microsoft did not answer well; it is asked again, and the polls go on.
    pub fn untended(&self, mailbox: &Mailbox, error: &GraphError) {
        tracing::warn!(mailbox = %mailbox.id, %error, "a subscription could not be looked after");
    }

    /// The end of a round of looking after them: where the mailbox stands, and when to look again. `Err` is the reason
    /// why there are none. What a lifecycle event asked for meanwhile is due at once.
    pub async fn tended(
        &self,
        mailbox: &Mailbox,
        next: DateTime<Utc>,
        without: Result<(), &'static str>,
    ) -> Result<(), Failure> {
        let (now, id) = (self.now(), mailbox.id);
        self.committed(|tx| {
            async move {
                // First of all, so that the event of a moment ago is seen below, and the next one overwrites this.
                mailbox::tend(tx, id, next).await?;
                let asked = subscription::of_mailbox(tx, id).await?.iter().any(|one| one.asked.is_some());
                if asked {
                    mailbox::tend(tx, id, next.min(now + TimeDelta::minutes(1))).await?;
                }
                match without {
                    Ok(()) => push::stand(tx, id, now).await,
                    Err(reason) => push::stand_without(tx, id, reason, now).await,
                }
            }
            .scope_boxed()
        })
        .await
    }

    async fn committed<'a, T, F>(&self, work: F) -> Result<T, Failure>
    where
        F: for<'t> Fn(&'t mut Tx) -> ScopedBoxFuture<'a, 't, Result<T, StoreError>> + Send + 'a,
    {
        Ok(self.services.store.transaction("subscription", work).await?)
    }
}

/// Renewed at half life, a little earlier here and there, so that those made together are not renewed together.
fn half_life(now: DateTime<Utc>, expires_at: DateTime<Utc>) -> DateTime<Utc> {
    let half = (expires_at - now).max(TimeDelta::zero()) / 2;
    now + half - half / 100 * rand::random_range(0..=10)
}
