//! Service limits, and the list of what a good guest would not have done.
//!
//! Limits as documented: Outlook 10,000 requests in 10 minutes and 4 at a time per app and mailbox
//! (`learn.microsoft.com/graph/throttling-limits`); Dataverse 6,000 requests and 1,200 seconds of execution in
//! 300 seconds and 52 at a time per user (`power-apps/developer/data-platform/api-limits`).

use std::collections::{HashMap, VecDeque};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Sim;

#[derive(Clone, Debug, Serialize)]
pub struct Violation {
    pub rule: &'static str,
    pub what: String,
    pub call: Option<u64>,
    pub at: DateTime<Utc>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    pub outlook_requests: usize,
    pub outlook_window_seconds: i64,
    pub outlook_concurrent: u32,
    pub dataverse_requests: usize,
    pub dataverse_window_seconds: i64,
    pub dataverse_concurrent: u32,
    pub dataverse_execution_seconds: i64,
    /// Calls that were on their way when the 429 went out are answered 429 but not held against anybody.
    pub grace_ms: i64,
    /// How long every call takes, at least.
    pub latency_ms: u64,
    /// The same call failing this often within ten seconds is a storm.
    pub storm: usize,
    /// A violating call is answered with 500 `SimulatorViolation` instead of what Microsoft would say.
    pub strict: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            outlook_requests: 10_000,
            outlook_window_seconds: 600,
            outlook_concurrent: 4,
            dataverse_requests: 6_000,
            dataverse_window_seconds: 300,
            dataverse_concurrent: 52,
            dataverse_execution_seconds: 1_200,
            grace_ms: 250,
            latency_ms: 0,
            storm: 20,
            strict: false,
        }
    }
}

/// Whose quota a call is counted against.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Quota {
    Mailbox { app: String, mailbox: String },
    CrmUser { user: String },
}

impl Quota {
    fn owner(&self) -> &str {
        match self {
            Self::Mailbox { mailbox, .. } => mailbox,
            Self::CrmUser { user } => user,
        }
    }
}

#[derive(Default)]
struct Lane {
    running: u32,
    recent: VecDeque<DateTime<Utc>>,
    spent: VecDeque<(DateTime<Utc>, TimeDelta)>,
    penalty: Option<Penalty>,
}

#[derive(Clone, Copy)]
struct Penalty {
    since: DateTime<Utc>,
    until: DateTime<Utc>,
}

/// The next `calls` calls of a mailbox or CRM user are answered 429.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Throttle {
    /// Sign-in name, address or object id of the mailbox or CRM user.
    pub user: String,
    #[serde(default = "one")]
    pub calls: u32,
    #[serde(default = "two")]
    pub retry_after_seconds: i64,
    /// Give `Retry-After` as an HTTP date.
    #[serde(default)]
    pub as_date: bool,
    /// Leave the header out.
    #[serde(default)]
    pub without_header: bool,
    /// Of mail and calendar only, or of Dataverse only; both when absent.
    #[serde(default)]
    pub area: Option<crate::journal::Area>,
}

fn one() -> u32 {
    1
}
fn two() -> i64 {
    2
}

/// Why a call is refused for now.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub reason: Reason,
    pub retry_after: Option<String>,
    pub violation: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Requests,
    Concurrency,
    Execution,
}

#[derive(Default)]
pub struct Referee {
    pub limits: Limits,
    lanes: HashMap<Quota, Lane>,
    throttles: Vec<(String, Throttle)>,
    violations: Vec<Violation>,
    failures: HashMap<String, VecDeque<DateTime<Utc>>>,
}

impl Referee {
    /// Lets a call in, or says why not. `weight` is the number of slots it takes.
    pub(crate) fn enter(
        &mut self,
        quota: &Quota,
        now: DateTime<Utc>,
        call: Option<u64>,
        weight: u32,
    ) -> Result<(), Refusal> {
        let limits = self.limits.clone();
        let outlook = matches!(quota, Quota::Mailbox { .. });
        let lane = self.lanes.entry(quota.clone()).or_default();

        if let Some(penalty) = lane.penalty {
            if now + TimeDelta::milliseconds(50) < penalty.until {
                let early = now > penalty.since + TimeDelta::milliseconds(limits.grace_ms);
                let left = seconds_up(penalty.until - now);
                if early {
                    let what = format!("{quota:?} called {left} s before its Retry-After was over");
                    self.flag("before_retry_after", what, call, now);
                }
                return Err(Refusal {
                    reason: Reason::Requests,
                    retry_after: Some(left.to_string()),
                    violation: early,
                });
            }
            lane.penalty = None;
        }

        if let Some(at) = self.throttles.iter().position(|(oid, throttle)| {
            oid == quota.owner()
                && throttle.calls > 0
                && throttle.area.is_none_or(|area| (area == crate::journal::Area::Graph) == outlook)
        }) {
            let throttle = &mut self.throttles[at].1;
            throttle.calls -= 1;
            let wait = TimeDelta::seconds(throttle.retry_after_seconds);
            // A date has no fractions of a second, and nobody is held to more than they were told.
            let until = if throttle.as_date { (now + wait).trunc_subsecs(0) } else { now + wait };
            let retry_after = match (throttle.without_header, throttle.as_date) {
                (true, _) => None,
                (false, true) => Some(http_date(until)),
                (false, false) => Some(throttle.retry_after_seconds.to_string()),
            };
            let more = throttle.calls > 0;
            if !more {
                self.throttles.remove(at);
            }
            if retry_after.is_some() {
                lane.penalty = Some(Penalty { since: now, until });
            }
            return Err(Refusal { reason: Reason::Requests, retry_after, violation: false });
        }

        let (most, window, at_once) = if outlook {
            (limits.outlook_requests, limits.outlook_window_seconds, limits.outlook_concurrent)
        } else {
            (limits.dataverse_requests, limits.dataverse_window_seconds, limits.dataverse_concurrent)
        };
        let since = now - TimeDelta::seconds(window);
        while lane.recent.front().is_some_and(|at| *at <= since) {
            lane.recent.pop_front();
        }
        while lane.spent.front().is_some_and(|(at, _)| *at <= since) {
            lane.spent.pop_front();
        }

        if lane.running + weight > at_once {
            if outlook {
                let what = format!("{} calls at once on {quota:?}", lane.running + weight);
                self.flag("mailbox_concurrency", what, call, now);
            }
            return Err(Refusal {
                reason: Reason::Concurrency,
                retry_after: Some("1".into()),
                violation: outlook,
            });
        }
        let spent: TimeDelta = lane.spent.iter().map(|(_, took)| *took).sum();
        let over_time = !outlook && spent > TimeDelta::seconds(limits.dataverse_execution_seconds);
        if lane.recent.len() >= most || over_time {
            let oldest = lane.recent.front().copied().unwrap_or(now);
            let until = oldest + TimeDelta::seconds(window);
            lane.penalty = Some(Penalty { since: now, until });
            return Err(Refusal {
                reason: if over_time { Reason::Execution } else { Reason::Requests },
                retry_after: Some(seconds_up(until - now).max(1).to_string()),
                violation: false,
            });
        }
        lane.running += weight;
        lane.recent.push_back(now);
        Ok(())
    }

