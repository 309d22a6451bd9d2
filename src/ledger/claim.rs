//! Claiming: may this delivery run now, and if not, what becomes of it?
//!
//! The invariant: a job runs only under a fence and a lease that were committed before it starts; permission,
//! consent and permits are read in the same transaction, so none of them is stale.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use scoped_futures::ScopedFutureExt;
use serde_json::json;
use uuid::Uuid;

use super::Rules;
use crate::clock::Clock;
use crate::event::Event;
use crate::job::{Decoded, Duty, Gate};
use crate::mailbox::life;
use crate::oauth::scopes::Integration;
use crate::outbox::{self, Handoff};
use crate::outcome::Cause;
use crate::permission::{self, Level};
use crate::store::connection::{self, Connection, Status};
use crate::store::effect::{self, EffectRow};
use crate::store::job::{self, Ending, Key, NewJob, Standing, Takeover, state};
use crate::store::mailbox::Mailbox;
use crate::store::outbox::Owed;
use crate::store::{Store, StoreError, Tx, gate, mailbox, tool};
use crate::submit;

/// A delivery that asks to run.
#[derive(Clone)]
pub struct ClaimRequest {
    pub decoded: Arc<Decoded>,
    /// The attempt number the delivery carries: tells the owed copy of a waiting job from a twin.
    pub owed_attempt: Option<i64>,
}

/// What the ledger says.
pub enum Claim {
    /// Ours: run it.
    Run(Box<Held>),
    /// Finished, parked, or a twin of a copy that is still owed: acknowledge and forget.
    Drop(&'static str),
    /// Not now: publish to a rung, then acknowledge. Nothing was changed.
    Defer { until: DateTime<Utc>, why: &'static str },
    /// The ledger ended the job here (parked, denied, expired) and owes the event: acknowledge.
    Ended(&'static str),
    /// The id belongs to a job with another payload.
    IdReused,
    /// The row changed under us; look again.
    Again,
}

/// A claimed job.
#[derive(Debug, Clone)]
pub struct Held {
    pub key: Key,
    pub fence: i64,
    pub attempt: i32,
    /// How often a worker was lost while running it.
    pub crashes: i32,
    pub claimed_at: DateTime<Utc>,
    pub created_at: DateTime<Utc>,
    pub effects: Vec<EffectRow>,
    pub connection: Option<Connection>,
    pub gate: Option<String>,
    /// Of its gate.
    pub permits: u16,
}

/// What an approver is shown in the event; all of it is behind the job's own address.
const MOST_RENDERED: usize = 16 * 1024;
/// After so many lost workers a job is not given another one. It ran alone from the third on, so that this many are
/// no accident: machines that are killed every few seconds strike the same innocent job five times, now and then.
const CRASHES: i32 = 10;
/// Copies that come back this much too early are run all the same.
const EARLY: TimeDelta = TimeDelta::seconds(1);
/// How long a job without a free permit waits before it asks again.
const NO_PERMIT: TimeDelta = TimeDelta::seconds(1);

pub(super) async fn run(
    store: &Store,
    clock: &Clock,
    rules: &Rules,
    handoff: &Handoff,
    batch: &Arc<[ClaimRequest]>,
) -> Result<Vec<Claim>, StoreError> {
    let now = clock.now();
    let (claims, owed) = store
        .transaction("claim", |tx| {
            async move {
                let mut work = Claims { rules, now, batch, owed: Vec::new() };
                let claims = work.decide(tx).await?;
                let owed = outbox::owe(tx, &work.owed, handoff, now).await?;
                Ok::<_, StoreError>((claims, owed))
            }
            .scope_boxed()
        })
        .await?;
    handoff.give(owed);
    Ok(claims)
}

struct Claims<'a> {
    rules: &'a Rules,
    now: DateTime<Utc>,
    batch: &'a [ClaimRequest],
    owed: Vec<Owed>,
}

/// A request that may run as far as its own row is concerned.
struct Candidate<'a> {
    index: usize,
    decoded: &'a Decoded,
    standing: Option<Standing>,
    tool: String,
    integration: Option<Integration>,
    connection: Option<Connection>,
    gate: Option<String>,
}

impl<'a> Claims<'a> {
    async fn decide(&mut self, tx: &mut Tx) -> Result<Vec<Claim>, StoreError> {
        let mut claims: Vec<Option<Claim>> = self.batch.iter().map(|_| None).collect();
        let candidates = self.by_standing(tx, &mut claims).await?;
        let candidates = self.by_permission(tx, candidates, &mut claims).await?;
        let candidates = self.by_connection(tx, candidates, &mut claims).await?;
        let candidates = self.by_gate(tx, candidates, &mut claims).await?;
        self.take(tx, candidates, &mut claims).await?;
        Ok(claims.into_iter().map(|claim| claim.unwrap_or(Claim::Again)).collect())
    }

