//! A proxy between a client and the broker that drops some of their frames on demand.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// `AMQP` and the version, before the first frame.
const GREETING: usize = 8;
/// Type, channel and size, before a frame's payload; the byte 0xCE follows the payload.
const HEAD: usize = 7;
const METHOD: u8 = 1;
/// Class and method, big-endian.
const ACK: &[u8] = &[0, 60, 0, 80];
const CONSUME: &[u8] = &[0, 60, 0, 20];
const CANCEL: &[u8] = &[0, 60, 0, 30];
const OPEN: &[u8] = &[0, 20, 0, 10];
/// With a reserved field, the exchange and the routing key.
const PUBLISH_BATON: &[u8] = b"\0\x3c\0\x28\0\0\0\x13reveille.baton.prod";
const PUBLISH_END: &[u8] = b"\0\x3c\0\x28\0\0\x11reveille.outcomes\x0bprod.failed";

pub struct Lossy {
    /// As the broker's URL, but through this proxy.
    pub url: String,
    /// The client's acks. Without them the state is that after a crash between a confirm and the ack, as often as a
    /// test needs it.
    pub acks: Arc<Loss>,
    /// The broker's confirms: RabbitMQ itself can lose some when a queue's leader changes.
    pub confirms: Arc<Loss>,
    /// The broker's cancels of consumers: RabbitMQ can lose those too.
    pub cancels: Arc<Loss>,
    /// The client's cancels of consumers.
    pub own_cancels: Arc<Loss>,
    /// The client's new consumers.
    pub subscriptions: Arc<Loss>,
    /// Batons that the client adds to those of lane `prod`.
    pub batons: Arc<Loss>,
    /// Events of failed jobs. RabbitMQ closes the connection over the rest of such a message.
    pub ends: Arc<Loss>,
    /// The client's openings of channels: it waits for an answer then.
    pub opens: Arc<Loss>,
    cut: watch::Sender<()>,
}

/// The handling of one method that one side sends.
pub struct Loss {
    /// The method's first bytes.
    method: &'static [u8],
    losing: AtomicBool,
    lost: AtomicUsize,
    /// When each was forwarded.
    forwarded: Mutex<Vec<Instant>>,
}

impl Loss {
    fn of(method: &'static [u8]) -> Arc<Self> {
        Arc::new(Self {
            method,
            losing: AtomicBool::default(),
            lost: AtomicUsize::default(),
            forwarded: Mutex::default(),
        })
    }

    /// Drops all from now on.
    pub fn begin(&self) {
        self.losing.store(true, Ordering::SeqCst);
    }

    /// Forwards all from now on.
    pub fn end(&self) {
        self.losing.store(false, Ordering::SeqCst);
    }

    /// How many were dropped. An ack or a confirm may have been for many messages.
    pub fn count(&self) -> usize {
        self.lost.load(Ordering::SeqCst)
    }

    /// How many were forwarded.
    pub fn forwarded(&self) -> usize {
        self.times().len()
    }

    /// When each was forwarded.
    pub fn times(&self) -> Vec<Instant> {
        self.forwarded.lock().expect("nobody panics with it").clone()
    }

    /// Whether to drop this frame.
    fn strikes(&self, frame: &[u8]) -> bool {
        let concerned = frame[0] == METHOD && frame[HEAD..].starts_with(self.method);
        let strikes = concerned && self.losing.load(Ordering::SeqCst);
        if concerned {
            if strikes {
                self.lost.fetch_add(1, Ordering::SeqCst);
            } else {
                self.forwarded.lock().expect("nobody panics with it").push(Instant::now());
            }
        }
        strikes
    }
}

impl Lossy {
    /// In front of the broker at `url`, `amqp://guest:guest@127.0.0.1:PORT/VHOST`.
    pub async fn before(url: &str) -> Self {
        let (front, back) = url.split_once('@').expect("the URL has a user");
        let (address, vhost) = back.split_once('/').expect("the URL has a vhost");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let here = listener.local_addr().expect("it is bound");
        let (cut, _) = watch::channel(());
        let proxy = Self {
            url: format!("{front}@{here}/{vhost}"),
            acks: Loss::of(ACK),
            confirms: Loss::of(ACK),
            cancels: Loss::of(CANCEL),
            own_cancels: Loss::of(CANCEL),
            subscriptions: Loss::of(CONSUME),
            batons: Loss::of(PUBLISH_BATON),
            ends: Loss::of(PUBLISH_END),
            opens: Loss::of(OPEN),
            cut,
        };
        let of_client =
            [&proxy.acks, &proxy.own_cancels, &proxy.subscriptions, &proxy.batons, &proxy.ends, &proxy.opens]
                .map(Arc::clone);
        let of_broker = [&proxy.confirms, &proxy.cancels].map(Arc::clone);
        let (address, cut) = (address.to_owned(), proxy.cut.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(broker) = TcpStream::connect(&address).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_broker, to_broker) = broker.into_split();
                let (of_client, of_broker, mut cut) = (of_client.clone(), of_broker.clone(), cut.subscribe());
                tokio::spawn(async move {
                    tokio::select! {
                        _ = forward(from_client, to_broker, GREETING, &of_client) => {}
                        _ = forward(from_broker, to_client, 0, &of_broker) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        proxy
    }

    /// Forwards all acks again from now on, over new connections: the existing ones are cut.
    pub fn cut(&self) {
        self.cut.send_replace(());
        self.acks.end();
    }
}

/// Forwards `greeting` bytes and then frames.
async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    greeting: usize,
    losses: &[Arc<Loss>],
) -> io::Result<()> {
    let mut greeting = vec![0; greeting];
    from.read_exact(&mut greeting).await?;
    to.write_all(&greeting).await?;
    loop {
        let mut frame = vec![0; HEAD];
        from.read_exact(&mut frame).await?;
        let size = u32::from_be_bytes([frame[3], frame[4], frame[5], frame[6]]) as usize;
        frame.resize(HEAD + size + 1, 0);
        from.read_exact(&mut frame[HEAD..]).await?;
        if losses.iter().any(|loss| loss.strikes(&frame)) {
            continue;
        }
        to.write_all(&frame).await?;
    }
}
