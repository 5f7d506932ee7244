//! The log of every `/v2` call, from which tests learn what really reached the API.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use crate::request::{Operation, Subject};

/// More than any test makes; older calls fall out, so that a simulator left running does not fill the memory.
const KEPT: usize = 1_000_000;

/// One call and its result.
///
/// All of it is known when the call arrives: a delayed answer is logged with the status it will have, even if the
/// client hangs up first.
#[derive(Debug, Serialize)]
pub struct Call {
    /// When it arrived, by this machine's clock, not by the simulated one.
    #[serde(serialize_with = "micros_text")]
    pub at: Timestamp,
    pub unix_micros: i64,
    pub method: String,
    pub operation: Operation,
    #[serde(flatten)]
    pub subject: Subject,
    /// `null` if there was no answer.
    pub status: Option<u16>,
    /// The error code of the answer.
    pub code: Option<Cow<'static, str>>,
    /// The name of the fault that was applied.
    pub fault: Option<String>,
    /// Whether it made an instance begin to start or stop.
    pub took_effect: bool,
}

/// Always six decimals, so that the texts sort like the times.
fn micros_text<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{at:.6}"))
}

/// The calls in order of arrival.
#[derive(Debug, Default)]
pub struct CallLog {
    calls: VecDeque<Arc<Call>>,
    dropped: u64,
}

impl CallLog {
    pub fn push(&mut self, call: Call) {
        if self.calls.len() == KEPT {
            self.calls.pop_front();
            self.dropped += 1;
        }
        self.calls.push_back(Arc::new(call));
    }

    /// Shared copies: converting a long log to JSON must not hold up the calls.
    pub fn snapshot(&self) -> Vec<Arc<Call>> {
        self.calls.iter().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// How many of the oldest calls were dropped since the log was last cleared.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }
}
