//! The session against managers of our own making, over plain HTTP/2.

use super::*;
use crate::executor::{Executor, Network};
use crate::testing::task;
use crate::worker::tests::Fake;
use async_trait::async_trait;
use skep_proto::{ToWire, v1};
use skep_types::TaskId;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};
use v1::assignments_message::Type;
use v1::dispatcher_server::DispatcherServer;

const PATIENCE: Duration = Duration::from_secs(60);

/// What a manager saw and is to say.
#[derive(Default)]
struct Told {
    /// Session ids that agents came with.
    sessions: Vec<String>,
    /// What they offered to have applied.
    offers: Vec<String>,
    /// Why they went.
    farewells: Vec<String>,
    /// So many registrations are refused because nobody leads.
    leaderless: usize,
    /// The first message of each stream of assignments.
    first: Option<v1::AssignmentsMessage>,
    session: Option<mpsc::Sender<Result<v1::SessionMessage, Status>>>,
    assignments: Option<mpsc::Sender<Result<v1::AssignmentsMessage, Status>>>,
}

#[derive(Clone, Default)]
struct Manager {
    told: Arc<Mutex<Told>>,
    connections: Arc<AtomicUsize>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[async_trait]
impl v1::dispatcher_server::Dispatcher for Manager {
    type SessionStream = Answers<v1::SessionMessage>;
    type TasksStream = Answers<v1::TasksMessage>;
    type AssignmentsStream = Answers<v1::AssignmentsMessage>;

    async fn session(&self, request: Request<v1::SessionRequest>) -> Result<Response<Self::SessionStream>, Status> {
        let mut told = self.told.lock().unwrap();
        if told.leaderless > 0 {
            told.leaderless -= 1;
            return Err(Status::unavailable("there is no leader"));
        }
        told.sessions.push(request.into_inner().session_id);
        let (sender, receiver) = mpsc::channel(8);
        sender.try_send(Ok(v1::SessionMessage { session_id: "s1".into(), ..Default::default() })).unwrap();
        told.session = Some(sender);
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn heartbeat(&self, request: Request<v1::HeartbeatRequest>) -> Result<Response<v1::HeartbeatResponse>, Status> {
        self.told.lock().unwrap().farewells.extend(request.metadata().get("skep-farewell").map(|word| word.to_str().unwrap().to_owned()));
        Ok(Response::new(v1::HeartbeatResponse { period: Some(Duration::from_millis(100).to_wire()) }))
    }

    async fn update_task_status(&self, _: Request<v1::UpdateTaskStatusRequest>) -> Result<Response<v1::UpdateTaskStatusResponse>, Status> {
        Ok(Response::new(v1::UpdateTaskStatusResponse {}))
    }

    async fn update_volume_status(
        &self,
        _: Request<v1::UpdateVolumeStatusRequest>,
    ) -> Result<Response<v1::UpdateVolumeStatusResponse>, Status> {
        Err(Status::unimplemented("none"))
    }

    async fn tasks(&self, _: Request<v1::TasksRequest>) -> Result<Response<Self::TasksStream>, Status> {
        Err(Status::unimplemented("none"))
    }

    async fn assignments(&self, request: Request<v1::AssignmentsRequest>) -> Result<Response<Self::AssignmentsStream>, Status> {
        let offer = request.metadata().get("skep-applied").map(|offer| offer.to_str().unwrap().to_owned());
        let mut told = self.told.lock().unwrap();
        told.offers.push(offer.unwrap_or_default());
        let (sender, receiver) = mpsc::channel(8);
        sender.try_send(Ok(told.first.clone().unwrap())).unwrap();
        told.assignments = Some(sender);
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

impl Manager {
    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap()
    }

    /// Serves until cancelled; then every connection breaks.
    async fn serve(&self) -> (SocketAddr, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, connections) = (CancellationToken::new(), self.connections.clone());
        let incoming = TcpListenerStream::new(listener).map(move |connection| {
            connections.fetch_add(1, Ordering::SeqCst);
            connection
        });
        let serving = tonic::transport::Server::builder().add_service(DispatcherServer::new(self.clone())).serve_with_incoming(incoming);
        let stopped = stop.clone();
        // A runtime of its own: its connections end with it.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! { _ = serving => {}, () = stopped.cancelled() => {} }
            });
        });
        (address, stop)
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

