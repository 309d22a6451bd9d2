//! RabbitMQ in trouble: consumers come back, nothing is lost, nothing waits for ever.

use std::collections::HashSet;
use std::process::Command;
use std::time::{Duration, Instant};

use followthrough::broker::{Broker, BrokerError, Health};
use followthrough_tests::broker::{Engine, World, body, job, jobs, next, owe, topology, until, within};
use followthrough_tests::proxy::{Mode, Proxy};
use followthrough_tests::servers;
use futures::FutureExt;
use lapin::options::QueueDeleteOptions;
use lapin::{Connection, ConnectionProperties};
use url::Url;

fn upstream(url: &str) -> String {
    let url = Url::parse(url).expect("a URL");
    format!("{}:{}", url.host_str().expect("a host"), url.port().unwrap_or(5672))
}

/// Two seconds of silence are a dead peer: for tests on one machine only.
fn impatient(url: &str) -> String {
    let mut url = Url::parse(url).expect("a URL");
    url.set_query(Some("heartbeat=1"));
    url.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_come_back_after_their_queue_is_deleted() {
    let Some(world) = World::open(Engine::Rabbit).await else { return };
    let broker = world.connect().await;
    let mut first = broker.subscribe(jobs("email.draft"), 5).await.expect("a subscription");
    owe(&*broker, &[job("email.draft", "before")]).await;
    let held = next(&mut first).await;
    let second = broker.subscribe(jobs("email.draft"), 5).await.expect("a subscription");
    let consumers = async || broker.depth(&jobs("email.draft")).await.map_or(0, |depth| depth.consumers);
    until("both consumers", || async { consumers().await == 2 }).await;
    let connection =
        Connection::connect(world.url(), ConnectionProperties::default()).await.expect("RabbitMQ");
    let channel = connection.create_channel().await.expect("a channel");
    let queue = format!("{}.email.draft", world.topology.prefix);
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.expect("the queue gone");
    until("both consumers again", || async { consumers().await == 2 }).await;
    drop(held);
    owe(&*broker, &[job("email.draft", "after")]).await;
    // Whichever of the two got it: a subscriber that goes away keeps nothing.
    drop(second);
    let delivery = next(&mut first).await;
    assert_eq!(body(&delivery), "after");
    delivery.receipt.ack().await.expect("an acknowledgement");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_cut_come_back_and_lose_nothing() {
    let Some(world) = World::open(Engine::Rabbit).await else { return };
    let proxy = Proxy::to(&upstream(world.url())).await;
    let broker = world.rabbit(&proxy.url(world.url())).await.expect("RabbitMQ");
    let mut drafts = broker.subscribe(jobs("email.draft"), 10).await.expect("a subscription");
    let total = 300;
    let publishing = async {
        for chunk in 0..total / 10 {
            let window: Vec<_> =
                (0..10).map(|number| job("email.draft", &(chunk * 10 + number).to_string())).collect();
            owe(&*broker, &window).await;
        }
    };
    let consuming = async {
        let mut done = HashSet::new();
        while done.len() < total {
            let delivery = next(&mut drafts).await;
            if delivery.receipt.ack().await.is_ok() {
                done.insert(body(&delivery).to_owned());
                if done.len() % 60 == 30 {
                    proxy.cut();
                }
            }
        }
    };
    tokio::join!(publishing, consuming);
    assert!(proxy.accepted() > 6, "two connections and a probe each, and again after a cut");
    until("health", || async { *broker.health().borrow() == Health::Ready }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_falls_silent_is_left_and_found_again() {
    let Some(world) = World::open(Engine::Rabbit).await else { return };
    let proxy = Proxy::to(&upstream(world.url())).await;
    // So impatient that a busy machine may end the first connections.
    let url = impatient(&proxy.url(world.url()));
    let broker = within("a connection", async {
        loop {
            if let Ok(broker) = world.rabbit(&url).await {
                break broker;
            }
        }
    })
    .await;
    let mut drafts = broker.subscribe(jobs("email.draft"), 10).await.expect("a subscription");
    owe(&*broker, &[job("email.draft", "held")]).await;
    let held = next(&mut drafts).await;
    proxy.set(Mode::Frozen);
    let mut health = broker.health();
    within("the silence to be noticed", health.wait_for(|health| *health == Health::Connecting))
        .await
        .expect("news");
    // It may still have been written, to nobody. What matters is that it does not wait for ever.
    let _ = within("an answer", held.receipt.ack()).await;
    let window = [job("email.draft", "meanwhile")];
    let asked = Instant::now();
    let answers = within("an answer", broker.publish(&window)).await;
    assert!(matches!(answers[0], Err(BrokerError::Unavailable(_) | BrokerError::Unconfirmed)), "{answers:?}");
    assert!(asked.elapsed() < Duration::from_secs(25));
    proxy.cut();
    proxy.set(Mode::Open);
    owe(&*broker, &window).await;
    let mut seen = HashSet::new();
    while seen.len() < 2 {
        let delivery = next(&mut drafts).await;
        if delivery.receipt.ack().await.is_ok() {
            seen.insert(body(&delivery).to_owned());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_silent_or_closed_at_start_ends_in_bounded_time() {
    let Some(world) = World::open(Engine::Rabbit).await else { return };
    let proxy = Proxy::to(&upstream(world.url())).await;
    for mode in [Mode::Frozen, Mode::Refusing] {
        proxy.set(mode);
        let refused = within("an answer", world.rabbit(&proxy.url(world.url()))).await;
        assert!(matches!(refused, Err(BrokerError::Unavailable(_))), "{:?}", refused.err());
    }
    let nobody = world.rabbit("amqp://guest:hunter2@127.0.0.1:1").await;
    assert!(matches!(&nobody, Err(BrokerError::Unavailable(text)) if !text.contains("hunter2")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_comes_back_late_is_found_again() {
    let Some(world) = World::open(Engine::Rabbit).await else { return };
    let proxy = Proxy::to(&upstream(world.url())).await;
    let broker = world.rabbit(&proxy.url(world.url())).await.expect("RabbitMQ");
    let mut drafts = broker.subscribe(jobs("email.draft"), 10).await.expect("a subscription");
    let connected = proxy.accepted();
    proxy.set(Mode::Refusing);
    proxy.cut();
    until("some attempts", || async { proxy.accepted() >= connected + 4 }).await;
    assert_ne!(*broker.health().borrow(), Health::Ready);
    // A cancel needs no broker.
    let mut other = broker.subscribe(jobs("event.create"), 1).await.expect("a subscription");
    within("the cancel", other.cancel()).await;
    proxy.set(Mode::Open);
    owe(&*broker, &[job("email.draft", "late")]).await;
    assert_eq!(body(&next(&mut drafts).await), "late");
}

/// Sets the watermark back however the test ends.
struct Watermark(String);

impl Watermark {
    /// `None` where we may not command the server.
    fn lower() -> Option<Self> {
        let before = control(&["eval", "vm_memory_monitor:get_vm_memory_high_watermark()."])?;
        let before: f64 = before.trim().parse().ok()?;
        let guard = Self(before.to_string());
        control(&["set_vm_memory_high_watermark", "0.00001"]).map(|_| guard)
    }
}

impl Drop for Watermark {
    fn drop(&mut self) {
        if control(&["set_vm_memory_high_watermark", &self.0]).is_none() {
            servers::tell("the memory watermark of RabbitMQ could not be set back");
        }
    }
}

fn control(arguments: &[&str]) -> Option<String> {
    let output = Command::new("rabbitmqctl").arg("-q").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_alarm_stops_new_work_but_no_acknowledgement() {
    let Some(server) = servers::amqp_alone().await else { return };
    let (topology, url) = (topology(), server.url.clone().into());
    let _tidy = Tidy(server.url.clone(), topology.clone());
    let broker = followthrough::broker::rabbit::Rabbit::connect(
        &url,
        topology,
        followthrough::config::TopologyMode::Declare,
        None,
        followthrough::clock::Clock::system(),
        "test",
    );
    let broker = broker.await.expect("RabbitMQ");
    let mut drafts = broker.subscribe(jobs("email.draft"), 2).await.expect("a subscription");
    owe(&*broker, &[job("email.draft", "a"), job("email.draft", "b"), job("email.draft", "c")]).await;
    let held = next(&mut drafts).await;
    let Some(watermark) = tokio::task::spawn_blocking(Watermark::lower).await.expect("no panic") else {
        return servers::tell("rabbitmqctl cannot be used here; the memory alarm is left out");
    };
    // The broker tells of its alarm only those who publish.
    let late = job("email.draft", "late");
    let asked = Instant::now();
    let publishing = {
        let (broker, late) = (broker.clone(), late.clone());
        tokio::spawn(async move { broker.publish(&[late]).await })
    };
    let mut health = broker.health();
    within("the alarm", health.wait_for(|health| *health == Health::Blocked)).await.expect("news");
    held.receipt.ack().await.expect("acknowledgements go on");
    assert!(drafts.next().now_or_never().is_none(), "no new work while its outcome could not be published");
    let answers = within("an answer", publishing).await.expect("no panic");
    assert!(matches!(answers[0], Err(BrokerError::Unavailable(_) | BrokerError::Unconfirmed)), "{answers:?}");
    assert!(asked.elapsed() < Duration::from_secs(25));
    tokio::task::spawn_blocking(move || drop(watermark)).await.expect("no panic");
    within("the end of the alarm", health.wait_for(|health| *health == Health::Ready)).await.expect("news");
    owe(&*broker, &[late]).await;
    let mut seen = HashSet::new();
    while seen.len() < 3 {
        let delivery = next(&mut drafts).await;
        delivery.receipt.ack().await.expect("an acknowledgement");
        seen.insert(body(&delivery).to_owned());
    }
    broker.close().await;
}

struct Tidy(String, followthrough::broker::Topology);

impl Drop for Tidy {
    fn drop(&mut self) {
        let (url, topology) = (self.0.clone(), self.1.clone());
        servers::finish(async move {
            followthrough_tests::broker::delete(&url, &topology).await.map_err(|error| error.to_string())
        });
    }
}
