//! Walks a quorum queue from its head on, however long it is, and leaves it as it was, except for the messages that the caller
//! takes out.
//!
//! A queue shows its next message only to a client that holds, or has acked, all before it. So whatever stays in the queue is held
//! unacked until the walk ends, and then returned. What RabbitMQ does with returned messages decides how (measured with 3.10, 4.0
//! and 4.3):
//!
//! - The `x-delivery-count` of a returned message grows by one. The queue has to have a delivery limit that is never met: without one,
//!   RabbitMQ 4 drops messages after 20 returns.
//! - A returned message goes before all that were never delivered, and behind all others that were returned. So a walk that is ended
//!   early goes on, and only holds what comes, up to the first message that was never delivered.
//! - Messages return in the order of the queue where their channel ends. After `basic.nack` they do not (3.10), and after `basic.get`
//!   they do in no version: each get is a consumer of its own. So messages are consumed, and returned by closing channels.
//! - A channel's consumers are returned one after the other, by consumer tag, up to 32 of them; with more they come in no order. So
//!   a channel has at most 32 consumers, and channels are closed one after the other.
//! - If the connection is lost, neither can be done: what was held may come back behind others that were returned before, and blocks
//!   of 32 windows may change places. No message is lost.
//!
//! A consumer's prefetch bounds what is on its way, and what is held counts too. So messages come in *windows*: one consumer each,
//! cancelled once all it may have are held, which leaves them held. Memory is that of one window: held messages are dropped here, as
//! their channel alone returns them. RabbitMQ keeps a record of each.
//!
//! RabbitMQ forgets acks. Its channel passes 32 of them on to the queue and keeps the others until it hears that those are stored; if
//! it is closed meanwhile, the others are gone, and their messages return (33 of 100 acks counted, in a test). No answer tells. So of
//! each channel the last message that is taken out is not acked but returned at the end: it comes again once the queue has had all
//! that the channel kept, and is acked then.
//!
//! Of two walks at once each would see what the other does not hold, and return it in another order. So a walk begins with a lock: an
//! exclusive queue, which RabbitMQ deletes with its connection.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tokio::time::{Instant, sleep, timeout};

use super::connection::Connection;
use super::delivery::{Delivery, Message, Unacked};
use super::errors::is_locked;
use super::inspect::{Counts, count};
use super::publisher::Confirmed;

/// Messages of a window at most, if they are small.
const WINDOW: usize = 1000;
/// Windows of a channel. See above.
const WINDOWS: usize = 32;
/// How long to wait for the next message, before the queue is asked whether there is any.
const QUIET: Duration = Duration::from_secs(3);
/// RabbitMQ also says that a queue is empty if its leader has not answered within a quarter of a second: so it is asked so often.
const LOOKS: u32 = 3;
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);
/// Channels whose acks are made sure of at a time: fewer than the acks that a channel passes on at once.
const SURE: usize = 16;
/// How long messages may take to be back in their queue after a walk.
const RETURN: Duration = Duration::from_secs(60);

/// Why a queue is walked no further.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// The broker refused it, or the channel or the connection broke.
    #[error(transparent)]
    Broken(#[from] lapin::Error),
    /// The broker ended the subscription.
    #[error(
        "RabbitMQ hands out no more of the queue: it was deleted, its leader is gone, or it was read for longer than \
         consumer_timeout (30 minutes if it is not set)"
    )]
    Ended,
}

/// A message of the queue.
#[derive(Debug)]
pub struct Found {
    /// The routing key that it was published with.
    pub key: String,
    /// What it says.
    pub message: Message,
    /// Why it cannot be read, if so: then its body is empty.
    pub unreadable: Option<String>,
    /// The right to take it out of the queue. Not used, it stays there.
    pub taking: Taking,
}

/// The right to take a message out of the queue.
#[derive(Debug)]
pub struct Taking {
    taken: Taken,
    last: Arc<Last>,
}

/// A message that is taken out as soon as it is acked.
#[derive(Debug)]
struct Taken {
    unacked: Unacked,
    message: Message,
    /// For a message that something replaces.
    proof: Option<Confirmed>,
    /// The number of its window among those of its channel.
    window: usize,
}

/// The last message of a channel that was taken out, and is not acked yet.
type Last = Mutex<Option<Taken>>;

impl Taking {
    /// Takes it out: the broker has confirmed what replaces it.
    ///
    /// # Errors
    /// The channel or the connection broke: the message stays, or one that was taken out before does.
    pub async fn replaced(self, proof: Confirmed) -> Result<(), lapin::Error> {
        self.take(Some(proof)).await
    }

    /// Takes it out for good.
    ///
    /// # Errors
    /// The same.
    pub async fn discard(self) -> Result<(), lapin::Error> {
        self.take(None).await
    }

