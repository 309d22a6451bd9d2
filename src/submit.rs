//! How jobs enter and re-enter the queue from inside: submission over HTTP, decisions, releases, replays.
//!
//! The invariant: the row that says `queued` and the message that is owed for it commit together.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use scoped_futures::ScopedFutureExt;
use serde_json::json;

use crate::broker::{Target, header};
use crate::event::Event;
use crate::job::{Decoded, Duty, Envelope, Gate, decode_envelope};
use crate::oauth::scopes::Integration;
use crate::outbox;
use crate::outcome::Cause;
use crate::registry::Registry;
use crate::services::Services;
use crate::store::effect;
use crate::store::job::{self, JobRow, NewJob, state};
use crate::store::outbox::Owed;
use crate::store::{Result, StoreError, Tx};

/// What a submission came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Submitted {
    /// New, or the same job again: its state by now.
    Accepted { state: String },
    /// The id belongs to a job with another payload.
    IdReused,
}

/// Stores a job and owes its message. Durable when it returns.
pub async fn submit(services: &Services, decoded: &Decoded) -> Result<Submitted> {
    let now = services.clock.now();
    let envelope = &decoded.envelope;
    let handoff = &services.handoff;
    let (submitted, rows) = services
        .store
        .transaction("submit", |tx| {
            async move {
                if job::insert(tx, &[queued(decoded, now)]).await?.is_empty() {
                    let known = job::find(tx, &envelope.workspace, &envelope.id).await?;
                    let submitted = match known {
                        Some(row) if row.digest == decoded.digest => Submitted::Accepted { state: row.state },
                        _ => Submitted::IdReused,
                    };
                    return Ok((submitted, Vec::new()));
                }
                let rows = outbox::owe(tx, &[to_queue(envelope, 0)], handoff, now).await?;
                Ok::<_, StoreError>((Submitted::Accepted { state: state::QUEUED.to_owned() }, rows))
            }
            .scope_boxed()
        })
        .await?;
    handoff.give(rows);
    Ok(submitted)
}

/// The row of a job that nobody has tried yet.
pub(crate) fn queued(decoded: &Decoded, now: DateTime<Utc>) -> NewJob {
    let envelope = &decoded.envelope;
    NewJob {
        workspace: envelope.workspace.clone(),
        id: envelope.id.clone(),
        kind: envelope.kind.clone(),
        user_name: envelope.user.clone(),
        meeting: envelope.meeting.clone(),
        tool: Some(decoded.job.tool().into_owned()),
        payload: decoded.payload.clone(),
        digest: decoded.digest.clone(),
        traceparent: envelope.traceparent.clone(),
        state: state::QUEUED,
        attempt: 0,
        fence: 0,
        holder: None,
        lease_until: None,
        gate: None,
        permits: decoded.entry.spec.permits.into(),
        due_at: Some(now),
        not_before: envelope.not_before,
        expires_at: envelope.expires_at,
        now,
    }
}

/// What the platform wants done, as a job of whichever kind does it. Made in the caller's transaction; nothing is owed
/// when it was made before.
pub async fn want(
    tx: &mut Tx,
    registry: &Registry,
    duty: Duty,
    wish: Wish<'_>,
    now: DateTime<Utc>,
) -> Result<Option<Owed>> {
    let Some(entry) = registry.for_duty(duty) else {
        tracing::error!(?duty, "this build has no job for what is asked");
        return Ok(None);
    };
    let envelope = Envelope {
        id: wish.id.to_owned(),
        kind: entry.spec.kind.to_owned(),
        workspace: wish.workspace.to_owned(),
        user: wish.user.to_owned(),
        meeting: None,
        not_before: None,
        expires_at: None,
        traceparent: None,
        payload: wish.payload,
    };
    let decoded = decode_envelope(registry, envelope)
        .map_err(|undecodable| StoreError::Corrupt(format!("our own job: {}", undecodable.message)))?;
    let made = !job::insert(tx, &[queued(&decoded, now)]).await?.is_empty();
    Ok(made.then(|| to_queue(&decoded.envelope, 0)))
}

/// The same, and what was given up is done again.
pub async fn want_again(
    tx: &mut Tx,
    registry: &Registry,
    duty: Duty,
    wish: Wish<'_>,
    now: DateTime<Utc>,
) -> Result<Option<Owed>> {
    match job::find(tx, wish.workspace, wish.id).await? {
        Some(row) if [state::PARKED, state::DEAD].contains(&row.state.as_str()) => {
            requeue(tx, &row, now).await
        }
        Some(_) => Ok(None),
        None => want(tx, registry, duty, wish, now).await,
    }
}

