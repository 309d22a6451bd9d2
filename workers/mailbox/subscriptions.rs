//! The subscriptions of a shared mailbox: asked for, kept alive, made again.
//!
//! The invariant: nothing depends on them. A folder has one at most, every step is committed before and after the
//! call, and a Microsoft that is down or refuses costs nobody a poll. One that is made again has its folder polled at
//! once, so that there is no gap.
//! <https://learn.microsoft.com/graph/change-notifications-lifecycle-events>

use chrono::{DateTime, TimeDelta, Utc};
use followthrough::context::Context;
use followthrough::graph::subscription::NewSubscription;
use followthrough::graph::{Graph, GraphError};
use followthrough::intake::Callbacks;
use followthrough::mailbox::Mailboxes;
use followthrough::outcome::{Classify as _, Disposition, Failure};
use followthrough::store::folder::Folder;
use followthrough::store::mailbox::Mailbox;
use followthrough::store::subscription::{Subscription, asked, state};

/// Where mail comes in and where it goes out; all other folders are polled.
const FOLLOWED: [&str; 2] = ["inbox", "sentitems"];
/// A subscription may be gone without a word: it is looked for this often.
const CHECK: TimeDelta = TimeDelta::minutes(10);
/// Delivery stops with the token that was shown last, and that lives an hour or little more.
const TOKEN: TimeDelta = TimeDelta::minutes(40);
/// Renewing and reauthorizing within ten minutes is advised against.
const QUIET: TimeDelta = TimeDelta::minutes(10);
/// After a call that Microsoft did not answer well.
const SOON: TimeDelta = TimeDelta::minutes(1);
/// After it did not reach our address.
const UNREACHABLE: TimeDelta = TimeDelta::hours(1);
/// After it said no.
const REFUSED: TimeDelta = TimeDelta::days(7);

/// Looks after a mailbox's subscriptions, and says when it is to be done again (`tend_at`). Fails only where a person
/// must act, or the store does not answer.
pub async fn tend(cx: &Context, graph: &Graph, mailbox: &Mailbox) -> Result<(), Failure> {
    keep(&cx.mailboxes(), graph, mailbox).await
}

/// The same without a job around it.
pub async fn keep(ours: &Mailboxes, graph: &Graph, mailbox: &Mailbox) -> Result<(), Failure> {
    let graph = beside(graph, mailbox);
    let keeper = Keeper { ours, graph: &graph, mailbox };
    let reason = match ours.callbacks() {
        Callbacks::At { .. } => return keeper.keep().await,
        Callbacks::NoHttps => "no_https",
        Callbacks::Off => "push_off",
    };
    let next = match keeper.end_all(&mut Vec::new()).await {
        Ok(()) => ours.now() + CHECK,
        Err(trouble) => keeper.later(trouble)?,
    };
    ours.tended(mailbox, next, Err(reason)).await
}

/// Deletes all of a mailbox's subscriptions. Puts into `ended` Microsoft's ids and how each delete was answered, also
/// when not all could be deleted; 404 says that it was gone already. May be done again until it succeeds: ours are
/// forgotten only when all of them are gone.
pub async fn end_of(
    ours: &Mailboxes,
    graph: &Graph,
    mailbox: &Mailbox,
    ended: &mut Vec<(String, u16)>,
) -> Result<(), Failure> {
    let graph = beside(graph, mailbox);
    let all = Keeper { ours, graph: &graph, mailbox }.end_all(ended).await;
    all.map_err(|trouble| match trouble {
        Trouble::Microsoft(error) => error.into(),
        Trouble::Ours(failure) => failure,
    })
}

/// They have limits of their own: a mailbox is not left alone because its subscriptions are to be.
fn beside(graph: &Graph, mailbox: &Mailbox) -> Graph {
    graph.of_mailbox(&mailbox.address).behind(None)
}

/// Why a step could not be done.
enum Trouble {
    Microsoft(GraphError),
    Ours(Failure),
}

impl From<GraphError> for Trouble {
    fn from(error: GraphError) -> Self {
        Self::Microsoft(error)
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Ours(failure)
    }
}

struct Keeper<'a> {
    ours: &'a Mailboxes,
    /// Of the mailbox.
    graph: &'a Graph,
    mailbox: &'a Mailbox,
}

