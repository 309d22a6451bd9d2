//! MIME in and out (<https://learn.microsoft.com/graph/outlook-send-mime-message>): base64 of a whole message as
//! `text/plain`. Read is what a sender needs: headers, the best text, attachments.

use std::fmt::Write as _;

use base64::Engine as _;
use chrono::DateTime;
use serde_json::Value;

use super::body::stored_html;
use super::compose::{self, Names};
use super::message::{Address, Attachment, AttachmentContent, Message};
use super::refusal::Refusal;
use super::schema;

pub(crate) fn read(message: &mut Message, body: &[u8], names: &Names) -> Result<(), Refusal> {
    let invalid =
        || Refusal::bad("ErrorMimeContentInvalidBase64String", "Invalid base64 string for MIME content.");
    let text = std::str::from_utf8(body).map_err(|_| invalid())?;
    let mut lines: String = text.split(['\r', '\n']).collect();
    if lines.contains(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '+' | '/' | '=')) {
        return Err(invalid());
    }
    // The samples of the pages are cut off in the middle of a group.
    if lines.len() % 4 == 1 {
        lines.pop();
    }
    let bytes = schema::binary(&lines).filter(|bytes| !bytes.is_empty()).ok_or_else(invalid)?;
    let raw = String::from_utf8_lossy(&bytes).replace("\r\n", "\n");
    let (head, content) = raw.split_once("\n\n").unwrap_or((&raw, ""));
    let headers = unfold(head);
    // What decodes, but has no header, was no MIME.
    if headers.is_empty() {
        return Err(invalid());
    }
    for (name, value) in &headers {
        let list = || addresses(value, names);
        match name.to_ascii_lowercase().as_str() {
            "subject" => message.subject = Some(words(value)),
            "from" => {
                if let Some(from) = list().into_iter().next() {
                    message.from = Some(from);
                }
            }
            "to" => message.to = list(),
            "cc" => message.cc = list(),
            "bcc" => message.bcc = list(),
            "reply-to" => message.reply_to = list(),
            "message-id" => value.trim().clone_into(&mut message.internet_message_id),
            "in-reply-to" | "references" => message.headers.push((name.clone(), value.clone())),
            _ if name.to_ascii_lowercase().starts_with("x-") => {
                message.headers.push((name.clone(), value.clone()));
            }
            _ => {}
        }
    }
    part(message, &headers, content);
    if message.recipients().count() > 500 {
        return Err(Refusal::bad(
            "ErrorRecipientLimitExceeded",
            "The message can't be saved because it has more than 500 recipients.",
        ));
    }
    Ok(())
}

fn unfold(head: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for line in head.lines() {
        if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = found.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            found.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    found
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> &'a str {
    headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
}

fn parameter(value: &str, name: &str) -> Option<String> {
    value.split(';').skip(1).find_map(|part| {
        let (key, value) = part.trim().split_once('=')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"').to_owned())
    })
}

fn part(message: &mut Message, headers: &[(String, String)], content: &str) {
    let kind = header(headers, "content-type");
    let plain = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if plain.starts_with("multipart/") {
        let Some(boundary) = parameter(kind, "boundary") else { return };
        for piece in content.split(&format!("--{boundary}")).skip(1) {
            if piece.starts_with("--") {
                break;
            }
            let piece = piece.strip_prefix('\n').unwrap_or(piece);
            let (head, content) = piece.split_once("\n\n").unwrap_or(("", piece));
            part(message, &unfold(head), content);
        }
        return;
    }
    let bytes = transfer(header(headers, "content-transfer-encoding"), content);
    let disposition = header(headers, "content-disposition");
    if disposition.to_ascii_lowercase().starts_with("attachment")
        || (!plain.is_empty() && !plain.starts_with("text/"))
    {
        message.attachments.push(Attachment {
            key: 0,
            modified: message.modified,
            name: parameter(disposition, "filename")
                .or_else(|| parameter(kind, "name"))
                .unwrap_or_else(|| "attachment".into()),
            content_type: Some(if plain.is_empty() { "application/octet-stream".into() } else { plain }),
            inline: disposition.to_ascii_lowercase().starts_with("inline"),
            content_id: Some(header(headers, "content-id").trim_matches(['<', '>']).to_owned())
                .filter(|id| !id.is_empty()),
            content_location: None,
            content: AttachmentContent::File(bytes.into()),
        });
        return;
    }
    let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
    // Of alternatives the html is kept.
    if plain == "text/html" {
        message.html = true;
        message.content = stored_html(&text).into();
    } else if !message.html {
        message.content = text.into();
    }
}

fn transfer(encoding: &str, content: &str) -> Vec<u8> {
    match encoding.trim().to_ascii_lowercase().as_str() {
        "base64" => schema::binary(content).unwrap_or_default(),
        "quoted-printable" => quoted_printable(&content.replace("=\n", "")),
        _ => content.as_bytes().to_vec(),
    }
}

fn quoted_printable(text: &str) -> Vec<u8> {
    super::call::decode(&text.replace('%', "%25").replace('=', "%"), false).into_bytes()
}

/// Encoded words (RFC 2047) in UTF-8.
fn words(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("=?") {
        out.push_str(&rest[..start]);
        let mut fields = rest[start + 2..].splitn(4, '?');
        let (Some(_), Some(kind), Some(data), Some(tail)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            break;
        };
        let bytes = if kind.eq_ignore_ascii_case("b") {
            schema::binary(data).unwrap_or_default()
        } else {
            quoted_printable(&data.replace('_', " "))
        };
        out.push_str(&String::from_utf8_lossy(&bytes));
        rest = tail.strip_prefix('=').unwrap_or(tail);
    }
    out.push_str(rest);
    out
}

fn addresses(value: &str, names: &Names) -> Vec<Address> {
    let mut parts = Vec::new();
    let (mut part, mut quoted) = (String::new(), false);
    for c in value.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => parts.push(std::mem::take(&mut part)),
            c => part.push(c),
        }
    }
    parts.push(part);
    parts
        .iter()
        .map(|part| part.trim())
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (name, address) = match part.split_once('<') {
                Some((name, rest)) => (words(name.trim()), rest.trim_end_matches('>').trim()),
                None => (String::new(), part),
            };
            let name = if name.is_empty() {
                names.get(&address.to_lowercase()).cloned().unwrap_or_else(|| address.to_owned())
            } else {
                name
            };
            Address { name, address: address.to_owned() }
        })
        .collect()
}

