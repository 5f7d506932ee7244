//! A proxy in front of the simulator, like a load balancer, that closes kept connections at bad moments.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};

/// How connections are handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    /// Kept open for as long as the client wants.
    Keeps,
    /// Closed once idle for so long.
    ClosesIdle(Duration),
    /// A request on a reused connection is read, and answered with a reset. The simulator never sees it.
    ResetsUsed,
    /// The same, but the simulator carries the request out.
    ResetsUsedAfter,
    /// Every request is read, and answered with a reset.
    ResetsAll,
}

/// How all connections are closed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// FIN.
    Ends,
    /// RST.
    Resets,
}

/// A request as received.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Connections are counted from 0.
    pub connection: usize,
    /// The connection had carried a request before.
    pub is_reused: bool,
    /// `PUT /v2/instance/i-sim00001?start HTTP/1.1`
    pub line: String,
    pub at: Instant,
}

/// Listens on a thread of its own, so that it goes on while the test's own runtime is blocked.
pub struct Front {
    pub address: String,
    state: Arc<State>,
    close: watch::Sender<Close>,
    _stop: oneshot::Sender<()>,
}

struct State {
    server: String,
    habit: Mutex<Habit>,
    connections: AtomicUsize,
    seen: Mutex<Vec<Seen>>,
    /// How long a connection had been idle when the client closed it.
    left: Mutex<Vec<Duration>>,
}

impl Front {
    /// In front of the server at this address.
    pub fn before(server: &str, habit: Habit) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a listener can be that");
        let address = listener.local_addr().expect("it is bound").to_string();
        let state = Arc::new(State {
            server: server.to_owned(),
            habit: Mutex::new(habit),
            connections: AtomicUsize::new(0),
            seen: Mutex::default(),
            left: Mutex::default(),
        });
        let (close, (stop, stopped)) = (watch::Sender::new(Close::Ends), oneshot::channel::<()>());
        let (accepting, orders) = (state.clone(), close.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("it does not block");
                tokio::select! {
                    _ = stopped => {}
                    () = accept(listener, accepting, orders) => {}
                }
            });
        });
        Self { address, state, close, _stop: stop }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sets the handling of connections, existing ones included.
    pub fn set(&self, habit: Habit) {
        *self.state.habit.lock().unwrap_or_else(PoisonError::into_inner) = habit;
    }

    /// Closes every connection now.
    pub fn close(&self, close: Close) {
        self.close.send_replace(close);
    }

    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Relaxed)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How long the connections closed by the client had been idle.
    pub fn left(&self) -> Vec<Duration> {
        self.state.left.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn accept(listener: TcpListener, state: Arc<State>, close: watch::Sender<Close>) {
    while let Ok((client, _)) = listener.accept().await {
        let number = state.connections.fetch_add(1, Ordering::Relaxed);
        let (state, mut orders) = (state.clone(), close.subscribe());
        tokio::spawn(async move {
            let mut client = client;
            let _ = client.set_nodelay(true);
            let resets = tokio::select! {
                resets = state.serve(&mut client, number) => resets,
                Ok(()) = orders.changed() => *orders.borrow() == Close::Resets,
            };
            if resets {
                client.set_zero_linger().expect("a socket can be reset");
            }
        });
    }
}

impl State {
    /// Returns whether the connection has to be reset.
    async fn serve(&self, client: &mut TcpStream, connection: usize) -> bool {
        let mut is_reused = false;
        loop {
            let habit = || *self.habit.lock().unwrap_or_else(PoisonError::into_inner);
            let idle = match habit() {
                // As with servers, that counts from an answer on: a busy client may be slow to use a new one.
                Habit::ClosesIdle(idle) if is_reused => idle,
                _ => Duration::from_secs(600),
            };
            let since = Instant::now();
            let Ok(read) = tokio::time::timeout(idle, message(client)).await else { return false };
            let Some(request) = read else {
                self.left.lock().unwrap_or_else(PoisonError::into_inner).push(since.elapsed());
                return false;
            };
            let line = String::from_utf8_lossy(&request).lines().next().unwrap_or_default().to_owned();
            let seen = Seen { connection, is_reused, line, at: Instant::now() };
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
            match habit() {
                Habit::ResetsAll => return true,
                Habit::ResetsUsed if is_reused => return true,
                Habit::ResetsUsedAfter if is_reused => {
                    let _ = self.ask(&request).await;
                    return true;
                }
                _ => {}
            }
            let Some(answer) = self.ask(&request).await else { return true };
            if client.write_all(&answer).await.is_err() {
                return true;
            }
            is_reused = true;
        }
    }

    async fn ask(&self, request: &[u8]) -> Option<Vec<u8>> {
        let mut server = TcpStream::connect(&self.server).await.ok()?;
        server.write_all(request).await.ok()?;
        message(&mut server).await
    }
}

/// A request or an answer, to its end; `None` if there is none.
pub async fn message(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let length = stream.read(&mut chunk).await.ok().filter(|length| *length > 0)?;
        bytes.extend_from_slice(&chunk[..length]);
        let text = String::from_utf8_lossy(&bytes).to_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return Some(bytes);
            }
        }
    }
}
