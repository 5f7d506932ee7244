//! Everything that changes, behind one lock: the fleet, the limit, the faults, the scripts and the log.
//!
//! The result of a call is decided at once when it arrives. Delays and hangs follow without the lock.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use uuid::Uuid;

use crate::api::{self, Outcome};
use crate::args::Args;
use crate::calls::{Call, CallLog};
use crate::faults::{self, Fault, Faults};
use crate::fleet::Fleet;
use crate::limit::Bucket;
use crate::reply::{Answer, ApiError, Ending, Reply};
use crate::request::{Ask, Received, Subject};

/// The value of the rate limit's `Retry-After`, in seconds.
const RETRY_AFTER: u64 = 1;

/// The key of the script for any call, batches and lists too. No instance can have this id.
pub const ANY: &str = "*";

pub struct World {
    pub fleet: Fleet,
    pub bucket: Bucket,
    pub faults: Faults,
    /// Faults for an instance's next calls, in order, before any rule applies.
    pub scripts: HashMap<String, VecDeque<Fault>>,
    pub calls: CallLog,
    chance: StdRng,
}

/// The decision about a call.
struct Decision {
    reply: Reply,
    code: Option<Cow<'static, str>>,
    fault: Option<String>,
    took_effect: bool,
}

impl World {
    pub fn new(args: &Args, now: Instant) -> Self {
        Self {
            fleet: Fleet::new(&args.fleet, args.times(), now),
            bucket: Bucket::new(args.limit(), now),
            faults: args.faults(),
            scripts: HashMap::new(),
            calls: CallLog::default(),
            chance: StdRng::seed_from_u64(args.seed),
        }
    }

    /// Handles a call: decides its result, changes the fleet accordingly, and logs it.
    pub fn take(&mut self, ask: Ask, received: &Received, verified: Result<(), ApiError>, request_id: Uuid) -> Reply {
        // Read under the lock, so that the log is in the order of its times.
        let (now, at) = (Instant::now(), Timestamp::now());
        let Decision { mut reply, code, fault, took_effect } = self.decide(&ask, received, verified, request_id, now);
        reply.delay += self.faults.latency();
        let status = match &reply.ending {
            Ending::Send(answer) => Some(answer.status),
            Ending::Hang | Ending::Reset => None,
        };
        tracing::debug!(operation = ?ask.operation, subject = ?ask.subject, status, code = code.as_deref(), fault, "call");
        self.calls.push(Call {
            at,
            unix_micros: at.as_microsecond(),
            // A made-up method can be long; the log has to stay bounded.
            method: received.method.chars().take(16).collect(),
            operation: ask.operation,
            subject: ask.subject,
            status,
            code,
            fault,
            took_effect,
        });
        reply
    }

    /// In a gateway's order: the limit, then the caller, then the request, and then faults inside.
    fn decide(
        &mut self,
        ask: &Ask,
        received: &Received,
        verified: Result<(), ApiError>,
        request_id: Uuid,
        now: Instant,
    ) -> Decision {
        if !self.bucket.take(now) {
            let mut error = ApiError::new(429, "RequestLimitExceeded", "Request rate limit exceeded, try again later.");
            error.retry_after = Some(RETRY_AFTER);
            return refused(error, request_id);
        }
        if let Some(error) = verified.err().or_else(|| ask.trouble.clone()) {
            return refused(error, request_id);
        }
        let fault = self.next_fault(ask);
        let mut code = fault.code().map(Into::into);
        let mut took_effect = false;
        let genuine = fault.lets_through().then(|| {
            let Outcome { answer, took_effect: effect } = api::perform(&mut self.fleet, ask, received, request_id, now);
            took_effect = effect;
            match answer {
                Ok(answer) => Answer::success(answer.as_ref()),
                Err(error) => {
                    let answer = Answer::error(&error, request_id);
                    if fault.sends_genuine() {
                        code = Some(error.code);
                    }
                    answer
                }
            }
        });
        Decision { reply: fault.reply(genuine, request_id), code, fault: faults::name(&fault), took_effect }
    }

    /// First the script of the first named instance that has one, then the script for any call, then rules and chance.
    fn next_fault(&mut self, ask: &Ask) -> Fault {
        // Drawn for every call, so that a script for one instance does not shift the chances of others.
        let draw = self.chance.random();
        let mut script = |id: &str| self.scripts.get_mut(id).and_then(VecDeque::pop_front);
        let own = match &ask.subject {
            Subject::One(id) => script(id),
            Subject::Many(ids) => ids.iter().find_map(|id| script(id)),
            Subject::Nothing => None,
        };
        own.or_else(|| self.scripts.get_mut(ANY).and_then(VecDeque::pop_front))
            .or_else(|| self.faults.choose(ask, draw).cloned())
            .unwrap_or_default()
    }
}

fn refused(error: ApiError, request_id: Uuid) -> Decision {
    let reply = Answer::error(&error, request_id).into();
    Decision { reply, code: Some(error.code), fault: None, took_effect: false }
}
