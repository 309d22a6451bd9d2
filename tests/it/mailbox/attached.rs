//! What is attached to the mail of a shared mailbox: kept, fetched, moved, refused.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use followthrough::http::Answer;
use followthrough_tests::logs;
use followthrough_tests::world::{ADA, Pair, World};
use http::Method;
use m365_sim::Fault;
use m365_sim::fault::When;
use m365_sim::graph::{Fill, NewMessage};
use serde_json::{Value, json};

use super::support::{SHARED, connect, deliver, in_step, leave, row, settled, stored, told};

/// Small enough that a story's files are above it.
const MOST: u32 = 1_000;
const PLANTED: &str = "planted-attachment-3c9e";

/// A connected mailbox of which contents of at most so many bytes are kept.
async fn keeping(pair: Pair, most: u32) -> Option<World> {
    let world = World::open_with(pair, |config| config.mailbox.attachment_bytes = most).await?;
    world.connect(ADA, "shared-mailbox").await;
    connect(&world, 0).await;
    Some(world)
}

fn file(name: &str, content: &[u8]) -> Value {
    json!({
        "@odata.type": "#microsoft.graph.fileAttachment", "name": name, "contentType": "application/pdf",
        "contentBytes": BASE64_STANDARD.encode(content),
    })
}

fn item(name: &str, kind: &str, mut item: Value) -> Value {
    item["@odata.type"] = json!(format!("microsoft.graph.{kind}"));
    json!({"@odata.type": "#microsoft.graph.itemAttachment", "name": name, "item": item})
}

/// A mail with these attachments arrives; gives back its id and theirs.
fn deliver_with(world: &World, subject: &str, attachments: &[Value]) -> (String, Vec<String>) {
    deliver_troubled(world, subject, attachments, &[])
}

/// The same; whoever asks for the content of the first, the second, … meets the first, the second, … fault.
fn deliver_troubled(
    world: &World,
    subject: &str,
    attachments: &[Value],
    faults: &[Fault],
) -> (String, Vec<String>) {
    let mut graph = world.sim().graph();
    let mut mailbox = graph.mailbox(SHARED);
    let id = mailbox.deliver(NewMessage {
        internet_message_id: Some(format!("<{}@customer.example>", subject.replace(' ', "-"))),
        received: Some(world.sim().now()),
        ..NewMessage::new(
            "Nora <nora@customer.example>",
            subject,
            "<p>See attached</p><img src=\"cid:logo\">",
        )
    });
    let attached: Vec<String> = attachments.iter().map(|one| mailbox.attach(&id, one)).collect();
    // Nobody sees the mail before the mailbox is let go.
    for (fault, attachment) in faults.iter().zip(&attached) {
        world.sim().inject(fault.clone().path(&format!("*/{attachment}/$value")));
    }
    (id, attached)
}

/// What the API says of each attachment's content, in order; nothing while the message is not there.
async fn contents(world: &World, message: &str) -> Vec<String> {
    let path = format!("/v1/mailboxes/{}/messages/{message}", row(world).await.id);
    let shown = world.api(Method::GET, &path, None).await.1;
    let all = shown["attachments"].as_array().into_iter().flatten();
    all.map(|one| one["content"].as_str().unwrap_or_default().to_owned()).collect()
}

async fn until_contents(world: &World, message: &str, expected: &[&str]) {
    let what = format!("the attachments are {expected:?}");
    world.until(&what, || async { contents(world, message).await == expected }).await;
}

async fn address(world: &World, message: &str, attachment: &str) -> String {
    format!("/v1/mailboxes/{}/messages/{message}/attachments/{attachment}", row(world).await.id)
}

async fn download(world: &World, message: &str, attachment: &str) -> Answer {
    world.answer(Method::GET, &address(world, message, attachment).await, None).await
}

async fn served(world: &World, message: &str, attachment: &str) -> Vec<u8> {
    let answer = download(world, message, attachment).await;
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    answer.body.to_vec()
}

