//! Who may do what, which plug-in says no, and where new ids come from.
//!
//! Security errors: `webapi/compose-http-requests-handle-errors`; plug-in errors carry the author's message and
//! `0x80040265`.

use http::StatusCode;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::error::CrmError;
use super::store::{Actor, Operation};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lack {
    /// `0x80040220`: no role has the privilege.
    Privilege,
    /// `0x80048306`: the role would do, but not for this row.
    Row,
    /// `0x80042f09`: no role at all.
    Role,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Denial {
    pub user: String,
    #[serde(default)]
    pub table: Option<String>,
    #[serde(default)]
    pub operation: Option<Operation>,
    #[serde(default)]
    pub row: Option<String>,
    pub lack: Lack,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlugIn {
    pub table: String,
    pub operation: Operation,
    pub message: String,
    /// 0 is until it is cleared.
    #[serde(default)]
    pub times: u32,
}

pub(crate) struct Rules {
    pub(crate) denials: Vec<Denial>,
    pub(crate) plug_ins: Vec<PlugIn>,
    ids: StdRng,
}

impl Default for Rules {
    fn default() -> Self {
        Self { denials: Vec::new(), plug_ins: Vec::new(), ids: StdRng::seed_from_u64(0x0da7_a7e5) }
    }
}

impl Rules {
    pub(crate) fn fresh_id(&mut self) -> String {
        let bytes: [u8; 16] = self.ids.random();
        uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
    }

    pub(crate) fn check(
        &self,
        actor: &Actor,
        table: &str,
        operation: Operation,
        row: Option<&str>,
    ) -> Result<(), CrmError> {
        let hit = self.denials.iter().find(|denial| {
            denial.user.eq_ignore_ascii_case(&actor.upn)
                && denial.table.as_deref().is_none_or(|denied| denied == table)
                && denial.operation.is_none_or(|denied| denied == operation)
                && denial.row.as_deref().is_none_or(|denied| Some(denied) == row)
        });
        let Some(denial) = hit else { return Ok(()) };
        let user = &actor.user;
        let (code, message) = match denial.lack {
            Lack::Privilege => (
                "0x80040220",
                format!("Principal user (Id={user}, type=8) is missing prv{operation:?}{table} privilege"),
            ),
            Lack::Row => (
                "0x80048306",
                format!(
                    "Principal with id {user} does not have {operation:?}Access right(s) for record of entity {table}"
                ),
            ),
            Lack::Role => (
                "0x80042f09",
                format!("User with SystemUserId={user} does not have any security roles assigned."),
            ),
        };
        Err(CrmError::new(StatusCode::FORBIDDEN, code, message))
    }

    pub(crate) fn plugin(&mut self, table: &str, operation: Operation) -> Result<(), CrmError> {
        let at = self.plug_ins.iter().position(|rule| rule.table == table && rule.operation == operation);
        let Some(at) = at else { return Ok(()) };
        let message = self.plug_ins[at].message.clone();
        match self.plug_ins[at].times {
            0 => {}
            1 => {
                self.plug_ins.remove(at);
            }
            _ => self.plug_ins[at].times -= 1,
        }
        Err(CrmError::new(StatusCode::BAD_REQUEST, "0x80040265", message))
    }
}
