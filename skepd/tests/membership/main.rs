//! Several daemons on loopback: in and out of a cluster, locked and unlocked, saved and brought back. They have no containerd:
//! their agents wait for it, and all of this must work meanwhile.

mod node;

use node::{Node, is_possible};
use skep_proto::skep::status_response::Role;
use skep_proto::skep::{BackupRequest, InitRequest, JoinRequest, LeaveRequest, RecoverRequest, RestoreChunk, RestoreStart, UnlockRequest};
use tonic::Code;

fn invitation(token: &str, remotes: &[&Node]) -> JoinRequest {
    JoinRequest { token: token.into(), remote_addrs: remotes.iter().map(|node| node.address()).collect(), ..JoinRequest::default() }
}

#[tokio::test]
async fn nodes_join_by_their_token_and_leave_again() {
    if !is_possible() {
        return;
    }
    let (mut first, mut second, mut worker) = (Node::new("first"), Node::new("second"), Node::new("worker"));
    for node in [&mut first, &mut second, &mut worker] {
        node.start().await;
    }
    let made = first.client().await.init(InitRequest::default()).await.unwrap().into_inner();
    assert!(made.unlock_key.is_empty());

    let joined = second.client().await.join(invitation(&made.manager_token, &[&first])).await.unwrap().into_inner();
    assert_eq!((joined.role(), &joined.cluster_id), (Role::Manager, &made.cluster_id));
    let joined = worker.client().await.join(invitation(&made.worker_token, &[&second, &first])).await.unwrap().into_inner();
    assert_eq!(joined.role(), Role::Worker);
    // A worker listens on no port, a manager does.
    assert!(tokio::net::TcpStream::connect(worker.address()).await.is_err());
    assert!(tokio::net::TcpStream::connect(second.address()).await.is_ok());
    let again = worker.client().await.join(invitation(&made.worker_token, &[&first])).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition);

    // Everything is there after a restart, by a signal or without one.
    second.kill();
    second.start().await;
    worker.stop().await;
    worker.start().await;
    assert_eq!(second.wait("a manager again", |status| status.role() == Role::Manager).await.cluster_id, made.cluster_id);
    assert_eq!(worker.status().await.role(), Role::Worker);
    first.wait("to lead again", |status| status.leader).await;

    // Either manager may go, not both.
    second.client().await.leave(LeaveRequest { force: false }).await.unwrap();
    assert_eq!(second.status().await.role(), Role::None);
    assert!(!second.data().join("raft").exists() && !second.data().join("node.json").exists());
    let last = first.client().await.leave(LeaveRequest { force: false }).await.unwrap_err();
    assert!(last.code() == Code::FailedPrecondition && last.message().contains("--force"), "{last}");
    worker.client().await.leave(LeaveRequest { force: false }).await.unwrap();
    assert_eq!(worker.status().await.role(), Role::None);
    first.client().await.leave(LeaveRequest { force: true }).await.unwrap();
    first.client().await.init(InitRequest::default()).await.unwrap();
    first.stop().await;
}

