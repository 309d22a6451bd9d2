//! Dead letters: one pipe in, a table to look at, replay and discard.
//!
//! The invariant: a message leaves the dead queue only after its row is committed; with the store down it
//! waits there. Replaying decides again: permission, consent and limits are those of now.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use scoped_futures::ScopedFutureExt;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::broker::{BrokerError, Delivery, Meta, Source, header};
use crate::job::{decode, digest};
use crate::outbox;
use crate::services::Services;
use crate::store::dead_letter::{self, DeadLetter, Filter};
use crate::store::job::{Standing, state};
use crate::store::{Result, StoreError, Tx, job};
use crate::submit;

/// Moves messages from the dead queue into the table until `stop`.
pub async fn collect(services: Arc<Services>, stop: CancellationToken) -> Result<(), BrokerError> {
    let mut deliveries = services.broker.subscribe(Source::Dead, 50).await?;
    loop {
        let delivery = tokio::select! {
            delivery = deliveries.next() => delivery,
            () = stop.cancelled() => {
                deliveries.cancel().await;
                None
            }
        };
        let Some(delivery) = delivery else { return Ok(()) };
        store(&services, &delivery, &stop).await;
    }
}

async fn store(services: &Services, delivery: &Delivery, stop: &CancellationToken) {
    let mut letter = letter(delivery, services.clock.now());
    let mut plain = false;
    loop {
        let stored = services
            .store
            .transaction("dead_letter", |tx| {
                let letter = &letter;
                async move {
                    let stored = dead_letter::insert(tx, letter).await?;
                    if stored && letter.source == "broker" {
                        end_job(tx, services, letter, &delivery.meta).await?;
                    }
                    Ok::<_, StoreError>(stored)
                }
                .scope_boxed()
            })
            .await;
        match stored {
            Ok(_) => {
                metrics::counter!("followthrough_dead_letters_total", "code" => letter.code.clone())
                    .increment(1);
                let _ = delivery.receipt.ack().await;
                return;
            }
            // What the engine refuses it refuses for ever; the queue behind it must go on.
            Err(error) if error.is_refusal() && !plain => {
                tracing::error!(%error, "a dead letter is stored without what came with it");
                letter = DeadLetter {
                    code: "unstorable".to_owned(),
                    message: "the database refused what came with the message".to_owned(),
                    workspace: None,
                    kind: None,
                    job_id: None,
                    user_name: None,
                    path: None,
                    headers: "{}".to_owned(),
                    ..letter
                };
                plain = true;
                continue;
            }
            Err(error) => tracing::warn!(%error, "a dead letter cannot be stored yet"),
        }
        tokio::select! {
            () = services.clock.sleep(std::time::Duration::from_secs(1)) => {}
            () = stop.cancelled() => {
                let _ = delivery.receipt.requeue().await;
                return;
            }
        }
    }
}

fn letter(delivery: &Delivery, now: DateTime<Utc>) -> DeadLetter {
    let meta = &delivery.meta;
    let fields: Value = serde_json::from_slice(&delivery.body).unwrap_or_default();
    let text = |name: &str| {
        let text = fields.get(name)?.as_str()?;
        Some(text.chars().filter(|c| !c.is_control()).take(256).collect::<String>())
    };
    let (source, code, message) = reason(meta);
    DeadLetter {
        id: id(delivery),
        workspace: text("workspace"),
        kind: text("kind").or_else(|| Some(clean(&meta.routing_key, 255)).filter(|key| !key.is_empty())),
        job_id: text("id"),
        user_name: text("user"),
        source: source.to_owned(),
        code,
        message,
        path: meta.text(header::PATH).map(|path| clean(&path, 512)),
        attempts: meta.number(header::ATTEMPTS).and_then(|n| i32::try_from(n).ok()).unwrap_or(0),
        body: delivery.body.to_vec(),
        headers: clean(&json!(meta.headers).to_string(), 64 * 1024),
        history: json!([{"at": now, "what": "dead", "by": source}]).to_string(),
        state: dead_letter::OPEN.to_owned(),
        settled_by: None,
        settled_at: None,
        created_at: now,
    }
}

