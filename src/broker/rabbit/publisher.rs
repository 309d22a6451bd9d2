//! Publishing in windows on a small pool of confirm channels.
//!
//! The invariant: success is judged per window by message id. lapin hangs a returned message on whichever confirm
//! completes next, so a channel carries one window at a time, every confirm of it is awaited, and what came back is
//! subtracted from what was acknowledged.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, PublisherConfirm};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::fault::{Fault, NOT_FOUND};
use super::link::Link;
use super::topology::{retire, short};
use crate::broker::{BrokerError, MAX_BODY, Outgoing, Target, Topology};
use crate::clock::Clock;

/// For the wait for a channel, and again for the window with its confirms.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);
/// Windows in flight at one time.
const LANES: usize = 8;
/// Larger windows gain nothing and hold more in memory.
const LONGEST_WINDOW: usize = 256;
const HEAVIEST_WINDOW: usize = 2 * MAX_BODY;
/// All headers travel in one frame, and a broker closes the connection over one that is too large.
const MAX_HEADERS: usize = 64 * 1024;

type Answer = Result<(), BrokerError>;

pub(super) struct Publisher {
    link: Arc<Link>,
    topology: Arc<Topology>,
    clock: Clock,
    lanes: Semaphore,
    idle: Mutex<Vec<Lane>>,
}

struct Lane {
    channel: Channel,
    generation: u64,
}

/// A message with its address at the broker.
struct Letter<'a> {
    message: &'a Outgoing,
    exchange: ShortString,
    key: ShortString,
    /// An event that nobody listens to is no error; a job that no queue takes is one.
    mandatory: bool,
}

/// What became of a window as a whole.
#[derive(Default)]
pub(super) struct Published {
    pub(super) answers: Vec<Answer>,
    /// An exchange was missing: the topology should be declared again.
    pub(super) missing: bool,
}

impl Publisher {
    pub(super) fn new(link: Arc<Link>, topology: Arc<Topology>, clock: Clock) -> Self {
        Self { link, topology, clock, lanes: Semaphore::new(LANES), idle: Mutex::default() }
    }

    pub(super) async fn publish(&self, messages: &[Outgoing]) -> Published {
        let mut published = Published::default();
        let mut letters = Vec::with_capacity(messages.len());
        for (index, message) in messages.iter().enumerate() {
            published.answers.push(Ok(()));
            match self.letter(message) {
                Ok(letter) => letters.push((index, letter)),
                Err(error) => published.answers[index] = Err(error),
            }
        }
        let mut rest = letters.as_slice();
        while !rest.is_empty() {
            let mut weight = 0;
            let fits = rest.iter().take(LONGEST_WINDOW).take_while(|(_, letter)| {
                weight += letter.message.body.len();
                weight <= HEAVIEST_WINDOW
            });
            let (window, after) = rest.split_at(fits.count());
            published.missing |= self.window(window, &mut published.answers).await;
            rest = after;
        }
        published
    }

