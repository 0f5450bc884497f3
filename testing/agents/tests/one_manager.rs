//! A fleet against a real manager in this process: real store on disk, real TLS.

use skep_agents::{Behaviour, Fleet, FleetOptions, JoinOptions, join};
use skep_types::{ClusterView as _, NodeRole, TaskState};
use std::time::{Duration, Instant};

// The manager's own tests have such a cluster.
#[path = "../../../manager/tests/cluster/support.rs"]
#[allow(dead_code, reason = "only a part of it is used here")]
mod support;
use support::{Cluster, PATIENCE, service};

async fn wait(what: &str, fleet: &Fleet, fits: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !fits() {
        assert!(Instant::now() < deadline, "{what}: not in time; {:?} {}", fleet.tally().count(), fleet.tally().last_problem());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn running(cluster: &Cluster) -> usize {
    let runs = |state: TaskState| state == TaskState::Running;
    cluster.store.view().tasks().filter(|task| runs(task.desired_state) && runs(task.status.state)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_joins_runs_tasks_replaces_a_failed_one_and_comes_back_to_a_new_leader() {
    let mut cluster = Cluster::start().await;
    let managers = vec![cluster.addr.to_string()];
    let options = JoinOptions { managers: managers.clone(), token: cluster.token(NodeRole::Worker), at_once: 8, roots_each: true };
    let members = join(options, 12).await.unwrap();
    let fleet = Fleet::start(members, FleetOptions { managers, behaviour: Behaviour::default(), spread: Duration::ZERO });
    let count = || fleet.tally().count();
    wait("all agents are registered", &fleet, || count().connected == 12).await;
    let request = skep_proto::v1::CreateServiceRequest { spec: Some(service("web", 30)) };
    cluster.control().await.create_service(request).await.unwrap();
    wait("all tasks run", &fleet, || count().tasks_running == 30).await;
    wait("the manager knows it", &fleet, || running(&cluster) == 30).await;
    assert_eq!((count().gaps, count().tasks_started), (0, 30));

    fleet.fail_one();
    wait("a task failed", &fleet, || count().tasks_failed == 1).await;
    wait("it was replaced", &fleet, || count().tasks_running == 30).await;
    assert_eq!(count().tasks_started, 31);
    wait("the manager knows that, too", &fleet, || running(&cluster) == 30).await;

    // The manager ends and another goes on with its store: everybody comes back, nothing starts again.
    fleet.tally().begin_round();
    let before = count();
    cluster.restart_manager().await;
    wait("all agents are back", &fleet, || fleet.tally().how_many_back() == 12).await;
    wait("nobody is missing", &fleet, || count().connected == 12).await;
    let after = count();
    assert_eq!((after.tasks_started, after.tasks_running, after.gaps), (before.tasks_started, 30, 0));
    fleet.stop().await;
}
