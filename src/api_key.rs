//! API keys: who may call the HTTP API, as what, and for which workspace.
//!
//! The invariant: a key is shown once, when it is made; what is kept is its SHA-256, and a key bound to a
//! workspace sees and touches nothing outside it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use crate::store::api_key::ApiKey;

/// What a key may do; each role may do all that the roles before it may.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    clap::ValueEnum,
    utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Submits and looks at jobs, decides, connects users.
    Publisher,
    /// Handles dead letters and queues.
    Operator,
    /// Sets what is allowed.
    Admin,
}

impl Role {
    pub const ALL: [Self; 3] = [Self::Publisher, Self::Operator, Self::Admin];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Publisher => "publisher",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }
}

/// So that scanners of leaked secrets, and people, recognise one.
const PREFIX: &str = "ft_";

/// A fresh key, and what is kept of it.
pub fn generate() -> (SecretString, Vec<u8>) {
    let secret: [u8; 32] = rand::random();
    let shown = SecretString::from(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(secret)));
    let hash = hash(shown.expose_secret());
    (shown, hash)
}

/// 256 random bits need no salt and no slow hash: there is nothing to guess.
pub fn hash(key: &str) -> Vec<u8> {
    Sha256::digest(key.as_bytes()).to_vec()
}

/// Who calls.
#[derive(Debug, Clone)]
pub struct Caller {
    pub key: Uuid,
    pub name: String,
    pub role: Role,
    /// The only workspace it sees.
    pub workspace: Option<String>,
}

impl Caller {
    /// The caller that a stored key with this hash stands for; a revoked or unreadable one is nobody.
    pub fn of(key: ApiKey, hash: &[u8]) -> Option<Self> {
        let same = bool::from(key.hash.ct_eq(hash));
        let role = Role::parse(&key.role)?;
        (same && key.revoked_at.is_none()).then_some(Self {
            key: key.id,
            name: key.name,
            role,
            workspace: key.workspace,
        })
    }

    pub fn may_see(&self, workspace: Option<&str>) -> bool {
        self.workspace.is_none() || self.workspace.as_deref() == workspace
    }

    /// Whom a decision of this key is recorded as.
    pub fn signature(&self) -> String {
        format!("key:{}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_recognised_by_its_hash_alone_and_not_after_it_was_revoked() {
        let (shown, kept) = generate();
        assert!(shown.expose_secret().starts_with("ft_"));
        assert_eq!(shown.expose_secret().len(), 3 + 43);
        let now = crate::clock::Clock::system().now();
        let mut key = ApiKey {
            id: Uuid::nil(),
            name: "ci".into(),
            role: "operator".into(),
            workspace: Some("acme".into()),
            hash: kept,
            created_at: now,
            revoked_at: None,
        };
        let caller = Caller::of(key.clone(), &hash(shown.expose_secret())).expect("the right key");
        assert!(caller.role >= Role::Publisher && caller.role < Role::Admin);
        assert!(caller.may_see(Some("acme")) && !caller.may_see(Some("globex")) && !caller.may_see(None));
        assert!(Caller::of(key.clone(), &hash("ft_other")).is_none());
        key.revoked_at = Some(now);
        assert!(Caller::of(key, &hash(shown.expose_secret())).is_none());
    }
}
