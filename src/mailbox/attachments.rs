//! The content of attachments: wanted when their message is laid down, fetched when nothing else is to be done, kept once.
//!
//! The invariant: what is wanted commits with its message, so that a content that is not here yet is never forgotten;
//! each content commits by itself, and only where it is still wanted.

use std::collections::HashMap;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use scoped_futures::ScopedFutureExt;
use uuid::Uuid;

use super::Mailboxes;
use super::content::{Attached, Attachment, Content, Detail};
use crate::outcome::Failure;
use crate::services::Services;
use crate::store::attachment::{self, KEPT, Known, REFUSED, Wanted};
use crate::store::mailbox::{self, Mailbox};
use crate::store::message::{self, Message};
use crate::store::{Result, StoreError, Tx};

/// The waits double from one poll on: four hours where a mailbox is polled every minute.
const MOST_TRIES: i32 = 9;
/// The code of what has more bytes than are kept.
pub const TOO_LARGE: &str = "answer_too_large";

/// How asking for one ended.
pub enum Fetched {
    Content(Bytes),
    /// It or its message is not there any more.
    Gone,
    /// It will never be given; why.
    Refused(String),
    /// It was not given; why.
    Failed(String),
}

impl Mailboxes {
    /// The largest content that is kept.
    pub fn attachment_bytes(&self) -> u32 {
        self.services.attachment_bytes
    }

    /// What to fetch next.
    pub async fn next_wanted(&self, mailbox: &Mailbox) -> Result<Option<Wanted>, Failure> {
        let (id, most, now) = (mailbox.id, self.attachment_bytes(), self.now());
        let store = &self.services.store;
        let next: Result<_, StoreError> =
            store.read(|tx| async move { attachment::next(tx, id, most, now).await }.scope_boxed()).await;
        Ok(next?)
    }

    /// Is a folder to be looked at by now?
    pub async fn is_due(&self, mailbox: &Mailbox) -> Result<bool, Failure> {
        let now = self.now();
        let folders = self.folders(mailbox).await?;
        Ok(folders.iter().any(|folder| folder.next_look(now) <= now))
    }

    pub async fn fetched(&self, wanted: &Wanted, fetched: &Fetched) -> Result<(), Failure> {
        let now = self.now();
        let again = now + self.pace() * (1 << wanted.tries);
        let store = &self.services.store;
        let written: Result<_, StoreError> = store
            .transaction("mailbox_attachment", |tx| {
                async move {
                    if !mailbox::hold(tx, wanted.mailbox_id).await? {
                        return Ok(());
                    }
                    match fetched {
                        Fetched::Content(content) => attachment::keep(tx, wanted, content, now).await,
                        Fetched::Gone => attachment::forget(tx, wanted).await,
                        Fetched::Refused(code) => attachment::refuse(tx, wanted, code, now).await,
                        Fetched::Failed(code) if wanted.tries + 1 >= MOST_TRIES => {
                            attachment::refuse(tx, wanted, code, now).await
                        }
                        Fetched::Failed(code) => attachment::put_off(tx, wanted, code, again, now).await,
                    }
                }
                .scope_boxed()
            })
            .await;
        Ok(written?)
    }
}

/// What a page of messages changes about attachments.
#[derive(Default)]
pub(super) struct Attaching {
    wanted: Vec<Wanted>,
    /// Message, old id, new id.
    renamed: Vec<(String, String, String)>,
    /// Message, id.
    gone: Vec<(String, String)>,
}

impl Attaching {
    /// `renamed`: the message goes by another id since, and so does all that is attached to it.
    pub(super) fn add(&mut self, message: &Message, attached: Attached, renamed: bool, most: u32) {
        let Attached { mut before, now } = attached;
        before.retain(|old| now.iter().all(|new| new.id != old.id));
        for new in &now {
            let same = |old: &Attachment| Attachment { id: new.id.clone(), ..old.clone() } == *new;
            if renamed && let Some(at) = before.iter().position(same) {
                let old = before.remove(at).id;
                self.renamed.push((message.id.clone(), old, new.id.clone()));
            }
            if wants(new, most) {
                self.wanted.push(Wanted {
                    mailbox_id: message.mailbox_id,
                    message_id: message.id.clone(),
                    id: new.id.clone(),
                    size: new.size,
                    received_at: message.received_at,
                    tries: 0,
                });
            }
        }
        self.gone.extend(before.into_iter().map(|old| (message.id.clone(), old.id)));
    }

    pub(super) async fn lay(self, tx: &mut Tx, mailbox: Uuid, now: DateTime<Utc>) -> Result<()> {
        for (message, from, to) in &self.renamed {
            attachment::rename(tx, mailbox, message, from, to).await?;
        }
        for (message, id) in &self.gone {
            attachment::remove(tx, mailbox, message, id).await?;
        }
        attachment::want(tx, &self.wanted, now).await
    }
}

