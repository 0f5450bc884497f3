//! Managers of one cluster, each with its own directory, port and identity.

#[path = "../common/mod.rs"]
mod common;

pub use self::common::{Dice, PATIENCE, dial, eventually};

use self::common::{Authority, Place, Serving, dial_local, enrol, prepare, steady};
use skep_ca::{Connector, RootCa, SecurityConfig};
use skep_manager::{ManagerHandle, PeerTransport, join_managers};
use skep_proto::v1::{self, control_client::ControlClient, dispatcher_client::DispatcherClient};
use skep_store::{Member, Store, StoreConfig, StoreStatus};
use skep_types::{ClusterId, ClusterView as _, NodeId, NodeRole};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tonic::transport::Channel;

/// The managers of a cluster.
pub struct Lab {
    authority: Authority,
    pub hosts: Vec<Host>,
    dir: TempDir,
    config: fn(PathBuf) -> StoreConfig,
}

/// One manager.
pub struct Host {
    pub security: SecurityConfig,
    pub node_id: NodeId,
    pub raft_id: u64,
    pub addr: SocketAddr,
    dir: PathBuf,
    config: fn(PathBuf) -> StoreConfig,
    running: Option<Running>,
}

struct Running {
    store: Store,
    serving: Serving,
}

impl Lab {
    /// One manager that leads itself, with [`steady`] ones to come.
    pub async fn start() -> Self {
        Self::with(steady).await
    }

    async fn with(config: fn(PathBuf) -> StoreConfig) -> Self {
        prepare();
        let dir = tempfile::tempdir().unwrap();
        let (authority, node_id, security) = Authority::found();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut host = Host { security, node_id: node_id.clone(), raft_id: 1, addr, dir: dir.path().join("0"), config, running: None };
        let member = Member { node_id: node_id.to_string(), addr: addr.to_string() };
        let transport = PeerTransport::new(&host.security);
        let store = Store::bootstrap(host.store_config(), 1, member, transport.clone()).await.unwrap();
        authority.populate(&store, &host.security).await;
        host.run(store, transport, listener);
        Self { authority, hosts: vec![host], dir, config }
    }

    pub fn root(&self) -> &RootCa {
        &self.authority.root
    }

    pub fn cluster_id(&self) -> &ClusterId {
        &self.authority.cluster_id
    }

    /// A cluster of so many managers, all with a vote, that elect nobody unless their leader goes.
    pub async fn of(managers: usize) -> Self {
        Self::start().await.grown(managers).await
    }

    /// The same with the times of elections of real clusters. On a busy machine it may change its leader at any moment.
    pub async fn nervous(managers: usize) -> Self {
        Self::with(StoreConfig::new).await.grown(managers).await
    }

    async fn grown(mut self, managers: usize) -> Self {
        let lab = &mut self;
        for _ in 1..managers {
            lab.add().await;
        }
        self
    }

    /// One more manager, which joins by token as skepd would. Returns its place in `hosts`.
    pub async fn add(&mut self) -> usize {
        let security = self.certify(NodeRole::Manager).await;
        self.admit(security, rand::random::<u64>() | 1).await
    }

    /// Starts a manager for a node that has its certificate, and brings it into the group.
    pub async fn admit(&mut self, security: SecurityConfig, raft_id: u64) -> usize {
        let host = self.prepare(security, raft_id).await;
        let there = self.hosts.iter().find(|host| host.running.is_some()).map(|host| host.store().view().version());
        join_managers(&host.security, &self.addrs(), raft_id, host.addr).await.unwrap();
        // A member need not have what the others have yet, and refuses callers until then.
        eventually("it has the cluster's state", async || host.store().view().version(), |here| Some(*here) >= there).await;
        self.hosts.push(host);
        self.hosts.len() - 1
    }

    /// A manager that serves and is no member yet.
    pub async fn prepare(&self, security: SecurityConfig, raft_id: u64) -> Host {
        let node_id = security.identity().unwrap().node_id().clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let dir = self.dir.path().join(raft_id.to_string());
        let mut host = Host { security, node_id, raft_id, addr, dir, config: self.config, running: None };
        let transport = PeerTransport::new(&host.security);
        let store = Store::join(host.store_config(), raft_id, transport.clone()).await.unwrap();
        host.run(store, transport, listener);
        host
    }

    /// Of the managers that run.
    pub fn addrs(&self) -> Vec<String> {
        self.hosts.iter().filter(|host| host.running.is_some()).map(|host| host.addr.to_string()).collect()
    }

    pub fn token(&self, role: NodeRole) -> String {
        let host = self.hosts.iter().find(|host| host.running.is_some()).unwrap();
        Authority::token(host.store(), role)
    }

