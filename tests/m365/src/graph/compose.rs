//! A message's JSON applied to a message. The shapes have been checked by [`super::schema`]; here are the rules that the
//! metadata does not say: recipients, headers, what only a draft may change.

use std::collections::HashMap;

use base64::Engine as _;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::attachments;
use super::body::stored_html;
use super::message::{Address, Message};
use super::refusal::Refusal;

/// Names of the tenant's people by lower-case address: Exchange resolves recipients it knows.
pub(crate) type Names = HashMap<String, String>;

pub(crate) fn names(sim: &crate::Sim, tenant: &str) -> Names {
    let directory = sim.directory();
    directory
        .users
        .iter()
        .filter(|user| user.tenant == tenant)
        .map(|user| (super::access::address(user), user.display_name.clone()))
        .collect()
}

pub(crate) fn address(value: &Value, names: &Names) -> Option<Address> {
    let found = value.get("emailAddress")?;
    let address = found.get("address").and_then(Value::as_str).unwrap_or_default().trim();
    let name = found.get("name").and_then(Value::as_str).unwrap_or_default().trim();
    let name = match (name, names.get(&address.to_lowercase())) {
        ("", Some(known)) => known,
        ("", None) => address,
        (name, _) => name,
    };
    Some(Address::new(name, address))
}

fn addresses(value: &Value, names: &Names) -> Result<Vec<Address>, Refusal> {
    let mut found = Vec::new();
    for item in value.as_array().map(Vec::as_slice).unwrap_or_default() {
        let Some(one) = address(item, names) else { continue };
        // A recipient must be addressable; a wrong one comes back as a report of non-delivery, an empty one is refused.
        if one.address.is_empty() {
            return Err(Refusal::bad(
                "ErrorInvalidRecipients",
                "At least one recipient is not valid., Recipient(s) missing an email address.",
            ));
        }
        found.push(one);
    }
    Ok(found)
}

/// What a PATCH of a message that is no draft may not touch (pains F5; "Updatable only if isDraft = true").
pub(crate) const SENSITIVE: &[&str] = &[
    "subject",
    "body",
    "toRecipients",
    "ccRecipients",
    "bccRecipients",
    "replyTo",
    "internetMessageId",
    "from",
    "sender",
];

pub(crate) fn apply(
    message: &mut Message,
    sent: &Map<String, Value>,
    names: &Names,
    create: bool,
) -> Result<(), Refusal> {
    for (name, value) in sent {
        match name.as_str() {
            "subject" => message.subject = value.as_str().map(str::to_owned),
            "body" => body(message, value),
            "importance" => {
                message.importance = member(value, &["low", "normal", "high"]).unwrap_or("normal");
            }
            "inferenceClassification" => {
                message.inference = member(value, &["focused", "other"]).unwrap_or("focused");
            }
            "categories" => message.categories = strings(value),
            "sender" => message.sender = address(value, names).or(message.sender.take()),
            "from" => message.from = address(value, names).or(message.from.take()),
            "toRecipients" => message.to = addresses(value, names)?,
            "ccRecipients" => message.cc = addresses(value, names)?,
            "bccRecipients" => message.bcc = addresses(value, names)?,
            "replyTo" => message.reply_to = addresses(value, names)?,
            "internetMessageId" => {
                if let Some(id) = value.as_str().filter(|id| !id.is_empty()) {
                    id.clone_into(&mut message.internet_message_id);
                }
            }
            "isRead" => message.read = value.as_bool().unwrap_or(message.read),
            "isDeliveryReceiptRequested" => message.delivery_receipt = value.as_bool().unwrap_or_default(),
            "isReadReceiptRequested" => message.read_receipt = value.as_bool().unwrap_or_default(),
            "flag" => message.flag = value.is_object().then(|| Box::new(value.clone())),
            "internetMessageHeaders" if create => headers(message, value)?,
            "singleValueExtendedProperties" => extended(message, value)?,
            "multiValueExtendedProperties" => {
                for property in value.as_array().map(Vec::as_slice).unwrap_or_default() {
                    let id = property_id(property)?;
                    message.multi.retain(|(found, _)| *found != id);
                    message.multi.push((id, strings(&property["value"])));
                }
            }
            "attachments" if create => {
                for item in value.as_array().map(Vec::as_slice).unwrap_or_default() {
                    attachments::add(message, item)?;
                }
            }
            // Read-only properties in a body are ignored: the clients send back what they were given.
            _ => {}
        }
    }
    // <https://learn.microsoft.com/graph/api/resources/message>: 500 over all three lists.
    if message.recipients().count() > 500 {
        return Err(Refusal::bad(
            "ErrorRecipientLimitExceeded",
            "The message can't be saved because it has more than 500 recipients.",
        ));
    }
    Ok(())
}

