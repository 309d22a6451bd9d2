//! What a failure means for its job.
//!
//! The invariant: every error type knows its own meaning ([`Classify`]), by status and code and never by
//! message text, so a plain `?` in a worker is right. A worker that knows better says so
//! ([`Failure::or_park`], [`Failure::or_reject`]).

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// What becomes of the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Another attempt at the next rung of the ladder, not before `after` where the other side said so.
    Retry { after: Option<Duration> },
    /// The same attempt later; nothing was tried, so nothing is counted.
    Defer { until: DateTime<Utc> },
    /// A slice of long work is done: the rest is another message, at once. No attempt.
    Continue,
    /// A person must act first.
    Park(Cause),
    /// No attempt can succeed.
    Reject,
    /// The process drains; the delivery goes back untouched.
    Interrupted,
    /// Somebody else holds the job now; whatever we know is stale.
    Fenced,
}

/// Why a job waits for a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    Approval,
    NeedsUser,
    NeedsAdmin,
    Operator,
    Ambiguous,
    MailboxFull,
}

impl Cause {
    pub const ALL: [Self; 6] = [
        Self::Approval,
        Self::NeedsUser,
        Self::NeedsAdmin,
        Self::Operator,
        Self::Ambiguous,
        Self::MailboxFull,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Approval => "approval",
            Self::NeedsUser => "needs_user",
            Self::NeedsAdmin => "needs_admin",
            Self::Operator => "operator",
            Self::Ambiguous => "ambiguous",
            Self::MailboxFull => "mailbox_full",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.as_str() == text)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error that knows what it means for the job it happened to.
pub trait Classify {
    fn disposition(&self) -> Disposition;
    /// The stable `snake_case` code that publishers and operators see.
    fn code(&self) -> Cow<'static, str>;
    /// May the outward write have taken effect although this error came back?
    fn ambiguous(&self) -> bool {
        false
    }
    /// How long the other side asks the whole fleet to leave this mailbox or user alone.
    fn cool_down(&self) -> Option<Duration> {
        None
    }
    /// Microsoft's own id of the failed request, for their support.
    fn request_id(&self) -> Option<String> {
        None
    }
}

/// A failed attempt: what it means, its code, and one line for the operator without any content.
#[derive(Debug, Clone)]
pub struct Failure {
    pub disposition: Disposition,
    pub code: Cow<'static, str>,
    pub message: String,
    /// The outward write may have taken effect although no success came back.
    pub ambiguous: bool,
    pub cool_down: Option<Duration>,
    pub request_id: Option<String>,
}

impl Failure {
    pub fn new(
        disposition: Disposition,
        code: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            disposition,
            code: code.into(),
            message: message.into(),
            ambiguous: false,
            cool_down: None,
            request_id: None,
        }
    }

    pub fn reject(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Disposition::Reject, code, message)
    }

    pub fn park(cause: Cause, code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Disposition::Park(cause), code, message)
    }

    pub fn retry(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Disposition::Retry { after: None }, code, message)
    }

    /// A slice is done, and where to go on is committed.
    pub fn continues() -> Self {
        Self::new(Disposition::Continue, "continues", "a slice is done")
    }

    /// Nothing was tried: again at `until`.
    pub fn later(
        until: DateTime<Utc>,
        code: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Self {
        Self::new(Disposition::Defer { until }, code, message)
    }

    /// Another holder has taken the job over: stop, write nothing.
    pub fn fenced() -> Self {
        Self::new(Disposition::Fenced, "fenced", "another worker holds this job now")
    }

    #[must_use]
    pub fn or_park(mut self, cause: Cause) -> Self {
        self.disposition = Disposition::Park(cause);
        self
    }

    #[must_use]
    pub fn or_reject(mut self) -> Self {
        self.disposition = Disposition::Reject;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl<E: Classify + fmt::Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            disposition: error.disposition(),
            code: error.code(),
            message: error.to_string(),
            ambiguous: error.ambiguous(),
            cool_down: error.cool_down(),
            request_id: error.request_id(),
        }
    }
}
