//! Sign-in, refresh, and what Entra refuses.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::TimeDelta;
use m365_sim::entra::policy::Planned;
use m365_sim::entra::{CLIENT_ID, CLIENT_SECRET};
use m365_sim::{Options, Running, directory, start};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const BACK: &str = "http://127.0.0.1:8080/oauth/callback";
const VERIFIER: &str = "a-verifier-that-is-long-enough-for-the-rules-0123456789";

struct World {
    running: Running,
    client: reqwest::Client,
}

impl World {
    async fn new() -> Self {
        let running = start(Options::default()).await.expect("a free port");
        running.sim.auto_sign_in(Some("ada@acme.example"));
        let client =
            reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().expect("a client");
        Self { running, client }
    }

    async fn authorize(&self, scope: &str) -> HashMap<String, String> {
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(VERIFIER.as_bytes()));
        let url = format!("{}/organizations/oauth2/v2.0/authorize", self.running.base_url());
        let answer = self
            .client
            .get(url)
            .query(&[
                ("client_id", CLIENT_ID),
                ("response_type", "code"),
                ("redirect_uri", BACK),
                ("scope", scope),
                ("state", "s 1"),
                ("nonce", "n1"),
                ("code_challenge", &challenge),
                ("code_challenge_method", "S256"),
            ])
            .send()
            .await
            .expect("an answer");
        assert_eq!(answer.status(), 302);
        let location = url::Url::parse(answer.headers()["location"].to_str().expect("text")).expect("a URL");
        assert!(location.as_str().starts_with(BACK));
        location.query_pairs().into_owned().collect()
    }

    async fn token(&self, tenant: &str, form: &[(&str, &str)]) -> (u16, Value) {
        let url = format!("{}/{tenant}/oauth2/v2.0/token", self.running.base_url());
        let mut all = vec![("client_id", CLIENT_ID)];
        if !form.iter().any(|(name, _)| name.starts_with("client_")) {
            all.push(("client_secret", CLIENT_SECRET));
        }
        all.extend_from_slice(form);
        let answer = self.client.post(url).form(&all).send().await.expect("an answer");
        (answer.status().as_u16(), answer.json().await.expect("json"))
    }

    async fn redeem(&self, code: &str, scope: &str) -> (u16, Value) {
        let form = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", BACK),
            ("code_verifier", VERIFIER),
            ("scope", scope),
        ];
        self.token("organizations", &form).await
    }

    async fn refresh(&self, token: &str, scope: &str) -> (u16, Value) {
        let form = [("grant_type", "refresh_token"), ("refresh_token", token), ("scope", scope)];
        self.token(directory::ACME, &form).await
    }
}

fn text(value: &Value) -> &str {
    value.as_str().expect("text")
}

#[tokio::test]
async fn a_code_is_good_for_one_resource_and_once() {
    let world = World::new().await;
    let base = world.running.base_url();
    let crm = format!("{base}/user_impersonation");
    let back = world.authorize(&format!("openid profile email offline_access Mail.ReadWrite {crm}")).await;
    assert_eq!(back["state"], "s 1");

    let (status, refused) = world.redeem(&back["code"], &format!("Mail.ReadWrite {crm}")).await;
    assert_eq!((status, &refused["error_codes"]), (400, &json!([700_022])));

    let (status, tokens) = world.redeem(&back["code"], "openid profile offline_access Mail.ReadWrite").await;
    assert_eq!(status, 200, "{tokens}");
    assert_eq!(tokens["scope"], "Mail.ReadWrite email openid profile");
    assert!(tokens["id_token"].is_string());
    let again = world.redeem(&back["code"], "Mail.ReadWrite").await;
    assert_eq!((again.0, &again.1["error_codes"]), (400, &json!([54_005])));

    let (status, crm_tokens) =
        world.refresh(text(&tokens["refresh_token"]), &format!("{crm} offline_access")).await;
    assert_eq!(status, 200, "{crm_tokens}");
    assert_eq!(crm_tokens["scope"], crm);
    assert_ne!(crm_tokens["refresh_token"], tokens["refresh_token"]);
}