/// `GET messages/{id}/$value`
pub(crate) fn write(message: &Message) -> String {
    let list = |addresses: &[Address]| {
        addresses.iter().map(|one| format!("{} <{}>", one.name, one.address)).collect::<Vec<_>>().join(", ")
    };
    let b64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = write!(out, "{name}: {value}\r\n");
        }
    };
    line("From", &list(message.from.as_slice()));
    line("To", &list(&message.to));
    line("CC", &list(&message.cc));
    line("Subject", &format!("=?utf-8?B?{}?=", b64(message.subject.clone().unwrap_or_default().as_bytes())));
    line("Date", &message.sent.to_rfc2822());
    line("Message-ID", &message.internet_message_id);
    for (name, value) in &message.headers {
        line(name, value);
    }
    line("MIME-Version", "1.0");
    line("Content-Type", &format!("text/{}; charset=\"utf-8\"", if message.html { "html" } else { "plain" }));
    line("Content-Transfer-Encoding", "base64");
    out.push_str("\r\n");
    out.push_str(&b64(message.content.as_bytes()));
    out
}

/// `GET attachments/{id}/$value` of an item: MIME of a message, iCalendar of an event, vCard of a contact
/// (<https://learn.microsoft.com/graph/api/attachment-get>).
pub(crate) fn of_item(item: &Value) -> String {
    let text = |pointer: &str| item.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let kind = text("/@odata.type").rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    match kind.as_str() {
        "contact" => format!(
            "BEGIN:VCARD\r\nPROFILE:VCARD\r\nVERSION:3.0\r\nPRODID:Microsoft Exchange\r\nFN:{}\r\nEND:VCARD\r\n",
            text("/displayName")
        ),
        "event" => format!(
            "BEGIN:VCALENDAR\r\nMETHOD:PUBLISH\r\nPRODID:Microsoft Exchange Server 2010\r\nVERSION:2.0\r\n\
             BEGIN:VEVENT\r\nSUMMARY:{}\r\nDTSTART;TZID={}:{}\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n",
            text("/subject"),
            text("/start/timeZone"),
            text("/start/dateTime").replace(['-', ':'], ""),
        ),
        _ => {
            let mut message = Message::empty(DateTime::UNIX_EPOCH);
            if let Some(properties) = item.as_object() {
                // What an item cannot be made of was refused when it was attached.
                let _ = compose::apply(&mut message, properties, &Names::new(), true);
            }
            write(&message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_multipart_message_gives_html_recipients_and_attachment() {
        let raw = "From: Ada <ada@acme.example>\nTo: \"Keller, Bob\" <bob@acme.example>, carol@acme.example\nSubject: =?utf-8?Q?Gr=C3=BC=C3=9Fe?=\nContent-Type: multipart/mixed; boundary=\"b\"\n\n--b\nContent-Type: text/plain\n\nplain\n--b\nContent-Type: text/html\nContent-Transfer-Encoding: quoted-printable\n\n<b>caf=C3=A9</b>\n--b\nContent-Type: text/plain\nContent-Disposition: attachment; filename=\"a.txt\"\n\nhello\n--b--";
        let body = base64::engine::general_purpose::STANDARD.encode(raw);
        let mut message = Message::empty(chrono::DateTime::UNIX_EPOCH);
        read(&mut message, body.as_bytes(), &Names::new()).expect("reads");
        assert_eq!(message.subject.as_deref(), Some("Grüße"));
        assert_eq!(message.to[0], Address::new("Keller, Bob", "bob@acme.example"));
        assert_eq!(message.to.len(), 2);
        assert!(message.html && message.content.contains("café"), "{}", message.content);
        assert_eq!(message.attachments[0].name, "a.txt");
        let refusal = read(&mut message, b"not base64!", &Names::new()).expect_err("refused");
        assert_eq!(refusal.code, "ErrorMimeContentInvalidBase64String");
    }
}