/// A link has no content, and what is too large is not asked for.
fn wants(attachment: &Attachment, most: u32) -> bool {
    most > 0 && attachment.size <= i64::from(most) && attachment.kind.as_deref() != Some("reference")
}

/// What is known of the content of the attachments of some messages.
pub struct Contents {
    known: HashMap<(String, String), Known>,
    most: u32,
}

/// For messages that are shown.
pub async fn contents(services: &Services, mailbox: Uuid, messages: &[String]) -> Result<Contents> {
    let known = services
        .store
        .read(|tx| async move { attachment::of_messages(tx, mailbox, messages).await }.scope_boxed())
        .await?;
    Ok(Contents::new(known, services.attachment_bytes))
}

/// One attachment, and its content where it is kept.
pub async fn find(
    services: &Services,
    mailbox: Uuid,
    message: &str,
    id: &str,
) -> Result<Option<(Attachment, Option<Vec<u8>>)>> {
    let most = services.attachment_bytes;
    services
        .store
        .read(|tx| {
            async move {
                let Some(row) = message::find(tx, mailbox, message).await? else { return Ok(None) };
                let known = attachment::of_messages(tx, mailbox, &[message.to_owned()]).await?;
                let mut detail = Detail::read(&row.detail);
                Contents::new(known, most).tell(message, &mut detail);
                let found = detail.attachments.into_iter().find(|attachment| attachment.id == id);
                let Some(found) = found else { return Ok(None) };
                Ok(Some((found, attachment::content(tx, mailbox, message, id).await?)))
            }
            .scope_boxed()
        })
        .await
}

impl Contents {
    fn new(known: Vec<Known>, most: u32) -> Self {
        let known = known.into_iter().map(|one| ((one.message_id.clone(), one.id.clone()), one)).collect();
        Self { known, most }
    }

    /// Says of each attachment whether its content is here.
    pub fn tell(&self, message: &str, detail: &mut Detail) {
        for attachment in &mut detail.attachments {
            let known = self.known.get(&(message.to_owned(), attachment.id.clone()));
            attachment.content = Some(self.of(attachment, known));
        }
    }

    fn of(&self, attachment: &Attachment, known: Option<&Known>) -> Content {
        match known.map(|known| (known.state.as_str(), known.code.as_deref())) {
            Some((KEPT, _)) => Content::Kept,
            Some((REFUSED, Some(TOO_LARGE))) => Content::TooLarge,
            Some((REFUSED, _)) => Content::Refused,
            // The limit may have been changed meanwhile.
            Some(_) if wants(attachment, self.most) => Content::Wanted,
            _ if self.most > 0 && attachment.size > i64::from(self.most) => Content::TooLarge,
            _ => Content::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(id: &str, name: &str, size: i64) -> Attachment {
        Attachment {
            id: id.into(),
            kind: Some("file".into()),
            name: Some(name.into()),
            content_type: None,
            size,
            inline: false,
            content: None,
        }
    }

    fn told(before: &[Attachment], now: &[Attachment], renamed: bool) -> Attaching {
        let message = Message {
            mailbox_id: Uuid::nil(),
            id: "m".into(),
            folder_id: String::new(),
            internet_message_id: None,
            conversation_id: None,
            received_at: DateTime::UNIX_EPOCH,
            subject: None,
            is_read: false,
            is_draft: false,
            detail: String::new(),
            state: String::new(),
            sweep: 0,
            backfill: 0,
            created_at: DateTime::UNIX_EPOCH,
            updated_at: DateTime::UNIX_EPOCH,
        };
        let mut attaching = Attaching::default();
        attaching.add(&message, Attached { before: before.to_vec(), now: now.to_vec() }, renamed, 100);
        attaching
    }

    #[test]
    fn what_moved_along_with_its_message_is_the_same_under_another_id_and_each_has_one() {
        let before = [file("1", "a", 5), file("2", "a", 5), file("3", "b", 5)];
        let now = [file("7", "a", 5), file("8", "a", 5), file("9", "b", 6)];
        let moved = told(&before, &now, true);
        let pair = |from: &str, to: &str| ("m".to_owned(), from.to_owned(), to.to_owned());
        assert_eq!(moved.renamed, [pair("1", "7"), pair("2", "8")]);
        assert_eq!(moved.gone, [("m".to_owned(), "3".to_owned())]);
        // A draft whose file was replaced by one that looks like it holds another content.
        let edited = told(&before, &now, false);
        assert!(edited.renamed.is_empty() && edited.gone.len() == 3 && edited.wanted.len() == 3);
    }

    #[test]
    fn a_link_and_what_is_too_large_are_not_wanted() {
        let link = Attachment { kind: Some("reference".into()), ..file("1", "a", 5) };
        let unsaid = Attachment { kind: None, ..file("2", "a", 100) };
        let laid = told(&[], &[link, unsaid, file("3", "a", 101)], false);
        assert_eq!(laid.wanted.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), ["2"]);
    }
}
