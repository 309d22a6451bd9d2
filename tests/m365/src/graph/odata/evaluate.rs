//! Evaluating a filter over something that can be asked for its properties. Text is compared without case, as Exchange
//! compares strings, except where a property is an identifier.

use std::cmp::Ordering;

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::{Filter, Literal, Operator, parse::instant};

/// Something a filter can look into: the value of a first-level property, made only when it is asked for.
pub(crate) trait Lookup {
    fn look(&self, property: &str) -> Option<Value>;
}

impl Lookup for Value {
    fn look(&self, property: &str) -> Option<Value> {
        self.get(property).cloned()
    }
}

fn resolve(of: &dyn Lookup, path: &[String]) -> Value {
    let Some((first, rest)) = path.split_first() else { return Value::Null };
    let mut value = of.look(first).unwrap_or(Value::Null);
    for step in rest {
        value = value.get(step).cloned().unwrap_or(Value::Null);
    }
    value
}

pub(crate) fn matches(filter: &Filter, of: &dyn Lookup) -> bool {
    match filter {
        Filter::And(left, right) => matches(left, of) && matches(right, of),
        Filter::Or(left, right) => matches(left, of) || matches(right, of),
        Filter::Not(inner) => !matches(inner, of),
        Filter::Flag(path) => resolve(of, path) == Value::Bool(true),
        Filter::Compare(path, operator, literal) => {
            holds(&resolve(of, path), *operator, literal, exact(path))
        }
        Filter::Call(name, path, text) => call(name, &resolve(of, path), text),
        Filter::Lambda { path, all, variable, body } => {
            let Value::Array(items) = resolve(of, path) else { return *all };
            let Some(body) = body else { return !items.is_empty() };
            let test = |item: &Value| matches(body, &Item { variable, item });
            if *all { items.iter().all(test) } else { items.iter().any(test) }
        }
    }
}

/// A lambda's variable in scope.
struct Item<'a> {
    variable: &'a str,
    item: &'a Value,
}

impl Lookup for Item<'_> {
    fn look(&self, property: &str) -> Option<Value> {
        (property == self.variable).then(|| self.item.clone())
    }
}

/// Identifiers are case-sensitive (<https://learn.microsoft.com/graph/outlook-immutable-id>), and so is the name inside
/// an extended property's id (<https://learn.microsoft.com/graph/api/singlevaluelegacyextendedproperty-get>).
fn exact(path: &[String]) -> bool {
    path.last().is_some_and(|last| last == "id" || last == "conversationId" || last == "parentFolderId")
}

fn call(name: &str, value: &Value, text: &str) -> bool {
    let Some(value) = value.as_str() else { return false };
    let (value, text) = (value.to_lowercase(), text.to_lowercase());
    match name {
        "contains" => value.contains(&text),
        "startswith" => value.starts_with(&text),
        _ => value.ends_with(&text),
    }
}

fn holds(value: &Value, operator: Operator, literal: &Literal, exact: bool) -> bool {
    let Some(ordering) = order(value, literal, exact) else {
        return operator == Operator::Ne;
    };
    match operator {
        Operator::Eq => ordering == Ordering::Equal,
        Operator::Ne => ordering != Ordering::Equal,
        Operator::Gt => ordering == Ordering::Greater,
        Operator::Ge => ordering != Ordering::Less,
        Operator::Lt => ordering == Ordering::Less,
        Operator::Le => ordering != Ordering::Greater,
    }
}

fn order(value: &Value, literal: &Literal, exact: bool) -> Option<Ordering> {
    match (value, literal) {
        (Value::Null, Literal::Null) => Some(Ordering::Equal),
        (Value::Bool(value), Literal::Bool(literal)) => Some(value.cmp(literal)),
        (Value::Number(value), Literal::Number(literal)) => value.as_f64()?.partial_cmp(literal),
        // Extended properties are text whatever their type is.
        (Value::String(value), Literal::Number(literal)) => value.parse::<f64>().ok()?.partial_cmp(literal),
        (Value::String(value), Literal::Instant(literal)) => Some(moment(value)?.cmp(literal)),
        (Value::String(value), Literal::Text(literal)) => {
            // `start/dateTime ge '2026-01-01T00:00:00'`: both sides are text, but what is meant is a moment.
            if let (Some(value), Some(literal)) = (moment(value), moment(literal)) {
                return Some(value.cmp(&literal));
            }
            Some(if exact {
                value.as_str().cmp(literal)
            } else {
                value.to_lowercase().cmp(&literal.to_lowercase())
            })
        }
        _ => None,
    }
}

fn moment(text: &str) -> Option<DateTime<Utc>> {
    if text.len() < 10 || !text.as_bytes()[0].is_ascii_digit() {
        return None;
    }
    instant(text).or_else(|| text.parse::<chrono::NaiveDateTime>().ok().map(|naive| naive.and_utc()))
}

/// The order of two values under `$orderby`.
pub(crate) fn compare(left: &Value, right: &Value) -> Ordering {
    match (left, right) {
        (Value::String(left), Value::String(right)) => match (moment(left), moment(right)) {
            (Some(left), Some(right)) => left.cmp(&right),
            _ => left.to_lowercase().cmp(&right.to_lowercase()),
        },
        (Value::Bool(left), Value::Bool(right)) => left.cmp(right),
        (Value::Number(left), Value::Number(right)) => {
            left.as_f64().partial_cmp(&right.as_f64()).unwrap_or(Ordering::Equal)
        }
        (Value::Object(_), Value::Object(_)) => left.to_string().cmp(&right.to_string()),
        (Value::Null, Value::Null) => Ordering::Equal,
        (Value::Null, _) => Ordering::Less,
        (_, Value::Null) => Ordering::Greater,
        _ => Ordering::Equal,
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse_filter;
    use super::*;
    use serde_json::json;

    #[test]
    fn a_marker_is_found_by_exact_name_and_by_value_without_case() {
        let message =
            json!({"singleValueExtendedProperties": [{"id": "String {g} Name Intent", "value": "AbC"}]});
        let find = |name: &str, value: &str| {
            let text = format!(
                "singleValueExtendedProperties/Any(ep: ep/id eq 'String {{g}} Name {name}' and ep/value eq '{value}')"
            );
            matches(&parse_filter(&text).expect("parses"), &message)
        };
        assert!(find("Intent", "AbC"));
        assert!(find("Intent", "abc"));
        assert!(!find("intent", "AbC"));
        assert!(!find("Intent", "other"));
    }

    #[test]
    fn moments_are_compared_as_moments() {
        let event = json!({"start": {"dateTime": "2026-01-01T09:00:00.0000000"}, "receivedDateTime": "2026-10-23T00:00:01Z"});
        let holds = |text: &str| matches(&parse_filter(text).expect("parses"), &event);
        assert!(holds("start/dateTime ge '2026-01-01T09:00:00'"));
        assert!(!holds("start/dateTime gt '2026-01-01T09:00:00'"));
        assert!(holds("receivedDateTime ge 2026-10-23T00:00:00Z and receivedDateTime lt 2026-10-24"));
    }
}
