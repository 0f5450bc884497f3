//! What a cluster is born with. Pure; spec wire-behaviour 27 (`SK/manager/manager.go`).

use skep_ca::{JoinToken, RootCa};
use skep_types::{
    Action, Annotations, Availability, Certificate, Cluster, ClusterId, ClusterRootCa, ClusterSpec, Driver, IssuanceState, JoinTokens,
    Labels, Membership, Network, NetworkId, NetworkSpec, Node, NodeDescription, NodeId, NodeOverlay, NodeRole, NodeSpec, Object,
    PREDEFINED_LABEL, Sensitive, UnlockKey,
};
use std::sync::Arc;
use std::time::Duration;

/// What has been decided before the first manager starts: ids and keys come from the caller, for this function draws nothing
/// at random.
#[derive(Debug)]
pub struct NewCluster<'a> {
    pub cluster_id: ClusterId,
    pub root: &'a RootCa,
    pub worker_secret: [u8; 16],
    pub manager_secret: [u8; 16],
    /// The first manager, with its certificate as PEM.
    pub node_id: NodeId,
    pub node_certificate: Vec<u8>,
    pub availability: Availability,
    /// As far as it is known; the agent's first session completes it.
    pub description: Option<NodeDescription>,
    /// `ingress`, `bridge`, `host`.
    pub network_ids: [NetworkId; 3],
    /// Pools for networks without a subnet; empty = `10.0.0.0/8`.
    pub default_address_pool: Vec<String>,
    /// 0 = 20, or 24 as the original's clusters have it if that does not fit into a pool.
    pub subnet_size: u32,
    /// 0 = 4789.
    pub vxlan_port: u32,
    /// Subnets of the first manager's own devices.
    pub local_prefixes: Vec<String>,
    /// `None` = 90 days.
    pub node_cert_expiry: Option<Duration>,
    /// What managers are locked with from the beginning; `None` = they are not locked.
    pub unlock_key: Option<UnlockKey>,
}

/// The first transaction of a cluster: the cluster object, its first node, and the networks every cluster has.
#[must_use]
pub fn initial_objects(new: NewCluster<'_>) -> Vec<Action> {
    let [ingress, bridge, host] = new.network_ids.clone();
    let objects = [
        Object::Network(Arc::new(Network::new(ingress, ingress_spec()))),
        Object::Network(Arc::new(Network::new(bridge, predefined_spec("bridge")))),
        Object::Network(Arc::new(Network::new(host, predefined_spec("host")))),
        Object::Node(Arc::new(first_node(&new))),
        Object::Cluster(Arc::new(cluster(new))),
    ];
    objects.into_iter().map(Action::Create).collect()
}

fn cluster(new: NewCluster<'_>) -> Cluster {
    let roots = new.root.bundle();
    let token = |secret| Sensitive(JoinToken::new(roots, secret).text().expose().to_owned());
    let mut spec = ClusterSpec { auto_lock_managers: new.unlock_key.is_some(), ..ClusterSpec::default() };
    if new.node_cert_expiry.is_some() {
        spec.ca_config.node_cert_expiry = new.node_cert_expiry;
    }
    let mut cluster = Cluster {
        spec,
        root_ca: ClusterRootCa {
            ca_key: Sensitive(new.root.key_pem().expose().as_bytes().to_vec()),
            ca_cert: roots.pem().as_bytes().to_vec(),
            ca_cert_hash: roots.digest_text(),
            join_tokens: JoinTokens { worker: token(new.worker_secret), manager: token(new.manager_secret) },
            ..ClusterRootCa::default()
        },
        subnet_size: if new.subnet_size == 0 { default_subnet_size(&new.default_address_pool) } else { new.subnet_size },
        default_address_pool: new.default_address_pool,
        vxlan_port: new.vxlan_port,
        ..Cluster::new(new.cluster_id)
    };
    cluster.set_unlock_key(new.unlock_key.as_ref());
    cluster
}

/// Prefix length of networks without a subnet where nobody says another: a network that spans hosts has room for 4,000 tasks and
/// virtual IPs, and the default pool for 4,096 such networks.
const SUBNET_SIZE: u32 = 20;

