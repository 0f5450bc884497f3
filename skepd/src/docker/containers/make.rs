//! A container that somebody asks for, in the agent's words.

use skep_agent::{ContainersError, Local, LocalWish, NO_NETWORK, RestartWish, predefined};
use skep_docker_api::{ContainerUpdate, NetworkWish, NewContainer, PlaceWish, RestartWish as Asked, container_id};
use skep_types::{ResourceRequirements, Runtime, TaskId};
use std::sync::Arc;

/// Of the id, as a host name (as dockerd).
const SHORT: usize = 12;

fn restart(asked: Asked) -> RestartWish {
    match asked {
        Asked::Never => RestartWish::Never,
        Asked::OnFailure { at_most } => RestartWish::OnFailure { at_most },
        Asked::Always => RestartWish::Always,
        Asked::UnlessStopped => RestartWish::UnlessStopped,
    }
}

pub fn place_wish(wish: PlaceWish) -> skep_agent::PlaceWish {
    let PlaceWish { network, aliases, addresses } = wish;
    skep_agent::PlaceWish { network, aliases, addresses }
}

pub fn local_wish(wish: NewContainer) -> LocalWish {
    let NewContainer {
        name,
        mut spec,
        resources,
        network,
        places,
        ports,
        log_driver,
        reference,
        restart: asked_restart,
        auto_remove,
        stdin_once,
        asked,
    } = wish;
    let id = TaskId::from_random(rand::random());
    let short_id = container_id(&id)[..SHORT].to_owned();
    if spec.hostname.is_empty() && network != NetworkWish::Host {
        spec.hostname.clone_from(&short_id);
    }
    LocalWish {
        id,
        name,
        spec,
        resources: (resources != ResourceRequirements::default()).then_some(resources),
        ranges: ports.iter().enumerate().filter_map(|(index, port)| Some((index, port.last?.into()))).collect(),
        ports: ports.into_iter().map(|port| port.port).collect(),
        networks: match network {
            NetworkWish::Own | NetworkWish::Places => Vec::new(),
            NetworkWish::Host => vec![predefined("host", "host")],
            NetworkWish::None => vec![predefined("none", NO_NETWORK)],
        },
        places: (network == NetworkWish::Places).then(|| places.into_iter().map(place_wish).collect()),
        short_id,
        log_driver,
        reference,
        restart: restart(asked_restart),
        auto_remove,
        stdin_once,
        asked,
    }
}

/// The container with what is to be changed of it.
pub fn changed(local: &mut Local, update: ContainerUpdate) -> Result<(), ContainersError> {
    let ContainerUpdate { nano_cpus, memory_bytes, swap_bytes, pids_limit, restart: asked_restart, asked } = update;
    let task = Arc::make_mut(&mut local.task);
    let spec = Arc::make_mut(&mut task.spec);
    if nano_cpus.is_some() || memory_bytes.is_some() {
        let resources = spec.resources.get_or_insert_default();
        resources.limits.nano_cpus = nano_cpus.unwrap_or(resources.limits.nano_cpus);
        if let Some(memory) = memory_bytes {
            (resources.limits.memory_bytes, resources.swap_bytes) = (memory, swap_bytes);
        }
    }
    if let (Some(limit), Runtime::Container(container)) = (pids_limit, &mut spec.runtime) {
        container.pids_limit = limit;
    }
    local.restart = asked_restart.map_or(local.restart, restart);
    local.asked = asked;
    Ok(())
}