/// Whose work, under which id, and what.
pub struct Wish<'a> {
    pub workspace: &'a str,
    pub user: &'a str,
    pub id: &'a str,
    pub payload: serde_json::Value,
}

/// Rows that one transaction puts back: each holds a payload in memory, and the transaction has its time.
const AT_ONCE: i64 = 16;
/// So many times in a row, at most.
const ROUNDS: usize = 1_000;

/// Jobs of one user that were parked for want of this connection are queued again: the oldest in the transaction that
/// connects, so that the relay finds their messages at its next look, the rest by the [`sweep`]. Returns how many.
pub async fn release_for_connection(
    tx: &mut Tx,
    registry: &Registry,
    workspace: &str,
    user: &str,
    integration: Integration,
    now: DateTime<Utc>,
) -> Result<usize> {
    let kinds: Vec<String> = registry
        .entries()
        .iter()
        .filter(|entry| {
            entry.spec.integration == Some(integration) || integration == Integration::SharedMailbox
        })
        .map(|entry| entry.spec.kind.to_owned())
        .collect();
    let causes = [Cause::NeedsUser.as_str(), Cause::NeedsAdmin.as_str()];
    let mut owed = Vec::new();
    for row in job::parked_for(tx, workspace, user, &causes, &kinds, AT_ONCE).await? {
        owed.extend(requeue(tx, &row, now).await?);
    }
    outbox::leave(tx, &owed, now).await?;
    Ok(owed.len())
}

/// A parked, dead or overdue job is queued again under a new fence. `None` when it moved on meanwhile.
pub async fn requeue(tx: &mut Tx, row: &JobRow, now: DateTime<Utc>) -> Result<Option<Owed>> {
    let key = (row.workspace.clone(), row.id.clone());
    let attempt = job::requeue(tx, &key, row.fence, now).await?;
    Ok(attempt.map(|attempt| to_queue(&envelope(row), attempt)))
}

/// The decision on a job that asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decided {
    Done,
    NotFound,
    /// It does not wait for an approval (any more).
    NotWaiting {
        state: String,
    },
}

/// A person's yes: the job is queued again, its row says who allowed exactly this payload.
pub async fn approve(
    services: &Services,
    workspace: &str,
    id: &str,
    by: &str,
    note: Option<&str>,
) -> Result<Decided> {
    decide(services, workspace, id, by, note, true).await
}

/// A person's no ends the job.
pub async fn reject(
    services: &Services,
    workspace: &str,
    id: &str,
    by: &str,
    note: Option<&str>,
) -> Result<Decided> {
    decide(services, workspace, id, by, note, false).await
}

async fn decide(
    services: &Services,
    workspace: &str,
    id: &str,
    by: &str,
    note: Option<&str>,
    yes: bool,
) -> Result<Decided> {
    let now = services.clock.now();
    let handoff = &services.handoff;
    let (decided, rows) = services
        .store
        .transaction("decide", |tx| {
            async move {
                let Some(row) = job::find(tx, workspace, id).await? else {
                    return Ok((Decided::NotFound, Vec::new()));
                };
                let key = (workspace.to_owned(), id.to_owned());
                let not_waiting = Decided::NotWaiting { state: row.state.clone() };
                let owed = if yes {
                    if !job::approve(tx, &key, by, note, now).await? {
                        return Ok((not_waiting, Vec::new()));
                    }
                    requeue(tx, &row, now).await?
                } else if effect::in_doubt(tx, &key).await? {
                    let waits =
                        row.state == state::PARKED && row.cause.as_deref() == Some(Cause::Approval.as_str());
                    if !waits {
                        return Ok((not_waiting, Vec::new()));
                    }
                    let said = json!({"by": by, "note": note});
                    park_in_doubt(tx, &row, "it was rejected", said, now).await?
                } else {
                    if !job::reject(tx, &key, by, note, now).await? {
                        return Ok((not_waiting, Vec::new()));
                    }
                    Some(ended(&row, "rejected", json!({"by": by, "note": note}), now))
                };
                let owed: Vec<Owed> = owed.into_iter().collect();
                let rows = outbox::owe(tx, &owed, handoff, now).await?;
                Ok::<_, StoreError>((Decided::Done, rows))
            }
            .scope_boxed()
        })
        .await?;
    handoff.give(rows);
    Ok(decided)
}

/// What nothing else would bring back. Jobs of `idle` kinds (nothing of theirs stands in the queue) whose copy
/// must have been lost get a new one; jobs that were parked while their connection was being made are
/// released; parked jobs that nobody wants any more expire. Returns how many got on, and how many expired.
pub async fn sweep(services: &Services, idle: &[String], patience: TimeDelta) -> Result<(usize, usize)> {
    let (mut lost, mut expired) = (0, 0);
    for _ in 0..ROUNDS {
        let (some, over) = sweep_some(services, idle, patience).await?;
        lost += some;
        expired += over;
        if some + over == 0 {
            break;
        }
    }
    Ok((lost, expired))
}

