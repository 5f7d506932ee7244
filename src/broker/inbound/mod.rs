//! Makes RabbitMQ's frames safe for lapin to read.
//!
//! RabbitMQ passes on messages that lapin cannot read, over which lapin ends the connection or the process: tables
//! nested thousands deep overflow the stack, a name that is not UTF-8 is a parse error, and properties larger than a
//! frame are a frame error. Bodies have no limit below RabbitMQ's own, 128 MiB by default. So every frame is checked
//! before lapin gets it. An unfit message loses its body, keeps its readable properties, and carries the reason in the
//! header [`UNREADABLE`]. lapin delivers it like any other, so the lane can reject it, and RabbitMQ, which has the
//! whole message, dead-letters it.
//!
//! [`sieve`] splits the bytes into frames, [`content`] checks the properties of a message, [`method`] the texts of a method, and
//! [`load`] measures how much memory messages take, and [`dial`] finds the address to connect to.

mod content;
mod death;
mod dial;
mod greeting;
mod load;
mod method;
mod sieve;
mod table;

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_util::Stream;
use futures_util::io::{AsyncRead, AsyncWrite};
use lapin::ConnectionProperties;
use lapin::tcp::AsyncTcpStream;
use lapin::uri::{AMQPAuthority, AMQPUri};

pub use self::content::{IMMOVABLE, UNREADABLE};
use self::dial::{Standing, Try};
pub use self::greeting::{Greeting, Server};
pub use self::load::{Loads, MOST_LOAD, SEEN};
use self::sieve::Sieve;
pub use self::table::MOST_VALUES;
use crate::config::{Access, USUAL_FRAME};

/// Bytes read from the socket at a time.
const CHUNK: usize = 16 * 1024;

/// Connects, with every incoming frame checked. `loads` learns how much memory the messages take, `greeting` how the broker
/// presents itself, also where connecting fails after that.
///
/// # Errors
/// The network's, TLS's, or the broker's.
pub async fn connect(
    access: Access,
    properties: ConnectionProperties,
    loads: Arc<Loads>,
    greeting: Arc<Greeting>,
) -> Result<lapin::Connection, lapin::Error> {
    let Access { uri, tls } = access;
    let largest_frame = uri.query.frame_max.unwrap_or(USUAL_FRAME);
    let tokio = Tokio::current();
    let dialling = tokio.clone();
    let (attempt, dialler) = Try::new();
    let dial = async move |uri: AMQPUri, _: Runtime<Kit>| {
        let AMQPAuthority { host, port, .. } = &uri.authority;
        let mut standing = dialler.standing().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        let opening = async {
            let socket = dialler.dial(host, *port, |address| dialling.tcp_connect_addr(address)).await?;
            let stream = AsyncTcpStream::Plain(socket);
            match &tls {
                Some(tls) => stream.into_rustls(tls, host).await,
                None => Ok(stream),
            }
        };
        let stream = tokio::select! {
            opened = opening => opened?,
            _ = &mut standing => return Err(io::Error::from(io::ErrorKind::TimedOut).into()),
        };
        if let AsyncTcpStream::Rustls(stream) = &stream {
            let (_, session) = stream.get_ref();
            greeting.certificate(session.peer_certificates().and_then(|chain| chain.first()));
        }
        let mut inbound = Inbound::new(stream, largest_frame, loads.clone());
        inbound.sieve.greeting = Some(greeting.clone());
        Ok(AsyncTcpStream::Plain(Inbound { standing: Some(standing), ..inbound }))
    };
    let runtime = Runtime::new(RuntimeParts::new(tokio.clone(), Sockets(tokio)));
    let connection = lapin::Connection::connector(uri, runtime, dial, properties).await?;
    attempt.succeeded();
    Ok(connection)
}

/// The socket, TLS included.
type Socket = AsyncTcpStream<<Tokio as Reactor>::TcpStream>;
type Kit = RuntimeParts<Tokio, Sockets>;

/// A socket whose incoming frames go through a [`Sieve`].
struct Inbound {
    socket: Socket,
    sieve: Sieve,
    chunk: Box<[u8]>,
    /// Checked bytes; those from `given` on were not read by lapin yet.
    sieved: Vec<u8>,
    given: usize,
    /// Until the connection is open.
    standing: Option<Standing>,
}

impl Inbound {
    fn new(socket: Socket, largest_frame: u32, loads: Arc<Loads>) -> Self {
        let chunk = vec![0; CHUNK].into_boxed_slice();
        Self { socket, sieve: Sieve::new(largest_frame, loads), chunk, sieved: Vec::new(), given: 0, standing: None }
    }
}

impl AsyncRead for Inbound {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Some(standing) = &mut this.standing
            && let Poll::Ready(stands) = Pin::new(standing).poll(context)
        {
            stands.map_err(|_| io::ErrorKind::TimedOut)?;
            this.standing = None;
        }
        while this.given == this.sieved.len() {
            this.sieved.clear();
            this.given = 0;
            let read = ready!(Pin::new(&mut this.socket).poll_read(context, &mut this.chunk))?;
            if read == 0 {
                return Poll::Ready(Ok(0));
            }
            this.sieve.pass(&this.chunk[..read], &mut this.sieved);
        }
        let left = &this.sieved[this.given..];
        let count = left.len().min(buffer.len());
        buffer[..count].copy_from_slice(&left[..count]);
        this.given += count;
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Inbound {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(context)
    }
}

/// tokio, with [`Inbound`] as the type of its sockets, which lapin takes from its runtime.
#[derive(Debug, Clone)]
struct Sockets(Tokio);

impl Reactor for Sockets {
    type TcpStream = Inbound;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    /// Required by the trait. [`connect`] dials itself, with the loads of its connection.
    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async move { Ok(Inbound::new(AsyncTcpStream::Plain(connecting.await?), USUAL_FRAME, Arc::default())) }
    }
}
