//! The door: every route that is not public refuses who should not come in, in one shape.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use followthrough::api::gate::{operations, role_of};
use followthrough::api::openapi;
use followthrough::api_key::Role;
use followthrough::oauth::scopes::Integration;
use followthrough::store::{connection, dead_letter, mailbox};
use followthrough_tests::engine::Engine;
use scoped_futures::ScopedFutureExt;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Desk, read};
use crate::engine::on_both_pairs;

on_both_pairs!(
    every_protected_route_refuses_strangers_lesser_roles_and_other_workspaces,
    every_refusal_has_one_shape_and_a_code,
    what_no_database_stores_is_refused_before_it_is_asked,
    probes_tell_of_a_drain,
);

/// The roles as they were promised: the document must not drift from them.
const PROMISED: &[(&str, &str, Role)] = &[
    ("POST", "/v1/jobs", Role::Publisher),
    ("GET", "/v1/jobs", Role::Publisher),
    ("GET", "/v1/jobs/{workspace}/{id}", Role::Publisher),
    ("POST", "/v1/jobs/{workspace}/{id}/approve", Role::Publisher),
    ("POST", "/v1/jobs/{workspace}/{id}/reject", Role::Publisher),
    ("POST", "/v1/jobs/release", Role::Operator),
    ("POST", "/v1/connections", Role::Publisher),
    ("GET", "/v1/connections", Role::Publisher),
    ("GET", "/v1/connections/{id}", Role::Publisher),
    ("DELETE", "/v1/connections/{id}", Role::Publisher),
    ("POST", "/v1/connections/admin-consent", Role::Publisher),
    ("GET", "/v1/workspaces/{workspace}/tools", Role::Admin),
    ("PUT", "/v1/workspaces/{workspace}/tools", Role::Admin),
    ("GET", "/v1/workspaces/{workspace}/dynamics/environments", Role::Admin),
    ("PUT", "/v1/workspaces/{workspace}/dynamics/environment", Role::Admin),
    ("GET", "/v1/dead-letters", Role::Operator),
    ("GET", "/v1/dead-letters/{id}", Role::Operator),
    ("POST", "/v1/dead-letters/replay", Role::Operator),
    ("POST", "/v1/dead-letters/discard", Role::Operator),
    ("POST", "/v1/mailboxes", Role::Publisher),
    ("GET", "/v1/mailboxes", Role::Publisher),
    ("GET", "/v1/mailboxes/{id}", Role::Publisher),
    ("DELETE", "/v1/mailboxes/{id}", Role::Publisher),
    ("POST", "/v1/mailboxes/{id}/backfill", Role::Publisher),
    ("DELETE", "/v1/mailboxes/{id}/backfill", Role::Publisher),
    ("GET", "/v1/mailboxes/{id}/messages", Role::Publisher),
    ("GET", "/v1/mailboxes/{id}/messages/{message}", Role::Publisher),
    ("GET", "/v1/mailboxes/{id}/messages/{message}/attachments/{attachment}", Role::Publisher),
    ("GET", "/v1/queues", Role::Operator),
    ("POST", "/v1/queues/{kind}/pause", Role::Operator),
    ("POST", "/v1/queues/{kind}/resume", Role::Operator),
];

