//! The files of a draft: small ones travel in requests, large ones by upload session.
//!
//! The invariant: files are attached in one order, each whole or not at all, so that whatever an earlier try
//! left is the beginning of the list, and only the rest is attached.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use followthrough::graph::Graph;
use followthrough::graph::mail;
use followthrough::job::Invalid;
use followthrough::outcome::Failure;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// From here on a file needs an upload session, which shared mailboxes refuse. The largest that Exchange takes
/// (150 MB) is beyond the largest job.
/// <https://learn.microsoft.com/graph/outlook-large-attachments>
pub(super) const LARGE: usize = 3 * 1024 * 1024;

/// A file to attach.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Attached {
    pub name: String,
    pub content_type: String,
    pub content_base64: String,
}

impl Attached {
    pub(super) fn check(&self, path: &str, shared: bool) -> Result<(), Invalid> {
        let plain = |text: &str| !text.is_empty() && text.len() <= 255 && !text.chars().any(char::is_control);
        if !plain(&self.name) || self.name.contains(['/', '\\']) {
            return Err(Invalid::new(format!("{path}.name"), "expected a file name of at most 255 bytes"));
        }
        if !plain(&self.content_type) || !self.content_type.contains('/') {
            return Err(Invalid::new(
                format!("{path}.content_type"),
                "expected a media type such as text/plain",
            ));
        }
        if BASE64_STANDARD.decode(&self.content_base64).is_err() {
            return Err(Invalid::new(format!("{path}.content_base64"), "expected base64 with padding"));
        }
        if shared && self.is_large() {
            let message = "Exchange takes no file of 3 MB or more for a draft in a shared mailbox";
            return Err(Invalid::new(format!("{path}.content_base64"), message)
                .code("attachment_too_large_for_shared_mailbox"));
        }
        Ok(())
    }

    pub(super) fn is_large(&self) -> bool {
        self.size() >= LARGE
    }

    fn size(&self) -> usize {
        let padding = self.content_base64.bytes().rev().take_while(|byte| *byte == b'=').count();
        (self.content_base64.len() / 4 * 3).saturating_sub(padding)
    }

    fn content(&self) -> Result<Vec<u8>, Failure> {
        BASE64_STANDARD
            .decode(&self.content_base64)
            .map_err(|_| Failure::reject("invalid_payload", "payload.attachments: expected base64"))
    }

    /// As Graph takes it inside a request.
    pub(super) fn graph(&self) -> Result<Value, Failure> {
        Ok(mail::file_attachment(&self.name, &self.content_type, &self.content()?))
    }

    async fn attach(&self, graph: &Graph, draft: &str) -> Result<(), Failure> {
        if self.is_large() {
            let content = self.content()?.into();
            graph.upload_file(draft, &self.name, &self.content_type, content).await?;
        } else {
            graph.add_attachment(draft, &self.graph()?).await?;
        }
        Ok(())
    }
}

/// Attaches what `draft` does not have yet; of a draft that this very attempt made, everything.
pub(super) async fn attach_missing(
    graph: &Graph,
    draft: &str,
    files: impl Iterator<Item = &Attached>,
    fresh: bool,
) -> Result<(), Failure> {
    let mut there = Vec::new();
    if !fresh {
        let attached = graph.attachments(draft).await?.into_iter();
        there = attached.map(|file| (file.name.unwrap_or_default(), file.size)).collect();
    }
    for file in files {
        if !take(&mut there, &file.name, file.size()) {
            file.attach(graph, draft).await?;
        }
    }
    Ok(())
}

/// Crosses a file off the list. Exchange counts a little more than the file, so of several that have its
/// name the smallest that can hold it is taken for it.
fn take(there: &mut Vec<(String, u64)>, name: &str, size: usize) -> bool {
    let fits = there.iter().enumerate().filter(|(_, (known, held))| known == name && *held >= size as u64);
    let Some(at) = fits.min_by_key(|(_, (_, held))| *held).map(|(at, _)| at) else { return false };
    there.swap_remove(at);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_name_and_size() {
        let mut there = vec![("a".to_owned(), 1_200), ("a".to_owned(), 120), ("b".to_owned(), 90)];
        assert!(!take(&mut there, "b", 100), "somebody else's b");
        assert!(take(&mut there, "a", 10) && take(&mut there, "a", 1_000));
        assert!(!take(&mut there, "a", 10), "each only once");
    }

    #[test]
    fn the_size_is_that_of_the_file_not_of_its_encoding() {
        for size in [0, 1, 2, 3, LARGE - 1, LARGE] {
            let content_base64 = BASE64_STANDARD.encode(vec![7; size]);
            let file = Attached { name: "a".into(), content_type: "a/b".into(), content_base64 };
            assert_eq!((file.size(), file.is_large()), (size, size >= LARGE));
        }
    }
}
