//! The token endpoint, through the `oauth2` crate over our own HTTP client.
//!
//! The invariant: what goes wrong is told apart before the crate sees it: a throttle and an outage keep their
//! `Retry-After`, a refusal keeps `suberror`, `error_codes` and `claims`, and no text of an answer is kept.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Method, StatusCode};
use oauth2::basic::{BasicRevocationErrorResponse, BasicTokenIntrospectionResponse, BasicTokenType};
use oauth2::{
    AsyncHttpClient, AuthType, AuthorizationCode, ClientId, ClientSecret, EndpointNotSet, EndpointSet,
    ExtraTokenFields, HttpRequest, HttpResponse, PkceCodeVerifier, RefreshToken, RequestTokenError, Scope,
    StandardRevocableToken, StandardTokenResponse, TokenResponse as _, TokenUrl,
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use url::Url;

use super::app::{ANY_TENANT, App};
use super::credential::Credential;
use super::verdict::Refusal;
use crate::clock::Clock;
use crate::http::{Call, Http, HttpError, retry_after};

/// A token request that takes longer is given up before the lease on refreshing runs out.
const TIMEOUT: Duration = Duration::from_secs(20);
const LARGEST_ANSWER: usize = 1024 * 1024;
/// MSAL's own patience after a 429 or 5xx that names none.
const PATIENCE: Duration = Duration::from_mins(1);

type Client = oauth2::Client<
    Refusal,
    StandardTokenResponse<Extra, BasicTokenType>,
    BasicTokenIntrospectionResponse,
    StandardRevocableToken,
    BasicRevocationErrorResponse,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointSet,
>;

/// What Entra adds to the standard's answer.
#[derive(Clone, Serialize, Deserialize)]
struct Extra {
    id_token: Option<String>,
    refresh_in: Option<u64>,
    client_info: Option<String>,
}

/// Never shown: it holds the id token.
impl fmt::Debug for Extra {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Extra(secret)")
    }
}

impl ExtraTokenFields for Extra {}

/// What the token endpoint gave.
pub struct Issued {
    pub access_token: SecretString,
    pub expires_in: Duration,
    pub refresh_in: Option<Duration>,
    pub refresh_token: Option<SecretString>,
    pub id_token: Option<SecretString>,
    pub client_info: Option<String>,
    pub scopes: Vec<String>,
}

/// Why it gave nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TokenError {
    #[error("Entra refused: {0}")]
    Refused(Refusal),
    #[error("Entra cannot answer now (status {status})")]
    Unavailable { status: u16, retry_after: Duration },
    #[error("{0}")]
    Http(#[from] HttpError),
    /// The place in the answer, never what stood there.
    #[error("Entra's answer cannot be read at {0}")]
    Unreadable(String),
}

#[derive(Clone)]
pub struct Entra {
    pub app: App,
    pub http: Http,
    pub clock: Clock,
}

impl Entra {
    /// Redeems the code of a sign-in. It is bound to the path it was issued on.
    pub async fn redeem(
        &self,
        code: String,
        verifier: &SecretString,
        scopes: Vec<String>,
    ) -> Result<Issued, TokenError> {
        let (client, parameters) = self.client(ANY_TENANT);
        let mut request = client
            .exchange_code(AuthorizationCode::new(code))
            .set_redirect_uri(std::borrow::Cow::Owned(oauth2::RedirectUrl::from_url(self.app.redirect_url())))
            .set_pkce_verifier(PkceCodeVerifier::new(verifier.expose_secret().to_owned()))
            .add_extra_param("client_info", "1")
            .add_extra_param("scope", self.app.spell(&scopes).join(" "));
        for (name, value) in &parameters {
            request = request.add_extra_param(*name, value.expose_secret());
        }
        request.request_async(self).await.map(|answer| issued(&answer)).map_err(TokenError::from)
    }

