use super::*;
use std::time::UNIX_EPOCH;

const CONTROL: &str = "/docker.swarmkit.v1.Control/ListNodes";
const SESSION: &str = "/docker.swarmkit.v1.Dispatcher/Session";
const ROOTS: &str = "/docker.swarmkit.v1.CA/GetRootCACertificate";

struct Fixed;

impl Facts for Fixed {
    fn cluster_id(&self) -> Option<ClusterId> {
        Some(ClusterId::for_test(1))
    }
    fn standing(&self, node: &NodeId) -> Standing {
        if *node == NodeId::for_test(666) {
            Standing::Removed
        } else if *node == NodeId::for_test(3) {
            Standing::Node(NodeRole::Worker)
        } else if *node == NodeId::for_test(404) {
            Standing::NobodyKnows
        } else {
            Standing::Unlisted
        }
    }
    fn local_node(&self) -> NodeId {
        NodeId::for_test(10)
    }
    fn local_addr(&self) -> IpAddr {
        IpAddr::from([192, 0, 2, 1])
    }
}

fn connection(node: u64, unit: &str, cluster: u64) -> ConnectionInfo {
    let peer = PeerIdentity {
        node_id: NodeId::for_test(node),
        units: vec![unit.to_owned()],
        cluster_id: ClusterId::for_test(cluster),
        not_before: UNIX_EPOCH,
        not_after: UNIX_EPOCH,
        chain: Vec::new(),
    };
    ConnectionInfo { peer: Some(Arc::new(peer)), addr: Some("192.0.2.7:4000".parse().unwrap()) }
}

fn ask(path: &str, headers: &HeaderMap, connection: &ConnectionInfo) -> Result<Caller, tonic::Code> {
    authorise(&Fixed, Door::Remote, path, headers, Some(connection)).map_err(|status| status.code())
}

fn plain(path: &str, connection: &ConnectionInfo) -> Result<Caller, tonic::Code> {
    ask(path, &HeaderMap::new(), connection)
}

const DENIED: Result<Caller, tonic::Code> = Err(tonic::Code::PermissionDenied);

#[test]
fn the_role_in_the_certificate_decides() {
    assert!(plain(CONTROL, &connection(2, "swarm-manager", 1)).is_ok());
    assert_eq!(plain(CONTROL, &connection(2, "swarm-worker", 1)), DENIED);
    assert!(plain(SESSION, &connection(2, "swarm-worker", 1)).is_ok());
    assert_eq!(plain(SESSION, &connection(2, "something", 1)), DENIED);
    assert_eq!(plain(SESSION, &ConnectionInfo::default()), DENIED);
}

#[test]
fn nodes_of_other_clusters_and_removed_nodes_are_refused() {
    assert_eq!(plain(CONTROL, &connection(2, "swarm-manager", 7)), DENIED);
    assert_eq!(plain(SESSION, &connection(666, "swarm-worker", 1)), DENIED);
}

#[test]
fn who_has_no_certificate_may_fetch_the_roots_and_is_nobody() {
    let nobody = plain(ROOTS, &ConnectionInfo::default()).unwrap();
    assert_eq!((nobody.node, nobody.role), (None, None));
    // A removed node must not renew with its old certificate: it is nobody here.
    let removed = plain("/docker.swarmkit.v1.NodeCA/IssueNodeCertificate", &connection(666, "swarm-worker", 1)).unwrap();
    assert_eq!(removed.node, None);
}

#[test]
fn the_local_socket_is_a_manager() {
    let caller = authorise(&Fixed, Door::Local, CONTROL, &HeaderMap::new(), None).unwrap();
    assert!(caller.local);
    assert_eq!(caller.node, Some(NodeId::for_test(10)));
    let unknown = authorise(&Fixed, Door::Local, "/docker.swarmkit.v1.Control2/X", &HeaderMap::new(), None);
    assert_eq!(unknown.unwrap_err().code(), tonic::Code::Unimplemented);
}

