//! Connections kept open between calls, and calls over one that the server is just closing.
//!
//! A server may close an idle connection at any time, even while a request is on its way (RFC 9112 §9.5). If hyper
//! notices before it has written anything, it uses another connection. If the two cross, the call ends with a reset, or
//! with the end of the stream instead of an answer. That says nothing of the API if the connection had been used
//! before.
//!
//! A call for which a connection is opened may still be sent over an older one that became free meanwhile. So
//! connections are identified by their local address: [`watched`] returns that of the one that was opened for a call,
//! and the error has that of the one that broke ([`was_reused`]).
//!
//! Such a call is repeated; one over a new connection is not. hyper's error shows whether the request was written to
//! its end: only if not, it cannot have been carried out, since a reset instead of an answer does not show what was
//! read before. So nearly all count as possibly carried out. The repetition gets a new connection, since the other idle
//! ones are as old as the first.
//!
//! Idle connections are dropped after 1.5 s, before any well-known server drops them (`LONGEST_IDLE`). Lanes that call
//! less often pay with a handshake for each call, less than one a second.

use std::cell::Cell;
use std::error::Error;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use hyper::http::Extensions;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpInfo};

/// How long a connection may be idle before we drop it: less than servers commonly allow, so that they do not close it
/// first. Their shortest default is gunicorn's (2 s), then those of Node.js, Apache and uvicorn (5 s), an AWS ALB (60
/// s) and nginx (75 s).
///
/// A lane that calls less often than every 1.5 s pays with a new connection for each call, so less than one a second:
/// two round trips, and for TLS 0.2 ms of CPU if the session is resumed, else 0.4 ms. A lane that calls more often
/// keeps its connections, as the last used one is reused first.
pub(super) const LONGEST_IDLE: Duration = Duration::from_millis(1500);

/// hyper's text for an error while writing a request; nothing else identifies it. Should hyper change the text, such a
/// call counts as possibly carried out.
const NOT_WRITTEN: &str = "error writing a body to connection";

tokio::task_local! {
    /// The connection that was opened for this task's call.
    static OPENED: Cell<Option<ConnectionId>>;
}

/// A connection, identified by its local address.
pub(super) type ConnectionId = SocketAddr;

/// Runs in the client's connector: records which connection was opened.
pub(super) fn connected<C: Connection>(connection: C) -> C {
    // Outside of a call if an older connection became free first: this one is then kept as idle.
    let _ = OPENED.try_with(|opened| opened.set(local_address(&connection.connected())));
    connection
}

/// Awaits `sending`, and returns the connection that was opened for it, if any.
pub(super) async fn watched<T>(sending: impl Future<Output = T>) -> (T, Option<ConnectionId>) {
    let watching = async {
        let sent = sending.await;
        (sent, OPENED.with(Cell::get))
    };
    OPENED.scope(Cell::new(None), watching).await
}

/// Whether a call broke over another connection than the one `opened` for it, if any. That one had been used before; if
/// it was opened for another call and never used it still counts as used, which costs one more call.
pub(super) fn was_reused(causes: &[&(dyn Error + 'static)], opened: Option<ConnectionId>) -> bool {
    let broken = causes.iter().find_map(|cause| cause.downcast_ref::<legacy::Error>()?.connect_info());
    match broken.and_then(local_address) {
        Some(broken) => opened != Some(broken),
        None => opened.is_none(),
    }
}

fn local_address(connected: &Connected) -> Option<SocketAddr> {
    let mut extras = Extensions::new();
    connected.get_extras(&mut extras);
    extras.get::<HttpInfo>().map(HttpInfo::local_addr)
}

/// Whether the connection was closed under the call, and if so, whether the call may have been carried out: not if it
/// could not be written to its end, as the server cannot have read it whole. hyper does not distinguish a truncated
/// head from none; the call may have been carried out in either case.
pub(super) fn closed(causes: &[&(dyn Error + 'static)]) -> Option<MayHaveBeenCarriedOut> {
    let is_closed = causes.iter().any(|cause| {
        cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_incomplete_message)
            || cause.downcast_ref::<io::Error>().is_some_and(|error| is_end(error.kind()))
    });
    let is_unwritten = || causes.iter().any(|cause| cause.is::<hyper::Error>() && cause.to_string() == NOT_WRITTEN);
    is_closed.then(|| !is_unwritten())
}

type MayHaveBeenCarriedOut = bool;

/// The last is rustls' error for a stream that ends without close_notify.
fn is_end(kind: ErrorKind) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(kind, ConnectionReset | ConnectionAborted | BrokenPipe | UnexpectedEof)
}
