//! Changes of a folder's messages since last time (<https://learn.microsoft.com/graph/delta-query-messages>): per folder,
//! in pages, with a link to go on. The server keeps only the last few generations of each round's state, so an old
//! link dies; a filtered round ends silently at 5,000 messages; extended properties are never shown.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use http::Method;
use serde_json::{Value, json};

use super::access::Entry;
use super::call::Call;
use super::ids::Kind;
use super::list;
use super::mail::show;
use super::message::View;
use super::odata::{self, Filter, Literal, Operator, Options};
use super::only;
use super::refusal::{Answer, Refusal, Reply};
use super::state::GraphState;
use super::store::{Folder, Happened, Mailbox};
use crate::Sim;

/// All rounds the server still knows.
#[derive(Debug, Default)]
pub(crate) struct DeltaStates {
    sessions: HashMap<u64, Session>,
    last: u64,
}

impl DeltaStates {
    pub(crate) fn forget(&mut self, mailbox: &str) {
        self.sessions.retain(|_, session| session.mailbox != mailbox);
    }
}

#[derive(Debug, Clone)]
struct Session {
    mailbox: String,
    folder: u64,
    select: Option<Vec<String>>,
    filter: Option<Filter>,
    floor: Option<DateTime<Utc>>,
    kinds: Option<String>,
    top: Option<usize>,
    /// Of the newest link given out; older links die when they fall too far behind.
    generation: u64,
}

/// Where a link stands in its round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    session: u64,
    generation: u64,
    /// Changes up to here were told in earlier rounds; 0 is the first round.
    since: u64,
    /// The round tells changes up to here.
    until: u64,
    /// First round: rank of the next item by arrival. Later: the change number told last.
    at: (i64, u64),
    told: u64,
}

impl Position {
    fn token(self) -> String {
        use base64::Engine as _;
        let text = format!(
            "{}.{}.{}.{}.{}.{}.{}",
            self.session, self.generation, self.since, self.until, self.at.0, self.at.1, self.told
        );
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text)
    }

    fn parse(token: &str) -> Option<Self> {
        use base64::Engine as _;
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let mut parts = text.split('.').map(|part| part.parse::<i64>().ok());
        let mut next = || parts.next().flatten();
        let mut whole = || u64::try_from(next()?).ok();
        let (session, generation, since, until) = (whole()?, whole()?, whole()?, whole()?);
        let at = next()?;
        let mut whole = || u64::try_from(next()?).ok();
        Some(Self { session, generation, since, until, at: (at, whole()?), told: whole()? })
    }
}

/// The one filter delta knows; the sentence was seen in microsoftgraph/microsoft-graph-docs-contrib#1771.
fn floor(filter: Option<&Filter>) -> Result<Option<DateTime<Utc>>, Refusal> {
    match filter {
        None => Ok(None),
        Some(Filter::Compare(path, Operator::Ge | Operator::Gt, Literal::Instant(at)))
            if path.len() == 1 && path[0] == "receivedDateTime" =>
        {
            Ok(Some(*at))
        }
        Some(_) => Err(Refusal::bad(
            "ErrorInvalidUrlQuery",
            "The '$filter' parameter value is not supported for 'Messages' resource; only a value of 'receivedDateTime ge value' is supported.",
        )),
    }
}

fn start(call: &Call, graph: &mut GraphState, mailbox: &str, folder: u64) -> Result<Position, Refusal> {
    let options = Options::read(&call.query, "message")?;
    let unsupported = |name: &str| {
        Refusal::bad(
            "ErrorInvalidUrlQuery",
            format!(
                "The following parameters are not supported with change tracking over the 'Messages' resource: '{name}'."
            ),
        )
    };
    if options.search.is_some() {
        return Err(unsupported("$search"));
    }
    if options.skip > 0 {
        return Err(unsupported("$skip"));
    }
    if call.query("deltatoken").is_some_and(|token| token == "latest") {
        return Err(unsupported("$deltatoken=latest"));
    }
    let floor = floor(options.filter.as_ref())?;
    // Only `receivedDateTime desc`.
    if let Some(order) = options.order.first()
        && (options.order.len() > 1 || !order.descending || order.path != ["receivedDateTime"])
    {
        return Err(Refusal::bad(
            "ErrorInvalidUrlQuery",
            "The '$orderby' parameter value is not supported for 'Messages' resource; only a value of 'receivedDateTime desc' is supported.",
        ));
    }
    let kinds = call.query("changeType").map(str::to_lowercase);
    if kinds.as_deref().is_some_and(|kind| !matches!(kind, "created" | "updated" | "deleted")) {
        return Err(Refusal::bad(
            "ErrorInvalidUrlQuery",
            "The 'changeType' parameter must be 'created', 'updated' or 'deleted'.",
        ));
    }
    graph.delta.last += 1;
    let session = graph.delta.last;
    let state = Session {
        mailbox: mailbox.to_owned(),
        folder,
        select: options.select,
        filter: options.filter,
        floor,
        kinds,
        top: options.top,
        generation: 1,
    };
    graph.delta.sessions.insert(session, state);
    let until = graph.open(mailbox).last_change();
    Ok(Position { session, generation: 1, since: 0, until, at: (i64::MAX, u64::MAX >> 1), told: 0 })
}

