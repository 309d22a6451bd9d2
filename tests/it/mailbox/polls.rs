//! Polls that fail while mail arrives, several messages within one second.
//!
//! The invariant that is watched: whatever is held at Microsoft is stored or still to be told by the link that is stored.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use followthrough::graph::Graph;
use followthrough::graph::changes::Cursor;
use followthrough::http::Http;
use followthrough::store::message::{self, Filter};
use followthrough::store::{StoreError, folder};
use followthrough_tests::world::{ADA, Pair, World};
use m365_sim::Fault;
use m365_sim::fault::When;
use m365_sim::graph::NewMessage;
use scoped_futures::ScopedFutureExt;
use serde_json::json;

use super::support::{SHARED, connect, consented, held_ids, in_step, leave, once_each, row};
use crate::site::Minted;

const CHANGES: &str = "messages/delta";
const LISTS: &str = "messages";

/// Where the Inbox is asked for these.
fn of_inbox(world: &World, what: &str) -> String {
    let inbox = world.sim().graph().mailbox(SHARED).folder_id("Inbox").expect("an Inbox");
    format!("/mailFolders/{inbox}/{what}")
}

/// Every third of these calls is answered 503 from now on.
fn every_third_fails(world: &World, path: &str) {
    for number in 1..=100 {
        let busy = Fault::status(503, When::Before).header("retry-after", "1").user(ADA);
        world.sim().inject(busy.method("GET").path(&format!("*{path}")).nth(3 * number));
    }
}

fn calls(world: &World, path: &str, status: u16) -> usize {
    world.sim().calls().iter().filter(|call| call.path.ends_with(path) && call.status == Some(status)).count()
}

/// Ten messages of one second, before, between and after the polls.
async fn a_second_of_mail(world: &World, path: &str) {
    let received = Some(world.sim().now());
    for number in 0..5 {
        let before = calls(world, path, 200);
        for twin in ["a", "b"] {
            let mail =
                NewMessage::new("Nora <nora@customer.example>", &format!("{number}{twin}"), "<p>Hi</p>");
            world.sim().graph().mailbox(SHARED).deliver(NewMessage { received, ..mail });
        }
        world.until("another poll", || async { calls(world, path, 200) > before }).await;
    }
    world.until("polls failed", || async { calls(world, path, 503) >= 2 }).await;
}

/// The Inbox's link, and what was stored when it was seen first.
type Seen = HashMap<String, HashSet<String>>;

async fn look(world: &World, seen: &RefCell<Seen>) {
    let id = row(world).await.id;
    let filter = &Filter { limit: 1_000, ..Filter::default() };
    let read = world.store.read(|tx| {
        async move {
            // The link first: rows that come in between were behind it, too.
            let folders = folder::of_mailbox(tx, id).await?;
            Ok::<_, StoreError>((folders, message::list(tx, id, filter).await?))
        }
        .scope_boxed()
    });
    let (folders, rows) = read.await.expect("the store answers");
    let link = folders.into_iter().find(|folder| folder.is_well_known("inbox")).and_then(|inbox| inbox.link);
    if let Some(link) = link {
        seen.borrow_mut().entry(link).or_insert_with(|| rows.into_iter().map(|row| row.id).collect());
    }
}

/// All that a link tells.
async fn told_by(world: &World, link: String) -> HashSet<String> {
    let http = Http::new(&world.config.microsoft, world.clock.clone()).expect("an HTTP client");
    let base = world.config.microsoft.graph_url();
    let tokens = Arc::new(Minted(world.sim().clone()));
    let graph = Graph::new(http, tokens, world.clock.clone(), &base).of_mailbox(SHARED);
    let (mut told, mut next) = (HashSet::new(), Some(link));
    while let Some(link) = next {
        let page = graph.go_on(&link).await.expect("the link lives");
        told.extend(page.items.into_iter().map(|item| item.id));
        next = match page.cursor {
            Cursor::Next(link) => Some(link),
            Cursor::Delta(_) => None,
        };
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn no_link_is_kept_before_what_it_came_with_though_every_third_poll_fails() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = consented(pair).await else { continue };
        // The story follows old links, too.
        world.sim().graph().switches.delta_generations = 1_000_000;
        connect(&world, 0).await;
        let changes = of_inbox(&world, CHANGES);
        every_third_fails(&world, &changes);
        let seen = RefCell::new(Seen::new());
        tokio::select! {
            () = a_second_of_mail(&world, &changes) => {}
            () = async { loop {
                look(&world, &seen).await;
                world.clock.sleep(Duration::from_millis(2)).await;
            } } => {}
        }
        in_step(&world).await;
        once_each(&world).await;
        leave(&world).await;
        world.sim().clear_faults();
        // Whatever was asked for as a pause is over.
        world.sim().clock().advance(TimeDelta::minutes(1));
        let (held, seen) = (held_ids(&world), seen.into_inner());
        assert!(held.len() == 10 && seen.len() >= 2, "{} links", seen.len());
        for (link, stored) in seen {
            let told = told_by(&world, link).await;
            let lost: Vec<_> =
                held.keys().filter(|id| !stored.contains(*id) && !told.contains(*id)).collect();
            assert!(lost.is_empty(), "neither stored nor to be told: {lost:?}");
        }
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_message_is_lost_where_folders_are_listed_and_every_third_list_fails() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = consented(pair).await else { continue };
        let full = json!({"error": {"code": "ErrorQuotaExceeded", "message": "full"}});
        world.sim().inject(Fault::status(403, When::Before).body(full).path("*/messages/delta").times(0));
        connect(&world, 0).await;
        world.until("it is listed", || async { row(&world).await.rung == "list" }).await;
        let lists = of_inbox(&world, LISTS);
        every_third_fails(&world, &lists);
        a_second_of_mail(&world, &lists).await;
        in_step(&world).await;
        once_each(&world).await;
        leave(&world).await;
        world.close().await;
    }
}
