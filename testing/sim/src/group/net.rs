//! The managers of a run, and the lines between them.

use super::host::Machines;
use super::truth::Truth;
use super::{Mutant, lock};
use async_trait::async_trait;
use skep_store::{Member, RaftCall, RaftId, RaftTransport, Store, TransportError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// A manager that runs.
#[derive(Clone)]
pub struct Up {
    /// Where it is; a new group may have given the machine's manager a new number.
    pub machine: u64,
    pub boot: u64,
    pub group: usize,
    pub store: Store,
    /// Ends with the process.
    pub life: CancellationToken,
}

#[derive(Default)]
pub struct Lines {
    /// By raft id.
    pub up: BTreeMap<RaftId, Up>,
    /// Nothing gets from the first to the second.
    pub cut: BTreeSet<(RaftId, RaftId)>,
    /// Of a hundred messages, so many are lost,
    pub loss: u64,
    /// and so many come late.
    pub late: u64,
}

/// What everybody in a run shares.
pub struct World {
    pub machines: Arc<Mutex<Machines>>,
    pub lines: Mutex<Lines>,
    /// By group.
    pub truth: Mutex<Vec<Truth>>,
    pub mutant: Option<Mutant>,
    pub began: Instant,
    trace: Option<Mutex<Vec<String>>>,
    digest: Mutex<u64>,
}

/// Purposes of drawn numbers; 1 to 3 are the machines'.
const LOSS: u8 = 4;
const DELAY: u8 = 5;

impl World {
    #[must_use]
    pub fn new(machines: Arc<Mutex<Machines>>, mutant: Option<Mutant>, trace: bool) -> Arc<Self> {
        Arc::new(Self {
            machines,
            lines: Mutex::default(),
            truth: Mutex::new(vec![Truth::default()]),
            mutant,
            began: Instant::now(),
            trace: trace.then(Mutex::default),
            digest: Mutex::new(0),
        })
    }

    /// Notes what happens; the digest of all notes tells whether two runs were the same.
    pub fn note(&self, words: impl FnOnce() -> String) {
        let line = format!("{:9.4} {}", self.began.elapsed().as_secs_f64(), words());
        let mut digest = lock(&self.digest);
        for byte in line.bytes() {
            *digest = (*digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3); // FNV-1a
        }
        if let Some(trace) = &self.trace {
            lock(trace).push(line);
        }
    }

    #[must_use]
    pub fn digest(&self) -> u64 {
        *lock(&self.digest)
    }

    #[must_use]
    pub fn lines_of_trace(&self) -> Vec<String> {
        self.trace.as_ref().map(|trace| lock(trace).clone()).unwrap_or_default()
    }

    pub fn fail(&self, group: usize, name: &str, words: String) {
        self.note(|| format!("{name}: {words}"));
        lock(&self.truth)[group].fail(name, words);
    }

    /// Whether what a manager does still counts: its machine has power, and has not started anew.
    #[must_use]
    pub fn is_alive(&self, machine: u64, boot: u64) -> bool {
        lock(&self.machines).disks.get(&machine).is_some_and(|disk| !disk.off && disk.boot == boot)
    }

    /// How long a message takes; `None` if it is lost.
    pub fn way(&self, from: RaftId, to: RaftId) -> Option<Duration> {
        let (cut, loss, late) = {
            let lines = lock(&self.lines);
            (lines.cut.contains(&(from, to)), lines.loss, lines.late)
        };
        let mut machines = lock(&self.machines);
        let draw = machines.chance.number(LOSS, from, to) % 100;
        let micros = machines.chance.number(DELAY, from, to);
        if cut || draw < loss {
            return None;
        }
        // A few are so late that others overtake them.
        let most = if draw < loss + late { 3_000_000 } else { 2_000 };
        Some(Duration::from_micros(100 + micros % most))
    }
}

/// The end of all lines of one manager.
pub struct End {
    pub world: Arc<World>,
    pub me: RaftId,
    pub machine: u64,
    pub boot: u64,
}

#[async_trait]
impl RaftTransport for End {
    async fn call(&self, target: RaftId, _: &Member, call: RaftCall, request: Vec<u8>, limit: Duration) -> Result<Vec<u8>, TransportError> {
        let lost = || TransportError::Failed { target, source: None };
        let Some(way) = self.world.way(self.me, target).filter(|_| self.world.is_alive(self.machine, self.boot)) else {
            sleep(limit).await;
            return Err(lost());
        };
        // The other side goes on with what it got, also when the caller has given up.
        let (answer, answered) = oneshot::channel();
        let (world, me, machine, boot) = (Arc::clone(&self.world), self.me, self.machine, self.boot);
        tokio::spawn(async move {
            sleep(way).await;
            let Some(up) = lock(&world.lines).up.get(&target).cloned() else {
                let _ = answer.send(Err(TransportError::Unreachable { target, source: None }));
                return;
            };
            if !world.is_alive(up.machine, up.boot) {
                return;
            }
            let done = tokio::select! {
                biased;
                () = up.life.cancelled() => return,
                done = up.store.answer_from(me, call, &request) => done,
            };
            let alive = world.is_alive(up.machine, up.boot);
            drop(up.store);
            let back = world.way(target, me).filter(|_| alive);
            let Some(back) = back else { return };
            sleep(back).await;
            if world.is_alive(machine, boot) {
                let _ = answer.send(done.map_err(|error| TransportError::Failed { target, source: Some(Box::new(error)) }));
            }
        });
        match tokio::time::timeout(limit, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => {
                sleep(limit).await;
                Err(lost())
            }
            Err(_) => Err(lost()),
        }
    }
}
