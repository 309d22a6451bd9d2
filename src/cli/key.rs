//! `key`: the only place where API keys are made and revoked.

use chrono::{DateTime, Utc};
use clap::Subcommand;
use scoped_futures::ScopedFutureExt;
use secrecy::ExposeSecret;
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use super::Desk;
use super::output::{Output, complain, moment};
use crate::api_key::{Role, generate};
use crate::store::api_key::{self, ApiKey};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Make a key; it is shown once
    Create {
        /// What its decisions are recorded as
        #[arg(long, default_value = "unnamed")]
        name: String,
        #[arg(long)]
        role: Role,
        /// The only workspace it sees
        #[arg(long)]
        workspace: Option<String>,
    },
    /// List keys, oldest first
    List,
    /// Revoke a key, at once and for good
    Revoke { id: Uuid },
}

#[derive(Serialize)]
struct KeyView {
    id: Uuid,
    name: String,
    role: String,
    workspace: Option<String>,
    created_at: DateTime<Utc>,
    revoked_at: Option<DateTime<Utc>>,
}

pub(super) async fn run(desk: &Desk, command: Command, output: Output) -> Result<bool, String> {
    let (store, now) = (&desk.services.store, desk.services.clock.now());
    match command {
        Command::Create { name, role, workspace } => {
            let (shown, hash) = generate();
            let key = &ApiKey {
                id: Uuid::now_v7(),
                name,
                role: role.as_str().to_owned(),
                workspace,
                hash,
                created_at: now,
                revoked_at: None,
            };
            let made = store
                .transaction("key_create", |tx| async move { api_key::insert(tx, key).await }.scope_boxed());
            made.await.map_err(|error| error.to_string())?;
            let shown = shown.expose_secret();
            let value = json!({
                "id": key.id, "name": key.name, "role": key.role, "workspace": key.workspace, "key": shown,
            });
            output.done(&value, shown);
            if !output.json {
                complain(&format!("keep it: it is not shown again (id {})", key.id));
            }
            Ok(true)
        }
        Command::List => {
            let keys = store.read(|tx| async move { api_key::list(tx).await }.scope_boxed()).await;
            let keys: Vec<KeyView> = keys
                .map_err(|error| error.to_string())?
                .into_iter()
                .map(|key| KeyView {
                    id: key.id,
                    name: key.name,
                    role: key.role,
                    workspace: key.workspace,
                    created_at: key.created_at,
                    revoked_at: key.revoked_at,
                })
                .collect();
            output.list(&keys, &["ID", "NAME", "ROLE", "WORKSPACE", "CREATED", "REVOKED"], |key| {
                vec![
                    key.id.to_string(),
                    key.name.clone(),
                    key.role.clone(),
                    key.workspace.clone().unwrap_or_else(|| "any".to_owned()),
                    moment(key.created_at),
                    key.revoked_at.map(moment).unwrap_or_default(),
                ]
            });
            Ok(true)
        }
        Command::Revoke { id } => {
            let revoked = store.transaction("key_revoke", |tx| {
                async move { api_key::revoke(tx, id, now).await }.scope_boxed()
            });
            if !revoked.await.map_err(|error| error.to_string())? {
                return Err(format!("no live key {id}"));
            }
            output.done(&json!({"id": id, "revoked": true}), &format!("{id} is revoked"));
            Ok(true)
        }
    }
}
