//! Lists, folders and delta.

use super::*;

async fn drain(ada: &Client, first: &str) -> (Vec<Value>, String) {
    let (mut items, mut link) = (Vec::new(), first.to_owned());
    for _ in 0..10_000 {
        let (status, page) = ada.get(&link).await;
        assert_eq!(status, 200, "{page}");
        items.extend(page["value"].as_array().expect("a list").iter().cloned());
        if let Some(delta) = page["@odata.deltaLink"].as_str() {
            return (items, delta.to_owned());
        }
        page["@odata.nextLink"].as_str().expect("one of both").clone_into(&mut link);
    }
    panic!("no end");
}

#[tokio::test]
async fn delta_tells_everything_once_more_than_once_or_as_removed_but_never_not() {
    let running = running().await;
    let sim = &running.sim;
    sim.graph().fill(ADA, &Fill { messages: 300, heavy_percent: 100, ..Fill::default() });
    sim.graph().switches.delta_empty_every = 3;
    sim.graph().switches.delta_repeat_every = 4;
    let ada = Client::new(&running, ADA, OWN).immutable();
    for spelling in ["delta", "delta()", "microsoft.graph.delta()"] {
        let (items, _) =
            drain(&ada, &format!("/me/mailFolders('inbox')/messages/{spelling}?$select=subject&$top=50"))
                .await;
        let ids: std::collections::BTreeSet<String> = items.iter().map(id).collect();
        assert_eq!(ids.len(), 300, "{spelling}");
        assert!(items.len() > 300, "some are repeated");
    }
    let (items, link) = drain(&ada, "/me/mailFolders/inbox/messages/delta?$select=subject&$top=200").await;
    let gone = id(&items[7]);
    let fresh = sim.deliver(ADA, NewMessage::new("x@y.example", "fresh", "b"));
    sim.graph().mailbox(ADA).move_message(&gone, "archive");
    let (changes, link) = drain(&ada, &link).await;
    assert!(changes.iter().any(|one| id(one) == fresh && one["subject"] == "fresh"));
    assert!(changes.iter().any(|one| id(one) == gone && one["@removed"]["reason"] == "deleted"));
    sim.graph().switches.delta_cap = 100;
    sim.graph().switches.delta_repeat_every = 0;
    let (capped, _) = drain(
        &ada,
        "/me/mailFolders/inbox/messages/delta?$filter=receivedDateTime ge 2020-01-01T00:00:00Z&$top=30",
    )
    .await;
    assert_eq!(capped.len(), 100, "cut without a word");
    let bad = ada
        .get("/me/mailFolders/inbox/messages/delta?$filter=receivedDateTime le 2020-01-01T00:00:00Z")
        .await;
    assert_eq!(code(&bad.1), "ErrorInvalidUrlQuery");
    sim.graph().expire_delta(ADA);
    let (status, lost) = ada.get(&link).await;
    assert_eq!((status, code(&lost)), (StatusCode::GONE, "SyncStateNotFound"));
}

#[tokio::test]
async fn an_old_next_link_dies_when_its_generation_is_gone() {
    let running = running().await;
    running.sim.graph().fill(ADA, &Fill { messages: 200, heavy_percent: 100, ..Fill::default() });
    let ada = Client::new(&running, ADA, OWN);
    let (_, page) = ada.get("/me/mailFolders/inbox/messages/delta?$top=5").await;
    let first = page["@odata.nextLink"].as_str().expect("more").to_owned();
    let mut link = first.clone();
    for _ in 0..12 {
        let (_, page) = ada.get(&link).await;
        page["@odata.nextLink"].as_str().expect("more").clone_into(&mut link);
    }
    assert_eq!(ada.get(&first).await.0, StatusCode::GONE);
    assert_eq!(ada.get(&link).await.0, 200);
}

