//! The generated documents are those that are committed.

use std::path::Path;

use followthrough::docs;
use followthrough_workers::JOBS;

#[test]
fn what_is_committed_is_what_the_code_generates() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let documents = docs::render(JOBS, root).expect("the documents");
    let stale: Vec<&str> = documents
        .iter()
        .filter(|(path, content)| std::fs::read_to_string(root.join(path)).ok().as_ref() != Some(content))
        .map(|(path, _)| path.as_str())
        .collect();
    assert!(stale.is_empty(), "run `cargo run -p followthrough-workers -- docs` for {stale:?}");
    let schemas = std::fs::read_dir(root.join("workers/schemas")).expect("the schemas").count();
    assert_eq!(schemas, JOBS.entries().len() * 2, "a schema of a job that is gone is left behind");
}
