//! Real handshakes over in-memory connections.

use crate::*;
use skep_types::{ClusterId, NodeId};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

fn root() -> RootCa {
    RootCa::generate(SystemTime::now()).unwrap()
}

fn identity(root: &RootCa, number: u64, role: NodeRole) -> Identity {
    let key = NodeKey::generate().unwrap();
    let subject = Subject { node: NodeId::for_test(number), role, cluster: ClusterId::for_test(9) };
    let now = SystemTime::now();
    let issued = root.issue(key.request().unwrap().as_bytes(), &subject, DEFAULT_LIFETIME, now).unwrap();
    Identity::new(key, &issued.chain_pem, root.bundle().clone(), now).unwrap()
}

fn secured(root: &RootCa, number: u64, role: NodeRole) -> SecurityConfig {
    SecurityConfig::new(identity(root, number, role)).unwrap()
}

/// What both sides saw of one connection over which a byte went each way. With TLS 1.3 a client learns of a refusal only when it
/// reads.
struct Seen {
    server: Result<TlsConnection<DuplexStream>, AcceptError>,
    client: Result<Option<PeerIdentity>, String>,
}

async fn meet(acceptor: &Acceptor, connector: &Connector) -> Seen {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let server = async {
        let mut connection = acceptor.accept(far).await?;
        let _ = connection.write_all(b"!").await;
        let _ = connection.flush().await;
        let mut byte = [0];
        let _ = connection.read_exact(&mut byte).await;
        Ok(connection)
    };
    let client = async {
        let (mut stream, peer) = connector.connect(near).await.map_err(|error| format!("{error:?}"))?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await.map_err(|error| error.to_string())?;
        stream.write_all(b"?").await.map_err(|error| error.to_string())?;
        stream.flush().await.map_err(|error| error.to_string())?;
        Ok(peer)
    };
    let (server, client) = tokio::join!(server, client);
    Seen { server, client }
}

fn remote(security: &SecurityConfig) -> Acceptor {
    Acceptor::new(security, Door::Remote)
}

#[tokio::test]
async fn a_worker_and_a_manager_recognise_each_other() {
    let root = root();
    let (manager, worker) = (secured(&root, 1, NodeRole::Manager), secured(&root, 2, NodeRole::Worker));
    let seen = meet(&remote(&manager), &Connector::node(&worker)).await;
    let connection = seen.server.unwrap();
    assert_eq!(connection.protocol(), Some(rustls::ProtocolVersion::TLSv1_3));
    let peer = connection.peer().unwrap();
    assert_eq!((&peer.node_id, peer.role()), (&NodeId::for_test(2), Some(NodeRole::Worker)));
    assert!(peer.has_role(NodeRole::Worker) && !peer.is_manager());
    assert_eq!(peer.cluster_id, ClusterId::for_test(9));
    assert_eq!(peer.units, ["swarm-worker"]);
    let server = seen.client.unwrap().unwrap();
    assert!(server.is_manager() && server.node_id == NodeId::for_test(1));
}

#[tokio::test]
async fn a_client_without_certificate_is_nobody() {
    let root = root();
    let manager = secured(&root, 1, NodeRole::Manager);
    for connector in [Connector::fetch_root().unwrap(), Connector::bootstrap(root.bundle()).unwrap()] {
        let seen = meet(&remote(&manager), &connector).await;
        assert!(seen.server.unwrap().peer().is_none());
        seen.client.unwrap();
    }
}

