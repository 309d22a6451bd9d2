//! What only RabbitMQ can be brought into: objects that clash, headers of strangers, wrong passwords.

use std::collections::HashSet;
use std::time::Duration;

use followthrough::broker::rabbit::Rabbit;
use followthrough::broker::{Broker, BrokerError, Source, Target, header};
use followthrough::clock::Clock;
use followthrough::config::TopologyMode;
use followthrough_tests::broker::{Engine, World, body, job, jobs, next, owe, to, until};
use followthrough_tests::raw::{self, Crude};
use lapin::options::{BasicPublishOptions, ExchangeDeclareOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};

/// A stranger's own connection, without our manners.
async fn stranger(world: &World) -> (Connection, Channel) {
    let connection =
        Connection::connect(world.url(), ConnectionProperties::default()).await.expect("RabbitMQ");
    let channel = connection.create_channel().await.expect("a channel");
    (connection, channel)
}

fn name(world: &World, end: &str) -> ShortString {
    format!("{}.{end}", world.topology.prefix).into()
}

fn expect_misconfigured(refused: Result<std::sync::Arc<Rabbit>, BrokerError>) -> String {
    match refused {
        Err(BrokerError::Misconfigured(text)) => text,
        Err(other) => panic!("not for a person: {other}"),
        Ok(_) => panic!("not refused"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clash_with_an_existing_queue_names_the_object_and_the_argument() {
    let Some(world) = World::open(Engine::Rabbit).await else { return };
    let (_connection, channel) = stranger(&world).await;
    let classic = QueueDeclareOptions::durable();
    let queue = name(&world, "email.draft");
    channel.queue_declare(queue.clone(), classic, FieldTable::default()).await.expect("a classic queue");
    let text = expect_misconfigured(world.rabbit(world.url()).await);
    // Which of the many arguments that differ is named is RabbitMQ's choice.
    assert!(text.contains(queue.as_str()) && text.contains("another `x-"), "{text}");
    assert!(text.contains("found none, expected `"), "{text}");

    channel.queue_delete(queue, QueueDeleteOptions::default()).await.expect("the queue gone");
    let mut other = world.topology.clone();
    other.rungs[0].delay = Duration::from_secs(7);
    world.rabbit(world.url()).await.expect("no clash any more").close().await;
    let changed =
        Rabbit::connect(&world.url().into(), other, TopologyMode::Declare, None, Clock::system(), "test")
            .await;
    let text = expect_misconfigured(changed);
    assert!(
        text.contains("retry.1s") && text.contains("`x-message-ttl`: found `1000`, expected `7000`"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clash_with_an_existing_exchange_names_it() {
    let Some(world) = World::open(Engine::Rabbit).await else { return };
    let (_connection, channel) = stranger(&world).await;
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let exchange = name(&world, "jobs");
    let declared =
        channel.exchange_declare(exchange.clone(), ExchangeKind::Fanout, options, FieldTable::default());
    declared.await.expect("an exchange");
    let text = expect_misconfigured(world.rabbit(world.url()).await);
    assert!(text.contains(exchange.as_str()) && text.contains("found `fanout`, expected `topic`"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_or_virtual_host_is_told_without_the_password() {
    let Some(world) = World::open(Engine::Rabbit).await else { return };
    let mut url = url::Url::parse(world.url()).expect("a URL");
    url.set_password(Some("hunter2-not-this")).expect("a password");
    let text = expect_misconfigured(world.rabbit(url.as_str()).await);
    assert!(text.contains("ACCESS_REFUSED") && !text.contains("hunter2"), "{text}");
    let mut url = url::Url::parse(world.url()).expect("a URL");
    url.set_path("no-such-host");
    let text = expect_misconfigured(world.rabbit(url.as_str()).await);
    assert!(text.contains("no-such-host") && text.contains("virtual host"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_what_is_missing_and_creates_nothing() {
    let Some(world) = World::open(Engine::Rabbit).await else { return };
    let connect = async |mode| {
        Rabbit::connect(&world.url().into(), world.topology.clone(), mode, None, Clock::system(), "test")
            .await
    };
    let text = expect_misconfigured(connect(TopologyMode::Verify).await);
    assert!(text.contains(&format!("{}.dead", world.topology.prefix)), "{text}");
    connect(TopologyMode::Declare).await.expect("all declared").close().await;
    let verified = connect(TopologyMode::Verify).await.expect("nothing missing");
    owe(&*verified, &[job("email.draft", "a")]).await;
    verified.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_strangers_harm_nobody() {
    let Some(world) = World::open(Engine::Rabbit).await else { return };
    let broker = world.connect().await;
    let mut drafts = broker.subscribe(jobs("email.draft"), 5).await.expect("a subscription");
    let mut nested = AMQPValue::LongString("deep".into());
    for _ in 0..40 {
        nested = AMQPValue::FieldArray(vec![nested].into());
    }
    let mut headers = FieldTable::default();
    let mut set = |name: &str, value| {
        headers.insert(name.into(), value);
    };
    set("x-followthrough-attempt", AMQPValue::ShortShortUInt(7));
    set("x-followthrough-deferred", AMQPValue::LongString(" 12 ".into()));
    set("nested", nested);
    set("binary", AMQPValue::LongString(vec![0xff_u8, 0x00, 0xfe].into()));
    set("long", AMQPValue::LongString("x".repeat(60_000).into()));
    set("float", AMQPValue::Double(f64::MIN_POSITIVE));
    set("nothing", AMQPValue::Void);
    set("x-delivery-count", AMQPValue::LongLongInt(99));
    set("x-death", AMQPValue::LongString("not an array".into()));
    set("nul", AMQPValue::LongString("a\0b".into()));
    let properties = BasicProperties::default()
        .with_headers(headers)
        .with_timestamp(u64::MAX)
        .with_type("a.quite.different.type".into())
        .with_message_id("i".repeat(255).into());
    let (_connection, channel) = stranger(&world).await;
    let publish = |properties, text: &'static [u8]| {
        let (exchange, key) = (name(&world, "jobs"), "email.draft".into());
        channel.basic_publish(exchange, key, BasicPublishOptions::default(), text, properties)
    };
    publish(properties, b"hostile").await.expect("a publication");
    // Typed into the management page: no property at all, and no JSON.
    publish(BasicProperties::default(), b"\xff\xfe").await.expect("a publication");
    let hostile = next(&mut drafts).await;
    assert_eq!(body(&hostile), "hostile");
    let meta = &hostile.meta;
    assert_eq!(
        (meta.number("x-followthrough-attempt"), meta.number("x-followthrough-deferred")),
        (Some(7), Some(12))
    );
    assert_eq!((meta.deliveries, meta.death.as_deref(), meta.timestamp), (0, None, None));
    assert_eq!(meta.message_id.as_ref().map(String::len), Some(255));
    assert!(!serde_json::to_string(&meta.headers).expect("JSON").contains("\\u0000"));
    let bare = next(&mut drafts).await;
    assert_eq!((&bare.body[..], bare.meta.message_id.as_deref()), (&b"\xff\xfe"[..], None));
}

/// Each round a worker copies all that came, and the next copy still arrives once and in time.
#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_message_survives_many_rounds_through_every_rung() {
    let Some(world) = World::open(Engine::Rabbit).await else { return };
    let broker = world.connect().await;
    let mut drafts = broker.subscribe(jobs("email.draft"), 5).await.expect("a subscription");
    let mut events = broker.subscribe(jobs("event.create"), 5).await.expect("a subscription");
    let (_connection, channel) = stranger(&world).await;
    let mut death = FieldTable::default();
    death.insert("queue".into(), AMQPValue::LongString(name(&world, "retry.1s").as_str().into()));
    death.insert("reason".into(), AMQPValue::LongString("expired".into()));
    death.insert("count".into(), AMQPValue::LongLongInt(5));
    let copies = vec![AMQPValue::LongString("event.create".into())];
    let mut headers = FieldTable::default();
    headers.insert("x-death".into(), AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into()));
    headers.insert("CC".into(), AMQPValue::FieldArray(copies.into()));
    let properties = BasicProperties::default().with_headers(headers).with_expiration("60000".into());
    let (exchange, key) = (name(&world, "jobs"), "email.draft".into());
    let sent = channel.basic_publish(exchange, key, BasicPublishOptions::default(), b"round", properties);
    sent.await.expect("a publication");
    // The stranger's own copy; ours make none.
    next(&mut events).await.receipt.ack().await.expect("an acknowledgement");
    let mut delivery = next(&mut drafts).await;
    for round in 0..6 {
        let rung = if round % 2 == 0 { "1s" } else { "2s" };
        let mut message = to(Target::Rung { rung: rung.into(), kind: "email.draft".into() }, body(&delivery));
        message.headers = delivery
            .meta
            .headers
            .keys()
            .filter_map(|name| Some((name.clone(), delivery.meta.text(name)?)))
            .collect();
        owe(&*broker, &[message]).await;
        delivery.receipt.ack().await.expect("an acknowledgement");
        delivery = next(&mut drafts).await;
        assert_eq!((body(&delivery), delivery.meta.routing_key.as_str()), ("round", "email.draft"));
        assert_eq!(delivery.meta.death, None);
    }
    assert_eq!(broker.depth(&jobs("event.create")).await.expect("a depth").ready, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_crashes_its_workers_is_a_dead_letter_and_takes_nobody_along() {
    let Some(world) = World::open(Engine::Rabbit).await else { return };
    let broker = world.connect().await;
    let mut drafts = broker.subscribe(jobs("email.draft"), 5).await.expect("a subscription");
    let mut dead = broker.subscribe(Source::Dead, 5).await.expect("a subscription");
    let window: Vec<_> =
        (0..50).map(|number| job("email.draft", if number == 25 { "poison" } else { "fine" })).collect();
    owe(&*broker, &window).await;
    let (mut done, mut crashes) = (0, 0);
    let letter = loop {
        tokio::select! {
            delivery = next(&mut drafts) => {
                if body(&delivery) == "poison" {
                    assert_eq!(delivery.meta.deliveries, crashes);
                    crashes += 1;
                    delivery.receipt.requeue().await.expect("a requeue");
                } else {
                    delivery.receipt.ack().await.expect("an acknowledgement");
                    done += 1;
                }
            }
            letter = next(&mut dead) => break letter,
        }
    };
    while done < 49 {
        next(&mut drafts).await.receipt.ack().await.expect("an acknowledgement");
        done += 1;
    }
    assert_eq!((body(&letter), letter.meta.death.as_deref()), ("poison", Some("delivery_limit")));
    assert_eq!((crashes, letter.meta.routing_key.as_str()), (21, "email.draft"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nothing_takes_is_named_exactly_in_a_pipelined_window() {
    let Some(world) = World::open(Engine::Rabbit).await else { return };
    let broker = world.connect().await;
    let (_connection, channel) = stranger(&world).await;
    for _ in 0..20 {
        // Without it the alternate exchange leads nowhere. The window that finds it missing brings it back.
        let gone = channel.queue_delete(name(&world, "dead"), QueueDeleteOptions::default());
        gone.await.expect("the queue gone");
        let kind = |number: usize| if number.is_multiple_of(3) { "no.such.kind" } else { "email.draft" };
        let window: Vec<_> = (0..200).map(|number| job(kind(number), "x")).collect();
        for (number, answer) in broker.publish(&window).await.iter().enumerate() {
            let unroutable = matches!(answer, Err(BrokerError::Unroutable(_)));
            assert_eq!(unroutable, number % 3 == 0, "{number}: {answer:?}");
            assert!(unroutable || answer.is_ok(), "{number}: {answer:?}");
        }
    }
    // RabbitMQ says 0 of a queue that does not answer it in time.
    let depth = async || broker.depth(&jobs("email.draft")).await.expect("a depth").ready;
    until("all to be there", || async { depth().await == 20 * 133 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_exchange_is_declared_again_and_the_window_published() {
    let Some(world) = World::open(Engine::Rabbit).await else { return };
    let broker = world.connect().await;
    let (_connection, channel) = stranger(&world).await;
    let gone =
        channel.exchange_delete(name(&world, "events"), lapin::options::ExchangeDeleteOptions::default());
    gone.await.expect("the exchange gone");
    let window = [job("email.draft", "a"), to(Target::Event { kind: "job.dead.email.draft".into() }, "{}")];
    assert!(broker.publish(&window).await[1].is_err());
    owe(&*broker, &window).await;
    until("the job", || async {
        broker.depth(&jobs("email.draft")).await.is_ok_and(|depth| depth.ready >= 1)
    })
    .await;
}

/// Names and ids that are no UTF-8 end a connection of lapin, which reads them strictly, and come again.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_no_client_can_read_are_a_dead_letter_and_stop_nobody() {
    let Some(world) = World::open(Engine::Rabbit).await else { return };
    let broker = world.connect().await;
    let mut drafts = broker.subscribe(jobs("email.draft"), 5).await.expect("a subscription");
    let mut dead = broker.subscribe(Source::Dead, 5).await.expect("a subscription");
    let publish = async |routing_key: &[u8], message_id, header, body: &str| {
        let crude = Crude { routing_key, message_id, header, value: b"x", body: body.as_bytes() };
        raw::publish(world.url(), &format!("{}.jobs", world.topology.prefix), &crude)
            .await
            .expect("a publication");
    };
    owe(&*broker, &[job("email.draft", "before")]).await;
    publish(b"email.draft", Some(b"\xff\xfe"), None, "no id").await;
    publish(b"email.draft", None, Some(b"\xc3\x28"), "no header").await;
    publish(b"no.such.\xff", None, None, "no key").await;
    publish(b"email.draft", Some(b"fine"), Some(b"fine"), "fine").await;
    owe(&*broker, &[job("email.draft", "after")]).await;
    let mut done = HashSet::new();
    while done.len() < 3 {
        let delivery = next(&mut drafts).await;
        if delivery.receipt.ack().await.is_ok() {
            done.insert(body(&delivery).to_owned());
        }
    }
    assert_eq!(done, ["before", "fine", "after"].map(str::to_owned).into());
    let mut letters = HashSet::new();
    while letters.len() < 3 {
        let letter = next(&mut dead).await;
        assert_eq!(letter.meta.text(header::CODE).as_deref(), Some("invalid_properties"));
        if letter.receipt.ack().await.is_ok() {
            letters.insert(body(&letter).to_owned());
        }
    }
    assert_eq!(letters, ["no id", "no header", "no key"].map(str::to_owned).into());
    until("nothing to be left", || async {
        broker.depth(&Source::Dead).await.is_ok_and(|depth| depth.ready == 0)
    })
    .await;
}
