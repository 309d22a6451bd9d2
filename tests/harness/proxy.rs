//! A TCP proxy between a client and a server, for faults of the network that can be had on one machine.
//!
//! The invariant: what the client sees is what a network does: connections cut, bytes that do not come, a port that
//! accepts and says nothing, a port that refuses.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Open,
    /// No byte passes, and nobody is told; new connections are accepted and kept in silence.
    Frozen,
    /// New connections are closed at once.
    Refusing,
}

pub struct Proxy {
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
    /// Counts the cuts.
    cuts: watch::Sender<u64>,
    /// Counts how often the present connections were left in silence.
    strands: watch::Sender<u64>,
    accepted: watch::Receiver<u64>,
    _running: DropGuard,
}

impl Proxy {
    /// `upstream` is `host:port`.
    pub async fn to(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound port");
        let (mode, cuts, strands) =
            (watch::Sender::new(Mode::Open), watch::Sender::new(0), watch::Sender::new(0));
        let (counted, accepted) = watch::channel(0);
        let running = CancellationToken::new();
        let wires = Arc::new(Wires {
            upstream: upstream.to_owned(),
            mode: mode.subscribe(),
            cuts: cuts.subscribe(),
            strands: strands.subscribe(),
        });
        let stop = running.clone();
        tokio::spawn(async move {
            let serve = async {
                while let Ok((client, _)) = listener.accept().await {
                    counted.send_modify(|count| *count += 1);
                    let (wires, stop) = (wires.clone(), stop.clone());
                    tokio::spawn(async move { stop.run_until_cancelled(wires.carry(client)).await });
                }
            };
            stop.run_until_cancelled(serve).await;
        });
        Self { address, mode, cuts, strands, accepted, _running: running.drop_guard() }
    }

    /// The URL of a server, led through this proxy.
    pub fn url(&self, server: &str) -> String {
        let mut url = url::Url::parse(server).expect("a URL");
        url.set_host(Some(&self.address.ip().to_string())).expect("a host");
        url.set_port(Some(self.address.port())).expect("a port");
        url.into()
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Cuts every present connection.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// No byte passes on the present connections any more and nobody is told, as when a machine is gone; new ones
    /// are as the mode says.
    pub fn strand(&self) {
        self.strands.send_modify(|strands| *strands += 1);
    }

    /// How many connections were accepted so far.
    pub fn accepted(&self) -> u64 {
        *self.accepted.borrow()
    }
}

struct Wires {
    upstream: String,
    mode: watch::Receiver<Mode>,
    cuts: watch::Receiver<u64>,
    strands: watch::Receiver<u64>,
}

impl Wires {
    async fn carry(&self, client: TcpStream) {
        let mut cuts = self.cuts.clone();
        cuts.mark_unchanged();
        let mut strands = self.strands.clone();
        strands.mark_unchanged();
        if *self.mode.borrow() == Mode::Refusing {
            return;
        }
        let both = async {
            let mut mode = self.mode.clone();
            mode.wait_for(|mode| *mode != Mode::Frozen).await.ok()?;
            let server = TcpStream::connect(&self.upstream).await.ok()?;
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::select! {
                () = pour(from_client, to_server, self.mode.clone()) => {}
                () = pour(from_server, to_client, self.mode.clone()) => {}
            }
            Some(())
        };
        // Pinned out here: a stranded connection stays open.
        tokio::pin!(both);
        tokio::select! {
            // First, so that nothing that was frozen slips through when a cut and the thaw come together.
            biased;
            _ = cuts.changed() => {}
            _ = strands.changed() => { let _ = cuts.changed().await; }
            _ = &mut both => {}
        }
    }
}

async fn pour(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut mode: watch::Receiver<Mode>) {
    let mut chunk = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut chunk).await {
        if mode.wait_for(|mode| *mode != Mode::Frozen).await.is_err()
            || to.write_all(&chunk[..length]).await.is_err()
        {
            return;
        }
    }
}
