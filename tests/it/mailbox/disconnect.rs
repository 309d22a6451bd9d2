//! The end of a mailbox and of a whole connection: in order, whatever goes wrong, with one receipt.

use std::collections::HashSet;

use chrono::{DateTime, TimeDelta, Utc};
use followthrough::fleet::Role;
use followthrough::store::{StoreError, folder, mailbox};
use followthrough_tests::broker::within;
use followthrough_tests::world::{ADA, Pair, World};
use http::Method;
use m365_sim::Fault;
use m365_sim::directory::MailboxRight;
use m365_sim::fault::When;
use m365_sim::graph::Fill;
use scoped_futures::ScopedFutureExt;
use serde_json::{Value, json};
use uuid::Uuid;

use super::killed;
use super::support::{
    SHARED, connect, consented, deliver, in_step, lose, row, row_of, stored, subscribed, subscriptions, told,
};

const SALES: &str = "sales@acme.example";
const CALLS: &str = "/v1.0/subscriptions*";

/// Ada's consent, and its connection.
async fn signed_in(pair: Pair) -> Option<(World, Uuid)> {
    let world = consented(pair).await?;
    let id = world.last_connection();
    Some((world, id))
}

/// With one mailbox that Microsoft tells us of.
async fn followed(pair: Pair) -> Option<(World, Uuid)> {
    let (world, id) = signed_in(pair).await?;
    connect(&world, 0).await;
    asked_for_push(&world, SHARED).await;
    subscribed(&world, SHARED).await;
    Some((world, id))
}

/// The simulated tenant refuses to tell of shared mailboxes, and is not asked again for a week.
async fn asked_for_push(world: &World, address: &str) {
    let id = row_of(world, address).await.id;
    let refused = || async {
        let known = subscriptions(world, id).await;
        known.len() == 2 && known.iter().all(|one| one.state == "refused")
    };
    world.until("push is refused", refused).await;
}

async fn ask(world: &World, id: Uuid) -> (u16, Value) {
    let (status, answer) = world.api(Method::DELETE, &format!("/v1/connections/{id}"), None).await;
    (status.as_u16(), answer)
}

async fn shown(world: &World, id: Uuid) -> Value {
    world.api(Method::GET, &format!("/v1/connections/{id}"), None).await.1
}

async fn ended(world: &World, id: Uuid) -> Value {
    world.until("it has ended", || async { shown(world, id).await["status"] == "disconnected" }).await;
    shown(world, id).await["receipt"].clone()
}

/// The receipts that were told; the same event again, as after a cut, has the same id.
fn receipts(world: &World, kind: &str) -> Vec<Value> {
    let mut heard = HashSet::new();
    let events = told(world, kind).into_iter().filter(|event| heard.insert(event["id"].to_string()));
    events.map(|event| event["data"]["receipt"].clone()).collect()
}

/// The one of the whole connection, told once.
async fn the_receipt(world: &World) -> Value {
    world.until("it is told", || async { !told(world, "connection.disconnected").is_empty() }).await;
    world.at_rest().await;
    let mut receipts = receipts(world, "connection.disconnected");
    assert_eq!(receipts.len(), 1, "{receipts:?}");
    receipts.remove(0)
}

