//! `/containers/{id}/json`: everything about one.

use super::find;
use super::summary::{cidr, health, mounts, network_mode, networks, state, time};
use crate::body::Json;
use crate::query::Query;
use crate::types::container_spec::Healthcheck;
use crate::types::create::CreateBody;
use crate::types::mount::Mount;
use crate::{ApiError, Backend, Container, Phase, Plain};
use axum::extract::{Path, State};
use serde_json::{Map, Value, json};
use skep_types::Ulimit;

pub(super) async fn inspect(State(backend): State<Backend>, Path(id): Path<String>, query: Query) -> Result<Json<Value>, ApiError> {
    super::no_sizes(&query)?;
    Ok(Json(json(&find(&backend, &id).await?)))
}

fn json(one: &Container) -> Value {
    let arguments = &one.program.arguments;
    let mut value = json!({
        "Id": one.id,
        "Created": time(Some(one.created_at)),
        "Path": arguments.first().map(String::as_str).unwrap_or_default(),
        "Args": arguments.get(1..).unwrap_or_default(),
        "State": life(one),
        "Image": one.image_id,
        "ResolvConfPath": one.files.resolv_conf,
        "HostnamePath": one.files.hostname,
        "HostsPath": one.files.hosts,
        // The log writer's files are no interface.
        "LogPath": "",
        "Name": format!("/{}", one.name),
        "RestartCount": 0,
        "Driver": one.snapshotter,
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": if one.execs.is_empty() { Value::Null } else { json!(one.execs) },
        "HostConfig": host_config(one),
        "GraphDriver": { "Data": null, "Name": one.snapshotter },
        "Mounts": mounts(&one.mounts),
        "Config": config(one),
        "NetworkSettings": network_settings(one),
    });
    if let Some(plain) = &one.plain {
        as_asked(&mut value, plain);
    }
    value
}

/// What a client asked for and is to read back, where the node has no words of its own for it.
fn as_asked(value: &mut Value, plain: &Plain) {
    let CreateBody { host_config: host, attach_stdin, attach_stdout, attach_stderr, stdin_once, exposed_ports, volumes, .. } =
        serde_json::from_str(&plain.asked).unwrap_or_default();
    value["RestartCount"] = json!(plain.restart_count);
    let config = &mut value["Config"];
    for (name, is) in
        [("AttachStdin", attach_stdin), ("AttachStdout", attach_stdout), ("AttachStderr", attach_stderr), ("StdinOnce", stdin_once)]
    {
        config[name] = json!(is);
    }
    if !exposed_ports.is_empty() || !host.port_bindings.is_empty() {
        let ports: Map<String, Value> =
            exposed_ports.into_keys().chain(host.port_bindings.keys().cloned()).map(|port| (port, json!({}))).collect();
        config["ExposedPorts"] = Value::Object(ports);
    }
    config["Volumes"] = if volumes.is_empty() { Value::Null } else { json!(volumes) };
    let shown = &mut value["HostConfig"];
    let restart = if host.restart_policy.name.is_empty() { "no" } else { &host.restart_policy.name };
    shown["RestartPolicy"] = json!({ "Name": restart, "MaximumRetryCount": host.restart_policy.maximum_retry_count });
    shown["AutoRemove"] = json!(host.auto_remove);
    shown["Binds"] = list(&host.binds);
    shown["NetworkMode"] = json!(if host.network_mode.is_empty() { "default" } else { &host.network_mode });
    shown["PortBindings"] = json!(host.port_bindings);
    shown["SecurityOpt"] = list(&host.security_opt);
    shown["ExtraHosts"] = list(&host.extra_hosts);
    (shown["NanoCpus"], shown["CpuPeriod"], shown["CpuQuota"]) = (json!(host.nano_cpus), json!(host.cpu_period), json!(host.cpu_quota));
    shown["MemorySwap"] = json!(host.memory_swap);
    if host.shm_size != 0 {
        shown["ShmSize"] = json!(host.shm_size);
    }
    if !host.tmpfs.is_empty() {
        shown["Tmpfs"] = json!(host.tmpfs);
    }
    match host.mounts.is_empty() {
        true => drop(shown.as_object_mut().and_then(|shown| shown.remove("Mounts"))),
        false => shown["Mounts"] = json!(host.mounts),
    }
}

