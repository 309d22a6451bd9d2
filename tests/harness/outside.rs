//! An outside world for stories about the engine: writes are counted, answers get lost on demand.
//!
//! The invariant: it knows nothing of the engine. What it holds at the end is what an administrator would
//! find at Microsoft. It can be served to other processes, so that it outlives workers that are killed.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::extract::Path;
use axum::routing::post;
use axum::{Json, Router};
use followthrough::clock::Clock;
use followthrough::config::Microsoft as Settings;
use followthrough::context::Context;
use followthrough::http::{Call, Http};
use followthrough::job::{Gate, Job, Spec};
use followthrough::oauth::scopes::Integration;
use followthrough::outcome::{Cause, Disposition, Failure};
use followthrough::registry::{Entry, Registry};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use url::Url;
use uuid::Uuid;

/// Every world by the name of its workspace: a job reaches only its own.
static WORLDS: LazyLock<Mutex<HashMap<String, Arc<Outside>>>> = LazyLock::new(Mutex::default);

/// In a worker process of its own: where the outside is.
static FAR: OnceLock<(Url, Http)> = OnceLock::new();

pub static REGISTRY: Registry =
    Registry::new(&[Entry::of::<Write>(), Entry::of::<Mail>(), Entry::of::<Post>()]);

#[derive(Default)]
pub struct Outside {
    state: Mutex<State>,
    /// Jobs told to hang wait here.
    pub gate: Gatekeeper,
}

pub struct Gatekeeper(Semaphore);

impl Default for Gatekeeper {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

impl Gatekeeper {
    pub fn open(&self) {
        self.0.add_permits(Semaphore::MAX_PERMITS / 2);
    }
}

#[derive(Default)]
struct State {
    /// How often each effect was written.
    writes: HashMap<Uuid, u32>,
    calls: HashMap<Uuid, usize>,
    probes: usize,
    running: usize,
    most_running: usize,
    started: usize,
}

impl Outside {
    pub fn of(workspace: &str) -> Arc<Self> {
        WORLDS.lock().unwrap_or_else(PoisonError::into_inner).entry(workspace.to_owned()).or_default().clone()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Distinct effects that were written.
    pub fn effects(&self) -> usize {
        self.state().writes.len()
    }

    /// Writes beyond the first of each effect.
    pub fn doubled(&self) -> u32 {
        self.state().writes.values().map(|times| times - 1).sum()
    }

    pub fn probes(&self) -> usize {
        self.state().probes
    }

    pub fn started(&self) -> usize {
        self.state().started
    }

    pub fn most_running(&self) -> usize {
        self.state().most_running
    }

    /// Serves every world of this process to other processes, for as long as the runtime lives.
    pub async fn serve() -> Url {
        async fn write(Path((workspace, id)): Path<(String, Uuid)>) {
            Outside::of(&workspace).note(id);
        }
        async fn probe(Path((workspace, id)): Path<(String, Uuid)>) -> Json<Option<u32>> {
            Json(Outside::of(&workspace).look(id))
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound port");
        let routes = Router::new().route("/{workspace}/{id}", post(write).get(probe));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Url::parse(&format!("http://{address}")).expect("a URL")
    }

    /// For a worker process: what its jobs write is written at `url`.
    pub fn reach(url: Url) {
        let http = Http::new(&Settings::default(), Clock::system()).expect("an HTTP client");
        assert!(FAR.set((url, http)).is_ok(), "a process reaches one outside");
    }

    fn note(&self, id: Uuid) {
        *self.state().writes.entry(id).or_default() += 1;
    }

    fn look(&self, id: Uuid) -> Option<u32> {
        let mut state = self.state();
        state.probes += 1;
        state.writes.get(&id).copied()
    }

    async fn probe(&self, workspace: &str, id: Uuid) -> Result<Option<u32>, Failure> {
        let Some((url, http)) = FAR.get() else { return Ok(self.look(id)) };
        let answer = http.send(Call::get("outside.probe", far(url, workspace, id))).await?;
        answer.json().map_err(|error| Failure::retry("unreadable", error.to_string()))
    }

    async fn write(&self, workspace: &str, id: Uuid, faults: &[Fault]) -> Result<u32, Failure> {
        let call = {
            let mut state = self.state();
            let call = state.calls.entry(id).or_default();
            *call += 1;
            *call - 1
        };
        let lost = || Failure { ambiguous: true, ..Failure::retry("unanswered", "no answer came") };
        let fault = faults.get(call).copied();
        match fault {
            Some(Fault::LostBefore) => return Err(lost()),
            Some(Fault::Refused) => return Err(Failure::reject("refused", "never")),
            Some(Fault::Unavailable) => return Err(Failure::retry("unavailable", "not now")),
            Some(Fault::NeedsUser) => return Err(Failure::park(Cause::NeedsUser, "needs_user", "sign in")),
            Some(Fault::Throttled) => {
                let mut failure = Failure::retry("throttled", "too many");
                failure.disposition = Disposition::Retry { after: Some(COOL_DOWN) };
                failure.cool_down = Some(COOL_DOWN);
                return Err(failure);
            }
            Some(Fault::Panic) => panic!("told to"),
            Some(Fault::Abort) => std::process::abort(),
            Some(Fault::Slow) => Clock::system().sleep(SLOW).await,
            Some(Fault::Hang) => {
                let _ = self.gate.0.acquire().await;
            }
            Some(Fault::LostAfter) | None => {}
        }
        match FAR.get() {
            None => self.note(id),
            Some((url, http)) => drop(http.send(Call::post("outside.write", far(url, workspace, id))).await?),
        }
        if fault == Some(Fault::LostAfter) { Err(lost()) } else { Ok(1) }
    }

    fn enter(self: &Arc<Self>) -> Inside {
        let mut state = self.state();
        state.started += 1;
        state.running += 1;
        state.most_running = state.most_running.max(state.running);
        Inside(self.clone())
    }
}

fn far(url: &Url, workspace: &str, id: Uuid) -> Url {
    url.join(&format!("{workspace}/{id}")).expect("a path of names")
}

struct Inside(Arc<Outside>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.state().running -= 1;
    }
}

/// What happens to the n-th call of one effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    LostBefore,
    LostAfter,
    Refused,
    Unavailable,
    NeedsUser,
    Throttled,
    Panic,
    Hang,
    /// Takes the whole process along.
    Abort,
    /// Long enough to be struck in the middle.
    Slow,
}

/// Long enough to be seen while it lasts.
const COOL_DOWN: Duration = Duration::from_secs(6);
const SLOW: Duration = Duration::from_millis(40);

#[derive(Debug, Serialize, JsonSchema)]
pub struct Wrote {
    times: u32,
}

const SPEC: Spec = Spec {
    kind: "test.write",
    integration: None,
    scopes: &[],
    gate: Gate::None,
    permits: 1,
    duty: None,
    attempts: 6,
    timeout: Duration::from_secs(20),
    tool_pattern: "test.write",
    example: "{}",
};

async fn two_steps(cx: &Context, faults: &[Fault], second: &[Fault]) -> Result<Wrote, Failure> {
    let outside = Outside::of(cx.workspace());
    let _inside = outside.enter();
    let mut times = 0;
    for (step, faults) in [("first", faults), ("second", second)] {
        times += cx
            .effect(step)
            .request("{}".to_owned())
            .perform(
                |intent| {
                    let outside = outside.clone();
                    async move { outside.probe(cx.workspace(), intent.id).await }
                },
                |intent| {
                    let outside = outside.clone();
                    async move { outside.write(cx.workspace(), intent.id, faults).await }
                },
            )
            .await?;
    }
    Ok(Wrote { times })
}

/// Two probeable writes for nobody in particular.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Write {
    #[serde(default)]
    faults: Vec<Fault>,
    #[serde(default)]
    second: Vec<Fault>,
}