fn lost(generation: u64, highest: u64) -> Refusal {
    // As in microsoftgraph/microsoft-graph-docs#2350.
    Refusal::new(
        410,
        "SyncStateNotFound",
        format!("The sync state generation is not found; generation={generation};[highest={highest}]"),
    )
}

pub(crate) fn messages(sim: &Sim, call: &Call, entry: &Entry, folder: u64) -> Answer {
    only(call, &[Method::GET])?;
    let mut graph = sim.graph();
    let address = graph.ensure(&entry.owner).address.clone();
    let token = call.query("deltatoken").filter(|token| *token != "latest").or(call.query("skiptoken"));
    let position = match token {
        None => start(call, &mut graph, &address, folder)?,
        Some(token) => {
            let position = Position::parse(token)
                .ok_or_else(|| Refusal::bad("ErrorInvalidUrlQuery", "Badly formed token."))?;
            let keep = graph.switches.delta_generations;
            match graph.delta.sessions.get(&position.session) {
                Some(session) if session.mailbox == address && session.folder == folder => {
                    if position.generation + keep <= session.generation {
                        return Err(lost(position.generation, session.generation));
                    }
                }
                _ => {
                    let mut refusal = lost(position.generation, 0);
                    // "410 Gone with a Location header holding an empty delta token"
                    refusal.location = Some(call.link(&[]).trim_end_matches('?').to_owned());
                    return Err(refusal);
                }
            }
            // A delta link opens the next round.
            if position.until == 0 {
                let until = graph.open(&address).last_change();
                Position { until, at: (0, position.since), told: 0, ..position }
            } else {
                position
            }
        }
    };
    graph.pages += 1;
    let pages = graph.pages;
    let switches = graph.switches.clone();
    if switches.delta_expire_every > 0 && pages.is_multiple_of(switches.delta_expire_every) {
        graph.delta.sessions.remove(&position.session);
        return Err(lost(position.generation, position.generation + 100));
    }
    let session =
        graph.delta.sessions.get(&position.session).cloned().ok_or_else(|| lost(position.generation, 0))?;
    let size = call.prefer.page_size.or(session.top).unwrap_or(10).min(1000);
    let every = |n: u64| n > 0 && pages.is_multiple_of(n);
    let size = if every(switches.short_page_every) { (size / 2).max(1) } else { size };
    let cap = if session.filter.is_some() { switches.delta_cap } else { usize::MAX };
    let mailbox = graph.open(&address);
    let page = if every(switches.delta_empty_every) {
        Page { value: Vec::new(), next: Some(position) }
    } else {
        page(mailbox, call, &session, position, size, cap)
    };
    let mut value = page.value;
    if every(switches.delta_repeat_every)
        && let Some(first) = value.first().cloned()
    {
        value.push(first);
    }
    let generation = session.generation + 1;
    if let Some(session) = graph.delta.sessions.get_mut(&position.session) {
        session.generation = generation;
    }
    let (name, token, link) = if let Some(next) = page.next {
        ("@odata.nextLink", "$skiptoken", Position { generation, ..next })
    } else {
        let next = Position { generation, since: position.until, until: 0, at: (0, 0), told: 0, ..position };
        ("@odata.deltaLink", "$deltatoken", next)
    };
    let link = call.link(&[(token.to_owned(), link.token())]);
    let link = list::foreign(&graph, link);
    let mut body = json!({
        "@odata.context": format!("{}/$metadata#Collection(message)", call.base),
        "value": value,
    });
    body[name] = link.into();
    Ok(Reply::json(200, body))
}