fn life(one: &Container) -> Value {
    let life = &one.life;
    let mut value = json!({
        "Status": state(life.phase),
        "Running": matches!(life.phase, Phase::Running | Phase::Paused),
        "Paused": life.phase == Phase::Paused,
        "Restarting": life.phase == Phase::Restarting,
        "OOMKilled": life.is_oom_killed,
        "Dead": life.phase == Phase::Dead,
        "Pid": life.pid,
        "ExitCode": life.exit_code,
        "Error": life.error,
        "StartedAt": time(life.started_at),
        "FinishedAt": time(life.finished_at),
    });
    if let Some(of) = &one.health {
        let log = of.log.iter().map(|result| {
            json!({
                "Start": time(Some(result.began)),
                "End": time(Some(result.ended)),
                "ExitCode": result.exit_code,
                "Output": result.output,
            })
        });
        value["Health"] = json!({ "Status": health(of.word), "FailingStreak": of.failures_in_a_row, "Log": log.collect::<Vec<_>>() });
    }
    value
}

/// What the service says of the command: entrypoint and arguments. Where it says neither, all is shown as arguments.
fn split_command(one: &Container) -> (Value, Value) {
    let (spec, all) = (&one.spec, &one.program.arguments);
    if !spec.command.is_empty() {
        return (json!(spec.command), if spec.args.is_empty() { Value::Null } else { json!(spec.args) });
    }
    match all.strip_suffix(spec.args.as_slice()) {
        Some(entrypoint) if !spec.args.is_empty() && !entrypoint.is_empty() => (json!(entrypoint), json!(spec.args)),
        _ if all.is_empty() => (Value::Null, json!(spec.args)),
        _ => (Value::Null, json!(all)),
    }
}

fn config(one: &Container) -> Value {
    let (spec, program) = (&one.spec, &one.program);
    let (entrypoint, command) = split_command(one);
    // What the node adds for every program is not part of the configuration, unless the service says it, too.
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let is_said = |entry: &String| spec.env.iter().any(|said| name(said) == name(entry));
    let is_added = |entry: &String| ["HOSTNAME", "HOME", "TERM"].contains(&name(entry).as_str()) && !is_said(entry);
    let env: Vec<&String> = program.env.iter().filter(|entry| !is_added(entry)).collect();
    let volumes: Map<String, Value> = one
        .mounts
        .iter()
        .filter(|mount| mount.kind == "volume" && !spec.mounts.iter().any(|wish| wish.target == mount.destination))
        .map(|mount| (mount.destination.clone(), json!({})))
        .collect();
    let mut value = json!({
        "Hostname": program.hostname,
        "Domainname": "",
        "User": spec.user,
        "AttachStdin": false,
        "AttachStdout": false,
        "AttachStderr": false,
        "Tty": spec.tty,
        "OpenStdin": spec.open_stdin,
        "StdinOnce": false,
        "Env": if env.is_empty() { json!(spec.env) } else { json!(env) },
        "Cmd": command,
        "Image": spec.image,
        "Volumes": if volumes.is_empty() { Value::Null } else { Value::Object(volumes) },
        "WorkingDir": if program.dir.is_empty() { &spec.dir } else { &program.dir },
        "Entrypoint": entrypoint,
        "OnBuild": null,
        "Labels": one.labels,
    });
    if let Some(check) = &spec.healthcheck {
        value["Healthcheck"] = json!(Healthcheck::from(check));
    }
    if !spec.stop_signal.is_empty() {
        value["StopSignal"] = json!(spec.stop_signal);
    }
    if let Some(grace) = spec.stop_grace_period {
        value["StopTimeout"] = json!(if grace.is_zero() { 0 } else { grace.as_secs().max(1) });
    }
    value
}

fn ulimits(list: &[Ulimit]) -> Value {
    if list.is_empty() {
        return Value::Null;
    }
    json!(list.iter().map(|one| json!({ "Name": one.name, "Soft": one.soft, "Hard": one.hard })).collect::<Vec<_>>())
}

fn list(values: &[String]) -> Value {
    if values.is_empty() { Value::Null } else { json!(values) }
}

