//! `email.send`: what was confirmed leaves once, whatever Exchange answers.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use chrono::{DateTime, TimeDelta, Utc};
use followthrough::store::StoreError;
use followthrough_tests::broker::within;
use followthrough_tests::world::{ADA, Pair, World};
use http::Method;
use m365_sim::Fault;
use m365_sim::directory::MailboxRight;
use m365_sim::fault::When;
use m365_sim::graph::{NewMessage, SentMail};
use scoped_futures::ScopedFutureExt;
use serde_json::{Value, json};

const SUPPORT: &str = "support@acme.example";
const SALES: &str = "sales@acme.example";

async fn world() -> World {
    connected(Pair::Embedded, |_| {}).await.expect("the embedded pair is always there")
}

async fn connected(pair: Pair, change: impl FnOnce(&mut followthrough::config::Config)) -> Option<World> {
    let world = World::open_with(pair, change).await?;
    world.connect(ADA, "outlook-email").await;
    world.connect(ADA, "shared-mailbox").await;
    world.sim().clear_calls();
    Some(world)
}

fn letter() -> Value {
    json!({
        "to": [{"email": "bob@contoso.example", "name": "Bob"}], "bcc": [{"email": "carol@acme.example"}],
        "subject": "Offer", "body": {"format": "markdown", "content": "An **offer**"},
        "attachments": [{"name": "a.txt", "content_type": "text/plain", "content_base64": "QUFB"}],
        "confirmation": {"by": ADA, "at": "2026-01-15T09:30:00Z"},
    })
}

fn from(mailbox: &str) -> Value {
    let mut payload = letter();
    payload["mailbox"] = json!(mailbox);
    payload
}

fn draft(id: &str, at: &str) -> Value {
    json!({"draft_id": id, "confirmation": {"by": ADA, "at": at}})
}

fn by_hand(world: &World, mailbox: &str, written: &str) -> String {
    world.sim().graph().mailbox(mailbox).deliver(NewMessage {
        received: Some(written.parse().expect("a moment")),
        draft: true,
        to: vec!["bob@contoso.example".into()],
        ..NewMessage::new(mailbox, "By hand", "<p>Hello</p>")
    })
}

fn sent(world: &World) -> Vec<SentMail> {
    world.sim().graph().sent_mail()
}

fn drafts(world: &World, of: &str) -> Vec<Value> {
    world.sim().graph().mailbox(of).drafts()
}

fn sends(world: &World) -> usize {
    world.sim().calls().iter().filter(|call| call.path.ends_with("/send")).count()
}

async fn succeeded(world: &World, id: &str, payload: Value) -> Value {
    let row = world.run(id, "email.send", payload, "succeeded").await;
    serde_json::from_str(&row.result.expect("a result")).expect("JSON")
}

/// Runs a job that ends otherwise, with this code.
async fn refused(world: &World, id: &str, payload: Value, state: &str, code: &str) -> String {
    let row = world.run(id, "email.send", payload, state).await;
    assert_eq!(row.code.as_deref(), Some(code), "{:?}", row.message);
    if state == "dead" {
        world.expect_dead(code);
    }
    row.message.unwrap_or_default()
}

