//! A call made with a user's token, and the one repeat after the token was refused.
//!
//! The invariant: one call shows Microsoft at most two tokens. A refused token is exchanged once, with the
//! claims of the challenge where there are some; when the new one is refused too, a person has to act, and
//! the caller sees the 401 as it came.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;
use secrecy::SecretString;

use crate::cool_down::CoolDown;
use crate::http::{Answer, Call, Http, HttpError};
use crate::outcome::Failure;
use crate::store::connection::Connection;

/// Where the access tokens of one connection come from; the vault, outside of tests.
#[async_trait]
pub trait Tokens: Send + Sync {
    /// A token for `resource` (`https://graph.microsoft.com`, an environment's URL), from memory or fresh.
    async fn access(&self, resource: &str) -> Result<SecretString, Failure>;

    /// The last token was answered with 401: a fresh one, redeemed with the claims (JSON) of the challenge.
    async fn rejected(&self, resource: &str, challenge: Option<String>) -> Result<SecretString, Failure>;

    /// The fresh one was answered with 401 too: only a person can go on.
    async fn refused(&self, _resource: &str, _challenge: Option<String>) {}
}

/// Where the [`Tokens`] of every connection come from.
pub trait TokenSource: Send + Sync {
    fn of(&self, connection: &Connection) -> Arc<dyn Tokens>;
}

/// The HTTP client in the hands of one connection, for one resource.
#[derive(Clone)]
pub struct Bearer {
    http: Http,
    tokens: Arc<dyn Tokens>,
    resource: Arc<str>,
    cool_down: Option<CoolDown>,
}

/// Why a call has no answer.
#[derive(Debug, Clone)]
pub enum Unheard {
    /// The vault has no token; it knows what that means.
    NoToken(Failure),
    Http(HttpError),
}

impl From<HttpError> for Unheard {
    fn from(error: HttpError) -> Self {
        Self::Http(error)
    }
}

impl Bearer {
    pub fn new(http: Http, tokens: Arc<dyn Tokens>, resource: &str) -> Self {
        Self { http, tokens, resource: resource.into(), cool_down: None }
    }

    /// No call is made while this lasts.
    pub fn respect(&mut self, cool_down: Option<CoolDown>) {
        self.cool_down = cool_down;
    }

    /// An answer asked for patience: everybody behind the same gate hears of it.
    pub fn leave_alone(&self, wait: Option<Duration>) {
        if let (Some(cool_down), Some(wait)) = (&self.cool_down, wait) {
            cool_down.begin(wait);
        }
    }

    /// A call to an address that is a secret itself: no token goes there.
    pub async fn send_without_token(&self, call: Call) -> Result<Answer, HttpError> {
        self.http.send(call).await
    }

    /// A 401 is a definite "not done", so even a creating call may be made once more with another token.
    pub async fn send(&self, call: Call) -> Result<Answer, Unheard> {
        if let Some(cool_down) = &self.cool_down
            && let Some(left) = cool_down.heard().await
        {
            return Err(Unheard::Http(HttpError::Withheld { call: call.name, left }));
        }
        let token = self.tokens.access(&self.resource).await.map_err(Unheard::NoToken)?;
        let answer = self.http.send(call.clone().bearer(&token)).await?;
        let challenge = challenge(&answer.headers);
        if answer.status != 401 && !(answer.status == 403 && challenge.is_some()) {
            return Ok(answer);
        }
        let token = self.tokens.rejected(&self.resource, challenge).await.map_err(Unheard::NoToken)?;
        let answer = self.http.send(call.bearer(&token)).await?;
        if answer.status == 401 {
            let challenge = self::challenge(&answer.headers);
            self.tokens.refused(&self.resource, challenge).await;
        }
        Ok(answer)
    }
}

/// The claims that the resource wants to see in the next token, as the JSON that the token endpoint takes.
/// <https://learn.microsoft.com/entra/identity-platform/claims-challenge>
pub fn challenge(headers: &HeaderMap) -> Option<String> {
    headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .find_map(|value| decode(parameter(value, "claims")?))
}

/// The quoted (or bare) value of `name` in a header that may hold several challenges.
fn parameter<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    header.match_indices(name).find_map(|(at, _)| {
        let before = header[..at].chars().next_back();
        let rest = header[at + name.len()..].trim_start().strip_prefix('=')?.trim_start();
        if before.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_') {
            return None;
        }
        match rest.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next(),
            None => rest.split([',', ' ']).next(),
        }
    })
}

