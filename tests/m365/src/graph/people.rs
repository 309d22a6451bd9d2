//! The person behind the token, other people of the tenant, and whom they deal with
//! (<https://learn.microsoft.com/graph/api/user-get>, <https://learn.microsoft.com/graph/api/user-list>,
//! <https://learn.microsoft.com/graph/api/user-list-people>).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Method;
use serde_json::{Map, Value, json};

use super::access::{self, Need};
use super::call::{Call, Segment};
use super::list;
use super::odata::{self, Options};
use super::only;
use super::refusal::{Answer, Refusal, Reply};
use super::schedule::MAILBOX_ZONE;
use super::schema;
use crate::Sim;
use crate::directory::User;

/// What a user shows without `$select`.
fn basic(user: &User) -> Value {
    json!({
        "businessPhones": [], "displayName": user.display_name, "givenName": user.given_name(), "jobTitle": Value::Null,
        "mail": user.mail, "mobilePhone": Value::Null, "officeLocation": Value::Null, "preferredLanguage": Value::Null,
        "surname": user.surname(), "userPrincipalName": user.upn, "id": user.oid,
    })
}

fn everything(user: &User) -> Value {
    let mut all = basic(user);
    all["accountEnabled"] = user.account_enabled.into();
    all["userType"] = if user.is_guest { "Guest" } else { "Member" }.into();
    all["mailNickname"] = user.upn.split('@').next().unwrap_or_default().into();
    all["proxyAddresses"] = user.mail.iter().map(|mail| format!("SMTP:{mail}")).collect();
    all
}

/// Keeps what `$select` names. What is declared and not known here is shown as unset, as it is for most people.
fn selected(user: &User, options: &Options) -> Value {
    let Some(names) = &options.select else { return basic(user) };
    let all = everything(user);
    let unset = |name: &str| match schema::property("user", name) {
        Some(ty) if ty.starts_with('*') => json!([]),
        _ => Value::Null,
    };
    names
        .iter()
        .map(|name| (name.clone(), all.get(name).cloned().unwrap_or_else(|| unset(name))))
        .collect::<Map<_, _>>()
        .into()
}

fn denied() -> Refusal {
    Refusal::new(403, "Authorization_RequestDenied", "Insufficient privileges to complete the operation.")
}

pub(crate) fn user(sim: &Sim, call: &Call, name: Option<&str>) -> Answer {
    only(call, &[Method::GET])?;
    let directory = sim.directory();
    let found = match name {
        None => directory.by_oid(&call.caller.oid),
        Some(name) => directory.find_in(&call.caller.tenant, name),
    };
    let own = found.is_some_and(|user| user.oid == call.caller.oid);
    let wide = [
        "User.ReadBasic.All",
        "User.Read.All",
        "User.ReadWrite.All",
        "Directory.Read.All",
        "Directory.ReadWrite.All",
    ];
    let scopes: Vec<&str> =
        if own { [&["User.Read", "User.ReadWrite"][..], &wide].concat() } else { wide.to_vec() };
    if !call.caller.has(&scopes) {
        return Err(denied());
    }
    let user = found.ok_or_else(|| {
        Refusal::new(404, "Request_ResourceNotFound", format!("Resource '{}' does not exist or one of its queried reference-property objects are not present.", name.unwrap_or_default()))
    })?;
    let options = Options::read(&call.query, "user")?;
    let mut body = selected(user, &options);
    body["@odata.context"] =
        format!("{}/$metadata#users{}/$entity", call.base, options.context_suffix()).into();
    Ok(Reply::json(200, body))
}

/// `"displayName:ann" OR "mail:ann"`: each clause in double quotes, the operators outside.
fn clauses(search: &str) -> Result<Vec<(String, String)>, Refusal> {
    let wrong = || {
        Refusal::bad(
            "Request_UnsupportedQuery",
            format!("Syntax error: search clause '{search}' must be enclosed in double quotes."),
        )
    };
    let mut found = Vec::new();
    let mut rest = search.trim();
    while !rest.is_empty() {
        rest = rest.strip_prefix('"').ok_or_else(wrong)?;
        let (clause, tail) = rest.split_once('"').ok_or_else(wrong)?;
        let (property, value) = clause.split_once(':').ok_or_else(wrong)?;
        found.push((property.to_owned(), value.to_lowercase()));
        rest = tail.trim();
        if let Some(tail) = rest.strip_prefix("OR").or_else(|| rest.strip_prefix("AND")) {
            rest = tail.trim();
        }
    }
    Ok(found)
}

fn unsupported(message: &str) -> Refusal {
    Refusal::bad("Request_UnsupportedQuery", message)
}

