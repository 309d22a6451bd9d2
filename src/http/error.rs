//! Why a call has no answer.
//!
//! The invariant: an error that may stand for a write that was made says so, and one that cannot does not.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

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
    /// Never sent: whoever is called asked to be left alone for so much longer.
    Withheld { call: &'static str, left: Duration },
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
            Self::Withheld { call, left } => {
                write!(f, "{call}: not sent: to be left alone for {} s more", left.as_secs_f32().ceil())
            }
        }
    }
}

impl std::error::Error for HttpError {}

impl Classify for HttpError {
    fn disposition(&self) -> Disposition {
        match self {
            Self::NotSent { .. } | Self::Unanswered { .. } => Disposition::Retry { after: None },
            Self::TooLarge { .. } | Self::Insecure { .. } => Disposition::Reject,
            Self::Withheld { left, .. } => Disposition::Retry { after: Some(*left) },
        }
    }

    fn code(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::NotSent { .. } => "unreachable",
            Self::Unanswered { .. } => "unanswered",
            Self::TooLarge { .. } => "answer_too_large",
            Self::Insecure { .. } => "insecure_url",
            Self::Withheld { .. } => "throttled",
        })
    }

    fn cool_down(&self) -> Option<Duration> {
        match self {
            Self::Withheld { left, .. } => Some(*left),
            _ => None,
        }
    }

    fn ambiguous(&self) -> bool {
        matches!(self, Self::Unanswered { write: true, .. } | Self::TooLarge { write: true, .. })
    }
}
