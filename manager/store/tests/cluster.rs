//! Three managers in one process, connected by lines that can be cut.

mod support;

use skep_store::{Alone, MemberStatus, ProposeError, Store};
use skep_types::{ClusterView, NodeId};
use std::sync::Arc;
use support::{Cluster, PATIENT, config, create, member, until};

#[tokio::test(flavor = "multi_thread")]
async fn managers_join_by_snapshot_and_lose_a_leader_without_losing_a_write() {
    let cluster = Cluster::with(1, PATIENT).await;
    for number in 0..200 {
        cluster.write(number).await;
    }
    let leader = cluster.leader().await;
    until("joining needs a snapshot", || leader.status().purged_index > Some(0)).await;
    cluster.join(2).await;
    cluster.join(3).await;
    cluster.same_everywhere().await;
    assert_eq!(cluster.store(3).view().nodes().count(), 200);
    // The last change of membership reaches a follower a moment after its data.
    let all_vote = |members: &[MemberStatus]| members.len() == 3 && members.iter().all(|member| member.voter);
    until("all vote", || all_vote(&cluster.store(3).status().members)).await;
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
    cluster.isolate(old.raft_id());
    let lost = tokio::spawn({
        let old = old.clone();
        async move { old.propose(create(500)).await }
    });
    for number in 2..30 {
        cluster.write(number).await;
    }
    let lost = lost.await.unwrap();
    assert!(matches!(lost, Err(ProposeError::Timeout(_) | ProposeError::LeadershipLost { .. })), "{lost:?}");
    cluster.net.heal();
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
