//! `email.draft`: one draft, as it was meant, whatever Exchange does on the way.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use followthrough_tests::logs;
use followthrough_tests::world::{ADA, Pair, World};
use futures::StreamExt;
use m365_sim::Fault;
use m365_sim::fault::When;
use m365_sim::graph::NewMessage;
use m365_sim::journal::Area;
use serde_json::{Value, json};

async fn world() -> World {
    let world = World::open(Pair::Embedded).await.expect("the embedded pair is always there");
    world.connect(ADA, "outlook-email").await;
    world.sim().clear_calls();
    world
}

fn draft(body: &Value) -> Value {
    json!({"to": [{"email": "bob@contoso.example", "name": "Bob"}], "subject": "Offer", "body": body})
}

fn hello() -> Value {
    draft(&json!({"format": "text", "content": "Hello"}))
}

fn drafts(world: &World, of: &str) -> Vec<Value> {
    world.sim().graph().mailbox(of).drafts()
}

fn content(message: &Value) -> &str {
    message["body"]["content"].as_str().expect("a body")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_says_what_was_meant_in_each_format() {
    let world = world().await;
    for (format, content_type, given, shown) in [
        ("text", "text", "1 < 2\nline", "1 < 2\nline"),
        ("html", "html", "<p>An <b>offer</b></p>", "<p>An <b>offer</b></p>"),
        ("markdown", "html", "An **offer** <script>x</script>", "An <strong>offer</strong> &lt;script&gt;"),
    ] {
        let payload = draft(&json!({"format": format, "content": given}));
        let row = world.run(format, "email.draft", payload, "succeeded").await;
        let result: Value = serde_json::from_str(&row.result.expect("a result")).expect("JSON");
        let message = world.sim().graph().mailbox(ADA).message(result["message_id"].as_str().expect("an id"));
        let message = message.expect("the draft of the result");
        assert_eq!(message["body"]["contentType"], content_type);
        assert!(content(&message).contains(shown), "{}", content(&message));
        assert_eq!((&result["web_link"], &result["immutable_id"]), (&message["webLink"], &json!(true)));
        assert_eq!(result["conversation_id"], message["conversationId"]);
        assert_eq!(result["internet_message_id"], message["internetMessageId"]);
        assert_eq!(message["singleValueExtendedProperties"].as_array().map(Vec::len), Some(1), "its marker");
    }
    assert_eq!(drafts(&world, ADA).len(), 3);
    assert!(world.sim().graph().sent_mail().is_empty(), "nothing is sent");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_keeps_the_thread_and_leaves_the_original_unread() {
    let world = world().await;
    for (id, read) in [("unread", false), ("read", true)] {
        let original = world.sim().deliver(
            ADA,
            NewMessage {
                read,
                ..NewMessage::new(
                    "Nora <nora@contoso.example>",
                    &format!("Pump {id}"),
                    "<p>It stopped again.</p>",
                )
            },
        );
        let mut payload = draft(&json!({"format": "markdown", "content": "We send **somebody**."}));
        payload["reply_to_message"] = json!(original);
        payload["subject"] = json!(format!("Pump {id}"));
        world.run(id, "email.draft", payload, "succeeded").await;
        let all = drafts(&world, ADA);
        let reply = all.iter().find(|reply| reply["subject"] == format!("RE: Pump {id}")).expect("the reply");
        let text = content(reply);
        let (ours, theirs) = (text.find("<strong>somebody</strong>"), text.find("It stopped again."));
        assert!(ours.is_some() && ours < theirs, "{text}");
        let original = world.sim().graph().mailbox(ADA).message(&original).expect("the original");
        assert_eq!(original["isRead"], read);
        assert_eq!(original["conversationId"], reply["conversationId"]);
        // The publisher's recipients, not those that Exchange proposes.
        assert_eq!(reply["toRecipients"][0]["emailAddress"]["address"], "bob@contoso.example");
    }
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_to_a_message_that_is_gone_is_refused_and_leaves_nothing() {
    let world = world().await;
    let original = world.sim().deliver(ADA, NewMessage::new("bob@contoso.example", "Gone", "<p>…</p>"));
    world.sim().graph().mailbox(ADA).remove_message(&original);
    for (id, message) in [("gone", original.as_str()), ("nonsense", "AAMk=nonsense/+%")] {
        let mut payload = hello();
        payload["reply_to_message"] = json!(message);
        let row = world.run(id, "email.draft", payload, "dead").await;
        assert_eq!(row.code.as_deref(), Some("not_found"));
        assert!(row.message.as_deref().is_some_and(|message| message.contains("payload.reply_to_message")));
        world.expect_dead("not_found");
    }
    assert!(drafts(&world, ADA).is_empty());
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_arrive_with_a_new_draft_and_with_a_reply() {
    let world = world().await;
    let original = world.sim().deliver(ADA, NewMessage::new("bob@contoso.example", "Plan", "<p>?</p>"));
    let mut payload = hello();
    payload["attachments"] = json!([
        {"name": "a.txt", "content_type": "text/plain", "content_base64": "QUFB"},
        {"name": "a.txt", "content_type": "text/plain", "content_base64": "QkJC"},
    ]);
    world.run("new", "email.draft", payload.clone(), "succeeded").await;
    payload["reply_to_message"] = json!(original);
    // The answer to the second file is lost: it is there, and is not attached again.
    world.sim().inject(Fault::lost_after().method("POST").path("*/attachments").nth(2));
    world.run("reply", "email.draft", payload, "succeeded").await;
    let all = drafts(&world, ADA);
    assert_eq!(all.len(), 2);
    for message in all {
        assert_eq!(message["attachments"].as_array().map(Vec::len), Some(2), "{message:#}");
    }
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_became_visible_late_is_removed() {
    let world = world().await;
    world.sim().inject(Fault::lost_after().method("POST").path("/v1.0/me/messages"));
    // Exchange does not find yet what it has just stored: in Drafts, then in the whole mailbox.
    let nothing =
        || Fault::status(200, When::Before).body(json!({"value": []})).method("GET").area(Area::Graph);
    world.sim().inject(nothing().times(2));
    let row = world.run("late", "email.draft", hello(), "succeeded").await;
    assert_eq!(world.sim().calls_to("POST", "/v1.0/me/messages").len(), 2, "it was made twice");
    let all = drafts(&world, ADA);
    assert_eq!(all.len(), 1, "and one was removed");
    let result: Value = serde_json::from_str(&row.result.expect("a result")).expect("JSON");
    assert_eq!(result["message_id"], all[0]["id"], "the result names the one that stayed");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_in_a_shared_mailbox_is_made_with_the_consent_for_it() {
    let world = world().await;
    let mut payload = hello();
    payload["mailbox"] = json!("support@acme.example");
    let row = world.run("shared", "email.draft", payload, "parked").await;
    assert_eq!((row.cause.as_deref(), row.code.as_deref()), (Some("needs_user"), Some("not_connected")));
    world.connect(ADA, "shared-mailbox").await;
    world.until_state("shared", "succeeded").await;
    let all = drafts(&world, "support@acme.example");
    assert_eq!((all.len(), drafts(&world, ADA).len()), (1, 0));
    assert_eq!(all[0]["from"]["emailAddress"]["address"], "support@acme.example");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mailbox_that_is_not_shared_with_the_user_waits_for_an_administrator() {
    let world = world().await;
    world.connect(ADA, "shared-mailbox").await;
    let mut payload = hello();
    payload["mailbox"] = json!("sales@acme.example");
    let row = world.run("foreign", "email.draft", payload, "parked").await;
    assert_eq!(row.cause.as_deref(), Some("needs_admin"), "{:?}", row.code);
    assert!(drafts(&world, "sales@acme.example").is_empty());
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_to_another_host_is_not_followed() {
    let world = world().await;
    let foreign =
        json!({"value": [], "@odata.nextLink": "https://graph.evil.example/v1.0/me/messages?$skip=1"});
    world.sim().inject(Fault::lost_after().method("POST").path("/v1.0/me/messages"));
    world
        .sim()
        .inject(Fault::status(200, When::Before).body(foreign).method("GET").area(Area::Graph).times(0));
    let row = world.run("foreign", "email.draft", hello(), "parked").await;
    // Asked for anew each time: a link belongs to its answer. Whether the draft was made nobody knows in the end.
    assert_eq!((row.code.as_deref(), row.attempt), (Some("foreign_link"), 8));
    assert_eq!(row.cause.as_deref(), Some("ambiguous"));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_larger_than_any_is_refused() {
    let world = world().await;
    let original = world.sim().deliver(ADA, NewMessage::new("bob@contoso.example", "Plan", "<p>?</p>"));
    let huge = json!({"id": "x".repeat(17 * 1024 * 1024)});
    world.sim().inject(Fault::status(200, When::Before).body(huge).method("GET").area(Area::Graph).times(0));
    let mut payload = hello();
    payload["reply_to_message"] = json!(original);
    let row = world.run("huge", "email.draft", payload, "dead").await;
    assert_eq!(row.code.as_deref(), Some("answer_too_large"), "{:?}", row.message);
    world.expect_dead("answer_too_large");
    assert!(drafts(&world, ADA).is_empty());
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_mailbox_waits_for_room() {
    let world = world().await;
    let full = json!({"error": {"code": "ErrorQuotaExceeded", "message": "The mailbox is full."}});
    world.sim().inject(Fault::status(507, When::Before).body(full).method("POST").area(Area::Graph));
    let row = world.run("full", "email.draft", hello(), "parked").await;
    assert_eq!((row.cause.as_deref(), row.code.as_deref()), (Some("mailbox_full"), Some("mailbox_full")));
    world.until("its event", || async { !world.events.about("full").is_empty() }).await;
    assert_eq!(world.events.about("full"), ["job.parked.email.draft"]);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_tool_calls_nobody() {
    let world = world().await;
    world.set_tool("email.draft", "deny").await;
    let row = world.run("denied", "email.draft", hello(), "dead").await;
    assert_eq!(row.code.as_deref(), Some("tool_denied"));
    world.expect_dead("tool_denied");
    assert!(world.sim().calls().is_empty());
    world.close().await;
}

/// Larger than one chunk of an upload.
const PLAN: usize = 4_000_000;

fn with_plan(world: &World, reply: bool) -> Value {
    let mut payload = hello();
    payload["attachments"] = json!([
        {"name": "plan.pdf", "content_type": "application/pdf", "content_base64": BASE64_STANDARD.encode(vec![7_u8; PLAN])},
        {"name": "a.txt", "content_type": "text/plain", "content_base64": "QUFB"},
    ]);
    if reply {
        let original = NewMessage::new("bob@contoso.example", "Plan", "<p>?</p>");
        payload["reply_to_message"] = json!(world.sim().deliver(ADA, original));
    }
    payload
}

/// One draft, with both files, whole.
fn is_whole(world: &World) {
    let all = drafts(world, ADA);
    assert_eq!(all.len(), 1);
    let files = all[0]["attachments"].as_array().expect("files").iter();
    let mut files: Vec<_> = files.map(|file| (file["name"].as_str(), file["size"].as_u64())).collect();
    files.sort_unstable();
    assert_eq!(files, [(Some("a.txt"), Some(3)), (Some("plan.pdf"), Some(PLAN as u64))]);
    assert!(world.sim().graph().mailbox(ADA).inbox().iter().all(|original| original["isRead"] == false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_is_uploaded_without_a_token_and_its_address_told_to_nobody() {
    let world = world().await;
    world.run("large", "email.draft", with_plan(&world, false), "succeeded").await;
    is_whole(&world);
    let puts = world.sim().calls_to("PUT", "/");
    assert_eq!(puts.len(), 2);
    assert!(puts.iter().all(|call| call.bearer.is_none() && call.header("authorization").is_none()));
    let secret = puts[0].path.rsplit('/').next().expect("the session's secret");
    assert!(secret.len() > 20 && !logs::lines().contains(secret));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_call_of_a_draft_with_a_large_file_is_lost_there_is_one_whole_draft() {
    let mut runs = Vec::new();
    for reply in [false, true] {
        let world = world().await;
        world.run("clean", "email.draft", with_plan(&world, reply), "succeeded").await;
        is_whole(&world);
        let calls = world.sim().calls().len();
        assert!(calls > 5, "{calls}");
        world.close().await;
        for nth in 1..=calls as u64 {
            runs.extend([Fault::lost_before(), Fault::lost_after()].map(|fault| (reply, fault.nth(nth))));
        }
    }
    let runs = runs.into_iter().map(async |(reply, fault)| {
        let world = world().await;
        let payload = with_plan(&world, reply);
        let fault = world.sim().inject(fault);
        let row = world.run("one", "email.draft", payload, "succeeded").await;
        assert_eq!(world.sim().fault_hits(fault).1, 1);
        assert!(row.attempt <= 2, "{} attempts", row.attempt);
        is_whole(&world);
        world.close().await;
    });
    futures::stream::iter(runs).buffer_unordered(8).collect::<Vec<_>>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_that_exchange_will_not_take_leaves_no_half_draft() {
    let world = world().await;
    let mut payload = with_plan(&world, false);
    let too_large = json!({"error": {"code": "ErrorMessageSizeExceeded", "message": "…"}});
    let refuse = Fault::status(400, When::Before).body(too_large).path("*/createUploadSession");
    world.sim().inject(refuse);
    let row = world.run("refused", "email.draft", payload.clone(), "dead").await;
    assert_eq!(row.code.as_deref(), Some("message_too_large"));
    world.expect_dead("message_too_large");
    assert!(drafts(&world, ADA).is_empty());
    // In a shared mailbox Exchange refuses the session: known before anything is called.
    world.sim().clear_calls();
    payload["mailbox"] = json!("support@acme.example");
    let code = "attachment_too_large_for_shared_mailbox";
    for kind in ["email.draft", "email.send"] {
        if kind == "email.send" {
            payload["confirmation"] = json!({"by": ADA, "at": "2026-01-15T09:30:00Z"});
        }
        let envelope = world.envelope(kind, kind, payload.clone());
        let (status, answer) = world.submit(&envelope).await;
        let path = "payload.attachments[0].content_base64";
        assert_eq!(
            (status.as_u16(), &answer["error"]["code"], &answer["error"]["path"]),
            (400, &json!(code), &json!(path))
        );
        world.publish(&[envelope]).await;
        world.expect_dead(code);
    }
    world.until("both are refused", || async { world.dead_letters().await.len() == 3 }).await;
    assert!(world.sim().calls().is_empty() && drafts(&world, "support@acme.example").is_empty());
    world.close().await;
}