    async fn take(self, proof: Option<Confirmed>) -> Result<(), lapin::Error> {
        let Self { taken, last } = self;
        let before = last.lock().unwrap_or_else(PoisonError::into_inner).replace(Taken { proof, ..taken });
        match before {
            Some(before) => before.ack().await,
            None => Ok(()),
        }
    }
}

impl Taken {
    async fn ack(self) -> Result<(), lapin::Error> {
        match self.proof {
            Some(proof) => self.unacked.ack(proof).await,
            None => self.unacked.discard().await,
        }
    }
}

/// A walk over the messages that were in the queue when it began.
#[derive(Debug)]
pub struct Walk<'a> {
    connection: &'a Connection,
    queue: &'a str,
    /// Messages to come.
    left: usize,
    /// Those that are to be in the queue again at the end, and are not yet known to be taken out.
    stay: usize,
    /// In the order of their messages, each with what was taken out over it last. The last one has the window that is open.
    channels: Vec<(Channel, Arc<Last>)>,
    /// How many windows the last channel has had.
    windows: usize,
    window: Option<Window>,
    /// The last message was never delivered before.
    is_fresh: bool,
}

#[derive(Debug)]
struct Window {
    consumer: Consumer,
    tag: ShortString,
    /// Unacked messages at most.
    size: usize,
    /// Of them, those that stay in the queue.
    kept: usize,
}

