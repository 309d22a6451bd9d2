//! Faults: an answer that never comes, an error in place of an answer, a delay.
//!
//! A fault fires on the `nth` call that matches it, and on the `times - 1` after that. "before" means that nothing
//! was executed; "after" means that it was, and only the answer is lost: the two cases a retry must tell apart.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Sim;
use crate::journal::Area;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Match {
    /// Case-insensitive method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// A path pattern: `*` stands for anything, a pattern without one is a prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub area: Option<Area>,
    /// The caller's sign-in name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_contains: Option<String>,
    /// 1 is the first matching call after the fault was set.
    #[serde(default = "one")]
    pub nth: u64,
    /// How many calls it hits from there; 0 is every one.
    #[serde(default = "one")]
    pub times: u64,
}

fn one() -> u64 {
    1
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    #[default]
    Before,
    After,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Effect {
    /// `"before"` or `"after"`: the connection is closed without an answer.
    Lost(When),
    Answer {
        status: u16,
        #[serde(default)]
        headers: BTreeMap<String, String>,
        #[serde(default)]
        body: Value,
        #[serde(default)]
        when: When,
    },
    Delay {
        delay_ms: u64,
    },
    /// The call waits, executed or not yet, until [`Sim::release`] lets it go on.
    Hold {
        hold: When,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    #[serde(rename = "match", default = "any")]
    pub matching: Match,
    pub fault: Effect,
}

fn any() -> Match {
    Match { nth: 1, times: 1, ..Match::default() }
}

impl Fault {
    fn on(effect: Effect) -> Self {
        Self { matching: any(), fault: effect }
    }

    /// Nothing is executed and no answer comes.
    pub fn lost_before() -> Self {
        Self::on(Effect::Lost(When::Before))
    }

    /// It is executed, and no answer comes.
    pub fn lost_after() -> Self {
        Self::on(Effect::Lost(When::After))
    }

    pub fn status(status: u16, when: When) -> Self {
        Self::on(Effect::Answer { status, headers: BTreeMap::new(), body: Value::Null, when })
    }

    pub fn delay_ms(delay_ms: u64) -> Self {
        Self::on(Effect::Delay { delay_ms })
    }

    /// The call waits until it is released: for a worker that dies with a call under way.
    pub fn hold(when: When) -> Self {
        Self::on(Effect::Hold { hold: when })
    }

    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if let Effect::Answer { headers, .. } = &mut self.fault {
            headers.insert(name.into(), value.into());
        }
        self
    }

    #[must_use]
    pub fn body(mut self, json: Value) -> Self {
        if let Effect::Answer { body, .. } = &mut self.fault {
            *body = json;
        }
        self
    }

    #[must_use]
    pub fn nth(mut self, nth: u64) -> Self {
        self.matching.nth = nth;
        self
    }

    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.matching.times = times;
        self
    }

    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        self.matching.method = Some(method.into());
        self
    }

    #[must_use]
    pub fn path(mut self, path: &str) -> Self {
        self.matching.path = Some(path.into());
        self
    }

    #[must_use]
    pub fn area(mut self, area: Area) -> Self {
        self.matching.area = Some(area);
        self
    }

    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        self.matching.user = Some(user.into());
        self
    }
}

/// What of a call a fault can look at.
pub(crate) struct Subject<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) area: Area,
    pub(crate) user: Option<&'a str>,
    pub(crate) body: &'a [u8],
}

#[derive(Default)]
pub struct Faults {
    rules: Vec<Rule>,
    last_id: u64,
}

struct Rule {
    id: u64,
    fault: Fault,
    seen: u64,
    hits: u64,
    /// Calls that wait here.
    held: u64,
    released: bool,
}

impl Faults {
    pub(crate) fn add(&mut self, fault: Fault) -> u64 {
        self.last_id += 1;
        self.rules.push(Rule { id: self.last_id, fault, seen: 0, hits: 0, held: 0, released: false });
        self.last_id
    }

