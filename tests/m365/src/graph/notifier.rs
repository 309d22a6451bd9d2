//! Tells subscribers what changed (<https://learn.microsoft.com/graph/change-notifications-delivery-webhooks>): 2xx within
//! 3 seconds the first time, 10 on retries, exponential back-off. Duplicates, delays, drops and silence are switches.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use rand::Rng as _;
use serde_json::{Value, json};

use super::ids::Kind;
use super::message::{View, stamp};
use super::odata;
use super::state::{GraphState, Switches};
use super::store::{Change, Happened};
use super::subscriptions::Subscription;
use crate::Sim;

/// Looked for changes this often while anyone is subscribed.
const BEAT: Duration = Duration::from_millis(20);

/// Starts the notifier when there is someone to tell; forgets changes when there is not.
pub(crate) fn wake(sim: &Sim) {
    let mut graph = sim.graph();
    if graph.subscriptions.live.is_empty() {
        graph.take_changes();
        return;
    }
    if graph.subscriptions.notifier_runs {
        return;
    }
    graph.subscriptions.notifier_runs = true;
    drop(graph);
    let sim = sim.clone();
    tokio::spawn(async move {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().unwrap_or_default();
        loop {
            tokio::time::sleep(BEAT).await;
            let now = sim.now();
            let due = {
                let mut graph = sim.graph();
                graph.settle(now);
                graph.subscriptions.live.retain(|one| one.expires > now);
                if graph.subscriptions.live.is_empty() {
                    graph.subscriptions.notifier_runs = false;
                    return;
                }
                due(&mut graph, now)
            };
            let switches = sim.graph().switches.clone();
            for (one, event) in reauthorize(&sim, now) {
                lifecycle(&sim, &one, event);
            }
            for (url, body) in due {
                deliver(&sim, &client, &switches, &url, &body);
            }
        }
    });
}

/// One POST per address for all that is to be told there.
fn due(graph: &mut GraphState, now: DateTime<Utc>) -> Vec<(String, Value)> {
    let changes = graph.take_changes();
    let mut told: Vec<(String, Vec<Value>)> = Vec::new();
    let live = graph.subscriptions.live.clone();
    let silent = graph.switches.notify_silent;
    for change in &changes {
        for one in live.iter().filter(|one| !one.silent && !silent) {
            let Some(item) = item(graph, one, change) else { continue };
            if let Some(found) = graph.subscriptions.live.iter_mut().find(|found| found.id == one.id) {
                // "withheld … retried up to 4 hours" while the token has lapsed.
                if found.token_until <= now {
                    found.held.push((now, item));
                    continue;
                }
                found.delivered += 1;
            }
            match told.iter_mut().find(|(url, _)| *url == one.url) {
                Some((_, items)) => items.push(item),
                None => told.push((one.url.clone(), vec![item])),
            }
        }
    }
    for one in graph.subscriptions.live.iter_mut().filter(|one| one.token_until > now && !one.held.is_empty())
    {
        let released: Vec<Value> = std::mem::take(&mut one.held).into_iter().map(|(_, item)| item).collect();
        one.delivered += released.len() as u64;
        told.push((one.url.clone(), released));
    }
    told.into_iter().map(|(url, items)| (url, json!({"value": items}))).collect()
}

/// Who has to be asked for a fresh token, every 15 minutes from a quarter of an hour before the old one lapses; what waited
/// longer than four hours is lost, and `missed` says so.
fn reauthorize(sim: &Sim, now: DateTime<Utc>) -> Vec<(Subscription, &'static str)> {
    let mut graph = sim.graph();
    let mut asked = Vec::new();
    let quarter = TimeDelta::minutes(15);
    for one in graph.subscriptions.live.iter_mut().filter(|one| !one.silent) {
        if one.token_until - quarter <= now && one.asked_again.is_none_or(|at| at + quarter <= now) {
            one.asked_again = Some(now);
            asked.push((one.clone(), "reauthorizationRequired"));
        }
        let before = one.held.len();
        one.held.retain(|(at, _)| *at + TimeDelta::hours(4) > now);
        if one.held.len() < before {
            asked.push((one.clone(), "missed"));
        }
    }
    asked
}

