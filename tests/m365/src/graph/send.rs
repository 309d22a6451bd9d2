//! Sending: 202 means accepted, not sent. Transport takes the draft, moves it to Sent Items and delivers it
//! (<https://learn.microsoft.com/graph/outlook-things-to-know-about-send-mail>); a report of non-delivery is a mail, not
//! an error. Two grants are needed: the scope, and Send As or Send on Behalf in Exchange
//! (<https://learn.microsoft.com/graph/outlook-send-mail-from-other-user>).

use http::Method;
use serde_json::Value;

use super::access::{self, Entry, Need};
use super::call::{Call, Segment};
use super::compose;
use super::mail::{self, Scope, put};
use super::message::{Address, Message};
use super::refusal::{Answer, Refusal, Reply};
use super::state::{GraphState, Pending, SentMail};
use super::{mime, only, schema};
use crate::Sim;

/// The sentence for an action without what it needs (seen for sendMail).
pub(crate) fn missing(action: &str, parameter: &str) -> Refusal {
    Refusal::bad(
        "ErrorInvalidRequest",
        format!(
            "One or more parameters of the operation '{action}' are missing from the request payload. The missing parameters are: {parameter}."
        ),
    )
}

/// From whom: what the message says, else the mailbox; and who may.
pub(crate) fn authorise(
    sim: &Sim,
    call: &Call,
    entry: &Entry,
    message: &Message,
) -> Result<(Address, Address), Refusal> {
    let denied = || {
        Refusal::new(
            403,
            "ErrorSendAsDenied",
            "The user account which was used to submit this request does not have the right to send mail on behalf of the specified sending account., Cannot submit message.",
        )
    };
    let wanted = message.from.as_ref().map_or_else(|| entry.address(), |from| from.address.to_lowercase());
    let directory = sim.directory();
    let me = directory.by_oid(&call.caller.oid).cloned().ok_or_else(denied)?;
    let my_address = Address::new(&me.display_name, &access::address(&me));
    let from = directory.find_in(&call.caller.tenant, &wanted).cloned().ok_or_else(denied)?;
    let from_address = Address::new(&from.display_name, &access::address(&from));
    if from.oid == me.oid {
        return Ok((my_address.clone(), my_address));
    }
    let right = directory.right(&from.oid, &me.oid);
    // The scope for sending as someone else is Mail.Send.Shared.
    if !call.caller.has(&["Mail.Send.Shared"]) {
        return Err(denied());
    }
    // Send As leaves no trace of the account behind it; Send on Behalf names it as the sender.
    if right.send_as {
        Ok((from_address.clone(), from_address))
    } else if right.send_on_behalf {
        Ok((from_address, my_address))
    } else {
        Err(denied())
    }
}

pub(crate) fn check_recipients(message: &Message) -> Result<(), Refusal> {
    if message.recipients().next().is_none() {
        return Err(Refusal::bad(
            "ErrorInvalidRecipients",
            "At least one recipient isn't valid., A message can't be sent because it contains no recipients.",
        ));
    }
    Ok(())
}

/// <https://learn.microsoft.com/graph/api/message-send>: "Content-Length: 0. Required." Without it: 411. HTTP/2 has no
/// need of the header.
pub(crate) fn wants_length(call: &Call) -> Result<(), Refusal> {
    if call.http2 || call.headers.contains_key(http::header::CONTENT_LENGTH) {
        return Ok(());
    }
    Err(Refusal::new(
        411,
        "LengthRequired",
        "A length is required: HTTP Error 411. The request must be chunked or have a content length.",
    ))
}

pub(crate) fn send_draft(sim: &Sim, call: &Call, entry: &Entry, scope: Scope, id: &Segment) -> Answer {
    only(call, &[Method::POST])?;
    wants_length(call)?;
    let message = {
        let mut graph = sim.graph();
        let mailbox = graph.ensure(&entry.owner);
        let key = mail::find(mailbox, scope, id)?;
        mailbox.messages.get(&key).cloned().ok_or_else(Refusal::not_found)?
    };
    // A second send of what transport has, or of what was sent: UNVERIFIED; a client must not come here.
    if message.submitted || !message.draft {
        return Err(Refusal::bad("ErrorInvalidRequest", "The message has already been submitted."));
    }
    check_recipients(&message)?;
    let (from, sender) = authorise(sim, call, entry, &message)?;
    submit(sim, call, entry, message.key, true, from, sender);
    Ok(Reply::empty(202))
}

/// Hands a stored draft to transport.
pub(crate) fn submit(
    sim: &Sim,
    call: &Call,
    entry: &Entry,
    key: u64,
    save: bool,
    from: Address,
    sender: Address,
) {
    let local: Vec<(String, String)> = {
        let directory = sim.directory();
        directory
            .users
            .iter()
            .filter(|user| user.mailbox == crate::directory::Mailbox::Enabled)
            .map(|user| (access::address(user), user.display_name.clone()))
            .collect()
    };
    let mut graph = sim.graph();
    graph.local.extend(local);
    let due = call.now + graph.send_delay();
    let touches = graph.switches.submit_changes_key;
    let mailbox = graph.ensure(&entry.owner);
    let change = touches.then(|| mailbox.change());
    if let Some(message) = mailbox.messages.get_mut(&key) {
        message.submitted = true;
        message.change = change.unwrap_or(message.change);
    }
    let mailbox = mailbox.address.clone();
    graph.pending.push(Pending { due, mailbox, key, save, sender, from });
    graph.settle(call.now);
}

