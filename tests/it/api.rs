//! Stories about the HTTP API, and the law of its door over every route of the document.

mod door;
mod jobs;
mod operators;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use followthrough::api::{self, Api};
use followthrough::api_key::{Role, generate};
use followthrough::clock::Clock;
use followthrough::config::Microsoft as Settings;
use followthrough::connected::Announce;
use followthrough::fleet::{Fleet, Parts, Role as Part, Tuning};
use followthrough::http::Http;
use followthrough::microsoft::Microsoft;
use followthrough::oauth::app::App;
use followthrough::oauth::client::Entra;
use followthrough::store::Store;
use followthrough::store::api_key::{ApiKey, insert};
use followthrough::vault::Vault;
use followthrough::vault::seal::Keys;
use followthrough_tests::engine::Engine;
use followthrough_tests::outside::REGISTRY;
use http_body_util::BodyExt;
use scoped_futures::ScopedFutureExt;
use secrecy::ExposeSecret;
use serde_json::Value;
use tower::ServiceExt;
use uuid::Uuid;

/// A process with the API, and with workers where a story wants jobs to run.
struct Desk {
    router: Router,
    fleet: Fleet,
    store: Store,
    clock: Clock,
}

struct Answer {
    status: StatusCode,
    headers: axum::http::HeaderMap,
    body: Value,
}

impl Answer {
    fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }
}

impl Desk {
    fn open(world: &Engine, parts: &[Part]) -> Self {
        let settings = Settings {
            client_id: Some("01234567-89ab-cdef-0123-456789abcdef".into()),
            client_secret: Some("unused".to_owned().into()),
            ..Settings::default()
        };
        let public = "http://127.0.0.1:8080".parse().expect("a URL");
        let http = Http::new(&settings, world.clock.clone()).expect("an HTTP client");
        let app = App::new(&settings, &public).expect("an app registration");
        let entra = Entra { app, http: http.clone(), clock: world.clock.clone() };
        let keys = Keys::parse(&[Keys::generate("one")]).expect("keys");
        let announce = Arc::new(Announce { registry: REGISTRY });
        let vault = Vault::new(world.store.clone(), keys, entra, announce);
        let microsoft = Microsoft::new(&settings, http, Arc::new(vault.clone()), world.clock.clone());
        let fleet = Fleet::start(
            Parts {
                registry: REGISTRY,
                store: world.store.clone(),
                broker: world.broker.clone(),
                clock: world.clock.clone(),
                microsoft,
                vault: None,
                tuning: Tuning { instance: format!("api-{}", Uuid::now_v7()), ..world.tuning.clone() },
            },
            parts,
            None,
        );
        let api = Api::new(fleet.services.clone(), Some(vault), fleet.stopping().clone());
        let router = api::router(api, true);
        Self { router, fleet, store: world.store.clone(), clock: world.clock.clone() }
    }

    async fn key(&self, role: Role, workspace: Option<&str>) -> String {
        let (shown, hash) = generate();
        let key = &ApiKey {
            id: Uuid::now_v7(),
            name: format!("test-{}", role.as_str()),
            role: role.as_str().to_owned(),
            workspace: workspace.map(str::to_owned),
            hash,
            created_at: self.clock.now(),
            revoked_at: None,
        };
        let inserted =
            self.store.transaction("key", |tx| async move { insert(tx, key).await }.scope_boxed()).await;
        inserted.expect("a key");
        shown.expose_secret().to_owned()
    }

    async fn send(&self, request: Request<Body>) -> Response<Body> {
        self.router.clone().oneshot(request).await.expect("infallible")
    }

    async fn call(&self, key: Option<&str>, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let body = match body {
            Some(body) => {
                request = request.header("content-type", "application/json");
                Body::from(body.to_string())
            }
            None => Body::empty(),
        };
        read(self.send(request.body(body).expect("a request")).await).await
    }

    async fn get(&self, key: &str, path: &str) -> Answer {
        self.call(Some(key), "GET", path, None).await
    }

    async fn post(&self, key: &str, path: &str, body: &Value) -> Answer {
        self.call(Some(key), "POST", path, Some(body)).await
    }
}

async fn read(response: Response<Body>) -> Answer {
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.expect("a body").to_bytes();
    let body = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
    Answer { status: parts.status, headers: parts.headers, body }
}
