//! `email.send`: one e-mail that a person confirmed, new or as the draft that it is.
//!
//! The invariant: an e-mail leaves at most once. It is a draft first, and the draft is sent by one call whose
//! intent is committed before it; after a call that nobody answered the mailbox is asked, and the call is made
//! again only when the draft stands there untouched.

mod letter;

use std::time::Duration;

use chrono::TimeDelta;
use followthrough::context::Context;
use followthrough::effect::Intent;
use followthrough::graph::mail::Message;
use followthrough::graph::sending::{Fate, Traces};
use followthrough::graph::{Graph, GraphError};
use followthrough::job::{Gate, Invalid, Job, Spec};
use followthrough::oauth::scopes::Integration;
use followthrough::outcome::{Cause, Classify as _, Disposition, Failure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::email_draft::{self, EmailDrafted, Prepared, graph_of, missing, no_access};
use crate::mailbox::shown;
pub use letter::{Confirmation, EmailSend};

/// What the publisher's clock and ours may differ by.
const SKEW: TimeDelta = TimeDelta::minutes(5);
/// How long after the 202 the Sent copy is waited for, look by look.
const LOOKS: [Duration; 4] =
    [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// How often the mailbox is asked what became of an unanswered send.
const LOOK_AGAIN: TimeDelta = TimeDelta::seconds(20);

/// The e-mail that was sent.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct EmailSent {
    /// The Sent copy's once it was seen, else the draft's.
    pub message_id: String,
    pub immutable_id: bool,
    pub internet_message_id: Option<String>,
    pub conversation_id: Option<String>,
    /// Opens the message in Outlook on the web.
    pub web_link: Option<String>,
    pub state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Exchange took it; the copy in Sent Items was not seen yet. A report of non-delivery is a mail.
    Submitted,
    /// Its copy was seen outside of Drafts.
    Sent,
}

impl EmailSent {
    fn of(message: Message, state: State) -> Self {
        let EmailDrafted { message_id, immutable_id, internet_message_id, conversation_id, web_link } =
            message.into();
        Self { message_id, immutable_id, internet_message_id, conversation_id, web_link, state }
    }
}

impl Job for EmailSend {
    const SPEC: Spec = Spec {
        kind: "email.send",
        integration: Some(Integration::OutlookEmail),
        scopes: &["Mail.ReadWrite", "Mail.Send"],
        gate: Gate::Mailbox,
        permits: 1,
        duty: None,
        attempts: 8,
        timeout: Duration::from_mins(2),
        tool_pattern: "email.send",
        example: r#"{"to": [{"email": "bob@contoso.example", "name": "Bob"}], "subject": "What we agreed on",
            "body": {"format": "markdown", "content": "Hi Bob,\n\n**next step:** we send the offer by Friday.\n"},
            "attachments": [{"name": "notes.txt", "content_type": "text/plain", "content_base64": "SGVsbG8="}],
            "confirmation": {"by": "ada@acme.example", "at": "2026-01-15T09:30:00Z"}}"#,
    };
    type Result = EmailSent;

    fn check(&self) -> Result<(), Invalid> {
        self.check_form()
    }

    fn mailbox(&self) -> Option<&str> {
        self.mailbox.as_deref()
    }

    fn integration(&self) -> Option<Integration> {
        Some(if self.mailbox.is_some() { Integration::SharedMailbox } else { Integration::OutlookEmail })
    }

    fn scopes(&self) -> &'static [&'static str] {
        if self.mailbox.is_some() {
            &["Mail.ReadWrite.Shared", "Mail.Send.Shared"]
        } else {
            Self::SPEC.scopes
        }
    }

    fn render(&self) -> String {
        self.shown()
    }

    async fn run(&self, cx: &Context) -> Result<EmailSent, Failure> {
        if self.confirmation.at > cx.now() + SKEW {
            let message = "payload.confirmation.at: a confirmation from the future confirms nothing";
            return Err(Failure::reject("invalid_confirmation", message));
        }
        let graph = &graph_of(cx, self.mailbox.as_deref())?;
        let (id, ours) = if let Some(id) = &self.draft_id {
            (id.clone(), None)
        } else {
            let letter = self.letter().map_err(|invalid| email_draft::refusal(&invalid))?;
            let made = letter.prepare(cx, graph).await?;
            (made.drafted.message_id.clone(), Some(made))
        };
        // Asked even when the send is long confirmed; then it does not matter what comes back.
        let draft = graph.message(&id).await;
        let traces = draft.as_ref().map_or_else(|_| Traces { id, ..Traces::default() }, Message::traces);
        let request = serde_json::to_string(&traces)
            .map_err(|error| Failure::reject("invalid_request", error.to_string()))?;
        let sent = cx
            .effect("send")
            .request(request)
            .perform(
                |intent| look(cx, graph, intent),
                |intent| self.submit(cx, graph, draft, ours.as_ref(), intent.repeated),
            )
            .await;
        shown(cx, self.mailbox.as_deref(), &sent, |known| &mut known.send).await;
        let sent = sent?;
        match sent.state {
            State::Sent => Ok(sent),
            State::Submitted => {
                let marker = self.draft_id.is_none().then(|| cx.effect_id(email_draft::STEP).to_string());
                Ok(arrival(cx, graph, sent, marker).await)
            }
        }
    }
}

