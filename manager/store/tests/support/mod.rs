//! Several managers in one process, connected by lines that can be cut in either direction.

#![allow(dead_code, reason = "each test program uses a part of it")]

use async_trait::async_trait;
use skep_store::{Member, ProposeError, RaftCall, RaftId, RaftTransport, Store, StoreConfig, Timing, TransportError};
use skep_types::{Action, ClusterView, Node, NodeId, Object};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[derive(Default)]
pub struct Net {
    pub stores: Mutex<BTreeMap<RaftId, Store>>,
    /// Nothing gets from the first to the second: neither its requests nor its answers.
    cut: Mutex<BTreeSet<(RaftId, RaftId)>>,
    /// Who is later with its answers than all others.
    pub late: Mutex<Option<RaftId>>,
    /// Requests by caller and kind.
    pub calls: Mutex<BTreeMap<(RaftId, &'static str), usize>>,
}

impl Net {
    fn is_cut(&self, from: RaftId, to: RaftId) -> bool {
        self.cut.lock().unwrap().contains(&(from, to))
    }

    pub fn cut(&self, from: RaftId, to: RaftId) {
        self.cut.lock().unwrap().insert((from, to));
    }

    pub fn heal(&self) {
        self.cut.lock().unwrap().clear();
    }

    pub fn is_isolated(&self, id: RaftId) -> bool {
        let others: Vec<RaftId> = self.stores.lock().unwrap().keys().copied().filter(|other| *other != id).collect();
        !others.is_empty() && others.iter().all(|other| self.is_cut(id, *other) || self.is_cut(*other, id))
    }
}

struct End {
    me: RaftId,
    net: Arc<Net>,
}

#[async_trait]
impl RaftTransport for End {
    async fn call(&self, target: RaftId, _: &Member, call: RaftCall, request: Vec<u8>, limit: Duration) -> Result<Vec<u8>, TransportError> {
        let kind = match call {
            RaftCall::AppendEntries => "append",
            RaftCall::Vote => "vote",
            RaftCall::InstallSnapshot => "snapshot",
            RaftCall::PreVote => "pre-vote",
            RaftCall::TimeoutNow => "timeout-now",
        };
        *self.net.calls.lock().unwrap().entry((self.me, kind)).or_default() += 1;
        let lost = || TransportError::Failed { target, source: None };
        if self.net.is_cut(self.me, target) {
            tokio::time::sleep(limit).await;
            return Err(lost());
        }
        if *self.net.late.lock().unwrap() == Some(target) {
            tokio::time::sleep(limit / 4).await;
        }
        let store = self.net.stores.lock().unwrap().get(&target).cloned();
        let store = store.ok_or(TransportError::Unreachable { target, source: None })?;
        let answer = store.answer(call, &request).await.map_err(|error| TransportError::Failed { target, source: Some(Box::new(error)) });
        if self.net.is_cut(target, self.me) {
            tokio::time::sleep(limit).await;
            return Err(lost());
        }
        answer
    }
}

pub struct Cluster {
    pub dir: tempfile::TempDir,
    pub net: Arc<Net>,
    timing: Timing,
}

/// As in earnest: shorter times mistake a busy machine for a dead leader.
pub const BEAT: Duration = Duration::from_millis(100);
/// The longest that a follower waits for its leader.
pub const LONGEST: Duration = Duration::from_millis(1200);

const TIMING: Timing = Timing { heartbeat: BEAT, election_min: Duration::from_millis(600), election_max: LONGEST };

/// The longest wait for a leader in tests of who may *not* depose one: a machine that stands still for some seconds is no reason either.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// See [`PATIENCE`].
pub const PATIENT: Timing = Timing { heartbeat: BEAT, election_min: Duration::from_secs(4), election_max: PATIENCE };

pub fn config(dir: &Path, id: RaftId) -> StoreConfig {
    StoreConfig {
        timing: TIMING,
        segment_bytes: 256 * 1024,
        snapshot_entries: 50,
        keep_entries: 5,
        propose_timeout: Duration::from_secs(5), // `write` tries again
        ..StoreConfig::new(dir.join(id.to_string()))
    }
}

pub fn member(id: RaftId) -> Member {
    Member { node_id: format!("node-{id}"), addr: format!("127.0.0.1:{id}") }
}

/// Until `done`, at most a minute.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within a minute: {what}");
}

impl Cluster {
    /// One manager, number 1.
    pub async fn new() -> Self {
        Self::first(TIMING).await
    }

    async fn first(timing: Timing) -> Self {
        Self::first_in(tempfile::tempdir().unwrap(), timing).await
    }

    /// As [`Cluster::new`]; manager `n` keeps its store in `dir/n`.
    pub async fn new_in(dir: tempfile::TempDir) -> Self {
        Self::first_in(dir, TIMING).await
    }

    async fn first_in(dir: tempfile::TempDir, timing: Timing) -> Self {
        let cluster = Self { dir, net: Arc::default(), timing };
        let store = Store::bootstrap(cluster.config(1), 1, member(1), cluster.end(1)).await.unwrap();
        cluster.net.stores.lock().unwrap().insert(1, store);
        cluster
    }

