//! One attempt as a flat pipeline: decode, claim, run, classify, settle, acknowledge.
//!
//! The invariant: a delivery is acknowledged only after the ledger holds its outcome, or after another copy
//! of it is confirmed by the broker. Whatever the job does (fail, panic, hang), the pipeline reaches its end.

mod ending;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::FutureExt;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use uuid::Uuid;

use crate::broker::{Delivery, MAX_BODY, Outgoing, Target, header};
use crate::context::Context;
use crate::effect::Effects;
use crate::job::{Decoded, Undecodable, decode, is_traceparent};
use crate::ledger::{Claim, ClaimRequest, Held, LedgerError};
use crate::outcome::{Disposition, Failure};
use crate::services::Services;
use crate::turn::Turns;

/// What became of a delivery, for metrics and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Succeeded,
    Retried,
    Deferred,
    /// A slice of it is done, and the rest is in the queue.
    Continued,
    Parked,
    Dead,
    Expired,
    /// Nothing to do: a finished job's second delivery, a twin.
    Dropped,
    /// Given back untouched.
    Returned,
    /// Another worker holds the job now.
    Fenced,
}

/// Runs deliveries of one process.
pub struct Attempts {
    pub services: Arc<Services>,
    /// A job that lost its worker three times runs while nothing else does.
    alone: tokio::sync::RwLock<()>,
    /// In KiB: large bodies are worked on a few at a time, whatever their kind.
    room: Semaphore,
    turns: Turns,
    /// Fires when the drain's patience is over.
    pub abort: CancellationToken,
}

/// A body is in memory several times while its job runs: as it came, as JSON, as the request to Microsoft.
const ROOM_KIB: u32 = 16 * 1024;
/// Smaller bodies never wait for room.
const LARGE_KIB: u32 = 256;
/// From so many lost workers on a job runs alone.
const ALONE_AFTER: i32 = 3;
/// How long a delivery waits that could not be claimed.
const NOT_CLAIMED: TimeDelta = TimeDelta::seconds(10);
/// How long a delivery is held while the store does not answer.
const STORE_PATIENCE: TimeDelta = TimeDelta::minutes(5);

impl Attempts {
    pub fn new(services: Arc<Services>, abort: CancellationToken) -> Self {
        let (alone, room) = (tokio::sync::RwLock::new(()), Semaphore::new(ROOM_KIB as usize));
        Self { services, alone, room, turns: Turns::default(), abort }
    }

    pub async fn run(&self, delivery: Delivery) -> Verdict {
        let size = u32::try_from(delivery.body.len() / 1024).unwrap_or(u32::MAX).min(ROOM_KIB);
        let _room = if size < LARGE_KIB {
            None
        } else {
            tokio::select! {
                room = self.room.acquire_many(size) => room.ok(),
                () = self.abort.cancelled() => return self.give_back(&delivery).await,
            }
        };
        let decoded = match decode(&self.services.registry, &delivery.body) {
            Ok(mut decoded) => {
                let sent = delivery.meta.text(header::TRACEPARENT).filter(|told| is_traceparent(told));
                decoded.envelope.traceparent = decoded.envelope.traceparent.take().or(sent);
                Arc::new(decoded)
            }
            Err(undecodable) => return self.refuse(&delivery, &undecodable).await,
        };
        let envelope = &decoded.envelope;
        let span = tracing::info_span!(
            "job",
            workspace = envelope.workspace,
            id = envelope.id,
            kind = envelope.kind,
            attempt = tracing::field::Empty,
            traceparent = envelope.traceparent.as_deref(),
        );
        let whose = decoded.job.mailbox().unwrap_or(&envelope.user);
        let _turn = self.turns.take(&envelope.workspace, whose, &self.services.clock).await;
        self.decoded(delivery, decoded).instrument(span).await
    }

    /// A job that lost its worker again and again is claimed and run while nothing else is: what is claimed
    /// beside it would be counted as crashed with it.
    async fn decoded(&self, delivery: Delivery, decoded: Arc<Decoded>) -> Verdict {
        {
            let _together = self.alone.read().await;
            match self.claim(&delivery, &decoded).await {
                Ok(Claim::Run(held)) if held.crashes >= ALONE_AFTER => {
                    if !self.unclaim(&held).await {
                        return self.give_back(&delivery).await;
                    }
                }
                claim => return self.claimed(delivery, decoded, claim).await,
            }
        }
        let _alone = tokio::select! {
            alone = self.alone.write() => alone,
            () = self.abort.cancelled() => return self.give_back(&delivery).await,
        };
        let claim = self.claim(&delivery, &decoded).await;
        self.claimed(delivery, decoded, claim).await
    }

