//! Agents that come back: what a new leader tells them, and what it writes about them.

use crate::support::{Agent, Cluster, PATIENCE, eventually, running, service, tasks};
use skep_proto::v1::{self, assignments_message::Type};
use skep_types::{ClusterView as _, NodeState};
use std::time::Duration;
use tonic::{Code, Request};

/// The first message to an agent that offers to have applied `name`.
async fn first(agent: &Agent, name: &str) -> v1::AssignmentsMessage {
    let mut request = Request::new(v1::AssignmentsRequest { session_id: agent.session_id.clone() });
    request.metadata_mut().insert("skep-applied", name.parse().unwrap());
    let mut stream = agent.client.clone().assignments(request).await.unwrap().into_inner();
    tokio::time::timeout(PATIENCE, stream.message()).await.unwrap().unwrap().unwrap()
}

fn kind(message: &v1::AssignmentsMessage) -> Type {
    Type::try_from(message.r#type).unwrap()
}

/// Changes as (kind of object, gone).
fn tasks_in(message: &v1::AssignmentsMessage) -> Vec<(String, bool)> {
    let gone = |change: &v1::AssignmentChange| change.action == v1::assignment_change::AssignmentAction::Remove as i32;
    let id = |change: &v1::AssignmentChange| match change.assignment.clone().unwrap().item.unwrap() {
        v1::assignment::Item::Task(task) => task.id,
        other => panic!("{other:?}"),
    };
    message.changes.iter().map(|change| (id(change), gone(change))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_says_what_it_applied_is_told_what_came_after() {
    let mut cluster = Cluster::start().await;
    let agent = cluster.agent().await;
    let mut control = cluster.control().await;
    let created =
        control.create_service(v1::CreateServiceRequest { spec: Some(service("web", 2)) }).await.unwrap().into_inner().service.unwrap();
    eventually("2 running", || tasks(&control, &created.id), |tasks| running(tasks) == 2).await;
    let name = agent.played.lock().unwrap().messages.last().unwrap().2.clone();

    let nothing = first(&agent, &name).await;
    assert_eq!((kind(&nothing), nothing.changes.len()), (Type::Incremental, 0), "progress that the agent reported is no news to it");
    assert_eq!(nothing.applies_to, name);
    assert_ne!(nothing.results_in, name);

    let [gone, stays] = <[v1::Task; 2]>::try_from(tasks(&control, &created.id).await).unwrap();
    control.remove_task(v1::RemoveTaskRequest { task_id: gone.id.clone() }).await.unwrap();
    // Its replacement comes as soon as the agent has heard.
    let replaced = |tasks: &Vec<v1::Task>| running(tasks) == 2 && tasks.iter().all(|task| task.id != gone.id);
    let now = eventually("replaced", || tasks(&control, &created.id), replaced).await;
    let new = now.iter().find(|task| task.id != stays.id).unwrap().id.clone();
    let later = first(&agent, &name).await;
    assert_eq!(kind(&later), Type::Incremental);
    let mut expected = vec![(gone.id.clone(), true), (new, false)];
    expected.sort();
    assert_eq!(tasks_in(&later), expected);
    // Names that say nothing to us: none, a genuine manager's, one of another history.
    let own = name.split_once('.').unwrap().1;
    for unknown in ["", "7", "7@", "1@0.1", &format!("1@{}.{own}", u64::MAX), &name.replace(own, "1f"), &format!("1@0.{own}")] {
        let complete = first(&agent, unknown).await;
        assert_eq!((kind(&complete), complete.applies_to.as_str(), complete.changes.len()), (Type::Complete, "", 2), "{unknown:?}");
    }

    // A manager that was just started knows of nothing before that.
    let old = name;
    let channel = cluster.channel(&cluster.security).await;
    drop(agent);
    cluster.restart_manager().await;
    drop(channel);
    let agent = cluster.agent().await;
    assert_eq!(kind(&first(&agent, &old).await), Type::Complete);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_writes_nothing_about_nodes_that_come_back() {
    let mut cluster = Cluster::start().await;
    cluster.heartbeat_period(Duration::from_secs(3)).await;
    let agent = cluster.agent().await;
    let (lost, other) = cluster.another_agent().await;
    let session = agent.session_id.clone();
    let state = |cluster: &Cluster, node: &skep_types::NodeId| cluster.store.view().node(node).unwrap().status.state;
    assert_eq!(state(&cluster, &lost), NodeState::Ready);
    drop((agent, other));
    let before = cluster.store.view().version();
    cluster.restart_manager().await;

    // It goes on with its session.
    let mut client = v1::dispatcher_client::DispatcherClient::new(cluster.channel(&cluster.security).await);
    let ask = || v1::SessionRequest { description: Some(crate::support::description("host-1")), session_id: session.clone() };
    let mut stream = loop {
        match client.session(ask()).await {
            Ok(stream) => break stream.into_inner(),
            Err(status) => assert_eq!(status.code(), Code::Aborted),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(stream.message().await.unwrap().unwrap().session_id, session);
    assert_eq!(cluster.store.view().version(), before, "nothing was written");
    let node = cluster.node_id.clone();
    let unknown = eventually("unknown", || async { state(&cluster, &lost) }, |state| *state == NodeState::Unknown).await;
    assert_eq!(unknown, NodeState::Unknown);
    assert_eq!(cluster.store.view().version().0, before.0 + 1, "one transaction");
    assert_eq!(state(&cluster, &node), NodeState::Ready);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_end_with_a_last_word_and_the_node_s_at_once() {
    let mut cluster = Cluster::start().await;
    let (node, agent) = cluster.another_agent().await;
    let mut client = agent.client.clone();
    let request = v1::SessionRequest { description: None, session_id: agent.session_id.clone() };
    let mut stream = client.session(request).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().session_id, agent.session_id, "the same session");

    let mut assignments = client.assignments(v1::AssignmentsRequest { session_id: agent.session_id.clone() }).await.unwrap().into_inner();
    assignments.message().await.unwrap().unwrap();
    let mut control = cluster.control().await;
    control.remove_node(v1::RemoveNodeRequest { node_id: node.to_string(), force: true }).await.unwrap();
    let begin = tokio::time::Instant::now();
    let ended = tokio::time::timeout(PATIENCE, async {
        while stream.message().await?.is_some() {}
        Ok::<_, tonic::Status>(())
    })
    .await;
    // The session or the connection, whichever is cut first.
    assert!(matches!(ended.unwrap().unwrap_err().code(), Code::NotFound | Code::PermissionDenied));
    assert!(assignments.message().await.is_err());
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());

    let own = cluster.agent().await;
    let mut client = own.client.clone();
    let request = v1::SessionRequest { description: None, session_id: own.session_id.clone() };
    let mut stream = client.session(request).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    let ending = tokio::spawn(async move {
        let mut last = None;
        loop {
            match stream.message().await {
                Ok(Some(message)) => last = Some(message),
                Ok(None) => panic!("no reason was given"),
                Err(status) => return (last, status.code()),
            }
        }
    });
    cluster.restart_manager().await;
    let (last, code) = tokio::time::timeout(PATIENCE, ending).await.unwrap().unwrap();
    assert_eq!(code, Code::Aborted);
    assert_eq!(last.expect("a last message").managers.len(), 1);
}
