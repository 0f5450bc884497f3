//! What is compared: something that starts tasks, removes them and replaces those that die.

use crate::remains::{Places, lives};
use anyhow::{Result, ensure};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often everybody's state is asked for: dockerd's, ours and the kernel's alike.
pub const POLL: Duration = Duration::from_millis(10);
/// Longer than any operation here takes on a starved machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Moments of an operation, in seconds since it began.
pub type Marks = Vec<(&'static str, f64)>;

/// One of those compared.
pub trait Contender {
    fn name(&self) -> &str;

    /// Groups of the cpuacct controller that hold all its processes, those of its tasks too.
    fn tree(&self) -> Vec<PathBuf>;

    /// Starts `count` tasks. Marks `running` (all of them, as the contender itself says) and `first instruction` (the last one's).
    ///
    /// # Errors
    /// If not all of them run in time.
    fn start(&mut self, count: usize) -> Result<Marks>;

    /// Removes all tasks. Marks `gone`: no shim, namespace, mount or cgroup is left.
    ///
    /// # Errors
    /// If something is left after a long while.
    fn remove(&mut self) -> Result<Marks>;

    /// Kills the process of one task and waits for its replacement. Marks `healed`; `None` if it has no such duty.
    ///
    /// # Errors
    /// If no replacement comes.
    fn heal(&mut self) -> Result<Option<Marks>> {
        Ok(None)
    }

    /// Puts a new task in the place of each that runs, one after the other: stop, then start. Marks `updated`: all new ones run; `None`
    /// if it cannot.
    ///
    /// # Errors
    /// If that does not come to its end.
    fn update(&mut self) -> Result<Option<Marks>> {
        Ok(None)
    }
}

/// Asks every [`POLL`] until the answer is yes.
///
/// # Errors
/// The first error of the question, or that the answer stayed no.
pub fn poll(what: &str, mut question: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    loop {
        crate::interrupt::check()?;
        let asked = Instant::now();
        if question()? {
            return Ok(());
        }
        ensure!(start.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(POLL.saturating_sub(asked.elapsed()));
    }
}

/// What was there before any task, and how to see that only this is left.
#[derive(Debug, Clone)]
pub struct Traces {
    places: Places,
    before: BTreeSet<String>,
    shims: Vec<u32>,
}

impl Traces {
    /// To be called while no task exists.
    #[must_use]
    pub fn before(places: Places) -> Self {
        let before = places.look();
        Self { places, before, shims: Vec::new() }
    }

    /// After the first task: what a daemon makes once and keeps (the host's namespace, the ingress network) is no task's.
    /// Waits until the shims are gone and nothing changes any more; gives what it took as kept.
    ///
    /// # Errors
    /// If it never comes to rest.
    pub fn keep_what_stays(&mut self) -> Result<Vec<String>> {
        let (mut seen, mut since) = (self.places.look(), Instant::now());
        poll("coming to rest", || {
            let now = self.places.look();
            if now != seen || self.shims.iter().any(|pid| lives(*pid)) {
                (seen, since) = (now, Instant::now());
            }
            Ok(since.elapsed() > Duration::from_secs(2))
        })?;
        let kept = seen.difference(&self.before).cloned().collect();
        self.before = seen;
        Ok(kept)
    }

    /// Remembers the shims of the tasks that run now, so that waiting need not search for them.
    pub fn note_shims(&mut self) {
        self.shims = self.places.shims();
    }

    /// What is still there and was not before.
    #[must_use]
    pub fn left(&self) -> Vec<String> {
        let mut left: Vec<String> = self.places.look().difference(&self.before).cloned().collect();
        left.extend(self.shims.iter().filter(|pid| lives(**pid)).map(|pid| format!("shim {pid}")));
        left
    }

    /// # Errors
    /// If something stays, with the first of it.
    pub fn wait_until_gone(&self) -> Result<()> {
        let mut left = Vec::new();
        poll("everything gone", || {
            left = self.left();
            Ok(left.is_empty())
        })
        .map_err(|error| error.context(format!("{} left, such as {:?}", left.len(), left.first())))
    }
}
