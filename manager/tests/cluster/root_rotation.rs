//! A new root for a cluster that lives: nodes renew when they are asked, and nobody is locked out.

use crate::cfssl::{Cfssl, Mood};
use crate::support::{Cluster, description, eventually};
use skep_ca::{Connector, Identity, JoinToken, NodeKey, RootBundle, RootCa, SecurityConfig};
use skep_proto::v1::{self, dispatcher_client::DispatcherClient, node_ca_client::NodeCaClient};
use skep_types::{ClusterRootCa, ClusterView as _, NodeRole};
use std::time::{Duration, SystemTime};
use tokio::task::JoinSet;
use tonic::Code;

/// A node as far as certificates go: it keeps a session, renews when it is asked and takes new roots.
async fn play_node(addr: std::net::SocketAddr, security: SecurityConfig) {
    let mut attempt = 0u32;
    loop {
        // Registering too often is refused; after a restart of the manager it takes a moment.
        if attempt > 0 {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        attempt += 1;
        let _ = one_session(addr, &security).await;
    }
}

async fn one_session(addr: std::net::SocketAddr, security: &SecurityConfig) -> Option<()> {
    let channel = crate::support::channel_to(addr, Connector::node(security)).await.ok()?;
    let info = security.tls_info().unwrap();
    let tls_info = v1::NodeTlsInfo {
        trust_root: info.trust_root,
        cert_issuer_subject: info.cert_issuer_subject,
        cert_issuer_public_key: info.cert_issuer_public_key,
    };
    let description = v1::NodeDescription { tls_info: Some(tls_info), ..description("played") };
    let mut dispatcher = DispatcherClient::new(channel.clone());
    let request = v1::SessionRequest { description: Some(description), session_id: String::new() };
    let mut session = dispatcher.session(request).await.ok()?.into_inner();
    while let Ok(Some(message)) = session.message().await {
        let roots = RootBundle::parse(std::str::from_utf8(&message.root_ca).unwrap()).unwrap();
        let changed = security.install_roots(roots, SystemTime::now()).unwrap();
        let state = message.node.and_then(|node| node.certificate).and_then(|certificate| certificate.status).map(|status| status.state);
        if state == Some(v1::issuance_status::State::Rotate as i32) {
            renew(channel.clone(), security).await?;
            return Some(());
        }
        if changed {
            return Some(());
        }
    }
    None
}

async fn renew(channel: tonic::transport::Channel, security: &SecurityConfig) -> Option<()> {
    let key = NodeKey::generate().unwrap();
    let csr = key.request().unwrap().into_bytes();
    let mut ca = NodeCaClient::new(channel);
    let request = v1::IssueNodeCertificateRequest { csr, ..Default::default() };
    let node_id = ca.issue_node_certificate(request).await.ok()?.into_inner().node_id;
    let status = ca.node_certificate_status(v1::NodeCertificateStatusRequest { node_id }).await.ok()?.into_inner();
    let chain = String::from_utf8(status.certificate?.certificate).unwrap();
    let roots = security.identity().unwrap().roots().clone();
    security.install(Identity::new(key, &chain, roots, SystemTime::now()).unwrap()).unwrap();
    Some(())
}

async fn change(cluster: &Cluster, change: impl Fn(&mut v1::CaConfig)) -> Result<v1::Cluster, tonic::Status> {
    let mut control = cluster.control().await;
    let object = control.list_clusters(v1::ListClustersRequest::default()).await.unwrap().into_inner().clusters.remove(0);
    let mut spec = object.spec.unwrap();
    change(spec.ca_config.as_mut().unwrap());
    let request =
        v1::UpdateClusterRequest { cluster_id: object.id, cluster_version: object.meta.unwrap().version, spec: Some(spec), rotation: None };
    control.update_cluster(request).await.map(|answer| answer.into_inner().cluster.unwrap())
}

fn root_of(cluster: &Cluster) -> ClusterRootCa {
    cluster.store.view().cluster().unwrap().root_ca.clone()
}

/// Waits for the end of the rotation.
async fn finished(cluster: &Cluster) -> ClusterRootCa {
    eventually("the end of the rotation", || async { root_of(cluster) }, |root| root.root_rotation.is_none()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forced_rotation_ends_when_every_node_has_a_new_certificate() {
    let mut cluster = Cluster::start().await;
    let worker = cluster.join(NodeRole::Worker).await;
    let before = root_of(&cluster);
    let begun = change(&cluster, |ca| ca.force_rotate = 1).await.unwrap();
    let rotation = begun.root_ca.as_ref().unwrap().root_rotation.as_ref().unwrap();
    assert!(rotation.ca_key.is_empty(), "keys are never told");
    assert_eq!(begun.root_ca.as_ref().unwrap().ca_cert, before.ca_cert, "the old root is trusted");

    // A node that joins meanwhile: its certificate leads to the old root.
    let joined = cluster.join(NodeRole::Worker).await;
    assert_eq!(joined.identity().unwrap().chain().len(), 2);
    // Nobody has a session: it waits, also under the next leader.
    cluster.restart_manager().await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(root_of(&cluster).root_rotation.is_some());

    let mut nodes = JoinSet::new();
    let all = [cluster.security.clone(), worker, joined];
    for security in &all {
        nodes.spawn(play_node(cluster.addr, security.clone()));
    }
    let after = finished(&cluster).await;
    assert_ne!(after.ca_cert, before.ca_cert);
    assert_eq!(after.last_forced_rotation, 1);
    let roots = RootBundle::parse(std::str::from_utf8(&after.ca_cert).unwrap()).unwrap();
    assert_eq!(after.ca_cert_hash, roots.digest_text());
    for (new, old) in [(&after.join_tokens.worker, &before.join_tokens.worker), (&after.join_tokens.manager, &before.join_tokens.manager)] {
        assert_ne!(new, old);
        assert!(new.0.parse::<JoinToken>().unwrap().pins(&roots));
    }
    // Every node comes to trust the new root only.
    let trusts = |security: &SecurityConfig| *security.identity().unwrap().roots() == roots;
    eventually("the new root on every node", || async { all.iter().all(trusts) }, |all| *all).await;
    for security in &all {
        let issuer = security.tls_info().unwrap().cert_issuer_public_key;
        assert_eq!(issuer, roots.issuer().public_key);
    }
    // Who joins now gets a plain certificate of it; who only knows the old root does not even connect.
    let channel = cluster.try_channel(Connector::bootstrap(&roots).unwrap()).await.unwrap();
    let csr = NodeKey::generate().unwrap().request().unwrap().into_bytes();
    let mut ca = NodeCaClient::new(channel);
    let ask = |token: &str| v1::IssueNodeCertificateRequest { csr: csr.clone(), token: token.into(), ..Default::default() };
    assert_eq!(ca.issue_node_certificate(ask(&before.join_tokens.worker.0)).await.unwrap_err().code(), Code::InvalidArgument);
    let node_id = ca.issue_node_certificate(ask(&after.join_tokens.worker.0)).await.unwrap().into_inner().node_id;
    let status = ca.node_certificate_status(v1::NodeCertificateStatusRequest { node_id }).await.unwrap().into_inner();
    let chain = String::from_utf8(status.certificate.unwrap().certificate).unwrap();
    assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 1);
    roots.verify_pem(&chain, SystemTime::now()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_can_be_replaced_and_given_up() {
    let cluster = Cluster::start().await;
    let before = root_of(&cluster);
    let own = RootCa::generate(SystemTime::now()).unwrap();
    let set = |cert: &RootCa, key: bool| {
        let (cert, key) = (cert.bundle().pem().as_bytes().to_vec(), key.then(|| cert.key_pem().expose().as_bytes().to_vec()));
        move |ca: &mut v1::CaConfig| {
            ca.signing_ca_cert.clone_from(&cert);
            ca.signing_ca_key = key.clone().unwrap_or_default();
        }
    };
    change(&cluster, |ca| ca.force_rotate = 1).await.unwrap();
    let first = root_of(&cluster).root_rotation.unwrap();
    let answer = change(&cluster, set(&own, true)).await.unwrap();
    assert!(answer.spec.unwrap().ca_config.unwrap().signing_ca_key.is_empty());
    let second = root_of(&cluster).root_rotation.unwrap();
    assert_eq!(second.ca_cert, own.bundle().pem().as_bytes());
    assert_ne!(first, second);
    let spec = cluster.store.view().cluster().unwrap().spec.ca_config.clone();
    assert!(spec.signing_ca_cert.is_empty() && spec.signing_ca_key.0.is_empty(), "the order is carried out and not kept");
    // Another setting leaves it alone.
    change(&cluster, |_| ()).await.unwrap();
    assert_eq!(root_of(&cluster).root_rotation, Some(second));
    change(&cluster, set(cluster.root(), false)).await.unwrap();
    assert_eq!(root_of(&cluster), ClusterRootCa { last_forced_rotation: 1, ..before });

    let refused = change(&cluster, set(&own, false)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("spec.ca_config.signing_ca_key: "), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_can_be_given_to_an_external_ca_and_taken_back_from_it() {
    let cluster = Cluster::start().await;
    let worker = cluster.join(NodeRole::Worker).await;
    let mut nodes = JoinSet::new();
    for security in [&cluster.security, &worker] {
        nodes.spawn(play_node(cluster.addr, security.clone()));
    }
    let (old, kept) = (cluster.root(), RootCa::generate(SystemTime::now()).unwrap());
    let outside = Cfssl::start(&kept, &kept, &[old, &kept], Mood::SignsRoots).await;
    let unhelpful = Cfssl::start(&kept, old, &[old, &kept], Mood::Signs).await;
    let pem = kept.bundle().pem().as_bytes().to_vec();
    let give = |url: &str| {
        let entry = v1::ExternalCa { url: url.into(), ca_cert: pem.clone(), ..Default::default() };
        let pem = pem.clone();
        move |ca: &mut v1::CaConfig| {
            ca.signing_ca_cert.clone_from(&pem);
            ca.external_cas = vec![entry.clone()];
        }
    };
    // One that signs with another key than that of the certificate is found out before anything is done.
    let refused = change(&cluster, give(&unhelpful.url)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("spec.ca_config.external_cas: ") && refused.message().contains(&unhelpful.url), "{refused:?}");
    assert_eq!(root_of(&cluster).root_rotation, None);
    change(&cluster, give(&outside.url)).await.unwrap();
    let after = finished(&cluster).await;
    assert_eq!((after.ca_cert.as_slice(), after.ca_key.0.is_empty()), (kept.bundle().pem().as_bytes(), true));
    let issuer = |security: &SecurityConfig| security.tls_info().unwrap().cert_issuer_public_key;
    let of_root = |root: &RootBundle| root.issuer().public_key;
    for security in [&cluster.security, &worker] {
        assert_eq!(issuer(security), of_root(kept.bundle()));
    }

    // Away from it again, to a root of the managers' own: its key is nowhere but there, so it signs the new one.
    let without_cert = |ca: &mut v1::CaConfig| {
        ca.force_rotate = 1;
        ca.external_cas[0].ca_cert.clear();
    };
    let begun = change(&cluster, without_cert).await.unwrap();
    let entries = begun.spec.unwrap().ca_config.unwrap().external_cas;
    assert_eq!(entries[0].ca_cert, kept.bundle().pem().as_bytes(), "it stays the old root's");
    let after = finished(&cluster).await;
    assert!(after.ca_cert != kept.bundle().pem().as_bytes() && !after.ca_key.0.is_empty());
    let roots = RootBundle::parse(std::str::from_utf8(&after.ca_cert).unwrap()).unwrap();
    let follows = |security: &SecurityConfig| *security.identity().unwrap().roots() == roots && issuer(security) == of_root(&roots);
    eventually("the new root on every node", || async { [&cluster.security, &worker].into_iter().all(follows) }, |all| *all).await;
    // It is gone, and is not missed.
    drop(outside);
    let channel = cluster.try_channel(Connector::bootstrap(&roots).unwrap()).await.unwrap();
    let csr = NodeKey::generate().unwrap().request().unwrap().into_bytes();
    let mut ca = NodeCaClient::new(channel);
    let request = v1::IssueNodeCertificateRequest { csr, token: after.join_tokens.worker.0, ..Default::default() };
    let node_id = ca.issue_node_certificate(request).await.unwrap().into_inner().node_id;
    let status = ca.node_certificate_status(v1::NodeCertificateStatusRequest { node_id }).await.unwrap().into_inner();
    roots.verify_pem(std::str::from_utf8(&status.certificate.unwrap().certificate).unwrap(), SystemTime::now()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_follow_the_expiry_that_is_set() {
    let cluster = Cluster::start().await;
    let old = cluster.join(NodeRole::Worker).await;
    change(&cluster, |ca| ca.node_cert_expiry = Some(Duration::from_secs(7200).try_into().unwrap())).await.unwrap();
    let new = cluster.join(NodeRole::Worker).await;
    let left = |security: &SecurityConfig| security.identity().unwrap().not_after().duration_since(SystemTime::now()).unwrap();
    assert!(left(&old) > Duration::from_secs(80 * 24 * 3600), "what was issued stays");
    assert!(left(&new) <= Duration::from_secs(7200 + 60), "{:?}", left(&new));
}
