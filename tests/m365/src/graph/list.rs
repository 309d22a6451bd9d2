//! Lists of messages: `$filter`, `$orderby`, `$search`, paging
//! (<https://learn.microsoft.com/graph/api/user-list-messages>). A page is made from an index by arrival, so that a
//! window of `receivedDateTime` costs what it shows and not what the folder holds.

use std::collections::BTreeSet;
use std::ops::Bound;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value, json};

use super::access::Entry;
use super::call::Call;
use super::ids::in_context;
use super::mail::{Scope, check_expand, show};
use super::message::View;
use super::odata::{self, Filter, Literal, Lookup, Operator, Options};
use super::refusal::{Answer, Content, Refusal, Reply};
use super::search;
use super::state::GraphState;
use super::store::Mailbox;
use crate::Sim;

/// The rules for `$filter` beside `$orderby`: every key of the order stands in the filter, in the same order, before
/// anything else.
pub(crate) fn check_order(options: &Options) -> Result<(), Refusal> {
    let Some(filter) = &options.filter else { return Ok(()) };
    if options.order.is_empty() {
        return Ok(());
    }
    let inefficient = || {
        Refusal::bad("InefficientFilter", "The restriction or sort order is too complex for this operation.")
    };
    let mut named = Vec::new();
    odata::properties(filter, &mut named);
    let keys: Vec<String> = options.order.iter().map(|order| order.path.join("/")).collect();
    if named.len() < keys.len() || named[..keys.len()] != keys[..] {
        return Err(inefficient());
    }
    let mut parts = Vec::new();
    odata::conjuncts(filter, &mut parts);
    if parts.iter().any(|part| matches!(part, Filter::Call(name, ..) if name == "contains")) {
        return Err(inefficient());
    }
    Ok(())
}

/// `$search` goes with neither (<https://learn.microsoft.com/graph/search-query-parameter>).
fn check_search(options: &Options) -> Result<(), Refusal> {
    if options.search.is_none() {
        return Ok(());
    }
    if options.filter.is_some() {
        return Err(Refusal::bad(
            "SearchWithFilter",
            "The query parameter '$filter' is not supported with '$search'.",
        ));
    }
    if !options.order.is_empty() {
        return Err(Refusal::bad(
            "SearchWithOrderBy",
            "The query parameter '$orderBy' is not supported with '$search'.",
        ));
    }
    Ok(())
}

type Window = (Bound<(DateTime<Utc>, u64)>, Bound<(DateTime<Utc>, u64)>);

/// What a filter says about `receivedDateTime`, as bounds of the index. Seconds are all that is compared: fractions in
/// filters are not dependable (fact sheet §3.5).
pub(crate) fn window(filter: Option<&Filter>) -> Window {
    let (mut low, mut high) = (Bound::Unbounded, Bound::Unbounded);
    let mut parts = Vec::new();
    if let Some(filter) = filter {
        odata::conjuncts(filter, &mut parts);
    }
    for part in parts {
        let Filter::Compare(path, operator, Literal::Instant(at)) = part else { continue };
        if path.len() != 1 || path[0] != "receivedDateTime" {
            continue;
        }
        match operator {
            Operator::Ge | Operator::Gt => low = Bound::Included((*at, 0)),
            Operator::Lt | Operator::Le => high = Bound::Excluded((*at + TimeDelta::seconds(1), 0)),
            Operator::Eq => {
                low = Bound::Included((*at, 0));
                high = Bound::Excluded((*at + TimeDelta::seconds(1), 0));
            }
            Operator::Ne => {}
        }
    }
    if let (Bound::Included(from), Bound::Excluded(to)) = (&low, &high)
        && from > to
    {
        high = Bound::Excluded(*from);
    }
    (low, high)
}

/// The folders a scope reads from: a search folder reads others'.
pub(crate) fn sources(mailbox: &Mailbox, scope: Scope) -> (Vec<u64>, Option<Filter>) {
    match scope {
        Scope::All => (mailbox.folders.keys().copied().collect(), None),
        Scope::Folder(key) => match mailbox.folders.get(&key).and_then(|folder| folder.search.as_ref()) {
            None => (vec![key], None),
            Some(search) => (search.sources.clone(), odata::checked_filter(&search.filter, "message").ok()),
        },
    }
}

