//! A load balancer before some brokers, as a daemon's one address may have behind it.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Forwards each connection to the first of its brokers that takes it. It ends, with all connections, when dropped.
pub struct Balancer {
    /// `amqp://guest:guest@127.0.0.1:PORT`, without a vhost.
    pub url: String,
    brokers: Arc<Mutex<Vec<String>>>,
    stalled: watch::Sender<bool>,
    _accepting: JoinSet<()>,
}

impl Balancer {
    /// Before the brokers at `urls`, which have no vhost.
    pub async fn start(urls: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("amqp://guest:guest@{}", listener.local_addr().expect("it is bound"));
        let brokers = Arc::new(Mutex::new(addresses(urls)));
        let stalled = watch::Sender::new(false);
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, brokers.clone(), stalled.subscribe()));
        Self { url, brokers, stalled, _accepting: accepting }
    }

    /// The order in which brokers are tried for new connections.
    pub fn prefer(&self, urls: &[&str]) {
        *self.brokers.lock().unwrap_or_else(PoisonError::into_inner) = addresses(urls);
    }

    /// From now on nothing is passed on, in no connection, and nobody is told: what a cable does that is pulled out.
    pub fn stall(&self, stalled: bool) {
        self.stalled.send_replace(stalled);
    }
}

fn addresses(urls: &[&str]) -> Vec<String> {
    let address = |url: &&str| url.rsplit_once('@').expect("user and password come first").1.to_owned();
    urls.iter().map(address).collect()
}

async fn accept(listener: TcpListener, brokers: Arc<Mutex<Vec<String>>>, stalled: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let brokers = brokers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let stalled = stalled.clone();
        connections.spawn(async move {
            for broker in brokers {
                if let Ok(server) = TcpStream::connect(broker).await {
                    return forward(client, server, stalled).await;
                }
            }
        });
    }
}

async fn forward(client: TcpStream, server: TcpStream, stalled: watch::Receiver<bool>) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::select! {
        () = pass(from_client, to_server, stalled.clone()) => {}
        () = pass(from_server, to_client, stalled) => {}
    }
}

/// Ends with either side, but not while stalled.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut stalled: watch::Receiver<bool>) {
    let mut buffer = [0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await;
        if stalled.wait_for(|stalled| !stalled).await.is_err() {
            return;
        }
        match read {
            Ok(length @ 1..) if to.write_all(&buffer[..length]).await.is_ok() => {}
            _ => return,
        }
    }
}
