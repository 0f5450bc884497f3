//! Services.

use crate::docker::manager::{Manager, answer, in_hand, objects, read_one};
use skep_docker_api::{ApiError, Select, TaskCounts};
use skep_proto::{ToWire as _, v1};
use skep_types::{Service, ServiceSpec};
use std::collections::BTreeSet;
use std::sync::Arc;
use v1::list_services_request::Filters;
use v1::update_service_request::Rollback;

/// The control API joins kinds of filters by "and": for "or" it is asked twice.
pub async fn list(manager: &Manager, select: &Select) -> Result<Vec<Arc<Service>>, ApiError> {
    let Select { ids, names } = select;
    let mut found = Vec::new();
    if !ids.is_empty() || names.is_empty() {
        found = ask(manager, Filters { id_prefixes: ids.clone(), ..Filters::default() }).await?;
    }
    if !names.is_empty() {
        let known: BTreeSet<_> = found.iter().map(|service| service.id.clone()).collect();
        let named = ask(manager, Filters { names: names.clone(), ..Filters::default() }).await?;
        found.extend(named.into_iter().filter(|service| !known.contains(&service.id)));
    }
    Ok(found)
}

async fn ask(manager: &Manager, filters: Filters) -> Result<Vec<Arc<Service>>, ApiError> {
    let request = v1::ListServicesRequest { filters: Some(filters) };
    objects("service", manager.control().list_services(in_hand(request)), |answer| answer.services).await
}

pub async fn get(manager: &Manager, id: &str, insert_defaults: bool) -> Result<Service, ApiError> {
    let request = v1::GetServiceRequest { service_id: id.to_owned(), insert_defaults };
    read_one("service", answer(manager.control().get_service(request)).await?.service)
}

pub async fn count_tasks(manager: &Manager, services: &[String]) -> Result<Vec<TaskCounts>, ApiError> {
    let request = v1::ListServiceStatusesRequest { services: services.to_vec() };
    let statuses = answer(manager.control().list_service_statuses(request)).await?.statuses;
    let counts = statuses.into_iter().map(|status| TaskCounts {
        service_id: status.service_id,
        desired: status.desired_tasks,
        running: status.running_tasks,
        completed: status.completed_tasks,
    });
    Ok(counts.collect())
}

pub async fn create(manager: &Manager, spec: &ServiceSpec) -> Result<Service, ApiError> {
    let request = v1::CreateServiceRequest { spec: Some(spec.to_wire()) };
    read_one("service", answer(manager.control().create_service(request)).await?.service)
}

pub async fn update(manager: &Manager, id: &str, version: u64, spec: &ServiceSpec, rollback: bool) -> Result<Service, ApiError> {
    let request = v1::UpdateServiceRequest {
        service_id: id.to_owned(),
        service_version: Some(v1::Version { index: version }),
        spec: Some(spec.to_wire()),
        rollback: if rollback { Rollback::Previous } else { Rollback::None } as i32,
    };
    read_one("service", answer(manager.control().update_service(request)).await?.service)
}

pub async fn remove(manager: &Manager, id: &str) -> Result<(), ApiError> {
    let request = v1::RemoveServiceRequest { service_id: id.to_owned() };
    answer(manager.control().remove_service(request)).await.map(|_| ())
}
