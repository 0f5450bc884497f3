//! Whether every node's network is what the store says (invariant I11): looked at all the time, while the store rests.

mod look; // at one node
mod store; // the store's view

use crate::cluster::Cluster;
use crate::wait::eventually;
use anyhow::{Result, ensure};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use store::Store;

/// The invariant's second, and as long as it takes on a machine that is starved.
const QUIET: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(250);
const SETTLED: Duration = Duration::from_secs(120);

/// What is known of a host.
#[derive(Debug, Clone)]
struct Place {
    name: String,
    socket: PathBuf,
    namespaces: PathBuf,
}

/// Compares what nodes do with what the store says, in a thread of its own, from [`Cluster::watch_networks`] until it is dropped.
///
/// What differs while the store rests must be gone after half a minute of rest.
#[derive(Debug)]
pub struct Truth {
    places: Vec<Place>,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Seen {
    /// How often all nodes were found to be right.
    right: usize,
    broken: Vec<String>,
}

impl Cluster {
    /// From here on every node's network is compared with the store's view.
    #[must_use]
    pub fn watch_networks(&self) -> Truth {
        let hosts = self.managers().chain(self.workers()).map(|host| &self[host]);
        let place =
            |host: &crate::Host| Place { name: host.name().to_owned(), socket: host.socket(), namespaces: host.run_dir().join("netns") };
        let places: Vec<Place> = hosts.map(place).collect();
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Seen>>::default());
        let thread = {
            let (places, stop, seen) = (places.clone(), Arc::clone(&stop), Arc::clone(&seen));
            std::thread::spawn(move || watch(&places, &stop, &seen))
        };
        Truth { places, stop, seen, thread: Some(thread) }
    }
}

impl Truth {
    /// Waits until the store rests and every node is as it says; nothing that was seen before may have been otherwise for long.
    ///
    /// # Errors
    /// What differs, by node and network.
    pub fn holds(&self) -> Result<()> {
        let mut nodes = BTreeMap::new();
        eventually(SETTLED, "I11: every node's network is as the store says", || {
            let before = Store::read(&self.places)?;
            std::thread::sleep(QUIET);
            ensure!(Store::read(&self.places)? == before, "the store does not rest");
            let differences = before.differences(&self.places, &mut nodes)?;
            ensure!(differences.is_empty(), "{differences:#?}");
            Ok(())
        })?;
        self.broken()
    }

    /// What differs at this moment, whether the store rests or not.
    ///
    /// # Errors
    /// No manager leads, or a node could not be looked at.
    pub fn differences(&self) -> Result<Vec<String>> {
        Store::read(&self.places)?.differences(&self.places, &mut BTreeMap::new())
    }

    /// The end: returns how often all nodes were found right on the way.
    ///
    /// # Errors
    /// See [`holds`](Self::holds).
    pub fn end(mut self) -> Result<usize> {
        self.holds()?;
        self.leave();
        self.broken()?;
        Ok(self.seen.lock().unwrap_or_else(PoisonError::into_inner).right)
    }

    fn broken(&self) -> Result<()> {
        let broken = &self.seen.lock().unwrap_or_else(PoisonError::into_inner).broken;
        ensure!(broken.is_empty(), "I11: {broken:#?}");
        Ok(())
    }

    fn leave(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Truth {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Looks until told to stop. While no manager answers there is nothing to compare with.
fn watch(places: &[Place], stop: &AtomicBool, seen: &Mutex<Seen>) {
    let (mut known, mut nodes): (Option<(Store, Instant)>, _) = (None, BTreeMap::new());
    // Since when each of them differs.
    let mut differing: BTreeMap<String, Instant> = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(PAUSE);
        let now = Store::read(places).ok();
        let rests = matches!((&known, &now), (Some((was, _)), Some(is)) if was == is);
        if !rests {
            known = now.map(|now| (now, Instant::now()));
            differing.clear();
            continue;
        }
        let Some((store, since)) = &known else { continue };
        if since.elapsed() < QUIET {
            continue;
        }
        // A node that does not answer, or a namespace that goes meanwhile, is looked at again.
        let Ok(differences) = store.differences(places, &mut nodes) else { continue };
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.right += usize::from(differences.is_empty());
        let began = Instant::now();
        let still: BTreeMap<String, Instant> = differences
            .into_iter()
            .map(|what| (differing.get(&what).copied().unwrap_or(began), what))
            .map(|(at, what)| (what, at))
            .collect();
        differing = still;
        let old = differing.iter().filter(|(what, at)| at.elapsed() >= PATIENCE && !seen.broken.contains(*what));
        let old: Vec<String> = old.map(|(what, _)| what.clone()).collect();
        seen.broken.extend(old);
    }
}
