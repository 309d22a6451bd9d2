//! What people write, in the form Graph takes: addresses and bodies, shared by mail and calendar.
//!
//! The invariant: what comes out of [`Body`] is what the publisher meant to say. Raw HTML inside Markdown is
//! shown as text, not obeyed.

use followthrough::job::{ADDRESS, Invalid, is_address};
use pulldown_cmark::{CowStr, Event, Options, Parser, Tag, html};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// An e-mail address with an optional display name.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Address {
    pub email: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A text and how it is written.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Body {
    pub format: Format,
    pub content: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    Html,
    Text,
    /// `CommonMark` with tables and strikethrough; HTML inside it is shown, not obeyed.
    Markdown,
}

impl Address {
    /// Graph's `recipient`.
    pub fn recipient(&self) -> Value {
        let mut address = json!({ "address": self.email });
        if let Some(name) = &self.name {
            address["name"] = json!(name);
        }
        json!({ "emailAddress": address })
    }

    /// As a person reads it.
    pub fn shown(&self) -> String {
        match &self.name {
            Some(name) => format!("{name} <{}>", self.email),
            None => self.email.clone(),
        }
    }

    pub fn check(&self, path: &str) -> Result<(), Invalid> {
        check_address(&self.email, &format!("{path}.email"))?;
        match &self.name {
            Some(name) if name.len() > 256 || name.chars().any(char::is_control) => Err(Invalid::new(
                format!("{path}.name"),
                "expected at most 256 bytes without control characters",
            )),
            _ => Ok(()),
        }
    }
}

pub fn check_address(text: &str, path: &str) -> Result<(), Invalid> {
    if is_address(text) { Ok(()) } else { Err(Invalid::new(path, ADDRESS).code("invalid_address")) }
}

/// Checks a list of addresses under one name.
pub fn check_addresses(addresses: &[Address], name: &str) -> Result<(), Invalid> {
    addresses.iter().enumerate().try_for_each(|(i, address)| address.check(&format!("{name}[{i}]")))
}

/// One line of at most `longest` bytes.
pub fn check_line(text: &str, path: &str, longest: usize) -> Result<(), Invalid> {
    if text.len() > longest || text.chars().any(char::is_control) {
        let message = format!("expected one line of at most {longest} bytes");
        return Err(Invalid::new(path, message));
    }
    Ok(())
}

impl Body {
    /// Graph's `itemBody`.
    pub fn item_body(&self) -> Value {
        match self.format {
            Format::Text => json!({ "contentType": "Text", "content": self.content }),
            Format::Html | Format::Markdown => json!({ "contentType": "HTML", "content": self.html() }),
        }
    }

    /// As HTML, whatever it was written in.
    pub fn html(&self) -> String {
        match self.format {
            Format::Html => self.content.clone(),
            Format::Text => text_to_html(&self.content),
            Format::Markdown => markdown_to_html(&self.content),
        }
    }
}

/// Text in HTML's clothes: nothing in it is obeyed, and its lines stay lines.
pub fn text_to_html(text: &str) -> String {
    let mut html = String::with_capacity(text.len() + text.len() / 8);
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\n' => html.push_str("<br>\n"),
            '\r' => {}
            c => html.push(c),
        }
    }
    html
}

fn markdown_to_html(markdown: &str) -> String {
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_TASKLISTS;
    let events = Parser::new_ext(markdown, options).map(|event| match event {
        Event::Html(raw) | Event::InlineHtml(raw) => Event::Text(raw),
        Event::Start(Tag::Link { link_type, dest_url, title, id }) => {
            Event::Start(Tag::Link { link_type, dest_url: harmless(dest_url), title, id })
        }
        Event::Start(Tag::Image { link_type, dest_url, title, id }) => {
            Event::Start(Tag::Image { link_type, dest_url: harmless(dest_url), title, id })
        }
        event => event,
    });
    let mut html = String::new();
    html::push_html(&mut html, events);
    html
}

/// A link that opens something, or none: `javascript:` and its kin have no place in a mail.
fn harmless(link: CowStr<'_>) -> CowStr<'_> {
    let scheme = link.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase());
    match scheme.as_deref() {
        None | Some("http" | "https" | "mailto" | "tel") => link,
        // A colon after a slash is no scheme.
        Some(other) if other.contains(['/', '?', '#']) => link,
        Some(_) => "".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn markdown(content: &str) -> String {
        Body { format: Format::Markdown, content: content.into() }.html()
    }

    #[test]
    fn markdown_becomes_html_and_html_in_it_becomes_text() {
        assert_eq!(markdown("**Next** steps"), "<p><strong>Next</strong> steps</p>\n");
        let html = markdown(
            "Hi <script>alert(1)</script>\n\n<img src=x onerror=y>\n\n[a](javascript:x) [b](https://b.example)",
        );
        assert!(!html.contains("<script") && !html.contains("<img"), "{html}");
        assert!(html.contains("&lt;script&gt;") && html.contains("<a href=\"\">a</a>"), "{html}");
        assert!(html.contains("<a href=\"https://b.example\">b</a>"), "{html}");
    }

    #[test]
    fn text_keeps_its_lines_and_obeys_nothing() {
        assert_eq!(text_to_html("a <b>\r\nc & \"d\""), "a &lt;b&gt;<br>\nc &amp; &quot;d&quot;");
        let text = Body { format: Format::Text, content: "<b>".into() };
        assert_eq!(text.item_body(), json!({"contentType": "Text", "content": "<b>"}));
    }

    #[test]
    fn what_cannot_be_an_address_is_refused_with_its_path() {
        for good in ["ada@acme.example", "a.b+c@x", "müller@büro.example", "o'neil@acme.example"] {
            assert!(check_address(good, "to[0].email").is_ok(), "{good}");
        }
        for bad in ["", "ada", "@x", "ada@", "a b@x", "a@b@c", "Ada <ada@x>", "a@x,b@x", "a@x\n", "a@.x"] {
            let invalid = check_address(bad, "to[0].email").expect_err(bad);
            assert_eq!((invalid.path.as_str(), invalid.code), ("to[0].email", "invalid_address"));
        }
    }
}
