//! All writes of the embedded broker, grouped: what comes in while one transaction commits shares the next.
//!
//! The invariant: an answer is given only after the commit that made it true; and a message that nobody holds in his
//! hands does not stay claimed, whatever the store refused meanwhile.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use scoped_futures::ScopedFutureExt;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::timeout;

use super::{DEAD, DELIVERY_LIMIT};
use crate::broker::{BrokerError, Health};
use crate::clock::Clock;
use crate::store::{Store, StoreError, queue};

/// Operations that share one commit at most.
const GROUP: usize = 512;
/// Before the store is tried again, when nobody asks for anything.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

type Answer<T> = oneshot::Sender<Result<T, BrokerError>>;

enum Operation {
    Publish(Vec<queue::New>, Answer<()>),
    Ack(i64, Answer<()>),
    Requeue(i64, Answer<()>),
    /// Dropped without an answer.
    Release(i64),
    Claim {
        queue: String,
        limit: i64,
        answer: Answer<Claimed>,
    },
    Close(Answer<()>),
}

#[derive(Default)]
pub(super) struct Claimed {
    pub(super) rows: Vec<queue::Row>,
    /// When to ask again; asked only when less was due than was wanted.
    pub(super) next: Option<DateTime<Utc>>,
}

#[derive(Clone)]
pub(super) struct Writer {
    operations: mpsc::UnboundedSender<Operation>,
    health: watch::Receiver<Health>,
}

impl Writer {
    /// `freed` is told when messages became free that nobody asked to be freed.
    pub(super) fn start(store: Store, clock: Clock, holder: String, freed: Arc<Notify>) -> Self {
        let (operations, incoming) = mpsc::unbounded_channel();
        let (told, health) = watch::channel(Health::Ready);
        let desk = Desk { store, clock, holder, health: told, freed, held: HashSet::new(), unsure: false };
        tokio::spawn(desk.work(incoming));
        Self { operations, health }
    }

    pub(super) fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    pub(super) async fn publish(&self, rows: Vec<queue::New>) -> Result<(), BrokerError> {
        self.ask(|answer| Operation::Publish(rows, answer)).await
    }

    pub(super) async fn ack(&self, seq: i64) -> Result<(), BrokerError> {
        self.ask(|answer| Operation::Ack(seq, answer)).await.map_err(|_| BrokerError::AckLost)
    }

    pub(super) async fn requeue(&self, seq: i64) -> Result<(), BrokerError> {
        self.ask(|answer| Operation::Requeue(seq, answer)).await.map_err(|_| BrokerError::AckLost)
    }

    pub(super) fn release(&self, seq: i64) {
        let _ = self.operations.send(Operation::Release(seq));
    }

    pub(super) async fn claim(&self, queue: &str, limit: usize) -> Result<Claimed, BrokerError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.ask(|answer| Operation::Claim { queue: queue.to_owned(), limit, answer }).await
    }

    /// Lets what was asked before be done; what comes later is refused.
    pub(super) async fn close(&self) {
        let _ = self.ask(Operation::Close).await;
    }

    async fn ask<T>(&self, operation: impl FnOnce(Answer<T>) -> Operation) -> Result<T, BrokerError> {
        let closed = || BrokerError::Unavailable("the embedded broker is closed".into());
        let (answer, answered) = oneshot::channel();
        self.operations.send(operation(answer)).map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }
}

struct Desk {
    store: Store,
    clock: Clock,
    holder: String,
    health: watch::Sender<Health>,
    freed: Arc<Notify>,
    /// Claimed, and in the hands of a consumer.
    held: HashSet<i64>,
    /// A transaction failed: what the store believes to be claimed may differ from what is held.
    unsure: bool,
}

/// One group, sorted by what is to be done.
#[derive(Default)]
struct Group {
    rows: Vec<queue::New>,
    published: Vec<Answer<()>>,
    acks: Vec<(i64, Answer<()>)>,
    requeues: Vec<(i64, Answer<()>)>,
    releases: Vec<i64>,
    claims: Vec<(String, i64)>,
    claimants: Vec<Answer<Claimed>>,
    closing: Option<Answer<()>>,
}

struct Done {
    acked: HashSet<i64>,
    requeued: HashSet<i64>,
    claimed: Vec<Claimed>,
    freed: usize,
}