    /// Every rule counts the call; the first that is due takes it.
    pub(crate) fn take(&mut self, subject: &Subject<'_>) -> Option<(u64, Effect)> {
        let mut due = None;
        for rule in &mut self.rules {
            let wanted = &rule.fault.matching;
            if !wanted.fits(subject) {
                continue;
            }
            rule.seen += 1;
            let from = wanted.nth.max(1);
            let in_range =
                rule.seen >= from && (wanted.times == 0 || rule.seen < from.saturating_add(wanted.times));
            if in_range && due.is_none() {
                rule.hits += 1;
                due = Some((rule.id, rule.fault.fault.clone()));
            }
        }
        due
    }

    pub fn list(&self) -> Value {
        self.rules
            .iter()
            .map(|rule| {
                serde_json::json!({"id": rule.id, "rule": rule.fault, "matched": rule.seen, "hits": rule.hits})
            })
            .collect()
    }
}

impl Match {
    fn fits(&self, subject: &Subject<'_>) -> bool {
        self.method.as_deref().is_none_or(|method| method.eq_ignore_ascii_case(subject.method))
            && self.path.as_deref().is_none_or(|pattern| path_fits(pattern, subject.path))
            && self.area.is_none_or(|area| area == subject.area)
            && self
                .user
                .as_deref()
                .is_none_or(|user| subject.user.is_some_and(|is| is.eq_ignore_ascii_case(user)))
            && self
                .body_contains
                .as_deref()
                .is_none_or(|part| String::from_utf8_lossy(subject.body).contains(part))
    }
}

fn path_fits(pattern: &str, path: &str) -> bool {
    let mut pieces = pattern.split('*');
    let Some(mut rest) = pieces.next().and_then(|first| path.strip_prefix(first)) else { return false };
    if !pattern.contains('*') {
        return true;
    }
    let pieces: Vec<&str> = pieces.collect();
    for (at, piece) in pieces.iter().enumerate() {
        if at + 1 == pieces.len() {
            return rest.ends_with(piece);
        }
        match rest.find(piece) {
            Some(found) => rest = &rest[found + piece.len()..],
            None => return false,
        }
    }
    true
}

impl Sim {
    /// Sets a fault; the number names it in [`Sim::fault_hits`].
    pub fn inject(&self, fault: Fault) -> u64 {
        self.faults().add(fault)
    }

    /// How many calls matched the fault so far, and how many of those it hit.
    pub fn fault_hits(&self, id: u64) -> (u64, u64) {
        self.faults().rules.iter().find(|r| r.id == id).map_or((0, 0), |r| (r.seen, r.hits))
    }

    /// Takes all faults away; held calls go on.
    pub fn clear_faults(&self) {
        self.faults().rules.clear();
        self.changed();
    }

    /// Lets the calls go on that the fault holds.
    pub fn release(&self, id: u64) {
        if let Some(rule) = self.faults().rules.iter_mut().find(|rule| rule.id == id) {
            rule.released = true;
        }
        self.changed();
    }

    /// Is a call waiting here now? Held after its execution, it is executed.
    pub fn holds(&self, id: u64) -> bool {
        self.faults().rules.iter().any(|rule| rule.id == id && rule.held > 0 && !rule.released)
    }

    pub(crate) async fn released(&self, id: u64) {
        if let Some(rule) = self.faults().rules.iter_mut().find(|rule| rule.id == id) {
            rule.held += 1;
        }
        self.changed();
        self.until(|sim| {
            sim.faults().rules.iter().find(|rule| rule.id == id).is_none_or(|rule| rule.released)
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::path_fits;

    #[test]
    fn a_pattern_without_a_star_is_a_prefix() {
        assert!(path_fits("/v1.0/me", "/v1.0/me/messages"));
        assert!(!path_fits("/v1.0/me*/send", "/v1.0/me/messages/1/sent"));
        assert!(path_fits("*/send", "/v1.0/me/messages/1/send"));
        assert!(path_fits("/v1.0/*/messages*", "/v1.0/me/messages"));
    }
}