    async fn claim(&self, delivery: &Delivery, decoded: &Arc<Decoded>) -> Result<Claim, LedgerError> {
        let request =
            ClaimRequest { decoded: decoded.clone(), owed_attempt: delivery.meta.number(header::ATTEMPT) };
        self.patiently(|| self.services.ledger.claim(request.clone())).await
    }

    async fn claimed(
        &self,
        delivery: Delivery,
        decoded: Arc<Decoded>,
        claim: Result<Claim, LedgerError>,
    ) -> Verdict {
        let claim = match claim {
            Ok(claim) => claim,
            Err(error) if error.is_refusal() => {
                let unstorable = Undecodable::of(&decoded, "unstorable", "the database refuses it", None);
                return self.refuse(&delivery, &unstorable).await;
            }
            Err(error) => {
                // Through a rung rather than back: a return counts against the delivery limit.
                tracing::warn!(%error, "not claimed, put off");
                let until = self.services.clock.now() + NOT_CLAIMED;
                return self.defer(&delivery, &decoded, until).await;
            }
        };
        match claim {
            Claim::Run(held) => self.held(delivery, decoded, *held).await,
            Claim::Drop(why) => {
                tracing::debug!(why, "nothing to do");
                self.acknowledge(&delivery).await;
                Verdict::Dropped
            }
            Claim::Defer { until, why } => {
                tracing::debug!(why, %until, "deferred");
                self.defer(&delivery, &decoded, until).await
            }
            Claim::Ended(code) => {
                tracing::info!(code, "ended before it ran");
                self.acknowledge(&delivery).await;
                match code {
                    "expired" => Verdict::Expired,
                    "tool_denied" | "crash_loop" => Verdict::Dead,
                    _ => Verdict::Parked,
                }
            }
            Claim::IdReused => {
                let message = "a job with this id and another payload already exists";
                let undecodable = Undecodable::of(&decoded, "id_reused", message, Some("id"));
                self.refuse(&delivery, &undecodable).await
            }
            Claim::Again => self.give_back(&delivery).await,
        }
    }

    async fn held(&self, delivery: Delivery, decoded: Arc<Decoded>, held: Held) -> Verdict {
        tracing::Span::current().record("attempt", held.attempt);
        let _leased = self.services.ledger.leased(&held);
        if let Some(gate) = &held.gate {
            self.services.microsoft.cool_down(gate).was_open(held.claimed_at);
        }
        let effects = Effects::new(self.services.ledger.clone(), &held);
        let cx = Context {
            services: self.services.clone(),
            connection: held.connection.clone(),
            effects,
            workspace: decoded.envelope.workspace.clone(),
            user: decoded.envelope.user.clone(),
            gate: held.gate.clone(),
            permits: held.permits,
            created_at: held.created_at,
        };
        let outcome = self.job(&decoded, &held, &cx).await;
        let (settlement, verdict) = ending::settlement(&self.services, &decoded, &held, &cx, outcome);
        let Some(settlement) = settlement else {
            self.give_back(&delivery).await;
            return verdict;
        };
        match self.patiently(|| self.services.ledger.settle(settlement.clone())).await {
            Ok(true) if verdict == Verdict::Returned => self.give_back(&delivery).await,
            Ok(true) => {
                self.acknowledge(&delivery).await;
                verdict
            }
            Ok(false) => {
                // Somebody else's job by now, or our own commit whose answer was lost. A spare copy does no
                // harm, a missing one loses the job.
                tracing::warn!("the outcome was not ours to record any more");
                self.give_back(&delivery).await;
                Verdict::Fenced
            }
            Err(error) => {
                tracing::error!(%error, "the outcome could not be recorded, given back");
                self.pause().await;
                self.give_back(&delivery).await
            }
        }
    }

    /// A claim that was made beside others, of a job that must run alone: taken back, uncounted, before it
    /// began.
    async fn unclaim(&self, held: &Held) -> bool {
        let settlement = ending::untouched(held, self.services.clock.now());
        self.patiently(|| self.services.ledger.settle(settlement.clone())).await.is_ok()
    }

    /// The job itself, under everything that may cut it short.
    async fn job(&self, decoded: &Decoded, held: &Held, cx: &Context) -> Result<String, Failure> {
        let timeout = decoded.entry.spec.timeout;
        let run = AssertUnwindSafe(decoded.job.run(cx)).catch_unwind();
        tokio::select! {
            outcome = run => outcome.unwrap_or_else(|panic| {
                tracing::error!(panic = panic_text(panic.as_ref()), "the job panicked");
                Err(Failure::retry("panicked", "the job's code panicked"))
            }),
            () = self.services.clock.sleep(timeout) => {
                Err(Failure::retry("timed_out", format!("no end within {} s", timeout.as_secs())))
            }
            () = self.services.ledger.lease_lost(held.claimed_at) => Err(Failure::fenced()),
            () = self.abort.cancelled() => {
                Err(Failure::new(Disposition::Interrupted, "interrupted", "the worker is shutting down"))
            }
        }
    }

