//! The relay of the outbox: what a committed state owes reaches the broker in its order, whatever is lost.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use followthrough::broker::{Broker, BrokerError, Depth, Health, Outgoing, Source, Subscription, Target};
use followthrough::clock::Clock;
use followthrough::event::Event;
use followthrough::outbox::{Handoff, Relay, owe};
use followthrough::store::outbox::{Owed, backlog};
use followthrough::store::{Store, StoreError};
use followthrough_tests::broker::until;
use followthrough_tests::servers::{self, Database};
use scoped_futures::ScopedFutureExt;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

const SUBJECTS: usize = 12;
const EVENTS: usize = 15;

/// What an unreliable connection to a broker lets through.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// Every third window is cut: a part of it arrives, and less than that is confirmed.
    Cut,
    /// The first of the messages numbered 3 is refused, once.
    Refuse,
    /// Nothing is answered before the gate opens.
    Wait,
    Open,
}

struct Line {
    arrived: Arc<Mutex<Vec<(String, usize)>>>,
    way: Way,
    windows: AtomicUsize,
    refused: AtomicUsize,
    gate: Semaphore,
}

impl Line {
    fn new(way: Way, arrived: &Arc<Mutex<Vec<(String, usize)>>>) -> Arc<Self> {
        Arc::new(Self {
            arrived: arrived.clone(),
            way,
            windows: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            gate: Semaphore::new(0),
        })
    }

    fn arrive(&self, message: &Outgoing) {
        let body: Value = serde_json::from_slice(&message.body).expect("an event");
        let subject = body["subject"].as_str().expect("a subject").to_owned();
        let number = body["data"]["number"].as_u64().expect("a number");
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        arrived.push((subject, usize::try_from(number).expect("small")));
    }
}

#[async_trait]
impl Broker for Line {
    async fn publish(&self, window: &[Outgoing]) -> Vec<Result<(), BrokerError>> {
        let number = self.windows.fetch_add(1, Ordering::SeqCst);
        if self.way == Way::Wait {
            self.gate.acquire().await.expect("an open gate").forget();
        }
        let cut = self.way == Way::Cut && number % 3 == 1;
        let (arrives, confirmed) =
            if cut { (window.len().div_ceil(2), window.len() / 3) } else { (window.len(), window.len()) };
        let mut answers = Vec::new();
        for (index, message) in window.iter().enumerate() {
            let body: Value = serde_json::from_slice(&message.body).expect("an event");
            let refuse = self.way == Way::Refuse && body["data"]["number"] == 3;
            answers.push(if refuse && self.refused.fetch_add(1, Ordering::SeqCst) == 0 {
                Err(BrokerError::Refused("full".into()))
            } else if index < arrives {
                self.arrive(message);
                if index < confirmed { Ok(()) } else { Err(BrokerError::Unconfirmed) }
            } else {
                Err(BrokerError::Unavailable("cut".into()))
            });
        }
        answers
    }

    async fn subscribe(&self, _: Source, _: u16) -> Result<Box<dyn Subscription>, BrokerError> {
        Err(BrokerError::Misconfigured("nobody listens here".into()))
    }

    async fn depth(&self, _: &Source) -> Result<Depth, BrokerError> {
        Ok(Depth { ready: 0, consumers: 0 })
    }

    fn health(&self) -> tokio::sync::watch::Receiver<Health> {
        tokio::sync::watch::channel(Health::Ready).1
    }

    async fn close(&self) {}
}

/// A store of each engine, for as long as the second is held.
async fn stores() -> Vec<(Store, Option<Database>)> {
    let file = std::env::temp_dir().join(format!("followthrough-{}.db", uuid::Uuid::now_v7().simple()));
    let mut urls = vec![(format!("sqlite://{}", file.display()), None)];
    if let Some(database) = servers::postgres().await {
        urls.push((database.url.clone(), Some(database)));
    }
    let mut stores = Vec::new();
    for (url, database) in urls {
        let store = Store::connect(&url, 8).await.expect("a store");
        store.migrate().await.expect("its tables");
        stores.push((store, database));
    }
    stores
}

fn told(subject: &str, number: usize, now: DateTime<Utc>) -> Owed {
    let event = Event {
        kind: "mailbox.message.created",
        about: "mailbox",
        subject,
        workspace: "acme",
        traceparent: None,
        data: json!({"number": number}),
        now,
    };
    event.owed()
}

async fn write(store: &Store, handoff: &Handoff, owed: &[Owed], now: DateTime<Utc>) {
    let rows: Result<_, StoreError> =
        store.transaction("told", |tx| async move { owe(tx, owed, handoff, now).await }.scope_boxed()).await;
    handoff.give(rows.expect("written"));
}

struct Running {
    handoff: Handoff,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn relay(name: &str, store: &Store, line: &Arc<Line>, clock: &Clock) -> Running {
    let (handoff, backlog) = Handoff::new(name);
    let stop = CancellationToken::new();
    let relay =
        Relay { store: store.clone(), broker: line.clone(), clock: clock.clone(), instance: name.to_owned() };
    Running { handoff, stop: stop.clone(), task: tokio::spawn(relay.run(backlog, stop)) }
}

async fn end(running: Vec<Running>) {
    for one in running {
        one.stop.cancel();
        one.task.await.expect("no panic");
    }
}

async fn nothing_is_owed(store: &Store) {
    until("everything has left", || async { owed(store).await == 0 }).await;
}

async fn owed(store: &Store) -> i64 {
    let owed = store.read(|tx| async move { backlog(tx).await }.scope_boxed()).await;
    owed.expect("the outbox").0
}

fn numbers(arrived: &Arc<Mutex<Vec<(String, usize)>>>) -> BTreeMap<String, Vec<usize>> {
    let mut by_subject: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (subject, number) in arrived.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        by_subject.entry(subject.clone()).or_default().push(*number);
    }
    by_subject
}

