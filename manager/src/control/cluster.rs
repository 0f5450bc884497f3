//! The cluster object: get, list, update.

use super::errors::{id, invalid, missing, out_of_sequence};
use super::filter;
use super::node::drop_old_removals;
use super::validate;
use crate::shared::Shared;
use skep_ca::JoinToken;
use skep_proto::{ToWire as _, parse_required, redact_cluster, v1};
use skep_types::{Action, Cluster, ClusterId, ClusterSpec, ClusterView as _, FieldError, Kind, Object, Sensitive, Version};
use std::sync::Arc;
use tonic::Status;

fn answer(cluster: &Cluster) -> v1::Cluster {
    let mut wire = cluster.to_wire();
    redact_cluster(&mut wire);
    wire
}

pub(super) fn get(shared: &Shared, request: &v1::GetClusterRequest) -> Result<v1::GetClusterResponse, Status> {
    let id: ClusterId = id("cluster_id", &request.cluster_id)?;
    let view = shared.store.view();
    let cluster = view.cluster().filter(|cluster| cluster.id == id).ok_or_else(|| missing(Kind::Cluster, id.as_str()))?;
    Ok(v1::GetClusterResponse { cluster: Some(answer(cluster)) })
}

pub(super) fn list(shared: &Shared, request: v1::ListClustersRequest) -> v1::ListClustersResponse {
    let filters = request.filters.unwrap_or_default();
    let view = shared.store.view();
    let clusters =
        view.cluster().into_iter().filter(|cluster| filter::clusters(&filters, cluster)).map(|cluster| answer(cluster)).collect();
    v1::ListClustersResponse { clusters }
}

pub(super) async fn update(shared: &Shared, request: v1::UpdateClusterRequest) -> Result<v1::UpdateClusterResponse, Status> {
    let id: ClusterId = id("cluster_id", &request.cluster_id)?;
    let version: Version = parse_required("cluster_version", request.cluster_version).map_err(invalid)?;
    let spec: ClusterSpec = parse_required("spec", request.spec).map_err(invalid)?;
    validate::cluster(&spec).map_err(|error| invalid(error.inside("spec")))?;
    let rotation = request.rotation.unwrap_or_default();
    let new = {
        let view = shared.store.view();
        let cluster = view.cluster().filter(|cluster| cluster.id == id).ok_or_else(|| missing(Kind::Cluster, id.as_str()))?;
        if cluster.meta.version != version {
            return Err(out_of_sequence());
        }
        check_supported(&cluster.spec, &spec, &rotation)?;
        let mut new = Cluster { spec, ..Cluster::clone(cluster) };
        drop_old_removals(&mut new, shared.now());
        if rotation.worker_join_token {
            new.root_ca.join_tokens.worker = renew(&new.root_ca.join_tokens.worker)?;
        }
        if rotation.manager_join_token {
            new.root_ca.join_tokens.manager = renew(&new.root_ca.join_tokens.manager)?;
        }
        new
    };
    shared.write(vec![Action::Update(Object::Cluster(Arc::new(new)))]).await?;
    let view = shared.store.view();
    let cluster = view.cluster().ok_or_else(|| missing(Kind::Cluster, id.as_str()))?;
    Ok(v1::UpdateClusterResponse { cluster: Some(answer(cluster)) })
}

/// Refuses what would be stored and then not done.
fn check_supported(old: &ClusterSpec, new: &ClusterSpec, rotation: &v1::KeyRotation) -> Result<(), Status> {
    if old.annotations.name != new.annotations.name {
        return Err(invalid(FieldError::new("spec.annotations.name", "modification of cluster name is not allowed")));
    }
    let not_yet = |field: &str, what: &str| Err(Status::unimplemented(format!("{field}: this version cannot {what}")));
    if rotation.manager_unlock_key || new.auto_lock_managers != old.auto_lock_managers {
        return not_yet("spec.encryption_config.auto_lock_managers", "lock managers with an unlock key");
    }
    let (before, after) = (&old.ca_config, &new.ca_config);
    if after.force_rotate != before.force_rotate || !after.signing_ca_cert.is_empty() || !after.signing_ca_key.0.is_empty() {
        return not_yet("spec.ca_config", "rotate the root certificate");
    }
    if after.external_cas != before.external_cas {
        return not_yet("spec.ca_config.external_cas", "use an external CA");
    }
    Ok(())
}

/// A token with the same digest (during a root rotation the old root's) and a new secret.
fn renew(token: &Sensitive<String>) -> Result<Sensitive<String>, Status> {
    let before: JoinToken = token.0.parse().map_err(|_| Status::internal("the stored join token is damaged"))?;
    Ok(Sensitive(JoinToken::from_digest(before.digest(), rand::random()).text().expose().to_owned()))
}
