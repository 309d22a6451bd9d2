//! Reading the tree of folders.

use std::collections::VecDeque;

use followthrough::graph::folder::MailFolder;
use followthrough::graph::{Graph, GraphError};
use followthrough::store::folder::Seen;

/// Names that mean the same in every language. Exchange gives their ids, and ids do not change.
/// <https://learn.microsoft.com/graph/api/resources/mailfolder>
const WELL_KNOWN: [&str; 4] = ["inbox", "sentitems", "drafts", "deleteditems"];
/// Deeper than anybody nests folders; a tree that goes on is going in circles.
const MOST_FOLDERS: usize = 5_000;

/// The whole tree, without search folders; `known` are ids whose well-known names were found out before.
pub(super) async fn read(graph: &Graph, known: &[(String, String)]) -> Result<Vec<Seen>, GraphError> {
    let mut names: Vec<(String, String)> = known.to_vec();
    for name in WELL_KNOWN {
        if !names.iter().any(|(_, known)| known == name)
            && let Some(folder) = graph.folder(name).await?
        {
            names.push((folder.id, name.to_owned()));
        }
    }
    let mut seen: Vec<Seen> = Vec::new();
    let mut places: VecDeque<Option<String>> = VecDeque::from([None]);
    while let Some(place) = places.pop_front() {
        let folders = match graph.folders(place.as_deref()).await {
            // It was deleted since it was listed, or moved to where it is listed as well.
            Err(error) if error.is_not_found() && place.is_some() => continue,
            folders => folders?,
        };
        for folder in folders {
            if folder.is_search() || seen.iter().any(|one| one.id == folder.id) {
                continue;
            }
            if folder.child_folder_count > Some(0) && seen.len() < MOST_FOLDERS {
                places.push_back(Some(folder.id.clone()));
            }
            seen.push(one(folder, &names));
        }
    }
    Ok(seen)
}

fn one(folder: MailFolder, names: &[(String, String)]) -> Seen {
    let well_known = names.iter().find(|(id, _)| *id == folder.id).map(|(_, name)| name.clone());
    Seen {
        id: folder.id,
        parent_id: folder.parent_folder_id,
        name: folder.display_name.unwrap_or_default(),
        well_known,
        hidden: folder.is_hidden.unwrap_or_default(),
    }
}
