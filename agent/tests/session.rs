//! The session against a dispatcher of our own making, over plain HTTP/2.

mod support;

use async_trait::async_trait;
use skep_agent::{Agent, AgentConfig, AgentDeps, Dial, DialError, ManagerAddress, NodeSettings, node_description};
use skep_proto::v1::assignment::Item;
use skep_proto::v1::dispatcher_server::{Dispatcher, DispatcherServer};
use skep_proto::v1::log_broker_server::{LogBroker, LogBrokerServer};
use skep_proto::{FromWire, ToWire, v1};
use skep_types::{Task, TaskState};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::{Containerd, HostNetwork, OneImage, log_writer, shell, skip};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

#[test]
#[ignore = "started by the other tests as a process of its own"]
fn log_writer_process() {
    if let Some(dir) = std::env::var_os("SKEP_TEST_LOG_WRITER") {
        skep_agent::run_log_writer(std::path::Path::new(&dir)).unwrap();
    }
}

#[derive(Default)]
struct State {
    tasks: Vec<Task>,
    statuses: BTreeMap<String, Vec<TaskState>>,
    sessions: Vec<String>,
    heartbeats: usize,
    lines: Vec<v1::LogMessage>,
    closed: bool,
    /// Does not read any log lines.
    stalled: bool,
    assignments: Option<mpsc::Sender<Result<v1::AssignmentsMessage, Status>>>,
    subscriptions: Option<mpsc::Sender<Result<v1::SubscriptionMessage, Status>>>,
}

#[derive(Clone, Default)]
struct Manager(Arc<Mutex<State>>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn update(task: &Task) -> v1::AssignmentChange {
    v1::AssignmentChange { assignment: Some(v1::Assignment { item: Some(Item::Task(task.to_wire())) }), action: 0 }
}

#[async_trait]
impl Dispatcher for Manager {
    type SessionStream = Answers<v1::SessionMessage>;
    async fn session(&self, request: Request<v1::SessionRequest>) -> Result<Response<Self::SessionStream>, Status> {
        let request = request.into_inner();
        assert!(request.description.unwrap().resources.unwrap().nano_cpus > 0);
        self.0.lock().unwrap().sessions.push(request.session_id);
        let message = v1::SessionMessage { session_id: "session1".into(), root_ca: b"PEM".to_vec(), ..Default::default() };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(message)).chain(tokio_stream::pending()))))
    }
    async fn heartbeat(&self, _: Request<v1::HeartbeatRequest>) -> Result<Response<v1::HeartbeatResponse>, Status> {
        self.0.lock().unwrap().heartbeats += 1;
        Ok(Response::new(v1::HeartbeatResponse { period: Some(Duration::from_millis(200).to_wire()) }))
    }
    async fn update_task_status(
        &self,
        request: Request<v1::UpdateTaskStatusRequest>,
    ) -> Result<Response<v1::UpdateTaskStatusResponse>, Status> {
        let mut state = self.0.lock().unwrap();
        for update in request.into_inner().updates {
            let status = skep_types::TaskStatus::from_wire(update.status.unwrap()).unwrap();
            state.statuses.entry(update.task_id).or_default().push(status.state);
        }
        Ok(Response::new(v1::UpdateTaskStatusResponse {}))
    }
    async fn update_volume_status(
        &self,
        _: Request<v1::UpdateVolumeStatusRequest>,
    ) -> Result<Response<v1::UpdateVolumeStatusResponse>, Status> {
        Err(Status::unimplemented("none"))
    }
    type TasksStream = Answers<v1::TasksMessage>;
    async fn tasks(&self, _: Request<v1::TasksRequest>) -> Result<Response<Self::TasksStream>, Status> {
        Err(Status::unimplemented("none"))
    }
    type AssignmentsStream = Answers<v1::AssignmentsMessage>;
    async fn assignments(&self, _: Request<v1::AssignmentsRequest>) -> Result<Response<Self::AssignmentsStream>, Status> {
        let (sender, receiver) = mpsc::channel(8);
        let mut state = self.0.lock().unwrap();
        let message = v1::AssignmentsMessage {
            r#type: 0,
            results_in: "1".into(),
            changes: state.tasks.iter().map(update).collect(),
            ..Default::default()
        };
        sender.try_send(Ok(message)).unwrap();
        state.assignments = Some(sender);
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

#[async_trait]
impl LogBroker for Manager {
    type ListenSubscriptionsStream = Answers<v1::SubscriptionMessage>;
    async fn listen_subscriptions(
        &self,
        _: Request<v1::ListenSubscriptionsRequest>,
    ) -> Result<Response<Self::ListenSubscriptionsStream>, Status> {
        let (sender, receiver) = mpsc::channel(8);
        self.0.lock().unwrap().subscriptions = Some(sender);
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
    async fn publish_logs(&self, request: Request<Streaming<v1::PublishLogsMessage>>) -> Result<Response<v1::PublishLogsResponse>, Status> {
        if self.0.lock().unwrap().stalled {
            std::future::pending::<()>().await;
        }
        let mut stream = request.into_inner();
        while let Some(message) = stream.message().await? {
            let mut state = self.0.lock().unwrap();
            state.lines.extend(message.messages);
            state.closed |= message.close;
        }
        Ok(Response::new(v1::PublishLogsResponse {}))
    }
}

struct Plain;

#[async_trait]
impl Dial for Plain {
    async fn dial(&self, address: &str) -> Result<Channel, DialError> {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
        endpoint.connect().await.map_err(|source| DialError::Http { address: address.into(), source })
    }
}

/// Serves on a runtime of its own: cancelling `stop` ends every connection at once, as a killed manager does.
fn serve(manager: Manager, address: std::net::SocketAddr, stop: CancellationToken) -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind(address).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let server = tonic::transport::Server::builder()
                .add_service(DispatcherServer::new(manager.clone()))
                .add_service(LogBrokerServer::new(manager))
                .serve_with_incoming(TcpListenerStream::new(listener));
            tokio::select! { _ = server => {}, () = stop.cancelled() => {} }
        });
    });
    address
}

