//! Which nodes have the lines a client asked for. Pure; spec wire-behaviour 21 (`SK/manager/logbroker/subscription.go`).

use skep_proto::v1;
use skep_types::{ClusterView, FieldError, NodeId, ServiceId, Task, TaskId, TaskState};
use std::collections::BTreeSet;

/// What a subscription is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    services: BTreeSet<ServiceId>,
    nodes: BTreeSet<NodeId>,
    tasks: BTreeSet<TaskId>,
}

/// Who has to be asked, and what is already known to be missing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    pub nodes: BTreeSet<NodeId>,
    pub problems: Vec<String>,
}

impl Selector {
    pub(crate) fn parse(wire: Option<&v1::LogSelector>) -> Result<Self, FieldError> {
        let wire = wire.ok_or_else(|| FieldError::new("selector", "is missing; name a service, task or node"))?;
        let selector = Self {
            services: ids("selector.service_ids", &wire.service_ids)?,
            nodes: ids("selector.node_ids", &wire.node_ids)?,
            tasks: ids("selector.task_ids", &wire.task_ids)?,
        };
        if selector == Self::default() {
            return Err(FieldError::new("selector", "selects nothing; name a service, task or node"));
        }
        Ok(selector)
    }

    /// Whether lines of this task belong to the subscription.
    pub(crate) fn covers(&self, task: &Task) -> bool {
        self.tasks.contains(&task.id)
            || task.service_id.as_ref().is_some_and(|service| self.services.contains(service))
            || task.node_id.as_ref().is_some_and(|node| self.nodes.contains(node))
    }

    /// The nodes to ask now. Without `follow` only tasks that have begun to run have lines to give.
    pub(crate) fn select(&self, view: &impl ClusterView, follow: bool) -> Selection {
        let mut selection = Selection { nodes: self.nodes.clone(), problems: Vec::new() };
        for id in &self.tasks {
            match view.task(id) {
                Some(task) => selection.add(task, follow),
                None => selection.problems.push(format!("task {id} does not exist")),
            }
        }
        for id in &self.services {
            if view.service(id).is_none() {
                selection.problems.push(format!("service {id} does not exist"));
            }
            for task in view.tasks_of_service(id) {
                if follow || task.status.state >= TaskState::Running {
                    selection.add(task, follow);
                }
            }
        }
        selection
    }
}

impl Selection {
    fn add(&mut self, task: &Task, follow: bool) {
        match &task.node_id {
            Some(node) => {
                self.nodes.insert(node.clone());
            }
            // With follow it is asked for when it gets a node.
            None if follow => {}
            None => self.problems.push(format!("task {} has not been scheduled", task.id)),
        }
    }
}

fn ids<T: std::str::FromStr<Err = skep_types::BadId> + Ord>(field: &str, texts: &[String]) -> Result<BTreeSet<T>, FieldError> {
    texts
        .iter()
        .enumerate()
        .map(|(index, text)| {
            text.parse().map_err(|error: skep_types::BadId| FieldError::new(format!("{field}[{index}]"), error.to_string()))
        })
        .collect()
}
