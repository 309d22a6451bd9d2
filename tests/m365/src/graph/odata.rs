//! The part of `OData` that Outlook's resources understand: `$filter`, `$orderby`, `$select`, `$expand`, `$top`, `$skip`,
//! `$count`, `$search` (<https://learn.microsoft.com/graph/query-parameters>). Parsing knows nothing of any resource;
//! what a resource refuses is checked against the metadata and by its own module.

mod evaluate;
mod parse;

pub(crate) use evaluate::{Lookup, compare, matches};

use super::refusal::Refusal;
use super::schema;

/// A literal.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Literal {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    /// An unquoted instant, as `receivedDateTime ge 2026-10-23T00:00:00Z`.
    Instant(chrono::DateTime<chrono::Utc>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    Eq,
    Ne,
    Gt,
    Ge,
    Lt,
    Le,
}

/// A `$filter`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Filter {
    And(Box<Filter>, Box<Filter>),
    Or(Box<Filter>, Box<Filter>),
    Not(Box<Filter>),
    Compare(Vec<String>, Operator, Literal),
    /// `contains`, `startswith`, `endswith`.
    Call(String, Vec<String>, String),
    /// `path/any(x: …)`, `path/all(x: …)`; paths inside start with the variable.
    Lambda {
        path: Vec<String>,
        all: bool,
        variable: String,
        body: Option<Box<Filter>>,
    },
    /// A path alone: a Boolean property.
    Flag(Vec<String>),
}

/// One key of `$orderby`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Order {
    pub(crate) path: Vec<String>,
    pub(crate) descending: bool,
}

/// One item of `$expand`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Expand {
    pub(crate) name: String,
    pub(crate) options: Vec<(String, String)>,
}

/// The query options of one call, checked against the type they are applied to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    pub(crate) select: Option<Vec<String>>,
    pub(crate) expand: Vec<Expand>,
    pub(crate) filter: Option<Filter>,
    pub(crate) order: Vec<Order>,
    pub(crate) top: Option<usize>,
    pub(crate) skip: usize,
    pub(crate) count: bool,
    pub(crate) search: Option<String>,
    pub(crate) skip_token: Option<String>,
}

pub(crate) fn parse_filter(text: &str) -> Result<Filter, String> {
    parse::filter(text)
}

/// A filter on `kind`: every name declared and in its declared spelling, every literal of the right type.
pub(crate) fn checked_filter(text: &str, kind: &str) -> Result<Filter, Refusal> {
    let mut filter = parse::filter(text).map_err(|error| Refusal::bad("BadRequest", error))?;
    check(&mut filter, kind, None)?;
    Ok(filter)
}

impl Options {
    /// Reads the options of `query`; names that are no `OData` option and not among `also` are ignored, as the service
    /// ignores unknown custom options without `$`.
    pub(crate) fn read(query: &[(String, String)], kind: &str) -> Result<Self, Refusal> {
        let mut options = Self::default();
        for (name, value) in query {
            // The `$` may be left out (<https://learn.microsoft.com/graph/query-parameters>).
            match name.trim_start_matches('$').to_ascii_lowercase().as_str() {
                "select" => {
                    let mut names = Vec::new();
                    for name in value.split(',').map(str::trim).filter(|name| !name.is_empty()) {
                        let mut path: Vec<String> = name.split('/').map(str::to_owned).collect();
                        schema::path(kind, &mut path).map_err(|error| select_expand(&error))?;
                        names.push(path.swap_remove(0));
                    }
                    options.select = Some(names);
                }
                "expand" => {
                    options.expand = parse::expand(value).map_err(|error| select_expand(&error))?;
                    for expand in &mut options.expand {
                        let (of, name) = match expand.name.split_once('/') {
                            Some((ty, name)) => (schema::cast(kind, ty), name),
                            None => (Some(kind), expand.name.as_str()),
                        };
                        if of.and_then(|of| schema::navigation(of, name)).is_some() {
                            if let (Some(of), true) = (of, expand.name.contains('/')) {
                                expand.name = format!("microsoft.graph.{of}/{name}");
                            }
                        } else {
                            return Err(select_expand(&format!(
                                "Could not find a property named '{}' on type 'microsoft.graph.{kind}'.",
                                expand.name
                            )));
                        }
                    }
                }
                "filter" => {
                    options.filter = Some(checked_filter(value, kind)?);
                }
                "orderby" => {
                    options.order = parse::order(value).map_err(|error| Refusal::bad("BadRequest", error))?;
                    for order in &mut options.order {
                        schema::path(kind, &mut order.path)
                            .map_err(|error| Refusal::bad("RequestBroker--ParseUri", error))?;
                    }
                }
                "top" => options.top = Some(number(name, value, 1, 1000)?),
                "skip" => options.skip = number(name, value, 0, usize::MAX)?,
                "count" => {
                    options.count = value.parse().map_err(|_| {
                        Refusal::bad("BadRequest", format!("Invalid value '{value}' for $count query option found. Valid values are 'true' and 'false'."))
                    })?;
                }
                "search" => options.search = Some(value.clone()),
                "skiptoken" => options.skip_token = Some(value.clone()),
                _ if name.starts_with('$')
                    && !name.eq_ignore_ascii_case("$deltatoken")
                    && !name.eq_ignore_ascii_case("$format") =>
                {
                    return Err(Refusal::bad(
                        "BadRequest",
                        format!("The query parameter '{name}' is not supported."),
                    ));
                }
                _ => {}
            }
        }
        Ok(options)
    }

    pub(crate) fn expands(&self, name: &str) -> Option<&Expand> {
        self.expand.iter().find(|expand| expand.name == name)
    }