impl Keeper<'_> {
    async fn keep(&self) -> Result<(), Failure> {
        let folders = self.ours.folders(self.mailbox).await?;
        let followed = |folder: &&Folder| FOLLOWED.iter().any(|name| folder.is_well_known(name));
        let folders: Vec<&Folder> = folders.iter().filter(followed).collect();
        let known = self.ours.subscriptions(self.mailbox).await?;
        let mut times = Vec::new();
        for folder in &folders {
            let known = known.iter().find(|known| known.folder_id == folder.id);
            times.push(match self.look_after(folder, known).await {
                Ok(next) => next,
                Err(trouble) => self.later(trouble)?,
            });
        }
        for stray in known.iter().filter(|known| folders.iter().all(|folder| folder.id != known.folder_id)) {
            if let Err(trouble) = self.end_one(stray).await {
                times.push(self.later(trouble)?);
            }
        }
        let next = times.into_iter().min().unwrap_or(self.ours.now() + CHECK);
        self.ours.tended(self.mailbox, next, Ok(())).await
    }

    /// When to look again after trouble that passes, or that is about subscriptions alone; all else is the caller's.
    fn later(&self, trouble: Trouble) -> Result<DateTime<Utc>, Failure> {
        let theirs = |error: &GraphError| {
            let refused = matches!(error, GraphError::Refused(_)) && error.code() != "sign_in_again";
            refused || !matches!(error.disposition(), Disposition::Park(_))
        };
        match trouble {
            Trouble::Microsoft(error) if theirs(&error) => {
                self.ours.untended(self.mailbox, &error);
                let wait = error.cool_down().and_then(|wait| TimeDelta::from_std(wait).ok());
                Ok(self.ours.now() + wait.unwrap_or(SOON).max(SOON))
            }
            Trouble::Microsoft(error) => Err(error.into()),
            Trouble::Ours(failure) => Err(failure),
        }
    }

    /// Does what is due, and says when something is again.
    async fn look_after(
        &self,
        folder: &Folder,
        known: Option<&Subscription>,
    ) -> Result<DateTime<Utc>, Trouble> {
        let now = self.ours.now();
        let Some(known) = known else { return self.make(folder).await };
        match (known.state.as_str(), known.renew_at) {
            (state::LIVE, _) => {}
            (state::REFUSED, Some(again_at)) if again_at > now => return Ok(again_at),
            _ => return self.make(folder).await,
        }
        let Some(id) = known.graph_id.as_deref() else { return self.make(folder).await };
        let lapsed = known.expires_at.is_none_or(|at| at <= now);
        if lapsed || known.asked.as_deref() == Some(asked::CREATE) {
            return self.make(folder).await;
        }
        match self.refresh(known, id, now).await {
            // It is gone, or not ours any more: asking for it anew tells.
            Err(Trouble::Microsoft(error)) if is_gone(&error) => {
                if !error.is_not_found() {
                    // It may live on where nobody knows it any longer.
                    let _ = self.graph.unsubscribe(id).await;
                }
                self.make(folder).await
            }
            Err(trouble) => Err(trouble),
            Ok(true) => {
                let renewal = known.renew_at.filter(|at| *at > now);
                Ok(renewal.map_or(now + CHECK, |at| at.min(now + CHECK)))
            }
            Ok(false) => {
                // It tells somebody else since our address changed.
                self.graph.unsubscribe(id).await?;
                self.make(folder).await
            }
        }
    }

    /// One call at most; `false` when it sends its notifications elsewhere.
    async fn refresh(&self, known: &Subscription, id: &str, now: DateTime<Utc>) -> Result<bool, Trouble> {
        let due = |at: Option<DateTime<Utc>>, after: TimeDelta| at.is_none_or(|at| at + after <= now);
        let is_asked = known.asked.is_some();
        // A renewal presents the token, too.
        let renewal = is_asked || due(known.renew_at, TimeDelta::zero());
        if renewal && due(known.presented_at, QUIET) {
            let renewed = self.graph.renew_subscription(id).await?;
            self.ours.renewed(known, renewed.expiration_date_time).await?;
        } else if due(known.presented_at, TOKEN) {
            self.graph.reauthorize_subscription(id).await?;
            self.ours.reauthorized(known).await?;
        } else if is_asked || due(known.checked_at, CHECK) {
            let found = self.graph.subscription(id).await?;
            if found.notification_url.as_deref().is_some_and(|url| !self.is_here(url)) {
                return Ok(false);
            }
            self.ours.still_subscribed(known, found.expiration_date_time).await?;
        }
        Ok(true)
    }

    async fn make(&self, folder: &Folder) -> Result<DateTime<Utc>, Trouble> {
        let Callbacks::At { notifications, lifecycle } = self.ours.callbacks() else {
            return Ok(self.ours.now() + CHECK);
        };
        let resource = self.graph.messages_of(&folder.id);
        let wanted = self.ours.about_to_subscribe(self.mailbox, &folder.id).await?;
        let client_state = &wanted.client_state;
        let new = NewSubscription { resource: &resource, notifications, lifecycle, client_state };
        let mut answer = self.graph.subscribe(&new).await;
        if answer.as_ref().is_err_and(GraphError::is_conflict) {
            // Made by a create whose answer was lost. Its client state is not told, so it cannot be taken over.
            self.clear(|other| other.eq_ignore_ascii_case(&resource)).await?;
            answer = self.graph.subscribe(&new).await;
        }
        match answer {
            Ok(made) => {
                if !self.ours.subscribed(&wanted, &made.id, made.expiration_date_time).await? {
                    // Its row went while Microsoft was asked: nobody else would delete it.
                    self.graph.unsubscribe(&made.id).await?;
                }
                Ok(self.ours.now() + CHECK)
            }
            Err(error) => {
                let Some((code, wait)) = refusal(&error) else { return Err(error.into()) };
                self.ours.subscription_refused(&wanted, code, &error.to_string(), wait).await?;
                Ok(self.ours.now() + wait)
            }
        }
    }

    /// Deletes at Microsoft what tells us of these resources.
    async fn clear(&self, which: impl Fn(&str) -> bool) -> Result<Vec<(String, u16)>, Trouble> {
        let mut cleared = Vec::new();
        for one in self.graph.subscriptions().await? {
            if which(&one.resource) && one.notification_url.as_deref().is_some_and(|url| self.is_here(url)) {
                let status = self.graph.unsubscribe(&one.id).await?;
                cleared.push((one.id, status));
            }
        }
        Ok(cleared)
    }

    fn is_here(&self, url: &str) -> bool {
        matches!(self.ours.callbacks(), Callbacks::At { notifications, .. } if notifications.as_str() == url)
    }

    async fn end_one(&self, known: &Subscription) -> Result<(), Trouble> {
        if let Some(id) = &known.graph_id {
            self.graph.unsubscribe(id).await?;
        }
        Ok(self.ours.unsubscribed(known.id).await?)
    }

    async fn end_all(&self, ended: &mut Vec<(String, u16)>) -> Result<(), Trouble> {
        let known = self.ours.subscriptions(self.mailbox).await?;
        for id in known.iter().filter_map(|known| known.graph_id.clone()) {
            let status = self.graph.unsubscribe(&id).await?;
            ended.push((id, status));
        }
        // A create whose answer never came, or one that was refused in the place of another.
        if known.iter().any(|known| known.graph_id.is_none()) {
            let resources: Vec<String> =
                known.iter().map(|known| self.graph.messages_of(&known.folder_id)).collect();
            ended.extend(self.clear(|other| resources.iter().any(|r| r.eq_ignore_ascii_case(other))).await?);
        }
        // Only now, so that whoever has to begin again gives the whole account.
        for known in &known {
            self.ours.unsubscribed(known.id).await?;
        }
        if !known.is_empty() {
            self.ours.forget_notices(self.mailbox).await?;
        }
        Ok(())
    }
}

/// Microsoft knows it no more, or knows nothing of us.
fn is_gone(error: &GraphError) -> bool {
    error.code() != "sign_in_again"
        && error.status().is_some_and(|status| matches!(status.as_u16(), 403 | 404))
}

/// The reason and the wait, where Microsoft has made up its mind.
fn refusal(error: &GraphError) -> Option<(&'static str, TimeDelta)> {
    let GraphError::Refused(refused) = error else { return None };
    let passes = matches!(error.disposition(), Disposition::Retry { .. }) && refused.status != 409;
    if passes || !refused.status.is_client_error() || error.code() == "sign_in_again" {
        return None;
    }
    // What Exchange refuses is an ExtensionError; any other 400 is about our address or its handshake.
    let ours = refused.status == 400 && refused.code.as_deref() != Some("ExtensionError");
    Some(if ours { ("webhook_unreachable", UNREACHABLE) } else { ("webhook_unsupported", REFUSED) })
}
