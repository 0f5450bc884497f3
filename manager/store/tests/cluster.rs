//! Three managers in one process, joined by a transport that can be cut.

use async_trait::async_trait;
use skep_store::{Alone, Member, MemberStatus, ProposeError, RaftCall, RaftId, RaftTransport, Store, StoreConfig, TransportError};
use skep_types::{Action, ClusterView, Node, NodeId, Object};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Default)]
struct Net {
    stores: Mutex<BTreeMap<RaftId, Store>>,
    cut: Mutex<BTreeSet<RaftId>>,
}

struct End {
    me: RaftId,
    net: Arc<Net>,
}

#[async_trait]
impl RaftTransport for End {
    async fn call(&self, target: RaftId, _: &Member, call: RaftCall, request: Vec<u8>, _: Duration) -> Result<Vec<u8>, TransportError> {
        let unreachable = || TransportError::Unreachable { target, source: None };
        let cut = |id| self.net.cut.lock().unwrap().contains(&id);
        if cut(self.me) || cut(target) {
            return Err(unreachable());
        }
        let store = self.net.stores.lock().unwrap().get(&target).cloned().ok_or_else(unreachable)?;
        store.answer(call, &request).await.map_err(|error| TransportError::Failed { target, source: Some(Box::new(error)) })
    }
}

struct Cluster {
    dir: tempfile::TempDir,
    net: Arc<Net>,
}

fn config(dir: &Path, id: RaftId) -> StoreConfig {
    StoreConfig {
        timing: skep_store::Timing {
            heartbeat: Duration::from_millis(50),
            election_min: Duration::from_millis(300),
            election_max: Duration::from_millis(600),
        },
        segment_bytes: 256 * 1024,
        snapshot_entries: 50,
        keep_entries: 5,
        propose_timeout: Duration::from_secs(5),
        ..StoreConfig::new(dir.join(id.to_string()))
    }
}

fn member(id: RaftId) -> Member {
    Member { node_id: format!("node-{id}"), addr: format!("127.0.0.1:{id}") }
}

impl Cluster {
    async fn new() -> Self {
        let cluster = Self { dir: tempfile::tempdir().unwrap(), net: Arc::default() };
        let store = Store::bootstrap(config(cluster.dir.path(), 1), 1, member(1), cluster.end(1)).await.unwrap();
        cluster.net.stores.lock().unwrap().insert(1, store);
        cluster
    }

    fn end(&self, me: RaftId) -> Arc<dyn RaftTransport> {
        Arc::new(End { me, net: Arc::clone(&self.net) })
    }

    fn store(&self, id: RaftId) -> Store {
        self.net.stores.lock().unwrap()[&id].clone()
    }

    fn all(&self) -> Vec<Store> {
        self.net.stores.lock().unwrap().values().cloned().collect()
    }

    async fn join(&self, id: RaftId) {
        let store = Store::join(config(self.dir.path(), id), id, self.end(id)).await.unwrap();
        self.net.stores.lock().unwrap().insert(id, store);
        let leader = self.leader().await;
        leader.add_learner(id, member(id)).await.unwrap();
        leader.add_voter(id).await.unwrap();
    }

    async fn stop(&self, id: RaftId) {
        let store = self.net.stores.lock().unwrap().remove(&id).unwrap();
        store.shutdown().await;
    }

    async fn start(&self, id: RaftId) {
        let store = Store::open(config(self.dir.path(), id), self.end(id)).await.unwrap();
        self.net.stores.lock().unwrap().insert(id, store);
    }

