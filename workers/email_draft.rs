//! `email.draft`: a draft in the user's own mailbox or in a shared one, new or as a reply.
//!
//! The invariant: one job leaves one draft, marked with the effect's id.

mod files;
mod reply;

use std::fmt::Write as _;
use std::time::Duration;

use followthrough::context::Context;
use followthrough::graph::mail::{self, Message};
use followthrough::graph::{Graph, GraphError};
use followthrough::job::{Gate, Invalid, Job, Spec};
use followthrough::oauth::scopes::Integration;
use followthrough::outcome::{Cause, Classify as _, Disposition, Failure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::content::{Address, Body, check_address, check_addresses, check_line};
use crate::mailbox::shown;
pub use files::Attached;
use files::attach_missing;

/// <https://learn.microsoft.com/graph/api/resources/message>
const MOST_RECIPIENTS: usize = 500;
/// Graph takes about 4 MB in one request, encoded.
const LARGEST_REQUEST: usize = 4_000_000;

/// The effect that makes a draft; its id marks the draft.
pub(crate) const STEP: &str = "draft";

/// Prepares an e-mail in Drafts, as the user or in a shared mailbox. Nothing is sent.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EmailDraft {
    /// At least one; with `cc` and `bcc` at most 500.
    pub to: Vec<Address>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cc: Vec<Address>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bcc: Vec<Address>,
    /// In a reply, one that differs from the thread's (but for `Re:` and its like) replaces it, which
    /// starts a new conversation in Outlook.
    pub subject: String,
    pub body: Body,
    /// The id of the message to answer: the draft quotes it and joins its conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to_message: Option<String>,
    /// The address of a shared mailbox whose Drafts it goes to; the user's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mailbox: Option<String>,
    /// Files below 3 MB and the text together: below 4 MB once encoded. Larger files one by one, in the user's
    /// own mailbox only; a job has at most 8 MiB, which is about 5.9 MB of files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attached>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub importance: Option<Importance>,
}

#[derive(Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Importance {
    Low,
    Normal,
    High,
}

/// The draft as it was left: whoever sends it later must find it unchanged.
#[derive(Serialize, Deserialize)]
pub(crate) struct Prepared {
    #[serde(flatten)]
    pub drafted: EmailDrafted,
    #[serde(default)]
    pub change_key: Option<String>,
}

/// The draft that was made.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct EmailDrafted {
    /// Survives moves between folders where the mailbox supports immutable ids (`immutable_id`).
    pub message_id: String,
    pub immutable_id: bool,
    pub internet_message_id: Option<String>,
    pub conversation_id: Option<String>,
    /// Opens the draft in Outlook on the web.
    pub web_link: Option<String>,
}

