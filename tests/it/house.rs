//! The lines between the parts of the house, kept by reading the source.

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// Every Rust file below a folder, by its path from the root.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).expect("below the root").display().to_string();
                found.push((name, std::fs::read_to_string(&path).expect("a readable file")));
            }
        }
    }
    assert!(!found.is_empty(), "{folder} has no source");
    found
}

/// The code without its comments.
fn code(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn each_outside_library_has_one_home() {
    let homes: [(&str, &[&str]); 5] = [
        ("lapin::", &["src/broker/rabbit"]),
        ("sqlx::", &["src/store"]),
        ("reqwest::", &["src/http"]),
        ("backoff::", &["src/http.rs"]),
        ("oauth2::", &["src/oauth"]),
    ];
    for (name, text) in sources("src") {
        for (library, homes) in homes {
            let at_home = homes.iter().any(|home| name.starts_with(home));
            let product = code(&text).split("#[cfg(test)]").next().unwrap_or_default().to_owned();
            assert!(at_home || !product.contains(library), "{name} names {library}");
        }
    }
}

#[test]
fn a_worker_reaches_the_outside_only_through_its_context() {
    let manifest = std::fs::read_to_string(root().join("workers/Cargo.toml")).expect("the manifest");
    for library in ["lapin", "sqlx", "reqwest", "axum"] {
        assert!(!manifest.lines().any(|line| line.starts_with(library)), "workers depend on {library}");
    }
    for (name, text) in sources("workers") {
        for forbidden in ["tokio::spawn", "std::env", ".unwrap()", ".expect("] {
            let product = code(&text).split("#[cfg(test)]").next().unwrap_or_default().to_owned();
            assert!(!product.contains(forbidden), "{name} uses {forbidden}");
        }
    }
}

#[test]
fn the_platform_knows_no_job_by_name() {
    let kinds: Vec<String> = followthrough_workers::JOBS.kinds();
    for (name, text) in sources("src").into_iter().filter(|(name, _)| !name.ends_with("tests.rs")) {
        let product = code(&text).split("#[cfg(test)]").next().unwrap_or_default().to_owned();
        for kind in &kinds {
            assert!(!product.contains(&format!("\"{kind}\"")), "{name} names the job {kind}");
        }
    }
}

#[test]
fn the_product_does_not_contain_the_simulator() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--package", "followthrough-workers", "--edges", "normal"])
        .current_dir(root())
        .output()
        .expect("cargo");
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8_lossy(&tree.stdout);
    assert!(tree.contains("followthrough v"), "{tree}");
    assert!(!tree.contains("m365-sim") && !tree.contains("followthrough-tests"), "{tree}");
    // One HTTP client, one TLS.
    let count = |name: &str| tree.lines().filter(|line| line.contains(name) && !line.contains("(*)")).count();
    assert_eq!(count(" reqwest v"), 1, "{tree}");
    assert_eq!(count(" ring v"), 0, "{tree}");
}

#[test]
fn both_engines_have_the_same_migrations() {
    let names = |engine: &str| {
        let folder = root().join("migrations").join(engine);
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .expect("migrations")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names("postgres"), names("sqlite"));
}
