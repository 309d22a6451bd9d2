//! Fills a mailbox with mail that looks like mail: threads, html of many makers, odd characters, empty subjects, lists of
//! 500 recipients, attachments. The same seed makes the same mailbox.

use std::fmt::Write as _;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde::Deserialize;

use super::mail::put;
use super::message::{Address, Attachment, AttachmentContent, Message};
use super::state::GraphState;

/// How much of what.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fill {
    pub messages: usize,
    /// Beside Inbox and Sent Items.
    pub folders: usize,
    pub days: i64,
    pub seed: u64,
    /// The newest message's time.
    pub until: Option<DateTime<Utc>>,
    /// This share of all messages goes to the first folder, in percent.
    pub heavy_percent: u8,
}

impl Default for Fill {
    fn default() -> Self {
        Self { messages: 200, folders: 5, days: 30, seed: 1, until: None, heavy_percent: 33 }
    }
}

const SUBJECTS: &[&str] = &[
    "Quarterly numbers",
    "Invoice 2026-1187",
    "Question about the offer",
    "Störung im Werk Süd",
    "報告書の件",
    "Re-order of filters",
    "Meeting notes",
    "Your ticket #48213",
    "Gâteau d'anniversaire 🎂",
    "",
    "Contract, second draft",
    "Отчёт за неделю",
    "O'Brien & Sons <delivery>",
    "AW: Terminverschiebung",
    "100% done?",
];
const PEOPLE: &[(&str, &str)] = &[
    ("Nora Schmidt", "nora@customer.example"),
    ("李 明", "li.ming@supplier.example"),
    ("Zoë O'Brien", "zoe@partner.example"),
    ("Jürgen Groß", "juergen@customer.example"),
    ("Aïcha Benali", "aicha@globex.example"),
    ("Help Desk", "helpdesk@vendor.example"),
    ("", "no-reply@notifications.example"),
    ("Smith, John (EXT)", "john.smith@contractor.example"),
];
const PARAGRAPHS: &[&str] = &[
    "thank you for the call this morning.",
    "Could you have a look at the attached list &amp; tell me what is missing?",
    "Wir melden uns bis Freitag.",
    "The pump in hall 3 stopped again at 04:12.",
    "ありがとうございます。",
    "Please note the new delivery address.",
    "Price: 1 250,00 € net.",
    "See you on Thursday.",
];

impl GraphState {
    /// Fills the mailbox; gives back how many messages were made.
    pub fn fill(&mut self, address: &str, fill: &Fill) -> usize {
        let mut rng = StdRng::seed_from_u64(fill.seed);
        let until = fill.until.unwrap_or_else(Utc::now);
        let mailbox = self.open(address);
        let root = mailbox.folder("msgfolderroot");
        let me = Address::new(&mailbox.display_name, &mailbox.address);
        let mut folders = vec![mailbox.folder("inbox"), mailbox.folder("sentitems")];
        let mut parent = root;
        for number in 0..fill.folders {
            let name = format!("Project {}", number + 1);
            let known = mailbox.children(parent).find(|folder| folder.name == name).map(|folder| folder.key);
            let key =
                known.unwrap_or_else(|| mailbox.add_folder(&name, Some(parent), number % 11 == 10, None));
            folders.push(key);
            // Every third one is nested in the one before.
            parent = if number % 3 == 2 { key } else { root };
        }
        let bodies: Vec<(bool, Arc<str>)> = (0..64).map(|number| body(&mut rng, number)).collect();
        let files: Vec<Arc<[u8]>> = (0..48).map(|number| file(&mut rng, number)).collect();
        // (conversation, subject, last message id) of threads that may go on
        let mut threads: Vec<(Arc<str>, String, String)> = Vec::new();
        let span = fill.days.max(1) * 86_400;
        for number in 0..fill.messages {
            let seconds = rng.random_range(0..span);
            let mut message = Message::empty(until - TimeDelta::seconds(seconds));
            message.draft = false;
            message.read = rng.random_bool(0.7);
            let heavy = rng.random_range(0..100) < u32::from(fill.heavy_percent);
            let folder = if heavy { folders[0] } else { folders[rng.random_range(0..folders.len())] };
            let (name, from) = PEOPLE[rng.random_range(0..PEOPLE.len())];
            let other = Address::new(if name.is_empty() { from } else { name }, from);
            let outgoing = folder == folders[1];
            let (from, to) = if outgoing { (me.clone(), other) } else { (other, me.clone()) };
            message.sender = Some(from.clone());
            message.from = Some(from);
            message.to = vec![to];
            if number % 997 == 996 {
                message.to = (0..500)
                    .map(|n| Address::new(&format!("List {n}"), &format!("list{n}@many.example")))
                    .collect();
            }
            let (html, content) = &bodies[rng.random_range(0..bodies.len())];
            message.html = *html;
            message.content = content.clone();
            message.importance =
                ["normal", "normal", "normal", "high", "low"].choose(&mut rng).copied().unwrap_or("normal");
            if !threads.is_empty() && rng.random_bool(0.4) {
                let at = rng.random_range(0..threads.len());
                let (conversation, subject, ancestor) = threads[at].clone();
                message.conversation = conversation;
                message.subject = Some(format!("RE: {subject}"));
                message.headers.push(("In-Reply-To".into(), ancestor));
            } else {
                message.subject = Some(SUBJECTS[rng.random_range(0..SUBJECTS.len())].to_owned());
            }
            if number % 13 == 12 {
                let file = &files[rng.random_range(0..files.len())];
                message.attachments.push(Attachment {
                    key: 0,
                    modified: message.received,
                    name: format!("Übersicht {number}.csv"),
                    content_type: Some("text/csv".into()),
                    inline: number % 26 == 25,
                    content_id: None,
                    content_location: None,
                    content: AttachmentContent::File(file.clone()),
                });
            }
            let key = put(mailbox, folder, message);
            if let Some(message) = mailbox.messages.get(&key)
                && threads.len() < 512
            {
                let subject =
                    message.subject.clone().unwrap_or_default().trim_start_matches("RE: ").to_owned();
                threads.push((message.conversation.clone(), subject, message.internet_message_id.clone()));
            }
        }
        // Nobody was subscribed to the past.
        mailbox.changes.clear();
        fill.messages
    }
}

/// Bytes as of a packed document: mostly some kilobytes, now and then megabytes, and one that is empty.
fn file(rng: &mut StdRng, number: usize) -> Arc<[u8]> {
    let size = match number {
        0 => 0,
        1 => 1_500_000,
        _ => rng.random_range(1..200) * rng.random_range(1..200),
    };
    let mut bytes = vec![0; size];
    rng.fill(bytes.as_mut_slice());
    bytes.into()
}

fn body(rng: &mut StdRng, number: usize) -> (bool, Arc<str>) {
    let mut text = String::new();
    for _ in 0..rng.random_range(1..6) {
        let paragraph = PARAGRAPHS[rng.random_range(0..PARAGRAPHS.len())];
        if number.is_multiple_of(4) {
            text.push_str(paragraph);
            text.push_str("\r\n\r\n");
        } else {
            let _ = write!(text, "<p class=\"MsoNormal\" style=\"margin:0\">{paragraph}<o:p></o:p></p>\r\n");
        }
    }
    if number.is_multiple_of(4) {
        (false, text.into())
    } else {
        (true, super::body::stored_html(&text).into())
    }
}
