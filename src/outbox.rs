//! State and publication commit together; the relay drains what is owed.
//!
//! The invariant: a message is deleted only after the broker confirmed it, and messages of one subject leave
//! in the order they were written. At least once: a crash between confirm and delete repeats a message, and an event
//! that was not confirmed is repeated with those that followed it.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use scoped_futures::ScopedFutureExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::broker::{Broker, BrokerError, Outgoing, Target, header};
use crate::clock::Clock;
use crate::event;
use crate::job::Envelope;
use crate::store::outbox::{self as table, Owed, OwedRow};
use crate::store::{Result, Store, Tx};

/// How long a claimed message may stay unsent before another process may relay it.
const CLAIM: TimeDelta = TimeDelta::seconds(30);
/// What is left of a claim must be enough to publish a window, confirms and all.
const LEFT: TimeDelta = TimeDelta::seconds(12);
/// One publish window.
const WINDOW: usize = 200;
/// Rows claimed at a time: their bodies are held in memory.
const CLAIMED: usize = 200;
/// As many have left when their room in the table is cleared.
const TIDY: usize = 20_000;
/// How often messages that nobody relays are looked for.
const POLL: Duration = Duration::from_millis(500);

/// Takes what a transaction owes straight to this process's relay, without reading it back.
#[derive(Clone)]
pub struct Handoff {
    instance: Arc<str>,
    /// Absent where no relay runs.
    queue: Option<mpsc::Sender<Vec<OwedRow>>>,
}

/// What the relay works from.
pub struct Backlog(mpsc::Receiver<Vec<OwedRow>>);

impl Handoff {
    pub fn new(instance: &str) -> (Self, Backlog) {
        let (queue, backlog) = mpsc::channel(64);
        (Self { instance: instance.into(), queue: Some(queue) }, Backlog(backlog))
    }

    /// For a process without a relay: what it owes is left to the others'.
    pub fn nobody() -> Self {
        Self { instance: "".into(), queue: None }
    }

    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Call after the commit. What does not fit is found by the poll once its claim runs out.
    pub fn give(&self, rows: Vec<OwedRow>) {
        if let Some(queue) = self.queue.as_ref().filter(|_| !rows.is_empty()) {
            let _ = queue.try_send(rows);
        }
    }
}

/// Writes what a transaction owes; returns the rows to [`Handoff::give`] after the commit.
pub async fn owe(tx: &mut Tx, owed: &[Owed], handoff: &Handoff, now: DateTime<Utc>) -> Result<Vec<OwedRow>> {
    if handoff.queue.is_none() {
        leave(tx, owed, now).await?;
        return Ok(Vec::new());
    }
    let until = now + CLAIM;
    let written = table::owe(tx, owed, &handoff.instance, until, now).await?;
    let claimed: BTreeMap<Uuid, i64> =
        written.into_iter().filter(|(_, _, claimed)| *claimed).map(|(id, seq, _)| (id, seq)).collect();
    let mut rows: Vec<OwedRow> = owed
        .iter()
        .filter_map(|message| {
            Some(OwedRow {
                seq: *claimed.get(&message.message_id)?,
                message_id: message.message_id,
                subject: message.subject.clone(),
                target: message.target.clone(),
                body: message.body.clone(),
                headers: message.headers.clone(),
                claimed_until: until,
            })
        })
        .collect();
    rows.sort_by_key(|row| row.seq);
    Ok(rows)
}

/// Writes what a transaction owes, for whoever relays next: for rare writes outside the ledger.
pub async fn leave(tx: &mut Tx, owed: &[Owed], now: DateTime<Utc>) -> Result<()> {
    let long_ago = DateTime::<Utc>::UNIX_EPOCH;
    table::owe(tx, owed, "", long_ago, now).await?;
    Ok(())
}

/// The job's message, owed to its work queue or to a rung.
pub fn job_message(envelope: &Envelope, target: &Target, headers: &BTreeMap<String, String>) -> Owed {
    Owed {
        message_id: Uuid::now_v7(),
        subject: subject(envelope),
        target: target.to_string(),
        body: serde_json::to_string(envelope).unwrap_or_default(),
        headers: event::encode(headers),
    }
}

