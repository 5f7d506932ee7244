//! What a replay publishes for a dead letter.
//!
//! A replay is a job of its own, with fresh attempts, and a new id that is derived from the old one. So a replay that is repeated
//! after a crash, since the letter was not acked, has the same id and the same body, and the daemon takes the two for copies of one
//! order. The instant of the death is part of it: a job that was submitted again under its old id, and failed again, is another
//! order. So is a deadline that replaces the old one, as a job with another body is.

use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::AMQPValue;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::letter::Letter;
use crate::broker::REPLAY_OF;
use crate::config::LaneName;
use crate::job::{self, Job, Priority, is_past};

/// The job that a replay submits.
#[derive(Debug, PartialEq)]
pub(super) struct Order {
    pub(super) id: String,
    pub(super) lane: LaneName,
    pub(super) is_urgent: bool,
    pub(super) properties: BasicProperties,
    pub(super) body: Vec<u8>,
}

/// Why a letter is not replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refusal {
    /// It would be rejected again.
    NoJob,
    /// It does not say of which lane it is.
    NoLane,
    /// Its lane has no queues.
    LaneIsMissing,
    /// It would end as expired.
    DeadlinePassed,
    /// The same.
    DeadlineBeforeStart,
}

impl Refusal {
    /// Why, and the remedy: behind `2 dead letters were not replayed: `
    pub(super) fn told(self) -> &'static str {
        match self {
            Self::NoJob => {
                "they are no jobs, and would be rejected again; `reveille dead show` says what is wrong with one"
            }
            Self::NoLane => "they name no lane; submit their instances with `reveille submit`",
            Self::LaneIsMissing => {
                "their lane has no queues; they exist once `reveille run` has run with it, or submit their instances to \
                 another lane with `reveille submit`"
            }
            Self::DeadlinePassed => {
                "their deadline has passed; give them another one with --deadline, such as --deadline 30m"
            }
            Self::DeadlineBeforeStart => "their deadline is before their not_before; give a later one with --deadline",
        }
    }
}

impl Order {
    /// The order for `letter`, whose headers are to fit into frames of `frame_max` bytes, with `deadline` where its own has passed
    /// at `now`.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(super) fn of(
        letter: &Letter,
        deadline: Option<Timestamp>,
        now: Timestamp,
        frame_max: usize,
    ) -> Result<Self, Refusal> {
        let job = letter.job.as_ref().map_err(|_| Refusal::NoJob)?;
        let lane = letter.facts.lane.as_deref().and_then(LaneName::parse).ok_or(Refusal::NoLane)?;
        let anew = deadline_anew(job, deadline, now)?;
        let body = match anew {
            Some(deadline) => job::with_deadline(&letter.message.body, deadline).ok_or(Refusal::NoJob)?,
            None => letter.message.body.clone(),
        };
        let old = letter.facts.job_id.as_deref();
        let id = id(old, letter.facts.dead_at, anew);
        // A replay that is repeated is a copy of the first.
        let mut headers = job::once();
        if let Some(old) = old {
            headers.insert(REPLAY_OF.into(), AMQPValue::LongString(old.into()));
        }
        // A cancellation is for the jobs that were submitted before it.
        let seconds = u64::try_from(now.as_second()).unwrap_or(0);
        let properties =
            letter.message.forward(headers, frame_max).with_message_id(id.as_str().into()).with_timestamp(seconds);
        Ok(Self { id, lane, is_urgent: job.priority == Some(Priority::Urgent), properties, body })
    }
}

/// The deadline that replaces the job's, if that has passed.
fn deadline_anew(job: &Job, deadline: Option<Timestamp>, now: Timestamp) -> Result<Option<Timestamp>, Refusal> {
    let anew = if is_past(job.deadline, now) { Some(deadline.ok_or(Refusal::DeadlinePassed)?) } else { None };
    let start = job.not_before.filter(|start| *start > now);
    if start.is_some_and(|start| is_past(anew.or(job.deadline), start)) {
        return Err(Refusal::DeadlineBeforeStart);
    }
    Ok(anew)
}

/// An id that is the same for the same letter and deadline. A message without an id gets one that is made up.
fn id(old: Option<&str>, dead_at: Option<Timestamp>, deadline: Option<Timestamp>) -> String {
    let Some(old) = old else { return Uuid::now_v7().to_string() };
    let instant = |instant: Option<Timestamp>| instant.map(|instant| instant.to_string()).unwrap_or_default();
    let seed = format!("reveille replay\n{}\n{}\n{old}", instant(dead_at), instant(deadline));
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&Sha256::digest(seed.as_bytes())[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn job(more: &str) -> Job {
        Job::parse(format!(r#"{{"instance_id":"i-0000"{more}}}"#).as_bytes()).unwrap()
    }

    #[test]
    fn an_id_is_the_same_for_the_same_letter_and_deadline_and_no_other() {
        let (dead, later) = (Some(at("2026-11-25T07:00:00Z")), Some(at("2026-11-25T09:00:00Z")));
        let once = id(Some("j-1"), dead, None);
        assert_eq!(once, id(Some("j-1"), dead, None));
        assert_eq!(Uuid::parse_str(&once).unwrap().get_version_num(), 8);
        let others = [id(Some("j-2"), dead, None), id(Some("j-1"), later, None), id(Some("j-1"), dead, later)];
        assert!(others.iter().all(|other| *other != once), "{others:?}");
        assert_ne!(id(None, dead, None), id(None, dead, None), "two messages without an id are two jobs");
    }

    #[test]
    fn a_deadline_is_replaced_where_it_has_passed_and_only_there() {
        let now = at("2026-11-25T08:00:00Z");
        let anew = at("2026-11-25T09:00:00Z");
        let (past, later) = (r#","deadline":"2026-11-25T07:30:00Z""#, r#","deadline":"2026-11-25T10:00:00Z""#);
        let start = r#","not_before":"2026-11-25T09:30:00Z""#;
        for (more, deadline, expected) in [
            (String::new(), Some(anew), Ok(None)),
            (later.to_owned(), Some(anew), Ok(None)),
            (past.to_owned(), None, Err(Refusal::DeadlinePassed)),
            (past.to_owned(), Some(anew), Ok(Some(anew))),
            (format!("{start}{later}"), None, Ok(None)),
            (format!("{start}{past}"), Some(anew), Err(Refusal::DeadlineBeforeStart)),
        ] {
            assert_eq!(deadline_anew(&job(&more), deadline, now), expected, "{more}");
        }
    }
}
