//! How a job came down the delay ladder, as recorded by RabbitMQ in its headers.
//!
//! Clients are not told of policies. But a policy with `message-ttl` or `max-length` on the ladder's queues shows in
//! when and why jobs leave them: of two TTLs RabbitMQ uses the lower one, and with `overflow` set to `drop-head` a full
//! queue drops its oldest message.
//!
//! A wait that was cut short shows in `x-death`: how long a job was at each level but the first, and whether one was
//! full. That uses only the brokers' clocks, compared within one descent, and no header of ours. The job is done all
//! the same.

use std::fmt;

use lapin::types::AMQPValue;

use super::delivery::Message;
use super::names::LEVELS;
use super::names::Names;
use crate::headers::Headers;

/// How far the clocks of a cluster's nodes may differ, in seconds, rounding included.
const TOLERANCE: u64 = 10;

/// A wait that RabbitMQ cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutShort {
    level: u32,
    cut: Cut,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// The queue was full.
    Full,
    /// After so many seconds.
    After(u64),
}

impl fmt::Display for CutShort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (level, wait) = (self.level, 1_u64 << self.level);
        match self.cut {
            Cut::Full => {
                write!(f, "level {level} of the delay ladder was full and let go of a job before its {wait} s were up")
            }
            Cut::After(seconds) => {
                write!(f, "level {level} of the delay ladder kept a job for {seconds} s in place of {wait} s")
            }
        }
    }
}

impl Message {
    /// Whether a level of the ladder released the message too early. Its highest level shows only if it was full:
    /// nothing records when the message came there.
    pub fn cut_short(&self, names: &Names) -> Option<CutShort> {
        let headers = self.properties.headers().as_ref()?;
        let Some(AMQPValue::FieldArray(deaths)) = headers.inner().get("x-death") else { return None };
        let mut deaths: Vec<Death> =
            deaths.as_slice().iter().filter_map(|death| Death::read(death, names)).take(LEVELS as usize).collect();
        // From the highest level down, as it fell: RabbitMQ 3.10 gives them in no order.
        deaths.sort_by_key(|death| std::cmp::Reverse(death.level));
        if let Some(&Death { level, .. }) = deaths.iter().find(|death| death.was_full) {
            return Some(CutShort { level, cut: Cut::Full });
        }
        deaths.windows(2).find_map(|both| {
            let (level, stay) = (both[1].level, both[1].time.saturating_sub(both[0].time));
            (stay.saturating_add(TOLERANCE) < 1 << level).then_some(CutShort { level, cut: Cut::After(stay) })
        })
    }
}

/// The end of a stay in a level's queue.
struct Death {
    level: u32,
    /// Unix time, in seconds.
    time: u64,
    was_full: bool,
}

impl Death {
    fn read(death: &AMQPValue, names: &Names) -> Option<Self> {
        let AMQPValue::FieldTable(death) = death else { return None };
        let level = names.level_of(Headers(Some(death)).text("queue")?)?;
        let AMQPValue::Timestamp(time) = *death.inner().get("time")? else { return None };
        Some(Self { level, time, was_full: Headers(Some(death)).text("reason") == Some("maxlen") })
    }
}

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;
    use lapin::types::FieldTable;

    use super::*;

    /// A message that was dead-lettered by these queues, in this order.
    fn fell<const COUNT: usize>(deaths: [(&str, &str, u64); COUNT]) -> Option<CutShort> {
        let table = |(queue, reason, time): (&str, &str, u64)| {
            let mut death = FieldTable::default();
            death.insert("queue".into(), AMQPValue::LongString(queue.into()));
            death.insert("reason".into(), AMQPValue::LongString(reason.into()));
            death.insert("time".into(), AMQPValue::Timestamp(time));
            AMQPValue::FieldTable(death)
        };
        let mut headers = FieldTable::default();
        let deaths: Vec<AMQPValue> = deaths.into_iter().rev().map(table).collect();
        headers.insert("x-death".into(), AMQPValue::FieldArray(deaths.into()));
        let properties = BasicProperties::default().with_headers(headers);
        Message { properties, body: Vec::new() }.cut_short(&Names::new("wake"))
    }

    #[test]
    fn a_level_that_lets_go_early_is_told_from_one_that_does_not() {
        let (ten, five, three) = ("wake.delay.10", "wake.delay.05", "wake.delay.03");
        assert_eq!(fell([(ten, "expired", 5_000), (five, "expired", 5_032), (three, "expired", 5_040)]), None);
        assert_eq!(fell([(ten, "expired", 5_000), (five, "expired", 5_022)]), None, "nodes' clocks differ");
        let early = fell([(ten, "expired", 5_000), (five, "expired", 5_001), (three, "expired", 5_009)]);
        assert_eq!(early, Some(CutShort { level: 5, cut: Cut::After(1) }));
        assert_eq!(early.unwrap().to_string(), "level 5 of the delay ladder kept a job for 1 s in place of 32 s");
        assert_eq!(
            fell([(three, "expired", 5_009), (ten, "expired", 5_000), (five, "expired", 5_001)]),
            early,
            "in no order"
        );
        assert_eq!(fell([(five, "expired", 9), (ten, "expired", 10)]), Some(CutShort { level: 5, cut: Cut::After(0) }));
    }

    #[test]
    fn a_full_level_is_told() {
        let full = fell([("wake.delay.00", "maxlen", 5)]);
        assert_eq!(full, Some(CutShort { level: 0, cut: Cut::Full }));
        let text = full.unwrap().to_string();
        assert_eq!(text, "level 0 of the delay ladder was full and let go of a job before its 1 s were up");
    }

    #[test]
    fn what_is_no_level_tells_nothing_whatever_is_written_there() {
        assert_eq!(fell([]), None);
        let odd = [("wake.delay.18", "maxlen", 0), ("wake.delay.", "maxlen", 0), ("other.delay.01", "maxlen", 0)];
        assert_eq!(fell(odd), None);
        let end = u64::MAX;
        assert_eq!(fell([("wake.delay.17", "expired", 0), ("wake.delay.16", "odd", end)]), None);
    }
}
