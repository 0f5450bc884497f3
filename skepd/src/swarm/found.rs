//! A new cluster with this node as its first manager.

use super::manager::{bind, store_config};
use super::role::{manager_of, new_raft_id};
use super::wanted::Wanted;
use super::{BadRequest, Seat, Swarm};
use crate::address::Addresses;
use crate::parts::NodeParts;
use crate::state::NodeFile;
use anyhow::{Context, Result};
use skep_ca::{Identity, RootCa, UnlockKey};
use skep_manager::{NewCluster, PeerTransport, initial_objects};
use skep_proto::skep::{InitRequest, InitResponse};
use skep_store::{Member, Store};
use skep_types::{ClusterId, ClusterView as _, NetworkId, NodeId};
use std::time::SystemTime;

impl Swarm {
    /// `node.json` is written last: before it, nothing counts.
    ///
    /// # Errors
    /// [`BadRequest`] for what the caller can cure.
    pub async fn found(parts: &NodeParts, request: InitRequest) -> Result<(Self, InitResponse)> {
        let wanted = Wanted::parse(&request, &parts.config).map_err(BadRequest)?;
        let addresses = wanted.addresses;
        // Before anything is written: a port that is taken is said now.
        let listener = bind(addresses.listen).await.map_err(BadRequest)?;
        let (cluster_id, node_id) = (ClusterId::from_random(rand::random()), NodeId::from_random(rand::random()));
        let now = SystemTime::now();
        let root = RootCa::generate(now)?;
        let identity = Identity::of_first_manager(&root, node_id.clone(), cluster_id.clone(), wanted.lifetime, now)?;
        let unlock = request.auto_lock_managers.then(|| UnlockKey::new(rand::random()));
        let objects = initial_objects(NewCluster {
            cluster_id: cluster_id.clone(),
            root: &root,
            worker_secret: rand::random(),
            manager_secret: rand::random(),
            node_id: node_id.clone(),
            node_certificate: identity.chain_pem().into_bytes(),
            availability: wanted.availability,
            description: None,
            network_ids: std::array::from_fn(|_| NetworkId::from_random(rand::random())),
            default_address_pool: request.default_address_pool,
            subnet_size: request.subnet_size,
            vxlan_port: request.data_path_port,
            local_prefixes: wanted.local_prefixes,
            node_cert_expiry: Some(wanted.lifetime),
            unlock_key: unlock.clone(),
        });
        let node = node_file(&identity, addresses, new_raft_id());
        let member = Member { node_id: node_id.to_string(), addr: node.advertise_addr.to_string() };
        // Its identity comes in a moment; there is nobody to call before.
        let transport = PeerTransport::new(&parts.security);
        let store = Store::bootstrap(store_config(parts, unlock.clone()), node.raft_id, member, transport.clone()).await?;
        skep_failpoint::failpoint!("skepd.init.store");
        store.propose(objects).await.context("cannot write the new cluster's first objects")?;
        skep_failpoint::failpoint!("skepd.init.objects");
        parts.vault.hold(unlock.clone()).await;
        parts.vault.adopt(&parts.security, identity).await?;
        skep_failpoint::failpoint!("skepd.init.identity");
        node.save(&parts.config.data_dir)?;
        skep_failpoint::failpoint!("skepd.init.done");
        let tokens = store.view().cluster().map(|cluster| cluster.root_ca.join_tokens.clone()).unwrap_or_default();
        let part = manager_of(parts, &node, store, transport, listener).await?;
        tracing::info!(cluster = %cluster_id, node = %node_id, "made a cluster");
        let response = InitResponse {
            node_id: node_id.to_string(),
            cluster_id: cluster_id.to_string(),
            worker_token: tokens.worker.0,
            manager_token: tokens.manager.0,
            advertise_addr: node.advertise_addr.to_string(),
            unlock_key: unlock.map(|key| key.text().0).unwrap_or_default(),
        };
        Ok((Self::new(parts, node, Seat::Manager(Box::new(part))), response))
    }
}

/// What is noted of a node that is in a cluster.
pub(super) fn node_file(identity: &Identity, addresses: Addresses, raft_id: u64) -> NodeFile {
    NodeFile {
        listen_addr: addresses.listen,
        advertise_addr: addresses.advertise,
        raft_id,
        joining: false,
        node_id: identity.node_id().to_string(),
        cluster_id: identity.cluster_id().to_string(),
        managers: Vec::new(),
        found_addr: addresses.found,
        configured: addresses.configured,
    }
}