async fn every_protected_route_refuses_strangers_lesser_roles_and_other_workspaces(world: Engine) {
    let desk = Desk::open(&world, &[]);
    let foreign = "globex";
    let (letter, connection, mailbox) = things_of(&desk, foreign).await;
    let mut checked = 0;
    let document = openapi();
    for (method, path, operation) in operations(&document) {
        let Some(role) = role_of(operation) else {
            assert!(!path.starts_with("/v1/"), "{method} {path} is open to everybody");
            continue;
        };
        checked += 1;
        let promised = PROMISED.iter().find(|(m, p, _)| *m == method && *p == path);
        assert_eq!(promised.map(|(_, _, role)| *role), Some(role), "{method} {path}");
        let id = match path {
            path if path.contains("connections") => connection.to_string(),
            path if path.contains("mailboxes") => mailbox.to_string(),
            path if path.contains("jobs") => "job-1".to_owned(),
            _ => letter.to_string(),
        };
        let target = path.replace("{workspace}", foreign).replace("{id}", &id);
        let target =
            target.replace("{kind}", "test.write").replace("{message}", "m-1").replace("{attachment}", "a-1");
        let target = match (method, path) {
            ("GET", "/v1/jobs" | "/v1/connections" | "/v1/dead-letters" | "/v1/mailboxes") => {
                format!("{target}?workspace={foreign}")
            }
            ("GET", path) if path.ends_with("environments") => format!("{target}?user=ada"),
            _ => target,
        };
        let body = body_of(method, path, foreign);
        let call = async |key: Option<&str>| desk.call(key, method, &target, body.as_ref()).await;

        let stranger = call(None).await;
        assert_eq!((stranger.status.as_u16(), stranger.code()), (401, "unauthorized"), "{method} {path}");
        assert_eq!(stranger.headers["www-authenticate"], "Bearer");
        let wrong = call(Some("ft_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")).await;
        assert_eq!(wrong.status, StatusCode::UNAUTHORIZED, "{method} {path}");
        for lesser in Role::ALL.into_iter().filter(|lesser| *lesser < role) {
            let key = desk.key(lesser, None).await;
            let refused = call(Some(&key)).await;
            assert_eq!((refused.status.as_u16(), refused.code()), (403, "forbidden_role"), "{method} {path}");
        }
        let bound = desk.key(Role::Admin, Some("acme")).await;
        let refused = call(Some(&bound)).await;
        let by_id = !path.contains("{workspace}") && path.contains("{id}");
        let expected = if by_id { (404, "not_found") } else { (403, "forbidden_workspace") };
        assert_eq!((refused.status.as_u16(), refused.code()), expected, "{method} {path}");
        let key = desk.key(role, None).await;
        let let_in = call(Some(&key)).await;
        assert!(![401, 403].contains(&let_in.status.as_u16()), "{method} {path}: {:?}", let_in.body);
        assert_ne!(let_in.status, StatusCode::INTERNAL_SERVER_ERROR, "{method} {path}");
    }
    assert_eq!(checked, PROMISED.len());
    desk.fleet.drain().await;
}

fn body_of(method: &str, path: &str, workspace: &str) -> Option<Value> {
    Some(match (method, path) {
        ("POST", "/v1/jobs") => json!({
            "id": "job-1", "kind": "test.write", "workspace": workspace, "user": "ada", "payload": {},
        }),
        ("POST", "/v1/connections") => {
            json!({"workspace": workspace, "user": "ada", "integration": "outlook-email"})
        }
        ("POST", "/v1/connections/admin-consent") => {
            json!({"workspace": workspace, "integration": "outlook-email"})
        }
        ("POST", "/v1/mailboxes") => {
            json!({"workspace": workspace, "user": "ada", "address": "support@globex.example"})
        }
        ("POST", path) if path.ends_with("backfill") => json!({"days": 30}),
        ("POST", "/v1/jobs/release") => json!({"workspace": workspace, "filter": {}, "dry_run": true}),
        ("POST", path) if path.contains("/v1/jobs/") => json!({"by": "grace"}),
        ("POST", path) if path.contains("dead-letters") => {
            json!({"filter": {"workspace": workspace}, "dry_run": true})
        }
        ("PUT", path) if path.ends_with("tools") => json!({"test.write": "allow"}),
        ("PUT", _) => json!({"environment": "https://acme.crm4.dynamics.com"}),
        _ => return None,
    })
}

