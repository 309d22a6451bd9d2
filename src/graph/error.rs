//! What Graph's refusals mean: first by code, then by status, never by message.
//!
//! The invariant: an unknown code never changes the meaning of its status, and a body that is empty, HTML
//! or cut short is as good as none.
//! <https://learn.microsoft.com/graph/errors>, <https://learn.microsoft.com/graph/throttling>

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use http::StatusCode;
use serde_json::Value;

use crate::auth::Unheard;
use crate::http::{Answer, HttpError, retry_after};
use crate::outcome::{Cause, Classify, Disposition, Failure};

/// Said by nobody, so we choose: long enough not to prolong the penalty.
const UNSAID_COOL_DOWN: Duration = Duration::from_secs(10);
/// Microsoft often says 1, and a call that comes that early is throttled again.
const SHORTEST_COOL_DOWN: Duration = Duration::from_secs(2);
/// A mailbox that is being moved between servers takes minutes to hours.
const MAILBOX_MOVE: Duration = Duration::from_mins(5);

/// Why a call to Graph did not do what was asked.
#[derive(Debug, Clone)]
pub enum GraphError {
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
    /// A link that leads somewhere else; the token was not sent there.
    ForeignLink {
        call: &'static str,
    },
}

/// An answer that says no.
#[derive(Debug, Clone)]
pub struct Refusal {
    pub call: &'static str,
    pub status: StatusCode,
    /// Microsoft's most specific code that the table knows, else the outermost.
    pub code: Option<String>,
    pub request_id: Option<String>,
    pub retry_after: Option<Duration>,
    /// A creating call: a server that failed may have created.
    once: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Retry,
    /// The mailbox is busy for everybody.
    Throttled,
    Moving,
    Park(Cause),
    Reject,
}

use Meaning::{Moving, Park, Reject, Retry, Throttled};

/// Microsoft's code in lower case, ours, and what it means. Before any status: a 500 may be permanent and
/// a 400 may be a full mailbox.
const CODES: &[(&str, &str, Meaning)] = &[
    ("activitylimitreached", "throttled", Throttled),
    ("applicationthrottled", "throttled", Throttled),
    ("commandconcurrencylimitreached", "throttled", Throttled),
    ("throttledrequest", "throttled", Throttled),
    ("toomanyrequests", "throttled", Throttled),
    ("errorserverbusy", "unavailable", Throttled),
    ("errormailboxmoveinprogress", "mailbox_moving", Moving),
    ("errormailboxstoreunavailable", "unavailable", Retry),
    ("errorinternalservertransienterror", "unavailable", Retry),
    ("errortimeoutexpired", "unavailable", Retry),
    ("servicenotavailable", "unavailable", Retry),
    ("concurrentitemsave", "conflict", Retry),
    ("errorirresolvableconflict", "conflict", Retry),
    ("entitytagdoesnotmatch", "conflict", Retry),
    ("resourcemodified", "conflict", Retry),
    ("errorquotaexceeded", "mailbox_full", Park(Cause::MailboxFull)),
    ("quotalimitreached", "mailbox_full", Park(Cause::MailboxFull)),
    ("errorsubmissionquotaexceeded", "sending_quota", Park(Cause::MailboxFull)),
    ("erroraccessdenied", "access_denied", Park(Cause::NeedsAdmin)),
    ("accessdenied", "access_denied", Park(Cause::NeedsAdmin)),
    ("authorization_requestdenied", "access_denied", Park(Cause::NeedsAdmin)),
    ("errorsendasdenied", "send_as_denied", Park(Cause::NeedsAdmin)),
    ("insufficient_claims", "sign_in_again", Park(Cause::NeedsUser)),
    ("invalidauthenticationtoken", "sign_in_again", Park(Cause::NeedsUser)),
    ("tokencreatedwithoutdatedpolicies", "sign_in_again", Park(Cause::NeedsUser)),
    ("interactionrequired", "sign_in_again", Park(Cause::NeedsUser)),
    ("mailboxnotenabledforrestapi", "mailbox_on_premises", Park(Cause::NeedsAdmin)),
    ("errornonexistentmailbox", "no_mailbox", Park(Cause::NeedsAdmin)),
    ("errorinvaliduser", "no_mailbox", Park(Cause::NeedsAdmin)),
    ("erroritemnotfound", "not_found", Reject),
    ("itemnotfound", "not_found", Reject),
    ("errorfoldernotfound", "not_found", Reject),
    // An id that cannot be one names nothing.
    ("errorinvalididmalformed", "not_found", Reject),
    ("errormessagesizeexceeded", "message_too_large", Reject),
    ("requestentitytoolarge", "message_too_large", Reject),
    ("errorinvalidrecipients", "invalid_recipients", Reject),
    ("erroritemcorrupt", "item_corrupt", Reject),
    ("errormimecontentconversionfailed", "item_corrupt", Reject),
    ("syncstatenotfound", "cursor_lost", Reject),
    ("syncstateinvalid", "cursor_lost", Reject),
    ("resyncrequired", "cursor_lost", Reject),
];

