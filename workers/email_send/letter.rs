//! The payload of `email.send`: a whole e-mail, or the draft that is one already; and who confirmed it.
//!
//! The invariant: exactly one of the two forms is accepted, and the confirmation is always there.

use std::fmt::Write as _;

use chrono::{DateTime, SecondsFormat, Utc};
use followthrough::job::{Invalid, Job as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::content::{Address, Body, check_address, check_line};
use crate::email_draft::{Attached, EmailDraft, Importance, check_message_id};

/// Sends an e-mail that a person confirmed, as the user or as a shared mailbox: a new one (`to`, `subject`,
/// `body` and what `email.draft` takes besides), or the draft `draft_id` as it is.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [
    json!({"required": ["to", "subject", "body"], "properties": {"draft_id": {"type": "null"}}}),
    json!({"required": ["draft_id"], "properties": {
        "draft_id": {"type": "string"}, "to": {"maxItems": 0}, "cc": {"maxItems": 0}, "bcc": {"maxItems": 0},
        "attachments": {"maxItems": 0}, "subject": {"type": "null"}, "body": {"type": "null"},
        "reply_to_message": {"type": "null"}, "importance": {"type": "null"},
    }}),
]))]
pub struct EmailSend {
    /// At least one; with `cc` and `bcc` at most 500.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<Address>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cc: Vec<Address>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bcc: Vec<Address>,
    /// In a reply, one that differs from the thread's (but for `Re:` and its like) replaces it, which
    /// starts a new conversation in Outlook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Body>,
    /// The id of the message to answer: the e-mail quotes it and joins its conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to_message: Option<String>,
    /// The address of a shared mailbox that it is sent from, and that holds `draft_id`; the user's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mailbox: Option<String>,
    /// Files below 3 MB and the text together: below 4 MB once encoded. Larger files one by one, in the user's
    /// own mailbox only; a job has at most 8 MiB, which is about 5.9 MB of files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attached>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub importance: Option<Importance>,
    /// The id of a draft to send as it is, in place of all of the above but `mailbox`. It is refused
    /// (`draft_changed`) when it was changed after the confirmation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draft_id: Option<String>,
    pub confirmation: Confirmation,
}

/// Who said that exactly this may be sent, and when.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Confirmation {
    /// A person, as the publisher calls them.
    pub by: String,
    pub at: DateTime<Utc>,
}

impl EmailSend {
    pub(super) fn check_form(&self) -> Result<(), Invalid> {
        if self.confirmation.by.is_empty() {
            return Err(Invalid::new("confirmation.by", "expected who confirmed it"));
        }
        check_line(&self.confirmation.by, "confirmation.by", 256)?;
        let Some(draft) = &self.draft_id else { return self.letter()?.check() };
        check_message_id(draft, "draft_id")?;
        if let Some(mailbox) = &self.mailbox {
            check_address(mailbox, "mailbox")?;
        }
        let given = [
            ("to", !self.to.is_empty()),
            ("cc", !self.cc.is_empty()),
            ("bcc", !self.bcc.is_empty()),
            ("subject", self.subject.is_some()),
            ("body", self.body.is_some()),
            ("reply_to_message", self.reply_to_message.is_some()),
            ("attachments", !self.attachments.is_empty()),
            ("importance", self.importance.is_some()),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            Some((name, _)) => Err(Invalid::new(name, "not beside draft_id: a draft is sent as it is")),
            None => Ok(()),
        }
    }

    /// The draft that a new e-mail is first.
    pub(super) fn letter(&self) -> Result<EmailDraft, Invalid> {
        let absent = |path: &str| Invalid::new(path, "absent; expected it, or draft_id");
        Ok(EmailDraft {
            to: self.to.clone(),
            cc: self.cc.clone(),
            bcc: self.bcc.clone(),
            subject: self.subject.clone().ok_or_else(|| absent("subject"))?,
            body: self.body.clone().ok_or_else(|| absent("body"))?,
            reply_to_message: self.reply_to_message.clone(),
            mailbox: self.mailbox.clone(),
            attachments: self.attachments.clone(),
            importance: self.importance,
        })
    }

