//! What people and publishers do: calls to the API, browsers that follow links, sign-ins.

use followthrough::api_key::{self, Role};
use followthrough::http::{Answer, Call};
use followthrough::store::StoreError;
use followthrough::store::api_key::{ApiKey, insert};
use followthrough::store::connection::{self, Connection};
use followthrough::store::job::JobRow;
use http::{Method, StatusCode};
use scoped_futures::ScopedFutureExt;
use secrecy::SecretString;
use serde_json::{Value, json};
use url::Url;
use uuid::Uuid;

use super::{PUBLIC, World};
use crate::inside::Inside;

/// Where a browser ended.
#[derive(Debug, Clone)]
pub struct Page {
    pub status: StatusCode,
    pub url: Url,
    pub text: String,
}

/// An administrator's, as `key create` makes it.
pub(super) async fn api_key(inside: &Inside) -> SecretString {
    let (shown, hash) = api_key::generate();
    let (now, id) = (inside.clock.now(), Uuid::now_v7());
    let role = Role::Admin.as_str().to_owned();
    let key =
        ApiKey { id, name: "story".into(), role, workspace: None, hash, created_at: now, revoked_at: None };
    let key = &key;
    inside
        .store
        .transaction("key", |tx| {
            async move {
                insert(tx, key).await?;
                Ok::<_, StoreError>(())
            }
            .scope_boxed()
        })
        .await
        .expect("a key");
    shown
}

impl World {
    /// A call of the API with an administrator's key.
    pub async fn api(&self, method: Method, path: &str, body: Option<&Value>) -> (StatusCode, Value) {
        let answer = self.answer(method, path, body).await;
        let json = answer.json().unwrap_or_else(|_| json!(String::from_utf8_lossy(&answer.body)));
        (answer.status, json)
    }

    /// The same, as it came.
    pub async fn answer(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        let url = self.here(&format!("{PUBLIC}{}", path.trim_start_matches('/')));
        let mut call = Call::new("story.api", method, url).bearer(&self.key);
        if let Some(body) = body {
            call = call.json(body);
        }
        self.http.send(call).await.expect("an answer")
    }

    /// Publishes a job of Ada's and waits until it is in this state.
    pub async fn run(&self, id: &str, kind: &str, payload: Value, state: &str) -> JobRow {
        self.publish(&[self.envelope(id, kind, payload)]).await;
        self.until_state(id, state).await;
        self.job(id).await.expect("the row")
    }

    /// What `/metrics` shows.
    pub async fn metrics(&self) -> String {
        self.browse(&format!("{PUBLIC}metrics")).await.text
    }

    /// Publishes over HTTP.
    pub async fn submit(&self, envelope: &Value) -> (StatusCode, Value) {
        self.api(Method::POST, "/v1/jobs", Some(envelope)).await
    }

    /// A link for a user to sign in with, and its connection.
    pub async fn link(&self, user: &str, integration: &str) -> (Uuid, String) {
        self.link_with(&json!({
            "workspace": self.workspace, "user": user, "integration": integration, "account": user,
            "environment": (integration == "dynamics").then(|| self.running.base_url()),
        }))
        .await
    }

    pub async fn link_with(&self, asked: &Value) -> (Uuid, String) {
        let (status, made) = self.api(Method::POST, "/v1/connections", Some(asked)).await;
        assert_eq!(status, 201, "{made}");
        let id = made["id"].as_str().and_then(|id| id.parse().ok()).expect("an id");
        *self.last_connection.lock().expect("no story panics here") = id;
        (id, made["url"].as_str().expect("a link").to_owned())
    }

    /// Makes a link, opens it, signs in and comes back connected.
    pub async fn connect(&self, user: &str, integration: &str) -> Uuid {
        let (id, link) = self.link(user, integration).await;
        let page = self.browse(&link).await;
        assert_eq!(page.status, 200, "{page:?}");
        assert_eq!(self.connection(id).await.status.as_str(), "connected", "{page:?}");
        id
    }

    pub async fn connection(&self, id: Uuid) -> Connection {
        let found = self.store.read(|tx| async move { connection::find(tx, id).await }.scope_boxed()).await;
        found.expect("the store answers").expect("there is one")
    }

    /// Is anything sealed kept of the connection's grant?
    pub async fn has_token(&self, id: Uuid) -> bool {
        let kept = self.store.read(|tx| {
            async move {
                let sql = "SELECT COUNT(*) FROM connections WHERE id = $1 AND refresh_token IS NOT NULL";
                Ok::<_, StoreError>(followthrough::sql!(tx, one(i64,), sql, id)?.0)
            }
            .scope_boxed()
        });
        kept.await.expect("the store answers") > 0
    }

    /// Follows redirects among Microsoft and us, as a browser does; elsewhere it stops.
    pub async fn browse(&self, url: &str) -> Page {
        let mut url = self.here(url);
        for _ in 0..10 {
            let answer = self.http.send(Call::get("story.browser", url.clone())).await.expect("a page");
            let to = answer.headers.get("location").and_then(|to| to.to_str().ok());
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            let Some(to) = to else { return Page { status: answer.status, url, text } };
            let next = self.here(to);
            if !followthrough::http::loopback(&next) {
                return Page { status: answer.status, url: next, text };
            }
            url = next;
        }
        panic!("redirected without end")
    }

    /// A public address, led to a process of this world.
    fn here(&self, url: &str) -> Url {
        let mut url = Url::parse(url).expect("a URL");
        if url.as_str().starts_with(PUBLIC) {
            let address = self.processes.first().and_then(|process| process.address).expect("a process");
            url.set_ip_host(address.ip()).expect("a host");
            url.set_port(Some(address.port())).expect("a port");
        }
        url
    }
}

impl Page {
    /// The first address on the page that contains this.
    pub fn link(&self, part: &str) -> Option<String> {
        let links = self.text.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next());
        links.map(|link| link.replace("&amp;", "&")).find(|link| link.contains(part))
    }
}
