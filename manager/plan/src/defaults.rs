//! What an absent part of a service spec means, written out (`SK/api/defaults/service.go`).

use skep_types::{DnsConfig, Placement, ResourceRequirements, RestartCondition, RestartPolicy, Runtime, Service, TaskSpec, UpdateConfig};
use std::sync::Arc;
use std::time::Duration;

const STOP_GRACE_PERIOD: Duration = Duration::from_secs(10);
const RESTART_DELAY: Duration = Duration::from_secs(5);

/// The service with its defaults in place.
#[must_use]
pub fn with_defaults(service: &Service) -> Service {
    let mut service = service.clone();
    service.spec.task = Arc::new(task_with_defaults(&service.spec.task));
    if !service.spec.mode.is_job() {
        for config in [&mut service.spec.update, &mut service.spec.rollback] {
            let config = config.get_or_insert_with(UpdateConfig::default);
            config.monitor = config.monitor.or(UpdateConfig::default().monitor);
        }
    }
    service
}

/// The same of what its tasks are.
pub(crate) fn task_with_defaults(task: &TaskSpec) -> TaskSpec {
    let mut task = task.clone();
    if let Runtime::Container(container) = &mut task.runtime {
        container.stop_grace_period.get_or_insert(STOP_GRACE_PERIOD);
        container.dns.get_or_insert_with(DnsConfig::default);
    }
    task.resources.get_or_insert_with(ResourceRequirements::default);
    task.placement.get_or_insert_with(Placement::default);
    let restart = task.restart.get_or_insert_with(|| RestartPolicy { condition: RestartCondition::Any, ..RestartPolicy::default() });
    restart.delay.get_or_insert(RESTART_DELAY);
    task
}
