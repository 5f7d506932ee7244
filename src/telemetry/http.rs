//! `/metrics`, `/livez` and `/readyz`: read only.
//!
//! Beyond the limit the oldest connection is closed, not the newest. If 240 clients sit on half a request, a limit that
//! makes others wait or refuses them keeps the scraper out as well; a client that sends its request at once is served
//! in moments and never the oldest. Neither axum nor hyper has such a limit. The timeouts are hyper's and tokio's. Each
//! connection is answered once: an idle one takes a place, and a scrape every few seconds gains nothing from it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::{Metrics, Readiness};

/// The text format of Prometheus
/// (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>).
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Connections open at a time. The port uses no more of the process's descriptors: the rest is for lanes.
pub const MAX_CONNECTIONS: usize = 32;
/// From the connection to the end of the request's headers.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(5);
/// From the connection to the end of the answer. Prometheus gives up as early, by default.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Read buffer in bytes, and so the largest request line and headers. No route reads a body.
const BUFFER: usize = 8 * 1024;
/// Pause after a connection that could not be accepted, as when no descriptor is left.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

/// Opens the port.
///
/// # Errors
/// The system's, for instance where the port is taken.
pub async fn bind(listen: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(listen).await
}

/// Answers until the process ends, each connection once.
///
/// Beyond [`MAX_CONNECTIONS`] the oldest is closed, not the newest refused: a scraper is done in moments, so the oldest
/// connection is a slow client's.
pub async fn serve(listener: TcpListener, metrics: Metrics, readiness: Arc<Readiness>) -> Infallible {
    let router = Router::new()
        .route("/metrics", get(render))
        .with_state(metrics)
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(ready).with_state(readiness));
    let (mut open, mut failing) = (VecDeque::new(), false);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    warn!("cannot accept connections for metrics and health, trying on: {error}");
                }
                sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        failing = false;
        open.retain(|connection: &JoinHandle<()>| !connection.is_finished());
        if open.len() >= MAX_CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
            // Then its descriptor is free.
            let _ = oldest.await;
        }
        open.push_back(tokio::spawn(answer(stream, router.clone())));
    }
}

async fn answer(stream: TcpStream, router: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIMEOUT)
        .max_buf_size(BUFFER)
        // A connection that is kept idle takes the place of an active one.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // An error here is the client's problem.
    let _ = timeout(TIMEOUT, connection).await;
}

async fn render(State(metrics): State<Metrics>) -> Response {
    match metrics.render() {
        Ok(text) => ([(CONTENT_TYPE, PROMETHEUS_TEXT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn ready(State(readiness): State<Arc<Readiness>>) -> Response {
    let (ready, report) = readiness.report();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    match serde_json::to_string(&report) {
        Ok(body) => (status, [(CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
