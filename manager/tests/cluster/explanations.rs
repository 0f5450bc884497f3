//! `skep.v1.Explanations` over the socket: who is asked for what, and that a dry run stores nothing.

use crate::support::{Cluster, eventually, service, tasks};
use prost::Message as _;
use skep_proto::skep::explanations_client::ExplanationsClient;
use skep_proto::skep::{GetExplanationRequest, GetPlacementRequest};
use skep_proto::v1;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_waits_is_explained_and_a_dry_run_stores_nothing() {
    let cluster = Cluster::start().await;
    let mut control = cluster.control().await;
    let mut explanations = ExplanationsClient::new(cluster.local_channel().await);
    let mut large = service("large", 1);
    let reservations = Some(v1::Resources { memory_bytes: 1 << 50, ..Default::default() });
    large.task.as_mut().unwrap().resources = Some(v1::ResourceRequirements { reservations, ..Default::default() });
    let request = v1::CreateServiceRequest { spec: Some(large.clone()) };
    let id = control.create_service(request).await.unwrap().into_inner().service.unwrap().id;
    let ask = |kind: i32, id: &str| GetExplanationRequest { kind, id: id.into() };
    let asked = async || explanations.clone().get(ask(0, &id)).await.unwrap().into_inner().findings;
    eventually("it waits for a node", asked, |findings| findings.iter().any(|finding| finding.text.contains("waits for a node"))).await;
    let task = tasks(&control, &id).await.remove(0);
    assert!(!explanations.get(ask(1, &task.id)).await.unwrap().into_inner().findings.is_empty());
    let nodes = control.list_nodes(v1::ListNodesRequest::default()).await.unwrap().into_inner().nodes;
    for node in nodes {
        assert!(!explanations.get(ask(2, &node.id)).await.unwrap().into_inner().findings.is_empty());
    }
    for (request, code) in [
        (ask(0, "0000000000000000000000000"), Code::NotFound),
        (ask(1, &id), Code::NotFound),
        (ask(2, "no id"), Code::InvalidArgument),
        (ask(3, &id), Code::InvalidArgument),
    ] {
        assert_eq!(explanations.get(request.clone()).await.unwrap_err().code(), code, "{request:?}");
    }

    let dry = |spec: &v1::ServiceSpec| {
        let (mut explanations, request) = (explanations.clone(), GetPlacementRequest { spec: spec.encode_to_vec() });
        async move { explanations.get_placement(request).await }
    };
    large.annotations.as_mut().unwrap().name = "another".into();
    let answer = dry(&large).await.unwrap().into_inner();
    assert_eq!((answer.placed.len(), answer.unplaced), (0, 1));
    assert!(!answer.findings.is_empty());
    assert_eq!(dry(&service("large", 1)).await.unwrap_err().code(), Code::AlreadyExists, "refused as the real one");
    large.annotations.as_mut().unwrap().labels.insert("long".into(), "x".repeat(200_000));
    let refused = dry(&large).await.unwrap_err();
    assert!(refused.code() == Code::InvalidArgument && refused.message().contains("131072"), "{refused}");
    let services = control.list_services(v1::ListServicesRequest::default()).await.unwrap().into_inner().services;
    assert_eq!(services.len(), 1, "nothing was stored");
}
