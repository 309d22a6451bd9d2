//! Drafts, replies, sending, attachments, batches: what is refused and what is kept.

use super::*;

#[tokio::test]
async fn a_draft_has_every_documented_property_and_is_found_by_its_marker() {
    let running = running().await;
    let ada = Client::new(&running, ADA, OWN);
    let (status, made) = ada.post("/me/messages", &draft()).await;
    assert_eq!(status, 201, "{made}");
    for name in [
        "@odata.context",
        "@odata.etag",
        "id",
        "createdDateTime",
        "lastModifiedDateTime",
        "changeKey",
        "categories",
        "receivedDateTime",
        "sentDateTime",
        "hasAttachments",
        "internetMessageId",
        "subject",
        "bodyPreview",
        "importance",
        "parentFolderId",
        "conversationId",
        "conversationIndex",
        "isDeliveryReceiptRequested",
        "isReadReceiptRequested",
        "isRead",
        "isDraft",
        "webLink",
        "inferenceClassification",
        "body",
        "sender",
        "from",
        "toRecipients",
        "ccRecipients",
        "bccRecipients",
        "replyTo",
        "flag",
    ] {
        assert!(made.get(name).is_some(), "{name} is missing: {made}");
    }
    assert!(made.get("singleValueExtendedProperties").is_none(), "markers are shown only when expanded");
    assert_eq!(made["toRecipients"][0]["emailAddress"]["name"], "Bob Keller");
    assert!(made["body"]["content"].as_str().expect("html").starts_with("<html><head>"));
    let find = |name: &str, value: &str| {
        format!(
            "/me/messages?$filter=singleValueExtendedProperties/Any(ep: ep/id eq '{name}' and ep/value eq '{value}')&$select=id"
        )
    };
    assert_eq!(ada.get(&find(MARKER, "INTENT-1")).await.1["value"].as_array().map(Vec::len), Some(1));
    assert_eq!(ada.get(&find(&MARKER.replace("Intent", "intent"), "intent-1")).await.1["value"], json!([]));
    let path =
        format!("/me/messages/{}?$expand=singleValueExtendedProperties($filter=id eq '{MARKER}')", id(&made));
    assert_eq!(ada.get(&path).await.1["singleValueExtendedProperties"][0]["value"], "intent-1");
    assert_eq!(running.sim.graph().mailbox(ADA).drafts().len(), 1);
}

#[tokio::test]
async fn what_microsoft_refuses_is_refused() {
    let running = running().await;
    let ada = Client::new(&running, ADA, OWN);
    for (body, expected) in [
        (json!({"subjekt": "x"}), "RequestBodyRead"),
        (json!({"body": "text"}), "BadRequest"),
        (json!({"importance": "urgent"}), "RequestBodyRead"),
        (json!({"toRecipients": [{"address": "a@b.example"}]}), "RequestBodyRead"),
        (
            json!({"internetMessageHeaders": [{"name": "In-Reply-To", "value": "x"}]}),
            "InvalidInternetMessageHeader",
        ),
        (
            json!({"singleValueExtendedProperties": [{"id": "String Intent", "value": "x"}]}),
            "ErrorInvalidArgument",
        ),
    ] {
        let (status, answer) = ada.post("/me/messages", &body).await;
        assert_eq!((status, code(&answer)), (StatusCode::BAD_REQUEST, expected), "{body}");
    }
    let many: Vec<Value> =
        (0..501).map(|n| json!({"emailAddress": {"address": format!("p{n}@x.example")}})).collect();
    assert_eq!(ada.post("/me/messages", &json!({"toRecipients": many})).await.0, 400);
    let large = json!({"body": {"contentType": "text", "content": "x".repeat(4_200_000)}});
    assert_eq!(ada.post("/me/messages", &large).await.0, 413);
    let (_, made) = ada.post("/me/messages", &draft()).await;
    assert_eq!(code(&ada.get("/me/messages/nonsense").await.1), "ErrorInvalidIdMalformed");
    assert_eq!(
        code(&ada.get(&format!("/me/messages/{}", id(&made).to_lowercase())).await.1),
        "ErrorInvalidIdMalformed"
    );
    assert_eq!(code(&ada.get("/me/messages?$filter=isJunk eq true").await.1), "RequestBroker--ParseUri");
    assert_eq!(
        code(&ada.get("/me/messages?$filter=isRead eq true&$orderby=receivedDateTime").await.1),
        "InefficientFilter"
    );
    assert_eq!(
        ada.get(
            "/me/messages?$filter=receivedDateTime ge 1900-01-01 and isRead eq true&$orderby=receivedDateTime"
        )
        .await
        .0,
        200
    );
    assert_eq!(ada.get("/me/messages?$search=\"x\"&$filter=isRead eq true").await.0, 400);
    assert_eq!(ada.get("/me/messages?$top=1001").await.0, 400);
    assert_eq!(code(&ada.get("/me/mails").await.1), "BadRequest");
    assert!(running.sim.graph().mailbox(ADA).drafts().len() == 1, "nothing refused was kept");
}

