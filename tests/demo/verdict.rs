//! The comparison: what was promised, beside what the simulator and the ledger hold.
//!
//! The invariant: effects are counted at Microsoft's end, never in our own ledger, and whatever is there that
//! nobody promised counts as one too many.

use followthrough::store::job::{JobRow, state};
use serde::Serialize;
use serde_json::{Value, json};

use crate::mailbox::Kept;
use crate::plain;
use crate::script::{Effect, End, Promise};
use crate::stage::Stage;

pub(crate) struct Verdict {
    kinds: Vec<Kind>,
    /// Who waits for whom, and what died of what.
    waits: Vec<String>,
    dead: Vec<String>,
    expired: usize,
    effects: Effects,
    lost: usize,
    doubled: usize,
    mailboxes: Vec<Kept>,
    seconds: f64,
    /// Everything that did not end as it should.
    pub(crate) wrong: Vec<String>,
}

struct Kind {
    name: String,
    jobs: usize,
    done: usize,
    waits: usize,
    dead: usize,
}

#[derive(Clone, Copy, Serialize)]
struct Effects {
    drafts: usize,
    events: usize,
    rows: usize,
}

impl Verdict {
    pub(crate) async fn of(stage: &Stage, promises: &[Promise], seconds: f64) -> Result<Self, String> {
        let (rows, letters) = (stage.jobs().await?, stage.dead_letters().await?);
        let found = found(stage);
        let mut verdict = Self {
            kinds: kinds(promises, &rows),
            waits: Vec::new(),
            dead: Vec::new(),
            expired: rows.iter().filter(|row| row.state == state::EXPIRED).count(),
            effects: Effects {
                drafts: found.iter().filter(|found| found.kind == "draft").count(),
                events: found.iter().filter(|found| found.kind == "event").count(),
                rows: found.iter().filter(|found| found.kind == "row").count(),
            },
            lost: 0,
            doubled: 0,
            mailboxes: Vec::new(),
            seconds,
            wrong: Vec::new(),
        };
        verdict.compare_jobs(promises, &rows);
        verdict.compare_effects(promises, &rows, found);
        let dead = promises.iter().filter(|promise| matches!(promise.end, End::Dead(_))).count();
        verdict.expect(letters.len() == dead, || format!("{} dead letters are stored", letters.len()));
        for violation in stage.microsoft.sim.violations() {
            verdict.wrong.push(format!("no good guest: {}, {}", violation.rule, violation.what));
        }
        let denied = stage.microsoft.sim.calls().iter().any(|call| call.path.contains("/leads"));
        verdict.expect(!denied, || "a denied job called Microsoft".to_owned());
        let sent = stage.microsoft.sim.graph().sent_mail().len();
        verdict.expect(sent == 0, || format!("{sent} mails were sent, and none was to be"));
        let under_way = stage.under_way().await?;
        verdict.expect(under_way == 0, || format!("{under_way} messages are still under way"));
        Ok(verdict)
    }

    /// What was stored of a mailbox, beside what is there.
    pub(crate) fn keep(&mut self, kept: Kept, seconds: f64) {
        self.seconds = seconds;
        self.expect(kept.found == kept.stored && kept.found > 0, || {
            format!("{} of {} messages of {} are stored", kept.stored, kept.found, kept.address)
        });
        self.mailboxes.push(kept);
    }

