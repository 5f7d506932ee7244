//! Who is missing in a company, and what becomes of its slot.

use super::*;

/// One slot, and it is taken.
fn slots() -> (Arc<Slots>, OwnedSemaphorePermit) {
    let slots = Slots::new(1);
    let slot = slots.take_one();
    (Arc::new(slots), slot)
}

#[tokio::test]
async fn a_company_is_complete_once_everybody_has_come_or_left() {
    let (slots, slot) = slots();
    let mut tickets: Vec<Ticket> = Ticket::together(3, slot, &slots).collect();
    let Right::Seat(first) = &mut tickets[0].0 else { panic!("a seat") };
    let company = first.company.clone();
    let instance = InstanceId::parse("i-aaaa").unwrap();
    let member = Member { instance, deadline: None, tell: oneshot::channel().0 };
    assert!(first.settle(Some(member)), "the first calls");
    assert!(!first.settle(None), "once and for all");
    tickets[1].leave_company();
    assert_eq!(company.state().missing, 1);
    drop(tickets.pop());
    company.complete.notified().await;
    assert_eq!(company.take().1.len(), 1);
}

#[tokio::test]
async fn a_company_that_everybody_left_gives_its_slot_back() {
    let (slots, slot) = slots();
    drop(Ticket::together(3, slot, &slots).collect::<Vec<_>>());
    assert_eq!(slots.free(), 1);
}