#[tokio::test]
async fn a_reply_quotes_the_original_drops_the_marker_and_marks_the_original_read() {
    let running = running().await;
    let original = running.sim.deliver(
        ADA,
        NewMessage {
            reply_to: vec!["Desk <desk@customer.example>".into()],
            cc: vec!["carol@acme.example".into()],
            ..NewMessage::new("Nora <nora@customer.example>", "Pump", "<p>It stopped.</p>")
        },
    );
    let ada = Client::new(&running, ADA, OWN).immutable();
    let path = format!("/me/messages/{original}");
    assert_eq!(ada.get(&path).await.1["isRead"], false);
    let both = json!({"comment": "x", "message": {"body": {"contentType": "text", "content": "y"}}});
    assert_eq!(ada.post(&format!("{path}/createReply"), &both).await.0, 400);
    let given = json!({"message": {"singleValueExtendedProperties": [{"id": MARKER, "value": "r"}]}, "comment": "hello"});
    let (status, reply) = ada.post(&format!("{path}/createReply"), &given).await;
    assert_eq!(status, 201, "{reply}");
    assert_eq!(reply["subject"], "RE: Pump");
    assert_eq!(reply["toRecipients"][0]["emailAddress"]["address"], "desk@customer.example");
    let body = reply["body"]["content"].as_str().expect("html").to_owned();
    assert!(
        body.contains("It stopped.") && body.contains("divRplyFwdMsg") && !body.contains("hello"),
        "{body}"
    );
    assert_eq!(ada.get(&path).await.1["isRead"], true, "the side effect");
    let drafts = running.sim.graph().mailbox(ADA).drafts();
    assert_eq!(drafts[0]["singleValueExtendedProperties"], json!([]));
    let (_, all) = ada.bare(Method::POST, &format!("{path}/createReplyAll")).await;
    assert_eq!(all["ccRecipients"][0]["emailAddress"]["address"], "carol@acme.example");
    assert_eq!(all["conversationId"], reply["conversationId"]);
}