fn known(code: &str) -> Option<(&'static str, Meaning)> {
    CODES
        .iter()
        .find(|(theirs, ..)| code.eq_ignore_ascii_case(theirs))
        .map(|&(_, ours, meaning)| (ours, meaning))
}

fn by_status(status: StatusCode) -> (&'static str, Meaning) {
    match status.as_u16() {
        401 => ("sign_in_again", Park(Cause::NeedsUser)),
        403 => ("access_denied", Park(Cause::NeedsAdmin)),
        404 => ("not_found", Reject),
        409 | 412 => ("conflict", Retry),
        410 => ("cursor_lost", Reject),
        413 => ("message_too_large", Reject),
        423 => ("locked", Retry),
        429 | 509 => ("throttled", Throttled),
        503 => ("unavailable", Throttled),
        507 => ("mailbox_full", Park(Cause::MailboxFull)),
        408 | 424 | 500 | 502.. => ("unavailable", Retry),
        _ => ("invalid_request", Reject),
    }
}

impl Refusal {
    pub(super) fn read(call: &'static str, answer: &Answer, once: bool, now: DateTime<Utc>) -> Self {
        let body: Value = answer.json().unwrap_or_default();
        Self {
            call,
            status: answer.status,
            code: most_specific(&body["error"]),
            request_id: answer.request_id.clone(),
            retry_after: retry_after(&answer.headers, now),
            once,
        }
    }

    fn verdict(&self) -> (&'static str, Meaning) {
        // Old Outlook throttling says UnknownError: for these two the status outranks every code.
        if matches!(self.status.as_u16(), 429 | 509) {
            return by_status(self.status);
        }
        self.code.as_deref().and_then(known).unwrap_or_else(|| by_status(self.status))
    }
}

/// Walks `innerError` (in either spelling) inwards; the innermost code that means something to us wins.
fn most_specific(error: &Value) -> Option<String> {
    let mut outermost = None;
    let mut best = None;
    let mut level = error;
    for _ in 0..8 {
        let Some(object) = level.as_object() else { break };
        if let Some(code) = object.get("code").and_then(Value::as_str) {
            // Codes are words; whatever else stands there is content.
            let word =
                code.len() <= 64 && code.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
            if word && !code.is_empty() {
                outermost.get_or_insert_with(|| code.to_owned());
                if known(code).is_some() {
                    best = Some(code.to_owned());
                }
            }
        }
        let inner = object.iter().find(|(name, _)| name.eq_ignore_ascii_case("innererror"));
        let Some((_, inner)) = inner else { break };
        level = inner;
    }
    best.or(outermost)
}

