//! What RabbitMQ's errors say.

use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};

/// Whether the broker says that the user lacks a permission or, at login, that the password is wrong.
pub fn is_access_refused(error: &lapin::Error) -> bool {
    kind(error) == Some(&AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED))
}

/// Whether the broker says that there is no such queue or exchange.
pub fn is_not_found(error: &lapin::Error) -> bool {
    kind(error) == Some(&AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND))
}

/// Whether the broker says that another connection has the queue for itself alone.
pub(super) fn is_locked(error: &lapin::Error) -> bool {
    kind(error) == Some(&AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED))
}

/// The limit of channels of a user or of the whole node, if the connection was lost over it. RabbitMQ says so only in
/// the text.
pub fn limit_of_channels(error: &lapin::Error) -> Option<usize> {
    let ErrorKind::ProtocolError(error) = error.kind() else { return None };
    most_channels(error.get_message().as_str())
}

/// The number at the end, which is in parentheses up to 4.0.
fn most_channels(text: &str) -> Option<usize> {
    let (_, told) = text.split_once("number of channels opened")?;
    told.trim_end_matches(')').rsplit(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}

pub(super) fn kind(error: &lapin::Error) -> Option<&AMQPErrorKind> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.kind()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_on_channels_is_read_from_the_words_of_rabbitmq() {
        let told = "NOT_ALLOWED - number of channels opened for user 'guest' has reached the maximum allowed user limit of (5)";
        assert_eq!(most_channels(told), Some(5));
        let by_4_3 =
            "NOT_ALLOWED - number of channels opened for user 'u7' has reached the maximum allowed user limit of 12";
        assert_eq!(most_channels(by_4_3), Some(12));
        let other = "NOT_ALLOWED - connection refused for user 'guest': user connection limit (1) is reached";
        assert_eq!(most_channels(other), None);
    }
}
