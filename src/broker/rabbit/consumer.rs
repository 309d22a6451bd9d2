//! One subscription: a channel of its own on the consuming connection, opened again for as long as it is wanted.
//!
//! The invariant: the end of the stream, an error in it and silence are all the end of the session, never of the
//! subscription; a receipt answers only on the channel that delivered it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    QueueDeclareOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Acker, Channel, Consumer};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Core;
use super::fault::{Fault, NOT_FOUND, SYNTAX_ERROR};
use super::link::Session;
use super::topology::retire;
use crate::broker::buffer::Buffer;
use crate::broker::{BrokerError, Delivery, Depth, Receipt, Source};

const ACK_TIMEOUT: Duration = Duration::from_secs(5);
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks at the state of channel and connection.
const WATCHDOG: Duration = Duration::from_secs(30);
/// Every so many looks the broker is asked whether the queue still knows its consumer.
const ASK_EVERY: u32 = 10;
const AFTER_FAILURE: Duration = Duration::from_secs(1);
const AFTER_REFUSAL: Duration = Duration::from_secs(30);

pub(super) struct Pump {
    pub(super) core: Arc<Core>,
    pub(super) source: Source,
    pub(super) queue: ShortString,
    pub(super) tag: ShortString,
    pub(super) prefetch: u16,
    pub(super) buffer: Arc<Buffer>,
    pub(super) stop: CancellationToken,
}

/// The channel of one session; it stays open until the last receipt of it is answered or dropped.
struct Live {
    channel: Channel,
    session: Arc<Session>,
    unanswered: AtomicUsize,
}

enum End {
    Stopped,
    /// The broker cancelled the consumer: as a rule the queue is gone.
    Cancelled,
    Failed(Fault),
}

impl Pump {
    pub(super) async fn run(self) {
        loop {
            let session = tokio::select! {
                session = self.core.consume.session() => session,
                () = self.stop.cancelled() => break,
                () = self.core.closing.cancelled() => break,
            };
            let end = match self.open(session.clone()).await {
                Ok((live, consumer)) => self.drain(&live, consumer).await,
                Err(fault) => End::Failed(fault),
            };
            // They cannot be answered any more, and will come again.
            drop(self.buffer.take());
            let pause = match end {
                End::Stopped => break,
                End::Cancelled => {
                    tracing::warn!(queue = %self.queue, "the broker cancelled the consumer; subscribing again");
                    self.core.repair().await;
                    Duration::ZERO
                }
                End::Failed(fault) => {
                    tracing::warn!(queue = %self.queue, error = fault.text, "the subscription was lost; subscribing again");
                    match fault.code {
                        NOT_FOUND => self.core.repair().await,
                        SYNTAX_ERROR => self.core.rescue(self.queue.as_str()).await,
                        _ => {}
                    }
                    if session.connection.status().connected() {
                        if fault.permanent() {
                            tracing::error!(queue = %self.queue, error = fault.text, advice = fault.advice(), "the queue cannot be used");
                            AFTER_REFUSAL
                        } else {
                            AFTER_FAILURE.mul_f64(rand::random())
                        }
                    } else {
                        session.broken.cancel();
                        self.core.consume.after(&session).await;
                        Duration::ZERO
                    }
                }
            };
            metrics::counter!("followthrough_broker_resubscribes_total").increment(1);
            let _ = timeout(pause, self.stop.cancelled()).await;
        }
        for delivery in self.buffer.close() {
            let _ = delivery.receipt.requeue().await;
        }
    }

    async fn open(&self, session: Arc<Session>) -> Result<(Arc<Live>, Consumer), Fault> {
        super::bounded(OPEN_TIMEOUT, async {
            let channel = session.connection.create_channel().await?;
            // Before the consumer: without it the broker would send the whole queue.
            channel.basic_qos(self.prefetch.max(1), BasicQosOptions::default()).await?;
            let consumer = channel
                .basic_consume(
                    self.queue.clone(),
                    self.tag.clone(),
                    BasicConsumeOptions::default(),
                    FieldTable::default(),
                )
                .await?;
            Ok((Arc::new(Live { channel, session, unanswered: AtomicUsize::new(0) }), consumer))
        })
        .await
    }