fn port_bindings(one: &Container) -> Map<String, Value> {
    let mut bindings = Map::new();
    for port in &one.ports {
        let key = format!("{}/{}", port.target_port, port.protocol.name());
        let binding = json!({ "HostIp": "", "HostPort": port.published_port.to_string() });
        match bindings.get_mut(&key).and_then(Value::as_array_mut) {
            Some(list) => list.push(binding),
            None => drop(bindings.insert(key, json!([binding]))),
        }
    }
    bindings
}

fn host_config(one: &Container) -> Value {
    let spec = &one.spec;
    let limits = &one.resources.limits;
    let binds: Vec<String> = Vec::new();
    let wishes: Vec<Mount> = spec.mounts.iter().map(Into::into).collect();
    let dns = spec.dns.clone().unwrap_or_default();
    let (log_type, log_options) = match &one.log_driver {
        Some(driver) if !driver.name.is_empty() => (driver.name.as_str(), json!(driver.options)),
        Some(driver) => ("json-file", json!(driver.options)),
        None => ("json-file", json!({})),
    };
    let privileges = spec.privileges.clone().unwrap_or_default();
    let mut security = vec!["no-new-privileges".to_owned()];
    if matches!(privileges.seccomp, Some(skep_types::Seccomp::Unconfined)) {
        security.push("seccomp=unconfined".into());
    }
    let swap = match (limits.memory_bytes, one.resources.swap_bytes) {
        (_, Some(-1)) => -1,
        (memory, Some(swap)) => memory.saturating_add(swap),
        (_, None) => 0,
    };
    let mut value = json!({
        "Binds": list(&binds),
        "ContainerIDFile": "",
        "LogConfig": { "Type": log_type, "Config": log_options },
        "NetworkMode": network_mode(one),
        "PortBindings": port_bindings(one),
        "RestartPolicy": { "Name": "no", "MaximumRetryCount": 0 },
        "AutoRemove": false,
        "VolumeDriver": "",
        "VolumesFrom": null,
        "ConsoleSize": [0, 0],
        "CapAdd": list(&spec.capability_add),
        "CapDrop": list(&spec.capability_drop),
        "CgroupnsMode": "host",
        "Dns": dns.nameservers,
        "DnsOptions": dns.options,
        "DnsSearch": dns.search,
        "ExtraHosts": extra_hosts(&spec.hosts),
        "GroupAdd": list(&spec.groups),
        "IpcMode": "private",
        "Cgroup": "",
        "Links": null,
        "OomScoreAdj": spec.oom_score_adj,
        "PidMode": "",
        "Privileged": false,
        "PublishAllPorts": false,
        "ReadonlyRootfs": spec.read_only,
        "SecurityOpt": security,
        "UTSMode": "",
        "UsernsMode": "",
        "ShmSize": 67_108_864,
        "Runtime": "runc",
        "Isolation": "",
        "Mounts": wishes,
        "Sysctls": spec.sysctls,
    });
    let limits = json!({
        "CpuShares": 0,
        "Memory": limits.memory_bytes,
        "NanoCpus": limits.nano_cpus,
        "CgroupParent": one.cgroup_parent,
        "BlkioWeight": 0,
        "BlkioWeightDevice": null,
        "BlkioDeviceReadBps": null,
        "BlkioDeviceWriteBps": null,
        "BlkioDeviceReadIOps": null,
        "BlkioDeviceWriteIOps": null,
        "CpuPeriod": 0,
        "CpuQuota": 0,
        "CpuRealtimePeriod": 0,
        "CpuRealtimeRuntime": 0,
        "CpusetCpus": "",
        "CpusetMems": "",
        "Devices": null,
        "DeviceCgroupRules": null,
        "DeviceRequests": null,
        "MemoryReservation": one.resources.reservations.memory_bytes,
        "MemorySwap": swap,
        "MemorySwappiness": one.resources.memory_swappiness,
        "OomKillDisable": null,
        "PidsLimit": if spec.pids_limit == 0 { Value::Null } else { json!(spec.pids_limit) },
        "Ulimits": ulimits(&spec.ulimits),
        "CpuCount": 0,
        "CpuPercent": 0,
        "IOMaximumIOps": 0,
        "IOMaximumBandwidth": 0,
        "MaskedPaths": null,
        "ReadonlyPaths": null,
    });
    if let Some(init) = spec.init {
        value["Init"] = json!(init);
    }
    if let (Some(value), Value::Object(limits)) = (value.as_object_mut(), limits) {
        value.extend(limits);
    }
    value
}

