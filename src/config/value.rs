//! What one value must look like, whatever the others are.
//!
//! The invariant: a refusal says what is expected and the shape of what came, and never repeats the value.

use std::net::SocketAddr;
use std::time::Duration;

use figment::value::{Num, Value};
use secrecy::SecretString;
use url::Url;

use super::duration;
use super::keys::Shape;
use crate::http::loopback;
use crate::vault::seal::Keys;

/// The shape of a value, for people: never the value.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::String(_, text) if text.is_empty() => "empty text".to_owned(),
        Value::String(_, text) => format!("text of {} characters", text.chars().count()),
        Value::Num(..) => "a number".to_owned(),
        Value::Bool(..) => "true or false".to_owned(),
        Value::Array(_, values) => format!("a list of {}", values.len()),
        Value::Dict(..) => "a section".to_owned(),
        Value::Char(..) => "one character".to_owned(),
        Value::Empty(..) => "nothing".to_owned(),
    }
}

/// A value that came as plain text: from the environment or a secret's file.
pub(super) fn from_text(shape: Shape, text: &str) -> Value {
    match shape {
        Shape::Number { .. } => match text.trim().parse::<u32>() {
            Ok(number) => number.into(),
            Err(_) => text.into(),
        },
        Shape::Switch => match text.trim().parse::<bool>() {
            Ok(switch) => switch.into(),
            Err(_) => text.into(),
        },
        Shape::Ladder | Shape::Hosts | Shape::SealingKeys => text
            .trim()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .split([',', '\n'])
            .map(|item| item.trim().trim_matches('"'))
            .filter(|item| !item.is_empty())
            .collect::<Vec<_>>()
            .into(),
        _ => text.into(),
    }
}

/// `Err` says what is expected.
pub(super) fn fits(shape: Shape, value: &Value) -> Result<(), String> {
    match shape {
        Shape::Number { least, most } => number(value, least, most),
        Shape::Switch => value.to_bool().map(drop).ok_or_else(|| "expected true or false".to_owned()),
        Shape::Ladder => ladder(&texts(value)?),
        Shape::Hosts => hosts(&texts(value)?),
        Shape::SealingKeys => sealing_keys(&texts(value)?),
        shape => match value.as_str() {
            Some(text) => text_fits(shape, text),
            None => Err("expected text".to_owned()),
        },
    }
}

fn number(value: &Value, least: u32, most: u32) -> Result<(), String> {
    let number = match value {
        Value::Num(_, Num::F32(_) | Num::F64(_)) => None,
        value => value.to_i128().or_else(|| value.to_u128().and_then(|number| number.try_into().ok())),
    };
    match number {
        Some(number) if (i128::from(least)..=i128::from(most)).contains(&number) => Ok(()),
        _ => Err(format!("expected a whole number from {least} to {most}")),
    }
}

fn texts(value: &Value) -> Result<Vec<&str>, String> {
    let wrong = || "expected a list of texts".to_owned();
    value.as_array().ok_or_else(wrong)?.iter().map(|item| item.as_str().ok_or_else(wrong)).collect()
}