    /// Managers 1 to `count`, all voters.
    pub async fn of(count: RaftId) -> Self {
        Self::with(count, TIMING).await
    }

    fn config(&self, id: RaftId) -> StoreConfig {
        StoreConfig { timing: self.timing, ..config(self.dir.path(), id) }
    }

    pub async fn with(count: RaftId, timing: Timing) -> Self {
        let cluster = Self::first(timing).await;
        for id in 2..=count {
            cluster.join(id).await;
        }
        let count = usize::try_from(count).unwrap();
        until("everybody knows everybody", || {
            cluster.all().iter().all(|store| store.members().borrow().iter().filter(|member| member.voter).count() == count)
        })
        .await;
        cluster
    }

    pub fn end(&self, me: RaftId) -> Arc<dyn RaftTransport> {
        Arc::new(End { me, net: Arc::clone(&self.net) })
    }

    pub fn store(&self, id: RaftId) -> Store {
        self.net.stores.lock().unwrap()[&id].clone()
    }

    pub fn all(&self) -> Vec<Store> {
        self.net.stores.lock().unwrap().values().cloned().collect()
    }

    pub fn ids(&self) -> Vec<RaftId> {
        self.net.stores.lock().unwrap().keys().copied().collect()
    }

    /// Cuts all lines of one manager, both ways.
    pub fn isolate(&self, id: RaftId) {
        for other in self.ids() {
            self.net.cut(id, other);
            self.net.cut(other, id);
        }
    }

    pub async fn join(&self, id: RaftId) {
        let store = Store::join(self.config(id), id, self.end(id)).await.unwrap();
        self.net.stores.lock().unwrap().insert(id, store);
        // As a manager that joins does: it comes again while leaders change or another change of the group is under way.
        let begin = Instant::now();
        loop {
            let leader = self.leader().await;
            let admitted = async {
                leader.add_learner(id, member(id)).await?;
                leader.add_voter(id).await
            };
            match admitted.await {
                Ok(()) => return,
                Err(error) => assert!(begin.elapsed() < Duration::from_secs(60), "{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Takes a manager away at once; it ends afterwards, unheard.
    pub async fn stop(&self, id: RaftId) {
        let store = self.net.stores.lock().unwrap().remove(&id).unwrap();
        self.net.cut.lock().unwrap().extend((1..10).map(|other| (id, other)));
        store.shutdown().await;
        self.net.cut.lock().unwrap().retain(|(from, _)| *from != id);
    }

    pub async fn start(&self, id: RaftId) {
        let store = Store::open(self.config(id), self.end(id)).await.unwrap();
        self.net.stores.lock().unwrap().insert(id, store);
    }

    /// A manager that leads and is not cut off.
    pub async fn leader(&self) -> Store {
        for _ in 0..6000 {
            let found =
                self.all().into_iter().find(|store| store.leadership().borrow().is_leader && !self.net.is_isolated(store.raft_id()));
            if let Some(leader) = found {
                return leader;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no leader within a minute: {:?}", self.all().iter().map(Store::status).collect::<Vec<_>>());
    }

    /// How often a manager has made calls of a kind.
    pub fn calls(&self, caller: RaftId, kind: &'static str) -> usize {
        self.net.calls.lock().unwrap().get(&(caller, kind)).copied().unwrap_or_default()
    }

    /// Until it is done: leaders come and go.
    pub async fn write(&self, number: u64) {
        loop {
            match self.leader().await.propose(create(number)).await {
                Ok(_) => return,
                Err(ProposeError::Refused(error)) => {
                    // An earlier try may have been made after all.
                    assert!(self.leader().await.view().node(&NodeId::for_test(number)).is_some(), "{error}");
                    return;
                }
                Err(ProposeError::NotLeader { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
                // It may have been made: looking is what a client has to do.
                Err(_) if self.leader().await.view().node(&NodeId::for_test(number)).is_some() => return,
                Err(_) => {}
            }
        }
    }

    /// How long it takes until a write is done again.
    pub async fn outage(&self, number: u64) -> Duration {
        let begin = Instant::now();
        self.write(number).await;
        begin.elapsed()
    }

    /// Waits longer than any disk hangs in these tests.
    pub async fn same_everywhere(&self) {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(60) {
            let hashes: BTreeSet<String> = self.all().iter().map(|store| store.state_hash().to_string()).collect();
            if hashes.len() == 1 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("managers differ after a minute: {:#?}", self.all().iter().map(Store::status).collect::<Vec<_>>());
    }

    pub async fn end_all(self) {
        let all = std::mem::take(&mut *self.net.stores.lock().unwrap());
        for store in all.values() {
            store.shutdown().await;
        }
    }
}

pub fn create(number: u64) -> Vec<Action> {
    let mut node = Node::new(NodeId::for_test(number));
    node.status.message = "m".repeat(500);
    vec![Action::Create(Object::Node(Arc::new(node)))]
}