fn default_subnet_size(pools: &[String]) -> u32 {
    let prefix = |pool: &String| pool.rsplit_once('/').and_then(|(_, prefix)| prefix.parse::<u32>().ok());
    let fits = pools.iter().all(|pool| prefix(pool).is_some_and(|prefix| prefix <= SUBNET_SIZE));
    if fits { SUBNET_SIZE } else { 24 }
}

fn first_node(new: &NewCluster<'_>) -> Node {
    Node {
        spec: NodeSpec {
            desired_role: NodeRole::Manager,
            membership: Membership::Accepted,
            availability: new.availability,
            ..NodeSpec::default()
        },
        description: new.description.clone(),
        certificate: Certificate {
            role: NodeRole::Manager,
            state: IssuanceState::Issued,
            certificate: new.node_certificate.clone(),
            cn: new.node_id.to_string(),
            ..Certificate::default()
        },
        role: NodeRole::Manager,
        vxlan_port: new.vxlan_port,
        // Known before its agent says it, for the ingress network gets its subnet at once.
        overlay: Some(NodeOverlay { local_prefixes: new.local_prefixes.clone(), ..NodeOverlay::default() }),
        ..Node::new(new.node_id.clone())
    }
}

/// Driver and addresses are left to the allocator.
fn ingress_spec() -> NetworkSpec {
    let annotations = Annotations { name: "ingress".into(), ..Annotations::default() };
    // Published ports answer on both families.
    NetworkSpec { annotations, ingress: true, ipv6_enabled: true, ..NetworkSpec::default() }
}

/// A network that every node has by itself; the object is there so that services can name it.
fn predefined_spec(name: &str) -> NetworkSpec {
    let labels = Labels::from([(PREDEFINED_LABEL.to_owned(), "true".to_owned())]);
    NetworkSpec {
        annotations: Annotations { name: name.into(), labels, ..Annotations::default() },
        driver: Some(Driver { name: name.into(), ..Driver::default() }),
        ..NetworkSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn networks_get_a_20_where_the_pools_have_room_for_it() {
        let size = |pools: &[&str]| default_subnet_size(&pools.iter().map(|pool| (*pool).to_owned()).collect::<Vec<_>>());
        assert_eq!([size(&[]), size(&["10.0.0.0/8"]), size(&["172.30.0.0/20"])], [20; 3]);
        assert_eq!([size(&["10.0.0.0/8", "172.31.0.0/22"]), size(&["172.31.0.0/24"])], [24; 2]);
    }

    #[test]
    fn a_cluster_is_born_with_its_first_manager_and_three_networks() {
        let root = RootCa::generate(SystemTime::now()).unwrap();
        let actions = initial_objects(NewCluster {
            cluster_id: ClusterId::for_test(1),
            root: &root,
            worker_secret: [1; 16],
            manager_secret: [2; 16],
            node_id: NodeId::for_test(2),
            node_certificate: b"pem".to_vec(),
            availability: Availability::Active,
            description: None,
            network_ids: [3, 4, 5].map(NetworkId::for_test),
            default_address_pool: Vec::new(),
            subnet_size: 0,
            vxlan_port: 0,
            local_prefixes: Vec::new(),
            node_cert_expiry: None,
            unlock_key: Some(UnlockKey::new([6; 32])),
        });
        let mut names = Vec::new();
        for action in &actions {
            match action {
                Action::Create(Object::Network(network)) => names.push((network.spec.annotations.name.as_str(), network.is_predefined())),
                Action::Create(Object::Node(node)) => {
                    assert_eq!((node.role, node.spec.membership), (NodeRole::Manager, Membership::Accepted));
                    assert_eq!(node.certificate.state, IssuanceState::Issued);
                }
                Action::Create(Object::Cluster(cluster)) => {
                    let tokens = &cluster.root_ca.join_tokens;
                    let worker: JoinToken = tokens.worker.0.parse().unwrap();
                    assert!(worker.pins(root.bundle()));
                    assert_ne!(tokens.worker, tokens.manager);
                    assert_eq!(cluster.spec.annotations.name, "default");
                    assert_eq!(cluster.root_ca.ca_cert_hash, root.bundle().digest_text());
                    assert!(cluster.spec.auto_lock_managers);
                    assert_eq!(cluster.subnet_size, 20);
                    assert_eq!(cluster.unlock_key(), Some(UnlockKey::new([6; 32])));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(names, [("ingress", false), ("bridge", true), ("host", true)]);
        assert_eq!(actions.len(), 5);
    }
}
