//! The cluster object: get, list, update.

use super::errors::{id, invalid, missing, out_of_sequence};
use super::filter;
use super::node::drop_old_removals;
use super::validate;
use crate::ca::{WantedRoot, check_entries, check_lifetime, check_signs, cross_sign, pin_entries, requires_external, wanted_root};
use crate::clock::system_time;
use crate::drive::chain;
use crate::shared::Shared;
use skep_ca::JoinToken;
use skep_proto::{ToWire as _, parse_required, redact_cluster, v1};
use skep_types::{
    Action, CaConfig, Cluster, ClusterId, ClusterRootCa, ClusterSpec, ClusterView as _, FieldError, Kind, Object, Sensitive, UnlockKey,
    Version,
};
use std::sync::Arc;
use std::time::SystemTime;
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

/// Everything that a settings object may ask for is done or refused; nothing is stored and then not done.
///
/// Orders in it (another root, new tokens, a new unlock key) are carried out with the same commit. What follows from them on nodes
/// (certificates under the new root, keys sealed anew) comes afterwards, by the leader's CA and by each manager.
pub(super) async fn update(shared: &Shared, request: v1::UpdateClusterRequest) -> Result<v1::UpdateClusterResponse, Status> {
    let id: ClusterId = id("cluster_id", &request.cluster_id)?;
    let version: Version = parse_required("cluster_version", request.cluster_version).map_err(invalid)?;
    let spec: ClusterSpec = parse_required("spec", request.spec).map_err(invalid)?;
    let in_spec = |error: FieldError| invalid(error.inside("spec"));
    validate::cluster(&spec).map_err(in_spec)?;
    check_lifetime(&spec.ca_config).map_err(in_spec)?;
    check_entries(&spec.ca_config.external_cas).map_err(in_spec)?;
    let rotation = request.rotation.unwrap_or_default();
    let cluster = {
        let view = shared.store.view();
        view.cluster().filter(|cluster| cluster.id == id).ok_or_else(|| missing(Kind::Cluster, id.as_str()))?.clone()
    };
    if cluster.meta.version != version {
        return Err(out_of_sequence());
    }
    check_unchanged(&cluster.spec, &spec)?;
    let mut new = Cluster { spec, ..Cluster::clone(&cluster) };
    drop_old_removals(&mut new, shared.now());
    lock(&mut new, rotation.manager_unlock_key)?;
    // Last, for it may ask an external CA, which signs for good.
    let now = system_time(shared.now());
    new.root_ca = next_root(shared, &cluster, &new.spec.ca_config, now).await.map_err(in_spec)?;
    // Taken over where it was wanted; clients never get it back.
    new.spec.ca_config.signing_ca_cert.clear();
    new.spec.ca_config.signing_ca_key = Sensitive(Vec::new());
    if new.root_ca.root_rotation.is_some() {
        pin_entries(&mut new.spec.ca_config.external_cas, &new.root_ca.ca_cert);
    }
    if rotation.worker_join_token {
        new.root_ca.join_tokens.worker = renew(&new.root_ca.join_tokens.worker)?;
    }
    if rotation.manager_join_token {
        new.root_ca.join_tokens.manager = renew(&new.root_ca.join_tokens.manager)?;
    }
    // One that is down for a moment does not keep other settings from being changed.
    let changed = new.root_ca != cluster.root_ca || new.spec.ca_config.external_cas != cluster.spec.ca_config.external_cas;
    if requires_external(&new.root_ca, &new.spec.ca_config).map_err(in_spec)? && changed {
        check_signs(&shared.security, &new, now).await.map_err(|error| in_spec(no_external(&error)))?;
    }
    shared.write(vec![Action::Update(Object::Cluster(Arc::new(new)))]).await?;
    shared.ca.rotation.notify_one();
    let view = shared.store.view();
    let cluster = view.cluster().ok_or_else(|| missing(Kind::Cluster, id.as_str()))?;
    Ok(v1::UpdateClusterResponse { cluster: Some(answer(cluster)) })
}

/// The root by these settings. Where the present root's key is with an external CA, that one is asked to sign a new root.
async fn next_root(shared: &Shared, cluster: &Cluster, wanted: &CaConfig, now: SystemTime) -> Result<ClusterRootCa, FieldError> {
    let ca = &cluster.root_ca;
    match wanted_root(cluster, wanted, now)? {
        WantedRoot::Unchanged => Ok(ca.clone()),
        WantedRoot::Decided(root_ca) => Ok(*root_ca),
        WantedRoot::Unsigned(new) => {
            cross_sign(&shared.security, ca, &wanted.external_cas, &new, now).await.map_err(|error| no_external(&error))
        }
    }
}

