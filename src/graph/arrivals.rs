//! Messages of a folder by time of arrival, page by page.
//!
//! The invariant: each page is a window of its own that begins at the time where the last one ended, so mail that comes
//! and goes meanwhile moves nothing. Only within one second that fills a page does Microsoft's link, an offset, lead on.
//! <https://learn.microsoft.com/graph/api/user-list-messages>

use chrono::{DateTime, Utc};
use http::StatusCode;
use url::Url;

use super::changes::{PAGE, Page, Told, items, selected, smaller};
use super::{Graph, GraphError, moment, parse};
use crate::http::{Call, add_query};

const LIST: &str = "graph.list_arrivals";
/// Empty pages with a next link are normal, and so is one that leads back to itself; so many in a row are not.
const STANDSTILL: usize = 20;

/// Which arrivals, and in which order. Both ends are included: Exchange compares whole seconds.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    pub from: DateTime<Utc>,
    pub to: DateTime<Utc>,
    pub newest_first: bool,
}

/// Where a list goes on.
#[derive(Debug, Clone)]
pub struct Place {
    window: Window,
    top: usize,
    /// With all that is kept of a message.
    whole: bool,
    /// Within the second at which the window begins.
    link: Option<String>,
    /// How often the link has led back to itself.
    repeats: usize,
}

/// Messages by time of arrival.
#[derive(Debug)]
pub struct Arrivals {
    pub items: Vec<Told>,
    /// Where there are more.
    pub next: Option<Place>,
    pub requests: usize,
}

impl From<Window> for Place {
    fn from(window: Window) -> Self {
        Self { window, top: PAGE, whole: true, link: None, repeats: 0 }
    }
}

impl Place {
    /// Everything on the near side of this time was told.
    pub fn at(&self) -> DateTime<Utc> {
        if self.window.newest_first { self.window.to } else { self.window.from }
    }

    /// The place behind a page that was had from here.
    fn beyond(self, last: Option<DateTime<Utc>>, link: String) -> Self {
        let window = match last {
            Some(last) if self.window.newest_first && last < self.window.to => {
                Window { to: last, ..self.window }
            }
            Some(last) if !self.window.newest_first && last > self.window.from => {
                Window { from: last, ..self.window }
            }
            _ => {
                let repeats = if self.link.as_deref() == Some(&link) { self.repeats + 1 } else { 0 };
                return Self { link: Some(link), repeats, ..self };
            }
        };
        window.into()
    }

    /// The same, with less to a page; `None` when it cannot be less. A link keeps its size: the second begins anew.
    fn with_less(self) -> Option<Self> {
        let (top, whole) = if self.top > 1 { (smaller(self.top), self.whole) } else { (1, false) };
        (self.whole || top < self.top).then_some(Self { top, whole, link: None, repeats: 0, ..self })
    }
}

impl Graph {
    /// The next page of a list.
    pub async fn arrivals(&self, folder: &str, from: impl Into<Place>) -> Result<Arrivals, GraphError> {
        let mut place = from.into();
        let mut requests = 0;
        let (mut items, next) = loop {
            let url = match &place.link {
                Some(link) => self.link(LIST, link)?,
                None => self.window(folder, &place),
            };
            match self.page_with_items(url, &mut requests).await {
                // One bad item fails its whole page: a smaller one gets past it, or shows which it is.
                Err(error) if error.is_too_much() => {
                    let whole = place.whole;
                    place = place.with_less().ok_or_else(|| error.clone())?;
                    if whole && !place.whole {
                        // It stands in the way of all that is behind it.
                        tracing::warn!(%error, "a message cannot be had whole; its content is left out");
                    }
                }
                listed => break listed?,
            }
        };
        let last = items.last().and_then(Told::received);
        if !place.whole {
            // One after the other, all but the one that was too much are had whole.
            for item in &mut items {
                requests += 1;
                if let Some(told) = self.look_for(&item.id).await? {
                    *item = told;
                }
            }
        }
        let next = next.map(|link| place.beyond(last, link));
        if next.as_ref().is_some_and(|next| next.repeats > STANDSTILL) {
            return Err(nowhere("a next link that leads back to itself"));
        }
        Ok(Arrivals { items, next, requests })
    }

    fn window(&self, folder: &str, place: &Place) -> Url {
        let Window { from, to, newest_first } = place.window;
        let mut url = self.url(&["mailFolders", folder, "messages"]);
        let filter = format!("receivedDateTime ge {} and receivedDateTime le {}", moment(from), moment(to));
        let order = if newest_first { "receivedDateTime desc" } else { "receivedDateTime asc" };
        let top = place.top.to_string();
        add_query(&mut url, &[("$filter", &filter), ("$orderby", order), ("$top", &top)]);
        add_query(&mut url, selected(place.whole));
        url
    }

    /// The first page that is not empty, and where more follow.
    async fn page_with_items(
        &self,
        url: Url,
        requests: &mut usize,
    ) -> Result<(Vec<Told>, Option<String>), GraphError> {
        let mut url = url;
        for _ in 0..STANDSTILL {
            *requests += 1;
            let page: Page = parse(LIST, &self.send(Call::get(LIST, url), &[200]).await?, false)?;
            match page.next {
                Some(link) if page.value.is_empty() => url = self.link(LIST, &link)?,
                next => return Ok((items(LIST, page.value)?, next)),
            }
        }
        Err(nowhere("empty pages only"))
    }

    /// How many messages of a folder arrived in a span of time, its end excluded; `None` where Exchange does not say, or
    /// the folder is gone.
    pub async fn count_arrivals(
        &self,
        folder: &str,
        (from, to): (DateTime<Utc>, DateTime<Utc>),
    ) -> Result<Option<i64>, GraphError> {
        const NAME: &str = "graph.count_arrivals";
        let mut url = self.url(&["mailFolders", folder, "messages"]);
        let filter = format!("receivedDateTime ge {} and receivedDateTime lt {}", moment(from), moment(to));
        add_query(&mut url, &[("$filter", &filter), ("$count", "true"), ("$top", "1"), ("$select", "id")]);
        match self.send(Call::get(NAME, url), &[200]).await {
            Ok(answer) => Ok(parse::<Page>(NAME, &answer, false)?.count),
            Err(error) if error.is_not_found() || error.status() == Some(StatusCode::BAD_REQUEST) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn nowhere(what: &str) -> GraphError {
    GraphError::Unexpected { call: LIST, what: what.to_owned(), write: false }
}