    /// A certificate for a new node, asked of the last manager: followers pass such calls on as well.
    pub async fn certify(&self, role: NodeRole) -> SecurityConfig {
        let host = self.hosts.iter().rfind(|host| host.running.is_some()).unwrap();
        let channel = dial(host.addr, Connector::bootstrap(self.root().bundle()).unwrap()).await.unwrap();
        let security = enrol(channel, self.root(), &self.token(role)).await;
        assert_eq!(security.identity().unwrap().role(), role);
        security
    }

    /// A new certificate for a node that has one.
    pub async fn renew_at(&self, index: usize, security: &SecurityConfig) -> SecurityConfig {
        enrol(self.hosts[index].channel(security).await, self.root(), "").await
    }

    /// A certificate made by this cluster's root without asking anybody.
    pub fn forge(&self, node: NodeId, role: NodeRole) -> SecurityConfig {
        self.authority.certify(node, role)
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

    /// Waits until the leader says of a manager that was killed that it does not answer.
    pub async fn shows_unreachable(&self, dead: usize) {
        let id = &self.hosts[dead].node_id;
        let control = self.control(self.leader().await).await;
        let gone = |node: &v1::Node| {
            node.manager_status.as_ref().unwrap().reachability == v1::raft_member_status::Reachability::Unreachable as i32
        };
        eventually("it shows as unreachable", async || node(&mut control.clone(), id).await, gone).await;
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
    fn store_config(&self) -> StoreConfig {
        (self.config)(self.dir.join("raft"))
    }

    fn run(&mut self, store: Store, transport: Arc<PeerTransport>, listener: TcpListener) {
        let place = Place { listener, socket: self.socket() };
        let serving = Serving::start(store.clone(), &self.security, transport, place);
        self.running = Some(Running { store, serving });
    }

    pub fn store(&self) -> &Store {
        &self.running.as_ref().unwrap().store
    }

    pub fn manager(&self) -> &ManagerHandle {
        &self.running.as_ref().unwrap().serving.manager
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
        if let Some(running) = self.running.take() {
            running.serving.kill().await;
            running.store.shutdown().await;
        }
    }

    /// Ends it in order, without giving its leadership away.
    pub async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.serving.stop().await;
            running.store.shutdown().await;
        }
    }

    /// Starts it again, on another port.
    pub async fn start_elsewhere(&mut self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.addr = listener.local_addr().unwrap();
        let transport = PeerTransport::new(&self.security);
        let store = Store::open(self.store_config(), transport.clone()).await.unwrap();
        self.run(store, transport, listener);
    }

    /// Forgets its raft state and comes back as another member.
    pub async fn start_anew(&mut self, managers: &[String]) {
        std::fs::remove_dir_all(self.dir.join("raft")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.addr = listener.local_addr().unwrap();
        self.raft_id = rand::random::<u64>() | 1;
        let transport = PeerTransport::new(&self.security);
        let store = Store::join(self.store_config(), self.raft_id, transport.clone()).await.unwrap();
        self.run(store, transport, listener);
        join_managers(&self.security, managers, self.raft_id, self.addr).await.unwrap();
    }

    pub async fn channel(&self, security: &SecurityConfig) -> Channel {
        dial(self.addr, Connector::node(security)).await.unwrap()
    }

    /// Over the local socket, without a certificate.
    pub async fn local_channel(&self) -> Channel {
        dial_local(self.socket()).await
    }
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
    loop {
        let request = v1::SessionRequest { description: Some(description.clone()), session_id: String::new() };
        let opened = async {
            let mut stream = client.session(request).await?.into_inner();
            let first = stream.message().await?;
            Ok::<_, tonic::Status>((stream, first))
        };
        match opened.await {
            Ok((stream, first)) => return (stream, first.unwrap()),
            // A leader that has just been elected.
            Err(status) => assert!(Instant::now() < deadline, "{status:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
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

/// Creates a service. What was on its way when the leader changed may have been done: then it is looked at, as the answer asks for.
pub async fn create(control: &mut ControlClient<Channel>, name: &str) -> Result<String, tonic::Status> {
    let request = v1::CreateServiceRequest { spec: Some(service(name)) };
    let mut answer = control.create_service(request.clone()).await;
    let deadline = Instant::now() + PATIENCE;
    let mut lost = false;
    while answer.as_ref().is_err_and(|status| status.message().contains("look what was done")) && Instant::now() < deadline {
        lost = true;
        answer = control.create_service(request.clone()).await;
    }
    match answer {
        Err(status) if lost && status.code() == tonic::Code::AlreadyExists => {
            let services = control.list_services(v1::ListServicesRequest::default()).await?.into_inner().services;
            let named = |service: &v1::Service| service.spec.as_ref().unwrap().annotations.as_ref().unwrap().name == name;
            Ok(services.into_iter().find(named).expect("it exists").id)
        }
        answer => Ok(answer?.into_inner().service.unwrap().id),
    }
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