fn text_fits(shape: Shape, text: &str) -> Result<(), String> {
    let expect = |fits: bool, expected: &str| if fits { Ok(()) } else { Err(format!("expected {expected}")) };
    match shape {
        Shape::OneOf(variants) => expect(variants.contains(&text), &variants.join(", ")),
        Shape::Duration { least, most } => {
            let bound = |text| duration("", text).unwrap_or_default();
            let fits = duration("", text).is_ok_and(|given| given >= bound(least) && given <= bound(most));
            expect(fits, &format!("a duration like 30s, 5m or 2h, from {least} to {most}"))
        }
        Shape::Url => url_fits(text),
        Shape::Address => {
            expect(text.parse::<SocketAddr>().is_ok(), "an address and port like 127.0.0.1:8080")
        }
        Shape::Guid => {
            expect(uuid::Uuid::parse_str(text).is_ok(), "the app registration's client id, a GUID")
        }
        Shape::Certificates => match std::fs::read_to_string(text) {
            Ok(pem) => expect(pem.contains("-----BEGIN CERTIFICATE-----"), "a file with certificates in PEM"),
            Err(error) => Err(format!("expected a file that can be read ({error})")),
        },
        Shape::DatabaseUrl => {
            let postgres = ["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme));
            let file = text.strip_prefix("sqlite:").map(|rest| rest.trim_start_matches('/'));
            let fits = match file {
                Some(file) => !file.is_empty() && !file.starts_with(':') && !file.contains("mode=memory"),
                None => postgres && Url::parse(text).is_ok_and(|url| url.has_host()),
            };
            expect(fits, "sqlite://<file> or postgres://user:password@host/database")
        }
        Shape::BrokerUrl => {
            let remote = Url::parse(text)
                .is_ok_and(|url| ["amqp", "amqps"].contains(&url.scheme()) && url.host().is_some());
            expect(text == "embedded" || remote, "embedded, or amqp[s]://user:password@host[:port][/vhost]")
        }
        Shape::Prefix => {
            let safe = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            let fits = (1..=64).contains(&text.len())
                && text.chars().all(safe)
                && !text.starts_with("amq.")
                && !text.ends_with('.');
            expect(fits, "1 to 64 characters of [A-Za-z0-9._-], not beginning with amq. or ending with a dot")
        }
        Shape::Identity => {
            let fits = text.contains("-----BEGIN CERTIFICATE-----") && text.contains("PRIVATE KEY-----");
            expect(
                fits,
                "PEM with a certificate and its private key (give a file by client_certificate_file)",
            )
        }
        Shape::LogLevel => {
            let fits = !text.is_empty() && tracing_subscriber::EnvFilter::try_new(text).is_ok();
            expect(fits, "error, warn, info, debug or trace, or such levels by module")
        }
        Shape::Text
        | Shape::Switch
        | Shape::Number { .. }
        | Shape::Ladder
        | Shape::Hosts
        | Shape::SealingKeys => {
            let fits = !text.trim().is_empty() && !text.chars().any(char::is_control);
            expect(fits, "text without control characters")
        }
    }
}

fn url_fits(text: &str) -> Result<(), String> {
    let Ok(url) = Url::parse(text) else { return Err("expected a URL like https://host/path".to_owned()) };
    if !["http", "https"].contains(&url.scheme()) || url.host().is_none() {
        return Err("expected a URL with https".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("expected a URL without user or password".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("expected a URL without query or fragment".to_owned());
    }
    if url.scheme() == "http" && !loopback(&url) {
        return Err("expected https: http is only for this machine itself".to_owned());
    }
    Ok(())
}

fn ladder(rungs: &[&str]) -> Result<(), String> {
    if !(1..=12).contains(&rungs.len()) {
        return Err("expected 1 to 12 delays".to_owned());
    }
    let mut before = Duration::ZERO;
    for (index, rung) in rungs.iter().enumerate() {
        let Ok(delay) = duration("", rung) else {
            return Err(format!("delay {}: expected a duration like 10s, 5m or 2h", index + 1));
        };
        if delay <= before {
            return Err(format!(
                "delay {}: expected more than the delay before it and more than 0",
                index + 1
            ));
        }
        // RabbitMQ keeps a message's time to live in 32 bits of milliseconds.
        if delay > Duration::from_hours(7 * 24) {
            return Err(format!("delay {}: expected at most 7d", index + 1));
        }
        before = delay;
    }
    Ok(())
}

fn hosts(patterns: &[&str]) -> Result<(), String> {
    for (index, pattern) in patterns.iter().enumerate() {
        let domain = pattern.strip_prefix("*.").unwrap_or(pattern);
        let label =
            |label: &str| !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        // A pattern over a whole top-level domain would let tokens out to anybody.
        let fits = domain.split('.').all(label) && (domain.contains('.') || !pattern.starts_with('*'));
        if !fits {
            return Err(format!("entry {}: expected a host or *.domain like *.dynamics.com", index + 1));
        }
    }
    if patterns.is_empty() { Err("expected at least one host pattern".to_owned()) } else { Ok(()) }
}

/// As the vault reads them.
fn sealing_keys(keys: &[&str]) -> Result<(), String> {
    let keys: Vec<SecretString> = keys.iter().map(|key| SecretString::from(*key)).collect();
    let told = Keys::parse(&keys).map_err(|error| error.to_string());
    told.map(drop).map_err(|told| told.trim_start_matches("vault.keys: ").to_owned())
}
