//! The managers as the last session message listed them. All agents of a fleet share the list: all are told the same.

use std::sync::{Arc, PoisonError, RwLock};

/// `host:port` each.
#[derive(Debug)]
pub(crate) struct Managers(RwLock<Arc<[String]>>);

impl Managers {
    pub(crate) fn new(given: &[String]) -> Self {
        Self(RwLock::new(given.into()))
    }

    pub(crate) fn all(&self) -> Arc<[String]> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes in a list. One without any address says nothing.
    pub(crate) fn replace(&self, listed: impl Iterator<Item = String>) {
        let mut listed: Vec<String> = listed.filter(|address| !address.is_empty()).collect();
        listed.sort_unstable();
        listed.dedup();
        if !listed.is_empty() && self.all()[..] != listed[..] {
            *self.0.write().unwrap_or_else(PoisonError::into_inner) = listed.into();
        }
    }

    /// One by chance, another than the one that failed if there is another. `random` is within 0..1.
    pub(crate) fn choose(&self, failed: Option<&str>, random: f64) -> Option<String> {
        let all = self.all();
        let others: Vec<&String> = all.iter().filter(|address| Some(address.as_str()) != failed).collect();
        let choice: Vec<&String> = if others.is_empty() { all.iter().collect() } else { others };
        let place = (random.clamp(0.0, 1.0) * choice.len() as f64) as usize;
        choice.get(place.min(choice.len().saturating_sub(1))).map(|address| (*address).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn managers(list: &[&str]) -> Managers {
        Managers::new(&list.iter().map(|address| (*address).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn another_manager_is_chosen_after_a_failure_if_there_is_another() {
        let two = managers(&["a:1", "b:1"]);
        for random in [0.0, 0.4, 0.99, 1.0] {
            assert_eq!(two.choose(Some("a:1"), random).as_deref(), Some("b:1"));
        }
        assert_eq!(two.choose(None, 0.0).as_deref(), Some("a:1"));
        assert_eq!(managers(&["a:1"]).choose(Some("a:1"), 0.5).as_deref(), Some("a:1"));
        assert_eq!(managers(&[]).choose(None, 0.5), None);
    }

    #[test]
    fn an_empty_list_is_not_taken_in() {
        let known = managers(&["a:1"]);
        known.replace([String::new()].into_iter());
        assert_eq!(known.all()[..], ["a:1".to_owned()]);
        known.replace(["c:1".to_owned(), "b:1".to_owned(), "c:1".to_owned()].into_iter());
        assert_eq!(known.all()[..], ["b:1".to_owned(), "c:1".to_owned()]);
    }
}
