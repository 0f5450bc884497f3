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
    println!("cut {:?} after the removal", begin.elapsed());

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

/// The last heartbeat of a node that says why it goes.
async fn part(agent: &Agent, word: &str) -> Result<(), tonic::Status> {
    let mut request = Request::new(v1::HeartbeatRequest { session_id: agent.session_id.clone() });
    request.metadata_mut().insert("skep-farewell", word.parse().unwrap());
    agent.client.clone().heartbeat(request).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_says_why_it_goes_is_believed_at_once() {
    let cluster = Cluster::start().await;
    // By far longer than this test: nothing here is told by silence.
    cluster.heartbeat_period(Duration::from_secs(600)).await;
    let status = |node: &skep_types::NodeId| cluster.store.view().node(node).unwrap().status.clone();
    let (left, agent) = cluster.another_agent().await;
    part(&agent, "left").await.unwrap();
    assert_eq!((status(&left).state, status(&left).message.as_str()), (NodeState::Down, "the node left the cluster"));
    let error = agent.client.clone().heartbeat(v1::HeartbeatRequest { session_id: agent.session_id.clone() }).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "its session has ended");
    // Nobody has to be forced now.
    let mut control = cluster.control().await;
    control.remove_node(v1::RemoveNodeRequest { node_id: left.to_string(), force: false }).await.unwrap();

    let security = cluster.join(skep_types::NodeRole::Worker).await;
    let node = security.identity().unwrap().node_id().clone();
    let agent = Agent::start(cluster.channel(&security).await, true).await;
    let created = control.create_service(v1::CreateServiceRequest { spec: Some(service("web", 1)) }).await.unwrap().into_inner();
    let id = created.service.unwrap().id;
    let before = eventually("running", || tasks(&control, &id), |tasks| running(tasks) == 1).await;
    part(&agent, "stopping").await.unwrap();
    assert_eq!(status(&node).state, NodeState::Disconnected);
    assert!(part(&agent, "left").await.is_err(), "who has gone says nothing more");
    // Its tasks stay what they are, and nothing new comes to it.
    let request = v1::UpdateServiceRequest {
        service_id: id.clone(),
        service_version: control
            .get_service(v1::GetServiceRequest { service_id: id.clone(), insert_defaults: false })
            .await
            .unwrap()
            .into_inner()
            .service
            .unwrap()
            .meta
            .unwrap()
            .version,
        spec: Some(service("web", 2)),
        ..Default::default()
    };
    control.update_service(request).await.unwrap();
    let waits = |tasks: &Vec<v1::Task>| {
        tasks.len() == 2 && tasks.iter().any(|task| task.node_id.is_empty() && !task.status.as_ref().unwrap().err.is_empty())
    };
    let now = eventually("the second has no node", || tasks(&control, &id), waits).await;
    assert!(now.iter().any(|task| task.id == before[0].id && running(std::slice::from_ref(task)) == 1));
    // Back again, as after an upgrade.
    let _agent = Agent::start(cluster.channel(&security).await, true).await;
    let now = eventually("both run", || tasks(&control, &id), |tasks| running(tasks) == 2).await;
    assert!(now.iter().any(|task| task.id == before[0].id), "the same task");
    assert_eq!(status(&node).state, NodeState::Ready);
}
