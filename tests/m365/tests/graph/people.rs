//! The directory and personal contacts.

use super::*;

fn names(body: &Value) -> Vec<&str> {
    body["value"].as_array().into_iter().flatten().filter_map(|one| one["displayName"].as_str()).collect()
}

#[tokio::test]
async fn users_are_paged_by_a_token_that_says_nothing() {
    let running = running().await;
    let ada = Client::new(&running, ADA, OWN);
    let (_, all) = ada.get("/users").await;
    let (_, first) = ada.get("/users?$top=4").await;
    let link = first["@odata.nextLink"].as_str().expect("a second page");
    assert!(link.contains("$skiptoken=") && !link.contains("$skip="), "{link}");
    let (_, second) = ada.get(link).await;
    assert_eq!([names(&first), names(&second)].concat(), names(&all)[..8]);
    for wrong in ["$top=0", "$top=1000", "$skip=1", "$skiptoken=4"] {
        assert_eq!(ada.get(&format!("/users?{wrong}")).await.0, 400, "{wrong}");
    }
    assert_eq!(ada.get("/users?$top=999").await.0, 200);
}

#[tokio::test]
async fn every_declared_property_of_a_user_can_be_selected_and_no_other() {
    let running = running().await;
    let ada = Client::new(&running, ADA, OWN);
    let select = "$select=displayName,givenName,postalCode,identities,department,companyName,city";
    for path in ["/me", "/users/bob@acme.example"] {
        let (status, shown) = ada.get(&format!("{path}?{select}")).await;
        assert_eq!(status, 200, "{shown}");
        assert_eq!((&shown["postalCode"], &shown["identities"]), (&Value::Null, &json!([])));
        assert!(shown.get("city").is_some() && shown.get("id").is_none(), "{shown}");
        assert_eq!(ada.get(&format!("{path}?$select=shoeSize")).await.0, 400);
    }
}

#[tokio::test]
async fn users_are_counted_and_ordered_and_asked_only_for_what_they_have() {
    let running = running().await;
    let ada = Client::new(&running, ADA, OWN);
    let eventual =
        |path: &str| Client::finish(ada.request(Method::GET, path).header("consistencylevel", "eventual"));
    assert_eq!(eventual("/users/$count").await, (StatusCode::OK, json!(9)));
    assert_eq!(eventual("/users/$count?$filter=startswith(displayName,'Acme')").await.1, json!(2));
    assert_eq!(ada.get("/users/$count").await.0, 400, "without ConsistencyLevel");
    let (_, falling) = ada.get("/users?$orderby=displayName desc").await;
    let mut expected = names(&falling);
    expected.sort_unstable_by_key(|name| std::cmp::Reverse(name.to_lowercase()));
    assert_eq!((names(&falling), names(&falling).len()), (expected, 9));
    for wrong in ["$filter=shoeSize eq 'x'", "$expand=shoes", "$orderby=shoeSize", "$orderby=surname"] {
        assert_eq!(ada.get(&format!("/users?{wrong}")).await.0, 400, "{wrong}");
    }
}