/// Who gave up and why. The broker's word comes first: publishers can write our headers, too, and through the
/// alternate exchange they arrive here.
fn reason(meta: &Meta) -> (&'static str, String, String) {
    match meta.death.as_deref() {
        Some("delivery_limit") => {
            let message = "it came back again and again without an answer: its workers crashed or were lost";
            return ("broker", "delivery_limit".to_owned(), message.to_owned());
        }
        Some("expired") => {
            let message = "it expired in the queue before a worker took it";
            return ("broker", "expired".to_owned(), message.to_owned());
        }
        _ => {}
    }
    let code = meta.text(header::CODE).filter(|code| {
        (1..=64).contains(&code.len())
            && code.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    });
    let Some(code) = code else {
        let message = "no job of this kind exists, so no queue takes it".to_owned();
        return ("publisher", "unknown_kind".to_owned(), message);
    };
    let source = if meta.headers.contains_key(header::ATTEMPTS) { "worker" } else { "publisher" };
    (source, code, clean(&meta.text(header::MESSAGE).unwrap_or_default(), 1024))
}

/// A message that the broker gave up on leaves a row that still waits, or none: either way the job is dead,
/// and its publisher hears of it. A job that lives by another copy goes on.
async fn end_job(tx: &mut Tx, services: &Services, letter: &DeadLetter, meta: &Meta) -> Result<()> {
    let Ok(decoded) = decode(&services.registry, &letter.body) else { return Ok(()) };
    let envelope = &decoded.envelope;
    let now = letter.created_at;
    let key = (envelope.workspace.clone(), envelope.id.clone());
    let row = job::standing(tx, &[key]).await?.pop();
    if row.as_ref().is_some_and(|row| row.digest != decoded.digest || lives_on(row, meta, now)) {
        return Ok(());
    }
    let fence = row.as_ref().map_or(0, |row| row.fence);
    if row.is_none() {
        job::insert(tx, &[submit::queued(&decoded, now)]).await?;
    }
    let ending = job::Ending {
        key: (envelope.workspace.clone(), envelope.id.clone()),
        fence,
        state: state::DEAD,
        cause: None,
        code: Some(letter.code.clone()),
        message: Some(letter.message.clone()),
        result: None,
        due_at: None,
        attempt_delta: 0,
        finished: true,
        parked_grant: None,
    };
    if job::end_unheld(tx, &ending, None, now).await?
        && let Some(row) = job::find(tx, &envelope.workspace, &envelope.id).await?
    {
        let told = json!({"code": letter.code, "message": letter.message});
        outbox::leave(tx, &[submit::ended(&row, state::DEAD, told, now)], now).await?;
    }
    Ok(())
}

/// Was the copy that died a twin? Publishers repeat themselves, and the job must not die of it while it runs, waits
/// for a person, or is owed to the queue by another copy.
fn lives_on(row: &Standing, meta: &Meta, now: DateTime<Utc>) -> bool {
    match row.state.as_str() {
        state::PARKED => true,
        state::RUNNING => row.lease_until.is_some_and(|until| until > now),
        // The owed copy carries the attempt's number, and the fleet's own copies never expire.
        state::WAITING => {
            meta.death.as_deref() == Some("expired")
                || meta.number(header::ATTEMPT).unwrap_or(0) != i64::from(row.attempt)
        }
        state => state::is_final(state),
    }
}

/// The same message collected twice has the same id: derived from its message id and its body.
fn id(delivery: &Delivery) -> Uuid {
    const NAMESPACE: Uuid = Uuid::from_u128(0x2d6b_41f0_88c7_4f0e_9a51_c07e_33d2_7b14);
    let message = delivery.meta.message_id.clone().unwrap_or_default();
    let body = digest(&message, &delivery.meta.routing_key, &String::from_utf8_lossy(&delivery.body));
    let unique = if message.is_empty() { Uuid::now_v7() } else { NAMESPACE };
    Uuid::new_v5(&unique, &body)
}

/// PostgreSQL's text holds no NUL, and publishers choose how long a header is.
fn clean(text: &str, longest: usize) -> String {
    text[..text.floor_char_boundary(longest)].replace('\0', "")
}

