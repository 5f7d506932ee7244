//! What the answer to a list means that was asked for outside of jobs.

use super::is_clock_skew;
use crate::bce::{Answer, NoAnswer};

/// What the answer to a list means.
#[derive(Debug, PartialEq, Eq)]
pub enum Listing<T> {
    /// It was read.
    Read(T),
    /// It may succeed later. For people: what was answered.
    Again(String),
    /// It is refused. The same.
    Refused(String),
}

/// What this answer means to `what` of `lane`, such as "list instances".
pub fn of_list<T>(what: &str, lane: &str, result: Result<(Answer, Option<T>), NoAnswer>) -> Listing<T> {
    let (answer, read) = match result {
        Ok(answered) => answered,
        Err(error) => return Listing::Again(format!("cannot {what} of lane {lane}: {error}")),
    };
    if answer.is_success()
        && let Some(read) = read
    {
        return Listing::Read(read);
    }
    let code = answer.code.as_deref().unwrap_or("no code");
    let told = format!("cannot {what} of lane {lane}: the API answers HTTP {} {code}", answer.status);
    match answer.status {
        429 | 408 | 500.. | 200..300 => Listing::Again(told),
        _ if answer.from_proxy || is_clock_skew(&answer) => Listing::Again(told),
        _ => Listing::Refused(format!("{told}: the lane's keys need permission to list")),
    }
}
