//! Known managers, how well they did, and choosing one (wire-behaviour 9.2). Kept on disk for the next start.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A manager's address as it is kept: the node id is empty for an address from a join command.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ManagerAddress {
    #[serde(default)]
    pub node_id: String,
    /// `host:port`
    pub addr: String,
}

/// Weights are kept within this.
const WEIGHT_LIMIT: i64 = 256;

#[derive(Debug)]
pub struct Remotes {
    file: PathBuf,
    known: BTreeMap<String, Known>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Known {
    node_id: String,
    weight: i64,
}

impl Remotes {
    /// From the file, and those given besides. A file that cannot be read is as none: the managers tell again.
    pub fn load(file: &Path, given: &[ManagerAddress]) -> Self {
        let text = std::fs::read(file).unwrap_or_default();
        let kept: Vec<ManagerAddress> = serde_json::from_slice(&text).unwrap_or_default();
        let known = kept
            .into_iter()
            .chain(given.iter().cloned())
            .filter(|manager| !manager.addr.is_empty())
            .map(|manager| (manager.addr, Known { node_id: manager.node_id, weight: 0 }))
            .collect();
        Self { file: file.to_owned(), known }
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Takes in how it went with a manager: +10 success, -10 failure.
    pub fn observe(&mut self, addr: &str, observation: i64) {
        if let Some(known) = self.known.get_mut(addr) {
            // Half old, half new, rounded up.
            known.weight = (observation + known.weight + 1).div_euclid(2).clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT);
        }
    }

    /// The managers as a session lists them: others are forgotten. An empty address says nothing.
    pub fn replace(&mut self, listed: &[(ManagerAddress, i64)]) {
        let mut known = BTreeMap::new();
        for (manager, _) in listed.iter().filter(|(manager, _)| !manager.addr.is_empty()) {
            let old = self.known.get(&manager.addr).map_or(0, |known| known.weight);
            known.insert(manager.addr.clone(), Known { node_id: manager.node_id.clone(), weight: old });
        }
        let changed = known.keys().ne(self.known.keys());
        self.known = known;
        for (manager, weight) in listed {
            self.observe(&manager.addr, *weight);
        }
        if changed && let Err(error) = self.save() {
            tracing::warn!(%error, path = %self.file.display(), "could not keep the list of managers");
        }
    }

    fn save(&self) -> std::io::Result<()> {
        let list: Vec<ManagerAddress> =
            self.known.iter().map(|(addr, known)| ManagerAddress { node_id: known.node_id.clone(), addr: addr.clone() }).collect();
        let new = self.file.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(&list).map_err(std::io::Error::other)?)?;
        std::fs::rename(new, &self.file)
    }

    /// One by chance, likelier the better it did. `random` is within 0..1.
    #[must_use]
    pub fn choose(&self, random: f64) -> Option<String> {
        let share = |known: &Known| known.weight.max(0) as f64 + 0.001;
        let total: f64 = self.known.values().map(share).sum();
        let mut place = random.clamp(0.0, 1.0) * total;
        for (addr, known) in &self.known {
            place -= share(known);
            if place <= 0.0 {
                return Some(addr.clone());
            }
        }
        self.known.keys().next_back().cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(addr: &str) -> ManagerAddress {
        ManagerAddress { node_id: String::new(), addr: addr.into() }
    }

    #[test]
    fn weights_move_half_way_and_decide_who_is_chosen() {
        let dir = tempfile::tempdir().unwrap();
        let mut remotes = Remotes::load(&dir.path().join("m.json"), &[manager("a:1"), manager("b:1")]);
        remotes.observe("a:1", -10);
        remotes.observe("b:1", 10);
        assert_eq!((remotes.known["a:1"].weight, remotes.known["b:1"].weight), (-5, 5));
        remotes.observe("b:1", 10);
        assert_eq!(remotes.known["b:1"].weight, 8);
        assert_eq!(remotes.choose(0.5).as_deref(), Some("b:1"));
        // A bad one is still tried now and then.
        assert_eq!(remotes.choose(0.0).as_deref(), Some("a:1"));
    }

    #[test]
    fn managers_that_are_not_listed_are_forgotten_also_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m.json");
        let mut remotes = Remotes::load(&file, &[manager("join:1")]);
        remotes.replace(&[(ManagerAddress { node_id: "n1".into(), addr: "a:1".into() }, 10), (ManagerAddress::default(), 10)]);
        let again = Remotes::load(&file, &[]);
        assert_eq!(again.known.keys().collect::<Vec<_>>(), ["a:1"]);
        assert_eq!(again.known["a:1"].node_id, "n1");
        assert_eq!(Remotes::load(Path::new("/no/such"), &[]).choose(0.5), None);
    }
}