/// What may be asked of the list of users (<https://learn.microsoft.com/graph/aad-advanced-queries>).
fn check_users(options: &Options, eventual: bool) -> Result<(), Refusal> {
    if options.top.is_some_and(|top| top > 999) {
        return Err(unsupported("Invalid page size specified: '1000'. Must be between 1 and 999 inclusive."));
    }
    // <https://learn.microsoft.com/graph/search-query-parameter>: the header is required.
    if options.search.is_some() && !eventual {
        return Err(unsupported(
            "Request with $search query parameter only works through MSGraph with a special request header: 'ConsistencyLevel: eventual'",
        ));
    }
    let plain = |name: &str| matches!(name, "displayName" | "userPrincipalName");
    if !eventual
        && !options.order.is_empty()
        && (options.filter.is_some() || !options.order.iter().all(|order| plain(&order.path[0])))
    {
        return Err(unsupported("Sorting not supported for current query."));
    }
    Ok(())
}

/// The users a query finds, in its order.
fn found_users(sim: &Sim, call: &Call, options: &Options) -> Result<Vec<User>, Refusal> {
    let found: Vec<User> = {
        let directory = sim.directory();
        let guest = directory.by_oid(&call.caller.oid).is_some_and(|user| user.is_guest);
        if guest {
            return Err(denied());
        }
        directory.users.iter().filter(|user| user.tenant == call.caller.tenant).cloned().collect()
    };
    let mut found: Vec<(Value, User)> = found.into_iter().map(|user| (everything(&user), user)).collect();
    if let Some(search) = &options.search {
        let clauses = clauses(search)?;
        let all = !search.contains(" OR ");
        found.retain(|(shown, _)| {
            let hit = |(property, wanted): &(String, String)| {
                let value = shown[property].as_str().unwrap_or_default().to_lowercase();
                // displayName is searched by its words, the others by their start.
                if property == "displayName" {
                    value.split([' ', '-', '.']).any(|word| word.starts_with(wanted.as_str()))
                        || value.starts_with(wanted.as_str())
                } else {
                    value.starts_with(wanted.as_str())
                }
            };
            if all { clauses.iter().all(hit) } else { clauses.iter().any(hit) }
        });
    }
    if let Some(filter) = &options.filter {
        found.retain(|(shown, _)| odata::matches(filter, shown));
    }
    for order in options.order.iter().rev() {
        found.sort_by(|(left, _), (right, _)| {
            let ordering = odata::compare(&left[&order.path[0]], &right[&order.path[0]]);
            if order.descending { ordering.reverse() } else { ordering }
        });
    }
    Ok(found.into_iter().map(|(_, user)| user).collect())
}

/// The page tokens of the directory tell a client nothing.
fn page_token(next: usize) -> String {
    URL_SAFE_NO_PAD.encode(format!("m~users.{next}"))
}

fn read_page_token(token: &str) -> Result<usize, Refusal> {
    URL_SAFE_NO_PAD
        .decode(token)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|text| text.strip_prefix("m~users.")?.parse().ok())
        .ok_or_else(|| {
            Refusal::bad("Directory_ExpiredPageToken", "The specified page token value has expired.")
        })
}

/// `GET users`, `GET users/$count`
pub(crate) fn users(sim: &Sim, call: &Call, counted: bool) -> Answer {
    only(call, &[Method::GET])?;
    if !call.caller.has(&[
        "User.ReadBasic.All",
        "User.Read.All",
        "Directory.Read.All",
        "Directory.ReadWrite.All",
    ]) {
        return Err(denied());
    }
    if call.query("skip").is_some() {
        return Err(Refusal::bad("Request_BadRequest", "'$skip' is not supported by the service."));
    }
    let eventual =
        call.header("consistencylevel").is_some_and(|level| level.eq_ignore_ascii_case("eventual"));
    let mut options = Options::read(&call.query, "user")?;
    check_users(&options, eventual)?;
    if counted && !eventual {
        return Err(Refusal::bad("Request_BadRequest", "$count is not currently supported."));
    }
    let found = found_users(sim, call, &options)?;
    if counted {
        return Ok(list::plain_count(found.len()));
    }
    options.count &= eventual;
    if let Some(token) = &options.skip_token {
        options.skip = read_page_token(token)?;
    }
    let all = found.iter().map(|user| selected(user, &options)).collect();
    let context = format!("{}/$metadata#users{}", call.base, options.context_suffix());
    let mut graph = sim.graph();
    let name_next = |next| ("$skiptoken", page_token(next));
    Ok(list::page_by(&mut graph, call, &options, 100, &context, all, name_next))
}

pub(crate) fn person(name: &str, email: &str, subclass: &str, rank: usize) -> Value {
    let (given, surname) = name.split_once(' ').unwrap_or((name, ""));
    #[expect(clippy::cast_precision_loss, reason = "a rank is small")]
    let score = 30.0 - rank as f64;
    json!({
        "id": uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, email.as_bytes()).to_string(),
        "displayName": name, "givenName": given, "surname": surname, "birthday": "", "personNotes": "", "isFavorite": false,
        "jobTitle": Value::Null, "companyName": Value::Null, "yomiCompany": "", "department": Value::Null,
        "officeLocation": Value::Null, "profession": "", "userPrincipalName": email, "imAddress": Value::Null,
        "scoredEmailAddresses": [{"address": email, "relevanceScore": score, "selectionLikelihood": "notSpecified"}],
        "phones": [], "postalAddresses": [], "websites": [],
        "personType": {"class": "Person", "subclass": subclass},
    })
}

