//! A world in which Ada has a shared mailbox connected, and what its stories compare.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use chrono::TimeDelta;
use followthrough::clock::Clock;
use followthrough::store::folder::Folder;
use followthrough::store::mailbox::{self, Mailbox};
use followthrough::store::message::{self, Message};
use followthrough::store::subscription::{self, Subscription};
use followthrough::store::{StoreError, folder};
use followthrough_tests::world::{ADA, Pair, World};
use m365_sim::entra::CLIENT_ID;
use m365_sim::graph::NewMessage;
use m365_sim::referee::Limits;
use scoped_futures::ScopedFutureExt;
use serde_json::{Value, json};
use uuid::Uuid;

pub(crate) const SHARED: &str = "support@acme.example";

/// Nobody has connected anything yet but Ada her consent.
pub(crate) async fn consented(pair: Pair) -> Option<World> {
    let world = World::open(pair).await?;
    world.connect(ADA, "shared-mailbox").await;
    Some(world)
}

/// The mailbox is connected, and its past is read.
pub(crate) async fn connected(pair: Pair, days: u16) -> Option<World> {
    let world = consented(pair).await?;
    connect(&world, days).await;
    Some(world)
}

pub(crate) async fn connect(world: &World, days: u16) {
    world
        .run("connect", "mailbox.connect", json!({"address": SHARED, "backfill_days": days}), "succeeded")
        .await;
}

pub(crate) async fn row(world: &World) -> Mailbox {
    row_of(world, SHARED).await
}

pub(crate) async fn row_of(world: &World, address: &str) -> Mailbox {
    let workspace = world.workspace.as_str();
    let found = world
        .store
        .read(|tx| async move { mailbox::find_by_address(tx, workspace, address).await }.scope_boxed())
        .await;
    found.expect("the store answers").expect("the mailbox")
}

/// Microsoft tells of the mailbox's Inbox and Sent Items, whatever it said when it was asked. Gives its ids.
pub(crate) async fn subscribed(world: &World, address: &str) -> Vec<String> {
    let (id, now) = (row_of(world, address).await.id, world.clock.now());
    let folders = world.store.read(|tx| async move { folder::of_mailbox(tx, id).await }.scope_boxed()).await;
    let folders = folders.expect("the folders").into_iter().take(2);
    let url = world.config.http.public_url.join("graph/notifications").expect("a URL");
    let mut planted = Vec::new();
    for folder in folders {
        let made = world.sim().plant_subscription(CLIENT_ID, ADA, address, &folder.id, url.as_str());
        let (folder, graph_id) = (folder.id.as_str(), made.as_str());
        let written: Result<_, StoreError> = world
            .store
            .transaction("plant", |tx| {
                async move {
                    let one = subscription::create(tx, id, folder, &[7; 32], now).await?;
                    let until = now + TimeDelta::days(3);
                    subscription::accepted(tx, one, graph_id, until, until, now).await
                }
                .scope_boxed()
            })
            .await;
        written.expect("the subscription");
        planted.push(made);
    }
    planted
}

pub(crate) async fn subscriptions(world: &World, mailbox: Uuid) -> Vec<Subscription> {
    let found =
        world.store.read(|tx| async move { subscription::of_mailbox(tx, mailbox).await }.scope_boxed());
    found.await.expect("the subscriptions")
}

/// All that is stored and not removed.
pub(crate) async fn stored(world: &World) -> Vec<Message> {
    let (id, filter) = (row(world).await.id, message::Filter { limit: 1_000_000, ..Default::default() });
    let filter = &filter;
    let listed =
        world.store.read(|tx| async move { message::list(tx, id, filter).await }.scope_boxed()).await;
    listed.expect("the store answers")
}

/// Ids of what is stored, by the id of their folder.
pub(crate) async fn stored_ids(world: &World) -> BTreeMap<String, String> {
    stored(world).await.into_iter().map(|row| (row.id, row.folder_id)).collect()
}

/// What Microsoft holds, in the same form.
pub(crate) fn held_ids(world: &World) -> BTreeMap<String, String> {
    let mut graph = world.sim().graph();
    let mailbox = graph.mailbox(SHARED);
    let all = mailbox.message_ids();
    all.iter()
        .filter_map(|id| {
            let message = mailbox.message(id)?;
            Some((id.clone(), message["parentFolderId"].as_str()?.to_owned()))
        })
        .collect()
}

/// Waits until what is stored is what is there.
pub(crate) async fn in_step(world: &World) {
    world.until("the mailbox is in step", || async { stored_ids(world).await == held_ids(world) }).await;
}

pub(crate) async fn folders(world: &World) -> Vec<Folder> {
    let id = row(world).await.id;
    let all = world.store.read(|tx| async move { folder::of_mailbox(tx, id).await }.scope_boxed()).await;
    all.expect("the store answers")
}

/// Waits until each folder was looked at, so that the quiet ones are not for a while.
pub(crate) async fn settled(world: &World) {
    let looked_at = || async {
        let all = folders(world).await;
        all.iter().all(|folder| folder.polled_at.is_some() && folder.sweep_before.is_none())
    };
    world.until("each folder was looked at", looked_at).await;
}

pub(crate) fn deliver(world: &World, subject: &str) -> String {
    world.sim().deliver(SHARED, NewMessage::new("Nora <nora@customer.example>", subject, "<p>Hello</p>"))
}

