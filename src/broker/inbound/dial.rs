//! Connects to a host that has several addresses, some of which may not work.
//!
//! The addresses race as in RFC 8305 (Happy Eyeballs): one that drops packets costs a quarter of a second, and one that
//! refuses costs nothing. One that accepts the connection and then stays silent wins the race, so the next try begins
//! with the address after it.
//!
//! Trying several dead addresses one after the other would take more than the ten seconds of a try. The race is for the
//! socket only, since a handshake with each address would log in several times: so an address whose kernel accepts
//! connections for a suspended process wins it.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::lookup_host;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Delay before the next address is tried in parallel: RFC 8305's Connection Attempt Delay.
const NEXT_AFTER: Duration = Duration::from_millis(250);

/// The last address that was reached without a connection to RabbitMQ. There is one broker in a process.
static LAST_FAILED: Mutex<Option<SocketAddr>> = Mutex::new(None);

/// A try to connect. If it is dropped before it succeeded, its socket is closed, and the next one begins with the
/// address after the one it reached.
#[derive(Debug)]
pub(super) struct Try {
    reached: Arc<Mutex<Option<SocketAddr>>>,
    standing: Option<oneshot::Sender<()>>,
}

/// Resolves once the connection is open; an error if the try was given up, when lapin would keep the socket.
pub(super) type Standing = oneshot::Receiver<()>;

impl Try {
    /// The try, and the dialler that opens its socket.
    pub fn new() -> (Self, Dialler) {
        let (standing, awaited) = oneshot::channel();
        let reached: Arc<Mutex<_>> = Arc::default();
        (
            Self { reached: reached.clone(), standing: Some(standing) },
            Dialler { reached, standing: Mutex::new(Some(awaited)) },
        )
    }

    /// RabbitMQ has answered.
    pub fn succeeded(mut self) {
        lock(&self.reached).take();
        // If the socket is gone already, lapin reports it.
        let _ = self.standing.take().map(|standing| standing.send(()));
    }
}

impl Drop for Try {
    fn drop(&mut self) {
        if let Some(address) = lock(&self.reached).take() {
            *lock(&LAST_FAILED) = Some(address);
        }
    }
}

/// Opens the socket of a try.
#[derive(Debug)]
pub(super) struct Dialler {
    reached: Arc<Mutex<Option<SocketAddr>>>,
    standing: Mutex<Option<Standing>>,
}

impl Dialler {
    /// Resolves the name and opens a connection to one of its addresses with `connect`.
    ///
    /// # Errors
    /// The resolver's, or what every address failed with.
    pub async fn dial<T, F: Future<Output = io::Result<T>>>(
        &self,
        host: &str,
        port: u16,
        connect: impl Fn(SocketAddr) -> F,
    ) -> io::Result<T> {
        let mut addresses: Vec<SocketAddr> = lookup_host((host, port)).await?.collect();
        begin_behind(*lock(&LAST_FAILED), &mut addresses);
        let (address, socket) = race(&addresses, connect).await?;
        *lock(&self.reached) = Some(address);
        Ok(socket)
    }

    /// For the one socket of the try.
    pub fn standing(&self) -> Option<Standing> {
        lock(&self.standing).take()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn begin_behind(failed: Option<SocketAddr>, addresses: &mut [SocketAddr]) {
    if let Some(index) = addresses.iter().position(|address| Some(*address) == failed) {
        addresses.rotate_left(index + 1);
    }
}

/// The first of `addresses` to which `connect` succeeds, and its result.
async fn race<T, F: Future<Output = io::Result<T>>>(
    addresses: &[SocketAddr],
    connect: impl Fn(SocketAddr) -> F,
) -> io::Result<(SocketAddr, T)> {
    let mut untried = addresses.iter();
    let mut racing = FuturesUnordered::new();
    let mut failures: Vec<(SocketAddr, io::Error)> = Vec::new();
    loop {
        let next = untried.next();
        if let Some(&address) = next {
            let connecting = connect(address);
            racing.push(async move { (address, connecting.await) });
        }
        let patience = if next.is_some() { NEXT_AFTER } else { Duration::MAX };
        match timeout(patience, racing.next()).await {
            Ok(Some((address, Ok(socket)))) => return Ok((address, socket)),
            Ok(Some((address, Err(error)))) => failures.push((address, error)),
            Ok(None) => return Err(all_failed(failures)),
            Err(_) => {}
        }
    }
}

fn all_failed(mut failures: Vec<(SocketAddr, io::Error)>) -> io::Error {
    match failures.pop() {
        None => io::Error::new(io::ErrorKind::NotFound, "the host has no address"),
        Some((_, error)) if failures.is_empty() => error,
        Some((address, error)) => {
            let kind = error.kind();
            failures.push((address, error));
            let told: Vec<String> = failures.iter().map(|(address, error)| format!("{address}: {error}")).collect();
            io::Error::new(kind, told.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::Instant;

    use super::*;

    fn addresses(count: u8) -> Vec<SocketAddr> {
        (1..=count).map(|last| SocketAddr::from(([127, 0, 0, last], 5672))).collect()
    }

    fn refused() -> io::Error {
        io::ErrorKind::ConnectionRefused.into()
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_that_swallow_packets_cost_a_quarter_of_a_second_each() {
        let (start, addresses) = (Instant::now(), addresses(21));
        let connect = async |address: SocketAddr| if address == addresses[20] { Ok(()) } else { pending().await };
        let (address, ()) = race(&addresses, connect).await.unwrap();
        assert_eq!((address, start.elapsed()), (addresses[20], NEXT_AFTER * 20));
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_refuses_costs_nothing_and_a_slow_one_may_still_win() {
        let (start, addresses) = (Instant::now(), addresses(4));
        let connect = async |address: SocketAddr| match addresses.iter().position(|other| *other == address) {
            Some(1) => {
                tokio::time::sleep(NEXT_AFTER * 3).await;
                Ok(())
            }
            Some(3) => pending().await,
            _ => Err(refused()),
        };
        let (address, ()) = race(&addresses, connect).await.unwrap();
        assert_eq!((address, start.elapsed()), (addresses[1], NEXT_AFTER * 3));
    }

    #[tokio::test(start_paused = true)]
    async fn what_every_address_failed_with_is_told() {
        let connect = async |_| Err::<(), _>(refused());
        let one = race(&addresses(1), connect).await.unwrap_err();
        assert_eq!((one.kind(), one.to_string()), (io::ErrorKind::ConnectionRefused, "connection refused".to_owned()));
        let two = race(&addresses(2), connect).await.unwrap_err();
        assert_eq!(two.to_string(), "127.0.0.1:5672: connection refused, 127.0.0.2:5672: connection refused");
        assert_eq!(race(&[], connect).await.unwrap_err().to_string(), "the host has no address");
    }

    #[test]
    fn the_next_try_begins_behind_the_address_that_led_to_nothing() {
        let (all, mut turned) = (addresses(3), addresses(3));
        begin_behind(Some(all[1]), &mut turned);
        assert_eq!(turned, [all[2], all[0], all[1]]);
        let mut same = addresses(3);
        begin_behind(None, &mut same);
        begin_behind(Some(SocketAddr::from(([10, 0, 0, 1], 5672))), &mut same);
        assert_eq!(same, all);
    }
}
