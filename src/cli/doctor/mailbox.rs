//! `doctor mailbox <id>`: is it reached, on which rung of the ladder, and why not on a better one?
//!
//! The invariant: what is said of access was tried at Microsoft just now; what is said of delivery is what the fleet
//! has seen.

use chrono::TimeDelta;
use scoped_futures::ScopedFutureExt;
use uuid::Uuid;

use super::{Findings, check_connection};
use crate::cli::output::moment;
use crate::graph::Graph;
use crate::mailbox::ladder::{Capabilities, Proof, meaning};
use crate::oauth::scopes::Integration;
use crate::store::Store;
use crate::store::backfill::{self, Backfill, state as filling};
use crate::store::connection::{self, Connection};
use crate::store::mailbox::{self, Mailbox, state};
use crate::store::subscription::{self, Subscription};
use crate::vault::Vault;

/// Longer than any wait between two looks.
const BLIND: TimeDelta = TimeDelta::minutes(15);

struct Known {
    mailbox: Mailbox,
    connection: Option<Connection>,
    subscriptions: Vec<Subscription>,
    backfill: Option<Backfill>,
}

pub(super) async fn check(
    store: &Store,
    vault: &Vault,
    graph: impl Fn(&Connection) -> Graph,
    id: Uuid,
    findings: &mut Findings,
) {
    let known = match known(store, id).await {
        Ok(Some(known)) => known,
        Ok(None) => {
            let advice = "`mailboxes list` shows those there are";
            return findings.fail("mailbox", "there is none with this id", advice);
        }
        Err(error) => return findings.fail("mailbox", error.to_string(), "see `database` above"),
    };
    if !standing(&known.mailbox, findings) {
        return;
    }
    match &known.connection {
        Some(connection) => {
            check_connection(vault, connection, findings).await;
            access(&graph(connection).of_mailbox(&known.mailbox.address), findings).await;
        }
        None => findings.fail(
            "connection",
            format!("{} has no connection for shared mailboxes", known.mailbox.user_name),
            "hand the user a sign-in link (POST /v1/connections)",
        ),
    }
    delivery(&known, vault, findings);
    capabilities(&known.mailbox, findings);
    if let Some(backfill) = &known.backfill {
        let found = format!("{}, {} found", backfill.state, backfill.found);
        if backfill.state == filling::RUNNING {
            let expected = backfill.expected.map_or_else(|| "?".to_owned(), |all| all.to_string());
            findings.ok("backfill", format!("{found} of {expected}"));
        } else {
            findings.ok("backfill", found);
        }
    }
}

async fn known(store: &Store, id: Uuid) -> crate::store::Result<Option<Known>> {
    store
        .read(|tx| {
            async move {
                let Some(mailbox) = mailbox::find(tx, id).await? else { return Ok(None) };
                let (workspace, user) = (mailbox.workspace.as_str(), mailbox.user_name.as_str());
                let connection =
                    connection::find_for(tx, workspace, user, Integration::SharedMailbox).await?;
                let subscriptions = subscription::of_mailbox(tx, id).await?;
                let backfill = backfill::find(tx, id).await?;
                Ok(Some(Known { mailbox, connection, subscriptions, backfill }))
            }
            .scope_boxed()
        })
        .await
}

/// `false` when there is nothing more to look at.
fn standing(mailbox: &Mailbox, findings: &mut Findings) -> bool {
    let (code, message) =
        (mailbox.code.clone().unwrap_or_default(), mailbox.message.clone().unwrap_or_default());
    let found = format!("{} is {}", mailbox.address, mailbox.state);
    match mailbox.state.as_str() {
        state::CONNECTED => findings.ok("mailbox", found),
        state::CONNECTING if code.is_empty() => {
            findings.warn(
                "mailbox",
                found,
                "the job `mailbox.connect` proves its access; see that the fleet runs",
            );
        }
        state::CONNECTING | state::DEGRADED => {
            findings.fail("mailbox", format!("{found}: {code}: {message}"), "the message says who can act");
        }
        _ => {
            findings.warn("mailbox", found, "connect it again where it is still wanted");
            return false;
        }
    }
    true
}

async fn access(graph: &Graph, findings: &mut Findings) {
    for name in ["inbox", "sentitems"] {
        match graph.folder(name).await {
            Ok(Some(_)) => findings.ok(name, "readable"),
            Ok(None) => {
                let advice = "grant the user Full Access on the mailbox in Exchange";
                findings.fail(name, "Exchange shows the user nothing of it", advice);
            }
            Err(error) => findings.fail(name, error.to_string(), "the message says what Microsoft answered"),
        }
    }
}

fn delivery(known: &Known, vault: &Vault, findings: &mut Findings) {
    let (mailbox, now) = (&known.mailbox, vault.entra().clock.now());
    let found = format!("{} since {}: {}", mailbox.rung, moment(mailbox.rung_since), mailbox.rung_reason);
    match meaning(&mailbox.rung_reason) {
        Some(meaning) if mailbox.rung != "push" => {
            findings.add("delivery", super::Health::Ok, found, Some(meaning));
        }
        _ => findings.ok("delivery", found),
    }
    match mailbox.proven_at {
        Some(at) => {
            findings
                .ok("last proof", format!("a notification and a poll told of one message at {}", moment(at)));
        }
        None => findings.ok("last proof", "no notification has been proven by a poll yet"),
    }
    for one in &known.subscriptions {
        let until = one.expires_at.map_or_else(String::new, |at| format!(", until {}", moment(at)));
        let why = one.code.as_ref().map_or_else(String::new, |code| format!(", {code}"));
        findings.ok("subscription", format!("{}{why}{until}, {} notices", one.state, one.notices));
    }
    match mailbox.checked_at {
        Some(at) if now - at < BLIND => {
            findings.ok("last look", format!("{} s ago", (now - at).num_seconds()));
        }
        Some(at) => {
            let found = format!("{} min ago", (now - at).num_minutes());
            findings.fail(
                "last look",
                found,
                "see that the fleet runs, and its dead letters of mailbox.sync",
            );
        }
        None => findings.warn("last look", "none yet", "see that the fleet runs"),
    }
}

fn capabilities(mailbox: &Mailbox, findings: &mut Findings) {
    let known = Capabilities::read(&mailbox.capabilities);
    for (name, capability) in [
        ("read", known.read),
        ("drafts", known.drafts),
        ("send", known.send),
        ("delta", known.delta),
        ("push", known.push),
        ("big files", known.big_attachments),
    ] {
        let state = match capability.state {
            Proof::Unknown => "unknown",
            Proof::Unproven => "unproven",
            Proof::Proven => "proven",
            Proof::Refused => "refused",
        };
        let why = capability.reason.map_or_else(String::new, |reason| format!(": {reason}"));
        let said = capability.message.map_or_else(String::new, |message| format!(" ({message})"));
        findings.ok(name, format!("{state}{why}{said}"));
    }
}
