//! The play: twelve meetings that ended, what was promised in each, and how each promise must end.
//!
//! The invariant: this is written down before anything runs, and the outcome is compared with it; nothing here
//! is learned from the run.

use followthrough::job::Envelope;
use m365_sim::dataverse::row_id;
use serde_json::{Value, json};

pub(crate) const DAVE: &str = "dave@acme.example";
pub(crate) const BOB: &str = "bob@acme.example";
pub(crate) const CAROL: &str = "carol@acme.example";
pub(crate) const PEOPLE: [&str; 6] =
    ["ada@acme.example", BOB, CAROL, DAVE, "eve@acme.example", "frank@acme.example"];

/// Dave takes his consent back before this meeting ends.
pub(crate) const REVOKED_BEFORE: usize = 10;
/// Whose draft is published three times.
pub(crate) const REPEATED: &str = "meeting-06-email";

/// What an administrator of the workspace allows. Leads are not named, so they are denied.
pub(crate) fn tools() -> Value {
    json!({
        "email.draft": "allow",
        "event.create": "allow",
        "crm.account.update": "allow",
        "crm.opportunity.update": "ask",
        "mailbox.connect": "allow",
    })
}

/// How a job must end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    Made(Effect),
    /// Parked, for this cause.
    Waits(&'static str),
    /// A dead letter of this code.
    Dead(&'static str),
}

/// What an administrator would find at Microsoft.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    Draft { mailbox: &'static str, subject: String, to: &'static str, says: &'static str },
    Event { mailbox: &'static str, subject: String, start: &'static str, with: &'static str },
    Row { table: &'static str, id: String, column: &'static str, value: Value },
}

pub(crate) struct Promise {
    pub(crate) envelope: Envelope,
    pub(crate) end: End,
    /// For people: `Ada's draft to Nina Keller`.
    pub(crate) name: String,
}

pub(crate) struct Meeting {
    pub(crate) number: usize,
    pub(crate) title: &'static str,
    pub(crate) user: &'static str,
    pub(crate) customer: &'static str,
    contact: (&'static str, &'static str),
    /// What was promised.
    step: &'static str,
    /// The next meeting: local time, zone, and the same moment in UTC.
    next: (&'static str, &'static str, &'static str),
}

impl Meeting {
    /// The customer's row in the CRM.
    pub(crate) fn account(&self) -> String {
        row_id(1, u32::try_from(self.number).unwrap_or_default())
    }

    pub(crate) fn promises(&self, workspace: &str) -> Vec<Promise> {
        vec![self.draft(workspace), self.event(workspace), self.update(workspace)]
    }

    fn promise(&self, workspace: &str, what: (&str, &str), name: &str, payload: Value, end: End) -> Promise {
        let (suffix, kind) = what;
        let envelope = Envelope {
            id: format!("meeting-{:02}-{suffix}", self.number),
            kind: kind.to_owned(),
            workspace: workspace.to_owned(),
            user: self.user.to_owned(),
            meeting: Some(format!("meeting-{:02}", self.number)),
            not_before: None,
            expires_at: None,
            traceparent: None,
            payload,
        };
        Promise { envelope, end, name: format!("{}'s {name}", first_name(self.user)) }
    }

    fn draft(&self, workspace: &str) -> Promise {
        let (name, address) = self.contact;
        let subject = format!("After our meeting: {}", self.title);
        let text = format!("Hello {name},\n\nthank you for your time. **Next step:** {}\n", self.step);
        let payload = json!({
            "to": [{"email": address, "name": name}],
            "subject": subject,
            "body": {"format": "markdown", "content": text},
        });
        let end = End::Made(Effect::Draft { mailbox: self.user, subject, to: address, says: self.step });
        self.promise(workspace, ("email", "email.draft"), &format!("draft to {name}"), payload, end)
    }

    fn event(&self, workspace: &str) -> Promise {
        let (name, address) = self.contact;
        let (start, zone, utc) = self.next;
        let subject = format!("Next: {}", self.title);
        let payload = json!({
            "subject": subject,
            "start": format!("{start}:00:00"),
            "end": format!("{start}:45:00"),
            "time_zone": zone,
            "attendees": [{"email": address, "name": name, "type": "required"}],
            "body": {"format": "text", "content": self.step},
        });
        let end = End::Made(Effect::Event { mailbox: self.user, subject, start: utc, with: address });
        self.promise(workspace, ("event", "event.create"), &format!("event with {name}"), payload, end)
    }

    /// Mostly the customer's row. Three differ: a value that asks first, a table that nobody allowed, a row
    /// that is gone.
    fn update(&self, workspace: &str) -> Promise {
        let (table, id, column, value) = match self.number {
            5 => ("lead", row_id(4, 1), "subject", json!("Wants the retrofit kit")),
            7 => ("opportunity", row_id(3, 1), "estimatedvalue", json!(52_000.0)),
            8 => ("account", row_id(1, 404), "description", json!(self.step)),
            _ => ("account", self.account(), "description", json!(self.step)),
        };
        let payload = json!({"table": table, "id": id, "values": {column: value}});
        let end = match self.number {
            5 => End::Dead("tool_denied"),
            7 => End::Waits("approval"),
            8 => End::Dead("not_found"),
            _ => End::Made(Effect::Row { table, id, column, value }),
        };
        let name = match self.number {
            5 => "change of a lead".to_owned(),
            7 => "new value of a deal".to_owned(),
            _ => format!("note on {}", self.customer),
        };
        self.promise(workspace, ("crm", "crm.update"), &name, payload, end)
    }
}

/// `ada@acme.example` is Ada.
pub(crate) fn first_name(user: &str) -> String {
    let mut letters = user.split('@').next().unwrap_or_default().chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

const NINA: (&str, &str) = ("Nina Keller", "nina@contoso.example");
const OMAR: (&str, &str) = ("Omar Haddad", "omar@fabrikam.example");
const PRIYA: (&str, &str) = ("Priya Shah", "priya@northwind.example");
const ROSA: (&str, &str) = ("Rosa Lind", "rosa@tailspin.example");

pub(crate) fn meetings() -> Vec<Meeting> {
    let zurich = ("2030-12-03T15", "Europe/Zurich", "2030-12-03T14:00:00");
    let new_york = ("2030-12-04T10", "America/New_York", "2030-12-04T15:00:00");
    let kolkata = ("2030-12-05T16", "Asia/Kolkata", "2030-12-05T10:30:00");
    // In summer, so that the clocks' change is part of it.
    let leeds = ("2031-06-10T09", "Europe/London", "2031-06-10T08:00:00");
    let all = [
        ("Kick-off", "Contoso Ltd.", NINA, "we send the offer for 40 sensors by Friday.", zurich),
        ("Retrofit of line 2", "Fabrikam GmbH", OMAR, "Omar gets the data sheet tomorrow.", new_york),
        ("Quarterly review", "Northwind Traders", PRIYA, "we add Priya to the beta.", leeds),
        ("Price list 2031", "Adventure Works", ROSA, "the new list goes out on Monday.", kolkata),
        ("First call", "Tailspin Toys", ROSA, "we call again when the budget is set.", zurich),
        ("Delivery dates", "Wingtip Toys", NINA, "we confirm week 49.", new_york),
        ("Scope of phase two", "Lucerne Publishing", NINA, "phase two has 48 sensors.", leeds),
        ("Complaint about noise", "Proseware", OMAR, "a technician comes on Thursday.", zurich),
        ("Contract", "Litware", PRIYA, "legal reads the draft this week.", kolkata),
        ("Renewal", "Fourth Coffee", ROSA, "the renewal starts in January.", new_york),
        ("Training", "Trey Research", OMAR, "twelve people join the course.", leeds),
        ("Hand-over", "Margie's Travel", PRIYA, "support takes over on the 1st.", zurich),
    ];
    (1..)
        .zip(all)
        .zip(PEOPLE.iter().cycle())
        .map(|((number, (title, customer, contact, step, next)), user)| Meeting {
            number,
            title,
            user,
            customer,
            contact,
            step,
            next,
        })
        .collect()
}
