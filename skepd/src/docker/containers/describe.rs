//! The agent's facts in the API's words.

use skep_agent::{ContainerFacts, ExecPhase, ExecView, HealthView, Local, Place, Story, StoryMount, task_mac};
use skep_docker_api::task_labels as labels;
use skep_docker_api::{
    BlockUsage, Container, Endpoint, Exec, ExecWish, Health, HealthResult, HealthWord, HostFiles, Life, MountPoint, NetworkUsage, Phase,
    Plain, Program, Usage, container_id,
};
use skep_types::{NetworkAttachment, NetworkDriver, Task, TaskState};
use std::net::IpAddr;

fn life(facts: &ContainerFacts) -> Life {
    let status = &facts.status;
    let told = facts.story.as_ref().and_then(|story| story.started_at);
    // The notes of one that is no task's are written anew with each life.
    let started_at = facts.local.as_ref().map_or(told, |local| local.started_at);
    let is_over = status.state.is_terminal();
    let container = status.container.clone().unwrap_or_default();
    let has_run = started_at.is_some() || container.pid > 0;
    let phase = match (facts.is_running, facts.is_paused) {
        (true, true) => Phase::Paused,
        (true, false) => Phase::Running,
        (false, _) if facts.local.as_ref().is_some_and(|local| local.is_restarting) => Phase::Restarting,
        (false, _) if is_over && has_run => Phase::Exited,
        (false, _) => Phase::Created,
    };
    Life {
        phase,
        pid: if facts.is_running { container.pid } else { 0 },
        exit_code: if facts.is_running { 0 } else { container.exit_code },
        is_oom_killed: facts.is_oom_killed,
        // Why it could not be started: what it did afterwards is its own.
        error: if has_run && facts.local.is_none() { String::new() } else { status.err.clone() },
        started_at,
        finished_at: (is_over && has_run).then_some(status.timestamp),
    }
}

fn health(facts: &ContainerFacts) -> Option<Health> {
    // An image may have a check that the service switched off: the agent knows which is in force.
    let has_check = facts.healthcheck.as_ref().is_some_and(|check| check.test.first().is_some_and(|word| word != "NONE"));
    let view = facts.health.clone().or_else(|| (has_check && facts.is_running).then(HealthView::default))?;
    let result = |one: skep_agent::HealthResult| HealthResult {
        began: one.began,
        ended: one.ended,
        exit_code: one.exit_code.unwrap_or(-1),
        output: one.output,
    };
    Some(Health {
        word: match view.is_healthy {
            None => HealthWord::Starting,
            Some(true) => HealthWord::Healthy,
            Some(false) => HealthWord::Unhealthy,
        },
        failures_in_a_row: view.failures_in_a_row,
        log: view.results.into_iter().map(result).collect(),
    })
}

fn mount(mount: StoryMount) -> MountPoint {
    let kind = match mount.kind.as_str() {
        "volume" => "volume",
        "tmpfs" => "tmpfs",
        _ => "bind",
    };
    MountPoint {
        kind,
        name: mount.name,
        source: mount.source.display().to_string(),
        destination: mount.target,
        is_writable: mount.is_writable,
        propagation: mount.propagation,
    }
}

fn endpoint(attachment: &NetworkAttachment) -> Endpoint {
    let network = &attachment.network;
    let address = |v6: bool| attachment.addresses.iter().find(|text| text.contains(':') == v6).cloned().unwrap_or_default();
    let gateways = network.ipam.iter().flat_map(|ipam| &ipam.configs).map(|config| config.gateway.clone());
    let gateways: Vec<String> = gateways.filter(|gateway| !gateway.is_empty()).collect();
    let gateway = |v6: bool| gateways.iter().find(|text| text.contains(':') == v6).cloned().unwrap_or_default();
    Endpoint {
        network: network.spec.annotations.name.clone(),
        network_id: network.id.to_string(),
        address: address(false),
        gateway: gateway(false),
        address_v6: address(true),
        gateway_v6: gateway(true),
        aliases: attachment.aliases.clone(),
        ..Endpoint::default()
    }
}

/// The place of a container that somebody made by hand; `rest`: its addresses that are not the cluster's.
fn place(task: &Task, place: &Place, rest: &[IpAddr]) -> Endpoint {
    let wished =
        Endpoint { network: place.network.clone(), aliases: place.aliases.clone(), wished: place.addresses.clone(), ..Endpoint::default() };
    let Some(held) = &place.held else { return wished };
    let network = &held.place.network;
    let shown = match &held.attachment {
        Some(attachment) => Endpoint { id: container_id(attachment), dns_names: held.place.aliases.clone(), ..endpoint(&held.place) },
        None => own(rest),
    };
    let mac = task_mac(&task.id, &network.id).to_string();
    Endpoint { aliases: wished.aliases, wished: wished.wished, mac, ..shown }
}

/// On the node's own network.
fn own(addresses: &[IpAddr]) -> Endpoint {
    let address = |v6: bool| addresses.iter().find(|address| address.is_ipv6() == v6).map(ToString::to_string).unwrap_or_default();
    Endpoint { network: "bridge".into(), address: address(false), address_v6: address(true), ..Endpoint::default() }
}