    fn expect(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.wrong.push(otherwise());
        }
    }

    fn compare_jobs(&mut self, promises: &[Promise], rows: &[JobRow]) {
        self.expect(rows.len() == promises.len(), || format!("{} jobs are in the ledger", rows.len()));
        for promise in promises {
            let name = &promise.name;
            let Some(row) = rows.iter().find(|row| row.id == promise.envelope.id) else {
                self.wrong.push(format!("{name} is not in the ledger"));
                continue;
            };
            let (cause, code) =
                (row.cause.as_deref().unwrap_or_default(), row.code.as_deref().unwrap_or_default());
            let message = row.message.as_deref().unwrap_or_default();
            match row.state.as_str() {
                state::PARKED => {
                    self.waits.push(format!("{name}, {} ({}): {cause}", row.kind, promise.envelope.user));
                }
                state::DEAD => {
                    self.dead.push(format!("{name}, {} ({}): {code}, {message}", row.kind, row.user_name));
                }
                _ => {}
            }
            let right = match &promise.end {
                End::Made(_) => row.state == state::SUCCEEDED,
                End::Waits(expected) => row.state == state::PARKED && cause == *expected,
                End::Dead(expected) => row.state == state::DEAD && code == *expected,
            };
            self.expect(right, || {
                format!("{name} is {} {cause}{code}, not as promised ({:?})", row.state, promise.end)
            });
        }
    }

    /// Takes each promised effect out of what was found; the rest nobody promised.
    fn compare_effects(&mut self, promises: &[Promise], rows: &[JobRow], mut found: Vec<Found>) {
        for promise in promises {
            let End::Made(effect) = &promise.end else { continue };
            let (fitting, rest): (Vec<_>, Vec<_>) = found.into_iter().partition(|found| found.is(effect));
            found = rest;
            let name = &promise.name;
            match fitting.split_first() {
                None => {
                    self.lost += 1;
                    self.wrong.push(format!("{name}: its effect is not there"));
                }
                Some((first, more)) => {
                    self.doubled += more.len();
                    self.expect(more.is_empty(), || {
                        format!("{name}: its effect is there {} times", more.len() + 1)
                    });
                    self.expect(first.holds(effect), || {
                        format!("{name}: its effect differs from what was promised: {}", first.all)
                    });
                    let told = rows.iter().find(|row| row.id == promise.envelope.id);
                    let told = told.and_then(|row| row.result.as_deref()).unwrap_or_default().to_owned();
                    self.expect(told.contains(&first.id), || {
                        format!("{name}: its result names another effect")
                    });
                }
            }
        }
        self.doubled += found.len();
        for found in found {
            self.wrong
                .push(format!("nobody promised this {} of {}: {}", found.kind, found.whose, found.what));
        }
    }

    pub(crate) fn print(&self) {
        println!("\n  {:<14}{:>6}{:>6}{:>7}{:>6}", "", "jobs", "done", "waits", "dead");
        for kind in &self.kinds {
            let Kind { name, jobs, done, waits, dead } = kind;
            println!("  {name:<14}{jobs:>6}{done:>6}{waits:>7}{dead:>6}");
        }
        let Effects { drafts, events, rows } = self.effects;
        println!("\n  At Microsoft  {drafts} drafts, {events} events, {rows} changed rows");
        println!("  Lost          {}", self.lost);
        println!("  Doubled       {}", self.doubled);
        for line in &self.waits {
            println!("  Waits         {line}");
        }
        for line in &self.dead {
            println!("  Dead          {line}");
        }
        for kept in &self.mailboxes {
            println!("  Mailbox       {}: {} of {} messages stored", kept.address, kept.stored, kept.found);
        }
        println!("  Seconds       {:.1}", self.seconds);
        for wrong in &self.wrong {
            println!("  WRONG         {wrong}");
        }
        println!(
            "\n  {}",
            if self.wrong.is_empty() { "Everything ended as promised." } else { "NOT as promised." }
        );
    }

    pub(crate) fn json(&self) -> Result<String, serde_json::Error> {
        let sum = |of: fn(&Kind) -> usize| self.kinds.iter().map(of).sum::<usize>();
        let jobs = Jobs {
            succeeded: sum(|kind| kind.done),
            parked: sum(|kind| kind.waits),
            dead: sum(|kind| kind.dead),
            expired: self.expired,
        };
        serde_json::to_string(&Report {
            jobs,
            effects: self.effects,
            lost: self.lost,
            doubled: self.doubled,
            mailboxes: &self.mailboxes,
            seconds: (self.seconds * 10.0).round() / 10.0,
        })
    }
}