    async fn drain(&self, live: &Arc<Live>, mut consumer: Consumer) -> End {
        let rungs = format!("{}.retry.", self.core.topology.prefix);
        let (mut looks, mut seen) = (0, 0_u64);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    self.give_back(live, consumer, &rungs).await;
                    return End::Stopped;
                }
                () = self.core.closing.cancelled() => return End::Stopped,
                next = timeout(WATCHDOG, consumer.next()) => match next {
                    Ok(Some(Ok(delivery))) => {
                        seen += 1;
                        self.buffer.push(received(live, delivery, &rungs));
                        continue;
                    }
                    Ok(Some(Err(error))) => return End::Failed(error.into()),
                    Ok(None) => return End::Cancelled,
                    Err(_) => {}
                },
            }
            if !live.channel.status().connected() || !live.session.connection.status().connected() {
                return End::Failed(Fault::transient("the channel is closed"));
            }
            looks += 1;
            if looks % ASK_EVERY == 0 {
                let quiet = std::mem::take(&mut seen) == 0;
                if let Some(fault) = self.suspicion(live, quiet).await {
                    retire(live.channel.clone());
                    return End::Failed(fault);
                }
            }
        }
    }

    /// Silence is no error to lapin: asks the broker whether it is right that nothing comes.
    async fn suspicion(&self, live: &Live, quiet: bool) -> Option<Fault> {
        let depth = self.core.depth(&self.source).await.ok()?;
        if depth.consumers == 0 {
            return Some(Fault::transient("the queue knows no consumer"));
        }
        let room = live.unanswered.load(Ordering::Relaxed) < usize::from(self.prefetch);
        (quiet && room && depth.ready > 0).then(|| Fault::transient("messages wait, but none is delivered"))
    }

    /// Cancels the consumer, then returns what the broker had already sent and nobody has started.
    async fn give_back(&self, live: &Arc<Live>, mut consumer: Consumer, rungs: &str) {
        let cancelled = live.channel.basic_cancel(self.tag.clone(), BasicCancelOptions::default());
        if super::bounded(super::CLOSE_TIMEOUT, cancelled).await.is_err() {
            return;
        }
        while let Ok(Some(Ok(delivery))) = timeout(super::CLOSE_TIMEOUT, consumer.next()).await {
            let _ = received(live, delivery, rungs).receipt.requeue().await;
        }
    }
}

impl Core {
    /// On a channel of its own: a missing queue closes the channel it is asked on.
    pub(super) async fn depth(&self, source: &Source) -> Result<Depth, BrokerError> {
        let name = self.topology.queue(source);
        let queue = super::topology::short(&name)?;
        let asked = super::bounded(OPEN_TIMEOUT, async {
            let session = self.consume.session().await;
            let channel = session.connection.create_channel().await?;
            let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            let queue = channel.queue_declare(queue, options, FieldTable::default()).await?;
            retire(channel);
            Ok(Depth { ready: queue.message_count().into(), consumers: queue.consumer_count().into() })
        });
        asked.await.map_err(|fault| fault.about(&format!("the queue `{name}`")))
    }
}

fn received(live: &Arc<Live>, delivery: lapin::message::Delivery, rungs: &str) -> Delivery {
    live.unanswered.fetch_add(1, Ordering::Relaxed);
    let meta = super::table::meta(&delivery, rungs);
    let receipt = Box::new(Answerable { acker: delivery.acker, live: live.clone() });
    Delivery { body: delivery.data.into(), meta, receipt }
}

struct Answerable {
    /// Single-use, and useless once its channel is gone: nothing of an old session is ever answered on a new one.
    acker: Acker,
    live: Arc<Live>,
}

#[async_trait]
impl Receipt for Answerable {
    async fn ack(&self) -> Result<(), BrokerError> {
        settled(&timeout(ACK_TIMEOUT, self.acker.ack(BasicAckOptions::default())).await)
    }

    async fn requeue(&self) -> Result<(), BrokerError> {
        settled(&timeout(ACK_TIMEOUT, self.acker.nack(REQUEUE)).await)
    }
}

/// The default of lapin is to throw the message away.
const REQUEUE: BasicNackOptions = BasicNackOptions { multiple: false, requeue: true };

/// `false` means "not sent", as after a lost channel.
fn settled(answer: &Result<lapin::Result<bool>, tokio::time::error::Elapsed>) -> Result<(), BrokerError> {
    if matches!(answer, Ok(Ok(true))) {
        return Ok(());
    }
    metrics::counter!("followthrough_broker_acks_lost_total").increment(1);
    Err(BrokerError::AckLost)
}

impl Drop for Answerable {
    fn drop(&mut self) {
        self.live.unanswered.fetch_sub(1, Ordering::Relaxed);
        if !self.acker.usable() {
            return;
        }
        // Nobody answered: without this the broker would hold the message, and a place of the prefetch, for half an hour.
        if let Ok(runtime) = Handle::try_current() {
            let (acker, live) = (self.acker.clone(), self.live.clone());
            runtime.spawn(async move {
                let _ = timeout(ACK_TIMEOUT, acker.nack(REQUEUE)).await;
                drop(live);
            });
        }
    }
}
