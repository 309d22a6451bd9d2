//! Nothing a publisher sends can crash, block or silently vanish.

use chrono::TimeDelta;
use followthrough::broker::MAX_BODY;
use followthrough_tests::engine::Engine;
use followthrough_tests::raw::{self, Crude};
use serde_json::json;

super::on_both_pairs!(
    whatever_is_no_job_is_a_dead_letter_with_its_reason,
    what_is_larger_than_allowed_is_a_dead_letter_at_once,
    a_header_of_any_size_keeps_no_job_from_waiting,
    an_id_with_another_payload_is_refused,
    a_refusal_does_not_repeat_what_was_sent,
);

async fn whatever_is_no_job_is_a_dead_letter_with_its_reason(world: Engine) {
    let fleet = world.process().await;
    let mut unknown_field = world.envelope("u1", "test.write", json!({}));
    unknown_field["colour"] = json!("red");
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("invalid_json", b"no json at all".to_vec()),
        ("invalid_json", vec![0xff, 0xfe, 0x00, 0x7b]),
        ("invalid_json", b"".to_vec()),
        ("invalid_json", "[".repeat(5_000).into_bytes()),
        ("invalid_envelope", unknown_field.to_string().into_bytes()),
        ("invalid_envelope", world.envelope("bad id", "test.write", json!({})).to_string().into_bytes()),
        ("invalid_envelope", b"{}".to_vec()),
        ("invalid_envelope", b"[]".to_vec()),
        ("unknown_kind", world.envelope("k1", "test.nothing", json!({})).to_string().into_bytes()),
        (
            "invalid_payload",
            world.envelope("p1", "test.write", json!({"fault": []})).to_string().into_bytes(),
        ),
        (
            "invalid_payload",
            world.envelope("p2", "test.write", json!({"faults": 7})).to_string().into_bytes(),
        ),
        ("invalid_payload", world.envelope("p3", "test.write", json!([])).to_string().into_bytes()),
    ];
    let expected = cases.len() + 1;
    for (_, body) in &cases {
        world.publish_raw("test.write", body.clone()).await;
    }
    // Unroutable: no queue of that kind.
    let elsewhere = world.envelope("k2", "test.nowhere", json!({})).to_string().into_bytes();
    world.publish_raw("test.nowhere", elsewhere).await;
    world.until("all are collected", || async { world.dead_letters().await.len() == expected }).await;
    let mut codes: Vec<String> = world.dead_letters().await.into_iter().map(|letter| letter.code).collect();
    codes.sort();
    let mut wanted: Vec<String> = cases.iter().map(|(code, _)| (*code).to_owned()).collect();
    wanted.push("unknown_kind".to_owned());
    wanted.sort();
    assert_eq!(codes, wanted);
    let letters = world.dead_letters().await;
    let of = |id: &str| letters.iter().find(|letter| letter.job_id.as_deref() == Some(id)).expect("a letter");
    assert_eq!(of("p1").path.as_deref(), Some("payload.fault"));
    assert_eq!(of("p2").path.as_deref(), Some("payload.faults"));
    assert_eq!(world.outside.started(), 0);
    // The worker is untouched.
    world.publish(&[world.envelope("ok", "test.write", json!({}))]).await;
    world.until_state("ok", "succeeded").await;
    world.at_rest().await;
    fleet.drain().await;
}

/// The embedded queue takes nothing that large; RabbitMQ does, and what is refused must leave the queue all the same.
async fn what_is_larger_than_allowed_is_a_dead_letter_at_once(world: Engine) {
    let Some(url) = world.amqp_url.clone() else { return };
    let fleet = world.process().await;
    let mut envelope = world.envelope("j1", "test.write", json!({}));
    envelope["meeting"] = json!("x".repeat(9 * 1024 * 1024));
    let body = envelope.to_string().into_bytes();
    let crude = Crude { routing_key: b"test.write", body: &body, ..Crude::default() };
    raw::publish(&url, &format!("{}.jobs", world.prefix()), &crude).await.expect("published");
    let sent = world.clock.now();
    world.until("it is collected", || async { world.dead_letters().await.len() == 1 }).await;
    assert!(world.clock.now() - sent < TimeDelta::seconds(60), "it came back before it was refused");
    let letter = &world.dead_letters().await[0];
    assert_eq!((letter.code.as_str(), letter.source.as_str()), ("too_large", "publisher"));
    assert_eq!(letter.kind.as_deref(), Some("test.write"));
    assert!(letter.body.is_empty(), "a listing holds no bodies");
    assert_eq!(world.dead_letter(letter.id).await.body, body[..MAX_BODY], "its beginning is kept");
    world.publish(&[world.envelope("ok", "test.write", json!({}))]).await;
    world.until_state("ok", "succeeded").await;
    world.at_rest().await;
    fleet.drain().await;
}

async fn a_header_of_any_size_keeps_no_job_from_waiting(world: Engine) {
    let Some(url) = world.amqp_url.clone() else { return };
    let fleet = world.process().await;
    let mut envelope = world.envelope("j1", "test.write", json!({}));
    envelope["not_before"] = json!(world.clock.now() + TimeDelta::seconds(2));
    let body = envelope.to_string().into_bytes();
    let value = vec![b'x'; 100 * 1024];
    let crude = Crude {
        routing_key: b"test.write",
        header: Some(b"traceparent"),
        value: &value,
        body: &body,
        ..Crude::default()
    };
    raw::publish(&url, &format!("{}.jobs", world.prefix()), &crude).await.expect("published");
    world.until_state("j1", "succeeded").await;
    assert!(world.dead_letters().await.is_empty());
    world.at_rest().await;
    fleet.drain().await;
}

async fn an_id_with_another_payload_is_refused(world: Engine) {
    let fleet = world.process().await;
    world.publish(&[world.envelope("j1", "test.write", json!({}))]).await;
    world.until_state("j1", "succeeded").await;
    world.publish(&[world.envelope("j1", "test.write", json!({"second": ["unavailable"]}))]).await;
    world.until("the dead letter is there", || async { world.dead_letters().await.len() == 1 }).await;
    assert_eq!(world.dead_letters().await[0].code, "id_reused");
    assert_eq!((world.state("j1").await, world.outside.effects()), ("succeeded".to_owned(), 2));
    world.at_rest().await;
    fleet.drain().await;
}

async fn a_refusal_does_not_repeat_what_was_sent(world: Engine) {
    let fleet = world.process().await;
    let secret = "S3CRET-body-text";
    world.publish(&[world.envelope("j1", "test.write", json!({"faults": secret}))]).await;
    world.publish(&[world.envelope("j2", "test.write", json!({"faults": [secret]}))]).await;
    world.until("both are collected", || async { world.dead_letters().await.len() == 2 }).await;
    for letter in world.dead_letters().await {
        assert!(!letter.message.contains(secret), "{}", letter.message);
        assert!(!letter.headers.contains(secret), "{}", letter.headers);
    }
    world.at_rest().await;
    fleet.drain().await;
}