#[tokio::test]
async fn sending_moves_the_draft_changes_the_default_id_and_keeps_the_immutable_one() {
    let running = running().await;
    running.sim.graph().switches.send_delay_ms = 60_000;
    running.sim.clock().freeze(true);
    let ada = Client::new(&running, ADA, OWN);
    let fixed = Client::new(&running, ADA, OWN).immutable();
    let (_, made) = ada.post("/me/messages", &draft()).await;
    let (_, seen) = fixed.get(&format!("/me/messages/{}", id(&made))).await;
    let send = format!("/me/messages/{}/send", id(&made));
    // No length at all: 411.
    let host = running.base_url().replace("http://", "");
    let raw = raw(&host, &format!("POST /v1.0{send} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\r\n", ada.token)).await;
    assert!(raw.starts_with("HTTP/1.1 411"), "{raw}");
    assert_eq!(ada.bare(Method::POST, &send).await.0, 202);
    assert_eq!(
        fixed.get(&format!("/me/messages/{}", id(&seen))).await.1["isDraft"],
        true,
        "transport has not come yet"
    );
    running.sim.clock().advance(TimeDelta::seconds(61));
    assert_eq!(code(&ada.get(&format!("/me/messages/{}", id(&made))).await.1), "ErrorItemNotFound");
    assert_eq!(fixed.get(&format!("/me/messages/{}", id(&seen))).await.1["isDraft"], false);
    let mut graph = running.sim.graph();
    assert_eq!(graph.mailbox(ADA).drafts().len(), 0);
    assert_eq!(graph.mailbox(ADA).sent()[0]["singleValueExtendedProperties"][0]["value"], "intent-1");
    assert_eq!(graph.mailbox("bob@acme.example").inbox()[0]["subject"], "Hello");
    assert_eq!(graph.sent_mail().len(), 1);
}

async fn raw(host: &str, request: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(host).await.expect("connects");
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("reads");
    answer
}

#[tokio::test]
async fn another_mailbox_needs_scope_and_grant() {
    let running = running().await;
    let own = Client::new(&running, ADA, OWN);
    let shared = Client::new(&running, "svc-shared@acme.example", SHARED);
    let path = "/users/support@acme.example/mailFolders/inbox?$select=id";
    assert_eq!(code(&own.get(path).await.1), "ErrorAccessDenied", "Full Access without the scope");
    assert_eq!(shared.get(path).await.0, 200);
    assert_eq!(
        shared.get("/users/bob@acme.example/mailFolders/inbox").await.0,
        404,
        "the scope without a grant"
    );
    assert_eq!(shared.get("/users/support@acme.example").await.0, 403, "reading the person is another right");
    // Full Access without Send As.
    let ada = Client::new(&running, ADA, SHARED);
    let (_, made) = ada.post("/users/support@acme.example/messages", &draft()).await;
    let (status, refused) =
        ada.bare(Method::POST, &format!("/users/support@acme.example/messages/{}/send", id(&made))).await;
    assert_eq!((status, code(&refused)), (StatusCode::FORBIDDEN, "ErrorSendAsDenied"));
    assert_eq!(
        shared
            .bare(Method::POST, &format!("/users/support@acme.example/messages/{}/send", id(&made)))
            .await
            .0,
        202
    );
    assert_eq!(running.sim.graph().mailbox("support@acme.example").sent().len(), 1);
    let item = json!({"AttachmentItem": {"attachmentType": "file", "name": "big", "size": 4_000_000}});
    let (_, made) = shared.post("/users/support@acme.example/messages", &draft()).await;
    let session =
        format!("/users/support@acme.example/messages/{}/attachments/createUploadSession", id(&made));
    assert_eq!(shared.post(&session, &item).await.0, 403);
}

#[tokio::test]
async fn sensitive_properties_of_a_sent_message_are_closed() {
    let running = running().await;
    let key = running.sim.deliver(ADA, NewMessage::new("x@y.example", "s", "b"));
    let ada = Client::new(&running, ADA, OWN);
    let path = format!("/me/messages/{key}");
    assert_eq!(code(&ada.patch(&path, &json!({"subject": "new"})).await.1), "ErrorAccessDenied");
    assert_eq!(ada.patch(&path, &json!({"isRead": true, "categories": ["a"]})).await.0, 200);
    let stale =
        ada.request(Method::PATCH, &path).header("if-match", "W/\"old\"").json(&json!({"isRead": false}));
    assert_eq!(Client::finish(stale).await.0, 412);
}