#[tokio::test]
async fn lists_page_to_the_end_and_folders_hide_what_is_hidden() {
    let running = running().await;
    running.sim.graph().fill(ADA, &Fill { messages: 120, folders: 12, ..Fill::default() });
    running.sim.graph().switches.short_page_every = 3;
    let ada = Client::new(&running, ADA, OWN);
    let (mut link, mut seen, mut total) = (
        Some("/me/messages?$top=25&$select=id&$count=true&$orderby=receivedDateTime".to_owned()),
        0,
        Value::Null,
    );
    while let Some(at) = link {
        let (_, page) = ada.get(&at).await;
        seen += page["value"].as_array().map_or(0, Vec::len);
        total = page["@odata.count"].clone();
        link = page["@odata.nextLink"].as_str().map(str::to_owned);
    }
    assert_eq!((seen, total), (120, json!(120)));
    let (_, folders) = ada.get("/me/mailFolders").await;
    assert_eq!(folders["value"].as_array().map(Vec::len), Some(10), "the default page");
    assert!(folders["@odata.nextLink"].is_string());
    let (_, all) = ada.get("/me/mailFolders?includeHiddenFolders=true&$top=100").await;
    assert!(
        all["value"]
            .as_array()
            .expect("a list")
            .iter()
            .any(|one| one["displayName"] == "Clutter" && one["isHidden"] == true)
    );
    let search = json!({"@odata.type": "microsoft.graph.mailSearchFolder", "displayName": "Weekly digests", "includeNestedFolders": true,
        "sourceFolderIds": ["inbox"], "filterQuery": "contains(subject, 'weekly digest')"});
    let (status, made) = ada.post("/me/mailFolders/searchfolders/childFolders", &search).await;
    assert_eq!(
        (status.as_u16(), made["@odata.type"].as_str()),
        (201, Some("#microsoft.graph.mailSearchFolder")),
        "{made}"
    );
}

#[tokio::test]
async fn names_and_words_of_a_query_are_read_without_case_and_literals_have_a_type() {
    let running = running().await;
    running.sim.deliver(ADA, NewMessage::new("x@y.example", "one", "b"));
    running.sim.deliver(ADA, NewMessage::new("z@y.example", "two", "b"));
    let ada = Client::new(&running, ADA, OWN);
    let count = async |filter: &str| {
        let (status, found) = ada.get(&format!("/me/mailFolders/inbox/messages?$filter={filter}")).await;
        assert_eq!(status, 200, "{filter}: {found}");
        found["value"].as_array().map(Vec::len)
    };
    for (filter, expected) in [
        ("ReceivedDateTime GE 2017-04-01 AND Subject Eq 'one'", 1),
        ("NOT(subject eq 'one')", 1),
        ("subject in ('one','two','three')", 2),
        ("(from/emailAddress/address) eq 'x@y.example'", 1),
        ("From/EmailAddress/Address eq 'x@y.example' OR Importance eq 'high'", 1),
    ] {
        assert_eq!(count(filter).await, Some(expected), "{filter}");
    }
    let (_, chosen) = ada.get("/me/messages?$select=Subject&$orderby=ReceivedDateTime DESC").await;
    assert!(chosen["value"][0]["subject"].is_string() && chosen["value"][0].get("Subject").is_none());
    for wrong in [
        "isRead eq 'abc'",
        "receivedDateTime ge 'x'",
        "receivedDateTime ge '2017-04-01T00:00:00Z'",
        "hasAttachments eq 5",
        "subject eq true",
        "contains(isRead,'x')",
        "subject",
    ] {
        let (status, answer) = ada.get(&format!("/me/messages?$filter={wrong}")).await;
        assert_eq!((status.as_u16(), code(&answer)), (400, "BadRequest"), "{wrong}");
    }
    let quoted =
        "/me/events?$filter=Start/DateTime ge '2018-05-20' and end/dateTime lt '2018-05-24T00:00:00'";
    assert_eq!(ada.get(quoted).await.0, 200);
    assert_eq!(ada.get("/me/events?$filter=start/dateTime ge 2018-05-19T21:00:00Z").await.0, 400);
}

#[tokio::test]
async fn an_answer_says_what_it_is_in_the_form_of_the_documentation() {
    let running = running().await;
    running.sim.deliver(ADA, NewMessage::new("x@y.example", "one", "b"));
    let ada = Client::new(&running, ADA, OWN);
    let (_, delta) = ada.get("/me/mailFolders/inbox/messages/delta").await;
    assert!(delta["@odata.context"].as_str().is_some_and(|at| at.ends_with("$metadata#Collection(message)")));
    let (_, all) = ada.get(&format!("/me/messages/{}/attachments", id(&delta["value"][0]))).await;
    let context = all["@odata.context"].as_str().expect("a context");
    assert!(context.ends_with("%3D')/attachments"), "{context}");
}
