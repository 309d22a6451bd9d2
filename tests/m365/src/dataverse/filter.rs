//! `$filter`: read into a tree, evaluated against whatever can look a property up.
//!
//! `webapi/query/filter-rows`: comparison, logical and string functions. Text compares without regard to case.

use std::cmp::Ordering;

use serde_json::Value;

use super::error::CrmError;

#[derive(Clone, Debug)]
pub(crate) enum Filter {
    And(Box<Filter>, Box<Filter>),
    Or(Box<Filter>, Box<Filter>),
    Not(Box<Filter>),
    Compare(Operand, Operator, Operand),
    Call(Function, String, String),
}

#[derive(Clone, Debug)]
pub(crate) enum Operand {
    Property(String),
    Literal(Value),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Operator {
    Eq,
    Ne,
    Gt,
    Ge,
    Lt,
    Le,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Function {
    Contains,
    StartsWith,
    EndsWith,
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Open,
    Close,
    Comma,
}

pub(crate) fn parse(text: &str) -> Result<Filter, CrmError> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0 };
    let filter = parser.or()?;
    if parser.at < parser.tokens.len() {
        return Err(syntax(text));
    }
    Ok(filter)
}

fn syntax(text: &str) -> CrmError {
    CrmError::query(format!("Syntax error at position {} in '{text}'.", text.len()))
}

