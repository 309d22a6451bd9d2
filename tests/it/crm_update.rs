//! `crm.update`: the columns that differ, under the version they were found in, and never a new row.

use followthrough_tests::broker::within;
use followthrough_tests::world::{ADA, Pair, World};
use http::Method;
use m365_sim::Fault;
use m365_sim::dataverse::rights::{Denial, Lack};
use m365_sim::dataverse::row_id;
use m365_sim::fault::When;
use serde_json::{Value, json};

async fn world() -> World {
    let world = World::open(Pair::Embedded).await.expect("the embedded pair is always there");
    world.connect(ADA, "dynamics").await;
    world.sim().clear_calls();
    world
}

fn update(values: &Value) -> Value {
    json!({"table": "account", "id": row_id(1, 1), "values": values})
}

fn account(world: &World) -> Value {
    world.sim().dataverse_row("account", &row_id(1, 1)).expect("the first account")
}

fn result(row: &followthrough::store::job::JobRow) -> Value {
    serde_json::from_str(row.result.as_deref().expect("a result")).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_differs_is_written() {
    let world = world().await;
    let values = json!({"name": "Contoso Ltd.", "numberofemployees": 140, "revenue": 1_250_000, "description": "Bigger"});
    let row = world.run("some", "crm.update", update(&values), "succeeded").await;
    assert_eq!(result(&row)["changed"], json!(["description"]));
    let writes = world.writes();
    assert_eq!((writes.len(), &writes[0]["sent"]), (1, &json!(["description"])));
    assert_eq!((&writes[0]["unchanged"], &writes[0]["ignored"]), (&json!([]), &json!([])));
    let row = world.run("none", "crm.update", update(&values), "succeeded").await;
    assert_eq!(result(&row)["changed"], json!([]));
    assert_eq!(world.writes().len(), 1, "nothing differs, so nothing is written");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_cannot_be_written_is_refused_by_name_and_nothing_is_written() {
    let world = world().await;
    for (id, values, path, code) in [
        (
            "unknown",
            json!({"description": "x", "descripton": "y"}),
            "payload.values.descripton",
            "unknown_column",
        ),
        (
            "read-only",
            json!({"description": "x", "createdon": "2026-01-01T00:00:00Z"}),
            "payload.values.createdon",
            "read_only_column",
        ),
        (
            "lookup",
            json!({"primarycontactid": row_id(2, 1)}),
            "payload.values.primarycontactid",
            "wrong_column_type",
        ),
    ] {
        let row = world.run(id, "crm.update", update(&values), "dead").await;
        assert_eq!(row.code.as_deref(), Some(code));
        let message = row.message.expect("a message");
        assert!(message.starts_with(path), "{message}");
        world.expect_dead(code);
    }
    let unknown = json!({"table": "acount", "id": row_id(1, 1), "values": {"name": "x"}});
    let row = world.run("table", "crm.update", unknown, "dead").await;
    assert_eq!(row.code.as_deref(), Some("unknown_table"));
    world.expect_dead("unknown_table");
    assert!(world.writes().is_empty());
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_changes_in_between_is_read_again() {
    let world = world().await;
    let held = world.sim().inject(Fault::hold(When::Before).method("PATCH"));
    let envelope =
        world.envelope("raced", "crm.update", update(&json!({"description": "ours", "telephone1": "+41"})));
    world.publish(&[envelope]).await;
    let sim = world.sim().clone();
    within("the write to be on its way", sim.until(|sim| sim.holds(held))).await;
    // Somebody else writes one of the two, and another column.
    sim.edit_row(
        "account",
        &row_id(1, 1),
        &json!({"telephone1": "+41", "websiteurl": "https://theirs.example"}),
    )
    .expect("an edit");
    sim.release(held);
    world.until_state("raced", "succeeded").await;
    let row = world.job("raced").await.expect("the row");
    assert_eq!(row.attempt, 1, "read again at once, not tried again");
    let account = account(&world);
    assert_eq!(
        (&account["description"], &account["websiteurl"]),
        (&json!("ours"), &json!("https://theirs.example"))
    );
    let writes = world.writes();
    assert_eq!((writes.len(), &writes[0]["sent"]), (1, &json!(["description"])));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_the_publisher_named_is_never_replaced() {
    let world = world().await;
    let row = world.run("first", "crm.update", update(&json!({"description": "a"})), "succeeded").await;
    let mut payload = update(&json!({"description": "b"}));
    payload["if_match"] = result(&row)["etag"].clone();
    let row = world.run("fits", "crm.update", payload.clone(), "succeeded").await;
    assert_ne!(result(&row)["etag"], payload["if_match"]);
    payload["values"]["description"] = json!("c");
    let row = world.run("stale", "crm.update", payload, "dead").await;
    assert_eq!(row.code.as_deref(), Some("row_changed"));
    world.expect_dead("row_changed");
    assert_eq!(account(&world)["description"], "b");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_not_there_is_never_made() {
    let world = world().await;
    let rows = world.sim().dataverse_rows("account").len();
    let missing = json!({"table": "account", "id": row_id(1, 99), "values": {"name": "x"}});
    let unknown = json!({"table": "account", "key": {"accountnumber": "A-9999"}, "values": {"name": "x"}});
    for (id, payload, path) in [("id", missing, "payload.id"), ("key", unknown, "payload.key")] {
        let row = world.run(id, "crm.update", payload, "dead").await;
        assert_eq!(row.code.as_deref(), Some("not_found"));
        assert!(row.message.is_some_and(|message| message.starts_with(path)));
        world.expect_dead("not_found");
    }
    // Deleted between the look and the write.
    assert_eq!((world.sim().dataverse_rows("account").len(), world.writes().len()), (rows, 0));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lookups_are_set_and_emptied_by_the_property_of_their_table() {
    let world = world().await;
    let contact = |lookups: Value| json!({"table": "contact", "id": row_id(2, 1), "lookups": lookups});
    let person = json!({"parentcustomerid": {"table": "contact", "id": row_id(2, 2)}});
    world.run("person", "crm.update", contact(person), "succeeded").await;
    let row = world.sim().dataverse_row("contact", &row_id(2, 1)).expect("the contact");
    assert_eq!(row["parentcustomerid"], json!({"table": "contact", "id": row_id(2, 2)}));
    let company = json!({"parentcustomerid": {"table": "account", "id": row_id(1, 3)}});
    world.run("company", "crm.update", contact(company), "succeeded").await;
    let row = world.sim().dataverse_row("contact", &row_id(2, 1)).expect("the contact");
    assert_eq!(row["parentcustomerid"], json!({"table": "account", "id": row_id(1, 3)}));
    world.run("empty", "crm.update", contact(json!({"parentcustomerid": null})), "succeeded").await;
    let row = world.sim().dataverse_row("contact", &row_id(2, 1)).expect("the contact");
    assert!(row["parentcustomerid"].is_null(), "{row:#}");
    let wrong = contact(json!({"parentcustomerid": {"table": "lead", "id": row_id(4, 1)}}));
    let row = world.run("wrong", "crm.update", wrong, "dead").await;
    assert_eq!(row.code.as_deref(), Some("wrong_lookup_table"));
    world.expect_dead("wrong_lookup_table");
    assert_eq!(world.writes().len(), 3);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_ends_with_the_one_who_can_act() {
    let world = world().await;
    let (table, operation, row) = (Some("account".to_owned()), None, None);
    world.sim().deny(Denial { user: ADA.into(), table, operation, row, lack: Lack::Privilege });
    let row = world.run("privilege", "crm.update", update(&json!({"description": "a"})), "parked").await;
    assert_eq!((row.cause.as_deref(), row.code.as_deref()), (Some("needs_admin"), Some("missing_privilege")));
    world.sim().dataverse_allow();
    world.sim().play("plug-in-refuses", ADA);
    let row = world.run("rule", "crm.update", update(&json!({"description": "a"})), "dead").await;
    assert_eq!(row.code.as_deref(), Some("business_rule"));
    world.expect_dead("business_rule");
    assert!(world.writes().is_empty());
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_outside_the_allowed_hosts_is_refused() {
    let world = world().await;
    for url in ["https://acme.crm4.dynamics.com.evil.example", "http://192.0.2.1", "http://localhost:9"] {
        let asked = json!({"workspace": "acme", "user": ADA, "integration": "dynamics", "environment": url});
        let (status, answer) = world.api(Method::POST, "/v1/connections", Some(&asked)).await;
        assert_eq!(
            (status.as_u16(), answer["error"]["path"].as_str()),
            (400, Some("environment")),
            "{url}: {answer}"
        );
    }
    // Allowed when it was chosen, and not any more: the job never gets there.
    let mut world = world;
    world.config.microsoft.dataverse_hosts = vec!["*.dynamics.com".into()];
    world.stop().await;
    world.start().await;
    world.sim().clear_calls();
    let row = world.run("outside", "crm.update", update(&json!({"description": "a"})), "dead").await;
    assert_eq!(row.code.as_deref(), Some("environment_not_allowed"), "{:?}", row.message);
    world.expect_dead("environment_not_allowed");
    assert!(world.sim().calls().iter().all(|call| call.path.ends_with("/token")), "Dataverse was called");
    world.close().await;
}
