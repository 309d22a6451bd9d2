//! Id tokens that somebody else made, or made for something else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::routing::get;
use axum::{Json, Router};
use chrono::{DateTime, TimeDelta};
use followthrough::clock::Clock;
use followthrough::config;
use followthrough::http::Http;
use followthrough::oauth::app::App;
use followthrough::oauth::client::Entra;
use followthrough::oauth::identity::{Identity, IdentityError, SigningKeys};
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use url::Url;

const CLIENT: &str = "c11e0000-0000-4000-8000-0000000000f1";
const TENANT: &str = "aaaaaaaa-0000-4000-8000-00000000acbe";
const CONSUMERS: &str = "9188040d-6c67-4c5b-b112-36a304b66dad";

struct Issuer {
    base: String,
    fetches: Arc<AtomicUsize>,
    key: EncodingKey,
    other: EncodingKey,
    entra: Entra,
    keys: SigningKeys,
}

fn key() -> EncodingKey {
    let pair = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048);
    EncodingKey::from_rsa_pem(pair.expect("a key").serialize_pem().as_bytes()).expect("RSA")
}

impl Issuer {
    async fn new(clock: &Clock) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let base = format!("http://{}", listener.local_addr().expect("bound"));
        let (key, other) = (key(), key());
        let jwk = Jwk::from_encoding_key(&key, Algorithm::RS256).expect("a public part");
        let AlgorithmParameters::RSA(rsa) = jwk.algorithm else { panic!("an RSA key") };
        let issuer = format!("{base}/{{tenantid}}/v2.0");
        let one = |kid: &str, issuer: &str| json!({"kty": "RSA", "kid": kid, "n": &rsa.n, "e": &rsa.e, "issuer": issuer});
        let jwks = json!({"keys": [
            one("known", &issuer),
            one("of-another", &format!("{base}/{CONSUMERS}/v2.0")),
            {"kty": "EC", "kid": "curve"},
        ]});
        let metadata = json!({"issuer": issuer, "jwks_uri": format!("{base}/keys")});
        let fetches = Arc::new(AtomicUsize::new(0));
        let counted = fetches.clone();
        let serve = move |body: Value| {
            let counted = counted.clone();
            get(move || async move {
                counted.fetch_add(1, Ordering::SeqCst);
                Json(body)
            })
        };
        let router = Router::new()
            .route("/organizations/v2.0/.well-known/openid-configuration", serve(metadata))
            .route("/keys", serve(jwks));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let settings = config::Microsoft {
            client_id: Some(CLIENT.into()),
            client_secret: Some("s".into()),
            login_url: Some(Url::parse(&base).expect("a URL")),
            ..config::Microsoft::default()
        };
        let app = App::new(&settings, &Url::parse("https://hub.example").expect("a URL")).expect("settings");
        let http = Http::new(&settings, clock.clone()).expect("settings");
        let entra = Entra { app, http, clock: clock.clone() };
        Self { base, fetches, key, other, entra, keys: SigningKeys::default() }
    }

    fn claims(&self) -> Value {
        let now = self.entra.clock.now().timestamp();
        json!({
            "iss": format!("{}/{TENANT}/v2.0", self.base), "aud": CLIENT, "tid": TENANT, "sub": "pairwise",
            "oid": "object", "nonce": "n", "preferred_username": "ada@acme.example",
            "iat": now, "nbf": now, "exp": now + 3600,
        })
    }

    fn signed(claims: &Value, kid: &str, key: &EncodingKey) -> String {
        let mut header = Header::new(Algorithm::RS256);
        header.kid = Some(kid.into());
        jsonwebtoken::encode(&header, claims, key).expect("plain JSON")
    }

    async fn identify(&self, token: String, client_info: Option<&str>) -> Result<Identity, IdentityError> {
        self.keys.identify(&self.entra, &token.into(), client_info, "n").await
    }
}

