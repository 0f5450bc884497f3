//! What a few processes used while something happened.

use crate::cpu::{kernel_threads, machine_seconds, own_seconds, process_seconds};
use std::collections::BTreeMap;
use std::time::Instant;

/// The clocks when it began.
#[derive(Debug)]
pub struct Meter {
    pids: Vec<u32>,
    begin: Instant,
    cpu: f64,
    own: f64,
    machine: f64,
    kernel: BTreeMap<u32, f64>,
}

/// What passed, in seconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Used {
    pub wall: f64,
    /// CPU of the processes that were named.
    pub cpu: f64,
    /// CPU of this program, with the agents or clients in it.
    pub own: f64,
    /// The share of the machine that somebody else used.
    pub foreign: f64,
}

impl Meter {
    #[must_use]
    pub fn start(pids: &[u32]) -> Self {
        Self {
            pids: pids.to_vec(),
            begin: Instant::now(),
            cpu: pids.iter().map(|pid| process_seconds(*pid)).sum(),
            own: own_seconds(),
            machine: machine_seconds(),
            kernel: kernel_threads(),
        }
    }

    /// The processes must still live.
    #[must_use]
    pub fn stop(&self) -> Used {
        let wall = self.begin.elapsed().as_secs_f64();
        let cpu = self.pids.iter().map(|pid| process_seconds(*pid)).sum::<f64>() - self.cpu;
        let own = own_seconds() - self.own;
        let kernel: f64 = kernel_threads().iter().map(|(pid, used)| (used - self.kernel.get(pid).copied().unwrap_or(0.0)).max(0.0)).sum();
        let cpus = std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64);
        let foreign = ((machine_seconds() - self.machine - cpu - own - kernel) / (wall * cpus)).max(0.0);
        Used { wall, cpu, own, foreign }
    }
}

/// Seconds on a CPU of each thread that lives, exact to the nanosecond. Threads that ended are not in it: for short times only.
#[must_use]
pub fn thread_seconds(pids: &[u32]) -> BTreeMap<String, f64> {
    let mut found = BTreeMap::new();
    for pid in pids {
        for thread in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            if let Some(nanos) = text.split(' ').next().and_then(|text| text.parse::<f64>().ok()) {
                found.insert(thread.file_name().to_string_lossy().into_owned(), nanos / 1e9);
            }
        }
    }
    found
}

/// What passed between two looks.
#[must_use]
pub fn between(earlier: &BTreeMap<String, f64>, later: &BTreeMap<String, f64>) -> f64 {
    later.iter().map(|(thread, used)| used - earlier.get(thread).copied().unwrap_or(0.0)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_of_this_process_is_seen() {
        let pid = [std::process::id()];
        let (meter, before) = (Meter::start(&pid), thread_seconds(&pid));
        let begin = Instant::now();
        // On a busy machine this process gets little of it for a while.
        while begin.elapsed().as_millis() < 60 || (begin.elapsed().as_secs() < 60 && between(&before, &thread_seconds(&pid)) <= 0.02) {
            std::hint::black_box(std::fs::read("/proc/self/stat").is_ok());
        }
        assert!(between(&before, &thread_seconds(&pid)) > 0.02);
        let used = meter.stop();
        assert!(used.cpu > 0.0 && used.wall >= 0.06, "{used:?}");
    }
}