    /// What the job's own row says. Twins within the batch are answered `Again`.
    async fn by_standing(
        &mut self,
        tx: &mut Tx,
        claims: &mut [Option<Claim>],
    ) -> Result<Vec<Candidate<'a>>, StoreError> {
        let mut seen = HashSet::new();
        let firsts: Vec<usize> =
            (0..self.batch.len()).filter(|i| seen.insert(key(&self.batch[*i]))).collect();
        let keys: Vec<Key> = firsts.iter().map(|index| key(&self.batch[*index])).collect();
        let mut standing: HashMap<Key, Standing> = job::standing(tx, &keys)
            .await?
            .into_iter()
            .map(|row| ((row.workspace.clone(), row.id.clone()), row))
            .collect();
        let mut candidates = Vec::new();
        for index in firsts {
            let request = &self.batch[index];
            let decoded: &'a Decoded = &request.decoded;
            let standing = standing.remove(&key(request));
            if let Some(row) = &standing
                && let Some(claim) = self.standing_claim(row, request)
            {
                claims[index] = Some(claim);
                continue;
            }
            let candidate = Candidate {
                index,
                decoded,
                tool: decoded.job.tool().into_owned(),
                integration: decoded.job.integration(),
                connection: None,
                gate: None,
                standing,
            };
            // An end that was begun comes to its end: half of it is worse than none.
            let ends = takes_away(decoded) && candidate.standing.as_ref().is_some_and(|row| row.fence > 0);
            if !ends && decoded.envelope.expires_at.is_some_and(|at| at <= self.now) {
                let message = "it was not done before expires_at";
                let ended = self.give_up(tx, &candidate, state::EXPIRED, "expired", message).await?;
                claims[index] = Some(ended);
            } else if candidate.standing.as_ref().is_some_and(|row| row.crashes >= CRASHES) {
                let message = "its worker was lost again and again";
                claims[index] =
                    Some(self.end(tx, &candidate, state::DEAD, None, "crash_loop", message).await?);
            } else if let Some(until) = decoded.envelope.not_before.filter(|at| *at > self.now + EARLY) {
                if candidate.standing.is_none() {
                    job::insert(tx, &[self.row(&candidate, state::WAITING, Some(until))]).await?;
                }
                claims[index] = Some(Claim::Defer { until, why: "not_before" });
            } else {
                candidates.push(candidate);
            }
        }
        Ok(candidates)
    }

    fn standing_claim(&self, row: &Standing, request: &ClaimRequest) -> Option<Claim> {
        if row.digest != request.decoded.digest {
            return Some(Claim::IdReused);
        }
        if state::is_final(&row.state) {
            return Some(Claim::Drop("finished"));
        }
        match row.state.as_str() {
            state::PARKED => Some(Claim::Drop("parked")),
            state::RUNNING => {
                // The message of a job that runs elsewhere may be the only copy of it: never dropped.
                let until = row.lease_until.filter(|until| *until > self.now)?;
                Some(Claim::Defer { until: until.min(self.now + TimeDelta::seconds(5)), why: "running" })
            }
            state::WAITING => {
                let until = row.due_at.filter(|due| *due > self.now + EARLY)?;
                let owed = request.owed_attempt.unwrap_or(0) == i64::from(row.attempt);
                Some(if owed { Claim::Defer { until, why: "early" } } else { Claim::Drop("twin") })
            }
            _ => None,
        }
    }

