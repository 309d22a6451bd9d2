//! Connections to PostgreSQL: few, warm, and none in doubt.
//!
//! The invariant: a connection is lent again only after its last transaction was ended and answered. One that
//! is in doubt (an error, a dropped await, silence) is closed, and the server rolls back by itself.
//!
//! Not sqlx's own pool: that one asks each connection twice per loan whether it lives, spreads the work and so
//! the prepared statements over all of them, and waits for ever for a peer that has fallen silent.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, PgPool};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::{Commit, Result, StoreError};

/// For a free connection, and again for a new one.
const ACQUIRE: Duration = Duration::from_secs(10);
/// What was used a moment ago lives; what lay longer is asked first.
const FRESH: Duration = Duration::from_secs(1);
const PING: Duration = Duration::from_secs(2);
/// A server does not notice that we are gone when the network fell silent in the middle of a transaction: its locks
/// would hold up everybody for hours. It ends what was abandoned a little after we gave it up ourselves.
const ABANDONED: &str = "SET idle_in_transaction_session_timeout = '20s'";
/// Then the operators may have moved the server, or want their connections back.
const LONGEST_LIFE: Duration = Duration::from_mins(30);
const LONGEST_REST: Duration = Duration::from_mins(5);

#[derive(Clone)]
pub(super) struct Pool(Arc<Inner>);

struct Inner {
    options: PgConnectOptions,
    permits: Arc<Semaphore>,
    /// A stack: the one used last is lent next, so that few are warm and the rest grow old.
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    connection: PgConnection,
    born: Instant,
    since: Instant,
}

/// A connection on loan.
pub struct Lent {
    connection: Option<PgConnection>,
    born: Instant,
    in_doubt: bool,
    /// Without a transaction around its one statement.
    alone: bool,
    pool: Pool,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    /// Connects once, so that wrong settings are told at start.
    pub(super) async fn connect(options: PgConnectOptions, most: u32) -> Result<Self> {
        let permits = Arc::new(Semaphore::new(usize::try_from(most).unwrap_or(usize::MAX)));
        let pool = Self(Arc::new(Inner { options, permits, idle: Mutex::default() }));
        drop(pool.lend().await?);
        Ok(pool)
    }

    pub(super) async fn lend(&self) -> Result<Lent> {
        let permit = timeout(ACQUIRE, self.0.permits.clone().acquire_owned())
            .await
            .map_err(|_| sqlx::Error::PoolTimedOut)?
            .map_err(|_| sqlx::Error::PoolClosed)?;
        let lent = |connection, born| Lent {
            connection: Some(connection),
            born,
            in_doubt: false,
            alone: false,
            pool: self.clone(),
            _permit: permit,
        };
        while let Some(Idle { mut connection, born, since }) = { self.idle().pop() } {
            if since.elapsed() < FRESH || matches!(timeout(PING, connection.ping()).await, Ok(Ok(()))) {
                return Ok(lent(connection, born));
            }
        }
        let connect = async {
            let mut connection = self.0.options.connect().await?;
            connection.execute(ABANDONED).await?;
            Ok::<_, sqlx::Error>(connection)
        };
        let connection = timeout(ACQUIRE, connect).await.map_err(|_| sqlx::Error::PoolTimedOut)??;
        Ok(lent(connection, Instant::now()))
    }

    /// Lends one with an open transaction.
    pub(super) async fn begin(&self, commit: Commit) -> Result<Lent> {
        let mut lent = self.lend().await?;
        lent.in_doubt = true;
        let begin = match commit {
            Commit::Durable => Some("BEGIN"),
            Commit::Soon => Some("BEGIN; SET LOCAL synchronous_commit = off"),
            Commit::Alone => None,
        };
        lent.alone = begin.is_none();
        if let Some(begin) = begin {
            lent.execute(begin).await?;
        }
        Ok(lent)
    }

    pub(super) async fn ping(&self) -> Result<()> {
        let mut lent = self.lend().await?;
        lent.in_doubt = true;
        timeout(PING, lent.ping()).await.map_err(|_| StoreError::Silent)??;
        lent.in_doubt = false;
        Ok(())
    }

    pub(super) async fn close(&self) {
        self.0.permits.close();
        let idle = std::mem::take(&mut *self.idle());
        for Idle { connection, .. } in idle {
            // A server that does not answer needs no farewell.
            let _ = timeout(PING, connection.close()).await;
        }
    }

    /// sqlx's migrator wants a pool of its own kind.
    pub(super) async fn for_migrations(&self) -> Result<PgPool> {
        Ok(PgPoolOptions::new().max_connections(1).connect_with(self.0.options.clone()).await?)
    }

    fn give_back(&self, connection: PgConnection, born: Instant) {
        let mut idle = self.idle();
        if idle.first().is_some_and(|oldest| oldest.since.elapsed() > LONGEST_REST) {
            idle.remove(0);
        }
        if born.elapsed() < LONGEST_LIFE && !self.0.permits.is_closed() {
            idle.push(Idle { connection, born, since: Instant::now() });
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lent {
    pub(super) async fn commit(mut self) -> Result<()> {
        if !self.alone {
            self.execute("COMMIT").await?;
        }
        self.in_doubt = false;
        Ok(())
    }

    pub(super) async fn rollback(mut self) -> Result<()> {
        // A lone statement has nothing to roll back; whatever went wrong, the connection is left in doubt.
        if !self.alone {
            self.execute("ROLLBACK").await?;
            self.in_doubt = false;
        }
        Ok(())
    }
}

impl Deref for Lent {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.connection.as_ref().expect("taken only by drop")
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.connection.as_mut().expect("taken only by drop")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        if self.in_doubt {
            // What broke this one broke the others too, as a rule: they are asked first or opened anew.
            self.pool.idle().clear();
        } else {
            self.pool.give_back(connection, self.born);
        }
    }
}
