//! The Docker API on TCP: mutual TLS 1.3 with certificates of the cluster, on managers only.
//!
//! The server's certificate is made by this node's manager, under the names that clients use; its key never leaves this process. While
//! there is none, because the node is no manager or the manager cannot sign, connections are closed in the handshake. When the roots
//! change, or the node ceases to be a manager, connections that stand are cut.

use super::manager::Manager;
use crate::agent::chain;
use crate::config::Config;
use crate::router::Routes;
use crate::status::Board;
use anyhow::{Context, Result};
use arc_swap::{ArcSwap, ArcSwapOption};
use async_trait::async_trait;
use skep_ca::{Era, GuestIdentity, NodeKey, NodeRole, PeerIdentity, SecurityConfig, TlsConnection, TlsIncoming, renewal_moment};
use skep_docker_api::{ApiError, Gate, Incoming};
use skep_proto::skep::{CheckManagerRequest, IssueServerRequest, IssuedCertificate};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The pause between tries to get a certificate grows from the first to the second of these.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The wall clock is looked at this often: it may jump, and timers stand still while a machine sleeps.
const LOOK: Duration = Duration::from_secs(600);

/// What all listeners and connections share.
#[derive(Clone)]
pub struct Outside(Arc<Shared>);

struct Shared {
    security: SecurityConfig,
    manager: Manager,
    board: Board,
    /// Besides those that are found out.
    configured: Vec<String>,
    listen: Option<SocketAddr>,
    /// What the certificate of this moment says.
    names: ArcSwap<Vec<String>>,
    /// Why it cannot be made, in words.
    problem: ArcSwapOption<String>,
}

impl Outside {
    pub fn new(config: &Config, security: &SecurityConfig, routes: &Routes, board: &Board) -> Self {
        Self(Arc::new(Shared {
            security: security.clone(),
            manager: Manager::new(routes),
            board: board.clone(),
            configured: config.docker_tls_names.clone(),
            listen: config.docker_tls_listen,
            names: ArcSwap::default(),
            problem: ArcSwapOption::empty(),
        }))
    }

    /// What is wrong with the certificate, if anything is; for people, with the cure.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.0.problem.load().as_ref().map(|words| words.to_string())
    }

    /// The connections of a listener, each behind its gate.
    pub fn listen(&self, listener: TcpListener) -> impl Incoming + 'static {
        Door { incoming: skep_ca::serve_docker(listener, &self.0.security), outside: self.clone() }
    }

    /// Keeps the certificate right until `stop`.
    pub async fn keep(self, stop: CancellationToken) {
        let keeper = Keeper { outside: self, held: None, pause: FIRST_PAUSE };
        tokio::select! {
            () = stop.cancelled() => {}
            () = keeper.run() => {}
        }
    }
}

/// Opens the TCP port.
///
/// # Errors
/// If it is taken, or not an address of this machine.
pub fn bind(address: SocketAddr) -> Result<TcpListener> {
    let open = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    open().with_context(|| format!("docker_tls_listen: cannot listen on {address}"))
}

struct Door {
    incoming: TlsIncoming<TcpStream>,
    outside: Outside,
}

impl Incoming for Door {
    type Io = TlsConnection<TcpStream>;

    async fn next(&mut self) -> io::Result<(Self::Io, Option<Arc<dyn Gate>>)> {
        let connection = self.incoming.next().await.ok_or_else(|| io::Error::other("the listener ended"))?;
        let who = match (connection.guest(), connection.peer()) {
            (Some(guest), _) => Who::Client(guest.clone()),
            (None, Some(peer)) => Who::Node(peer.clone()),
            (None, None) => Who::Nobody,
        };
        let gate: Arc<dyn Gate> = Arc::new(Visitor { who, outside: self.outside.clone(), era: connection.era() });
        Ok((connection, Some(gate)))
    }
}

/// Who is at the other end, by a verified certificate.
enum Who {
    Client(Arc<GuestIdentity>),
    Node(Arc<PeerIdentity>),
    Nobody,
}

struct Visitor {
    who: Who,
    outside: Outside,
    era: Option<Era>,
}

#[async_trait]
impl Gate for Visitor {
    async fn admit(&self) -> Result<(), ApiError> {
        let shared = &self.outside.0;
        let identity = shared.security.identity();
        let own = identity.as_ref().map(|identity| identity.cluster_id());
        let node = admits(&self.who, own, SystemTime::now())?;
        let Some(node) = node else { return Ok(()) };
        let asked = CheckManagerRequest { node_id: node.node_id.to_string() };
        let answer = super::manager::answer(shared.manager.certificates().check_manager(asked)).await?;
        match answer.is_manager {
            true => Ok(()),
            false => Err(ApiError::forbidden(format!(
                "node {} is no manager of this cluster any more, though its certificate says so",
                node.node_id
            ))),
        }
    }

