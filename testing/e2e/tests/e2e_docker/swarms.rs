//! `docker swarm …`, `docker info` and `docker version` on one host.

use crate::support::{SOON, alone, docker, lab, ok, request};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use skep_kit::{Host, Lab, eventually};

fn swarm(on: &Host) -> Result<Value> {
    Ok(serde_json::from_str(&ok(on, &["info", "--format", "{{json .Swarm}}"])?)?)
}

/// What the client prints when it fails.
fn refused(on: &Host, arguments: &[&str]) -> Result<String> {
    let output = docker(on, arguments)?;
    ensure!(output.status != 0, "docker {} was not refused: {output:?}", arguments.join(" "));
    Ok(output.stderr)
}

#[test]
fn a_node_in_no_swarm_says_what_it_is() -> Result<()> {
    let Some(lab) = alone("docker info")? else { return Ok(()) };
    let version: Value = serde_json::from_str(&ok(&lab, &["version", "--format", "{{json .Server}}"])?)?;
    ensure!(version["ApiVersion"] == "1.50" && version["MinAPIVersion"] == "1.24", "{version}");
    ensure!(version["Components"][0]["Name"] == "Engine" && version["Os"] == "linux" && version["Arch"] == "amd64", "{version}");
    let info: Value = serde_json::from_str(&ok(&lab, &["info", "--format", "{{json .}}"])?)?;
    ensure!(info["Swarm"]["LocalNodeState"] == "inactive" && info["Swarm"]["NodeID"] == "", "{info}");
    ensure!(info["Swarm"]["RemoteManagers"].is_null() && info["Swarm"].get("Cluster").is_none(), "{info}");
    ensure!(info["Plugins"]["Network"].as_array().is_some_and(|names| names.contains(&json!("overlay"))), "{info}");
    ensure!(info["NCPU"].as_i64() > Some(0) && info["MemTotal"].as_i64() > Some(1 << 20) && info["OSType"] == "linux", "{info}");
    ensure!(info["DockerRootDir"] == json!(lab.data_dir()), "{info}");

    let head = ["-sS", "-D", "-", "-o", "/dev/null", "--unix-socket"];
    let socket = lab.run_dir().join("docker.sock").to_string_lossy().into_owned();
    let headers = skep_kit::run("curl", &[&head[..], &[&socket, "-I", "http://docker/_ping"]].concat())?.success()?.to_lowercase();
    for line in ["200 ok", "api-version: 1.50", "ostype: linux", "swarm: inactive", "content-length: 0", "docker-experimental: false"] {
        ensure!(headers.contains(line), "no {line:?} in {headers}");
    }
    ensure!(request(&lab, "GET", "/_ping", None)? == (200, "OK".into()));
    ensure!(request(&lab, "OPTIONS", "/whatever", None)? == (200, String::new()));
    for (method, path, status, words) in [
        ("GET", "/v1.51/info", 400, "client version 1.51 is too new. Maximum supported API version is 1.50"),
        ("GET", "/v1.23/info", 400, "client version 1.23 is too old. Minimum supported API version is 1.24"),
        ("GET", "/nowhere", 404, "page not found"),
        ("PUT", "/info", 404, "page not found"),
        ("POST", "/swarm/init", 400, "invalid JSON"),
        ("POST", "/build", 501, "does not build"),
        ("GET", "/plugins/x/json", 404, "not found"),
    ] {
        let (found, body) = request(&lab, method, path, None)?;
        // The client's own body is a form without this header; ours are JSON.
        ensure!(found == status && (body.contains(words) || words == "does not build"), "{method} {path}: {found} {body}");
    }

    let none = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\"";
    for arguments in [&["node", "ls"][..], &["service", "ls"], &["secret", "ls"], &["config", "ls"], &["swarm", "unlock-key"]] {
        let said = refused(&lab, arguments)?;
        ensure!(said.contains(none), "{arguments:?}: {said}");
    }
    ensure!(refused(&lab, &["network", "create", "-d", "overlay", "x"])?.contains(none));
    ensure!(refused(&lab, &["swarm", "leave"])?.contains("This node is not part of a swarm"));
    let networks = ok(&lab, &["network", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}"])?;
    ensure!(networks == "bridge bridge local\nhost host local\nnone null local\n", "{networks:?}");
    Ok(())
}

#[test]
fn a_swarm_begins_with_what_it_was_asked_for_and_ends() -> Result<()> {
    let Some(lab) = alone("docker swarm init")? else { return Ok(()) };
    for (flags, words) in [
        (&["--listen-addr", "nowhere0"][..], "listen address must be an IP address or network interface"),
        (&["--advertise-addr", "0.0.0.0"], "advertise_addr"),
        (&["--data-path-port", "80"], "data_path_port"),
        (&["--data-path-addr", "10.1.1.1"], "--data-path-addr 10.1.1.1"),
        (&["--cert-expiry", "1m"], "node_cert_expiry"),
        (&["--default-addr-pool", "10.0.0.0/26"], "subnet_size"),
        (&["--max-snapshots", "7"], "keep_old_snapshots"),
        (&["--availability", "gone"], "invalid"),
    ] {
        let said = refused(&lab, &[&["swarm", "init"], flags].concat())?;
        ensure!(said.contains(words), "{flags:?}: {said}");
        ensure!(swarm(&lab)?["LocalNodeState"] == "inactive", "{flags:?} left something behind");
    }
    let flags = [
        "--advertise-addr",
        "eth0",
        "--task-history-limit",
        "2",
        "--cert-expiry",
        "48h",
        "--dispatcher-heartbeat",
        "3s",
        "--snapshot-interval",
        "5000",
        "--availability",
        "drain",
        "--default-addr-pool",
        "10.77.0.0/16",
        "--default-addr-pool-mask-length",
        "26",
        "--data-path-port",
        "5555",
    ];
    let out = ok(&lab, &[&["swarm", "init"][..], &flags].concat())?;
    ensure!(out.contains("Swarm initialized: current node (") && out.contains(&format!("{}:2377", Lab::HOST)), "{out}");
    let state = swarm(&lab)?;
    let (node, cluster) = (state["NodeID"].as_str().unwrap_or_default(), &state["Cluster"]);
    ensure!(out.contains(node) && state["LocalNodeState"] == "active" && state["ControlAvailable"] == true, "{state}");
    ensure!(state["NodeAddr"] == Lab::HOST && state["Nodes"] == 1 && state["Managers"] == 1, "{state}");
    ensure!(state["RemoteManagers"] == json!([{"NodeID": node, "Addr": format!("{}:2377", Lab::HOST)}]), "{state}");
    ensure!(cluster["DefaultAddrPool"] == json!(["10.77.0.0/16"]) && cluster["SubnetSize"] == 26 && cluster["DataPathPort"] == 5555);
    let spec = &cluster["Spec"];
    ensure!(spec["Orchestration"]["TaskHistoryRetentionLimit"] == 2 && spec["Raft"]["SnapshotInterval"] == 5000, "{spec}");
    ensure!(spec["CAConfig"]["NodeCertExpiry"] == 172_800_000_000_000u64 && spec["Dispatcher"]["HeartbeatPeriod"] == 3_000_000_000u64);
    ensure!(ok(&lab, &["node", "ls", "--format", "{{.Availability}} {{.ManagerStatus}}"])? == "Drain Leader\n");
    let told = lab.ctl(&["node", "ls", "--format", "json"])?.success()?;
    ensure!(told.to_lowercase().contains("drain"), "swarmctl sees another swarm: {told}");
    ok(&lab, &["network", "create", "-d", "overlay", "net"])?;
    let subnet = ok(&lab, &["network", "inspect", "net", "--format", "{{(index .IPAM.Config 0).Subnet}}"])?;
    ensure!(subnet.starts_with("10.77.") && subnet.trim().ends_with("/26"), "{subnet}");

    ensure!(refused(&lab, &["swarm", "init"])?.contains("This node is already part of a swarm"));
    ok(&lab, &["swarm", "init", "--force-new-cluster"])?;
    let forced = swarm(&lab)?;
    ensure!(forced["Cluster"]["ID"] == cluster["ID"] && forced["NodeID"] == node && forced["Cluster"]["Spec"] == *spec, "{forced}");
    ensure!(refused(&lab, &["swarm", "join", "--token", "x", "127.0.0.1"])?.contains("This node is already part of a swarm"));
    let said = refused(&lab, &["swarm", "leave"])?;
    ensure!(said.contains("Removing the last manager erases all current state of the swarm"), "{said}");
    ensure!(ok(&lab, &["swarm", "leave", "--force"])? == "Node left the swarm.\n");
    ensure!(swarm(&lab)?["LocalNodeState"] == "inactive" && refused(&lab, &["node", "ls"])?.contains("not a swarm manager"));
    ensure!(ok(&lab, &["swarm", "init", "--advertise-addr", Lab::HOST])?.contains("Swarm initialized"), "the node cannot begin anew");
    Ok(())
}

#[test]
fn settings_tokens_and_roots_change() -> Result<()> {
    let Some(lab) = lab("docker swarm update")? else { return Ok(()) };
    let spec = |on: &Host| -> Result<Value> { Ok(swarm(on)?["Cluster"]["Spec"].clone()) };
    let before = spec(&lab)?;
    ensure!(ok(&lab, &["swarm", "update", "--task-history-limit", "3", "--cert-expiry", "720h"])? == "Swarm updated.\n");
    let mut wanted = before;
    wanted["Orchestration"]["TaskHistoryRetentionLimit"] = json!(3);
    wanted["CAConfig"]["NodeCertExpiry"] = json!(2_592_000_000_000_000u64);
    ensure!(spec(&lab)? == wanted, "{} instead of {wanted}", spec(&lab)?);
    ensure!(refused(&lab, &["swarm", "update", "--cert-expiry", "5m"])?.contains("rpc error: code = InvalidArgument desc = "));
    ensure!(spec(&lab)? == wanted, "a refused update changed something");
    let update = |query: &str| request(&lab, "POST", &format!("/swarm/update{query}"), Some("{}"));
    ensure!(update("")?.1.contains("invalid swarm version ''") && update("?version=1&rotateWorkerToken=maybe")?.0 == 400);
    let (status, body) = update("?version=1")?;
    ensure!(status == 500 && body.contains("update out of sequence"), "{status} {body}");

    let token = |role: &str| ok(&lab, &["swarm", "join-token", "-q", role]);
    let (worker, manager) = (token("worker")?, token("manager")?);
    ensure!(worker.starts_with("SWMTKN-1-") && worker != manager, "{worker}");
    ensure!(ok(&lab, &["swarm", "join-token", "worker"])?.contains(&format!("{} {}:2377", worker.trim(), Lab::HOST)));
    let rotated = ok(&lab, &["swarm", "join-token", "--rotate", "-q", "manager"])?;
    ensure!(rotated != manager && token("manager")? == rotated && token("worker")? == worker);
    ensure!(lab.ctl(&["cluster", "join-token", "-q", "manager"])?.success()?.trim() == rotated.trim(), "swarmctl has another token");

    let root = ok(&lab, &["swarm", "ca"])?;
    ensure!(root.starts_with("-----BEGIN CERTIFICATE-----"), "{root}");
    // The client waits until every node has a certificate of the new root.
    let new = ok(&lab, &["swarm", "ca", "--rotate"])?;
    ensure!(new.contains("-----BEGIN CERTIFICATE-----") && !new.contains(root.trim()), "{new}");
    ensure!(new.contains(ok(&lab, &["swarm", "ca"])?.trim()), "{new}");
    let state = swarm(&lab)?;
    ensure!(state["Cluster"]["RootRotationInProgress"] == false, "{state}");
    let node: Value = serde_json::from_str(&ok(&lab, &["node", "inspect", "self", "--format", "{{json .Description.TLSInfo}}"])?)?;
    ensure!(node == state["Cluster"]["TLSInfo"], "{node} instead of {}", state["Cluster"]["TLSInfo"]);
    ensure!(token("worker")? != worker, "tokens name the root they are for");
    Ok(())
}

fn unlock(on: &Host, key: &str) -> Result<skep_kit::Output> {
    let host = format!("unix://{}", on.run_dir().join("docker.sock").display());
    skep_kit::run("sh", &["-c", "printf '%s\\n' \"$1\" | DOCKER_HOST=\"$2\" timeout 300 docker swarm unlock", "unlock", key, &host])
}

#[test]
fn a_locked_manager_opens_with_its_key_only() -> Result<()> {
    let Some(mut lab) = lab("docker swarm unlock")? else { return Ok(()) };
    ensure!(refused(&lab, &["swarm", "unlock-key"])?.contains("no unlock key is set"));
    let (status, body) = request(&lab, "POST", "/swarm/unlock", Some(r#"{"UnlockKey":"SWMKEY-1-x"}"#))?;
    ensure!(status == 409 && body.contains("swarm is not locked"), "{status} {body}");
    let out = ok(&lab, &["swarm", "update", "--autolock"])?;
    let first = ok(&lab, &["swarm", "unlock-key", "-q"])?.trim().to_owned();
    ensure!(first.starts_with("SWMKEY-1-") && out.contains(&first), "{out}");
    // A daemon that stops before it has seen the new key starts with the old one.
    let sealed = |times: usize| {
        eventually(SOON, "the manager has sealed its keys", || {
            let log = lab.log();
            ensure!(log.matches("this manager's keys are sealed accordingly").count() >= times, "{}", lab.log_tail());
            Ok(())
        })
    };
    sealed(1)?;
    let key = ok(&lab, &["swarm", "unlock-key", "--rotate", "-q"])?.trim().to_owned();
    ensure!(key != first, "the key did not change");
    sealed(2)?;
    lab.stop_skepd()?;
    lab.start_skepd()?;
    ensure!(swarm(&lab)?["LocalNodeState"] == "locked", "{}", swarm(&lab)?);
    for arguments in [&["node", "ls"][..], &["service", "ls"], &["swarm", "leave"]] {
        let said = refused(&lab, arguments)?;
        ensure!(said.contains("Swarm is encrypted and needs to be unlocked before it can be used"), "{arguments:?}: {said}");
    }
    let output = unlock(&lab, &first)?;
    ensure!(output.status != 0 && output.stderr.contains("invalid key provided"), "{output:?}");
    let (status, body) = request(&lab, "POST", "/swarm/unlock", Some(&format!(r#"{{"UnlockKey":"{first}"}}"#)))?;
    ensure!(status == 401, "{status} {body}");
    ensure!(request(&lab, "POST", "/swarm/unlock", Some(r#"{"UnlockKey":"none"}"#))?.0 == 400);
    unlock(&lab, &key)?.success()?;
    eventually(SOON, "the manager is back", || {
        ensure!(swarm(&lab)?["LocalNodeState"] == "active" && ok(&lab, &["node", "ls", "-q"])?.lines().count() == 1);
        Ok(())
    })?;
    ensure!(ok(&lab, &["swarm", "update", "--autolock=false"])? == "Swarm updated.\n");
    ensure!(refused(&lab, &["swarm", "unlock-key"])?.contains("no unlock key is set"));
    Ok(())
}
