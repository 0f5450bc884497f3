//! `/info`.

use crate::body::Json;
use crate::types::common::Time;
use crate::types::system::{Commit, ContainerdInfo, IndexConfig, Info, Namespaces, Peer, Plugins, RegistryConfig, Runtime, SwarmInfo};
use crate::{ApiError, Backend, LocalState, NodeFacts, Phase, Select};
use axum::extract::State;
use std::collections::BTreeMap;

/// What docker.io's credentials are filed under.
const INDEX_SERVER: &str = "https://index.docker.io/v1/";

const TWO_MANAGERS: &str = "WARNING: Running Swarm in a two-manager configuration. This configuration provides\n         no fault \
    tolerance, and poses a high risk to lose control over the cluster.\n         Refer to \
    https://docs.docker.com/engine/swarm/admin_guide/ to configure the\n         Swarm for fault-tolerance.";

pub(crate) async fn info(State(backend): State<Backend>) -> Result<Json<Info>, ApiError> {
    let facts = backend.node.facts().await?;
    let swarm = swarm(&backend).await;
    let mut info = of_facts(&facts, backend.node.engine_version());
    // A containerd that does not answer is one of the warnings, not the end of the answer.
    match backend.containers.list().await {
        Ok(containers) => {
            let count = |wanted: fn(Phase) -> bool| containers.iter().filter(|container| wanted(container.life.phase)).count();
            info.containers = containers.len();
            info.containers_running = count(|phase| phase == Phase::Running);
            info.containers_paused = count(|phase| phase == Phase::Paused);
            info.containers_stopped = count(|phase| !matches!(phase, Phase::Running | Phase::Paused));
        }
        Err(error) => info.warnings.get_or_insert_default().push(format!("WARNING: containers cannot be counted: {error}")),
    }
    match backend.images.list().await {
        Ok(images) => info.images = images.len(),
        Err(error) => info.warnings.get_or_insert_default().push(format!("WARNING: images cannot be counted: {error}")),
    }
    if !swarm.warnings.is_empty() {
        info.warnings.get_or_insert_default().extend(swarm.warnings.iter().cloned());
    }
    info.swarm = swarm;
    Ok(Json(info))
}

/// The node's membership, and on a manager what the cluster looks like. What the manager cannot say is left out.
async fn swarm(backend: &Backend) -> SwarmInfo {
    let state = backend.node.swarm().await;
    let mut info = SwarmInfo {
        node_id: state.node_id,
        node_addr: state.node_addr,
        local_node_state: state.local.name(),
        control_available: state.is_manager,
        error: state.error,
        ..SwarmInfo::default()
    };
    let mut peers: Vec<Peer> = state.managers.into_iter().map(|(node_id, addr)| Peer { node_id, addr }).collect();
    if state.is_manager {
        match backend.cluster.cluster().await {
            Ok(cluster) => info.cluster = Some((&cluster).into()),
            Err(error) => info.error = error.message,
        }
        if let Ok(nodes) = backend.cluster.list_nodes(&Select::default()).await {
            let managers = || nodes.iter().filter_map(|entry| Some((entry.node.id.to_string(), entry.manager.as_ref()?.addr.clone())));
            (info.nodes, info.managers) = (nodes.len(), managers().count());
            peers = managers().map(|(node_id, addr)| Peer { node_id, addr }).collect();
        }
        if info.managers == 2 {
            info.warnings.push(TWO_MANAGERS.into());
        }
    }
    info.remote_managers = (!peers.is_empty() && state.local != LocalState::Inactive).then_some(peers);
    info
}

