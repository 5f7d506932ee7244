//! The places of lanes on a connection, and the spare one of the scheduler.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::Connection;
use super::channels::{has_spare, lanes_for, needed_by, usable};

/// How a connection's channels are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) channels: usize,
    /// Places for lanes.
    pub(super) places: usize,
    /// One of the channels is for the scheduler.
    has_spare: bool,
}

impl Size {
    /// Of a connection that may have `max` channels, for `lanes`. With a known limit, `allowed`, it uses no more channels
    /// than the lanes need, so that as many daemons as possible can share them, and has none for the scheduler.
    pub(super) fn new(max: usize, allowed: Option<usize>, lanes: usize) -> Self {
        let max = usable(max);
        let channels = allowed.map_or(max, |allowed| max.min(allowed).min(needed_by(lanes)));
        let places = lanes_for(channels).min(lanes);
        Self { channels, places, has_spare: allowed.is_none() && has_spare(channels, places) }
    }

    /// The channels without the scheduler's.
    pub(super) fn for_lanes(self) -> usize {
        self.channels - usize::from(self.has_spare)
    }
}

/// An open connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) connection: Arc<Connection>,
    pub(super) size: Size,
    /// One reference for the link itself, and one for each lane that has a place on it.
    users: Arc<()>,
    lost: watch::Receiver<bool>,
    blocked: Mutex<Option<String>>,
}

/// A place on a connection: a lane's, free for another lane when dropped, or the scheduler's.
#[derive(Debug)]
pub struct Place {
    link: Arc<Link>,
    _user: Arc<()>,
}

impl Place {
    /// The connection.
    pub fn connection(&self) -> &Connection {
        &self.link.connection
    }

    /// Waits until the connection is lost.
    pub async fn lost(&self) {
        self.link.lost().await;
    }
}

impl Link {
    /// `lost` turns `true` once the connection is lost.
    pub(super) fn new(connection: Connection, size: Size, lost: watch::Receiver<bool>) -> Self {
        let (users, blocked) = Default::default();
        Self { connection: Arc::new(connection), size, users, lost, blocked }
    }

    pub(super) async fn lost(&self) {
        // A watcher that is gone means a lost connection as well.
        let _ = self.lost.clone().wait_for(|lost| *lost).await;
    }

    pub(super) fn place(self: &Arc<Self>) -> Option<Place> {
        let is_free = self.connection.is_open() && Arc::strong_count(&self.users) <= self.size.places;
        is_free.then(|| Place { link: self.clone(), _user: self.users.clone() })
    }

    /// The scheduler's place, if the connection has one. There is one scheduler, so it is not counted.
    pub(super) fn spare_place(self: &Arc<Self>) -> Option<Place> {
        let is_free = self.connection.is_open() && self.size.has_spare;
        is_free.then(|| Place { link: self.clone(), _user: Arc::default() })
    }

    /// Why the broker accepts no messages over the connection, if it does not.
    pub(super) fn blocked(&self) -> Option<String> {
        self.blocked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_blocked(&self, reason: Option<String>) {
        *self.blocked.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheduler_has_no_channel_where_the_broker_limits_them() {
        let size = |max, allowed, lanes| {
            let size = Size::new(max, allowed, lanes);
            (size.places, size.channels, size.for_lanes())
        };
        assert_eq!(size(2047, None, 1), (1, 2031, 2030));
        assert_eq!(size(2047, None, 1000), (676, 2031, 2030));
        assert_eq!(size(2047, Some(64), 1), (1, 5, 5));
        assert_eq!(size(20, None, 15), (5, 18, 18), "nor where it would cost lanes their shares");
        assert_eq!(size(20, None, 1), (1, 18, 17));
    }
}