async fn release(world: &World, id: &str) {
    let asked = json!({"workspace": world.workspace, "ids": [id]});
    let (status, answer) = world.api(Method::POST, "/v1/jobs/release", Some(&asked)).await;
    assert!(status == 200 && answer["released"][0]["done"] == true, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirmed_email_leaves_as_it_was_written_and_its_copy_is_seen() {
    let world = world().await;
    let result = succeeded(&world, "one", letter()).await;
    assert_eq!(result["state"], "sent");
    let mails = sent(&world);
    assert_eq!(mails.len(), 1);
    let mail = &mails[0];
    assert_eq!((mail.from.as_str(), mail.sender.as_str()), (ADA, ADA));
    assert_eq!(
        (&mail.to, &mail.bcc),
        (&vec!["bob@contoso.example".into()], &vec!["carol@acme.example".into()])
    );
    assert!(mail.content.contains("<strong>offer</strong>"), "{}", mail.content);
    assert_eq!(mail.attachments, ["a.txt"]);
    assert_eq!(result["internet_message_id"], mail.internet_message_id.as_str());
    let copy = world.sim().graph().mailbox(ADA).sent();
    assert_eq!((copy.len(), &copy[0]["id"]), (1, &result["message_id"]));
    assert!(drafts(&world, ADA).is_empty());
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_exchange_took_and_does_not_show_yet_is_submitted() {
    let world = world().await;
    world.sim().graph().switches.send_delay_ms = 3_600_000;
    let result = succeeded(&world, "late", letter()).await;
    assert_eq!((&result["state"], sends(&world)), (&json!("submitted"), 1));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_that_went_through_is_never_made_again_whatever_was_answered() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = connected(pair, |_| {}).await else { continue };
        let after = |status: u16| Fault::status(status, When::After);
        let answers = [
            ("lost", Fault::lost_after()),
            ("504", after(504)),
            ("503", after(503).header("Retry-After", "1")),
            ("500", after(500)),
            ("429", after(429).header("Retry-After", "1")),
            ("404", after(404)),
            ("200", after(200)),
            // Accepted is accepted. What else it says is heeded: nobody asks for the copy at once.
            ("202", after(202).header("Retry-After", "1")),
        ];
        for (n, (name, answer)) in answers.into_iter().enumerate() {
            world.sim().inject(answer.method("POST").path("*/send"));
            let result = succeeded(&world, name, letter()).await;
            assert_eq!(result["state"], if name == "202" { "submitted" } else { "sent" }, "{name}");
            assert_eq!((sends(&world), sent(&world).len()), (n + 1, n + 1), "{name}");
        }
        assert!(drafts(&world, ADA).is_empty());
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_that_provably_did_not_happen_is_made_again() {
    let world = world().await;
    let before = |status: u16| Fault::status(status, When::Before);
    let answers = [
        ("lost", Fault::lost_before()),
        ("504", before(504)),
        ("500", before(500)),
        ("429", before(429).header("Retry-After", "1")),
    ];
    for (n, (name, answer)) in answers.into_iter().enumerate() {
        world.sim().inject(answer.method("POST").path("*/send"));
        let result = succeeded(&world, name, letter()).await;
        assert_eq!(result["state"], "sent", "{name}");
        assert_eq!((sends(&world), sent(&world).len()), (2 * (n + 1), n + 1), "{name}");
        let row = world.job(name).await.expect("the row");
        assert_eq!(row.attempt, 2, "{name}: watching is no attempt");
    }
    assert!(drafts(&world, ADA).is_empty());
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_with_another_id_is_found_by_its_marker_or_its_message_id() {
    let world = world().await;
    for (id, marker) in [("by-marker", true), ("by-message-id", false)] {
        {
            let mut graph = world.sim().graph();
            graph.switches.immutable_id_survives_send = false;
            graph.switches.extended_survive_send = marker;
        }
        world.sim().inject(Fault::status(504, When::After).method("POST").path("*/send"));
        let result = succeeded(&world, id, letter()).await;
        assert_eq!(result["state"], "sent");
        let copies = world.sim().graph().mailbox(ADA).sent();
        assert!(copies.iter().any(|copy| copy["id"] == result["message_id"]), "{id}");
    }
    assert_eq!((sends(&world), sent(&world).len()), (2, 2));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_that_transport_may_have_taken_waits_for_a_person() {
    // Whether Exchange shows that it took the draft is not documented; nothing may depend on it.
    for (shows, calls) in [(true, 1), (false, 2)] {
        let world = world().await;
        {
            let mut graph = world.sim().graph();
            graph.switches.submit_changes_key = shows;
            graph.switches.send_delay_ms = 3_600_000;
        }
        world.sim().inject(Fault::lost_after().method("POST").path("*/send"));
        refused(&world, "slow", letter(), "parked", "ambiguous").await;
        let row = world.job("slow").await.expect("the row");
        assert_eq!((row.cause.as_deref(), sends(&world)), (Some("ambiguous"), calls));
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_that_nobody_could_look_for_waits_for_a_person_and_is_not_called_dead() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let slowly = connected(pair, |config| config.retry.ladder = vec!["3s".into(), "4s".into()]);
        let Some(world) = slowly.await else { continue };
        let lost = world.sim().inject(Fault::lost_after().method("POST").path("*/send"));
        world.publish(&[world.envelope("unknown", "email.send", letter())]).await;
        let sim = world.sim().clone();
        within("the answer to be lost", sim.until(|sim| sim.fault_hits(lost).1 >= 1)).await;
        let away = world.sim().inject(Fault::status(500, When::Before).method("GET").times(0));
        world.until_state("unknown", "parked").await;
        let row = world.job("unknown").await.expect("the row");
        assert_eq!((row.cause.as_deref(), row.attempt), (Some("ambiguous"), 8), "{:?}", row.code);
        assert!(world.sim().fault_hits(away).1 >= 7, "it was looked for in each attempt");
        assert_eq!((sends(&world), sent(&world).len()), (1, 1));
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_that_asks_for_patience_closes_the_mailbox_for_everybody() {
    let world = world().await;
    let asks = Fault::status(202, When::After).header("Retry-After", "60");
    world.sim().inject(asks.method("POST").path("*/send"));
    let before = world.clock.now();
    assert_eq!(succeeded(&world, "slow", letter()).await["state"], "submitted");
    let sql = "SELECT key, not_before FROM gates WHERE not_before IS NOT NULL";
    let closed = world.store.read(|tx| {
        async move { Ok::<_, StoreError>(followthrough::sql!(tx, all(String, DateTime<Utc>), sql)?) }
            .scope_boxed()
    });
    let closed = closed.await.expect("the gates");
    assert!(closed.len() == 1 && closed[0].1 > before + TimeDelta::seconds(50), "{closed:?}");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_that_vanished_after_an_unanswered_send_waits_for_a_person() {
    let world = connected(Pair::Embedded, |config| config.mailbox.unanswered = "15s".into()).await;
    let world = world.expect("the embedded pair is always there");
    let lost = world.sim().inject(Fault::lost_before().method("POST").path("*/send"));
    world.publish(&[world.envelope("gone", "email.send", letter())]).await;
    let sim = world.sim().clone();
    within("the send to be lost", sim.until(|sim| sim.fault_hits(lost).1 == 1)).await;
    let id = drafts(&world, ADA)[0]["id"].as_str().expect("an id").to_owned();
    assert!(world.sim().graph().mailbox(ADA).remove_message(&id));
    world.until_state("gone", "parked").await;
    let row = world.job("gone").await.expect("the row");
    assert_eq!((row.cause.as_deref(), row.code.as_deref()), (Some("ambiguous"), Some("ambiguous")));
    assert_eq!((sends(&world), sent(&world).len()), (1, 0));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_time_is_over_with_a_send_in_doubt_is_not_called_untried() {
    let world = connected(Pair::Embedded, |config| config.mailbox.unanswered = "25s".into()).await;
    let world = world.expect("the embedded pair is always there");
    world.sim().inject(Fault::lost_before().method("POST").path("*/send"));
    let mut envelope = world.envelope("late", "email.send", letter());
    envelope["expires_at"] = json!(world.clock.now() + chrono::TimeDelta::seconds(20));
    world.publish(&[envelope]).await;
    world.until_state("late", "parked").await;
    let row = world.job("late").await.expect("the row");
    assert_eq!((row.cause.as_deref(), row.code.as_deref()), (Some("ambiguous"), Some("ambiguous")));
    assert_eq!((sends(&world), drafts(&world, ADA).len()), (1, 1));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_with_the_send_under_way_does_not_send_twice() {
    for (pair, when) in
        [(Pair::Embedded, When::Before), (Pair::Embedded, When::After), (Pair::Servers, When::After)]
    {
        let Some(mut world) = connected(pair, |_| {}).await else { continue };
        let held = world.sim().inject(Fault::hold(when).method("POST").path("*/send"));
        world.publish(&[world.envelope("cut", "email.send", letter())]).await;
        let sim = world.sim().clone();
        within("the send to be held", sim.until(|sim| sim.holds(held))).await;
        world.cut().await;
        sim.release(held);
        within("it to end", sim.until(|sim| sim.calls().iter().all(|call| call.ended.is_some()))).await;
        world.start().await;
        world.until_state("cut", "succeeded").await;
        assert_eq!((sends(&world), sent(&world).len()), (1, 1), "{when:?}");
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_is_sent_as_it_is_and_once() {
    let world = world().await;
    let id = by_hand(&world, ADA, "2026-01-14T10:00:00Z");
    let result = succeeded(&world, "first", draft(&id, "2026-01-15T09:30:00Z")).await;
    assert_eq!((&result["state"], &result["message_id"]), (&json!("sent"), &json!(id)));
    refused(&world, "again", draft(&id, "2026-01-15T09:30:00Z"), "dead", "not_a_draft").await;
    for (job, nothing) in [("unknown", "AAMkNothing"), ("malformed", "nonsense/+%")] {
        let told = refused(&world, job, draft(nothing, "2026-01-15T09:30:00Z"), "dead", "not_found").await;
        assert!(told.contains("payload.draft_id"), "{told}");
    }
    // One that another job made; confirmed after that.
    let mut payload = letter();
    payload.as_object_mut().expect("fields").remove("confirmation");
    let made = world.run("made", "email.draft", payload, "succeeded").await;
    let made: Value = serde_json::from_str(&made.result.expect("a result")).expect("JSON");
    let now = world.clock.now().to_rfc3339();
    succeeded(&world, "second", draft(made["message_id"].as_str().expect("an id"), &now)).await;
    assert_eq!((sends(&world), sent(&world).len()), (2, 2));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_after_the_confirmation_is_not_sent() {
    let world = world().await;
    let id = by_hand(&world, ADA, "2026-01-15T09:30:01Z");
    refused(&world, "theirs", draft(&id, "2026-01-15T09:30:00Z"), "dead", "draft_changed").await;
    refused(&world, "future", draft(&id, "2099-01-01T00:00:00Z"), "dead", "invalid_confirmation").await;
    // Our own, which somebody edits while it waits for a right.
    refused(&world, "ours", from(SUPPORT), "parked", "send_as_denied").await;
    let ours = drafts(&world, SUPPORT)[0]["id"].as_str().expect("an id").to_owned();
    assert!(world.sim().graph().mailbox(SUPPORT).edit_draft(&ours, "<p>Something else</p>"));
    grant(&world, true, false);
    release(&world, "ours").await;
    world.until_state("ours", "dead").await;
    assert_eq!(world.job("ours").await.expect("the row").code.as_deref(), Some("draft_changed"));
    world.expect_dead("draft_changed");
    assert!(sent(&world).is_empty());
    assert_eq!((drafts(&world, ADA).len(), drafts(&world, SUPPORT).len()), (1, 1), "they stay");
    world.close().await;
}

fn grant(world: &World, send_as: bool, send_on_behalf: bool) {
    let right = MailboxRight {
        mailbox: SUPPORT.into(),
        user: ADA.into(),
        full_access: true,
        send_as,
        send_on_behalf,
    };
    assert!(world.sim().grant(right));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_mailbox_sends_once_the_right_is_there() {
    let world = world().await;
    let told = refused(&world, "shared", from(SUPPORT), "parked", "send_as_denied").await;
    for named in [ADA, SUPPORT, "Send As", "Send on Behalf", "the draft stays"] {
        assert!(told.contains(named), "{told}");
    }
    let row = world.job("shared").await.expect("the row");
    assert_eq!((row.cause.as_deref(), row.attempt, sends(&world)), (Some("needs_admin"), 1, 1));
    assert_eq!((drafts(&world, SUPPORT).len(), sent(&world).len()), (1, 0));
    grant(&world, false, true);
    release(&world, "shared").await;
    world.until_state("shared", "succeeded").await;
    let mails = sent(&world);
    assert_eq!(mails.len(), 1);
    assert_eq!((mails[0].from.as_str(), mails[0].sender.as_str()), (SUPPORT, ADA), "on behalf");
    assert_eq!(world.sim().graph().mailbox(SUPPORT).sent().len(), 1, "filed where the mailbox is");
    assert!(drafts(&world, SUPPORT).is_empty());
    grant(&world, true, false);
    let id = by_hand(&world, SUPPORT, "2026-01-14T10:00:00Z");
    let mut payload = draft(&id, "2026-01-15T09:30:00Z");
    payload["mailbox"] = json!(SUPPORT);
    succeeded(&world, "theirs", payload).await;
    let mails = sent(&world);
    assert_eq!((mails[1].from.as_str(), mails[1].sender.as_str()), (SUPPORT, SUPPORT), "as the mailbox");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connected_mailbox_learns_what_may_be_written_as_it() {
    let world = world().await;
    world
        .run("connect", "mailbox.connect", json!({"address": SUPPORT, "backfill_days": 0}), "succeeded")
        .await;
    let known = async || {
        let (_, listed) = world.api(Method::GET, "/v1/mailboxes?workspace=acme", None).await;
        let known = &listed["mailboxes"][0]["capabilities"];
        (known["drafts"].clone(), known["send"].clone())
    };
    assert_eq!(known().await.0["state"], "unproven");
    refused(&world, "shared", from(SUPPORT), "parked", "send_as_denied").await;
    let denied = (json!({"state": "proven"}), json!({"state": "refused", "reason": "send_as_denied"}));
    assert_eq!(known().await, denied);
    grant(&world, true, false);
    release(&world, "shared").await;
    world.until_state("shared", "succeeded").await;
    assert_eq!(known().await, (json!({"state": "proven"}), json!({"state": "proven"})));
    world.run("leave", "mailbox.disconnect", json!({"mailbox": SUPPORT}), "succeeded").await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mailbox_without_full_access_is_named_as_such() {
    let world = world().await;
    let id = by_hand(&world, SALES, "2026-01-14T10:00:00Z");
    let mut theirs = draft(&id, "2026-01-15T09:30:00Z");
    theirs["mailbox"] = json!(SALES);
    let mut reply = from(SALES);
    reply["reply_to_message"] = json!(id);
    for (job, payload) in [("new", from(SALES)), ("draft", theirs), ("reply", reply)] {
        refused(&world, job, payload, "parked", "no_mailbox_access").await;
        let row = world.job(job).await.expect("the row");
        assert_eq!((row.cause.as_deref(), row.attempt), (Some("needs_admin"), 1), "{job}");
    }
    assert_eq!((sends(&world), drafts(&world, SALES).len()), (0, 1));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_by_exchange_leaves_the_draft_and_says_so() {
    let world = world().await;
    let body = json!({"error": {"code": "ErrorInvalidRecipients", "message": "…"}});
    world.sim().inject(Fault::status(400, When::Before).body(body).method("POST").path("*/send"));
    let told = refused(&world, "refused", letter(), "dead", "invalid_recipients").await;
    assert!(told.contains("nothing was sent, the draft stays in Drafts"), "{told}");
    assert_eq!((sends(&world), drafts(&world, ADA).len(), sent(&world).len()), (1, 1, 0));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_is_sent_with_its_email_and_lost_chunks_are_sent_again() {
    let world = world().await;
    let content = BASE64_STANDARD.encode(vec![7_u8; 5_000_000]);
    let mut payload = letter();
    payload["attachments"]
        .as_array_mut()
        .expect("files")
        .push(json!({"name": "plan.pdf", "content_type": "application/pdf", "content_base64": content}));
    world.sim().inject(Fault::lost_after().method("PUT").nth(1));
    succeeded(&world, "large", payload).await;
    let mails = sent(&world);
    assert_eq!((mails.len(), &mails[0].attachments), (1, &vec!["a.txt".into(), "plan.pdf".into()]));
    let puts = world.sim().calls_to("PUT", "/");
    assert_eq!(puts.len(), 2, "taken up where the session said");
    assert!(puts.iter().all(|call| call.header("authorization").is_none()));
    let copy = &world.sim().graph().mailbox(ADA).sent()[0];
    assert_eq!(copy["attachments"][1]["size"], 5_000_000);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_that_is_accepted_with_a_wish_for_patience_is_not_made_again() {
    let world = world().await;
    let accepted = Fault::status(202, When::After).header("retry-after", "2");
    world.sim().inject(accepted.method("POST").path("*/send"));
    succeeded(&world, "patience", letter()).await;
    let calls = world.sim().calls();
    assert_eq!(calls.iter().filter(|call| call.path.ends_with("/send")).count(), 1);
    assert_eq!(sent(&world).len(), 1);
    world.close().await;
}
