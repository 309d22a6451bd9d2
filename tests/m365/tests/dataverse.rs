//! Rows and metadata: what Dataverse takes, refuses and passes over.

use m365_sim::dataverse::row_id;
use m365_sim::{Options, Running, start};
use serde_json::{Value, json};

struct World {
    running: Running,
    client: reqwest::Client,
    token: String,
}

struct Answer {
    status: u16,
    headers: reqwest::header::HeaderMap,
    body: Value,
}

impl Answer {
    fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }
}

impl World {
    async fn new() -> Self {
        let running = start(Options::default()).await.expect("a free port");
        let token = running.sim.dataverse_token("ada@acme.example");
        Self { running, client: reqwest::Client::new(), token }
    }

    async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<Value>) -> Answer {
        let url = format!("{}/api/data/v9.2/{path}", self.running.base_url());
        let method = reqwest::Method::try_from(method).expect("a method");
        let mut request =
            self.client.request(method, url).bearer_auth(&self.token).header("OData-Version", "4.0");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.expect("an answer");
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let text = answer.text().await.expect("text");
        Answer { status, headers, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
    }

    async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], None).await
    }

    async fn patch(&self, path: &str, headers: &[(&str, &str)], body: Value) -> Answer {
        self.call("PATCH", path, headers, Some(body)).await
    }
}

fn account() -> String {
    format!("accounts({})", row_id(1, 1))
}

#[tokio::test]
async fn conditional_writes_tell_three_kinds_of_conflict_apart() {
    let world = World::new().await;
    let new = "accounts(11111111-0000-4000-8000-000000000001)";
    let body = json!({"name": "Adatum"});
    assert_eq!(world.patch(new, &[("If-None-Match", "*")], body.clone()).await.status, 204);
    let again = world.patch(new, &[("If-None-Match", "*")], body.clone()).await;
    assert_eq!((again.status, again.code()), (412, "0x80040237"));

    let missing = "accounts(11111111-0000-4000-8000-000000000002)";
    let answer = world.patch(missing, &[("If-Match", "*")], body.clone()).await;
    assert_eq!((answer.status, answer.code()), (404, "0x80040217"));
    let answer = world.patch(missing, &[("Prefer", "return=representation")], body).await;
    assert_eq!(answer.status, 201, "without If-Match a PATCH makes the row");
    assert!(!answer.headers.contains_key("odata-entityid"));

    let tag = world.get(&account()).await.body["@odata.etag"].as_str().expect("a tag").to_owned();
    let change = json!({"telephone1": "+41 44 000"});
    let answer = world.patch(&account(), &[("If-Match", &tag)], change.clone()).await;
    assert_eq!(answer.status, 204, "{}", answer.body);
    let stale = world.patch(&account(), &[("If-Match", &tag)], change).await;
    assert_eq!((stale.status, stale.code()), (412, "0x80060882"));

    let taken = world.patch(&account(), &[], json!({"accountnumber": "A-1002"})).await;
    assert_eq!((taken.status, taken.code()), (412, "0x80060892"));
}

#[tokio::test]
async fn only_what_changed_is_seen_in_the_trail() {
    let world = World::new().await;
    let body = json!({"telephone1": "1", "name": "Contoso Ltd.", "createdon": "2020-01-01T00:00:00Z"});
    assert_eq!(world.patch(&account(), &[("If-Match", "*")], body).await.status, 204);
    let writes = world.running.sim.dataverse_writes();
    assert_eq!(writes.len(), 1);
    assert_eq!(writes[0].changed.keys().collect::<Vec<_>>(), ["telephone1"]);
    assert_eq!((&writes[0].unchanged, &writes[0].ignored), (&vec!["name".into()], &vec!["createdon".into()]));
    assert_eq!(writes[0].user, "ada@acme.example");
}