#[tokio::test]
async fn a_large_attachment_goes_through_a_session_in_order_and_without_a_token() {
    let running = running().await;
    let ada = Client::new(&running, ADA, OWN);
    let (_, made) = ada.post("/me/messages", &draft()).await;
    let path = format!("/me/messages/{}/attachments", id(&made));
    let (status, small) = ada.post(&path, &json!({"@odata.type": "#microsoft.graph.fileAttachment", "name": "smile", "contentBytes": "R0lGODdhEAYEAA7"})).await;
    assert_eq!(status, 201, "the sample of the page: {small}");
    assert_eq!(
        ada.post(&path, &json!({"name": "x", "contentBytes": "aGk="})).await.0,
        400,
        "the type must be named"
    );
    let size = 3_500_000_usize;
    let item = json!({"AttachmentItem": {"attachmentType": "file", "name": "big.bin", "size": size}});
    let (status, session) = ada.post(&format!("{path}/createUploadSession"), &item).await;
    assert_eq!(status, 201, "{session}");
    let url = session["uploadUrl"].as_str().expect("a url");
    let put = |from: usize, to: usize| {
        ada.http
            .put(url)
            .header("content-type", "application/octet-stream")
            .header("content-range", format!("bytes {from}-{}/{size}", to - 1))
            .body(vec![7_u8; to - from])
    };
    assert_eq!(put(0, 2_000_000).bearer_auth(&ada.token).send().await.expect("answer").status(), 401);
    assert_eq!(put(2_000_000, size).send().await.expect("answer").status(), 416);
    let first = put(0, 2_000_000).send().await.expect("answer");
    assert_eq!(first.status(), 200);
    assert_eq!(first.json::<Value>().await.expect("json")["nextExpectedRanges"][0], "2000000-");
    let last = put(2_000_000, size).send().await.expect("answer");
    assert_eq!(last.status(), 201);
    assert!(last.headers()["location"].to_str().expect("text").contains("Attachments('"));
    let (_, list) = ada.get(&format!("{path}?$select=id,name,size")).await;
    assert_eq!(list["value"][1]["size"], size);
    assert!(list["value"][1].get("contentBytes").is_none());
}

#[tokio::test]
async fn a_batch_answers_each_part_and_fails_the_children_of_a_failure() {
    let running = running().await;
    let ada = Client::new(&running, ADA, OWN);
    let headers = json!({"Content-Type": "application/json"});
    let batch = json!({"requests": [
        {"id": "1", "method": "POST", "url": "/me/messages", "headers": headers, "body": draft()},
        {"id": "2", "method": "GET", "url": "/me/messages/nonsense", "dependsOn": ["1"]},
        {"id": "3", "method": "GET", "url": "/me/mailFolders/inbox", "dependsOn": ["2"]},
    ]});
    let (status, answer) = ada.post("/$batch", &batch).await;
    assert_eq!(status, 200, "{answer}");
    let of = |id: &str| {
        answer["responses"]
            .as_array()
            .expect("a list")
            .iter()
            .find(|one| one["id"] == id)
            .cloned()
            .expect("there")
    };
    assert_eq!(
        (of("1")["status"].clone(), of("2")["status"].clone(), of("3")["status"].clone()),
        (json!(201), json!(400), json!(424))
    );
    assert_eq!(of("1")["body"]["subject"], "Hello");
    let twins = json!({"requests": [{"id": "a", "method": "GET", "url": "/me"}, {"id": "A", "method": "GET", "url": "/me"}]});
    assert_eq!(ada.post("/$batch", &twins).await.0, 400);
    let many: Vec<Value> =
        (0..21).map(|n| json!({"id": n.to_string(), "method": "GET", "url": "/me"})).collect();
    assert_eq!(ada.post("/$batch", &json!({"requests": many})).await.0, 400);
}

