//! Planted secrets: what must not be seen is searched for wherever anybody could look.

use followthrough_tests::logs;
use followthrough_tests::world::{ADA, Pair, World};
use http::Method;
use m365_sim::entra::policy::Planned;
use m365_sim::entra::{CLIENT_ID, CLIENT_SECRET};
use m365_sim::fault::When;
use m365_sim::journal::Area;
use m365_sim::{Fault, Sim};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

const BODY: &str = "planted-body-5f1c";
const FILE: &str = "cGxhbnRlZC1maWxlLTc3YTE=";
const RECIPIENT: &str = "planted.recipient@contoso.example";
const VALUE: &str = "planted-value-92be";
const ECHO: &str = "planted-echo-0b6d";

#[tokio::test(flavor = "multi_thread")]
async fn a_planted_secret_is_nowhere_to_be_seen() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = World::open(pair).await else { continue };
        let before = logs::lines().len();
        let (_, link) = world.link(ADA, "outlook-email").await;
        world.browse(&link).await;
        world.connect(ADA, "outlook-calendar").await;
        world.connect(ADA, "dynamics").await;
        tell_everything(&world).await;
        let mut secrets = tokens(world.sim());
        secrets.extend(
            [BODY, FILE, "planted-file-77a1", RECIPIENT, VALUE, ECHO, CLIENT_SECRET].map(str::to_owned),
        );
        secrets.extend(world.config.vault.keys.iter().map(|key| {
            let key = key.expose_secret();
            key.split_once(':').map_or(key, |(_, key)| key).to_owned()
        }));
        secrets.push(link.rsplit('/').next().expect("a link's secret").to_owned());
        assert!(secrets.len() > 15, "{}", secrets.len());
        let logged = logs::lines().split_off(before);
        assert!(
            logged.contains("mtg-secret") && logged.contains("graph.create_draft"),
            "the logs were heard"
        );
        let (_, letters) = world.api(Method::GET, "/v1/dead-letters", None).await;
        assert!(letters["dead_letters"].as_array().is_some_and(|letters| letters.len() > 3), "{letters}");
        let (_, jobs) = world.api(Method::GET, "/v1/jobs", None).await;
        let events: Vec<Value> =
            world.events.all().into_iter().filter(|event| event["data"]["result"].is_null()).collect();
        let (_, connections) = world.api(Method::GET, "/v1/connections", None).await;
        for (place, text) in [
            ("a log line", logged),
            ("a metric", world.metrics().await),
            ("the list of dead letters", letters.to_string()),
            ("the list of jobs", jobs.to_string()),
            ("the list of connections", connections.to_string()),
            ("an event", json!(events).to_string()),
        ] {
            for secret in &secrets {
                if let Some(at) = text.find(secret.as_str()) {
                    let (from, to) = (at.saturating_sub(200), (at + secret.len() + 50).min(text.len()));
                    panic!("{place} holds {secret}: …{}…", &text[from..to]);
                }
            }
        }
        world.close().await;
    }
}

/// Jobs that end well, and in every way in which something could be blurted out.
async fn tell_everything(world: &World) {
    let draft = json!({
        "to": [{"email": RECIPIENT, "name": RECIPIENT}], "subject": BODY, "body": {"format": "markdown", "content": BODY},
        "attachments": [{"name": "a.txt", "content_type": "text/plain", "content_base64": FILE}],
    });
    let event = json!({
        "subject": BODY, "start": "2026-12-01T15:00:00", "end": "2026-12-01T15:30:00", "time_zone": "Europe/Zurich",
        "attendees": [{"email": RECIPIENT}], "location": BODY,
    });
    let row = |values: Value| json!({"table": "account", "id": m365_sim::dataverse::row_id(1, 1), "values": values});
    let run = async |id: &str, kind: &str, payload: Value, state: &str| {
        world.publish(&[world.envelope(&format!("mtg-secret-{id}"), kind, payload)]).await;
        world.until_state(&format!("mtg-secret-{id}"), state).await;
    };
    run("1", "email.draft", draft.clone(), "succeeded").await;
    run("2", "event.create", event, "succeeded").await;
    run("3", "crm.update", row(json!({"description": VALUE})), "succeeded").await;
    let mut send = draft.clone();
    send["confirmation"] = json!({"by": ADA, "at": "2026-01-15T09:30:00Z"});
    run("13", "email.send", send, "succeeded").await;
    // Refused by Microsoft, whose message repeats what was sent.
    let echo =
        json!({"error": {"code": "ErrorInvalidRecipients", "message": format!("{ECHO} {RECIPIENT} {BODY}")}});
    world.sim().inject(Fault::status(400, When::Before).body(echo).area(Area::Graph));
    run("4", "email.draft", draft.clone(), "dead").await;
    world.expect_dead("invalid_recipients");
    run("5", "crm.update", row(json!({"zz_no_such_column": VALUE})), "dead").await;
    world.expect_dead("unknown_column");
    // Garbage of which every part is content.
    for (id, path, value) in [
        ("6", "/to", json!(RECIPIENT)),
        ("7", "/to/0/email", json!(format!("{BODY} no address"))),
        ("8", "/attachments/0/content_base64", json!(format!("{FILE}!"))),
        ("9", "/body/format", json!(BODY)),
    ] {
        let mut spoilt = draft.clone();
        *spoilt.pointer_mut(path).expect("a place") = value;
        world.publish(&[world.envelope(&format!("mtg-secret-{id}"), "email.draft", spoilt)]).await;
    }
    world.publish_raw("email.draft", format!("{{\"body\": \"{BODY}").into_bytes()).await;
    world.publish_raw("no.kind", BODY.as_bytes().to_vec()).await;
    for code in [
        "invalid_payload",
        "invalid_address",
        "invalid_payload",
        "invalid_payload",
        "invalid_json",
        "unknown_kind",
    ] {
        world.expect_dead(code);
    }
    world.until("all are dead letters", || async { world.dead_letters().await.len() == 8 }).await;
    // A token that is refused, one that is challenged, a sign-in that is needed.
    world.sim().play("claims-challenge", ADA);
    run("10", "email.draft", draft.clone(), "succeeded").await;
    world.sim().inject(Fault::lost_after().area(Area::Graph).method("POST"));
    run("11", "email.draft", draft.clone(), "succeeded").await;
    let described = Planned {
        description: Some(format!("AADSTS50076 {ECHO}")),
        ..Planned::new(ADA, "interaction_required", 50_076)
    };
    world.sim().fail_token_requests(described.times(0));
    world.sim().play("claims-challenge", ADA);
    run("12", "email.draft", draft, "parked").await;
    world.sim().clear_planned_failures();
}

/// Every token and code that was ever handed out, and what proved who asked.
fn tokens(sim: &Sim) -> Vec<String> {
    let mut tokens = Vec::new();
    for call in sim.calls() {
        if let Ok(Value::Object(answer)) = serde_json::from_slice::<Value>(&call.answer) {
            let names = ["access_token", "refresh_token", "id_token"];
            tokens.extend(names.iter().filter_map(|name| Some(answer.get(*name)?.as_str()?.to_owned())));
        }
        tokens.extend(["code", "code_verifier"].iter().filter_map(|field| call.form(field)));
    }
    assert!(tokens.iter().all(|token| token.len() > 20 && token != CLIENT_ID));
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}
