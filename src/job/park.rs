//! Why a job is put back for later.

/// Why a job was parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParkCause {
    /// A call failed, and may succeed the next time.
    Transient,
    /// The API, or a gateway, throttles.
    Throttled,
    /// The lane is paused.
    Paused,
    /// It was denied, and gets a second call.
    AccessDenied,
    /// No capacity.
    NoCapacity,
    /// The same, and other jobs go first.
    GaveWay,
    /// Before its `not_before`.
    NotBefore,
    /// Until its wave may start.
    Wave,
    /// Until the next poll of its instance.
    Confirm,
    /// The poll could not be made in time.
    PollPostponed,
    /// Another copy of the job is in hand.
    Copy,
    /// It was left out of its call.
    PutBack,
}

impl ParkCause {
    /// All causes.
    pub const ALL: [Self; 12] = [
        Self::Transient,
        Self::Throttled,
        Self::Paused,
        Self::AccessDenied,
        Self::NoCapacity,
        Self::GaveWay,
        Self::NotBefore,
        Self::Wave,
        Self::Confirm,
        Self::PollPostponed,
        Self::Copy,
        Self::PutBack,
    ];

    /// The name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Throttled => "throttled",
            Self::Paused => "paused",
            Self::AccessDenied => "access_denied",
            Self::NoCapacity => "no_capacity",
            Self::GaveWay => "gave_way",
            Self::NotBefore => "not_before",
            Self::Wave => "wave",
            Self::Confirm => "confirm",
            Self::PollPostponed => "poll_postponed",
            Self::Copy => "copy",
            Self::PutBack => "put_back",
        }
    }
}
