//! One call as the handlers see it: the path in segments with `OData`'s spellings undone, the query decoded, the
//! preferences read. No handler touches a header or a raw path.

use axum::http::{HeaderMap, Method, header};
use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::refusal::{Answer, Refusal, Reply};
use super::timezones::Zone;
use crate::auth::Caller;

/// A step of the path: as written (ids are case-sensitive) and in lower case (names are not).
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) raw: String,
    pub(crate) name: String,
    /// What stands in the brackets of a function call.
    pub(crate) arguments: String,
}

#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) segments: Vec<Segment>,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// `http://host:port/v1.0`
    pub(crate) base: String,
    pub(crate) path: String,
    pub(crate) now: DateTime<Utc>,
    pub(crate) caller: Caller,
    pub(crate) http2: bool,
    pub(crate) prefer: Prefer,
}

/// `Prefer`, as far as Outlook knows it.
#[derive(Debug, Default, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is one preference of the header")]
pub(crate) struct Prefer {
    /// `IdType="ImmutableId"` (<https://learn.microsoft.com/graph/outlook-immutable-id>).
    pub(crate) immutable: bool,
    /// `outlook.body-content-type="text"` (<https://learn.microsoft.com/graph/api/user-list-messages>).
    pub(crate) text: bool,
    pub(crate) body_type: bool,
    /// `outlook.timezone="…"` (<https://learn.microsoft.com/graph/api/event-get>).
    pub(crate) zone: Option<Zone>,
    /// `odata.maxpagesize=n` (<https://learn.microsoft.com/graph/delta-query-messages>).
    pub(crate) page_size: Option<usize>,
    /// `return=minimal` (<https://learn.microsoft.com/graph/best-practices-concept>).
    pub(crate) minimal: bool,
}

impl Prefer {
    pub(crate) fn read(headers: &HeaderMap) -> Result<Self, Refusal> {
        let mut prefer = Self::default();
        for value in headers.get_all("prefer") {
            for part in value.to_str().unwrap_or_default().split(',') {
                let (name, value) = part.trim().split_once('=').unwrap_or((part.trim(), ""));
                let value = value.trim();
                // A single-quoted zone ends in an html page and 500 (microsoftgraph/microsoft-graph-docs#15604).
                if name.eq_ignore_ascii_case("outlook.timezone") && value.starts_with('\'') {
                    return Err(Refusal::new(500, "UnknownError", ""));
                }
                let value = value.trim_matches('"');
                match name.trim().to_ascii_lowercase().as_str() {
                    "idtype" => prefer.immutable = value.eq_ignore_ascii_case("ImmutableId"),
                    "outlook.body-content-type" => {
                        prefer.body_type = true;
                        prefer.text = value.eq_ignore_ascii_case("text");
                    }
                    "outlook.timezone" => prefer.zone = Some(Zone::named(value)?),
                    "odata.maxpagesize" => prefer.page_size = value.parse().ok().filter(|size| *size > 0),
                    "return" => prefer.minimal = value.eq_ignore_ascii_case("minimal"),
                    _ => {}
                }
            }
        }
        Ok(prefer)
    }

    /// `Preference-Applied` confirms what was understood.
    pub(crate) fn applied(&self) -> Option<String> {
        let mut applied = Vec::new();
        if self.immutable {
            applied.push("IdType=\"ImmutableId\"".to_owned());
        }
        if self.body_type {
            applied
                .push(format!("outlook.body-content-type=\"{}\"", if self.text { "text" } else { "html" }));
        }
        if let Some(zone) = &self.zone {
            applied.push(format!("outlook.timezone=\"{}\"", zone.name));
        }
        if let Some(size) = self.page_size {
            applied.push(format!("odata.maxpagesize={size}"));
        }
        (!applied.is_empty()).then(|| applied.join(", "))
    }
}

impl Call {
    pub(crate) fn names(&self) -> Vec<&str> {
        self.segments.iter().map(|segment| segment.name.as_str()).collect()
    }

    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(found, _)| found.trim_start_matches('$').eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    fn content_type(&self) -> &str {
        self.header(header::CONTENT_TYPE.as_str())
            .unwrap_or_default()
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
    }

    /// MIME is sent as `text/plain` (<https://learn.microsoft.com/graph/outlook-send-mime-message>).
    pub(crate) fn is_mime(&self) -> bool {
        self.content_type().eq_ignore_ascii_case("text/plain")
    }