/// How often content was asked for at Microsoft.
fn fetches(world: &World) -> usize {
    world.sim().calls().iter().filter(|call| call.path.ends_with("/$value")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_small_is_kept_byte_for_byte_and_of_the_rest_the_name() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = keeping(pair, MOST).await else { continue };
        let before = logs::lines().len();
        let bytes: Vec<u8> = (0..1_000_u32).map(|n| u8::try_from(n % 256).expect("a byte")).collect();
        let planted = format!("{PLANTED} {}", "x".repeat(700));
        let attachments = [
            file("Angebot für \"Süd\".pdf", &bytes),
            file("larger.pdf", &[7; 1_001]),
            item("Lunch", "event", json!({"subject": PLANTED})),
            // As JSON it is small, as MIME it is not.
            item(
                "FW",
                "message",
                json!({"subject": "FW", "body": {"contentType": "text", "content": planted}}),
            ),
            json!({"@odata.type": "#microsoft.graph.referenceAttachment", "name": "Plan.docx"}),
            file("empty.pdf", b""),
        ];
        let mut picture = file("logo.png", b"picture");
        (picture["isInline"], picture["contentId"]) = (json!(true), json!("logo"));
        let (within, pictures) = deliver_with(&world, "Nothing but a picture", &[picture]);
        until_contents(&world, &within, &["kept"]).await;
        assert_eq!(served(&world, &within, &pictures[0]).await, b"picture");
        let (message, ids) = deliver_with(&world, "Files", &attachments);
        until_contents(&world, &message, &["kept", "too_large", "kept", "too_large", "none", "kept"]).await;
        let first = download(&world, &message, &ids[0]).await;
        assert_eq!(first.body, bytes);
        let header = |name: &str| first.headers[name].to_str().expect("ASCII");
        assert_eq!(header("content-type"), "application/pdf");
        assert_eq!(
            header("content-disposition"),
            "attachment; filename=\"Angebot f_r _S_d_.pdf\"; filename*=UTF-8''Angebot%20f%C3%BCr%20_S%C3%BCd_.pdf"
        );
        assert_eq!((header("x-content-type-options"), header("cache-control")), ("nosniff", "no-store"));
        let lunch = download(&world, &message, &ids[2]).await;
        assert_eq!(lunch.headers["content-type"], "text/calendar");
        assert!(lunch.body.starts_with(b"BEGIN:VCALENDAR") && lunch.body.ends_with(b"END:VCALENDAR\r\n"));
        assert_eq!(served(&world, &message, &ids[5]).await, b"");
        for (attachment, status, code) in [
            (ids[1].as_str(), 409, "content_too_large"),
            (&ids[3], 409, "content_too_large"),
            (&ids[4], 409, "no_content"),
            ("nonsense", 404, "not_found"),
        ] {
            let answer = download(&world, &message, attachment).await;
            let body: Value = answer.json().expect("JSON");
            assert_eq!((answer.status.as_u16(), body["error"]["code"].as_str()), (status, Some(code)));
        }
        // Neither the link nor what is told to be larger was asked for, and nothing twice.
        assert_eq!(fetches(&world), 5);
        let listed = format!("/v1/mailboxes/{}/messages", row(&world).await.id);
        let listed = world.api(Method::GET, &listed, None).await.1;
        assert_eq!(listed["messages"][0]["attachments"][0]["content"], "kept", "{listed}");
        let path = address(&world, &message, &ids[0]).await;
        leave(&world).await;
        let kept = world.answer(Method::GET, &path, None).await;
        assert_eq!((kept.status.as_u16(), &kept.body[..]), (200, &bytes[..]), "the whole message is kept");
        assert!(!logs::lines()[before..].contains(PLANTED), "content in a log");
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_moves_takes_along_what_is_attached_to_it() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = keeping(pair, MOST).await else { continue };
        // Twins in all but content.
        let (message, ids) = deliver_with(
            &world,
            "Moved",
            &[file("a.pdf", b"one"), file("a.pdf", b"two"), file("b.pdf", b"3")],
        );
        until_contents(&world, &message, &["kept", "kept", "kept"]).await;
        assert!(world.sim().graph().mailbox(SHARED).move_message(&message, "Archive"));
        in_step(&world).await;
        assert_eq!(served(&world, &message, &ids[0]).await, b"one");
        settled(&world).await;
        let new = world.sim().graph().mailbox(SHARED).desktop_move(&message, "Junk Email").expect("moved");
        in_step(&world).await;
        until_contents(&world, &new, &["kept", "kept", "kept"]).await;
        let path = format!("/v1/mailboxes/{}/messages/{new}", row(&world).await.id);
        let shown = world.api(Method::GET, &path, None).await.1;
        for (n, content) in ["one", "two", "3"].into_iter().enumerate() {
            let moved = shown["attachments"][n]["id"].as_str().expect("an id");
            assert_ne!(moved, ids[n]);
            assert_eq!(served(&world, &new, moved).await, content.as_bytes());
        }
        assert_eq!(fetches(&world), 3, "what is here is not fetched again");
        // What is taken off goes here as well.
        let first = shown["attachments"][0]["id"].as_str().expect("an id").to_owned();
        assert!(world.sim().graph().mailbox(SHARED).detach(&new, &first));
        world.sim().graph().expire_delta(SHARED);
        until_contents(&world, &new, &["kept", "kept"]).await;
        assert_eq!(download(&world, &new, &first).await.status, 404);
        leave(&world).await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_a_fetch_the_content_is_there_in_the_end() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = keeping(pair, MOST).await else { continue };
        let patient = |fault: Fault| fault.header("Retry-After", "1");
        let faults = [
            Fault::lost_before(),
            Fault::lost_after(),
            patient(Fault::status(503, When::Before)),
            patient(Fault::status(429, When::Before)),
            Fault::status(504, When::After),
            Fault::status(500, When::Before),
            Fault::status(403, When::Before),
        ];
        let content = |n: usize| format!("content {n}").into_bytes();
        let files: Vec<Value> = (0..faults.len()).map(|n| file(&format!("{n}.pdf"), &content(n))).collect();
        let (message, ids) = deliver_troubled(&world, "Trouble", &files, &faults);
        until_contents(&world, &message, &["kept"; 7]).await;
        assert!(fetches(&world) >= 2 * faults.len(), "each was met");
        for (n, id) in ids.iter().enumerate() {
            assert_eq!(served(&world, &message, id).await, content(n));
        }
        assert_eq!(row(&world).await.state, "connected");
        assert!(told(&world, "mailbox.degraded").is_empty());
        leave(&world).await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_had_stands_in_the_way_of_nothing_and_what_is_gone_is_forgotten() {
    let Some(world) = keeping(Pair::Embedded, MOST).await else { return };
    let denied = json!({"error": {"code": "ErrorAccessDenied", "message": "Access is denied."}});
    let corrupt = json!({"error": {"code": "ErrorMimeContentConversionFailed", "message": "No."}});
    let faults = [(403, denied), (500, corrupt)]
        .map(|(status, body)| Fault::status(status, When::Before).body(body).times(0));
    let files = [file("bad", b"bad"), file("corrupt", b"corrupt")];
    let (gone, ids) = deliver_troubled(&world, "Bad", &files, &faults);
    until_contents(&world, &gone, &["wanted", "refused"]).await;
    let answer = download(&world, &gone, &ids[0]).await;
    assert_eq!(answer.json::<Value>().expect("JSON")["error"]["code"], "content_wanted");
    let (good, _) = deliver_with(&world, "Good", &[file("good", b"good")]);
    until_contents(&world, &good, &["kept"]).await;
    assert_eq!(row(&world).await.state, "connected");
    assert!(world.sim().graph().mailbox(SHARED).remove_message(&gone));
    world.until("it is gone", || async { told(&world, "mailbox.message.removed").len() == 1 }).await;
    world.sim().clear_faults();
    until_contents(&world, &gone, &["none", "refused"]).await;
    in_step(&world).await;
    leave(&world).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn live_mail_does_not_wait_for_content_and_a_fleet_that_is_cut_off_loses_none() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(mut world) = keeping(pair, MOST).await else { continue };
        let slow = world.sim().inject(Fault::delay_ms(250).path("*/$value").times(0));
        let content = |n: usize| format!("content {n}").into_bytes();
        let all: Vec<Value> = (0..40).map(|n| file(&format!("{n}.pdf"), &content(n))).collect();
        let (message, ids) = deliver_with(&world, "Many", &all);
        let kept =
            async |world: &World| contents(world, &message).await.iter().filter(|one| *one == "kept").count();
        for cut in 1..=2 {
            world.until("some are here", || async { kept(&world).await >= cut * 3 }).await;
            let live = deliver(&world, "Meanwhile");
            let seen = async || stored(&world).await.iter().any(|row| row.id == live);
            world.until("live mail is here", seen).await;
            assert!(kept(&world).await < 40, "it came between them");
            world.cut().await;
            world.start().await;
        }
        let hits = world.sim().fault_hits(slow).1;
        assert!(hits >= 6, "{hits}");
        world.sim().clear_faults();
        world.until("all are here", || async { kept(&world).await == 40 }).await;
        for (n, id) in ids.iter().enumerate() {
            assert_eq!(served(&world, &message, id).await, content(n));
        }
        // Two cuts may each have lost the answer to one call that was under way.
        assert!(fetches(&world) <= 42, "{}", fetches(&world));
        leave(&world).await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_asks_for_no_content_and_another_one_wants_what_a_higher_limit_lets_in() {
    let opened = World::open_with(Pair::Embedded, |config| config.mailbox.attachment_bytes = 0).await;
    let Some(mut world) = opened else { return };
    world.connect(ADA, "shared-mailbox").await;
    let fill = Fill { messages: 300, folders: 3, ..Fill::default() };
    world.sim().graph().fill(SHARED, &fill);
    connect(&world, 0).await;
    let filled = async |world: &World, times: usize| {
        let path = format!("/v1/mailboxes/{}/backfill", row(world).await.id);
        assert_eq!(world.api(Method::POST, &path, Some(&json!({"days": 40}))).await.0, 202);
        world
            .until("it is filled", || async { told(world, "mailbox.backfill.completed").len() == times })
            .await;
    };
    filled(&world, 1).await;
    in_step(&world).await;
    assert_eq!(fetches(&world), 0);
    let requests = told(&world, "mailbox.backfill.completed")[0]["data"]["requests"].clone();
    world.stop().await;
    world.config.mailbox.attachment_bytes = 30_000;
    world.start().await;
    filled(&world, 2).await;
    assert_eq!(told(&world, "mailbox.backfill.completed")[1]["data"]["requests"], requests);
    let states = async |world: &World| {
        let path = format!("/v1/mailboxes/{}/messages?limit=200", row(world).await.id);
        let (mut states, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = world.api(Method::GET, &format!("{path}{cursor}"), None).await.1;
            for message in page["messages"].as_array().into_iter().flatten() {
                let all = message["attachments"].as_array().into_iter().flatten();
                states.extend(all.map(|one| one["content"].as_str().unwrap_or_default().to_owned()));
            }
            let Some(next) = page["next_cursor"].as_str() else { return states };
            cursor = format!("&cursor={next}");
        }
    };
    world
        .until("all are fetched", || async { !states(&world).await.iter().any(|state| state == "wanted") })
        .await;
    let states = states(&world).await;
    let count = |state: &str| states.iter().filter(|one| *one == state).count();
    assert_eq!(
        (count("kept") + count("too_large"), count("kept")),
        (states.len(), fetches(&world)),
        "{states:?}"
    );
    assert!(count("kept") > 10 && count("too_large") > 0, "{states:?}");
    leave(&world).await;
    world.close().await;
}
