//! How managers come in, go, and move.

use crate::support::{Lab, PATIENCE, create, eventually, node, session};
use skep_manager::{LeaveError, join_managers};
use skep_proto::v1;
use skep_store::StoreStatus;
use std::collections::BTreeSet;
use std::time::Duration;

fn voters(status: &StoreStatus) -> BTreeSet<u64> {
    status.members.iter().filter(|member| member.voter).map(|member| member.raft_id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_managers_become_one_group() {
    let lab = Lab::of(3).await;
    let ids: BTreeSet<u64> = lab.hosts.iter().map(|host| host.raft_id).collect();
    for host in &lab.hosts {
        eventually("all have a vote", async || voters(&host.status()), |voters| *voters == ids).await;
    }
    // Joining again changes nothing.
    let terms = lab.hosts[0].status().term;
    join_managers(&lab.hosts[1].security, &lab.addrs(), lab.hosts[1].raft_id, lab.hosts[1].addr).await.unwrap();
    assert_eq!((voters(&lab.hosts[0].status()), lab.hosts[0].status().term), (ids, terms));

    // Everybody is told of all, whomever they ask.
    for index in 0..3 {
        let mut control = lab.control(index).await;
        let all_there = |nodes: &Vec<v1::Node>| {
            let statuses: Vec<_> = nodes.iter().filter_map(|node| node.manager_status.clone()).collect();
            statuses.len() == 3
                && statuses.iter().filter(|status| status.leader).count() == 1
                && statuses.iter().all(|status| status.reachability == v1::raft_member_status::Reachability::Reachable as i32)
        };
        let list = async || control.clone().list_nodes(v1::ListNodesRequest::default()).await.unwrap().into_inner().nodes;
        eventually("three reachable managers", list, all_there).await;
        let id = create(&mut control, &format!("web-{index}")).await.unwrap();
        let other = lab.control((index + 1) % 3).await;
        let found = other.clone().get_service(v1::GetServiceRequest { service_id: id, insert_defaults: false }).await.unwrap();
        assert_eq!(found.into_inner().service.unwrap().spec.unwrap().annotations.unwrap().name, format!("web-{index}"));
    }
    lab.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_comes_back_elsewhere_is_found_there() {
    let mut lab = Lab::of(3).await;
    let worker = lab.certify(skep_types::NodeRole::Worker).await;
    let mut moved = BTreeSet::new();
    // Followers, then whoever leads by then.
    for _ in 0..3 {
        let leader = lab.leader().await;
        let next = (0..3).filter(|index| !moved.contains(index)).min_by_key(|index| *index == leader).unwrap();
        lab.hosts[next].stop().await;
        lab.hosts[next].start_elsewhere().await;
        moved.insert(next);
        let (id, addr) = (lab.hosts[next].raft_id, lab.hosts[next].addr.to_string());
        for host in &lab.hosts {
            let addr_of = async || host.status().members.into_iter().find(|member| member.raft_id == id).map(|member| member.member.addr);
            eventually("the new address is known", addr_of, |known| known.as_ref() == Some(&addr)).await;
        }
    }
    let leader = lab.leader().await;
    create(&mut lab.control(leader).await, "web").await.unwrap();
    // Agents are told where the managers are now.
    let (mut messages, mut last) = session(lab.hosts[leader].channel(&worker).await, crate::support::description("w")).await;
    let expected: BTreeSet<String> = lab.addrs().into_iter().collect();
    let told = |message: &v1::SessionMessage| -> BTreeSet<String> {
        message.managers.iter().map(|manager| manager.peer.as_ref().unwrap().addr.clone()).collect()
    };
    while told(&last) != expected {
        last = tokio::time::timeout(PATIENCE, messages.message()).await.unwrap().unwrap().unwrap();
    }
    lab.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_without_its_state_comes_back_as_another_member() {
    let mut lab = Lab::of(3).await;
    let gone = lab.followers().await[0];
    let old = lab.hosts[gone].raft_id;
    lab.hosts[gone].kill().await;
    let managers = lab.addrs();
    lab.hosts[gone].start_anew(&managers).await;
    let ids: BTreeSet<u64> = lab.hosts.iter().map(|host| host.raft_id).collect();
    assert!(!ids.contains(&old));
    for host in &lab.hosts {
        eventually("the old member is gone", async || voters(&host.status()), |voters| *voters == ids).await;
    }
    // Who is a member is known before the state is: that comes a moment later.
    let control = lab.control(gone).await;
    eventually("it takes writes", async || create(&mut control.clone(), "web").await.is_ok(), |taken| *taken).await;
    lab.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn managers_leave_and_the_last_one_does_not() {
    let lab = Lab::of(3).await;
    let follower = lab.followers().await[0];
    lab.hosts[follower].manager().leave(false).await.unwrap();
    tokio::time::timeout(PATIENCE, lab.hosts[follower].manager().removed()).await.unwrap();
    let leader = lab.leader().await;
    assert_eq!(voters(&lab.hosts[leader].status()).len(), 2);

    // The leader goes: somebody else leads, and then it is taken out.
    lab.hosts[leader].manager().leave(false).await.unwrap();
    let last = (0..3).find(|index| *index != follower && *index != leader).unwrap();
    eventually("one voter", async || voters(&lab.hosts[last].status()), |voters| voters.len() == 1).await;
    eventually("the last one leads", async || lab.hosts[last].leads(), |leads| *leads).await;
    assert!(matches!(lab.hosts[last].manager().leave(false).await, Err(LeaveError::Last)));
    let mut control = lab.control(last).await;
    create(&mut control, "web").await.unwrap();
    // Who left is no member any more, but still a node of the cluster.
    let left = node(&mut control, &lab.hosts[leader].node_id).await;
    assert!(left.manager_status.is_none());
    lab.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_does_not_leave_the_rest_without_a_majority() {
    let mut lab = Lab::of(3).await;
    let followers = lab.followers().await;
    lab.hosts[followers[0]].kill().await;
    lab.shows_unreachable(followers[0]).await;
    let refused = lab.hosts[followers[1]].manager().leave(false).await;
    assert!(matches!(&refused, Err(LeaveError::Refused(why)) if why.contains("majority")), "{refused:?}");
    lab.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_manager_that_nobody_reaches_is_refused() {
    let lab = Lab::start().await;
    let security = lab.certify(skep_types::NodeRole::Manager).await;
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = join_managers(&security, &lab.addrs(), 77, nowhere).await.unwrap_err();
    assert!(refused.to_string().contains("cannot reach"), "{refused}");
    assert_eq!(lab.hosts[0].status().members.len(), 1);
    create(&mut lab.control(0).await, "web").await.unwrap();
    lab.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn managers_come_in_while_the_leader_is_killed() {
    let mut lab = Lab::of(3).await;
    let mut newcomers = Vec::new();
    for _ in 0..2 {
        let security = lab.certify(skep_types::NodeRole::Manager).await;
        newcomers.push(lab.prepare(security, rand::random::<u64>() | 1).await);
    }
    let (managers, leader) = (lab.addrs(), lab.leader().await);
    let join = |host: &crate::support::Host| {
        let (security, managers, raft_id, addr) = (host.security.clone(), managers.clone(), host.raft_id, host.addr);
        async move { join_managers(&security, &managers, raft_id, addr).await }
    };
    let kill = async {
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..100))).await;
        lab.hosts[leader].kill().await;
    };
    let (first, second, ()) = tokio::join!(join(&newcomers[0]), join(&newcomers[1]), kill);
    first.unwrap();
    second.unwrap();
    lab.hosts.extend(newcomers);
    let next = lab.leader().await;
    eventually("five with a vote", async || voters(&lab.hosts[next].status()).len(), |voters| *voters == 5).await;
    create(&mut lab.control(next).await, "web").await.unwrap();
    lab.stop_all().await;
}
