//! Drafts that answer: `createReply`, `createReplyAll`, `createForward`, and the actions that send at once
//! (<https://learn.microsoft.com/graph/api/message-createreply>). The draft carries the quoted original, the thread's
//! conversation, and — a side effect the documents do not name — the original becomes read.

use std::fmt::Write as _;

use http::Method;
use serde_json::{Map, Value};

use super::access::Entry;
use super::body::escape;
use super::call::{Call, Segment};
use super::compose::{self, Names};
use super::mail::{self, Scope, put};
use super::message::{Address, Message};
use super::odata::Options;
use super::refusal::{Answer, Refusal, Reply};
use super::state::Switches;
use super::timezones::Zone;
use super::{mime, only, schema, send};
use crate::Sim;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Reply,
    All,
    Forward,
}

impl Way {
    fn action(self) -> &'static str {
        match self {
            Self::Reply => "createReply",
            Self::All => "createReplyAll",
            Self::Forward => "createForward",
        }
    }
}

/// What the caller gave.
#[derive(Default)]
struct Given {
    message: Map<String, Value>,
    comment: Option<String>,
    to: Option<Value>,
    mime: bool,
}

fn read(call: &Call, way: Way) -> Result<Given, Refusal> {
    if call.is_mime() && !call.body.is_empty() {
        return Ok(Given { mime: true, ..Given::default() });
    }
    call.wants_json()?;
    let mut declared = vec![("Message", "message"), ("Comment", "Edm.String")];
    if way == Way::Forward {
        declared.push(("ToRecipients", "*recipient"));
    }
    let mut parameters = schema::parameters(way.action(), &declared, &call.body)?;
    let message = match parameters.remove("Message") {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let comment = parameters.remove("Comment").and_then(|text| text.as_str().map(str::to_owned));
    let to = parameters.remove("ToRecipients");
    // "Specifying both will return an HTTP 400 Bad Request error."
    if comment.is_some() && message.contains_key("body") {
        return Err(Refusal::bad(
            "ErrorInvalidRequest",
            "Comment and Message.Body cannot both be specified.",
        ));
    }
    if to.is_some() && message.contains_key("toRecipients") {
        return Err(Refusal::bad(
            "ErrorInvalidRequest",
            "ToRecipients and Message.ToRecipients cannot both be specified.",
        ));
    }
    // "Specifying both or specifying neither will return an HTTP 400"; without any body the page's sample gives 201.
    let said = comment.is_some() || !message.is_empty();
    if way == Way::Forward && said && to.is_none() && !message.contains_key("toRecipients") {
        return Err(Refusal::bad(
            "ErrorInvalidRequest",
            "Either ToRecipients or Message.ToRecipients must be specified.",
        ));
    }
    Ok(Given { message, comment, to, mime: false })
}

pub(crate) fn create(sim: &Sim, call: &Call, entry: &Entry, scope: Scope, id: &Segment, way: Way) -> Answer {
    only(call, &[Method::POST])?;
    call.wants_small()?;
    let key = draft(sim, call, entry, scope, id, way)?;
    let mut graph = sim.graph();
    let mailbox = graph.ensure(&entry.owner);
    mail::entity_reply(call, entry, mailbox, key, 201, &Options::default())
}

/// <https://learn.microsoft.com/graph/api/message-reply> and its sisters: 202, nothing to show.
pub(crate) fn send_now(
    sim: &Sim,
    call: &Call,
    entry: &Entry,
    scope: Scope,
    id: &Segment,
    way: Way,
) -> Answer {
    only(call, &[Method::POST])?;
    call.wants_small()?;
    // Everything that can refuse the sending is asked before the draft exists.
    send::authorise(sim, call, entry, &Message::empty(call.now))?;
    let key = draft(sim, call, entry, scope, id, way)?;
    let message = {
        let mut graph = sim.graph();
        let mailbox = graph.ensure(&entry.owner);
        mailbox.messages.get(&key).cloned().ok_or_else(Refusal::not_found)?
    };
    let ready = send::check_recipients(&message).and_then(|()| send::authorise(sim, call, entry, &message));
    match ready {
        Ok((from, sender)) => {
            send::submit(sim, call, entry, key, true, from, sender);
            Ok(Reply::empty(202))
        }
        Err(refusal) => {
            sim.graph().ensure(&entry.owner).remove(key);
            Err(refusal)
        }
    }
}

fn draft(
    sim: &Sim,
    call: &Call,
    entry: &Entry,
    scope: Scope,
    id: &Segment,
    way: Way,
) -> Result<u64, Refusal> {
    let given = read(call, way)?;
    let names = compose::names(sim, &entry.owner.tenant);
    let mut graph = sim.graph();
    let switches = graph.switches.clone();
    let mailbox = graph.ensure(&entry.owner);
    let original_key = mail::find(mailbox, scope, id)?;
    let original = mailbox.messages.get(&original_key).cloned().ok_or_else(Refusal::not_found)?;
    let me = Address::new(&entry.owner.display_name, &entry.address());
    let message = answer(call, &given, &original, way, &me, &switches, &names)?;
    // The tail keeps the original's state read or not; only an Inbox item can turn.
    if way != Way::Forward && switches.reply_marks_read && !original.read {
        mailbox.edit(original_key, call.now, |original| original.read = true);
    }
    let drafts = mailbox.folder("drafts");
    Ok(put(mailbox, drafts, message))
}

fn answer(
    call: &Call,
    given: &Given,
    original: &Message,
    way: Way,
    me: &Address,
    switches: &Switches,
    names: &Names,
) -> Result<Message, Refusal> {
    let mut message = Message::empty(call.now);
    message.from = Some(me.clone());
    message.sender = Some(me.clone());
    message.conversation = original.conversation.clone();
    message.conversation_index = compose::next_index(&original.conversation_index, original.change);
    message.headers.push(("In-Reply-To".into(), original.internet_message_id.clone()));
    let prefix = if way == Way::Forward { "FW: " } else { "RE: " };
    let subject = original.subject.clone().unwrap_or_default();
    let bare = ["re: ", "fw: ", "fwd: "].iter().find_map(|known| {
        subject
            .get(..known.len())
            .filter(|head| head.eq_ignore_ascii_case(known))
            .map(|head| subject[head.len()..].to_owned())
    });
    message.subject = Some(format!("{prefix}{}", bare.unwrap_or(subject)));
    message.importance = original.importance;
    recipients(&mut message, original, way, me);
    if way == Way::Forward {
        message.attachments.clone_from(&original.attachments);
    } else {
        message.attachments = original.attachments.iter().filter(|one| one.inline).cloned().collect();
    }
    if given.mime {
        mime::read(&mut message, &call.body, names)?;
        return Ok(message);
    }
    let zone = call.prefer.zone.clone().unwrap_or_else(Zone::utc);
    let comment = given.comment.as_deref().filter(|_| switches.reply_keeps_comment).unwrap_or_default();
    quote(&mut message, original, &zone, comment);
    let mut sent = given.message.clone();
    // Whether the property is honoured here is UNVERIFIED; a client that needs it must PATCH it.
    if !switches.reply_keeps_extended {
        sent.remove("singleValueExtendedProperties");
        sent.remove("multiValueExtendedProperties");
    }
    if let Some(to) = &given.to {
        sent.insert("toRecipients".into(), to.clone());
    }
    compose::apply(&mut message, &sent, names, true)?;
    Ok(message)
}

/// "If replyTo is specified in the original message … send the reply to the recipients in replyTo".
fn recipients(message: &mut Message, original: &Message, way: Way, me: &Address) {
    if way == Way::Forward {
        return;
    }
    let mine = |one: &Address| one.address.eq_ignore_ascii_case(&me.address);
    let from_me = original.from.as_ref().is_some_and(mine);
    let mut to = if !original.reply_to.is_empty() {
        original.reply_to.clone()
    } else if from_me {
        // Outlook answers one's own mail to those it went to; UNVERIFIED for Graph.
        original.to.clone()
    } else {
        original.from.iter().cloned().collect()
    };
    let mut cc = Vec::new();
    if way == Way::All {
        let known = |list: &[Address], one: &Address| {
            list.iter().any(|found| found.address.eq_ignore_ascii_case(&one.address))
        };
        for one in &original.to {
            if !mine(one) && !known(&to, one) {
                to.push(one.clone());
            }
        }
        for one in &original.cc {
            if !mine(one) && !known(&to, one) && !known(&cc, one) {
                cc.push(one.clone());
            }
        }
    }
    message.to = to;
    message.cc = cc;
}

fn quote(message: &mut Message, original: &Message, zone: &Zone, comment: &str) {
    let line = |list: &[Address]| {
        list.iter().map(|one| format!("{} <{}>", one.name, one.address)).collect::<Vec<_>>().join("; ")
    };
    let from = line(original.from.as_slice());
    let sent = zone.wall_clock(original.sent).format("%A, %B %-d, %Y %-I:%M:%S %p").to_string();
    let to = line(&original.to);
    let cc = line(&original.cc);
    let subject = original.subject.clone().unwrap_or_default();
    message.html = original.html;
    let (content, quoted_at) = if original.html {
        let mut header = format!(
            "<b>From:</b> {}<br>\r\n<b>Sent:</b> {sent}<br>\r\n<b>To:</b> {}<br>\r\n",
            escape(&from),
            escape(&to)
        );
        if !cc.is_empty() {
            let _ = write!(header, "<b>Cc:</b> {}<br>\r\n", escape(&cc));
        }
        let _ = write!(header, "<b>Subject:</b> {}", escape(&subject));
        let head = format!(
            "<html><head>\r\n<meta http-equiv=\"Content-Type\" content=\"text/html; charset=utf-8\"></head><body>{}",
            if comment.is_empty() { String::new() } else { format!("<div>{}</div>\r\n", escape(comment)) }
        );
        let tail = format!(
            "<hr tabindex=\"-1\" style=\"display:inline-block; width:98%\">\r\n<div id=\"divRplyFwdMsg\" dir=\"ltr\"><font face=\"Calibri, sans-serif\" color=\"#000000\" style=\"font-size:11pt\">{header}</font>\r\n<div>&nbsp;</div>\r\n</div>\r\n{}\r\n</body></html>",
            inner(&original.content)
        );
        (format!("{head}{tail}"), head.len())
    } else {
        let head = if comment.is_empty() { String::new() } else { format!("{comment}\r\n") };
        let mut header = format!("From: {from}\r\nSent: {sent}\r\nTo: {to}\r\n");
        if !cc.is_empty() {
            let _ = write!(header, "Cc: {cc}\r\n");
        }
        let tail = format!(
            "\r\n________________________________\r\n{header}Subject: {subject}\r\n\r\n{}",
            original.content
        );
        (format!("{head}{tail}"), head.len())
    };
    message.quoted_at = Some(quoted_at);
    message.content = content.into();
}

/// What stands inside the original's body element.
fn inner(html: &str) -> &str {
    let lower = html.to_ascii_lowercase();
    let start = lower.find("<body").and_then(|at| lower[at..].find('>').map(|end| at + end + 1)).unwrap_or(0);
    let end = lower.rfind("</body>").unwrap_or(html.len()).max(start);
    &html[start..end]
}
