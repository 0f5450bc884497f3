//! Managers of one cluster, each with its own directory, port and identity.

use hyper_util::rt::TokioIo;
use skep_ca::{Connector, DEFAULT_LIFETIME, Identity, NodeKey, RootCa, SecurityConfig, Subject};
use skep_manager::{Manager, ManagerConfig, ManagerHandle, NewCluster, PeerTransport, initial_objects, join_managers, serve};
use skep_proto::v1::{self, control_client::ControlClient, dispatcher_client::DispatcherClient, node_ca_client::NodeCaClient};
use skep_store::{Member, Store, StoreConfig, StoreStatus, system_clock};
use skep_types::{Availability, ClusterId, ClusterView as _, NetworkId, NodeId, NodeRole};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

/// Longest wait for anything; far above what is needed on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The managers of a cluster.
pub struct Lab {
    pub root: RootCa,
    pub cluster_id: ClusterId,
    pub hosts: Vec<Host>,
    dir: TempDir,
}

/// One manager.
pub struct Host {
    pub security: SecurityConfig,
    pub node_id: NodeId,
    pub raft_id: u64,
    pub addr: SocketAddr,
    dir: PathBuf,
    running: Option<Running>,
}

struct Running {
    store: Store,
    manager: ManagerHandle,
    servers: JoinSet<()>,
    stop: CancellationToken,
}