/// Lets time pass in steps until a condition holds; for worlds that move.
pub(crate) async fn pass_until<F: Future<Output = bool>>(
    world: &World,
    step: TimeDelta,
    what: &str,
    condition: impl Fn() -> F,
) {
    let (real, mut steps) = (Clock::system(), 0);
    while !condition().await {
        assert!(steps < 6_000, "not in time: {what}; states {:?}", world.states().await);
        // What a process has in hand to publish is another's after half a minute: it would come twice.
        if world.owed().await == 0 {
            world.pass(step);
        }
        real.sleep(Duration::from_millis(50)).await;
        steps += 1;
    }
}

/// How often each message was told of as created, by its id. The same event again, as after a cut, has the same id.
pub(crate) fn created(world: &World) -> BTreeMap<String, usize> {
    let (mut told, mut heard) = (BTreeMap::new(), HashSet::new());
    let events = world.events.of("mailbox.message.created").into_iter();
    for event in events.filter(|event| heard.insert(event["id"].to_string())) {
        let id = event["data"]["message"].as_str().unwrap_or_default().to_owned();
        *told.entry(id).or_default() += 1;
    }
    told
}

pub(crate) fn told(world: &World, kind: &str) -> Vec<Value> {
    world.events.of(kind)
}

/// Events of these types, each once: the same event again, as after a cut, has the same id.
pub(crate) fn heard(world: &World, kind: &str) -> Vec<Value> {
    let mut ids = HashSet::new();
    told(world, kind).into_iter().filter(|event| ids.insert(event["id"].to_string())).collect()
}

/// The messages that were told of as created, in that order.
pub(crate) fn order(world: &World) -> Vec<String> {
    let id = |event: Value| Some(event["data"]["message"].as_str()?.to_owned());
    heard(world, "mailbox.message.created").into_iter().filter_map(id).collect()
}

pub(crate) async fn filled(world: &World) {
    world
        .until("the backfill is over", || async { heard(world, "mailbox.backfill.completed").len() == 1 })
        .await;
}

/// All that is there was told of as created, once, and of no message anything was told before that.
pub(crate) async fn once_each(world: &World) {
    world.until("all are told of", || async { created(world).len() >= held_ids(world).len() }).await;
    let times = created(world);
    let more: Vec<_> = times.iter().filter(|(_, times)| **times != 1).collect();
    assert!(more.is_empty(), "told more than once: {more:?}");
    assert_eq!(times.keys().collect::<Vec<_>>(), held_ids(world).keys().collect::<Vec<_>>());
    let mut known = HashSet::new();
    for event in heard(world, "mailbox.message.") {
        let id = event["data"]["message"].to_string();
        let created = event["type"].as_str().is_some_and(|kind| kind.ends_with("created"));
        assert_eq!(known.insert(id), created, "out of order: {event}");
    }
}

/// Nothing was written in any mailbox.
pub(crate) fn only_read(world: &World) {
    let calls = world.sim().calls();
    let mut written =
        calls.iter().filter(|call| call.path.starts_with("/v1.0/users") && call.method != "GET");
    assert!(written.next().is_none(), "{:?}", written.next());
}

/// Pages as they come in the field: short, empty, repeated, and now and then the folder's delta is forgotten.
pub(crate) fn rough(world: &World) {
    let mut graph = world.sim().graph();
    graph.switches.short_page_every = 3;
    graph.switches.repeat_link_every = 4;
    graph.switches.delta_empty_every = 5;
    graph.switches.delta_repeat_every = 3;
    graph.switches.delta_expire_every = 41;
}

/// Somebody tidies up while the pages are being read.
pub(crate) fn tidy_up(world: &World, from: usize) {
    let mut graph = world.sim().graph();
    let mut mailbox = graph.mailbox(SHARED);
    let ids: Vec<String> = mailbox.message_ids().into_iter().skip(from * 100).step_by(97).take(5).collect();
    for id in ids {
        assert!(mailbox.move_message(&id, "Archive"));
    }
}

pub(crate) async fn count(world: &World) -> usize {
    stored_ids(world).await.len()
}

/// The mailbox's next calls are answered 429. Whatever was on its way then is not held against anybody: who comes when
/// is another story.
pub(crate) fn throttled(world: &World, calls: u32, retry_after_seconds: i64) {
    world.sim().set_limits(Limits { grace_ms: retry_after_seconds * 1_000, ..world.sim().limits() });
    world.sim().throttle(m365_sim::referee::Throttle {
        user: SHARED.into(),
        calls,
        retry_after_seconds,
        as_date: false,
        without_header: false,
        area: None,
    });
}

/// A job as it stood when its worker was lost, behind all it did.
pub(crate) async fn lose(world: &World, job: &str) {
    let now = world.clock.now();
    let lost: Result<_, StoreError> = world
        .store
        .transaction("lose", |tx| {
            async move {
                let sql = "UPDATE jobs SET state = 'running', result = NULL, finished_at = NULL, lease_until = $2 WHERE id = $1";
                Ok(followthrough::sql!(tx, execute, sql, job, now)?)
            }
            .scope_boxed()
        })
        .await;
    assert_eq!(lost.expect("the store answers"), 1);
}

/// Ends the following, so that a world can be at rest.
pub(crate) async fn leave(world: &World) {
    world.run("leave", "mailbox.disconnect", json!({"mailbox": SHARED}), "succeeded").await;
}

/// The end of a world that moves: a look that was under way comes back a poll later.
pub(crate) async fn end(world: World, step: TimeDelta) {
    leave(&world).await;
    let nothing_waits = || async { !world.states().await.contains_key("waiting") };
    pass_until(&world, step, "nothing waits", nothing_waits).await;
    world.close().await;
}
