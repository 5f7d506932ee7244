//! Stands between a client and the broker, and on order lets no ack of the client's through: the state of things that
//! a crash between a confirm and the ack leaves, as often as a test wants it.

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
    losing: Arc<AtomicBool>,
    lost: Arc<AtomicUsize>,
    cut: watch::Sender<()>,
}

impl LostAcks {
    /// In front of the broker at `url`, `amqp://guest:guest@127.0.0.1:PORT/VHOST`.
    pub async fn before(url: &str) -> Self {
        let (front, back) = url.split_once('@').expect("the URL has a user");
        let (address, vhost) = back.split_once('/').expect("the URL has a vhost");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let here = listener.local_addr().expect("it is bound");
        let (losing, lost) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (cut, _) = watch::channel(());
        let proxy = Self { url: format!("{front}@{here}/{vhost}"), losing, lost, cut };
        let (losing, lost, cut) = (proxy.losing.clone(), proxy.lost.clone(), proxy.cut.clone());
        let address = address.to_owned();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(broker) = TcpStream::connect(&address).await else { continue };
                let ((from_client, mut to_client), (mut from_broker, to_broker)) =
                    (client.into_split(), broker.into_split());
                let (losing, lost, mut cut) = (losing.clone(), lost.clone(), cut.subscribe());
                tokio::spawn(async move {
                    tokio::select! {
                        _ = forward(from_client, to_broker, &losing, &lost) => {}
                        _ = tokio::io::copy(&mut from_broker, &mut to_client) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        proxy
    }

    /// From now on no ack gets through.
    pub fn lose(&self) {
        self.losing.store(true, Ordering::SeqCst);
    }

    /// From now on all do again, over new connections: those there are lose their client.
    pub fn cut(&self) {
        self.cut.send_replace(());
        self.losing.store(false, Ordering::SeqCst);
    }

    /// How many were lost.
    pub fn lost(&self) -> usize {
        self.lost.load(Ordering::SeqCst)
    }
}

async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    losing: &AtomicBool,
    lost: &AtomicUsize,
) -> io::Result<()> {
    let mut greeting = [0; GREETING];
    from.read_exact(&mut greeting).await?;
    to.write_all(&greeting).await?;
    loop {
        let mut frame = vec![0; HEAD];
        from.read_exact(&mut frame).await?;
        let size = u32::from_be_bytes([frame[3], frame[4], frame[5], frame[6]]) as usize;
        frame.resize(HEAD + size + 1, 0);
        from.read_exact(&mut frame[HEAD..]).await?;
        if frame[0] == METHOD && frame[HEAD..].starts_with(&ACK) && losing.load(Ordering::SeqCst) {
            lost.fetch_add(1, Ordering::SeqCst);
        } else {
            to.write_all(&frame).await?;
        }
    }
}