#[tokio::test]
async fn what_was_not_consented_to_needs_the_user() {
    let world = World::new().await;
    let back = world.authorize("openid offline_access Mail.Read").await;
    let (_, tokens) = world.redeem(&back["code"], "Mail.Read").await;
    let refresh = text(&tokens["refresh_token"]).to_owned();
    let (status, refused) = world.refresh(&refresh, "Calendars.ReadWrite").await;
    assert_eq!((status, text(&refused["error"])), (400, "invalid_grant"));
    assert_eq!((text(&refused["suberror"]), &refused["error_codes"]), ("consent_required", &json!([65_001])));

    world.running.sim.auto_sign_in(Some("bob@acme.example"));
    let back = world.authorize("openid Group.Read.All").await;
    assert_eq!(back["error"], "consent_required");
    assert!(back["error_description"].starts_with("AADSTS90094"));
    assert!(back["error_description"].contains("\r\nTrace ID: "), "in lines, as Entra writes it");
}

#[tokio::test]
async fn refresh_tokens_rotate_and_die() {
    let world = World::new().await;
    let sim = &world.running.sim;
    let back = world.authorize("openid offline_access Mail.Read").await;
    let (_, tokens) = world.redeem(&back["code"], "Mail.Read").await;
    let first = text(&tokens["refresh_token"]).to_owned();

    let (_, next) = world.refresh(&first, "Mail.Read").await;
    let second = text(&next["refresh_token"]).to_owned();
    assert_eq!(world.refresh(&first, "Mail.Read").await.0, 200, "use does not revoke");

    sim.entra_policy(|policy| policy.strict_reuse = true);
    sim.clock().advance(TimeDelta::seconds(60));
    assert_eq!(world.refresh(&first, "Mail.Read").await.0, 400);
    assert_eq!(sim.violations()[0].rule, "refresh_reuse");

    sim.fail_token_requests(
        Planned::new("ada@acme.example", "invalid_grant", 50_076)
            .suberror("basic_action")
            .claims(json!({"a": 1})),
    );
    let (_, refused) = world.refresh(&second, "Mail.Read").await;
    assert_eq!((&refused["error_codes"], text(&refused["claims"])), (&json!([50_076]), "{\"a\":1}"));

    sim.clock().advance(TimeDelta::days(91));
    let (_, dead) = world.refresh(&second, "Mail.Read").await;
    assert_eq!(dead["error_codes"], json!([700_082]));
}

#[tokio::test]
async fn the_app_proves_who_it_is() {
    let world = World::new().await;
    let back = world.authorize("openid Mail.Read").await;
    let code = [("grant_type", "authorization_code"), ("code", &back["code"]), ("redirect_uri", BACK)];
    for (extra, expected) in
        [(vec![("client_secret", "wrong")], 7_000_215), (vec![("client_extra", "1")], 7_000_218)]
    {
        let form: Vec<_> = code.iter().copied().chain(extra).collect();
        let (status, refused) = world.token("organizations", &form).await;
        assert_eq!((status, text(&refused["error"])), (401, "invalid_client"));
        assert_eq!(refused["error_codes"], json!([expected]));
    }

    let pair =
        rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).expect("a key");
    let certificate = rcgen::CertificateParams::default().self_signed(&pair).expect("a certificate");
    let pem = certificate.pem();
    world.running.sim.change_app(|app| app.certificates.push(m365_sim::entra::app::Certificate { pem }));
    let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::PS256);
    header.x5t_s256 = Some(URL_SAFE_NO_PAD.encode(Sha256::digest(certificate.der())));
    let key = jsonwebtoken::EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes()).expect("a key");
    let now = world.running.sim.now().timestamp();
    let claims = json!({"aud": format!("{}/organizations/oauth2/v2.0/token", world.running.base_url()),
        "iss": CLIENT_ID, "sub": CLIENT_ID, "jti": "once", "nbf": now, "exp": now + 300});
    let assertion = jsonwebtoken::encode(&header, &claims, &key).expect("a JWT");
    let mut form = code.to_vec();
    form.extend([
        ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
        ("client_assertion", &assertion),
        ("code_verifier", VERIFIER),
    ]);
    let (status, tokens) = world.token("organizations", &form).await;
    assert_eq!(status, 200, "{tokens}");
    assert_eq!(world.token("organizations", &form).await.1["error_codes"], json!([700_027]));
}