    pub(crate) fn leave(&mut self, quota: &Quota, started: DateTime<Utc>, now: DateTime<Utc>, weight: u32) {
        let lane = self.lanes.entry(quota.clone()).or_default();
        lane.running = lane.running.saturating_sub(weight);
        if matches!(quota, Quota::CrmUser { .. }) {
            lane.spent.push_back((now, now - started));
        }
    }

    /// Requests and seconds of execution that a CRM user has left in the window.
    pub(crate) fn left(&self, quota: &Quota) -> (usize, i64) {
        let (used, spent) = self.lanes.get(quota).map_or((0, 0), |lane| {
            let spent: TimeDelta = lane.spent.iter().map(|(_, took)| *took).sum();
            (lane.recent.len(), spent.num_seconds())
        });
        let limits = &self.limits;
        (limits.dataverse_requests.saturating_sub(used), limits.dataverse_execution_seconds - spent)
    }

    /// Adds service time that a call took, for the execution limit.
    pub fn spend(&mut self, user: &str, now: DateTime<Utc>, seconds: i64) {
        let lane = self.lanes.entry(Quota::CrmUser { user: user.to_owned() }).or_default();
        lane.spent.push_back((now, TimeDelta::seconds(seconds)));
    }

    /// A fault answered 429 or 503 with `Retry-After`: it binds like a real one.
    pub(crate) fn penalise(&mut self, quota: &Quota, now: DateTime<Utc>, retry_after: &str) {
        let until = match retry_after.parse::<i64>() {
            Ok(seconds) => now + TimeDelta::seconds(seconds),
            Err(_) => match DateTime::parse_from_rfc2822(retry_after) {
                Ok(date) => date.with_timezone(&Utc),
                Err(_) => return,
            },
        };
        self.lanes.entry(quota.clone()).or_default().penalty = Some(Penalty { since: now, until });
    }

    pub(crate) fn note_failure(&mut self, key: &str, call: u64, now: DateTime<Utc>) {
        let storm = self.limits.storm;
        let times = self.failures.entry(key.to_owned()).or_default();
        times.push_back(now);
        while times.front().is_some_and(|at| *at + TimeDelta::seconds(10) < now) {
            times.pop_front();
        }
        if times.len() == storm {
            self.flag("retry_storm", format!("{storm} failures in ten seconds: {key}"), Some(call), now);
        }
    }

    pub(crate) fn flag(&mut self, rule: &'static str, what: String, call: Option<u64>, at: DateTime<Utc>) {
        self.violations.push(Violation { rule, what, call, at });
    }

    pub(crate) fn forget(&mut self) {
        let limits = self.limits.clone();
        *self = Self { limits, ..Self::default() };
    }

    pub fn report(&self) -> Value {
        json!({"violations": self.violations, "limits": self.limits})
    }
}

fn seconds_up(span: TimeDelta) -> i64 {
    (span.num_milliseconds() + 999).div_euclid(1000)
}

pub(crate) fn http_date(at: DateTime<Utc>) -> String {
    at.format("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

impl Sim {
    pub fn violations(&self) -> Vec<Violation> {
        self.referee().violations.clone()
    }

    pub fn clear_violations(&self) {
        self.referee().violations.clear();
    }

    pub fn set_limits(&self, limits: Limits) {
        self.referee().limits = limits;
    }

    pub fn limits(&self) -> Limits {
        self.referee().limits.clone()
    }

    /// Answers the next calls of a mailbox or CRM user with 429.
    pub fn throttle(&self, throttle: Throttle) {
        let oid = self.directory().find(&throttle.user).map(|user| user.oid.clone());
        let oid = oid.unwrap_or_else(|| throttle.user.clone());
        self.referee().throttles.push((oid, throttle));
    }
}
