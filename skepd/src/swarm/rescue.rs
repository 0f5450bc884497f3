//! Bringing a cluster back: from a backup, or from what one of its managers still has.
//!
//! Cluster id and root certificates stay what they were, so that workers go on; the raft group is a new one with one member, so
//! that managers of the old group are refused by number and the two can never grow together again. The old managers count as
//! workers from then on: their certificates no longer make them managers, and those that come back become workers.

use super::found::node_file;
use super::manager::{bind, store_config};
use super::role::{manager_of, new_raft_id};
use super::{BadRequest, Next, Seat, Swarm};
use crate::address;
use crate::agent::chain;
use crate::certificate::somebody_answers;
use crate::local::Restoration;
use crate::parts::NodeParts;
use anyhow::{Context, Result, anyhow};
use skep_ca::{Identity, NodeRole, RootBundle, RootCa, Secret};
use skep_manager::PeerTransport;
use skep_proto::skep::{RecoverRequest, RestoreResponse};
use skep_store::{BackupHead, Member, Recovery, Store, StoreStatus};
use skep_types::{Action, Certificate, Cluster, ClusterView as _, IssuanceState, Membership, Node, NodeId, NodeSpec, Object, Sensitive};
use std::io::Seek;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::task::JoinSet;

/// A leader that no majority has answered for so long has none.
const QUORUM_AGE: Duration = Duration::from_secs(2);

impl Swarm {
    /// Makes this node, which is in no cluster, the only manager of the one in the backup. `node.json` is written last.
    ///
    /// # Errors
    /// [`BadRequest`] for a wrong key, a file that is no backup, and a manager of this cluster that is alive, unless forced.
    pub async fn restore(parts: &NodeParts, restoration: Restoration) -> Result<(Self, RestoreResponse)> {
        let Restoration { start, key, mut backup } = restoration;
        let addresses = address::choose(&parts.config, &start.listen_addr, &start.advertise_addr).map_err(BadRequest)?;
        let listener = bind(addresses.listen).await.map_err(BadRequest)?;
        let (raft_id, node_id) = (new_raft_id(), NodeId::from_random(rand::random()));
        let member = Member { node_id: node_id.to_string(), addr: addresses.advertise.to_string() };
        let transport = PeerTransport::new(&parts.security);
        let head = BackupHead::read(&mut backup).map_err(|error| BadRequest(error.into()))?;
        backup.rewind()?;
        let restored = Store::restore(store_config(parts, None), raft_id, member, transport.clone(), backup, &key).await;
        let store = restored.map_err(|error| BadRequest(error.into()))?;
        skep_failpoint::failpoint!("skepd.restore.store");
        let gone = if start.force { Vec::new() } else { head.managers };
        let outcome = Self::restored(parts, &store, addresses, raft_id, &node_id, gone).await;
        let (node, response) = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                store.shutdown().await;
                return Err(error);
            }
        };
        let part = manager_of(parts, &node, store, transport, listener).await?;
        Ok((Self::new(parts, node, Seat::Manager(Box::new(part))), response))
    }

    /// `gone`: managers that must not be there any more.
    async fn restored(
        parts: &NodeParts,
        store: &Store,
        addresses: address::Addresses,
        raft_id: u64,
        node_id: &NodeId,
        gone: Vec<String>,
    ) -> Result<(crate::state::NodeFile, RestoreResponse)> {
        let cluster = store.view().cluster().cloned().context("the backup holds no cluster")?;
        let root = authority(&cluster).context(
            "the backup holds no key of the cluster's root certificate (an external CA signs for it), so that this node cannot certify \
             itself; restore on a machine that still has a manager's certificate",
        )?;
        let lifetime = cluster.spec.ca_config.node_cert_expiry.unwrap_or(skep_ca::DEFAULT_LIFETIME);
        let identity = Identity::of_first_manager(&root, node_id.clone(), cluster.id.clone(), lifetime, SystemTime::now())?;
        let alive = alive(gone, &addresses).await;
        if !alive.is_empty() {
            let reason = anyhow!(
                "a manager of this cluster seems to answer at {}: restoring beside it makes two clusters out of one. Join this node to it, or \
                 repeat with --force if the old managers are to be given up",
                alive.join(", ")
            );
            return Err(BadRequest(reason).into());
        }
        let mut report = describe(store);
        report.extend(retire_others(store, node_id, Some(&identity)).await?);
        skep_failpoint::failpoint!("skepd.restore.objects");
        parts.vault.adopt(&parts.security, identity.clone()).await?;
        skep_failpoint::failpoint!("skepd.restore.identity");
        let node = node_file(&identity, addresses, raft_id);
        node.save(&parts.config.data_dir)?;
        let response = RestoreResponse { node_id: node.node_id.clone(), cluster_id: node.cluster_id.clone(), report };
        tracing::warn!(cluster = response.cluster_id, node = response.node_id, "restored a cluster from a backup");
        Ok((node, response))
    }

    /// Makes this manager the only one, with the state it has. Without `confirm` it only says what would happen.
    ///
    /// # Errors
    /// [`BadRequest`] on a worker; else what keeps the store from being recovered. Its files are kept beside the new ones.
    pub async fn recover(&mut self, request: RecoverRequest) -> Result<Vec<String>> {
        if self.node.raft_id == 0 || self.parts.security.identity().is_none_or(|identity| identity.role() != NodeRole::Manager) {
            return Err(BadRequest(anyhow!("this node is a worker; recover the cluster on a node that was a manager")).into());
        }
        if !request.confirm {
            let part =
                self.manager().ok_or_else(|| anyhow!("the manager of this node does not run; only recovering itself can tell more"))?;
            let mut report = before_recovery(part.store());
            report.push("nothing was changed".into());
            return Ok(report);
        }
        let chosen = |asked: &str, present: SocketAddr| if asked.is_empty() { present.to_string() } else { asked.to_owned() };
        let listen = address::listening(&chosen(&request.listen_addr, self.node.listen_addr), self.node.listen_addr).map_err(BadRequest)?;
        let advertise = address::advertised(&chosen(&request.advertise_addr, self.node.advertise_addr), listen).map_err(BadRequest)?;
        let node_id: NodeId = self.node.node_id.parse().context("node.json names no node")?;
        if let Seat::Manager(part) = std::mem::replace(&mut self.seat, Seat::Worker) {
            part.stop().await;
        }
        self.vacate("this manager is being recovered".into(), Next::Start);
        let (raft_id, parts) = (new_raft_id(), self.parts.clone());
        let member = Member { node_id: node_id.to_string(), addr: advertise.to_string() };
        let transport = PeerTransport::new(&parts.security);
        let config = store_config(&parts, parts.vault.key().await);
        let (store, recovery) = Store::recover(config, raft_id, member, transport.clone()).await.context("cannot recover the store")?;
        skep_failpoint::failpoint!("skepd.recover.store");
        let mut report = describe(&store);
        report.extend(report_of(&recovery));
        (self.node.raft_id, self.node.joining) = (raft_id, false);
        (self.node.listen_addr, self.node.advertise_addr) = (listen, advertise);
        let retired = match self.save_node() {
            Ok(()) => {
                skep_failpoint::failpoint!("skepd.recover.noted");
                retire_others(&store, &node_id, None).await
            }
            Err(error) => Err(error),
        };
        match retired {
            Ok(retired) => report.extend(retired),
            Err(error) => {
                store.shutdown().await;
                return Err(error);
            }
        }
        self.seat_manager(store, transport).await?;
        tracing::warn!(raft_id, "recovered the cluster with this manager as its only one");
        Ok(report)
    }
}

