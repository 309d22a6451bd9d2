//! Signing in: what comes back through a browser, and what is made of it.

use std::sync::{Arc, Mutex};

use chrono::DateTime;
use followthrough::clock::Clock;
use followthrough::oauth::ConsentError;
use followthrough::oauth::callback::AdminAnswer;
use followthrough::oauth::links::NewLink;
use followthrough::oauth::scopes::{Integration, Resource};
use followthrough::store::connection::Status;
use m365_sim::Fault;
use m365_sim::entra::policy::Planned;
use m365_sim::fault::When;
use url::Url;

use super::world::{ADA, BOB, World, answer, new_link};

fn secret(url: &Url) -> String {
    url.path_segments().and_then(Iterator::last).expect("a secret").to_owned()
}

#[tokio::test]
async fn a_user_connects_each_integration() {
    for world in World::each().await {
        let base = world.running.base_url();
        world.running.sim.consent_for_tenant("acme.example", "Group.Read.All");
        for integration in Integration::ALL {
            let environment = (integration == Integration::Dynamics).then_some(base.as_str());
            let return_to = Some("https://hub.example/done?x=1");
            let new = NewLink { environment, return_to, ..new_link(ADA, integration) };
            let landing = world.sign_in(new).await;
            assert_eq!(landing.code, "connected", "{integration}: {landing:?}");
            let id = landing.connection.expect("its connection");
            let redirect = landing.redirect().expect("a place to go").to_string();
            assert_eq!(redirect, format!("https://hub.example/done?x=1&code=connected&connection={id}"));
            let connection = world.connection(id).await;
            let ada = world.running.sim.directory().find(ADA).cloned().expect("Ada");
            assert_eq!(connection.object_id.as_deref(), Some(ada.oid.as_str()), "{integration}");
            assert_eq!(connection.tenant_id.as_deref(), Some(ada.tenant.as_str()));
            assert_eq!(connection.status, Status::Connected);
            assert_eq!(world.told.take(), [Status::Connected]);
            let resource = Resource::of(integration, connection.environment.as_deref().unwrap_or_default());
            world.vault.access(id, &resource).await.expect("a token");
            if integration == Integration::Dynamics {
                assert!(connection.allows("user_impersonation"));
            }
        }
        world.no_violations();
    }
}

#[tokio::test]
async fn a_link_survives_previews_and_is_spent_by_one_grant() {
    for world in World::each().await {
        let created = world.consent.create_link(new_link(ADA, Integration::OutlookEmail)).await;
        let created = created.expect("a link");
        let link = secret(&created.url);
        assert!(!format!("{created:?}").contains(&link));
        let preview = world.consent.open_link(&link).await.expect("opens");
        world.consent.open_link(&link).await.expect("opens again");
        let back = world.visit(preview).await;
        let landing = world.consent.callback(answer(&back)).await.expect("a landing");
        assert_eq!((landing.code, landing.success), ("connected", true));
        for error in [
            world.consent.callback(answer(&back)).await.expect_err("used"),
            world.consent.open_link(&link).await.expect_err("used"),
        ] {
            assert!(matches!(error, ConsentError::UsedLink), "{error}");
        }
        let error = world.consent.open_link("guessed").await.expect_err("no link");
        assert!(matches!(error, ConsentError::UnknownLink));
    }
}

#[tokio::test]
async fn using_a_link_ends_the_others_of_its_connection() {
    for world in World::each().await {
        let link = async || {
            let created = world.consent.create_link(new_link(ADA, Integration::OutlookEmail)).await;
            secret(&created.expect("a link").url)
        };
        let (mislaid, used) = (link().await, link().await);
        assert_eq!(world.open(&used).await.expect("a landing").code, "connected");
        let error = world.consent.open_link(&mislaid).await.expect_err("ended");
        assert!(matches!(error, ConsentError::UsedLink), "{error}");
        world.consent.open_link(&link().await).await.expect("a later one is open");
    }
}

#[tokio::test]
async fn a_forged_or_mixed_up_return_is_refused() {
    for world in World::each().await {
        let new = || new_link(ADA, Integration::OutlookEmail);
        let one = world.consent.create_link(new()).await.expect("a link");
        let other = world.consent.create_link(new()).await.expect("a link");
        let url_of_one = world.consent.open_link(&secret(&one.url)).await.expect("opens");
        let url_of_other = world.consent.open_link(&secret(&other.url)).await.expect("opens");
        let (mut first, second) = (world.visit(url_of_one).await, world.visit(url_of_other).await);
        let mut forged = answer(&first);
        forged.state = forged.state.map(|state| state.replace('.', "x."));
        for state in [forged.state, None, Some("x".into())] {
            let back = followthrough::oauth::callback::SignInAnswer { state, ..answer(&first) };
            let error = world.consent.callback(back).await.expect_err("forged");
            assert!(matches!(error, ConsentError::State), "{error}");
        }
        // Another link's code: its challenge and its nonce are not this link's.
        first.insert("code".into(), second["code"].clone());
        let landing = world.consent.callback(answer(&first)).await.expect("a landing");
        assert!(!landing.success, "{landing:?}");
        assert_eq!(world.told.take(), []);
        let id = landing.connection.expect("its connection");
        assert_eq!(world.connection(id).await.status, Status::Pending);
    }
}

