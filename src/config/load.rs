//! The layers: defaults, then the file, then the environment.
//!
//! The invariant: a layer names each setting once and only settings that exist; everything wrong is collected
//! and told together, and what is told of a value is its shape and where it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use figment::providers::{Format, Toml};
use figment::value::{Dict, Value};

use super::keys::{ENVIRONMENT, KEYS, Key, PER_KIND, Shape, kind_of, nearest};
use super::value;

/// What is wrong with the settings: everything, not only the first thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(pub Vec<Problem>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub key: String,
    pub message: String,
}

impl Problem {
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the settings cannot be used:")?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for ConfigError {}

/// One setting as a layer gives it.
struct Given {
    value: Value,
    from: String,
}

type Layer = BTreeMap<String, Given>;

/// Merges the layers and checks each value's shape; the result fits the settings' types.
pub(super) fn merge(
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Dict, ConfigError> {
    let mut problems = Vec::new();
    let mut settings = Layer::new();
    if let Some(path) = file {
        settings.extend(from_file(path, &mut problems));
    }
    settings.extend(from_environment(environment, &mut problems));
    for (name, given) in &settings {
        let Some(key) = Key::find(name) else { continue };
        if let Err(expected) = value::fits(key.shape, &given.value) {
            let got = value::describe(&given.value);
            problems.push(Problem::new(name, format!("{expected}; got {got} ({})", given.from)));
        }
    }
    if !problems.is_empty() {
        return Err(ConfigError(problems));
    }
    let mut tree = defaults();
    for (name, given) in settings {
        insert(&mut tree, &name, given.value);
    }
    Ok(tree)
}

pub(super) fn defaults() -> Dict {
    let mut tree = Dict::new();
    for section in KEYS.iter().filter_map(|key| key.name.split('.').next()) {
        tree.entry(section.to_owned()).or_insert_with(|| Dict::new().into());
    }
    for key in KEYS {
        if let Some(default) = key.default {
            insert(&mut tree, key.name, literal(default));
        }
    }
    tree
}

/// Reads a TOML literal of the table of settings.
fn literal(text: &str) -> Value {
    let table: Dict =
        Toml::from_str(&format!("it = {text}")).expect("the defaults are TOML, as a test proves");
    table.into_values().next().expect("one key was written")
}

fn insert(tree: &mut Dict, name: &str, value: Value) {
    let segments: Vec<&str> = match kind_of(name).filter(|kind| !kind.starts_with('<')) {
        Some(kind) => vec!["workers", "kinds", kind, "concurrency"],
        None => name.split('.').collect(),
    };
    let Some((last, sections)) = segments.split_last() else { return };
    let mut at = tree;
    for section in sections {
        let entry = at.entry((*section).to_owned()).or_insert_with(|| Dict::new().into());
        let Value::Dict(_, dict) = entry else { return };
        at = dict;
    }
    at.insert((*last).to_owned(), value);
}

fn from_file(path: &Path, problems: &mut Vec<Problem>) -> Layer {
    let shown = path.display().to_string();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            problems.push(Problem::new(shown, format!("cannot be read: {error}")));
            return Layer::new();
        }
    };
    match Toml::from_str::<Dict>(&text) {
        Ok(tree) => {
            let mut layer = Layer::new();
            walk("", tree, &shown, &mut layer, problems);
            layer
        }
        Err(error) => {
            // The error's own text quotes the line, which may hold a secret.
            let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            problems.push(Problem::new(format!("{shown}:{line}"), format!("no TOML: {}", error.message())));
            Layer::new()
        }
    }
}