struct Page {
    value: Vec<Value>,
    next: Option<Position>,
}

fn page(
    mailbox: &Mailbox,
    call: &Call,
    session: &Session,
    position: Position,
    size: usize,
    cap: usize,
) -> Page {
    let Some(folder) = mailbox.folders.get(&session.folder) else {
        return Page { value: Vec::new(), next: None };
    };
    if position.since == 0 {
        first_round(mailbox, folder, call, session, position, size, cap)
    } else {
        later_round(mailbox, folder, call, session, position, size)
    }
}

fn item(mailbox: &Mailbox, call: &Call, session: &Session, key: u64) -> Option<Value> {
    let message = mailbox.messages.get(&key)?;
    let view = View { mailbox, message, immutable: call.prefer.immutable, text: call.prefer.text };
    // Extended properties are not returned by delta (mguessan/davmail#500), whatever is expanded.
    let options = Options { select: session.select.clone(), ..Options::default() };
    let mut shown = show(&view, &options);
    shown.insert("@odata.type".into(), "#microsoft.graph.message".into());
    Some(Value::Object(shown))
}

/// What is there, newest first. What arrives meanwhile is told in the next round.
fn first_round(
    mailbox: &Mailbox,
    folder: &Folder,
    call: &Call,
    session: &Session,
    position: Position,
    size: usize,
    cap: usize,
) -> Page {
    let mut value = Vec::new();
    let mut at = position.at;
    let upper = DateTime::from_timestamp(at.0, 0).unwrap_or(DateTime::<Utc>::MAX_UTC);
    for (told, (received, key)) in (position.told..).zip(folder.items.range(..(upper, at.1)).rev()) {
        if session.floor.is_some_and(|floor| *received < floor)
            || usize::try_from(told).unwrap_or(usize::MAX) >= cap
        {
            return Page { value, next: None };
        }
        if value.len() == size {
            return Page { value, next: Some(Position { at, told, ..position }) };
        }
        at = (received.timestamp(), *key);
        if session.kinds.as_deref().is_none_or(|kind| kind == "created") {
            value.extend(item(mailbox, call, session, *key));
        }
    }
    Page { value, next: None }
}

/// What changed since, each item once per page, the newest of its changes counting.
fn later_round(
    mailbox: &Mailbox,
    folder: &Folder,
    call: &Call,
    session: &Session,
    position: Position,
    size: usize,
) -> Page {
    let from = folder.log.partition_point(|line| line.change <= position.at.1);
    let to = folder.log.partition_point(|line| line.change <= position.until);
    let lines = &folder.log[from..to];
    let newest: HashMap<u64, u64> = lines.iter().map(|line| (line.key, line.change)).collect();
    let born: HashSet<u64> =
        lines.iter().filter(|line| line.happened == Happened::Created).map(|line| line.key).collect();
    let mut value = Vec::new();
    let mut at = position.at;
    for line in lines.iter().filter(|line| newest.get(&line.key) == Some(&line.change)) {
        if value.len() == size {
            return Page { value, next: Some(Position { at, ..position }) };
        }
        at.1 = line.change;
        let kind = match line.happened {
            Happened::Removed => "deleted",
            _ if born.contains(&line.key) => "created",
            _ => "updated",
        };
        if session.kinds.as_deref().is_some_and(|wanted| wanted != kind) {
            continue;
        }
        if line.happened == Happened::Removed {
            // Reported whether the item matched the filter or not.
            let id = mailbox.id(Kind::Message, line.key, (!call.prefer.immutable).then_some(line.stay));
            value.push(json!({"@odata.type": "#microsoft.graph.message", "id": id, "@removed": {"reason": "deleted"}}));
        } else if let Some(message) =
            mailbox.messages.get(&line.key).filter(|message| message.folder == folder.key)
        {
            let view = View { mailbox, message, immutable: true, text: false };
            let fits = session.filter.as_ref().is_none_or(|filter| odata::matches(filter, &view));
            if fits || kind == "updated" {
                value.extend(item(mailbox, call, session, line.key));
            }
        }
    }
    Page { value, next: None }
}