/// The last line of `--json`, in the order in which it is documented.
#[derive(Serialize)]
struct Report<'a> {
    jobs: Jobs,
    effects: Effects,
    lost: usize,
    doubled: usize,
    mailboxes: &'a [Kept],
    seconds: f64,
}

#[derive(Serialize)]
struct Jobs {
    succeeded: usize,
    parked: usize,
    dead: usize,
    expired: usize,
}

fn kinds(promises: &[Promise], rows: &[JobRow]) -> Vec<Kind> {
    let mut names: Vec<&str> = promises.iter().map(|promise| promise.envelope.kind.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let count =
        |name: &str, state: &str| rows.iter().filter(|row| row.kind == name && row.state == state).count();
    names
        .into_iter()
        .map(|name| Kind {
            name: name.to_owned(),
            jobs: rows.iter().filter(|row| row.kind == name).count(),
            done: count(name, state::SUCCEEDED),
            waits: count(name, state::PARKED),
            dead: count(name, state::DEAD),
        })
        .collect()
}

/// One effect at Microsoft.
struct Found {
    kind: &'static str,
    whose: String,
    /// What tells it from the others: a subject, or a row's column.
    what: String,
    /// Its id there.
    id: String,
    all: Value,
}

impl Found {
    fn is(&self, effect: &Effect) -> bool {
        match effect {
            Effect::Draft { mailbox, subject, .. } => {
                self.kind == "draft" && self.whose == *mailbox && self.what == *subject
            }
            Effect::Event { mailbox, subject, .. } => {
                self.kind == "event" && self.whose == *mailbox && self.what == *subject
            }
            Effect::Row { table, id, column, .. } => {
                self.kind == "row" && self.whose == *table && self.id == *id && self.what == *column
            }
        }
    }

    /// Is it to the letter what was promised?
    fn holds(&self, effect: &Effect) -> bool {
        let address = |path: &str| self.all.pointer(path).map(plain).unwrap_or_default();
        match effect {
            Effect::Draft { to, says, .. } => {
                let content = address("/body/content");
                address("/toRecipients/0/emailAddress/address") == *to
                    && content.contains(says)
                    && content.contains("<strong>Next step:</strong>")
                    && self.all["isDraft"] == true
            }
            Effect::Event { start, with, .. } => {
                address("/start/dateTime").starts_with(start)
                    && address("/attendees/0/emailAddress/address") == *with
                    && self.all["invitations"] == 1
            }
            Effect::Row { value, .. } => self.all["value"] == *value,
        }
    }
}

/// Everything in all mailboxes and calendars, and every change of a row that a person made.
fn found(stage: &Stage) -> Vec<Found> {
    let sim = &stage.microsoft.sim;
    let mut all = Vec::new();
    let users: Vec<String> = sim.directory().users.iter().map(|user| user.upn.clone()).collect();
    {
        let mut graph = sim.graph();
        let invitations = graph.invitations();
        for user in users {
            let mailbox = graph.mailbox(&user);
            for (kind, items) in [("draft", mailbox.drafts()), ("event", mailbox.events())] {
                all.extend(items.into_iter().map(|mut item| {
                    let id = plain(&item["id"]);
                    let sent = invitations.iter().filter(|invitation| invitation.event_id == id).count();
                    item["invitations"] = json!(sent);
                    Found { kind, whose: user.clone(), what: plain(&item["subject"]), id, all: item }
                }));
            }
        }
    }
    let writes = sim.dataverse_writes().into_iter().filter(|write| write.user.contains('@'));
    all.extend(writes.flat_map(|write| {
        let (table, id) = (write.table, write.id);
        write.changed.into_iter().map(move |(column, (before, after))| Found {
            kind: "row",
            whose: table.clone(),
            what: column,
            id: id.clone(),
            all: json!({"before": before, "value": after}),
        })
    }));
    all
}
