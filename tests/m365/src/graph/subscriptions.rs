//! Subscriptions (<https://learn.microsoft.com/graph/api/subscription-post-subscriptions>): the handshake runs while the
//! POST is still open, and a delegated token may subscribe to the signed-in person's own mailbox only. What happens with
//! another's mailbox all the same differs between tenants, so it is a switch: refused, or accepted and mute.

use chrono::{DateTime, TimeDelta, Utc};
use http::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::access;
use super::call::{Call, Segment};
use super::folders::select;
use super::ids::Kind;
use super::message::stamp;
use super::notifier;
use super::odata::{Filter, Options};
use super::only;
use super::refusal::{Answer, Refusal, Reply};
use super::schema;
use super::state::SharedSubscribe;
use super::subscription_target::{Target, target};
use crate::Sim;

#[derive(Debug, Clone)]
pub(crate) struct Subscription {
    pub(crate) id: String,
    pub(crate) app: String,
    pub(crate) tenant: String,
    pub(crate) creator: String,
    pub(crate) change_type: String,
    pub(crate) resource: String,
    pub(crate) url: String,
    pub(crate) lifecycle_url: Option<String>,
    pub(crate) client_state: Option<String>,
    pub(crate) expires: DateTime<Utc>,
    /// `Prefer: IdType` of the create call decides the ids of every later notification.
    pub(crate) immutable: bool,
    pub(crate) mailbox: String,
    pub(crate) owner: String,
    pub(crate) folder: Option<u64>,
    /// Whether it hears of messages, events or contacts.
    pub(crate) kind: Kind,
    pub(crate) shape: Shape,
    pub(crate) filter: Option<Filter>,
    pub(crate) silent: bool,
    pub(crate) delivered: u64,
    /// The token presented last lapses then: until another is presented, notifications wait.
    pub(crate) token_until: DateTime<Utc>,
    pub(crate) asked_again: Option<DateTime<Utc>>,
    pub(crate) held: Vec<(DateTime<Utc>, Value)>,
}

/// What is shown again as it was sent.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    tls: String,
    resource_data: Value,
    certificate: Option<String>,
    certificate_id: Option<String>,
}

impl Shape {
    fn plain() -> Self {
        Self { tls: "v1_2".into(), resource_data: Value::Null, certificate: None, certificate_id: None }
    }

    /// <https://learn.microsoft.com/graph/api/resources/subscription>
    fn read(map: &serde_json::Map<String, Value>) -> Result<Self, Refusal> {
        let tls = text(map, "latestSupportedTlsVersion").unwrap_or_else(|| "v1_2".into());
        if !matches!(tls.as_str(), "v1_0" | "v1_1" | "v1_2" | "v1_3") {
            return Err(invalid("The 'latestSupportedTlsVersion' is invalid."));
        }
        let resource_data = map.get("includeResourceData").cloned().unwrap_or_default();
        let (certificate, certificate_id) =
            (text(map, "encryptionCertificate"), text(map, "encryptionCertificateId"));
        if resource_data == true && (certificate.is_none() || certificate_id.is_none()) {
            return Err(invalid(
                "The 'encryptionCertificate' and 'encryptionCertificateId' are required when 'includeResourceData' is true.",
            ));
        }
        Ok(Self { tls, resource_data, certificate, certificate_id })
    }
}

#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    pub(crate) live: Vec<Subscription>,
    pub(crate) notifier_runs: bool,
    pub(crate) attempts: u64,
}

impl Subscriptions {
    pub(crate) fn report(&self) -> Value {
        self.live
            .iter()
            .map(|one| {
                let mut shown = one.shown(true);
                shown["silent"] = one.silent.into();
                shown["delivered"] = one.delivered.into();
                shown
            })
            .collect()
    }

    pub(crate) fn remove(&mut self, id: &str) -> bool {
        let before = self.live.len();
        self.live.retain(|one| one.id != id);
        self.live.len() < before
    }
}

impl Subscription {
    fn shown(&self, with_state: bool) -> Value {
        json!({
            "id": self.id, "resource": self.resource, "applicationId": self.app, "changeType": self.change_type,
            "clientState": if with_state { self.client_state.clone() } else { None },
            "notificationUrl": self.url, "notificationQueryOptions": Value::Null,
            "lifecycleNotificationUrl": self.lifecycle_url, "expirationDateTime": stamp(self.expires),
            "creatorId": self.creator, "includeResourceData": self.shape.resource_data, "latestSupportedTlsVersion": self.shape.tls,
            "encryptionCertificate": self.shape.certificate, "encryptionCertificateId": self.shape.certificate_id,
            "notificationUrlAppId": Value::Null, "notificationContentType": "application/json",
        })
    }
}

