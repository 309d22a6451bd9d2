//! Microsoft Graph, for one connection and one mailbox.
//!
//! The invariant: every mail and calendar call asks for immutable ids, only the documented success code is
//! success, and no link that Graph hands out is followed to another host with the user's token attached.

pub mod arrivals;
mod attachment;
pub mod calendar;
pub mod changes;
mod error;
pub mod folder;
pub mod mail;
pub mod sending;
pub mod subscription;
mod upload;

use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::Url;

pub use self::error::{GraphError, Refusal};
use crate::auth::{Bearer, Tokens};
use crate::clock::Clock;
use crate::cool_down::CoolDown;
use crate::http::{Answer, Call, Http, retry_after};
use crate::outcome::Classify as _;

const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
const IMMUTABLE_IDS: HeaderValue = HeaderValue::from_static("IdType=\"ImmutableId\"");
/// A list that is still not at its end after so many pages goes in circles.
const MOST_PAGES: usize = 100;

/// A client that acts as one signed-in user on one mailbox: their own, or one shared with them.
#[derive(Clone)]
pub struct Graph {
    bearer: Bearer,
    clock: Clock,
    /// `https://graph.microsoft.com/v1.0`
    root: Arc<Url>,
    mailbox: Option<Arc<str>>,
}

/// One page of a collection.
#[derive(Debug, Deserialize)]
struct Page<T> {
    value: Vec<T>,
    #[serde(rename = "@odata.nextLink")]
    next: Option<String>,
}

/// The resource that a token for Graph is asked for: the URL without a path.
pub fn resource(graph_url: &Url) -> String {
    graph_url.origin().ascii_serialization()
}

impl Graph {
    /// The signed-in user's own mailbox (`/me`).
    pub fn new(http: Http, tokens: Arc<dyn Tokens>, clock: Clock, graph_url: &Url) -> Self {
        let mut root = graph_url.clone();
        if let Ok(mut segments) = root.path_segments_mut() {
            segments.pop_if_empty().push("v1.0");
        }
        let bearer = Bearer::new(http, tokens, &resource(graph_url));
        Self { bearer, clock, root: Arc::new(root), mailbox: None }
    }

    /// The same user on a mailbox shared with them (`/users/{address}`).
    #[must_use]
    pub fn of_mailbox(&self, address: &str) -> Self {
        Self { mailbox: Some(address.into()), ..self.clone() }
    }

    /// The gate that its calls stand behind.
    #[must_use]
    pub fn behind(mut self, cool_down: Option<CoolDown>) -> Self {
        self.bearer.respect(cool_down);
        self
    }

    /// An address below the mailbox; every segment is percent-encoded, so ids and addresses go in as they are.
    fn url(&self, path: &[&str]) -> Url {
        let mut url = Url::clone(&self.root);
        if let Ok(mut segments) = url.path_segments_mut() {
            match &self.mailbox {
                Some(address) => segments.extend(["users", address.as_ref()]),
                None => segments.push("me"),
            };
            segments.extend(path);
        }
        url
    }

    /// A link out of an answer, if it leads back to where the answer came from.
    fn link(&self, name: &'static str, text: &str) -> Result<Url, GraphError> {
        let foreign = || GraphError::ForeignLink { call: name };
        let link = Url::parse(text).map_err(|_| foreign())?;
        let below = link.path().strip_prefix(self.root.path()).is_some_and(|rest| rest.starts_with('/'));
        let plain = link.username().is_empty() && link.password().is_none();
        if link.origin() == self.root.origin() && below && plain { Ok(link) } else { Err(foreign()) }
    }

    /// Makes the call with immutable ids; anything but `expected` is an error with its meaning.
    async fn send(&self, call: Call, expected: &[u16]) -> Result<Answer, GraphError> {
        let (name, write) = (call.name, call.method != Method::GET);
        let once = call.repeat == crate::http::Repeat::Once;
        let answer = self.bearer.send(call.header(PREFER, IMMUTABLE_IDS)).await?;
        if expected.contains(&answer.status.as_u16()) {
            // Done, and with a wish: a 202 may carry one.
            self.bearer.leave_alone(retry_after(&answer.headers, self.clock.now()));
            return Ok(answer);
        }
        if answer.status.is_success() {
            let what = format!("status {} where {expected:?} is documented", answer.status.as_u16());
            return Err(GraphError::Unexpected { call: name, what, write });
        }
        let refused = GraphError::Refused(Refusal::read(name, &answer, once, self.clock.now()));
        self.bearer.leave_alone(refused.cool_down());
        Err(refused)
    }