/// `IP name alias` becomes `name:IP`, one for each name.
fn extra_hosts(lines: &[String]) -> Value {
    let pairs = lines.iter().flat_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next().unwrap_or_default().to_owned();
        words.map(move |name| format!("{name}:{address}")).collect::<Vec<_>>()
    });
    list(&pairs.collect::<Vec<_>>())
}

fn network_settings(one: &Container) -> Value {
    // The fields of old times are those of the default network.
    let default = one.networks.iter().find(|endpoint| endpoint.network == "bridge").cloned().unwrap_or_default();
    let ((address, length), (address_v6, length_v6)) = (cidr(&default.address), cidr(&default.address_v6));
    let ports: Map<String, Value> = port_bindings(one)
        .into_iter()
        .map(|(key, mut bindings)| {
            for binding in bindings.as_array_mut().into_iter().flatten() {
                binding["HostIp"] = json!("0.0.0.0");
            }
            (key, bindings)
        })
        .collect();
    json!({
        "Bridge": "",
        "SandboxID": "",
        "SandboxKey": "",
        "Ports": ports,
        "HairpinMode": false,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": null,
        "SecondaryIPv6Addresses": null,
        "EndpointID": "",
        "Gateway": default.gateway,
        "GlobalIPv6Address": address_v6,
        "GlobalIPv6PrefixLen": length_v6,
        "IPAddress": address,
        "IPPrefixLen": length,
        "IPv6Gateway": default.gateway_v6,
        "MacAddress": "",
        "Networks": networks(&one.networks),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Endpoint, Health, HealthWord, Life, Program};
    use skep_types::{ContainerSpec, PortConfig, Timestamp};

    fn container() -> Container {
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        Container {
            id: "ab".into(),
            name: "web.1.x".into(),
            created_at: Timestamp::from_secs(1_700_000_000),
            spec: ContainerSpec {
                image: "nginx:1".into(),
                args: words(&["-g", "x"]),
                hosts: words(&["1.2.3.4 a b"]),
                ..ContainerSpec::default()
            },
            program: Program {
                arguments: words(&["/entry", "-g", "x"]),
                env: words(&["PATH=/bin", "HOSTNAME=h", "A=1"]),
                ..Program::default()
            },
            life: Life { phase: Phase::Running, pid: 7, started_at: Some(Timestamp::from_secs(1_700_000_001)), ..Life::default() },
            health: Some(Health { word: HealthWord::Healthy, ..Health::default() }),
            networks: vec![Endpoint { network: "bridge".into(), address: "172.31.240.2/20".into(), ..Endpoint::default() }],
            ports: vec![PortConfig { target_port: 80, published_port: 8080, ..PortConfig::default() }],
            ..Container::default()
        }
    }

    #[test]
    fn everything_is_where_clients_look_for_it() {
        let value = json(&container());
        assert_eq!((&value["Path"], &value["Args"]), (&json!("/entry"), &json!(["-g", "x"])));
        assert_eq!((&value["Config"]["Entrypoint"], &value["Config"]["Cmd"]), (&json!(["/entry"]), &json!(["-g", "x"])));
        assert_eq!(value["Config"]["Env"], json!(["PATH=/bin", "A=1"]));
        assert_eq!((&value["State"]["Running"], &value["State"]["Pid"]), (&json!(true), &json!(7)));
        assert_eq!(
            (&value["State"]["StartedAt"], &value["State"]["FinishedAt"]),
            (&json!("2023-11-14T22:13:21Z"), &json!("0001-01-01T00:00:00Z"))
        );
        assert_eq!(value["State"]["Health"], json!({ "Status": "healthy", "FailingStreak": 0, "Log": [] }));
        assert_eq!(value["NetworkSettings"]["Ports"], json!({ "80/tcp": [{ "HostIp": "0.0.0.0", "HostPort": "8080" }] }));
        assert_eq!(
            (&value["NetworkSettings"]["IPAddress"], &value["NetworkSettings"]["IPPrefixLen"]),
            (&json!("172.31.240.2"), &json!(20))
        );
        assert_eq!(value["HostConfig"]["ExtraHosts"], json!(["a:1.2.3.4", "b:1.2.3.4"]));
        assert_eq!(value["ExecIDs"], Value::Null);
        assert!(value["Config"].get("StopTimeout").is_none());
    }
}
