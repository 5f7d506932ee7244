//! A TCP proxy with a will of its own, to stand between the daemon and the broker.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How bytes are passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Swift,
    /// A few bytes at a time.
    Trickle,
    /// Not at all, and nobody is told: the sockets stay open.
    Stalled,
}

/// Everything it does ends when it is dropped.
pub struct Proxy {
    /// `amqp://guest:guest@127.0.0.1:PORT`
    pub url: String,
    flow: watch::Sender<Flow>,
    /// Each change cuts the connections of before.
    cut: watch::Sender<()>,
    _accepting: JoinSet<()>,
}

impl Proxy {
    /// In front of the broker at `url`, which has no vhost.
    pub async fn start(url: &str) -> Self {
        let (before, address) = url.rsplit_once('@').expect("user and password come first");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let proxy_url = format!("{before}@{}", listener.local_addr().expect("it is bound"));
        let (flow, cut) = (watch::Sender::new(Flow::Swift), watch::Sender::new(()));
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, address.to_owned(), flow.subscribe(), cut.clone()));
        Self { url: proxy_url, flow, cut, _accepting: accepting }
    }

    /// How bytes are passed on from now on, those on their way included.
    pub fn flow(&self, flow: Flow) {
        self.flow.send_replace(flow);
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        self.cut.send_replace(());
    }
}

async fn accept(listener: TcpListener, broker: String, flow: watch::Receiver<Flow>, cut: watch::Sender<()>) {
    let mut pairs = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let (flow, cut) = (flow.clone(), cut.subscribe());
        let broker = broker.clone();
        pairs.spawn(async move {
            if let Ok(server) = TcpStream::connect(broker).await {
                pass(client, server, flow, cut).await;
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
        if flow.wait_for(|flow| *flow != Flow::Stalled).await.is_err() {
            return;
        }
        let trickles = *flow.borrow() == Flow::Trickle;
        let most = if trickles { 5 } else { buffer.len() };
        let Ok(read @ 1..) = from.read(&mut buffer[..most]).await else { return };
        // What is read when the stall begins is not passed on either.
        if flow.wait_for(|flow| *flow != Flow::Stalled).await.is_err() || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
        if trickles {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