/// What signs for the cluster, by what its state holds; during a rotation of the root the new key signs.
fn authority(cluster: &Cluster) -> Result<RootCa> {
    let text = |pem: &[u8]| String::from_utf8_lossy(pem).into_owned();
    let secret = |pem: &Sensitive<Vec<u8>>| Secret::new(text(&pem.0));
    let ca = &cluster.root_ca;
    Ok(match &ca.root_rotation {
        Some(rotation) => {
            let old = RootBundle::parse(&text(&ca.ca_cert))?;
            RootCa::during_rotation(&old, &text(&rotation.ca_cert), &secret(&rotation.ca_key), &text(&rotation.cross_signed_ca_cert))?
        }
        None => RootCa::load(&text(&ca.ca_cert), &secret(&ca.ca_key))?,
    })
}

/// In a few words what a store holds.
fn describe(store: &Store) -> Vec<String> {
    let view = store.view();
    let (nodes, services, tasks) = (view.nodes().count(), view.services().count(), view.tasks().count());
    vec![format!("The state is that of revision {}: {nodes} nodes, {services} services, {tasks} tasks.", view.version().0)]
}

/// What a recovery keeps and what it gives up, a sentence each.
fn report_of(recovery: &Recovery) -> Vec<String> {
    let dropped: Vec<String> =
        recovery.members_dropped.iter().map(|member| format!("{} at {}", member.member.node_id, member.member.addr)).collect();
    let mut report = vec![match &dropped[..] {
        [] => "There are no other managers.".to_owned(),
        _ => format!("The other managers are given up: {}.", dropped.join(", ")),
    }];
    let applied = recovery.applied.unwrap_or(0);
    report.push(format!(
        "The state of this manager is kept up to log entry {applied}. What the others agreed on without this manager is lost."
    ));
    if recovery.uncommitted_kept > 0 {
        report.push(format!(
            "Of the last {} entries it is not known here whether a majority had agreed on them; they are valid from now on.",
            recovery.uncommitted_kept
        ));
    }
    if let Some(dir) = &recovery.old_dir {
        report.push(format!("The former files are in {}; remove them when all is well.", dir.display()));
    }
    report
}

fn before_recovery(store: &Store) -> Vec<String> {
    let mut report = describe(store);
    let recovery = store.recovery();
    report.extend(report_of(&recovery));
    if has_majority(&store.status()) && !recovery.members_dropped.is_empty() {
        report.push(
            "The managers have a leader, so a majority of them is there: recovering now takes this one away from them and makes a second cluster. Demote or remove single managers instead."
                .into(),
        );
    }
    report
}

