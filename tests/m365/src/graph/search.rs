//! `$search` on messages: a reading of KQL (<https://learn.microsoft.com/graph/search-query-parameter>). What it does not know
//! it does not find, so that no client leans on more of the language than the page shows.

use super::message::{Address, Message};
use super::refusal::Refusal;

/// A reading of KQL that is enough for words, phrases, `property:value`, `AND`, `OR`, `NOT`.
pub(crate) struct Terms(Vec<Vec<(bool, Option<String>, String)>>);

pub(crate) fn terms(text: &str) -> Result<Terms, Refusal> {
    // The value is wrapped in double quotes (<https://learn.microsoft.com/graph/search-query-parameter>).
    let inner = text.trim();
    let inner = inner
        .strip_prefix('"')
        .and_then(|inner| inner.strip_suffix('"'))
        .unwrap_or(inner)
        .replace("\\\"", "\"");
    let mut words = Vec::new();
    let (mut word, mut quoted) = (String::new(), false);
    for c in inner.chars() {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(std::mem::take(&mut word)),
            _ => word.push(c),
        }
    }
    if quoted {
        return Err(Refusal::bad(
            "BadRequest",
            format!("Syntax error: character '\"' is not valid at position {} in '{inner}'.", inner.len()),
        ));
    }
    words.push(word);
    let mut groups = vec![Vec::new()];
    let mut wanted = true;
    for word in words.into_iter().filter(|word| !word.is_empty()) {
        match word.as_str() {
            "AND" => {}
            "OR" => groups.push(Vec::new()),
            "NOT" => wanted = false,
            _ => {
                let (property, value) = match word.split_once(':') {
                    Some((property, value))
                        if !property.is_empty() && property.chars().all(char::is_alphanumeric) =>
                    {
                        (Some(property.to_lowercase()), value)
                    }
                    _ => (None, word.as_str()),
                };
                if let Some(group) = groups.last_mut() {
                    group.push((
                        std::mem::replace(&mut wanted, true),
                        property,
                        value.trim_matches('*').to_lowercase(),
                    ));
                }
            }
        }
    }
    Ok(Terms(groups))
}

impl Terms {
    pub(crate) fn fits(&self, message: &Message) -> bool {
        let people = |list: &[Address]| {
            list.iter()
                .map(|one| format!("{} {}", one.name, one.address))
                .collect::<Vec<_>>()
                .join(" ")
                .to_lowercase()
        };
        let from = people(message.from.as_slice());
        let subject = message.subject.clone().unwrap_or_default().to_lowercase();
        let body = || {
            if message.html { super::body::text_of(&message.content) } else { message.content.to_string() }
                .to_lowercase()
        };
        let one = |property: Option<&str>, value: &str| match property {
            None => from.contains(value) || subject.contains(value) || body().contains(value),
            Some("from") => from.contains(value),
            Some("subject") => subject.contains(value),
            Some("body") => body().contains(value),
            Some("to") => people(&message.to).contains(value),
            Some("cc") => people(&message.cc).contains(value),
            Some("bcc") => people(&message.bcc).contains(value),
            Some("participants" | "recipients") => {
                from.contains(value)
                    || [&message.to, &message.cc, &message.bcc]
                        .iter()
                        .any(|list| people(list).contains(value))
            }
            Some("importance") => message.importance == value,
            Some("hasattachment" | "hasattachments") => message.has_attachments() == (value == "true"),
            Some("attachment") => message.attachments.iter().any(|a| a.name.to_lowercase().contains(value)),
            Some(_) => false,
        };
        self.0.iter().any(|group| {
            group.iter().all(|(wanted, property, value)| one(property.as_deref(), value) == *wanted)
        })
    }
}