impl Lab {
    /// One manager that leads itself.
    pub async fn start() -> Self {
        skep_ca::install_crypto_provider();
        // RUST_LOG=debug shows what the managers think.
        let _ = tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).with_test_writer().try_init();
        let dir = tempfile::tempdir().unwrap();
        let (cluster_id, node_id) = (ClusterId::from_random(rand::random()), NodeId::from_random(rand::random()));
        let root = RootCa::generate(SystemTime::now()).unwrap();
        let identity = Identity::of_first_manager(&root, node_id.clone(), cluster_id.clone(), DEFAULT_LIFETIME, SystemTime::now()).unwrap();
        let certificate = identity.chain_pem().into_bytes();
        let security = SecurityConfig::new(identity).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut host = Host { security, node_id: node_id.clone(), raft_id: 1, addr, dir: dir.path().join("0"), running: None };
        let member = Member { node_id: node_id.to_string(), addr: addr.to_string() };
        let transport = PeerTransport::new(&host.security);
        let store = Store::bootstrap(StoreConfig::new(host.dir.join("raft")), 1, member, transport.clone()).await.unwrap();
        let objects = initial_objects(NewCluster {
            cluster_id: cluster_id.clone(),
            root: &root,
            worker_secret: rand::random(),
            manager_secret: rand::random(),
            node_id,
            node_certificate: certificate,
            availability: Availability::Active,
            description: None,
            network_ids: std::array::from_fn(|_| NetworkId::from_random(rand::random())),
            default_address_pool: Vec::new(),
            subnet_size: 0,
            vxlan_port: 0,
            node_cert_expiry: None,
            unlock_key: None,
        });
        store.propose(objects).await.unwrap();
        host.run(store, transport, listener);
        Self { root, cluster_id, hosts: vec![host], dir }
    }

    /// A cluster of so many managers, all with a vote.
    pub async fn of(managers: usize) -> Self {
        let mut lab = Self::start().await;
        for _ in 1..managers {
            lab.add().await;
        }
        lab
    }

    /// One more manager, which joins by token as skepd would. Returns its place in `hosts`.
    pub async fn add(&mut self) -> usize {
        let security = self.certify(NodeRole::Manager).await;
        self.admit(security, rand::random::<u64>() | 1).await
    }

    /// Starts a manager for a node that has its certificate, and brings it into the group.
    pub async fn admit(&mut self, security: SecurityConfig, raft_id: u64) -> usize {
        let host = self.prepare(security, raft_id).await;
        join_managers(&host.security, &self.addrs(), raft_id, host.addr).await.unwrap();
        self.hosts.push(host);
        self.hosts.len() - 1
    }

    /// A manager that serves and is no member yet.
    pub async fn prepare(&self, security: SecurityConfig, raft_id: u64) -> Host {
        let node_id = security.identity().unwrap().node_id().clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut host = Host { security, node_id, raft_id, addr, dir: self.dir.path().join(raft_id.to_string()), running: None };
        let transport = PeerTransport::new(&host.security);
        let store = Store::join(StoreConfig::new(host.dir.join("raft")), raft_id, transport.clone()).await.unwrap();
        host.run(store, transport, listener);
        host
    }

    /// Of the managers that run.
    pub fn addrs(&self) -> Vec<String> {
        self.hosts.iter().filter(|host| host.running.is_some()).map(|host| host.addr.to_string()).collect()
    }

    pub fn token(&self, role: NodeRole) -> String {
        let host = self.hosts.iter().find(|host| host.running.is_some()).unwrap();
        let tokens = host.store().view().cluster().unwrap().root_ca.join_tokens.clone();
        if role == NodeRole::Manager { tokens.manager.0 } else { tokens.worker.0 }
    }

    /// A certificate for a new node, asked of the last manager: followers pass such calls on as well.
    pub async fn certify(&self, role: NodeRole) -> SecurityConfig {
        let host = self.hosts.iter().rfind(|host| host.running.is_some()).unwrap();
        let channel = dial(host.addr, Connector::bootstrap(self.root.bundle()).unwrap()).await.unwrap();
        let security = self.issue(NodeCaClient::new(channel), &self.token(role)).await;
        assert_eq!(security.identity().unwrap().role(), role);
        security
    }

    /// A new certificate for a node that has one.
    pub async fn renew_at(&self, index: usize, security: &SecurityConfig) -> SecurityConfig {
        let channel = self.hosts[index].channel(security).await;
        self.issue(NodeCaClient::new(channel), "").await
    }

    async fn issue(&self, mut ca: NodeCaClient<Channel>, token: &str) -> SecurityConfig {
        let key = NodeKey::generate().unwrap();
        let csr = key.request().unwrap().into_bytes();
        let request = v1::IssueNodeCertificateRequest { csr: csr.clone(), token: token.into(), ..Default::default() };
        let issued = ca.issue_node_certificate(request).await.unwrap().into_inner();
        let chain = loop {
            let request = v1::NodeCertificateStatusRequest { node_id: issued.node_id.clone() };
            let certificate = ca.node_certificate_status(request).await.unwrap().into_inner().certificate.unwrap();
            if certificate.csr == csr && !certificate.certificate.is_empty() {
                break String::from_utf8(certificate.certificate).unwrap();
            }
        };
        SecurityConfig::new(Identity::new(key, &chain, self.root.bundle().clone(), SystemTime::now()).unwrap()).unwrap()
    }

    /// A certificate made by this cluster's root without asking anybody.
    pub fn forge(&self, node: NodeId, role: NodeRole) -> SecurityConfig {
        let key = NodeKey::generate().unwrap();
        let subject = Subject { node, role, cluster: self.cluster_id.clone() };
        let issued = self.root.issue(key.request().unwrap().as_bytes(), &subject, DEFAULT_LIFETIME, SystemTime::now()).unwrap();
        SecurityConfig::new(Identity::new(key, &issued.chain_pem, self.root.bundle().clone(), SystemTime::now()).unwrap()).unwrap()
    }

    /// The manager that leads and is followed by all that run.
    pub async fn leader(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let running = || self.hosts.iter().filter(|host| host.running.is_some());
            let leads = self.hosts.iter().position(|host| host.running.is_some() && host.leads());
            if let Some(leader) = leads {
                let id = self.hosts[leader].raft_id;
                let is_member = |host: &&Host| host.status().members.iter().any(|member| member.raft_id == host.raft_id);
                let follows = |host: &Host| host.store().leadership().borrow().leader.as_ref().is_some_and(|(leader, _)| *leader == id);
                if running().filter(is_member).all(follows) {
                    return leader;
                }
            }
            assert!(Instant::now() < deadline, "no leader: {:#?}", running().map(Host::status).collect::<Vec<_>>());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The managers that run and do not lead.
    pub async fn followers(&self) -> Vec<usize> {
        let leader = self.leader().await;
        (0..self.hosts.len()).filter(|index| *index != leader && self.hosts[*index].running.is_some()).collect()
    }

    /// What an operator uses on one of the managers.
    pub async fn control(&self, index: usize) -> ControlClient<Channel> {
        ControlClient::new(self.hosts[index].channel(&self.hosts[index].security).await)
    }

    pub async fn stop_all(mut self) {
        for host in &mut self.hosts {
            host.stop().await;
        }
    }
}

