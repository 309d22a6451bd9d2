//! `$select`, `$filter`, `$orderby`, `$top`, `$count`, `$expand` and paging over rows.
//!
//! `webapi/query/overview`: at most 5,000 rows a page, `$top` and paging exclude each other, counts stop at 5,000.

use std::cmp::Ordering;

use serde_json::{Map, Value, json};

use super::address::split_outside_quotes;
use super::error::CrmError;
use super::filter::{self, Filter};
use super::render::{Annotations, render};
use super::schema::Table;
use super::store::{Organisation, Row, reference};

const PAGE: usize = 5_000;

#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) select: Option<Vec<String>>,
    pub(crate) filter: Option<String>,
    pub(crate) order: Vec<(String, bool)>,
    pub(crate) top: Option<usize>,
    pub(crate) count: bool,
    pub(crate) expand: Vec<(String, Options)>,
    pub(crate) offset: usize,
}

impl Options {
    pub(crate) fn from_query(query: &str) -> Result<Self, CrmError> {
        let pairs = url::form_urlencoded::parse(query.as_bytes()).into_owned();
        Self::from_pairs(pairs)
    }

    fn from_pairs(pairs: impl Iterator<Item = (String, String)>) -> Result<Self, CrmError> {
        let mut options = Self::default();
        for (name, value) in pairs {
            match name.as_str() {
                "$select" => options.select = Some(list(&value)),
                "$filter" => options.filter = Some(value),
                "$orderby" => options.order = order(&value)?,
                "$top" => options.top = Some(value.parse().map_err(|_| invalid(&name, &value))?),
                "$count" => options.count = value.parse().map_err(|_| invalid(&name, &value))?,
                "$expand" => options.expand = expand(&value)?,
                "$skiptoken" => options.offset = offset(&value).ok_or_else(|| invalid(&name, &value))?,
                name if name.starts_with('$') => {
                    let message = format!("The query parameter {name} is not supported");
                    return Err(CrmError::new(http::StatusCode::BAD_REQUEST, "0x80060888", message));
                }
                // Anything without a dollar is a parameter alias or nobody's business.
                _ => {}
            }
        }
        Ok(options)
    }
}

fn invalid(name: &str, value: &str) -> CrmError {
    CrmError::query(format!("Invalid value '{value}' for {name} query option found."))
}

fn list(value: &str) -> Vec<String> {
    value.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
}

fn order(value: &str) -> Result<Vec<(String, bool)>, CrmError> {
    list(value)
        .iter()
        .map(|item| match item.split_once(' ') {
            None => Ok((item.clone(), false)),
            Some((name, "asc")) => Ok((name.to_owned(), false)),
            Some((name, "desc")) => Ok((name.to_owned(), true)),
            Some(_) => Err(invalid("$orderby", item)),
        })
        .collect()
}

fn expand(value: &str) -> Result<Vec<(String, Options)>, CrmError> {
    split_outside_quotes(value, ',')
        .into_iter()
        .map(|item| {
            let item = item.trim();
            let Some((name, inner)) = item.split_once('(') else {
                return Ok((item.to_owned(), Options::default()));
            };
            let inner = inner.strip_suffix(')').ok_or_else(|| invalid("$expand", item))?;
            let pairs = split_outside_quotes(inner, ';').into_iter().filter_map(|pair| {
                let (name, value) = pair.split_once('=')?;
                Some((name.trim().to_owned(), value.to_owned()))
            });
            Ok((name.to_owned(), Options::from_pairs(pairs)?))
        })
        .collect()
}

fn offset(token: &str) -> Option<usize> {
    token.split_once("offset=\"")?.1.split('"').next()?.parse().ok()
}