impl Desk {
    async fn work(mut self, mut incoming: mpsc::UnboundedReceiver<Operation>) {
        let mut operations = Vec::new();
        loop {
            let asked = incoming.recv_many(&mut operations, GROUP);
            let more =
                if self.unsure { timeout(AFTER_FAILURE, asked).await.unwrap_or(1) } else { asked.await };
            if more == 0 {
                return;
            }
            let mut group = Group::default();
            operations.drain(..).for_each(|operation| group.add(operation));
            let settled = group.acks.iter().chain(&group.requeues).map(|(seq, _)| seq).chain(&group.releases);
            for seq in settled {
                self.held.remove(seq);
            }
            let done = self.commit(&group).await;
            if let Err(error) = &done {
                tracing::warn!(%error, "the embedded broker cannot write");
            }
            self.unsure = done.is_err();
            let health = if self.unsure { Health::Connecting } else { Health::Ready };
            self.health.send_if_modified(|known| std::mem::replace(known, health) != health);
            if done.as_ref().is_ok_and(|done| done.freed > 0) {
                self.freed.notify_one();
            }
            if let Some(closing) = self.answer(group, done) {
                let _ = closing.send(Ok(()));
                return;
            }
        }
    }

    async fn commit(&self, group: &Group) -> Result<Done, StoreError> {
        let (now, me) = (self.clock.now(), self.holder.as_str());
        let acks: &Vec<i64> = &group.acks.iter().map(|(seq, _)| *seq).collect();
        let requeues: &Vec<i64> = &group.requeues.iter().map(|(seq, _)| *seq).collect();
        let held = self.unsure.then_some(&self.held);
        let (rows, releases, claims) = (&group.rows, &group.releases, &group.claims);
        self.store
            .transaction("queue", |tx| {
                async move {
                    queue::insert(tx, rows, now).await?;
                    let acked = queue::delete(tx, me, acks).await?.into_iter().collect();
                    let requeued = queue::requeue(tx, me, requeues).await?.into_iter().collect();
                    queue::release(tx, me, releases, DEAD, DELIVERY_LIMIT, now).await?;
                    let mut lost = match held {
                        Some(_) => queue::held(tx, me).await?,
                        None => Vec::new(),
                    };
                    lost.retain(|seq| held.is_some_and(|held| !held.contains(seq)));
                    queue::release(tx, me, &lost, DEAD, DELIVERY_LIMIT, now).await?;
                    let mut claimed = Vec::with_capacity(claims.len());
                    for (queue, limit) in claims {
                        let rows = queue::claim(tx, queue, me, now, *limit).await?;
                        let all = i64::try_from(rows.len()).is_ok_and(|rows| rows < *limit);
                        let next = if all { queue::next_due(tx, queue).await? } else { None };
                        claimed.push(Claimed { rows, next });
                    }
                    Ok(Done { acked, requeued, claimed, freed: lost.len() })
                }
                .scope_boxed()
            })
            .await
    }

    /// Answers everybody; returns who waits for the end.
    fn answer(&mut self, group: Group, done: Result<Done, StoreError>) -> Option<Answer<()>> {
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                let error = BrokerError::Unavailable(error.to_string());
                let acks = group.acks.into_iter().chain(group.requeues).map(|(_, answer)| answer);
                for answer in group.published.into_iter().chain(acks) {
                    let _ = answer.send(Err(error.clone()));
                }
                for answer in group.claimants {
                    let _ = answer.send(Err(error.clone()));
                }
                return group.closing;
            }
        };
        for answer in group.published {
            let _ = answer.send(Ok(()));
        }
        let settled = |ours: bool| if ours { Ok(()) } else { Err(BrokerError::AckLost) };
        for (seq, answer) in group.acks {
            let _ = answer.send(settled(done.acked.contains(&seq)));
        }
        for (seq, answer) in group.requeues {
            let _ = answer.send(settled(done.requeued.contains(&seq)));
        }
        for (answer, claimed) in group.claimants.into_iter().zip(done.claimed) {
            let seqs: Vec<_> = claimed.rows.iter().map(|row| row.seq).collect();
            if answer.send(Ok(claimed)).is_ok() {
                self.held.extend(seqs);
            } else {
                // Claimed for somebody who went away before the answer: found to be held by nobody.
                self.unsure |= !seqs.is_empty();
            }
        }
        group.closing
    }
}

impl Group {
    fn add(&mut self, operation: Operation) {
        match operation {
            Operation::Publish(rows, answer) => {
                self.rows.extend(rows);
                self.published.push(answer);
            }
            Operation::Ack(seq, answer) => self.acks.push((seq, answer)),
            Operation::Requeue(seq, answer) => self.requeues.push((seq, answer)),
            Operation::Release(seq) => self.releases.push(seq),
            Operation::Claim { queue, limit, answer } => {
                self.claims.push((queue, limit));
                self.claimants.push(answer);
            }
            Operation::Close(answer) => self.closing = Some(answer),
        }
    }
}
