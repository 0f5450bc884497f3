use crate::cluster::{Cluster, Size};
use crate::wait::need_root;
use anyhow::{Context, Result};
use std::io::Write;
use std::time::{Duration, Instant};

/// A test on a cluster of its own.
///
/// When the script is through, the questions follow that are asked of every scenario: do all managers that run hold the same
/// state, does no slot run twice, and, when every host has left the cluster, is nothing left on any of them. If anything went wrong,
/// the ends of all logs are printed.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    name: &'static str,
    size: Size,
    formed: bool,
    long: bool,
    named: bool,
}

impl Scenario {
    #[must_use]
    pub fn new(name: &'static str, managers: usize, workers: usize) -> Self {
        Self { name, size: Size { managers, workers }, formed: true, long: false, named: false }
    }

    /// It takes too long for every `make test`: `make e2e` runs it.
    #[must_use]
    pub fn long(self) -> Self {
        Self { long: true, ..self }
    }

    /// Nodes are called as the hosts are (`m1`, `w1`, …), not all of them as this machine.
    #[must_use]
    pub fn named(self) -> Self {
        Self { named: true, ..self }
    }

    /// The script gets hosts in no cluster.
    #[must_use]
    pub fn unformed(self) -> Self {
        Self { formed: false, ..self }
    }

    /// # Errors
    /// What the script or the questions found.
    pub fn run(self, script: impl FnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
        if !need_root(self.name) || (self.long && is_left_out(self.name)) {
            return Ok(());
        }
        let began = Instant::now();
        let mut cluster = Cluster::dark(self.size)?;
        if self.named {
            cluster.give_names();
        }
        cluster.start_all()?;
        let outcome = self.play(&mut cluster, script);
        if outcome.is_err() {
            eprintln!("{}", cluster.log_tails());
            keep_logs(self.name, &cluster);
        }
        eprintln!("{}: {:.1} s", self.name, began.elapsed().as_secs_f64());
        outcome.with_context(|| self.name)
    }

    fn play(self, cluster: &mut Cluster, script: impl FnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
        let mut empty = Vec::new();
        if self.formed {
            cluster.form(&[]).context("the cluster is made")?;
            // Images are there, and nothing runs yet.
            empty = cluster.inventories()?;
        }
        script(cluster)?;
        let managers: Vec<usize> = cluster.replicas().iter().map(|replica| replica.host).collect();
        if !managers.is_empty() {
            let leader = cluster.wait_converged(managers, Duration::from_secs(30))?;
            cluster.no_slot_runs_twice(leader.host)?;
        }
        cluster.everybody_leaves(&empty)
    }
}

/// Whether only `make e2e` runs what takes so long. Says so, and writes it to the file named by `SKEP_LEFT_OUT`: what a passing test
/// prints is not seen.
#[must_use]
pub fn is_left_out(name: &str) -> bool {
    if std::env::var("SKEP_E2E").is_ok_and(|which| which == "all") {
        return false;
    }
    println!("LEFT OUT: {name} (make e2e runs it)");
    if let Some(path) = std::env::var_os("SKEP_LEFT_OUT")
        && let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(path)
    {
        let _ = writeln!(file, "{name}");
    }
    true
}

/// Whole logs of a failed scenario go to the directory named by `SKEP_E2E_LOGS`.
fn keep_logs(name: &str, cluster: &Cluster) {
    let Some(dir) = std::env::var_os("SKEP_E2E_LOGS").map(std::path::PathBuf::from) else { return };
    for host in cluster.managers().chain(cluster.workers()) {
        let host = &cluster[host];
        let file = dir.join(format!("{}-{}.log", name.replace(' ', "-"), host.name()));
        if let Err(error) = std::fs::create_dir_all(&dir).and_then(|()| std::fs::write(&file, host.log())) {
            eprintln!("cannot keep {}: {error}", file.display());
        }
    }
}