fn lives_at_microsoft(world: &World) -> usize {
    world.sim().subscriptions().as_array().map_or(0, Vec::len)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_two_mailboxes_of_which_one_is_being_filled_ends_in_one_call() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some((world, id)) = signed_in(pair).await else { continue };
        let sales = MailboxRight {
            mailbox: SALES.into(),
            user: ADA.into(),
            full_access: true,
            ..MailboxRight::default()
        };
        assert!(world.sim().grant(sales));
        world.sim().graph().fill(SHARED, &Fill { messages: 1_500, folders: 6, ..Fill::default() });
        world
            .run("sales", "mailbox.connect", json!({"address": SALES, "backfill_days": 0}), "succeeded")
            .await;
        // Behind the counts of all folders, in the middle of the lists.
        let lists = Fault::hold(When::Before).method("GET");
        let lists = lists.path(&format!("/v1.0/users/{SHARED}/mailFolders/*/messages"));
        let list = world.sim().inject(lists.nth(30));
        connect(&world, 31).await;
        let mut made = Vec::new();
        for address in [SHARED, SALES] {
            asked_for_push(&world, address).await;
            made.extend(subscribed(&world, address).await);
        }
        let mailboxes = [row(&world).await.id, row_of(&world, SALES).await.id];
        world.until("a list is under way", || async { world.sim().holds(list) }).await;
        let (status, answer) = ask(&world, id).await;
        assert_eq!((status, answer["status"].as_str()), (202, Some("disconnecting")), "{answer}");
        assert_eq!(ask(&world, id).await.0, 202, "asked again");
        world.sim().release(list);

        let receipt = ended(&world, id).await;
        let end: DateTime<Utc> =
            receipt["disconnected_at"].as_str().expect("a time").parse().expect("a time");
        let calls = world.sim().calls();
        let deleted: Vec<_> = calls.iter().filter(|call| call.method == "DELETE").collect();
        assert_eq!(deleted.len(), 4, "{deleted:?}");
        for call in &deleted {
            assert!(made.iter().any(|id| call.path.ends_with(id)) && call.status == Some(204), "{call:?}");
        }
        let late: Vec<_> =
            calls.iter().filter(|call| call.started >= end).map(|call| (&call.method, &call.path)).collect();
        assert!(late.is_empty(), "called without a token: {late:?}");
        assert!(!world.has_token(id).await);
        assert_eq!((lives_at_microsoft(&world), receipt["tokens"].as_str()), (0, Some("wiped")));
        let told_of: Vec<&Value> = receipt["mailboxes"].as_array().expect("a list").iter().collect();
        assert_eq!(told_of.len(), 2, "{receipt}");
        for one in &told_of {
            assert_eq!(one["subscriptions"]["state"], "deleted", "{one}");
            assert_eq!(one["subscriptions"]["deleted"].as_array().map(Vec::len), Some(2), "{one}");
            assert!(one["disconnected_at"].is_string(), "{one}");
        }
        assert_eq!(told_of.iter().filter(|one| one["backfill"]["cancelled_at"].is_string()).count(), 1);

        // Told once of each, and kept with the job that did it.
        assert_eq!(the_receipt(&world).await, receipt);
        assert_eq!(receipts(&world, "mailbox.disconnected").len(), 2);
        assert_eq!(receipts(&world, "mailbox.backfill.cancelled").len(), 1);
        let jobs = world.api(Method::GET, "/v1/jobs?kind=connection.disconnect", None).await.1;
        assert_eq!(jobs["jobs"].as_array().map(Vec::len), Some(1), "{jobs}");
        let job = jobs["jobs"][0]["id"].as_str().expect("an id").to_owned();
        world.until_state(&job, "succeeded").await;
        assert_eq!((world.job(&job).await.expect("the row").attempt, ask(&world, id).await.0), (1, 200));

        // Addresses are forgotten, what was read is kept and does not grow.
        let mail = async |mailbox: &Uuid| {
            let (_, page) =
                world.api(Method::GET, &format!("/v1/mailboxes/{mailbox}/messages?limit=200"), None).await;
            page["messages"].as_array().map(Vec::len)
        };
        let kept = mail(&mailboxes[0]).await;
        assert!(kept.is_some_and(|kept| kept > 50));
        for mailbox in &mailboxes {
            let (_, view) = world.api(Method::GET, &format!("/v1/mailboxes/{mailbox}"), None).await;
            assert_eq!((&view["state"], &view["folders"]), (&json!("disconnected"), &json!(0)), "{view}");
            assert!(view["address"].as_str().is_some_and(|address| address.starts_with("forgotten:")));
        }
        // Whoever needs the connection waits for its user.
        let again = json!({"address": SHARED, "backfill_days": 0});
        let parked = world.run("again", "mailbox.connect", again, "parked").await;
        assert_eq!(parked.cause.as_deref(), Some("needs_user"));
        world.at_rest().await;
        // The fleet's own looks and slices came to their end with the mailboxes.
        let settled = || async {
            let states = world.states().await;
            states.keys().all(|state| state == "succeeded" || state == "parked")
        };
        world.until("all have ended", settled).await;
        assert_eq!(world.states().await.get("parked"), Some(&1), "{:?}", world.events.of("job.parked"));
        assert_eq!(world.sim().calls().len(), calls.len(), "nobody is called any more");
        assert_eq!(mail(&mailboxes[0]).await, kept);
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_microsoft_is_down_it_says_what_is_left_and_goes_on_once_it_is_back() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some((world, id)) = followed(pair).await else { continue };
        let (_, link) = world.link(ADA, "shared-mailbox").await;
        world.sim().inject(Fault::status(500, When::Before).path(CALLS).times(0));
        assert_eq!(ask(&world, id).await.0, 202);
        let left = || async { shown(&world, id).await["receipt"]["mailboxes"][0]["subscriptions"].clone() };
        world.until("it says so", || async { left().await["state"] == "not_deleted" }).await;
        let said = left().await;
        assert_eq!((said["code"].as_str(), said["tried_again"].as_bool()), (Some("unavailable"), Some(true)));
        assert_eq!(said["not_deleted"].as_array().map(Vec::len), Some(2), "{said}");
        assert!(world.has_token(id).await);
        assert_eq!(shown(&world, id).await["status"], "disconnecting");

        // Nobody signs in to what is about to end: neither with a new link nor with an old one.
        let asked = json!({"workspace": "acme", "user": ADA, "integration": "shared-mailbox"});
        let (status, refused) = world.api(Method::POST, "/v1/connections", Some(&asked)).await;
        let code = refused["error"]["code"].as_str();
        assert_eq!((status.as_u16(), code), (409, Some("connection_disconnecting")), "{refused}");
        let page = world.browse(&link).await;
        assert!(page.status == 409 && page.text.contains("connection_disconnecting"), "{page:?}");
        let waits = json!({"mailbox": SHARED, "days": 1});
        assert_eq!(world.run("waits", "mailbox.backfill", waits, "parked").await.attempt, 0);

        let tried = left().await["at"].clone();
        world.until("it tries again", || async { left().await["at"] != tried }).await;
        world.sim().clear_faults();
        let receipt = ended(&world, id).await;
        let subscriptions = &receipt["mailboxes"][0]["subscriptions"];
        assert_eq!(
            (&subscriptions["state"], lives_at_microsoft(&world)),
            (&json!("deleted"), 0),
            "{receipt}"
        );
        assert!(!world.has_token(id).await);
        assert_eq!(the_receipt(&world).await, receipt);

        // Afterwards it can be made anew, and is not ended by what was asked before.
        world.connect(ADA, "shared-mailbox").await;
        assert!(shown(&world, id).await["receipt"].is_null());
        world.until_state("waits", "dead").await;
        world.expect_dead("unknown_mailbox");
        world.close().await;
    }
}

