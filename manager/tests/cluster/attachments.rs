//! Containers that no service started, on networks of the cluster (`ResourceAllocator`).

use crate::support::{Agent, Cluster, eventually};
use skep_proto::v1::{self, resource_allocator_client::ResourceAllocatorClient};
use skep_types::NodeRole;
use tonic::Code;

fn network(name: &str, attachable: bool) -> v1::CreateNetworkRequest {
    let annotations = Some(v1::Annotations { name: name.into(), ..Default::default() });
    v1::CreateNetworkRequest { spec: Some(v1::NetworkSpec { annotations, attachable, ..Default::default() }) }
}

fn attach(target: &str) -> v1::AttachNetworkRequest {
    let config = v1::NetworkAttachmentConfig { target: target.into(), aliases: vec!["guest".into()], ..Default::default() };
    v1::AttachNetworkRequest { config: Some(config), container_id: "pid:1".into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_is_attached_to_a_network_that_allows_it_by_its_own_node() {
    let cluster = Cluster::start().await;
    let mut control = cluster.control().await;
    for request in [network("open", true), network("shut", false)] {
        control.create_network(request).await.unwrap();
    }
    let (worker, other) = (cluster.join(NodeRole::Worker).await, cluster.join(NodeRole::Worker).await);
    let mut agent = Agent::start(cluster.channel(&worker).await, true).await;
    let mut here = ResourceAllocatorClient::new(cluster.channel(&worker).await);
    let mut elsewhere = ResourceAllocatorClient::new(cluster.channel(&other).await);

    for (target, code) in [("shut", Code::PermissionDenied), ("ingress", Code::PermissionDenied), ("none", Code::NotFound)] {
        assert_eq!(here.attach_network(attach(target)).await.unwrap_err().code(), code, "{target}");
    }
    let id = here.attach_network(attach("open")).await.unwrap().into_inner().attachment_id;
    agent.wait(|played| played.tasks.contains_key(&id)).await;
    let task = agent.played.lock().unwrap().tasks[&id].clone();
    assert_eq!(task.networks[0].addresses, ["10.0.16.2/20"]);
    assert_eq!(task.networks[0].aliases, ["guest"]);
    let node = worker.identity().unwrap().node_id().to_string();
    assert_eq!((task.service_id.as_str(), task.node_id.as_str()), ("", node.as_str()));

    let mut control = cluster.control().await;
    let removed = control.remove_network(v1::RemoveNetworkRequest { name: "open".into(), ..Default::default() }).await.unwrap_err();
    assert!(removed.message().contains(&id), "{removed:?}");
    let detach = |id: &str| v1::DetachNetworkRequest { attachment_id: id.to_owned() };
    assert_eq!(elsewhere.detach_network(detach(&id)).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(here.detach_network(detach("")).await.unwrap_err().code(), Code::InvalidArgument);
    here.detach_network(detach(&id)).await.unwrap();
    assert_eq!(here.detach_network(detach(&id)).await.unwrap_err().code(), Code::NotFound);
    agent.wait(|played| !played.tasks.contains_key(&id)).await;

    // One whose container is gone needs no detaching.
    let id = here.attach_network(attach("open")).await.unwrap().into_inner().attachment_id;
    agent.wait(|played| played.tasks.contains_key(&id)).await;
    agent.report(&id, v1::TaskState::Complete).await.unwrap();
    let tasks = || async { cluster.control().await.list_tasks(v1::ListTasksRequest::default()).await.unwrap().into_inner().tasks };
    eventually("the attachment is deleted", tasks, |tasks| tasks.is_empty()).await;
}
