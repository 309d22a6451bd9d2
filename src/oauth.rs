//! Consent: how a user's or an administrator's "yes" becomes a connection.
//!
//! The invariant: what the user has granted is stored before anything is tried with it, and nothing that
//! comes back through a browser is believed without a signature over it.

pub mod app;
pub mod callback;
pub mod client;
pub mod credential;
mod grant;
pub mod identity;
pub mod links;
pub mod scopes;
pub mod state;
pub mod verdict;

use std::borrow::Cow;
use std::sync::Arc;

use url::Url;
use uuid::Uuid;

use crate::outcome::Classify as _;
use crate::store::{MaybeConflict, StoreError};
use crate::vault::Vault;
use crate::vault::seal::{Place, SealError};
use identity::SigningKeys;

/// Signing in, from the link to the stored grant. Cloning is cheap.
#[derive(Clone)]
pub struct Consent {
    vault: Vault,
    signing_keys: Arc<SigningKeys>,
}

impl Consent {
    pub fn new(vault: Vault) -> Self {
        Self { vault, signing_keys: Arc::default() }
    }
}

/// Where a browser ends, whatever happened: a page, or the publisher's own through [`Landing::redirect`].
#[derive(Debug, Clone)]
pub struct Landing {
    pub success: bool,
    /// The stable code of what happened.
    pub code: &'static str,
    /// One line for the person in front of it.
    pub message: String,
    pub connection: Option<Uuid>,
    pub return_to: Option<Url>,
    /// To be handed to an administrator of the tenant.
    pub admin_consent_url: Option<Url>,
    /// Signs in (again) with the same link.
    pub continue_url: Option<Url>,
}

impl Landing {
    fn new(code: &'static str, message: &str) -> Self {
        Self {
            success: false,
            code,
            message: message.to_owned(),
            connection: None,
            return_to: None,
            admin_consent_url: None,
            continue_url: None,
        }
    }
}

/// What a caller of the API or a browser is told in place of an answer.
#[derive(Debug, thiserror::Error)]
pub enum ConsentError {
    #[error("expected {expected}")]
    Invalid { path: &'static str, expected: &'static str },
    #[error("this is no link of ours")]
    UnknownLink,
    #[error("this link was used already; ask for a new one")]
    UsedLink,
    #[error("this link has expired; ask for a new one")]
    ExpiredLink,
    #[error("this page was reached in a way that is not expected; open the link again")]
    State,
    #[error("the connection is being disconnected; connect again once it is")]
    Disconnecting,
    #[error("the sign-in was interrupted; open the link again")]
    Interrupted,
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl MaybeConflict for ConsentError {
    fn is_conflict(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_conflict())
    }
}

impl ConsentError {
    /// The stable code.
    pub fn code(&self) -> Cow<'static, str> {
        match self {
            Self::Invalid { .. } => "invalid_request".into(),
            Self::UnknownLink => "link_not_found".into(),
            Self::UsedLink => "link_used".into(),
            Self::ExpiredLink => "link_expired".into(),
            Self::State => "state_invalid".into(),
            Self::Disconnecting => "connection_disconnecting".into(),
            Self::Interrupted => "interrupted".into(),
            Self::Seal(_) => "vault_key_missing".into(),
            Self::Store(error) => error.code(),
        }
    }

    pub fn status(&self) -> http::StatusCode {
        match self {
            Self::Invalid { .. } | Self::State => http::StatusCode::BAD_REQUEST,
            Self::UnknownLink => http::StatusCode::NOT_FOUND,
            Self::Disconnecting => http::StatusCode::CONFLICT,
            Self::UsedLink | Self::ExpiredLink => http::StatusCode::GONE,
            Self::Interrupted | Self::Seal(_) => http::StatusCode::INTERNAL_SERVER_ERROR,
            Self::Store(_) => http::StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// Where a link's verifier is sealed.
pub(crate) fn verifier_place(id: &Uuid) -> Place<'_> {
    Place { table: "sign_in_links", row: id.as_bytes(), column: "verifier" }
}