    fn names(&self) -> Vec<String> {
        self.outside.0.names.load().to_vec()
    }

    async fn cut(&self) {
        if let Some(mut era) = self.era.clone() {
            era.over().await;
        }
    }
}

/// Whether a certificate lets its owner in at this time; of a node, the store has to agree.
fn admits<'a>(who: &'a Who, own: Option<&skep_types::ClusterId>, now: SystemTime) -> Result<Option<&'a PeerIdentity>, ApiError> {
    let (cluster, not_after) = match who {
        Who::Client(client) => (&client.cluster_id, client.not_after),
        Who::Node(node) => (&node.cluster_id, node.not_after),
        Who::Nobody => return Err(ApiError::forbidden("the Docker API on TCP needs a client certificate")),
    };
    if now > not_after {
        let cure = "make another with `swarmctl cluster client-cert`";
        return Err(ApiError::forbidden(format!("the client's certificate expired; {cure}")));
    }
    if own != Some(cluster) {
        return Err(ApiError::forbidden("the client's certificate belongs to another cluster than this node"));
    }
    match who {
        Who::Node(node) if !node.is_manager() => Err(ApiError::forbidden(format!(
            "the certificate of node {} is a worker's; the Docker API is for managers and for clients with a certificate from `swarmctl \
             cluster client-cert`",
            node.node_id
        ))),
        Who::Node(node) => Ok(Some(node)),
        Who::Client(_) | Who::Nobody => Ok(None),
    }
}

/// The certificate in use.
struct Held {
    names: Vec<String>,
    renew_at: SystemTime,
}

/// `holds`: one that was made before is in use.
fn trouble(why: &str, holds: bool) -> String {
    match holds {
        true => format!("the Docker API on TCP goes on with its certificate, for a new one cannot be made: {why}"),
        false => format!("the Docker API on TCP has no certificate, so nobody can connect to it: {why}"),
    }
}

struct Keeper {
    outside: Outside,
    held: Option<Held>,
    pause: Duration,
}

