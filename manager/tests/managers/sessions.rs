//! Agents whose leader is killed go on with the next one where they stopped.

use crate::support::{Lab, PATIENCE, create, description, eventually};
use skep_proto::v1::{self, assignments_message::Type, dispatcher_client::DispatcherClient};
use skep_types::{ClusterView as _, NodeId, NodeRole, NodeState, TaskState, Version};
use std::time::{Duration, Instant};
use tonic::transport::Channel;
use tonic::{Request, Streaming};

/// What an agent remembers from one session to the next.
#[derive(Default)]
struct Memory {
    session: String,
    applied: String,
}

struct Link {
    client: DispatcherClient<Channel>,
    /// Held open, as agents do.
    _session: Streaming<v1::SessionMessage>,
    assignments: Streaming<v1::AssignmentsMessage>,
}

impl Memory {
    /// Registers, waiting for a leader if need be, and takes the first assignment message in.
    async fn connect(&mut self, channel: Channel) -> (Link, v1::AssignmentsMessage) {
        let mut client = DispatcherClient::new(channel);
        let begin = Instant::now();
        let (session, first) = loop {
            let request = v1::SessionRequest { description: Some(description("worker")), session_id: self.session.clone() };
            let opened = async {
                let mut session = client.session(request).await?.into_inner();
                let first = session.message().await?;
                Ok::<_, tonic::Status>((session, first))
            };
            match opened.await {
                Ok((session, first)) => break (session, first.unwrap()),
                Err(status) => assert!(begin.elapsed() < PATIENCE, "{status}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        self.session = first.session_id;
        let mut request = Request::new(v1::AssignmentsRequest { session_id: self.session.clone() });
        request.metadata_mut().insert("skep-applied", self.applied.parse().unwrap());
        let assignments = client.assignments(request).await.unwrap().into_inner();
        let mut link = Link { client, _session: session, assignments };
        let message = self.take(&mut link).await;
        (link, message)
    }

    async fn take(&mut self, link: &mut Link) -> v1::AssignmentsMessage {
        let message = tokio::time::timeout(PATIENCE, link.assignments.message()).await.unwrap().unwrap().unwrap();
        self.applied.clone_from(&message.results_in);
        message
    }

    /// Reports every task as running until `count` were assigned.
    async fn run(&mut self, link: &mut Link, count: usize) {
        let mut seen = 0;
        while seen < count {
            let message = self.take(link).await;
            let tasks = message.changes.into_iter().filter_map(|change| match change.assignment?.item? {
                v1::assignment::Item::Task(task) => Some(task.id),
                _ => None,
            });
            let status = v1::TaskStatus { state: v1::TaskState::Running as i32, message: "played".into(), ..Default::default() };
            let updates: Vec<_> =
                tasks.map(|task_id| v1::update_task_status_request::TaskStatusUpdate { task_id, status: Some(status.clone()) }).collect();
            seen += updates.len();
            let request = v1::UpdateTaskStatusRequest { session_id: self.session.clone(), updates };
            link.client.update_task_status(request).await.unwrap();
        }
    }
}

fn node_version(lab: &Lab, host: usize, node: &NodeId) -> (Version, NodeState) {
    let view = lab.hosts[host].store().view();
    let node = view.node(node).unwrap();
    (node.meta.version, node.status.state)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_leader_is_killed_nothing_is_sent_again_and_nothing_written() {
    let mut lab = Lab::nervous(3).await;
    let leader = lab.leader().await;
    let followers = lab.followers().await;
    let worker = lab.certify(NodeRole::Worker).await;
    let node = worker.identity().unwrap().node_id().clone();
    let mut memory = Memory::default();
    // Beside a follower at first, so that the connection stands when the leader dies.
    let channel = lab.hosts[followers[0]].channel(&worker).await;
    let (mut link, first) = memory.connect(channel.clone()).await;
    assert_eq!(first.r#type, Type::Complete as i32);
    create(&mut lab.control(leader).await, "web").await.unwrap();
    memory.run(&mut link, 1).await;
    let view = || lab.hosts[followers[1]].store().view();
    let is_running = || async { view().tasks_on_node(&node).any(|task| task.status.state == TaskState::Running) };
    eventually("running everywhere", is_running, |running| *running).await;
    let before = node_version(&lab, followers[1], &node);
    let session = memory.session.clone();

    lab.hosts[leader].kill().await;
    let killed = Instant::now();
    // The streams end; the same connection serves on.
    while link.assignments.message().await.is_ok_and(|message| message.is_some()) {}
    let (mut link, again) = memory.connect(channel).await;
    println!("back {:?} after the leader was killed", killed.elapsed());
    assert_eq!((again.r#type, again.changes.len()), (Type::Incremental as i32, 0), "nothing is sent again");
    assert_eq!(memory.session, session, "the session goes on");
    let leader = lab.leader().await;
    assert_eq!(node_version(&lab, leader, &node), before, "nothing is written");

    // What comes now comes as ever, and what comes while the agent is away is caught up with by the other manager.
    create(&mut lab.control(leader).await, "two").await.unwrap();
    memory.run(&mut link, 1).await;
    drop(link);
    create(&mut lab.control(leader).await, "three").await.unwrap();
    let assigned = || async { lab.hosts[leader].store().view().tasks_on_node(&node).count() };
    eventually("assigned", assigned, |count| *count == 3).await;
    let other = followers.iter().copied().find(|index| *index != leader).unwrap();
    let (_link, missed) = memory.connect(lab.hosts[other].channel(&worker).await).await;
    assert_eq!((missed.r#type, missed.changes.len()), (Type::Incremental as i32, 1));
    lab.stop_all().await;
}
