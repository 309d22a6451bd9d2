//! Subscriptions and what they are told.

use super::*;

type Seen = std::sync::Arc<tokio::sync::watch::Sender<Vec<Value>>>;

/// How many items of a kind have been told, once there are so many or nothing comes for long.
async fn told_of(seen: &Seen, kind: impl Fn(&Value) -> bool, wanted: usize) -> usize {
    let count = |posts: &Vec<Value>| {
        let items = posts.iter().flat_map(|post| post["value"].as_array().into_iter().flatten());
        items.filter(|one| kind(one)).count()
    };
    let mut news = seen.subscribe();
    let enough = news.wait_for(|posts| count(posts) >= wanted);
    let _ = tokio::time::timeout(std::time::Duration::from_secs(20), enough).await;
    count(&seen.borrow())
}

/// What happened before is told of by now, or is withheld: a live subscription has told twice of what came later.
async fn all_is_told(sim: &m365_sim::Sim, seen: &Seen, live: &str) {
    let of_live = |one: &Value| one["subscriptionId"] == live && one["changeType"] == "created";
    let before = told_of(seen, of_live, 0).await;
    for more in 1..=2 {
        let mail = NewMessage::new("x@y.example", "later", "b");
        sim.deliver(ADA, NewMessage { folder: Some("Drafts".to_owned()), ..mail });
        assert_eq!(told_of(seen, of_live, before + more).await, before + more);
    }
}

/// Receives notifications at `/notify`; `/wrong` fails the handshake.
async fn receiver() -> (String, Seen) {
    use axum::extract::{Query, State};
    let seen = Seen::new(tokio::sync::watch::Sender::default());
    let hook = axum::Router::new()
        .route(
            "/notify",
            axum::routing::post(
                |State(seen): State<Seen>,
                 Query(query): Query<std::collections::HashMap<String, String>>,
                 body: String| async move {
                    if let Some(token) = query.get("validationToken") {
                        return (axum::http::StatusCode::OK, token.clone());
                    }
                    let post = serde_json::from_str(&body).expect("json");
                    seen.send_modify(|posts| posts.push(post));
                    (axum::http::StatusCode::ACCEPTED, String::new())
                },
            ),
        )
        .route("/wrong", axum::routing::post(|| async { "\"token\"" }))
        .with_state(seen.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let hooks = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move { axum::serve(listener, hook).await });
    (hooks, seen)
}

