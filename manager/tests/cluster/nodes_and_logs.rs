//! Nodes that come and go, log lines, and watches.

use crate::support::{Cluster, PATIENCE, eventually, running, service, tasks};
use skep_proto::v1::{self, log_broker_client::LogBrokerClient, logs_client::LogsClient, watch_client::WatchClient};
use skep_types::ClusterView as _;
use std::time::Duration;
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_of_a_silent_node_move_and_heartbeats_write_nothing() {
    let cluster = Cluster::start().await;
    cluster.heartbeat_period(Duration::from_secs(2)).await;
    let stays = cluster.agent().await;
    let (lost, goes) = cluster.another_agent().await;
    let mut control = cluster.control().await;
    let created =
        control.create_service(v1::CreateServiceRequest { spec: Some(service("web", 4)) }).await.unwrap().into_inner().service.unwrap();
    let spread = eventually("4 running", || tasks(&control, &created.id), |tasks| running(tasks) == 4).await;
    assert_eq!(spread.iter().filter(|task| task.node_id == lost.as_str()).count(), 2, "evenly spread");

    let before = cluster.store.view().version();
    for agent in [&stays, &goes] {
        for _ in 0..5 {
            agent.client.clone().heartbeat(v1::HeartbeatRequest { session_id: agent.session_id.clone() }).await.unwrap();
        }
    }
    assert_eq!(cluster.store.view().version(), before, "beats are not written");

    drop(goes);
    let moved = |tasks: &Vec<v1::Task>| {
        running(tasks) == 4 && tasks.iter().filter(|task| task.desired_state == 512).all(|task| task.node_id == cluster.node_id.as_str())
    };
    eventually("all on the node that stays", || tasks(&control, &created.id), moved).await;
    let node = control.get_node(v1::GetNodeRequest { node_id: lost.to_string() }).await.unwrap().into_inner().node.unwrap();
    assert_eq!(node.status.unwrap().state, v1::node_status::State::Down as i32);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_when_the_node_registers_anew() {
    let cluster = Cluster::start().await;
    let mut first = cluster.agent().await;
    let _second = cluster.agent().await;
    let replaced = first.report("nothing", v1::TaskState::Running).await.unwrap_err();
    assert_eq!(replaced.code(), Code::InvalidArgument);
    let mut client = first.client.clone();
    let beat = client.heartbeat(v1::HeartbeatRequest { session_id: first.session_id.clone() }).await.unwrap_err();
    assert_eq!(beat.code(), Code::InvalidArgument);
    // The list of managers is whole, with an address to connect to.
    let session = first.played.lock().unwrap().session.clone();
    assert_eq!(session.managers.len(), 1);
    assert_eq!(session.managers[0].peer.as_ref().unwrap().addr, cluster.addr.to_string());
    assert_eq!(session.root_ca, cluster.root().bundle().pem().as_bytes());
    // Slowly, a node may.
    for _ in 0..40 {
        let request = v1::SessionRequest { description: Some(crate::support::description("host-1")), session_id: String::new() };
        if let Err(limited) = client.session(request).await {
            assert_eq!(limited.code(), Code::Unavailable);
            return;
        }
    }
    panic!("a node may not register as often as it likes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_reports_its_own_tasks_only() {
    let cluster = Cluster::start().await;
    let _owner = cluster.agent().await;
    let mut control = cluster.control().await;
    let created =
        control.create_service(v1::CreateServiceRequest { spec: Some(service("web", 1)) }).await.unwrap().into_inner().service.unwrap();
    let task = eventually("running", || tasks(&control, &created.id), |tasks| running(tasks) == 1).await.remove(0);
    let (_, mut other) = cluster.another_agent().await;
    assert_eq!(other.report(&task.id, v1::TaskState::Failed).await.unwrap_err().code(), Code::PermissionDenied);
    other.report("unknown", v1::TaskState::Failed).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_go_from_the_agent_to_the_client() {
    let cluster = Cluster::start().await;
    let _agent = cluster.agent().await;
    let mut control = cluster.control().await;
    let created =
        control.create_service(v1::CreateServiceRequest { spec: Some(service("web", 1)) }).await.unwrap().into_inner().service.unwrap();
    let task = eventually("running", || tasks(&control, &created.id), |tasks| running(tasks) == 1).await.remove(0);
    let channel = cluster.channel(&cluster.security).await;
    let mut logs = LogsClient::new(channel.clone());
    let selector = v1::LogSelector { service_ids: vec![created.id.clone()], ..Default::default() };
    let ask = v1::SubscribeLogsRequest { selector: Some(selector), options: None };

    // Nobody listens on the node: the end says so.
    let mut lines = logs.subscribe_logs(ask.clone()).await.unwrap().into_inner();
    let incomplete = tokio::time::timeout(PATIENCE, lines.message()).await.unwrap().unwrap_err();
    assert_eq!(incomplete.code(), Code::Unknown);
    assert!(incomplete.message().contains(cluster.node_id.as_str()), "{incomplete:?}");

    let mut broker = LogBrokerClient::new(channel);
    let mut subscriptions = broker.listen_subscriptions(v1::ListenSubscriptionsRequest {}).await.unwrap().into_inner();
    let mut lines = logs.subscribe_logs(ask.clone()).await.unwrap().into_inner();
    let subscription = tokio::time::timeout(PATIENCE, subscriptions.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(subscription.selector.unwrap().service_ids, [created.id.clone()]);
    let line = |number: u32, node: &str| v1::LogMessage {
        context: Some(v1::LogContext { service_id: created.id.clone(), node_id: node.into(), task_id: task.id.clone() }),
        stream: v1::LogStream::Stdout as i32,
        data: number.to_string().into_bytes(),
        ..Default::default()
    };
    let id = subscription.id.clone();
    let node = cluster.node_id.to_string();
    let messages: Vec<_> = (0..200)
        .map(|number| v1::PublishLogsMessage { subscription_id: id.clone(), messages: vec![line(number, &node)], close: number == 199 })
        .collect();
    let published = tokio::spawn({
        let mut broker = broker.clone();
        async move { broker.publish_logs(tokio_stream::iter(messages)).await }
    });
    let mut seen = 0;
    while let Some(message) = tokio::time::timeout(PATIENCE, lines.message()).await.unwrap().unwrap() {
        for line in message.messages {
            assert_eq!(line.data, seen.to_string().into_bytes());
            seen += 1;
        }
    }
    assert_eq!(seen, 200);
    published.await.unwrap().unwrap();
    let end = tokio::time::timeout(PATIENCE, subscriptions.message()).await.unwrap().unwrap().unwrap();
    assert!(end.close && end.id == id);

    let foreign = v1::PublishLogsMessage { subscription_id: id, messages: vec![line(1, "other")], close: false };
    assert_eq!(broker.publish_logs(tokio_stream::iter([foreign])).await.unwrap_err().code(), Code::PermissionDenied);
    let nothing = logs.subscribe_logs(v1::SubscribeLogsRequest::default()).await.unwrap_err();
    assert_eq!(nothing.code(), Code::InvalidArgument);
    assert!(nothing.message().starts_with("selector"), "{nothing:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_tells_what_is_committed_and_what_was() {
    let cluster = Cluster::start().await;
    let mut control = cluster.control().await;
    let mut watch = WatchClient::new(cluster.channel(&cluster.security).await);
    let entry = v1::watch_request::WatchEntry { kind: "service".into(), action: 1 | 4, filters: vec![] };
    let from = cluster.store.view().version();
    let request = v1::WatchRequest { entries: vec![entry], resume_from: None, include_old_object: false };
    let mut events = watch.watch(request.clone()).await.unwrap().into_inner();
    assert!(events.message().await.unwrap().unwrap().events.is_empty(), "the first message says that the watch stands");
    let created =
        control.create_service(v1::CreateServiceRequest { spec: Some(service("web", 0)) }).await.unwrap().into_inner().service.unwrap();
    let told = tokio::time::timeout(PATIENCE, events.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(told.events.len(), 1);
    assert_eq!(told.events[0].action, 1);

    let resume = v1::WatchRequest { resume_from: Some(v1::Version { index: from.0 }), ..request };
    let mut again = watch.watch(resume).await.unwrap().into_inner();
    again.message().await.unwrap();
    let told_again = tokio::time::timeout(PATIENCE, again.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(told_again.version, told.version);
    match told_again.events[0].object.clone().unwrap().object.unwrap() {
        v1::object::Object::Service(service) => assert_eq!(service.id, created.id),
        other => panic!("{other:?}"),
    }
}