impl Job for Write {
    const SPEC: Spec = SPEC;
    type Result = Wrote;

    fn render(&self) -> String {
        "two writes".to_owned()
    }

    async fn run(&self, cx: &Context) -> Result<Wrote, Failure> {
        two_steps(cx, &self.faults, &self.second).await
    }
}

/// The same, at one of the four places of a user's mailbox.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mail {
    #[serde(default)]
    faults: Vec<Fault>,
}

impl Job for Mail {
    const SPEC: Spec = Spec {
        kind: "test.mail",
        integration: Some(Integration::OutlookEmail),
        gate: Gate::Mailbox,
        tool_pattern: "test.mail",
        ..SPEC
    };
    type Result = Wrote;

    fn render(&self) -> String {
        "two writes in a mailbox".to_owned()
    }

    async fn run(&self, cx: &Context) -> Result<Wrote, Failure> {
        two_steps(cx, &self.faults, &[]).await
    }
}

/// A write that nothing can find again.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Post {
    #[serde(default)]
    faults: Vec<Fault>,
}

impl Job for Post {
    const SPEC: Spec = Spec { kind: "test.post", tool_pattern: "test.post", ..SPEC };
    type Result = Wrote;

    fn render(&self) -> String {
        "a post".to_owned()
    }

    async fn run(&self, cx: &Context) -> Result<Wrote, Failure> {
        let outside = Outside::of(cx.workspace());
        let _inside = outside.enter();
        let faults = &self.faults;
        let times = cx
            .effect("post")
            .perform_unprobeable(|intent| {
                let outside = outside.clone();
                async move { outside.write(cx.workspace(), intent.id, faults).await }
            })
            .await?;
        Ok(Wrote { times })
    }
}
