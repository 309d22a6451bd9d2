//! Stories about what Microsoft tells of changes, over HTTP, on both engines.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use followthrough::clock::Clock;
use followthrough::http::Call;
use followthrough_tests::proxy::{Mode, Proxy};
use followthrough_tests::servers::postgres;
use futures::future::join_all;
use http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use url::Url;

use crate::site::{Kept, Site};

const STATE: &str = "the client state of the first";

fn change(subscription: &str, state: &str, kind: &str, message: &str) -> Value {
    json!({
        "subscriptionId": subscription, "clientState": state, "changeType": kind, "tenantId": "whoever",
        "subscriptionExpirationDateTime": "2030-01-01T00:00:00Z", "resource": format!("Users/u/Messages/{message}"),
        "resourceData": {"id": message, "@odata.etag": "W/\"1\""}, "somethingNew": {"a": [1]},
    })
}

fn event(subscription: &str, state: &str, event: &str) -> Value {
    json!({"subscriptionId": subscription, "clientState": state, "lifecycleEvent": event})
}

fn batch(items: &[Value]) -> Value {
    json!({"value": items, "validationTokens": []})
}

/// As Microsoft does: again while the answer is 503, which a busy machine may give.
async fn taken(site: &Site, to: &Url, body: &Value) {
    loop {
        let status = site.post_to(to, "graph/notifications", body.to_string().into_bytes()).await.status;
        if status == 202 {
            return;
        }
        assert_eq!(status, 503);
    }
}

