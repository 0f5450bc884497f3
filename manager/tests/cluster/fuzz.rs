//! Valid calls of every kind, changed in their fields: what is left out, sent twice, out of all bounds, or another's.

use crate::every_method::ask;
use crate::support::{Agent, Cluster, Dice, PATIENCE, description, eventually, running, service, tasks};
use crate::wire;
use futures_util::future::join_all;
use http::Method;
use prost::Message;
use skep_proto::{skep, v1};
use skep_types::{ClusterView as _, NodeId, NodeRole};
use std::collections::BTreeMap;
use tonic::Code;
use tonic::transport::Channel;

/// A method and a call of it that is right.
struct Target {
    path: String,
    call: Vec<u8>,
}

fn target(method: &str, call: &impl Message) -> Target {
    let package = if method.starts_with("Raft/") { "skep.v1" } else { "docker.swarmkit.v1" };
    Target { path: format!("/{package}.{method}"), call: call.encode_to_vec() }
}

fn named(name: &str) -> Option<v1::Annotations> {
    let labels = BTreeMap::from([("tier".into(), "front".into())]);
    Some(v1::Annotations { name: name.into(), labels, ..Default::default() })
}

/// A service that says something of everything.
fn rich(name: &str) -> v1::ServiceSpec {
    let mut spec = service(name, 2);
    let task = spec.task.as_mut().unwrap();
    if let Some(v1::task_spec::Runtime::Container(container)) = &mut task.runtime {
        container.env = vec!["A=1".into(), "B=2".into()];
        container.hostname = "{{.Node.Hostname}}".into();
        container.stop_grace_period = Some(prost_types::Duration { seconds: 10, nanos: 0 });
    }
    task.placement = Some(v1::Placement { constraints: vec!["node.role==worker".into()], ..Default::default() });
    let limits = v1::Resources { nano_cpus: 500_000_000, memory_bytes: 1 << 24, generic: vec![] };
    task.resources = Some(v1::ResourceRequirements { limits: Some(limits), ..Default::default() });
    let parallel = v1::UpdateConfig { parallelism: 2, delay: Some(prost_types::Duration { seconds: 1, nanos: 0 }), ..Default::default() };
    spec.update = Some(parallel);
    let port = v1::PortConfig { name: "web".into(), target_port: 80, published_port: 30_080, publish_mode: 1, ..Default::default() };
    spec.endpoint = Some(v1::EndpointSpec { ports: vec![port], ..Default::default() });
    spec
}

/// What a node may call, by one that has a session.
fn of_a_worker(session: &str, task: &str) -> Vec<Target> {
    let now = Some(std::time::SystemTime::now().into());
    let state = v1::TaskState::Running as i32;
    let status = v1::TaskStatus { timestamp: now, state, message: "started".into(), ..Default::default() };
    let update = v1::update_task_status_request::TaskStatusUpdate { task_id: task.into(), status: Some(status) };
    let session_id = || session.to_owned();
    let context = v1::LogContext { service_id: "s".into(), node_id: "n".into(), task_id: task.into() };
    let line = v1::LogMessage { context: Some(context), timestamp: now, stream: 1, data: b"line".to_vec(), attrs: vec![] };
    let volume = v1::update_volume_status_request::VolumeStatusUpdate { id: "v".into(), unpublished: true };
    let config = v1::NetworkAttachmentConfig { target: "net".into(), ..Default::default() };
    vec![
        target("Dispatcher/Heartbeat", &v1::HeartbeatRequest { session_id: session_id() }),
        target("Dispatcher/UpdateTaskStatus", &v1::UpdateTaskStatusRequest { session_id: session_id(), updates: vec![update] }),
        target("Dispatcher/UpdateVolumeStatus", &v1::UpdateVolumeStatusRequest { session_id: session_id(), updates: vec![volume] }),
        target("Dispatcher/Tasks", &v1::TasksRequest { session_id: session_id() }),
        target("Dispatcher/Assignments", &v1::AssignmentsRequest { session_id: session_id() }),
        target("LogBroker/PublishLogs", &v1::PublishLogsMessage { subscription_id: "x".into(), messages: vec![line], close: false }),
        target("LogBroker/ListenSubscriptions", &v1::ListenSubscriptionsRequest {}),
        target("ResourceAllocator/AttachNetwork", &v1::AttachNetworkRequest { config: Some(config), container_id: "c".into() }),
        target("NodeCA/IssueNodeCertificate", &v1::IssueNodeCertificateRequest { csr: vec![0x30; 40], ..Default::default() }),
        target("NodeCA/NodeCertificateStatus", &v1::NodeCertificateStatusRequest { node_id: "n".into() }),
        // Last: it ends the session.
        target("Dispatcher/Session", &v1::SessionRequest { description: Some(description("evil")), session_id: session_id() }),
    ]
}

