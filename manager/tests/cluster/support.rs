//! A real manager on loopback: real store on disk, real TLS, real gRPC; and agents that play their tasks.

#[path = "../common/mod.rs"]
mod common;

#[allow(unused_imports, reason = "other crates' tests take a part of it")]
pub use self::common::{Dice, PATIENCE, dial as channel_to, eventually};

use self::common::{Authority, Place, Serving, dial_local, enrol, prepare, steady};
use skep_ca::{Connector, RootCa, SecurityConfig};
use skep_manager::PeerTransport;
use skep_proto::v1::{self, control_client::ControlClient, dispatcher_client::DispatcherClient};
use skep_store::{Alone, Member, Store};
use skep_types::{ClusterId, NodeId, NodeRole};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::transport::Channel;

/// One manager that leads itself, and the nodes that join it.
pub struct Cluster {
    pub store: Store,
    authority: Authority,
    pub security: SecurityConfig,
    pub node_id: NodeId,
    pub addr: SocketAddr,
    serving: Option<Serving>,
    dir: TempDir,
}

impl Cluster {
    pub async fn start() -> Self {
        Self::start_at("127.0.0.1:0").await
    }

    /// The same on other addresses.
    pub async fn start_at(listen: &str) -> Self {
        prepare();
        let dir = tempfile::tempdir().unwrap();
        let (authority, node_id, security) = Authority::found();
        let member = Member { node_id: node_id.to_string(), addr: String::new() };
        let store = Store::bootstrap(steady(dir.path().join("raft")), 1, member, Arc::new(Alone)).await.unwrap();
        authority.populate(&store, &security).await;
        let listener = TcpListener::bind(listen).await.unwrap();
        let addr = SocketAddr::from(([127, 0, 0, 1], listener.local_addr().unwrap().port()));
        let mut this = Self { store, authority, security, node_id, addr, serving: None, dir };
        this.start_manager(listener);
        this
    }

    pub fn root(&self) -> &RootCa {
        &self.authority.root
    }

    pub fn cluster_id(&self) -> &ClusterId {
        &self.authority.cluster_id
    }

    fn start_manager(&mut self, listener: TcpListener) {
        let (transport, place) = (PeerTransport::new(&self.security), Place { listener, socket: self.socket() });
        self.serving = Some(Serving::start(self.store.clone(), &self.security, transport, place));
    }

    /// Stops the manager and starts another on the same store and port.
    pub async fn restart_manager(&mut self) {
        self.serving.take().unwrap().stop().await;
        self.start_manager(TcpListener::bind(self.addr).await.unwrap());
    }

    /// The local socket of the manager.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("skep.sock")
    }

    /// A channel over the local socket, without any certificate.
    pub async fn local_channel(&self) -> Channel {
        dial_local(self.socket()).await
    }

    /// A channel with the certificate of `security`.
    pub async fn channel(&self, security: &SecurityConfig) -> Channel {
        self.try_channel(Connector::node(security)).await.unwrap()
    }

    pub async fn try_channel(&self, connector: Connector) -> Result<Channel, tonic::transport::Error> {
        channel_to(self.addr, connector).await
    }

    /// What an operator on this manager uses.
    pub async fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel(&self.security).await)
    }

    /// Joins a new node by token, as its own skepd would.
    pub async fn join(&self, role: NodeRole) -> SecurityConfig {
        let channel = self.try_channel(Connector::bootstrap(self.root().bundle()).unwrap()).await.unwrap();
        let security = enrol(channel, self.root(), &self.token(role)).await;
        assert_eq!(security.identity().unwrap().role(), role);
        security
    }

    pub fn token(&self, role: NodeRole) -> String {
        Authority::token(&self.store, role)
    }

    /// Sets how often agents are to beat.
    pub async fn heartbeat_period(&self, period: Duration) {
        let mut control = self.control().await;
        let cluster = control.list_clusters(v1::ListClustersRequest::default()).await.unwrap().into_inner().clusters.remove(0);
        let mut spec = cluster.spec.unwrap();
        spec.dispatcher = Some(v1::DispatcherConfig { heartbeat_period: Some(period.try_into().unwrap()) });
        let version = cluster.meta.unwrap().version;
        let request = v1::UpdateClusterRequest { cluster_id: cluster.id, cluster_version: version, spec: Some(spec), rotation: None };
        control.update_cluster(request).await.unwrap();
    }

    /// An identity with the given role, made by this cluster's CA without asking.
    pub fn identity(&self, role: NodeRole) -> SecurityConfig {
        self.authority.certify(NodeId::from_random(rand::random()), role)
    }

    /// The same for a node that is known.
    pub fn identity_of(&self, node: NodeId, role: NodeRole) -> SecurityConfig {
        self.authority.certify(node, role)
    }

    /// The agent of the first node.
    pub async fn agent(&self) -> Agent {
        Agent::start(self.channel(&self.security).await, true).await
    }

    /// Another node with its agent.
    pub async fn another_agent(&self) -> (NodeId, Agent) {
        let security = self.join(NodeRole::Worker).await;
        let node = security.identity().unwrap().node_id().clone();
        (node, Agent::start(self.channel(&security).await, true).await)
    }
}