#[tokio::test]
async fn lookups_are_set_through_navigation_properties_only() {
    let world = World::new().await;
    let promise = format!("new_promises({})", row_id(10_042, 1));
    let target = format!("/accounts({})", row_id(1, 2));
    for (name, status) in [
        ("new_AccountId@odata.bind", 204),
        ("new_accountid@odata.bind", 400),
        ("_new_accountid_value", 400),
        ("new_MadeTo@odata.bind", 400),
        ("new_MadeTo_account@odata.bind", 204),
    ] {
        let answer = world.patch(&promise, &[("If-Match", "*")], json!({name: target})).await;
        assert_eq!(answer.status, status, "{name}: {}", answer.body);
        assert_eq!(answer.code(), if status == 400 { "0x80048d19" } else { "" });
    }
    let row = world
        .call("GET", &format!("{promise}?$select=new_name&$expand=new_AccountId($select=name)"), &[], None)
        .await;
    assert_eq!(row.body["new_AccountId"]["name"], "Fabrikam GmbH");
    let bound = format!("{promise}/new_AccountId/$ref");
    assert_eq!(world.call("DELETE", &bound, &[], None).await.status, 204);
}

#[tokio::test]
async fn values_are_held_to_their_metadata() {
    let world = World::new().await;
    let promise = format!("new_promises({})", row_id(10_042, 1));
    for (body, code) in [
        (json!({"new_name": "x".repeat(101)}), "0x80044331"),
        (json!({"new_weight": 6}), "0x8004432f"),
        (json!({"new_confidence": 1.5}), "0x80044330"),
        (json!({"new_weight": "3"}), "0x80048d19"),
        (json!({"new_outcome": 7}), "0x8004431a"),
        (json!({"new_duedate": "2026-11-30T00:00:00Z"}), "0x80048d19"),
        (json!({"statuscode": 2}), "0x80048408"),
        (json!({"nope": 1}), "0x80048d19"),
    ] {
        let answer = world.patch(&promise, &[("If-Match", "*")], body.clone()).await;
        assert_eq!((answer.status, answer.code()), (400, code), "{body}");
    }
    assert_eq!(world.get("accountz").await.code(), "0x8006088a");
    assert_eq!(world.get("accounts?$select=nope").await.code(), "0x0");
    assert_eq!(
        world.get("new_promises(new_code='P-1')?$select=new_name").await.body["new_name"],
        "Send the data sheet"
    );
    assert_eq!(world.get("new_promises(new_code='P-2')").await.code(), "0x80060891");
}

#[tokio::test]
async fn collections_are_filtered_ordered_and_paged() {
    let world = World::new().await;
    let path = "contacts?$select=fullname&$filter=contains(emailaddress1,'contoso') and statecode eq 0&$orderby=fullname desc&$count=true";
    let first = world.call("GET", path, &[("Prefer", "odata.maxpagesize=1")], None).await;
    assert_eq!(first.body["@odata.count"], 2);
    assert_eq!(first.body["value"][0]["fullname"], "Quentin Moser");
    let next = first.body["@odata.nextLink"].as_str().expect("a link").to_owned();
    let path = next.split("/api/data/v9.2/").nth(1).expect("ours");
    let second = world.call("GET", path, &[("Prefer", "odata.maxpagesize=1")], None).await;
    assert_eq!(second.body["value"][0]["fullname"], "Nina Keller");
    assert!(second.body.get("@odata.nextLink").is_none());
    let navigated =
        world.get("contacts?$filter=parentcustomerid_account/name eq 'CONTOSO LTD.'&$select=fullname").await;
    assert_eq!(navigated.body["value"].as_array().map(Vec::len), Some(2), "{}", navigated.body);
}

