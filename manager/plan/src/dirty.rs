//! Whether a task still is what its service asks for.

use crate::constraint::Constraints;
use crate::defaults::task_with_defaults;
use skep_types::{Affinity, ClusterView, EndpointSpec, PortConfig, PublishMode, Service, Task, TaskSpec};
use std::cell::RefCell;
use std::sync::Arc;

/// How a task's spec relates to the service's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Likeness {
    Same,
    OnlyPlacement,
    Different,
}

fn compare(old: &TaskSpec, new: &TaskSpec) -> Likeness {
    if old == new {
        return Likeness::Same;
    }
    // Some clients read a service with its defaults written out and send that back.
    let (old, new) = (&task_with_defaults(old), &task_with_defaults(new));
    if old == new {
        return Likeness::Same;
    }
    if old.placement != new.placement {
        let moved = TaskSpec { placement: new.placement.clone(), ..old.clone() };
        if moved == *new {
            return Likeness::OnlyPlacement;
        }
    }
    Likeness::Different
}

/// Whether tasks of the one are as good for the other: who may come to a port of the ingress network, and to which task, is for
/// nodes to say, which are told of the service itself.
fn serve_alike(old: &EndpointSpec, new: &EndpointSpec) -> bool {
    let bare = |port: &PortConfig| match port.publish_mode {
        PublishMode::Ingress => PortConfig { affinity: Affinity::None, allow: Vec::new(), ..port.clone() },
        PublishMode::Host => port.clone(),
    };
    old == new || (old.mode == new.mode && old.ports.iter().map(bare).eq(new.ports.iter().map(bare)))
}

/// The dirty test of wire-behaviour 12 for the tasks of one service. Comparisons of whole specs are done once per spec, not per
/// task: tasks share theirs.
pub(crate) struct Dirt<'a> {
    view: &'a dyn ClusterView,
    service: &'a Service,
    constraints: Constraints,
    endpoint: EndpointSpec,
    seen: RefCell<Vec<(Arc<TaskSpec>, Likeness)>>,
}

impl<'a> Dirt<'a> {
    pub fn new(view: &'a dyn ClusterView, service: &'a Service) -> Self {
        let constraints = Constraints::of(service.spec.task.placement.as_ref());
        let endpoint = service.spec.endpoint.clone().unwrap_or_default();
        Self { view, service, constraints, endpoint, seen: RefCell::default() }
    }

    fn likeness(&self, spec: &Arc<TaskSpec>) -> Likeness {
        if Arc::ptr_eq(spec, &self.service.spec.task) {
            return Likeness::Same;
        }
        let known = self.seen.borrow().iter().find(|(known, _)| Arc::ptr_eq(known, spec)).map(|(_, likeness)| *likeness);
        known.unwrap_or_else(|| {
            let likeness = compare(spec, &self.service.spec.task);
            let mut seen = self.seen.borrow_mut();
            if seen.len() < 16 {
                seen.push((Arc::clone(spec), likeness));
            }
            likeness
        })
    }

    pub fn is_dirty(&self, task: &Task) -> bool {
        if task.spec_version == self.service.spec_version && task.spec_version.is_some() {
            return false;
        }
        let same_endpoint = match &task.endpoint {
            Some(endpoint) => serve_alike(&endpoint.spec, &self.endpoint),
            None => self.endpoint == EndpointSpec::default(),
        };
        if !same_endpoint {
            return true;
        }
        match self.likeness(&task.spec) {
            Likeness::Same => false,
            Likeness::OnlyPlacement => {
                !task.node_id.as_ref().and_then(|id| self.view.node(id)).is_some_and(|node| self.constraints.match_node(node))
            }
            Likeness::Different => true,
        }
    }
}

/// Whether the task would be replaced by an update: the `up_to_date` filter of task lists is its opposite.
#[must_use]
pub fn is_task_dirty(view: &dyn ClusterView, service: &Service, task: &Task) -> bool {
    Dirt::new(view, service).is_dirty(task)
}
