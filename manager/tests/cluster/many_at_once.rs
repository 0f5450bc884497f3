//! Many clients and failing tasks at once: what the deciders remember must stay what the store holds.

use crate::support::{Cluster, eventually, running, service, tasks};
use skep_proto::v1::{self, control_client::ControlClient, dispatcher_client::DispatcherClient};
use skep_types::{ClusterView as _, TaskState};
use std::collections::BTreeSet;
use tokio::task::JoinSet;
use tonic::transport::Channel;

const SERVICES: usize = 6;
const REPLICAS: u64 = 5;

/// Scales until nobody was faster.
async fn scale(control: &mut ControlClient<Channel>, id: &str, name: &str, replicas: u64) {
    loop {
        let answer = control.get_service(v1::GetServiceRequest { service_id: id.into(), insert_defaults: false }).await.unwrap();
        let version = answer.into_inner().service.unwrap().meta.unwrap().version;
        let request = v1::UpdateServiceRequest {
            service_id: id.into(),
            service_version: version,
            spec: Some(published(name, replicas)),
            rollback: 0,
        };
        match control.update_service(request).await {
            Ok(_) => return,
            Err(stale) => assert_eq!(stale.message(), "update out of sequence"),
        }
    }
}

/// A service with a port on every node, chosen by the manager.
fn published(name: &str, replicas: u64) -> v1::ServiceSpec {
    let port = v1::PortConfig { target_port: 80, ..Default::default() };
    v1::ServiceSpec { endpoint: Some(v1::EndpointSpec { mode: 0, ports: vec![port] }), ..service(name, replicas) }
}

async fn one_client(mut control: ControlClient<Channel>, mut agent: AgentOfTasks, name: String) -> String {
    let created = control.create_service(v1::CreateServiceRequest { spec: Some(published(&name, REPLICAS)) }).await.unwrap().into_inner();
    let id = created.service.unwrap().id;
    for replicas in [1, 7, 3, REPLICAS] {
        scale(&mut control, &id, &name, replicas).await;
        for task in tasks(&control, &id).await.iter().filter(|task| task.desired_state == TaskState::Running as i32).take(2) {
            agent.fail(&task.id).await;
        }
    }
    id
}

/// Reports failures in the name of the node.
struct AgentOfTasks {
    client: DispatcherClient<Channel>,
    session_id: String,
}

impl AgentOfTasks {
    async fn fail(&mut self, task: &str) {
        let status = v1::TaskStatus { state: v1::TaskState::Failed as i32, err: "made to fail".into(), ..Default::default() };
        let update = v1::update_task_status_request::TaskStatusUpdate { task_id: task.into(), status: Some(status) };
        let request = v1::UpdateTaskStatusRequest { session_id: self.session_id.clone(), updates: vec![update] };
        // It may not be the node's yet.
        let _ = self.client.update_task_status(request).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_services_at_once_converge_and_share_no_address() {
    let mut cluster = Cluster::start().await;
    let agent = cluster.agent().await;
    let mut clients = JoinSet::new();
    for number in 0..SERVICES {
        let reporter = AgentOfTasks { client: agent.client.clone(), session_id: agent.session_id.clone() };
        clients.spawn(one_client(cluster.control().await, reporter, format!("web-{number}")));
    }
    let ids = clients.join_all().await;
    let control = cluster.control().await;
    for id in &ids {
        eventually("all replicas run", || tasks(&control, id), |tasks| running(tasks) == REPLICAS as usize).await;
    }
    check_addresses(&cluster);

    // A leader without memories finds nothing to do but to ask its nodes.
    let before: BTreeSet<String> = live_tasks(&cluster);
    drop(agent);
    cluster.restart_manager().await;
    let _agent = cluster.agent().await;
    let control = cluster.control().await;
    for id in &ids {
        eventually("all replicas run", || tasks(&control, id), |tasks| running(tasks) == REPLICAS as usize).await;
    }
    assert_eq!(before, live_tasks(&cluster), "no task was replaced");
    check_addresses(&cluster);
}

fn live_tasks(cluster: &Cluster) -> BTreeSet<String> {
    let view = cluster.store.view();
    view.tasks().filter(|task| task.desired_state <= TaskState::Running).map(|task| task.id.to_string()).collect()
}

fn check_addresses(cluster: &Cluster) {
    let view = cluster.store.view();
    let of_tasks = view.tasks().filter(|task| task.status.state <= TaskState::Running).flat_map(|task| &task.networks);
    let of_nodes = view.nodes().flat_map(|node| &node.attachments);
    let of_attachments = of_tasks.chain(of_nodes).flat_map(|attachment| attachment.addresses.iter().cloned());
    let of_services = view.services().filter_map(|service| service.endpoint.as_ref()).flat_map(|endpoint| &endpoint.virtual_ips);
    let mut seen = BTreeSet::new();
    for address in of_attachments
        .chain(of_services.map(|vip| vip.addr.clone()))
        .flat_map(|text| text.split(',').map(str::to_owned).collect::<Vec<_>>())
    {
        assert!(seen.insert(address.clone()), "{address} was given twice");
    }
    assert!(seen.len() >= SERVICES * (REPLICAS as usize + 1), "{seen:?}");
    let mut ports = BTreeSet::new();
    for port in view.services().filter_map(|service| service.endpoint.as_ref()).flat_map(|endpoint| &endpoint.ports) {
        assert!(port.published_port >= 30_000 && ports.insert(port.published_port), "{port:?}");
    }
}
