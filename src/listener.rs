//! A listener: connections come in, are served, and are let go.
//!
//! The invariant: a peer that does not end its request's head is let go after seconds, and no peer holds up
//! the end of the process for longer.

use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long a peer may take to say what it wants, or say nothing between two requests.
const HEAD: Duration = Duration::from_secs(30);
/// How long answers under way may take once the listener closes.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// Serves until `closed`.
pub(crate) async fn serve(mut listener: TcpListener, router: Router, closed: CancellationToken) {
    serve_with(&mut listener, router, closed, HEAD, LAST_ANSWERS).await;
}

async fn serve_with(
    listener: &mut TcpListener,
    router: Router,
    closed: CancellationToken,
    head: Duration,
    last_answers: Duration,
) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(head);
    let open = GracefulShutdown::new();
    loop {
        let (stream, _) = tokio::select! {
            accepted = Listener::accept(listener) => accepted,
            () = closed.cancelled() => break,
        };
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection = open.watch(builder.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
    if timeout(last_answers, open.shutdown()).await.is_err() {
        tracing::warn!("connections are cut off that did not end");
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    const SHORT: Duration = Duration::from_secs(2);
    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_peer_that_dawdles_is_let_go_and_holds_up_no_end() {
        let mut listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let closed = CancellationToken::new();
        let stop = closed.clone();
        let router = Router::new()
            .route("/", get(async || "here"))
            .route("/never", get(async || std::future::pending::<()>().await));
        let serving =
            tokio::spawn(async move { serve_with(&mut listener, router, stop, SHORT, SHORT).await });
        let send = async |text: &str| {
            let mut stream = TcpStream::connect(at).await.unwrap();
            stream.write_all(text.as_bytes()).await.unwrap();
            stream
        };
        let mut answer = String::new();
        let mut good = send("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        good.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("here"), "{answer}");
        for dawdling in ["", "GET / HTTP/1.1\r\nx-slow: "] {
            let mut slow = send(dawdling).await;
            let ended = timeout(LONG, slow.read_to_end(&mut Vec::new())).await;
            assert!(ended.is_ok(), "it is let go after {dawdling:?}");
        }
        let _held = send("GET /never HTTP/1.1\r\nhost: a\r\n\r\n").await;
        closed.cancel();
        timeout(LONG, serving).await.expect("it ends all the same").unwrap();
    }
}