#[tokio::test]
async fn another_account_is_refused_and_nothing_of_it_is_read_or_kept() {
    for world in World::each().await {
        world.running.sim.entra_policy(|policy| policy.sign_in_as = Some(BOB.into()));
        let landing = world.sign_in(new_link(ADA, Integration::OutlookEmail)).await;
        assert_eq!(landing.code, "wrong_account");
        let id = landing.connection.expect("its connection");
        let connection = world.connection(id).await;
        assert_eq!((connection.status, connection.object_id), (Status::Pending, None));
        assert!(world.running.sim.calls_to("GET", "/v1.0").is_empty());
        // The same link serves the right account.
        world.running.sim.entra_policy(|policy| policy.sign_in_as = None);
        let back = world.visit(landing.continue_url.expect("another try")).await;
        assert_eq!(world.consent.callback(answer(&back)).await.expect("a landing").code, "connected");
    }
}

#[tokio::test]
async fn another_account_is_refused_also_where_the_id_token_names_nobody() {
    for world in World::each().await {
        let base = world.running.base_url();
        world.running.sim.consent_for_tenant("acme.example", "Group.Read.All");
        world.running.sim.entra_policy(|policy| policy.sign_in_as = Some(BOB.into()));
        for integration in Integration::ALL {
            let environment = (integration == Integration::Dynamics).then_some(base.as_str());
            let landing = world.sign_in(NewLink { environment, ..new_link(ADA, integration) }).await;
            assert_eq!(landing.code, "wrong_account", "{integration}");
            let id = landing.connection.expect("its connection");
            assert_eq!(world.connection(id).await.object_id, None, "{integration}");
        }
    }
}

#[tokio::test]
async fn a_reconnect_is_the_same_object_unless_it_may_be_replaced() {
    for world in World::each().await {
        let connection = world.connected(ADA, Integration::OutlookEmail).await;
        let old = world.vault.access(connection.id, &Resource::Graph).await.expect("a token");
        let connection = world.connection(connection.id).await;
        world.running.sim.entra_policy(|policy| policy.sign_in_as = Some(BOB.into()));
        let new = NewLink { account: None, ..new_link(ADA, Integration::OutlookEmail) };
        assert_eq!(world.sign_in(new.clone()).await.code, "wrong_account");
        assert_eq!(world.connection(connection.id).await, connection);
        let landing = world.sign_in(NewLink { replace: true, account: Some(BOB), ..new }).await;
        assert_eq!(landing.code, "connected");
        let replaced = world.connection(connection.id).await;
        assert_ne!(replaced.object_id, connection.object_id);
        assert_eq!(replaced.grant_number, connection.grant_number + 1);
        let token = world.vault.access(connection.id, &Resource::Graph).await.expect("Bob's token");
        assert_ne!(token.serial, old.serial, "the token of the account before is gone");
    }
}

#[tokio::test]
async fn what_was_not_granted_is_named_and_the_grant_is_kept() {
    for world in World::each().await {
        world.running.sim.entra_policy(|policy| policy.withhold = vec!["Mail.Send".into()]);
        let landing = world.sign_in(new_link(ADA, Integration::OutlookEmail)).await;
        assert_eq!(landing.code, "missing_scopes");
        assert!(landing.message.contains("Mail.Send"), "{}", landing.message);
        let id = landing.connection.expect("its connection");
        let connection = world.connection(id).await;
        assert_eq!(connection.status, Status::NeedsUser);
        assert_eq!(world.told.take(), [Status::NeedsUser]);
        world.running.sim.entra_policy(|policy| policy.withhold.clear());
        assert_eq!(world.sign_in(new_link(ADA, Integration::OutlookEmail)).await.code, "connected");
        assert_eq!(world.connection(id).await.status, Status::Connected);
    }
}

