//! The jobs that the laws are looped over: every registered kind with its own example, and variants of some.
//!
//! The invariant: a kind without a case does not pass the laws, and two worlds of one case begin alike.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

use chrono::{DateTime, Utc};
use followthrough::fleet::Role;
use followthrough::oauth::scopes::Integration;
use followthrough::registry::Entry;
use followthrough_tests::world::{ADA, Pair, Snapshot, World};
use followthrough_workers::JOBS;
use m365_sim::dataverse::row_id;
use m365_sim::graph::NewMessage;
use m365_sim::journal::Call;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::mailbox::support::subscribed;

/// The row and the person that the example of `crm.update` names.
const ACCOUNT: &str = "7d3c3a52-5e0f-4d5a-9f0e-0b3b6d7a1c11";
const CONTACT: &str = "2f6a3b1e-97c4-4f0d-8a55-6d1c0e9b7f22";
/// Ada may read it.
const SHARED: &str = "support@acme.example";
pub(crate) const JOB: &str = "mtg-4711-job";

#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    /// Given the world, for ids that only it knows.
    payload: fn(&World) -> Value,
}

/// Every kind's example first.
pub(crate) fn all() -> Vec<Case> {
    let examples = JOBS.entries().iter().map(|entry| Case {
        name: entry.spec.kind,
        kind: entry.spec.kind,
        payload: match entry.spec.kind {
            "email.draft" => |_| example("email.draft"),
            "email.send" => |_| example("email.send"),
            "event.create" => |_| example("event.create"),
            "crm.update" => |_| example("crm.update"),
            // What it sets off is judged by its own cases.
            "mailbox.connect" => |_| json!({"address": SHARED, "backfill_days": 0}),
            "mailbox.sync" => |_| example("mailbox.sync"),
            "mailbox.backfill" => |_| example("mailbox.backfill"),
            "mailbox.disconnect" => |_| example("mailbox.disconnect"),
            "connection.disconnect" => |world| json!({"connection": world.last_connection()}),
            other => panic!("{other} has no case: add one, with what its example needs at Microsoft"),
        },
    });
    let variants = [
        Case { name: "a reply with files", kind: "email.draft", payload: reply },
        Case { name: "a draft in plain text", kind: "email.draft", payload: plain },
        Case { name: "a reply that is sent", kind: "email.send", payload: sent_reply },
        Case { name: "a draft that is sent", kind: "email.send", payload: sent_draft },
        Case { name: "an event across a clock change", kind: "event.create", payload: across },
        Case { name: "a look at mail with a file", kind: "mailbox.sync", payload: attached },
        Case { name: "a row by its key", kind: "crm.update", payload: by_key },
    ];
    examples.chain(variants).collect()
}

pub(crate) fn example(kind: &str) -> Value {
    let entry = JOBS.find(kind).expect("a registered kind");
    serde_json::from_str(entry.spec.example).expect("the example is JSON")
}

impl Case {
    /// A world in which the job can be done, without a process.
    pub(crate) async fn world(&self, pair: Pair) -> Option<World> {
        let mut world = World::closed(pair, |_| {}).await?;
        prepare(&world);
        // Nothing but the job calls anybody.
        world.roles.retain(|role| *role != Role::Scheduler);
        world.start().await;
        world.connect(ADA, self.integration()).await;
        if matches!(self.kind, "mailbox.sync" | "mailbox.backfill") || self.takes_away() {
            let address = json!({"address": SHARED, "backfill_days": 0});
            world.run("setup", "mailbox.connect", address, "succeeded").await;
        }
        if self.takes_away() {
            subscribed(&world, SHARED).await;
        }
        world.sim().clear_calls();
        Some(world)
    }

    /// The kinds without a consent of their own end what was made with one of a shared mailbox.
    pub(crate) fn integration(&self) -> &'static str {
        self.entry().spec.integration.unwrap_or(Integration::SharedMailbox).as_str()
    }

    /// It needs no permission, and no more than a mailbox that is there.
    pub(crate) fn takes_away(&self) -> bool {
        self.entry().spec.integration.is_none()
    }

    fn entry(&self) -> &'static Entry {
        JOBS.find(self.kind).expect("a registered kind")
    }

    pub(crate) fn envelope(&self, world: &World) -> Value {
        world.envelope(JOB, self.kind, (self.payload)(world))
    }

    /// What Microsoft holds when nothing goes wrong; found out once for all laws.
    pub(crate) async fn clean(&self) -> Arc<Clean> {
        static KNOWN: LazyLock<Mutex<HashMap<&str, Known>>> = LazyLock::new(Mutex::default);
        let known = KNOWN.lock().expect("no law panics here").entry(self.name).or_default().clone();
        known.get_or_init(|| async { Arc::new(Box::pin(self.run_clean()).await) }).await.clone()
    }

    async fn run_clean(&self) -> Clean {
        let world = self.world(Pair::Embedded).await.expect("the embedded pair is always there");
        world.publish(&[self.envelope(&world)]).await;
        world.until_state(JOB, "succeeded").await;
        let row = world.job(JOB).await.expect("the row");
        assert_eq!(row.attempt, 1, "{}", self.name);
        let calls = world.sim().calls();
        let result = serde_json::from_str(row.result.as_deref().unwrap_or_default()).expect("a result");
        let clean = Clean { calls, snapshot: world.snapshot(), result };
        world.close().await;
        clean
    }
}