    /// A body must say that it is JSON ("Content-Type … Required" on every page that takes one).
    pub(crate) fn wants_json(&self) -> Result<(), Refusal> {
        let kind = self.content_type();
        if self.body.is_empty() || kind.eq_ignore_ascii_case("application/json") {
            return Ok(());
        }
        Err(Refusal::new(
            415,
            "BadRequest",
            "Write requests (excluding DELETE) must contain the Content-Type header declaration. The supported content type is application/json.",
        ))
    }

    /// The whole request stays below about 4 MB (microsoftgraph/microsoft-graph-docs-contrib#758); MIME has the same
    /// limit on the page of each method that takes it.
    pub(crate) fn wants_small(&self) -> Result<(), Refusal> {
        if self.body.len() > 4 * 1024 * 1024 {
            return Err(Refusal::new(
                413,
                "RequestEntityTooLarge",
                "The request body is too large. The maximum request length supported is 4MB.",
            ));
        }
        Ok(())
    }

    /// An absolute link to this path with another query.
    pub(crate) fn link(&self, query: &[(String, String)]) -> String {
        let query = query
            .iter()
            .map(|(name, value)| format!("{}={}", encode(name), encode(value)))
            .collect::<Vec<_>>()
            .join("&");
        let root = self.base.trim_end_matches("/v1.0");
        format!("{root}{}?{query}", self.path)
    }

    /// Adds the confirmation of preferences.
    pub(crate) fn confirm(&self, answer: Answer) -> Answer {
        let mut reply: Reply = answer?;
        if let Some(applied) = self.prefer.applied() {
            reply = reply.with(axum::http::HeaderName::from_static("preference-applied"), applied);
        }
        Ok(reply)
    }
}

fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric()
            || matches!(byte, b'$' | b'-' | b'_' | b'.' | b'~' | b',' | b':' | b'/' | b'(' | b')')
        {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// Percent-decoding; in a query a plus is a space.
pub(crate) fn decode(text: &str, plus: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = || u8::from_str_radix(std::str::from_utf8(bytes.get(at + 1..at + 3)?).ok()?, 16).ok();
        match bytes[at] {
            b'%' if hex().is_some() => {
                out.push(hex().unwrap_or_default());
                at += 3;
                continue;
            }
            b'+' if plus => out.push(b' '),
            byte => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Splits the path behind `/v1.0` and undoes `OData`'s spellings: `mailFolders('inbox')`, `delta()`,
/// `microsoft.graph.delta()`, `microsoft.graph.sendMail`.
pub(crate) fn segments(path: &str) -> Vec<Segment> {
    let mut found = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        let raw = decode(part, false);
        let short = raw.strip_prefix("microsoft.graph.").unwrap_or(&raw);
        let (head, arguments) = match short.split_once('(') {
            Some((head, rest)) if rest.ends_with(')') => (head, Some(rest.trim_end_matches(')').to_owned())),
            _ => (short, None),
        };
        let key = arguments
            .as_deref()
            .and_then(|text| text.strip_prefix('\'')?.strip_suffix('\''))
            .map(|key| key.replace("''", "'"));
        found.push(Segment {
            raw: head.to_owned(),
            name: head.to_ascii_lowercase(),
            arguments: if key.is_some() { String::new() } else { arguments.unwrap_or_default() },
        });
        if let Some(key) = key {
            found.push(Segment { name: key.to_ascii_lowercase(), raw: key, arguments: String::new() });
        }
    }
    found
}

pub(crate) fn query(text: &str) -> Vec<(String, String)> {
    text.split('&')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name, true), decode(value, true))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_spellings_of_a_path_mean_the_same() {
        let names = |path: &str| segments(path).into_iter().map(|segment| segment.name).collect::<Vec<_>>();
        let plain = ["me", "mailfolders", "inbox", "messages", "delta"];
        assert_eq!(names("/me/mailFolders/inbox/messages/delta"), plain);
        assert_eq!(names("/me/mailFolders('inbox')/messages/delta()"), plain);
        assert_eq!(names("/me/mailFolders/Inbox/messages/microsoft.graph.delta()"), plain);
        assert_eq!(segments("/users/o''k%40x")[1].raw, "o''k@x");
        assert_eq!(segments("/users('o''k@x')")[1].raw, "o'k@x");
        let zones = segments(
            "/me/outlook/supportedTimeZones(TimeZoneStandard=microsoft.graph.timeZoneStandard'Iana')",
        );
        assert!(zones[2].arguments.contains("Iana"), "{zones:?}");
    }

    #[test]
    fn an_unencoded_plus_is_a_space() {
        assert_eq!(query("startDateTime=2026-01-01T00:00:00+02:00")[0].1, "2026-01-01T00:00:00 02:00");
        assert_eq!(query("a=%2B%20%27")[0].1, "+ '");
    }
}