/// The keys of the messages that match, newest first.
pub(crate) fn matching(mailbox: &Mailbox, scope: Scope, filter: Option<&Filter>) -> Vec<u64> {
    let (folders, searched) = sources(mailbox, scope);
    let bounds = window(filter);
    let mut found: BTreeSet<(DateTime<Utc>, u64)> = BTreeSet::new();
    let mut ordered = Vec::new();
    let single = folders.len() == 1;
    for folder in folders {
        let Some(folder) = mailbox.folders.get(&folder) else { continue };
        for entry in folder.items.range(bounds).rev() {
            let Some(message) = mailbox.messages.get(&entry.1) else { continue };
            let view = View { mailbox, message, immutable: false, text: false };
            if filter.is_none_or(|filter| odata::matches(filter, &view))
                && searched.as_ref().is_none_or(|filter| odata::matches(filter, &view))
            {
                if single {
                    ordered.push(entry.1);
                } else {
                    found.insert(*entry);
                }
            }
        }
    }
    if single { ordered } else { found.into_iter().rev().map(|(_, key)| key).collect() }
}

pub(crate) fn sort(mailbox: &Mailbox, keys: &mut [u64], options: &Options) {
    if options.order.is_empty() {
        return;
    }
    let by_arrival = options.order.len() == 1 && options.order[0].path == ["receivedDateTime"];
    if by_arrival {
        if !options.order[0].descending {
            keys.reverse();
        }
        return;
    }
    let value = |key: u64, path: &[String]| -> Value {
        let Some(message) = mailbox.messages.get(&key) else { return Value::Null };
        let view = View { mailbox, message, immutable: false, text: false };
        let mut value = view.look(&path[0]).unwrap_or(Value::Null);
        for step in &path[1..] {
            value = value.get(step).cloned().unwrap_or(Value::Null);
        }
        value
    };
    let mut dressed: Vec<(Vec<Value>, u64)> = keys
        .iter()
        .map(|key| (options.order.iter().map(|order| value(*key, &order.path)).collect(), *key))
        .collect();
    dressed.sort_by(|(left, _), (right, _)| {
        options
            .order
            .iter()
            .zip(left.iter().zip(right))
            .map(|(order, (left, right))| {
                let ordering = odata::compare(left, right);
                if order.descending { ordering.reverse() } else { ordering }
            })
            .find(|ordering| ordering.is_ne())
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    for (slot, (_, key)) in keys.iter_mut().zip(dressed) {
        *slot = key;
    }
}

pub(crate) fn messages(sim: &Sim, call: &Call, entry: &Entry, scope: Scope) -> Answer {
    let options = Options::read(&call.query, "message")?;
    check_expand(&options)?;
    check_search(&options)?;
    check_order(&options)?;
    let mut graph = sim.graph();
    let lag = TimeDelta::milliseconds(i64::try_from(graph.switches.search_lag_ms).unwrap_or_default());
    graph.ensure(&entry.owner);
    let mailbox = graph.ensure(&entry.owner);
    let keys = if let Some(search) = &options.search {
        let terms = search::terms(search)?;
        let mut keys = matching(mailbox, scope, None);
        keys.retain(|key| {
            mailbox
                .messages
                .get(key)
                .is_some_and(|message| message.created <= call.now - lag && terms.fits(message))
        });
        keys.truncate(1000);
        keys
    } else {
        let mut keys = matching(mailbox, scope, options.filter.as_ref());
        sort(mailbox, &mut keys, &options);
        keys
    };
    let total = keys.len();
    let size = options.top.or(call.prefer.page_size).unwrap_or(10).min(1000);
    let skip = options.skip_token.as_deref().and_then(|token| token.parse().ok()).unwrap_or(options.skip);
    let size = short(&mut graph, size);
    let mailbox = graph.ensure(&entry.owner);
    let page: Vec<Value> = keys
        .iter()
        .skip(skip)
        .take(size)
        .filter_map(|key| mailbox.messages.get(key))
        .map(|message| {
            let view = View { mailbox, message, immutable: call.prefer.immutable, text: call.prefer.text };
            Value::Object(show(&view, &options))
        })
        .collect();
    let place = match scope {
        Scope::All => String::new(),
        Scope::Folder(key) => format!("/mailFolders('{}')", in_context(&mailbox.folder_id(key))),
    };
    let mut body = Map::new();
    body.insert(
        "@odata.context".into(),
        format!(
            "{}/$metadata#users('{}'){place}/messages{}",
            call.base,
            entry.owner.oid,
            options.context_suffix()
        )
        .into(),
    );
    if options.count {
        body.insert("@odata.count".into(), total.into());
    }
    let next = skip + page.len();
    body.insert("value".into(), Value::Array(page));
    if next < total {
        let token = if options.search.is_some() { "$skiptoken" } else { "$skip" };
        body.insert("@odata.nextLink".into(), next_link(&mut graph, call, token, next.to_string()).into());
    }
    Ok(Reply::json(200, Value::Object(body)))
}

/// Every n-th page is short, when so switched: a client must not stop at a page with fewer than it asked for.
pub(crate) fn short(graph: &mut GraphState, size: usize) -> usize {
    graph.pages += 1;
    let every = graph.switches.short_page_every;
    if every > 0 && graph.pages.is_multiple_of(every) { (size / 2).max(1) } else { size }
}

/// The link to the next page, with the faults that were seen in the field (pains R28).
pub(crate) fn next_link(graph: &mut GraphState, call: &Call, token: &str, next: String) -> String {
    let every = graph.switches.repeat_link_every;
    let repeat = every > 0 && graph.pages.is_multiple_of(every);
    let mut query: Vec<(String, String)> = call
        .query
        .iter()
        .filter(|(name, _)| {
            !matches!(name.trim_start_matches('$').to_ascii_lowercase().as_str(), "skip" | "skiptoken")
        })
        .cloned()
        .collect();
    if repeat {
        query.clone_from(&call.query);
    } else {
        query.push((token.to_owned(), next));
    }
    let link = call.link(&query);
    foreign(graph, link)
}

pub(crate) fn foreign(graph: &GraphState, link: String) -> String {
    if !graph.switches.foreign_links {
        return link;
    }
    match link.find("/v1.0/") {
        Some(at) => format!("https://graph.microsoft.com.evil.example{}", &link[at..]),
        None => link,
    }
}

pub(crate) fn count(sim: &Sim, call: &Call, entry: &Entry, scope: Scope) -> Answer {
    let options = Options::read(&call.query, "message")?;
    let mut graph = sim.graph();
    let mailbox = graph.ensure(&entry.owner);
    let found = matching(mailbox, scope, options.filter.as_ref()).len();
    Ok(plain_count(found))
}

/// The answer to `$count` as a segment of the path.
pub(crate) fn plain_count(found: usize) -> Reply {
    Reply { body: Content::Bytes("text/plain".into(), found.to_string().into()), ..Reply::empty(200) }
}

/// Pages a ready list of values the same way: folders, events, contacts.
pub(crate) fn page(
    graph: &mut GraphState,
    call: &Call,
    options: &Options,
    default: usize,
    context: &str,
    all: Vec<Value>,
) -> Reply {
    page_by(graph, call, options, default, context, all, |next| ("$skip", next.to_string()))
}

/// The same with another way to name the next page.
pub(crate) fn page_by(
    graph: &mut GraphState,
    call: &Call,
    options: &Options,
    default: usize,
    context: &str,
    mut all: Vec<Value>,
    name_next: impl Fn(usize) -> (&'static str, String),
) -> Reply {
    let total = all.len();
    let size = short(graph, options.top.or(call.prefer.page_size).unwrap_or(default));
    all.drain(..options.skip.min(total));
    all.truncate(size);
    let value = all;
    let next = options.skip + value.len();
    let mut body = json!({"@odata.context": context, "value": value});
    if options.count {
        body["@odata.count"] = total.into();
    }
    if next < total {
        let (token, next) = name_next(next);
        body["@odata.nextLink"] = next_link(graph, call, token, next).into();
    }
    Reply::json(200, body)
}