impl Job for EmailDraft {
    const SPEC: Spec = Spec {
        kind: "email.draft",
        integration: Some(Integration::OutlookEmail),
        scopes: &["Mail.ReadWrite"],
        gate: Gate::Mailbox,
        permits: 1,
        duty: None,
        attempts: 8,
        timeout: Duration::from_mins(2),
        tool_pattern: "email.draft",
        example: r#"{"to": [{"email": "bob@contoso.example", "name": "Bob"}], "subject": "What we agreed on",
            "body": {"format": "markdown", "content": "Hi Bob,\n\n**next step:** we send the offer by Friday.\n"},
            "attachments": [{"name": "notes.txt", "content_type": "text/plain", "content_base64": "SGVsbG8="}],
            "importance": "normal"}"#,
    };
    type Result = EmailDrafted;

    fn check(&self) -> Result<(), Invalid> {
        if self.to.is_empty() {
            return Err(Invalid::new("to", "expected at least one recipient"));
        }
        for (name, addresses) in [("to", &self.to), ("cc", &self.cc), ("bcc", &self.bcc)] {
            check_addresses(addresses, name)?;
        }
        if self.to.len() + self.cc.len() + self.bcc.len() > MOST_RECIPIENTS {
            let message = format!("expected at most {MOST_RECIPIENTS} recipients in to, cc and bcc together");
            return Err(Invalid::new("to", message).code("too_many_recipients"));
        }
        check_line(&self.subject, "subject", 998)?;
        if let Some(mailbox) = &self.mailbox {
            check_address(mailbox, "mailbox")?;
        }
        if let Some(original) = &self.reply_to_message {
            check_message_id(original, "reply_to_message")?;
        }
        let encoded: usize = self.small().map(|file| file.content_base64.len()).sum();
        if encoded + self.body.content.len() > LARGEST_REQUEST {
            return Err(too_large("attachments"));
        }
        let shared = self.mailbox.is_some();
        let mut files = self.attachments.iter().enumerate();
        files.try_for_each(|(i, file)| file.check(&format!("attachments[{i}]"), shared))
    }

    fn mailbox(&self) -> Option<&str> {
        self.mailbox.as_deref()
    }

    fn integration(&self) -> Option<Integration> {
        Some(if self.mailbox.is_some() { Integration::SharedMailbox } else { Integration::OutlookEmail })
    }

    fn scopes(&self) -> &'static [&'static str] {
        if self.mailbox.is_some() { &["Mail.ReadWrite.Shared"] } else { Self::SPEC.scopes }
    }

    fn render(&self) -> String {
        format!("Draft of an e-mail: {}", self.shown())
    }

    async fn run(&self, cx: &Context) -> Result<EmailDrafted, Failure> {
        let graph = graph_of(cx, self.mailbox.as_deref())?;
        Ok(self.prepare(cx, &graph).await?.drafted)
    }
}

/// Graph as the user, on the mailbox that a payload names.
pub(crate) fn graph_of(cx: &Context, mailbox: Option<&str>) -> Result<Graph, Failure> {
    let graph = cx.graph()?;
    Ok(mailbox.map_or_else(|| graph.clone(), |mailbox| graph.of_mailbox(mailbox)))
}

impl EmailDraft {
    /// The subject and what follows it, as a person reads it.
    pub(crate) fn shown(&self) -> String {
        let mut text = format!("{}\n", self.subject);
        if let Some(mailbox) = &self.mailbox {
            let _ = writeln!(text, "In: {mailbox}");
        }
        for (name, addresses) in [("To", &self.to), ("Cc", &self.cc), ("Bcc", &self.bcc)] {
            if !addresses.is_empty() {
                let shown: Vec<String> = addresses.iter().map(Address::shown).collect();
                let _ = writeln!(text, "{name}: {}", shown.join(", "));
            }
        }
        for file in &self.attachments {
            let _ = writeln!(text, "Attached: {} ({})", file.name, file.content_type);
        }
        if self.reply_to_message.is_some() {
            text.push_str("As a reply, with the thread quoted below.\n");
        }
        text + "\n" + &self.body.content
    }

    /// Makes the draft, complete, in the step `draft` of the job.
    pub(crate) async fn prepare(&self, cx: &Context, graph: &Graph) -> Result<Prepared, Failure> {
        let made = match &self.reply_to_message {
            None => self.draft(cx, graph).await,
            Some(original) => self.reply(cx, graph, original).await,
        };
        shown(cx, self.mailbox.as_deref(), &made, |known| &mut known.drafts).await;
        made
    }

    async fn draft(&self, cx: &Context, graph: &Graph) -> Result<Prepared, Failure> {
        let message = self.message(&cx.effect_id(STEP).to_string())?;
        cx.effect(STEP)
            .perform(
                |intent| async move {
                    let Some(draft) = graph.settle_copies(&intent.id.to_string()).await? else {
                        return Ok(None);
                    };
                    self.with_large_files(graph, draft, false).await.map(Some)
                },
                |intent| async move {
                    let made = graph.create_draft(&message).await.map_err(no_drafts)?;
                    if !intent.repeated {
                        return self.with_large_files(graph, made, true).await;
                    }
                    // A first try that became visible only now would leave a second draft behind.
                    let kept = graph.settle_copies(&intent.id.to_string()).await.unwrap_or_default();
                    self.with_large_files(graph, kept.unwrap_or(made), false).await
                },
            )
            .await
    }