/// The process is stopped, and when it starts again the end was asked for so much earlier.
async fn after(world: &mut World, mailbox: Uuid, time: TimeDelta) {
    world.stop().await;
    let now = world.clock.now();
    let aged: Result<_, StoreError> = world
        .store
        .transaction("age", |tx| {
            async move {
                let row = mailbox::get(tx, mailbox).await?;
                let mut receipt: Value =
                    serde_json::from_str(&row.receipt.expect("a receipt")).expect("JSON");
                receipt["asked_at"] = json!(now - time);
                mailbox::receipt(tx, mailbox, &receipt.to_string(), now).await
            }
            .scope_boxed()
        })
        .await;
    aged.expect("the store answers");
    world.start().await;
}

async fn left_of(world: &World, mailbox: Uuid) -> Value {
    let (_, view) = world.api(Method::GET, &format!("/v1/mailboxes/{mailbox}"), None).await;
    view["receipt"]["subscriptions"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_day_without_microsoft_the_end_comes_all_the_same_and_says_what_is_left() {
    for (pair, whole) in [(Pair::Embedded, true), (Pair::Embedded, false), (Pair::Servers, true)] {
        let Some((mut world, id)) = followed(pair).await else { continue };
        let mailbox = row(&world).await.id;
        world.sim().inject(Fault::status(500, When::Before).path(CALLS).times(0));
        let path = if whole { format!("/v1/connections/{id}") } else { format!("/v1/mailboxes/{mailbox}") };
        assert_eq!(world.api(Method::DELETE, &path, None).await.0, 202);
        world.until("it says so", || async { left_of(&world, mailbox).await["tried_again"] == true }).await;
        after(&mut world, mailbox, TimeDelta::hours(23)).await;
        let started = world.clock.now();
        let again = async || {
            let at: DateTime<Utc> = left_of(&world, mailbox).await["at"].as_str()?.parse().ok()?;
            Some(at > started)
        };
        world.until("it is tried again", || async { again().await == Some(true) }).await;
        assert_eq!(left_of(&world, mailbox).await["tried_again"], true);
        after(&mut world, mailbox, TimeDelta::hours(25)).await;
        let receipt = if whole {
            ended(&world, id).await["mailboxes"][0].clone()
        } else {
            world.until("it is told", || async { !told(&world, "mailbox.disconnected").is_empty() }).await;
            receipts(&world, "mailbox.disconnected")[0].clone()
        };
        let said = &receipt["subscriptions"];
        assert_eq!(
            (&said["state"], &said["tried_again"]),
            (&json!("not_deleted"), &json!(false)),
            "{receipt}"
        );
        assert_eq!(
            (said["code"].as_str(), said["run_out_within_days"].as_i64()),
            (Some("unavailable"), Some(7))
        );
        assert_eq!(said["not_deleted"].as_array().map(Vec::len), Some(2), "{receipt}");
        assert_eq!((lives_at_microsoft(&world), subscriptions(&world, mailbox).await.len()), (2, 0));
        assert_eq!(world.has_token(id).await, !whole);
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consent_that_was_revoked_ends_at_once_and_the_receipt_says_so() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some((mut world, id)) = followed(pair).await else { continue };
        world.sim().revoke_sessions(ADA);
        // A new process holds no access token that would go on working for an hour.
        world.stop().await;
        world.start().await;
        world.until("a look waits for her", || async { world.states().await.contains_key("parked") }).await;
        assert_eq!(ask(&world, id).await.0, 202);
        let receipt = ended(&world, id).await;
        let said = &receipt["mailboxes"][0]["subscriptions"];
        assert_eq!(
            (&said["state"], &said["tried_again"]),
            (&json!("not_deleted"), &json!(false)),
            "{receipt}"
        );
        assert!(said["code"].is_string() && said["code"] != "unavailable", "{receipt}");
        assert_eq!((receipt["tokens"].as_str(), world.has_token(id).await), (Some("wiped"), false));
        // Nothing waits for a sign-in that is wanted no more.
        assert_eq!(world.states().await.get("parked"), None);
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_off_in_any_delete_it_goes_on_and_gives_one_receipt() {
    for (pair, when) in
        [(Pair::Embedded, When::Before), (Pair::Embedded, When::After), (Pair::Servers, When::After)]
    {
        let Some((mut world, id)) = followed(pair).await else { continue };
        deliver(&world, "Kept");
        in_step(&world).await;
        let mut held = world.sim().inject(Fault::hold(when).method("DELETE").path(CALLS));
        assert_eq!(ask(&world, id).await.0, 202);
        for nth in [2, 1] {
            let sim = world.sim().clone();
            within("the call to be held", sim.until(|sim| sim.holds(held))).await;
            world.cut().await;
            sim.release(held);
            within("the call to end", sim.until(|sim| sim.calls().iter().all(|call| call.ended.is_some())))
                .await;
            if nth == 2 {
                held = sim.inject(Fault::hold(when).method("DELETE").path(CALLS).nth(2));
            }
            world.start().await;
        }
        let receipt = ended(&world, id).await;
        let said = &receipt["mailboxes"][0]["subscriptions"];
        assert_eq!((&said["state"], lives_at_microsoft(&world)), (&json!("deleted"), 0), "{receipt}");
        assert_eq!(said["deleted"].as_array().map(Vec::len), Some(2), "{receipt}");
        world.at_rest().await;
        assert_eq!(the_receipt(&world).await, receipt);
        assert_eq!(receipts(&world, "mailbox.disconnected").len(), 1);
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_any_delete_it_goes_on_and_gives_one_receipt() {
    let Some((mut world, id)) = followed(Pair::Servers).await else { return };
    world.stop().await;
    world.roles = vec![Role::Api];
    world.start().await;
    assert_eq!(ask(&world, id).await.0, 202);
    let mut worker = killed::start(&world);
    for (nth, when) in [(1, When::Before), (1, When::After), (2, When::After)] {
        let held = world.sim().inject(Fault::hold(when).method("DELETE").path(CALLS).nth(nth));
        within("a delete to be under way", world.sim().until(|sim| sim.holds(held))).await;
        worker.kill();
        world.sim().release(held);
        worker = killed::start(&world);
    }
    let receipt = ended(&world, id).await;
    let said = &receipt["mailboxes"][0]["subscriptions"];
    assert_eq!((&said["state"], lives_at_microsoft(&world)), (&json!("deleted"), 0), "{receipt}");
    assert!(!world.has_token(id).await);
    // What a killed process had in hand to publish is another's after half a minute.
    assert_eq!(the_receipt(&world).await, receipt);
    worker.terminate();
    while !worker.is_gone() {
        world.clock.sleep(std::time::Duration::from_millis(20)).await;
    }
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_that_is_under_way_lays_nothing_down_after_the_end_was_asked_for() {
    let Some((world, id)) = followed(Pair::Servers).await else { return };
    deliver(&world, "Before");
    in_step(&world).await;
    let (mailbox, before) = (row(&world).await.id, stored(&world).await.len());
    let inbox =
        world.store.read(|tx| async move { folder::of_mailbox(tx, mailbox).await }.scope_boxed()).await;
    let inbox = inbox.expect("the folders").remove(0).id;
    let path = format!("*/mailFolders/{inbox}/messages/delta*");
    let held = world.sim().inject(Fault::hold(When::Before).method("GET").path(&path));
    let sim = world.sim().clone();
    within("the look to be under way", sim.until(|sim| sim.holds(held))).await;
    deliver(&world, "Too late");
    assert_eq!(ask(&world, id).await.0, 202);
    let state =
        async || world.api(Method::GET, &format!("/v1/mailboxes/{mailbox}"), None).await.1["state"].clone();
    let job =
        world.api(Method::GET, "/v1/jobs?kind=connection.disconnect", None).await.1["jobs"][0]["id"].clone();
    let job = job.as_str().expect("an id").to_owned();
    world
        .until("it waits for the look", || async {
            world.job(&job).await.is_some_and(|row| row.code.as_deref() == Some("mailbox_at_work"))
        })
        .await;
    assert_eq!((state().await, lives_at_microsoft(&world)), (json!("disconnecting"), 2));
    sim.release(held);
    ended(&world, id).await;
    assert_eq!((state().await, lives_at_microsoft(&world)), (json!("disconnected"), 0));
    world.at_rest().await;
    let (_, page) = world.api(Method::GET, &format!("/v1/mailboxes/{mailbox}/messages"), None).await;
    assert_eq!(page["messages"].as_array().map(Vec::len), Some(before), "{page}");
    assert_eq!(told(&world, "mailbox.message.created").len(), before);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_died_behind_its_last_step_leaves_the_next_consent_alone() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some((world, id)) = followed(pair).await else { continue };
        ask(&world, id).await;
        let receipt = ended(&world, id).await;
        let jobs = world.api(Method::GET, "/v1/jobs?kind=connection.disconnect", None).await.1;
        let job = jobs["jobs"][0]["id"].as_str().expect("an id").to_owned();
        world.until_state(&job, "succeeded").await;
        world.connect(ADA, "shared-mailbox").await;
        // The wipe is committed, the outcome is not.
        lose(&world, &job).await;
        world.publish(&[world.envelope(&job, "connection.disconnect", json!({"connection": id}))]).await;
        world.until_state(&job, "succeeded").await;
        let result = world.job(&job).await.expect("the row").result.expect("a result");
        assert_eq!(serde_json::from_str::<Value>(&result).expect("JSON")["receipt"], receipt);
        assert_eq!(
            (shown(&world, id).await["status"].as_str(), world.has_token(id).await),
            (Some("connected"), true)
        );
        assert_eq!(the_receipt(&world).await, receipt);
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_died_behind_its_last_step_leaves_the_next_mailbox_of_the_address_alone() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some((world, _)) = followed(pair).await else { continue };
        let by_address = json!({"mailbox": SHARED});
        let done = world.run("end", "mailbox.disconnect", by_address.clone(), "succeeded").await;
        for is_connected_anew in [false, true] {
            if is_connected_anew {
                let again = json!({"address": SHARED, "backfill_days": 0});
                world.run("again", "mailbox.connect", again, "succeeded").await;
            }
            lose(&world, "end").await;
            world.publish(&[world.envelope("end", "mailbox.disconnect", by_address.clone())]).await;
            world.until_state("end", "succeeded").await;
            assert_eq!(world.job("end").await.expect("the row").result, done.result);
        }
        assert_eq!(row(&world).await.state, "connected");
        world.at_rest().await;
        assert_eq!(receipts(&world, "mailbox.disconnected").len(), 1);
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mailbox_that_is_being_disconnected_already_ends_with_its_connection_once() {
    let Some((world, id)) = followed(Pair::Servers).await else { return };
    let mailbox = row(&world).await.id;
    world.sim().inject(Fault::status(500, When::Before).path(CALLS).times(0));
    let (status, _) = world.api(Method::DELETE, &format!("/v1/mailboxes/{mailbox}"), None).await;
    assert_eq!(status, 202);
    world.until("it says so", || async { left_of(&world, mailbox).await["tried_again"] == true }).await;
    assert_eq!(ask(&world, id).await.0, 202);
    world.sim().clear_faults();
    let receipt = ended(&world, id).await;
    assert_eq!(receipt["mailboxes"].as_array().map(Vec::len), Some(1), "{receipt}");
    assert_eq!((&receipt["mailboxes"][0]["mailbox"], lives_at_microsoft(&world)), (&json!(mailbox), 0));
    world.until_state(&format!("mailbox-disconnect/{mailbox}"), "succeeded").await;
    world.at_rest().await;
    assert_eq!(receipts(&world, "mailbox.disconnected"), [receipt["mailboxes"][0].clone()]);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disconnect_that_was_given_up_is_done_once_it_is_asked_for_again() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some((world, _)) = followed(pair).await else { continue };
        let mailbox = row(&world).await.id;
        let ask = async || {
            let (status, _) = world.api(Method::DELETE, &format!("/v1/mailboxes/{mailbox}"), None).await;
            assert_eq!(status, 202);
        };
        world.sim().inject(Fault::status(500, When::Before).path(CALLS).times(0));
        ask().await;
        let (job, now) = (format!("mailbox-disconnect/{mailbox}"), world.clock.now());
        let job = job.as_str();
        // As if its attempts had been used up.
        world
            .until("it is given up", || async {
                let given_up: Result<_, StoreError> = world
                    .store
                    .transaction("give up", |tx| {
                        async move {
                            let sql = "UPDATE jobs SET state = 'dead', code = 'timed_out', fence = fence + 1, \
                                       finished_at = $2 WHERE id = $1 AND state = 'waiting'";
                            Ok(followthrough::sql!(tx, execute, sql, job, now)?)
                        }
                        .scope_boxed()
                    })
                    .await;
                given_up.expect("the store answers") == 1
            })
            .await;
        world.sim().clear_faults();
        world.at_rest().await;
        assert_eq!(world.state(job).await, "dead");
        ask().await;
        world.until("it is done", || async { !told(&world, "mailbox.disconnected").is_empty() }).await;
        world.until_state(job, "succeeded").await;
        assert_eq!(lives_at_microsoft(&world), 0);
        ask().await;
        world.close().await;
    }
}

/// Over the queue it is asked for as over HTTP: whoever may publish for a user may end what the user allowed.
#[tokio::test(flavor = "multi_thread")]
async fn any_connection_is_ended_by_its_job_and_nobody_elses() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = World::open(pair).await else { continue };
        let id = world.connect(ADA, "outlook-email").await;
        let mut foreign = world.envelope("foreign", "connection.disconnect", json!({"connection": id}));
        foreign["user"] = json!("bob@acme.example");
        world.publish(&[foreign]).await;
        world.until_state("foreign", "dead").await;
        world.expect_dead("unknown_connection");
        assert!(world.has_token(id).await);
        let calls = world.sim().calls().len();
        let done = world.run("end", "connection.disconnect", json!({"connection": id}), "succeeded").await;
        let result: Value = serde_json::from_str(&done.result.expect("a result")).expect("JSON");
        let receipt = &result["receipt"];
        assert_eq!(
            (receipt["tokens"].as_str(), receipt["mailboxes"].as_array().map(Vec::len)),
            (Some("wiped"), Some(0))
        );
        assert_eq!(shown(&world, id).await["receipt"], *receipt);
        assert!(!world.has_token(id).await);
        assert_eq!(world.sim().calls().len(), calls, "Microsoft is not asked");
        assert_eq!(the_receipt(&world).await, *receipt);
        world.close().await;
    }
}

/// What each step commits, in the order of the steps.
const STEPS: [&str; 5] = [
    "BEFORE DELETE ON subscriptions",
    "BEFORE UPDATE ON mailboxes WHEN NEW.state = 'disconnecting' AND NEW.receipt LIKE '%\"state\":\"deleted\"%'",
    "BEFORE UPDATE ON mailboxes WHEN NEW.state = 'disconnected'",
    "BEFORE UPDATE ON connections WHEN NEW.status = 'disconnecting' AND OLD.status = NEW.status",
    "BEFORE UPDATE ON connections WHEN NEW.status = 'disconnected'",
];

/// The database refuses this one, and the one before it no more.
async fn refuse(world: &World, step: usize) {
    let mut statements = Vec::new();
    if let Some(name) = STEPS.get(step) {
        statements
            .push(format!("CREATE TRIGGER step_{step} {name} BEGIN SELECT RAISE(ABORT, 'refused'); END"));
    }
    if step > 0 {
        statements.push(format!("DROP TRIGGER step_{}", step - 1));
    }
    let statements = &statements;
    let done: Result<_, StoreError> = world
        .store
        .transaction("refuse", |tx| {
            async move {
                for statement in statements {
                    let sql = sqlx::AssertSqlSafe(statement.clone());
                    followthrough::sql!(tx, execute, sql)?;
                }
                Ok(())
            }
            .scope_boxed()
        })
        .await;
    done.expect("the store answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_step_cannot_be_written_down_it_goes_on_from_there() {
    let (world, id) = followed(Pair::Embedded).await.expect("the embedded pair is always there");
    refuse(&world, 0).await;
    assert_eq!(ask(&world, id).await.0, 202);
    let jobs = world.api(Method::GET, "/v1/jobs?kind=connection.disconnect", None).await.1;
    let job = jobs["jobs"][0]["id"].as_str().expect("an id").to_owned();
    for (step, name) in STEPS.iter().enumerate() {
        let before = world.job(&job).await.expect("the row").fence;
        // The second try from now on has seen nothing but this refusal.
        let tried = || async {
            let row = world.job(&job).await.expect("the row");
            row.fence >= before + 2 && row.code.as_deref() == Some("store_unavailable")
        };
        world.until("it is tried again", tried).await;
        assert!(world.has_token(id).await, "{name}");
        assert_eq!(shown(&world, id).await["status"], "disconnecting", "{name}");
        refuse(&world, step + 1).await;
    }
    let receipt = ended(&world, id).await;
    let said = &receipt["mailboxes"][0]["subscriptions"];
    assert_eq!((&said["state"], lives_at_microsoft(&world)), (&json!("deleted"), 0), "{receipt}");
    // What Microsoft said first stands, however often it was asked again.
    let statuses: Vec<_> =
        said["deleted"].as_array().expect("a list").iter().map(|one| &one["status"]).collect();
    assert_eq!(statuses, [204, 204], "{receipt}");
    assert_eq!(the_receipt(&world).await, receipt);
    assert_eq!(receipts(&world, "mailbox.disconnected").len(), 1);
    world.until_state(&job, "succeeded").await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_has_begun_comes_to_its_end_whenever_it_was_to_be_over() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some((world, _)) = followed(pair).await else { continue };
        world.sim().inject(Fault::status(500, When::Before).path(CALLS).times(0));
        let mut envelope = world.envelope("end", "mailbox.disconnect", json!({"mailbox": SHARED}));
        let over_at = world.clock.now() + TimeDelta::seconds(5);
        envelope["expires_at"] = json!(over_at);
        world.publish(&[envelope]).await;
        world.until("it has begun", || async { row(&world).await.state == "disconnecting" }).await;
        world.until("its time is over", || async { world.clock.now() > over_at }).await;
        world.sim().clear_faults();
        world.until_state("end", "succeeded").await;
        assert_eq!(lives_at_microsoft(&world), 0);
        world.close().await;
    }
}