fn message(kind: Type, applies_to: &str, results_in: &str, tasks: &[u64]) -> v1::AssignmentsMessage {
    let update = |number: &u64| v1::AssignmentChange {
        assignment: Some(v1::Assignment { item: Some(v1::assignment::Item::Task(task(*number, "busybox").to_wire())) }),
        action: 0,
    };
    let changes = tasks.iter().map(update).collect();
    v1::AssignmentsMessage { r#type: kind as i32, applies_to: applies_to.into(), results_in: results_in.into(), changes }
}

struct Bench {
    engine: Engine,
    state: watch::Receiver<SessionState>,
    stop: CancellationToken,
    farewell: watch::Sender<Option<Farewell>>,
    session: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn start(managers: &[SocketAddr]) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let fake = Arc::new(Fake::default());
    let (executor, network) = (Arc::clone(&fake) as Arc<dyn Executor>, fake as Arc<dyn Network>);
    let (engine, run) = Engine::start(dir.path(), "n1", executor, network, stop.clone()).await.unwrap();
    tokio::spawn(run);
    let config = SessionConfig {
        dial: Arc::new(Plain),
        describe: Arc::new(NodeDescription::default),
        managers_file: dir.path().join("managers.json"),
        managers: managers.iter().map(|addr| ManagerAddress { node_id: String::new(), addr: addr.to_string() }).collect(),
        logs_dir: dir.path().to_owned(),
        node_id: "n1".into(),
        data_path_addr: None,
        tunnels: None,
    };
    let (_, local) = watch::channel(None);
    let (farewell, going) = watch::channel(None);
    let (session, state) = Session::new(config, local, engine.clone(), going);
    let session = tokio::spawn(session.run(stop.clone()));
    Bench { engine, state, stop, farewell, session, _dir: dir }
}

async fn until(what: &str, check: impl Fn() -> bool) {
    let begin = Instant::now();
    while !check() {
        assert!(begin.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_manager_that_leads_no_more_is_asked_again_over_the_same_connection() {
    let manager = Manager::default();
    manager.told().first = Some(message(Type::Complete, "", "1@5.a", &[1, 2]));
    let (address, _stop) = manager.serve().await;
    let bench = start(&[address]).await;
    until("applied", || bench.engine.applied.offer().as_deref() == Some("1@5.a")).await;
    {
        let mut told = manager.told();
        told.leaderless = 3;
        told.first = Some(message(Type::Incremental, "1@5.a", "1@9.b", &[3]));
        let ending = told.session.take().unwrap();
        ending.try_send(Err(Status::aborted("dispatcher is stopped"))).unwrap();
    }
    until("applied what came after", || bench.engine.applied.offer().as_deref() == Some("1@9.b")).await;
    assert_eq!(manager.told().sessions, ["", "s1"], "the session is named again");
    assert_eq!(manager.told().offers, ["", "1@5.a"]);
    assert_eq!(manager.connections.load(Ordering::SeqCst), 1);
    let tasks: Vec<TaskId> = bench.engine.tasks.now().keys().cloned().collect();
    assert_eq!(tasks, [1, 2, 3].map(TaskId::for_test));
}

#[tokio::test]
async fn a_manager_that_dies_is_left_for_another_at_once() {
    let (one, two) = (Manager::default(), Manager::default());
    one.told().first = Some(message(Type::Complete, "", "1@5.a", &[1]));
    two.told().first = Some(message(Type::Incremental, "1@5.a", "1@5.b", &[]));
    let (first, stop) = one.serve().await;
    let (second, _stop) = two.serve().await;
    let bench = start(&[first]).await;
    until("applied", || bench.engine.applied.offer().is_some()).await;
    let peer = |addr: SocketAddr| v1::WeightedPeer { peer: Some(v1::Peer { node_id: "m".into(), addr: addr.to_string() }), weight: 10 };
    let list = v1::SessionMessage { session_id: "s1".into(), managers: vec![peer(first), peer(second)], ..Default::default() };
    one.told().session.as_ref().unwrap().try_send(Ok(list)).unwrap();
    // The list is taken in before anything that comes behind it.
    let behind = v1::SessionMessage { session_id: "s1".into(), root_ca: b"behind".to_vec(), ..Default::default() };
    one.told().session.as_ref().unwrap().try_send(Ok(behind)).unwrap();
    until("the list is taken in", || bench.state.borrow().root_ca == b"behind").await;

    stop.cancel();
    until("a session with the other", || bench.state.borrow().manager == second.to_string() && bench.state.borrow().connected).await;
    until("offered", || two.told().offers == ["1@5.a"]).await;
    assert_eq!(bench.engine.tasks.now().len(), 1, "tasks do not notice");
}

#[tokio::test]
async fn after_a_gap_everything_is_asked_for() {
    let manager = Manager::default();
    manager.told().first = Some(message(Type::Complete, "", "1@5.a", &[1]));
    let (address, _stop) = manager.serve().await;
    let bench = start(&[address]).await;
    until("applied", || bench.engine.applied.offer().is_some()).await;
    let gap = message(Type::Incremental, "7@8.a", "8@9.a", &[2]);
    manager.told().assignments.as_ref().unwrap().try_send(Ok(gap)).unwrap();
    until("asked again", || manager.told().offers.len() == 2).await;
    assert_eq!(manager.told().offers, ["", ""], "there is nothing to build on");
    assert_eq!(manager.told().sessions.len(), 1, "in the same session");
}

#[tokio::test]
async fn a_node_that_goes_says_why_and_goes() {
    for (farewell, word) in [(Farewell::Left, "left"), (Farewell::Stopping, "stopping")] {
        let manager = Manager::default();
        manager.told().first = Some(message(Type::Complete, "", "1@5.a", &[1]));
        let (address, _stop) = manager.serve().await;
        let mut bench = start(&[address]).await;
        until("applied", || bench.engine.applied.offer().is_some()).await;
        bench.farewell.send_replace(Some(farewell));
        tokio::time::timeout(PATIENCE, &mut bench.session).await.expect("the session ends").unwrap();
        assert_eq!(manager.told().farewells, [word]);
    }
}

#[tokio::test]
async fn a_node_that_left_looks_for_a_manager_to_tell() {
    let manager = Manager::default();
    manager.told().first = Some(message(Type::Complete, "", "1@5.a", &[1]));
    let (address, _stop) = manager.serve().await;
    let mut bench = start(&[address]).await;
    until("applied", || bench.engine.applied.offer().is_some()).await;
    {
        // As if the leadership moved at that very moment.
        let mut told = manager.told();
        told.leaderless = 1;
        told.session.take().unwrap().try_send(Err(Status::aborted("dispatcher is stopped"))).unwrap();
    }
    bench.farewell.send_replace(Some(Farewell::Left));
    tokio::time::timeout(PATIENCE, &mut bench.session).await.expect("the session ends").unwrap();
    assert_eq!(manager.told().farewells, ["left"]);
}

#[tokio::test]
async fn who_never_had_a_session_goes_without_a_word() {
    for farewell in [Farewell::Left, Farewell::Stopping] {
        let mut bench = start(&[]).await;
        bench.farewell.send_replace(Some(farewell));
        tokio::time::timeout(PATIENCE, &mut bench.session).await.expect("the session ends").unwrap();
    }
}