    async fn by_permission(
        &mut self,
        tx: &mut Tx,
        candidates: Vec<Candidate<'a>>,
        claims: &mut [Option<Claim>],
    ) -> Result<Vec<Candidate<'a>>, StoreError> {
        let workspaces: BTreeSet<String> =
            candidates.iter().map(|candidate| candidate.decoded.envelope.workspace.clone()).collect();
        let rules = tool::of_workspaces(tx, &workspaces.into_iter().collect::<Vec<_>>()).await?;
        let mut allowed = Vec::new();
        for candidate in candidates {
            let approved = candidate.standing.as_ref().is_some_and(|row| row.approved_at.is_some());
            let duty = candidate.decoded.entry.spec.duty;
            // What goes on by itself was asked for when it began, and what only takes away needs no leave.
            let goes_on = matches!(duty, Some(Duty::SyncMailbox | Duty::FillMailbox));
            match permission::level(&rules, &candidate.decoded.envelope.workspace, &candidate.tool) {
                _ if takes_away(candidate.decoded) => allowed.push(candidate),
                Level::Allow => allowed.push(candidate),
                Level::Ask if approved || goes_on => allowed.push(candidate),
                Level::Ask => {
                    let message = format!("the tool {} asks for an approval", candidate.tool);
                    let cause = Some(Cause::Approval);
                    let ended =
                        self.end(tx, &candidate, state::PARKED, cause, "approval_needed", &message).await?;
                    claims[candidate.index] = Some(ended);
                }
                // Ended, a sync would be made again at once, and a backfill would count as running for ever: they
                // wait, and are tried now and then.
                Level::Deny
                    if goes_on && (candidate.standing.is_some() || duty == Some(Duty::SyncMailbox)) =>
                {
                    let message = format!("the tool {} is not allowed any more", candidate.tool);
                    let (cause, code) = (Some(Cause::NeedsAdmin), "tool_denied");
                    let ended = self.end(tx, &candidate, state::PARKED, cause, code, &message).await?;
                    claims[candidate.index] = Some(ended);
                    if let Some(mailbox) = mailbox_of(tx, candidate.decoded).await? {
                        self.owed.extend(life::degrade(tx, &mailbox, code, &message, self.now).await?);
                    }
                }
                Level::Deny => {
                    let message = format!("the tool {} is not allowed in this workspace", candidate.tool);
                    let ended = self.give_up(tx, &candidate, state::DEAD, "tool_denied", &message).await?;
                    claims[candidate.index] = Some(ended);
                }
            }
        }
        Ok(allowed)
    }

    async fn by_connection(
        &mut self,
        tx: &mut Tx,
        candidates: Vec<Candidate<'a>>,
        claims: &mut [Option<Claim>],
    ) -> Result<Vec<Candidate<'a>>, StoreError> {
        let wanted: BTreeSet<(String, String, Integration)> = candidates
            .iter()
            .filter_map(|candidate| {
                let envelope = &candidate.decoded.envelope;
                Some((envelope.workspace.clone(), envelope.user.clone(), candidate.integration?))
            })
            .collect();
        let connections: HashMap<(String, String, Integration), Connection> =
            connection::find_many(tx, &wanted.into_iter().collect::<Vec<_>>())
                .await?
                .into_iter()
                .map(|row| ((row.workspace.clone(), row.user_name.clone(), row.integration), row))
                .collect();
        let mailboxes = mailboxes(tx, &candidates).await?;
        let mut connected = Vec::new();
        for mut candidate in candidates {
            let Some(integration) = candidate.integration else {
                connected.push(candidate);
                continue;
            };
            let envelope = &candidate.decoded.envelope;
            let key = (envelope.workspace.clone(), envelope.user.clone(), integration);
            match usable(connections.get(&key), integration, candidate.decoded.job.scopes()) {
                Ok(connection) => {
                    candidate.gate = gate_key(candidate.decoded, connection, &mailboxes);
                    candidate.connection = Some(connection.clone());
                    connected.push(candidate);
                }
                // The fleet's own work finds that its mailbox has ended, and ends: nobody has to sign in for that.
                Err(_) if is_over(candidate.decoded, &mailboxes) => connected.push(candidate),
                Err((cause, code, message)) => {
                    candidate.connection = connections.get(&key).cloned();
                    let ended = self.end(tx, &candidate, state::PARKED, Some(cause), code, &message).await?;
                    claims[candidate.index] = Some(ended);
                }
            }
        }
        Ok(connected)
    }

    /// A running row with a live lease is a permit; counting happens under the gate's lock.
    async fn by_gate(
        &mut self,
        tx: &mut Tx,
        candidates: Vec<Candidate<'a>>,
        claims: &mut [Option<Claim>],
    ) -> Result<Vec<Candidate<'a>>, StoreError> {
        let gates: BTreeSet<String> =
            candidates.iter().filter_map(|candidate| candidate.gate.clone()).collect();
        let gates: Vec<String> = gates.into_iter().collect();
        let closed: HashMap<String, DateTime<Utc>> = gate::lock(tx, &gates)
            .await?
            .into_iter()
            .filter_map(|(key, not_before)| Some((key, not_before.filter(|until| *until > self.now)?)))
            .collect();
        let mut running: HashMap<String, i64> =
            job::running_at(tx, &gates, self.now).await?.into_iter().collect();
        let mut admitted = Vec::new();
        for candidate in candidates {
            let Some(gate) = &candidate.gate else {
                admitted.push(candidate);
                continue;
            };
            if let Some(until) = closed.get(gate) {
                claims[candidate.index] = Some(Claim::Defer { until: *until, why: "throttled" });
                continue;
            }
            let permits = running.entry(gate.clone()).or_default();
            let wanted = i64::from(permits_of(candidate.decoded, self.rules.slots));
            if *permits + wanted > i64::from(self.rules.slots) {
                claims[candidate.index] =
                    Some(Claim::Defer { until: self.now + NO_PERMIT, why: "no_permit" });
                continue;
            }
            *permits += wanted;
            admitted.push(candidate);
        }
        Ok(admitted)
    }

    async fn take(
        &mut self,
        tx: &mut Tx,
        mut candidates: Vec<Candidate<'a>>,
        claims: &mut [Option<Claim>],
    ) -> Result<(), StoreError> {
        // One order of row locks for every process.
        candidates.sort_by_key(|candidate| key(&self.batch[candidate.index]));
        let lease_until = self.now + self.rules.lease;
        let fresh: Vec<NewJob> = candidates
            .iter()
            .filter(|candidate| candidate.standing.is_none())
            .map(|candidate| self.running_row(candidate, lease_until))
            .collect();
        let known: Vec<Takeover> = candidates
            .iter()
            .filter_map(|candidate| {
                let row = candidate.standing.as_ref()?;
                Some(Takeover {
                    key: key(&self.batch[candidate.index]),
                    expected_fence: row.fence,
                    crashed: row.state == state::RUNNING,
                    tool: candidate.tool.clone(),
                    gate: candidate.gate.clone(),
                    permits: permits_of(candidate.decoded, self.rules.slots).into(),
                })
            })
            .collect();
        let mut taken: HashSet<Key> = job::insert(tx, &fresh).await?.into_iter().collect();
        let retaken = job::take_over(tx, &known, &self.rules.instance, lease_until, self.now).await?;
        let mut effects: HashMap<Key, Vec<EffectRow>> = HashMap::new();
        for row in effect::of_jobs(tx, &retaken).await? {
            effects.entry((row.workspace.clone(), row.job_id.clone())).or_default().push(row);
        }
        taken.extend(retaken);
        for candidate in candidates {
            let key = key(&self.batch[candidate.index]);
            if !taken.contains(&key) {
                continue;
            }
            let standing = candidate.standing.as_ref();
            claims[candidate.index] = Some(Claim::Run(Box::new(Held {
                fence: standing.map_or(1, |row| row.fence + 1),
                attempt: standing.map_or(1, |row| row.attempt + 1),
                crashes: standing.map_or(0, |row| row.crashes + i32::from(row.state == state::RUNNING)),
                claimed_at: self.now,
                created_at: standing.map_or(self.now, |row| row.created_at),
                effects: effects.remove(&key).unwrap_or_default(),
                connection: candidate.connection,
                gate: candidate.gate,
                permits: permits_of(candidate.decoded, self.rules.slots),
                key,
            })));
        }
        Ok(())
    }

    fn row(&self, candidate: &Candidate<'_>, state: &'static str, due_at: Option<DateTime<Utc>>) -> NewJob {
        let envelope = &candidate.decoded.envelope;
        NewJob {
            workspace: envelope.workspace.clone(),
            id: envelope.id.clone(),
            kind: envelope.kind.clone(),
            user_name: envelope.user.clone(),
            meeting: envelope.meeting.clone(),
            tool: Some(candidate.tool.clone()),
            payload: candidate.decoded.payload.clone(),
            digest: candidate.decoded.digest.clone(),
            traceparent: envelope.traceparent.clone(),
            state,
            attempt: 0,
            fence: 0,
            holder: None,
            lease_until: None,
            gate: None,
            permits: permits_of(candidate.decoded, self.rules.slots).into(),
            due_at,
            not_before: envelope.not_before,
            expires_at: envelope.expires_at,
            now: self.now,
        }
    }

    fn running_row(&self, candidate: &Candidate<'_>, lease_until: DateTime<Utc>) -> NewJob {
        NewJob {
            attempt: 1,
            fence: 1,
            holder: Some(self.rules.instance.clone()),
            lease_until: Some(lease_until),
            gate: candidate.gate.clone(),
            ..self.row(candidate, state::RUNNING, None)
        }
    }

    /// Ends a job for good, unless nobody knows what became of a write: that a person has to find out.
    async fn give_up(
        &mut self,
        tx: &mut Tx,
        candidate: &Candidate<'_>,
        state: &'static str,
        code: &'static str,
        message: &str,
    ) -> Result<Claim, StoreError> {
        if !effect::in_doubt(tx, &key(&self.batch[candidate.index])).await? {
            return self.end(tx, candidate, state, None, code, message).await;
        }
        let (cause, message) = (Cause::Ambiguous, submit::in_doubt(message));
        self.end(tx, candidate, state::PARKED, Some(cause), cause.as_str(), &message).await
    }

    /// Ends a job that never got to run this time, with its event and, when it is dead, its dead letter.
    async fn end(
        &mut self,
        tx: &mut Tx,
        candidate: &Candidate<'_>,
        state: &'static str,
        cause: Option<Cause>,
        code: &'static str,
        message: &str,
    ) -> Result<Claim, StoreError> {
        let fence = match &candidate.standing {
            Some(row) => row.fence,
            // Somebody else's row appeared meanwhile: theirs to judge, and ours to look at again.
            None if job::insert(tx, &[self.row(candidate, state::QUEUED, Some(self.now))])
                .await?
                .is_empty() =>
            {
                return Ok(Claim::Again);
            }
            None => 0,
        };
        let ending = Ending {
            key: key(&self.batch[candidate.index]),
            fence,
            state,
            cause: cause.map(Cause::as_str),
            code: Some(code.to_owned()),
            message: Some(message.to_owned()),
            result: None,
            due_at: None,
            attempt_delta: 0,
            finished: state::is_final(state),
            parked_grant: candidate.connection.as_ref().map(|connection| connection.grant_number),
        };
        if !job::end_unheld(tx, &ending, Some(&candidate.tool), self.now).await? {
            return Ok(Claim::Again);
        }
        let attempts = candidate.standing.as_ref().map_or(0, |row| row.attempt);
        let envelope = &candidate.decoded.envelope;
        self.owed.push(ended_event(candidate.decoded, state, cause, code, message, attempts, self.now));
        if state == state::DEAD {
            self.owed.push(outbox::dead_letter(envelope, code, message, None, attempts));
        }
        Ok(Claim::Ended(code))
    }
}

