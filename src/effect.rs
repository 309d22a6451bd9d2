//! The effect ledger seen from a job: intend, probe, act, confirm.
//!
//! The invariant: an outward write is made only after its intent is committed, and an intent without a
//! confirmation is probed before anything else is done. A confirmation may commit with the next ledger write
//! of the attempt, since a lost one is found again by the probe.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::ledger::{Held, Ledger};
use crate::outcome::{Cause, Disposition, Failure};
use crate::store::effect::{CONFIRMED, Confirmation, EffectRow, INTENDED, NewIntent, Void};

/// The namespace of effect ids: the same job and step have the same id on every attempt, for ever.
const NAMESPACE: Uuid = Uuid::from_u128(0x5f0e_7a3c_91d4_4c6b_8f27_3d1b_60c2_a9e5);

/// The effects of one attempt.
pub struct Effects {
    ledger: Ledger,
    held: Held,
    known: Mutex<HashMap<String, EffectRow>>,
    /// Steps whose intent this attempt committed.
    intended: Mutex<HashSet<String>>,
    unwritten: Mutex<Unwritten>,
}

/// What the settlement still has to write.
#[derive(Default)]
pub(crate) struct Unwritten {
    pub confirmations: Vec<Confirmation>,
    pub voids: Vec<Void>,
}

/// What a probe or an act is given: the effect's id, which marks it at Microsoft, and the bytes that were
/// committed with the intent.
#[derive(Debug, Clone)]
pub struct Intent {
    pub id: Uuid,
    pub request: String,
    /// The intent was committed by an earlier attempt: the write may already have been made.
    pub repeated: bool,
    /// When an earlier attempt last committed it; the write was made no earlier.
    pub tried_at: Option<DateTime<Utc>>,
}

/// One step of a job that writes outside.
pub struct Effect<'a> {
    effects: &'a Effects,
    step: &'static str,
    request: String,
}

impl Effects {
    pub(crate) fn new(ledger: Ledger, held: &Held) -> Self {
        let known = held.effects.iter().map(|row| (row.step.clone(), row.clone())).collect();
        Self {
            ledger,
            held: held.clone(),
            known: Mutex::new(known),
            intended: Mutex::default(),
            unwritten: Mutex::default(),
        }
    }

    pub fn step(&self, step: &'static str) -> Effect<'_> {
        Effect { effects: self, step, request: String::new() }
    }

    /// The id that a step's effect carries, whether it was made or not.
    pub fn id(&self, step: &str) -> Uuid {
        let (workspace, job) = &self.held.key;
        Uuid::new_v5(&NAMESPACE, format!("{workspace}\u{0}{job}\u{0}{step}").as_bytes())
    }

    /// Is there a write of which nobody knows whether it was made? An attempt that ends without having found out
    /// says nothing about it, whatever it failed on.
    pub(crate) fn in_doubt(&self, unwritten: &Unwritten) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let intended = self.intended.lock().unwrap_or_else(PoisonError::into_inner);
        let told = |step: &str| {
            unwritten.confirmations.iter().any(|told| told.step == step)
                || unwritten.voids.iter().any(|told| told.step == step)
        };
        let before = known.values().filter(|row| row.state == INTENDED).map(|row| &row.step);
        before.chain(intended.iter()).any(|step| !told(step))
    }