fn body(message: &mut Message, value: &Value) {
    let content = value.get("content").and_then(Value::as_str).unwrap_or_default();
    message.html = value.get("contentType").and_then(Value::as_str) == Some("html");
    message.quoted_at = None;
    message.content = if message.html { stored_html(content).into() } else { content.into() };
}

fn member(value: &Value, members: &[&'static str]) -> Option<&'static str> {
    let text = value.as_str()?;
    members.iter().copied().find(|member| *member == text)
}

pub(crate) fn strings(value: &Value) -> Vec<String> {
    value
        .as_array()
        .map(|items| items.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        .unwrap_or_default()
}

/// Custom headers start with `x-` (<https://learn.microsoft.com/graph/api/resources/internetmessageheader>).
fn headers(message: &mut Message, value: &Value) -> Result<(), Refusal> {
    for header in value.as_array().map(Vec::as_slice).unwrap_or_default() {
        let name = header["name"].as_str().unwrap_or_default();
        if !name.to_ascii_lowercase().starts_with("x-") {
            return Err(Refusal::bad(
                "InvalidInternetMessageHeader",
                format!("The internet message header name '{name}' should start with 'x-' or 'X-'."),
            ));
        }
        message.headers.push((name.to_owned(), header["value"].as_str().unwrap_or_default().to_owned()));
    }
    Ok(())
}

/// The id is `{type} {guid} Name {name}`, `{type} {guid} Id {number}` or `{type} {proptag}`
/// (<https://learn.microsoft.com/graph/api/resources/extended-properties-overview>).
pub(crate) fn property_id(property: &Value) -> Result<String, Refusal> {
    const TYPES: &[&str] = &[
        "ApplicationTime",
        "ApplicationTimeArray",
        "Binary",
        "BinaryArray",
        "Boolean",
        "CLSID",
        "CLSIDArray",
        "Currency",
        "CurrencyArray",
        "Double",
        "DoubleArray",
        "Error",
        "Float",
        "FloatArray",
        "Integer",
        "IntegerArray",
        "Long",
        "LongArray",
        "Null",
        "Object",
        "ObjectArray",
        "Short",
        "ShortArray",
        "String",
        "StringArray",
        "SystemTime",
        "SystemTimeArray",
    ];
    let id = property["id"].as_str().unwrap_or_default();
    let mut words = id.splitn(4, ' ');
    let kind = words.next().unwrap_or_default();
    let second = words.next().unwrap_or_default();
    let named = match (words.next(), words.next()) {
        (Some("Name" | "Id"), Some(name)) if !name.is_empty() => {
            Uuid::parse_str(second.trim_matches(['{', '}'])).is_ok()
        }
        (None, None) => second.to_ascii_lowercase().starts_with("0x") && second.len() > 2,
        _ => false,
    };
    if !TYPES.contains(&kind) || !named {
        return Err(Refusal::bad(
            "ErrorInvalidArgument",
            format!(
                "PropertyId values may only be in one of the following formats: 'MapiPropertyType namespaceGuid Name propertyName', 'MapiPropertyType namespaceGuid Id propertyId' or 'MapiPropertyType propertyTag'. The value '{id}' is not."
            ),
        ));
    }
    Ok(id.to_owned())
}

fn extended(message: &mut Message, value: &Value) -> Result<(), Refusal> {
    for property in value.as_array().map(Vec::as_slice).unwrap_or_default() {
        let id = property_id(property)?;
        message.extended.retain(|(found, _)| *found != id);
        // A null value takes the property away.
        if let Some(value) = property["value"].as_str() {
            message.extended.push((id, value.to_owned()));
        }
    }
    Ok(())
}

/// What every new message needs and no caller gives: message id, conversation index. They follow from the key, so a run
/// with the same calls has the same ids.
pub(crate) fn finish(message: &mut Message, guid: Uuid, seed: u64, domain: &str) {
    let id = Uuid::new_v5(&guid, &seed.to_be_bytes());
    if message.internet_message_id.is_empty() {
        message.internet_message_id = format!("<SIM{}@{domain}>", id.simple().to_string().to_uppercase());
    }
    if message.conversation_index.is_empty() {
        let mut bytes = vec![0x01];
        bytes.extend(&message.created.timestamp().to_be_bytes()[3..]);
        bytes.extend(id.as_bytes());
        message.conversation_index = base64::engine::general_purpose::STANDARD.encode(bytes);
    }
}

/// The next index of a thread: five bytes more.
pub(crate) fn next_index(index: &str, seed: u64) -> String {
    let mut bytes = base64::engine::general_purpose::STANDARD.decode(index).unwrap_or_default();
    bytes.extend(&seed.to_be_bytes()[3..]);
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