/// Those of the cluster, and the node's own for a task that is on no other.
fn endpoints(task: &Task, story: &Story, local: Option<&Local>) -> Vec<Endpoint> {
    if let Some(places) = local.and_then(|local| local.places.as_ref()) {
        let texts = task.networks.iter().flat_map(|attachment| &attachment.addresses);
        let known: Vec<IpAddr> = texts.filter_map(|text| text.split('/').next()?.parse().ok()).collect();
        let rest: Vec<IpAddr> = story.addresses.iter().copied().filter(|address| !known.contains(address)).collect();
        return places.iter().map(|one| place(task, one, &rest)).collect();
    }
    let mut list: Vec<Endpoint> = task.networks.iter().map(endpoint).collect();
    let has_own = !task.networks.iter().any(|attachment| attachment.network.driver() == NetworkDriver::Host);
    if list.is_empty() && has_own {
        list.push(own(&story.addresses));
    }
    list
}

pub fn describe(facts: ContainerFacts) -> Container {
    let (life, health) = (life(&facts), health(&facts));
    let ContainerFacts { task, mut spec, status, story, healthcheck, execs, etc, cgroup_parent, local, .. } = facts;
    let networks = endpoints(&task, &story.clone().unwrap_or_default(), local.as_ref());
    let plain = local.map(|local| Plain { asked: local.asked, restart_count: local.restarts.count });
    let story = story.unwrap_or_default();
    spec.healthcheck = healthcheck;
    // Nobody is to see it.
    spec.registry_auth = skep_types::Sensitive::default();
    let file = |name: &str| etc.join(name).display().to_string();
    Container {
        id: container_id(&task.id),
        name: task.name(),
        created_at: if story.created_at.0 == 0 { task.meta.created_at } else { story.created_at },
        image_id: story.image_id.clone(),
        labels: if plain.is_some() { spec.labels.clone() } else { labels(&task, &spec.labels) },
        resources: task.spec.resources.clone().unwrap_or_default(),
        spec,
        is_task: plain.is_none(),
        plain,
        networks,
        program: Program { arguments: story.args, env: story.env, dir: story.dir, hostname: story.hostname },
        life,
        health,
        mounts: story.mounts.into_iter().map(mount).collect(),
        ports: if status.state == TaskState::Running { status.ports } else { Vec::new() },
        log_driver: task.log_driver.clone(),
        files: HostFiles { resolv_conf: file("resolv.conf"), hostname: file("hostname"), hosts: file("hosts") },
        cgroup_parent,
        snapshotter: story.snapshotter,
        execs,
    }
}

pub fn exec(view: ExecView) -> Exec {
    let (program, wish) = (view.wish.program.clone(), &view.wish);
    let (is_running, exit_code, pid) = match view.phase {
        ExecPhase::Created => (false, None, 0),
        ExecPhase::Starting => (true, None, 0),
        ExecPhase::Running { pid } => (true, None, pid),
        ExecPhase::Ended { exit_code } => (false, Some(exit_code), 0),
    };
    Exec {
        id: view.id,
        wish: ExecWish {
            container: container_id(&view.task),
            command: program.command,
            env: program.env,
            user: program.user,
            dir: program.dir,
            has_stdin: program.has_stdin,
            has_stdout: wish.has_stdout,
            has_stderr: wish.has_stderr,
            has_terminal: program.has_terminal,
            is_privileged: program.is_privileged,
            detach_keys: wish.detach_keys.clone(),
            window: None,
        },
        is_running,
        exit_code,
        pid,
    }
}

pub fn usage(usage: skep_agent::Usage) -> Usage {
    let network = |used: skep_agent::NetworkUsage| NetworkUsage {
        rx_bytes: used.rx_bytes,
        rx_packets: used.rx_packets,
        rx_errors: used.rx_errors,
        rx_dropped: used.rx_dropped,
        tx_bytes: used.tx_bytes,
        tx_packets: used.tx_packets,
        tx_errors: used.tx_errors,
        tx_dropped: used.tx_dropped,
    };
    let block = |one: skep_agent::BlockUsage| BlockUsage { major: one.major, minor: one.minor, operation: one.operation, bytes: one.bytes };
    Usage {
        read_at: usage.read_at,
        cpu_total: usage.cpu_total,
        cpu_kernel: usage.cpu_kernel,
        cpu_user: usage.cpu_user,
        cpu_system: usage.cpu_system,
        cpus: usage.cpus,
        periods: usage.periods,
        throttled_periods: usage.throttled_periods,
        throttled_time: usage.throttled_time,
        memory: usage.memory,
        memory_peak: usage.memory_peak,
        memory_limit: usage.memory_limit,
        memory_failures: usage.memory_failures,
        memory_details: usage.memory_details,
        pids: usage.pids,
        pids_limit: usage.pids_limit,
        networks: usage.networks.into_iter().map(|(device, used)| (device, network(used))).collect(),
        block: usage.block.into_iter().map(block).collect(),
    }
}