/// The event of an end that is no success.
pub(super) fn ended_event(
    decoded: &Decoded,
    state: &str,
    cause: Option<Cause>,
    code: &str,
    message: &str,
    attempts: i32,
    now: DateTime<Utc>,
) -> Owed {
    let envelope = &decoded.envelope;
    let mut data = json!({
        "id": envelope.id, "kind": envelope.kind, "user": envelope.user, "meeting": envelope.meeting,
        "code": code, "message": message, "attempts": attempts,
    });
    if let Some(cause) = cause {
        data["cause"] = json!(cause);
        if cause == Cause::Approval {
            let rendered = decoded.job.render();
            data["rendered"] = json!(rendered[..rendered.floor_char_boundary(MOST_RENDERED)]);
        }
    }
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

fn takes_away(decoded: &Decoded) -> bool {
    matches!(decoded.entry.spec.duty, Some(Duty::DisconnectMailbox | Duty::DisconnectConnection))
}

fn key(request: &ClaimRequest) -> Key {
    let envelope = &request.decoded.envelope;
    (envelope.workspace.clone(), envelope.id.clone())
}

/// Can the connection be used for these scopes? If not, who must act.
fn usable<'c>(
    connection: Option<&'c Connection>,
    integration: Integration,
    scopes: &[&str],
) -> Result<&'c Connection, (Cause, &'static str, String)> {
    let name = integration.as_str();
    // A link was made and not used yet: as good as none.
    let Some(connection) = connection.filter(|connection| connection.status != Status::Pending) else {
        return Err((Cause::NeedsUser, "not_connected", format!("the user has not connected {name}")));
    };
    match connection.status {
        Status::Connected => {}
        Status::NeedsAdmin => {
            let message = format!("the connection {name} waits for an administrator");
            return Err((Cause::NeedsAdmin, "connection_needs_admin", message));
        }
        _ => {
            let message = format!("the user must sign in to {name} again");
            return Err((Cause::NeedsUser, "connection_needs_user", message));
        }
    }
    if let Some(missing) = scopes.iter().find(|scope| !connection.allows(scope)) {
        let message = format!("the consent for {name} does not include {missing}");
        return Err((Cause::NeedsUser, "scope_missing", message));
    }
    Ok(connection)
}

