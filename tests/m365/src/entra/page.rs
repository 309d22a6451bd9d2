//! The sign-in page, small enough to be read by a test and plain enough to be clicked by a person.

use std::collections::HashMap;
use std::fmt::Write as _;

use axum::response::Html;

use crate::Sim;

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

fn hidden(parameters: &HashMap<String, String>) -> String {
    let mut names: Vec<&String> = parameters.keys().collect();
    names.sort();
    names.into_iter().fold(String::new(), |mut all, name| {
        let (name, value) = (escape(name), escape(&parameters[name]));
        let _ = write!(all, "<input type=hidden name=\"{name}\" value=\"{value}\">");
        all
    })
}

const HEAD: &str = "<!doctype html><meta charset=utf-8><title>Sign in (simulated)</title><style>body{font:16px \
    system-ui;max-width:32em;margin:3em auto;padding:0 1em}button{font:inherit;display:block;width:100%;margin:.4em 0;\
    padding:.6em;text-align:left}</style>";

/// Who signs in, with what will be asked of them.
pub(crate) fn sign_in(sim: &Sim, app: &str, parameters: &HashMap<String, String>) -> Html<String> {
    let mut buttons = String::new();
    for user in sim.directory().users.iter().filter(|user| user.account_enabled) {
        let (upn, name) = (escape(&user.upn), escape(&user.display_name));
        let _ = write!(
            buttons,
            "<button name=sim_account value=\"{upn}\">{name}<br><small>{upn}</small></button>"
        );
    }
    let mut scopes = String::new();
    for word in parameters.get("scope").map_or("", String::as_str).split_whitespace() {
        let _ = write!(scopes, "<li>{}</li>", escape(word));
    }
    Html(format!(
        "{HEAD}<h1>Pick an account</h1><p><b>{}</b> would like to:</p><ul>{scopes}</ul><form method=post>{}{buttons}\
         <button name=sim_decline value=1>Cancel</button></form>",
        escape(app),
        hidden(parameters)
    ))
}

/// `response_mode=form_post`: the browser carries the answer in a form.
pub(crate) fn form_post(redirect_uri: &str, parameters: &HashMap<String, String>) -> Html<String> {
    Html(format!(
        "{HEAD}<form method=post action=\"{}\">{}<noscript><button>Continue</button></noscript></form>\
         <script>document.forms[0].submit()</script>",
        escape(redirect_uri),
        hidden(parameters)
    ))
}
