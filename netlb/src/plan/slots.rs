//! Backends in numbered slots behind a key, moved as little as possible when some come and go.
//!
//! The kernel draws a number below the count and looks the slot up. A backend that leaves gives its slot to the last
//! one; the others stay, so a change costs three elements whatever the size of the service.

use std::collections::BTreeSet;

/// Puts `wanted` into slots, each of which keeps what it has in `old` where it can. Doubles count once.
pub(crate) fn assign<B: Ord + Clone>(old: &[B], wanted: &[B]) -> Vec<B> {
    let mut missing: BTreeSet<&B> = wanted.iter().collect();
    let count = missing.len();
    let mut slots: Vec<Option<&B>> = vec![None; count];
    for (slot, backend) in slots.iter_mut().zip(old) {
        *slot = missing.take(backend);
    }
    // In the order given.
    let mut rest = wanted.iter().filter(|backend| missing.remove(backend));
    let fill = |slot: Option<&B>| slot.or_else(|| rest.next()).cloned();
    slots.into_iter().map(fill).map(|slot| slot.expect("as many are missing as slots are empty")).collect()
}

/// Whether [`assign`] would change nothing; cheaper, and true for nearly every service where all are looked at.
pub(crate) fn same<B: Ord>(old: &[B], wanted: &[B]) -> bool {
    old == wanted || (old.len() == wanted.len() && old.iter().collect::<BTreeSet<_>>() == wanted.iter().collect::<BTreeSet<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_takes_the_slot_of_one_that_left() {
        assert_eq!(assign(&[1, 2, 3, 4], &[1, 3, 4]), [1, 4, 3]);
    }

    #[test]
    fn a_new_one_comes_last() {
        assert_eq!(assign(&[1, 2], &[9, 2, 1]), [1, 2, 9]);
    }

    #[test]
    fn one_for_another_changes_one_slot() {
        assert_eq!(assign(&[1, 2, 3], &[3, 7, 1]), [1, 7, 3]);
    }

    #[test]
    fn the_order_of_what_is_wanted_means_nothing() {
        assert!(same(&[1, 2, 3], &[3, 1, 2]));
        assert!(!same(&[1, 2, 3], &[3, 1, 1]));
        assert!(!same(&[1, 2], &[1, 2, 3]));
    }

    #[test]
    fn doubles_count_once() {
        assert_eq!(assign(&[], &[5, 5, 6]), [5, 6]);
        assert_eq!(assign(&[5, 5], &[5]), [5]);
    }
}
