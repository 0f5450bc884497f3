//! A cluster's root and its first manager.

use skep_ca::{DEFAULT_LIFETIME, Identity, NodeKey, RootCa, SecurityConfig, Subject};
use skep_manager::{NewCluster, initial_objects};
use skep_store::Store;
use skep_types::{Availability, ClusterId, ClusterView as _, NetworkId, NodeId, NodeRole};
use std::time::SystemTime;

/// Who may certify nodes of a cluster without asking anybody.
pub struct Authority {
    pub root: RootCa,
    pub cluster_id: ClusterId,
}

impl Authority {
    /// A new cluster's, with the identity of its first manager.
    pub fn found() -> (Self, NodeId, SecurityConfig) {
        let (cluster_id, node_id) = (ClusterId::from_random(rand::random()), NodeId::from_random(rand::random()));
        let root = RootCa::generate(SystemTime::now()).unwrap();
        let identity = Identity::of_first_manager(&root, node_id.clone(), cluster_id.clone(), DEFAULT_LIFETIME, SystemTime::now()).unwrap();
        (Self { root, cluster_id }, node_id, SecurityConfig::new(identity).unwrap())
    }

    /// Puts what a new cluster begins with into the store of its first manager.
    pub async fn populate(&self, store: &Store, first: &SecurityConfig) {
        let identity = first.identity().unwrap();
        let objects = initial_objects(NewCluster {
            cluster_id: self.cluster_id.clone(),
            root: &self.root,
            worker_secret: rand::random(),
            manager_secret: rand::random(),
            node_id: identity.node_id().clone(),
            node_certificate: identity.chain_pem().into_bytes(),
            availability: Availability::Active,
            description: None,
            network_ids: std::array::from_fn(|_| NetworkId::from_random(rand::random())),
            default_address_pool: Vec::new(),
            subnet_size: 0,
            vxlan_port: 0,
            local_prefixes: Vec::new(),
            node_cert_expiry: None,
            unlock_key: None,
        });
        store.propose(objects).await.unwrap();
    }

    /// A certificate made by this cluster's root without asking anybody.
    pub fn certify(&self, node: NodeId, role: NodeRole) -> SecurityConfig {
        let key = NodeKey::generate().unwrap();
        let subject = Subject { node, role, cluster: self.cluster_id.clone() };
        let issued = self.root.issue(key.request().unwrap().as_bytes(), &subject, DEFAULT_LIFETIME, SystemTime::now()).unwrap();
        SecurityConfig::new(Identity::new(key, &issued.chain_pem, self.root.bundle().clone(), SystemTime::now()).unwrap()).unwrap()
    }

    /// The join token of a role, as the store has it.
    pub fn token(store: &Store, role: NodeRole) -> String {
        let tokens = store.view().cluster().unwrap().root_ca.join_tokens.clone();
        if role == NodeRole::Manager { tokens.manager.0 } else { tokens.worker.0 }
    }
}