    fn letter<'a>(&self, message: &'a Outgoing) -> Result<Letter<'a>, BrokerError> {
        if message.body.len() > MAX_BODY {
            return Err(BrokerError::TooLarge(message.body.len()));
        }
        let unroutable = || BrokerError::Unroutable(message.target.to_string());
        let (exchange, key, mandatory) = match &message.target {
            Target::Job { kind } => (self.topology.jobs(), kind, true),
            Target::Rung { rung, kind } => {
                // A missing exchange would close the channel and take the whole window with it.
                let rung = self.topology.rung(rung).ok_or_else(unroutable)?;
                (self.topology.retry(&rung.name), kind, true)
            }
            Target::Dead { kind } => (self.topology.dead(), kind, true),
            Target::Event { kind } => (self.topology.events(), kind, false),
        };
        let key = match (ShortString::try_new(key.as_str()), &message.target) {
            (Ok(key), _) => key,
            // The dead letters take everything, and their key is only a hint.
            (Err(_), Target::Dead { .. }) => ShortString::from("unknown"),
            (Err(_), _) => return Err(unroutable()),
        };
        let headers: usize = message.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        if headers > MAX_HEADERS {
            return Err(BrokerError::TooLarge(headers));
        }
        Ok(Letter { message, exchange: short(&exchange)?, key, mandatory })
    }

    /// Publishes one window on one channel and fills in its answers; `true` when an exchange was missing.
    async fn window(&self, window: &[(usize, Letter<'_>)], answers: &mut [Answer]) -> bool {
        let waited = timeout_at(Instant::now() + PUBLISH_TIMEOUT, async {
            let permit = self.lanes.acquire().await;
            (permit, self.lane().await)
        });
        let (_permit, lane) = match waited.await {
            Ok((permit, Ok(lane))) => (permit, lane),
            Ok((_, Err(fault))) => {
                fill(window, answers, &BrokerError::Unavailable(fault.text));
                return false;
            }
            Err(_) => {
                let why = "it is away, or refuses publications (memory or disk alarm)";
                fill(window, answers, &BrokerError::Unavailable(why.into()));
                return false;
            }
        };
        let deadline = Instant::now() + PUBLISH_TIMEOUT;
        let (confirms, mut broken) = self.send(&lane.channel, window, answers, deadline).await;
        let mut missing = broken.as_ref().is_some_and(|fault| fault.code == NOT_FOUND);
        let mut returned = HashSet::new();
        for (index, confirm) in confirms {
            match timeout_at(deadline, confirm).await {
                Ok(Ok(Confirmation::Ack(back))) => returned.extend(back.map(|back| key_of(&back))),
                Ok(Ok(Confirmation::Nack(back))) => {
                    returned.extend(back.map(|back| key_of(&back)));
                    answers[index] = Err(BrokerError::Refused("it is full, or its disk is".into()));
                }
                Ok(Ok(Confirmation::NotRequested)) => {
                    tracing::error!(
                        "a channel without confirms was used to publish: a fault of this program"
                    );
                    answers[index] = Err(BrokerError::Unconfirmed);
                    broken.get_or_insert_with(|| Fault::transient("no confirms"));
                }
                Ok(Err(error)) => {
                    let fault = Fault::from(error);
                    missing |= fault.code == NOT_FOUND;
                    answers[index] = Err(BrokerError::Unconfirmed);
                    broken.get_or_insert(fault);
                }
                Err(_) => {
                    answers[index] = Err(BrokerError::Unconfirmed);
                    broken.get_or_insert_with(|| Fault::transient("no confirm in time"));
                }
            }
        }
        for (index, letter) in window {
            let key =
                (letter.message.message_id.to_string(), letter.exchange.to_string(), letter.key.to_string());
            if answers[*index].is_ok() && returned.contains(&key) {
                answers[*index] = Err(BrokerError::Unroutable(letter.message.target.to_string()));
                // Unknown kinds take the alternate exchange; what comes back lacks one of our own queues.
                missing = true;
            }
        }
        match broken {
            None => self.idle().push(lane),
            Some(fault) => {
                tracing::warn!(error = fault.text, "a window was not confirmed as a whole");
                retire(lane.channel);
            }
        }
        missing
    }

    /// Writes the window; on the first failure the rest is not sent and says so.
    async fn send(
        &self,
        channel: &Channel,
        window: &[(usize, Letter<'_>)],
        answers: &mut [Answer],
        deadline: Instant,
    ) -> (Vec<(usize, PublisherConfirm)>, Option<Fault>) {
        let now = self.clock.now();
        let mut confirms = Vec::with_capacity(window.len());
        for (position, (index, letter)) in window.iter().enumerate() {
            let properties: BasicProperties = super::table::properties(letter.message, now);
            let options = BasicPublishOptions { mandatory: letter.mandatory, immediate: false };
            let sent = channel.basic_publish(
                letter.exchange.clone(),
                letter.key.clone(),
                options,
                &letter.message.body,
                properties,
            );
            let fault = match timeout_at(deadline, sent).await {
                Ok(Ok(confirm)) => {
                    confirms.push((*index, confirm));
                    continue;
                }
                Ok(Err(error)) => Fault::from(error),
                Err(_) => Fault::transient("the message could not be written in time"),
            };
            // It may have been written all the same; those after it were not.
            answers[*index] = Err(BrokerError::Unconfirmed);
            fill(&window[position + 1..], answers, &BrokerError::Unavailable(fault.text.clone()));
            return (confirms, Some(fault));
        }
        (confirms, None)
    }

    /// A confirm channel of the live session that no other window uses.
    async fn lane(&self) -> Result<Lane, Fault> {
        loop {
            let session = self.link.unblocked().await;
            while let Some(lane) = { self.idle().pop() } {
                if lane.generation == session.generation && lane.channel.status().connected() {
                    return Ok(lane);
                }
            }
            let opened = super::bounded(PUBLISH_TIMEOUT, async {
                let channel = session.connection.create_channel().await?;
                channel.confirm_select(ConfirmSelectOptions::default()).await?;
                Ok(channel)
            });
            match opened.await {
                Ok(channel) => return Ok(Lane { channel, generation: session.generation }),
                // Lost between being told and being used: the supervisor finds out as well; wait for its next session.
                Err(_) if !session.connection.status().connected() => {
                    session.broken.cancel();
                    self.link.after(&session).await;
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Lane>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fill(window: &[(usize, Letter<'_>)], answers: &mut [Answer], error: &BrokerError) {
    for (index, _) in window {
        answers[*index] = Err(error.clone());
    }
}

/// The same id may be on its way to two places, so the address belongs to the key.
fn key_of(back: &lapin::message::BasicReturnMessage) -> (String, String, String) {
    let id = back.delivery.properties.message_id().as_ref().map(ToString::to_string).unwrap_or_default();
    (id, back.delivery.exchange.to_string(), back.delivery.routing_key.to_string())
}
