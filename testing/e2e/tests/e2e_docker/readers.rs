//! What programs ask that cannot be had here, request by request: Traefik's swarm provider and Terraform's docker provider. Both are
//! written with Docker's own Go client, which takes the newest version that both sides speak from the answer to a ping.

use crate::support::{SOON, hosts, lab, ok, request};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use skep_kit::{Host, Size, eventually, run};
use std::net::IpAddr;

/// A GET as of a version, with filters as Docker's client encodes them.
fn get(on: &Host, path: &str, filters: Option<&Value>) -> Result<Value> {
    let encoded: String = filters.map(Value::to_string).unwrap_or_default().bytes().map(|byte| format!("%{byte:02x}")).collect();
    let query = if encoded.is_empty() { String::new() } else { format!("?filters={encoded}") };
    let (status, body) = request(on, "GET", &format!("/v1.44{path}{query}"), None)?;
    ensure!(status == 200, "{path}: {status} {body}");
    Ok(serde_json::from_str(&body)?)
}

fn post(on: &Host, path: &str, body: &Value, wanted: u16) -> Result<Value> {
    let (status, answer) = request(on, "POST", &format!("/v1.44{path}"), Some(&body.to_string()))?;
    ensure!(status == wanted, "{path}: {status} {answer}");
    Ok(if answer.trim().is_empty() { Value::Null } else { serde_json::from_str(&answer)? })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The part before the `/` of a CIDR, which must be an address with a length: newer clients refuse whole answers otherwise.
fn address(cidr: &Value) -> Result<IpAddr> {
    let (ip, length) = text(cidr).split_once('/').with_context(|| format!("{cidr} is no CIDR"))?;
    let _: u8 = length.parse()?;
    Ok(ip.parse()?)
}

/// Where Traefik would send requests for a service: by the names of networks, of the service itself or of each task.
fn backends(on: &Host, service: &Value, networks: &[Value], by_tasks: bool) -> Result<Vec<(String, IpAddr)>> {
    let name_of = |id: &Value| networks.iter().find(|network| network["Id"] == *id).map(|network| text(&network["Name"]).to_owned());
    let mut found = Vec::new();
    if !by_tasks {
        if service["Spec"]["EndpointSpec"]["Mode"] == json!("vip") {
            for vip in list(&service["Endpoint"]["VirtualIPs"]) {
                found.push((name_of(&vip["NetworkID"]).context("a network that is not listed")?, address(&vip["Addr"])?));
            }
        }
        return Ok(found);
    }
    let wanted = json!({"service": {text(&service["ID"]): true}, "desired-state": {"running": true}});
    for task in list(&get(on, "/tasks", Some(&wanted))?).iter().filter(|task| task["Status"]["State"] == json!("running")) {
        let node = get(on, &format!("/nodes/{}", text(&task["NodeID"])), None)?;
        ensure!(text(&node["Status"]["Addr"]).parse::<IpAddr>().is_ok(), "{node}");
        ensure!(service["Spec"]["Mode"].get("Global").is_some() || task["Slot"].as_u64() > Some(0), "{task}");
        for attachment in list(&task["NetworksAttachments"]) {
            let name = name_of(&attachment["Network"]["ID"]).context("a network that is not listed")?;
            ensure!(text(&attachment["Network"]["Spec"]["Name"]) == name, "{attachment}");
            for one in list(&attachment["Addresses"]) {
                found.push((name.clone(), address(one)?));
            }
        }
    }
    Ok(found)
}

#[test]
fn what_traefik_asks_tells_it_where_services_are() -> Result<()> {
    let Some(lab) = lab("the requests of Traefik's swarm provider")? else { return Ok(()) };
    crate::box_image::load(&lab)?;
    ok(&lab, &["network", "create", "-d", "overlay", "web"])?;
    let create = ["service", "create", "-d", "--no-resolve-image", "--stop-grace-period", "0s", "--network", "web"];
    let service = |flags: &[&str]| ok(&lab, &[&create[..], flags, &["box:1", "sleep", "100000"]].concat());
    let rule = "traefik.http.routers.shop.rule=Host(`shop.example`)";
    service(&["--name", "shop", "--replicas", "2", "-p", "28080:80", "--label", rule, "--label", "traefik.swarm.lbswarm=true"])?;
    service(&["--name", "each", "--endpoint-mode", "dnsrr", "--label", "traefik.enable=true"])?;
    service(&["--name", "all", "--mode", "global"])?;

    let socket = lab.run_dir().join("docker.sock").to_string_lossy().into_owned();
    let ping = run("curl", &["-sS", "--head", "--unix-socket", &socket, "http://docker/_ping"])?.success()?.to_lowercase();
    ensure!(ping.contains("api-version: 1.50") && ping.contains("swarm: active/manager"), "{ping}");
    let version = get(&lab, "/version", None)?;
    ensure!(version["ApiVersion"] == json!("1.50") && !text(&version["Version"]).is_empty(), "{version}");

    eventually(SOON, "all are found", || {
        let services = get(&lab, "/services", None)?;
        let networks = get(&lab, "/networks", Some(&json!({"scope": {"swarm": true}})))?;
        ensure!(list(&networks).iter().all(|network| network["Scope"] == json!("swarm")), "{networks}");
        // Before API 1.29 there was no such filter.
        let overlays = get(&lab, "/networks", Some(&json!({"driver": {"overlay": true}})))?;
        ensure!(list(&overlays).len() == list(&networks).len(), "{overlays}");
        let of = |name: &str| list(&services).iter().find(|one| one["Spec"]["Name"] == json!(name)).context("a service is missing");
        let shop = of("shop")?;
        ensure!(shop["Spec"]["Labels"]["traefik.http.routers.shop.rule"] == json!("Host(`shop.example`)"), "{shop}");
        // The network of published ports has IPv6 here, too: each name has one address of either family.
        let count = |found: &[(String, IpAddr)], name: &str| found.iter().filter(|(network, ip)| network == name && ip.is_ipv4()).count();
        let vips = backends(&lab, shop, list(&networks), false)?;
        ensure!((count(&vips, "web"), count(&vips, "ingress")) == (1, 1), "{vips:?}");
        let tasks = backends(&lab, shop, list(&networks), true)?;
        ensure!((count(&tasks, "web"), count(&tasks, "ingress")) == (2, 2), "{tasks:?}");
        ensure!(tasks.iter().all(|one| !vips.contains(one)));
        let each = of("each")?;
        ensure!(
            each["Spec"]["EndpointSpec"]["Mode"] == json!("dnsrr") && backends(&lab, each, list(&networks), false)?.is_empty(),
            "{each}"
        );
        ensure!(count(&backends(&lab, each, list(&networks), true)?, "web") == 1);
        ensure!(of("all")?["Spec"]["Mode"] == json!({"Global": {}}) && backends(&lab, of("all")?, list(&networks), true)?.len() == 1);
        Ok(())
    })?;

    // Its next look, a quarter of a minute later: what is gone is not there.
    ok(&lab, &["service", "scale", "-d", "shop=1"])?;
    ok(&lab, &["service", "rm", "each"])?;
    eventually(SOON, "what is gone is not found", || {
        let services = get(&lab, "/services", None)?;
        ensure!(list(&services).len() == 2);
        let networks = get(&lab, "/networks", Some(&json!({"scope": {"swarm": true}})))?;
        let shop = list(&services).iter().find(|one| one["Spec"]["Name"] == json!("shop")).context("no shop")?;
        let found = backends(&lab, shop, list(&networks), true)?;
        ensure!(found.iter().filter(|(network, _)| network == "web").count() == 1, "{found:?}");
        Ok(())
    })
}

/// Whether all that is said in `wanted` is said in `found` in the same words.
fn holds(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => {
            wanted.iter().all(|(name, wanted)| found.get(name).is_some_and(|found| holds(found, wanted)))
        }
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len() && found.iter().zip(wanted).all(|(found, wanted)| holds(found, wanted))
        }
        _ => found == wanted,
    }
}