/// What replaying or discarding did, or would do.
#[derive(Debug, Clone, serde::Serialize, schemars::JsonSchema, utoipa::ToSchema)]
pub struct Handled {
    pub id: Uuid,
    pub done: bool,
    /// Why it cannot be replayed: the code it would die with again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// Sends dead letters through the front door again, or tells what would happen.
pub async fn replay(services: &Services, filter: &Filter, by: &str, dry_run: bool) -> Result<Vec<Handled>> {
    let letters = open(services, filter).await?;
    let mut handled = Vec::with_capacity(letters.len());
    for listed in letters {
        // One body in memory at a time.
        let id = listed.id;
        let whole =
            services.store.read(|tx| async move { dead_letter::find(tx, id).await }.scope_boxed()).await?;
        let Some(letter) = whole else { continue };
        let refused = match decode(&services.registry, &letter.body) {
            Err(undecodable) => Some(undecodable.code.to_owned()),
            Ok(_) if dry_run => None,
            Ok(decoded) => replay_one(services, &letter, &decoded, by).await?,
        };
        handled.push(Handled { id: letter.id, done: refused.is_none() && !dry_run, refused });
    }
    Ok(handled)
}

async fn replay_one(
    services: &Services,
    letter: &DeadLetter,
    decoded: &crate::job::Decoded,
    by: &str,
) -> Result<Option<String>> {
    let now = services.clock.now();
    let envelope = &decoded.envelope;
    let handoff = &services.handoff;
    let (refused, rows) = services
        .store
        .transaction("replay", |tx| {
            async move {
                let row = job::find(tx, &envelope.workspace, &envelope.id).await?;
                let refused = match &row {
                    Some(row) if row.digest != decoded.digest => Some("id_reused".to_owned()),
                    // It lives, or ended well: nothing to replay.
                    Some(row) if row.state != state::DEAD => Some(format!("job_{}", row.state)),
                    _ => None,
                };
                if refused.is_some() {
                    return Ok((refused, Vec::new()));
                }
                // First, so that what somebody else has just discarded is not queued by us all the same.
                if !dead_letter::settle(tx, letter.id, dead_letter::REPLAYED, by, now).await? {
                    return Ok((Some("already_settled".to_owned()), Vec::new()));
                }
                let owed = match row {
                    Some(row) => submit::requeue(tx, &row, now).await?,
                    None => Some(outbox::job_message(
                        envelope,
                        &crate::broker::Target::Job { kind: envelope.kind.clone() },
                        &std::collections::BTreeMap::new(),
                    )),
                };
                let owed: Vec<_> = owed.into_iter().collect();
                let rows = outbox::owe(tx, &owed, handoff, now).await?;
                Ok::<_, StoreError>((None, rows))
            }
            .scope_boxed()
        })
        .await?;
    handoff.give(rows);
    Ok(refused)
}

/// Closes dead letters without another try.
pub async fn discard(services: &Services, filter: &Filter, by: &str, dry_run: bool) -> Result<Vec<Handled>> {
    let letters = open(services, filter).await?;
    let now = services.clock.now();
    let mut handled = Vec::with_capacity(letters.len());
    for letter in letters {
        let done = !dry_run
            && services
                .store
                .transaction("discard", |tx| {
                    let id = letter.id;
                    async move { dead_letter::settle(tx, id, dead_letter::DISCARDED, by, now).await }
                        .scope_boxed()
                })
                .await?;
        handled.push(Handled { id: letter.id, done, refused: None });
    }
    Ok(handled)
}

/// Without their bodies.
async fn open(services: &Services, filter: &Filter) -> Result<Vec<DeadLetter>> {
    let filter = Filter { state: Some(dead_letter::OPEN), ..filter.clone() };
    let filter = &filter;
    services.store.read(|tx| async move { dead_letter::list(tx, filter).await }.scope_boxed()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(state: &str, attempt: i32, lease_until: Option<DateTime<Utc>>) -> Standing {
        Standing {
            workspace: "acme".into(),
            id: "j1".into(),
            digest: Vec::new(),
            state: state.into(),
            attempt,
            crashes: 0,
            fence: 1,
            lease_until,
            due_at: None,
            approved_at: None,
            created_at: DateTime::UNIX_EPOCH,
        }
    }

    fn died(of: &str, attempt: Option<i32>) -> Meta {
        let number = attempt.map(|attempt| (header::ATTEMPT.to_owned(), Value::from(attempt.to_string())));
        Meta { death: Some(of.to_owned()), headers: number.into_iter().collect(), ..Meta::default() }
    }

    #[test]
    fn a_twin_that_died_ends_no_job_that_lives_by_another_copy() {
        let now = DateTime::from_timestamp(1_000_000, 0).expect("a moment");
        let (later, before) = (now + chrono::TimeDelta::seconds(1), now - chrono::TimeDelta::seconds(1));
        for (row, death, lives) in [
            (standing(state::RUNNING, 1, Some(later)), died("expired", None), true),
            (standing(state::RUNNING, 1, Some(before)), died("expired", None), false),
            (standing(state::PARKED, 1, None), died("delivery_limit", Some(1)), true),
            (standing(state::WAITING, 2, None), died("delivery_limit", None), true),
            (standing(state::WAITING, 2, None), died("delivery_limit", Some(2)), false),
            (standing(state::WAITING, 0, None), died("expired", None), true),
            (standing(state::QUEUED, 0, None), died("expired", None), false),
            (standing(state::SUCCEEDED, 1, None), died("delivery_limit", Some(1)), true),
        ] {
            assert_eq!(lives_on(&row, &death, now), lives, "{row:?} {death:?}");
        }
    }
}
