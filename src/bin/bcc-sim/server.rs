//! Connections: one task each, with hyper's HTTP/1 directly, because a reset needs the socket.

use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderValue, LOCATION, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use jiff::fmt::rfc2822::DateTimePrinter;
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use crate::body::Payload;
use crate::clock::Clock;
use crate::control;
use crate::reply::{Answer, ApiError, Ending, JSON, Reply};
use crate::request::Received;
use crate::simulator::Simulator;

/// Far more than any call of the API: a batch of 100 ids has 2 KiB.
const LARGEST_CALL: usize = 1024 * 1024;

/// A control request can set a fleet of a million.
const LARGEST_CONTROL: usize = 128 * 1024 * 1024;

/// Request line and headers.
const LARGEST_HEAD: usize = 64 * 1024;

/// Why a connection ends without an answer.
#[derive(Debug, thiserror::Error)]
pub enum Abandoned {
    #[error("the connection is reset, as ordered")]
    Reset,
    #[error("the client did not send its request to the end")]
    Unread,
}

/// Accepts connections for ever.
pub async fn serve(simulator: Arc<Simulator>, listener: TcpListener) -> Infallible {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                tokio::spawn(connection(simulator.clone(), stream, peer));
            }
            Err(error) => {
                // Most likely no file descriptors are left: they become free as connections close.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(simulator: Arc<Simulator>, stream: TcpStream, peer: SocketAddr) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "cannot set TCP_NODELAY");
    }
    let service = service_fn(|request| handle(&simulator, request));
    let mut connection = hyper::server::conn::http1::Builder::new()
        .max_buf_size(LARGEST_HEAD)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service);
    let Err(error) = (&mut connection).await else { return };
    tracing::debug!(%peer, %error, "connection ended");
    if matches!(error.source().and_then(|source| source.downcast_ref()), Some(Abandoned::Reset)) {
        // With a linger time of zero, the close that follows sends RST instead of FIN.
        let stream = connection.into_parts().io.into_inner();
        if let Err(error) = stream.set_zero_linger() {
            tracing::warn!(%peer, %error, "cannot reset the connection, closing it instead");
        }
    }
}

async fn handle(simulator: &Simulator, request: Request<Incoming>) -> Result<Response<Payload>, Abandoned> {
    let request_id = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    let reply = if let Some(path) = path.strip_prefix("/_sim/") {
        let body = read(body, LARGEST_CONTROL).await?;
        control::handle(simulator, &parts.method, path, body).into()
    } else {
        let body = read(body, LARGEST_CALL).await?;
        match body.and_then(|body| Received::new(&parts, body)) {
            Ok(received) => simulator.call(&received, request_id),
            Err(error) => Answer::error(&error, request_id).into(),
        }
    };
    carry_out(simulator, reply, request_id).await
}

async fn carry_out(simulator: &Simulator, reply: Reply, request_id: Uuid) -> Result<Response<Payload>, Abandoned> {
    if !reply.delay.is_zero() {
        tokio::time::sleep(reply.delay).await;
    }
    match reply.ending {
        Ending::Send(answer) => Ok(response(simulator.clock(), answer, request_id)),
        Ending::Reset => Err(Abandoned::Reset),
        // hyper drops this when the client disconnects.
        Ending::Hang => std::future::pending().await,
    }
}

fn response(clock: Clock, answer: Answer, request_id: Uuid) -> Response<Payload> {
    let (payload, length) = Payload::new(answer.body, answer.manner);
    let mut response = Response::new(payload);
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, length.into());
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    // By the simulated clock: a client may learn its clock's offset from it.
    let date = DateTimePrinter::new().timestamp_to_rfc9110_string(&clock.now());
    let texts = [
        (DATE, date.ok()),
        // A proxy that answers instead of the API has no request id.
        (
            hyper::header::HeaderName::from_static("x-bce-request-id"),
            (answer.content_type == JSON).then(|| request_id.to_string()),
        ),
        (LOCATION, answer.location),
        (RETRY_AFTER, answer.retry_after.map(|seconds| seconds.to_string())),
    ];
    for (name, text) in texts {
        if let Some(Ok(value)) = text.map(HeaderValue::try_from) {
            headers.insert(name, value);
        }
    }
    for (name, value) in answer.headers {
        headers.insert(name, value);
    }
    response
}

/// The whole body, or a 413 if it is too large.
async fn read(body: Incoming, largest: usize) -> Result<Result<Bytes, ApiError>, Abandoned> {
    match Limited::new(body, largest).collect().await {
        Ok(body) => Ok(Ok(body.to_bytes())),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            let message = format!("The request body is larger than {largest} bytes");
            Ok(Err(ApiError::new(413, "EntityTooLarge", message)))
        }
        Err(_) => Err(Abandoned::Unread),
    }
}