#[tokio::test]
async fn a_batch_without_an_order_takes_all_four_slots_of_a_mailbox() {
    let running = running().await;
    let held = m365_sim::Fault::hold(m365_sim::fault::When::Before).path("/v1.0/me/mailFolders/inbox");
    let held = running.sim.inject(held);
    let ada = Client::new(&running, ADA, OWN);
    let batch = |chained: bool| {
        let requests: Vec<Value> = (0..4)
            .map(|n| {
                let mut one = json!({"id": n.to_string(), "method": "GET", "url": "/me/messages?$top=1"});
                if chained && n > 0 {
                    one["dependsOn"] = json!([(n - 1).to_string()]);
                }
                one
            })
            .collect();
        json!({"requests": requests})
    };
    let slow = ada.get("/me/mailFolders/inbox");
    let meanwhile = async {
        running.sim.until(|sim| sim.holds(held)).await;
        let answers = (ada.post("/$batch", &batch(false)).await, ada.post("/$batch", &batch(true)).await);
        running.sim.release(held);
        answers
    };
    let ((status, _), ((outer, parallel), (_, serial))) = tokio::join!(slow, meanwhile);
    assert_eq!((status.as_u16(), outer.as_u16()), (200, 200));
    for one in parallel["responses"].as_array().expect("a list") {
        assert_eq!(
            (one["status"].as_u64(), code(&one["body"])),
            (Some(429), "ApplicationThrottled"),
            "{one}"
        );
    }
    assert!(
        serial["responses"].as_array().expect("a list").iter().all(|one| one["status"] == 200),
        "{serial}"
    );
}

#[tokio::test]
async fn two_runs_that_end_alike_have_the_same_world() {
    let mut worlds = Vec::new();
    for detour in [false, true] {
        let running = running().await;
        let ada = Client::new(&running, ADA, OWN);
        if detour {
            let (_, extra) = ada.post("/me/messages", &draft()).await;
            let path = format!("/me/messages/{}", id(&extra));
            assert_eq!(ada.bare(Method::POST, &format!("{path}/permanentDelete")).await.0, 204);
        }
        ada.post("/me/messages", &draft()).await;
        let event = json!({"subject": "s", "isOnlineMeeting": true, "start": {"dateTime": "2026-04-15T12:00:00", "timeZone": "UTC"},
            "end": {"dateTime": "2026-04-15T13:00:00", "timeZone": "UTC"}});
        assert_eq!(ada.post("/me/events", &event).await.0, 201);
        worlds.push(running.sim.graph().world());
    }
    assert_eq!(worlds[0], worlds[1]);
    assert_eq!(worlds[0]["mailboxes"][ADA]["Drafts"][0]["marks"][0][1], "intent-1");
}

#[tokio::test]
async fn the_raw_content_of_an_attachment_is_a_files_bytes_or_an_items_mime_and_a_reference_has_none() {
    let running = running().await;
    let (file, event, mail, link) = {
        let mut graph = running.sim.graph();
        let mut mailbox = graph.mailbox("support@acme.example");
        let message =
            mailbox.deliver(NewMessage::new("Nora <nora@customer.example>", "Files", "<p>Here</p>"));
        let mut attach = |kind: &str, name: &str, rest: Value| {
            let mut all = json!({"@odata.type": format!("#microsoft.graph.{kind}"), "name": name});
            all.as_object_mut().expect("a map").extend(rest.as_object().expect("a map").clone());
            let attachment = mailbox.attach(&message, &all);
            format!("/users/support@acme.example/messages/{message}/attachments/{attachment}/$value")
        };
        (
            attach("fileAttachment", "a.bin", json!({"contentBytes": "AP/+", "contentType": "image/png"})),
            attach(
                "itemAttachment",
                "Lunch",
                json!({"item": {"@odata.type": "microsoft.graph.event", "subject": "Lunch"}}),
            ),
            attach(
                "itemAttachment",
                "FW",
                json!({"item": {"@odata.type": "microsoft.graph.message", "subject": "FW"}}),
            ),
            attach("referenceAttachment", "Plan.docx", json!({})),
        )
    };
    let ada = Client::new(&running, ADA, SHARED).immutable();
    let raw = ada.request(Method::GET, &file).send().await.expect("an answer");
    assert_eq!(
        (raw.status(), raw.headers()["content-type"].to_str().ok()),
        (StatusCode::OK, Some("image/png"))
    );
    assert_eq!(raw.bytes().await.expect("a body").as_ref(), [0, 255, 254]);
    for (path, begins) in [(&event, "BEGIN:VCALENDAR\r\n"), (&mail, "Subject: ")] {
        let (status, text) = ada.get(path).await;
        assert!(status == 200 && text.as_str().is_some_and(|text| text.starts_with(begins)), "{text}");
    }
    assert_eq!(ada.get(&link).await.0, 405);
    assert_eq!(ada.bare(Method::POST, &file).await.0, 405);
    let lower = Client::new(&running, ADA, &["User.Read", "Mail.Read"]);
    assert_eq!(lower.get(&file).await.0, 403, "another's mailbox needs a scope of its own");
    let message = file.split('/').nth(4).expect("its id").to_owned();
    assert!(running.sim.graph().mailbox("support@acme.example").remove_message(&message));
    assert_eq!(ada.get(&file).await.0, 404);
}

