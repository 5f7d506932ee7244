//! The waves of a batch: those of a ramp, and all of them for people.

use std::collections::BTreeMap;

use crate::events::Wave;

/// Waves whose sizes are listed.
const MOST_LISTED: usize = 12;

/// The waves of a ramp of so many jobs.
pub fn ramp_of(size: usize) -> BTreeMap<Wave, usize> {
    let (mut waves, mut before) = (BTreeMap::new(), 0);
    while before < size {
        let jobs = (before + 1).min(size - before);
        waves.insert(Wave::of_ramp(before), jobs);
        before += jobs;
    }
    waves
}

/// `in 3 waves of 1, 2, 4 jobs`, by the size of each wave.
pub fn told(sizes: &BTreeMap<Wave, usize>) -> String {
    let listed: Vec<String> = sizes.values().take(MOST_LISTED).map(usize::to_string).collect();
    let more = if sizes.len() > MOST_LISTED { " …" } else { "" };
    format!("in {} waves of {}{more} jobs", sizes.len(), listed.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ramp_has_steps_that_double_up_to_the_rest() {
        let sizes = |size| ramp_of(size).into_values().collect::<Vec<_>>();
        assert_eq!(
            (sizes(0), sizes(1), sizes(15), sizes(17)),
            (vec![], vec![1], vec![1, 2, 4, 8], vec![1, 2, 4, 8, 2])
        );
        let all: usize = ramp_of(1_000_000).values().sum();
        assert_eq!((all, ramp_of(1_000_000).len()), (1_000_000, 20));
        for position in 0..100 {
            let wave = Wave::of_ramp(position);
            assert_eq!(ramp_of(position + 1).into_keys().next_back(), Some(wave), "{position}");
        }
    }

    #[test]
    fn waves_are_listed_as_long_as_a_line_is() {
        assert_eq!(told(&ramp_of(15)), "in 4 waves of 1, 2, 4, 8 jobs");
        let long = "in 14 waves of 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048 … jobs";
        assert_eq!(told(&ramp_of(10_000)), long);
    }
}
