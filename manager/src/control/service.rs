//! Services: create, get, list, update, remove, statuses. What a spec may say is decided by `skep_plan::validate`.

mod status;

pub(super) use status::list_statuses;

use super::errors::{id, invalid, missing, out_of_sequence};
use super::filter;
use crate::shared::Shared;
use skep_plan::validate::{self, Conflict};
use skep_proto::{ToWire as _, parse_required, v1};
use skep_types::{Action, ClusterView as _, Kind, Object, Runtime, Service, ServiceId, ServiceSpec, Timestamp, Version};
use std::sync::Arc;
use tonic::Status;

fn parse_spec(wire: Option<v1::ServiceSpec>) -> Result<ServiceSpec, Status> {
    let spec: ServiceSpec = parse_required("spec", wire).map_err(invalid)?;
    if matches!(spec.task.runtime, Runtime::Attachment { .. }) {
        return Err(Status::unimplemented("spec.task.attachment: services cannot have attachments as their runtime; use a container"));
    }
    validate::check_service(&spec).map_err(invalid)?;
    Ok(spec)
}

/// The spec of a service that may be created.
pub(super) fn acceptable(shared: &Shared, wire: Option<v1::ServiceSpec>) -> Result<ServiceSpec, Status> {
    let spec = parse_spec(wire)?;
    validate::check_conflicts(&shared.store.view(), &spec, None).map_err(refuse)?;
    Ok(spec)
}

fn refuse(conflict: Conflict) -> Status {
    match conflict {
        Conflict::NameTaken(_) => Status::already_exists(conflict.to_string()),
        Conflict::Field(error) => invalid(error),
        Conflict::NoIngress(_) => Status::failed_precondition(conflict.to_string()),
    }
}

pub(super) async fn create(shared: &Shared, request: v1::CreateServiceRequest) -> Result<v1::CreateServiceResponse, Status> {
    let spec = acceptable(shared, request.spec)?;
    let service = skep_plan::new_service(ServiceId::from_random(rand::random()), spec, shared.now());
    let (id, name) = (service.id.clone(), service.name().to_owned());
    shared.write(vec![Action::Create(Object::Service(Arc::new(service)))]).await?;
    tracing::info!(service = %id, name, "service created");
    Ok(v1::CreateServiceResponse { service: Some(read(shared, &id)?) })
}

/// The service as it is now, for an answer to a write.
fn read(shared: &Shared, id: &ServiceId) -> Result<v1::Service, Status> {
    shared.store.view().service(id).map(|service| service.to_wire()).ok_or_else(|| missing(Kind::Service, id.as_str()))
}

pub(super) fn get(shared: &Shared, request: &v1::GetServiceRequest) -> Result<v1::GetServiceResponse, Status> {
    let id: ServiceId = id("service_id", &request.service_id)?;
    let view = shared.store.view();
    let service = view.service(&id).ok_or_else(|| missing(Kind::Service, id.as_str()))?;
    let service = if request.insert_defaults { skep_plan::with_defaults(service).to_wire() } else { service.to_wire() };
    Ok(v1::GetServiceResponse { service: Some(service) })
}

pub(super) fn list(shared: &Shared, request: v1::ListServicesRequest) -> Vec<Arc<Service>> {
    let filters = request.filters.unwrap_or_default();
    let view = shared.store.view();
    let is_wanted = |service: &&Arc<Service>| filter::services(&filters, service);
    // One name is the usual question, and has an index. Names are unique ignoring case, filters are not.
    match filters.names.as_slice() {
        [name] => view.service_by_name(name).into_iter().filter(is_wanted).map(Arc::clone).collect(),
        _ => view.services().filter(is_wanted).map(Arc::clone).collect(),
    }
}

pub(super) async fn update(shared: &Shared, request: v1::UpdateServiceRequest) -> Result<v1::UpdateServiceResponse, Status> {
    let id: ServiceId = id("service_id", &request.service_id)?;
    let version: Version = parse_required("service_version", request.service_version).map_err(invalid)?;
    let rollback = match v1::update_service_request::Rollback::try_from(request.rollback) {
        Ok(rollback) => rollback == v1::update_service_request::Rollback::Previous,
        Err(_) => {
            return Err(Status::invalid_argument(format!("rollback: {} is not known; use 0 (NONE) or 1 (PREVIOUS)", request.rollback)));
        }
    };
    let spec = parse_spec(request.spec)?;
    let new = {
        let view = shared.store.view();
        let service = view.service(&id).ok_or_else(|| missing(Kind::Service, id.as_str()))?;
        if service.meta.version != version {
            return Err(out_of_sequence());
        }
        let new = if rollback { rolled_back(service, shared.now())? } else { updated(service, spec, version, shared.now())? };
        validate::check_conflicts(&view, &new.spec, Some(&id)).map_err(refuse)?;
        new
    };
    shared.write(vec![Action::Update(Object::Service(Arc::new(new)))]).await?;
    tracing::info!(service = %id, rollback, "service updated");
    Ok(v1::UpdateServiceResponse { service: Some(read(shared, &id)?) })
}

fn updated(service: &Service, spec: ServiceSpec, sent: Version, now: Timestamp) -> Result<Service, Status> {
    validate::check_change(service, &spec).map_err(|error| Status::unimplemented(error.to_string()))?;
    Ok(skep_plan::updated(service, spec, sent, now))
}

fn rolled_back(service: &Service, now: Timestamp) -> Result<Service, Status> {
    skep_plan::rolled_back_by_user(service, now)
        .ok_or_else(|| Status::failed_precondition(format!("service {} does not have a previous spec", service.id)))
}

pub(super) async fn remove(shared: &Shared, request: v1::RemoveServiceRequest) -> Result<v1::RemoveServiceResponse, Status> {
    let id: ServiceId = id("service_id", &request.service_id)?;
    if shared.store.view().service(&id).is_none() {
        return Err(missing(Kind::Service, id.as_str()));
    }
    shared.write(vec![Action::Remove { kind: Kind::Service, id: id.to_string(), version: None }]).await?;
    tracing::info!(service = %id, "service removed");
    Ok(v1::RemoveServiceResponse {})
}
