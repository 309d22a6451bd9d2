//! Bodies as Exchange keeps them: html is wrapped into a document with its own meta tag, so what is read back is never
//! byte for byte what was written (samples of <https://learn.microsoft.com/graph/api/user-post-messages>); text is
//! derived from html when `Prefer: outlook.body-content-type="text"` asks for it.

/// What the samples show around every html body.
const META: &str = "<meta http-equiv=\"Content-Type\" content=\"text/html; charset=utf-8\">";

/// Wraps a fragment, or puts the meta tag into a whole document, and takes out what the service always removes: scripts
/// (<https://learn.microsoft.com/graph/api/resources/message>: unsafe html such as JavaScript is removed).
pub(crate) fn stored_html(sent: &str) -> String {
    let clean = without_element(sent, "script");
    let lower = clean.to_ascii_lowercase();
    if lower.contains(&META.to_ascii_lowercase()) {
        return clean;
    }
    if let Some(head) = lower.find("<head>") {
        let at = head + "<head>".len();
        return format!("{}\r\n{META}{}", &clean[..at], &clean[at..]);
    }
    if let Some(html) = lower.find("<html")
        && let Some(end) = lower[html..].find('>')
    {
        let at = html + end + 1;
        return format!("{}<head>\r\n{META}</head>{}", &clean[..at], &clean[at..]);
    }
    if lower.contains("<body") {
        return format!("<html><head>\r\n{META}</head>{clean}</html>");
    }
    format!("<html><head>\r\n{META}</head><body>{clean}</body></html>")
}

fn without_element(html: &str, name: &str) -> String {
    let (open, close) = (format!("<{name}"), format!("</{name}>"));
    let mut rest = html;
    let mut out = String::with_capacity(html.len());
    loop {
        // ASCII lower-casing keeps byte positions.
        let lower = rest.to_ascii_lowercase();
        let Some(start) = lower.find(&open) else { break };
        out.push_str(&rest[..start]);
        let Some(end) = lower[start..].find(&close) else { return out };
        rest = &rest[start + end + close.len()..];
    }
    out.push_str(rest);
    out
}

/// Plain text of html: enough for previews, text bodies and searches.
pub(crate) fn text_of(html: &str) -> String {
    let html = without_element(&without_element(html, "head"), "style");
    let mut out = String::with_capacity(html.len());
    let mut rest = html.as_str();
    while let Some(open) = rest.find('<') {
        push_text(&mut out, &rest[..open]);
        let Some(close) = rest[open..].find('>') else { break };
        let tag = rest[open + 1..open + close].to_ascii_lowercase();
        let name: String =
            tag.trim_start_matches('/').chars().take_while(char::is_ascii_alphanumeric).collect();
        if matches!(
            name.as_str(),
            "br" | "p" | "div" | "tr" | "li" | "hr" | "h1" | "h2" | "h3" | "blockquote"
        ) && !out.is_empty()
            && !out.ends_with('\n')
        {
            out.push_str("\r\n");
        }
        rest = &rest[open + close + 1..];
    }
    push_text(&mut out, rest);
    out.trim().to_owned()
}

fn push_text(out: &mut String, text: &str) {
    let text = text
        .replace("&nbsp;", " ")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&#39;", "'")
        .replace("&amp;", "&");
    for part in text.split(['\r', '\n', '\t', ' ']) {
        if part.is_empty() {
            continue;
        }
        if !out.is_empty() && !out.ends_with(['\n', ' ']) && text.starts_with(char::is_whitespace) {
            out.push(' ');
        }
        out.push_str(part);
        out.push(' ');
    }
    if out.ends_with(' ') && !text.ends_with(char::is_whitespace) {
        out.pop();
    }
}

/// The first 255 characters of the body as text (<https://learn.microsoft.com/graph/api/resources/message>).
pub(crate) fn preview(html: bool, content: &str) -> String {
    // A long body's tail cannot show in its first 255 characters.
    let mut end = content.len().min(16 * 1024);
    while !content.is_char_boundary(end) {
        end -= 1;
    }
    let text = if html { text_of(&content[..end]) } else { content[..end].to_owned() };
    text.chars().take(255).collect()
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn html_is_wrapped_once_and_loses_its_scripts() {
        let stored = stored_html("They were <b>awesome</b>!<script>alert(1)</script>");
        assert!(stored.starts_with("<html><head>\r\n<meta"), "{stored}");
        assert!(!stored.contains("script"));
        assert_eq!(stored_html(&stored), stored);
        assert_eq!(text_of(&stored), "They were awesome!");
        assert_eq!(text_of("<p>One &amp; two</p><p>three</p>"), "One & two\r\nthree");
    }
}
