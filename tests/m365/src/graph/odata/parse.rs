//! Lexing and parsing of the query options. Errors are the service's sentences, not ours.

use chrono::{DateTime, NaiveDate, Utc};

use super::{Expand, Filter, Literal, Operator, Order};

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Open,
    Close,
    Comma,
    Colon,
}

fn lex(input: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut chars = input.chars().peekable();
    while let Some(&c) = chars.peek() {
        match c {
            ' ' | '\t' => {
                chars.next();
            }
            '(' | ')' | ',' => {
                chars.next();
                tokens.push(match c {
                    '(' => Token::Open,
                    ')' => Token::Close,
                    _ => Token::Comma,
                });
            }
            '\'' => {
                chars.next();
                let mut text = String::new();
                loop {
                    match chars.next() {
                        // Two quotes are one (<https://learn.microsoft.com/graph/query-parameters#escaping-single-quotes>).
                        Some('\'') if chars.peek() == Some(&'\'') => {
                            chars.next();
                            text.push('\'');
                        }
                        Some('\'') => break,
                        Some(c) => text.push(c),
                        None => {
                            return Err(format!(
                                "There is an unterminated string literal at position {} in '{input}'.",
                                input.len()
                            ));
                        }
                    }
                }
                tokens.push(Token::Text(text));
            }
            _ => {
                let mut word = String::new();
                while let Some(&c) = chars.peek() {
                    if matches!(c, ' ' | '\t' | '(' | ')' | ',' | '\'') {
                        break;
                    }
                    // A colon ends a lambda's variable, and is part of an instant.
                    if c == ':' && !word.starts_with(|first: char| first.is_ascii_digit()) {
                        break;
                    }
                    word.push(c);
                    chars.next();
                }
                if word.is_empty() {
                    chars.next();
                    tokens.push(Token::Colon);
                } else {
                    tokens.push(Token::Word(word));
                }
            }
        }
    }
    Ok(tokens)
}

struct Parser<'a> {
    input: &'a str,
    tokens: Vec<Token>,
    at: usize,
}

pub(super) fn filter(input: &str) -> Result<Filter, String> {
    let mut parser = Parser { input, tokens: lex(input)?, at: 0 };
    let filter = parser.or()?;
    if parser.at == parser.tokens.len() { Ok(filter) } else { Err(parser.error()) }
}

