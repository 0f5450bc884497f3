//! Any manager may be asked.

use crate::support::{Lab, PATIENCE, create, description, dial, eventually, node, session};
use skep_ca::Connector;
use skep_manager::{InHand, TakesInHand};
use skep_proto::v1::{
    self, ca_client::CaClient, control_client::ControlClient, dispatcher_client::DispatcherClient, health_client::HealthClient,
    log_broker_client::LogBrokerClient, logs_client::LogsClient, watch_client::WatchClient,
};
use skep_types::{ClusterView as _, NodeRole, Service};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_pass_on_both_doors() {
    let lab = Lab::of(3).await;
    let follower = &lab.hosts[lab.followers().await[0]];
    let mut local = ControlClient::new(follower.local_channel().await);
    create(&mut local, "by-socket").await.unwrap();
    let mut remote = ControlClient::new(follower.channel(&follower.security).await);
    create(&mut remote, "by-port").await.unwrap();
    // What was acknowledged is seen by the next question, whomever it is put to.
    for host in &lab.hosts {
        let mut control = ControlClient::new(host.channel(&host.security).await);
        let services = control.list_services(v1::ListServicesRequest::default()).await.unwrap().into_inner().services;
        assert_eq!(services.len(), 2);
    }
    // A caller without certificate stays one.
    let nobody = dial(follower.addr, Connector::fetch_root().unwrap()).await.unwrap();
    let roots = CaClient::new(nobody.clone()).get_root_ca_certificate(v1::GetRootCaCertificateRequest {}).await.unwrap();
    assert_eq!(roots.into_inner().certificate, lab.root().bundle().pem().as_bytes());
    let refused = ControlClient::new(nobody).list_nodes(v1::ListNodesRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let worker = lab.certify(NodeRole::Worker).await;
    let refused = ControlClient::new(follower.channel(&worker).await).list_nodes(v1::ListNodesRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    lab.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_in_the_process_of_the_leader_get_its_own_objects_and_others_messages() {
    let lab = Lab::of(3).await;
    let (leader, follower) = (lab.leader().await, lab.followers().await[0]);
    let id = create(&mut lab.control(follower).await, "web").await.unwrap();
    for (host, in_hand) in [(leader, true), (follower, false)] {
        let routes = lab.hosts[host].manager().local_routes().prepare().into_axum_router();
        let mut control = ControlClient::new(routes);
        let mut request = tonic::Request::new(v1::ListServicesRequest::default());
        request.extensions_mut().insert(TakesInHand);
        let answer = control.list_services(request).await.unwrap();
        let shared = answer.extensions().get::<InHand<Service>>().map(|InHand(services)| services.clone());
        assert_eq!(shared.is_some(), in_hand);
        assert_eq!(answer.get_ref().services.len(), usize::from(!in_hand));
        for service in shared.into_iter().flatten() {
            assert!(Arc::ptr_eq(&service, lab.hosts[host].store().view().service(&id.parse().unwrap()).unwrap()));
        }
        // Whoever does not know of it is told as ever.
        let told = control.list_services(v1::ListServicesRequest::default()).await.unwrap().into_inner().services;
        assert_eq!(told.iter().map(|service| &service.id).collect::<Vec<_>>(), [&id]);
    }
    lab.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_watches_are_answered_by_followers_themselves() {
    let lab = Lab::of(3).await;
    let followers = lab.followers().await;
    let follower = &lab.hosts[followers[0]];
    let channel = follower.channel(&follower.security).await;
    let health = HealthClient::new(channel.clone()).check(v1::HealthCheckRequest { service: "Raft".into() }).await.unwrap();
    assert_eq!(health.into_inner().status, 1);
    let entry = v1::watch_request::WatchEntry { kind: "service".into(), action: 1, filters: vec![] };
    let request = v1::WatchRequest { entries: vec![entry], ..Default::default() };
    let mut watch = WatchClient::new(channel).watch(request).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().unwrap().events.is_empty());
    let id = create(&mut lab.control(followers[1]).await, "web").await.unwrap();
    let seen = tokio::time::timeout(PATIENCE, watch.message()).await.unwrap().unwrap().unwrap();
    assert!(format!("{:?}", seen.events).contains(&id));
    lab.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_of_a_follower_has_its_session_with_the_leader() {
    let lab = Lab::of(3).await;
    let follower = &lab.hosts[lab.followers().await[0]];
    let channel = follower.channel(&follower.security).await;
    let (mut messages, first) = session(channel.clone(), description("follower")).await;
    assert_eq!(first.managers.len(), 3);
    assert_eq!(first.node.as_ref().unwrap().id, follower.node_id.as_str());
    let beat = v1::HeartbeatRequest { session_id: first.session_id.clone() };
    DispatcherClient::new(channel.clone()).heartbeat(beat).await.unwrap();
    // Changes come through while the stream stands.
    let mut control = lab.control(0).await;
    let status = node(&mut control, &follower.node_id).await.status.unwrap();
    assert_eq!((status.state, status.addr.as_str()), (v1::node_status::State::Ready as i32, "127.0.0.1"));
    let mut assignments =
        DispatcherClient::new(channel).assignments(v1::AssignmentsRequest { session_id: first.session_id }).await.unwrap().into_inner();
    let complete = assignments.message().await.unwrap().unwrap();
    assert_eq!(complete.r#type, v1::assignments_message::Type::Complete as i32);
    create(&mut control, "web").await.unwrap();
    let told = tokio::time::timeout(PATIENCE, assignments.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(told.r#type, v1::assignments_message::Type::Incremental as i32);

    // Another worker behind the same follower is another node with its own address.
    let worker = lab.certify(NodeRole::Worker).await;
    let (_messages, second) = session(follower.channel(&worker).await, description("worker")).await;
    assert_eq!(second.node.unwrap().id, worker.identity().unwrap().node_id().as_str());
    drop(assignments);
    let _ = tokio::time::timeout(Duration::from_millis(10), messages.message()).await;
    lab.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_hop_and_no_more() {
    let lab = Lab::of(3).await;
    let follower = &lab.hosts[lab.followers().await[0]];
    let mut control = ControlClient::new(follower.channel(&follower.security).await);
    let mut request = tonic::Request::new(v1::ListNodesRequest::default());
    request.metadata_mut().insert("redirect", "192.0.2.1:1".parse().unwrap());
    assert_eq!(control.list_nodes(request).await.unwrap_err().code(), Code::ResourceExhausted);
    // Nobody may claim to be forwarded but a manager, and then what it forwards is what counts.
    let mut request = tonic::Request::new(v1::ListNodesRequest::default());
    for (key, value) in [("forwarded_cert", "true"), ("forwarded_cert_cn", ""), ("forwarded_cert_org", ""), ("forwarded_cert_ou", "")] {
        request.metadata_mut().insert(key, value.parse().unwrap());
    }
    assert_eq!(control.list_nodes(request).await.unwrap_err().code(), Code::PermissionDenied);
    lab.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_others_go_on_when_the_leader_is_killed() {
    let mut lab = Lab::nervous(3).await;
    let leader = lab.leader().await;
    let followers = lab.followers().await;
    let worker = lab.certify(NodeRole::Worker).await;
    let channel = lab.hosts[followers[0]].channel(&worker).await;
    let (mut messages, _) = session(channel.clone(), description("worker")).await;
    let mut control = lab.control(followers[0]).await;
    create(&mut control, "before").await.unwrap();

    lab.hosts[leader].kill().await;
    let killed = Instant::now();
    // The follower waits for the next leader on behalf of its callers. What it had sent already when the connection broke is lost, and
    // may have been done: `create` looks.
    create(&mut control, "after").await.unwrap();
    println!("a write through a follower took {:?} after the leader was killed", killed.elapsed());
    let ended = async {
        loop {
            match messages.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Code::Ok,
                Err(status) => return status.code(),
            }
        }
    };
    let code = tokio::time::timeout(PATIENCE, ended).await.expect("streams to the old leader end");
    assert!(matches!(code, Code::Unavailable | Code::Aborted), "{code:?}");
    session(channel, description("worker")).await;
    let mut control = lab.control(followers[1]).await;
    let services = control.list_services(v1::ListServicesRequest::default()).await.unwrap().into_inner().services;
    assert_eq!(services.len(), 2);
    lab.stop_all().await;
}

/// On a machine that is busy with other things nobody may take over in time; then the leader goes on, and is asked again.
async fn hand_over(lab: &Lab, leader: usize) {
    for _ in 0..3 {
        lab.hosts[leader].manager().hand_over(Duration::from_secs(5)).await;
        if !lab.hosts[leader].leads() {
            return;
        }
    }
    panic!("nobody took over: {:#?}", lab.hosts[leader].status());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_waits_long_when_the_leader_hands_over() {
    let lab = Lab::of(3).await;
    let leader = lab.leader().await;
    let mut control = lab.control(lab.followers().await[0]).await;
    create(&mut control, "before").await.unwrap();
    let handing = Instant::now();
    hand_over(&lab, leader).await;
    create(&mut control, "after").await.unwrap();
    println!("handing over and the next write took {:?}", handing.elapsed());
    let next = lab.leader().await;
    assert_ne!(next, leader);

    // Whoever asks the leader itself while it hands over does not notice either.
    let mut control = lab.control(next).await;
    let writing = async {
        for number in 0..20 {
            create(&mut control, &format!("meanwhile-{number}")).await.unwrap();
        }
    };
    let handing = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        hand_over(&lab, next).await;
    };
    tokio::join!(writing, handing);
    lab.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_calls_end_with_a_reason() {
    let mut lab = Lab::of(3).await;
    let leader = lab.leader().await;
    let followers = lab.followers().await;
    lab.hosts[followers[0]].kill().await;
    lab.hosts[leader].kill().await;
    let mut control = lab.control(followers[1]).await;
    let asked = tokio::time::timeout(PATIENCE, create(&mut control, "web")).await;
    let refused = asked.expect("the call ends").unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().to_lowercase().contains("try again"), "{refused:?}");
    // The caller's own deadline is kept: it ends by that, and not by what ended the other.
    let mut request = tonic::Request::new(v1::ListNodesRequest::default());
    request.set_timeout(Duration::from_millis(300));
    let late = control.list_nodes(request).await.unwrap_err();
    assert!(matches!(late.code(), Code::Cancelled | Code::DeadlineExceeded), "{late:?}");
    lab.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_share_a_followers_connections() {
    let lab = Lab::of(2).await;
    let follower = &lab.hosts[lab.followers().await[0]];
    let mut open = Vec::new();
    // More than one connection to the leader carries.
    for number in 0..30 {
        let worker = lab.certify(NodeRole::Worker).await;
        let channel = follower.channel(&worker).await;
        let (messages, first) = session(channel.clone(), description(&format!("worker-{number}"))).await;
        let mut dispatcher = DispatcherClient::new(channel);
        for _ in 0..9 {
            let request = v1::AssignmentsRequest { session_id: first.session_id.clone() };
            let mut assignments = dispatcher.assignments(request).await.unwrap().into_inner();
            assignments.message().await.unwrap().unwrap();
            open.push(assignments);
        }
        drop(messages);
    }
    let mut control = lab.control(0).await;
    eventually("a call gets through", async || control.list_nodes(v1::ListNodesRequest::default()).await.is_ok(), |ok| *ok).await;
    lab.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_that_nobody_reads_hold_up_nothing_else() {
    let lab = Lab::of(2).await;
    let follower = &lab.hosts[lab.followers().await[0]];
    let worker = lab.certify(NodeRole::Worker).await;
    let id = worker.identity().unwrap().node_id().to_string();
    let channel = follower.channel(&worker).await;
    let (_messages, first) = session(channel.clone(), description("worker")).await;
    let mut broker = LogBrokerClient::new(channel.clone());
    let mut subscriptions = broker.listen_subscriptions(v1::ListenSubscriptionsRequest {}).await.unwrap().into_inner();
    let selector = v1::LogSelector { node_ids: vec![id.clone()], ..Default::default() };
    let options = v1::LogSubscriptionOptions { follow: true, ..Default::default() };
    let ask = v1::SubscribeLogsRequest { selector: Some(selector), options: Some(options) };
    let unread = LogsClient::new(follower.channel(&follower.security).await).subscribe_logs(ask).await.unwrap();
    let subscription = tokio::time::timeout(PATIENCE, subscriptions.message()).await.unwrap().unwrap().unwrap();
    let context = v1::LogContext { node_id: id, ..Default::default() };
    let line =
        v1::LogMessage { context: Some(context), stream: v1::LogStream::Stdout as i32, data: vec![b'x'; 64 << 10], ..Default::default() };
    let batch = v1::PublishLogsMessage { subscription_id: subscription.id, messages: vec![line], close: false };
    let (lines, published) = tokio::sync::mpsc::channel(1);
    let mut publisher = LogBrokerClient::new(channel.clone());
    let publishing = tokio::spawn(async move { publisher.publish_logs(tokio_stream::wrappers::ReceiverStream::new(published)).await });
    let mut sent = 0;
    // Until everything between here and the reader is full.
    while tokio::time::timeout(Duration::from_secs(2), lines.send(batch.clone())).await.is_ok_and(|sent| sent.is_ok()) {
        sent += 1;
        assert!(sent < 4_096, "nothing holds the publisher back");
    }
    assert!(!publishing.is_finished(), "after {sent} batches: {:?}", publishing.await);
    for _ in 0..3 {
        let beat = v1::HeartbeatRequest { session_id: first.session_id.clone() };
        let mut dispatcher = DispatcherClient::new(channel.clone());
        let beaten = tokio::time::timeout(PATIENCE, dispatcher.heartbeat(beat)).await;
        beaten.expect("a heartbeat gets through").unwrap();
    }
    publishing.abort();
    drop(unread);
    lab.stop_all().await;
}
