//! `mailbox.connect`: exposes a shared mailbox to the workspace.
//!
//! The invariant: access is proven by reading Inbox and Sent Items, never by asking the directory. A proof that fails
//! keeps the consent and the row, and says what is missing.

use std::time::Duration;

use followthrough::context::Context;
use followthrough::graph::{Graph, GraphError};
use followthrough::job::{Duty, Gate, Invalid, Job, Spec};
use followthrough::mailbox::ladder::{Capabilities, Capability, Proof};
use followthrough::mailbox::life::Registered;
use followthrough::oauth::scopes::Integration;
use followthrough::outcome::{Cause, Failure};
use followthrough::store::mailbox::{Mailbox, state};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{READ, said, tree};
use crate::content::check_address;

pub(super) const TOOL: &str = "mailbox.connect";
/// As far back as a backfill may go.
pub(super) const MOST_DAYS: u16 = 365;

/// Connects a shared mailbox through the user's consent: its mail is filled back, kept in step and read over the API.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MailboxConnect {
    /// The mailbox's address, as it is shared with the user.
    pub address: String,
    /// How far back its mail is filled in: 0 to 365 days.
    #[serde(default = "thirty")]
    pub backfill_days: u16,
}

fn thirty() -> u16 {
    30
}

/// The mailbox as it is known now.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct MailboxConnected {
    /// The id that the API knows it by.
    pub mailbox: String,
    pub capabilities: Capabilities,
}

impl Job for MailboxConnect {
    const SPEC: Spec = Spec {
        kind: "mailbox.connect",
        integration: Some(Integration::SharedMailbox),
        scopes: READ,
        gate: Gate::Mailbox,
        permits: 1,
        duty: Some(Duty::ConnectMailbox),
        attempts: 8,
        timeout: Duration::from_mins(3),
        tool_pattern: TOOL,
        example: r#"{"address": "support@acme.example", "backfill_days": 30}"#,
    };
    type Result = MailboxConnected;

    fn check(&self) -> Result<(), Invalid> {
        check_address(&self.address, "address")?;
        if self.backfill_days > MOST_DAYS {
            return Err(Invalid::new("backfill_days", "expected 0 to 365 days"));
        }
        Ok(())
    }

    fn mailbox(&self) -> Option<&str> {
        Some(&self.address)
    }

    fn render(&self) -> String {
        format!(
            "Connect the shared mailbox {}: read its mail of the last {} days and all that comes.",
            self.address, self.backfill_days
        )
    }

    async fn run(&self, cx: &Context) -> Result<MailboxConnected, Failure> {
        let registered = cx.mailboxes().register(cx.user(), &self.address, self.backfill_days).await?;
        if let Registered::Taken(_) = &registered {
            let message = "the mailbox is connected in this workspace through another user";
            return Err(Failure::reject("mailbox_exists", message));
        }
        let mailbox = registered.mailbox();
        if mailbox.state == state::DISCONNECTING {
            let message = "the mailbox is being disconnected; connect it again afterwards";
            return Err(Failure::reject("mailbox_disconnecting", message));
        }
        let capabilities = if mailbox.state == state::CONNECTING {
            match open(cx, &mailbox).await {
                Ok(capabilities) => capabilities,
                Err(failure) => return Err(said(cx, &mailbox, failure).await),
            }
        } else {
            Capabilities::read(&mailbox.capabilities)
        };
        Ok(MailboxConnected { mailbox: mailbox.id.to_string(), capabilities })
    }
}

/// Proves the access, reads the tree and lets the mailbox be followed.
async fn open(cx: &Context, mailbox: &Mailbox) -> Result<Capabilities, Failure> {
    let graph = cx.graph()?.of_mailbox(&mailbox.address);
    for folder in ["inbox", "sentitems"] {
        readable(&graph, folder).await?;
    }
    let seen = tree::read(&graph, &[]).await?;
    cx.mailboxes().saw_tree(mailbox, &seen).await?;
    let capabilities = Capabilities {
        read: Capability::new(Proof::Proven, ""),
        drafts: Capability::new(Proof::Unproven, "no_draft_was_made_yet"),
        send: Capability::new(Proof::Unknown, "only_a_sent_mail_proves_it"),
        delta: Capability::new(Proof::Unknown, "not_tried"),
        push: Capability::new(Proof::Unknown, "not_tried"),
        big_attachments: Capability::new(Proof::Refused, "delegated_upload_sessions_are_refused"),
    };
    cx.mailboxes().opened(mailbox, &capabilities).await?;
    Ok(capabilities)
}

/// Exchange says "not found" of what the user may not see.
async fn readable(graph: &Graph, folder: &str) -> Result<(), Failure> {
    let refused = |code: &'static str, message: String| Failure::park(Cause::NeedsAdmin, code, message);
    match graph.folder(folder).await {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(refused(
            "no_mailbox_access",
            format!("the user may not read {folder}: grant Full Access on the mailbox in Exchange"),
        )),
        Err(error) => Err(explained(error)),
    }
}

fn explained(error: GraphError) -> Failure {
    let failure = Failure::from(error);
    match &*failure.code {
        "no_mailbox" => Failure {
            message: "nobody in the tenant has this address, or it has no mailbox".into(),
            ..failure
        },
        "mailbox_on_premises" => Failure {
            message: "the mailbox is kept on premises, where Microsoft Graph does not reach".into(),
            ..failure
        },
        _ => failure,
    }
}