fn walk(prefix: &str, tree: Dict, from: &str, layer: &mut Layer, problems: &mut Vec<Problem>) {
    for (segment, value) in tree {
        let name = if prefix.is_empty() { segment } else { format!("{prefix}.{segment}") };
        let section = format!("{name}.");
        match value {
            _ if Key::find(&name).is_some() => add(layer, &name, value, from, problems),
            Value::Dict(_, inner)
                if KEYS.iter().any(|key| key.name.starts_with(&section)) || name.starts_with(PER_KIND.0) =>
            {
                walk(&name, inner, from, layer, problems);
            }
            _ if KEYS.iter().any(|key| key.name.starts_with(&section)) => {
                let got = value::describe(&value);
                problems.push(Problem::new(name, format!("expected a section; got {got} ({from})")));
            }
            _ => {
                if let Some(secret) = name.strip_suffix("_file").and_then(Key::find).filter(|key| key.secret)
                {
                    match value.as_str() {
                        Some(path) => read_secret(secret, Path::new(path), from, layer, problems),
                        None => problems.push(Problem::new(name, format!("expected a path ({from})"))),
                    }
                } else {
                    problems.push(unknown(&name, from));
                }
            }
        }
    }
}

fn add(layer: &mut Layer, name: &str, value: Value, from: &str, problems: &mut Vec<Problem>) {
    let given = Given { value, from: from.to_owned() };
    if let Some(twice) = layer.insert(name.to_owned(), given) {
        problems.push(Problem::new(name, format!("given twice, by {} and {from}", twice.from)));
    }
}

fn read_secret(key: &Key, path: &Path, from: &str, layer: &mut Layer, problems: &mut Vec<Problem>) {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let from = format!("{}, named by {from}", path.display());
            add(layer, key.name, value::from_text(key.shape, text.trim_end()), &from, problems);
        }
        Err(error) => {
            let message = format!("{} cannot be read: {error} ({from})", path.display());
            problems.push(Problem::new(format!("{}_file", key.name), message));
        }
    }
}

fn unknown(name: &str, from: &str) -> Problem {
    let sections = KEYS.iter().filter_map(|key| key.name.split('.').next());
    let hint = match nearest(name, KEYS.iter().map(|key| key.name).chain(sections)) {
        Some(near) => format!("no such setting; did you mean {near}? ({from})"),
        None => format!("no such setting ({from})"),
    };
    Problem::new(name, hint)
}

/// What Kubernetes sets in every container beside a service that is named `followthrough`.
/// <https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>
fn of_kubernetes(variable: &str) -> bool {
    let rest = variable.strip_prefix(ENVIRONMENT).unwrap_or_default();
    let begins =
        |name: &str| rest == name || rest.strip_prefix(name).is_some_and(|rest| rest.starts_with('_'));
    rest == "SERVICE_HOST" || begins("SERVICE_PORT") || begins("PORT")
}

fn from_environment(
    environment: impl Iterator<Item = (String, String)>,
    problems: &mut Vec<Problem>,
) -> Layer {
    let mut layer = Layer::new();
    let (head, tail) = (format!("{ENVIRONMENT}WORKERS_KINDS_"), "_CONCURRENCY");
    for (variable, text) in environment {
        // The suites' own servers are no settings of the fleet; the file's path belongs to the command line.
        let ours = variable.starts_with(ENVIRONMENT)
            && !variable.starts_with("FOLLOWTHROUGH_TEST_")
            && variable != "FOLLOWTHROUGH_CONFIG"
            && !of_kubernetes(&variable);
        if !ours {
            continue;
        }
        if let Some(key) = KEYS.iter().find(|key| key.environment() == variable) {
            add(&mut layer, key.name, value::from_text(key.shape, &text), &variable, problems);
        } else if let Some(key) =
            KEYS.iter().find(|key| key.secret && format!("{}_FILE", key.environment()) == variable)
        {
            read_secret(key, Path::new(&text), &variable, &mut layer, problems);
        } else if let Some(kind) = variable.strip_prefix(&head).and_then(|rest| rest.strip_suffix(tail)) {
            let name = format!("{}{}{}", PER_KIND.0, kind.to_lowercase().replace('_', "."), PER_KIND.1);
            let number = Shape::Number { least: 0, most: 0 };
            add(&mut layer, &name, value::from_text(number, &text), &variable, problems);
        } else {
            let names: Vec<String> = KEYS.iter().map(Key::environment).collect();
            let hint = match nearest(&variable, names.iter().map(String::as_str)) {
                Some(near) => format!("no such setting; did you mean {near}?"),
                None => "no such setting".to_owned(),
            };
            problems.push(Problem::new(variable, hint));
        }
    }
    layer
}