#[tokio::test]
async fn a_challenge_holds_until_a_token_was_asked_for_with_claims() {
    let world = World::new().await;
    let sim = &world.running.sim;
    let back = world.authorize("openid offline_access User.Read").await;
    let (_, tokens) = world.redeem(&back["code"], "User.Read").await;
    sim.challenge("ada@acme.example", &json!({"access_token": {"nbf": {"essential": true, "value": "1"}}}));
    let claims = m365_sim::auth::authorize(
        sim,
        &bearer(text(&tokens["access_token"])),
        &m365_sim::auth::Resource::Graph,
    );
    assert!(claims.is_err());
    let form = [
        ("grant_type", "refresh_token"),
        ("refresh_token", text(&tokens["refresh_token"])),
        ("claims", r#"{"access_token":{"nbf":{"essential":true,"value":"1"}}}"#),
    ];
    let (_, fresh) = world.token(directory::ACME, &form).await;
    let caller = m365_sim::auth::authorize(
        sim,
        &bearer(text(&fresh["access_token"])),
        &m365_sim::auth::Resource::Graph,
    )
    .expect("accepted");
    assert!(caller.has(&["User.Read"]));
}

#[tokio::test]
async fn a_person_signs_in_on_the_page() {
    let world = World::new().await;
    world.running.sim.auto_sign_in(None);
    let url = format!("{}/organizations/oauth2/v2.0/authorize", world.running.base_url());
    let asked = [
        ("client_id", CLIENT_ID),
        ("response_type", "code"),
        ("redirect_uri", BACK),
        ("scope", "openid Mail.Read"),
        ("state", "<s>"),
    ];
    let page = world.client.get(&url).query(&asked).send().await.expect("an answer");
    assert_eq!(page.status(), 200);
    let html = page.text().await.expect("text");
    assert!(html.contains("ada@acme.example") && html.contains("&lt;s&gt;") && !html.contains("support@"));
    let pressed: Vec<_> = asked.into_iter().chain([("sim_account", "bob@acme.example")]).collect();
    let back = world.client.post(&url).form(&pressed).send().await.expect("an answer");
    assert!(back.headers()["location"].to_str().expect("text").contains("code="));
    let cancelled: Vec<_> = asked.into_iter().chain([("sim_decline", "1")]).collect();
    let back = world.client.post(&url).form(&cancelled).send().await.expect("an answer");
    assert!(back.headers()["location"].to_str().expect("text").contains("error=access_denied"));

    let foreign =
        [("client_id", CLIENT_ID), ("response_type", "code"), ("redirect_uri", "https://evil.example/")];
    let page = world.client.get(&url).query(&foreign).send().await.expect("an answer");
    assert_eq!(page.status(), 400, "a foreign redirect URI gets a page, never a redirect");
}

#[tokio::test]
async fn an_administrator_consents_for_everybody() {
    let world = World::new().await;
    let ask = || async {
        let url = format!("{}/acme.example/v2.0/adminconsent", world.running.base_url());
        let query =
            [("client_id", CLIENT_ID), ("redirect_uri", BACK), ("scope", "Group.Read.All"), ("state", "7")];
        let answer = world.client.get(url).query(&query).send().await.expect("an answer");
        let location = url::Url::parse(answer.headers()["location"].to_str().expect("text")).expect("a URL");
        location.query_pairs().into_owned().collect::<HashMap<String, String>>()
    };
    world.running.sim.entra_policy(|policy| policy.decline = true);
    let back = ask().await;
    assert_eq!((back["admin_consent"].as_str(), back["error"].as_str()), ("True", "consent_required"));
    world.running.sim.entra_policy(|policy| policy.decline = false);
    assert_eq!(ask().await["tenant"], directory::ACME);
    world.running.sim.auto_sign_in(Some("bob@acme.example"));
    assert!(world.authorize("openid Group.Read.All").await.contains_key("code"));
}

fn bearer(token: &str) -> http::HeaderMap {
    let value = format!("Bearer {token}").parse().expect("a header");
    http::HeaderMap::from_iter([(http::header::AUTHORIZATION, value)])
}
