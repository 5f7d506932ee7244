//! Group commit: messages that wait at the same time are published together over one channel, and judged together.
//!
//! lapin attaches a returned message to whichever confirm of its channel comes next, and RabbitMQ may confirm others
//! first: so an unroutable message could pass for confirmed. Here no message is judged before the whole group is
//! confirmed, by which time each return of the channel is attached to one of the group's confirms. The broker also
//! confirms several messages of a channel at once, which makes this fast.
//!
//! See lapin 4.12, `acknowledgement.rs`. One message at a time per channel would be as safe, but costs a quarter of the
//! speed.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation, ErrorKind};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::channels::{Channels, Lent};
use super::outgoing::{Outgoing, PublishError};

/// First timeout of a confirm, after which the message is published once more.
pub(super) const FIRST_PATIENCE: Duration = Duration::from_secs(30);
/// Messages per group, at most.
const GROUP: usize = 256;
/// `delivery_mode` of AMQP: written to disk.
const PERSISTENT: u8 = 2;

pub(super) type Word = Result<(), PublishError>;

/// A message, and where its result goes.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) message: Arc<Outgoing>,
    pub(super) waiting: oneshot::Sender<Word>,
}

/// Publishes requested messages in groups, with up to `groups` in flight at a time, until all requesters are gone.
/// Messages requested while no group may go form the next one.
pub(super) async fn publish_groups(
    channels: Arc<Channels>,
    groups: usize,
    mut requests: mpsc::UnboundedReceiver<Request>,
) {
    let permits = Arc::new(Semaphore::new(groups));
    while let Some(first) = requests.recv().await {
        let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        let mut group = vec![first];
        while group.len() < GROUP
            && let Ok(next) = requests.try_recv()
        {
            group.push(next);
        }
        let lent = channels.lend().await;
        tokio::spawn(async move {
            publish_group(lent, group).await;
            drop(permit);
        });
    }
}

async fn publish_group(lent: Result<Lent, lapin::Error>, group: Vec<Request>) {
    let (messages, waiting): (Vec<_>, Vec<_>) =
        group.into_iter().map(|request| (request.message, request.waiting)).unzip();
    let words = match lent {
        Ok(lent) => publish_together(lent, &messages).await,
        Err(error) => messages.iter().map(|_| Err(PublishError::Broken(error.clone()))).collect(),
    };
    for (waiting, word) in waiting.into_iter().zip(words) {
        // A requester that no longer waits has lost its delivery too.
        let _ = waiting.send(word);
    }
}

/// Publishes one message over a channel of its own: slow, but independent of every other message.
pub(super) async fn publish_alone(lent: Lent, message: Arc<Outgoing>) -> Word {
    let confirm = publish(lent.channel(), &message).await;
    if matches!(confirm, Ok(Confirmation::Ack(_))) {
        lent.keep();
    }
    judge(&[message], vec![confirm]).pop().unwrap_or(Ok(()))
}

/// Publishes a group. The channel is closed after an error, and if confirms are missing, since later ones might be
/// missing too.
async fn publish_together(lent: Lent, messages: &[Arc<Outgoing>]) -> Vec<Word> {
    let confirms = join_all(messages.iter().map(|message| publish(lent.channel(), message)));
    let Some(confirms) = within(FIRST_PATIENCE, &lent.connection(), confirms).await else {
        return messages.iter().map(|message| Err(PublishError::unconfirmed(message, FIRST_PATIENCE))).collect();
    };
    if confirms.iter().all(|confirm| matches!(confirm, Ok(Confirmation::Ack(_)))) {
        lent.keep();
    } else if confirms.iter().all(Result::is_ok) {
        lent.keep_if_new();
    }
    judge(messages, confirms)
}

/// `None` if `confirms` take longer than `patience`. Time while the broker blocks publishers does not count.
pub(super) async fn within<T>(
    patience: Duration,
    connection: &lapin::Connection,
    confirms: impl Future<Output = T>,
) -> Option<T> {
    let mut confirms = std::pin::pin!(confirms);
    loop {
        match timeout(patience, &mut confirms).await {
            Ok(confirms) => return Some(confirms),
            Err(_) if connection.status().blocked() => {}
            Err(_) => return None,
        }
    }
}