pub(crate) async fn handle(sim: &Sim, call: &Call) -> Answer {
    expire(sim, call.now);
    match &call.segments[1..] {
        [] if call.method == Method::POST => create(sim, call).await,
        [] => {
            only(call, &[Method::GET])?;
            let options = Options::read(&call.query, "subscription")?;
            let graph = sim.graph();
            let mine = |one: &&Subscription| one.app == call.caller.app && one.creator == call.caller.oid;
            let value: Vec<Value> = graph
                .subscriptions
                .live
                .iter()
                .filter(mine)
                .map(|one| select(one.shown(false), &options, &[]))
                .collect();
            Ok(Reply::json(
                200,
                json!({"@odata.context": format!("{}/$metadata#subscriptions{}", call.base, options.context_suffix()), "value": value}),
            ))
        }
        [id] => match call.method {
            Method::GET => {
                let options = Options::read(&call.query, "subscription")?;
                let shown = select(find(sim, call, id)?.shown(false), &options, &[]);
                Ok(entity(call, shown, 200, &options))
            }
            Method::PATCH => renew(sim, call, id).await,
            Method::DELETE => {
                let one = find(sim, call, id)?;
                sim.graph().subscriptions.remove(&one.id);
                Ok(Reply::empty(204))
            }
            _ => Err(Refusal::method()),
        },
        [id, step] if step.name == "reauthorize" => {
            only(call, &[Method::POST])?;
            super::send::wants_length(call)?;
            let one = find(sim, call, id)?;
            present(sim, call, &one.id);
            Ok(Reply::empty(204))
        }
        [_, step, ..] => Err(Refusal::no_segment(&step.raw)),
    }
}

fn entity(call: &Call, mut body: Value, status: u16, options: &Options) -> Reply {
    body["@odata.context"] =
        format!("{}/$metadata#subscriptions{}/$entity", call.base, options.context_suffix()).into();
    Reply::json(status, body)
}

fn find(sim: &Sim, call: &Call, id: &Segment) -> Result<Subscription, Refusal> {
    let graph = sim.graph();
    let found = graph
        .subscriptions
        .live
        .iter()
        .find(|one| one.id == id.name && one.app == call.caller.app && one.creator == call.caller.oid);
    found.cloned().ok_or_else(|| Refusal::new(404, "ResourceNotFound", "The object was not found."))
}

fn expire(sim: &Sim, now: DateTime<Utc>) {
    sim.graph().subscriptions.live.retain(|one| one.expires > now);
}

fn text(map: &serde_json::Map<String, Value>, name: &str) -> Option<String> {
    map.get(name).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::bad("InvalidRequest", message)
}

/// Longest 10,080 minutes; below 45 minutes it is raised to 45 (<https://learn.microsoft.com/graph/api/resources/subscription>).
fn expiration(sim: &Sim, call: &Call, wanted: Option<String>) -> Result<DateTime<Utc>, Refusal> {
    let wanted = wanted.ok_or_else(|| invalid("The 'expirationDateTime' is required."))?;
    let at = DateTime::parse_from_rfc3339(&wanted)
        .map_err(|_| invalid("The 'expirationDateTime' is malformed."))?
        .to_utc();
    let most = sim.graph().switches.subscription_minutes;
    if at <= call.now {
        return Err(invalid("Subscription expiration can't be in the past."));
    }
    if at > call.now + TimeDelta::minutes(most) {
        // microsoftgraph/microsoft-graph-docs-contrib#7726
        return Err(Refusal::bad(
            "ExtensionError",
            format!("Subscription expiration can only be {most} minutes in the future."),
        ));
    }
    Ok(at.max(call.now + TimeDelta::minutes(45)))
}