/// A dead letter, a connection and a mailbox of a workspace.
async fn things_of(desk: &Desk, workspace: &str) -> (Uuid, Uuid, Uuid) {
    let now = desk.clock.now();
    let letter = dead_letter::DeadLetter {
        id: Uuid::now_v7(),
        workspace: Some(workspace.into()),
        kind: Some("test.write".into()),
        job_id: None,
        user_name: None,
        source: "publisher".into(),
        code: "invalid_payload".into(),
        message: "no".into(),
        path: None,
        attempts: 0,
        body: b"{}".to_vec(),
        headers: "{}".into(),
        history: "[]".into(),
        state: dead_letter::OPEN.into(),
        settled_by: None,
        settled_at: None,
        created_at: now,
    };
    let row = &letter;
    let made: Result<_, followthrough::store::StoreError> = desk
        .store
        .transaction("things", |tx| {
            async move {
                dead_letter::insert(tx, row).await?;
                let made = mailbox::register(tx, workspace, "bob", "sales@globex.example", now, now).await?;
                let connection = connection::ensure(tx, workspace, "bob", Integration::Teams, now).await?;
                Ok((connection.id, made.expect("a new mailbox").id))
            }
            .scope_boxed()
        })
        .await;
    let (connection, mailbox) = made.expect("the rows");
    (letter.id, connection, mailbox)
}

async fn every_refusal_has_one_shape_and_a_code(world: Engine) {
    let desk = Desk::open(&world, &[]);
    let key = desk.key(Role::Admin, None).await;
    let valid =
        || json!({"id": "j", "kind": "test.write", "workspace": "acme", "user": "ada", "payload": {}});
    let with = |name: &str, value: Value| {
        let mut body = valid();
        body[name] = value;
        body
    };
    let jobs: &[(Value, u16, &str, Option<&str>)] = &[
        (with("kind", json!("no.such")), 400, "unknown_kind", Some("kind")),
        (with("id", json!("a b")), 400, "invalid_envelope", Some("id")),
        (with("workspace", json!("")), 400, "invalid_envelope", Some("workspace")),
        (with("extra", json!(1)), 400, "invalid_envelope", Some("extra")),
        (with("payload", json!({"faults": 1})), 400, "invalid_payload", Some("payload.faults")),
        (with("payload", json!({"surprise": 1})), 400, "invalid_payload", Some("payload.surprise")),
        (json!([]), 400, "invalid_envelope", None),
    ];
    for (body, status, code, path) in jobs {
        let refused = desk.post(&key, "/v1/jobs", body).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (*status, *code), "{body}");
        if path.is_some() {
            assert_eq!(refused.body["error"]["path"].as_str(), *path, "{body} {:?}", refused.body);
        }
    }
    let calls: &[(&str, &str, u16, &str)] = &[
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/nowhere", 404, "not_found"),
        ("PATCH", "/v1/jobs", 405, "method_not_allowed"),
        ("DELETE", "/healthz", 405, "method_not_allowed"),
        ("GET", "/v1/jobs?cursor=xx", 400, "invalid_cursor"),
        ("GET", "/v1/jobs?state=happy", 400, "invalid_query"),
        ("GET", "/v1/jobs?limit=0", 400, "invalid_query"),
        ("GET", "/v1/jobs?limit=many", 400, "invalid_query"),
        ("GET", "/v1/jobs?colour=red", 400, "invalid_query"),
        ("GET", "/v1/jobs/acme/none", 404, "not_found"),
        ("GET", "/v1/dead-letters/no-uuid", 404, "not_found"),
        ("GET", "/v1/dead-letters?cursor=e30", 400, "invalid_cursor"),
        ("POST", "/v1/queues/no.such/pause", 404, "not_found"),
    ];
    for (method, path, status, code) in calls {
        let refused = desk.call(Some(&key), method, path, None).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (*status, *code), "{method} {path}");
        assert!(refused.body["error"]["message"].is_string());
        assert!(!refused.headers["x-request-id"].is_empty());
        assert_eq!(refused.headers["x-content-type-options"], "nosniff");
    }
    let tools = desk
        .call(Some(&key), "PUT", "/v1/workspaces/acme/tools", Some(&json!({"test.wirte": "allow"})))
        .await;
    assert_eq!((tools.status.as_u16(), tools.code()), (400, "unknown_tool"));
    let raw = async |content_type: Option<&str>, body: Vec<u8>| {
        let mut request = Request::post("/v1/jobs").header("authorization", format!("bearer {key}"));
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        read(desk.send(request.body(Body::from(body)).expect("a request")).await).await
    };
    let refused = raw(None, b"{}".to_vec()).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (415, "unsupported_media_type"));
    let refused = raw(Some("application/json"), b"{\"id\": hunter2".to_vec()).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (400, "invalid_json"));
    assert!(!refused.body.to_string().contains("hunter2"));
    let refused = raw(Some("application/json; charset=utf-8"), vec![b' '; 8 * 1024 * 1024 + 1]).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (413, "too_large"));
    let mine = Request::get("/healthz").header("x-request-id", "mine-1").body(Body::empty());
    assert_eq!(read(desk.send(mine.expect("a request")).await).await.headers["x-request-id"], "mine-1");
    desk.fleet.drain().await;
}

