//! Mail folders: the whole tree of a mailbox.
//! <https://learn.microsoft.com/graph/api/user-list-mailfolders>

use serde::Deserialize;

use super::{Graph, GraphError};
use crate::http::{Call, add_query};

/// More folders in one place than Exchange allows.
const MOST_FOLDERS: usize = 10_000;
const SELECT: &str = "id,displayName,parentFolderId,childFolderCount,isHidden";

/// A folder that holds messages of its own.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MailFolder {
    pub id: String,
    pub display_name: Option<String>,
    pub parent_folder_id: Option<String>,
    pub child_folder_count: Option<u32>,
    pub is_hidden: Option<bool>,
    #[serde(rename = "@odata.type", default)]
    kind: Option<String>,
}

impl MailFolder {
    /// A search folder shows what stands elsewhere.
    pub fn is_search(&self) -> bool {
        self.kind.as_deref().is_some_and(|kind| kind.ends_with("mailSearchFolder"))
    }
}

impl Graph {
    /// The folders of one place, hidden ones included: the top, or below `parent`.
    pub async fn folders(&self, parent: Option<&str>) -> Result<Vec<MailFolder>, GraphError> {
        let mut url = match parent {
            None => self.url(&["mailFolders"]),
            Some(parent) => self.url(&["mailFolders", parent, "childFolders"]),
        };
        add_query(&mut url, &[("includeHiddenFolders", "true"), ("$top", "100"), ("$select", SELECT)]);
        Ok(self.list("graph.list_folders", url, MOST_FOLDERS).await?.0)
    }

    /// One folder, by its id or its well-known name; `None` where the mailbox has no such folder.
    pub async fn folder(&self, name: &str) -> Result<Option<MailFolder>, GraphError> {
        const NAME: &str = "graph.get_folder";
        let mut url = self.url(&["mailFolders", name]);
        add_query(&mut url, &[("$select", SELECT)]);
        match self.send(Call::get(NAME, url), &[200]).await {
            Ok(answer) => Ok(Some(super::parse(NAME, &answer, false)?)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}
