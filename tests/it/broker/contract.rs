//! One suite for every broker: a worker cannot tell which of them carries its jobs.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use followthrough::broker::{BrokerError, MAX_BODY, Source, Target, header};
use followthrough_tests::broker::{Engine, World, body, job, jobs, next, owe, to, until, within};
use futures::FutureExt;

/// Tells a story on every engine.
macro_rules! on_every_broker {
    ($($story:ident),* $(,)?) => {
        $(mod $story {
            use super::*;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_rabbitmq() {
                tell(Engine::Rabbit).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_sqlite() {
                tell(Engine::Sqlite).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgres() {
                tell(Engine::Postgres).await;
            }

            async fn tell(engine: Engine) {
                if let Some(world) = World::open(engine).await {
                    super::$story(&world).await;
                }
            }
        })*
    };
}

on_every_broker!(
    a_published_job_is_delivered_and_gone_after_its_ack,
    what_a_dead_subscriber_held_comes_back,
    a_delivery_dropped_without_an_answer_comes_back,
    a_requeued_delivery_comes_again,
    an_unknown_kind_becomes_a_dead_letter_with_its_body,
    a_rung_returns_a_message_under_its_kind_and_not_earlier,
    a_message_goes_round_the_ladder_and_arrives_once_each_time,
    a_window_is_answered_message_by_message,
    no_more_than_the_prefetch_is_unanswered,
    a_cancelled_subscription_gives_back_what_it_had_not_handed_out,
    concurrent_windows_lose_and_double_nothing,
    an_acknowledgement_is_given_once,
    a_closed_broker_ends_its_subscriptions_and_gives_everything_back,
);

async fn a_published_job_is_delivered_and_gone_after_its_ack(world: &World) {
    let broker = world.connect().await;
    let mut drafts = broker.subscribe(jobs("email.draft"), 5).await.expect("a subscription");
    let mut sent = job("email.draft", "{\"to\":1}");
    sent.headers = BTreeMap::from([
        (header::ATTEMPT.into(), "3".into()),
        (header::TRACEPARENT.into(), "00-ab".into()),
        ("x-death".into(), "forged".into()),
        ("CC".into(), "event.create".into()),
    ]);
    let before = world.clock.now();
    assert!(broker.publish(std::slice::from_ref(&sent)).await[0].is_ok());
    let delivery = next(&mut drafts).await;
    assert_eq!(body(&delivery), "{\"to\":1}");
    let meta = &delivery.meta;
    assert_eq!(meta.message_id.as_deref(), Some(sent.message_id.to_string().as_str()));
    assert_eq!((meta.kind.as_deref(), meta.routing_key.as_str()), (Some("email.draft"), "email.draft"));
    assert_eq!(meta.content_type.as_deref(), Some("application/json"));
    // In whole seconds.
    let while_it_was_published = before - chrono::TimeDelta::seconds(1)..=world.clock.now();
    assert!(meta.timestamp.is_some_and(|at| while_it_was_published.contains(&at)));
    assert_eq!((meta.redelivered, meta.deliveries, meta.death.as_deref()), (false, 0, None));
    assert_eq!(
        (meta.number(header::ATTEMPT), meta.text(header::TRACEPARENT)),
        (Some(3), Some("00-ab".into()))
    );
    assert!(!meta.headers.contains_key("x-death") && !meta.headers.contains_key("CC"));
    delivery.receipt.ack().await.expect("an acknowledgement");
    drafts.cancel().await;
    assert!(drafts.next().await.is_none());
    let depth = broker.depth(&jobs("email.draft")).await.expect("a depth");
    assert_eq!((depth.ready, broker.depth(&jobs("event.create")).await.expect("a depth").ready), (0, 0));
    broker.close().await;
}

async fn what_a_dead_subscriber_held_comes_back(world: &World) {
    let (first, second) = (world.connect().await, world.connect().await);
    let mut held = first.subscribe(jobs("email.draft"), 5).await.expect("a subscription");
    owe(&*first, &[job("email.draft", "a"), job("email.draft", "b")]).await;
    let a = next(&mut held).await;
    drop((held, a));
    let mut drafts = second.subscribe(jobs("email.draft"), 5).await.expect("a subscription");
    let again = [next(&mut drafts).await, next(&mut drafts).await];
    let bodies: HashSet<_> = again.iter().map(body).collect();
    assert_eq!(bodies, HashSet::from(["a", "b"]));
    let started = again.iter().find(|delivery| body(delivery) == "a").expect("it is among them");
    assert!(started.meta.redelivered && started.meta.deliveries >= 1);
}

async fn a_delivery_dropped_without_an_answer_comes_back(world: &World) {
    let broker = world.connect().await;
    let mut drafts = broker.subscribe(jobs("email.draft"), 1).await.expect("a subscription");
    owe(&*broker, &[job("email.draft", "a")]).await;
    for _ in 0..3 {
        drop(next(&mut drafts).await);
    }
    let delivery = next(&mut drafts).await;
    assert_eq!((body(&delivery), delivery.meta.deliveries), ("a", 3));
}

async fn a_requeued_delivery_comes_again(world: &World) {
    let broker = world.connect().await;
    let mut drafts = broker.subscribe(jobs("email.draft"), 5).await.expect("a subscription");
    owe(&*broker, &[job("email.draft", "a")]).await;
    let delivery = next(&mut drafts).await;
    delivery.receipt.requeue().await.expect("a requeue");
    let again = next(&mut drafts).await;
    assert_eq!((body(&again), &again.meta.message_id), ("a", &delivery.meta.message_id));
    again.receipt.ack().await.expect("an acknowledgement");
}

async fn an_unknown_kind_becomes_a_dead_letter_with_its_body(world: &World) {
    let broker = world.connect().await;
    owe(&*broker, &[job("no.such.kind", "precious")]).await;
    let mut dead = broker.subscribe(Source::Dead, 5).await.expect("a subscription");
    let letter = next(&mut dead).await;
    assert_eq!((body(&letter), letter.meta.routing_key.as_str()), ("precious", "no.such.kind"));
    assert_eq!(letter.meta.death, None);
    letter.receipt.ack().await.expect("an acknowledgement");
}

async fn a_rung_returns_a_message_under_its_kind_and_not_earlier(world: &World) {
    let broker = world.connect().await;
    let mut events = broker.subscribe(jobs("event.create"), 5).await.expect("a subscription");
    let mut drafts = broker.subscribe(jobs("email.draft"), 5).await.expect("a subscription");
    let rung = |rung: &str, kind: &str| Target::Rung { rung: rung.into(), kind: kind.into() };
    let before = Instant::now();
    // The two-second rung is asked first: it must not hold up the other.
    owe(&*broker, &[to(rung("2s", "event.create"), "late"), to(rung("1s", "email.draft"), "early")]).await;
    let early = next(&mut drafts).await;
    assert!(before.elapsed() >= Duration::from_secs(1), "after {:?}", before.elapsed());
    let late = next(&mut events).await;
    assert!(before.elapsed() >= Duration::from_secs(2), "after {:?}", before.elapsed());
    for (delivery, kind, text) in [(early, "email.draft", "early"), (late, "event.create", "late")] {
        assert_eq!((body(&delivery), delivery.meta.routing_key.as_str()), (text, kind));
        assert_eq!((delivery.meta.redelivered, delivery.meta.death.as_deref()), (false, None));
        delivery.receipt.ack().await.expect("an acknowledgement");
    }
}

async fn a_message_goes_round_the_ladder_and_arrives_once_each_time(world: &World) {
    let broker = world.connect().await;
    let mut drafts = broker.subscribe(jobs("email.draft"), 5).await.expect("a subscription");
    let mut message = job("email.draft", "round");
    // The last is a rung of an earlier ladder: the nearest shorter one takes it.
    for rung in ["1s", "2s", "1s", "1500ms"] {
        message.target = Target::Rung { rung: rung.into(), kind: "email.draft".into() };
        owe(&*broker, std::slice::from_ref(&message)).await;
        let delivery = next(&mut drafts).await;
        // As a worker does that copies what came: nothing of it may travel.
        message.headers = delivery.meta.headers.keys().map(|name| (name.clone(), "copied".into())).collect();
        delivery.receipt.ack().await.expect("an acknowledgement");
    }
    assert!(drafts.next().now_or_never().is_none());
}

async fn a_window_is_answered_message_by_message(world: &World) {
    let broker = world.connect().await;
    let mut large = job("email.draft", "");
    large.body = vec![b' '; MAX_BODY + 1].into();
    let window = [
        job("email.draft", "a"),
        large,
        to(Target::Event { kind: "job.succeeded.email.draft".into() }, "{}"),
        to(Target::Rung { rung: "never".into(), kind: "email.draft".into() }, "b"),
        to(Target::Dead { kind: "email.draft".into() }, "c"),
        job("no.such.kind", "d"),
    ];
    let answers = within("the answers", broker.publish(&window)).await;
    assert!(matches!(answers[1], Err(BrokerError::TooLarge(size)) if size == MAX_BODY + 1));
    assert!(matches!(&answers[3], Err(BrokerError::Unroutable(target)) if target.contains("never")));
    for index in [0, 2, 4, 5] {
        assert!(answers[index].is_ok(), "{index}: {:?}", answers[index]);
    }
    assert_eq!(answers.len(), window.len());
    let mut dead = broker.subscribe(Source::Dead, 5).await.expect("a subscription");
    let letters = [next(&mut dead).await, next(&mut dead).await];
    assert_eq!(letters.iter().map(body).collect::<HashSet<_>>(), HashSet::from(["c", "d"]));
    assert!(broker.publish(&[]).await.is_empty());
}

async fn no_more_than_the_prefetch_is_unanswered(world: &World) {
    let broker = world.connect().await;
    let window: Vec<_> = (0..10).map(|number| job("email.draft", &number.to_string())).collect();
    owe(&*broker, &window).await;
    let mut drafts = broker.subscribe(jobs("email.draft"), 3).await.expect("a subscription");
    let mut held = vec![next(&mut drafts).await, next(&mut drafts).await, next(&mut drafts).await];
    let ready = async || broker.depth(&jobs("email.draft")).await.expect("a depth").ready;
    until("seven to stay", || async { ready().await == 7 }).await;
    assert!(drafts.next().now_or_never().is_none());
    for _ in 0..7 {
        held.remove(0).receipt.ack().await.expect("an acknowledgement");
        held.push(next(&mut drafts).await);
    }
    assert_eq!(held.iter().map(body).collect::<HashSet<_>>(), HashSet::from(["7", "8", "9"]));
}

async fn a_cancelled_subscription_gives_back_what_it_had_not_handed_out(world: &World) {
    let broker = world.connect().await;
    let mut drafts = broker.subscribe(jobs("email.draft"), 8).await.expect("a subscription");
    let window: Vec<_> = (0..8).map(|number| job("email.draft", &number.to_string())).collect();
    owe(&*broker, &window).await;
    let running = next(&mut drafts).await;
    let depth = async || broker.depth(&jobs("email.draft")).await.expect("a depth");
    until("all to be on their way", || async { depth().await.ready == 0 }).await;
    until("its consumer to be counted", || async { depth().await.consumers == 1 }).await;
    within("the cancel", drafts.cancel()).await;
    assert!(drafts.next().await.is_none());
    until("seven to be back", || async { depth().await.ready == 7 }).await;
    running.receipt.ack().await.expect("what runs may still be acknowledged");
    until("the consumer to be gone", || async { depth().await.consumers == 0 }).await;
    let mut others = broker.subscribe(jobs("email.draft"), 8).await.expect("a subscription");
    let mut seen = HashSet::new();
    for _ in 0..7 {
        let delivery = next(&mut others).await;
        seen.insert(body(&delivery).to_owned());
        delivery.receipt.ack().await.expect("an acknowledgement");
    }
    assert!(seen.len() == 7 && !seen.contains(body(&running)));
}

async fn concurrent_windows_lose_and_double_nothing(world: &World) {
    let broker = world.connect().await;
    let mut drafts = broker.subscribe(jobs("email.draft"), 50).await.expect("a subscription");
    let window = |task: usize| {
        (0..20).map(|number| job("email.draft", &format!("{task}-{number}"))).collect::<Vec<_>>()
    };
    let publishing = futures::future::join_all((0..20).map(|task| {
        let (broker, window) = (broker.clone(), window(task));
        async move { broker.publish(&window).await }
    }));
    let consuming = async {
        let mut seen = HashSet::new();
        for _ in 0..400 {
            let delivery = next(&mut drafts).await;
            assert!(seen.insert(body(&delivery).to_owned()), "{} came twice", body(&delivery));
            delivery.receipt.ack().await.expect("an acknowledgement");
        }
        seen.len()
    };
    let (answers, seen) = tokio::join!(publishing, consuming);
    assert!(answers.iter().flatten().all(Result::is_ok));
    assert_eq!(seen, 400);
}

async fn an_acknowledgement_is_given_once(world: &World) {
    let broker = world.connect().await;
    let mut drafts = broker.subscribe(jobs("email.draft"), 1).await.expect("a subscription");
    owe(&*broker, &[job("email.draft", "a"), job("email.draft", "b")]).await;
    let delivery = next(&mut drafts).await;
    delivery.receipt.ack().await.expect("an acknowledgement");
    assert!(matches!(delivery.receipt.ack().await, Err(BrokerError::AckLost)));
    assert!(matches!(delivery.receipt.requeue().await, Err(BrokerError::AckLost)));
    // The channel has survived that, and the place in the prefetch is free once, not twice.
    assert_eq!(body(&next(&mut drafts).await), "b");
}

async fn a_closed_broker_ends_its_subscriptions_and_gives_everything_back(world: &World) {
    let (first, second) = (world.connect().await, world.connect().await);
    let mut drafts = first.subscribe(jobs("email.draft"), 5).await.expect("a subscription");
    owe(&*first, &[job("email.draft", "a"), job("email.draft", "b")]).await;
    let running = next(&mut drafts).await;
    within("the farewell", first.close()).await;
    // What was buffered may still come out; then it is over.
    within("the end", async { while drafts.next().await.is_some() {} }).await;
    assert!(running.receipt.ack().await.is_err());
    assert!(first.publish(&[job("email.draft", "c")]).await[0].is_err());
    let mut others = second.subscribe(jobs("email.draft"), 5).await.expect("a subscription");
    let bodies = [next(&mut others).await, next(&mut others).await];
    assert_eq!(bodies.iter().map(body).collect::<HashSet<_>>(), HashSet::from(["a", "b"]));
}
