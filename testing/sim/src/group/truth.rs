//! What must hold of a group of managers, looked at as things happen.
//!
//! Every write that was acknowledged has a revision, every read is of one, so that a history needs no search: operations are in order
//! of revisions, and what began after another was answered must not come before it. What each revision is, is what the first manager
//! says that applied it; all others have to say the same.

use crate::run::Verdict;
use skep_store::StateHash;
use std::collections::{BTreeMap, BTreeSet};

/// What a commit did: the object and its new content, `None` if it was removed.
pub type Done = Vec<(String, Option<String>)>;

/// One group's.
#[derive(Default)]
pub struct Truth {
    /// What every operation that begins now has to see.
    floor: u64,
    commits: BTreeMap<u64, (Done, u64)>,
    states: BTreeMap<u64, (StateHash, u64)>,
    acknowledged: BTreeMap<u64, (String, Option<String>)>,
    /// Reads of revisions that nobody had been seen to apply yet.
    unjudged: Vec<(u64, String, Option<(u64, String)>)>,
    /// Members whose removal was acknowledged.
    pub removed: BTreeSet<u64>,
    pub verdict: Option<Verdict>,
    pub writes: u64,
    pub reads: u64,
}

impl Truth {
    pub fn fail(&mut self, name: &str, words: String) {
        if self.verdict.is_none() {
            self.verdict = Some(Verdict { name: name.into(), words });
        }
    }

    /// What an operation that begins now must at least see.
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// A write was acknowledged that began when `floor` was to be seen.
    pub fn written(&mut self, floor: u64, revision: u64, key: &str, value: Option<&str>) {
        self.writes += 1;
        if revision <= floor {
            self.fail("I2", format!("{key} was written as revision {revision}, but revision {floor} was known before that began"));
        }
        let known = self.acknowledged.insert(revision, (key.to_owned(), value.map(ToOwned::to_owned)));
        if let Some(known) = known.filter(|known| (known.0.as_str(), known.1.as_deref()) != (key, value)) {
            self.fail("I1", format!("revision {revision} was acknowledged twice: {known:?} and {key} {value:?}"));
        }
        self.check(revision);
        self.floor = self.floor.max(revision);
    }

    /// A read was answered: at `revision`, the object was last written at `version` and has that content.
    pub fn read(&mut self, floor: u64, revision: u64, key: &str, found: Option<(u64, &str)>) {
        self.reads += 1;
        if revision < floor {
            self.fail("I2", format!("{key} was read at revision {revision}, but revision {floor} was known before that began"));
        }
        let found = found.map(|(version, text)| (version, text.to_owned()));
        if !self.judge(revision, key, found.as_ref()) {
            self.unjudged.push((revision, key.to_owned(), found));
        }
        self.floor = self.floor.max(revision);
    }

    /// Compares what was read with the last commit of the object; `false` while it is not known which that is.
    fn judge(&mut self, revision: u64, key: &str, found: Option<&(u64, String)>) -> bool {
        let mut next = revision;
        // Every revision is a commit: back to the one that made the object what it was.
        for (at, (done, by)) in self.commits.range(..=revision).rev() {
            if *at != next {
                return false;
            }
            next -= 1;
            let Some((_, value)) = done.iter().rev().find(|(object, _)| object == key) else { continue };
            if found.map(|(version, _)| *version) != value.as_ref().map(|_| *at) || found.map(|(_, text)| text) != value.as_ref() {
                let words =
                    format!("{key} was read as {found:?} at revision {revision}; manager {by} has it as {value:?} of revision {at}");
                self.fail("I2", words);
            }
            return true;
        }
        false
    }

    /// `by` has applied it.
    pub fn committed(&mut self, by: u64, revision: u64, done: Done) {
        match self.commits.get(&revision) {
            Some((known, first)) if *known != done => {
                let words = format!("revision {revision} is {known:?} on manager {first} and {done:?} on manager {by}");
                self.fail("I20", words);
            }
            Some(_) => {}
            None => drop(self.commits.insert(revision, (done, by))),
        }
        self.check(revision);
    }

    pub fn state(&mut self, by: u64, revision: u64, hash: StateHash) {
        let (known, first) = *self.states.entry(revision).or_insert((hash, by));
        if known != hash {
            self.fail("I20", format!("at revision {revision} the states of managers {first} and {by} differ"));
        }
    }

    fn check(&mut self, revision: u64) {
        let (Some((key, value)), Some((done, by))) = (self.acknowledged.get(&revision), self.commits.get(&revision)) else { return };
        if !done.iter().any(|(object, now)| object == key && now == value) {
            let words = format!("revision {revision} was acknowledged as {key} {value:?}, but manager {by} has {done:?}");
            self.fail("I1", words);
        }
    }

    /// At the end, of a leader that has everything: nothing that was acknowledged is missing.
    pub fn settle(&mut self, revision: u64) {
        for (revision, key, found) in std::mem::take(&mut self.unjudged) {
            self.judge(revision, &key, found.as_ref());
        }
        let lost = self.acknowledged.iter().find(|(at, _)| **at > revision || !self.commits.contains_key(*at));
        if let Some((at, (key, value))) = lost {
            let words = format!("{key} {value:?} was acknowledged as revision {at}, and no manager has it; the leader is at {revision}");
            self.fail("I1", words);
        }
    }
}