impl GraphError {
    /// The thing asked for is not there (or not visible: Exchange says the same).
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.verdict().0 == "not_found")
    }

    /// Somebody changed it in between.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.verdict().0 == "conflict")
    }

    /// The delta cursor is gone: a new round is due.
    pub fn is_cursor_lost(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.verdict().0 == "cursor_lost")
    }

    /// The answer took Exchange too long, is more than is read of one, or has an item that Exchange cannot show: a
    /// smaller question may do.
    pub fn is_too_much(&self) -> bool {
        match self {
            Self::Http(HttpError::TooLarge { .. }) => true,
            Self::Refused(refusal) => {
                refusal.status == StatusCode::GATEWAY_TIMEOUT || refusal.verdict().0 == "item_corrupt"
            }
            _ => false,
        }
    }

    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused(refusal) => Some(refusal.status),
            _ => None,
        }
    }
}

impl From<Unheard> for GraphError {
    fn from(unheard: Unheard) -> Self {
        match unheard {
            Unheard::NoToken(failure) => Self::NoToken(failure),
            Unheard::Http(error) => Self::Http(error),
        }
    }
}

impl Classify for GraphError {
    fn disposition(&self) -> Disposition {
        match self {
            Self::NoToken(failure) => failure.disposition,
            Self::Http(error) => error.disposition(),
            // A link is asked for anew, and so is an answer that made no sense.
            Self::Unexpected { .. } | Self::ForeignLink { .. } => Disposition::Retry { after: None },
            Self::Refused(refusal) => match refusal.verdict().1 {
                Retry => Disposition::Retry { after: refusal.retry_after },
                Throttled => Disposition::Retry { after: self.cool_down() },
                Moving => Disposition::Retry { after: Some(MAILBOX_MOVE) },
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
            Self::ForeignLink { .. } => "foreign_link".into(),
        }
    }

    fn ambiguous(&self) -> bool {
        match self {
            Self::NoToken(_) | Self::ForeignLink { .. } => false,
            Self::Http(error) => error.ambiguous(),
            Self::Unexpected { write, .. } => *write,
            Self::Refused(refusal) => {
                refusal.once
                    && (refusal.status.is_server_error() || refusal.status == StatusCode::REQUEST_TIMEOUT)
            }
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

impl fmt::Display for GraphError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoToken(failure) => f.write_str(&failure.message),
            Self::Http(error) => error.fmt(f),
            Self::Unexpected { call, what, .. } => write!(f, "{call}: {what}"),
            Self::ForeignLink { call } => write!(f, "{call}: refused a link to another host"),
            Self::Refused(Refusal { call, status, code, .. }) => {
                write!(f, "{call}: {}", status.as_u16())?;
                code.as_ref().map_or(Ok(()), |code| write!(f, " {code}"))
            }
        }
    }
}

impl std::error::Error for GraphError {}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::header::RETRY_AFTER;
    use http::{HeaderMap, HeaderValue};

    use super::*;

    fn refused(status: u16, body: &str, wait: Option<&'static str>) -> GraphError {
        let headers = wait.map(|wait| (RETRY_AFTER, HeaderValue::from_static(wait)));
        let answer = Answer {
            status: StatusCode::from_u16(status).expect("a status"),
            headers: HeaderMap::from_iter(headers),
            body: Bytes::copy_from_slice(body.as_bytes()),
            request_id: Some("r".into()),
        };
        GraphError::Refused(Refusal::read("test", &answer, true, DateTime::UNIX_EPOCH))
    }