    /// Large files come after the create, which brought everything else.
    async fn with_large_files(
        &self,
        graph: &Graph,
        draft: Message,
        fresh: bool,
    ) -> Result<Prepared, Failure> {
        if !draft.is_draft || self.large().next().is_none() {
            return Ok(prepared(draft));
        }
        let files = self.small().filter(|_| !fresh).chain(self.large());
        whole(graph, &draft.id, async {
            attach_missing(graph, &draft.id, files, fresh).await?;
            Ok(prepared(graph.message(&draft.id).await?))
        })
        .await
    }

    fn small(&self) -> impl Iterator<Item = &Attached> {
        self.attachments.iter().filter(|file| !file.is_large())
    }

    fn large(&self) -> impl Iterator<Item = &Attached> {
        self.attachments.iter().filter(|file| file.is_large())
    }

    /// Everything but the text and the files.
    fn envelope(&self, marker: &str) -> Value {
        let list = |addresses: &[Address]| -> Value { addresses.iter().map(Address::recipient).collect() };
        let mut message = json!({
            "subject": self.subject,
            "toRecipients": list(&self.to),
            "ccRecipients": list(&self.cc),
            "bccRecipients": list(&self.bcc),
            "singleValueExtendedProperties": mail::marked(marker),
        });
        if let Some(importance) = self.importance {
            message["importance"] = json!(importance);
        }
        if let Some(mailbox) = &self.mailbox {
            message["from"] = json!({ "emailAddress": { "address": mailbox } });
        }
        message
    }

    fn message(&self, marker: &str) -> Result<Value, Failure> {
        let mut message = self.envelope(marker);
        message["body"] = self.body.item_body();
        let files: Vec<Value> = self.small().map(Attached::graph).collect::<Result<_, _>>()?;
        if !files.is_empty() {
            message["attachments"] = json!(files);
        }
        if message.to_string().len() > LARGEST_REQUEST {
            return Err(refusal(&too_large("attachments")));
        }
        Ok(message)
    }
}

pub(crate) fn check_message_id(id: &str, path: &str) -> Result<(), Invalid> {
    if id.is_empty() || id.len() > 1_024 || id.chars().any(char::is_control) {
        return Err(Invalid::new(path, "expected the id of a message"));
    }
    Ok(())
}

fn too_large(path: &str) -> Invalid {
    let message = "the text and the files below 3 MB must be smaller than 4 MB together, once encoded";
    Invalid::new(path, message).code("attachment_too_large")
}

pub(crate) fn refusal(invalid: &Invalid) -> Failure {
    Failure::reject(invalid.code, format!("payload.{}: {}", invalid.path, invalid.message))
}

/// Works on a draft that is there but not complete. From here on something exists: a failure must not be taken
/// for "nothing was written", and a hopeless one takes the half draft with it.
async fn whole<T>(
    graph: &Graph,
    draft: &str,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    match work.await {
        Err(failure) if failure.disposition == Disposition::Reject => {
            if let Err(error) = graph.delete_draft(draft).await {
                let left = format!("{}; a half draft is left behind ({error})", failure.message);
                return Err(Failure { message: left, ..failure });
            }
            Err(failure)
        }
        Err(failure) => Err(Failure { ambiguous: true, ..failure }),
        done => done,
    }
}

/// What "not found" means of a message that the payload names at `path`: there is none, or the mailbox is
/// closed to the user, of which Exchange says the same.
pub(crate) async fn missing(graph: &Graph, path: &str) -> Failure {
    match graph.sees_drafts().await {
        Ok(true) => Failure::reject("not_found", format!("payload.{path}: there is no such message")),
        Ok(false) => no_access(),
        Err(error) => error.into(),
    }
}

pub(crate) fn no_access() -> Failure {
    let message = "Exchange shows the user nothing of this mailbox: Full Access is missing";
    Failure::park(Cause::NeedsAdmin, "no_mailbox_access", message)
}

