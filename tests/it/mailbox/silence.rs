//! Notifications that were proven and stop, or never come although they were accepted: mail is there all the same.
//!
//! The invariant: time passes only while nothing is under way, by one poll at a time.

use std::net::SocketAddr;

use chrono::TimeDelta;
use followthrough_tests::world::{ADA, Pair, World};
use followthrough_tests::{logs, servers};
use http::Method;
use m365_sim::graph::SharedSubscribe;
use url::Url;

use super::support::{connect, deliver, in_step, leave, once_each, row, stored};

/// A folder is due after at most one poll and a tenth.
const POLL: TimeDelta = TimeDelta::minutes(11);
/// What a loaded machine adds to that.
const SLACK: TimeDelta = TimeDelta::minutes(1);

/// A world that Microsoft can tell of changes, with the mailbox connected and looked at.
async fn pushed(pair: Pair, answer: SharedSubscribe) -> Option<World> {
    let free = SocketAddr::from(([127, 0, 0, 1], servers::port()));
    let world = World::open_moving(pair, |config| {
        config.http.listen = free;
        config.http.public_url = Url::parse(&format!("http://{free}/")).expect("a URL");
        config.mailbox.poll = "10m".into();
    });
    let world = world.await?;
    world.sim().graph().switches.shared_subscribe = answer;
    world.connect(ADA, "shared-mailbox").await;
    connect(&world, 0).await;
    world
        .until("it is subscribed to", || async { row(&world).await.rung_reason == "webhook_unproven" })
        .await;
    idle(&world).await;
    Some(world)
}

async fn idle(world: &World) {
    world
        .until("nothing is under way", || async {
            let states = world.states().await;
            !["queued", "running", "waiting"].iter().any(|state| states.contains_key(*state))
        })
        .await;
}

/// A look that begins after this time is over.
async fn looked_after(world: &World, time: TimeDelta) {
    world.pass(time);
    let now = world.clock.now();
    world
        .until("it is looked at", || async { row(world).await.checked_at.is_some_and(|at| at >= now) })
        .await;
    idle(world).await;
}

/// A message that nobody tells of is stored after a poll.
async fn polled(world: &World, subject: &str) {
    let id = deliver(world, subject);
    looked_after(world, POLL).await;
    in_step(world).await;
    let rows = stored(world).await;
    let row = rows.iter().find(|row| row.id == id).expect("in step");
    let waited = row.created_at - row.received_at;
    assert!(waited <= POLL + SLACK, "{subject} waited for {waited}");
}

async fn rung(world: &World) -> (String, String) {
    let row = row(world).await;
    (row.rung, row.rung_reason)
}

fn is(rung: &str, reason: &str) -> (String, String) {
    (rung.to_owned(), reason.to_owned())
}

/// As `/metrics` shows it, whichever story of this process raised it.
async fn alerts(world: &World) -> u64 {
    let text = world.metrics().await;
    let line = text.lines().find(|line| line.starts_with("followthrough_mailbox_delivery_silence_total"));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

/// How often the alert was raised for this mailbox; each time it says so beside the metric.
async fn alerts_of(world: &World) -> usize {
    let id = row(world).await.id.to_string();
    logs::warnings(&["notifications failed to tell of messages", &id])
}

#[tokio::test(flavor = "multi_thread")]
async fn ninety_minutes_of_silence_delay_mail_by_a_poll_and_are_told_once() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = pushed(pair, SharedSubscribe::Works).await else { continue };
        deliver(&world, "Announced");
        // No time passes: only the notification can have brought it.
        in_step(&world).await;
        world.until("it is proven", || async { rung(&world).await == is("push", "proven") }).await;
        idle(&world).await;
        let before = alerts(&world).await;
        world.sim().graph().switches.notify_silent = true;
        for number in 0..9 {
            polled(&world, &format!("Unannounced {number}")).await;
            let (stands, told) =
                if number < 2 { (is("push", "proven"), 0) } else { (is("delta", "push_missed_changes"), 1) };
            assert_eq!((rung(&world).await, alerts_of(&world).await), (stands, told), "{number}");
        }
        assert!(alerts(&world).await > before);
        once_each(&world).await;
        world.sim().graph().switches.notify_silent = false;
        deliver(&world, "Announced again");
        in_step(&world).await;
        world.until("it is proven again", || async { rung(&world).await == is("push", "proven") }).await;
        leave(&world).await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mailbox_whose_notifications_never_come_is_polled_and_says_why() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = pushed(pair, SharedSubscribe::AcceptButSilent).await else { continue };
        for hour in 0..26 {
            polled(&world, &format!("Hour {hour}")).await;
            let why = if hour < 24 { "webhook_unproven" } else { "webhook_silent" };
            assert_eq!(rung(&world).await, is("delta", why), "hour {hour}");
            looked_after(&world, TimeDelta::hours(1) - POLL).await;
        }
        let (_, shown) =
            world.api(Method::GET, &format!("/v1/mailboxes/{}", row(&world).await.id), None).await;
        assert_eq!(
            (&shown["delivery"]["rung"], &shown["delivery"]["reason"]),
            (&"delta".into(), &"webhook_silent".into())
        );
        once_each(&world).await;
        leave(&world).await;
        world.close().await;
    }
}