    fn body(code: &str) -> String {
        format!(r#"{{"error":{{"code":"{code}","message":"secret"}}}}"#)
    }

    #[test]
    fn the_table_of_the_fact_sheet_holds() {
        let retry = |seconds| Disposition::Retry { after: Some(Duration::from_secs(seconds)) };
        for (status, code, ours, disposition) in [
            (400, "BadRequest", "invalid_request", Disposition::Reject),
            (400, "ErrorInvalidRecipients", "invalid_recipients", Disposition::Reject),
            (400, "ErrorQuotaExceeded", "mailbox_full", Disposition::Park(Cause::MailboxFull)),
            (403, "ErrorQuotaExceeded", "mailbox_full", Disposition::Park(Cause::MailboxFull)),
            (400, "syncStateNotFound", "cursor_lost", Disposition::Reject),
            (401, "InvalidAuthenticationToken", "sign_in_again", Disposition::Park(Cause::NeedsUser)),
            (401, "Whatever", "sign_in_again", Disposition::Park(Cause::NeedsUser)),
            (403, "ERRORACCESSDENIED", "access_denied", Disposition::Park(Cause::NeedsAdmin)),
            (403, "insufficient_claims", "sign_in_again", Disposition::Park(Cause::NeedsUser)),
            (403, "ErrorSendAsDenied", "send_as_denied", Disposition::Park(Cause::NeedsAdmin)),
            (404, "ErrorItemNotFound", "not_found", Disposition::Reject),
            (404, "ErrorInvalidUser", "no_mailbox", Disposition::Park(Cause::NeedsAdmin)),
            (400, "ErrorInvalidIdMalformed", "not_found", Disposition::Reject),
            (404, "MailboxNotEnabledForRESTAPI", "mailbox_on_premises", Disposition::Park(Cause::NeedsAdmin)),
            (412, "ErrorIrresolvableConflict", "conflict", Disposition::Retry { after: None }),
            (429, "UnknownError", "throttled", retry(10)),
            (429, "ErrorItemNotFound", "throttled", retry(10)),
            (500, "ErrorItemCorrupt", "item_corrupt", Disposition::Reject),
            (500, "ErrorMailboxMoveInProgress", "mailbox_moving", retry(300)),
            (500, "UnknownError", "unavailable", Disposition::Retry { after: None }),
            (501, "NotImplemented", "invalid_request", Disposition::Reject),
            (503, "ErrorServerBusy", "unavailable", retry(10)),
            (507, "Unknown", "mailbox_full", Disposition::Park(Cause::MailboxFull)),
        ] {
            let error = refused(status, &body(code), None);
            assert_eq!((error.code().as_ref(), error.disposition()), (ours, disposition), "{status} {code}");
            assert!(!error.to_string().contains("secret"));
        }
    }

    #[test]
    fn the_innermost_known_code_wins_and_an_unknown_one_changes_nothing() {
        let nested = r#"{"error":{"code":"BadRequest","innererror":{"code":"x","innerError":{"code":"ErrorQuotaExceeded"}}}}"#;
        assert_eq!(refused(400, nested, None).code(), "mailbox_full");
        let unknown = r#"{"error":{"code":"ErrorItemNotFound","innerError":{"code":"Novel"}}}"#;
        assert_eq!(refused(404, unknown, None).code(), "not_found");
    }

    #[test]
    fn no_body_html_and_half_a_body_are_read_by_status() {
        for body in
            ["", "<html>busy</html>", r#"{"error":{"code":"ErrorItem"#, "[]", "null", r#"{"error":"x"}"#]
        {
            assert_eq!(refused(503, body, None).code(), "unavailable", "{body}");
        }
    }

    #[test]
    fn a_throttled_mailbox_is_left_alone_for_as_long_as_said_but_never_too_short() {
        assert_eq!(refused(429, "", Some("120")).cool_down(), Some(Duration::from_mins(2)));
        assert_eq!(refused(429, "", Some("1")).cool_down(), Some(SHORTEST_COOL_DOWN));
        assert_eq!(refused(429, "", None).cool_down(), Some(UNSAID_COOL_DOWN));
        assert_eq!(refused(500, "", None).cool_down(), None);
    }

    #[test]
    fn only_a_failed_server_leaves_a_creating_call_in_doubt() {
        assert!(refused(504, "", None).ambiguous());
        assert!(!refused(400, "", None).ambiguous());
        assert!(!refused(429, "", None).ambiguous());
    }
}