/// Each number where it stands for the first time.
fn first_of_each(numbers: &[usize]) -> Vec<usize> {
    let mut seen = Vec::new();
    for number in numbers {
        if !seen.contains(number) {
            seen.push(*number);
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn three_relays_on_bad_lines_keep_every_subject_in_order() {
    for (store, _database) in stores().await {
        let (arrived, clock) = (Arc::default(), Clock::system());
        let lines: Vec<_> = (0..3).map(|_| Line::new(Way::Cut, &arrived)).collect();
        let relays: Vec<_> = lines
            .iter()
            .enumerate()
            .map(|(number, line)| relay(&format!("relay-{number}"), &store, line, &clock))
            .collect();
        for number in 0..EVENTS {
            for subject in 0..SUBJECTS {
                let owed = [told(&subject.to_string(), number, clock.now())];
                write(&store, &relays[(number + subject) % 3].handoff, &owed, clock.now()).await;
            }
        }
        nothing_is_owed(&store).await;
        end(relays).await;
        let numbers = numbers(&arrived);
        assert_eq!(numbers.len(), SUBJECTS);
        for (subject, numbers) in numbers {
            assert_eq!(first_of_each(&numbers), (0..EVENTS).collect::<Vec<_>>(), "{subject}: {numbers:?}");
        }
        assert!(lines.iter().any(|line| line.windows.load(Ordering::SeqCst) > 1), "a line was cut");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_message_holds_up_its_own_subject_alone_and_comes_before_what_followed_it() {
    for (store, _database) in stores().await {
        let (arrived, clock) = (Arc::default(), Clock::manual(Clock::system().now()));
        let line = Line::new(Way::Refuse, &arrived);
        let (handoff, _backlog) = Handoff::new("writer");
        for subject in ["a", "b"] {
            let owed: Vec<_> = (0..6).map(|number| told(subject, number, clock.now())).collect();
            write(&store, &handoff, &owed, clock.now()).await;
        }
        let relays = vec![relay("relay", &store, &line, &clock)];
        clock.advance(Duration::from_secs(31));
        until("the other subject has arrived", || async {
            numbers(&arrived).get("b").map(Vec::len) == Some(6)
        })
        .await;
        // Each time it has another look, with all the time that it takes for one.
        until("the rest has arrived", || async {
            clock.advance(Duration::from_secs(31));
            Clock::system().sleep(Duration::from_millis(100)).await;
            owed(&store).await == 0
        })
        .await;
        end(relays).await;
        let mut after = numbers(&arrived)["a"].clone();
        after.reverse();
        let mut last = first_of_each(&after);
        last.reverse();
        assert_eq!(last, [0, 1, 2, 3, 4, 5]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_was_held_up_leaves_its_messages_to_the_one_that_took_them_over() {
    for (store, _database) in stores().await {
        let (arrived, clock) = (Arc::default(), Clock::manual(Clock::system().now()));
        let (slow, fast) = (Line::new(Way::Wait, &arrived), Line::new(Way::Open, &arrived));
        let held_up = relay("slow", &store, &slow, &clock);
        write(&store, &held_up.handoff, &[told("first", 0, clock.now())], clock.now()).await;
        until("it publishes", || async { slow.windows.load(Ordering::SeqCst) == 1 }).await;
        write(&store, &held_up.handoff, &[told("second", 0, clock.now())], clock.now()).await;
        clock.advance(Duration::from_secs(31));
        let other = relay("fast", &store, &fast, &clock);
        nothing_is_owed(&store).await;
        slow.gate.add_permits(100);
        write(&store, &held_up.handoff, &[told("third", 0, clock.now())], clock.now()).await;
        nothing_is_owed(&store).await;
        end(vec![held_up, other]).await;
        let numbers = numbers(&arrived);
        // The first was on its way; the second was still in hand.
        assert_eq!((numbers["first"].len(), numbers["second"].len(), numbers["third"].len()), (2, 1, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_one_subject_go_one_by_one() {
    for (store, _database) in stores().await {
        let (arrived, clock) = (Arc::default(), Clock::system());
        let line = Line::new(Way::Cut, &arrived);
        let running = relay("relay", &store, &line, &clock);
        let owed: Vec<_> = (0..4)
            .map(|number| Owed {
                target: Target::Job { kind: "email.draft".into() }.to_string(),
                ..told("job", number, clock.now())
            })
            .collect();
        write(&store, &running.handoff, &owed, clock.now()).await;
        nothing_is_owed(&store).await;
        end(vec![running]).await;
        assert!(line.windows.load(Ordering::SeqCst) >= 4, "each in its own window");
        assert_eq!(first_of_each(&numbers(&arrived)["job"]), [0, 1, 2, 3]);
    }
}