/// The notification for a change, if this subscription wants it.
fn item(graph: &mut GraphState, one: &Subscription, change: &Change) -> Option<Value> {
    if one.mailbox != change.mailbox || one.kind != change.kind {
        return None;
    }
    if one.folder.is_some_and(|folder| change.folder != Some(folder)) {
        return None;
    }
    let mailbox = graph.open(&one.mailbox);
    let mut happened = change.happened;
    // With a filter, leaving it is a deletion (outlook-change-notifications-overview).
    if let Some(filter) = &one.filter
        && let Some(message) = mailbox.messages.get(&change.item)
        && happened != Happened::Removed
    {
        let view = View { mailbox, message, immutable: true, text: false };
        if !odata::matches(filter, &view) {
            if happened == Happened::Created {
                return None;
            }
            happened = Happened::Removed;
        }
    }
    let kind = match happened {
        Happened::Created => "created",
        Happened::Updated => "updated",
        Happened::Removed => "deleted",
    };
    if !one.change_type.split(',').any(|wanted| wanted.trim() == kind) {
        return None;
    }
    let id = mailbox.id(change.kind, change.item, (!one.immutable).then_some(change.stay));
    let (set, entity) = match change.kind {
        Kind::Event => ("Events", "Event"),
        Kind::Contact => ("Contacts", "Contact"),
        _ => ("Messages", "Message"),
    };
    let resource = format!("Users/{}/{}/{id}", one.owner, set);
    let version = mailbox.messages.get(&change.item).map_or(0, |message| message.change);
    Some(json!({
        "subscriptionId": one.id,
        "subscriptionExpirationDateTime": stamp(one.expires),
        "changeType": kind,
        "resource": resource,
        "resourceData": {
            "@odata.type": format!("#Microsoft.Graph.{entity}"),
            "@odata.id": resource,
            "@odata.etag": format!("W/\"{}\"", mailbox.change_key(version)),
            "id": id,
        },
        "clientState": one.client_state,
        "tenantId": one.tenant,
    }))
}

fn deliver(sim: &Sim, client: &reqwest::Client, switches: &Switches, url: &str, body: &Value) {
    for _ in 0..switches.notify_times.max(1) {
        if sim.rng().random_range(0..100) < u32::from(switches.notify_drop_percent) {
            continue;
        }
        let (client, url, body) = (client.clone(), url.to_owned(), body.clone());
        let delay = Duration::from_millis(switches.notify_delay_ms);
        let sim = sim.clone();
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            // Retried for up to four hours at Microsoft; here until it is clear that nobody is there.
            for attempt in 0..8_u32 {
                sim.graph().subscriptions.attempts += 1;
                let wait = Duration::from_secs(if attempt == 0 { 3 } else { 10 });
                let sent = client.post(&url).timeout(wait).json(&body).send().await;
                if sent.is_ok_and(|response| response.status().is_success()) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(250 << attempt)).await;
            }
        });
    }
}

pub(crate) fn lifecycle(sim: &Sim, one: &Subscription, event: &str) {
    let Some(url) = one.lifecycle_url.clone() else { return };
    let body = json!({"value": [{
        "lifecycleEvent": event,
        "subscriptionId": one.id,
        "subscriptionExpirationDateTime": stamp(one.expires),
        "resource": one.resource,
        "clientState": one.client_state,
        "tenantId": one.tenant,
        "organizationId": one.tenant,
    }]});
    let client = reqwest::Client::new();
    deliver(sim, &client, &Switches { notify_drop_percent: 0, ..Switches::default() }, &url, &body);
}

/// "echo … the decoded validation token as text/plain with 200 within 10 seconds": anything else fails.
pub(crate) async fn handshake(url: &str, request_id: &str) -> Result<(), String> {
    let token = format!(
        "Validation: Testing client application reachability for subscription Request-Id: {request_id}"
    );
    let separator = if url.contains('?') { '&' } else { '?' };
    let encoded: String = url::form_urlencoded::byte_serialize(token.as_bytes()).collect();
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(10))
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| error.to_string())?;
    let response = client
        .post(format!("{url}{separator}validationToken={encoded}"))
        .header("content-type", "text/plain; charset=utf-8")
        .header("content-length", "0")
        .send()
        .await
        .map_err(|error| {
            if error.is_timeout() {
                "timed out.".to_owned()
            } else {
                "failed. Notification endpoint must respond with 200 OK to validation request.".to_owned()
            }
        })?;
    if response.status().as_u16() != 200 {
        return Err(format!("failed. Response must be 200 OK, was {}.", response.status().as_u16()));
    }
    let kind = response
        .headers()
        .get("content-type")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    if !kind.to_ascii_lowercase().starts_with("text/plain") {
        return Err(format!("failed. The content type must be text/plain, was '{kind}'."));
    }
    let echoed = response.bytes().await.map_err(|_| "failed. The body could not be read.".to_owned())?;
    if echoed != token.as_bytes() {
        return Err("failed. The validation token was not echoed exactly.".to_owned());
    }
    Ok(())
}