impl Keeper {
    async fn run(mut self) {
        let shared = self.outside.0.clone();
        let (mut identity, mut shown) = (shared.security.changes(), shared.board.changes());
        loop {
            identity.borrow_and_update();
            shown.borrow_and_update();
            let wait = self.once().await;
            tokio::select! {
                () = changed(&mut identity) => {}
                () = changed(&mut shown) => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Does what is due, and says when to look again at the latest.
    async fn once(&mut self) -> Duration {
        let shared = self.outside.0.clone();
        if !shared.security.has_docker_server() {
            self.held = None;
        }
        let is_manager = shared.security.identity().is_some_and(|identity| identity.role() == NodeRole::Manager);
        if !is_manager {
            shared.problem.store(None);
        }
        if !is_manager || shared.board.is_starting() {
            return LOOK;
        }
        let names = self.names();
        let now = SystemTime::now();
        if let Some(held) = &self.held
            && held.names == names
            && now < held.renew_at
        {
            return held.renew_at.duration_since(now).unwrap_or_default().min(LOOK);
        }
        match self.outside.renew(&names).await {
            Ok(renew_at) => {
                tracing::info!(names = names.join(" "), "the Docker API on TCP has a certificate");
                self.held = Some(Held { names, renew_at });
                self.pause = FIRST_PAUSE;
                shared.problem.store(None);
                Duration::ZERO
            }
            Err(error) => {
                let problem = trouble(&format!("{error:#}"), self.held.is_some());
                if shared.problem.load().as_deref() != Some(&problem) {
                    tracing::error!("{problem}; trying again");
                    shared.problem.store(Some(Arc::new(problem)));
                }
                let pause = self.pause;
                self.pause = (pause * 2).min(LONGEST_PAUSE);
                pause
            }
        }
    }

    fn names(&self) -> Vec<String> {
        let shared = &self.outside.0;
        let advertised = shared.board.shown().map(|shown| shown.node.advertise_addr.ip());
        let hostname = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        names_of(shared.listen.map(|listen| listen.ip()), advertised, hostname, &shared.configured)
    }
}

async fn changed<T>(changes: &mut watch::Receiver<T>) {
    if changes.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What this host is called: by its loopback addresses, the address that it listens on or is known by to other nodes, its host name,
/// and as configured. A host name that cannot be one in DNS is left out.
fn names_of(listen: Option<IpAddr>, advertised: Option<IpAddr>, hostname: Option<String>, configured: &[String]) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), Ipv4Addr::LOCALHOST.to_string(), Ipv6Addr::LOCALHOST.to_string()];
    let addresses = listen.into_iter().chain(advertised).filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string());
    let hostname = hostname.filter(|name| skep_ca::check_server_name(name).is_ok()).map(|name| name.to_lowercase());
    for name in addresses.chain(hostname).chain(configured.iter().cloned()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

impl Outside {
    /// Gets a certificate under these names, and says when it should be renewed.
    async fn renew(&self, names: &[String]) -> Result<SystemTime> {
        let shared = &self.0;
        let key = NodeKey::generate()?;
        let csr = key.request()?.into_bytes();
        let asked = IssueServerRequest { csr, names: names.to_vec() };
        let issued = shared.manager.certificates().issue_server(asked).await;
        let issued = issued.map_err(|status| anyhow::anyhow!("{}", status.message()))?.into_inner();
        let IssuedCertificate { chain: pem, not_before, not_after, .. } = issued;
        let date = |stamp: Option<prost_types::Timestamp>| stamp.and_then(|stamp| SystemTime::try_from(stamp).ok());
        let (not_before, not_after) = date(not_before).zip(date(not_after)).context("the manager's certificate has no dates")?;
        let pem = String::from_utf8(pem).context("the manager's certificate is not text")?;
        // Before the certificate: who comes by a name of it is let in.
        shared.names.store(Arc::new(names.to_vec()));
        let installed = shared.security.install_docker_server(&key, &pem, SystemTime::now());
        installed.map_err(|error| anyhow::anyhow!("{}", chain(&error)))?;
        Ok(renewal_moment(not_before, not_after, rand::random()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_ca::{Guest, Issued, RootCa, Subject};
    use skep_types::{ClusterId, NodeId};

    #[test]
    fn nobody_is_said_to_be_shut_out_while_a_certificate_is_in_use() {
        assert!(trouble("full", false).ends_with("nobody can connect to it: full"));
        let held = trouble("full", true);
        assert!(held.contains("goes on with its certificate") && held.ends_with("full") && !held.contains("nobody"), "{held}");
    }

    fn node(role: NodeRole, cluster: u64) -> Who {
        let now = SystemTime::now();
        let (root, key) = (RootCa::generate(now).unwrap(), NodeKey::generate().unwrap());
        let subject = Subject { node: NodeId::for_test(1), role, cluster: ClusterId::for_test(cluster) };
        let issued: Issued = root.issue(key.request().unwrap().as_bytes(), &subject, Duration::from_secs(7200), now).unwrap();
        let identity = skep_ca::Identity::new(key, &issued.chain_pem, root.bundle().clone(), now).unwrap();
        Who::Node(Arc::new(PeerIdentity::of_chain(identity.chain()).unwrap()))
    }

    fn client(cluster: u64) -> Who {
        let not_after = SystemTime::now() + Duration::from_secs(60);
        Who::Client(Arc::new(GuestIdentity { name: "ann".into(), cluster_id: ClusterId::for_test(cluster), not_after }))
    }

    #[test]
    fn managers_and_clients_of_this_cluster_are_let_in_while_their_certificates_last() {
        let (own, now) = (ClusterId::for_test(3), SystemTime::now());
        assert!(admits(&client(3), Some(&own), now).unwrap().is_none());
        assert!(admits(&node(NodeRole::Manager, 3), Some(&own), now).unwrap().is_some());
        let refused = |who: &Who, at| admits(who, Some(&own), at).unwrap_err().message;
        assert!(refused(&node(NodeRole::Worker, 3), now).contains("is a worker's"));
        assert!(refused(&client(4), now).contains("another cluster"));
        assert!(refused(&node(NodeRole::Manager, 4), now).contains("another cluster"));
        assert!(refused(&Who::Nobody, now).contains("needs a client certificate"));
        assert!(refused(&client(3), now + Duration::from_secs(120)).contains("expired"));
        assert!(admits(&client(3), None, now).is_err());
    }

    #[test]
    fn a_host_is_called_what_can_be_a_name() {
        let any = IpAddr::from([0, 0, 0, 0]);
        let advertised = IpAddr::from([192, 0, 2, 7]);
        let names = names_of(Some(any), Some(advertised), Some("Box".into()), &["box.example".into(), "192.0.2.7".into()]);
        assert_eq!(names, ["localhost", "127.0.0.1", "::1", "192.0.2.7", "box", "box.example"]);
        assert_eq!(names_of(None, None, Some("no_name".into()), &[]).len(), 3);
        // Every one of them can be in a certificate.
        Guest::server(&names).unwrap();
    }
}
