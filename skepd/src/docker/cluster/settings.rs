//! The cluster itself: settings, tokens, the key of locked managers.

use crate::docker::manager::{Manager, answer, read};
use skep_ca::RootBundle;
use skep_docker_api::{ApiError, ClusterEntry, Rotation};
use skep_proto::{ToWire as _, v1};
use skep_types::{Cluster, ClusterSpec, Sensitive, TlsInfo, UnlockKey};

async fn cluster(manager: &Manager) -> Result<Cluster, ApiError> {
    let clusters = answer(manager.control().list_clusters(v1::ListClustersRequest::default())).await?.clusters;
    let wire = clusters.into_iter().next().ok_or_else(|| ApiError::not_found("cluster not found"))?;
    read("cluster", wire)
}

pub async fn get(manager: &Manager) -> Result<ClusterEntry, ApiError> {
    let cluster = cluster(manager).await?;
    let tls = wanted_tls(&cluster);
    Ok(ClusterEntry { cluster, tls })
}

/// The root that nodes trust, and the one whose certificates they should have.
fn wanted_tls(cluster: &Cluster) -> TlsInfo {
    let ca = &cluster.root_ca;
    let signs = ca.root_rotation.as_ref().map_or(&ca.ca_cert, |rotation| &rotation.ca_cert);
    let issuer = std::str::from_utf8(signs).ok().and_then(|pem| RootBundle::parse(pem).ok()).map(|bundle| bundle.issuer());
    let (cert_issuer_subject, cert_issuer_public_key) = issuer.map(|issuer| (issuer.subject, issuer.public_key)).unwrap_or_default();
    TlsInfo { trust_root: ca.ca_cert.clone(), cert_issuer_subject, cert_issuer_public_key }
}

pub async fn update(manager: &Manager, version: u64, spec: &ClusterSpec, rotation: Rotation) -> Result<(), ApiError> {
    let cluster = cluster(manager).await?;
    let Rotation { worker_token, manager_token, unlock_key } = rotation;
    let request = v1::UpdateClusterRequest {
        cluster_id: cluster.id.to_string(),
        cluster_version: Some(v1::Version { index: version }),
        spec: Some(spec.to_wire()),
        rotation: Some(v1::KeyRotation {
            worker_join_token: worker_token,
            manager_join_token: manager_token,
            manager_unlock_key: unlock_key,
        }),
    };
    answer(manager.control().update_cluster(request)).await.map(drop)
}

pub async fn unlock_key(manager: &Manager) -> Result<Option<Sensitive<String>>, ApiError> {
    let key = answer(manager.ca().get_unlock_key(v1::GetUnlockKeyRequest::default())).await?.unlock_key;
    if key.is_empty() {
        return Ok(None);
    }
    let key =
        UnlockKey::try_from(key.as_slice()).map_err(|error| ApiError::internal(format!("the manager's unlock key is damaged: {error}")))?;
    Ok(Some(key.text()))
}
