//! Connections that are kept open between calls, and calls that go out over one the server is just closing.
//!
//! A server may close an idle connection at any time, also while a request is on its way to it (RFC 9112 §9.5). Where
//! hyper sees that before it has written anything, it takes another connection by itself. Where the two cross, the call
//! ends with a reset, or with the end of the stream in place of an answer. That tells nothing of the API, as long as the
//! connection had been used before.
//!
//! A call that has a connection made for it may still go out over an older one that came free meanwhile. So each connection is
//! known by its local address: [`watched`] tells that of the one that was made for a call, and the error that of the one
//! that broke ([`was_reused`]).
//!
//! Such a call is made once more; one over a new connection is not. hyper's error says whether the request was written to
//! its end: only where it was not, the call cannot have been carried out, since a reset in place of an answer shows
//! nothing of what was read before. So nearly all are taken for calls that may have been. The second call has a connection
//! of its own, since what is idle beside the first is as old.
//!
//! Idle connections are dropped after 1.5 s, before any well-known server does it (`LONGEST_IDLE`). Lanes that call less
//! often than that pay with a handshake for each call, less than one a second.

use std::cell::Cell;
use std::error::Error;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use hyper::http::Extensions;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpInfo};

/// How long a connection may be idle before it is dropped: less than what servers commonly allow, so that it is we who
/// close it. Of their defaults gunicorn's is the shortest (2 s), then Node.js, Apache and uvicorn (5 s), an AWS ALB (60 s)
/// and nginx (75 s).
///
/// A lane that calls less often than every 1.5 s pays with a new connection for each call, so with less than one a second:
/// two round trips, and for TLS 0.2 ms of processor time where the session is resumed, else 0.4 ms. A lane that calls more
/// often keeps its connections, as the one used last is used first.
pub(super) const LONGEST_IDLE: Duration = Duration::from_millis(1500);

/// What hyper calls an error of writing a request, which it has no other way to tell. Where it should come to say so in
/// other words, a call counts as one that may have been carried out.
const NOT_WRITTEN: &str = "error writing a body to connection";

tokio::task_local! {
    /// The connection that was made for the call that this task makes.
    static MADE: Cell<Option<Made>>;
}

/// A connection, by its local address.
pub(super) type Made = SocketAddr;

/// Stands in the client's connector: notes which connection was made.
pub(super) fn connected<C: Connection>(connection: C) -> C {
    // Outside of any call where an older connection came free first: this one then goes to the idle ones.
    let _ = MADE.try_with(|made| made.set(local_address(&connection.connected())));
    connection
}

/// Awaits `sending`, and tells which connection was made for it, if one was.
pub(super) async fn watched<T>(sending: impl Future<Output = T>) -> (T, Option<Made>) {
    let watching = async {
        let sent = sending.await;
        (sent, MADE.with(Cell::get))
    };
    MADE.scope(Cell::new(None), watching).await
}

/// Whether a call for which the connection `made` was made, or none, broke over another one. That had been used before; one
/// that was made for another call and never used counts as used: the price is one call more.
pub(super) fn was_reused(causes: &[&(dyn Error + 'static)], made: Option<Made>) -> bool {
    let broken = causes.iter().find_map(|cause| cause.downcast_ref::<legacy::Error>()?.connect_info());
    match broken.and_then(local_address) {
        Some(broken) => made != Some(broken),
        None => made.is_none(),
    }
}

fn local_address(connected: &Connected) -> Option<SocketAddr> {
    let mut extras = Extensions::new();
    connected.get_extras(&mut extras);
    extras.get::<HttpInfo>().map(HttpInfo::local_addr)
}

/// Whether the connection was closed under the call, and if so, whether the call may have been carried out all the same:
/// not where it could not be written to its end, as the server cannot have read it whole then. A head that breaks off hyper does
/// not tell from none; the call may have been carried out in either case.
pub(super) fn closed(causes: &[&(dyn Error + 'static)]) -> Option<MayHaveBeenCarriedOut> {
    let is_closed = causes.iter().any(|cause| {
        cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_incomplete_message)
            || cause.downcast_ref::<io::Error>().is_some_and(|error| is_end(error.kind()))
    });
    let is_unwritten = || causes.iter().any(|cause| cause.is::<hyper::Error>() && cause.to_string() == NOT_WRITTEN);
    is_closed.then(|| !is_unwritten())
}

type MayHaveBeenCarriedOut = bool;

/// The last is how rustls tells the end of a stream that says nothing of it.
fn is_end(kind: ErrorKind) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(kind, ConnectionReset | ConnectionAborted | BrokenPipe | UnexpectedEof)
}