/// https, or this machine: the only address a simulator can reach.
fn check_url(url: &str) -> Result<(), Refusal> {
    let parsed = url::Url::parse(url).map_err(|_| invalid("The notification URL is malformed."))?;
    let local = matches!(parsed.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
    if parsed.scheme() != "https" && !local {
        return Err(invalid("The notification URL must start with 'https'."));
    }
    Ok(())
}

/// Whether this token may subscribe there: whether it is one's own mailbox, and what the switch says when not.
fn permit(sim: &Sim, call: &Call, target: &Target) -> Result<(bool, SharedSubscribe), Refusal> {
    let own = target.owner.oid == call.caller.oid;
    // A read scope is asked for; write scopes are not meant to satisfy it (subscription-post-subscriptions, permissions).
    let scopes: &[&str] = match (target.kind, own) {
        (Kind::Event, true) => &["Calendars.Read", "Calendars.ReadBasic", "Calendars.ReadWrite"],
        (Kind::Event, false) => &["Calendars.Read.Shared", "Calendars.ReadWrite.Shared"],
        (Kind::Contact, true) => &["Contacts.Read"],
        (Kind::Contact, false) => &["Contacts.Read.Shared"],
        (_, true) => &["Mail.Read", "Mail.ReadBasic"],
        (_, false) => &["Mail.Read.Shared", "Mail.ReadBasic.Shared", "Mail.ReadWrite.Shared"],
    };
    let forbidden = || {
        Refusal::new(
            403,
            "ExtensionError",
            "Operation: Create; Exception: [Status Code: Forbidden; Reason: The request is not authorized for this user or application.]",
        )
    };
    if !call.caller.has(scopes) {
        return Err(forbidden());
    }
    let shared = sim.graph().switches.shared_subscribe;
    if !own
        && (shared == SharedSubscribe::Refuse
            || !sim.directory().right(&target.owner.oid, &call.caller.oid).full_access)
    {
        return Err(forbidden());
    }
    Ok((own, shared))
}

async fn create(sim: &Sim, call: &Call) -> Answer {
    call.wants_json()?;
    let mut map = schema::object(&call.body)?;
    schema::entity("subscription", &mut map)?;
    let required = |name: &str| text(&map, name).ok_or_else(|| invalid(format!("The '{name}' is required.")));
    let (change_type, url, resource) =
        (required("changeType")?, required("notificationUrl")?, required("resource")?);
    if change_type.split(',').any(|kind| !matches!(kind.trim(), "created" | "updated" | "deleted")) {
        return Err(invalid("The 'changeType' is invalid."));
    }
    let lifecycle_url = text(&map, "lifecycleNotificationUrl");
    let client_state = text(&map, "clientState");
    // 128 on the subscription page; the notification type page says 255.
    if client_state.as_ref().is_some_and(|state| state.chars().count() > 128) {
        return Err(invalid("The 'clientState' must not be longer than 128 characters."));
    }
    check_url(&url)?;
    if let Some(url) = &lifecycle_url {
        check_url(url)?;
    }
    let shape = Shape::read(&map)?;
    let expires = expiration(sim, call, text(&map, "expirationDateTime"))?;
    let target = target(sim, call, &resource)?;
    let (own, shared) = permit(sim, call, &target)?;
    let mailbox = access::address(&target.owner);
    {
        let graph = sim.graph();
        let live = &graph.subscriptions.live;
        let twin = live.iter().find(|one| {
            one.app == call.caller.app
                && one.creator == call.caller.oid
                && one.change_type == change_type
                && one.resource == resource
        });
        if let Some(twin) = twin {
            return Err(Refusal::new(
                409,
                "ExtensionError",
                format!("Subscription Id {} already exists for the requested combination", twin.id),
            ));
        }
        // <https://learn.microsoft.com/graph/outlook-change-notifications-overview>
        if live.iter().filter(|one| one.mailbox == mailbox).count() >= 1000 {
            return Err(Refusal::new(
                403,
                "ExtensionError",
                "The mailbox has reached its maximum number of 1000 subscriptions.",
            ));
        }
    }
    // Both addresses are asked, twice when they are the same.
    for url in std::iter::once(&url).chain(&lifecycle_url) {
        notifier::handshake(url, &sim.guid())
            .await
            .map_err(|text| invalid(format!("Subscription validation request {text}")))?;
    }
    let one = Subscription {
        id: Uuid::new_v4().to_string(),
        app: call.caller.app.clone(),
        tenant: call.caller.tenant.clone(),
        creator: call.caller.oid.clone(),
        change_type,
        resource,
        url,
        lifecycle_url,
        client_state,
        expires,
        immutable: call.prefer.immutable,
        mailbox,
        owner: target.owner.oid.clone(),
        folder: target.folder,
        kind: target.kind,
        shape,
        filter: target.filter,
        silent: !own && shared == SharedSubscribe::AcceptButSilent,
        delivered: 0,
        token_until: token_until(sim, call.now),
        asked_again: None,
        held: Vec::new(),
    };
    let id = sim.guid();
    let mut graph = sim.graph();
    let one = Subscription { id, ..one };
    // What happened before the subscription is nobody's news.
    if graph.subscriptions.live.is_empty() {
        graph.take_changes();
    }
    graph.subscriptions.live.push(one.clone());
    Ok(entity(call, one.shown(true), 201, &Options::default()))
}

async fn renew(sim: &Sim, call: &Call, id: &Segment) -> Answer {
    call.wants_json()?;
    let mut map = schema::object(&call.body)?;
    schema::entity("subscription", &mut map)?;
    let one = find(sim, call, id)?;
    // "lifecycleNotificationUrl cannot be added by PATCH" (change-notifications-lifecycle-events).
    if let Some(name) = map.keys().find(|name| {
        !name.contains('@') && !matches!(name.as_str(), "expirationDateTime" | "notificationUrl" | "id")
    }) {
        return Err(invalid(format!("The property '{name}' cannot be updated.")));
    }
    let expires = match text(&map, "expirationDateTime") {
        None => one.expires,
        wanted => expiration(sim, call, wanted)?,
    };
    let url = text(&map, "notificationUrl");
    if let Some(url) = &url {
        check_url(url)?;
        notifier::handshake(url, &sim.guid())
            .await
            .map_err(|text| invalid(format!("Subscription validation request {text}")))?;
    }
    // "renews and reauthorizes"
    present(sim, call, &one.id);
    let mut graph = sim.graph();
    let found = graph.subscriptions.live.iter_mut().find(|found| found.id == one.id);
    let found = found.ok_or_else(|| Refusal::new(404, "ResourceNotFound", "The object was not found."))?;
    found.expires = expires;
    if let Some(url) = url {
        found.url = url;
    }
    Ok(entity(call, found.shown(false), 200, &Options::default()))
}

/// Delegated tokens live about an hour.
fn token_until(sim: &Sim, now: DateTime<Utc>) -> DateTime<Utc> {
    now + TimeDelta::minutes(sim.graph().switches.subscription_token_minutes)
}

/// A fresh token: delivery goes on.
fn present(sim: &Sim, call: &Call, id: &str) {
    let until = token_until(sim, call.now);
    let mut graph = sim.graph();
    if let Some(one) = graph.subscriptions.live.iter_mut().find(|one| one.id == id) {
        one.token_until = until;
        one.asked_again = None;
    }
}

/// Sends a lifecycle event; `subscriptionRemoved` removes as well. For tests.
pub(crate) fn lifecycle(sim: &Sim, id: &str, event: &str) -> bool {
    let found = sim.graph().subscriptions.live.iter().find(|one| one.id == id).cloned();
    let Some(one) = found else { return false };
    if event == "subscriptionRemoved" {
        sim.graph().subscriptions.remove(id);
    }
    notifier::lifecycle(sim, &one, event);
    true
}

/// What an earlier create call left behind, without one. For tests.
pub(crate) fn plant(sim: &Sim, app: &str, user: &str, owner: &str, folder: &str, url: &str) -> String {
    let (creator, owner) = {
        let directory = sim.directory();
        let known = |name: &str| directory.find(name).cloned().unwrap_or_else(|| panic!("{name} is nobody"));
        (known(user), known(owner))
    };
    let (id, now, mailbox) = (sim.guid(), sim.now(), access::address(&owner));
    let one = Subscription {
        id: id.clone(),
        app: app.to_owned(),
        tenant: creator.tenant,
        creator: creator.oid,
        change_type: "created,updated,deleted".to_owned(),
        resource: format!("users/{mailbox}/mailFolders/{folder}/messages"),
        url: url.to_owned(),
        lifecycle_url: None,
        client_state: None,
        expires: now + TimeDelta::days(3),
        immutable: true,
        mailbox,
        owner: owner.oid,
        folder: None,
        kind: Kind::Message,
        shape: Shape::plain(),
        filter: None,
        silent: true,
        delivered: 0,
        token_until: token_until(sim, now),
        asked_again: None,
        held: Vec::new(),
    };
    sim.graph().subscriptions.live.push(one);
    id
}
