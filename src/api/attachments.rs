//! The content of an attachment, as a file.
//!
//! The invariant: whatever a stranger sent is downloaded, never shown: no browser runs it as a page of ours, and its name
//! and type cannot break out of their headers.

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::Api;
use super::error::{ApiError, Result};
use super::request::Path;
use crate::api_key::Caller;
use crate::mailbox::attachments;
use crate::mailbox::content::{Attachment, Content};

const ANY_TYPE: &str = "application/octet-stream";
/// What RFC 8187 lets stand in a `filename*`, but for a few that mean something elsewhere.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(get_attachment))
}

/// Any bytes.
#[derive(utoipa::ToSchema)]
#[schema(value_type = String, format = Binary)]
struct File(Vec<u8>);

/// Download an attachment
///
/// The bytes of a file; of an attached message, event or contact its MIME, iCalendar or vCard. `content` of the message's
/// attachments says which are here.
#[utoipa::path(
    get, path = "/v1/mailboxes/{id}/messages/{message}/attachments/{attachment}", tag = "mailboxes",
    security(("api_key" = ["publisher"])),
    params(("id" = Uuid, Path), ("message" = String, Path), ("attachment" = String, Path)),
    responses(
        (status = 200, description = "The content, to be saved", content_type = "*/*", body = inline(File)),
        (status = 409, description = "`content_wanted`: it will be fetched; `content_too_large`: larger than \
          `mailbox.attachment_bytes`; `content_refused`: Microsoft does not give it; `no_content`: a link has none, or \
          none is kept", body = super::error::ErrorBody),
    ),
)]
async fn get_attachment(
    State(api): State<Api>,
    caller: Caller,
    Path((id, message, attachment)): Path<(Uuid, String, String)>,
) -> Result<Response> {
    let mailbox = api.mailbox(&caller, id).await?;
    let found = attachments::find(&api.services, mailbox.id, &message, &attachment).await?;
    let (attachment, content) = found.ok_or_else(ApiError::not_found)?;
    let Some(content) = content else { return Err(absent(&attachment)) };
    let (kind, suffix) = kind_of(&attachment, &content);
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_str(&kind).unwrap_or(HeaderValue::from_static(ANY_TYPE))),
        (header::CONTENT_DISPOSITION, disposition(attachment.name.as_deref().unwrap_or_default(), suffix)),
    ];
    Ok((headers, File(content).0).into_response())
}

fn absent(attachment: &Attachment) -> ApiError {
    match attachment.content {
        Some(Content::Wanted | Content::Kept) => {
            ApiError::conflict("content_wanted", "it is not here yet, and will be fetched")
        }
        Some(Content::TooLarge) => ApiError::conflict("content_too_large", "it is larger than what is kept"),
        Some(Content::Refused) => ApiError::conflict("content_refused", "Microsoft does not give it"),
        Some(Content::None) | None => ApiError::conflict("no_content", "it has no content that is kept"),
    }
}

/// The media type, and what the name of an item ends with.
/// <https://learn.microsoft.com/graph/api/attachment-get>: items have no type of their own.
fn kind_of(attachment: &Attachment, content: &[u8]) -> (String, &'static str) {
    if attachment.kind.as_deref() != Some("item") {
        let told = attachment.content_type.as_deref().unwrap_or_default();
        return (if plain_type(told) { told.to_owned() } else { ANY_TYPE.to_owned() }, "");
    }
    let begins = |text: &str| {
        content.get(..text.len()).is_some_and(|start| start.eq_ignore_ascii_case(text.as_bytes()))
    };
    let (kind, suffix) = if begins("BEGIN:VCARD") {
        ("text/vcard", ".vcf")
    } else if begins("BEGIN:VCALENDAR") {
        ("text/calendar", ".ics")
    } else {
        ("message/rfc822", ".eml")
    };
    (kind.to_owned(), suffix)
}

/// `type/subtype`, perhaps with parameters, in characters that a header may hold.
fn plain_type(text: &str) -> bool {
    let token = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$&^_.+-".contains(&byte))
    };
    let essence = text.split(';').next().unwrap_or_default().trim();
    essence.split_once('/').is_some_and(|(kind, subtype)| token(kind) && token(subtype))
        && text.len() <= 256
        && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

/// The name twice, as RFC 6266 has it: in ASCII for old programs, and as it is. Folders and control characters are no
/// part of a name, nor is what turns the direction of writing to hide its end.
fn disposition(name: &str, suffix: &str) -> HeaderValue {
    let turns = |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let tame = |c: char| if c.is_control() || turns(c) || "/\\:*?\"<>|".contains(c) { '_' } else { c };
    let name: String = name.chars().map(tame).take(200).collect();
    let mut name = match name.trim_matches(['.', ' ']) {
        "" => "attachment".to_owned(),
        name => name.to_owned(),
    };
    if !name.to_ascii_lowercase().ends_with(suffix) {
        name.push_str(suffix);
    }
    let ascii: String = name.chars().map(|c| if c.is_ascii() && c != '%' { c } else { '_' }).collect();
    let text =
        format!("attachment; filename=\"{ascii}\"; filename*=UTF-8''{}", utf8_percent_encode(&name, ENCODED));
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("attachment"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_break_out_of_its_header_or_lead_to_a_folder() {
        for (name, suffix, expected) in [
            ("Angebot 7.pdf", "", "attachment; filename=\"Angebot 7.pdf\"; filename*=UTF-8''Angebot%207.pdf"),
            (
                "Übersicht 100%.csv",
                "",
                "attachment; filename=\"_bersicht 100_.csv\"; filename*=UTF-8''%C3%9Cbersicht%20100%25.csv",
            ),
            (
                "../../etc/pass\"wd\r\nSet-Cookie: a=b",
                "",
                "attachment; filename=\"_.._etc_pass_wd__Set-Cookie_ a=b\"; \
                 filename*=UTF-8''_.._etc_pass_wd__Set-Cookie_%20a%3Db",
            ),
            (" .. ", "", "attachment; filename=\"attachment\"; filename*=UTF-8''attachment"),
            ("", ".eml", "attachment; filename=\"attachment.eml\"; filename*=UTF-8''attachment.eml"),
            ("a\u{202e}fdp.exe", "", "attachment; filename=\"a_fdp.exe\"; filename*=UTF-8''a_fdp.exe"),
            ("Re", ".eml", "attachment; filename=\"Re.eml\"; filename*=UTF-8''Re.eml"),
            ("Lunch.ICS", ".ics", "attachment; filename=\"Lunch.ICS\"; filename*=UTF-8''Lunch.ICS"),
        ] {
            assert_eq!(disposition(name, suffix), expected, "{name:?}");
        }
    }

    #[test]
    fn a_type_that_is_none_is_any() {
        for told in ["text/csv", "text/plain; charset=\"utf-8\"", "application/vnd.ms-excel"] {
            assert!(plain_type(told), "{told}");
        }
        for told in ["", "text", "text/", "a b/c", "text/html\r\nX: y", "text/ä", "message\\rfc822"] {
            assert!(!plain_type(told), "{told}");
        }
    }
}
