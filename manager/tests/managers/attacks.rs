//! Who may speak raft.

use crate::support::{Lab, PATIENCE, create, dial};
use skep_ca::{Connector, DEFAULT_LIFETIME, Identity, RootCa, SecurityConfig};
use skep_proto::skep::membership_client::MembershipClient;
use skep_proto::skep::raft_client::RaftClient;
use skep_proto::skep::{MemberJoinRequest, MemberLeaveRequest, RaftCallRequest, raft_call_request::Kind};
use skep_proto::v1::{self, control_client::ControlClient};
use skep_store::{Member, RaftCall, RaftTransport, Store, StoreConfig, TransportError};
use skep_types::{NodeId, NodeRole};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tonic::{Code, Status};

async fn raft_call(lab: &Lab, to: usize, security: &SecurityConfig, request: RaftCallRequest) -> Result<(), Status> {
    let mut client = RaftClient::new(lab.hosts[to].channel(security).await);
    client.call(request).await.map(|_| ())
}

fn vote(from: u64, target: u64, payload: &[u8]) -> RaftCallRequest {
    RaftCallRequest { kind: Kind::Vote as i32, from, target, payload: payload.to_vec() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raft_is_for_members_of_this_cluster_only() {
    let lab = Lab::of(3).await;
    let (one, two, three) = (&lab.hosts[0], &lab.hosts[1], &lab.hosts[2]);
    let terms = one.status().term;
    let refused = async |security: &SecurityConfig, request| raft_call(&lab, 0, security, request).await.unwrap_err().code();
    // Junk, by somebody who may call.
    for payload in [&b""[..], b"junk", &[0xff; 1000], &[0xdd, 0xff, 0xff, 0xff, 0xff], &[0x93, 0x00]] {
        for kind in [Kind::AppendEntries, Kind::Vote, Kind::InstallSnapshot, Kind::PreVote, Kind::TimeoutNow] {
            let request = RaftCallRequest { kind: kind as i32, ..vote(two.raft_id, one.raft_id, payload) };
            assert_eq!(refused(&two.security, request).await, Code::InvalidArgument, "{kind:?} {payload:?}");
        }
    }
    assert_eq!(refused(&two.security, RaftCallRequest { kind: 99, ..vote(two.raft_id, one.raft_id, b"") }).await, Code::Unimplemented);
    // Another name than one's own.
    assert_eq!(refused(&two.security, vote(three.raft_id, one.raft_id, b"")).await, Code::PermissionDenied);
    assert_eq!(refused(&two.security, vote(one.raft_id, one.raft_id, b"")).await, Code::InvalidArgument);
    assert_eq!(refused(&two.security, vote(4711, one.raft_id, b"")).await, Code::NotFound);
    // Meant for somebody else, or for one who is gone.
    assert_eq!(refused(&two.security, vote(two.raft_id, three.raft_id, b"")).await, Code::FailedPrecondition);
    // Workers, removed managers, strangers.
    let worker = lab.certify(NodeRole::Worker).await;
    assert_eq!(refused(&worker, vote(two.raft_id, one.raft_id, b"")).await, Code::PermissionDenied);
    let member = MemberJoinRequest { raft_id: 5, addr: "127.0.0.1:1".into() };
    let refusal = MembershipClient::new(one.channel(&worker).await).join(member).await.unwrap_err();
    assert_eq!(refusal.code(), Code::PermissionDenied);
    let nobody = dial(one.addr, Connector::bootstrap(lab.root().bundle()).unwrap()).await.unwrap();
    let refusal = RaftClient::new(nobody).call(vote(two.raft_id, one.raft_id, b"")).await.unwrap_err();
    assert_eq!(refusal.code(), Code::PermissionDenied);
    let foreign = RootCa::generate(SystemTime::now()).unwrap();
    let identity =
        Identity::of_first_manager(&foreign, two.node_id.clone(), lab.cluster_id().clone(), DEFAULT_LIFETIME, SystemTime::now()).unwrap();
    let foreign = SecurityConfig::new(identity).unwrap();
    assert!(dial(one.addr, Connector::node(&foreign)).await.is_err(), "another root is refused in the handshake");
    // Nothing happened.
    assert_eq!(one.status().term, terms);
    create(&mut lab.control(1).await, "web").await.unwrap();
    lab.stop_all().await;
}

/// Keeps what raft wanted to say.
#[derive(Default)]
pub struct Tap(pub Mutex<Vec<(RaftCall, Vec<u8>)>>);

#[async_trait::async_trait]
impl RaftTransport for Tap {
    async fn call(&self, target: u64, _: &Member, call: RaftCall, request: Vec<u8>, _: Duration) -> Result<Vec<u8>, TransportError> {
        self.0.lock().unwrap().push((call, request));
        Err(TransportError::Unreachable { target, source: None })
    }
}

impl Tap {
    /// What this store of one's own, whose transport this is, says to a new follower as its leader.
    pub async fn appends(&self, store: &Store, follower: Member) -> Vec<Vec<u8>> {
        let told = || {
            let calls = self.0.lock().unwrap();
            calls.iter().filter(|(call, _)| *call == RaftCall::AppendEntries).map(|(_, payload)| payload.clone()).collect::<Vec<_>>()
        };
        let heard = async {
            while told().is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            tokio::time::sleep(Duration::from_millis(300)).await; // for some more
        };
        // So short a log counts as caught up with, whether or not anybody answers.
        let adding = async {
            store.add_learner(99, follower).await.unwrap();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = adding => {}
            heard = tokio::time::timeout(PATIENCE, heard) => heard.expect("it wants to replicate"),
        }
        told()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_does_not_lead_in_the_name_of_another() {
    let lab = Lab::of(3).await;
    let leader = lab.leader().await;
    let followers = lab.followers().await;
    let (victim, forger) = (&lab.hosts[followers[0]], &lab.hosts[followers[1]]);
    // A message of a leader with the real leader's number, made elsewhere.
    let (dir, tap) = (tempfile::tempdir().unwrap(), Arc::new(Tap::default()));
    let member = Member { node_id: lab.hosts[leader].node_id.to_string(), addr: lab.hosts[leader].addr.to_string() };
    let config = StoreConfig::new(dir.path().join("raft"));
    let elsewhere = Store::bootstrap(config, lab.hosts[leader].raft_id, member.clone(), tap.clone()).await.unwrap();
    let payload = tap.appends(&elsewhere, member).await.pop().expect("one at least");
    let request = RaftCallRequest { kind: Kind::AppendEntries as i32, from: forger.raft_id, target: victim.raft_id, payload };
    let refused = raft_call(&lab, followers[0], &forger.security, request).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    assert!(refused.message().contains("speaks for"), "{refused:?}");
    elsewhere.shutdown().await;
    create(&mut lab.control(leader).await, "web").await.unwrap();
    lab.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_leaves_or_moves_for_another() {
    let lab = Lab::of(3).await;
    let (one, two, three) = (&lab.hosts[0], &lab.hosts[1], &lab.hosts[2]);
    let mut client = MembershipClient::new(one.channel(&two.security).await);
    let leave = MemberLeaveRequest { raft_id: three.raft_id, force: true };
    assert_eq!(client.leave(leave).await.unwrap_err().code(), Code::PermissionDenied);
    let take = MemberJoinRequest { raft_id: three.raft_id, addr: two.addr.to_string() };
    assert_eq!(client.join(take).await.unwrap_err().code(), Code::AlreadyExists);
    for (raft_id, addr) in [(0, "127.0.0.1:1"), (5, ""), (5, "nowhere")] {
        let request = MemberJoinRequest { raft_id, addr: addr.into() };
        assert_eq!(client.join(request).await.unwrap_err().code(), Code::InvalidArgument, "{raft_id} {addr}");
    }
    // A certificate by the right root for a node that was never admitted.
    let ghost = lab.forge(NodeId::from_random(rand::random()), NodeRole::Manager);
    let mut client = MembershipClient::new(one.channel(&ghost).await);
    let request = MemberJoinRequest { raft_id: 5, addr: two.addr.to_string() };
    assert_eq!(client.join(request).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(one.status().members.len(), 3);
    lab.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_local_socket_has_no_raft() {
    let lab = Lab::start().await;
    let refused = RaftClient::new(lab.hosts[0].local_channel().await).call(vote(2, 1, b"")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    let mut control = ControlClient::new(lab.hosts[0].local_channel().await);
    assert_eq!(control.list_nodes(v1::ListNodesRequest::default()).await.unwrap().into_inner().nodes.len(), 1);
    lab.stop_all().await;
}
