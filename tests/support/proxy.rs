//! A controllable TCP proxy between the daemon and the broker, or in front of several brokers like a load balancer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Of a slow connection.
const BYTES_PER_MS: usize = 5;

/// How bytes are passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Swift,
    /// A few bytes at a time.
    Trickle,
    /// Not at all, and without notice: the sockets stay open, as with an unplugged cable.
    Stalled,
}

/// Forwards each connection to the first of its brokers that accepts it. Everything it does ends on drop.
pub struct Proxy {
    /// `amqp://guest:guest@127.0.0.1:PORT`, without a vhost.
    pub url: String,
    brokers: Arc<Mutex<Vec<String>>>,
    flow: watch::Sender<Flow>,
    /// Each change cuts the existing connections.
    cut: watch::Sender<()>,
    _accepting: JoinSet<()>,
}

impl Proxy {
    /// In front of the brokers at `urls`, which have no vhost.
    pub async fn before(urls: &[&str]) -> Self {
        Self::at("127.0.0.1:0", urls).await
    }

    /// The same, at this address.
    pub async fn at(address: &str, urls: &[&str]) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let url = format!("amqp://guest:guest@{}", listener.local_addr().expect("it is bound"));
        let brokers = Arc::new(Mutex::new(addresses(urls)));
        let (flow, cut) = (watch::Sender::new(Flow::Swift), watch::Sender::new(()));
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, brokers.clone(), flow.subscribe(), cut.clone()));
        Self { url, brokers, flow, cut, _accepting: accepting }
    }

    /// The order in which brokers are tried for new connections.
    pub fn prefer(&self, urls: &[&str]) {
        *self.brokers.lock().unwrap_or_else(PoisonError::into_inner) = addresses(urls);
    }

    /// How bytes are forwarded from now on, those in flight included.
    pub fn flow(&self, flow: Flow) {
        self.flow.send_replace(flow);
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        self.cut.send_replace(());
    }
}

fn addresses(urls: &[&str]) -> Vec<String> {
    let address = |url: &&str| url.rsplit_once('@').expect("user and password come first").1.to_owned();
    urls.iter().map(address).collect()
}

async fn accept(
    listener: TcpListener,
    brokers: Arc<Mutex<Vec<String>>>,
    flow: watch::Receiver<Flow>,
    cut: watch::Sender<()>,
) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let brokers = brokers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (flow, cut) = (flow.clone(), cut.subscribe());
        connections.spawn(async move {
            for broker in brokers {
                if let Ok(server) = TcpStream::connect(broker).await {
                    return pass(client, server, flow, cut).await;
                }
            }
        });
    }
}

async fn pass(client: TcpStream, server: TcpStream, flow: watch::Receiver<Flow>, mut cut: watch::Receiver<()>) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::select! {
        _ = cut.changed() => {}
        () = pump(from_client, to_server, flow.clone()) => {}
        () = pump(from_server, to_client, flow) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut flow: watch::Receiver<Flow>) {
    let mut buffer = [0; 16 * 1024];
    loop {
        let mut most = buffer.len();
        if *flow.borrow() == Flow::Trickle {
            let asleep = Instant::now();
            tokio::time::sleep(Duration::from_millis(1)).await;
            // As many per second on a busy machine, which sleeps longer, as on any other.
            most = most.min(BYTES_PER_MS * asleep.elapsed().as_millis() as usize);
        }
        let read = from.read(&mut buffer[..most]).await;
        // What was read as the stall begins is not forwarded either, nor the end of one side.
        if flow.wait_for(|flow| *flow != Flow::Stalled).await.is_err() {
            return;
        }
        match read {
            Ok(length @ 1..) if to.write_all(&buffer[..length]).await.is_ok() => {}
            _ => return,
        }
    }
}