#[tokio::test]
async fn a_contact_is_made_changed_and_deleted_with_the_scope_to_write() {
    let running = running().await;
    running.sim.clock().freeze(true);
    let scopes = [OWN, &["Contacts.ReadWrite"]].concat();
    let ada = Client::new(&running, ADA, &scopes);
    let sample = json!({"givenName": "Pavel", "surname": "Bansky", "businessPhones": ["+1 732 555 0102"],
        "emailAddresses": [{"address": "pavelb@contoso.onmicrosoft.com", "name": "Pavel Bansky"}]});
    let (status, made) = ada.post("/me/contacts", &sample).await;
    assert_eq!((status.as_u16(), made["displayName"].as_str()), (201, Some("Pavel Bansky")), "{made}");
    let year = running.sim.now().format("%Y-").to_string();
    assert!(made["createdDateTime"].as_str().is_some_and(|at| at.starts_with(&year)), "{made}");
    running.sim.clock().advance(TimeDelta::minutes(5));
    let path = format!("/me/contacts/{}", id(&made));
    let home =
        json!({"homeAddress": {"street": "123 Some street", "city": "Seattle"}, "birthday": "1974-07-22"});
    let reader = Client::new(&running, ADA, OWN);
    assert_eq!(reader.patch(&path, &home).await.0, 403);
    assert_eq!(reader.bare(Method::DELETE, &path).await.0, 403);
    let (status, changed) = ada.patch(&path, &home).await;
    assert_eq!(
        (status.as_u16(), changed["homeAddress"]["city"].as_str(), changed["birthday"].as_str()),
        (200, Some("Seattle"), Some("1974-07-22T00:00:00Z"))
    );
    assert_eq!(changed["createdDateTime"], made["createdDateTime"]);
    assert_ne!(changed["lastModifiedDateTime"], made["lastModifiedDateTime"]);
    assert_ne!(changed["changeKey"], made["changeKey"]);
    assert_eq!(ada.patch(&path, &json!({"shoeSize": 44})).await.0, 400);
    let (_, chosen) = reader.get(&format!("{path}?$select=surname")).await;
    assert!(chosen["surname"] == "Bansky" && chosen.get("givenName").is_none(), "{chosen}");
    assert_eq!(reader.get(&format!("{path}?$select=shoeSize")).await.0, 400);
    assert_eq!(reader.get("/me/contacts/$count").await, (StatusCode::OK, json!(1)));
    assert_eq!(ada.bare(Method::POST, &path).await.0, 405);
    assert_eq!(ada.post("/me/contactFolders", &json!({"displayName": "x"})).await.0, 405);
    assert_eq!(ada.bare(Method::DELETE, &path).await.0, 204);
    assert_eq!(ada.get(&path).await.0, 404);
}

#[tokio::test]
async fn one_setting_of_a_mailbox_is_answered_alone() {
    let running = running().await;
    let ada = Client::new(&running, ADA, &["MailboxSettings.Read"]);
    let (_, all) = ada.get("/me/mailboxSettings").await;
    assert_eq!(
        (all["userPurpose"].as_str(), all["automaticRepliesSetting"]["status"].as_str()),
        (Some("user"), Some("disabled"))
    );
    let (_, zone) = ada.get("/me/mailboxSettings/timeZone").await;
    assert_eq!((&zone["value"], zone.get("language")), (&all["timeZone"], None));
    assert!(zone["@odata.context"].as_str().is_some_and(|at| at.ends_with("/mailboxSettings/timeZone")));
    for (name, inside) in
        [("workingHours", "daysOfWeek"), ("automaticRepliesSetting", "status"), ("language", "locale")]
    {
        let (_, one) = ada.get(&format!("/me/mailboxSettings/{name}")).await;
        assert_eq!(one[inside], all[name][inside], "{one}");
        assert!(one["@odata.context"].as_str().is_some_and(|at| at.ends_with(name)), "{one}");
    }
    assert_eq!(ada.get("/me/mailboxSettings/shoeSize").await.0, 400);
}

#[tokio::test]
async fn answers_of_graph_name_their_odata_version_and_are_not_to_be_kept() {
    let running = running().await;
    let ada = Client::new(&running, ADA, OWN);
    let shown = ada.request(Method::GET, "/me").send().await.expect("an answer");
    assert_eq!(
        (&shown.headers()["odata-version"], &shown.headers()["cache-control"]),
        (&"4.0".parse().expect("ascii"), &"no-cache".parse().expect("ascii"))
    );
    let count = ada.request(Method::GET, "/me/messages/$count").send().await.expect("an answer");
    assert!(count.headers().get("odata-version").is_none());
    let batch = json!({"requests": [{"id": "1", "method": "GET", "url": "/me"}]});
    let (_, answers) = ada.post("/$batch", &batch).await;
    assert_eq!(answers["responses"][0]["headers"]["OData-Version"], "4.0", "{answers}");
}