/// The stored value behind a property of the query, also one step along a lookup.
fn property(org: &Organisation, table: &Table, row: Option<&Row>, name: &str) -> Result<Value, CrmError> {
    if let Some((navigation, rest)) = name.split_once('/') {
        let relation =
            table.navigation(navigation).ok_or_else(|| CrmError::no_property(navigation, table.logical))?;
        let target =
            org.table(relation.target).ok_or_else(|| CrmError::no_property(navigation, table.logical))?;
        let next = row.and_then(|row| row.values.get(&relation.column)).and_then(reference);
        let next = next.filter(|(table, _)| *table == target.logical);
        let next = next.and_then(|(table, id)| org.row(table, id));
        return property(org, target, next, rest);
    }
    if let Some(column) = table.lookup_value(name) {
        let value = row.and_then(|row| row.values.get(&column.logical)).and_then(reference);
        return Ok(value.map_or(Value::Null, |(_, id)| Value::String(id.to_owned())));
    }
    match table.column(name) {
        Some(column) if !column.kind.is_lookup() && column.read => {
            Ok(row.and_then(|row| row.values.get(name)).cloned().unwrap_or_default())
        }
        _ => Err(CrmError::no_property(name, table.logical)),
    }
}

/// Names that cannot be selected are found before any row is looked at.
pub(crate) fn check(
    org: &Organisation,
    table: &Table,
    options: &Options,
) -> Result<Option<Filter>, CrmError> {
    for name in options.select.iter().flatten() {
        if table.navigation(name).is_none() {
            property(org, table, None, name)?;
        }
    }
    for (name, _) in &options.order {
        property(org, table, None, name)?;
    }
    for (name, inner) in &options.expand {
        let target = expanded(org, table, name)?.1;
        if !inner.expand.is_empty() {
            return Err(CrmError::query("Only one level of $expand is simulated."));
        }
        check(org, &target, inner)?;
    }
    let Some(text) = &options.filter else { return Ok(None) };
    let filter = filter::parse(text)?;
    filter.holds(&|name| property(org, table, None, name))?;
    Ok(Some(filter))
}

fn points_to(row: &Row, column: &str, id: &str) -> bool {
    row.values.get(column).and_then(reference).is_some_and(|(_, to)| to == id)
}

/// The table and lookup behind a collection of `table`.
pub(crate) fn collection(org: &Organisation, table: &Table, name: &str) -> Option<(Table, String)> {
    match expanded(org, table, name).ok()? {
        (Side::Many(column), other) => Some((other, column)),
        (Side::One(_), _) => None,
    }
}

enum Side {
    /// A lookup: one row, or none.
    One(String),
    /// The rows of another table whose lookup points here.
    Many(String),
}

fn expanded(org: &Organisation, table: &Table, name: &str) -> Result<(Side, Table), CrmError> {
    if let Some(relation) = table.navigation(name)
        && let Some(target) = org.table(relation.target)
    {
        return Ok((Side::One(relation.column.clone()), target.clone()));
    }
    for other in &org.tables {
        for relation in &other.relations {
            if relation.target == table.logical && relation.collection == name {
                return Ok((Side::Many(relation.column.clone()), other.clone()));
            }
        }
    }
    Err(CrmError::no_property(name, table.logical))
}

pub(crate) fn show(
    org: &Organisation,
    table: &Table,
    row: &Row,
    options: &Options,
    annotations: &Annotations,
) -> Result<Map<String, Value>, CrmError> {
    let mut shown = render(org, table, row, options.select.as_deref(), annotations);
    for (name, inner) in &options.expand {
        let (side, target) = expanded(org, table, name)?;
        let value = match side {
            Side::One(column) => {
                let found = row.values.get(&column).and_then(reference);
                let found = found.filter(|(to, _)| *to == target.logical);
                match found.and_then(|(to, id)| org.row(to, id)) {
                    Some(found) => Value::Object(show(org, &target, found, inner, annotations)?),
                    None => Value::Null,
                }
            }
            Side::Many(column) => {
                let filter = check(org, &target, inner)?;
                let mut rows = matching(org, &target, filter.as_ref(), &inner.order)?;
                rows.retain(|other| points_to(other, &column, &row.id));
                rows.truncate(inner.top.unwrap_or(PAGE));
                let shown: Result<Vec<Value>, CrmError> = rows
                    .iter()
                    .map(|row| show(org, &target, row, inner, annotations).map(Value::Object))
                    .collect();
                Value::Array(shown?)
            }
        };
        shown.insert(name.clone(), value);
    }
    Ok(shown)
}