    pub(super) fn shown(&self) -> String {
        let Confirmation { by, at } = &self.confirmation;
        let mut text = format!("Confirmed by {by} at {}\n", at.to_rfc3339_opts(SecondsFormat::AutoSi, true));
        match (&self.draft_id, self.letter()) {
            (None, Ok(letter)) => text.insert_str(0, &format!("E-mail to send: {}\n", letter.shown())),
            (draft, _) => {
                let draft = draft.as_deref().unwrap_or_default();
                let mailbox = self.mailbox.as_deref().unwrap_or("the user's own mailbox");
                let _ = writeln!(text, "Send the draft {draft} of {mailbox} as it is.");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn job(changes: &Value) -> Result<EmailSend, Invalid> {
        let mut payload: Value = serde_json::from_str(EmailSend::SPEC.example).expect("the example is JSON");
        for (name, value) in changes.as_object().expect("fields") {
            payload[name] = value.clone();
        }
        let job: EmailSend = serde_json::from_value(payload).expect("the shape is right");
        job.check().map(|()| job)
    }

    fn draft(changes: &Value) -> Result<EmailSend, Invalid> {
        let nothing = json!({"to": [], "subject": null, "body": null, "attachments": [], "draft_id": "AAMk"});
        let mut all = nothing.as_object().expect("fields").clone();
        all.extend(changes.as_object().expect("fields").clone());
        job(&all.into())
    }

    #[test]
    fn the_example_is_a_good_payload_and_nothing_of_it_is_lost() {
        let job = job(&json!({})).unwrap_or_else(|invalid| panic!("{invalid:?}"));
        let example: Value = serde_json::from_str(EmailSend::SPEC.example).expect("JSON");
        assert_eq!(serde_json::to_value(&job).expect("serializable"), example);
        let shown = job.render();
        assert!(
            shown.contains("Bob <bob@contoso.example>") && shown.contains("Confirmed by ada@"),
            "{shown}"
        );
        let draft = draft(&json!({"mailbox": "intake@acme.example"})).unwrap_or_else(|no| panic!("{no:?}"));
        assert!(draft.render().contains("AAMk of intake@acme.example"), "{}", draft.render());
        assert_eq!(draft.scopes(), ["Mail.ReadWrite.Shared", "Mail.Send.Shared"]);
    }

    #[test]
    fn exactly_one_of_the_two_forms_is_accepted() {
        for (changes, path) in [
            (json!({"subject": null}), "subject"),
            (json!({"body": null}), "body"),
            (json!({"to": []}), "to"),
            (json!({"draft_id": "AAMk"}), "to"),
            (json!({"mailbox": "intake"}), "mailbox"),
            (json!({"confirmation": {"by": "", "at": "2026-01-15T09:30:00Z"}}), "confirmation.by"),
            (json!({"confirmation": {"by": "a\nb", "at": "2026-01-15T09:30:00Z"}}), "confirmation.by"),
        ] {
            let invalid = job(&changes).err().unwrap_or_else(|| panic!("{changes} should be refused"));
            assert_eq!(invalid.path, path, "{changes}");
        }
        for (changes, path) in [
            (json!({"draft_id": ""}), "draft_id"),
            (json!({"subject": "x"}), "subject"),
            (json!({"cc": [{"email": "a@x"}]}), "cc"),
            (json!({"importance": "high"}), "importance"),
            (json!({"mailbox": "intake"}), "mailbox"),
        ] {
            let invalid = draft(&changes).err().unwrap_or_else(|| panic!("{changes} should be refused"));
            assert_eq!(invalid.path, path, "{changes}");
        }
        for missing in ["confirmation", "by", "at"] {
            let mut payload: Value = serde_json::from_str(EmailSend::SPEC.example).expect("JSON");
            payload.as_object_mut().expect("fields").remove(missing);
            payload["confirmation"].as_object_mut().map(|fields| fields.remove(missing));
            assert!(serde_json::from_value::<EmailSend>(payload).is_err(), "without {missing}");
        }
    }
}