/// What an agent was told and did.
#[derive(Debug, Default)]
pub struct Played {
    pub tasks: BTreeMap<String, v1::Task>,
    pub secrets: BTreeMap<String, v1::Secret>,
    pub configs: BTreeMap<String, v1::Config>,
    pub messages: Vec<(i32, String, String)>,
    pub session: v1::SessionMessage,
}

/// Plays an agent: with `obedient`, tasks become what they are wanted to be at once.
pub struct Agent {
    pub client: DispatcherClient<Channel>,
    pub session_id: String,
    pub played: Arc<Mutex<Played>>,
    changed: mpsc::Receiver<()>,
    _loops: JoinSet<()>,
}

pub fn description(hostname: &str) -> v1::NodeDescription {
    v1::NodeDescription {
        hostname: hostname.into(),
        platform: Some(v1::Platform { architecture: "x86_64".into(), os: "linux".into() }),
        resources: Some(v1::Resources { nano_cpus: 8_000_000_000, memory_bytes: 16 << 30, generic: vec![] }),
        ..Default::default()
    }
}

impl Agent {
    pub async fn start(channel: Channel, obedient: bool) -> Self {
        let mut client = DispatcherClient::new(channel).max_decoding_message_size(usize::MAX);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut session = loop {
            let request = v1::SessionRequest { description: Some(description("host-1")), session_id: String::new() };
            match client.session(request).await {
                Ok(session) => break session.into_inner(),
                // A manager that has just been elected: agents come again, and so does this one.
                Err(status) if status.code() == tonic::Code::Aborted && tokio::time::Instant::now() < deadline => {}
                Err(status) => panic!("{status}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let first = session.message().await.unwrap().unwrap();
        let session_id = first.session_id.clone();
        let played = Arc::new(Mutex::new(Played { session: first, ..Played::default() }));
        let request = v1::AssignmentsRequest { session_id: session_id.clone() };
        let mut assignments = client.assignments(request).await.unwrap().into_inner();
        let (sender, changed) = mpsc::channel(1024);
        let mut loops = JoinSet::new();
        let told = played.clone();
        loops.spawn(async move {
            while let Ok(Some(message)) = session.message().await {
                told.lock().unwrap().session = message;
            }
        });
        let (mut beating, id) = (client.clone(), session_id.clone());
        loops.spawn(async move {
            while let Ok(answer) = beating.heartbeat(v1::HeartbeatRequest { session_id: id.clone() }).await {
                let period = answer.into_inner().period.unwrap();
                tokio::time::sleep(period.try_into().unwrap()).await;
            }
        });
        let (told, mut reporter, id) = (played.clone(), client.clone(), session_id.clone());
        loops.spawn(async move {
            while let Ok(Some(message)) = assignments.message().await {
                let updates = told.lock().unwrap().take(message, obedient);
                if !updates.is_empty() {
                    let request = v1::UpdateTaskStatusRequest { session_id: id.clone(), updates };
                    if reporter.update_task_status(request).await.is_err() {
                        return;
                    }
                }
                if sender.send(()).await.is_err() {
                    return;
                }
            }
        });
        Self { client, session_id, played, changed, _loops: loops }
    }

    /// Waits until what was told fulfils a wish.
    pub async fn wait(&mut self, wish: impl Fn(&Played) -> bool) {
        let waiting = async {
            while !wish(&self.played.lock().unwrap()) {
                self.changed.recv().await.expect("the stream of assignments ended");
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            panic!("the agent was not told what was expected; it was told {:#?}", self.played.lock().unwrap().tasks);
        }
    }

    pub async fn report(&mut self, task: &str, state: v1::TaskState) -> Result<(), tonic::Status> {
        let update = update(task, state);
        let request = v1::UpdateTaskStatusRequest { session_id: self.session_id.clone(), updates: vec![update] };
        self.client.update_task_status(request).await.map(|_| ())
    }
}

fn update(task: &str, state: v1::TaskState) -> v1::update_task_status_request::TaskStatusUpdate {
    let now = SystemTime::now().into();
    let status = v1::TaskStatus { timestamp: Some(now), state: state as i32, message: "played".into(), ..Default::default() };
    v1::update_task_status_request::TaskStatusUpdate { task_id: task.into(), status: Some(status) }
}

impl Played {
    fn take(&mut self, message: v1::AssignmentsMessage, obedient: bool) -> Vec<v1::update_task_status_request::TaskStatusUpdate> {
        use v1::assignment::Item;
        let mut updates = Vec::new();
        self.messages.push((message.r#type, message.applies_to, message.results_in));
        for change in message.changes {
            let gone = change.action == v1::assignment_change::AssignmentAction::Remove as i32;
            match change.assignment.unwrap().item.unwrap() {
                Item::Task(task) if gone => drop(self.tasks.remove(&task.id)),
                Item::Secret(secret) if gone => drop(self.secrets.remove(&secret.id)),
                Item::Config(config) if gone => drop(self.configs.remove(&config.id)),
                Item::Task(task) => {
                    if obedient {
                        updates.extend(obey(&task).map(|state| update(&task.id, state)));
                    }
                    self.tasks.insert(task.id.clone(), task);
                }
                Item::Secret(secret) => drop(self.secrets.insert(secret.id.clone(), secret)),
                Item::Config(config) => drop(self.configs.insert(config.id.clone(), config)),
                Item::Volume(_) => panic!("no volumes here"),
            }
        }
        updates
    }
}

fn obey(task: &v1::Task) -> Option<v1::TaskState> {
    match v1::TaskState::try_from(task.desired_state).unwrap() {
        v1::TaskState::Ready => Some(v1::TaskState::Ready),
        v1::TaskState::Running => Some(v1::TaskState::Running),
        v1::TaskState::Complete => Some(v1::TaskState::Complete),
        v1::TaskState::Shutdown | v1::TaskState::Remove => Some(v1::TaskState::Shutdown),
        _ => None,
    }
}

/// A small service.
pub fn service(name: &str, replicas: u64) -> v1::ServiceSpec {
    let container = v1::ContainerSpec { image: "registry.example/web:1".into(), ..Default::default() };
    v1::ServiceSpec {
        annotations: Some(v1::Annotations { name: name.into(), ..Default::default() }),
        task: Some(v1::TaskSpec {
            runtime: Some(v1::task_spec::Runtime::Container(container)),
            restart: Some(v1::RestartPolicy {
                condition: v1::restart_policy::RestartCondition::Any as i32,
                delay: Some(prost_types::Duration { seconds: 0, nanos: 0 }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        mode: Some(v1::service_spec::Mode::Replicated(v1::ReplicatedService { replicas })),
        ..Default::default()
    }
}

/// All tasks of a service.
pub async fn tasks(control: &ControlClient<Channel>, service: &str) -> Vec<v1::Task> {
    let filters = v1::list_tasks_request::Filters { service_ids: vec![service.into()], ..Default::default() };
    control.clone().list_tasks(v1::ListTasksRequest { filters: Some(filters) }).await.unwrap().into_inner().tasks
}

/// How many tasks of a service are wanted running and do run.
pub fn running(tasks: &[v1::Task]) -> usize {
    let runs = v1::TaskState::Running as i32;
    tasks.iter().filter(|task| task.desired_state == runs && task.status.as_ref().is_some_and(|status| status.state == runs)).count()
}
