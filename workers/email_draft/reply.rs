//! A draft that answers a message, in the several calls that Exchange needs for it.
//!
//! The invariant: what was true of the original is committed before the reply is created, so that after a
//! crash at any point the draft is found, finished once, and the original is as unread as it was.

use chrono::{DateTime, TimeDelta, Utc};
use followthrough::context::Context;
use followthrough::effect::Intent;
use followthrough::graph::Graph;
use followthrough::graph::mail::Message;
use followthrough::outcome::Failure;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    EmailDraft, LARGEST_REQUEST, Prepared, STEP, attach_missing, missing, prepared, refusal, too_large, whole,
};
use crate::content::text_to_html;

/// What our clock and Exchange's may differ by.
const SKEW: TimeDelta = TimeDelta::minutes(1);
/// An untouched draft was last changed when it was created, give or take its own saving.
const UNTOUCHED: TimeDelta = TimeDelta::seconds(5);

/// What has to be known of the original after a crash; committed with the intent, before Exchange marks it
/// read.
#[derive(Default, Serialize, Deserialize)]
struct Reply {
    unread: bool,
    conversation: Option<String>,
    subject: Option<String>,
    since: DateTime<Utc>,
}

impl EmailDraft {
    pub(super) async fn reply(
        &self,
        cx: &Context,
        graph: &Graph,
        original: &str,
    ) -> Result<Prepared, Failure> {
        let reply = match graph.message(original).await {
            Ok(message) => Reply {
                unread: !message.is_read && !message.is_draft,
                conversation: message.conversation_id,
                subject: message.subject,
                since: cx.now() - SKEW,
            },
            // An earlier try may have answered it before it went; creating the reply says so otherwise.
            Err(error) if error.is_not_found() => Reply::default(),
            Err(error) => return Err(error.into()),
        };
        let request = serde_json::to_string(&reply)
            .map_err(|error| Failure::reject("invalid_request", error.to_string()))?;
        cx.effect(STEP)
            .request(request)
            .perform(
                |intent| self.find_reply(graph, original, intent),
                |intent| async move {
                    let draft = match graph.create_reply(original).await {
                        Ok(draft) => draft,
                        Err(error) if error.is_not_found() => {
                            return Err(missing(graph, "reply_to_message").await);
                        }
                        Err(error) => return Err(error.into()),
                    };
                    self.complete(graph, original, &draft, &intent).await
                },
            )
            .await
    }

    /// What an earlier try left: a marked draft, whose last touches may be missing, or a bare one.
    async fn find_reply(
        &self,
        graph: &Graph,
        original: &str,
        intent: Intent,
    ) -> Result<Option<Prepared>, Failure> {
        if let Some(draft) = graph.settle_copies(&intent.id.to_string()).await? {
            if !draft.is_draft {
                return Ok(Some(prepared(draft)));
            }
            let reply = read(&intent)?;
            self.restore_unread(graph, original, &reply).await?;
            return whole(graph, &draft.id.clone(), self.with_files(graph, draft, false)).await.map(Some);
        }
        let reply = read(&intent)?;
        let Some(conversation) = &reply.conversation else { return Ok(None) };
        let bare = graph.unmarked_replies(conversation, reply.since).await?;
        match bare.into_iter().find(untouched) {
            Some(draft) => self.complete(graph, original, &draft, &intent).await.map(Some),
            None => Ok(None),
        }
    }

    /// Turns the bare reply into the draft that was asked for.
    async fn complete(
        &self,
        graph: &Graph,
        original: &str,
        draft: &Message,
        intent: &Intent,
    ) -> Result<Prepared, Failure> {
        whole(graph, &draft.id, self.fill(graph, original, draft, intent)).await
    }

    async fn fill(
        &self,
        graph: &Graph,
        original: &str,
        draft: &Message,
        intent: &Intent,
    ) -> Result<Prepared, Failure> {
        let reply = read(intent)?;
        self.restore_unread(graph, original, &reply).await?;
        let quoted = match &draft.body {
            Some(body) => Some(body.clone()),
            None => graph.message_with_body(&draft.id).await?.body,
        };
        let html = match quoted {
            Some(body) if body.content_type.eq_ignore_ascii_case("html") => {
                above(&self.body.html(), &body.content)
            }
            Some(body) => above(&self.body.html(), &text_to_html(&body.content)),
            None => self.body.html(),
        };
        let mut changes = self.envelope(&intent.id.to_string());
        changes["body"] = json!({ "contentType": "HTML", "content": html });
        if same_subject(&self.subject, reply.subject.as_deref().unwrap_or_default())
            && let Some(fields) = changes.as_object_mut()
        {
            fields.remove("subject");
        }
        if changes.to_string().len() > LARGEST_REQUEST {
            return Err(refusal(&too_large("body")));
        }
        let message = graph.update_message(&draft.id, &changes).await?;
        self.with_files(graph, message, !intent.repeated).await
    }

    async fn with_files(&self, graph: &Graph, draft: Message, fresh: bool) -> Result<Prepared, Failure> {
        if self.attachments.is_empty() {
            return Ok(prepared(draft));
        }
        attach_missing(graph, &draft.id, self.small().chain(self.large()), fresh).await?;
        Ok(prepared(graph.message(&draft.id).await?))
    }

