//! Sending a draft, and finding out what became of one.
//!
//! The invariant: a draft is sent by one call, made once, and its fate is read from the mailbox, never
//! guessed from an answer. 202 means accepted: the mail is sent when its copy stands in Sent Items.
//! <https://learn.microsoft.com/graph/outlook-things-to-know-about-send-mail>

use serde::{Deserialize, Serialize};

use super::mail::{Message, has_marker};
use super::{Graph, GraphError, literal};
use crate::http::Call;

/// What a draft can be found by after it was sent. Microsoft promises the immutable id, the field has seen
/// each of the others survive where that one did not.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Traces {
    pub id: String,
    pub internet_message_id: Option<String>,
    /// The effect that made it, if one of ours did.
    pub marker: Option<String>,
    /// As it was before it was sent: while it is the same, nothing has touched the draft.
    pub change_key: Option<String>,
}

/// What became of a draft.
#[derive(Debug)]
pub enum Fate {
    Sent(Message),
    Draft(Message),
    /// Neither the draft nor a sent copy is to be found.
    Gone,
}

impl Message {
    pub fn traces(&self) -> Traces {
        Traces {
            id: self.id.clone(),
            internet_message_id: self.internet_message_id.clone(),
            marker: self.marker().map(str::to_owned),
            change_key: self.change_key.clone(),
        }
    }
}

impl Graph {
    /// Hands a draft to transport. Whatever comes back but the 202, the mail may have left: even a 429.
    pub async fn send_draft(&self, id: &str) -> Result<(), GraphError> {
        let call = Call::post("graph.send_draft", self.url(&["messages", id, "send"]));
        self.send(call, &[202]).await.map(drop)
    }

    /// Looks for a draft and for its sent copy. An error that is "not found" speaks of the mailbox.
    pub async fn fate(&self, of: &Traces) -> Result<Fate, GraphError> {
        const SENT: &[&str] = &["mailFolders", "sentitems", "messages"];
        let mut draft = None;
        match self.message(&of.id).await {
            Ok(message) if !message.is_draft => return Ok(Fate::Sent(message)),
            Ok(message) => draft = Some(message),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        let marker = of.marker.as_deref().map(has_marker);
        let name = of.internet_message_id.as_deref();
        let name = name.map(|name| format!("internetMessageId eq {}", literal(name)));
        // The whole mailbox last: it is slow, and a rule may have filed the copy anywhere.
        for (place, filter) in [(SENT, &marker), (SENT, &name), (&["messages"], &name)] {
            let Some(filter) = filter else { continue };
            for message in self.filtered("graph.find_sent", place, filter).await? {
                if !message.is_draft {
                    return Ok(Fate::Sent(message));
                }
                draft.get_or_insert(message);
            }
        }
        Ok(draft.map_or(Fate::Gone, Fate::Draft))
    }
}