/// Whether the group works, as far as this member can tell.
pub fn has_majority(status: &StoreStatus) -> bool {
    match status.leader {
        None => false,
        // A leader is told by the others' answers.
        Some(leader) if leader == status.raft_id => status.quorum_age.is_some_and(|age| age < QUORUM_AGE),
        // It may have died since; the store names it until there is another.
        Some(_) => status.leader_heard.is_some_and(|age| age < QUORUM_AGE),
    }
}

/// Where something still answers of the managers of a backup. It need not be a manager that verifies: the root may have been
/// rotated since.
async fn alive(managers: Vec<String>, own: &address::Addresses) -> Vec<String> {
    let mut asked = JoinSet::new();
    for address in managers.into_iter().filter(|address| !is_own(address, own)) {
        asked.spawn(async move { somebody_answers(&address).await.then_some(address) });
    }
    asked.join_all().await.into_iter().flatten().collect()
}

/// A cluster is often restored where its manager was.
fn is_own(address: &str, own: &address::Addresses) -> bool {
    let parsed: Option<SocketAddr> = address.parse().ok();
    parsed.is_some_and(|parsed| parsed == own.advertise || (parsed.port() == own.listen.port() && address::is_of_this_machine(parsed.ip())))
}

/// Takes the managers' rights from all nodes but this one, in one transaction, and puts this one in if it is new. Says who they were.
async fn retire_others(store: &Store, own: &NodeId, new: Option<&Identity>) -> Result<Vec<String>> {
    let mut actions: Vec<Action> =
        new.map(|identity| Action::Create(Object::Node(Arc::new(own_node(own, identity))))).into_iter().collect();
    let mut names = Vec::new();
    for node in store.view().nodes() {
        if node.id != *own && (node.role == NodeRole::Manager || node.spec.desired_role == NodeRole::Manager) {
            let name = node.description.as_ref().map(|description| description.hostname.clone()).unwrap_or_default();
            names.push(if name.is_empty() { node.id.to_string() } else { format!("{} ({name})", node.id) });
            let spec = NodeSpec { desired_role: NodeRole::Worker, ..node.spec.clone() };
            actions.push(Action::Update(Object::Node(Arc::new(Node { role: NodeRole::Worker, spec, ..Node::clone(node) }))));
        }
    }
    if !actions.is_empty() {
        store.propose(actions).await.map_err(|error| anyhow!(chain(&error))).context("cannot write who manages from now on")?;
    }
    Ok(match &names[..] {
        [] => Vec::new(),
        _ => vec![format!(
            "These nodes were managers and are workers from now on, or can be removed with `swarmctl node rm`: {}.",
            names.join(", ")
        )],
    })
}

fn own_node(id: &NodeId, identity: &Identity) -> Node {
    Node {
        spec: NodeSpec { desired_role: NodeRole::Manager, membership: Membership::Accepted, ..NodeSpec::default() },
        certificate: Certificate {
            role: NodeRole::Manager,
            state: IssuanceState::Issued,
            certificate: identity.chain_pem().into_bytes(),
            cn: id.to_string(),
            ..Certificate::default()
        },
        role: NodeRole::Manager,
        ..Node::new(id.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::ClusterId;

    #[test]
    fn the_place_of_the_new_manager_is_not_taken_for_an_old_one() {
        let own = address::Addresses {
            listen: "0.0.0.0:2377".parse().unwrap(),
            advertise: "192.0.2.7:2377".parse().unwrap(),
            found: false,
            configured: crate::state::Configured::default(),
        };
        assert!(is_own("192.0.2.7:2377", &own) && is_own("127.0.0.1:2377", &own));
        assert!(!is_own("127.0.0.1:2378", &own) && !is_own("192.0.2.8:2377", &own) && !is_own("manager:2377", &own));
    }

    #[test]
    fn the_authority_of_a_backup_certifies_for_its_cluster() {
        let root = RootCa::generate(SystemTime::now()).unwrap();
        let mut cluster = Cluster::new(ClusterId::for_test(1));
        cluster.root_ca.ca_cert = root.bundle().pem().as_bytes().to_vec();
        assert!(authority(&cluster).is_err(), "without its key");
        cluster.root_ca.ca_key = Sensitive(root.key_pem().expose().as_bytes().to_vec());
        assert_eq!(authority(&cluster).unwrap().bundle(), root.bundle());
        let new = RootCa::generate(SystemTime::now()).unwrap();
        cluster.root_ca.root_rotation = Some(skep_types::RootRotation {
            ca_cert: new.bundle().pem().as_bytes().to_vec(),
            ca_key: Sensitive(new.key_pem().expose().as_bytes().to_vec()),
            cross_signed_ca_cert: root.cross_sign(new.bundle()).unwrap().into_bytes(),
        });
        assert_eq!(authority(&cluster).unwrap().bundle(), root.bundle(), "the old root is trusted until the rotation ends");
    }
}