fn forwarded(node: &str, unit: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("forwarded_cert", "true".parse().unwrap());
    headers.insert("forwarded_cert_cn", node.parse().unwrap());
    let cluster = ClusterId::for_test(1);
    headers.insert("forwarded_cert_org", if node.is_empty() { "" } else { cluster.as_str() }.parse().unwrap());
    headers.insert("forwarded_cert_ou", unit.parse().unwrap());
    headers.insert("remote_addr", "198.51.100.3:999".parse().unwrap());
    headers
}

#[test]
fn only_a_manager_may_speak_for_another_node() {
    let headers = forwarded(NodeId::for_test(5).as_str(), "swarm-worker");
    let caller = ask(SESSION, &headers, &connection(2, "swarm-manager", 1)).unwrap();
    assert_eq!(caller.node, Some(NodeId::for_test(5)));
    assert_eq!(caller.addr, Some(IpAddr::from([198, 51, 100, 3])));
    // The forwarded role counts, not the forwarder's.
    assert_eq!(ask(CONTROL, &headers, &connection(2, "swarm-manager", 1)), DENIED);
    assert_eq!(ask(SESSION, &headers, &connection(2, "swarm-worker", 1)), DENIED);
    assert_eq!(ask(ROOTS, &headers, &ConnectionInfo::default()), DENIED);
}

#[test]
fn a_caller_without_certificate_stays_nobody_when_forwarded() {
    let headers = forwarded("", "");
    assert_eq!(ask(ROOTS, &headers, &connection(2, "swarm-manager", 1)).unwrap().node, None);
    assert_eq!(ask(CONTROL, &headers, &connection(2, "swarm-manager", 1)), DENIED);
    let half = forwarded("", "swarm-manager");
    assert_eq!(ask(CONTROL, &half, &connection(2, "swarm-manager", 1)), DENIED);
}

#[test]
fn a_demoted_manager_with_its_old_certificate_is_no_more_than_a_worker() {
    assert_eq!(plain(CONTROL, &connection(3, "swarm-manager", 1)), DENIED);
    assert!(plain(SESSION, &connection(3, "swarm-manager", 1)).is_ok());
    let headers = forwarded(NodeId::for_test(5).as_str(), "swarm-worker");
    assert_eq!(ask(SESSION, &headers, &connection(3, "swarm-manager", 1)), DENIED, "nor may it speak for others");
}

#[test]
fn a_manager_without_state_asks_to_be_asked_again() {
    assert_eq!(plain(SESSION, &connection(404, "swarm-worker", 1)), Err(tonic::Code::Unavailable));
}

#[test]
fn raft_calls_are_for_managers_themselves() {
    let raft = "/skep.v1.Raft/Call";
    assert!(plain(raft, &connection(2, "swarm-manager", 1)).is_ok());
    assert!(plain(raft, &connection(404, "swarm-manager", 1)).is_ok(), "they bring the state");
    assert_eq!(plain(raft, &connection(2, "swarm-worker", 1)), DENIED);
    assert_eq!(plain(raft, &connection(2, "swarm-manager", 7)), DENIED);
    assert_eq!(plain(raft, &connection(666, "swarm-manager", 1)), DENIED);
    assert_eq!(plain(raft, &ConnectionInfo::default()), DENIED);
    let headers = forwarded(NodeId::for_test(5).as_str(), "swarm-manager");
    assert_eq!(ask(raft, &headers, &connection(2, "swarm-manager", 1)), DENIED);
}

#[test]
fn the_agent_beside_its_manager_is_known_by_the_nodes_address() {
    let caller = plain(SESSION, &connection(10, "swarm-manager", 1)).unwrap();
    assert_eq!(caller.addr, Some(IpAddr::from([192, 0, 2, 1])));
    let other = plain(SESSION, &connection(11, "swarm-worker", 1)).unwrap();
    assert_eq!(other.addr, Some(IpAddr::from([192, 0, 2, 7])));
}