async fn what_no_database_stores_is_refused_before_it_is_asked(world: Engine) {
    use base64::Engine as _;
    let desk = Desk::open(&world, &[]);
    let key = desk.key(Role::Admin, None).await;
    let position = json!(["2026-11-24T09:00:00Z", "ac\u{0}me", "id"]).to_string();
    let cursor = base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(position);
    let (_, _, mailbox) = things_of(&desk, "globex").await;
    let far = "+10000-01-01T00:00:00Z";
    let at = |position: Value| base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(position.to_string());
    let messages = format!("/v1/mailboxes/{mailbox}/messages");
    for (path, code) in [
        (format!("{messages}?since=%2B10000-01-01T00:00:00Z"), "invalid_query"),
        (format!("{messages}?since=1969-12-31T23:59:59Z"), "invalid_query"),
        (format!("{messages}?cursor={}", at(json!([far, "id"]))), "invalid_cursor"),
        (format!("/v1/jobs?cursor={}", at(json!([far, "acme", "id"]))), "invalid_cursor"),
        (format!("/v1/dead-letters?cursor={}", at(json!([far, mailbox]))), "invalid_cursor"),
        ("/v1/jobs/ac%00me/id".to_owned(), "invalid_path"),
        ("/v1/jobs/acme/i%0Ad".to_owned(), "invalid_path"),
        ("/v1/jobs?workspace=ac%00me".to_owned(), "invalid_query"),
        ("/v1/dead-letters?code=%1B%5B0m".to_owned(), "invalid_query"),
        (format!("/v1/jobs?cursor={cursor}"), "invalid_cursor"),
    ] {
        let refused = desk.get(&key, &path).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (400, code), "{path}");
    }
    for path in ["/v1/jobs/release", "/v1/dead-letters/discard"] {
        let filter = json!({"filter": {"code": "a\u{0}b"}});
        let refused = desk.post(&key, path, &filter).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (400, "invalid_body"), "{path}");
    }
    desk.fleet.drain().await;
}

async fn probes_tell_of_a_drain(world: Engine) {
    let desk = Desk::open(&world, &[]);
    let probe = async |path: &str| desk.call(None, "GET", path, None).await;
    assert_eq!(probe("/healthz").await.status, StatusCode::OK);
    let ready = async || probe("/readyz").await;
    world.until("it is ready", || async { ready().await.status == StatusCode::OK }).await;
    assert_eq!(ready().await.body["ready"], json!(true));
    let metrics = probe("/metrics").await;
    assert!(metrics.body.as_str().is_some_and(|text| text.contains("followthrough_api_requests_total")));
    desk.fleet.stopping().cancel();
    let draining = probe("/readyz").await;
    assert_eq!(draining.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(draining.body["draining"], json!(true));
    assert_eq!(probe("/healthz").await.status, StatusCode::OK);
    desk.fleet.drain().await;
}
