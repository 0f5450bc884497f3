//! `/services`: list, create, inspect, update, remove, logs.

mod names; // for the nameless
mod wish; // from a request's body to what the cluster is asked for

use crate::body::{Json, list_of, with_status};
use crate::filters::Filters;
use crate::query::Query;
use crate::types::service::{CreateResponse, Service, UpdateResponse};
use crate::types::service_spec::ServiceSpec;
use crate::{ApiError, ApiVersion, Backend, ErrorKind, Select, logs, lookup};
use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::{get, post};
use http::{HeaderMap, StatusCode};
use skep_types::{Runtime, ServiceMode};
use std::collections::HashMap;
use wish::{Credentials, registry_auth};

pub(crate) fn routes() -> Router<Backend> {
    Router::new()
        .route("/services", get(list))
        .route("/services/create", post(create))
        .route("/services/{id}", get(inspect).delete(remove))
        .route("/services/{id}/update", post(update))
        .route("/services/{id}/logs", get(logs::of_service))
}

const FILTERS: [&str; 5] = ["id", "label", "mode", "name", "runtime"];

/// So many made-up names are tried before their being taken is the client's problem.
const NAME_TRIES: usize = 5;

async fn list(State(backend): State<Backend>, version: ApiVersion, query: Query) -> Result<Response, ApiError> {
    let filters = query.filters(&FILTERS)?;
    // Older clients count tasks themselves.
    let with_status = query.strict("status")? && version >= ApiVersion::v1(41);
    let select = Select { ids: filters.values("id").to_vec(), names: Vec::new() };
    let mut services = backend.cluster.list_services(&select).await?;
    services.retain(|service| is_wanted(&filters, service));
    let mut counts = HashMap::new();
    if with_status {
        let ids: Vec<String> = services.iter().map(|service| service.id.to_string()).collect();
        counts = backend.cluster.count_tasks(&ids).await?.into_iter().map(|counts| (counts.service_id.clone(), counts)).collect();
    }
    Ok(list_of(services.into_iter().map(move |service| {
        let status = with_status.then(|| counts.get(service.id.as_str()).map(Into::into).unwrap_or_default());
        Service { service_status: status, ..Service::from(&*service) }
    })))
}

fn is_wanted(filters: &Filters, service: &skep_types::Service) -> bool {
    let mode = match service.spec.mode {
        ServiceMode::Replicated { .. } => "replicated",
        ServiceMode::Global => "global",
        ServiceMode::ReplicatedJob { .. } => "replicated-job",
        ServiceMode::GlobalJob => "global-job",
    };
    filters.begins("id", service.id.as_str())
        && filters.begins("name", service.name())
        && filters.labels("label", &service.spec.annotations.labels)
        && filters.is("mode", mode)
        && is_of_runtime(filters, &service.spec.task.runtime)
}

/// Containers unless other runtimes are asked for.
pub(crate) fn is_of_runtime(filters: &Filters, runtime: &Runtime) -> bool {
    let name = match runtime {
        Runtime::Container(_) => "container",
        Runtime::Attachment { .. } => "attachment",
        Runtime::Generic { kind, .. } => kind,
    };
    if filters.has("runtime") { filters.is("runtime", name) } else { name == "container" }
}

async fn create(State(backend): State<Backend>, headers: HeaderMap, Json(body): Json<ServiceSpec>) -> Result<Response, ApiError> {
    let mut spec = wish::read(&backend, body).await?;
    if let Some(auth) = registry_auth(&headers) {
        wish::set_auth(&mut spec, auth);
    }
    let is_nameless = spec.annotations.name.is_empty();
    let mut tries = 0;
    let service = loop {
        if is_nameless {
            spec.annotations.name = names::made_up_name();
        }
        tries += 1;
        match backend.cluster.create_service(spec.clone()).await {
            Err(error) if error.kind == ErrorKind::AlreadyExists && is_nameless && tries < NAME_TRIES => {}
            outcome => break outcome?,
        }
    };
    let warnings = backend.cluster.advice(&service.spec);
    Ok(with_status(StatusCode::CREATED, &CreateResponse { id: service.id.to_string(), warnings }))
}

async fn inspect(State(backend): State<Backend>, Path(id): Path<String>, query: Query) -> Result<Json<Service>, ApiError> {
    let with_defaults = query.strict("insertDefaults")?;
    let mut service = lookup::service(&backend, &id).await?;
    if with_defaults {
        service = backend.cluster.service_with_defaults(service.id.as_str()).await?;
    }
    Ok(Json((&service).into()))
}

async fn update(
    State(backend): State<Backend>,
    Path(id): Path<String>,
    query: Query,
    headers: HeaderMap,
    Json(body): Json<ServiceSpec>,
) -> Result<Json<UpdateResponse>, ApiError> {
    let version = query.version("service")?;
    let rollback = match query.text("rollback") {
        None | Some("none") => false,
        Some("previous") => true,
        Some(other) => return Err(ApiError::invalid(format!("unrecognized rollback option {other}; use none or previous"))),
    };
    let from = Credentials::parse(query.text("registryAuthFrom"))?;
    let service = lookup::service(&backend, &id).await?;
    let mut spec = wish::read(&backend, body).await?;
    crate::types::unsaid::keep(&mut spec, &service);
    if !rollback && !spec.networks.is_empty() && spec.networks != service.spec.networks {
        return Err(ApiError::unimplemented("networks must be migrated to TaskSpec before being changed"));
    }
    let auth = match registry_auth(&headers) {
        Some(auth) => auth,
        None => from.of(&service)?,
    };
    wish::set_auth(&mut spec, auth);
    let service = backend.cluster.update_service(service.id.as_str(), version, spec, rollback).await?;
    let warnings = backend.cluster.advice(&service.spec);
    Ok(Json(UpdateResponse { warnings: (!warnings.is_empty()).then_some(warnings) }))
}

async fn remove(State(backend): State<Backend>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    let service = lookup::service(&backend, &id).await?;
    backend.cluster.remove_service(service.id.as_str()).await?;
    Ok(StatusCode::OK)
}
