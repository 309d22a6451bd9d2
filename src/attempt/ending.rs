//! How an attempt ends: the outcome, turned into what is written of it.
//!
//! The invariant: every outcome has exactly one ending, and what the ending owes to the queue, the events and
//! the dead letters is part of it.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::Verdict;
use crate::broker::{Target, header};
use crate::context::Context;
use crate::event::Event;
use crate::job::{Decoded, Duty};
use crate::ledger::{Held, Settlement};
use crate::mailbox::pacer;
use crate::outbox;
use crate::outcome::{Cause, Disposition, Failure};
use crate::services::Services;
use crate::store::job::{Ending, state};
use crate::store::outbox::Owed;

/// As long as anybody waits for a permit before asking again.
const BREATH: TimeDelta = TimeDelta::seconds(10);

/// A claim given back before the job began.
pub(super) fn untouched(held: &Held, now: DateTime<Utc>) -> Settlement {
    Settlement {
        ending: Ending {
            state: state::QUEUED,
            due_at: Some(now),
            attempt_delta: -1,
            finished: false,
            ..blank(held)
        },
        confirmations: Vec::new(),
        voids: Vec::new(),
        owed: Vec::new(),
        cool_down: None,
    }
}

fn blank(held: &Held) -> Ending {
    Ending {
        key: held.key.clone(),
        fence: held.fence,
        state: state::SUCCEEDED,
        cause: None,
        code: None,
        message: None,
        result: None,
        due_at: None,
        attempt_delta: 0,
        finished: true,
        parked_grant: held.connection.as_ref().map(|connection| connection.grant_number),
    }
}

/// Turns the outcome into what is written. `None`: nothing may be written, the job is not ours.
pub(super) fn settlement(
    services: &Services,
    decoded: &Decoded,
    held: &Held,
    cx: &Context,
    outcome: Result<String, Failure>,
) -> (Option<Settlement>, Verdict) {
    let now = services.clock.now();
    let unwritten = cx.effects.take_unwritten();
    let in_doubt = cx.effects.in_doubt(&unwritten);
    let mut settlement = Settlement {
        ending: blank(held),
        confirmations: unwritten.confirmations,
        voids: unwritten.voids,
        owed: Vec::new(),
        // Of a failure, of one that the job got over, or of a success that came with a wish.
        cool_down: cx.left_alone().map(|(gate, wait)| (gate, now + wait)),
    };
    let failure = match outcome {
        Ok(result) => {
            let value: Value = serde_json::from_str(&result).unwrap_or_default();
            if !(decoded.entry.spec.duty == Some(Duty::SyncMailbox) && pacer::made(&decoded.envelope.id)) {
                settlement.owed.push(event(decoded, state::SUCCEEDED, held, json!({"result": value}), now));
            }
            settlement.ending.result = Some(result);
            return (Some(settlement), Verdict::Succeeded);
        }
        Err(failure) => failure,
    };
    if failure.disposition != Disposition::Continue {
        tracing::info!(code = %failure.code, message = failure.message, "the attempt failed");
    }
    if let Some(wait) = failure.cool_down {
        let closed = settlement.cool_down.map_or(now, |(_, until)| until).max(now + wait);
        settlement.cool_down = held.gate.clone().map(|gate| (gate, closed));
    }
    settlement.ending.code = Some(failure.code.to_string());
    settlement.ending.message = Some(failure.message.clone());
    settlement.ending.finished = false;
    let told = json!({"code": failure.code, "message": failure.message});
    let verdict = match meaning(decoded, held, &failure, in_doubt, now) {
        Disposition::Retry { after } => {
            let rung = services.ladder.after_attempt(held.attempt, rand::random());
            let wait = after.map_or(rung.delay, |after| after.max(rung.delay));
            put_off(services, &mut settlement, decoded, held.attempt, now + wait, now);
            Verdict::Retried
        }
        Disposition::Defer { until } => {
            settlement.ending.attempt_delta = -1;
            put_off(services, &mut settlement, decoded, held.attempt - 1, until, now);
            Verdict::Deferred
        }
        // It had all permits there are: whoever waits for one asks before it comes back.
        Disposition::Continue if held.gate.is_some() && held.permits >= services.ledger.slots() => {
            go_on(&mut settlement.ending, held);
            put_off(services, &mut settlement, decoded, 0, now + BREATH, now);
            Verdict::Continued
        }
        Disposition::Continue => {
            go_on(&mut settlement.ending, held);
            settlement.ending.state = state::QUEUED;
            settlement.ending.due_at = Some(now);
            let target = Target::Job { kind: decoded.envelope.kind.clone() };
            let headers = BTreeMap::from([(header::ATTEMPT.to_owned(), "0".to_owned())]);
            settlement.owed.push(outbox::job_message(&decoded.envelope, &target, &headers));
            Verdict::Continued
        }
        Disposition::Park(cause) => {
            settlement.ending.state = state::PARKED;
            settlement.ending.cause = Some(cause.as_str());
            let mut told = told;
            told["cause"] = json!(cause);
            settlement.owed.push(event(decoded, state::PARKED, held, told, now));
            Verdict::Parked
        }
        Disposition::Reject => {
            settlement.ending.state = state::DEAD;
            settlement.ending.finished = true;
            settlement.owed.push(event(decoded, state::DEAD, held, told, now));
            settlement.owed.push(outbox::dead_letter(
                &decoded.envelope,
                &failure.code,
                &failure.message,
                None,
                held.attempt,
            ));
            Verdict::Dead
        }
        Disposition::Interrupted => {
            settlement.ending.state = state::QUEUED;
            settlement.ending.due_at = Some(now);
            settlement.ending.attempt_delta = -1;
            Verdict::Returned
        }
        Disposition::Fenced => return (None, Verdict::Fenced),
    };
    (Some(settlement), verdict)
}

