//! Access tokens: in this process's memory and nowhere else.
//!
//! The invariant: a token is found only for the resource it was issued for and for the grant the caller
//! knows of or a newer one; what nobody asks for is dropped before it runs out.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError, RwLock};

use chrono::{DateTime, TimeDelta, Utc};
use secrecy::SecretString;
use tokio::sync::Mutex;
use uuid::Uuid;

use super::VaultError;
use crate::oauth::scopes::Resource;

/// A token nobody has asked for in this long is dropped.
const IDLE: TimeDelta = TimeDelta::minutes(15);
const SWEEP: TimeDelta = TimeDelta::minutes(1);

/// A token and its number in this process, by which a refused one is told from its successor.
#[derive(Clone)]
pub struct AccessToken {
    pub secret: SecretString,
    pub serial: u64,
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken(secret)")
    }
}

/// What a caller will take.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wanted<'a> {
    /// Of this grant or a newer one.
    pub(super) grant: i64,
    /// Issued later than this one.
    pub(super) after: u64,
    /// Asked for with these claims.
    pub(super) claims: Option<&'a str>,
}

pub(super) struct Held {
    pub(super) resource: Resource,
    pub(super) token: AccessToken,
    pub(super) grant: i64,
    pub(super) claims: Option<String>,
    pub(super) renew_at: DateTime<Utc>,
    pub(super) expires_at: DateTime<Utc>,
}

struct Kept {
    held: Held,
    used_at: AtomicI64,
}

/// A refresh token that Entra gave and the store did not take yet, with the access token that came along.
pub(super) struct Unsaved {
    pub(super) version: i64,
    pub(super) sealed: Vec<u8>,
    pub(super) held: Held,
}

/// What only the one who refreshes may touch: holding it is the single flight.
#[derive(Default)]
pub(super) struct Turn {
    pub(super) unsaved: Option<Unsaved>,
    /// Until when asking again would only repeat the failure.
    pub(super) failed: Option<(DateTime<Utc>, VaultError)>,
}

/// One connection's tokens.
#[derive(Default)]
pub(super) struct Slot {
    kept: RwLock<Vec<Kept>>,
    pub(super) turn: Arc<Mutex<Turn>>,
}

impl Slot {
    /// A token that need not be renewed yet.
    pub(super) fn fresh(
        &self,
        resource: &Resource,
        wanted: Wanted<'_>,
        now: DateTime<Utc>,
    ) -> Option<AccessToken> {
        self.find(resource, wanted, now, |held| held.renew_at)
    }

    /// A token that still works, though it is time for another.
    pub(super) fn usable(
        &self,
        resource: &Resource,
        wanted: Wanted<'_>,
        now: DateTime<Utc>,
    ) -> Option<AccessToken> {
        self.find(resource, wanted, now, |held| held.expires_at)
    }

    fn find(
        &self,
        resource: &Resource,
        wanted: Wanted<'_>,
        now: DateTime<Utc>,
        end: impl Fn(&Held) -> DateTime<Utc>,
    ) -> Option<AccessToken> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().find(|kept| kept.held.resource == *resource)?;
        let held = &found.held;
        let fits = held.grant >= wanted.grant
            && held.token.serial > wanted.after
            && (wanted.claims.is_none() || wanted.claims == held.claims.as_deref())
            && now < end(held);
        fits.then(|| {
            found.used_at.store(now.timestamp(), Ordering::Relaxed);
            held.token.clone()
        })
    }

    pub(super) fn keep(&self, held: Held, now: DateTime<Utc>) {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|kept| kept.held.resource != held.resource);
        kept.push(Kept { held, used_at: AtomicI64::new(now.timestamp()) });
    }

    fn clear(&self) {
        self.kept.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn sweep(&self, now: DateTime<Utc>) -> bool {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        let idle = (now - IDLE).timestamp();
        kept.retain(|kept| kept.used_at.load(Ordering::Relaxed) > idle && now < kept.held.expires_at);
        kept.is_empty()
    }
}