impl Host {
    fn run(&mut self, store: Store, transport: Arc<PeerTransport>, listener: TcpListener) {
        let stop = CancellationToken::new();
        let config = ManagerConfig {
            store: store.clone(),
            security: self.security.clone(),
            node_id: self.node_id.clone(),
            advertise_addr: self.addr,
            clock: system_clock(),
            transport,
        };
        let manager = Manager::start(config, &stop);
        let mut servers = JoinSet::new();
        let incoming = skep_ca::serve_remote(listener, &self.security);
        let (routes, until) = (manager.remote_routes(), stop.clone());
        servers.spawn(async move { serve(incoming, routes, until).await.unwrap() });
        let _ = std::fs::remove_file(self.socket());
        let incoming = skep_ca::serve_local(UnixListener::bind(self.socket()).unwrap(), &self.security);
        let (routes, until) = (manager.local_routes(), stop.clone());
        servers.spawn(async move { serve(incoming, routes, until).await.unwrap() });
        self.running = Some(Running { store, manager, servers, stop });
    }

    pub fn store(&self) -> &Store {
        &self.running.as_ref().unwrap().store
    }

    pub fn manager(&self) -> &ManagerHandle {
        &self.running.as_ref().unwrap().manager
    }

    pub fn status(&self) -> StoreStatus {
        self.store().status()
    }

    pub fn leads(&self) -> bool {
        self.store().leadership().borrow().is_leader
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("skep.sock")
    }