    pub(crate) fn take_unwritten(&self) -> Unwritten {
        std::mem::take(&mut self.unwritten.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Effect<'_> {
    /// The request, committed with the intent: a repetition sends the same bytes, whatever the code has
    /// become meanwhile.
    #[must_use]
    pub fn request(mut self, request: String) -> Self {
        self.request = request;
        self
    }

    /// Makes the effect once. `probe` finds out whether an earlier, unanswered try took effect; only when it
    /// says no does `act` run (again).
    pub async fn perform<T, P, PF, A, AF>(self, probe: P, act: A) -> Result<T, Failure>
    where
        T: Serialize + DeserializeOwned,
        P: FnOnce(Intent) -> PF,
        PF: Future<Output = Result<Option<T>, Failure>>,
        A: FnOnce(Intent) -> AF,
        AF: Future<Output = Result<T, Failure>>,
    {
        match self.known() {
            Some(row) if row.state == CONFIRMED => stored(&row),
            Some(row) => {
                let request = row.request.unwrap_or_default();
                let tried_at = Some(row.updated_at);
                let intent = Intent { id: row.effect_id, request, repeated: true, tried_at };
                if let Some(found) = probe(intent.clone()).await? {
                    return self.confirmed(found);
                }
                // Under this attempt's fence, so that a later holder knows whose try it was.
                self.intend(&intent).await?;
                self.acted(act(intent).await, true)
            }
            None => {
                let intent = Intent {
                    id: self.effects.id(self.step),
                    request: self.request.clone(),
                    repeated: false,
                    tried_at: None,
                };
                self.intend(&intent).await?;
                self.acted(act(intent).await, false)
            }
        }
    }

    /// Makes an effect that nothing can find again: an unanswered try waits for a person.
    pub async fn perform_unprobeable<T, A, AF>(self, act: A) -> Result<T, Failure>
    where
        T: Serialize + DeserializeOwned,
        A: FnOnce(Intent) -> AF,
        AF: Future<Output = Result<T, Failure>>,
    {
        let unknown = || {
            let message = "nobody can tell whether the write was made; a person must look";
            Failure::park(Cause::Ambiguous, "ambiguous", message)
        };
        let step = self.step;
        let outcome = self.perform(|_| async move { Err(unknown()) }, act).await;
        outcome.map_err(|failure| {
            if failure.ambiguous {
                tracing::warn!(step, code = %failure.code, "no answer to a write that cannot be probed");
                unknown()
            } else {
                failure
            }
        })
    }

    fn known(&self) -> Option<EffectRow> {
        self.effects.known.lock().unwrap_or_else(PoisonError::into_inner).get(self.step).cloned()
    }

    async fn intend(&self, intent: &Intent) -> Result<(), Failure> {
        let committed = self
            .effects
            .ledger
            .intend(NewIntent {
                key: self.effects.held.key.clone(),
                fence: self.effects.held.fence,
                step: self.step.to_owned(),
                effect_id: intent.id,
                request: Some(intent.request.clone()),
            })
            .await?;
        if !committed {
            return Err(Failure::fenced());
        }
        let mut intended = self.effects.intended.lock().unwrap_or_else(PoisonError::into_inner);
        intended.insert(self.step.to_owned());
        Ok(())
    }

    /// A refusal proves that this try made nothing. Of an earlier one, still on its way, it proves nothing.
    fn acted<T: Serialize + DeserializeOwned>(
        &self,
        outcome: Result<T, Failure>,
        repeated: bool,
    ) -> Result<T, Failure> {
        match outcome {
            Ok(made) => self.confirmed(made),
            Err(failure) => {
                if !repeated && !failure.ambiguous && !matches!(failure.disposition, Disposition::Interrupted)
                {
                    self.effects.unwritten.lock().unwrap_or_else(PoisonError::into_inner).voids.push(Void {
                        key: self.effects.held.key.clone(),
                        fence: self.effects.held.fence,
                        step: self.step.to_owned(),
                    });
                }
                Err(failure)
            }
        }
    }

    fn confirmed<T: Serialize>(&self, made: T) -> Result<T, Failure> {
        let result = serde_json::to_string(&made)
            .map_err(|error| Failure::reject("effect_unserializable", error.to_string()))?;
        let mut unwritten = self.effects.unwritten.lock().unwrap_or_else(PoisonError::into_inner);
        unwritten.confirmations.push(Confirmation {
            key: self.effects.held.key.clone(),
            fence: self.effects.held.fence,
            step: self.step.to_owned(),
            result,
            request_id: None,
        });
        Ok(made)
    }
}

fn stored<T: DeserializeOwned>(row: &EffectRow) -> Result<T, Failure> {
    serde_json::from_str(row.result.as_deref().unwrap_or("null"))
        .map_err(|error| Failure::park(Cause::Operator, "effect_unreadable", error.to_string()))
}
