//! Certificates, roles, and what happens without them.

use crate::support::Cluster;
use skep_ca::{Connector, DEFAULT_LIFETIME, Identity, RootCa, SecurityConfig};
use skep_proto::v1::{
    self, ca_client::CaClient, control_client::ControlClient, dispatcher_client::DispatcherClient, health_client::HealthClient,
    node_ca_client::NodeCaClient,
};
use skep_types::{ClusterView as _, NodeId, NodeRole};
use std::time::SystemTime;
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_without_certificate_gets_the_roots_and_nothing_else() {
    let cluster = Cluster::start().await;
    let channel = cluster.try_channel(Connector::fetch_root().unwrap()).await.unwrap();
    let roots = CaClient::new(channel.clone()).get_root_ca_certificate(v1::GetRootCaCertificateRequest {}).await.unwrap().into_inner();
    assert_eq!(roots.certificate, cluster.root().bundle().pem().as_bytes());
    let refused = ControlClient::new(channel.clone()).list_nodes(v1::ListNodesRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    let refused = CaClient::new(channel.clone()).get_unlock_key(v1::GetUnlockKeyRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = DispatcherClient::new(channel).session(v1::SessionRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_may_open_the_local_socket_is_a_manager() {
    let cluster = Cluster::start().await;
    let channel = cluster.local_channel().await;
    let nodes = ControlClient::new(channel.clone()).list_nodes(v1::ListNodesRequest::default()).await.unwrap().into_inner().nodes;
    assert_eq!(nodes.len(), 1);
    assert!(nodes[0].manager_status.as_ref().unwrap().leader);
    let key = CaClient::new(channel).get_unlock_key(v1::GetUnlockKeyRequest {}).await.unwrap().into_inner();
    assert!(key.unlock_key.is_empty(), "managers are not locked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_certificate_is_refused_in_the_handshake() {
    let cluster = Cluster::start().await;
    let foreign = RootCa::generate(SystemTime::now()).unwrap();
    let identity =
        Identity::of_first_manager(&foreign, cluster.node_id.clone(), cluster.cluster_id().clone(), DEFAULT_LIFETIME, SystemTime::now())
            .unwrap();
    let mine = SecurityConfig::new(identity).unwrap();
    // It does not even trust our server; one that would is refused by the server.
    assert!(cluster.try_channel(Connector::node(&mine)).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_may_not_rule_and_a_removed_node_may_nothing() {
    let cluster = Cluster::start().await;
    let worker = cluster.join(NodeRole::Worker).await;
    let channel = cluster.channel(&worker).await;
    let refused = ControlClient::new(channel.clone()).list_nodes(v1::ListNodesRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let mut agent = DispatcherClient::new(channel.clone());
    agent.session(v1::SessionRequest::default()).await.unwrap();

    let id = worker.identity().unwrap().node_id().to_string();
    let mut control = cluster.control().await;
    let busy = control.remove_node(v1::RemoveNodeRequest { node_id: id.clone(), force: false }).await.unwrap_err();
    assert_eq!(busy.code(), Code::FailedPrecondition, "{busy:?}");
    control.remove_node(v1::RemoveNodeRequest { node_id: id.clone(), force: true }).await.unwrap();
    let refused = agent.session(v1::SessionRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    let cluster_object = cluster.store.view().cluster().unwrap().clone();
    let end = cluster_object.blacklisted_certificates.get(&id.parse::<NodeId>().unwrap()).unwrap();
    assert!(end.is_some(), "the end of its certificate is known");
    let own = control.remove_node(v1::RemoveNodeRequest { node_id: cluster.node_id.to_string(), force: true }).await.unwrap_err();
    assert_eq!(own.code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_the_store_does_not_know_gets_no_session() {
    let cluster = Cluster::start().await;
    let stranger = cluster.identity(NodeRole::Worker);
    let mut agent = DispatcherClient::new(cluster.channel(&stranger).await);
    assert_eq!(agent.session(v1::SessionRequest::default()).await.unwrap_err().code(), Code::Unknown);
    assert_eq!(agent.heartbeat(v1::HeartbeatRequest::default()).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_with_a_token_and_renews_with_its_certificate() {
    let cluster = Cluster::start().await;
    let channel = cluster.try_channel(Connector::bootstrap(cluster.root().bundle()).unwrap()).await.unwrap();
    let mut ca = NodeCaClient::new(channel);
    let csr = skep_ca::NodeKey::generate().unwrap().request().unwrap().into_bytes();
    let ask = |csr: &[u8], token: &str| v1::IssueNodeCertificateRequest { csr: csr.to_vec(), token: token.into(), ..Default::default() };
    assert_eq!(ca.issue_node_certificate(ask(b"", "x")).await.unwrap_err().code(), Code::InvalidArgument);
    let wrong = ca.issue_node_certificate(ask(&csr, "SWMTKN-1-x")).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    assert!(wrong.message().contains("join token"), "{wrong:?}");
    let unknown = v1::NodeCertificateStatusRequest { node_id: "nobody".into() };
    assert_eq!(ca.node_certificate_status(unknown).await.unwrap_err().code(), Code::NotFound);

    // A request that cannot be signed is refused before there is a node.
    let bad = ca.issue_node_certificate(ask(b"junk", &cluster.token(NodeRole::Worker))).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
    assert!(bad.message().contains("certificate request"), "{bad:?}");
    assert_eq!(cluster.store.view().nodes().count(), 1);

    let worker = cluster.join(NodeRole::Worker).await;
    let id = worker.identity().unwrap().node_id().clone();
    let mut ca = NodeCaClient::new(cluster.channel(&worker).await);
    let bad = ca.issue_node_certificate(ask(b"junk", "")).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument, "{bad:?}");
    let renewed = ca.issue_node_certificate(ask(&csr, "")).await.unwrap().into_inner();
    assert_eq!(renewed.node_id, id.as_str(), "the same node");
    let status = ca.node_certificate_status(v1::NodeCertificateStatusRequest { node_id: renewed.node_id }).await.unwrap().into_inner();
    assert_eq!(status.certificate.unwrap().csr, csr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotated_tokens_let_nobody_in_with_the_old_ones() {
    let cluster = Cluster::start().await;
    let old = cluster.token(NodeRole::Worker);
    let mut control = cluster.control().await;
    let object = control.list_clusters(v1::ListClustersRequest::default()).await.unwrap().into_inner().clusters.remove(0);
    let root_ca = object.root_ca.as_ref().unwrap();
    assert!(root_ca.ca_key.is_empty(), "keys are never told");
    assert_eq!(root_ca.join_tokens.as_ref().unwrap().worker, old);
    let request = v1::UpdateClusterRequest {
        cluster_id: object.id,
        cluster_version: object.meta.unwrap().version,
        spec: object.spec,
        rotation: Some(v1::KeyRotation { worker_join_token: true, ..Default::default() }),
    };
    let updated = control.update_cluster(request).await.unwrap().into_inner().cluster.unwrap();
    let new = updated.root_ca.unwrap().join_tokens.unwrap();
    assert_ne!(new.worker, old);
    assert_eq!(new.worker.rsplit_once('-').unwrap().0, old.rsplit_once('-').unwrap().0, "the digest stays");
    cluster.join(NodeRole::Worker).await;
    let mut ca = NodeCaClient::new(cluster.try_channel(Connector::bootstrap(cluster.root().bundle()).unwrap()).await.unwrap());
    let request = v1::IssueNodeCertificateRequest { csr: b"x".to_vec(), token: old, ..Default::default() };
    assert_eq!(ca.issue_node_certificate(request).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_told_by_name() {
    let cluster = Cluster::start().await;
    let mut health = HealthClient::new(cluster.channel(&cluster.security).await);
    let mut check = async |service: &str| health.check(v1::HealthCheckRequest { service: service.into() }).await;
    for service in ["", "Raft", "ControlAPI"] {
        assert_eq!(check(service).await.unwrap().into_inner().status, 1, "{service:?}");
    }
    assert_eq!(check("other").await.unwrap_err().code(), Code::NotFound);
}