#[test]
fn what_terraform_makes_it_reads_back_and_has_nothing_to_change() -> Result<()> {
    let Some(lab) = lab("the requests of Terraform's docker provider")? else { return Ok(()) };
    crate::box_image::load(&lab)?;
    // The provider asks first whether it reaches a daemon.
    ensure!(request(&lab, "GET", "/_ping", None)?.0 == 200);

    let network = json!({
        "Name": "tf", "CheckDuplicate": true, "Driver": "overlay", "EnableIPv6": false, "Internal": false, "Attachable": true,
        "Ingress": false, "ConfigOnly": false, "ConfigFrom": null, "Options": {}, "Labels": {"made": "by"},
        "IPAM": {"Driver": "default", "Options": null, "Config": [{"Subnet": "10.77.0.0/24", "Gateway": "10.77.0.1"}]}
    });
    let network_id = text(&post(&lab, "/networks/create", &network, 201)?["Id"]).to_owned();
    let volume = json!({"Name": "tf", "Driver": "local", "DriverOpts": {}, "Labels": {"made": "by"}});
    ensure!(post(&lab, "/volumes/create", &volume, 201)?["Name"] == json!("tf"));
    let secret = json!({"Name": "tf", "Data": "c2VjcmV0", "Labels": {"made": "by"}});
    let secret_id = text(&post(&lab, "/secrets/create", &secret, 201)?["ID"]).to_owned();
    let config = json!({"Name": "tf", "Data": "Y29uZmln"});
    let config_id = text(&post(&lab, "/configs/create", &config, 201)?["ID"]).to_owned();
    let file = |name: &str| json!({"Name": name, "UID": "0", "GID": "0", "Mode": 0o444});
    // All that the provider writes when its user says little: zeros and empty lists with the rest.
    let spec = json!({
        "Name": "tf", "Labels": {"made": "by"},
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": "box:1", "Labels": {"in": "side"}, "Command": ["sleep"], "Args": ["100000"], "Hostname": "tf", "Env": ["A=b"],
                "Dir": "/tmp", "User": "root", "Groups": ["44"], "Privileges": null, "TTY": false, "OpenStdin": false, "ReadOnly": true,
                "Mounts": [{"Type": "volume", "Source": "tf", "Target": "/data", "ReadOnly": true}],
                "StopSignal": "SIGTERM", "StopGracePeriod": 2_000_000_000_u64,
                "Healthcheck": {"Test": ["CMD", "true"], "Interval": 5_000_000_000_u64, "Timeout": 2_000_000_000_u64, "Retries": 4},
                "Hosts": ["10.0.1.0 testhost"], "DNSConfig": {"Nameservers": ["8.8.8.8"], "Search": ["example.org"], "Options": ["timeout:3"]},
                "Secrets": [{"File": file("/secret"), "SecretID": secret_id, "SecretName": "tf"}],
                "Configs": [{"File": file("/config"), "ConfigID": config_id, "ConfigName": "tf"}],
                "Isolation": "default", "Sysctls": {}
            },
            "Resources": {"Limits": {"NanoCPUs": 500_000_000, "MemoryBytes": 67_108_864}},
            "RestartPolicy": {"Condition": "on-failure", "Delay": 3_000_000_000_u64, "MaxAttempts": 4, "Window": 10_000_000_000_u64},
            "Placement": {"Constraints": ["node.role==manager"], "Preferences": [{"Spread": {"SpreadDescriptor": "spread=node.role.manager"}}]},
            "Networks": [{"Target": network_id}], "LogDriver": {"Name": "json-file", "Options": {"max-size": "10m"}}, "ForceUpdate": 0,
            "Runtime": "container"
        },
        "Mode": {"Replicated": {"Replicas": 1}},
        "UpdateConfig": {"Parallelism": 2, "Delay": 1_000_000_000, "FailureAction": "pause", "Monitor": 5_000_000_000_u64, "MaxFailureRatio": 0.1, "Order": "start-first"},
        "RollbackConfig": {"Parallelism": 2, "FailureAction": "pause", "Monitor": 1_000_000_000, "MaxFailureRatio": 0.9, "Order": "stop-first"},
        "EndpointSpec": {"Mode": "vip", "Ports": [{"Name": "random", "Protocol": "tcp", "TargetPort": 8080, "PublishedPort": 28081, "PublishMode": "ingress"}]}
    });
    let service_id = text(&post(&lab, "/services/create", &spec, 201)?["ID"]).to_owned();
    let service = || get(&lab, &format!("/services/{service_id}"), None);
    let tasks = || get(&lab, "/tasks", Some(&json!({"service": {&service_id: true}, "desired-state": {"running": true}})));
    eventually(SOON, "it runs", || {
        let tasks = tasks()?;
        ensure!(list(&tasks).len() == 1 && tasks[0]["Status"]["State"] == json!("running"), "{tasks}");
        ensure!(
            list(&get(&lab, "/nodes", None)?)
                .iter()
                .any(|node| node["ID"] == tasks[0]["NodeID"] && node["Status"]["State"] == json!("ready"))
        );
        // It waits for this before it believes that all is there.
        ensure!(service()?["Endpoint"]["Spec"]["Mode"] == json!("vip"));
        Ok(())
    })?;

    // The state, and what a plan compares with it later.
    let state = || -> Result<[Value; 5]> {
        Ok([
            get(&lab, &format!("/networks/{network_id}"), None)?,
            get(&lab, "/volumes/tf", None)?,
            get(&lab, &format!("/secrets/{secret_id}"), None)?,
            get(&lab, &format!("/configs/{config_id}"), None)?,
            service()?,
        ])
    };
    let first = state()?;
    let seen = [&first[0], &first[1], &first[2]["Spec"], &first[3]["Spec"], &first[4]["Spec"]];
    let mut made = [network, json!({"Name": "tf", "Driver": "local", "Labels": {"made": "by"}}), secret, config, spec.clone()];
    made[2] = json!({"Name": "tf", "Labels": {"made": "by"}});
    for field in ["CheckDuplicate", "ConfigFrom"] {
        made[0].as_object_mut().context("an object")?.remove(field);
    }
    for path in ["/TaskTemplate/ContainerSpec", "/TaskTemplate/ContainerSpec"] {
        // As dockerd: false and empty are left out.
        let fields = made[4].pointer_mut(path).and_then(Value::as_object_mut).context("an object")?;
        for field in ["Privileges", "TTY", "OpenStdin", "Sysctls"] {
            fields.remove(field);
        }
    }
    for (seen, made) in seen.iter().zip(&made) {
        let same = holds(seen, made) || (made["Options"] == json!({}) && holds(&without(seen, "Options"), &without(made, "Options")));
        ensure!(same, "written {made}\nread {seen}");
    }
    ensure!(holds(&first[4]["Endpoint"]["Ports"], &spec["EndpointSpec"]["Ports"]), "{}", first[4]);
    // Nothing happened meanwhile: the second plan is empty.
    ensure!(state()? == first);

    // Applied once more as it is, no task is replaced.
    let task = tasks()?[0]["ID"].clone();
    let version = first[4]["Version"]["Index"].as_u64().context("a version")?;
    post(&lab, &format!("/services/{service_id}/update?version={version}&registryAuthFrom=spec"), &spec, 200)?;
    std::thread::sleep(std::time::Duration::from_secs(2));
    let after = service()?;
    ensure!(tasks()?[0]["ID"] == task && after["Spec"] == first[4]["Spec"], "{after}");

    // Destroyed in the order of what needs what.
    let delete = |path: &str| -> Result<()> {
        let (status, body) = request(&lab, "DELETE", &format!("/v1.44{path}"), None)?;
        ensure!(matches!(status, 200 | 204), "{path}: {status} {body}");
        Ok(())
    };
    delete(&format!("/services/{service_id}"))?;
    delete(&format!("/secrets/{secret_id}"))?;
    delete(&format!("/configs/{config_id}"))?;
    eventually(SOON, "network and volume are free", || delete(&format!("/networks/{network_id}")))?;
    eventually(SOON, "the volume is free", || delete("/volumes/tf"))?;
    ensure!(request(&lab, "GET", &format!("/v1.44/services/{service_id}"), None)?.0 == 404);
    ensure!(request(&lab, "GET", &format!("/v1.44/networks/{network_id}"), None)?.0 == 404);
    Ok(())
}

