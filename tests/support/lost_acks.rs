//! Stands between a client and the broker, and on order lets no ack of the client's through: the state of things that
//! a crash between a confirm and the ack leaves, as often as a test wants it. Or none of the broker's, which are its
//! confirms: RabbitMQ itself can forget some when a queue's leader changes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// `AMQP` and the version, before the first frame.
const GREETING: usize = 8;
/// Type, channel and size, before a frame's payload; the octet 0xCE follows that.
const HEAD: usize = 7;
const METHOD: u8 = 1;
/// Class and method of `basic.ack`, big-endian.
const ACK: [u8; 4] = [0, 60, 0, 80];

pub struct LostAcks {
    /// As the broker's URL, but through here.
    pub url: String,
    /// Acks, which the client sends.
    acks: Arc<Loss>,
    /// Confirms, which the broker sends.
    confirms: Arc<Loss>,
    cut: watch::Sender<()>,
}

/// What one side's acks come to.
#[derive(Default)]
struct Loss {
    losing: AtomicBool,
    lost: AtomicUsize,
}

impl Loss {
    /// Whether the next one is lost.
    fn strikes(&self) -> bool {
        let strikes = self.losing.load(Ordering::SeqCst);
        self.lost.fetch_add(strikes.into(), Ordering::SeqCst);
        strikes
    }
}

impl LostAcks {
    /// In front of the broker at `url`, `amqp://guest:guest@127.0.0.1:PORT/VHOST`.
    pub async fn before(url: &str) -> Self {
        let (front, back) = url.split_once('@').expect("the URL has a user");
        let (address, vhost) = back.split_once('/').expect("the URL has a vhost");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let here = listener.local_addr().expect("it is bound");
        let (acks, confirms): (Arc<Loss>, Arc<Loss>) = Default::default();
        let (cut, _) = watch::channel(());
        let proxy = Self { url: format!("{front}@{here}/{vhost}"), acks, confirms, cut };
        let (acks, confirms, cut) = (proxy.acks.clone(), proxy.confirms.clone(), proxy.cut.clone());
        let address = address.to_owned();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(broker) = TcpStream::connect(&address).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_broker, to_broker) = broker.into_split();
                let (acks, confirms, mut cut) = (acks.clone(), confirms.clone(), cut.subscribe());
                tokio::spawn(async move {
                    tokio::select! {
                        _ = forward(from_client, to_broker, GREETING, &acks) => {}
                        _ = forward(from_broker, to_client, 0, &confirms) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        proxy
    }

    /// From now on no ack gets through.
    pub fn lose(&self) {
        self.acks.losing.store(true, Ordering::SeqCst);
    }

    /// From now on all do again, over new connections: those there are lose their client.
    pub fn cut(&self) {
        self.cut.send_replace(());
        self.acks.losing.store(false, Ordering::SeqCst);
    }

    /// How many were lost.
    pub fn lost(&self) -> usize {
        self.acks.lost.load(Ordering::SeqCst)
    }

    /// Whether no confirm gets through from now on.
    pub fn lose_confirms(&self, losing: bool) {
        self.confirms.losing.store(losing, Ordering::SeqCst);
    }

    /// How many were lost. One may have been for many messages.
    pub fn lost_confirms(&self) -> usize {
        self.confirms.lost.load(Ordering::SeqCst)
    }
}

/// Forwards `greeting` bytes and then frames.
async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, greeting: usize, acks: &Loss) -> io::Result<()> {
    let mut greeting = vec![0; greeting];
    from.read_exact(&mut greeting).await?;
    to.write_all(&greeting).await?;
    loop {
        let mut frame = vec![0; HEAD];
        from.read_exact(&mut frame).await?;
        let size = u32::from_be_bytes([frame[3], frame[4], frame[5], frame[6]]) as usize;
        frame.resize(HEAD + size + 1, 0);
        from.read_exact(&mut frame[HEAD..]).await?;
        if frame[0] == METHOD && frame[HEAD..].starts_with(&ACK) && acks.strikes() {
            continue;
        }
        to.write_all(&frame).await?;
    }
}