    /// All pages of a collection, in the order served, at most `limit` items of it; and whether their ids
    /// are immutable.
    async fn list<T: DeserializeOwned>(
        &self,
        name: &'static str,
        url: Url,
        limit: usize,
    ) -> Result<(Vec<T>, bool), GraphError> {
        self.list_by(|url| Call::get(name, url), url, limit).await
    }

    /// The same, each page with a call of the caller's.
    async fn list_by<T: DeserializeOwned>(
        &self,
        page: impl Fn(Url) -> Call,
        url: Url,
        limit: usize,
    ) -> Result<(Vec<T>, bool), GraphError> {
        let mut name = "";
        let mut items = Vec::new();
        let mut lasting = true;
        let mut next = Some(url);
        for _ in 0..MOST_PAGES {
            let Some(url) = next else { return Ok((items, lasting)) };
            let call = page(url);
            name = call.name;
            let answer = self.send(call, &[200]).await?;
            lasting &= immutable(&answer);
            let page: Page<T> = parse(name, &answer, false)?;
            items.extend(page.value);
            if items.len() >= limit {
                items.truncate(limit);
                return Ok((items, lasting));
            }
            next = page.next.map(|link| self.link(name, &link)).transpose()?;
        }
        let what = format!("no end after {MOST_PAGES} pages");
        Err(GraphError::Unexpected { call: name, what, write: false })
    }
}

fn parse<T: DeserializeOwned>(name: &'static str, answer: &Answer, write: bool) -> Result<T, GraphError> {
    answer.json().map_err(|error| {
        // Not the error's own text: it quotes values, and values are content.
        let what = format!("unreadable answer (line {}, column {})", error.line(), error.column());
        let html =
            answer.headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
        let what = if html { format!("{what}: HTML, so it came from something in between") } else { what };
        GraphError::Unexpected { call: name, what, write }
    })
}

/// Did the mailbox honour `IdType="ImmutableId"`? Some (personal and some shared ones) do not, and then an
/// id lasts until the item is moved.
fn immutable(answer: &Answer) -> bool {
    answer.headers.get_all(PREFERENCE_APPLIED).iter().any(|value| {
        value.to_str().is_ok_and(|text| {
            let text = text.to_ascii_lowercase().replace('"', "");
            text.contains("idtype=immutableid")
        })
    })
}

/// A string literal of `OData`, quotes doubled.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The form of a moment that filters and windows take; UTC said explicitly.
fn moment(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

#[cfg(test)]
pub(super) mod tests {
    use async_trait::async_trait;
    use secrecy::SecretString;

    use super::*;
    use crate::outcome::Failure;

    struct NoTokens;

    #[async_trait]
    impl Tokens for NoTokens {
        async fn access(&self, _: &str) -> Result<SecretString, Failure> {
            Ok("token".into())
        }
        async fn rejected(&self, _: &str, _: Option<String>) -> Result<SecretString, Failure> {
            Ok("token".into())
        }
    }

    pub(in crate::graph) fn graph() -> Graph {
        let http =
            Http::new(&crate::config::Microsoft::default(), Clock::system()).expect("the defaults are good");
        let url = Url::parse("https://graph.microsoft.com").expect("a URL");
        Graph::new(http, Arc::new(NoTokens), Clock::system(), &url)
    }

    #[test]
    fn ids_and_addresses_are_encoded_into_the_path() {
        let graph = graph();
        assert_eq!(
            graph.url(&["messages", "AA/B=="]).as_str(),
            "https://graph.microsoft.com/v1.0/me/messages/AA%2FB=="
        );
        assert_eq!(
            graph.of_mailbox("in?take@acme.example").url(&["events"]).as_str(),
            "https://graph.microsoft.com/v1.0/users/in%3Ftake@acme.example/events"
        );
    }

    #[test]
    fn a_link_to_another_host_path_or_login_is_refused() {
        let graph = graph();
        assert!(graph.link("test", "https://graph.microsoft.com/v1.0/me/messages?$skip=10").is_ok());
        for link in [
            "https://graph.microsoft.com.evil.example/v1.0/me",
            "http://graph.microsoft.com/v1.0/me",
            "https://graph.microsoft.com:444/v1.0/me",
            "https://graph.microsoft.com/beta/me",
            "https://graph.microsoft.com/v1.0evil/me",
            "https://a:b@graph.microsoft.com/v1.0/me",
            "nonsense",
        ] {
            assert!(graph.link("test", link).is_err(), "{link}");
        }
    }

    #[test]
    fn a_quote_in_a_filter_stays_inside_its_literal() {
        assert_eq!(literal("o'neil"), "'o''neil'");
    }
}