pub(crate) fn people(sim: &Sim, call: &Call, name: Option<&str>) -> Answer {
    only(call, &[Method::GET])?;
    if !call.caller.has(&["People.Read", "People.Read.All"]) {
        return Err(Refusal::denied());
    }
    let owner = access::owner(sim, &call.caller, name)?;
    // Others' people need an admin's scope, and `$search` works only for oneself.
    if owner.oid != call.caller.oid && !call.caller.has(&["People.Read.All"]) {
        return Err(Refusal::denied());
    }
    let options = Options::read(&call.query, "person")?;
    if options.search.is_some() && options.skip > 0 {
        return Err(Refusal::bad(
            "ErrorInvalidUrlQuery",
            "The query parameter '$skip' is not supported with '$search'.",
        ));
    }
    let colleagues: Vec<(String, String)> = {
        let directory = sim.directory();
        directory
            .users
            .iter()
            .filter(|user| user.tenant == owner.tenant && user.oid != owner.oid)
            .map(|user| (user.display_name.clone(), access::address(user)))
            .collect()
    };
    let mut graph = sim.graph();
    let mailbox = graph.ensure(&owner);
    let mut all = mailbox.people.clone();
    for (name, email) in colleagues {
        all.push(person(&name, &email, "OrganizationUser", all.len()));
    }
    if let Some(search) = &options.search {
        let wanted = search.trim_matches('"').to_lowercase();
        all.retain(|person| {
            let name = person["displayName"].as_str().unwrap_or_default().to_lowercase();
            let email = person["userPrincipalName"].as_str().unwrap_or_default().to_lowercase();
            wanted.split_whitespace().all(|word| fuzzy(&name, word) || email.contains(word))
        });
        all.truncate(250);
    }
    if let Some(filter) = &options.filter {
        all.retain(|person| odata::matches(filter, person));
    }
    let all = all.into_iter().map(|person| super::folders::select(person, &options, &[])).collect();
    let context =
        format!("{}/$metadata#users('{}')/people{}", call.base, owner.oid, options.context_suffix());
    Ok(list::page(&mut graph, call, &options, 10, &context, all))
}

/// "fuzzy": a word that starts so, or differs in one letter.
fn fuzzy(name: &str, word: &str) -> bool {
    name.split_whitespace().any(|part| {
        let differing = part.chars().zip(word.chars()).filter(|(a, b)| a != b).count()
            + part.chars().count().abs_diff(word.chars().count());
        part.starts_with(word) || (word.chars().count() > 3 && differing <= 1)
    })
}

/// <https://learn.microsoft.com/graph/api/user-get-mailboxsettings>: there is no shared variant, so another's is 403.
pub(crate) fn mailbox_settings(
    sim: &Sim,
    call: &Call,
    name: Option<&str>,
    segment: Option<&Segment>,
) -> Answer {
    only(call, &[Method::GET])?;
    if !call.caller.has(&["MailboxSettings.Read", "MailboxSettings.ReadWrite"]) {
        return Err(Refusal::denied());
    }
    let owner = access::owner(sim, &call.caller, name)?;
    if owner.oid != call.caller.oid {
        return Err(Refusal::denied());
    }
    access::enter(sim, &call.caller, name, Need::CalendarRead).ok();
    let mut settings = json!({
        "archiveFolder": Value::Null, "timeZone": MAILBOX_ZONE,
        "delegateMeetingMessageDeliveryOptions": "sendToDelegateOnly",
        "dateFormat": "dd.MM.yyyy", "timeFormat": "HH:mm", "userPurpose": if owner.is_shared_mailbox { "shared" } else { "user" },
        "automaticRepliesSetting": {"status": "disabled", "externalAudience": "all",
            "internalReplyMessage": "", "externalReplyMessage": "",
            "scheduledStartDateTime": {"dateTime": "2026-01-01T00:00:00.0000000", "timeZone": "UTC"},
            "scheduledEndDateTime": {"dateTime": "2026-01-02T00:00:00.0000000", "timeZone": "UTC"}},
        "language": {"locale": "en-US", "displayName": "English (United States)"},
        "workingHours": {"daysOfWeek": ["monday", "tuesday", "wednesday", "thursday", "friday"],
            "startTime": "08:00:00.0000000", "endTime": "17:00:00.0000000", "timeZone": {"name": MAILBOX_ZONE}},
    });
    let context = format!("{}/$metadata#users('{}')/mailboxSettings", call.base, owner.oid);
    if let Some(segment) = segment {
        let found = settings
            .as_object_mut()
            .and_then(|all| all.iter_mut().find(|(known, _)| known.eq_ignore_ascii_case(&segment.raw)));
        let (name, value) = found.ok_or_else(|| Refusal::no_segment(&segment.raw))?;
        // A setting that is no object stands in `value`, as every plain property does.
        let mut body = if value.is_object() { value.take() } else { json!({"value": value}) };
        body["@odata.context"] = format!("{context}/{name}").into();
        return Ok(Reply::json(200, body));
    }
    settings["@odata.context"] = context.into();
    Ok(Reply::json(200, settings))
}