/// The mailboxes that jobs name by id: the limit is that of the address.
/// The mailbox of a job that the fleet made: it names it by its id.
async fn mailbox_of(tx: &mut Tx, decoded: &Decoded) -> Result<Option<Mailbox>, StoreError> {
    match decoded.job.mailbox().and_then(|mailbox| Uuid::parse_str(mailbox).ok()) {
        Some(id) => mailbox::find(tx, id).await,
        None => Ok(None),
    }
}

async fn mailboxes(tx: &mut Tx, candidates: &[Candidate<'_>]) -> Result<HashMap<Uuid, Mailbox>, StoreError> {
    let mut mailboxes = HashMap::new();
    let named =
        candidates.iter().filter_map(|candidate| Uuid::parse_str(candidate.decoded.job.mailbox()?).ok());
    for id in named.collect::<BTreeSet<_>>() {
        if let Some(mailbox) = mailbox::find(tx, id).await? {
            mailboxes.insert(id, mailbox);
        }
    }
    Ok(mailboxes)
}

/// Has the mailbox of the fleet's own work ended, or is it about to?
fn is_over(decoded: &Decoded, mailboxes: &HashMap<Uuid, Mailbox>) -> bool {
    let own = matches!(decoded.entry.spec.duty, Some(Duty::SyncMailbox | Duty::FillMailbox));
    let named = decoded.job.mailbox().and_then(|name| mailboxes.get(&Uuid::parse_str(name).ok()?));
    own && named.is_some_and(Mailbox::ends)
}

/// How many permits a job takes: never more than half of all, so that short work gets in beside long work.
pub(crate) fn permits_of(decoded: &Decoded, slots: u16) -> u16 {
    decoded.entry.spec.permits.min((slots / 2).max(1))
}

/// Whose limit the job counts against.
fn gate_key(
    decoded: &Decoded,
    connection: &Connection,
    mailboxes: &HashMap<Uuid, Mailbox>,
) -> Option<String> {
    let tenant = connection.tenant_id.as_deref().unwrap_or_default();
    let object = connection.object_id.as_deref().unwrap_or_default();
    match decoded.entry.spec.gate {
        Gate::None => None,
        Gate::Mailbox => Some(match decoded.job.mailbox() {
            Some(mailbox) => {
                let known = Uuid::parse_str(mailbox).ok().and_then(|id| mailboxes.get(&id));
                let known = known.map(|known| known.address.clone());
                gate::of_mailbox(tenant, &known.unwrap_or_else(|| mailbox.to_lowercase()))
            }
            None => gate::of_mailbox(tenant, object),
        }),
        Gate::CrmUser => {
            Some(format!("crm:{}:{object}", connection.environment.as_deref().unwrap_or_default()))
        }
    }
}