    /// Ends it as a crash would: its connections close without a word.
    pub async fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.servers.shutdown().await;
            running.stop.cancel();
            drop(running.manager);
            running.store.shutdown().await;
        }
    }

    /// Ends it in order, without giving its leadership away.
    pub async fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.stop.cancel();
            running.manager.stop().await;
            running.servers.shutdown().await;
            running.store.shutdown().await;
        }
    }

    /// Starts it again, on another port.
    pub async fn start_elsewhere(&mut self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.addr = listener.local_addr().unwrap();
        let transport = PeerTransport::new(&self.security);
        let store = Store::open(StoreConfig::new(self.dir.join("raft")), transport.clone()).await.unwrap();
        self.run(store, transport, listener);
    }

    /// Forgets its raft state and comes back as another member.
    pub async fn start_anew(&mut self, managers: &[String]) {
        std::fs::remove_dir_all(self.dir.join("raft")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.addr = listener.local_addr().unwrap();
        self.raft_id = rand::random::<u64>() | 1;
        let transport = PeerTransport::new(&self.security);
        let store = Store::join(StoreConfig::new(self.dir.join("raft")), self.raft_id, transport.clone()).await.unwrap();
        self.run(store, transport, listener);
        join_managers(&self.security, managers, self.raft_id, self.addr).await.unwrap();
    }

    pub async fn channel(&self, security: &SecurityConfig) -> Channel {
        dial(self.addr, Connector::node(security)).await.unwrap()
    }

    /// Over the local socket, without a certificate.
    pub async fn local_channel(&self) -> Channel {
        let (socket, connector) = (self.socket(), Connector::local().unwrap());
        let connect = tower::service_fn(move |_| {
            let (socket, connector) = (socket.clone(), connector.clone());
            async move {
                let stream = UnixStream::connect(socket).await?;
                let (stream, _) = connector.connect(stream).await.map_err(std::io::Error::other)?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        Endpoint::from_static("http://localhost").connect_with_connector(connect).await.unwrap()
    }
}

pub async fn dial(addr: SocketAddr, connector: Connector) -> Result<Channel, tonic::transport::Error> {
    let connect = tower::service_fn(move |_| {
        let connector = connector.clone();
        async move {
            let stream = TcpStream::connect(addr).await?;
            stream.set_nodelay(true)?;
            let (stream, _) = connector.connect(stream).await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    Endpoint::from_static("http://swarm-manager").connect_with_connector(connect).await
}

/// What our agents say of their nodes.
pub fn description(hostname: &str) -> v1::NodeDescription {
    let plugin = v1::PluginDescription { r#type: "Skep".into(), name: "manager".into() };
    v1::NodeDescription {
        hostname: hostname.into(),
        platform: Some(v1::Platform { architecture: "x86_64".into(), os: "linux".into() }),
        resources: Some(v1::Resources { nano_cpus: 8_000_000_000, memory_bytes: 16 << 30, generic: vec![] }),
        engine: Some(v1::EngineDescription { plugins: vec![plugin], ..Default::default() }),
        ..Default::default()
    }
}

/// A session of a node's agent with its first message.
pub async fn session(channel: Channel, description: v1::NodeDescription) -> (tonic::Streaming<v1::SessionMessage>, v1::SessionMessage) {
    let mut client = DispatcherClient::new(channel);
    let deadline = Instant::now() + PATIENCE;
    let mut stream = loop {
        let request = v1::SessionRequest { description: Some(description.clone()), session_id: String::new() };
        match client.session(request).await {
            Ok(stream) => break stream.into_inner(),
            // A leader that has just been elected.
            Err(status) => assert!(Instant::now() < deadline, "{status:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let first = stream.message().await.unwrap().unwrap();
    (stream, first)
}

/// A small service.
pub fn service(name: &str) -> v1::ServiceSpec {
    let container = v1::ContainerSpec { image: "registry.example/web:1".into(), ..Default::default() };
    v1::ServiceSpec {
        annotations: Some(v1::Annotations { name: name.into(), ..Default::default() }),
        task: Some(v1::TaskSpec { runtime: Some(v1::task_spec::Runtime::Container(container)), ..Default::default() }),
        mode: Some(v1::service_spec::Mode::Replicated(v1::ReplicatedService { replicas: 1 })),
        ..Default::default()
    }
}

pub async fn create(control: &mut ControlClient<Channel>, name: &str) -> Result<String, tonic::Status> {
    let created = control.create_service(v1::CreateServiceRequest { spec: Some(service(name)) }).await?;
    Ok(created.into_inner().service.unwrap().id)
}

pub async fn node(control: &mut ControlClient<Channel>, id: &NodeId) -> v1::Node {
    control.get_node(v1::GetNodeRequest { node_id: id.to_string() }).await.unwrap().into_inner().node.unwrap()
}

/// Wishes another role for a node; tries again while others write it too.
pub async fn wish_role(control: &mut ControlClient<Channel>, id: &NodeId, role: v1::NodeRole) -> Result<(), tonic::Status> {
    loop {
        let node = node(control, id).await;
        let spec = v1::NodeSpec { desired_role: role as i32, ..node.spec.unwrap() };
        let request = v1::UpdateNodeRequest { node_id: id.to_string(), node_version: node.meta.unwrap().version, spec: Some(spec) };
        match control.update_node(request).await {
            Err(status) if status.message() == "update out of sequence" => {}
            other => return other.map(|_| ()),
        }
    }
}

/// Repeats a question until the answer fits.
pub async fn eventually<T: std::fmt::Debug>(what: &str, mut ask: impl AsyncFnMut() -> T, fits: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask().await;
        if fits(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what} did not come true; the last answer was {answer:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
