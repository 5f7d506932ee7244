//! Which jobs are missing in a shared call, and what becomes of its slot.

use tokio::sync::Semaphore;

use super::*;

/// The entries of three jobs that share a call, and the lane's one slot, in which it is to be made.
fn three() -> (Vec<Entry>, Arc<Semaphore>) {
    let slots = Arc::new(Semaphore::new(1));
    (Entry::shared(3, Permit::for_tests(Slot::only(&slots))).collect(), slots)
}

#[tokio::test]
async fn a_shared_call_is_complete_once_every_job_has_come_or_left() {
    let (mut entries, _slots) = three();
    let Entry::Waiter(mut first) = entries.remove(0) else { panic!("it waits") };
    let call = first.call.clone();
    let instance = InstanceId::parse("i-aaaa").unwrap();
    let member = Member::for_tests(instance, true);
    assert!(first.arrive(Some(member)), "the first calls");
    assert!(!first.arrive(None), "once and for all");
    assert!(entries.remove(0).into_slot().is_none());
    assert_eq!(call.state().missing, 1);
    drop(entries.pop());
    call.completed.notified().await;
    assert_eq!(call.take().unwrap().1.len(), 1);
}

#[tokio::test]
async fn a_shared_call_that_every_job_left_gives_its_slot_back() {
    let (entries, slots) = three();
    assert_eq!(slots.available_permits(), 0);
    drop(entries);
    assert_eq!(slots.available_permits(), 1);
}
