//! One connection, kept alive by our own supervisor instead of lapin's recovery.
//!
//! The invariant: a [`Session`] is never repaired. When its connection ends for any reason it is thrown away with all
//! that was opened on it, and users of the link wait for the next one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use lapin::{Connection, Event};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::address::Address;
use super::fault::Fault;
use crate::broker::{BrokerError, Health, Topology};
use crate::config::TopologyMode;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A session that lived this long ends a row of failures.
const HEALTHY: Duration = Duration::from_mins(1);
/// How often the connection's own state is looked at, should an event have been missed.
const LOOK: Duration = Duration::from_secs(5);

/// A memory or disk alarm stops all reading from a connection that publishes: mixed with consuming, it would stop
/// acknowledgements too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Consume,
    Publish,
}

pub(super) struct Session {
    pub(super) connection: Connection,
    pub(super) generation: u64,
    /// Cancelled by whoever finds the session unusable before the supervisor does.
    pub(super) broken: CancellationToken,
}

/// What both links say together.
pub(super) struct Pulse {
    links: Mutex<[Health; 2]>,
    health: watch::Sender<Health>,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self { links: Mutex::new([Health::Connecting; 2]), health: watch::Sender::new(Health::Connecting) }
    }

    pub(super) fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    fn report(&self, role: Role, state: Health) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links[role as usize] = state;
        let both = if links.contains(&Health::Blocked) {
            Health::Blocked
        } else if links.contains(&Health::Connecting) {
            Health::Connecting
        } else {
            Health::Ready
        };
        self.health.send_if_modified(|health| std::mem::replace(health, both) != both);
    }
}

pub(super) struct Link {
    pub(super) role: Role,
    pub(super) address: Arc<Address>,
    /// Shown in RabbitMQ's management page.
    pub(super) name: String,
    pub(super) topology: Arc<Topology>,
    pub(super) mode: TopologyMode,
    pub(super) pulse: Arc<Pulse>,
    pub(super) closing: CancellationToken,
    session: watch::Sender<Option<Arc<Session>>>,
    blocked: watch::Sender<bool>,
    ended: watch::Sender<bool>,
    generations: std::sync::atomic::AtomicU64,
}

impl Link {
    pub(super) fn new(
        role: Role,
        address: Arc<Address>,
        name: String,
        topology: Arc<Topology>,
        mode: TopologyMode,
        pulse: Arc<Pulse>,
        closing: CancellationToken,
    ) -> Self {
        Self {
            role,
            address,
            name,
            topology,
            mode,
            pulse,
            closing,
            session: watch::Sender::new(None),
            blocked: watch::Sender::new(false),
            ended: watch::Sender::new(false),
            generations: std::sync::atomic::AtomicU64::new(0),
        }
    }

    /// The first connection is made in sight of the caller: what needs a person is told to him, not to the log.
    pub(super) async fn start(self: &Arc<Self>) -> Result<(), BrokerError> {
        let session = self.open().await?;
        self.session.send_replace(Some(session.clone()));
        let link = self.clone();
        tokio::spawn(async move {
            link.supervise(session).await;
            link.ended.send_replace(true);
        });
        Ok(())
    }

    /// The live session; waits for one.
    pub(super) async fn session(&self) -> Arc<Session> {
        let mut sessions = self.session.subscribe();
        loop {
            if let Some(session) = sessions.borrow_and_update().clone() {
                return session;
            }
            // The sender lives in `self`: it cannot be gone.
            let _ = sessions.changed().await;
        }
    }

    /// The live session while the broker takes publications; waits for it.
    pub(super) async fn unblocked(&self) -> Arc<Session> {
        let mut blocked = self.blocked.subscribe();
        loop {
            let session = self.session().await;
            if !*blocked.borrow_and_update() && !session.connection.status().blocked() {
                return session;
            }
            // The alarm may end before this is asked for the first time: look again after a while.
            let _ = timeout(LOOK, blocked.changed()).await;
        }
    }

    /// Waits until this session is no longer the live one.
    pub(super) async fn after(&self, session: &Session) {
        let over = |live: &Option<Arc<Session>>| {
            live.as_ref().is_none_or(|live| live.generation != session.generation)
        };
        let _ = self.session.subscribe().wait_for(over).await;
    }