#[tokio::test]
async fn an_administrator_is_asked_once_and_the_same_sign_in_completes() {
    for world in World::each().await {
        let created = world.consent.create_link(new_link(BOB, Integration::Teams)).await.expect("a link");
        let landing = world.open(&secret(&created.url)).await.expect("a landing");
        assert_eq!(landing.code, "admin_consent_required", "{landing:?}");
        assert_eq!(world.connection(created.id).await.status, Status::NeedsAdmin);
        assert_eq!(world.told.take(), [Status::NeedsAdmin]);
        let admin = landing.admin_consent_url.expect("the administrator's link");
        let scope = admin.query_pairs().find(|(name, _)| name == "scope").expect("a scope").1.into_owned();
        assert!(scope.contains("Group.Read.All") && scope.contains("ChannelMessage.Send"), "{scope}");

        // An error comes beside `admin_consent=True`, and is an error.
        let state =
            admin.query_pairs().find(|(name, _)| name == "state").map(|(_, state)| state.into_owned());
        let said = |error: Option<&str>| AdminAnswer {
            state: state.clone(),
            admin_consent: Some("True".into()),
            error: error.map(str::to_owned),
            error_description: None,
        };
        let refused = world.consent.admin_callback(said(Some("access_denied"))).await.expect("a landing");
        assert!(!refused.success);
        let forged = AdminAnswer { state: Some("x.y".into()), ..said(None) };
        assert!(matches!(world.consent.admin_callback(forged).await, Err(ConsentError::State)));

        world.running.sim.consent_for_tenant("acme.example", &scope);
        let landing = world.consent.admin_callback(said(None)).await.expect("a landing");
        assert!(landing.success);
        let back = world.visit(landing.continue_url.expect("the sign-in goes on")).await;
        let landing = world.consent.callback(answer(&back)).await.expect("a landing");
        assert_eq!(landing.code, "connected");
        assert_eq!(landing.connection, Some(created.id));
        assert_eq!(world.told.take(), [Status::Connected]);
    }
}

#[tokio::test]
async fn an_administrators_return_tries_everybody_again_once_in_five_minutes() {
    let clock = Clock::manual(DateTime::parse_from_rfc3339("2026-11-24T09:00:00Z").expect("a time").to_utc());
    for world in World::each_with(|_| {}, &clock).await {
        world.running.sim.clock().freeze(true);
        world.running.sim.clock().set(clock.now());
        let connection = world.connected(ADA, Integration::OutlookEmail).await;
        let refuse = || world.running.sim.fail_token_requests(Planned::new(ADA, "invalid_grant", 90_094));
        refuse();
        world.vault.access(connection.id, &Resource::Graph).await.expect_err("refused");
        let url = world.consent.admin_consent_link("acme", Integration::OutlookEmail).await.expect("a link");
        let state = url.query_pairs().find(|(name, _)| name == "state").map(|(_, state)| state.into_owned());
        let come_back = async || {
            let answer = AdminAnswer {
                state: state.clone(),
                admin_consent: Some("True".into()),
                ..AdminAnswer::default()
            };
            assert!(world.consent.admin_callback(answer).await.expect("a landing").success);
            world.refreshes().len()
        };
        refuse();
        assert_eq!(come_back().await, 2);
        for _ in 0..10 {
            assert_eq!(come_back().await, 2, "the page was only loaded again");
        }
        clock.advance(std::time::Duration::from_secs(301));
        world.running.sim.clock().set(clock.now());
        assert_eq!(come_back().await, 3);
        assert_eq!(world.connection(connection.id).await.status, Status::Connected);
    }
}

#[tokio::test]
async fn a_sign_in_that_fails_spends_nothing_and_harms_nothing() {
    for world in World::each().await {
        let connection = world.connected(ADA, Integration::OutlookEmail).await;
        let created = world.consent.create_link(new_link(ADA, Integration::OutlookEmail)).await;
        let link = secret(&created.expect("a link").url);
        let sim = &world.running.sim;
        sim.entra_policy(|policy| policy.decline = true);
        assert_eq!(world.open(&link).await.expect("a landing").code, "consent_declined");
        sim.entra_policy(|policy| policy.decline = false);
        for (error, number, code) in [
            ("invalid_grant", 54_005, "sign_in_expired"),
            ("invalid_client", 7_000_222, "invalid_client"),
            ("invalid_grant", 53_003, "blocked_by_policy"),
        ] {
            sim.fail_token_requests(Planned::new(ADA, error, number));
            assert_eq!(world.open(&link).await.expect("a landing").code, code);
        }
        for fault in [Fault::lost_before(), Fault::lost_after(), Fault::status(503, When::default())] {
            sim.inject(fault.path("/organizations/oauth2/v2.0/token"));
            assert_eq!(world.open(&link).await.expect("a landing").code, "entra_unavailable");
        }
        assert_eq!(world.connection(connection.id).await, connection);
        assert_eq!(world.told.take(), []);
        assert_eq!(world.open(&link).await.expect("a landing").code, "connected");
    }
}

