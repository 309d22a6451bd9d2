//! One connection's tokens, in the hands of the job that acts through it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use secrecy::SecretString;
use uuid::Uuid;

use super::cache::{AccessToken, Wanted};
use super::{Vault, VaultError};
use crate::auth::{TokenSource, Tokens};
use crate::oauth::scopes::{Integration, Resource};
use crate::outcome::Failure;
use crate::store::connection::Connection;

/// The vault, bound to the connection and the grant a job was claimed with.
pub struct ConnectionTokens {
    vault: Vault,
    id: Uuid,
    integration: Integration,
    grant: i64,
    /// The serial of the token last handed out for each resource.
    handed: Mutex<HashMap<String, u64>>,
}

impl Vault {
    pub fn tokens(&self, connection: &Connection) -> ConnectionTokens {
        ConnectionTokens {
            vault: self.clone(),
            id: connection.id,
            integration: connection.integration,
            grant: connection.grant_number,
            handed: Mutex::default(),
        }
    }
}

impl TokenSource for Vault {
    fn of(&self, connection: &Connection) -> Arc<dyn Tokens> {
        Arc::new(self.tokens(connection))
    }
}

impl ConnectionTokens {
    fn resource(&self, url: &str) -> Result<Resource, VaultError> {
        self.vault.entra().app.resource(self.integration, url).ok_or_else(|| VaultError::Foreign(host(url)))
    }

    fn hand_out(&self, url: &str, token: AccessToken) -> SecretString {
        let mut handed = self.handed.lock().unwrap_or_else(PoisonError::into_inner);
        match handed.get_mut(url) {
            Some(serial) => *serial = token.serial,
            None => drop(handed.insert(url.to_owned(), token.serial)),
        }
        token.secret
    }
}

#[async_trait]
impl Tokens for ConnectionTokens {
    async fn access(&self, resource: &str) -> Result<SecretString, Failure> {
        let wanted = Wanted { grant: self.grant, ..Wanted::default() };
        let token = self.vault.get(self.id, &self.resource(resource)?, wanted).await?;
        Ok(self.hand_out(resource, token))
    }

    async fn rejected(&self, resource: &str, challenge: Option<String>) -> Result<SecretString, Failure> {
        let after = {
            let handed = self.handed.lock().unwrap_or_else(PoisonError::into_inner);
            handed.get(resource).copied().unwrap_or_default()
        };
        let wanted = Wanted { grant: self.grant, after, claims: challenge.as_deref() };
        let token = self.vault.get(self.id, &self.resource(resource)?, wanted).await?;
        Ok(self.hand_out(resource, token))
    }

    async fn refused(&self, resource: &str, challenge: Option<String>) {
        let Ok(resource) = self.resource(resource) else { return };
        let paused = self.vault.pause(self.id, self.grant, &resource, challenge.as_deref()).await;
        if let Err(error) = paused {
            tracing::warn!(connection = %self.id, %error, "a refused connection is not paused yet");
        }
    }
}

/// Enough of a URL to recognise it by, and nothing that it carries.
fn host(url: &str) -> String {
    url::Url::parse(url)
        .ok()
        .and_then(|url| url.host_str().map(str::to_owned))
        .unwrap_or_else(|| "a text that is no URL".to_owned())
}