#[tokio::test]
async fn a_subscription_shakes_hands_tells_of_changes_and_is_refused_or_mute_for_shared_mailboxes() {
    let (hooks, seen) = receiver().await;
    let running = running().await;
    let ada = Client::new(&running, ADA, OWN);
    let until = (running.sim.now() + TimeDelta::minutes(600)).to_rfc3339();
    let wanted = |path: &str, resource: &str| {
        json!({"changeType": "created,updated", "notificationUrl": format!("{hooks}{path}"),
        "resource": resource, "expirationDateTime": until, "clientState": "secret",
        "lifecycleNotificationUrl": format!("{hooks}/notify")})
    };
    assert_eq!(ada.post("/subscriptions", &wanted("/wrong", "me/messages")).await.0, 400);
    let far = json!({"changeType": "created", "notificationUrl": format!("{hooks}/notify"), "resource": "me/messages",
        "expirationDateTime": (running.sim.now() + TimeDelta::days(30)).to_rfc3339()});
    assert_eq!(code(&ada.post("/subscriptions", &far).await.1), "ExtensionError");
    let (status, made) =
        ada.post("/subscriptions", &wanted("/notify", "me/mailFolders('inbox')/messages")).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(
        ada.post("/subscriptions", &wanted("/notify", "me/mailFolders('inbox')/messages")).await.0,
        409
    );
    let message = running.sim.deliver(ADA, NewMessage::new("x@y.example", "news", "b"));
    let made_id = id(&made);
    let created = |one: &Value| one["subscriptionId"] == made_id.as_str() && one["changeType"] == "created";
    assert_eq!(told_of(&seen, created, 1).await, 1);
    let told = seen.borrow()[0]["value"][0].clone();
    assert_eq!(
        (told["changeType"].as_str(), told["clientState"].as_str()),
        (Some("created"), Some("secret"))
    );
    let (_, read) =
        ada.get(&format!("/me/messages/{}", told["resourceData"]["id"].as_str().expect("an id"))).await;
    assert_eq!(read["subject"], "news", "{message}");
    // The token lapses: what happens is withheld, a fresh one is asked for, and then it is told.
    running.sim.clock().advance(TimeDelta::minutes(59));
    assert_eq!(told_of(&seen, |one| one["lifecycleEvent"] == "reauthorizationRequired", 1).await, 1);
    running.sim.clock().advance(TimeDelta::minutes(2));
    let ada = Client::new(&running, ADA, OWN);
    let live = wanted("/notify", "me/mailFolders('drafts')/messages");
    let live = id(&ada.post("/subscriptions", &live).await.1);
    let _held = running.sim.deliver(ADA, NewMessage::new("x@y.example", "held", "b"));
    all_is_told(&running.sim, &seen, &live).await;
    assert_eq!(told_of(&seen, created, 1).await, 1, "withheld");
    assert_eq!(ada.get("/subscriptions").await.1["value"][0]["clientState"], Value::Null);
    let path = format!("/subscriptions/{}", id(&made));
    assert_eq!(ada.bare(Method::POST, &format!("{path}/reauthorize")).await.0, 204);
    assert_eq!(told_of(&seen, created, 2).await, 2, "released");
    assert_eq!(
        ada.patch(
            &path,
            &json!({"expirationDateTime": (running.sim.now() + TimeDelta::minutes(10)).to_rfc3339()})
        )
        .await
        .0,
        200
    );
    assert_eq!(ada.bare(Method::DELETE, &path).await.0, 204);
    assert_eq!(ada.get(&path).await.0, 404);

    let service = Client::new(&running, "svc-shared@acme.example", SHARED);
    let shared = wanted("/notify", "users/support@acme.example/mailFolders('inbox')/messages");
    assert_eq!(service.post("/subscriptions", &shared).await.0, 403);
    running.sim.graph().switches.shared_subscribe = SharedSubscribe::AcceptButSilent;
    assert_eq!(service.post("/subscriptions", &shared).await.0, 201);
    let before = told_of(&seen, |one| one["subscriptionId"] != live.as_str(), 0).await;
    running.sim.deliver("support@acme.example", NewMessage::new("x@y.example", "unheard", "b"));
    all_is_told(&running.sim, &seen, &live).await;
    let told = told_of(&seen, |one| one["subscriptionId"] != live.as_str(), 0).await;
    assert_eq!(told, before, "accepted, and mute");
}

#[tokio::test]
async fn a_subscription_shows_what_was_sent_and_refuses_what_makes_no_sense() {
    let (hooks, seen) = receiver().await;
    let running = running().await;
    let ada = Client::new(&running, ADA, OWN);
    let wanted = |resource: &str| {
        json!({"changeType": "created,deleted", "notificationUrl": format!("{hooks}/notify"), "resource": resource,
            "expirationDateTime": (running.sim.now() + TimeDelta::minutes(600)).to_rfc3339()})
    };
    let with = |name: &str, value: Value| {
        let mut body = wanted("me/contacts");
        body[name] = value;
        body
    };
    assert_eq!(ada.post("/subscriptions", &with("latestSupportedTlsVersion", "v2_0".into())).await.0, 400);
    assert_eq!(ada.post("/subscriptions", &with("includeResourceData", true.into())).await.0, 400);
    let (status, made) = ada.post("/subscriptions", &with("latestSupportedTlsVersion", "v1_3".into())).await;
    assert_eq!(
        (
            status.as_u16(),
            made["latestSupportedTlsVersion"].as_str(),
            made["notificationContentType"].as_str()
        ),
        (201, Some("v1_3"), Some("application/json")),
        "{made}"
    );
    let (_, chosen) = ada.get(&format!("/subscriptions/{}?$select=resource", id(&made))).await;
    assert!(chosen["resource"] == "me/contacts" && chosen.get("changeType").is_none(), "{chosen}");
    let writer = Client::new(&running, ADA, &["Contacts.ReadWrite"]);
    assert_eq!(writer.post("/me/contacts", &json!({"givenName": "Pavel"})).await.0, 201);
    let contact = |one: &Value| one["resourceData"]["@odata.type"] == "#Microsoft.Graph.Contact";
    assert_eq!(told_of(&seen, contact, 1).await, 1, "a contact is told of");
    for wrong in ["me/messages?$filter=isJunk eq true", "me/events?$filter=isRead eq true"] {
        assert_eq!(ada.post("/subscriptions", &wanted(wrong)).await.0, 400, "{wrong}");
    }
}