    /// Creating a reply marks the original read; nobody has read it.
    async fn restore_unread(&self, graph: &Graph, original: &str, reply: &Reply) -> Result<(), Failure> {
        if !reply.unread {
            return Ok(());
        }
        match graph.update_message(original, &json!({ "isRead": false })).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn read(intent: &Intent) -> Result<Reply, Failure> {
    serde_json::from_str(&intent.request)
        .map_err(|error| Failure::reject("invalid_request", error.to_string()))
}

/// A reply that Exchange made and nobody wrote into. Somebody's own reply in the same conversation and
/// minute looks like it only before the first word is typed.
fn untouched(draft: &Message) -> bool {
    let (Some(created), Some(changed)) = (draft.created_date_time, draft.last_modified_date_time) else {
        return false;
    };
    let text = draft.body.as_ref().map(|body| own_text(&body.content)).unwrap_or_default();
    changed - created <= UNTOUCHED && text.is_empty()
}

/// The words above the quoted message, without markup.
fn own_text(html: &str) -> String {
    let lower = html.to_ascii_lowercase();
    let from = lower.find("<body").and_then(|at| Some(at + lower[at..].find('>')? + 1)).unwrap_or(0);
    let quote = ["<hr", "id=\"divrplyfwdmsg\"", "id=\"appendonsend\"", "<blockquote", "from:"]
        .iter()
        .filter_map(|mark| Some(from + lower[from..].find(mark)?))
        .min();
    let Some(quote) = quote else { return "no quote, so not a bare reply".to_owned() };
    let mut text = String::new();
    let mut inside = false;
    for c in html[from..quote].chars() {
        match c {
            '<' => inside = true,
            '>' => inside = false,
            c if !inside => text.push(c),
            _ => {}
        }
    }
    text.replace("&nbsp;", " ").trim().to_owned()
}

/// The new text above the quoted thread, inside the thread's own document where it is one.
fn above(new: &str, quoted: &str) -> String {
    let new = inner(new);
    let lower = quoted.to_ascii_lowercase();
    let body = lower.find("<body").and_then(|at| Some(at + lower[at..].find('>')? + 1)).unwrap_or(0);
    format!("{}<div>{new}</div><br>{}", &quoted[..body], &quoted[body..])
}

/// The content of a document's body, or all of what is no document.
fn inner(html: &str) -> &str {
    let lower = html.to_ascii_lowercase();
    let start = lower.find("<body").and_then(|at| Some(at + lower[at..].find('>')? + 1));
    match start {
        None => html,
        Some(start) => &html[start..lower.rfind("</body").filter(|end| *end >= start).unwrap_or(html.len())],
    }
}

/// Equal but for reply prefixes of any language (up to three letters and a colon), case and spaces.
fn same_subject(ours: &str, theirs: &str) -> bool {
    fn bare(subject: &str) -> String {
        let mut subject = subject.trim();
        while let Some((prefix, rest)) = subject.split_once(':') {
            let word = prefix.chars().count();
            if !(1..=3).contains(&word) || !prefix.chars().all(char::is_alphabetic) {
                break;
            }
            subject = rest.trim_start();
        }
        subject.to_lowercase()
    }
    bare(ours) == bare(theirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLY: &str = "<html><head></head><body><div><br></div><hr tabindex=\"-1\"><div id=\"divRplyFwdMsg\">\
        <b>From:</b> Bob</div><div>Shall we?</div></body></html>";

    #[test]
    fn the_new_text_stands_above_the_quoted_thread() {
        let html = above("<html><body><p>Yes.</p></body></html>", REPLY);
        assert!(
            html.starts_with("<html><head></head><body><div><p>Yes.</p></div><br><div><br></div><hr"),
            "{html}"
        );
        assert!(html.ends_with("<div>Shall we?</div></body></html>"));
        assert_eq!(above("a", "b"), "<div>a</div><br>b");
    }

    #[test]
    fn only_a_bare_reply_is_taken_for_ours() {
        assert_eq!(own_text(REPLY), "");
        assert_eq!(own_text(&above("Dear Bob,", REPLY)), "Dear Bob,");
        assert_ne!(own_text("<html><body></body></html>"), "");
        let draft = |seconds: u32, html: &str| -> Message {
            serde_json::from_value(json!({
                "id": "d", "isDraft": true, "createdDateTime": "2026-11-24T12:00:00Z",
                "lastModifiedDateTime": format!("2026-11-24T12:00:{seconds:02}Z"),
                "body": {"contentType": "html", "content": html},
            }))
            .expect("a message")
        };
        assert!(untouched(&draft(1, REPLY)));
        assert!(!untouched(&draft(40, REPLY)));
        assert!(!untouched(&draft(1, &above("Dear Bob,", REPLY))));
    }

    #[test]
    fn a_thread_keeps_its_subject_unless_another_is_given() {
        for (ours, theirs) in [("RE: Offer", "Offer"), ("AW: Re: offer ", "RE: Offer"), ("Offer", "Offer")] {
            assert!(same_subject(ours, theirs), "{ours}");
        }
        assert!(!same_subject("Offer 2", "Offer"));
        assert!(!same_subject("Minutes: Offer", "Offer"));
    }
}