fn of_facts(facts: &NodeFacts, engine: &str) -> Info {
    let description = &facts.description;
    let machine = description.engine.clone().unwrap_or_default();
    let plugins = |kind: &str| {
        let own = machine.plugins.iter().filter(|plugin| plugin.kind == kind);
        own.map(|plugin| plugin.name.clone()).collect::<Vec<_>>()
    };
    let limits = facts.limits;
    let missing = [
        (limits.memory, "memory limit"),
        (limits.swap, "swap limit"),
        (limits.cpu_quota, "cpu cfs quota"),
        (limits.cpu_quota, "cpu cfs period"),
        (limits.cpu_shares, "cpu shares"),
        (limits.cpuset, "cpuset"),
        (limits.pids, "pids limit"),
    ];
    let mut warnings: Vec<String> = missing.iter().filter(|(has, _)| !has).map(|(_, what)| format!("WARNING: No {what} support")).collect();
    if !facts.ipv4_forwarding {
        warnings.push("WARNING: IPv4 forwarding is disabled".into());
    }
    warnings.extend(facts.problems.iter().map(|problem| format!("WARNING: {problem}")));
    let mut security: Vec<String> = Vec::new();
    security.extend(facts.apparmor.then(|| "name=apparmor".into()));
    security.extend(facts.seccomp.then(|| "name=seccomp,profile=builtin".into()));
    security.extend((facts.cgroup_version == 2).then(|| "name=cgroupns".into()));
    let index = |name: &str, secure: bool, official: bool| {
        (name.to_owned(), IndexConfig { name: name.to_owned(), mirrors: Vec::new(), secure, official })
    };
    let indexes = facts.insecure_registries.iter().map(|name| index(name, false, false)).chain([index("docker.io", true, true)]);
    let generic = description.resources.generic.iter().map(Into::into).collect::<Vec<_>>();
    let commit = |id: &str| Commit { id: id.to_owned(), expected: id.to_owned() };
    let unknown = || Commit { id: "N/A".into(), expected: "N/A".into() };
    Info {
        id: facts.engine_id.clone(),
        driver: facts.driver.clone(),
        driver_status: vec![["driver-type".into(), "io.containerd.snapshotter.v1".into()]],
        plugins: Plugins { volume: plugins("Volume"), network: plugins("Network"), authorization: None, log: plugins("Log") },
        memory_limit: limits.memory,
        swap_limit: limits.swap,
        cpu_cfs_period: limits.cpu_quota,
        cpu_cfs_quota: limits.cpu_quota,
        cpu_shares: limits.cpu_shares,
        cpu_set: limits.cpuset,
        pids_limit: limits.pids,
        ipv4_forwarding: facts.ipv4_forwarding,
        // Bridges here do not depend on it.
        bridge_nf_iptables: true,
        bridge_nf_ip6tables: true,
        open_files: facts.open_files,
        threads: facts.threads,
        system_time: Time::from(facts.now),
        logging_driver: facts.default_log_driver.clone(),
        cgroup_driver: "cgroupfs",
        cgroup_version: facts.cgroup_version.to_string(),
        kernel_version: facts.kernel_version.clone(),
        operating_system: facts.operating_system.clone(),
        os_version: facts.os_version.clone(),
        os_type: "linux",
        architecture: description.platform.architecture.clone(),
        index_server_address: INDEX_SERVER,
        registry_config: RegistryConfig {
            insecure_cidrs: vec!["::1/128".into(), "127.0.0.0/8".into()],
            index_configs: indexes.collect(),
            mirrors: None,
        },
        cpus: description.resources.nano_cpus / 1_000_000_000,
        mem_total: description.resources.memory_bytes,
        generic_resources: (!generic.is_empty()).then_some(generic),
        docker_root_dir: facts.data_dir.clone(),
        name: description.hostname.clone(),
        labels: machine.labels.iter().map(|(key, value)| format!("{key}={value}")).collect(),
        server_version: engine.into(),
        runtimes: BTreeMap::from([("runc".to_owned(), Runtime { path: "runc".into() })]),
        default_runtime: "runc".into(),
        // Tasks go on while the daemon is stopped.
        live_restore_enabled: true,
        init_binary: "skep-init".into(),
        containerd_commit: facts.containerd.as_ref().map_or_else(unknown, |containerd| commit(&containerd.version)),
        runc_commit: facts.runc.as_deref().map_or_else(unknown, commit),
        init_commit: commit(engine),
        security_options: security,
        containerd: facts.containerd.as_ref().map(|containerd| ContainerdInfo {
            address: containerd.address.clone(),
            namespaces: Namespaces { containers: containerd.namespace.clone(), plugins: String::new() },
        }),
        warnings: (!warnings.is_empty()).then_some(warnings),
        ..Info::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_work_is_a_warning() {
        let facts = NodeFacts { problems: vec!["no certificate".into()], ..NodeFacts::default() };
        assert!(of_facts(&facts, "1").warnings.unwrap_or_default().contains(&"WARNING: no certificate".to_owned()));
    }
}
