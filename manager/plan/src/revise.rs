//! How a service object changes when a user creates, updates or rolls it back (wire-behaviour 12, 13, 18.2).

use skep_types::{JobStatus, Service, ServiceId, ServiceSpec, Timestamp, UpdateState, UpdateStatus, Version};

/// A new service as the Control API stores it.
#[must_use]
pub fn new_service(id: ServiceId, spec: ServiceSpec, now: Timestamp) -> Service {
    let job_status = spec.mode.is_job().then_some(JobStatus { iteration: Version(0), last_execution: Some(now) });
    Service { spec_version: Some(Version(0)), job_status, ..Service::new(id, spec) }
}

/// The service with a new spec. `sent` = the object version that the client sent, which becomes the spec's own. A running update
/// ends; every update of a job runs it again.
#[must_use]
pub fn updated(service: &Service, spec: ServiceSpec, sent: Version, now: Timestamp) -> Service {
    Service {
        spec,
        spec_version: Some(sent),
        previous_spec: Some(service.spec.clone()),
        previous_spec_version: service.spec_version,
        update_status: None,
        job_status: service.job_status.map(|status| run_again(status, now)),
        ..service.clone()
    }
}

fn run_again(status: JobStatus, now: Timestamp) -> JobStatus {
    JobStatus { iteration: Version(status.iteration.0 + 1), last_execution: Some(now) }
}

/// The service with its spec and the one before swapped; `None` if there is none before. A job runs again at once, as at every
/// update: nothing is rolled out, so nobody would ever end a rollback of it.
#[must_use]
pub fn rolled_back_by_user(service: &Service, now: Timestamp) -> Option<Service> {
    let previous = service.previous_spec.clone()?;
    let status = UpdateStatus {
        state: UpdateState::RollbackStarted,
        started_at: Some(now),
        message: "manually requested rollback".to_owned(),
        ..UpdateStatus::default()
    };
    Some(Service {
        spec: previous,
        spec_version: service.previous_spec_version,
        previous_spec: Some(service.spec.clone()),
        previous_spec_version: service.spec_version,
        update_status: service.job_status.is_none().then_some(status),
        job_status: service.job_status.map(|status| run_again(status, now)),
        ..service.clone()
    })
}