/// A job that is given up, owed to the dead letters with its reason.
pub fn dead_letter(
    envelope: &Envelope,
    code: &str,
    message: &str,
    path: Option<&str>,
    attempts: i32,
) -> Owed {
    let mut headers = BTreeMap::from([
        (header::CODE.to_owned(), code.to_owned()),
        (header::MESSAGE.to_owned(), message.to_owned()),
        (header::ATTEMPTS.to_owned(), attempts.to_string()),
    ]);
    if let Some(path) = path {
        headers.insert(header::PATH.to_owned(), path.to_owned());
    }
    job_message(envelope, &Target::Dead { kind: envelope.kind.clone() }, &headers)
}

fn subject(envelope: &Envelope) -> String {
    format!("job/{}/{}", envelope.workspace, envelope.id)
}

/// Publishes what is owed until `stop`, then once more what is already in hand.
pub struct Relay {
    pub store: Store,
    pub broker: Arc<dyn Broker>,
    pub clock: Clock,
    pub instance: String,
}

impl Relay {
    pub async fn run(self, mut backlog: Backlog, stop: CancellationToken) {
        let (mut poll_at, mut gone) = (self.clock.now(), 0);
        loop {
            let mut rows = Vec::new();
            tokio::select! {
                handed = backlog.0.recv() => match handed {
                    Some(handed) => rows.extend(handed),
                    None => return,
                },
                () = stop.cancelled() => return,
                () = self.clock.sleep_until(poll_at) => {}
            }
            // By the clock and not by idleness: a busy process must find what nobody handed to it, too.
            if self.clock.now() >= poll_at {
                poll_at = self.clock.now() + POLL;
                match self.claim().await {
                    Ok(claimed) => {
                        if claimed.len() == CLAIMED {
                            poll_at = self.clock.now();
                        }
                        rows.extend(claimed);
                    }
                    Err(error) => tracing::warn!(%error, "the outbox cannot be read"),
                }
            }
            while rows.len() < WINDOW
                && let Ok(handed) = backlog.0.try_recv()
            {
                rows.extend(handed);
            }
            if !rows.is_empty() {
                gone += self.send(rows, &stop).await;
            }
            if gone >= TIDY {
                gone = 0;
                self.tidy().await;
            }
        }
    }

    /// Relays everything that is owed right now; for drains and tests.
    pub async fn flush(&self) -> Result<()> {
        loop {
            let rows = self.claim().await?;
            if rows.is_empty() {
                return Ok(());
            }
            self.send(rows, &CancellationToken::new()).await;
        }
    }

    async fn claim(&self) -> Result<Vec<OwedRow>> {
        let now = self.clock.now();
        let instance = &self.instance;
        let (owed, _) = self.store.read(|tx| async move { table::backlog(tx).await }.scope_boxed()).await?;
        metrics::gauge!("followthrough_outbox_owed").set(f64::from(i32::try_from(owed).unwrap_or(i32::MAX)));
        if owed == 0 {
            return Ok(Vec::new());
        }
        self.store
            .transaction("outbox_claim", |tx| {
                async move { table::claim(tx, instance, now, now + CLAIM, CLAIMED).await }.scope_boxed()
            })
            .await
    }