async fn sweep_some(services: &Services, idle: &[String], patience: TimeDelta) -> Result<(usize, usize)> {
    let now = services.clock.now();
    let handoff = &services.handoff;
    let integrations: Vec<(String, String)> = services
        .registry
        .entries()
        .iter()
        .flat_map(|entry| {
            let shared = (entry.spec.gate == Gate::Mailbox).then_some(Integration::SharedMailbox);
            entry
                .spec
                .integration
                .into_iter()
                .chain(shared)
                .map(|integration| (entry.spec.kind.to_owned(), integration.as_str().to_owned()))
        })
        .collect();
    let integrations = &integrations;
    let (lost, expired, rows) = services
        .store
        .transaction("sweep", |tx| {
            async move {
                let mut owed = Vec::new();
                for kind in idle {
                    for row in job::overdue(tx, kind, now - patience, AT_ONCE).await? {
                        owed.extend(requeue(tx, &row, now).await?);
                    }
                }
                for row in job::parked_behind_a_grant(tx, integrations, AT_ONCE).await? {
                    owed.extend(requeue(tx, &row, now).await?);
                }
                let lost = owed.len();
                let mut expired = 0;
                for row in job::parked_expired(tx, now, AT_ONCE).await? {
                    let message = "nobody acted before expires_at";
                    if effect::in_doubt(tx, &(row.workspace.clone(), row.id.clone())).await? {
                        owed.extend(park_in_doubt(tx, &row, message, json!({}), now).await?);
                        continue;
                    }
                    let ending = job::Ending::last(&row, state::EXPIRED, "expired", message);
                    if job::end_unheld(tx, &ending, None, now).await? {
                        let code = json!({"code": "expired", "message": ending.message});
                        owed.push(ended(&row, "expired", code, now));
                        expired += 1;
                    }
                }
                let rows = outbox::owe(tx, &owed, handoff, now).await?;
                Ok::<_, StoreError>((lost, expired, rows))
            }
            .scope_boxed()
        })
        .await?;
    handoff.give(rows);
    Ok((lost, expired))
}

/// What is to be said of a job that ends while a write of it is in doubt.
pub(crate) fn in_doubt(message: &str) -> String {
    format!("{message}, and nobody knows what became of a write")
}

/// A job that would end here waits for a person instead, who finds out what became of its write. `None` when it moved
/// on meanwhile.
async fn park_in_doubt(
    tx: &mut Tx,
    row: &JobRow,
    message: &str,
    mut said: serde_json::Value,
    now: DateTime<Utc>,
) -> Result<Option<Owed>> {
    let (cause, message) = (Cause::Ambiguous.as_str(), in_doubt(message));
    let ending = job::Ending {
        cause: Some(cause),
        finished: false,
        ..job::Ending::last(row, state::PARKED, cause, &message)
    };
    said["cause"] = json!(cause);
    said["code"] = json!(cause);
    said["message"] = json!(message);
    Ok(job::end_unheld(tx, &ending, None, now).await?.then(|| ended(row, state::PARKED, said, now)))
}

/// The event of an end that happened outside an attempt.
pub(crate) fn ended(row: &JobRow, state: &str, mut data: serde_json::Value, now: DateTime<Utc>) -> Owed {
    data["id"] = json!(row.id);
    data["kind"] = json!(row.kind);
    data["user"] = json!(row.user_name);
    data["meeting"] = json!(row.meeting);
    data["attempts"] = json!(row.attempt);
    Event {
        kind: &format!("job.{state}.{}", row.kind),
        about: "job",
        subject: &row.id,
        workspace: &row.workspace,
        traceparent: row.traceparent.as_deref(),
        data,
        now,
    }
    .owed()
}

/// The message as the publisher sent it, from what the ledger kept.
pub fn envelope(row: &JobRow) -> Envelope {
    Envelope {
        id: row.id.clone(),
        kind: row.kind.clone(),
        workspace: row.workspace.clone(),
        user: row.user_name.clone(),
        meeting: row.meeting.clone(),
        not_before: row.not_before,
        expires_at: row.expires_at,
        traceparent: row.traceparent.clone(),
        payload: serde_json::from_str(&row.payload).unwrap_or_default(),
    }
}

fn to_queue(envelope: &Envelope, attempt: i32) -> Owed {
    let headers = BTreeMap::from([(header::ATTEMPT.to_owned(), attempt.to_string())]);
    outbox::job_message(envelope, &Target::Job { kind: envelope.kind.clone() }, &headers)
}
