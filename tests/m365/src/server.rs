//! The accept loop.
//!
//! Its own, because a lost answer has to be a torn connection and not a polite 500: every request carries the
//! token of its connection (`Connection`), and cancelling it drops the socket.

use std::net::SocketAddr;

use axum::extract::Request;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::{Sim, gateway, tls};

#[derive(Clone, Debug)]
pub struct Options {
    pub listen: SocketAddr,
    pub tls: bool,
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 0)), tls: false, seed: 1 }
    }
}

/// A running simulator; dropping it stops the server.
pub struct Running {
    pub sim: Sim,
    ca_pem: Option<String>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Running {
    pub fn base_url(&self) -> String {
        self.sim.base_url().to_owned()
    }

    /// The authority to trust when the simulator serves https.
    pub fn ca_pem(&self) -> Option<String> {
        self.ca_pem.clone()
    }

    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The connection a request came on.
#[derive(Clone)]
pub(crate) struct Connection(CancellationToken);

impl Connection {
    /// Tears the connection down. The future of the call is dropped with it, so this never returns.
    pub(crate) async fn abort(self) -> ! {
        self.0.cancel();
        loop {
            std::future::pending::<()>().await;
        }
    }
}

pub async fn start(options: Options) -> std::io::Result<Running> {
    let listener = TcpListener::bind(options.listen).await?;
    let address = listener.local_addr()?;
    let identity = if options.tls { Some(tls::identity(address.ip())?) } else { None };
    let (acceptor, ca_pem) = match identity {
        Some(identity) => (Some(TlsAcceptor::from(identity.server)), Some(identity.ca_pem)),
        None => (None, None),
    };
    let host = if address.ip().is_unspecified() { "127.0.0.1".to_owned() } else { address.ip().to_string() };
    let scheme = if options.tls { "https" } else { "http" };

    let sim = Sim::new(options.seed);
    sim.bind(format!("{scheme}://{host}:{}", address.port()), gateway::routes().with_state(sim.clone()));
    let app = gateway::app(&sim);
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    tasks.spawn(accept(listener, acceptor, app, stop.clone(), tasks.clone()));
    Ok(Running { sim, ca_pem, stop, tasks })
}

async fn accept(
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    app: axum::Router,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => continue,
            },
        };
        let _ = stream.set_nodelay(true);
        let (app, connection, acceptor) = (app.clone(), stop.child_token(), acceptor.clone());
        tasks.spawn(async move {
            match acceptor {
                None => serve(stream, app, connection).await,
                Some(acceptor) => {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve(stream, app, connection).await;
                    }
                }
            }
        });
    }
}

async fn serve<S>(stream: S, app: axum::Router, connection: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let token = Connection(connection.clone());
    let service = app.map_request(move |mut request: Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(token.clone());
        request.map(axum::body::Body::new)
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::select! {
        _ = serving => {}
        () = connection.cancelled() => {}
    }
}