#[tokio::test]
async fn a_certificate_signs_in_and_refreshes() {
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).expect("no names");
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "followthrough");
    let key = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048);
    let key = key.expect("a key");
    let certificate = parameters.self_signed(&key).expect("a certificate").pem();
    let pem = format!("{}{certificate}", key.serialize_pem());
    let with_certificate = |settings: &mut followthrough::config::Microsoft| {
        settings.client_secret = None;
        settings.client_certificate = Some(pem.clone().into());
    };
    for world in World::each_with(with_certificate, &Clock::system()).await {
        world.running.sim.change_app(|app| {
            app.secrets.clear();
            app.certificates = vec![m365_sim::entra::app::Certificate { pem: certificate.clone() }];
        });
        let connection = world.connected(ADA, Integration::OutlookEmail).await;
        world.vault.access(connection.id, &Resource::Graph).await.expect("a token");
        for request in
            [world.token_requests("authorization_code"), world.token_requests("refresh_token")].concat()
        {
            assert_eq!(request.form("client_secret"), None);
            assert!(request.form("client_assertion").is_some());
        }
    }
    let other = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048);
    let mixed = format!("{}{certificate}", other.expect("a key").serialize_pem());
    let settings = followthrough::config::Microsoft {
        client_certificate: Some(mixed.into()),
        ..followthrough::config::Microsoft::default()
    };
    let error = followthrough::oauth::credential::Credential::new(&settings).expect_err("no pair");
    assert!(error.contains("is not the key of its certificate"), "{error}");
}

#[tokio::test]
async fn no_log_holds_a_token_a_secret_or_a_name() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    // With one dispatcher alone, lines that another test's thread meets first would be silent for all.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let guard = tracing::subscriber::set_default(subscriber);
    for world in World::each().await {
        let connection = world.connected(ADA, Integration::OutlookEmail).await;
        world.vault.access(connection.id, &Resource::Graph).await.expect("a token");
        let planned = Planned {
            description: Some("planted-text".into()),
            ..Planned::new(ADA, "invalid_grant", 50_076)
        };
        world.running.sim.fail_token_requests(planned);
        world.another_vault().access(connection.id, &Resource::Graph).await.expect_err("refused");
        world.running.sim.entra_policy(|policy| policy.sign_in_as = Some(BOB.into()));
        let created = world.consent.create_link(new_link(ADA, Integration::OutlookEmail)).await;
        let link = secret(&created.expect("a link").url);
        assert_eq!(world.open(&link).await.expect("a landing").code, "wrong_account");
        let mut secrets =
            vec![link, m365_sim::entra::CLIENT_SECRET.to_owned(), "planted-text".into(), BOB.into()];
        for call in world.running.sim.calls().iter().filter(|call| call.method == "POST") {
            let answer: serde_json::Value = serde_json::from_slice(&call.answer).unwrap_or_default();
            for name in ["access_token", "refresh_token", "id_token"] {
                secrets.extend(answer[name].as_str().map(str::to_owned));
            }
            secrets
                .extend(["code", "code_verifier", "refresh_token"].iter().filter_map(|name| call.form(name)));
        }
        assert!(secrets.len() > 9, "there was something to look for");
        let logged = log.text();
        assert!(
            logged.contains("Entra refused a refresh") && logged.contains("a grant was stored"),
            "{logged}"
        );
        for secret in secrets {
            assert!(!logged.contains(&secret), "{secret} in a log line");
        }
    }
    drop(guard);
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("nobody panics while writing")).into_owned()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("nobody panics while writing").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn wrong_requests_for_a_link_are_refused_by_name() {
    let world = World::each().await.remove(0);
    let good = new_link(ADA, Integration::OutlookEmail);
    let long = "x".repeat(300);
    for (path, new) in [
        ("workspace", NewLink { workspace: "", ..good.clone() }),
        ("user", NewLink { user: &long, ..good.clone() }),
        ("account", NewLink { account: Some("a\nb"), ..good.clone() }),
        ("return_to", NewLink { return_to: Some("javascript:alert(1)"), ..good.clone() }),
        ("return_to", NewLink { return_to: Some("http://hub.example"), ..good.clone() }),
        ("environment", NewLink { environment: Some("http://127.0.0.1"), ..good.clone() }),
        (
            "environment",
            NewLink {
                environment: Some("https://evil.example"),
                integration: Integration::Dynamics,
                ..good.clone()
            },
        ),
    ] {
        let error = world.consent.create_link(new).await.expect_err(path);
        assert!(matches!(error, ConsentError::Invalid { path: wrong, .. } if wrong == path), "{error:?}");
        assert_eq!(error.code(), "invalid_request");
    }
}