    /// Waits until the supervisor has said farewell.
    pub(super) async fn ended(&self) {
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    async fn supervise(&self, first: Arc<Session>) {
        let mut pause = Pause::default();
        let mut next = Some(first);
        loop {
            let session = match next.take() {
                Some(session) => session,
                None => match self.closing.run_until_cancelled(self.open()).await.transpose() {
                    Ok(Some(session)) => session,
                    Ok(None) => return,
                    Err(error) => {
                        let permanent = matches!(error, BrokerError::Misconfigured(_));
                        if permanent {
                            tracing::error!(role = ?self.role, %error, "the broker cannot be used");
                        } else {
                            tracing::warn!(role = ?self.role, %error, "the broker is away");
                        }
                        if self.closed_within(pause.next(permanent)).await {
                            return;
                        }
                        continue;
                    }
                },
            };
            let began = Instant::now();
            self.session.send_replace(Some(session.clone()));
            let why = self.watch(&session).await;
            self.session.send_replace(None);
            self.blocked.send_replace(false);
            self.pulse.report(self.role, Health::Connecting);
            if self.closing.is_cancelled() {
                farewell(session).await;
                return;
            }
            // In the background: who waits for the next session does not care for the old one's farewell.
            tokio::spawn(farewell(session));
            tracing::warn!(role = ?self.role, why, "the connection to the broker ended");
            metrics::counter!("followthrough_broker_reconnects_total").increment(1);
            if began.elapsed() >= HEALTHY {
                pause = Pause::default();
            }
            if self.closed_within(pause.next(false)).await {
                return;
            }
        }
    }

    async fn open(&self) -> Result<Arc<Session>, BrokerError> {
        let connection = self.address.connect(&self.name).await.map_err(|fault: Fault| {
            if fault.permanent() {
                let Fault { text, .. } = &fault;
                let shown = self.address.shown();
                BrokerError::Misconfigured(format!("{shown}: {text} ({})", fault.advice()))
            } else {
                BrokerError::Unavailable(fault.text)
            }
        })?;
        if self.role == Role::Consume {
            // A broker that was replaced by an empty one gets its objects back before anything is asked of it.
            self.topology.ensure(&connection, self.mode).await?;
        }
        let generation = self.generations.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(Arc::new(Session { connection, generation, broken: CancellationToken::new() }))
    }

    /// Returns why the session is over.
    async fn watch(&self, session: &Session) -> String {
        let mut events = session.connection.events_listener();
        loop {
            let blocked = session.connection.status().blocked();
            self.blocked.send_if_modified(|known| std::mem::replace(known, blocked) != blocked);
            self.pulse.report(self.role, if blocked { Health::Blocked } else { Health::Ready });
            if !session.connection.status().connected() {
                return "it is closed".into();
            }
            tokio::select! {
                () = self.closing.cancelled() => return "we close".into(),
                () = session.broken.cancelled() => return "it does not answer".into(),
                event = timeout(LOOK, events.next()) => match event {
                    Ok(Some(Event::Error(error))) => return error.to_string(),
                    Ok(None) => return "it is gone".into(),
                    Ok(Some(Event::ConnectionBlocked(why))) => {
                        tracing::warn!(role = ?self.role, why, "the broker refuses publications");
                    }
                    Ok(Some(Event::ConnectionUnblocked)) => {
                        tracing::info!(role = ?self.role, "the broker takes publications again");
                    }
                    Ok(Some(_)) | Err(_) => {}
                },
            }
        }
    }

    async fn closed_within(&self, pause: Duration) -> bool {
        timeout(pause, self.closing.cancelled()).await.is_ok()
    }
}

/// Bounded: a blocked or dead connection does not answer.
async fn farewell(session: Arc<Session>) {
    if session.connection.status().connected() {
        let _ = timeout(super::CLOSE_TIMEOUT, session.connection.close(200, "done".into())).await;
    }
}

/// Full jitter: a thousand workers that lost one broker do not come back at one moment.
#[derive(Default)]
struct Pause {
    failures: u32,
}

impl Pause {
    fn next(&mut self, permanent: bool) -> Duration {
        let longest = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
        self.failures += 1;
        let jitter = longest.mul_f64(rand::random::<f64>());
        if permanent { LONGEST_PAUSE + jitter } else { jitter }
    }
}