/// Exchange says "not found" of a folder that the user may not write to.
fn no_drafts(error: GraphError) -> Failure {
    if error.is_not_found() {
        return Failure { request_id: error.request_id(), ..no_access() };
    }
    error.into()
}

fn prepared(message: Message) -> Prepared {
    Prepared { change_key: message.change_key.clone(), drafted: message.into() }
}

impl From<Message> for EmailDrafted {
    fn from(message: Message) -> Self {
        Self {
            immutable_id: message.immutable,
            message_id: message.id,
            internet_message_id: message.internet_message_id,
            conversation_id: message.conversation_id,
            web_link: message.web_link,
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;

    use super::*;

    fn job(changes: &Value) -> Result<EmailDraft, Invalid> {
        let mut payload: Value = serde_json::from_str(EmailDraft::SPEC.example).expect("the example is JSON");
        for (name, value) in changes.as_object().expect("fields") {
            payload[name] = value.clone();
        }
        let job: EmailDraft = serde_json::from_value(payload).expect("the shape is right");
        job.check().map(|()| job)
    }

    #[test]
    fn the_example_is_a_good_payload_and_nothing_of_it_is_lost() {
        let job = job(&json!({})).unwrap_or_else(|invalid| panic!("{invalid:?}"));
        let example: Value = serde_json::from_str(EmailDraft::SPEC.example).expect("JSON");
        assert_eq!(serde_json::to_value(&job).expect("serializable"), example);
        let shown = job.render();
        assert!(shown.contains("Bob <bob@contoso.example>") && shown.contains("notes.txt"), "{shown}");
    }

    #[test]
    fn each_fault_is_named_with_its_path() {
        let many: Vec<Value> = (0..501).map(|i| json!({"email": format!("a{i}@x.example")})).collect();
        let file = |name: &str, content: &[u8]| json!([{"name": name, "content_type": "text/plain", "content_base64": BASE64_STANDARD.encode(content)}]);
        for (changes, path, code) in [
            (json!({"to": []}), "to", "invalid_payload"),
            (json!({"to": many}), "to", "too_many_recipients"),
            (json!({"cc": [{"email": "a@x"}, {"email": "nobody"}]}), "cc[1].email", "invalid_address"),
            (json!({"subject": "a\nb"}), "subject", "invalid_payload"),
            (json!({"mailbox": "intake"}), "mailbox", "invalid_address"),
            (json!({"reply_to_message": ""}), "reply_to_message", "invalid_payload"),
            (json!({"attachments": file("a/b", b"x")}), "attachments[0].name", "invalid_payload"),
            (
                json!({"attachments": file("a", &vec![0; files::LARGE - 1])}),
                "attachments",
                "attachment_too_large",
            ),
            (
                json!({"mailbox": "intake@acme.example", "attachments": file("a", &vec![0; files::LARGE])}),
                "attachments[0].content_base64",
                "attachment_too_large_for_shared_mailbox",
            ),
            (
                json!({"attachments": [{"name": "a", "content_type": "text/plain", "content_base64": "!"}]}),
                "attachments[0].content_base64",
                "invalid_payload",
            ),
        ] {
            let invalid = job(&changes).err().unwrap_or_else(|| panic!("{path} should be refused"));
            assert_eq!((invalid.path.as_str(), invalid.code), (path, code));
        }
    }

    #[test]
    fn a_draft_is_one_request_with_its_marker_and_files() {
        let job =
            job(&json!({"mailbox": "intake@acme.example"})).unwrap_or_else(|invalid| panic!("{invalid:?}"));
        let message = job.message("e-1").unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(message["singleValueExtendedProperties"][0]["value"], "e-1");
        assert_eq!(message["attachments"][0]["contentBytes"], "SGVsbG8=");
        assert_eq!(message["from"]["emailAddress"]["address"], "intake@acme.example");
        assert!(
            message["body"]["content"]
                .as_str()
                .is_some_and(|html| html.contains("<strong>next step:</strong>"))
        );
    }
}