/// Base64 in any of the four spellings seen in the field.
fn decode(text: &str) -> Option<String> {
    let lenient = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    [STANDARD, URL_SAFE].into_iter().find_map(|alphabet| {
        let bytes = GeneralPurpose::new(&alphabet, lenient).decode(text).ok()?;
        let json = String::from_utf8(bytes).ok()?;
        serde_json::from_str::<serde_json::Value>(&json).ok()?.is_object().then_some(json)
    })
}

#[cfg(test)]
mod tests {
    use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
    use http::HeaderValue;

    use super::*;
    use crate::http::tests::{answer, http, server};

    fn headers(values: &[&str]) -> HeaderMap {
        values
            .iter()
            .map(|value| (WWW_AUTHENTICATE, HeaderValue::from_str(value).expect("a header")))
            .collect()
    }

    /// Hands out numbered tokens and remembers what it was told.
    #[derive(Default)]
    struct Numbered(std::sync::Mutex<Vec<Option<String>>>);

    #[async_trait]
    impl Tokens for Numbered {
        async fn access(&self, _: &str) -> Result<SecretString, Failure> {
            Ok("first".into())
        }
        async fn rejected(&self, _: &str, challenge: Option<String>) -> Result<SecretString, Failure> {
            self.0.lock().expect("not poisoned").push(challenge);
            Ok("second".into())
        }
        async fn refused(&self, _: &str, _: Option<String>) {
            self.0.lock().expect("not poisoned").push(Some("refused".into()));
        }
    }

    async fn ask(answers: Vec<String>) -> (http::StatusCode, usize, Vec<Option<String>>) {
        let (url, calls) = server(answers).await;
        let tokens = Arc::new(Numbered::default());
        let bearer = Bearer::new(http(), tokens.clone(), "https://graph.microsoft.com");
        let answer = bearer.send(Call::post("test.create", url)).await.expect("an answer");
        let told = tokens.0.lock().expect("not poisoned").clone();
        (answer.status, calls.load(std::sync::atomic::Ordering::SeqCst), told)
    }

    #[tokio::test]
    async fn a_refused_token_is_exchanged_once_and_the_second_refusal_goes_up() {
        let refused = || answer("401 Unauthorized", "www-authenticate: Bearer realm=\"\"\r\n", "");
        let good = answer("201 Created", "", "{}");
        assert_eq!(ask(vec![refused(), good.clone()]).await, (http::StatusCode::CREATED, 2, vec![None]));
        let told = vec![None, Some("refused".into())];
        assert_eq!(ask(vec![refused()]).await, (http::StatusCode::UNAUTHORIZED, 2, told));
        let challenge = "www-authenticate: Bearer error=\"insufficient_claims\", claims=\"eyJhIjoxfQ==\"\r\n";
        let asked = ask(vec![answer("401 Unauthorized", challenge, ""), good]).await;
        assert_eq!(asked, (http::StatusCode::CREATED, 2, vec![Some(r#"{"a":1}"#.into())]));
    }

    #[test]
    fn a_claims_challenge_is_read_from_any_header_in_any_base64() {
        let claims = r#"{"access_token":{"nbf":{"essential":true,"value":"1?>~"}}}"#;
        for encoded in [BASE64_STANDARD.encode(claims), BASE64_URL_SAFE_NO_PAD.encode(claims)] {
            let bearer = format!(
                r#"Bearer realm="", authorization_uri="https://x/authorize", error="insufficient_claims", claims="{encoded}""#
            );
            assert_eq!(challenge(&headers(&["Basic realm=\"x\"", &bearer])).as_deref(), Some(claims));
        }
    }

    #[test]
    fn a_plain_401_and_a_broken_challenge_ask_for_nothing() {
        for value in
            ["Bearer realm=\"\", error=\"invalid_token\"", "Bearer claims=\"%%%\"", "Bearer claims=\"e30"]
        {
            let found = challenge(&headers(&[value]));
            assert!(found.is_none() || found.as_deref() == Some("{}"), "{value}: {found:?}");
        }
        assert_eq!(challenge(&headers(&["Bearer xclaims=\"e30=\""])), None);
    }
}