fn matching(
    org: &Organisation,
    table: &Table,
    filter: Option<&Filter>,
    order: &[(String, bool)],
) -> Result<Vec<Row>, CrmError> {
    let mut rows = Vec::new();
    for row in org.rows.get(table.logical).into_iter().flat_map(|rows| rows.values()) {
        let keep = match filter {
            Some(filter) => filter.holds(&|name| property(org, table, Some(row), name))?,
            None => true,
        };
        if keep {
            rows.push(row.clone());
        }
    }
    rows.sort_by(|left, right| {
        for (name, descending) in order {
            let value = |row| property(org, table, Some(row), name).unwrap_or_default();
            let order = filter::order(&value(left), &value(right)).unwrap_or(Ordering::Equal);
            let order = if *descending { order.reverse() } else { order };
            if order != Ordering::Equal {
                return order;
            }
        }
        Ordering::Equal
    });
    Ok(rows)
}

/// A page of a collection, all of it or what points `within` a lookup to one row; `link` is the address of the collection, without its query.
pub(crate) fn page(
    org: &Organisation,
    table: &Table,
    options: &Options,
    annotations: &Annotations,
    page_size: Option<usize>,
    within: Option<(&str, &str)>,
    (base, link, query): (&str, &str, &str),
) -> Result<Value, CrmError> {
    let filter = check(org, table, options)?;
    let mut rows = matching(org, table, filter.as_ref(), &options.order)?;
    if let Some((column, id)) = within {
        rows.retain(|row| points_to(row, column, id));
    }
    let total = rows.len();
    let size = options.top.unwrap_or_else(|| page_size.unwrap_or(PAGE).clamp(1, PAGE)).min(PAGE);
    let shown: Result<Vec<Value>, CrmError> = rows
        .iter()
        .skip(options.offset)
        .take(size)
        .map(|row| show(org, table, row, options, annotations).map(Value::Object))
        .collect();
    let shown = shown?;
    let fields = options.select.as_ref().map(|names| format!("({})", names.join(","))).unwrap_or_default();
    let end = options.offset + shown.len();
    let mut body =
        json!({"@odata.context": format!("{base}$metadata#{}{fields}", table.set), "value": shown});
    if options.count {
        body["@odata.count"] = json!(total.min(PAGE));
    }
    if annotations.wants("Microsoft.Dynamics.CRM.totalrecordcount") {
        body["@Microsoft.Dynamics.CRM.totalrecordcount"] =
            if options.count { json!(total.min(PAGE)) } else { json!(-1) };
        body["@Microsoft.Dynamics.CRM.totalrecordcountlimitexceeded"] = json!(options.count && total > PAGE);
    }
    if annotations.wants("Microsoft.Dynamics.CRM.globalmetadataversion") {
        body["@Microsoft.Dynamics.CRM.globalmetadataversion"] = json!(org.metadata_version.to_string());
    }
    if options.top.is_none() && end < total {
        let number = end / size + 1;
        let cookie = format!("<cookie pagenumber=\"{number}\" offset=\"{end}\" istracking=\"False\" />");
        let pairs = url::form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name != "$skiptoken");
        let mut next = String::new();
        for (name, value) in
            pairs.map(|(n, v)| (n.into_owned(), v.into_owned())).chain([("$skiptoken".to_owned(), cookie)])
        {
            next.push(if next.is_empty() { '?' } else { '&' });
            next.push_str(&name);
            next.push('=');
            next.extend(percent_encoding::utf8_percent_encode(&value, percent_encoding::NON_ALPHANUMERIC));
        }
        body["@odata.nextLink"] = json!(format!("{link}{next}"));
    }
    Ok(body)
}
