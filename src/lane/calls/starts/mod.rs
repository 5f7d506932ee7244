//! Start calls: for one job, or shared by several.
//!
//! The API starts all instances of a call, or refuses all and names none. A 2xx may name some that it did not start. It
//! never gives a reason. So a job whose instance may be the cause is then called singly, with a permit of its own, for
//! an answer of its own. A failure that concerns no single instance, such as a 503, is the answer for all.

mod batch;
mod entry;
mod strategy;

use std::sync::Arc;

use self::batch::Batches;
use self::entry::Reply;
pub(in crate::lane) use self::entry::{Entry, Wanted};
use super::api::Api;
use crate::bce::{Answer, InstanceId, NoAnswer};
use crate::lane::breaker::Evidence;
use crate::lane::quota::Slot;

/// The result of a job's call.
#[derive(Debug)]
pub(in crate::lane) struct Called {
    pub(in crate::lane) result: Result<Answer, NoAnswer>,
    pub(in crate::lane) origin: Origin,
    /// An earlier call than the one answered may have started the instance.
    pub(in crate::lane) touched: bool,
}

/// Which call it was.
#[derive(Debug)]
pub(in crate::lane) enum Origin {
    /// The job's own, made in this slot.
    Own(Slot),
    /// A shared one, which has been recorded once for all of its jobs.
    Shared(Evidence),
}

/// The job got no answer of its own: the lane is paused, its call is not wanted any more, or it is to be put back. A repeated
/// or a shared call may have been made for it.
#[derive(Debug)]
pub(in crate::lane) struct NotCalled {
    /// Such a call may have started the instance.
    pub(in crate::lane) touched: bool,
}

/// See the module.
#[derive(Debug)]
pub(in crate::lane) struct Starts {
    api: Arc<Api>,
    batches: Batches,
}

impl Starts {
    /// With up to `batch` jobs per call.
    pub(super) fn new(api: Arc<Api>, batch: usize) -> Self {
        Self { batches: Batches::new(api.clone(), batch), api }
    }

    /// Jobs per call at present, at most.
    pub(in crate::lane) fn batch_size(&self) -> usize {
        self.batches.size()
    }

    /// Starts a job's instance, in a shared call or singly, for as long as the call is `wanted`.
    ///
    /// # Errors
    /// [`NotCalled`], since no call was to be made any more.
    pub(in crate::lane) async fn start(
        &self,
        entry: Entry,
        instance: &InstanceId,
        wanted: &Wanted,
    ) -> Result<Called, NotCalled> {
        let (mut touched, mut is_second) = (false, false);
        let permit = match entry {
            Entry::Permit(permit) => permit,
            Entry::Slot(_) | Entry::None => return Err(NotCalled { touched }),
            Entry::Waiter(waiter) => {
                let (to_make, reply) = waiter.join(instance, wanted.clone()).await;
                if let Some((permit, members)) = to_make {
                    self.batches.call(permit, members).await;
                }
                // Without a reply: the job that made the call was dropped, as everything that runs here is about to be.
                let reply = reply.await.unwrap_or(Reply::Singly { touched: true });
                is_second = matches!(reply, Reply::Second { .. });
                match reply {
                    Reply::Answer { result, evidence, touched } => {
                        return Ok(Called { result, origin: Origin::Shared(evidence), touched });
                    }
                    Reply::Permit(permit) => permit,
                    Reply::Singly { touched: by_all } | Reply::Second { touched: by_all } => {
                        touched = by_all;
                        match self.api.gate().enter(self.api.slot().await).await {
                            Ok(permit) if wanted.now() => permit,
                            _ => return Err(NotCalled { touched }),
                        }
                    }
                }
            }
        };
        let made = self.api.start(permit, instance, || wanted.now()).await;
        touched |= made.touched;
        let Some(result) = made.result else { return Err(NotCalled { touched }) };
        if let Ok(answer) = &result
            && !is_second
        {
            self.batches.called_singly(answer);
        }
        Ok(Called { result, origin: Origin::Own(made.slot), touched })
    }
}