    /// Puts the same copy off: publish, await the confirm, acknowledge. The ledger is not touched.
    async fn defer(&self, delivery: &Delivery, decoded: &Decoded, until: DateTime<Utc>) -> Verdict {
        let wait = (until - self.services.clock.now()).to_std().unwrap_or_default();
        let deferred = delivery.meta.number(header::DEFERRED).unwrap_or(0);
        // Asking every second is right for a while; a long queue behind one mailbox asks less often.
        let patience = if deferred >= 10 { Duration::from_secs(10) } else { Duration::ZERO };
        let rung = self.services.ladder.within(wait.max(patience));
        let mut headers =
            BTreeMap::from([(header::DEFERRED.to_owned(), deferred.saturating_add(1).to_string())]);
        if let Some(attempt) = delivery.meta.number(header::ATTEMPT) {
            headers.insert(header::ATTEMPT.to_owned(), attempt.to_string());
        }
        // The one that was checked: a header of any size may have come, and must not keep the copy from leaving.
        if let Some(traceparent) = &decoded.envelope.traceparent {
            headers.insert(header::TRACEPARENT.to_owned(), traceparent.clone());
        }
        let target = Target::Rung { rung: rung.name.clone(), kind: decoded.envelope.kind.clone() };
        if !self.publish(target, delivery, headers).await {
            return self.give_back(delivery).await;
        }
        self.acknowledge(delivery).await;
        Verdict::Deferred
    }

    /// A message that no attempt can make sense of goes to the dead letters with its reason.
    async fn refuse(&self, delivery: &Delivery, undecodable: &Undecodable) -> Verdict {
        tracing::info!(code = undecodable.code, path = undecodable.path, "refused");
        let mut headers = BTreeMap::from([
            (header::CODE.to_owned(), undecodable.code.to_owned()),
            (header::MESSAGE.to_owned(), undecodable.message.clone()),
        ]);
        if let Some(path) = &undecodable.path {
            headers.insert(header::PATH.to_owned(), path.clone());
        }
        let kind = undecodable.kind.clone().unwrap_or_else(|| delivery.meta.routing_key.clone());
        if !self.publish(Target::Dead { kind }, delivery, headers).await {
            return self.give_back(delivery).await;
        }
        self.acknowledge(delivery).await;
        Verdict::Dead
    }

    async fn publish(&self, target: Target, delivery: &Delivery, headers: BTreeMap<String, String>) -> bool {
        // What is larger is refused for its size: its beginning is kept as evidence, because the whole of it
        // could not be published and would come back again and again.
        let kept = delivery.body.len().min(MAX_BODY);
        let outgoing = Outgoing {
            message_id: Uuid::now_v7(),
            target,
            content_type: "application/json",
            body: delivery.body.slice(..kept),
            headers,
        };
        let answers = self.services.broker.publish(&[outgoing]).await;
        match answers.into_iter().next() {
            Some(Ok(())) => true,
            Some(Err(error)) => {
                tracing::warn!(%error, "not published");
                self.pause().await;
                false
            }
            None => false,
        }
    }

    /// Before something is given back for want of a server: at once it would only come again, and each
    /// return counts.
    async fn pause(&self) {
        tokio::select! {
            () = self.services.clock.sleep(Duration::from_secs(5)) => {}
            () = self.abort.cancelled() => {}
        }
    }

    async fn acknowledge(&self, delivery: &Delivery) {
        if let Err(error) = delivery.receipt.ack().await {
            // It comes again, and the ledger knows it by then.
            tracing::debug!(%error, "acknowledgement lost");
            metrics::counter!("followthrough_acks_lost_total").increment(1);
        }
    }

    async fn give_back(&self, delivery: &Delivery) -> Verdict {
        if let Err(error) = delivery.receipt.requeue().await {
            tracing::debug!(%error, "could not be given back; the broker does it by itself");
        }
        Verdict::Returned
    }

    /// Asks the ledger until it answers, for as long as holding the delivery is right.
    async fn patiently<T, F>(&self, ask: impl Fn() -> F) -> Result<T, LedgerError>
    where
        F: Future<Output = Result<T, LedgerError>>,
    {
        let clock = &self.services.clock;
        let since = clock.now();
        let mut pause = Duration::from_millis(100);
        loop {
            match ask().await {
                Err(error)
                    if !error.is_refusal()
                        && clock.now() - since < STORE_PATIENCE
                        && !self.abort.is_cancelled() =>
                {
                    tracing::warn!(%error, "the ledger did not answer, asking again");
                    tokio::select! {
                        () = clock.sleep(pause) => {}
                        () = self.abort.cancelled() => {}
                    }
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
                answer => return answer,
            }
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}
