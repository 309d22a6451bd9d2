//! The content of what is attached to a message.
//!
//! The invariant: no more is held in memory than the caller asked for.
//! <https://learn.microsoft.com/graph/api/attachment-get>: `$value` of a file is its bytes, of an item its MIME (iCalendar
//! of an event, vCard of a contact); a reference has none and is answered with 405.

use std::time::Duration;

use bytes::Bytes;

use super::{Graph, GraphError};
use crate::http::{Call, HttpError};

/// A refusal is read whatever may be kept.
const REFUSAL: usize = 64 * 1024;
/// Live mail is waiting.
const PATIENCE: Duration = Duration::from_secs(10);
const SLOWEST_PER_SECOND: usize = 1024 * 1024;

impl Graph {
    /// At most `most` bytes, otherwise [`HttpError::TooLarge`]: the size that is told of an item is not that of its MIME.
    /// `None` when it is not there any more.
    pub async fn attachment_content(
        &self,
        message: &str,
        attachment: &str,
        most: usize,
    ) -> Result<Option<Bytes>, GraphError> {
        const NAME: &str = "graph.get_attachment";
        let url = self.url(&["messages", message, "attachments", attachment, "$value"]);
        let timeout = PATIENCE + Duration::from_secs((most / SLOWEST_PER_SECOND) as u64);
        let call = Call { max_answer: most.max(REFUSAL), timeout, ..Call::get(NAME, url) };
        match self.send(call, &[200]).await {
            Ok(answer) if answer.body.len() > most => {
                Err(GraphError::Http(HttpError::TooLarge { call: NAME, limit: most, write: false }))
            }
            Ok(answer) => Ok(Some(answer.body)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}
