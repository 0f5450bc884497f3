//! Which objects a list call wants. Pure; rules: spec wire-behaviour 18.1.
//!
//! Filters of different kinds must all hold, of one kind any value; a list without values holds for everything.

use skep_types::{Cluster, Labels, Network, Node, Runtime, Service, Task, TaskSpec};

/// Names, beginnings of names and of ids, and labels: what every list call offers.
#[derive(Debug, Default)]
pub(crate) struct Common<'a> {
    pub names: &'a [String],
    pub name_prefixes: &'a [String],
    pub id_prefixes: &'a [String],
}

impl Common<'_> {
    /// All kinds must hold.
    pub(crate) fn all(&self, id: &str, name: &str) -> bool {
        any_equal(self.names, name) && any_prefix(self.name_prefixes, name) && any_prefix(self.id_prefixes, id)
    }

    /// Any value of any kind holds (secrets and configs).
    pub(crate) fn any(&self, id: &str, name: &str) -> bool {
        let nothing_asked = self.names.is_empty() && self.name_prefixes.is_empty() && self.id_prefixes.is_empty();
        nothing_asked
            || self.names.iter().any(|wanted| wanted == name)
            || self.name_prefixes.iter().any(|wanted| name.starts_with(wanted.as_str()))
            || self.id_prefixes.iter().any(|wanted| id.starts_with(wanted.as_str()))
    }
}

fn any_equal(wanted: &[String], text: &str) -> bool {
    wanted.is_empty() || wanted.iter().any(|wanted| wanted == text)
}

fn any_prefix(wanted: &[String], text: &str) -> bool {
    wanted.is_empty() || wanted.iter().any(|wanted| text.starts_with(wanted.as_str()))
}

/// Any of the values, or none asked for.
pub(crate) fn any_of<T: PartialEq>(wanted: &[T], value: &T) -> bool {
    wanted.is_empty() || wanted.contains(value)
}

/// All wanted labels must be there; an empty value asks only for the key.
pub(crate) fn labels(wanted: &Labels, labels: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key).is_some_and(|found| value.is_empty() || found == value))
}

/// The text by which lists filter a task's runtime.
pub(crate) fn runtime_name(spec: &TaskSpec) -> &str {
    match &spec.runtime {
        Runtime::Container(_) => "container",
        Runtime::Attachment { .. } => "attachment",
        Runtime::Generic { kind, .. } => kind,
    }
}

macro_rules! common {
    ($filters:expr) => {
        $crate::control::filter::Common {
            names: &$filters.names,
            name_prefixes: &$filters.name_prefixes,
            id_prefixes: &$filters.id_prefixes,
        }
    };
}
pub(crate) use common;

use skep_proto::v1;

pub(crate) fn services(filters: &v1::list_services_request::Filters, service: &Service) -> bool {
    common!(filters).all(service.id.as_str(), service.name())
        && labels(&filters.labels, &service.spec.annotations.labels)
        && any_equal(&filters.runtimes, runtime_name(&service.spec.task))
}

/// `up_to_date` is decided by the caller, who knows the service. Labels are those of the service, as `stack ps` needs them
/// (`SK/manager/controlapi/task.go`).
pub(crate) fn tasks(filters: &v1::list_tasks_request::Filters, task: &Task) -> bool {
    let id_of = |id: Option<&str>| id.unwrap_or_default().to_owned();
    let asks_name = !filters.names.is_empty() || !filters.name_prefixes.is_empty();
    let name = if asks_name { task.name() } else { String::new() };
    common!(filters).all(task.id.as_str(), &name)
        && labels(&filters.labels, &task.service_annotations.labels)
        && any_of(&filters.service_ids, &id_of(task.service_id.as_ref().map(|id| id.as_str())))
        && any_of(&filters.node_ids, &id_of(task.node_id.as_ref().map(|id| id.as_str())))
        && any_of(&filters.desired_states, &(task.desired_state as i32))
        && any_equal(&filters.runtimes, runtime_name(&task.spec))
}

pub(crate) fn nodes(filters: &v1::list_nodes_request::Filters, node: &Node) -> bool {
    let description = node.description.as_ref();
    let empty = Labels::new();
    let engine_labels = description.and_then(|description| description.engine.as_ref()).map_or(&empty, |engine| &engine.labels);
    let membership = match node.spec.membership {
        skep_types::Membership::Pending => v1::node_spec::Membership::Pending,
        skep_types::Membership::Accepted => v1::node_spec::Membership::Accepted,
    };
    let role = match node.role {
        skep_types::NodeRole::Worker => v1::NodeRole::Worker,
        skep_types::NodeRole::Manager => v1::NodeRole::Manager,
    };
    common!(filters).all(node.id.as_str(), description.map_or("", |description| &description.hostname))
        && labels(&filters.labels, engine_labels)
        && labels(&filters.node_labels, &node.spec.annotations.labels)
        && any_of(&filters.memberships, &(membership as i32))
        && any_of(&filters.roles, &(role as i32))
}

