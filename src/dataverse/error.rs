//! What Dataverse's refusals mean: first by code, then by status, never by message.
//!
//! The invariant: a duplicate that arrives as a 500 is no server error, and three different 412s stay three.
//! <https://learn.microsoft.com/power-apps/developer/data-platform/webapi/compose-http-requests-handle-errors>

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use http::StatusCode;
use serde_json::Value;

use crate::auth::Unheard;
use crate::http::{Answer, HttpError, retry_after};
use crate::outcome::{Cause, Classify, Disposition, Failure};

/// Said by nobody, so we choose. The limits count over five minutes.
const UNSAID_COOL_DOWN: Duration = Duration::from_secs(30);
const SHORTEST_COOL_DOWN: Duration = Duration::from_secs(2);

/// Why a call to Dataverse did not do what was asked.
#[derive(Debug, Clone)]
pub enum DataverseError {
    /// The vault has no token.
    NoToken(Failure),
    Http(HttpError),
    Refused(Refusal),
    /// Success that does not look as documented: believed only after looking.
    Unexpected {
        call: &'static str,
        what: String,
        write: bool,
    },
    /// The environment is outside the allowed hosts; nothing was sent.
    ForeignHost,
    UnknownTable {
        table: String,
    },
    /// The etag that was given cannot be a header.
    BadVersion,
}

/// An answer that says no.
#[derive(Debug, Clone)]
pub struct Refusal {
    pub call: &'static str,
    pub status: StatusCode,
    pub code: Option<u32>,
    pub request_id: Option<String>,
    pub retry_after: Option<Duration>,
    once: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Retry,
    /// This user is busy here; others are not.
    Throttled,
    Park(Cause),
    Reject,
}

use Meaning::{Park, Reject, Retry, Throttled};

const CODES: &[(u32, &str, Meaning)] = &[
    (0x8004_0217, "not_found", Reject),
    (0x8006_0891, "not_found", Reject),
    // What we remember of the table is wrong, and forgotten now: the next attempt asks.
    (0x8006_088a, "unknown_table", Retry),
    (0x8004_0220, "missing_privilege", Park(Cause::NeedsAdmin)),
    (0x8004_8306, "no_access_to_row", Park(Cause::NeedsAdmin)),
    (0x8004_2f09, "no_security_role", Park(Cause::NeedsAdmin)),
    (0x8004_0237, "duplicate", Reject),
    (0x8006_0892, "duplicate_key", Reject),
    (0x8004_0333, "duplicate_detected", Reject),
    (0x8006_0882, "row_changed", Retry),
    (0x8006_0883, "not_versioned", Reject),
    (0x8004_8d19, "invalid_request", Reject),
    (0x8004_432f, "value_out_of_range", Reject),
    (0x8004_4330, "value_out_of_range", Reject),
    (0x8004_4331, "value_out_of_range", Reject),
    (0x8004_0265, "business_rule", Reject),
    (0x8007_2321, "throttled", Throttled),
    (0x8007_2322, "throttled", Throttled),
    (0x8007_2326, "throttled", Throttled),
];

fn by_status(status: StatusCode) -> (&'static str, Meaning) {
    match status.as_u16() {
        401 => ("sign_in_again", Park(Cause::NeedsUser)),
        403 => ("missing_privilege", Park(Cause::NeedsAdmin)),
        404 => ("not_found", Reject),
        // We send If-Match and nothing else, so without a code it can only be that.
        412 => ("row_changed", Retry),
        413 => ("request_too_large", Reject),
        429 => ("throttled", Throttled),
        503 => ("unavailable", Throttled),
        408 | 409 | 423 | 500 | 502.. => ("unavailable", Retry),
        _ => ("invalid_request", Reject),
    }
}

