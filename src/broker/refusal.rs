//! Declarations that RabbitMQ refuses, and what to do about each.

use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};

/// A declaration the broker refused.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot declare {what} {name}: {source}{}",
    Remedy::of(.source).map(|remedy| format!("; {}", remedy.text(*.queues))).unwrap_or_default()
)]
pub struct DeclareError {
    pub(super) what: &'static str,
    pub(super) name: String,
    /// How many queues the topology has.
    pub(super) queues: usize,
    pub(super) source: lapin::Error,
}

impl DeclareError {
    /// Whether a retry cannot help until the broker or the configuration is changed.
    pub fn is_refusal(&self) -> bool {
        Remedy::of(&self.source).is_some()
    }

    /// The broker's error.
    pub(super) fn said(&self) -> &lapin::Error {
        &self.source
    }
}

/// The remedy for a refusal that no retry can overcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remedy {
    Delete,
    RaiseLimit,
    Permit,
}

impl Remedy {
    /// RabbitMQ has one code for several refusals, which differ only in their texts, the same from 3.10 to 4.3. Any
    /// other text is retried: it may be temporary, and deleting a queue for it would be bad advice.
    fn of(error: &lapin::Error) -> Option<Self> {
        let ErrorKind::ProtocolError(error) = error.kind() else { return None };
        let says = |words: &str| error.get_message().as_str().contains(words);
        match error.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) if says("inequivalent arg") => Some(Self::Delete),
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) if says("limit") && says("is reached") => {
                Some(Self::RaiseLimit)
            }
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => Some(Self::Permit),
            _ => None,
        }
    }

    fn text(self, queues: usize) -> String {
        match self {
            Self::Delete => {
                "it exists with other arguments: empty and delete it, or set another broker.prefix".to_owned()
            }
            Self::RaiseLimit => format!(
                "these lanes need {queues} queues: raise the limit (that of a vhost is max-queues, see rabbitmqctl \
                 set_vhost_limits), or give some lanes to a daemon with another vhost"
            ),
            Self::Permit => "give the user permission to configure, write and read names with the prefix".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use lapin::protocol::AMQPError;

    use super::*;

    fn told(kind: AMQPSoftError, words: &str) -> (bool, String) {
        let source = ErrorKind::ProtocolError(AMQPError::new(kind.into(), words.into())).into();
        let error = DeclareError { what: "queue", name: "reveille.dead".to_owned(), queues: 25, source };
        (error.is_refusal(), error.to_string())
    }

    #[test]
    fn only_for_other_arguments_is_it_advised_to_delete_a_queue() {
        let failed = AMQPSoftError::PRECONDITIONFAILED;
        let inequivalent = "PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'q' in vhost '/'";
        let (is_refusal, text) = told(failed.clone(), inequivalent);
        assert!(is_refusal && text.contains("empty and delete it"), "{text}");
        let limit = "PRECONDITION_FAILED - cannot declare queue 'q': queue limit in vhost '/' (5) is reached";
        let (is_refusal, text) = told(failed.clone(), limit);
        assert!(is_refusal && text.contains("need 25 queues: raise the limit") && !text.contains("delete"), "{text}");
        let (is_refusal, text) = told(failed, "PRECONDITION_FAILED - something else");
        assert!(!is_refusal && !text.contains("delete"), "{text}");
        let (is_refusal, text) = told(AMQPSoftError::ACCESSREFUSED, "ACCESS_REFUSED - configure access to queue 'q'");
        assert!(is_refusal && text.contains("permission to configure"), "{text}");
        assert!(!told(AMQPSoftError::NOTFOUND, "NOT_FOUND - no exchange 'e'").0);
    }
}
