use std::collections::VecDeque;

use super::*;

#[test]
fn a_share_is_rounded_up_and_one_replica_has_no_surplus() {
    assert_eq!(surplus(30, 30, 3), 20);
    assert_eq!(surplus(11, 30, 3), 1);
    assert_eq!(surplus(10, 30, 3), 0);
    assert_eq!(surplus(4, 10, 3), 0);
    assert_eq!(surplus(1, 1, 5), 0);
    assert_eq!(surplus(30, 30, 1), 0);
    assert_eq!(surplus(30, 30, 0), 0);
}

/// Replicas, and the broker's lines for batons. The first in a line holds the lane.
struct House {
    replicas: Vec<Shares>,
    lines: BTreeMap<String, VecDeque<usize>>,
    now: Instant,
    given_back: usize,
    passed_on: usize,
}

impl House {
    /// Each replica has its lanes, and subscribes after those before it.
    fn of(lanes: &[std::ops::Range<usize>]) -> Self {
        let (lines, now) = (BTreeMap::new(), Instant::now());
        let mut house = Self { replicas: Vec::new(), lines, now, given_back: 0, passed_on: 0 };
        for lanes in lanes {
            house.join(lanes.clone());
        }
        house
    }

    fn join(&mut self, lanes: std::ops::Range<usize>) {
        let replica = self.replicas.len();
        self.replicas.push(Shares { lanes: lanes.len(), ..Shares::default() });
        for lane in lanes.map(|number| format!("lane-{number:02}")) {
            let line = self.lines.entry(lane.clone()).or_default();
            line.push_back(replica);
            if line.len() == 1 {
                self.arrive(&lane);
            }
        }
    }

    /// The baton goes to the first in line, and on until one accepts it.
    fn arrive(&mut self, lane: &str) {
        while let Some(first) = self.lines[lane].front().copied() {
            if self.replicas[first].accept(lane, self.now).is_some() {
                return;
            }
            self.replicas[first].pass_on(lane, self.now);
            self.passed_on += 1;
            assert!(self.passed_on < 1000, "no end of it");
            self.queue_again(lane);
        }
    }

    fn queue_again(&mut self, lane: &str) {
        self.lines.get_mut(lane).unwrap().rotate_left(1);
    }

    fn counted(&mut self, replicas: usize) {
        self.replicas.iter_mut().for_each(|sharing| sharing.saw(replicas));
    }

    /// Each in turn gives one lane back, until none has to.
    fn settle(&mut self) {
        let mut dice = 0;
        loop {
            let before = self.given_back;
            for replica in 0..self.replicas.len() {
                dice += 7;
                let Some((lane, _)) = self.replicas[replica].give_back(dice, self.now) else { continue };
                self.replicas[replica].held.remove(&lane);
                self.given_back += 1;
                self.queue_again(&lane);
                self.arrive(&lane);
                assert!(self.given_back < 1000, "no end of it");
            }
            if self.given_back == before {
                return;
            }
        }
    }

    fn dies(&mut self, replica: usize) {
        self.lines.values_mut().for_each(|line| line.retain(|other| *other != replica));
        let freed: Vec<String> = std::mem::take(&mut self.replicas[replica]).held.into_keys().collect();
        freed.iter().for_each(|lane| self.arrive(lane));
    }

    fn held(&self) -> Vec<usize> {
        self.replicas.iter().map(|sharing| sharing.held.len()).collect()
    }
}

#[test]
fn lanes_are_even_after_no_more_moves_than_there_are_lanes_too_many() {
    let mut house = House::of(&[0..30, 0..30, 0..30]);
    assert_eq!(house.held(), [30, 0, 0]);
    house.counted(3);
    house.settle();
    assert_eq!((house.held(), house.given_back), (vec![10, 10, 10], 20));
    assert!(house.passed_on <= 20, "each by the one at most that had its share");

    // Replicas that take over know that the dead one is gone, and nothing has to be moved again.
    house.counted(2);
    house.dies(1);
    house.settle();
    assert_eq!((house.held(), house.given_back), (vec![15, 0, 15], 20));

    house.join(0..30);
    house.counted(3);
    house.settle();
    assert_eq!((house.held(), house.given_back), (vec![10, 0, 10, 10], 30));
}

#[test]
fn a_death_that_is_not_known_yet_keeps_no_lane_waiting() {
    let mut house = House::of(&[0..30, 0..30, 0..30]);
    house.counted(3);
    house.settle();
    house.dies(1);
    assert_eq!(house.held().iter().sum::<usize>(), 30, "none goes round for ever");
    house.counted(2);
    house.settle();
    assert_eq!(house.held(), [15, 0, 15]);
}

#[test]
fn replicas_with_different_lanes_come_to_rest() {
    let mut house = House::of(&[0..10, 5..15]);
    house.counted(2);
    house.settle();
    assert_eq!(house.held().iter().sum::<usize>(), 15);
    assert!(house.given_back <= 20, "each lane once by each at most: {}", house.given_back);
    let before = house.given_back;
    house.settle();
    assert_eq!(house.given_back, before);

    // A lane that is kept now may be given away in an hour.
    house.now += KEPT;
    house.settle();
    assert!(house.given_back > before);
}

#[test]
fn nobody_is_counted_before_it_stands_in_every_line() {
    let mut sharing = Shares { lanes: 2, ..Shares::default() };
    for (lane, complete) in [("a", false), ("a", false), ("b", true)] {
        sharing.in_line.insert(lane.to_owned());
        assert_eq!(sharing.is_complete(), complete);
    }
}

#[test]
fn a_number_of_replicas_that_is_not_known_is_shown_as_0_and_changes_no_share() {
    let metrics = Metrics::new();
    let sharing = Sharing::new(&Names::new("reveille"), 30, &metrics);
    sharing.saw(Some(3));
    assert_eq!((metrics.replicas.get(), sharing.shares().replicas), (3, 3));
    sharing.saw(None);
    assert_eq!((metrics.replicas.get(), sharing.shares().replicas), (0, 3));
}
