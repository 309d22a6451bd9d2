//! Events: created from fixed bytes under a transaction id, found again by reading their window.
//!
//! The invariant: the same event is asked for with the same bytes every time. What happens to the same
//! transaction id with other bytes is documented nowhere.
//! <https://learn.microsoft.com/graph/api/user-post-events>

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::{Graph, GraphError, immutable, moment, parse};
use crate::http::{Call, add_query};

/// Far more events than a person has in one meeting's time.
const MOST_IN_WINDOW: usize = 1_000;
const SUMMARY: &str = "id,iCalUId,webLink,transactionId,isOnlineMeeting,onlineMeeting,isCancelled";

/// What is kept of an event: ids and links, no content.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    pub id: String,
    #[serde(rename = "iCalUId")]
    pub ical_uid: Option<String>,
    pub web_link: Option<String>,
    pub transaction_id: Option<String>,
    #[serde(default)]
    pub is_cancelled: bool,
    online_meeting: Option<OnlineMeeting>,
    /// Does the id survive a move to another calendar? Not in every mailbox.
    #[serde(skip)]
    pub immutable: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OnlineMeeting {
    join_url: Option<String>,
}

impl Event {
    /// The link to join; it can lag behind the event.
    pub fn join_url(&self) -> Option<&str> {
        self.online_meeting.as_ref()?.join_url.as_deref()
    }
}

impl Graph {
    /// Creates an event from exactly these bytes. Repeated with the same bytes and transaction id, it answers
    /// 201 again and makes no second event, so a 201 does not say that the event is new.
    pub async fn create_event(&self, event: Bytes) -> Result<Event, GraphError> {
        const NAME: &str = "graph.create_event";
        let call = Call::post(NAME, self.url(&["events"])).bytes("application/json; charset=utf-8", event);
        let answer = self.send(call, &[201]).await?;
        let mut event: Event = parse(NAME, &answer, true)?;
        event.immutable = immutable(&answer);
        Ok(event)
    }

    /// The event of `transaction` between two moments. Compared here: a filter on the id is not documented.
    pub async fn find_event(
        &self,
        start: DateTime<Utc>,
        end: DateTime<Utc>,
        transaction: &str,
    ) -> Result<Option<Event>, GraphError> {
        let mut url = self.url(&["calendar", "calendarView"]);
        let (start, end) = (moment(start), moment(end));
        add_query(
            &mut url,
            &[("startDateTime", &start), ("endDateTime", &end), ("$select", SUMMARY), ("$top", "100")],
        );
        let (events, lasting) = self.list::<Event>("graph.find_event", url, MOST_IN_WINDOW).await?;
        let same = |event: &Event| {
            event.transaction_id.as_deref().is_some_and(|theirs| theirs.eq_ignore_ascii_case(transaction))
        };
        Ok(events.into_iter().find(same).map(|event| Event { immutable: lasting, ..event }))
    }

    pub async fn event(&self, id: &str) -> Result<Event, GraphError> {
        const NAME: &str = "graph.get_event";
        let mut url = self.url(&["events", id]);
        add_query(&mut url, &[("$select", SUMMARY)]);
        let answer = self.send(Call::get(NAME, url), &[200]).await?;
        let mut event: Event = parse(NAME, &answer, false)?;
        event.immutable = immutable(&answer);
        Ok(event)
    }
}