#[tokio::test]
async fn a_basic_token_reads_mail_and_events_without_their_bodies() {
    let running = running().await;
    running.sim.deliver(ADA, NewMessage::new("x@y.example", "one", "secret"));
    let ada = Client::new(&running, ADA, OWN);
    let event = json!({"subject": "Lunch", "body": {"contentType": "text", "content": "secret"},
        "start": {"dateTime": "2026-04-15T12:00:00", "timeZone": "UTC"}, "end": {"dateTime": "2026-04-15T13:00:00", "timeZone": "UTC"}});
    assert_eq!(ada.post("/me/events", &event).await.0, 201);
    let basic = Client::new(&running, ADA, &["Mail.ReadBasic", "Calendars.ReadBasic"]);
    let (_, listed) = basic.get("/me/messages").await;
    let message = listed["value"][0].clone();
    let path = format!("/me/messages/{}", id(&message));
    for shown in [
        message,
        basic.get(&path).await.1,
        basic.get(&format!("{path}?$select=subject,body,uniqueBody")).await.1,
        basic.get("/me/mailFolders/inbox/messages/delta").await.1["value"][0].clone(),
        basic.get("/me/events").await.1["value"][0].clone(),
    ] {
        assert!(shown["subject"].is_string(), "{shown}");
        for hidden in ["body", "bodyPreview", "uniqueBody"] {
            assert!(shown.get(hidden).is_none(), "{hidden} in {shown}");
        }
    }
    assert_eq!(basic.get("/me/mailFolders/inbox").await.0, 200);
    assert_eq!(basic.get("/me/messages?$filter=hasAttachments eq false").await.0, 200);
    for denied in [
        format!("{path}/attachments"),
        format!("{path}/$value"),
        format!("{path}?$expand=attachments"),
        "/me/messages?$search=\"secret\"".into(),
        "/me/messages?$filter=contains(bodyPreview,'secret')".into(),
    ] {
        assert_eq!(basic.get(&denied).await.0, 403, "{denied}");
    }
    assert_eq!(basic.patch(&path, &json!({"isRead": true})).await.0, 403);
    assert!(ada.get(&path).await.1["body"]["content"].is_string(), "a whole token sees it");
}

#[tokio::test]
async fn ids_are_translated_for_anyone_who_signed_in() {
    let running = running().await;
    running.sim.deliver(ADA, NewMessage::new("x@y.example", "one", "b"));
    let (_, listed) = Client::new(&running, ADA, OWN).get("/me/messages").await;
    let ada = Client::new(&running, ADA, &["User.Read"]);
    let wanted = json!({"inputIds": [id(&listed["value"][0])], "targetIdType": "restImmutableEntryId", "sourceIdType": "restId"});
    assert_eq!(ada.post("/me/translateExchangeIds", &wanted).await.0, 200);
    assert_eq!(ada.get("/me/messages").await.0, 403);
}

