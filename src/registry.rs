//! The list of jobs, erased to one type, and what is derived from it.
//!
//! The invariant: the list is checked when it is compiled. Two jobs with one kind do not build.

use std::borrow::Cow;

use futures::future::BoxFuture;
use schemars::Schema;
use serde_json::Value;

use crate::context::Context;
use crate::job::{Duty, Invalid, Job, Spec, decode_payload};
use crate::oauth::scopes::Integration;
use crate::outcome::Failure;

/// Every job this process knows.
#[derive(Clone, Copy)]
pub struct Registry(&'static [Entry]);

/// One job without its type.
pub struct Entry {
    pub spec: Spec,
    pub decode: fn(&Value) -> Result<Box<dyn ErasedJob>, Invalid>,
    pub payload_schema: fn() -> Schema,
    pub result_schema: fn() -> Schema,
}

/// A decoded payload that can be run.
pub trait ErasedJob: Send + Sync {
    fn tool(&self) -> Cow<'static, str>;
    fn mailbox(&self) -> Option<&str>;
    fn integration(&self) -> Option<Integration>;
    fn scopes(&self) -> &'static [&'static str];
    fn render(&self) -> String;
    /// The payload as the type writes it, to prove that nothing is lost on the way.
    fn payload(&self) -> Value;
    /// Runs it; the result as JSON.
    fn run<'a>(&'a self, cx: &'a Context) -> BoxFuture<'a, Result<String, Failure>>;
}

impl<J: Job> ErasedJob for J {
    fn tool(&self) -> Cow<'static, str> {
        Job::tool(self)
    }

    fn mailbox(&self) -> Option<&str> {
        Job::mailbox(self)
    }

    fn integration(&self) -> Option<Integration> {
        Job::integration(self)
    }

    fn scopes(&self) -> &'static [&'static str] {
        Job::scopes(self)
    }

    fn render(&self) -> String {
        Job::render(self)
    }

    fn payload(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    fn run<'a>(&'a self, cx: &'a Context) -> BoxFuture<'a, Result<String, Failure>> {
        Box::pin(async move {
            let result = Job::run(self, cx).await?;
            serde_json::to_string(&result)
                .map_err(|error| Failure::reject("result_unserializable", error.to_string()))
        })
    }
}

impl Entry {
    pub const fn of<J: Job>() -> Self {
        Self {
            spec: J::SPEC,
            decode: |payload| Ok(Box::new(decode_payload::<J>(payload)?)),
            payload_schema: || schemars::schema_for!(J),
            result_schema: || schemars::schema_for!(J::Result),
        }
    }
}

impl Registry {
    /// Checks the list; a duplicate kind is an error of the build.
    pub const fn new(entries: &'static [Entry]) -> Self {
        let mut i = 0;
        while i < entries.len() {
            let mut j = i + 1;
            while j < entries.len() {
                assert!(!same(entries[i].spec.kind, entries[j].spec.kind), "two jobs have the same kind");
                j += 1;
            }
            i += 1;
        }
        Self(entries)
    }

    /// The kind that the platform's own wish is done by.
    pub fn for_duty(&self, duty: Duty) -> Option<&'static Entry> {
        self.0.iter().find(|entry| entry.spec.duty == Some(duty))
    }

    pub fn kinds_for(&self, duties: &[Duty]) -> Vec<String> {
        let entries = duties.iter().filter_map(|duty| self.for_duty(*duty));
        entries.map(|entry| entry.spec.kind.to_owned()).collect()
    }

    pub fn find(&self, kind: &str) -> Option<&'static Entry> {
        self.0.iter().find(|entry| entry.spec.kind == kind)
    }

    pub fn entries(&self) -> &'static [Entry] {
        self.0
    }

    pub fn kinds(&self) -> Vec<String> {
        self.0.iter().map(|entry| entry.spec.kind.to_owned()).collect()
    }
}

const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}