    /// A manager that leads and is not cut off.
    async fn leader(&self) -> Store {
        for _ in 0..1000 {
            let found = self
                .all()
                .into_iter()
                .find(|store| store.leadership().borrow().is_leader && !self.net.cut.lock().unwrap().contains(&store.raft_id()));
            if let Some(leader) = found {
                return leader;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no leader within 10 s");
    }

    /// Until it is done: leaders come and go.
    async fn write(&self, number: u64) {
        loop {
            match self.leader().await.propose(create(number)).await {
                Ok(_) => return,
                Err(ProposeError::Refused(error)) => panic!("{error}"),
                Err(ProposeError::NotLeader { .. }) => {}
                // It may have been made: looking is what a client has to do.
                Err(_) if self.leader().await.view().node(&NodeId::for_test(number)).is_some() => return,
                Err(_) => {}
            }
        }
    }

    async fn same_everywhere(&self) {
        for _ in 0..1000 {
            let hashes: BTreeSet<String> = self.all().iter().map(|store| store.state_hash().to_string()).collect();
            if hashes.len() == 1 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("managers differ after 10 s: {:?}", self.all().iter().map(Store::status).collect::<Vec<_>>());
    }

    async fn end_all(self) {
        let all = std::mem::take(&mut *self.net.stores.lock().unwrap());
        for store in all.values() {
            store.shutdown().await;
        }
    }
}

fn create(number: u64) -> Vec<Action> {
    let mut node = Node::new(NodeId::for_test(number));
    node.status.message = "m".repeat(500);
    vec![Action::Create(Object::Node(Arc::new(node)))]
}

#[tokio::test(flavor = "multi_thread")]
async fn managers_join_by_snapshot_and_lose_a_leader_without_losing_a_write() {
    let cluster = Cluster::new().await;
    for number in 0..200 {
        cluster.write(number).await;
    }
    let leader = cluster.leader().await;
    for _ in 0..500 {
        if leader.status().purged_index > Some(0) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(leader.status().purged_index > Some(0), "so that joining needs a snapshot: {:?}", leader.status());
    cluster.join(2).await;
    cluster.join(3).await;
    cluster.same_everywhere().await;
    assert_eq!(cluster.store(3).view().nodes().count(), 200);
    // The last change of membership reaches a follower a moment after its data.
    let all_vote = |members: &[MemberStatus]| members.len() == 3 && members.iter().all(|member| member.voter);
    for _ in 0..500 {
        if all_vote(&cluster.store(3).status().members) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let members = cluster.store(3).status().members;
    assert!(all_vote(&members), "{members:?}");
    let follower = cluster.store(2).propose(create(999)).await;
    assert!(matches!(&follower, Err(ProposeError::NotLeader { leader: Some(leader) }) if *leader == member(1)), "{follower:?}");

    cluster.stop(1).await;
    for number in 200..260 {
        cluster.write(number).await;
    }
    cluster.start(1).await;
    cluster.same_everywhere().await;
    assert_eq!(cluster.store(1).view().nodes().count(), 260);
    cluster.end_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_cut_off_acknowledges_nothing_and_forgets_what_it_wrote() {
    let cluster = Cluster::new().await;
    cluster.join(2).await;
    cluster.join(3).await;
    cluster.write(1).await;
    let old = cluster.leader().await;
    cluster.net.cut.lock().unwrap().insert(old.raft_id());
    let lost = tokio::spawn({
        let old = old.clone();
        async move { old.propose(create(500)).await }
    });
    for number in 2..30 {
        cluster.write(number).await;
    }
    let lost = lost.await.unwrap();
    assert!(matches!(lost, Err(ProposeError::Timeout(_) | ProposeError::LeadershipLost { .. })), "{lost:?}");
    cluster.net.cut.lock().unwrap().clear();
    cluster.same_everywhere().await;
    assert!(old.view().node(&NodeId::for_test(500)).is_none());
    assert_eq!(old.view().nodes().count(), 29);
    // What it truncated stays away over a restart.
    let id = old.raft_id();
    drop(old);
    cluster.stop(id).await;
    cluster.start(id).await;
    cluster.same_everywhere().await;
    assert_eq!(cluster.store(id).view().nodes().count(), 29);
    cluster.end_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_was_removed_leaves_the_rest_writing() {
    let cluster = Cluster::new().await;
    cluster.join(2).await;
    cluster.write(1).await;
    let leader = cluster.leader().await;
    leader.remove_member(2).await.unwrap();
    cluster.stop(2).await;
    cluster.write(2).await;
    assert_eq!(leader.status().members.len(), 1);
    assert!(leader.remove_member(1).await.is_err(), "the last voter stays");
    cluster.end_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_nobody_added_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    Store::join(config(dir.path(), 5), 5, Arc::new(Alone)).await.unwrap().shutdown().await;
    assert!(matches!(Store::open(config(dir.path(), 5), Arc::new(Alone)).await, Err(skep_store::StoreError::Empty { .. })));
    Store::join(config(dir.path(), 5), 5, Arc::new(Alone)).await.unwrap().shutdown().await;
}
