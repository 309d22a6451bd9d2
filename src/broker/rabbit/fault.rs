//! What the broker's errors mean: pass by themselves, or need a person.
//!
//! The invariant: a fault's text holds no credentials, and a fault that needs a person says what to look at.

use lapin::ErrorKind;

use crate::broker::BrokerError;

/// An error of the broker or of the way to it.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    /// AMQP's reply code; 0 where none came.
    pub(super) code: u16,
    pub(super) text: String,
}

pub(super) const NOT_FOUND: u16 = 404;
/// AMQP's own code for it, given by us: something came that lapin cannot read.
pub(super) const SYNTAX_ERROR: u16 = 502;
const ACCESS_REFUSED: u16 = 403;
const PRECONDITION_FAILED: u16 = 406;
const NOT_ALLOWED: u16 = 530;

impl Fault {
    pub(super) fn transient(text: impl Into<String>) -> Self {
        Self { code: 0, text: text.into() }
    }

    /// Trying again will not help until somebody changes something.
    pub(super) fn permanent(&self) -> bool {
        matches!(self.code, ACCESS_REFUSED | PRECONDITION_FAILED | NOT_ALLOWED)
    }

    pub(super) fn advice(&self) -> &'static str {
        match self.code {
            ACCESS_REFUSED => "check the user, the password and the user's permissions on this virtual host",
            NOT_ALLOWED => "check that the virtual host exists and that the user may use it",
            PRECONDITION_FAILED => "an object exists with other arguments; use another prefix or delete it",
            NOT_FOUND => {
                "the object does not exist; run with broker.topology = declare, or import the definitions"
            }
            _ => "it is tried again",
        }
    }

    /// The error for an object that was to be declared or checked.
    pub(super) fn about(&self, object: &str) -> BrokerError {
        if self.code == PRECONDITION_FAILED {
            return BrokerError::Misconfigured(format!("{object} {}", clash(&self.text)));
        }
        if self.permanent() || self.code == NOT_FOUND {
            return BrokerError::Misconfigured(format!("{object}: {} ({})", self.text, self.advice()));
        }
        BrokerError::Unavailable(format!("{object}: {}", self.text))
    }
}

impl From<lapin::Error> for Fault {
    fn from(error: lapin::Error) -> Self {
        match error.kind() {
            ErrorKind::ProtocolError(error) => {
                Self { code: error.get_id(), text: error.get_message().to_string() }
            }
            ErrorKind::ParsingError(_) => Self { code: SYNTAX_ERROR, text: error.to_string() },
            _ => Self::transient(error.to_string()),
        }
    }
}

impl From<Fault> for BrokerError {
    fn from(fault: Fault) -> Self {
        if fault.permanent() {
            Self::Misconfigured(format!("the broker refuses us: {} ({})", fault.text, fault.advice()))
        } else {
            Self::Unavailable(fault.text)
        }
    }
}

/// Says a clash in our words. The broker's text serves the message only; nothing is decided by it.
fn clash(text: &str) -> String {
    let parsed = (|| {
        let argument = text.split_once("inequivalent arg '")?.1.split_once('\'')?.0;
        let (wanted, found) = text.split_once("received ")?.1.split_once(" but current is ")?;
        Some(format!(
            "exists with another `{argument}`: found {}, expected {}; use another broker.prefix, or empty and delete it",
            value(found),
            value(wanted)
        ))
    })();
    parsed.unwrap_or_else(|| format!("clashes with what exists: {text}"))
}

/// `the value 'classic' of type 'longstr'`, `'true'`, `none`.
fn value(text: &str) -> String {
    let quoted = text.split('\'').nth(1);
    quoted.map_or_else(|| "none".to_owned(), |value| format!("`{value}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clash_is_told_with_its_argument_and_both_values() {
        let cases = [
            (
                "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'a.b' in vhost '/': received the value 'quorum' of type 'longstr' but current is none",
                "`x-queue-type`: found none, expected `quorum`",
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'a.b' in vhost '/': received 'true' but current is 'false'",
                "`durable`: found `false`, expected `true`",
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'a' in vhost '/': received the value '5' of type 'long' but current is the value '6' of type 'signedint'",
                "`x-message-ttl`: found `6`, expected `5`",
            ),
        ];
        for (text, expected) in cases {
            assert!(clash(text).contains(expected), "{}", clash(text));
        }
        assert!(clash("something else").contains("something else"));
    }
}