    /// The suffix of `@odata.context`: `(subject,body)` when there is a `$select`.
    pub(crate) fn context_suffix(&self) -> String {
        let mut names = self.select.clone().unwrap_or_default();
        names.extend(self.expand.iter().map(|expand| format!("{}()", expand.name)));
        if names.is_empty() { String::new() } else { format!("({})", names.join(",")) }
    }
}

fn select_expand(error: &str) -> Refusal {
    // The wording seen in mguessan/davmail#488 and microsoftgraph/microsoft-graph-docs#11932.
    Refusal::bad("BadRequest", format!("Parsing OData Select and Expand failed: {error}"))
}

fn number(name: &str, value: &str, least: usize, most: usize) -> Result<usize, Refusal> {
    value.parse::<usize>().ok().filter(|number| (least..=most).contains(number)).ok_or_else(|| {
        Refusal::bad("ErrorInvalidUrlQuery", format!("Invalid value '{value}' for ${} query option found. The value must be between {least} and {most}.", name.trim_start_matches('$')))
    })
}

/// Every path of a filter must be declared; an unknown one is `RequestBroker--ParseUri` (seen in wslyvh/paperweight#1).
fn check(filter: &mut Filter, kind: &str, variable: Option<(&str, &str)>) -> Result<(), Refusal> {
    let path = |path: &mut [String]| {
        let parsed = match variable {
            Some((name, item)) if path.first().is_some_and(|first| first == name) => {
                schema::path(item, &mut path[1..])
            }
            _ => schema::path(kind, path),
        };
        parsed.map_err(|error| Refusal::bad("RequestBroker--ParseUri", error))
    };
    match filter {
        Filter::And(left, right) | Filter::Or(left, right) => {
            check(left, kind, variable)?;
            check(right, kind, variable)
        }
        Filter::Not(inner) => check(inner, kind, variable),
        Filter::Compare(at, operator, literal) => {
            let ty = path(at)?;
            // The value of an extended property is text, and compared as a number through `cast`.
            let cast = variable.is_some_and(|(_, item)| item.ends_with("LegacyExtendedProperty"));
            if fits(&ty, literal) || cast { Ok(()) } else { Err(incompatible(&ty, *operator, literal)) }
        }
        Filter::Call(name, at, _) => {
            let ty = path(at)?;
            if ty == "Edm.String" {
                Ok(())
            } else {
                Err(Refusal::bad(
                    "BadRequest",
                    format!(
                        "Invalid filter clause: No function signature for the function with name '{name}' matches the specified arguments."
                    ),
                ))
            }
        }
        Filter::Flag(at) => {
            if path(at)? == "Edm.Boolean" {
                Ok(())
            } else {
                Err(Refusal::bad(
                    "BadRequest",
                    "Invalid filter clause: The $filter expression must evaluate to a single boolean value.",
                ))
            }
        }
        Filter::Lambda { path: at, variable, body, .. } => {
            let item = path(at)?;
            match body {
                // A collection of plain strings (`categories/any(c: c eq 'x')`) has no properties to check.
                Some(body) if !item.starts_with("Edm.") => check(body, kind, Some((variable, &item))),
                _ => Ok(()),
            }
        }
    }
}

/// Whether a literal can be compared with a property of this type.
fn fits(ty: &str, literal: &Literal) -> bool {
    match literal {
        Literal::Null => true,
        Literal::Bool(_) => ty == "Edm.Boolean",
        Literal::Number(_) => {
            matches!(ty, "Edm.Int32" | "Edm.Int64" | "Edm.Double" | "Edm.Single" | "Edm.Decimal")
        }
        Literal::Instant(_) => matches!(ty, "Edm.DateTimeOffset" | "Edm.Date"),
        Literal::Text(_) => matches!(ty, "Edm.String" | "Edm.Binary" | "Edm.Guid") || schema::is_enum(ty),
    }
}

/// The sentence was seen in OpenAEV-Platform/collectors#564; an event's `start/dateTime` is text, so an unquoted moment is
/// refused there (O365/python-o365#149).
fn incompatible(ty: &str, operator: Operator, literal: &Literal) -> Refusal {
    let given = match literal {
        Literal::Null => "<null>",
        Literal::Bool(_) => "Edm.Boolean",
        Literal::Number(_) => "Edm.Int32",
        Literal::Instant(_) => "Edm.DateTimeOffset",
        Literal::Text(_) => "Edm.String",
    };
    let kind = match operator {
        Operator::Eq => "Equal",
        Operator::Ne => "NotEqual",
        Operator::Gt => "GreaterThan",
        Operator::Ge => "GreaterThanOrEqual",
        Operator::Lt => "LessThan",
        Operator::Le => "LessThanOrEqual",
    };
    Refusal::bad(
        "BadRequest",
        format!(
            "Invalid filter clause: A binary operator with incompatible types was detected. Found operand types '{ty}' and '{given}' for operator kind '{kind}'."
        ),
    )
}

/// The conjuncts of a filter, in the order they were written.
pub(crate) fn conjuncts<'a>(filter: &'a Filter, into: &mut Vec<&'a Filter>) {
    if let Filter::And(left, right) = filter {
        conjuncts(left, into);
        conjuncts(right, into);
    } else {
        into.push(filter);
    }
}

/// The properties a filter names, in the order they first appear.
pub(crate) fn properties(filter: &Filter, into: &mut Vec<String>) {
    match filter {
        Filter::And(left, right) | Filter::Or(left, right) => {
            properties(left, into);
            properties(right, into);
        }
        Filter::Not(inner) => properties(inner, into),
        Filter::Compare(path, ..)
        | Filter::Call(_, path, _)
        | Filter::Flag(path)
        | Filter::Lambda { path, .. } => {
            let path = path.join("/");
            if !into.contains(&path) {
                into.push(path);
            }
        }
    }
}