impl EmailSend {
    /// The one call that sends.
    async fn submit(
        &self,
        cx: &Context,
        graph: &Graph,
        draft: Result<Message, GraphError>,
        ours: Option<&Prepared>,
        repeated: bool,
    ) -> Result<EmailSent, Failure> {
        let draft = match draft {
            Ok(draft) => draft,
            Err(error) if error.is_not_found() => return Err(self.gone(graph).await),
            Err(error) => return Err(error.into()),
        };
        if !draft.is_draft {
            let message = "payload.draft_id: the message is not a draft; it may have been sent already";
            // A draft that we made is no draft any more because a person sent it.
            let sent = ours.is_some().then(|| EmailSent::of(draft, State::Sent));
            return sent.ok_or_else(|| Failure::reject("not_a_draft", message));
        }
        if self.is_changed(&draft, ours) {
            let message = "the draft was changed after what it says was confirmed; nothing was sent";
            return Err(Failure::reject("draft_changed", message));
        }
        match graph.send_draft(&draft.id).await {
            Ok(()) => Ok(EmailSent::of(draft, State::Submitted)),
            Err(error) => Err(self.unsent(cx, error, repeated)),
        }
    }

    /// A draft of ours was confirmed as it was left, another one as it was at the moment of confirmation.
    fn is_changed(&self, draft: &Message, ours: Option<&Prepared>) -> bool {
        match ours {
            Some(ours) => ours.change_key.is_some() && ours.change_key != draft.change_key,
            None => draft.last_modified_date_time.is_none_or(|at| at > self.confirmation.at),
        }
    }

    async fn gone(&self, graph: &Graph) -> Failure {
        let failure = missing(graph, "draft_id").await;
        if self.draft_id.is_none() && failure.disposition == Disposition::Reject {
            let message = "the draft was deleted before it was sent; nothing was sent";
            return Failure::reject("draft_gone", message);
        }
        failure
    }

    /// What an answer other than 202 means. Few of them prove that this call sent nothing, and none proves
    /// anything of an earlier call.
    fn unsent(&self, cx: &Context, error: GraphError, repeated: bool) -> Failure {
        let proof = match error.status() {
            Some(status) => matches!(status.as_u16(), 400 | 401 | 403 | 413),
            None => !error.ambiguous(),
        };
        let mut failure = Failure::from(error);
        if failure.code == "send_as_denied" {
            failure.message = self.denied(cx);
        }
        if proof && !repeated {
            failure.message.push_str("; nothing was sent, the draft stays in Drafts");
            return failure;
        }
        failure.ambiguous = true;
        if failure.disposition == Disposition::Reject {
            if repeated {
                let message =
                    format!("{}; an earlier send was not answered; a person must look", failure.message);
                return Failure { code: "ambiguous".into(), message, ..failure }.or_park(Cause::Ambiguous);
            }
            // What became of it must be found out first.
            failure.disposition = Disposition::Retry { after: None };
        }
        failure
    }

    fn denied(&self, cx: &Context) -> String {
        let account = cx.connection().ok().and_then(|connection| connection.account.clone());
        let account = account.unwrap_or_else(|| cx.user().to_owned());
        let mailbox = self.mailbox.as_deref().unwrap_or("the mailbox that the draft is from");
        format!("Exchange grants {account} neither Send As nor Send on Behalf on {mailbox}; one is needed")
    }
}

/// What became of an earlier call that was not answered. `None`: provably nothing, so it may be made again.
async fn look(cx: &Context, graph: &Graph, intent: Intent) -> Result<Option<EmailSent>, Failure> {
    let traces: Traces = serde_json::from_str(&intent.request)
        .map_err(|error| Failure::reject("invalid_request", error.to_string()))?;
    let fate = graph.fate(&traces).await.map_err(closed)?;
    if let Fate::Sent(message) = fate {
        return Ok(Some(EmailSent::of(message, State::Sent)));
    }
    // A call may be carried out after we stopped listening, and transport takes its time.
    let unanswered = TimeDelta::from_std(cx.unanswered()).unwrap_or(TimeDelta::MAX);
    let over = intent.tried_at.unwrap_or_else(|| cx.now()) + unanswered;
    if cx.now() < over {
        let until = over.min(cx.now() + LOOK_AGAIN);
        let message = "the send was not answered; the mailbox is being watched for what became of it";
        return Err(Failure::new(Disposition::Defer { until }, "send_unanswered", message));
    }
    match fate {
        Fate::Draft(draft) if traces.change_key.is_some() && draft.change_key == traces.change_key => {
            Ok(None)
        }
        _ => {
            let message = "the send was not answered, and the mailbox shows neither a sent copy nor an \
                           untouched draft; a person must look";
            Err(Failure::park(Cause::Ambiguous, "ambiguous", message))
        }
    }
}

/// "Not found" of a list of messages speaks of the mailbox.
fn closed(error: GraphError) -> Failure {
    if error.is_not_found() { no_access() } else { error.into() }
}

/// Waits a little for the Sent copy. It is submitted whether the copy is seen or not, so no failure counts here.
async fn arrival(cx: &Context, graph: &Graph, sent: EmailSent, marker: Option<String>) -> EmailSent {
    let traces = Traces {
        id: sent.message_id.clone(),
        internet_message_id: sent.internet_message_id.clone(),
        marker,
        change_key: None,
    };
    for wait in LOOKS {
        if !wait.is_zero() {
            cx.clock().sleep(wait).await;
        }
        match graph.fate(&traces).await {
            Ok(Fate::Sent(message)) => return EmailSent::of(message, State::Sent),
            Ok(_) => {}
            Err(_) => break,
        }
    }
    sent
}