    /// Sends in order. While the broker is away everything waits; a message that it refuses is set aside with the later
    /// ones of its subject, and the rest goes on. Returns how many left.
    async fn send(&self, rows: Vec<OwedRow>, stop: &CancellationToken) -> usize {
        let (mut rows, mut left): (VecDeque<OwedRow>, usize) = (rows.into(), 0);
        loop {
            // Past its claim another process may relay a message: the poll decides whose it is.
            let now = self.clock.now();
            rows.retain(|row| row.claimed_until - now > LEFT);
            if rows.is_empty() {
                return left;
            }
            let (window, rest) = window(rows);
            rows = rest;
            let outgoing: Vec<Outgoing> = window.iter().map(outgoing).collect();
            let answers = self.broker.publish(&outgoing).await;
            let (mut sent, mut failed) = (Vec::with_capacity(window.len()), Vec::new());
            let (mut behind, mut aside) = (HashSet::new(), HashSet::new());
            for (row, answer) in window.into_iter().zip(answers) {
                match answer {
                    _ if aside.contains(&row.subject) => {}
                    _ if behind.contains(&row.subject) => failed.push(row),
                    Ok(()) => sent.push(row.seq),
                    Err(
                        error @ (BrokerError::Unroutable(_)
                        | BrokerError::TooLarge(_)
                        | BrokerError::Refused(_)),
                    ) => {
                        tracing::error!(target = row.target, %error, "a message is set aside");
                        self.keep(&row, &error).await;
                        aside.insert(row.subject);
                    }
                    Err(error) => {
                        tracing::debug!(target = row.target, %error, "not published, again");
                        behind.insert(row.subject.clone());
                        failed.push(row);
                    }
                }
            }
            left += sent.len();
            self.sent(&sent).await;
            rows.retain(|later| !aside.contains(&later.subject));
            if failed.is_empty() {
                continue;
            }
            for row in failed.into_iter().rev() {
                rows.push_front(row);
            }
            tokio::select! {
                () = self.clock.sleep(Duration::from_millis(500)) => {}
                () = stop.cancelled() => return left,
            }
        }
    }

    async fn tidy(&self) {
        let tidied = self
            .store
            .statement("outbox_tidy", |tx| async move { table::tidy(tx).await }.scope_boxed())
            .await;
        if let Err(error) = tidied {
            tracing::warn!(%error, "what has left the outbox could not be cleared away");
        }
    }

    async fn sent(&self, seqs: &[i64]) {
        if seqs.is_empty() {
            return;
        }
        // Lost in a crash of the server, it repeats a message; that may happen anyway.
        let deleted = self
            .store
            .transaction_soon_durable("outbox_sent", |tx| {
                async move { table::sent(tx, seqs).await }.scope_boxed()
            })
            .await;
        if let Err(error) = deleted {
            tracing::warn!(%error, "sent messages could not be struck off and will be sent again");
        }
    }

    async fn keep(&self, row: &OwedRow, error: &BrokerError) {
        let (seq, error, until) = (row.seq, error.to_string(), self.clock.now() + TimeDelta::seconds(30));
        let error = error.as_str();
        let kept = self
            .store
            .transaction("outbox_keep", |tx| {
                async move { table::keep(tx, seq, error, until).await }.scope_boxed()
            })
            .await;
        if let Err(error) = kept {
            tracing::warn!(%error, "the outbox cannot be written");
        }
    }
}

/// The next rows to publish together, and what stays. A job's next message waits for the one before; events follow one
/// another closely, for a broker takes what comes on one channel in its order.
fn window(rows: VecDeque<OwedRow>) -> (Vec<OwedRow>, VecDeque<OwedRow>) {
    let (mut window, mut rest) = (Vec::new(), VecDeque::new());
    let mut held = HashSet::new();
    for row in rows {
        if window.len() == WINDOW || held.contains(&row.subject) {
            held.insert(row.subject.clone());
            rest.push_back(row);
            continue;
        }
        if !matches!(row.target.parse(), Ok(Target::Event { .. })) {
            held.insert(row.subject.clone());
        }
        window.push(row);
    }
    (window, rest)
}

fn outgoing(row: &OwedRow) -> Outgoing {
    let target: Target = row.target.parse().unwrap_or_else(|_| Target::Dead { kind: "unknown".to_owned() });
    let content_type = match target {
        Target::Event { .. } => event::CONTENT_TYPE,
        _ => "application/json",
    };
    Outgoing {
        message_id: row.message_id,
        target,
        content_type,
        body: Bytes::from(row.body.clone()),
        headers: serde_json::from_str(&row.headers).unwrap_or_default(),
    }
}
