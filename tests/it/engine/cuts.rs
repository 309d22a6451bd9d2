//! Servers that go away in the middle of the work and come back, or fall silent on connections that stay open.

use std::time::Duration;

use followthrough_tests::engine::{Engine, Pair};
use followthrough_tests::proxy::{Mode, Proxy};
use serde_json::json;

const JOBS: i64 = 1000;

async fn thousand(world: &Engine) {
    let envelopes: Vec<_> = (0..JOBS)
        .map(|n| {
            let mut envelope = world.envelope(&format!("j{n}"), "test.write", json!({}));
            envelope["user"] = json!(format!("user{}@acme.example", n % 50));
            envelope
        })
        .collect();
    world.publish(&envelopes).await;
}

fn address(url: &str, port: u16) -> String {
    let url = url::Url::parse(url).expect("a URL");
    format!("{}:{}", url.host_str().expect("a host"), url.port().unwrap_or(port))
}

async fn done(world: &Engine) -> i64 {
    world.states().await.get("succeeded").copied().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_goes_away_in_the_middle_of_a_thousand_jobs() {
    let Some(world) = Engine::open(Pair::Servers).await else { return };
    let server = world.amqp_url.clone().expect("servers");
    let proxy = Proxy::to(&address(&server, 5672)).await;
    let fleet = world.process_at(Some(&proxy.url(&server)), &world.database_url).await;
    thousand(&world).await;
    world.until("some are done", || async { done(&world).await > 100 }).await;
    proxy.set(Mode::Refusing);
    proxy.cut();
    let before = done(&world).await;
    world.until("what was in hand is finished", || async { done(&world).await >= before }).await;
    proxy.set(Mode::Open);
    world.until("all are done", || async { done(&world).await == JOBS }).await;
    assert_eq!((world.outside.effects(), world.outside.doubled()), (2000, 0));
    world.at_rest().await;
    assert_eq!(world.dead_letters().await.len(), 0);
    fleet.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_goes_away_in_the_middle_of_a_thousand_jobs() {
    let Some(world) = Engine::open(Pair::Servers).await else { return };
    let proxy = Proxy::to(&address(&world.database_url, 5432)).await;
    let fleet = world.process_at(world.amqp_url.as_deref(), &proxy.url(&world.database_url)).await;
    thousand(&world).await;
    world.until("some are done", || async { done(&world).await > 100 }).await;
    for _ in 0..3 {
        proxy.set(Mode::Refusing);
        proxy.cut();
        let before = done(&world).await;
        proxy.set(Mode::Open);
        world.until("it goes on", || async { done(&world).await > before || before == JOBS }).await;
    }
    world.until("all are done", || async { done(&world).await == JOBS }).await;
    assert_eq!((world.outside.effects(), world.outside.doubled()), (2000, 0));
    world.at_rest().await;
    assert_eq!(world.dead_letters().await.len(), 0);
    fleet.drain().await;
}

/// Unlike a cut, this is an answer: the server says no, and means none of the jobs.
#[tokio::test(flavor = "multi_thread")]
async fn postgresql_says_no_for_a_while_in_the_middle_of_a_thousand_jobs() {
    let Some(world) = Engine::open(Pair::Servers).await else { return };
    let database = world.database.as_ref().expect("a server");
    let fleet = world.process().await;
    thousand(&world).await;
    world.until("some are done", || async { done(&world).await > 100 }).await;
    for on in [true, false] {
        database.read_only(on).await;
        // Long enough for every job in hand to hear of it, and for our own connections to count as old.
        world.clock.sleep(Duration::from_millis(1500)).await;
    }
    for _ in 0..3 {
        let before = done(&world).await;
        database.cut().await;
        world.clock.sleep(Duration::from_millis(1500)).await;
        world.until("it goes on", || async { done(&world).await > before || before == JOBS }).await;
    }
    world.until("all are done", || async { done(&world).await == JOBS }).await;
    assert_eq!((world.outside.effects(), world.outside.doubled()), (2000, 0));
    world.at_rest().await;
    assert_eq!(world.dead_letters().await.len(), 0);
    fleet.drain().await;
}

/// Longer than the slowest heartbeat or timeout takes to notice, several of them one after the other, and the work
/// after it on a machine that has other work.
const NOTICED: Duration = Duration::from_mins(5);

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_falls_silent_in_the_middle_of_a_thousand_jobs() {
    let Some(world) = Engine::open(Pair::Servers).await else { return };
    let server = world.amqp_url.clone().expect("servers");
    let proxy = Proxy::to(&address(&server, 5672)).await;
    let fleet = world.process_at(Some(&proxy.url(&server)), &world.database_url).await;
    thousand(&world).await;
    world.until("some are done", || async { done(&world).await > 100 }).await;
    proxy.strand();
    world.within(NOTICED, "all are done", || async { done(&world).await == JOBS }).await;
    assert_eq!((world.outside.effects(), world.outside.doubled()), (2000, 0));
    world.at_rest().await;
    assert_eq!(world.dead_letters().await.len(), 0);
    fleet.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_falls_silent_in_the_middle_of_a_thousand_jobs() {
    let Some(world) = Engine::open(Pair::Servers).await else { return };
    let proxy = Proxy::to(&address(&world.database_url, 5432)).await;
    let fleet = world.process_at(world.amqp_url.as_deref(), &proxy.url(&world.database_url)).await;
    thousand(&world).await;
    world.until("some are done", || async { done(&world).await > 100 }).await;
    proxy.strand();
    world.within(NOTICED, "all are done", || async { done(&world).await == JOBS }).await;
    assert_eq!((world.outside.effects(), world.outside.doubled()), (2000, 0));
    world.at_rest().await;
    assert_eq!(world.dead_letters().await.len(), 0);
    fleet.drain().await;
}