    /// A fresh access token, and usually the next refresh token. `scopes` are those of one resource.
    pub async fn refresh(
        &self,
        tenant: &str,
        refresh_token: &SecretString,
        scopes: &[String],
        claims: Option<&str>,
    ) -> Result<Issued, TokenError> {
        let (client, parameters) = self.client(tenant);
        let refresh_token = RefreshToken::new(refresh_token.expose_secret().to_owned());
        let mut request = client
            .exchange_refresh_token(&refresh_token)
            .add_scopes(self.app.spell(scopes).into_iter().map(Scope::new))
            .add_scope(Scope::new("offline_access".into()));
        for (name, value) in &parameters {
            request = request.add_extra_param(*name, value.expose_secret());
        }
        if let Some(claims) = claims {
            request = request.add_extra_param("claims", claims);
        }
        request.request_async(self).await.map(|answer| issued(&answer)).map_err(TokenError::from)
    }

    fn client(&self, tenant: &str) -> (Client, Vec<(&'static str, SecretString)>) {
        let url = self.app.token_url(tenant);
        let mut parameters = self.app.credential_parameters(&url, self.clock.now());
        let mut client = oauth2::Client::new(ClientId::new(self.app.client_id.clone()))
            .set_token_uri(TokenUrl::from_url(url))
            .set_auth_type(AuthType::RequestBody);
        if let Credential::Secret(secret) = &self.app.credential {
            // The crate has a place of its own for this one.
            client = client.set_client_secret(ClientSecret::new(secret.expose_secret().to_owned()));
            parameters.clear();
        }
        (client, parameters)
    }

    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, SendError> {
        let (parts, body) = request.into_parts();
        let url = Url::parse(&parts.uri.to_string()).expect("the crate was given a URL");
        let mut call = Call::new("entra.token", Method::POST, url);
        call.headers = parts.headers;
        call.body = Some(Bytes::from(body));
        call.timeout = TIMEOUT;
        call.max_answer = LARGEST_ANSWER;
        let answer = self.http.send(call).await.map_err(SendError::Http)?;
        if answer.status == StatusCode::TOO_MANY_REQUESTS || answer.status.is_server_error() {
            let retry_after = retry_after(&answer.headers, self.clock.now()).unwrap_or(PATIENCE);
            return Err(SendError::Unavailable { status: answer.status.as_u16(), retry_after });
        }
        let mut response = HttpResponse::new(answer.body.to_vec());
        *response.status_mut() = answer.status;
        *response.headers_mut() = answer.headers;
        Ok(response)
    }
}

/// What the crate sends with.
impl<'c> AsyncHttpClient<'c> for Entra {
    type Error = SendError;
    type Future = BoxFuture<'c, Result<HttpResponse, SendError>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        self.send(request).boxed()
    }
}

#[doc(hidden)]
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error(transparent)]
    Http(HttpError),
    #[error("status {status}")]
    Unavailable { status: u16, retry_after: Duration },
}

impl From<RequestTokenError<SendError, Refusal>> for TokenError {
    fn from(error: RequestTokenError<SendError, Refusal>) -> Self {
        match error {
            RequestTokenError::ServerResponse(refusal) => Self::Refused(refusal),
            RequestTokenError::Request(SendError::Http(error)) => Self::Http(error),
            RequestTokenError::Request(SendError::Unavailable { status, retry_after }) => {
                Self::Unavailable { status, retry_after }
            }
            // Both carry the answer, which can be a page with somebody's name or a whole token.
            RequestTokenError::Parse(error, _) => Self::Unreadable(error.path().to_string()),
            RequestTokenError::Other(_) => Self::Unreadable("its head".into()),
        }
    }
}

fn issued(answer: &StandardTokenResponse<Extra, BasicTokenType>) -> Issued {
    let extra = answer.extra_fields();
    Issued {
        access_token: answer.access_token().secret().clone().into(),
        // Without it the token is taken for one that lives just long enough to be used once.
        expires_in: answer.expires_in().unwrap_or(Duration::from_mins(1)),
        refresh_in: extra.refresh_in.map(Duration::from_secs),
        refresh_token: answer.refresh_token().map(|token| token.secret().clone().into()),
        id_token: extra.id_token.clone().map(SecretString::from),
        client_info: extra.client_info.clone(),
        scopes: answer
            .scopes()
            .map(|scopes| scopes.iter().map(|scope| scope.to_string()).collect())
            .unwrap_or_default(),
    }
}