fn no_external(error: &dyn std::error::Error) -> FieldError {
    FieldError::new("ca_config.external_cas", chain(error))
}

/// Refuses changes that nobody would carry out.
fn check_unchanged(old: &ClusterSpec, new: &ClusterSpec) -> Result<(), Status> {
    if old.annotations.name != new.annotations.name {
        return Err(invalid(FieldError::new("spec.annotations.name", "modification of cluster name is not allowed")));
    }
    let not_yet = |field: &str, why: &str| Err(Status::unimplemented(format!("spec.{field}: {why}")));
    let (before, after) = (&old.raft, &new.raft);
    if after.keep_old_snapshots != before.keep_old_snapshots {
        return not_yet("raft.keep_old_snapshots", "this version keeps one snapshot, the newest; use backups to keep older states");
    }
    if after.log_entries_for_slow_followers != before.log_entries_for_slow_followers {
        return not_yet("raft.log_entries_for_slow_followers", "this version always keeps 500 entries; slower followers get a snapshot");
    }
    if (after.heartbeat_tick, after.election_tick) != (before.heartbeat_tick, before.election_tick) {
        return not_yet(
            "raft.election_tick",
            "this version elects a leader within fixed times, about a second; leave the ticks as they are",
        );
    }
    Ok(())
}

/// Gives locked managers a key, takes it from unlocked ones, or changes it. Each manager then seals its keys anew.
fn lock(cluster: &mut Cluster, rotate: bool) -> Result<(), Status> {
    let present = cluster.unlock_key();
    match (cluster.spec.auto_lock_managers, present) {
        (false, _) if rotate => {
            let problem = "managers are not locked, so that there is no key to change; switch auto_lock_managers on";
            Err(invalid(FieldError::new("rotation.manager_unlock_key", problem)))
        }
        (false, _) => {
            cluster.set_unlock_key(None);
            Ok(())
        }
        (true, Some(_)) if !rotate => Ok(()),
        (true, _) => {
            cluster.set_unlock_key(Some(&UnlockKey::new(rand::random())));
            Ok(())
        }
    }
}

/// A token with the same digest (during a root rotation the old root's) and a new secret.
fn renew(token: &Sensitive<String>) -> Result<Sensitive<String>, Status> {
    let before: JoinToken = token.0.parse().map_err(|_| Status::internal("the stored join token is damaged"))?;
    Ok(Sensitive(JoinToken::from_digest(before.digest(), rand::random()).text().expose().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(locked: bool) -> Cluster {
        let mut cluster = Cluster::new(ClusterId::for_test(1));
        cluster.spec.auto_lock_managers = locked;
        cluster
    }

    #[test]
    fn locking_makes_a_key_and_unlocking_takes_it_away() {
        let mut locked = cluster(true);
        lock(&mut locked, false).unwrap();
        let first = locked.unlock_key().unwrap();
        lock(&mut locked, false).unwrap();
        assert_eq!(locked.unlock_key(), Some(first.clone()), "another change of settings leaves it alone");
        lock(&mut locked, true).unwrap();
        assert!(locked.unlock_key().is_some_and(|key| key != first));
        assert_eq!(locked.unlock_keys.len(), 1);
        locked.spec.auto_lock_managers = false;
        lock(&mut locked, false).unwrap();
        assert!(locked.unlock_keys.is_empty());
    }

    #[test]
    fn there_is_no_key_to_change_where_nothing_is_locked() {
        let refused = lock(&mut cluster(false), true).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert!(refused.message().contains("rotation.manager_unlock_key"), "{refused:?}");
    }

    #[test]
    fn settings_that_would_do_nothing_are_refused_by_name() {
        let old = ClusterSpec::default();
        let changes: [(&str, fn(&mut ClusterSpec)); 4] = [
            ("keep_old_snapshots", |spec| spec.raft.keep_old_snapshots = 3),
            ("log_entries_for_slow_followers", |spec| spec.raft.log_entries_for_slow_followers = 9),
            ("election_tick", |spec| spec.raft.election_tick = 11),
            ("annotations.name", |spec| spec.annotations.name = "other".into()),
        ];
        for (field, change) in changes {
            let mut new = old.clone();
            change(&mut new);
            let refused = check_unchanged(&old, &new).unwrap_err();
            assert!(refused.message().contains(field), "{refused:?}");
        }
        let taken = ClusterSpec { task_history_retention_limit: 1, auto_lock_managers: true, ..old.clone() };
        assert!(check_unchanged(&old, &taken).is_ok());
    }
}
