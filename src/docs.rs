//! The generated documents: JSON Schemas, OpenAPI, AsyncAPI and the README's tables.
//!
//! The invariant: what is committed is what [`render`] gives; a test compares them, and `followthrough docs`
//! writes them.

mod asyncapi;
mod tables;
mod yaml;

use std::io;
use std::path::Path;

use serde_json::Value;

use crate::registry::Registry;

/// Every document as (path below the root, content). The README is read from the root, where there is one:
/// only what stands between its markers is generated.
pub fn render(registry: Registry, root: &Path) -> io::Result<Vec<(String, String)>> {
    let mut documents = Vec::new();
    for entry in registry.entries() {
        let kind = entry.spec.kind;
        documents.push((payload_schema(kind), pretty(&(entry.payload_schema)().to_value())));
        documents.push((result_schema(kind), pretty(&(entry.result_schema)().to_value())));
    }
    let openapi = serde_json::to_value(crate::api::openapi())?;
    documents.push(("openapi.json".to_owned(), pretty(&openapi)));
    documents.push(("asyncapi.yaml".to_owned(), yaml::write(&asyncapi::document(registry))));
    let readme = "README.md";
    match std::fs::read_to_string(root.join(readme)) {
        Ok(text) => documents.push((readme.to_owned(), tables::fill(&text, registry)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(documents)
}

fn payload_schema(kind: &str) -> String {
    format!("workers/schemas/{kind}.json")
}

fn result_schema(kind: &str) -> String {
    format!("workers/schemas/{kind}.result.json")
}

fn pretty(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

/// A kind's doc comment.
fn about(entry: &crate::registry::Entry) -> String {
    let schema = (entry.payload_schema)();
    schema.get("description").and_then(Value::as_str).unwrap_or_default().to_owned()
}
