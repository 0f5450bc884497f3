//! Promotion, demotion, removal.

use crate::support::{Lab, PATIENCE, create, description, eventually, node, session, wish_role};
use skep_proto::v1::{self, control_client::ControlClient, dispatcher_client::DispatcherClient, watch_client::WatchClient};
use skep_types::NodeRole;
use std::time::Instant;
use tonic::Code;

const MANAGER: v1::NodeRole = v1::NodeRole::Manager;
const WORKER: v1::NodeRole = v1::NodeRole::Worker;

async fn role_of(lab: &Lab, at: usize, of: &skep_types::NodeId) -> i32 {
    node(&mut lab.control(at).await, of).await.role
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_demoted_and_another_leads() {
    let lab = Lab::of(3).await;
    let leader = lab.leader().await;
    let followers = lab.followers().await;
    let id = lab.hosts[leader].node_id.clone();
    // A stream that only managers may have, at another manager.
    let watcher = lab.hosts[followers[0]].channel(&lab.hosts[leader].security).await;
    let entry = v1::watch_request::WatchEntry { kind: "secret".into(), action: 1, filters: vec![] };
    let request = v1::WatchRequest { entries: vec![entry], ..Default::default() };
    let mut watch = WatchClient::new(watcher).watch(request).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();

    wish_role(&mut lab.control(followers[0]).await, &id, WORKER).await.unwrap();
    tokio::time::timeout(PATIENCE, lab.hosts[leader].manager().removed()).await.expect("it learns that it is out");
    eventually("it is a worker", async || role_of(&lab, followers[1], &id).await, |role| *role == WORKER as i32).await;
    let next = lab.leader().await;
    assert_ne!(next, leader);
    assert_eq!(lab.hosts[next].status().members.len(), 2);
    create(&mut lab.control(followers[1]).await, "web").await.unwrap();

    // Its certificate is valid for months, and of no use for what managers may.
    let ended = async {
        loop {
            match watch.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(status) => return Some(status.code()),
            }
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, ended).await.expect("its streams end"), Some(Code::PermissionDenied));
    for other in followers {
        let mut control = ControlClient::new(lab.hosts[other].channel(&lab.hosts[leader].security).await);
        let refused = async || control.list_nodes(v1::ListNodesRequest::default()).await.err().map(|status| status.code());
        eventually("refused", refused, |code| *code == Some(Code::PermissionDenied)).await;
        // It may be a worker.
        session(lab.hosts[other].channel(&lab.hosts[leader].security).await, description("demoted")).await;
    }
    let renewed = lab.renew_at(next, &lab.hosts[leader].security).await;
    assert_eq!(renewed.identity().unwrap().role(), NodeRole::Worker);
    lab.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_promoted_and_becomes_a_member() {
    let mut lab = Lab::start().await;
    let worker = lab.certify(NodeRole::Worker).await;
    let id = worker.identity().unwrap().node_id().clone();
    let mut control = lab.control(0).await;
    let early = wish_role(&mut control, &id, MANAGER).await.unwrap_err();
    assert_eq!(early.code(), Code::FailedPrecondition, "{early:?}");
    let genuine = v1::NodeDescription { engine: Some(v1::EngineDescription::default()), ..description("dockerd") };
    let (_messages, _) = session(lab.hosts[0].channel(&worker).await, genuine).await;
    let foreign = wish_role(&mut control, &id, MANAGER).await.unwrap_err();
    assert!(foreign.message().contains("does not run skepd"), "{foreign:?}");

    let (_messages, _) = session(lab.hosts[0].channel(&worker).await, description("ours")).await;
    wish_role(&mut control, &id, MANAGER).await.unwrap();
    eventually("it has the role", async || role_of(&lab, 0, &id).await, |role| *role == MANAGER as i32).await;
    let promoted = lab.renew_at(0, &worker).await;
    assert_eq!(promoted.identity().unwrap().role(), NodeRole::Manager);
    let index = lab.admit(promoted, 9).await;
    create(&mut lab.control(index).await, "web").await.unwrap();

    // And back: of two managers one may go while both are there.
    wish_role(&mut control, &id, WORKER).await.unwrap();
    tokio::time::timeout(PATIENCE, lab.hosts[index].manager().removed()).await.unwrap();
    eventually("it is a worker again", async || role_of(&lab, 0, &id).await, |role| *role == WORKER as i32).await;
    let first = lab.hosts[0].node_id.clone();
    let last = wish_role(&mut control, &first, WORKER).await.unwrap_err();
    assert!(last.code() == Code::FailedPrecondition && last.message().contains("last manager"), "{last:?}");
    lab.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demotion_that_loses_the_majority_is_refused() {
    let mut lab = Lab::of(3).await;
    let followers = lab.followers().await;
    let leader = lab.leader().await;
    let mut control = lab.control(leader).await;
    let (dead, alive) = (lab.hosts[followers[0]].node_id.clone(), lab.hosts[followers[1]].node_id.clone());
    lab.hosts[followers[0]].kill().await;
    lab.shows_unreachable(followers[0]).await;
    for id in [&alive, &lab.hosts[leader].node_id] {
        let refused = wish_role(&mut control, id, WORKER).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains("majority"), "{refused:?}");
    }
    // The dead one may go, and then it may be removed.
    wish_role(&mut control, &dead, WORKER).await.unwrap();
    eventually("it is out", async || lab.hosts[leader].status().members.len(), |members| *members == 2).await;
    eventually("it is a worker", async || role_of(&lab, leader, &dead).await, |role| *role == WORKER as i32).await;
    let remove = v1::RemoveNodeRequest { node_id: dead.to_string(), force: true };
    control.remove_node(remove).await.unwrap();
    let member = v1::RemoveNodeRequest { node_id: alive.to_string(), force: true };
    assert_eq!(control.remove_node(member).await.unwrap_err().code(), Code::FailedPrecondition);
    lab.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_is_out_at_once() {
    let lab = Lab::of(3).await;
    let followers = lab.followers().await;
    let leader = lab.leader().await;
    for at in [leader, followers[0]] {
        let worker = lab.certify(NodeRole::Worker).await;
        let id = worker.identity().unwrap().node_id().to_string();
        let channel = lab.hosts[at].channel(&worker).await;
        let (mut messages, first) = session(channel.clone(), description("worker")).await;
        let mut dispatcher = DispatcherClient::new(channel);
        let request = v1::AssignmentsRequest { session_id: first.session_id.clone() };
        let mut assignments = dispatcher.assignments(request).await.unwrap().into_inner();
        assignments.message().await.unwrap().unwrap();

        lab.control(followers[1]).await.remove_node(v1::RemoveNodeRequest { node_id: id, force: true }).await.unwrap();
        let removed = Instant::now();
        let both = async {
            while matches!(messages.message().await, Ok(Some(_))) {}
            while matches!(assignments.message().await, Ok(Some(_))) {}
        };
        tokio::time::timeout(PATIENCE, both).await.expect("its streams end");
        let beat = v1::HeartbeatRequest { session_id: first.session_id };
        let refused = async || dispatcher.clone().heartbeat(beat.clone()).await.unwrap_err().code();
        eventually("refused", refused, |code| *code == Code::PermissionDenied).await;
        println!("refused {:?} after the removal", removed.elapsed());
        for host in &lab.hosts {
            let mut dispatcher = DispatcherClient::new(host.channel(&worker).await);
            let refused = async || dispatcher.heartbeat(beat.clone()).await.unwrap_err().code();
            eventually("refused everywhere", refused, |code| *code == Code::PermissionDenied).await;
        }
    }
    lab.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_demoted_while_it_was_away_learns_it_and_disturbs_nobody() {
    let mut lab = Lab::of(3).await;
    let away = lab.followers().await[0];
    let id = lab.hosts[away].node_id.clone();
    lab.hosts[away].stop().await;
    let leader = lab.leader().await;
    wish_role(&mut lab.control(leader).await, &id, WORKER).await.unwrap();
    eventually("it is a worker", async || role_of(&lab, leader, &id).await, |role| *role == WORKER as i32).await;
    let term = lab.hosts[leader].status().term;

    lab.hosts[away].start_elsewhere().await;
    let back = Instant::now();
    tokio::time::timeout(PATIENCE, lab.hosts[away].manager().removed()).await.expect("it learns that it is out");
    println!("a manager demoted while it was away knew after {:?}", back.elapsed());
    let mut control = ControlClient::new(lab.hosts[leader].channel(&lab.hosts[away].security).await);
    assert_eq!(control.list_nodes(v1::ListNodesRequest::default()).await.unwrap_err().code(), Code::PermissionDenied);
    create(&mut lab.control(leader).await, "web").await.unwrap();
    assert_eq!((lab.hosts[leader].status().term, lab.hosts[leader].leads()), (term, true));
    lab.stop_all().await;
}