impl Parser<'_> {
    fn error(&self) -> String {
        // The sentence Graph gives for a filter it cannot read.
        format!(
            "Invalid filter clause: Syntax error: character '{}' is not valid at position {} in '{}'.",
            self.tokens.get(self.at).map_or_else(String::new, |token| format!("{token:?}")),
            self.at,
            self.input
        )
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn take(&mut self, token: &Token) -> bool {
        let found = self.peek() == Some(token);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, token: &Token) -> Result<(), String> {
        if self.take(token) { Ok(()) } else { Err(self.error()) }
    }

    fn keyword(&mut self, word: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Word(found)) if found.eq_ignore_ascii_case(word));
        self.at += usize::from(found);
        found
    }

    fn word(&mut self) -> Result<String, String> {
        if let Some(Token::Word(word)) = self.peek().cloned() {
            self.at += 1;
            Ok(word)
        } else {
            Err(self.error())
        }
    }

    fn or(&mut self) -> Result<Filter, String> {
        let mut left = self.and()?;
        while self.keyword("or") {
            left = Filter::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Filter, String> {
        let mut left = self.unary()?;
        while self.keyword("and") {
            left = Filter::And(Box::new(left), Box::new(self.unary()?));
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Filter, String> {
        if self.keyword("not") {
            return Ok(Filter::Not(Box::new(self.unary()?)));
        }
        if self.take(&Token::Open) {
            let inner = self.or()?;
            self.expect(&Token::Close)?;
            // Brackets may stand around a path alone: `(from/emailAddress/address) eq 'x'`.
            return if let Filter::Flag(path) = inner { self.comparison(path) } else { Ok(inner) };
        }
        let word = self.word()?;
        let path = if word == "cast" && self.peek() == Some(&Token::Open) {
            self.cast()?
        } else if self.peek() == Some(&Token::Open) {
            return self.call(&word);
        } else {
            path(&word)
        };
        self.comparison(path)
    }

    /// What may follow a path: an operator and a literal, a list of literals, nothing.
    fn comparison(&mut self, path: Vec<String>) -> Result<Filter, String> {
        let Some(Token::Word(word)) = self.peek() else { return Ok(Filter::Flag(path)) };
        let operator = match word.to_ascii_lowercase().as_str() {
            "eq" => Operator::Eq,
            "ne" => Operator::Ne,
            "gt" => Operator::Gt,
            "ge" => Operator::Ge,
            "lt" => Operator::Lt,
            "le" => Operator::Le,
            "in" => {
                self.at += 1;
                return self.members(&path);
            }
            _ => return Ok(Filter::Flag(path)),
        };
        self.at += 1;
        Ok(Filter::Compare(path, operator, self.literal()?))
    }

    /// `in ('a','b')` is a chain of `or`.
    fn members(&mut self, path: &[String]) -> Result<Filter, String> {
        self.expect(&Token::Open)?;
        let mut found = Filter::Compare(path.to_vec(), Operator::Eq, self.literal()?);
        while self.take(&Token::Comma) {
            let next = Filter::Compare(path.to_vec(), Operator::Eq, self.literal()?);
            found = Filter::Or(Box::new(found), Box::new(next));
        }
        self.expect(&Token::Close)?;
        Ok(found)
    }

    /// `cast(ep/value, Edm.Int32)`: how numeric extended properties are compared.
    fn cast(&mut self) -> Result<Vec<String>, String> {
        self.expect(&Token::Open)?;
        let found = path(&self.word()?);
        self.expect(&Token::Comma)?;
        self.word()?;
        self.expect(&Token::Close)?;
        Ok(found)
    }

    fn call(&mut self, word: &str) -> Result<Filter, String> {
        self.expect(&Token::Open)?;
        let mut steps = path(word);
        let name = steps.pop().unwrap_or_default();
        if matches!(name.to_ascii_lowercase().as_str(), "any" | "all") && !steps.is_empty() {
            let all = name.eq_ignore_ascii_case("all");
            if self.take(&Token::Close) {
                return Ok(Filter::Lambda { path: steps, all, variable: String::new(), body: None });
            }
            let variable = self.word()?;
            self.expect(&Token::Colon)?;
            let body = self.or()?;
            self.expect(&Token::Close)?;
            return Ok(Filter::Lambda { path: steps, all, variable, body: Some(Box::new(body)) });
        }
        if !steps.is_empty()
            || !matches!(name.to_ascii_lowercase().as_str(), "contains" | "startswith" | "endswith")
        {
            return Err(format!(
                "An unknown function with name '{word}' was found. This may also be a function import or a key lookup on a navigation property, which is not allowed."
            ));
        }
        let at = path(&self.word()?);
        self.expect(&Token::Comma)?;
        let Literal::Text(text) = self.literal()? else { return Err(self.error()) };
        self.expect(&Token::Close)?;
        Ok(Filter::Call(name.to_ascii_lowercase(), at, text))
    }

    fn literal(&mut self) -> Result<Literal, String> {
        match self.peek().cloned() {
            Some(Token::Text(text)) => {
                self.at += 1;
                Ok(Literal::Text(text))
            }
            Some(Token::Word(word)) => {
                self.at += 1;
                literal(&word).ok_or_else(|| self.error())
            }
            _ => Err(self.error()),
        }
    }
}

fn literal(word: &str) -> Option<Literal> {
    Some(match word {
        "null" => Literal::Null,
        "true" => Literal::Bool(true),
        "false" => Literal::Bool(false),
        _ => {
            if let Ok(number) = word.parse::<f64>() {
                Literal::Number(number)
            } else {
                Literal::Instant(instant(word)?)
            }
        }
    })
}

/// An instant as it may stand in a query: with an offset, or a date alone.
pub(super) fn instant(word: &str) -> Option<DateTime<Utc>> {
    // A `+` that was not percent-encoded arrives as a space and never as an offset: nothing to repair here.
    if let Ok(found) = DateTime::parse_from_rfc3339(word) {
        return Some(found.to_utc());
    }
    let day: NaiveDate = word.parse().ok()?;
    Some(day.and_hms_opt(0, 0, 0)?.and_utc())
}

fn path(word: &str) -> Vec<String> {
    word.split('/').map(str::to_owned).collect()
}

pub(super) fn order(input: &str) -> Result<Vec<Order>, String> {
    input
        .split(',')
        .map(|part| {
            let mut words = part.split_whitespace();
            let name = words.next().ok_or_else(|| format!("Syntax error at position 0 in '{input}'."))?;
            let descending = match words.next() {
                None => false,
                Some(word) if word.eq_ignore_ascii_case("asc") => false,
                Some(word) if word.eq_ignore_ascii_case("desc") => true,
                Some(_) => return Err(format!("Syntax error at position {} in '{input}'.", name.len() + 1)),
            };
            if words.next().is_some() {
                return Err(format!("Syntax error at position {} in '{input}'.", input.len()));
            }
            Ok(Order { path: path(name), descending })
        })
        .collect()
}

pub(super) fn expand(input: &str) -> Result<Vec<Expand>, String> {
    let mut items = Vec::new();
    for part in split(input, ',')? {
        let part = part.trim();
        let Some(open) = part.find('(') else {
            items.push(Expand { name: canonical(part), options: Vec::new() });
            continue;
        };
        let inner = part[open + 1..]
            .strip_suffix(')')
            .ok_or_else(|| "Found an unbalanced bracket expression.".to_owned())?;
        let mut options = Vec::new();
        for option in split(inner, ';')? {
            let (name, value) = option
                .split_once('=')
                .ok_or_else(|| format!("Syntax error at position {} in '{inner}'.", inner.len()))?;
            let name = name.trim().trim_start_matches('$').to_ascii_lowercase();
            if name == "filter" {
                filter(value)?;
            }
            options.push((name, value.trim().to_owned()));
        }
        items.push(Expand { name: canonical(&part[..open]), options });
    }
    Ok(items)
}

/// The samples of the extended property pages write the segment in both cases.
fn canonical(name: &str) -> String {
    let mut chars = name.trim().chars();
    chars.next().map_or_else(String::new, |first| first.to_ascii_lowercase().to_string() + chars.as_str())
}

/// Splits at `separator` outside of brackets and quotes.
fn split(input: &str, separator: char) -> Result<Vec<String>, String> {
    let (mut parts, mut part, mut depth, mut quoted) = (Vec::new(), String::new(), 0_i32, false);
    for c in input.chars() {
        match c {
            '\'' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth -= 1,
            _ => {}
        }
        if c == separator && depth == 0 && !quoted {
            parts.push(std::mem::take(&mut part));
        } else {
            part.push(c);
        }
    }
    if depth != 0 {
        return Err("Found an unbalanced bracket expression.".into());
    }
    parts.push(part);
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_of_the_documentation_parse() {
        for text in [
            "receivedDateTime ge 2016-09-01 and receivedDateTime lt 2016-09-08",
            "receivedDateTime ge 2026-10-23T00:00:00Z",
            "from/emailAddress/address eq 'someuser@example.com'",
            "singleValueExtendedProperties/Any(ep: ep/id eq 'String {66f5a359-4659-4830-9070-00047ec6ac6e} Name Color' and ep/value eq 'Green')",
            "singleValueExtendedProperties/any(ep:ep/id eq 'x' and contains(ep/value, 'y'))",
            "start/dateTime ge '2026-01-01T00:00:00' and contains(subject,'x')",
            "subject eq 'it''s' or not (isRead eq true)",
            "emailAddresses/any(a:a/address eq 'x@y')",
            "isRead EQ true AND NOT(importance in ('low','high'))",
            "(from/emailAddress/address) eq 'x@y' and startsWith(subject,'x')",
            "singleValueExtendedProperties/any(ep:ep/id eq 'Integer {g} Name N' and cast(ep/value, Edm.Int32) gt 7)",
        ] {
            filter(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        }
        for text in
            ["subject eq", "subject = 'x'", "substringof('x', subject)", "(isRead eq true", "subject eq 'x"]
        {
            filter(text).expect_err(text);
        }
    }

    #[test]
    fn an_expand_may_carry_a_filter_with_brackets_and_commas() {
        let found =
            expand("attachments,singleValueExtendedProperties($filter=id eq 'String {a} Name (b, c)')")
                .expect("parses");
        assert_eq!(found.len(), 2);
        assert_eq!(found[1].options[0].0, "filter");
    }
}
