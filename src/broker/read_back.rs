//! Reading back the end of a stream, for many lanes at once.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::connection::{ConnectError, connect};
use super::{Connection, ConnectionKind, Message, Position, Stream, StreamError};
use crate::config::Broker;

/// Messages on their way to one lane.
const IN_HAND: usize = 16;
/// How long RabbitMQ may take over the next message. Large ones take long all together.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a whole reading may take: a lane whose announcement is not in the log would keep all others waiting.
const LONGEST: Duration = Duration::from_secs(60);

/// A stream that was not read to the end.
#[derive(Debug, thiserror::Error)]
pub enum ReadBackError {
    /// No connection to read it over.
    #[error(transparent)]
    Unconnected(#[from] ConnectError),
    /// It was read no further.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// Nothing came for long.
    #[error("RabbitMQ sent nothing for {PATIENCE:?}")]
    Silent,
    /// What was looked for did not come.
    #[error("it was read for {LONGEST:?}")]
    TimedOut,
}

/// Reads back the end of the outcomes' log, over a connection of its own: a stream delivers its messages faster than
/// anything else has use of the connection meanwhile.
///
/// Lanes that ask while it is read are served together by the next reading, so that a replica which takes over hundreds of
/// them reads the log a few times. The connection goes with the last of them: lapin takes eight MiB of memory for each.
#[derive(Debug)]
pub struct Reader {
    broker: Arc<Broker>,
    stream: String,
    /// How many messages are read back.
    count: u32,
    asked: std::sync::Mutex<Asked>,
}

#[derive(Debug, Default)]
struct Asked {
    /// By lane: the first word of the routing keys of its messages.
    lanes: HashMap<String, Lane>,
    /// There is a task that serves them.
    is_served: bool,
}

type Lane = mpsc::Sender<Result<Message, Arc<ReadBackError>>>;

/// The messages of a lane, as they are read. Dropped, it asks for no more of them.
#[derive(Debug)]
pub struct ReadBack(mpsc::Receiver<Result<Message, Arc<ReadBackError>>>);

impl ReadBack {
    /// The next one. One that cannot be read comes with an empty body.
    ///
    /// # Errors
    /// [`ReadBackError`]; what came before was handed over.
    pub async fn next(&mut self) -> Result<Message, Arc<ReadBackError>> {
        let ended = || Err(Arc::new(ReadBackError::Stream(StreamError::Ended)));
        self.0.recv().await.unwrap_or_else(ended)
    }
}

impl Reader {
    /// Reads about the last `count` messages of `stream`. Nothing is opened yet.
    pub fn new(broker: Arc<Broker>, stream: String, count: u32) -> Self {
        Self { broker, stream, count, asked: std::sync::Mutex::default() }
    }

    /// Reads back what has to do with a lane, until whoever asks has what is wanted. The stream has no end to be seen: what
    /// is written to it meanwhile comes too.
    pub fn read_back(self: &Arc<Self>, lane: &str) -> ReadBack {
        let (sender, receiver) = mpsc::channel(IN_HAND);
        let mut asked = self.asked();
        asked.lanes.insert(lane.to_owned(), sender);
        if !std::mem::replace(&mut asked.is_served, true) {
            tokio::spawn(self.clone().serve());
        }
        ReadBack(receiver)
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads for the lanes that have asked, and again for those that asked meanwhile.
    async fn serve(self: Arc<Self>) {
        let mut kept = None;
        loop {
            let lanes = {
                let mut asked = self.asked();
                asked.is_served = !asked.lanes.is_empty();
                std::mem::take(&mut asked.lanes)
            };
            if lanes.is_empty() {
                return;
            }
            let read = timeout(LONGEST, self.read(&mut kept, &lanes)).await;
            if let Err(error) = read.unwrap_or(Err(ReadBackError::TimedOut)) {
                let error = Arc::new(error);
                for lane in lanes.values() {
                    // Fails if the lane has found its event.
                    let _ = lane.send(Err(error.clone())).await;
                }
            }
        }
    }

    async fn read(&self, kept: &mut Option<Connection>, lanes: &HashMap<String, Lane>) -> Result<(), ReadBackError> {
        let connection = match kept.take().filter(Connection::is_open) {
            Some(connection) => kept.insert(connection),
            None => kept.insert(connect(&self.broker, ConnectionKind::Log).await?),
        };
        let opening = Stream::open(connection, &self.stream, Position::Last(self.count));
        let mut stream = timeout(PATIENCE, opening).await.map_err(|_| ReadBackError::Silent)??;
        let mut all_have_theirs = std::pin::pin!(join_all(lanes.values().map(mpsc::Sender::closed)));
        loop {
            let entry = tokio::select! {
                biased;
                _ = &mut all_have_theirs => return Ok(()),
                entry = timeout(PATIENCE, stream.next()) => entry.map_err(|_| ReadBackError::Silent)??,
            };
            let lane = entry.key.split('.').next().and_then(|lane| lanes.get(lane));
            if let Some(lane) = lane {
                // Fails if the lane has found its event.
                let _ = lane.send(Ok(entry.message)).await;
            }
        }
    }
}