fn without(value: &Value, field: &str) -> Value {
    let mut value = value.clone();
    if let Some(fields) = value.as_object_mut() {
        fields.remove(field);
    }
    value
}

#[test]
fn a_worker_shows_the_networks_that_its_containers_are_on() -> Result<()> {
    let Some(hosts) = hosts("docker network ls on a worker", Size { managers: 1, workers: 1 })? else { return Ok(()) };
    ok(&hosts[0], &["swarm", "init", "--advertise-addr", &hosts.address(0)])?;
    let token = ok(&hosts[0], &["swarm", "join-token", "-q", "worker"])?.trim().to_owned();
    ok(&hosts[1], &["swarm", "join", "--token", &token, &format!("{}:2377", hosts.address(0))])?;
    for at in 0..2 {
        crate::box_image::load_as(&hosts[at], &["box:1"], &["sh"], Default::default())?;
    }
    for name in ["net", "other"] {
        ok(&hosts[0], &["network", "create", "-d", "overlay", "--attachable", "--label", "a=b", name])?;
    }
    let shown = |format: &str| ok(&hosts[1], &["network", "ls", "--filter", "scope=swarm", "--format", format]);
    ensure!(shown("{{.Name}}")?.is_empty(), "nothing of it is there");
    ok(
        &hosts[0],
        &[
            "service",
            "create",
            "-d",
            "--no-resolve-image",
            "--name",
            "web",
            "--network",
            "net",
            "--constraint",
            "node.role==worker",
            "--stop-grace-period",
            "0s",
            "box:1",
            "sleep",
            "100000",
        ],
    )?;
    eventually(SOON, "the network came with the task", || {
        let all = shown("{{.Name}} {{.Driver}} {{.Scope}}")?;
        ensure!(all == "net overlay swarm\n", "{all:?}");
        Ok(())
    })?;
    ok(&hosts[1], &["run", "-d", "--name", "mine", "--network", "net", "box:1", "sleep", "100000"])?;
    let [there, here] = [0, 1].map(|at| crate::support::inspect(&hosts[at], &["network", "inspect", "net"]));
    let (there, here) = (there?, here?);
    for field in ["Id", "Name", "Driver", "Scope", "IPAM", "Labels", "Options", "Attachable", "Internal"] {
        ensure!(there[field] == here[field], "{field}: {there} {here}");
    }
    let names: Vec<&str> = here["Containers"].as_object().into_iter().flatten().map(|(_, one)| text(&one["Name"])).collect();
    ensure!(names.len() == 2 && names.contains(&"mine") && names.iter().any(|name| name.starts_with("web.1.")), "{here}");
    // Not its own to change.
    let refused = crate::support::docker(&hosts[1], &["network", "rm", "net"])?;
    ensure!(refused.status != 0 && refused.stderr.contains("network net not found"), "{refused:?}");
    ok(&hosts[1], &["rm", "-f", "mine"])?;
    ok(&hosts[0], &["service", "rm", "web"])?;
    eventually(SOON, "the network left with the last container", || {
        ensure!(shown("{{.Name}}")?.is_empty());
        Ok(())
    })
}
