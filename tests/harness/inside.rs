//! What a story sees of a fleet from inside: its rows, its queues, its dead letters; and how it waits for them.
//!
//! The invariant: looking changes nothing, and waiting ends when a condition holds or is named in a panic.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use followthrough::broker::{Broker, Outgoing, Source, Target};
use followthrough::clock::Clock;
use followthrough::store::job::JobRow;
use followthrough::store::{Store, dead_letter, job, outbox, tool};
use scoped_futures::ScopedFutureExt;
use serde_json::Value;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_mins(3);
const GLANCE: Duration = Duration::from_millis(20);

pub struct Inside {
    pub workspace: String,
    pub store: Store,
    pub clock: Clock,
    /// The story's own hand on the queues.
    pub broker: Arc<dyn Broker>,
    pub kinds: Vec<String>,
}

impl Inside {
    pub async fn set_tool(&self, tool: &str, level: &str) {
        let (workspace, now) = (self.workspace.as_str(), self.clock.now());
        self.store
            .transaction("tools", |tx| {
                async move { tool::set(tx, workspace, tool, level, now).await }.scope_boxed()
            })
            .await
            .expect("a tool's level");
    }

    /// An envelope of this world.
    #[expect(clippy::needless_pass_by_value, reason = "payloads are written in place")]
    pub fn envelope(&self, id: &str, kind: &str, payload: Value) -> Value {
        serde_json::json!({
            "id": id, "kind": kind, "workspace": self.workspace, "user": "ada@acme.example", "payload": payload,
        })
    }

    pub async fn publish(&self, envelopes: &[Value]) {
        let window: Vec<Outgoing> = envelopes
            .iter()
            .map(|envelope| {
                let kind = envelope["kind"].as_str().unwrap_or("none").to_owned();
                outgoing(&kind, envelope.to_string().into_bytes())
            })
            .collect();
        for window in window.chunks(200) {
            for answer in self.broker.publish(window).await {
                answer.expect("published");
            }
        }
    }

    pub async fn publish_raw(&self, kind: &str, body: Vec<u8>) {
        for answer in self.broker.publish(&[outgoing(kind, body)]).await {
            answer.expect("published");
        }
    }

    pub async fn job(&self, id: &str) -> Option<JobRow> {
        let workspace = self.workspace.as_str();
        self.store
            .read(|tx| async move { job::find(tx, workspace, id).await }.scope_boxed())
            .await
            .expect("the job's row")
    }

    pub async fn state(&self, id: &str) -> String {
        self.job(id).await.map_or_else(|| "none".to_owned(), |row| row.state)
    }

    /// How many jobs are in each state.
    pub async fn states(&self) -> BTreeMap<String, i64> {
        let rows = self.store.read(|tx| async move { job::counts(tx).await }.scope_boxed()).await;
        let mut states = BTreeMap::new();
        for (_, state, count) in rows.expect("the counts") {
            *states.entry(state).or_default() += count;
        }
        states
    }

    /// Without their bodies.
    pub async fn dead_letters(&self) -> Vec<dead_letter::DeadLetter> {
        let filter = dead_letter::Filter { limit: 1000, ..Default::default() };
        let filter = &filter;
        self.store
            .read(|tx| async move { dead_letter::list(tx, filter).await }.scope_boxed())
            .await
            .expect("the dead letters")
    }

    pub async fn dead_letter(&self, id: uuid::Uuid) -> dead_letter::DeadLetter {
        let found = self.store.read(|tx| async move { dead_letter::find(tx, id).await }.scope_boxed()).await;
        found.expect("the dead letters").expect("this one")
    }

    pub async fn owed(&self) -> i64 {
        let backlog = self.store.read(|tx| async move { outbox::backlog(tx).await }.scope_boxed()).await;
        backlog.expect("the outbox").0
    }

    /// Waits for a condition, and says which when it does not come true.
    pub async fn until<F: Future<Output = bool>>(&self, what: &str, condition: impl Fn() -> F) {
        self.within(PATIENCE, what, condition).await;
    }

    pub async fn within<F: Future<Output = bool>>(
        &self,
        patience: Duration,
        what: &str,
        condition: impl Fn() -> F,
    ) {
        let started = self.clock.now();
        while !condition().await {
            let waited = (self.clock.now() - started).to_std().unwrap_or_default();
            assert!(waited < patience, "not within {patience:?}: {what}; states {:?}", self.states().await);
            self.clock.sleep(GLANCE).await;
        }
    }

    /// Fails as soon as the job has ended otherwise.
    pub async fn until_state(&self, id: &str, state: &str) {
        self.until(&format!("{id} is {state}"), || async {
            let Some(row) = self.job(id).await else { return false };
            let ended = row.state != state && job::state::is_final(&row.state);
            assert!(!ended, "{id} is {}, not {state}: {:?} {:?}", row.state, row.code, row.message);
            row.state == state
        })
        .await;
    }

    /// The end of every story: nothing owed, nothing queued, nothing in hand.
    pub async fn at_rest(&self) {
        self.until("nothing is owed", || async { self.owed().await == 0 }).await;
        for kind in self.kinds.clone() {
            let source = Source::Jobs { kind };
            self.until("the queues are empty", || async {
                self.broker.depth(&source).await.is_ok_and(|depth| depth.ready == 0)
            })
            .await;
        }
    }
}

fn outgoing(kind: &str, body: Vec<u8>) -> Outgoing {
    Outgoing {
        message_id: Uuid::now_v7(),
        target: Target::Job { kind: kind.to_owned() },
        content_type: "application/json",
        body: body.into(),
        headers: BTreeMap::new(),
    }
}
