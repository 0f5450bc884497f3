use super::*;
use crate::error::NetworkError;
use crate::executor::Sandbox;
use crate::network::Changes;
use async_trait::async_trait;
use skep_proto::skep::NetworkChanges;
use skep_proto::skep::network_state_server::{NetworkState, NetworkStateServer};
use skep_types::{NodeDescription, PortConfig, Task, TaskId};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Streaming};

const PATIENCE: Duration = Duration::from_secs(60);

/// What a manager was told, and its end of the latest stream.
#[derive(Clone, Default)]
struct Manager(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    hellos: Vec<String>,
    programmed: Vec<u64>,
    changes: Option<mpsc::Sender<Result<NetworkChanges, Status>>>,
}

#[async_trait]
impl NetworkState for Manager {
    type FollowStream = ReceiverStream<Result<NetworkChanges, Status>>;

    async fn follow(&self, request: Request<Streaming<NetworkReport>>) -> Result<Response<Self::FollowStream>, Status> {
        let (sender, receiver) = mpsc::channel(8);
        self.0.lock().unwrap().changes = Some(sender);
        let (told, mut reports) = (Arc::clone(&self.0), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(report)) = reports.message().await {
                let mut told = told.lock().unwrap();
                match report.hello {
                    Some(hello) => told.hellos.push(hello.data_path_addr),
                    None => told.programmed.push(report.programmed),
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// A network that notes what it is told, and has changes in place only when it may.
#[derive(Default)]
struct Fake {
    taken: Mutex<Vec<u64>>,
    following: Mutex<Vec<Following>>,
    fails: Mutex<bool>,
    attempts: Mutex<usize>,
}

#[async_trait]
impl Network for Fake {
    async fn attach(&self, _: &Task) -> Result<Sandbox, NetworkError> {
        Ok(Sandbox::default())
    }
    async fn serve(&self, _: &Task) -> Result<Vec<PortConfig>, NetworkError> {
        Ok(Vec::new())
    }
    async fn withdraw(&self, _: &TaskId) {}
    async fn detach(&self, _: &TaskId) -> Result<(), NetworkError> {
        Ok(())
    }
    async fn recover(&self, _: &[(Task, bool)]) -> Result<(), NetworkError> {
        Ok(())
    }
    fn take(&self, changes: Changes) {
        self.taken.lock().unwrap().push(changes.revision);
    }
    async fn programmed(&self) -> Result<(), NetworkError> {
        *self.attempts.lock().unwrap() += 1;
        let bad = || NetworkError::Kernel { step: "change", reason: "it is busy".into() };
        if *self.fails.lock().unwrap() { Err(bad()) } else { Ok(()) }
    }
    fn following(&self, following: Following) {
        self.following.lock().unwrap().push(following);
    }
}

async fn serve(manager: Option<Manager>) -> Channel {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = tonic::transport::Server::builder();
    // One that knows another service only answers as a manager of another kind.
    let (health, service) = (Other, manager.map(NetworkStateServer::new));
    let router = server.add_service(skep_proto::v1::health_server::HealthServer::new(health)).add_optional_service(service);
    tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

struct Other;

#[async_trait]
impl skep_proto::v1::health_server::Health for Other {
    async fn check(&self, _: Request<skep_proto::v1::HealthCheckRequest>) -> Result<Response<skep_proto::v1::HealthCheckResponse>, Status> {
        Err(Status::unimplemented("none"))
    }
}

struct Nobody;

#[async_trait]
impl crate::session::Dial for Nobody {
    async fn dial(&self, address: &str) -> Result<Channel, crate::session::DialError> {
        panic!("{address} is not to be called")
    }
}

fn config() -> SessionConfig {
    SessionConfig {
        dial: Arc::new(Nobody),
        describe: Arc::new(NodeDescription::default),
        managers_file: PathBuf::new(),
        managers: Vec::new(),
        logs_dir: PathBuf::new(),
        node_id: "n1".into(),
        data_path_addr: Some([198, 18, 0, 1].into()),
        tunnels: None,
    }
}

/// Lets the node follow while the test goes on.
async fn while_following(channel: Channel, fake: &Arc<Fake>, test: impl Future<Output = ()>) {
    let (config, network) = (config(), Arc::clone(fake) as Arc<dyn Network>);
    tokio::select! {
        never = follow(channel, &config, &network) => match never {},
        () = test => {}
    }
}

async fn until(what: &str, check: impl Fn() -> bool) {
    let begin = Instant::now();
    while !check() {
        assert!(begin.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn say(manager: &Manager, revision: u64, complete: bool) {
    let message = NetworkChanges { revision, complete, node_index: 1, ..Default::default() };
    manager.0.lock().unwrap().changes.as_ref().unwrap().try_send(Ok(message)).unwrap();
}

#[tokio::test]
async fn a_revision_is_reported_once_it_is_in_place_and_not_before() {
    let (manager, fake) = (Manager::default(), Arc::new(Fake::default()));
    let channel = serve(Some(manager.clone())).await;
    while_following(channel, &fake, async {
        until("hello", || !manager.0.lock().unwrap().hellos.is_empty()).await;
        assert_eq!(manager.0.lock().unwrap().hellos, ["198.18.0.1"]);
        say(&manager, 5, true);
        until("reported", || manager.0.lock().unwrap().programmed == [5]).await;
        *fake.fails.lock().unwrap() = true;
        say(&manager, 6, false);
        let before = *fake.attempts.lock().unwrap();
        until("tried again", || *fake.attempts.lock().unwrap() > before + 1).await;
        say(&manager, 8, false);
        until("taken", || *fake.taken.lock().unwrap() == [5, 6, 8]).await;
        // Said once, however often it is tried.
        assert_eq!(manager.0.lock().unwrap().programmed, [5, skep_proto::NOT_PROGRAMMED]);
        *fake.fails.lock().unwrap() = false;
        until("the latest is reported", || manager.0.lock().unwrap().programmed.last() == Some(&8)).await;
    })
    .await;
    assert_eq!(fake.following.lock().unwrap().last(), Some(&Following::Nobody), "also when it is dropped");
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_asked_for_again() {
    let (manager, fake) = (Manager::default(), Arc::new(Fake::default()));
    let channel = serve(Some(manager.clone())).await;
    while_following(channel, &fake, async {
        until("hello", || manager.0.lock().unwrap().changes.is_some()).await;
        say(&manager, 5, true);
        until("taken", || *fake.taken.lock().unwrap() == [5]).await;
        drop(manager.0.lock().unwrap().changes.take());
        until("asked again", || manager.0.lock().unwrap().changes.is_some()).await;
        say(&manager, 9, true);
        until("taken", || *fake.taken.lock().unwrap() == [5, 9]).await;
    })
    .await;
    use Following::{Asked, Nobody, Told};
    assert_eq!(*fake.following.lock().unwrap(), [Asked, Told, Nobody, Asked, Told, Nobody]);
}

/// Other than with gossip (moby/moby#53437), a node that missed how a network began is not left with refusing what is said of it.
#[tokio::test]
async fn moby_53437_whoever_hears_of_a_network_it_was_not_told_of_asks_anew() {
    let (manager, fake) = (Manager::default(), Arc::new(Fake::default()));
    let channel = serve(Some(manager.clone())).await;
    let tell = |revision, complete, delta: skep::NetworkDelta| {
        let message = NetworkChanges { revision, complete, node_index: 1, networks: vec![delta], ..Default::default() };
        manager.0.lock().unwrap().changes.as_ref().unwrap().try_send(Ok(message)).unwrap();
    };
    let part = |number: u64| skep::NetworkDelta { network_id: NetworkId::for_test(number).to_string(), ..Default::default() };
    let hellos = |count: usize| manager.0.lock().unwrap().hellos.len() == count;
    while_following(channel, &fake, async {
        until("hello", || hellos(1)).await;
        tell(5, true, part(2));
        tell(6, false, part(2));
        tell(7, false, skep::NetworkDelta { complete: true, ..part(3) });
        tell(8, false, part(3));
        tell(9, false, skep::NetworkDelta { removed: true, ..part(3) });
        until("taken", || *fake.taken.lock().unwrap() == [5, 6, 7, 8, 9]).await;
        tell(10, false, part(3));
        until("asked anew", || hellos(2)).await;
        tell(11, true, part(3));
        until("all is told", || *fake.taken.lock().unwrap() == [5, 6, 7, 8, 9, 11]).await;
        tell(12, false, part(2));
        until("what the stream before told does not count", || hellos(3)).await;
    })
    .await;
}

#[tokio::test]
async fn a_manager_of_another_kind_is_asked_once() {
    let fake = Arc::new(Fake::default());
    let channel = serve(None).await;
    while_following(channel, &fake, async {
        until("refused", || fake.following.lock().unwrap().len() == 2).await;
        tokio::time::sleep(2 * RETRY).await;
    })
    .await;
    assert_eq!(*fake.following.lock().unwrap(), [Following::Asked, Following::Nobody]);
}
