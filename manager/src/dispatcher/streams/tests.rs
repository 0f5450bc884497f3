use super::*;
use crate::dispatcher::assignments::tests::{World, node, task_id};
use crate::manager::ManagerConfig;
use crate::peers::PeerTransport;
use futures_util::{StreamExt as _, poll};
use skep_ca::SecurityConfig;
use skep_store::{Member, Store, StoreConfig, system_clock};
use skep_types::{Action, NodeId, Object, SessionId};
use std::task::Poll;
use std::time::Duration;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// A dispatcher that leads and whose router the test plays.
async fn unrouted() -> (Arc<Dispatcher>, TempDir) {
    skep_ca::install_crypto_provider();
    let dir = tempfile::tempdir().unwrap();
    let security = SecurityConfig::without_identity().unwrap();
    let transport = PeerTransport::new(&security);
    let member = Member { node_id: NodeId::for_test(9).to_string(), addr: String::new() };
    let store = Store::bootstrap(StoreConfig::new(dir.path().join("raft")), 1, member, transport.clone()).await.unwrap();
    let config = ManagerConfig {
        store,
        security,
        node_id: NodeId::for_test(9),
        advertise_addr: "127.0.0.1:1".parse().unwrap(),
        clock: system_clock(),
        transport,
        tunnel_key_lifetime: Duration::from_secs(86_400),
    };
    (Arc::new(Dispatcher::new(Arc::new(Shared::new(config, CancellationToken::new())))), dir)
}

/// The tasks of a message and the revision in its name.
fn told(message: &v1::AssignmentsMessage) -> (Vec<(String, u64)>, u64) {
    let tasks = message.changes.iter().filter_map(|change| match change.assignment.as_ref()?.item.as_ref()? {
        v1::assignment::Item::Task(task) => Some((task.id.clone(), task.meta.as_ref()?.version.as_ref()?.index)),
        _ => None,
    });
    (tasks.collect(), Name::parse(&message.results_in).unwrap().revision.0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_says_all_there_is_up_to_the_revision_in_its_name_and_nothing_behind_it() {
    let (dispatcher, _dir) = unrouted().await;
    let session = Arc::new(Session::new(SessionId::for_test(1), node()));
    let mut stream = assignments(dispatcher.clone(), session.clone(), String::new());
    assert!(stream.next().await.unwrap().unwrap().changes.is_empty());

    let mut world = World::new();
    let create = [1, 2].map(|number| {
        world.add(number, &[], TaskState::Assigned);
        Action::Create(Object::Task(world.view().task(&task_id(number)).unwrap().clone()))
    });
    let version = dispatcher.shared.propose(create.to_vec()).await.unwrap();
    // The router is in the middle of the commit. What were said now would have the name of the revision before.
    session.task_changed(&task_id(1));
    let mut next = stream.next();
    assert!(matches!(poll!(&mut next), Poll::Pending));
    session.task_changed(&task_id(2));
    dispatcher.routed.send_replace(version);
    let message = next.await.unwrap().unwrap();
    let both = [1, 2].map(|number| (task_id(number).to_string(), version.0)).to_vec();
    assert_eq!(told(&message), (both, version.0));

    // Nor is anything said of a commit that the store shows before the router has it.
    session.task_changed(&task_id(2));
    let change = Action::SetTaskDesired { task: task_id(1), desired: TaskState::Shutdown };
    let version = dispatcher.shared.propose(vec![change]).await.unwrap();
    session.task_changed(&task_id(1));
    let mut next = stream.next();
    assert!(matches!(poll!(&mut next), Poll::Pending));
    dispatcher.routed.send_replace(version);
    let message = next.await.unwrap().unwrap();
    assert_eq!(told(&message), (vec![(task_id(1).to_string(), version.0)], version.0));
}
