//! The service `Health` of `docker.swarmkit.v1` (not the standard gRPC one); spec wire-behaviour 24.

use skep_proto::v1::{self, health_check_response::ServingStatus};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use tonic::{Request, Response, Status};

/// Whether the raft group has a leader that this manager knows.
pub(crate) const RAFT: &str = "Raft";
/// Whether Control calls can be answered.
pub(crate) const CONTROL_API: &str = "ControlAPI";

/// What is served; clones share it. The empty name stands for the whole and is always served.
#[derive(Clone)]
pub(crate) struct HealthService(Arc<RwLock<BTreeMap<&'static str, ServingStatus>>>);

impl Default for HealthService {
    fn default() -> Self {
        let statuses = [("", ServingStatus::Serving), (RAFT, ServingStatus::NotServing), (CONTROL_API, ServingStatus::NotServing)];
        Self(Arc::new(RwLock::new(statuses.into())))
    }
}

impl HealthService {
    pub(crate) fn set(&self, name: &'static str, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(name, status);
    }
}

#[tonic::async_trait]
impl v1::health_server::Health for HealthService {
    async fn check(&self, request: Request<v1::HealthCheckRequest>) -> Result<Response<v1::HealthCheckResponse>, Status> {
        let name = request.into_inner().service;
        let status = self.0.read().unwrap_or_else(PoisonError::into_inner).get(name.as_str()).copied();
        match status {
            Some(status) => Ok(Response::new(v1::HealthCheckResponse { status: status as i32 })),
            None => Err(Status::not_found(format!("unknown service {name:?}"))),
        }
    }
}