/// What a client of a manager may call.
fn of_a_client(id: &str, version: Option<v1::Version>) -> Vec<Target> {
    let service_id = || id.to_owned();
    let selector = v1::LogSelector { service_ids: vec![id.into()], ..Default::default() };
    let options = v1::LogSubscriptionOptions { streams: vec![1, 2], follow: false, tail: -5, since: None };
    let filters = v1::list_services_request::Filters { names: vec!["web".into()], id_prefixes: vec![id.into()], ..Default::default() };
    let tasks = v1::list_tasks_request::Filters { service_ids: vec![id.into()], up_to_date: true, ..Default::default() };
    let secret = v1::SecretSpec { annotations: named("key"), data: b"secret".to_vec(), ..Default::default() };
    let config = v1::ConfigSpec { annotations: named("conf"), data: b"text".to_vec(), ..Default::default() };
    let subnet = v1::IpamConfig { family: 0, subnet: "10.99.0.0/24".into(), ..Default::default() };
    let ipam = v1::IpamOptions { configs: vec![subnet], ..Default::default() };
    let network = v1::NetworkSpec { annotations: named("net"), ipam: Some(ipam), ..Default::default() };
    vec![
        target("Control/CreateService", &v1::CreateServiceRequest { spec: Some(rich("fuzzed")) }),
        target(
            "Control/UpdateService",
            &v1::UpdateServiceRequest { service_id: service_id(), service_version: version, spec: Some(rich("web")), rollback: 0 },
        ),
        target("Control/GetService", &v1::GetServiceRequest { service_id: service_id(), ..Default::default() }),
        target("Control/ListServices", &v1::ListServicesRequest { filters: Some(filters) }),
        target("Control/ListTasks", &v1::ListTasksRequest { filters: Some(tasks) }),
        target("Control/ListServiceStatuses", &v1::ListServiceStatusesRequest { services: vec![id.into()] }),
        target("Control/CreateSecret", &v1::CreateSecretRequest { spec: Some(secret) }),
        target("Control/CreateConfig", &v1::CreateConfigRequest { spec: Some(config) }),
        target("Control/CreateNetwork", &v1::CreateNetworkRequest { spec: Some(network) }),
        target("Control/GetNode", &v1::GetNodeRequest { node_id: service_id() }),
        target("Logs/SubscribeLogs", &v1::SubscribeLogsRequest { selector: Some(selector), options: Some(options) }),
        target("Watch/Watch", &v1::WatchRequest { include_old_object: true, ..Default::default() }),
        target("Health/Check", &v1::HealthCheckRequest { service: "Raft".into() }),
        target("Control/GetTask", &v1::GetTaskRequest { task_id: service_id() }),
        target("Raft/Call", &skep::RaftCallRequest { kind: 1, from: 7, target: 1, payload: vec![0x81, 0xa4] }),
    ]
}

