//! What every call goes through: lost answers, throttles, the referee, https.

use m365_sim::fault::When;
use m365_sim::referee::Throttle;
use m365_sim::{Fault, Options, start};

async fn running() -> m365_sim::Running {
    start(Options::default()).await.expect("a free port")
}

#[tokio::test]
async fn a_lost_answer_is_a_torn_connection() {
    let running = running().await;
    let url = format!("{}/v1.0/me", running.base_url());
    let fault = running.sim.inject(Fault::lost_before().path("/v1.0/me").nth(2));
    let client = reqwest::Client::new();
    assert!(client.get(&url).send().await.is_ok());
    let error = client.get(&url).send().await.expect_err("the connection is closed");
    assert!(error.status().is_none(), "{error:?}");
    assert!(client.get(&url).send().await.is_ok(), "the fault is used up");
    assert_eq!(running.sim.fault_hits(fault), (3, 1));
    let calls = running.sim.calls();
    assert_eq!(calls.len(), 3);
    assert_eq!(calls[1].status, None);
    running.shutdown().await;
}

#[tokio::test]
async fn an_early_call_after_a_429_is_a_violation() {
    let running = running().await;
    let sim = &running.sim;
    sim.clock().freeze(true);
    let token = sim.graph_token("ada@acme.example", &["Mail.Read"]);
    sim.throttle(Throttle {
        user: "ada@acme.example".into(),
        calls: 1,
        retry_after_seconds: 10,
        as_date: false,
        without_header: false,
        area: None,
    });
    let url = format!("{}/v1.0/me/messages", running.base_url());
    let client = reqwest::Client::new();
    let get = || async { client.get(&url).bearer_auth(&token).send().await.expect("an answer") };

    let first = get().await;
    assert_eq!(first.status(), 429);
    assert_eq!(first.headers()["retry-after"], "10");
    assert!(sim.violations().is_empty());

    sim.clock().advance(chrono::TimeDelta::seconds(5));
    assert_eq!(get().await.status(), 429);
    assert_eq!(sim.violations()[0].rule, "before_retry_after");

    sim.clock().advance(chrono::TimeDelta::seconds(5));
    assert_ne!(get().await.status(), 429);
}

#[tokio::test]
async fn a_fifth_call_at_once_on_one_mailbox_is_refused() {
    let running = running().await;
    let sim = &running.sim;
    let token = sim.graph_token("ada@acme.example", &["Mail.Read", "Mail.Read.Shared"]);
    let held = sim.inject(Fault::hold(When::Before).times(4));
    let url = format!("{}/v1.0/users/support@acme.example/messages", running.base_url());
    let client = reqwest::Client::new();
    let get = || client.get(&url).bearer_auth(&token).send();
    let four = futures::future::join_all((0..4).map(|_| get()));
    let (mut answers, fifth) = tokio::join!(four, async {
        sim.until(|sim| sim.calls().iter().filter(|call| call.fault.is_some()).count() == 4).await;
        let fifth = get().await;
        sim.release(held);
        fifth
    });
    answers.push(fifth);
    let (refused, served): (Vec<_>, Vec<_>) = answers
        .into_iter()
        .map(|answer| answer.expect("an answer"))
        .partition(|answer| answer.status() == 429);
    assert_eq!((refused.len(), served.len()), (1, 4));
    for answer in refused {
        let body: serde_json::Value = answer.json().await.expect("json");
        assert_eq!(body["error"]["code"], "ApplicationThrottled");
        assert!(body["error"]["innerError"]["request-id"].is_string());
    }
    assert_eq!(sim.violations()[0].rule, "mailbox_concurrency");
}

#[tokio::test]
async fn what_was_executed_stays_executed_when_the_answer_is_lost() {
    let running = running().await;
    let sim = &running.sim;
    sim.inject(Fault::lost_after().method("PATCH"));
    let url = format!("{}/api/data/v9.2/accounts({})", running.base_url(), m365_sim::dataverse::row_id(1, 1));
    let call = reqwest::Client::new().patch(url).bearer_auth(sim.dataverse_token("ada@acme.example"));
    let lost = call.json(&serde_json::json!({"telephone1": "1"})).send().await;
    assert!(lost.is_err());
    assert_eq!(sim.dataverse_writes().len(), 1);
}

#[tokio::test]
async fn a_held_call_waits_until_it_is_released() {
    let running = running().await;
    let sim = running.sim.clone();
    let fault = sim.inject(Fault::hold(When::After).method("PATCH"));
    let url = format!("{}/api/data/v9.2/accounts({})", running.base_url(), m365_sim::dataverse::row_id(1, 1));
    let call = reqwest::Client::new().patch(url).bearer_auth(sim.dataverse_token("ada@acme.example"));
    let call = tokio::spawn(call.json(&serde_json::json!({"telephone1": "1"})).send());
    let long = std::time::Duration::from_mins(1);
    tokio::time::timeout(long, sim.until(|sim| sim.dataverse_writes().len() == 1)).await.expect("executed");
    assert!(!call.is_finished());
    sim.release(fault);
    assert_eq!(call.await.expect("no panic").expect("an answer").status(), 204);
}

#[tokio::test]
async fn https_is_served_with_an_authority_of_its_own() {
    let running = start(Options { tls: true, ..Options::default() }).await.expect("a free port");
    let ca = reqwest::Certificate::from_pem(running.ca_pem().expect("tls").as_bytes()).expect("PEM");
    let client = reqwest::Client::builder().tls_certs_merge([ca]).build().expect("a client");
    running.sim.inject(
        Fault::status(503, When::Before).header("Retry-After", "3").area(m365_sim::journal::Area::Graph),
    );
    let answer = client.get(format!("{}/v1.0/me", running.base_url())).send().await.expect("an answer");
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.headers()["retry-after"], "3");
}