#[tokio::test]
async fn metadata_tells_what_the_rows_hold() {
    let world = World::new().await;
    let many = "EntityDefinitions(LogicalName='new_promise')/ManyToOneRelationships?$select=ReferencingAttribute,ReferencedEntity,ReferencingEntityNavigationPropertyName";
    let many = world.get(many).await;
    let names: Vec<&str> = many.body["value"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["ReferencingEntityNavigationPropertyName"].as_str())
        .collect();
    assert!(names.contains(&"new_AccountId") && names.contains(&"new_MadeTo_contact"));

    let cast = "EntityDefinitions(LogicalName='new_promise')/Attributes/Microsoft.Dynamics.CRM.PicklistAttributeMetadata?$select=LogicalName&$expand=OptionSet,GlobalOptionSet";
    let cast = world.get(cast).await;
    assert_eq!(cast.body["value"][0]["OptionSet"]["Options"][0]["Value"], 100_000_000, "{}", cast.body);
    let uncast = "EntityDefinitions(LogicalName='account')/Attributes?$select=LogicalName,MaxLength";
    assert_eq!(world.get(uncast).await.status, 400);
    let tables = "EntityDefinitions?$select=LogicalName,EntitySetName&$filter=OwnershipType eq Microsoft.Dynamics.CRM.OwnershipTypes'UserOwned' and LogicalName eq 'task'";
    assert_eq!(world.get(tables).await.body["value"][0]["EntitySetName"], "tasks");
}

#[tokio::test]
async fn a_change_set_is_all_or_nothing() {
    let world = World::new().await;
    let part = |id: u32, line: &str, body: Value| {
        format!(
            "--cs\r\nContent-Type: application/http\r\nContent-Transfer-Encoding: binary\r\nContent-ID: {id}\r\n\r\n{line} HTTP/1.1\r\nContent-Type: application/json\r\n\r\n{body}\r\n"
        )
    };
    let send = |parts: String| {
        let text = format!(
            "--b\r\nContent-Type: multipart/mixed; boundary=\"cs\"\r\n\r\n{parts}--cs--\r\n--b--\r\n"
        );
        let url = format!("{}/api/data/v9.2/$batch", world.running.base_url());
        let request = world.client.post(url).bearer_auth(&world.token);
        request.header("Content-Type", "multipart/mixed; boundary=\"b\"").body(text).send()
    };
    let count = || world.running.sim.dataverse_rows("task").len();
    let account = json!({"name": "Batch"});
    let good = json!({"subject": "Call", "regardingobjectid_account_task@odata.bind": "$1"});
    let bad = json!({"subject": "Call", "regardingobjectid_account@odata.bind": "$1"});
    let refused = send(
        part(1, "POST /api/data/v9.2/accounts", account.clone()) + &part(2, "POST /api/data/v9.2/tasks", bad),
    );
    assert_eq!(refused.await.expect("an answer").status(), 400);
    assert!(world.running.sim.dataverse_writes().is_empty());
    let done =
        send(part(1, "POST /api/data/v9.2/accounts", account) + &part(2, "POST /api/data/v9.2/tasks", good));
    let done = done.await.expect("an answer");
    assert_eq!(done.status(), 200);
    let text = done.text().await.expect("text");
    assert_eq!(text.matches("HTTP/1.1 204").count(), 2, "{text}");
    assert_eq!(count(), 1);
    let made = world
        .get("accounts?$filter=name eq 'Batch'&$select=accountid&$expand=Account_Tasks($select=subject)")
        .await;
    assert_eq!(made.body["value"][0]["Account_Tasks"][0]["subject"], "Call", "{}", made.body);
    let id = made.body["value"][0]["accountid"].as_str().expect("an id");
    let tasks = world.get(&format!("accounts({id})/Account_Tasks?$select=subject")).await;
    assert_eq!(tasks.body["value"][0]["subject"], "Call", "{}", tasks.body);
}

#[tokio::test]
async fn a_token_of_another_environment_is_refused() {
    let world = World::new().await;
    let token = world.running.sim.token_for(
        "ada@acme.example",
        "https://other.crm4.dynamics.com",
        &["user_impersonation"],
    );
    let url = format!("{}/api/data/v9.2/WhoAmI", world.running.base_url());
    assert_eq!(world.client.get(&url).bearer_auth(token).send().await.expect("an answer").status(), 401);
    let outsider = world.running.sim.dataverse_token("hal@globex.example");
    assert_eq!(world.client.get(&url).bearer_auth(outsider).send().await.expect("an answer").status(), 403);
    assert!(world.get("WhoAmI").await.body["UserId"].is_string());
}
