//! The networks of the cluster that this node's containers are on, as the agent has them from its managers.

use skep_agent::ContainerFacts;
use skep_docker_api::{NetworkHere, PlaceHere, container_id};
use skep_types::{NetworkId, TaskState};
use std::collections::BTreeMap;
use std::sync::Arc;

/// In order of their ids.
pub fn of(containers: &[ContainerFacts]) -> Vec<NetworkHere> {
    let mut found: BTreeMap<NetworkId, NetworkHere> = BTreeMap::new();
    for one in containers.iter().filter(|one| one.status.state <= TaskState::Running) {
        for attachment in one.task.networks.iter().filter(|attachment| !attachment.network.is_predefined()) {
            let id = &attachment.network.id;
            let held = one.local.iter().flat_map(|local| local.places.iter().flatten()).filter_map(|place| place.held.as_ref());
            let stands_for_it = held.filter(|held| held.place.network.id == *id).find_map(|held| held.attachment.as_ref());
            let place = PlaceHere {
                container: container_id(&one.task.id),
                name: one.task.name(),
                endpoint: container_id(stands_for_it.unwrap_or(&one.task.id)),
                addresses: attachment.addresses.clone(),
            };
            let entry = found.entry(id.clone());
            entry.or_insert_with(|| NetworkHere { network: Arc::clone(&attachment.network), places: Vec::new() }).places.push(place);
        }
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{Annotations, ContainerSpec, Meta, Network, NetworkAttachment, NetworkSpec, Task, TaskId, TaskSpec, TaskStatus};

    fn container(number: u64, state: TaskState, network: &Arc<Network>) -> ContainerFacts {
        let attachment = NetworkAttachment {
            network: Arc::clone(network),
            addresses: vec![format!("10.0.1.{number}/24")],
            aliases: Vec::new(),
            driver_attachment_opts: Default::default(),
        };
        let task = Task {
            id: TaskId::for_test(number),
            meta: Meta::default(),
            spec: Arc::new(TaskSpec::new(ContainerSpec::default())),
            spec_version: None,
            service_id: None,
            slot: 0,
            node_id: None,
            annotations: Annotations::default(),
            service_annotations: Annotations::default(),
            status: TaskStatus::default(),
            desired_state: TaskState::Running,
            networks: vec![attachment],
            endpoint: None,
            log_driver: None,
            assigned_generic_resources: Vec::new(),
            job_iteration: None,
        };
        ContainerFacts {
            task: Arc::new(task),
            spec: ContainerSpec::default(),
            status: TaskStatus { state, ..TaskStatus::default() },
            story: None,
            is_running: state == TaskState::Running,
            is_paused: false,
            is_oom_killed: false,
            health: None,
            healthcheck: None,
            execs: Vec::new(),
            etc: Default::default(),
            cgroup_parent: String::new(),
            local: None,
        }
    }

    #[test]
    fn those_of_containers_that_have_not_ended_are_there_once() {
        let network = Arc::new(Network::new(NetworkId::for_test(3), NetworkSpec::default()));
        let all = [
            container(1, TaskState::Running, &network),
            container(2, TaskState::Starting, &network),
            container(3, TaskState::Failed, &network),
        ];
        let found = of(&all);
        assert_eq!((found.len(), found[0].network.id == network.id, found[0].places.len()), (1, true, 2));
        assert_eq!(found[0].places[0].container, container_id(&TaskId::for_test(1)));
        assert_eq!(found[0].places[1].addresses, ["10.0.1.2/24"]);
        assert_eq!(of(&all[2..]), []);
    }
}
