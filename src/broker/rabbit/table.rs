//! Between AMQP's properties and ours.
//!
//! The invariant: nothing a publisher writes into properties or headers can panic, overflow or be refused by the
//! store later; what cannot be kept is shortened or replaced, never fatal.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde_json::{Number, Value};

use crate::broker::{Meta, Outgoing, Target, header};

/// Longer values are cut: a header is a label, the body has its own limit.
const LONGEST: usize = 16 * 1024;
const DEEPEST: usize = 16;
/// The end of the year 9999, which every store and format can hold.
const LAST_SECOND: u64 = 253_402_300_799;

pub(super) fn properties(message: &Outgoing, now: DateTime<Utc>) -> BasicProperties {
    let (Target::Job { kind } | Target::Rung { kind, .. } | Target::Dead { kind } | Target::Event { kind }) =
        &message.target;
    let mut headers = FieldTable::default();
    for (name, value) in &message.headers {
        if let (true, Ok(name)) = (header::travels(name), ShortString::try_new(name.as_str())) {
            headers.insert(name, AMQPValue::LongString(value.as_str().into()));
        }
    }
    BasicProperties::default()
        .with_content_type(message.content_type.into())
        .with_delivery_mode(2)
        .with_message_id(message.message_id.to_string().into())
        .with_timestamp(u64::try_from(now.timestamp()).unwrap_or_default())
        .with_type(ShortString::try_new(kind.as_str()).unwrap_or_default())
        .with_app_id("followthrough".into())
        .with_headers(headers)
}

/// `rungs` is how the names of the delay queues begin: leaving one of those is no death.
pub(super) fn meta(delivery: &Delivery, rungs: &str) -> Meta {
    let properties = &delivery.properties;
    let headers: BTreeMap<String, Value> = properties
        .headers()
        .iter()
        .flat_map(FieldTable::inner)
        .map(|(name, value)| (clean(name.as_str()), json(value, 0)))
        .collect();
    let text = |value: &Option<ShortString>| value.as_ref().map(|text| clean(text.as_str()));
    let mut meta = Meta {
        message_id: text(properties.message_id()),
        kind: text(properties.kind()),
        correlation_id: text(properties.correlation_id()),
        content_type: text(properties.content_type()),
        timestamp: properties
            .timestamp()
            .filter(|seconds| *seconds <= LAST_SECOND)
            .and_then(|seconds| DateTime::from_timestamp(i64::try_from(seconds).ok()?, 0)),
        routing_key: clean(delivery.routing_key.as_str()),
        redelivered: delivery.redelivered,
        deliveries: 0,
        death: death(&headers, rungs),
        headers,
    };
    if meta.redelivered {
        // Counted only then: on a first delivery such a header is the publisher's own invention.
        let count = |name| meta.number(name).and_then(|count| u32::try_from(count).ok()).unwrap_or_default();
        meta.deliveries = count("x-acquired-count").max(count("x-delivery-count")).max(1);
    }
    meta
}

/// The newest reason for which a work queue gave the message up.
fn death(headers: &BTreeMap<String, Value>, rungs: &str) -> Option<String> {
    let deaths = headers.get("x-death")?.as_array()?;
    let death = deaths.iter().find(|death| {
        death.get("queue").and_then(Value::as_str).is_some_and(|queue| !queue.starts_with(rungs))
    })?;
    Some(death.get("reason")?.as_str()?.to_owned())
}

fn json(value: &AMQPValue, depth: usize) -> Value {
    let float =
        |number: f64| Number::from_f64(number).map_or_else(|| Value::from(number.to_string()), Value::Number);
    match value {
        AMQPValue::Boolean(value) => Value::from(*value),
        AMQPValue::ShortShortInt(value) => Value::from(*value),
        AMQPValue::ShortShortUInt(value) => Value::from(*value),
        AMQPValue::ShortInt(value) => Value::from(*value),
        AMQPValue::ShortUInt(value) => Value::from(*value),
        AMQPValue::LongInt(value) => Value::from(*value),
        AMQPValue::LongUInt(value) => Value::from(*value),
        AMQPValue::LongLongInt(value) => Value::from(*value),
        AMQPValue::Timestamp(value) => Value::from(*value),
        AMQPValue::Float(value) => float(f64::from(*value)),
        AMQPValue::Double(value) => float(*value),
        AMQPValue::DecimalValue(value) => float(f64::from(value.value) / 10_f64.powi(i32::from(value.scale))),
        AMQPValue::ShortString(text) => Value::from(clean(text.as_str())),
        AMQPValue::LongString(text) => bytes(text.as_bytes()),
        AMQPValue::ByteArray(raw) => bytes(raw.as_slice()),
        AMQPValue::Void => Value::Null,
        AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) if depth >= DEEPEST => Value::from("…"),
        AMQPValue::FieldArray(values) => {
            values.as_slice().iter().map(|value| json(value, depth + 1)).collect()
        }
        AMQPValue::FieldTable(table) => {
            table.inner().iter().map(|(name, value)| (clean(name.as_str()), json(value, depth + 1))).collect()
        }
    }
}

/// Text where it is text, otherwise base64.
fn bytes(raw: &[u8]) -> Value {
    match std::str::from_utf8(raw) {
        Ok(text) => Value::from(clean(text)),
        Err(_) => Value::from(STANDARD.encode(&raw[..raw.len().min(LONGEST)])),
    }
}

/// PostgreSQL keeps no NUL in text.
fn clean(text: &str) -> String {
    let end = text.floor_char_boundary(LONGEST);
    text[..end].replace('\0', "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_values_become_harmless_json() {
        let mut deep = AMQPValue::Void;
        for _ in 0..500 {
            deep = AMQPValue::FieldArray(vec![deep].into());
        }
        assert!(json(&deep, 0).to_string().contains('…'));
        assert_eq!(json(&AMQPValue::Double(f64::NAN), 0), Value::from("NaN"));
        assert_eq!(json(&AMQPValue::LongString("a\0b".into()), 0), Value::from("a\u{fffd}b"));
        assert_eq!(json(&AMQPValue::ByteArray(vec![0xff, 0xfe].into()), 0), Value::from("//4="));
        let long = "ä".repeat(LONGEST);
        assert_eq!(json(&AMQPValue::LongString(long.into()), 0).as_str().map(str::len), Some(LONGEST));
        let decimal = lapin::types::DecimalValue { scale: 255, value: u32::MAX };
        assert!(json(&AMQPValue::DecimalValue(decimal), 0).is_number());
    }

    #[test]
    fn leaving_a_rung_is_no_death() {
        let entry = |queue: &str, reason: &str| serde_json::json!({"queue": queue, "reason": reason});
        let headers = |deaths: Value| BTreeMap::from([("x-death".to_owned(), deaths)]);
        let rung = entry("f.retry.10s", "expired");
        assert_eq!(death(&headers(Value::from(vec![rung.clone()])), "f.retry."), None);
        let both = Value::from(vec![entry("f.email.draft", "delivery_limit"), rung]);
        assert_eq!(death(&headers(both), "f.retry.").as_deref(), Some("delivery_limit"));
        assert_eq!(death(&headers(Value::from("nonsense")), "f.retry."), None);
    }
}