/// All of this process.
#[derive(Default)]
pub(super) struct Cache {
    slots: RwLock<HashMap<Uuid, Arc<Slot>>>,
    serial: AtomicU64,
    swept: StdMutex<Option<DateTime<Utc>>>,
}

impl Cache {
    pub(super) fn slot(&self, id: Uuid) -> Arc<Slot> {
        if let Some(slot) = self.slots.read().unwrap_or_else(PoisonError::into_inner).get(&id) {
            return slot.clone();
        }
        self.slots.write().unwrap_or_else(PoisonError::into_inner).entry(id).or_default().clone()
    }

    /// Drops a connection's tokens; a refresh under way finds that its row has moved on.
    pub(super) fn forget(&self, id: Uuid) {
        if let Some(slot) = self.slots.read().unwrap_or_else(PoisonError::into_inner).get(&id) {
            slot.clear();
        }
    }

    pub(super) fn next_serial(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Drops what is idle, now and then.
    pub(super) fn sweep(&self, now: DateTime<Utc>) {
        {
            let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
            if swept.is_some_and(|at| now - at < SWEEP) {
                return;
            }
            *swept = Some(now);
        }
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|_, slot| {
            let empty = slot.sweep(now);
            // Somebody who holds the slot or its turn would go on with one that others no longer find.
            let alone = Arc::strong_count(slot) == 1
                && slot.turn.try_lock().is_ok_and(|turn| {
                    turn.unsaved.is_none() && turn.failed.as_ref().is_none_or(|(until, _)| now >= *until)
                });
            !(empty && alone)
        });
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.slots.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(cache: &Cache, now: DateTime<Utc>) -> Held {
        Held {
            resource: Resource::Graph,
            token: AccessToken { secret: "planted".into(), serial: cache.next_serial() },
            grant: 2,
            claims: None,
            renew_at: now + TimeDelta::minutes(55),
            expires_at: now + TimeDelta::minutes(60),
        }
    }

    #[test]
    fn a_token_is_found_for_its_resource_its_grant_and_its_time_only() {
        let now = DateTime::UNIX_EPOCH;
        let cache = Cache::default();
        let slot = cache.slot(Uuid::nil());
        slot.keep(held(&cache, now), now);
        let any = Wanted::default();
        let token = slot.fresh(&Resource::Graph, any, now).expect("kept");
        assert_eq!(format!("{token:?}"), "AccessToken(secret)");
        assert!(slot.fresh(&Resource::Dataverse("https://a.example".into()), any, now).is_none());
        assert!(slot.fresh(&Resource::Graph, Wanted { grant: 3, ..any }, now).is_none());
        assert!(slot.fresh(&Resource::Graph, Wanted { after: token.serial, ..any }, now).is_none());
        assert!(slot.fresh(&Resource::Graph, Wanted { claims: Some("{}"), ..any }, now).is_none());
        let late = now + TimeDelta::minutes(56);
        assert!(slot.fresh(&Resource::Graph, any, late).is_none());
        assert!(slot.usable(&Resource::Graph, any, late).is_some());
        cache.forget(Uuid::nil());
        assert!(slot.usable(&Resource::Graph, any, now).is_none());
    }

    #[test]
    fn an_idle_token_is_dropped_and_a_used_one_stays() {
        let mut now = DateTime::UNIX_EPOCH;
        let cache = Cache::default();
        cache.slot(Uuid::nil()).keep(held(&cache, now), now);
        for _ in 0..3 {
            now += TimeDelta::minutes(10);
            cache.sweep(now);
            assert!(cache.slot(Uuid::nil()).fresh(&Resource::Graph, Wanted::default(), now).is_some());
        }
        cache.sweep(now + TimeDelta::minutes(16));
        assert_eq!(cache.len(), 0);
    }
}
