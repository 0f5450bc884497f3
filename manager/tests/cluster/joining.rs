//! Many nodes at once, wrong tokens, and the key of locked managers.

use crate::support::{Agent, Cluster, channel_to, eventually};
use skep_ca::{Connector, Identity, NodeKey};
use skep_proto::v1::{self, ca_client::CaClient, node_ca_client::NodeCaClient};
use skep_types::{ClusterView as _, IssuanceState, NodeRole, UnlockKey};
use std::time::{Instant, SystemTime};
use tokio::task::JoinSet;
use tonic::Code;
use tonic::transport::Channel;

fn request(token: &str) -> v1::IssueNodeCertificateRequest {
    let csr = NodeKey::generate().unwrap().request().unwrap().into_bytes();
    v1::IssueNodeCertificateRequest { csr, token: token.into(), ..Default::default() }
}

async fn joining(cluster: &Cluster) -> Channel {
    cluster.try_channel(Connector::bootstrap(cluster.root().bundle()).unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_join_at_once_with_few_log_entries() {
    const NODES: usize = 400;
    const CONNECTIONS: usize = 4;
    let cluster = Cluster::start().await;
    let token = cluster.token(NodeRole::Worker);
    let entries = || cluster.store.status().last_log_index.unwrap();
    let (before, began) = (entries(), Instant::now());
    let mut joins = JoinSet::new();
    for number in 0..CONNECTIONS {
        let channel = joining(&cluster).await;
        for _ in (number..NODES).step_by(CONNECTIONS) {
            let mut ca = NodeCaClient::new(channel.clone());
            let token = token.clone();
            joins.spawn(async move {
                let key = NodeKey::generate().unwrap();
                let csr = key.request().unwrap().into_bytes();
                let request = v1::IssueNodeCertificateRequest { csr, token, ..Default::default() };
                let node_id = ca.issue_node_certificate(request).await.unwrap().into_inner().node_id;
                let status = ca.node_certificate_status(v1::NodeCertificateStatusRequest { node_id }).await.unwrap().into_inner();
                (key, String::from_utf8(status.certificate.unwrap().certificate).unwrap())
            });
        }
    }
    while let Some(joined) = joins.join_next().await {
        let (key, chain) = joined.unwrap();
        Identity::new(key, &chain, cluster.root().bundle().clone(), SystemTime::now()).unwrap();
    }
    let written = entries() - before;
    println!("{NODES} nodes joined with {written} log entries in {:?}", began.elapsed());
    assert_eq!(cluster.store.view().nodes().count(), 1 + NODES);
    assert!(cluster.store.view().nodes().all(|node| node.certificate.state == IssuanceState::Issued));
    // Some are the dispatcher's, which notes that nodes were not heard of yet.
    assert!(written <= NODES as u64 / 8, "{written} log entries for {NODES} nodes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_asks_again_with_its_key_is_the_same_node() {
    let mut cluster = Cluster::start().await;
    let (worker, manager) = (cluster.token(NodeRole::Worker), cluster.token(NodeRole::Manager));
    let key = NodeKey::generate().unwrap();
    // Each request of a key is signed anew and so has other bytes.
    let ask = |token: &str| v1::IssueNodeCertificateRequest {
        csr: key.request().unwrap().into_bytes(),
        token: token.into(),
        ..Default::default()
    };
    let mut ca = NodeCaClient::new(joining(&cluster).await);
    let first = ca.issue_node_certificate(ask(&worker)).await.unwrap().into_inner().node_id;
    let again = ask(&worker);
    assert_eq!(ca.issue_node_certificate(again.clone()).await.unwrap().into_inner().node_id, first);
    let status = ca.node_certificate_status(v1::NodeCertificateStatusRequest { node_id: first.clone() }).await.unwrap().into_inner();
    let certificate = status.certificate.unwrap();
    assert_eq!(certificate.csr, again.csr, "the last request is echoed");
    let chain = String::from_utf8(certificate.certificate).unwrap();
    let identity = Identity::new(key.clone(), &chain, cluster.root().bundle().clone(), SystemTime::now()).unwrap();
    assert_eq!(identity.node_id().as_str(), first);
    // Another role is another node.
    assert_ne!(ca.issue_node_certificate(ask(&manager)).await.unwrap().into_inner().node_id, first);
    assert_eq!(cluster.store.view().nodes().count(), 3);

    // The next leader knows it too, until it was heard of.
    cluster.restart_manager().await;
    let ca = NodeCaClient::new(joining(&cluster).await);
    let known = || async { ca.clone().issue_node_certificate(ask(&worker)).await.ok().map(|answer| answer.into_inner().node_id) };
    assert_eq!(eventually("an answer of the next leader", known, Option::is_some).await.unwrap(), first);
    let security = skep_ca::SecurityConfig::new(identity).unwrap();
    let _agent = Agent::start(cluster.channel(&security).await, true).await;
    let heard = || async {
        let view = cluster.store.view();
        view.nodes().any(|node| node.id.as_str() == first && node.description.is_some())
    };
    eventually("the node's description", heard, |heard| *heard).await;
    assert_ne!(known().await.unwrap(), first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_presents_wrong_tokens_is_made_to_wait() {
    let cluster = Cluster::start().await;
    let mut ca = NodeCaClient::new(joining(&cluster).await);
    let mut codes = Vec::new();
    for _ in 0..15 {
        codes.push(ca.issue_node_certificate(request("SWMTKN-1-x-y")).await.unwrap_err().code());
    }
    assert_eq!(codes[..10], [Code::InvalidArgument; 10]);
    assert_eq!(codes[12..], [Code::ResourceExhausted; 3]);
    // A right one would be told apart otherwise.
    let refused = ca.issue_node_certificate(request(&cluster.token(NodeRole::Worker))).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert_eq!(cluster.store.view().nodes().count(), 1);
    // Nodes of the cluster renew all the same.
    let mut own = NodeCaClient::new(cluster.channel(&cluster.security).await);
    own.issue_node_certificate(request("")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_too_long_is_refused() {
    let cluster = Cluster::start().await;
    let mut ca = NodeCaClient::new(joining(&cluster).await);
    let token = cluster.token(NodeRole::Worker);
    let long = v1::IssueNodeCertificateRequest { csr: vec![b'x'; 1 << 20], token, ..Default::default() };
    let refused = ca.issue_node_certificate(long).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("1048576 bytes"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_certificate_nobody_talks_to_a_manager_by_its_name() {
    let cluster = Cluster::start().await;
    let tls = skep_ca_client(&cluster);
    let tcp = tokio::net::TcpStream::connect(cluster.addr).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from(skep_ca::MANAGER_NAME).unwrap();
    let seen = async {
        let mut stream = tls.connect(name, tcp).await?;
        tokio::io::AsyncReadExt::read_u8(&mut stream).await
    };
    assert!(seen.await.unwrap_err().to_string().contains("CertificateRequired"));
    // The same client under the CA's name, and a node under the manager's.
    let roots = CaClient::new(joining(&cluster).await).get_root_ca_certificate(v1::GetRootCaCertificateRequest {}).await.unwrap();
    assert_eq!(roots.into_inner().certificate, cluster.root().bundle().pem().as_bytes());
    channel_to(cluster.addr, Connector::node(&cluster.security)).await.unwrap();
}

/// A client without certificate that trusts the cluster's root.
fn skep_ca_client(cluster: &Cluster) -> tokio_rustls::TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cluster.root().bundle().certificates()[0].clone()).unwrap();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    tokio_rustls::TlsConnector::from(std::sync::Arc::new(config))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn managers_are_locked_with_a_key_that_they_can_read() {
    let cluster = Cluster::start().await;
    let mut control = cluster.control().await;
    let mut lock = async |locked: bool, rotate: bool| {
        let object = control.list_clusters(v1::ListClustersRequest::default()).await.unwrap().into_inner().clusters.remove(0);
        let mut spec = object.spec.unwrap();
        spec.encryption_config = Some(v1::EncryptionConfig { auto_lock_managers: locked });
        let request = v1::UpdateClusterRequest {
            cluster_id: object.id,
            cluster_version: object.meta.unwrap().version,
            spec: Some(spec),
            rotation: Some(v1::KeyRotation { manager_unlock_key: rotate, ..Default::default() }),
        };
        control.update_cluster(request).await.map(|answer| answer.into_inner().cluster.unwrap())
    };
    let mut ca = CaClient::new(cluster.channel(&cluster.security).await);
    let mut key = async || {
        let bytes = ca.get_unlock_key(v1::GetUnlockKeyRequest {}).await.unwrap().into_inner().unlock_key;
        (!bytes.is_empty()).then(|| UnlockKey::try_from(bytes.as_slice()).unwrap())
    };
    assert_eq!(key().await, None);
    assert!(lock(true, false).await.unwrap().unlock_keys.is_empty(), "clients ask the CA for it");
    let first = key().await.unwrap();
    lock(true, false).await.unwrap();
    assert_eq!(key().await, Some(first.clone()));
    lock(true, true).await.unwrap();
    assert!(key().await.is_some_and(|key| key != first));
    lock(false, false).await.unwrap();
    assert_eq!(key().await, None);
    assert_eq!(lock(false, true).await.unwrap_err().code(), Code::InvalidArgument);

    let worker = cluster.join(NodeRole::Worker).await;
    let refused = CaClient::new(cluster.channel(&worker).await).get_unlock_key(v1::GetUnlockKeyRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}
