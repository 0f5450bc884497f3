//! How many tasks services want and have (spec wire-behaviour 13).

use crate::shared::Shared;
use skep_proto::v1;
use skep_store::View;
use skep_types::{ClusterView as _, Service, ServiceId, ServiceMode, Task, TaskState};
use v1::list_service_statuses_response::ServiceStatus;

pub(in crate::control) fn list_statuses(shared: &Shared, request: v1::ListServiceStatusesRequest) -> v1::ListServiceStatusesResponse {
    let view = shared.store.view();
    let status = |id: String| {
        // Unknown services have nothing.
        let service = id.parse::<ServiceId>().ok().and_then(|id| view.service(&id));
        service.map_or_else(|| ServiceStatus { service_id: id, ..Default::default() }, |service| count(&view, service))
    };
    v1::ListServiceStatusesResponse { statuses: request.services.into_iter().map(status).collect() }
}

fn count(view: &View, service: &Service) -> ServiceStatus {
    let mut status = ServiceStatus { service_id: service.id.to_string(), ..Default::default() };
    let iteration = service.job_status.map(|job| job.iteration);
    let is_current = |task: &Task| !service.spec.mode.is_job() || task.job_iteration == iteration;
    let mut wanted_tasks = 0;
    for task in view.tasks_of_service(&service.id).filter(|task| is_current(task)) {
        let state = task.status.state;
        match task.desired_state {
            TaskState::Running => wanted_tasks += 1,
            TaskState::Complete if state != TaskState::Complete => wanted_tasks += 1,
            _ => {}
        }
        if state == TaskState::Running {
            status.running_tasks += 1;
        }
        if state == TaskState::Complete && service.spec.mode.is_job() {
            status.completed_tasks += 1;
        }
    }
    status.desired_tasks = match &service.spec.mode {
        ServiceMode::Replicated { replicas } => *replicas,
        ServiceMode::ReplicatedJob { max_concurrent, .. } => *max_concurrent,
        ServiceMode::Global | ServiceMode::GlobalJob => wanted_tasks,
    };
    status
}
