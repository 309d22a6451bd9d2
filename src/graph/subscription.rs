//! Subscriptions to change notifications, made and kept with the user's own token.
//!
//! The invariant: nothing is assumed of a subscription but what Microsoft answered, its end above all. They stand
//! beside the mailboxes, not below one.
//! <https://learn.microsoft.com/graph/api/resources/subscription>

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use http::Method;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::json;
use url::Url;

use super::{Graph, GraphError, moment, parse};
use crate::http::{Call, Repeat};

/// Minutes to ask for: what is allowed today, what was allowed before, and what every cloud grants.
const LIFETIMES: [i64; 3] = [10_080, 4_230, 60];
/// Mail is polled whatever becomes of a subscription, so a call that hangs is given up soon and made again at a later
/// look, not here.
const BRIEF: Duration = Duration::from_secs(10);
/// Two handshakes, for each of which Microsoft waits 10 s, and what it does itself.
const HANDSHAKES: Duration = Duration::from_secs(30);
const CHANGES: &str = "created,updated,deleted";

/// As Microsoft describes it. The client state is in no answer but that to the create.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subscription {
    pub id: String,
    #[serde(default)]
    pub resource: String,
    pub notification_url: Option<String>,
    pub expiration_date_time: DateTime<Utc>,
}

/// What is asked for.
pub struct NewSubscription<'a> {
    pub resource: &'a str,
    pub notifications: &'a Url,
    pub lifecycle: &'a Url,
    pub client_state: &'a SecretString,
}

impl Graph {
    /// The messages of one of this mailbox's folders, as a subscription names them.
    pub fn messages_of(&self, folder: &str) -> String {
        let url = self.url(&["mailFolders", folder, "messages"]);
        url.path().strip_prefix(self.root.path()).unwrap_or_default().trim_start_matches('/').to_owned()
    }

    fn subscriptions_url(&self, path: &[&str]) -> Url {
        let mut url = Url::clone(&self.root);
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.push("subscriptions").extend(path);
        }
        url
    }

    /// Makes it, as long-lived as Microsoft allows. The handshakes arrive while this waits.
    pub async fn subscribe(&self, new: &NewSubscription<'_>) -> Result<Subscription, GraphError> {
        const NAME: &str = "graph.create_subscription";
        self.longest(|until| {
            let body = json!({
                "changeType": CHANGES,
                "notificationUrl": new.notifications.as_str(),
                "lifecycleNotificationUrl": new.lifecycle.as_str(),
                "resource": new.resource,
                "expirationDateTime": moment(until),
                "clientState": new.client_state.expose_secret(),
                "latestSupportedTlsVersion": "v1_2",
            });
            (Call { timeout: HANDSHAKES, ..Call::post(NAME, self.subscriptions_url(&[])).json(&body) }, 201)
        })
        .await
    }

    /// Lengthens its life, and presents the user's token anew.
    pub async fn renew_subscription(&self, id: &str) -> Result<Subscription, GraphError> {
        const NAME: &str = "graph.renew_subscription";
        self.longest(|until| {
            let call = brief(Call::new(NAME, Method::PATCH, self.subscriptions_url(&[id])));
            (call.json(&json!({"expirationDateTime": moment(until)})), 200)
        })
        .await
    }

    /// Asks for less where so much is too long: the code says no more than that something is wrong, and the number is
    /// in the message alone.
    async fn longest(&self, call: impl Fn(DateTime<Utc>) -> (Call, u16)) -> Result<Subscription, GraphError> {
        let mut lifetimes = LIFETIMES.into_iter().peekable();
        loop {
            let minutes = lifetimes.next().unwrap_or(60);
            let (call, expected) = call(self.clock.now() + TimeDelta::minutes(minutes));
            let name = call.name;
            match self.send(call, &[expected]).await {
                Err(error) if error.may_be_too_long() && lifetimes.peek().is_some() => {}
                answer => return parse(name, &answer?, true),
            }
        }
    }

    /// Presents the user's token anew.
    pub async fn reauthorize_subscription(&self, id: &str) -> Result<(), GraphError> {
        let url = self.subscriptions_url(&[id, "reauthorize"]);
        let call = brief(Call::post("graph.reauthorize_subscription", url));
        self.send(call, &[204]).await.map(drop)
    }

    pub async fn subscription(&self, id: &str) -> Result<Subscription, GraphError> {
        const NAME: &str = "graph.get_subscription";
        let answer = self.send(brief(Call::get(NAME, self.subscriptions_url(&[id]))), &[200]).await?;
        parse(NAME, &answer, false)
    }

    /// All that this app made for this user, whatever mailbox they are for.
    pub async fn subscriptions(&self) -> Result<Vec<Subscription>, GraphError> {
        let page = |url| brief(Call::get("graph.list_subscriptions", url));
        Ok(self.list_by(page, self.subscriptions_url(&[]), usize::MAX).await?.0)
    }

    /// The status it was answered with: 404 says that it was gone, which is as good.
    pub async fn unsubscribe(&self, id: &str) -> Result<u16, GraphError> {
        let url = self.subscriptions_url(&[id]);
        let call = brief(Call::new("graph.delete_subscription", Method::DELETE, url));
        match self.send(call, &[204]).await {
            Ok(answer) => Ok(answer.status.as_u16()),
            Err(error) if error.is_not_found() => Ok(404),
            Err(error) => Err(error),
        }
    }
}

fn brief(call: Call) -> Call {
    Call { timeout: BRIEF, repeat: Repeat::Once, ..call }
}

impl GraphError {
    /// The code for a lifetime beyond what is allowed, among other things.
    /// <https://github.com/microsoftgraph/microsoft-graph-docs-contrib/issues/7726>
    fn may_be_too_long(&self) -> bool {
        matches!(self, Self::Refused(refusal)
            if refusal.status == 400 && refusal.code.as_deref() == Some("ExtensionError"))
    }
}