/// A failure's own meaning, unless the job has been tried often enough or its time is over: then a person looks after a
/// write of which nobody knows, also when it was an earlier attempt's and this one could not even ask.
fn meaning(
    decoded: &Decoded,
    held: &Held,
    failure: &Failure,
    in_doubt: bool,
    now: DateTime<Utc>,
) -> Disposition {
    let Disposition::Retry { .. } = failure.disposition else { return failure.disposition };
    let exhausted = held.attempt >= i32::from(decoded.entry.spec.attempts);
    let expired = decoded.envelope.expires_at.is_some_and(|at| at <= now);
    match (exhausted || expired, failure.ambiguous || in_doubt) {
        (true, true) => Disposition::Park(Cause::Ambiguous),
        (true, false) => Disposition::Reject,
        (false, _) => failure.disposition,
    }
}

/// A slice was done: what went wrong before it is made good, and nothing is counted against the next one.
fn go_on(ending: &mut Ending, held: &Held) {
    ending.attempt_delta = -held.attempt;
    (ending.code, ending.message) = (None, None);
}

fn put_off(
    services: &Services,
    settlement: &mut Settlement,
    decoded: &Decoded,
    attempt: i32,
    until: DateTime<Utc>,
    now: DateTime<Utc>,
) {
    settlement.ending.state = state::WAITING;
    settlement.ending.due_at = Some(until);
    let rung = services.ladder.within((until - now).to_std().unwrap_or_default());
    let target = Target::Rung { rung: rung.name.clone(), kind: decoded.envelope.kind.clone() };
    let headers = BTreeMap::from([(header::ATTEMPT.to_owned(), attempt.to_string())]);
    settlement.owed.push(outbox::job_message(&decoded.envelope, &target, &headers));
}

fn event(decoded: &Decoded, state: &str, held: &Held, mut data: Value, now: DateTime<Utc>) -> Owed {
    let envelope = &decoded.envelope;
    data["id"] = json!(envelope.id);
    data["kind"] = json!(envelope.kind);
    data["user"] = json!(envelope.user);
    data["meeting"] = json!(envelope.meeting);
    data["attempts"] = json!(held.attempt);
    Event {
        kind: &format!("job.{state}.{}", envelope.kind),
        about: "job",
        subject: &envelope.id,
        workspace: &envelope.workspace,
        traceparent: envelope.traceparent.as_deref(),
        data,
        now,
    }
    .owed()
}