fn tokens(text: &str) -> Result<Vec<Token>, CrmError> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(&next) = chars.peek() {
        match next {
            ' ' => {
                chars.next();
            }
            '(' | ')' | ',' => {
                chars.next();
                tokens.push(match next {
                    '(' => Token::Open,
                    ')' => Token::Close,
                    _ => Token::Comma,
                });
            }
            '\'' => {
                chars.next();
                let mut literal = String::new();
                loop {
                    match chars.next() {
                        Some('\'') if chars.peek() == Some(&'\'') => {
                            chars.next();
                            literal.push('\'');
                        }
                        Some('\'') => break,
                        Some(other) => literal.push(other),
                        None => return Err(syntax(text)),
                    }
                }
                tokens.push(Token::Text(literal));
            }
            _ => {
                let mut word = String::new();
                while let Some(&c) = chars.peek() {
                    if matches!(c, ' ' | '(' | ')' | ',' | '\'') {
                        break;
                    }
                    word.push(c);
                    chars.next();
                }
                // An enum literal: the type's name stands before the quotes and says nothing more.
                if chars.peek() == Some(&'\'') && word.contains('.') {
                    continue;
                }
                tokens.push(Token::Word(word));
            }
        }
    }
    Ok(tokens)
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    fn word(&mut self, expected: &str) -> bool {
        let found = self.tokens.get(self.at) == Some(&Token::Word(expected.to_owned()));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, token: &Token) -> Result<(), CrmError> {
        if self.next().as_ref() == Some(token) { Ok(()) } else { Err(syntax("$filter")) }
    }

    fn or(&mut self) -> Result<Filter, CrmError> {
        let mut left = self.and()?;
        while self.word("or") {
            left = Filter::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Filter, CrmError> {
        let mut left = self.unary()?;
        while self.word("and") {
            left = Filter::And(Box::new(left), Box::new(self.unary()?));
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Filter, CrmError> {
        if self.word("not") {
            return Ok(Filter::Not(Box::new(self.unary()?)));
        }
        if self.tokens.get(self.at) == Some(&Token::Open) {
            self.at += 1;
            let inner = self.or()?;
            self.expect(&Token::Close)?;
            return Ok(inner);
        }
        let left = self.next().ok_or_else(|| syntax("$filter"))?;
        if let (Token::Word(name), Some(Token::Open)) = (&left, self.tokens.get(self.at)) {
            return self.call(&name.clone());
        }
        let left = operand(left)?;
        let operator = match self.next() {
            Some(Token::Word(word)) => match word.as_str() {
                "eq" => Operator::Eq,
                "ne" => Operator::Ne,
                "gt" => Operator::Gt,
                "ge" => Operator::Ge,
                "lt" => Operator::Lt,
                "le" => Operator::Le,
                other => return Err(syntax(other)),
            },
            None if matches!(left, Operand::Property(_)) => {
                return Ok(Filter::Compare(left, Operator::Eq, Operand::Literal(Value::Bool(true))));
            }
            _ => return Err(syntax("$filter")),
        };
        let right = operand(self.next().ok_or_else(|| syntax("$filter"))?)?;
        Ok(Filter::Compare(left, operator, right))
    }

    fn call(&mut self, name: &str) -> Result<Filter, CrmError> {
        let function = match name {
            "contains" => Function::Contains,
            "startswith" => Function::StartsWith,
            "endswith" => Function::EndsWith,
            other => {
                let message = format!("An unknown function with name '{other}' was found.");
                return Err(CrmError::query(message));
            }
        };
        self.expect(&Token::Open)?;
        let Some(Token::Word(property)) = self.next() else { return Err(syntax(name)) };
        self.expect(&Token::Comma)?;
        let Some(Token::Text(text)) = self.next() else { return Err(syntax(name)) };
        self.expect(&Token::Close)?;
        Ok(Filter::Call(function, property, text))
    }
}

fn operand(token: Token) -> Result<Operand, CrmError> {
    Ok(match token {
        Token::Text(text) => Operand::Literal(Value::String(text)),
        Token::Word(word) => match word.as_str() {
            "null" => Operand::Literal(Value::Null),
            "true" => Operand::Literal(Value::Bool(true)),
            "false" => Operand::Literal(Value::Bool(false)),
            text if text.starts_with(|c: char| c.is_ascii_digit() || c == '-') => {
                let number = text.parse::<i64>().map(Value::from).ok();
                let number = number.or_else(|| text.parse::<f64>().ok().map(Value::from));
                // A GUID or a date: bare in the query, text in the row.
                Operand::Literal(number.unwrap_or_else(|| Value::String(text.to_owned())))
            }
            text if uuid::Uuid::parse_str(text).is_ok() => Operand::Literal(Value::String(text.to_owned())),
            _ => Operand::Property(word),
        },
        _ => return Err(syntax("$filter")),
    })
}

pub(crate) type Lookup<'a> = dyn Fn(&str) -> Result<Value, CrmError> + 'a;

impl Filter {
    pub(crate) fn holds(&self, lookup: &Lookup<'_>) -> Result<bool, CrmError> {
        Ok(match self {
            Self::And(left, right) => {
                // Both sides are looked at, so that an unknown property is found whatever the rows hold.
                let (left, right) = (left.holds(lookup)?, right.holds(lookup)?);
                left && right
            }
            Self::Or(left, right) => {
                let (left, right) = (left.holds(lookup)?, right.holds(lookup)?);
                left || right
            }
            Self::Not(inner) => !inner.holds(lookup)?,
            Self::Compare(left, operator, right) => {
                let (left, right) = (left.value(lookup)?, right.value(lookup)?);
                compares(&left, *operator, &right)
            }
            Self::Call(function, property, text) => {
                let value = lookup(property)?;
                let value = value.as_str().unwrap_or_default().to_lowercase();
                let text = text.to_lowercase();
                match function {
                    Function::Contains => value.contains(&text),
                    Function::StartsWith => value.starts_with(&text),
                    Function::EndsWith => value.ends_with(&text),
                }
            }
        })
    }
}

impl Operand {
    fn value(&self, lookup: &Lookup<'_>) -> Result<Value, CrmError> {
        match self {
            Self::Property(name) => lookup(name),
            Self::Literal(value) => Ok(value.clone()),
        }
    }
}

fn compares(left: &Value, operator: Operator, right: &Value) -> bool {
    let order = order(left, right);
    match operator {
        Operator::Eq => order == Some(Ordering::Equal),
        Operator::Ne => order != Some(Ordering::Equal),
        _ if left.is_null() || right.is_null() => false,
        Operator::Gt => order == Some(Ordering::Greater),
        Operator::Ge => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
        Operator::Lt => order == Some(Ordering::Less),
        Operator::Le => matches!(order, Some(Ordering::Less | Ordering::Equal)),
    }
}

/// Nothing sorts before something.
pub(crate) fn order(left: &Value, right: &Value) -> Option<Ordering> {
    match (left, right) {
        (Value::Null, Value::Null) => Some(Ordering::Equal),
        (Value::Null, _) => Some(Ordering::Less),
        (_, Value::Null) => Some(Ordering::Greater),
        (Value::String(left), Value::String(right)) => {
            let moments = (moment(left), moment(right));
            if let (Some(left), Some(right)) = moments {
                return Some(left.cmp(&right));
            }
            Some(left.to_lowercase().cmp(&right.to_lowercase()))
        }
        (Value::Bool(left), Value::Bool(right)) => Some(left.cmp(right)),
        _ => left.as_f64()?.partial_cmp(&right.as_f64()?),
    }
}

fn moment(text: &str) -> Option<chrono::DateTime<chrono::Utc>> {
    if text.len() == 10 {
        let day = chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
        return Some(day.and_hms_opt(0, 0, 0)?.and_utc());
    }
    chrono::DateTime::parse_from_rfc3339(text).ok().map(|at| at.to_utc())
}
