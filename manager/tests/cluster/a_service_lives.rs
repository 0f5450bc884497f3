//! From `CreateService` to running tasks and back, with an agent that plays them.

use crate::support::{Cluster, eventually, running, service, tasks};
use skep_proto::v1;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_is_created_scaled_and_removed() {
    let cluster = Cluster::start().await;
    let mut agent = cluster.agent().await;
    let mut control = cluster.control().await;

    let created = control.create_service(v1::CreateServiceRequest { spec: Some(service("web", 3)) }).await.unwrap().into_inner();
    let created = created.service.unwrap();
    assert_eq!(created.spec_version.unwrap().index, 0);
    agent.wait(|played| played.tasks.len() == 3).await;
    eventually("3 running", || tasks(&control, &created.id), |tasks| running(tasks) == 3).await;

    let current = control.get_service(v1::GetServiceRequest { service_id: created.id.clone(), insert_defaults: false }).await.unwrap();
    let current = current.into_inner().service.unwrap();
    let request = v1::UpdateServiceRequest {
        service_id: created.id.clone(),
        service_version: current.meta.unwrap().version,
        spec: Some(service("web", 5)),
        rollback: 0,
    };
    control.update_service(request).await.unwrap();
    eventually("5 running", || tasks(&control, &created.id), |tasks| running(tasks) == 5).await;
    let statuses = control.list_service_statuses(v1::ListServiceStatusesRequest { services: vec![created.id.clone()] }).await.unwrap();
    assert_eq!(statuses.into_inner().statuses[0].desired_tasks, 5);

    control.remove_service(v1::RemoveServiceRequest { service_id: created.id.clone() }).await.unwrap();
    agent.wait(|played| played.tasks.is_empty()).await;
    eventually("no task left", || tasks(&control, &created.id), |tasks| tasks.is_empty()).await;
    let played = agent.played.lock().unwrap();
    for pair in played.messages.windows(2) {
        assert_eq!(pair[0].2, pair[1].1, "the chain of assignments has no gap");
    }
    let (kind, applies_to, results_in) = &played.messages[0];
    assert_eq!((*kind, applies_to.as_str()), (0, ""));
    assert!(results_in.starts_with("1@"), "{results_in}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_task_is_replaced_by_its_policy() {
    let cluster = Cluster::start().await;
    let mut agent = cluster.agent().await;
    let mut control = cluster.control().await;
    let created = control.create_service(v1::CreateServiceRequest { spec: Some(service("web", 1)) }).await.unwrap().into_inner();
    let id = created.service.unwrap().id;
    let before = eventually("running", || tasks(&control, &id), |tasks| running(tasks) == 1).await;
    agent.report(&before[0].id, v1::TaskState::Failed).await.unwrap();
    let after = eventually("replaced", || tasks(&control, &id), |tasks| tasks.len() == 2 && running(tasks) == 1).await;
    let old = after.iter().find(|task| task.id == before[0].id).unwrap();
    assert_eq!(old.desired_state, v1::TaskState::Shutdown as i32);
    assert_eq!(old.status.as_ref().unwrap().applied_by, cluster.node_id.as_str());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_goes_on_where_the_old_one_stopped() {
    let mut cluster = Cluster::start().await;
    let agent = cluster.agent().await;
    let mut control = cluster.control().await;
    let created = control.create_service(v1::CreateServiceRequest { spec: Some(service("web", 2)) }).await.unwrap().into_inner();
    let id = created.service.unwrap().id;
    let before = eventually("running", || tasks(&control, &id), |tasks| running(tasks) == 2).await;
    drop(agent);
    cluster.restart_manager().await;
    let mut agent = cluster.agent().await;
    agent.wait(|played| played.tasks.len() == 2).await;
    let control = cluster.control().await;
    let after = tasks(&control, &id).await;
    let ids = |tasks: &[v1::Task]| tasks.iter().map(|task| task.id.clone()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(ids(&before), ids(&after), "no task was restarted");
    assert_eq!(running(&after), 2);
}