/// <https://learn.microsoft.com/graph/api/user-sendmail>
pub(crate) fn send_mail(sim: &Sim, call: &Call, owner: Option<&str>) -> Answer {
    only(call, &[Method::POST])?;
    call.wants_small()?;
    let entry = access::enter(sim, &call.caller, owner, Need::MailSend)?;
    let names = compose::names(sim, &entry.owner.tenant);
    let mut message = Message::empty(call.now);
    let address = Address::new(&entry.owner.display_name, &entry.address());
    message.from = Some(address.clone());
    message.sender = Some(address);
    let mut save = true;
    if call.is_mime() {
        mime::read(&mut message, &call.body, &names)?;
    } else {
        call.wants_json()?;
        let declared = [("Message", "message"), ("SaveToSentItems", "Edm.Boolean")];
        // Example 5 of the page has a message without the parameter around it; the service refuses that.
        let bare = schema::object(&call.body)
            .is_ok_and(|map| map.contains_key("toRecipients") && !map.contains_key("message"));
        if bare {
            return Err(missing("sendMail", "Message"));
        }
        let parameters = schema::parameters("sendMail", &declared, &call.body)?;
        let Some(Value::Object(map)) = parameters.get("Message") else {
            return Err(missing("sendMail", "Message"));
        };
        compose::apply(&mut message, map, &names, true)?;
        save = parameters.get("SaveToSentItems").and_then(Value::as_bool).unwrap_or(true);
    }
    check_recipients(&message)?;
    let (from, sender) = authorise(sim, call, &entry, &message)?;
    let key = {
        let mut graph = sim.graph();
        let mailbox = graph.ensure(&entry.owner);
        let drafts = mailbox.folder("drafts");
        put(mailbox, drafts, message)
    };
    submit(sim, call, &entry, key, save, from, sender);
    Ok(Reply::empty(202))
}

/// What transport does when its time has come.
pub(crate) fn transport(graph: &mut GraphState, pending: &Pending) {
    let switches = graph.switches.clone();
    let mailbox = graph.open(&pending.mailbox);
    let sent_items = mailbox.folder("sentitems");
    // A draft that was deleted meanwhile is not sent.
    if !mailbox.messages.contains_key(&pending.key) {
        return;
    }
    let key = if switches.immutable_id_survives_send {
        mailbox.relocate(pending.key, sent_items, pending.due);
        pending.key
    } else {
        let Some(message) = mailbox.remove(pending.key) else { return };
        mailbox.insert(sent_items, message)
    };
    mailbox.edit(key, pending.due, |message| {
        message.draft = false;
        message.submitted = false;
        message.read = true;
        message.sent = pending.due;
        message.received = pending.due;
        message.from = Some(pending.from.clone());
        message.sender = Some(pending.sender.clone());
        if !switches.extended_survive_send {
            message.extended.clear();
        }
    });
    let Some(message) = mailbox.messages.get(&key).cloned() else { return };
    if !pending.save {
        mailbox.remove(key);
    }
    let list = |addresses: &[Address]| addresses.iter().map(|one| one.address.clone()).collect::<Vec<_>>();
    graph.sink.push(SentMail {
        mailbox: pending.mailbox.clone(),
        from: pending.from.address.clone(),
        sender: pending.sender.address.clone(),
        to: list(&message.to),
        cc: list(&message.cc),
        bcc: list(&message.bcc),
        subject: message.subject.clone().unwrap_or_default(),
        content_type: if message.html { "html" } else { "text" },
        content: message.content.to_string(),
        internet_message_id: message.internet_message_id.clone(),
        conversation_id: message.conversation.to_string(),
        attachments: message.attachments.iter().map(|one| one.name.clone()).collect(),
        extended: message.extended.clone(),
        at: pending.due,
        saved: pending.save,
    });
    if switches.deliver {
        deliver(graph, &message);
    }
}

/// Puts a copy into the Inbox of every recipient the directory has a mailbox for.
fn deliver(graph: &mut GraphState, message: &Message) {
    let mut seen = std::collections::BTreeSet::new();
    for recipient in message.recipients() {
        let address = recipient.address.to_lowercase();
        let Some(name) = graph.local.get(&address).cloned() else { continue };
        if !seen.insert(address.clone()) {
            continue;
        }
        let mailbox = graph.open(&address);
        mailbox.display_name = name;
        let inbox = mailbox.folder("inbox");
        // Threads are per mailbox: a known ancestor gives the conversation, else a new one starts.
        let ancestor =
            message.headers.iter().find(|(name, _)| name == "In-Reply-To").map(|(_, id)| id.clone());
        let conversation = ancestor
            .and_then(|id| mailbox.messages.values().find(|found| found.internet_message_id == id))
            .map(|found| found.conversation.clone());
        let copy = Message {
            read: false,
            bcc: Vec::new(),
            extended: Vec::new(),
            multi: Vec::new(),
            flag: None,
            categories: Vec::new(),
            conversation: conversation.unwrap_or_default(),
            created: message.received,
            modified: message.received,
            ..message.clone()
        };
        put(mailbox, inbox, copy);
    }
}
