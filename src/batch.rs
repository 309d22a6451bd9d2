//! Group commit: requests that arrive while a transaction is committing share the next one.
//!
//! The invariant: one request that the database refuses does not fail its neighbours; they are run again one
//! by one.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use crate::outcome::{Classify, Disposition};
use crate::store::StoreError;

/// Large enough to make a commit cheap, small enough to keep a statement short.
const LARGEST: usize = 64;

type Reply<A> = oneshot::Sender<Result<A, BatchError>>;

/// A store error that every request of a batch can be given.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct BatchError(Arc<StoreError>);

impl BatchError {
    /// The same request would be refused again.
    pub fn is_refusal(&self) -> bool {
        self.0.is_refusal()
    }
}

impl From<StoreError> for BatchError {
    fn from(error: StoreError) -> Self {
        Self(Arc::new(error))
    }
}

impl Classify for BatchError {
    fn disposition(&self) -> Disposition {
        self.0.disposition()
    }

    fn code(&self) -> std::borrow::Cow<'static, str> {
        self.0.code()
    }
}

pub(crate) struct Batcher<Q, A> {
    queue: mpsc::Sender<(Q, Reply<A>)>,
}

impl<Q, A> Clone for Batcher<Q, A> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone() }
    }
}

impl<Q, A> Batcher<Q, A>
where
    Q: Clone + Send + Sync + 'static,
    A: Send + 'static,
{
    /// Ends when the last clone is dropped.
    pub(crate) fn start<F, R>(run: R) -> Self
    where
        R: Fn(Arc<[Q]>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Vec<A>, StoreError>> + Send + 'static,
    {
        Self::with_room(LARGEST * 4, run)
    }

    /// The same for a queue of this many.
    pub(crate) fn with_room<F, R>(room: usize, run: R) -> Self
    where
        R: Fn(Arc<[Q]>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Vec<A>, StoreError>> + Send + 'static,
    {
        let (queue, mut requests) = mpsc::channel::<(Q, Reply<A>)>(room);
        tokio::spawn(async move {
            let mut gathered = Vec::with_capacity(LARGEST);
            while requests.recv_many(&mut gathered, LARGEST).await > 0 {
                let (batch, replies): (Vec<Q>, Vec<Reply<A>>) = gathered.drain(..).unzip();
                answer(&run, batch, replies).await;
            }
        });
        Self { queue }
    }

    pub(crate) async fn submit(&self, request: Q) -> Result<A, BatchError> {
        let (reply, answer) = oneshot::channel();
        self.queue.send((request, reply)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// `None` when the queue is full: whoever asks has a way to come again.
    pub(crate) async fn try_submit(&self, request: Q) -> Option<Result<A, BatchError>> {
        let (reply, answer) = oneshot::channel();
        match self.queue.try_send((request, reply)) {
            Ok(()) => Some(answer.await.unwrap_or_else(|_| Err(stopped()))),
            Err(TrySendError::Full(_)) => None,
            Err(TrySendError::Closed(_)) => Some(Err(stopped())),
        }
    }
}

fn stopped() -> BatchError {
    StoreError::Corrupt("the process has stopped".into()).into()
}

async fn answer<Q, A, F, R>(run: &R, batch: Vec<Q>, replies: Vec<Reply<A>>)
where
    Q: Clone,
    R: Fn(Arc<[Q]>) -> F,
    F: Future<Output = Result<Vec<A>, StoreError>>,
{
    let batch: Arc<[Q]> = batch.into();
    match guarded(run, batch.clone()).await {
        Ok(answers) => {
            for (reply, answer) in replies.into_iter().zip(answers) {
                // Nobody waits for the answer any more: its attempt was dropped.
                let _ = reply.send(Ok(answer));
            }
        }
        Err(error) if batch.len() > 1 && error.is_refusal() => {
            for (request, reply) in batch.iter().zip(replies) {
                let alone = guarded(run, [request.clone()].into()).await;
                let alone = alone.map_err(BatchError::from).and_then(|mut answers| {
                    answers.pop().ok_or_else(|| StoreError::Corrupt("no answer".into()).into())
                });
                let _ = reply.send(alone);
            }
        }
        Err(error) => {
            let error = BatchError::from(error);
            for reply in replies {
                let _ = reply.send(Err(error.clone()));
            }
        }
    }
}

/// A panic is an answer, too: the batcher serves everybody in the process.
async fn guarded<Q, A, F, R>(run: &R, batch: Arc<[Q]>) -> Result<Vec<A>, StoreError>
where
    R: Fn(Arc<[Q]>) -> F,
    F: Future<Output = Result<Vec<A>, StoreError>>,
{
    let run = AssertUnwindSafe(async { run(batch).await }).catch_unwind();
    run.await.unwrap_or_else(|_| Err(StoreError::Panicked))
}