async fn until(what: &str, check: impl Fn() -> bool) {
    let begin = Instant::now();
    while !check() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn start(containerd: &Containerd, address: std::net::SocketAddr, stop: &CancellationToken) -> Agent {
    let config = containerd.config();
    Agent::start(
        AgentConfig {
            log_writer: log_writer(&config.run_dir),
            containerd: config,
            managers: vec![ManagerAddress { node_id: String::new(), addr: address.to_string() }],
            local_manager: None,
            data_path_addr: None,
        },
        AgentDeps {
            dial: Arc::new(Plain),
            describe: Arc::new(|| node_description(&NodeSettings::default(), None)),
            images: Arc::new(OneImage { chain_id: containerd.chain_id.clone(), config: Default::default() }),
            network: Arc::new(HostNetwork),
            tunnels: None,
        },
        stop,
    )
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_s_tasks_run_and_their_states_and_lines_come_back() {
    if skip().is_some() {
        return;
    }
    let containerd = Containerd::new();
    let manager = Manager::default();
    let one = shell(1, "echo hello; exec sleep 1000");
    manager.0.lock().unwrap().tasks.push(one.clone());
    let serving = CancellationToken::new();
    let address = serve(manager.clone(), "127.0.0.1:0".parse().unwrap(), serving.clone());
    let stop = CancellationToken::new();
    let agent = start(&containerd, address, &stop).await;
    let states = |task: &Task| manager.0.lock().unwrap().statuses.get(task.id.as_str()).cloned().unwrap_or_default();
    let begin = Instant::now();
    until("running", || states(&one).last() == Some(&TaskState::Running)).await;
    eprintln!("assignment to RUNNING at the manager took {:?}", begin.elapsed());
    assert!(states(&one).is_sorted());
    assert!(agent.session().borrow().connected);
    assert_eq!(agent.session().borrow().root_ca, b"PEM");

    // An incremental assignment, right after the complete one.
    let two = shell(2, "exit 7");
    let stream = manager.0.lock().unwrap().assignments.clone().unwrap();
    let message = v1::AssignmentsMessage { r#type: 1, applies_to: "1".into(), results_in: "2".into(), changes: vec![update(&two)] };
    stream.send(Ok(message)).await.unwrap();
    until("failed", || states(&two).last() == Some(&TaskState::Failed)).await;

    let subscription = v1::SubscriptionMessage {
        id: "sub1".into(),
        selector: Some(v1::LogSelector { task_ids: vec![one.id.to_string()], ..Default::default() }),
        options: Some(v1::LogSubscriptionOptions::default()),
        close: false,
    };
    let subscriptions = manager.0.lock().unwrap().subscriptions.clone().unwrap();
    subscriptions.send(Ok(subscription)).await.unwrap();
    until("log lines", || manager.0.lock().unwrap().closed).await;
    let lines: Vec<(Vec<u8>, i32)> = manager.0.lock().unwrap().lines.iter().map(|line| (line.data.clone(), line.stream)).collect();
    assert_eq!(lines, [(b"hello\n".to_vec(), 1)]);

    // The manager is gone: tasks go on, their states wait and are told later.
    serving.cancel();
    until("disconnected", || !agent.session().borrow().connected).await;
    let pid = agent.engine().reports.newest(&one.id).unwrap().container.unwrap().pid;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let engine = agent.engine().clone();
    until("failed locally", || engine.reports.newest(&one.id).unwrap().state == TaskState::Failed).await;
    assert_eq!(states(&one).last(), Some(&TaskState::Running));
    manager.0.lock().unwrap().tasks = vec![one.clone()];
    let serving = CancellationToken::new();
    serve(manager.clone(), address, serving.clone());
    until("told", || states(&one).last() == Some(&TaskState::Failed)).await;
    assert_eq!(manager.0.lock().unwrap().sessions, ["", "session1"], "the second session names the first");
    assert!(manager.0.lock().unwrap().heartbeats > 1);
    agent.leave().await.unwrap();
    assert_eq!(containerd.audit(), Vec::<String>::new());
    serving.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_logs_that_stand_still_do_not_cost_the_session() {
    if skip().is_some() {
        return;
    }
    let containerd = Containerd::new();
    let manager = Manager::default();
    // Several times what windows hold, in long lines, and an end: twenty readers of more take the processor from the session.
    let task = shell(1, "yes $(printf %01000d 0) | head -c 4000000; exec sleep 1000");
    {
        let mut state = manager.0.lock().unwrap();
        state.tasks.push(task.clone());
        state.stalled = true;
    }
    let serving = CancellationToken::new();
    let address = serve(manager.clone(), "127.0.0.1:0".parse().unwrap(), serving.clone());
    let stop = CancellationToken::new();
    let agent = start(&containerd, address, &stop).await;
    until("subscriptions are heard", || manager.0.lock().unwrap().subscriptions.is_some()).await;
    let running = || manager.0.lock().unwrap().statuses.get(task.id.as_str()).is_some_and(|states| states.contains(&TaskState::Running));
    until("running", running).await;
    let subscriptions = manager.0.lock().unwrap().subscriptions.clone().unwrap();
    for number in 0..20 {
        let subscription = v1::SubscriptionMessage {
            id: format!("sub{number}"),
            selector: Some(v1::LogSelector { task_ids: vec![task.id.to_string()], ..Default::default() }),
            options: Some(v1::LogSubscriptionOptions { follow: true, ..Default::default() }),
            close: false,
        };
        subscriptions.send(Ok(subscription)).await.unwrap();
    }
    // Longer than a call may take.
    let begin = manager.0.lock().unwrap().heartbeats;
    let problem = std::cell::RefCell::new(String::new());
    let beaten = || {
        let state = agent.session().borrow().clone();
        if !state.connected {
            problem.replace(state.problem);
        }
        manager.0.lock().unwrap().heartbeats > begin + 30
    };
    until("heartbeats go on", beaten).await;
    let sessions = manager.0.lock().unwrap().sessions.len();
    assert_eq!(sessions, 1, "the session was lost: {:?}", problem.borrow());
    agent.leave().await.unwrap();
    assert_eq!(containerd.audit(), Vec::<String>::new());
    serving.cancel();
}