pub(crate) fn networks(filters: &v1::list_networks_request::Filters, network: &Network) -> bool {
    common!(filters).all(network.id.as_str(), &network.spec.annotations.name) && labels(&filters.labels, &network.spec.annotations.labels)
}

pub(crate) fn clusters(filters: &v1::list_clusters_request::Filters, cluster: &Cluster) -> bool {
    common!(filters).all(cluster.id.as_str(), &cluster.spec.annotations.name) && labels(&filters.labels, &cluster.spec.annotations.labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{ContainerSpec, NodeId, TaskId, TaskState};
    use std::sync::Arc;

    fn texts(values: &[&str]) -> Vec<String> {
        values.iter().map(|&value| value.to_owned()).collect()
    }

    #[test]
    fn kinds_are_anded_and_values_ored() {
        let (names, prefixes, ids) = (texts(&["web", "db"]), texts(&["w"]), texts(&["00"]));
        let filter = Common { names: &names, name_prefixes: &prefixes, id_prefixes: &ids };
        assert!(filter.all("001", "web"));
        assert!(!filter.all("001", "db"), "the prefix does not hold");
        assert!(!filter.all("1", "web"), "the id does not begin so");
        assert!(!filter.all("001", "Web"), "names are compared exactly");
        assert!(filter.any("1", "db"), "for secrets one match is enough");
        assert!(Common::default().all("x", "y") && Common::default().any("x", "y"));
    }

    #[test]
    fn a_label_without_value_asks_for_the_key() {
        let have = Labels::from([("a".to_owned(), "1".to_owned())]);
        let want = |key: &str, value: &str| Labels::from([(key.to_owned(), value.to_owned())]);
        assert!(labels(&want("a", "1"), &have) && labels(&want("a", ""), &have));
        assert!(!labels(&want("a", "2"), &have) && !labels(&want("b", ""), &have));
    }

    fn task() -> Task {
        let spec = TaskSpec::new(ContainerSpec::default());
        Task {
            id: TaskId::for_test(7),
            meta: Default::default(),
            spec: Arc::new(spec),
            spec_version: None,
            service_id: None,
            slot: 2,
            node_id: Some(NodeId::for_test(1)),
            annotations: Default::default(),
            service_annotations: skep_types::Annotations {
                name: "web".into(),
                labels: Labels::from([("tier".into(), "front".into())]),
                ..Default::default()
            },
            status: Default::default(),
            desired_state: TaskState::Running,
            networks: Vec::new(),
            endpoint: None,
            log_driver: None,
            assigned_generic_resources: Vec::new(),
            job_iteration: None,
        }
    }

    #[test]
    fn tasks_are_found_by_node_state_and_name() {
        let task = task();
        let yes = |filters: v1::list_tasks_request::Filters| assert!(tasks(&filters, &task), "{filters:?}");
        let no = |filters: v1::list_tasks_request::Filters| assert!(!tasks(&filters, &task), "{filters:?}");
        let none = v1::list_tasks_request::Filters::default;
        yes(none());
        yes(v1::list_tasks_request::Filters { node_ids: vec![NodeId::for_test(1).to_string()], ..none() });
        no(v1::list_tasks_request::Filters { node_ids: vec![NodeId::for_test(2).to_string()], ..none() });
        yes(v1::list_tasks_request::Filters { desired_states: vec![512], ..none() });
        no(v1::list_tasks_request::Filters { desired_states: vec![640], ..none() });
        yes(v1::list_tasks_request::Filters { name_prefixes: texts(&["web.2."]), ..none() });
        no(v1::list_tasks_request::Filters { service_ids: texts(&["abc"]), ..none() });
        yes(v1::list_tasks_request::Filters { runtimes: texts(&["container"]), ..none() });
        no(v1::list_tasks_request::Filters { runtimes: texts(&["attachment"]), ..none() });
        let labelled = |value: &str| v1::list_tasks_request::Filters { labels: [("tier".into(), value.into())].into(), ..none() };
        yes(labelled("front"));
        no(labelled("back"));
    }
}