impl Refusal {
    pub(super) fn read(call: &'static str, answer: &Answer, once: bool, now: DateTime<Utc>) -> Self {
        let body: Value = answer.json().unwrap_or_default();
        let outer = body.get("error").and_then(|error| code(error.get("code")?));
        let inner = body.pointer("/error/innererror").and_then(|error| code(error.get("code")?));
        let known = |code: &u32| CODES.iter().any(|(theirs, ..)| theirs == code);
        Self {
            call,
            status: answer.status,
            code: outer.filter(known).or(inner.filter(known)).or(outer),
            request_id: answer.request_id.clone(),
            retry_after: retry_after(&answer.headers, now),
            once,
        }
    }

    fn verdict(&self) -> (&'static str, Meaning) {
        CODES
            .iter()
            .find(|(code, ..)| self.code == Some(*code))
            .map_or_else(|| by_status(self.status), |&(_, ours, meaning)| (ours, meaning))
    }
}

/// `0x80040217` or `-2147220969`, as text or as a number; `""` and `0x0` say nothing.
fn code(value: &Value) -> Option<u32> {
    let code = match value {
        Value::String(text) => match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(hex) => u32::from_str_radix(hex, 16).ok()?,
            None => text.parse::<i32>().ok()?.cast_unsigned(),
        },
        Value::Number(number) => i32::try_from(number.as_i64()?).ok()?.cast_unsigned(),
        _ => return None,
    };
    (code != 0).then_some(code)
}

impl DataverseError {
    fn verdict(&self) -> Option<(&'static str, Meaning)> {
        match self {
            Self::Refused(refusal) => Some(refusal.verdict()),
            _ => None,
        }
    }

    /// There is no such row.
    pub fn is_not_found(&self) -> bool {
        matches!(self.verdict(), Some(("not_found", _)))
    }

    /// The table itself is not there (any more).
    pub(super) fn is_unknown_set(&self) -> bool {
        matches!(self.verdict(), Some(("unknown_table", _)))
    }

    /// The row is not the one that was read.
    pub fn is_row_changed(&self) -> bool {
        matches!(self.verdict(), Some(("row_changed", _)))
    }

    /// The table keeps no versions: only `*` can be said there.
    pub fn is_not_versioned(&self) -> bool {
        matches!(self.verdict(), Some(("not_versioned", _)))
    }
}

impl From<Unheard> for DataverseError {
    fn from(unheard: Unheard) -> Self {
        match unheard {
            Unheard::NoToken(failure) => Self::NoToken(failure),
            Unheard::Http(error) => Self::Http(error),
        }
    }
}

impl Classify for DataverseError {
    fn disposition(&self) -> Disposition {
        match self {
            Self::NoToken(failure) => failure.disposition,
            Self::Http(error) => error.disposition(),
            Self::Unexpected { .. } => Disposition::Retry { after: None },
            Self::ForeignHost | Self::UnknownTable { .. } | Self::BadVersion => Disposition::Reject,
            Self::Refused(refusal) => match refusal.verdict().1 {
                Retry => Disposition::Retry { after: refusal.retry_after },
                Throttled => Disposition::Retry { after: self.cool_down() },
                Park(cause) => Disposition::Park(cause),
                Reject => Disposition::Reject,
            },
        }
    }

    fn code(&self) -> Cow<'static, str> {
        match self {
            Self::NoToken(failure) => failure.code.clone(),
            Self::Http(error) => error.code(),
            Self::Refused(refusal) => refusal.verdict().0.into(),
            Self::Unexpected { .. } => "unexpected_answer".into(),
            Self::ForeignHost => "environment_not_allowed".into(),
            Self::UnknownTable { .. } => "unknown_table".into(),
            Self::BadVersion => "invalid_payload".into(),
        }
    }

    fn ambiguous(&self) -> bool {
        match self {
            Self::Http(error) => error.ambiguous(),
            Self::Unexpected { write, .. } => *write,
            Self::Refused(refusal) => {
                refusal.once && refusal.status.is_server_error() && refusal.verdict().1 != Reject
            }
            _ => false,
        }
    }

    fn request_id(&self) -> Option<String> {
        match self {
            Self::NoToken(failure) => failure.request_id.clone(),
            Self::Refused(refusal) => refusal.request_id.clone(),
            _ => None,
        }
    }

    fn cool_down(&self) -> Option<Duration> {
        match self {
            Self::NoToken(failure) => failure.cool_down,
            Self::Http(error) => error.cool_down(),
            Self::Refused(refusal) if refusal.verdict().1 == Throttled => {
                Some(refusal.retry_after.unwrap_or(UNSAID_COOL_DOWN).max(SHORTEST_COOL_DOWN))
            }
            _ => None,
        }
    }
}