#[tokio::test]
async fn an_id_token_counts_only_as_entra_made_it_for_this_sign_in() {
    let clock = Clock::manual(DateTime::from_timestamp(1_800_000_000, 0).expect("a time"));
    let issuer = Issuer::new(&clock).await;
    let good = issuer.claims();
    let identity = issuer.identify(Issuer::signed(&good, "known", &issuer.key), None).await.expect("good");
    assert_eq!((identity.tenant_id.as_str(), identity.object_id.as_str()), (TENANT, "object"));
    assert_eq!(identity.names, ["ada@acme.example"]);
    // Whoever administers a tenant may write any address there.
    let mut claimed = good.clone();
    claimed["email"] = json!("grace@acme.example");
    let identity = issuer.identify(Issuer::signed(&claimed, "known", &issuer.key), None).await.expect("good");
    assert_eq!(identity.names, ["ada@acme.example"]);

    let now = clock.now().timestamp();
    for (claim, value) in [
        ("aud", json!("another app")),
        ("aud", Value::Null),
        ("nonce", json!("m")),
        ("nonce", Value::Null),
        ("iss", json!("https://login.evil.example/v2.0")),
        ("iss", json!(format!("{}/{CONSUMERS}/v2.0", issuer.base))),
        ("tid", json!("bbbbbbbb-0000-4000-8000-00000000acbe")),
        ("tid", json!("../organizations")),
        ("exp", json!(now - 301)),
        ("exp", Value::Null),
        ("nbf", json!(now + 301)),
        ("exp", json!(i64::MAX)),
    ] {
        let mut claims = good.clone();
        claims[claim] = value.clone();
        let refused = issuer.identify(Issuer::signed(&claims, "known", &issuer.key), None).await;
        assert!(matches!(refused, Err(IdentityError::Refused(_))), "{claim} = {value}: {refused:?}");
    }
    for token in [
        Issuer::signed(&good, "known", &issuer.other),
        Issuer::signed(&good, "of-another", &issuer.key),
        Issuer::signed(&good, "curve", &issuer.key),
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &good, &EncodingKey::from_secret(b"s"))
            .expect("JSON"),
        "eyJhbGciOiJub25lIn0.e30.".to_owned(),
        "rubbish".to_owned(),
    ] {
        let refused = issuer.identify(token, None).await;
        assert!(matches!(refused, Err(IdentityError::Refused(_))), "{refused:?}");
    }
    let mut personal = good.clone();
    personal["tid"] = json!(CONSUMERS);
    personal["iss"] = json!(format!("{}/{CONSUMERS}/v2.0", issuer.base));
    let refused = issuer.identify(Issuer::signed(&personal, "known", &issuer.key), None).await;
    assert!(matches!(refused, Err(IdentityError::PersonalAccount)));
}

#[tokio::test]
async fn without_the_profile_scope_the_client_info_names_the_object_of_the_own_tenant_only() {
    use base64::Engine as _;
    let info = |uid: &str, tenant: &str| {
        let text = json!({"uid": uid, "utid": tenant}).to_string();
        base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(text)
    };
    let issuer = Issuer::new(&Clock::system()).await;
    let mut claims = issuer.claims();
    claims["oid"] = Value::Null;
    for (info, object) in [
        (Some(info("object", TENANT)), "object"),
        // A guest's home object is not the one that this tenant knows.
        (Some(info("object", CONSUMERS)), "pairwise"),
        (Some("rubbish".into()), "pairwise"),
        (None, "pairwise"),
    ] {
        let token = Issuer::signed(&claims, "known", &issuer.key);
        let identity = issuer.identify(token, info.as_deref()).await.expect("good");
        assert_eq!(identity.object_id, object);
    }
}

#[tokio::test]
async fn keys_are_fetched_once_and_for_an_unknown_key_now_and_then() {
    let clock = Clock::manual(DateTime::from_timestamp(1_800_000_000, 0).expect("a time"));
    let issuer = Issuer::new(&clock).await;
    let fetches = || issuer.fetches.load(Ordering::SeqCst);
    for _ in 0..3 {
        issuer.identify(Issuer::signed(&issuer.claims(), "known", &issuer.key), None).await.expect("good");
    }
    assert_eq!(fetches(), 2, "the metadata and the keys");
    for _ in 0..20 {
        let unknown = issuer.identify(Issuer::signed(&issuer.claims(), "unknown", &issuer.key), None).await;
        assert!(unknown.is_err());
    }
    assert_eq!(fetches(), 2, "whoever invents keys makes no requests");
    clock.advance(TimeDelta::minutes(6).to_std().expect("forward"));
    for _ in 0..20 {
        assert!(
            issuer.identify(Issuer::signed(&issuer.claims(), "unknown", &issuer.key), None).await.is_err()
        );
    }
    assert_eq!(fetches(), 4);
    issuer.identify(Issuer::signed(&issuer.claims(), "known", &issuer.key), None).await.expect("still known");
}