async fn publish(channel: &Channel, message: &Outgoing) -> Result<Confirmation, lapin::Error> {
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let properties = message.properties.clone().with_delivery_mode(PERSISTENT);
    channel
        .basic_publish(
            message.exchange.as_str().into(),
            message.key.as_str().into(),
            options,
            &message.body,
            properties,
        )
        .await?
        .await
}

/// Messages with the same exchange and key have the same result, so a return is matched by these.
fn judge(messages: &[Arc<Outgoing>], confirms: Vec<Result<Confirmation, lapin::Error>>) -> Vec<Word> {
    // Once the broker has closed the channel over one message, lapin does not even send the rest.
    let mut errors = confirms.iter().filter_map(|confirm| confirm.as_ref().err());
    let refusal = errors.find(|error| error.is_amqp_soft_error()).cloned();
    let mut returns: Vec<BasicReturnMessage> = Vec::new();
    let mut words: Vec<Word> = Vec::with_capacity(messages.len());
    for (message, confirm) in messages.iter().zip(confirms) {
        let (exchange, key) = (message.exchange.clone(), message.key.clone());
        words.push(match confirm {
            Ok(Confirmation::Ack(returned)) => {
                returns.extend(returned);
                Ok(())
            }
            Ok(Confirmation::Nack(returned)) => {
                returns.extend(returned);
                Err(PublishError::Rejected { exchange, key })
            }
            Ok(Confirmation::NotRequested) => Err(PublishError::Rejected { exchange, key }),
            Err(error) => Err(match &refusal {
                Some(source) if error.is_amqp_soft_error() || is_of_a_closed_channel(&error) => {
                    PublishError::Forbidden { exchange, source: source.clone() }
                }
                _ => PublishError::Broken(error),
            }),
        });
    }
    for returned in returns {
        let (exchange, key) = (returned.delivery.exchange.as_str(), returned.delivery.routing_key.as_str());
        for (message, word) in messages.iter().zip(&mut words) {
            if message.exchange == exchange && message.key == key {
                let (exchange, key) = (exchange.to_owned(), key.to_owned());
                *word = Err(PublishError::Returned { exchange, key, text: returned.reply_text.to_string() });
            }
        }
    }
    words
}

fn is_of_a_closed_channel(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidChannelState(..))
}

#[cfg(test)]
mod tests {
    use lapin::protocol::{AMQPError, AMQPSoftError};
    use lapin::{BasicProperties, ChannelState};

    use super::*;

    fn judged<const COUNT: usize>(errors: [ErrorKind; COUNT]) -> Vec<Word> {
        let message = || Outgoing {
            exchange: "x".to_owned(),
            key: "k".to_owned(),
            properties: BasicProperties::default(),
            body: Vec::new(),
        };
        let messages: Vec<_> = errors.iter().map(|_| Arc::new(message())).collect();
        judge(&messages, errors.into_iter().map(|error| Err(error.into())).collect())
    }

    fn refused() -> ErrorKind {
        ErrorKind::ProtocolError(AMQPError::new(AMQPSoftError::NOTFOUND.into(), "no exchange 'x'".into()))
    }

    fn closing() -> ErrorKind {
        ErrorKind::InvalidChannelState(ChannelState::Closing, "basic.publish")
    }

    #[test]
    fn what_a_channel_that_the_broker_closed_did_not_take_any_more_is_refused_with_the_rest() {
        for words in [judged([refused(), closing()]), judged([closing(), refused()])] {
            for word in words {
                let Err(PublishError::Forbidden { source, .. }) = word else { panic!("{word:?}") };
                assert!(source.is_amqp_soft_error(), "{source}");
            }
        }
    }

    #[test]
    fn what_broke_otherwise_is_broken() {
        for error in [closing(), ErrorKind::MissingHeartbeatError] {
            assert!(matches!(judged([error])[..], [Err(PublishError::Broken(_))]));
        }
        let words = judged([refused(), ErrorKind::MissingHeartbeatError]);
        assert!(matches!(words[..], [Err(PublishError::Forbidden { .. }), Err(PublishError::Broken(_))]));
    }
}
