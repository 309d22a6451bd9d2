//! Paths: `/api/data/v9.2/accounts(key)/navigation`, with an id or an alternate key in the parentheses.

use percent_encoding::percent_decode_str;
use serde_json::Value;

use super::error::CrmError;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Key {
    Id(String),
    Alternate(Vec<(String, Value)>),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Segment {
    pub(crate) name: String,
    pub(crate) key: Option<Key>,
}

/// The segments behind the version; split before they are decoded, as a key may contain a slash.
pub(crate) fn segments(path: &str) -> Result<Vec<Segment>, CrmError> {
    path.split('/').filter(|part| !part.is_empty()).map(Segment::parse).collect()
}

impl Segment {
    pub(crate) fn parse(text: &str) -> Result<Self, CrmError> {
        let bad = || CrmError::query("Bad Request - Error in query syntax.");
        let text = percent_decode_str(text).decode_utf8().map_err(|_| bad())?.into_owned();
        let Some((name, rest)) = text.split_once('(') else {
            return Ok(Self { name: text, key: None });
        };
        let inner = rest.strip_suffix(')').ok_or_else(bad)?.trim();
        let name = name.to_owned();
        if inner.is_empty() {
            return Ok(Self { name, key: None });
        }
        if let Ok(id) = uuid::Uuid::parse_str(inner) {
            return Ok(Self { name, key: Some(Key::Id(id.to_string())) });
        }
        let mut values = Vec::new();
        for part in split_outside_quotes(inner, ',') {
            let (column, value) = part.split_once('=').ok_or_else(bad)?;
            values.push((column.trim().to_owned(), literal(value.trim()).ok_or_else(bad)?));
        }
        Ok(Self { name, key: Some(Key::Alternate(values)) })
    }
}

fn literal(text: &str) -> Option<Value> {
    if let Some(inner) = text.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
        return Some(Value::String(inner.replace("''", "'")));
    }
    if let Ok(number) = text.parse::<i64>() {
        return Some(Value::from(number));
    }
    uuid::Uuid::parse_str(text).ok().map(|id| Value::String(id.to_string()))
}

/// Splits at `separator` where it is neither quoted nor in parentheses.
pub(crate) fn split_outside_quotes(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut start, mut quoted, mut depth) = (Vec::new(), 0, false, 0_i32);
    for (at, c) in text.char_indices() {
        match c {
            '\'' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth -= 1,
            c if c == separator && !quoted && depth == 0 => {
                parts.push(&text[start..at]);
                start = at + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::{Key, Segment};

    #[test]
    fn alternate_keys_are_quoted_and_escaped() {
        let segment = Segment::parse("new_promises(new_code='O''Neil%2C%20x',n=2)").expect("valid");
        let Some(Key::Alternate(values)) = segment.key else { panic!("a key") };
        assert_eq!(values[0].1, "O'Neil, x");
        assert_eq!(values[1].1, 2);
    }
}