/// A client without certificate that asks for this server name.
fn anonymous(roots: &RootBundle, versions: &[&'static rustls::SupportedProtocolVersion]) -> tokio_rustls::TlsConnector {
    let config = rustls::ClientConfig::builder_with_provider(crate::provider::provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots.store())
        .with_no_client_auth();
    tokio_rustls::TlsConnector::from(std::sync::Arc::new(config))
}

#[tokio::test]
async fn who_asks_for_a_manager_must_show_a_certificate() {
    let root = root();
    let manager = secured(&root, 1, NodeRole::Manager);
    let acceptor = remote(&manager);
    for versions in [&[&rustls::version::TLS13][..], &[&rustls::version::TLS12]] {
        for (name, let_in) in [("swarm-manager", false), ("SWARM-Manager", false), ("swarm-ca", true)] {
            let connector = anonymous(root.bundle(), versions);
            let (near, far) = tokio::io::duplex(64 * 1024);
            let (server, client) = tokio::join!(acceptor.accept(far), async {
                let mut stream = connector.connect(rustls::pki_types::ServerName::try_from(name).unwrap(), near).await?;
                // Under TLS 1.3 the alert comes after the client's handshake. Nothing comes to who was let in.
                if let_in {
                    return Ok(0);
                }
                tokio::time::timeout(Duration::from_secs(60), stream.read_u8()).await.unwrap_or(Ok(0))
            });
            assert_eq!((server.is_ok(), client.is_ok()), (let_in, let_in), "{name} {versions:?}");
            if let Err(refusal) = server {
                assert!(refusal.to_string().contains("no certificates"), "{refusal}");
                let seen = client.unwrap_err().to_string();
                assert!(seen.contains("CertificateRequired") || seen.contains("HandshakeFailure"), "{seen}");
            }
        }
    }
}

#[tokio::test]
async fn a_session_without_certificate_is_never_resumed() {
    let root = root();
    let manager = secured(&root, 1, NodeRole::Manager);
    let joining = Connector::bootstrap(root.bundle()).unwrap();
    for _ in 0..3 {
        assert!(!meet(&remote(&manager), &joining).await.server.unwrap().is_resumed());
    }
}

#[tokio::test]
async fn a_certificate_is_known_under_the_name_of_the_ca_too() {
    // Genuine nodes ask for the unlock key so (spec wire-behaviour 4.2, step 5).
    let root = root();
    let (manager, other) = (secured(&root, 1, NodeRole::Manager), secured(&root, 2, NodeRole::Manager));
    let connector = with_server_roots(&other, root.bundle());
    let (near, far) = tokio::io::duplex(64 * 1024);
    let acceptor = remote(&manager);
    let name = rustls::pki_types::ServerName::try_from(ROOT_NAME).unwrap();
    let (server, client) = tokio::join!(acceptor.accept(far), connector.connect(name, near));
    client.unwrap();
    assert_eq!(server.unwrap().peer().unwrap().node_id, NodeId::for_test(2));
}

#[tokio::test]
async fn certificates_of_another_cluster_are_refused_on_both_sides() {
    let (ours, theirs) = (root(), root());
    let manager = secured(&ours, 1, NodeRole::Manager);
    // A client whose roots are ours but whose certificate is theirs: only the server can refuse.
    let foreign = secured(&theirs, 2, NodeRole::Manager);
    let seen = meet(&remote(&manager), &Connector::node(&foreign)).await;
    assert!(seen.server.is_err() && seen.client.is_err());

    let mixed = with_server_roots(&foreign, ours.bundle());
    let (near, far) = tokio::io::duplex(64 * 1024);
    let acceptor = remote(&manager);
    let name = rustls::pki_types::ServerName::try_from(MANAGER_NAME).unwrap();
    let (server, _client) = tokio::join!(acceptor.accept(far), async {
        let mut stream = mixed.connect(name, near).await?;
        stream.read_u8().await
    });
    let refusal = server.unwrap_err();
    assert!(refusal.to_string().contains("UnknownIssuer") || refusal.to_string().contains("BadSignature"), "{refusal}");
}

/// The certificate of one node, the trust of another cluster.
fn with_server_roots(node: &SecurityConfig, roots: &RootBundle) -> tokio_rustls::TlsConnector {
    let identity = node.identity().unwrap();
    let config = rustls::ClientConfig::builder_with_provider(crate::provider::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots.store())
        .with_client_auth_cert(identity.chain().to_vec(), identity.key().for_rustls())
        .unwrap();
    tokio_rustls::TlsConnector::from(std::sync::Arc::new(config))
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let root = root();
    let manager = secured(&root, 1, NodeRole::Manager);
    let key = NodeKey::generate().unwrap();
    let subject = Subject { node: NodeId::for_test(2), role: NodeRole::Worker, cluster: ClusterId::for_test(9) };
    let then = SystemTime::now() - Duration::from_secs(3 * 3600);
    let issued = root.issue(key.request().unwrap().as_bytes(), &subject, MIN_LIFETIME, then).unwrap();
    let old = Identity::new(key, &issued.chain_pem, root.bundle().clone(), then).unwrap();
    let seen = meet(&remote(&manager), &Connector::node(&SecurityConfig::new(old).unwrap())).await;
    let refusal = seen.server.unwrap_err().to_string();
    assert!(refusal.contains("xpired"), "{refusal}");
    assert!(seen.client.unwrap_err().contains("xpired"));
}

#[tokio::test]
async fn a_certificate_of_tomorrow_is_refused() {
    let root = root();
    let manager = secured(&root, 1, NodeRole::Manager);
    let key = NodeKey::generate().unwrap();
    let subject = Subject { node: NodeId::for_test(2), role: NodeRole::Worker, cluster: ClusterId::for_test(9) };
    let then = SystemTime::now() + Duration::from_secs(24 * 3600);
    let issued = root.issue(key.request().unwrap().as_bytes(), &subject, MIN_LIFETIME, then).unwrap();
    let early = Identity::new(key, &issued.chain_pem, root.bundle().clone(), then).unwrap();
    let seen = meet(&remote(&manager), &Connector::node(&SecurityConfig::new(early).unwrap())).await;
    let refusal = seen.server.unwrap_err().to_string();
    assert!(refusal.contains("not valid yet"), "{refusal}");
    seen.client.unwrap_err();
}

#[test]
fn nothing_is_taken_before_the_handshake_is_over() {
    let root = root();
    let manager = secured(&root, 1, NodeRole::Manager);
    // Early data could be sent again by whoever saw it.
    let servers = || manager.remote_servers().unwrap();
    for server in [servers().for_name(Some("swarm-manager")), servers().for_name(None), manager.local_server()] {
        assert_eq!(server.max_early_data_size, 0);
    }
    assert!(!manager.client().unwrap().enable_early_data);
}

#[tokio::test]
async fn a_swap_is_seen_by_the_next_handshake() {
    let (old, new) = (root(), root());
    let manager = secured(&old, 1, NodeRole::Manager);
    let acceptor = remote(&manager);
    let (before, after) = (Connector::bootstrap(old.bundle()).unwrap(), Connector::bootstrap(new.bundle()).unwrap());
    let changes = manager.changes();
    assert!(meet(&acceptor, &before).await.client.is_ok());
    assert!(meet(&acceptor, &after).await.client.is_err());
    manager.install(identity(&new, 1, NodeRole::Manager)).unwrap();
    assert!(changes.has_changed().unwrap());
    assert!(meet(&acceptor, &before).await.client.is_err());
    assert!(meet(&acceptor, &after).await.client.is_ok());
    // The trust in clients changed with it.
    let of_old = with_server_roots(&secured(&old, 2, NodeRole::Worker), new.bundle());
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = rustls::pki_types::ServerName::try_from(MANAGER_NAME).unwrap();
    let (server, _client) = tokio::join!(acceptor.accept(far), async {
        let mut stream = of_old.connect(name, near).await?;
        stream.read_u8().await
    });
    assert!(server.is_err());
}

#[tokio::test]
async fn a_rotation_of_the_root_locks_nobody_out() {
    let (old, new) = (root(), root());
    let cross = old.cross_sign(new.bundle()).unwrap();
    let rotating = RootCa::during_rotation(old.bundle(), new.bundle().pem(), &new.key_pem(), &cross).unwrap();
    let renewed = secured(&rotating, 1, NodeRole::Manager);
    for roots in [old.bundle(), new.bundle()] {
        let seen = meet(&remote(&renewed), &Connector::bootstrap(roots).unwrap()).await;
        seen.client.unwrap();
    }
    // A worker that renewed meets a manager that has not, and the reverse.
    let (old_manager, new_worker) = (secured(&old, 3, NodeRole::Manager), secured(&rotating, 4, NodeRole::Worker));
    let old_worker = secured(&old, 5, NodeRole::Worker);
    for (manager, worker) in [(&old_manager, &new_worker), (&renewed, &old_worker), (&renewed, &new_worker)] {
        let seen = meet(&remote(manager), &Connector::node(worker)).await;
        assert!(seen.server.unwrap().peer().is_some());
        seen.client.unwrap();
    }
    // The end: everybody renewed, the new roots arrive.
    for node in [&renewed, &new_worker] {
        assert!(node.install_roots(new.bundle().clone(), SystemTime::now()).unwrap());
        assert!(!node.install_roots(new.bundle().clone(), SystemTime::now()).unwrap());
    }
    assert!(old_worker.install_roots(new.bundle().clone(), SystemTime::now()).is_err());
    let seen = meet(&remote(&renewed), &Connector::node(&new_worker)).await;
    assert!(seen.server.unwrap().peer().is_some());
    let seen = meet(&remote(&renewed), &Connector::node(&old_worker)).await;
    assert!(seen.server.is_err() || seen.client.is_err());
}

#[tokio::test]
async fn a_new_leaf_without_its_cross_certificate_is_refused_where_only_the_old_root_is_known() {
    let (old, new) = (root(), root());
    let bare = secured(&new, 1, NodeRole::Manager);
    let seen = meet(&remote(&bare), &Connector::bootstrap(old.bundle()).unwrap()).await;
    assert!(seen.client.is_err());
}

#[tokio::test]
async fn sessions_are_resumed_with_their_identity_until_the_roots_change() {
    let (first, second) = (root(), root());
    let (manager, worker) = (secured(&first, 1, NodeRole::Manager), secured(&first, 2, NodeRole::Worker));
    let (acceptor, connector) = (remote(&manager), Connector::node(&worker));
    assert!(!meet(&acceptor, &connector).await.server.unwrap().is_resumed());
    let again = meet(&acceptor, &connector).await.server.unwrap();
    assert!(again.is_resumed());
    assert_eq!(again.peer().unwrap().node_id, NodeId::for_test(2));
    // A renewed leaf under the same root keeps them.
    manager.install(identity(&first, 1, NodeRole::Manager)).unwrap();
    assert!(meet(&acceptor, &connector).await.server.unwrap().is_resumed());
    // Other roots do not: the old certificate is verified anew, and refused.
    manager.install(identity(&second, 1, NodeRole::Manager)).unwrap();
    assert!(meet(&acceptor, &connector).await.server.is_err());
}

#[tokio::test]
async fn the_local_door_works_before_there_is_an_identity_and_after() {
    let security = SecurityConfig::without_identity().unwrap();
    let (local, connector) = (Acceptor::new(&security, Door::Local), Connector::local().unwrap());
    let seen = meet(&local, &connector).await;
    assert!(seen.server.unwrap().peer().is_none());
    seen.client.unwrap();
    assert!(matches!(meet(&remote(&security), &connector).await.server, Err(AcceptError::Security(_))));

    security.install(identity(&root(), 1, NodeRole::Manager)).unwrap();
    meet(&local, &connector).await.client.unwrap();
    meet(&remote(&security), &connector).await.client.unwrap();
    security.clear().unwrap();
    meet(&local, &connector).await.client.unwrap();
    assert!(security.identity().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_dropped() {
    let security = secured(&root(), 1, NodeRole::Manager);
    for door in [Door::Remote, Door::Local] {
        let (_near, far) = tokio::io::duplex(1024);
        let refusal = Acceptor::new(&security, door).accept(far).await.unwrap_err();
        assert!(matches!(refusal, AcceptError::TimedOut), "{refusal}");
    }
}

#[tokio::test]
async fn what_is_not_tls_is_refused() {
    let security = secured(&root(), 1, NodeRole::Manager);
    for door in [Door::Remote, Door::Local] {
        let (mut near, far) = tokio::io::duplex(1024);
        near.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        drop(near);
        assert!(matches!(Acceptor::new(&security, door).accept(far).await, Err(AcceptError::Handshake(_))));
    }
}

/// A certificate that is no node's, as a client shows it.
fn guest(root: &RootCa, guest: &Guest, lifetime: Duration, now: SystemTime) -> (NodeKey, String) {
    let key = NodeKey::generate().unwrap();
    let request = key.request().unwrap();
    let issued = root.issue_guest(request.as_bytes(), guest, &ClusterId::for_test(9), lifetime, now).unwrap();
    (key, issued.chain_pem)
}

/// What the server makes of a client with this certificate, which asks for a name.
async fn shown(
    acceptor: &Acceptor,
    root: &RootCa,
    (key, chain): &(NodeKey, String),
    name: &str,
) -> Result<TlsConnection<DuplexStream>, AcceptError> {
    use rustls_pki_types::pem::PemObject as _;
    let chain = rustls::pki_types::CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
    let config = rustls::ClientConfig::builder_with_provider(crate::provider::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(root.bundle().store())
        .with_client_auth_cert(chain, key.for_rustls())
        .unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let (server, _client) = tokio::join!(acceptor.accept(far), connector.connect(name, near));
    server
}

fn with_docker(root: &RootCa, names: &[&str]) -> SecurityConfig {
    let security = secured(root, 1, NodeRole::Manager);
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let (key, chain) = guest(root, &Guest::server(&names).unwrap(), DEFAULT_LIFETIME, SystemTime::now());
    security.install_docker_server(&key, &chain, SystemTime::now()).unwrap();
    security
}

#[tokio::test]
async fn a_client_of_the_docker_api_enters_by_its_door_and_by_no_other() {
    let root = root();
    let security = with_docker(&root, &["box.example", "192.0.2.7"]);
    let client = guest(&root, &Guest::client("ann").unwrap(), CLIENT_LIFETIME, SystemTime::now());
    let docker = Acceptor::new(&security, Door::Docker);
    for name in ["box.example", "192.0.2.7"] {
        let connection = shown(&docker, &root, &client, name).await.unwrap();
        assert_eq!((connection.guest().unwrap().name.as_str(), connection.peer().is_none()), ("ann", true));
        assert_eq!(connection.protocol(), Some(rustls::ProtocolVersion::TLSv1_3));
    }
    // The client finds out that the host is another one.
    assert!(shown(&docker, &root, &client, "other.example").await.is_err());
    let refused = shown(&remote(&security), &root, &client, MANAGER_NAME).await.unwrap_err();
    assert!(matches!(&refused, AcceptError::Subject(BadSubject::Guest(unit)) if unit == CLIENT_UNIT), "{refused}");
    // A node is known by its certificate, to be judged by others.
    let worker = identity(&root, 2, NodeRole::Worker);
    let worker = (worker.key().clone(), worker.chain_pem());
    assert!(shown(&docker, &root, &worker, "box.example").await.unwrap().peer().unwrap().has_role(NodeRole::Worker));
}

#[tokio::test]
async fn strangers_do_not_enter_by_the_door_of_the_docker_api() {
    let (other, root) = (root(), root());
    let security = with_docker(&root, &["box.example"]);
    let docker = Acceptor::new(&security, Door::Docker);
    let handshake = |outcome: Result<TlsConnection<DuplexStream>, AcceptError>| matches!(outcome, Err(AcceptError::Handshake(_)));
    let now = SystemTime::now();
    let name = Guest::client("ann").unwrap();
    assert!(handshake(shown(&docker, &root, &guest(&other, &name, CLIENT_LIFETIME, now), "box.example").await), "another cluster");
    let old = guest(&root, &name, Duration::from_secs(3600), now - Duration::from_secs(8000));
    assert!(handshake(shown(&docker, &root, &old, "box.example").await), "expired");
    let server = guest(&root, &Guest::server(&["box.example".into()]).unwrap(), DEFAULT_LIFETIME, now);
    assert!(handshake(shown(&docker, &root, &server, "box.example").await), "a server's");
    let seen = meet(&docker, &Connector::bootstrap(root.bundle()).unwrap()).await;
    assert!(handshake(seen.server), "no certificate");
}

#[tokio::test]
async fn the_docker_api_has_no_certificate_before_it_gets_one_and_after_the_roots_change() {
    let (old, new) = (root(), root());
    let security = secured(&old, 1, NodeRole::Manager);
    let client = guest(&old, &Guest::client("ann").unwrap(), CLIENT_LIFETIME, SystemTime::now());
    let docker = Acceptor::new(&security, Door::Docker);
    assert!(matches!(shown(&docker, &old, &client, "x").await, Err(AcceptError::Security(SecurityError::NoDockerServer))));
    let install = |root: &RootCa| {
        let (key, chain) = guest(root, &Guest::server(&["x".into()]).unwrap(), DEFAULT_LIFETIME, SystemTime::now());
        security.install_docker_server(&key, &chain, SystemTime::now())
    };
    assert!(install(&new).is_err(), "of other roots");
    install(&old).unwrap();
    let standing = shown(&docker, &old, &client, "x").await.unwrap();
    let mut era = standing.era().unwrap();
    // A renewal under the same roots leaves it, other roots do not.
    security.install(identity(&old, 1, NodeRole::Manager)).unwrap();
    install(&old).unwrap();
    assert!(security.has_docker_server() && tokio::time::timeout(Duration::from_millis(5), era.over()).await.is_err());
    security.install(identity(&new, 1, NodeRole::Manager)).unwrap();
    assert!(!security.has_docker_server());
    era.over().await;
    install(&new).unwrap();
    assert!(matches!(shown(&docker, &new, &client, "x").await, Err(AcceptError::Handshake(_))), "a client of the old root");
    security.install(identity(&new, 1, NodeRole::Worker)).unwrap();
    assert!(!security.has_docker_server(), "a worker has none");
}
