//! The state of networks is told by the leader, whomever a node asks.

use crate::support::{Lab, PATIENCE};
use skep_proto::skep::network_state_client::NetworkStateClient;
use skep_proto::skep::{NetworkChanges, NetworkHello, NetworkReport};
use skep_types::NodeRole;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

type Stream = (mpsc::Sender<NetworkReport>, Streaming<NetworkChanges>);

/// Follows until the node has its number.
async fn try_follow(channel: Channel) -> Result<(Stream, NetworkChanges), Status> {
    let (reports, stream) = mpsc::channel(4);
    reports.send(NetworkReport { hello: Some(NetworkHello::default()), ..NetworkReport::default() }).await.unwrap();
    let mut changes = NetworkStateClient::new(channel).follow(ReceiverStream::new(stream)).await?.into_inner();
    let mut complete = false;
    loop {
        let message = changes.message().await?.ok_or_else(|| Status::unavailable("the stream ended"))?;
        complete |= message.complete;
        assert!(complete, "everything comes first");
        if message.node_index != 0 {
            return Ok(((reports, changes), message));
        }
    }
}

/// As agents do: while nobody leads they come again.
async fn follow(channel: &Channel) -> (Stream, NetworkChanges) {
    let by = Instant::now() + PATIENCE;
    loop {
        match tokio::time::timeout_at(by, try_follow(channel.clone())).await.expect("a leader answers") {
            Ok(followed) => return followed,
            Err(status) => assert!(matches!(status.code(), Code::Aborted | Code::Unavailable), "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_follows_through_any_manager_and_keeps_its_number_under_the_next_leader() {
    let mut lab = Lab::nervous(3).await;
    let (leader, followers) = (lab.leader().await, lab.followers().await);
    let worker = lab.certify(NodeRole::Worker).await;
    let channel = lab.hosts[followers[0]].channel(&worker).await;
    let ((reports, mut changes), first) = follow(&channel).await;
    reports.send(NetworkReport { programmed: first.revision, ..NetworkReport::default() }).await.unwrap();
    // Another node behind the same manager is another one.
    let other = lab.certify(NodeRole::Worker).await;
    let (_other, second) = follow(&lab.hosts[followers[0]].channel(&other).await).await;
    assert_ne!(first.node_index, second.node_index);

    lab.hosts[leader].kill().await;
    let ended = async { while let Ok(Some(_)) = changes.message().await {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("streams to the old leader end");
    let (_stream, again) = follow(&channel).await;
    assert_eq!(again.node_index, first.node_index);
    lab.stop_all().await;
}