#[tokio::test]
async fn an_attached_item_is_shown_when_asked_for_and_attachments_are_paged() {
    let running = running().await;
    let ada = Client::new(&running, ADA, OWN);
    let (_, made) = ada.post("/me/messages", &draft()).await;
    let path = format!("/me/messages/{}/attachments", id(&made));
    let file =
        json!({"@odata.type": "#microsoft.graph.fileAttachment", "name": "a.txt", "contentBytes": "YQ=="});
    assert_eq!(ada.post(&path, &file).await.0, 201);
    let item = json!({"@odata.type": "#microsoft.graph.itemAttachment", "name": "Mail",
        "item": {"@odata.type": "microsoft.graph.message", "subject": "Inside"}});
    let (_, item) = ada.post(&path, &item).await;
    let one = format!("{path}/{}", id(&item));
    let (status, expanded) = ada.get(&format!("{one}?$expand=microsoft.graph.itemattachment/item")).await;
    assert_eq!((status.as_u16(), expanded["item"]["subject"].as_str()), (200, Some("Inside")), "{expanded}");
    assert_eq!(expanded["item"]["@odata.type"], "#microsoft.graph.message");
    assert!(ada.get(&one).await.1.get("item").is_none());
    let (_, chosen) = ada.get(&format!("{one}?$select=name")).await;
    assert!(chosen["name"] == "Mail" && chosen.get("size").is_none(), "{chosen}");
    assert_eq!(ada.get(&format!("{one}?$select=colour")).await.0, 400);
    assert_eq!(ada.get(&format!("{one}?$expand=microsoft.graph.event/calendar")).await.0, 400);
    let (_, first) = ada.get(&format!("{path}?$top=1&$count=true")).await;
    assert_eq!(
        (first["value"][0]["name"].as_str(), first["@odata.count"].as_u64()),
        (Some("a.txt"), Some(2))
    );
    let (_, second) = ada.get(first["@odata.nextLink"].as_str().expect("a second page")).await;
    assert!(second["value"][0]["name"] == "Mail" && second.get("@odata.nextLink").is_none(), "{second}");
}

#[tokio::test]
async fn a_search_folder_searches_what_it_was_last_told_to() {
    let running = running().await;
    running.sim.deliver(ADA, NewMessage::new("x@y.example", "one", "b"));
    running.sim.deliver(ADA, NewMessage::new("x@y.example", "two", "b"));
    let ada = Client::new(&running, ADA, OWN);
    let search = json!({"@odata.type": "microsoft.graph.mailSearchFolder", "displayName": "Weekly", "includeNestedFolders": true,
        "sourceFolderIds": ["inbox"], "filterQuery": "subject eq 'one'"});
    let (status, made) = ada.post("/me/mailFolders/searchfolders/childFolders", &search).await;
    assert_eq!(status, 201, "{made}");
    let path = format!("/me/mailFolders/{}", id(&made));
    let change = json!({"@odata.type": "microsoft.graph.mailSearchFolder", "filterQuery": "startswith(subject, 't')", "includeNestedFolders": false});
    let (status, changed) = ada.patch(&path, &change).await;
    assert_eq!(
        (status.as_u16(), changed["filterQuery"].as_str(), changed["includeNestedFolders"].as_bool()),
        (200, Some("startswith(subject, 't')"), Some(false))
    );
    assert_eq!(ada.get(&format!("{path}/messages")).await.1["value"][0]["subject"], "two");
    assert_eq!(ada.patch(&path, &json!({"sourceFolderIds": ["drafts"]})).await.0, 200);
    assert_eq!(ada.get(&format!("{path}/messages")).await.1["value"], json!([]));
    assert_eq!(ada.patch(&path, &json!({"filterQuery": "subject eq 5"})).await.0, 400);
}