/// Throws changed calls at each target, those of one target side by side: some wait for nodes that are not there.
async fn throw(channel: &Channel, targets: &[Target], dice: &mut Dice, known: &[String], mut after: impl FnMut(&str)) {
    let rounds = dice.rounds(20);
    for Target { path, call } in targets {
        let valid = wire::parse(call).expect("a message of ours");
        assert_eq!(wire::write(&valid), *call, "{path}: a message is what it was read from");
        let mut changed = Vec::new();
        for _ in 0..rounds {
            let mut fields = valid.clone();
            for _ in 0..1 + dice.below(3) {
                wire::mutate(&mut fields, dice, known);
            }
            changed.push(fields);
        }
        let answers = changed.iter().map(|fields| async {
            let message = wire::write(fields);
            let mut body = vec![0];
            body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
            body.extend(message);
            // A panic breaks the call off, which `ask` does not survive, nor a call that is not answered.
            ask(&mut channel.clone(), Method::POST, path, &body).await
        });
        for (fields, (status, code)) in changed.iter().zip(join_all(answers).await) {
            assert!(status.is_success(), "{path} {fields:?}: {status}");
            // Genuine managers say UNKNOWN of updates that come too late and of a second network of a name, and so do we.
            let is_fault = match code {
                Some(Code::Internal | Code::DataLoss) => true,
                Some(Code::Unknown) => !path.contains("Control/"),
                _ => false,
            };
            assert!(!is_fault, "{path} {fields:?}: {code:?}");
        }
        after(path);
    }
}

/// How far each task has come.
fn states(cluster: &Cluster) -> BTreeMap<String, (skep_types::TaskState, Option<NodeId>)> {
    cluster.store.view().tasks().map(|task| (task.id.to_string(), (task.status.state, task.node_id.clone()))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_changed_call_breaks_the_manager_or_touches_what_is_anothers() {
    let mut dice = Dice::new();
    eprintln!("SKEP_SEED={} repeats this run", dice.seed);
    let cluster = Cluster::start().await;
    let (victim, _agent) = cluster.another_agent().await;
    let mut control = cluster.control().await;
    let mut spec = service("web", 2);
    spec.task.as_mut().unwrap().placement = Some(v1::Placement { constraints: vec![format!("node.id=={victim}")], ..Default::default() });
    let created = control.create_service(v1::CreateServiceRequest { spec: Some(spec) }).await.unwrap().into_inner().service.unwrap();
    let there = eventually("running", || tasks(&control, &created.id), |tasks: &Vec<v1::Task>| running(tasks) == 2).await;

    // A node that is in the cluster, with a session of its own, against another one.
    let worker = cluster.join(NodeRole::Worker).await;
    let channel = cluster.channel(&worker).await;
    let evil = Agent::start(cluster.channel(&worker).await, false).await;
    let known = [victim.to_string(), there[0].id.clone(), there[1].id.clone(), created.id.clone(), "web".into()];
    let of_victim = || {
        let view = cluster.store.view();
        let node = view.node(&victim).unwrap();
        (node.spec.clone(), node.role, node.certificate.clone(), node.description.clone())
    };
    let before = (of_victim(), states(&cluster), cluster.store.view().nodes().count());
    let workers = of_a_worker(&evil.session_id, &there[0].id);
    throw(&channel, &workers, &mut dice, &known, |path| {
        assert_eq!(of_victim(), before.0, "{path}");
        assert_eq!(states(&cluster), before.1, "{path}: a task of another node");
        assert_eq!(cluster.store.view().nodes().count(), before.2, "{path}");
    })
    .await;

    // A manager's client may change what it likes; but tasks never go back, and nodes are not made or unmade by it.
    let channel = cluster.channel(&cluster.security).await;
    let clients = of_a_client(&created.id, created.meta.and_then(|meta| meta.version));
    assert!(workers.len() + clients.len() >= 12);
    let mut seen = states(&cluster);
    throw(&channel, &clients, &mut dice, &known, |path| {
        for (id, (state, node)) in states(&cluster) {
            if let Some((before, on)) = seen.get(&id) {
                assert!(state >= *before, "{path}: task {id} went back from {before:?} to {state:?}");
                assert!(on.is_none() || *on == node, "{path}: task {id} moved");
            }
            seen.insert(id, (state, node));
        }
        assert_eq!(cluster.store.view().nodes().count(), before.2, "{path}");
    })
    .await;
    let asked = async {
        control.list_nodes(v1::ListNodesRequest::default()).await.unwrap();
        control.create_service(v1::CreateServiceRequest { spec: Some(service("after", 1)) }).await.unwrap();
    };
    tokio::time::timeout(PATIENCE, asked).await.expect("it answers and writes as before");
}
