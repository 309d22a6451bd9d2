//! Mailboxes that cannot be connected, and those that ask for them twice.

use chrono::TimeDelta;
use followthrough_tests::world::{ADA, Pair, World};
use http::Method;
use m365_sim::directory::{Mailbox as Kept, MailboxRight};
use serde_json::{Value, json};

use super::support::{
    SHARED, connect, connected, consented, deliver, end, heard, in_step, leave, pass_until, row, stored, told,
};

async fn ask(world: &World, address: &str) -> (u16, Value) {
    let body = json!({"workspace": world.workspace, "user": ADA, "address": address, "backfill_days": 0});
    let (status, answer) = world.api(Method::POST, "/v1/mailboxes", Some(&body)).await;
    (status.as_u16(), answer)
}

async fn shown(world: &World, id: &str) -> Value {
    world.api(Method::GET, &format!("/v1/mailboxes/{id}"), None).await.1
}

#[tokio::test(flavor = "multi_thread")]
async fn one_whose_job_was_rejected_can_be_asked_for_again() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = consented(pair).await else { continue };
        world.set_tool("mailbox.connect", "ask").await;
        let (status, made) = ask(&world, SHARED).await;
        assert_eq!(status, 201, "{made}");
        let first = format!("mailbox-connect/{}", made["id"].as_str().expect("an id"));
        let second = format!("{first}/2");
        let decide = async |job: &str, what: &str| {
            let path = format!("/v1/jobs/{}/{}/{what}", world.workspace, job.replace('/', "%2F"));
            let (status, said) = world.api(Method::POST, &path, Some(&json!({"by": "grace"}))).await;
            assert!(status.is_success(), "{said}");
        };
        world.until_state(&first, "parked").await;
        decide(&first, "reject").await;
        world.until_state(&first, "rejected").await;
        assert_eq!(ask(&world, SHARED).await.0, 201);
        world.until_state(&second, "parked").await;
        assert_eq!(ask(&world, SHARED).await.0, 201, "asked while it waits");
        world.until_state(&second, "parked").await;
        decide(&second, "approve").await;
        world.until_state(&second, "succeeded").await;
        assert_eq!(world.state(&first).await, "rejected");
        assert_eq!(world.state(&format!("{first}/3")).await, "none");
        leave(&world).await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_past_that_no_store_can_name_is_refused_before_it_is_filled_in() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = World::open(pair).await else { continue };
        for since in ["+10000-01-01T00:00:00Z", "1969-12-31T23:59:59Z"] {
            let payload = json!({"mailbox": SHARED, "since": since});
            let (status, refused) = world.submit(&world.envelope("fill", "mailbox.backfill", payload)).await;
            let code = refused["error"]["code"].as_str();
            assert_eq!((status.as_u16(), code), (400, Some("invalid_payload")), "{refused}");
        }
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_reached_says_why_and_works_once_it_can() {
    let Some(world) = consented(Pair::Embedded).await else { return };
    world.sim().directory().find_mut("bob@acme.example").expect("Bob").mailbox = Kept::OnPremises;
    let mut asked = Vec::new();
    for (address, code) in [
        ("nobody@acme.example", "no_mailbox"),
        ("bob@acme.example", "mailbox_on_premises"),
        ("sales@acme.example", "no_mailbox_access"),
    ] {
        let (status, made) = ask(&world, address).await;
        assert_eq!((status, made["state"].as_str()), (201, Some("connecting")), "{made}");
        let id = made["id"].as_str().expect("an id").to_owned();
        world.until(code, || async { shown(&world, &id).await["code"] == code }).await;
        let job = format!("mailbox-connect/{id}");
        world.until_state(&job, "parked").await;
        asked.push((address, id));
    }
    // Nobody was asked for a mailbox by its entry in the directory, and nothing was read of another one.
    for call in world.sim().calls() {
        assert!(!call.path.starts_with("/v1.0/me"), "{}", call.path);
    }
    {
        let mut directory = world.sim().directory();
        let oid = |name: &str| directory.find(name).expect("somebody").oid.clone();
        let right = MailboxRight {
            mailbox: oid("sales@acme.example"),
            user: oid(ADA),
            full_access: true,
            ..MailboxRight::default()
        };
        directory.set_right(right);
    }
    let (address, id) = &asked[2];
    let (status, again) = ask(&world, address).await;
    assert_eq!((status, again["id"].as_str()), (201, Some(id.as_str())), "{again}");
    world.until("it is connected", || async { shown(&world, id).await["state"] == "connected" }).await;
    for (_, id) in &asked {
        let (status, _) = world.api(Method::DELETE, &format!("/v1/mailboxes/{id}"), None).await;
        assert_eq!(status, 202);
        world.until("it is gone", || async { shown(&world, id).await["state"] == "disconnected" }).await;
        assert!(shown(&world, id).await["receipt"]["disconnected_at"].is_string());
    }
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mailbox_is_connected_once_and_its_address_is_free_after_it() {
    let Some(world) = connected(Pair::Embedded, 0).await else { return };
    let (status, refused) = ask(&world, "Support@ACME.example").await;
    assert_eq!((status, refused["error"]["code"].as_str()), (409, Some("mailbox_exists")), "{refused}");
    let (_, listed) = world.api(Method::GET, "/v1/connections?workspace=acme", None).await;
    let connection = listed["connections"][0]["id"].as_str().expect("Ada's").to_owned();
    let path = format!("/v1/connections/{connection}");
    for (body, path) in [
        (json!({"workspace": "acme", "user": ADA, "address": "support"}), "address"),
        (json!({"workspace": "acme", "user": ADA, "address": "<b>support</b>@acme.example"}), "address"),
        (json!({"workspace": "acme", "user": ADA, "address": "support@acme.example@globex"}), "address"),
        (
            json!({"workspace": "acme", "user": ADA, "address": format!("{}@acme.example", "s".repeat(65))}),
            "address",
        ),
        (json!({"workspace": "acme", "user": ADA, "address": SHARED, "backfill_days": 366}), "backfill_days"),
    ] {
        let (status, refused) = world.api(Method::POST, "/v1/mailboxes", Some(&body)).await;
        assert_eq!((status.as_u16(), refused["error"]["path"].as_str()), (400, Some(path)), "{refused}");
    }
    leave(&world).await;
    assert_eq!(world.api(Method::DELETE, &path, None).await.0, 200);
    // The address is free again, as another mailbox.
    let (status, anew) = ask(&world, SHARED).await;
    assert_eq!((status, anew["state"].as_str()), (201, Some("connecting")), "{anew}");
    let id = anew["id"].as_str().expect("an id").to_owned();
    world.until_state(&format!("mailbox-connect/{id}"), "parked").await;
    world.api(Method::DELETE, &format!("/v1/mailboxes/{id}"), None).await;
    world.until("it is gone", || async { shown(&world, &id).await["state"] == "disconnected" }).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mailbox_whose_tool_is_denied_is_left_alone_says_so_once_and_goes_on_when_it_is_allowed() {
    const STEP: TimeDelta = TimeDelta::minutes(1);
    for pair in [Pair::Embedded, Pair::Servers] {
        let moving = World::open_moving(pair, |config| config.workers.lease = "1h".into());
        let Some(world) = moving.await else { continue };
        world.connect(ADA, "shared-mailbox").await;
        connect(&world, 0).await;
        in_step(&world).await;
        world.set_tool("mailbox.connect", "deny").await;
        let denied = || async { row(&world).await.state == "degraded" };
        pass_until(&world, STEP, "it says so", denied).await;
        assert_eq!(row(&world).await.code.as_deref(), Some("tool_denied"));
        world.sim().clear_calls();
        let later = world.clock.now() + TimeDelta::minutes(40);
        pass_until(&world, STEP, "it is tried again", || async { world.clock.now() > later }).await;
        let mail = world.sim().calls().into_iter().find(|call| call.path.starts_with("/v1.0/users"));
        assert!(mail.is_none(), "{mail:?}");
        assert!(told(&world, "job.dead").is_empty() && world.dead_letters().await.is_empty());
        let id = deliver(&world, "Meanwhile");
        world.set_tool("mailbox.connect", "allow").await;
        let here = || async { stored(&world).await.iter().any(|row| row.id == id) };
        pass_until(&world, STEP, "it goes on", here).await;
        assert_eq!(heard(&world, "mailbox.degraded").len(), 1);
        Box::pin(end(world, STEP)).await;
    }
}
