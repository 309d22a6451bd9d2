//! Why a call has no answer.
//!
//! The invariant: an error that may stand for a write that was made says so, and one that cannot does not.

use std::borrow::Cow;
use std::fmt;

use crate::outcome::{Classify, Disposition};

/// No answer.
#[derive(Debug, Clone)]
pub enum HttpError {
    /// Refused, not resolved or no TLS: provably nothing was written.
    NotSent { call: &'static str, reason: String },
    /// Written, and then silence, a reset or half an answer: a write may have taken effect.
    Unanswered { call: &'static str, reason: String, write: bool },
    /// Answered with more than the caller wants to hold.
    TooLarge { call: &'static str, limit: usize, write: bool },
    /// Neither https nor on this machine; never sent.
    Insecure { call: &'static str },
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSent { call, reason } => write!(f, "{call}: not sent: {reason}"),
            Self::Unanswered { call, reason, .. } => write!(f, "{call}: no answer: {reason}"),
            Self::TooLarge { call, limit, .. } => {
                write!(f, "{call}: the answer is longer than {limit} bytes")
            }
            Self::Insecure { call } => write!(f, "{call}: neither https nor this machine"),
        }
    }
}

impl std::error::Error for HttpError {}

impl Classify for HttpError {
    fn disposition(&self) -> Disposition {
        match self {
            Self::NotSent { .. } | Self::Unanswered { .. } => Disposition::Retry { after: None },
            Self::TooLarge { .. } | Self::Insecure { .. } => Disposition::Reject,
        }
    }

    fn code(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::NotSent { .. } => "unreachable",
            Self::Unanswered { .. } => "unanswered",
            Self::TooLarge { .. } => "answer_too_large",
            Self::Insecure { .. } => "insecure_url",
        })
    }

    fn ambiguous(&self) -> bool {
        matches!(self, Self::Unanswered { write: true, .. } | Self::TooLarge { write: true, .. })
    }
}