/// A token that no client would send: the listener refuses it while it is still being written.
async fn megabyte(at: &Url, path: &str) -> String {
    let address = at.socket_addrs(|| None).expect("an address")[0];
    let mut stream = TcpStream::connect(address).await.expect("a listener");
    let head = format!("GET /{path}?validationToken={} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(1024 * 1024));
    let _ = stream.write_all(head.as_bytes()).await;
    let mut answer = vec![0; 1024];
    let length = stream.read(&mut answer).await.unwrap_or_default();
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

fn encoded(token: &[u8]) -> String {
    url::form_urlencoded::byte_serialize(token).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_is_echoed_byte_by_byte_on_both_addresses_and_asks_nobody() {
    let site = Site::on_sqlite(Clock::system(), true).await;
    // Nothing but the listener is there.
    site.fleet.services.store.close().await;
    let tokens: [&[u8]; 4] = [
        b"Validation: Testing client application reachability for subscription Request-Id: 7b1f",
        b"<script>alert('x')</script> & \"quotes\" + 100% \r\n",
        "Zürich \u{1F4E8}".as_bytes(),
        b"\xff\xfe\0",
    ];
    for path in ["graph/notifications", "graph/lifecycle"] {
        for method in [Method::GET, Method::POST] {
            for token in tokens {
                let url = format!("{}{path}?a=b&validationToken={}", site.public, encoded(token));
                let call = Call::new("story.handshake", method.clone(), Url::parse(&url).expect("a URL"));
                // Whatever the body says.
                let answer = site.send(call.bytes("text/plain", "{\"value\": 7".into())).await;
                assert_eq!((answer.status.as_u16(), answer.body.as_ref()), (200, token), "{method} {path}");
                assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
                assert_eq!(answer.headers["x-content-type-options"], "nosniff");
            }
            for (length, expected) in [(4096, 200), (4097, 400), (60_000, 400)] {
                let url = format!("{}{path}?validationToken={}", site.public, "a".repeat(length));
                let call = Call::new("story.handshake", method.clone(), Url::parse(&url).expect("a URL"));
                assert_eq!(site.send(call).await.status, expected, "{length}");
            }
        }
        let answer = megabyte(&site.public, path).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
        let none = site.send(Call::get("story.handshake", site.public.join(path).expect("a URL"))).await;
        assert_eq!(none.status, 400);
    }
    let refused = site.post("graph/notifications", &batch(&[change("s", "x", "created", "m")])).await;
    assert_eq!(refused.status, 503, "the store is closed");
    assert!(refused.headers.contains_key("retry-after"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_item_of_a_mixed_batch_is_believed_or_not_by_its_own_client_state() {
    for site in Site::each().await {
        let (inbox, sent) = (site.inbox.id.clone(), site.sent.id.clone());
        site.plant(&inbox, Some("s-1"), STATE).await;
        site.plant(&sent, Some("s-2"), "another").await;
        let answer = site
            .post(
                "graph/notifications",
                &batch(&[
                    change("s-1", STATE, "created", "A="),
                    change("s-1", "another", "created", "forged"),
                    change("s-2", STATE, "created", "forged"),
                    change("s-1", "", "created", "forged"),
                    json!({"subscriptionId": "s-1", "changeType": "created", "resourceData": {"id": "forged"}}),
                    change("s-2", "another", "updated", "B="),
                    change("s-3", STATE, "created", "unknown"),
                    change("s-1", STATE, "exploded", "unknown"),
                    change("s-1\u{0}", STATE, "created", "unknown"),
                    change("s-1", STATE, "created", "nul\u{0}"),
                    json!(null),
                    json!({"subscriptionId": ["s-1"]}),
                    json!("text"),
                ]),
            )
            .await;
        assert_eq!((answer.status.as_u16(), answer.body.len()), (202, 0));
        let expected = [("A=", "created"), ("B=", "updated")];
        let expected = expected.map(|(id, change)| (id.to_owned(), change.to_owned()));
        assert_eq!(site.notices().await, expected);
        for folder in [&site.inbox, &site.sent] {
            assert!(site.folder(folder).await.noticed_at.is_some());
        }
        let counts: Vec<i64> = site.subscriptions().await.iter().map(|one| one.notices).collect();
        assert_eq!(counts, [2, 1], "one of them named no message that can be kept");
        // Each forgery alone is answered as well as the truth.
        for forged in [change("s-1", "x", "created", "F"), change("s-9", "x", "deleted", "F")] {
            assert_eq!(site.post("graph/notifications", &batch(&[forged])).await.status, 202);
        }
        assert_eq!(site.notices().await.len(), 2);
        site.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_notification_is_refused_and_too_much_is_too_much() {
    let site = Site::on_sqlite(Clock::system(), true).await;
    for path in ["graph/notifications", "graph/lifecycle"] {
        for body in ["", "{", "[]", "{}", "null", "{\"value\": {}}", "<html>"] {
            let answer = site.post_to(&site.public, path, body.into()).await;
            assert_eq!(answer.status, 400, "{body}");
            assert_eq!(answer.json::<Value>().expect("JSON")["error"]["code"], "no_notification");
        }
        assert_eq!(site.post(path, &batch(&[])).await.status, 202);
        let full = format!("{{\"value\":[{}]}}", vec!["0"; 500_000].join(","));
        assert_eq!(site.post_to(&site.public, path, full.into_bytes()).await.status, 202);
        assert_eq!(site.post_to(&site.public, path, vec![b' '; 1024 * 1024 + 1]).await.status, 413);
    }
    site.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_is_one_however_often_it_comes_to_whichever_process_in_whatever_order() {
    for site in Site::each().await {
        site.plant(&site.inbox.id.clone(), Some("s-1"), STATE).await;
        let (other, at) = site.another().await;
        let kinds = ["deleted", "updated", "created"];
        let posts: Vec<(Url, Value)> = (0..40)
            .flat_map(|message| kinds.map(|kind| change("s-1", STATE, kind, &format!("m{message}"))))
            .flat_map(|item| {
                [&site.public, &at, &site.public].map(|to| (to.clone(), batch(std::slice::from_ref(&item))))
            })
            .collect();
        join_all(posts.iter().map(|(to, body)| taken(&site, to, body))).await;
        assert_eq!(site.notices().await.len(), 120, "each change of each message once");
        // Played again days later.
        for (to, body) in posts.iter().rev().take(30) {
            taken(&site, to, body).await;
        }
        assert_eq!(site.notices().await.len(), 120);
        other.drain().await;
        site.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_that_overtakes_the_answer_to_its_create_is_known_by_its_client_state() {
    for site in Site::each().await {
        site.plant(&site.inbox.id.clone(), None, STATE).await;
        let early = |state: &str| batch(&[change("not stored yet", state, "created", "early")]);
        assert_eq!(site.post("graph/notifications", &early("guessed")).await.status, 202);
        assert_eq!(site.notices().await.len(), 0);
        assert_eq!(site.post("graph/notifications", &early(STATE)).await.status, 202);
        assert_eq!(site.notices().await.len(), 1);
        assert!(site.folder(&site.inbox).await.noticed_at.is_some());
        site.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lifecycle_events_ask_for_what_they_are_about() {
    for site in Site::each().await {
        site.plant(&site.inbox.id.clone(), Some("s-1"), STATE).await;
        site.plant(&site.sent.id.clone(), Some("s-2"), "another").await;
        let tell = async |what: &str, state: &str| {
            site.post("graph/lifecycle", &batch(&[event("s-1", state, what)])).await.status.as_u16()
        };
        let asked = async || site.subscriptions().await.into_iter().map(|one| one.asked).collect::<Vec<_>>();
        for what in ["reauthorizationRequired", "subscriptionRemoved", "missed"] {
            assert_eq!(tell(what, "forged").await, 202);
        }
        assert_eq!(asked().await, [None, None]);
        assert_eq!(site.row().await.tend_at, None);
        assert_eq!(tell("reauthorizationRequired", STATE).await, 202);
        assert_eq!(asked().await, [Some("reauthorize".to_owned()), None]);
        assert!(site.row().await.tend_at.is_some_and(|at| at <= site.clock.now()));
        assert_eq!(tell("subscriptionRemoved", STATE).await, 202);
        assert_eq!(asked().await[0].as_deref(), Some("create"));
        assert_eq!(tell("reauthorizationRequired", STATE).await, 202);
        assert_eq!(asked().await[0].as_deref(), Some("create"), "what is gone needs more than a token");
        assert_eq!(site.folder(&site.sent).await.noticed_at, None);
        assert_eq!(tell("missed", STATE).await, 202);
        for folder in [&site.inbox, &site.sent] {
            assert!(site.folder(folder).await.noticed_at.is_some(), "everything may have changed");
        }
        site.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_notifications_of_one_folder_are_one_folder_to_look_at_and_few_commits() {
    for site in Site::each().await {
        site.plant(&site.inbox.id.clone(), Some("s-1"), STATE).await;
        let before = site.fleet.services.store.commits();
        let bodies: Vec<Value> =
            (0..1000).map(|n| batch(&[change("s-1", STATE, "created", &format!("m{n}"))])).collect();
        join_all(bodies.iter().map(|body| taken(&site, &site.public, body))).await;
        let commits = site.fleet.services.store.commits() - before;
        assert!(commits < 600, "{commits} commits");
        assert_eq!(site.notices().await.len(), 1000);
        assert!(site.folder(&site.inbox).await.noticed_at.is_some());
        assert_eq!(site.folder(&site.sent).await.noticed_at, None);
        site.close().await;
    }
}

/// A store behind a proxy that is cut again and again, as a process that is killed between commit and answer would.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_202_is_stored_whatever_happens_and_nothing_else_is_answered_so() {
    let Some(database) = postgres().await else { return };
    let url = Url::parse(&database.url).expect("a URL");
    let upstream = format!("{}:{}", url.host_str().expect("a host"), url.port().unwrap_or(5432));
    let proxy = Arc::new(Proxy::to(&upstream).await);
    let (url, reached) = (database.url.clone(), proxy.url(&database.url));
    let site = Site::on(url, reached, Kept::Server(database), Clock::system(), true).await;
    site.plant(&site.inbox.id.clone(), Some("s-1"), STATE).await;
    let trouble = proxy.clone();
    let cutting = tokio::spawn(async move {
        let clock = Clock::system();
        for round in 0_u64..20 {
            clock.sleep(Duration::from_millis(150 + round * 37 % 200)).await;
            trouble.set(Mode::Refusing);
            trouble.cut();
            clock.sleep(Duration::from_millis(20)).await;
            trouble.set(Mode::Open);
        }
    });
    let mut acknowledged = BTreeSet::new();
    let (mut number, mut refusals) = (0, 0);
    while !cutting.is_finished() || refusals == 0 || acknowledged.is_empty() {
        let ids: Vec<String> = (number..number + 20).map(|n| format!("m{n}")).collect();
        number += 20;
        let bodies: Vec<Value> = ids.iter().map(|id| batch(&[change("s-1", STATE, "created", id)])).collect();
        let answers = join_all(bodies.iter().map(|body| site.post("graph/notifications", body))).await;
        for (id, answer) in ids.into_iter().zip(answers) {
            match answer.status.as_u16() {
                202 => drop(acknowledged.insert(id)),
                503 => refusals += 1,
                other => panic!("answered {other}"),
            }
        }
        assert!(number < 200_000, "{refusals} refused, {} taken", acknowledged.len());
    }
    cutting.await.expect("no panic");
    let stored: BTreeSet<String> = site.notices().await.into_iter().map(|(id, _)| id).collect();
    let lost: Vec<&String> = acknowledged.difference(&stored).collect();
    assert!(lost.is_empty(), "{} answered, lost {lost:?}", acknowledged.len());
    assert!(!acknowledged.is_empty());
    // It heals by itself, and what was refused is taken when it comes again.
    site.until("it is taken again", || async {
        let again = batch(&[change("s-1", STATE, "created", "again")]);
        site.post("graph/notifications", &again).await.status == 202
    })
    .await;
    site.close().await;
}
