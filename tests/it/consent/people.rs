//! What waits for a person, and what a person's sign-in lets go on.

use followthrough_tests::world::{ADA, BOB, Pair, World};
use http::Method;
use m365_sim::Fault;
use m365_sim::entra::policy::Planned;
use m365_sim::fault::When;
use serde_json::{Value, json};

const MAIL: &str = "outlook-email";

async fn each() -> Vec<World> {
    let mut worlds = Vec::new();
    for pair in [Pair::Embedded, Pair::Servers] {
        // One hand, so that the order in which jobs run can be seen.
        worlds.extend(World::open_with(pair, |config| config.workers.concurrency = 1).await);
    }
    worlds
}

fn draft(subject: &str) -> Value {
    json!({"to": [{"email": "bob@contoso.example"}], "subject": subject, "body": {"format": "text", "content": "."}})
}

fn envelopes(world: &World, count: usize) -> Vec<Value> {
    let number = |n: usize| world.envelope(&format!("j{n}"), "email.draft", draft(&format!("j{n}")));
    (0..count).map(number).collect()
}

/// The subjects in the order in which Microsoft was asked for them.
fn asked(world: &World) -> Vec<String> {
    let calls = world.sim().calls_to("POST", "/v1.0/me/messages");
    let subject = |call: &m365_sim::journal::Call| Some(call.json()?["subject"].as_str()?.to_owned());
    calls.iter().filter_map(subject).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_wait_for_a_revoked_consent_and_run_in_order_once_it_is_given_again() {
    for world in each().await {
        let id = world.connect(ADA, MAIL).await;
        world.sim().revoke_sessions(ADA);
        world.publish(&envelopes(&world, 6)).await;
        for n in 0..6 {
            world.until_state(&format!("j{n}"), "parked").await;
        }
        let row = world.job("j0").await.expect("the row");
        assert_eq!(
            (row.cause.as_deref(), row.code.as_deref()),
            (Some("needs_user"), Some("sign_in_revoked"))
        );
        world.until("the events", || async { world.events.of("job.parked.email.draft").len() == 6 }).await;
        let told = ["connection.connected", "connection.needs_user"];
        world.until("one event of it", || async { world.events.about(&id.to_string()) == told }).await;
        assert!(asked(&world).is_empty());
        // The publisher's repetition changes nothing while it waits.
        world.publish(&envelopes(&world, 1)).await;
        world.at_rest().await;
        assert_eq!(world.state("j0").await, "parked");
        assert_eq!(world.connect(ADA, MAIL).await, id, "the same connection");
        for n in 0..6 {
            world.until_state(&format!("j{n}"), "succeeded").await;
        }
        assert_eq!(asked(&world), ["j0", "j1", "j2", "j3", "j4", "j5"]);
        world.until("the events", || async { world.events.about("j5").len() == 2 }).await;
        assert_eq!(world.events.about("j5"), ["job.parked.email.draft", "job.succeeded.email.draft"]);
        let told = ["connection.connected", "connection.needs_user", "connection.connected"];
        world.until("the events of it", || async { world.events.about(&id.to_string()) == told }).await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_a_user_who_never_connected_waits_for_the_first_sign_in() {
    for world in each().await {
        world.publish(&envelopes(&world, 2)).await;
        world.until_state("j1", "parked").await;
        assert!(world.sim().calls().is_empty());
        world.connect(BOB, MAIL).await;
        world.connect(ADA, "outlook-calendar").await;
        world.at_rest().await;
        assert_eq!(
            world.state("j0").await,
            "parked",
            "neither another user's consent nor another one of hers"
        );
        world.connect(ADA, MAIL).await;
        world.until_state("j0", "succeeded").await;
        world.until_state("j1", "succeeded").await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_account_than_the_expected_one_is_refused() {
    for world in each().await {
        let (id, link) = world.link(ADA, MAIL).await;
        world.sim().entra_policy(|policy| policy.sign_in_as = Some(BOB.into()));
        let page = world.browse(&link).await;
        assert_eq!(page.status, 409);
        assert!(page.text.contains("wrong_account"), "{}", page.text);
        assert_eq!(world.connection(id).await.status.as_str(), "pending");
        assert!(world.sim().calls_to("GET", "/v1.0").is_empty(), "Bob's mailbox is not looked at");
        world.sim().entra_policy(|policy| policy.sign_in_as = None);
        let page = world.browse(&link).await;
        assert_eq!(page.status, 200, "{}", page.text);
        assert_eq!(world.connection(id).await.status.as_str(), "connected");
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrators_consent_completes_the_sign_in_that_waits_for_it() {
    for world in each().await {
        world.sim().entra_policy(|policy| policy.user_consent = false);
        let (id, link) = world.link(BOB, MAIL).await;
        let page = world.browse(&link).await;
        assert!(page.text.contains("admin_consent_required"), "{}", page.text);
        let mut job = world.envelope("waits", "email.draft", draft("waits"));
        job["user"] = json!(BOB);
        world.publish(&[job]).await;
        world.until_state("waits", "parked").await;
        assert_eq!(world.job("waits").await.expect("the row").cause.as_deref(), Some("needs_admin"));
        let to_admin = page.link("adminconsent").expect("a link for the administrator");
        assert!(to_admin.contains("Mail.ReadWrite") && !to_admin.contains(".default"), "{to_admin}");
        world.sim().auto_sign_in(Some(ADA));
        let page = world.browse(&to_admin).await;
        assert_eq!(page.status, 200, "{}", page.text);
        world.sim().auto_sign_in(Some("*"));
        let page = world.browse(&page.link("authorize").expect("the sign-in goes on")).await;
        assert_eq!(page.status, 200, "{}", page.text);
        assert_eq!(world.connection(id).await.status.as_str(), "connected");
        world.until_state("waits", "succeeded").await;
        let told = ["connection.needs_admin", "connection.connected"];
        world.until("the events", || async { world.events.about(&id.to_string()) == told }).await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_who_may_not_consent_is_told_so() {
    for world in each().await {
        world.sim().entra_policy(|policy| policy.user_consent = false);
        let (_, link) = world.link(BOB, MAIL).await;
        let to_admin = world.browse(&link).await.link("adminconsent").expect("a link for the administrator");
        world.sim().auto_sign_in(Some(BOB));
        let page = world.browse(&to_admin).await;
        assert_eq!(page.status, 409, "{}", page.text);
        assert!(page.text.contains("admin_consent_refused"), "{}", page.text);
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_who_closes_the_page_leaves_nobody_waiting() {
    for world in each().await {
        let mut waiting = Vec::new();
        for user in [ADA, BOB] {
            let id = world.connect(user, MAIL).await;
            world.sim().fail_token_requests(Planned::new(user, "invalid_grant", 53_003));
            let mut job = world.envelope(user, "email.draft", draft("waits"));
            job["user"] = json!(user);
            world.publish(&[job]).await;
            world.until_state(user, "parked").await;
            assert_eq!(world.connection(id).await.status.as_str(), "needs_admin");
            waiting.push(id);
        }
        let asked = json!({"workspace": world.workspace, "integration": MAIL});
        let (_, made) = world.api(Method::POST, "/v1/connections/admin-consent", Some(&asked)).await;
        let to_admin = made["url"].as_str().expect("a link for the administrator").to_owned();
        world.sim().auto_sign_in(Some(ADA));
        let held = world.sim().inject(Fault::hold(When::Before).path("*/oauth2/v2.0/token"));
        let (sim, visit) = (world.sim().clone(), world.browse(&to_admin));
        tokio::select! {
            page = visit => panic!("the first token is asked for while the page is open: {page:?}"),
            () = sim.until(|sim| sim.holds(held)) => {}
        }
        sim.release(held);
        for id in waiting {
            let works = || async { world.connection(id).await.status.as_str() == "connected" };
            world.until("both go on", works).await;
        }
        for user in [ADA, BOB] {
            world.until_state(user, "succeeded").await;
        }
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_factor_is_asked_of_the_user_and_the_job_goes_on_after_it() {
    for world in each().await {
        let id = world.connect(ADA, MAIL).await;
        world.sim().play("mfa-needed", ADA);
        let row = world.run("mfa", "email.draft", draft("mfa"), "parked").await;
        assert_eq!((row.cause.as_deref(), row.code.as_deref()), (Some("needs_user"), Some("mfa_required")));
        let connection = world.connection(id).await;
        assert_eq!(
            (connection.status.as_str(), connection.cause.as_deref()),
            ("needs_user", Some("mfa_required"))
        );
        world.connect(ADA, MAIL).await;
        world.until_state("mfa", "succeeded").await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn disconnecting_wipes_the_token_and_what_comes_after_it_waits() {
    for world in each().await {
        let id = world.connect(ADA, MAIL).await;
        world.run("before", "email.draft", draft("before"), "succeeded").await;
        let (status, answer) = world.api(Method::DELETE, &format!("/v1/connections/{id}"), None).await;
        assert_eq!((status.as_u16(), &answer["status"]), (200, &json!("disconnected")));
        assert!(!world.has_token(id).await, "no ciphertext is left");
        let calls = world.sim().calls().len();
        let row = world.run("after", "email.draft", draft("after"), "parked").await;
        assert_eq!(row.cause.as_deref(), Some("needs_user"));
        assert_eq!(world.sim().calls().len(), calls, "neither an access token nor a refresh token is used");
        world.connect(ADA, MAIL).await;
        world.until_state("after", "succeeded").await;
        let told = ["connection.connected", "connection.disconnected", "connection.connected"];
        world.until("the events", || async { world.events.about(&id.to_string()) == told }).await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_has_expired_is_the_operators_and_jobs_go_on_once_it_is_put_right() {
    for world in each().await {
        let id = world.connect(ADA, MAIL).await;
        world.sim().play("secret-expired", ADA);
        world.publish(&envelopes(&world, 3)).await;
        for n in 0..3 {
            world.until_state(&format!("j{n}"), "waiting").await;
            let row = world.job(&format!("j{n}")).await.expect("the row");
            assert_eq!(row.attempt, 0, "what waits for the operator is no attempt");
        }
        assert_eq!(world.connection(id).await.status.as_str(), "connected");
        assert_eq!(world.events.of("connection.needs").len(), 0);
        // The operator puts it right, and nobody has to do anything else.
        world.sim().change_app(|app| app.secrets.iter_mut().for_each(|secret| secret.expires = None));
        for n in 0..3 {
            world.until_state(&format!("j{n}"), "succeeded").await;
        }
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_blocks_is_the_administrators() {
    for world in each().await {
        let id = world.connect(ADA, MAIL).await;
        world.sim().fail_token_requests(Planned::new(ADA, "invalid_grant", 53_003).suberror("message_only"));
        let row = world.run("blocked", "email.draft", draft("blocked"), "parked").await;
        assert_eq!(
            (row.cause.as_deref(), row.code.as_deref()),
            (Some("needs_admin"), Some("blocked_by_policy"))
        );
        assert_eq!(world.connection(id).await.status.as_str(), "needs_admin");
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn however_much_waits_for_a_consent_it_is_given_and_all_goes_on_by_and_by() {
    const MANY: usize = 60;
    for world in each().await {
        world.publish(&envelopes(&world, MANY)).await;
        let all_are =
            async |state: &str| world.states().await.get(state) == Some(&i64::try_from(MANY).expect("few"));
        world.until("all wait", || all_are("parked")).await;
        world.connect(ADA, MAIL).await;
        let waiting = world.states().await.get("parked").copied().unwrap_or_default();
        assert!(waiting >= 40, "a few at a time, so that the sign-in holds none of them up: {waiting}");
        world.until("all are done", || all_are("succeeded")).await;
        world.close().await;
    }
}
