//! How fast a service comes up when the agent costs nothing; prints figures, asserts only that it happens.

use crate::support::{Cluster, eventually, running, service, tasks};
use skep_proto::v1;
use std::time::Instant;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_tasks_come_up_in_few_commits() {
    let cluster = Cluster::start().await;
    let mut agent = cluster.agent().await;
    let mut control = cluster.control().await;
    let before = cluster.store.status().last_log_index.unwrap_or(0);
    let start = Instant::now();
    let created = control.create_service(v1::CreateServiceRequest { spec: Some(service("web", 100)) }).await.unwrap().into_inner();
    let answered = start.elapsed();
    agent.wait(|played| played.tasks.len() == 100).await;
    let assigned = start.elapsed();
    let id = created.service.unwrap().id;
    eventually("100 running", || tasks(&control, &id), |tasks| running(tasks) == 100).await;
    let entries = cluster.store.status().last_log_index.unwrap_or(0) - before;
    println!("answered after {answered:?}, assigned after {assigned:?}, running after {:?}, {entries} log entries", start.elapsed());
    assert!(entries < 20, "{entries} log entries for one service");
}