impl fmt::Display for DataverseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoToken(failure) => f.write_str(&failure.message),
            Self::Http(error) => error.fmt(f),
            Self::Unexpected { call, what, .. } => write!(f, "{call}: {what}"),
            Self::ForeignHost => f.write_str("the environment is not among microsoft.dataverse_hosts"),
            Self::UnknownTable { table } => write!(f, "the environment has no table {table}"),
            Self::BadVersion => f.write_str("if_match is not an etag"),
            Self::Refused(Refusal { call, status, code, .. }) => {
                write!(f, "{call}: {}", status.as_u16())?;
                code.map_or(Ok(()), |code| write!(f, " 0x{code:08x}"))
            }
        }
    }
}

impl std::error::Error for DataverseError {}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::header::RETRY_AFTER;
    use http::{HeaderMap, HeaderValue};

    use super::*;

    fn refused(status: u16, code: &str, wait: Option<&'static str>) -> DataverseError {
        let body = format!(r#"{{"error":{{"code":"{code}","message":"secret"}}}}"#);
        let answer = Answer {
            status: StatusCode::from_u16(status).expect("a status"),
            headers: HeaderMap::from_iter(wait.map(|wait| (RETRY_AFTER, HeaderValue::from_static(wait)))),
            body: Bytes::from(body),
            request_id: None,
        };
        DataverseError::Refused(Refusal::read("test", &answer, false, DateTime::UNIX_EPOCH))
    }

    #[test]
    fn the_table_of_the_fact_sheet_holds() {
        let retry = Disposition::Retry { after: None };
        let admin = Disposition::Park(Cause::NeedsAdmin);
        for (status, code, ours, disposition) in [
            (404, "0x80040217", "not_found", Disposition::Reject),
            (404, "-2147220969", "not_found", Disposition::Reject),
            (404, "0x80060891", "not_found", Disposition::Reject),
            (404, "0x8006088a", "unknown_table", retry),
            (403, "0x80040220", "missing_privilege", admin),
            (403, "0x80048306", "no_access_to_row", admin),
            (403, "0x80042F09", "no_security_role", admin),
            (412, "0x80040237", "duplicate", Disposition::Reject),
            (412, "0x80060892", "duplicate_key", Disposition::Reject),
            (500, "0x80040333", "duplicate_detected", Disposition::Reject),
            (412, "0x80040333", "duplicate_detected", Disposition::Reject),
            (412, "0x80060882", "row_changed", retry),
            (412, "", "row_changed", retry),
            (400, "0x80060883", "not_versioned", Disposition::Reject),
            (400, "0x80048d19", "invalid_request", Disposition::Reject),
            (400, "0x0", "invalid_request", Disposition::Reject),
            (400, "0x80040265", "business_rule", Disposition::Reject),
            (401, "", "sign_in_again", Disposition::Park(Cause::NeedsUser)),
            (405, "", "invalid_request", Disposition::Reject),
            (502, "", "unavailable", retry),
        ] {
            let error = refused(status, code, None);
            assert_eq!((error.code().as_ref(), error.disposition()), (ours, disposition), "{status} {code}");
            assert!(!error.to_string().contains("secret"));
        }
    }

    #[test]
    fn service_protection_pauses_the_user_for_as_long_as_said() {
        for code in ["0x80072321", "-2147015902", "0x80072326", ""] {
            let error = refused(429, code, Some("35"));
            assert_eq!(error.cool_down(), Some(Duration::from_secs(35)), "{code}");
            assert_eq!(error.disposition(), Disposition::Retry { after: Some(Duration::from_secs(35)) });
        }
    }
}