/// Takes the lock `name` for as long as the connection lasts. `false`: another connection has it.
///
/// # Errors
/// The broker's.
pub async fn lock(connection: &Connection, name: &str) -> Result<bool, lapin::Error> {
    let exclusive = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    match connection.channel().await?.queue_declare(name.into(), exclusive, FieldTable::default()).await {
        Ok(_) => Ok(true),
        Err(error) if is_locked(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Messages of a queue that are ready, and not held by any client.
///
/// # Errors
/// The broker's: there may be no such queue ([`is_not_found`](super::is_not_found)).
pub async fn ready(connection: &Connection, queue: &str) -> Result<usize, lapin::Error> {
    let channel = connection.channel().await?;
    let ready = ready_over(&channel, queue).await?;
    channel.close(200, "done".into()).await?;
    Ok(ready)
}

/// The same, once those are back that a client held which has just gone: RabbitMQ returns them a moment after it has released the
/// client's lock, and counts the client as a consumer until then (not so after a restart of its own). For as long as `patience`: a
/// client that stays keeps what it holds.
///
/// # Errors
/// As [`ready`].
pub async fn ready_once_back(connection: &Connection, queue: &str, patience: Duration) -> Result<usize, lapin::Error> {
    let (channel, began) = (connection.channel().await?, Instant::now());
    let mut empty = 0;
    let ready = loop {
        match count(&channel, queue).await? {
            Counts { messages: 0, consumers: 0 } if empty + 1 < LOOKS => empty += 1,
            Counts { messages, consumers } if consumers == 0 || began.elapsed() >= patience => break messages as usize,
            Counts { .. } => empty = 0,
        }
        sleep(PAUSE).await;
    };
    channel.close(200, "done".into()).await?;
    Ok(ready)
}

async fn ready_over(channel: &Channel, queue: &str) -> Result<usize, lapin::Error> {
    for look in 1.. {
        let Counts { messages, .. } = count(channel, queue).await?;
        if messages > 0 || look == LOOKS {
            return Ok(messages as usize);
        }
        sleep(PAUSE).await;
    }
    Ok(0)
}

impl<'a> Walk<'a> {
    /// A walk over the next `messages` messages of `queue`. The queue's delivery limit is never met.
    pub fn new(connection: &'a Connection, queue: &'a str, messages: usize) -> Self {
        let (channels, left, stay) = (Vec::new(), messages, messages);
        Self { connection, queue, left, stay, channels, windows: 0, window: None, is_fresh: false }
    }

    /// The next message; `None` at the end. It is [`kept`](Self::keep) in the queue, or [taken out](Taking), at once or later.
    ///
    /// # Errors
    /// [`WalkError`]: RabbitMQ returns to the queue what was not acked.
    pub async fn next(&mut self) -> Result<Option<Found>, WalkError> {
        while self.left > 0 {
            if self.is_full() {
                self.open().await?;
            }
            let Some(Window { consumer, .. }) = &mut self.window else { return Err(WalkError::Ended) };
            match timeout(QUIET, consumer.next()).await {
                Ok(Some(delivery)) => {
                    let delivery = delivery?;
                    let Some((_, last)) = self.channels.last() else { return Err(WalkError::Ended) };
                    let key = delivery.routing_key.to_string();
                    self.is_fresh = !delivery.redelivered;
                    let Delivery { message, unreadable, unacked, .. } = delivery.into();
                    let taken = Taken { unacked, message: message.clone(), proof: None, window: self.windows };
                    self.left -= 1;
                    self.stay -= 1;
                    return Ok(Some(Found { key, message, unreadable, taking: Taking { taken, last: last.clone() } }));
                }
                Ok(None) => return Err(WalkError::Ended),
                // Somebody took some out: by hand, or by a policy.
                Err(_) if ready(self.connection, self.queue).await? == 0 => {
                    self.stay -= self.left;
                    self.left = 0;
                }
                Err(_) => {}
            }
        }
        Ok(None)
    }

    /// Leaves the last message in the queue.
    pub fn keep(&mut self) {
        self.stay += 1;
        if let Some(window) = &mut self.window {
            window.kept += 1;
        }
    }

    /// Whether the window holds all it may have. The last message that was taken out is held too, until another one is.
    fn is_full(&self) -> bool {
        let (Some(window), Some((_, last))) = (&self.window, self.channels.last()) else { return true };
        let last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let is_held = last.as_ref().is_some_and(|last| last.window == self.windows);
        window.kept + usize::from(is_held) >= window.size
    }

    /// Opens the next window. The last one, if any, is full.
    async fn open(&mut self) -> Result<(), WalkError> {
        if let (Some(full), Some((channel, _))) = (self.window.take(), self.channels.last()) {
            channel.basic_cancel(full.tag, BasicCancelOptions::default()).await?;
        }
        // One is left to ask whether the queue has messages, and some to publish over.
        let may_have_more = self.channels.len() + WINDOWS < self.connection.channel_max();
        if self.channels.is_empty() || (self.windows >= WINDOWS && may_have_more) {
            self.channels.push((self.connection.channel().await?, Arc::default()));
            self.windows = 0;
        }
        let Some((channel, _)) = self.channels.last() else { return Err(WalkError::Ended) };
        let size = self.connection.room().holds(channel).clamp(1, WINDOW.min(self.left.max(1)));
        channel.basic_qos(u16::try_from(size).unwrap_or(u16::MAX), BasicQosOptions::default()).await?;
        // Before the broker is asked: if that is broken off, its tag may be in use.
        self.windows += 1;
        let tag = ShortString::from(format!("window.{:08}", self.windows));
        let (none, options) = (FieldTable::default(), BasicConsumeOptions::default());
        let consumer = channel.basic_consume(self.queue.into(), tag.clone(), options, none).await?;
        self.window = Some(Window { consumer, tag, size, kept: 0 });
        Ok(())
    }

    /// Makes sure that all that was taken out is: by the last one of each channel, as said above.
    async fn make_sure(&mut self) -> Result<(), WalkError> {
        let last = |(_, last): &(_, Arc<Last>)| last.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut unsure: VecDeque<Taken> = self.channels.iter().filter_map(last).collect();
        while !unsure.is_empty() {
            let mut returned = Vec::new();
            for Taken { unacked, message, proof, window } in unsure.drain(..unsure.len().min(SURE)) {
                unacked.put_back().await?;
                returned.push((message, proof, window));
            }
            while !returned.is_empty() {
                if self.is_full() {
                    self.open().await?;
                }
                let Some(Window { consumer, .. }) = &mut self.window else { return Err(WalkError::Ended) };
                let Delivery { message, unacked, .. } = consumer.next().await.ok_or(WalkError::Ended)??.into();
                // One that says the same is as good.
                match returned.iter().position(|(other, ..)| other.says_what(&message)) {
                    Some(place) => {
                        let (message, proof, window) = returned.swap_remove(place);
                        Taken { unacked, message, proof, window }.ack().await?;
                    }
                    // It was on its way when the walk was ended, or came since.
                    None => {
                        if let Some(window) = &mut self.window {
                            window.kept += 1;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Ends the walk: whatever was not taken out returns to the queue, in order. Returns once it is there; `false` if that is not
    /// seen within a minute.
    ///
    /// # Errors
    /// [`WalkError`]: RabbitMQ returns it, and may return the last ones of those that were taken out.
    pub async fn end(mut self) -> Result<bool, WalkError> {
        // What was returned before has to be held as a whole.
        while self.left > 0 && !self.is_fresh && self.next().await?.is_some() {
            self.keep();
        }
        self.make_sure().await?;
        for (channel, _) in &self.channels {
            channel.close(200, "done".into()).await?;
        }
        if self.stay == 0 {
            return Ok(true);
        }
        let (channel, ended) = (self.connection.channel().await?, Instant::now());
        loop {
            let is_back = ready_over(&channel, self.queue).await? >= self.stay;
            if is_back || ended.elapsed() > RETURN {
                channel.close(200, "done".into()).await?;
                return Ok(is_back);
            }
            sleep(PAUSE).await;
        }
    }
}