#[tokio::test]
async fn a_data_directory_that_was_open_is_private_again() {
    use std::os::unix::fs::PermissionsExt as _;
    if !is_possible() {
        return;
    }
    let mut node = Node::new("open");
    node.start().await;
    node.client().await.init(InitRequest::default()).await.unwrap();
    assert_eq!(std::fs::metadata(node.data()).unwrap().permissions().mode() & 0o777, 0o700);
    std::fs::set_permissions(node.data(), std::fs::Permissions::from_mode(0o777)).unwrap();
    node.kill();
    node.start().await;
    let mode = std::fs::metadata(node.data()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o700, "nobody else comes near the key");
    node.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_an_invitation_is_said() {
    if !is_possible() {
        return;
    }
    let (mut first, mut other, mut guest) = (Node::new("host"), Node::new("other"), Node::new("guest"));
    for node in [&mut first, &mut other, &mut guest] {
        node.start().await;
    }
    let made = first.client().await.init(InitRequest::default()).await.unwrap().into_inner();
    let foreign = other.client().await.init(InitRequest::default()).await.unwrap().into_inner();
    let mut client = guest.client().await;

    let cut = client.join(invitation(&made.worker_token[..40], &[&first])).await.unwrap_err();
    assert!(cut.code() == Code::InvalidArgument && cut.message().contains("cut when it was copied"), "{cut}");
    // Of another cluster: nothing but the roots was asked for.
    let refused = client.join(invitation(&foreign.worker_token, &[&first])).await.unwrap_err();
    assert!(refused.code() == Code::InvalidArgument && refused.message().contains("Nothing was sent"), "{refused}");
    // Its digest is right, its secret is another's.
    let (ours, theirs) = (made.worker_token.rsplit_once('-').unwrap(), foreign.worker_token.rsplit_once('-').unwrap());
    let refused = client.join(invitation(&format!("{}-{}", ours.0, theirs.1), &[&first])).await.unwrap_err();
    assert!(refused.code() == Code::InvalidArgument && refused.message().contains("rotated"), "{refused}");
    let refused = client.join(invitation(&made.worker_token, &[])).await.unwrap_err();
    assert!(refused.code() == Code::InvalidArgument && refused.message().contains("HOST:PORT"), "{refused}");
    assert!(!guest.data().join("identity/swarm-node.crt").exists());
    // Nothing of these tries is in the way.
    client.join(invitation(&made.worker_token, &[&first])).await.unwrap();
}

#[tokio::test]
async fn a_join_that_was_cut_short_leaves_nothing() {
    if !is_possible() {
        return;
    }
    let (mut first, mut guest) = (Node::new("whole"), Node::new("half"));
    first.start().await;
    guest.start().await;
    let made = first.client().await.init(InitRequest::default()).await.unwrap().into_inner();
    guest.client().await.join(invitation(&made.worker_token, &[&first])).await.unwrap();
    // As a crash leaves it between the certificate and the note that it counts.
    guest.kill();
    std::fs::remove_file(guest.data().join("node.json")).unwrap();
    guest.start().await;
    assert_eq!(guest.status().await.role(), Role::None);
    assert!(!guest.data().join("identity/swarm-node.key").exists());
    guest.client().await.join(invitation(&made.worker_token, &[&first])).await.unwrap();
}

#[tokio::test]
async fn a_locked_manager_waits_for_its_key() {
    if !is_possible() {
        return;
    }
    let (mut first, mut second) = (Node::new("locked"), Node::new("locked-too"));
    first.start().await;
    second.start().await;
    let made = first.client().await.init(InitRequest { auto_lock_managers: true, ..InitRequest::default() }).await.unwrap().into_inner();
    assert!(made.unlock_key.starts_with("SWMKEY-1-"));
    second.client().await.join(invitation(&made.manager_token, &[&first])).await.unwrap();
    for node in [&mut first, &mut second] {
        node.kill();
        node.start().await;
        let status = node.status().await;
        assert!(status.locked && status.role() == Role::Manager && !status.node_id.is_empty(), "{status:?}");
    }
    let mut client = first.client().await;
    let refused = client.backup(BackupRequest { key: made.unlock_key.clone() }).await.unwrap_err();
    assert!(refused.code() == Code::FailedPrecondition && refused.message().contains("swarmctl cluster unlock"), "{refused}");
    let refused = client.leave(LeaveRequest { force: false }).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let wrong = skep_types::UnlockKey::new([9; 32]).text().0;
    assert_eq!(client.unlock(UnlockRequest { key: wrong }).await.unwrap_err().code(), Code::InvalidArgument);
    assert!(first.status().await.locked);
    for node in [&first, &second] {
        node.client().await.unlock(UnlockRequest { key: made.unlock_key.clone() }).await.unwrap();
        assert!(!node.status().await.locked);
    }
    first.wait("one of them leads", |_| true).await;
    let refused = client.unlock(UnlockRequest { key: made.unlock_key.clone() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
}

#[tokio::test]
async fn a_cluster_comes_back_from_a_backup_and_from_one_manager() {
    if !is_possible() {
        return;
    }
    let mut nodes = [Node::new("a"), Node::new("b"), Node::new("c")];
    for node in &mut nodes {
        node.start().await;
    }
    let [a, b, c] = &mut nodes;
    let made = a.client().await.init(InitRequest::default()).await.unwrap().into_inner();
    b.client().await.join(invitation(&made.manager_token, &[a])).await.unwrap();
    let key = skep_types::UnlockKey::new([4; 32]).text().0;
    let mut backup = Vec::new();
    let mut chunks = a.client().await.backup(BackupRequest { key: key.clone() }).await.unwrap().into_inner();
    while let Some(chunk) = chunks.message().await.unwrap() {
        backup.extend(chunk.data);
    }

    // The other manager is lost for good: first it is only said what would happen.
    b.kill();
    let report = a.client().await.recover(RecoverRequest::default()).await.unwrap().into_inner().report;
    assert!(report.iter().any(|line| line.contains("nothing was changed")), "{report:?}");
    let report = a.client().await.recover(RecoverRequest { confirm: true, ..RecoverRequest::default() }).await.unwrap().into_inner().report;
    assert!(report.iter().any(|line| line.contains("are workers from now on")), "{report:?}");
    a.wait("to lead alone", |status| status.leader && status.cluster_id == made.cluster_id).await;
    a.kill();
    a.start().await;
    a.wait("to lead after a restart too", |status| status.leader).await;

    let restore = |key: &str, force: bool| {
        let start = RestoreStart { key: key.into(), force, ..RestoreStart::default() };
        let mut parts = vec![RestoreChunk { start: Some(start), data: Vec::new() }];
        parts.extend(backup.chunks(1000).map(|data| RestoreChunk { start: None, data: data.to_vec() }));
        futures_util::stream::iter(parts)
    };
    let other = skep_types::UnlockKey::new([5; 32]).text().0;
    let refused = c.client().await.restore(restore(&other, false)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(!c.data().join("raft").exists());
    a.stop().await;
    let restored = c.client().await.restore(restore(&key, false)).await.unwrap().into_inner();
    assert_eq!(restored.cluster_id, made.cluster_id);
    c.wait("to lead the restored cluster", |status| status.leader).await;
    c.kill();
    c.start().await;
    c.wait("to lead it after a restart", |status| status.leader && status.node_id == restored.node_id).await;
}