type Known = Arc<OnceCell<Arc<Clean>>>;

pub(crate) struct Clean {
    /// Every call of the job, in order, with those for tokens.
    pub(crate) calls: Vec<m365_sim::journal::Call>,
    pub(crate) snapshot: Snapshot,
    pub(crate) result: Value,
}

/// A mailbox has many folders, and each is asked the same: of reads that are alike, the first two. Every write.
pub(crate) fn telling(calls: &[Call]) -> Vec<(usize, &Call)> {
    let mut seen = HashMap::new();
    let mut tells = |(_, call): &(usize, &Call)| {
        let alike = seen.entry(shape(call)).or_insert(0);
        *alike += 1;
        call.method != "GET" || *alike <= 2
    };
    calls.iter().enumerate().filter(|call| tells(call)).collect()
}

/// A call without what differs between one folder or message and the next.
fn shape(call: &Call) -> String {
    let names = call.path.split('/').map(|part| if part.len() > 24 { "…" } else { part });
    let options: Vec<&str> = call.query.split('&').filter_map(|option| option.split('=').next()).collect();
    format!("{} {}?{}", call.method, names.collect::<Vec<_>>().join("/"), options.join("&"))
}

/// What the cases need at Microsoft.
fn prepare(world: &World) {
    let sim = world.sim();
    let edit = |table, id, values| sim.edit_row(table, id, &values).expect("a seeded row");
    edit("contact", CONTACT, json!({"firstname": "Nadia", "lastname": "Brun"}));
    edit("account", ACCOUNT, json!({"name": "Trey Research", "accountnumber": "T-7"}));
    sim.clear_dataverse_writes();
    for (n, folder) in ["Inbox", "Sent Items", "Inbox"].into_iter().enumerate() {
        sim.graph().mailbox(SHARED).deliver(NewMessage {
            folder: Some(folder.into()),
            received: Some(sim.now() - chrono::TimeDelta::hours(2)),
            ..NewMessage::new("Bob <bob@contoso.example>", &format!("Question {n}"), "<p>Where is it?</p>")
        });
    }
    sim.graph().mailbox(ADA).deliver(NewMessage {
        received: Some(moment("2026-11-20T10:00:00Z")),
        ..NewMessage::new("Bob <bob@contoso.example>", "The offer", "<p>Shall we?</p>")
    });
    sim.graph().mailbox(ADA).deliver(NewMessage {
        received: Some(moment("2026-01-14T10:00:00Z")),
        draft: true,
        to: vec!["Bob <bob@contoso.example>".into()],
        ..NewMessage::new("Ada Byron <ada@acme.example>", "Written by hand", "<p>See you.</p>")
    });
}

pub(crate) fn moment(text: &str) -> DateTime<Utc> {
    text.parse().expect("a moment")
}

pub(crate) fn original(world: &World) -> String {
    let inbox = world.sim().graph().mailbox(ADA).inbox();
    inbox[0]["id"].as_str().expect("the delivered message").to_owned()
}

fn attached(world: &World) -> Value {
    world.sim().graph().mailbox(SHARED).deliver(NewMessage {
        received: Some(world.sim().now()),
        attachments: vec![("list.txt".into(), "text/plain".into(), "Three pumps".into())],
        ..NewMessage::new("Bob <bob@contoso.example>", "The list", "<p>Attached</p>")
    });
    example("mailbox.sync")
}

fn reply(world: &World) -> Value {
    let file = |name: &str, content: &str| json!({"name": name, "content_type": "text/plain", "content_base64": content});
    json!({
        "to": [{"email": "bob@contoso.example", "name": "Bob"}], "cc": [{"email": "carol@acme.example"}],
        "subject": "Re: The offer", "body": {"format": "html", "content": "<p>Yes, by <b>Friday</b>.</p>"},
        "reply_to_message": original(world), "attachments": [file("a.txt", "QQ=="), file("b.txt", "Qg==")],
    })
}

fn confirmed() -> Value {
    json!({"by": "ada@acme.example", "at": "2026-01-15T09:30:00Z"})
}

fn sent_reply(world: &World) -> Value {
    let mut payload = reply(world);
    payload["confirmation"] = confirmed();
    payload
}

fn sent_draft(world: &World) -> Value {
    let drafts = world.sim().graph().mailbox(ADA).drafts();
    json!({"draft_id": drafts[0]["id"], "confirmation": confirmed()})
}

fn plain(_: &World) -> Value {
    json!({
        "to": [{"email": "bob@contoso.example"}], "bcc": [{"email": "dave@acme.example"}], "subject": "Minutes",
        "body": {"format": "text", "content": "1 < 2\nand that is all"}, "importance": "high",
    })
}

fn across(_: &World) -> Value {
    json!({
        "subject": "The long night", "start": "2026-10-25T01:30:00", "end": "2026-10-25T03:30:00",
        "time_zone": "Europe/Berlin", "attendees": [{"email": "bob@acme.example"}, {"email": "carol@acme.example", "type": "optional"}],
    })
}

fn by_key(_: &World) -> Value {
    json!({
        "table": "account", "key": {"accountnumber": "A-1002"}, "values": {"telephone1": "+41 44 000", "address1_city": "Hamburg"},
        "lookups": {"primarycontactid": {"table": "contact", "id": row_id(2, 4)}, "parentaccountid": null},
    })
}
