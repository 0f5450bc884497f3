//! `docker run --network`, `docker network connect` and `disconnect`: containers that no service made on networks of the cluster.

use crate::box_image::{Extra, load, load_as};
use crate::support::{SOON, docker, hosts, inspect, lab, ok};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use skep_kit::{Host, Lab, Size, eventually, inside, run};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

/// Answers with its name.
const SERVES: &str = "mkdir -p /www; echo $0 >/www/index.html; exec busybox httpd -f -p 80 -h /www";

/// A container that serves, with these flags.
fn serve(on: &Host, name: &str, flags: &[&str]) -> Result<()> {
    ok(on, &[&["run", "-d", "--name", name], flags, &["box:1", "sh", "-c", SERVES, name]].concat()).map(drop)
}

/// What a container finds under a name; an error if there is none.
fn look_up(on: &Host, container: &str, name: &str) -> Result<Vec<IpAddr>> {
    let said = ok(on, &["exec", container, "busybox", "nslookup", "-type=a", name])?;
    let answer = said.split_once("Name:").with_context(|| format!("{name}: {said:?}"))?.1;
    let found: Vec<IpAddr> =
        answer.lines().filter_map(|line| line.trim().strip_prefix("Address")?.split_once(':')?.1.trim().parse().ok()).collect();
    ensure!(!found.is_empty(), "{name}: {said:?}");
    Ok(found)
}

/// What answers in the network of a container.
fn ask_from(on: &Host, container: &str, to: SocketAddr) -> Result<String> {
    let namespace = format!("/proc/{}/ns/net", inspect(on, &["inspect", container])?["State"]["Pid"]);
    inside(Path::new(&namespace), || ask(to))
}

fn ask(to: SocketAddr) -> Result<String> {
    let patience = Duration::from_secs(20);
    let mut stream = TcpStream::connect_timeout(&to, patience).with_context(|| format!("connect to {to}"))?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).with_context(|| format!("read from {to}"))?;
    Ok(text)
}

/// One container reaches another under a name.
fn reaches(on: &Host, container: &str, name: &str, who: &str) -> Result<()> {
    eventually(SOON, "one reaches the other by its name", || {
        for address in look_up(on, container, name)? {
            let said = ask_from(on, container, SocketAddr::new(address, 80))?;
            ensure!(said.lines().last() == Some(who), "{name} leads to {said:?}");
        }
        Ok(())
    })
}

fn place(on: &Host, container: &str, network: &str) -> Result<Value> {
    Ok(inspect(on, &["inspect", container])?["NetworkSettings"]["Networks"][network].clone())
}

fn address(on: &Host, container: &str, network: &str) -> Result<String> {
    let place = place(on, container, network)?;
    let text = place["IPAddress"].as_str().unwrap_or_default().to_owned();
    ensure!(!text.is_empty(), "{container} has no address on {network}: {place}");
    Ok(text)
}

/// The task that stands for a container's one place.
fn attachment(on: &Host, container: &str) -> Result<String> {
    for entry in std::fs::read_dir(on.data_dir().join("agent/containers"))? {
        let record: Value = serde_json::from_slice(&std::fs::read(entry?.path())?)?;
        let held = record["places"].as_array().into_iter().flatten().find_map(|place| place["held"]["attachment"].as_str());
        if let (Some(held), true) = (held, record["task"]["annotations"]["name"] == json!(container)) {
            return Ok(held.to_owned());
        }
    }
    anyhow::bail!("{container} has no place")
}

/// The attachments that managers know, by their names.
fn attachments(on: &Host, network: &str) -> Result<Vec<String>> {
    let shown = inspect(on, &["network", "inspect", network])?;
    let all = shown["Containers"].as_object().into_iter().flatten();
    Ok(all.filter_map(|(_, one)| one["Name"].as_str().map(str::to_owned)).collect())
}

fn refused(on: &Host, arguments: &[&str], words: &str) -> Result<()> {
    let refused = docker(on, arguments)?;
    ensure!(refused.status != 0 && refused.stderr.contains(words), "{arguments:?}: {refused:?}");
    Ok(())
}

#[test]
fn a_container_is_run_on_networks_of_the_cluster() -> Result<()> {
    let Some(mut lab) = lab("docker run --network")? else { return Ok(()) };
    load(&lab)?;
    for (name, subnet, flags) in
        [("net", "10.77.1.0/24", &["--attachable"][..]), ("two", "10.77.2.0/24", &["--attachable"]), ("shut", "10.77.3.0/24", &[])]
    {
        ok(&lab, &[&["network", "create", "-d", "overlay", "--subnet", subnet], flags, &[name]].concat())?;
    }
    // What cannot be.
    refused(&lab, &["run", "--network", "shut", "box:1", "true"], "network shut not manually attachable")?;
    refused(&lab, &["run", "--network", "nothing", "box:1", "true"], "network nothing not found")?;
    refused(&lab, &["run", "--network", "net", "--ip", "10.99.0.1", "box:1", "true"], "10.99.0.1")?;
    refused(&lab, &["run", "--network", "bridge", "--network-alias", "x", "box:1", "true"], "network-scoped alias")?;
    ok(&lab, &["container", "prune", "-f"])?;

    // Names and addresses: of a service, of each other, of itself.
    ok(
        &lab,
        &["service", "create", "-q", "-d", "--no-resolve-image", "--name", "web", "--network", "net", "box:1", "sh", "-c", SERVES, "web"],
    )?;
    serve(&lab, "ann", &["--network", "net", "--network-alias", "first", "--ip", "10.77.1.77"])?;
    serve(&lab, "bob", &["--network", "net", "-p", "18080:80"])?;
    let id = inspect(&lab, &["inspect", "ann"])?["Id"].as_str().context("it has an id")?.to_owned();
    for (from, name, who) in [
        ("bob", "ann", "ann"),
        ("bob", "first", "ann"),
        ("bob", &id[..12], "ann"),
        ("ann", "bob", "bob"),
        ("ann", "ann", "ann"),
        ("ann", "web", "web"),
    ] {
        reaches(&lab, from, name, who)?;
    }
    let shown = place(&lab, "ann", "net")?;
    let network = inspect(&lab, &["network", "inspect", "net"])?;
    ensure!(
        shown["IPAddress"] == json!("10.77.1.77")
            && shown["IPPrefixLen"] == json!(24)
            && shown["Aliases"] == json!(["first"])
            && shown["NetworkID"] == network["Id"]
            && shown["MacAddress"].as_str().is_some_and(|mac| mac.len() == 17)
            && shown["EndpointID"].as_str().is_some_and(|id| id.len() == 64)
            && shown["DNSNames"] == json!(["ann", "first", &id[..12]]),
        "{shown}"
    );
    ensure!(
        network["Containers"][&id]["Name"] == json!("ann") && network["Containers"][&id]["IPv4Address"] == json!("10.77.1.77/24"),
        "{network}"
    );
    // A port of the node leads into the network, and the way out is there.
    let answered = eventually(SOON, "the published port answers", || lab.curl(&format!("http://{}:18080/", Lab::HOST)))?;
    ensure!(answered.trim() == "bob", "{answered:?}");

    // Two networks at once, and the node's own with one of them.
    ok(&lab, &["create", "--name", "both", "--network", "net", "box:1", "sh", "-c", SERVES, "both"])?;
    ok(&lab, &["network", "connect", "--alias", "other", "two", "both"])?;
    refused(&lab, &["network", "connect", "two", "both"], "endpoint with name both already exists in network two")?;
    ok(&lab, &["start", "both"])?;
    serve(&lab, "cat", &["--network", "two"])?;
    reaches(&lab, "cat", "other", "both")?;
    reaches(&lab, "ann", "both", "both")?;

    // Put on one and taken off while it runs: what it has otherwise stays.
    serve(&lab, "dan", &[])?;
    ok(&lab, &["network", "connect", "--ip", "10.77.2.99", "two", "dan"])?;
    ensure!(address(&lab, "dan", "two")? == "10.77.2.99");
    ensure!(!address(&lab, "dan", "bridge")?.is_empty());
    reaches(&lab, "dan", "cat", "cat")?;
    reaches(&lab, "cat", "dan", "dan")?;
    ok(&lab, &["network", "disconnect", "bridge", "dan"])?;
    reaches(&lab, "dan", "cat", "cat")?;
    let links = ok(&lab, &["exec", "dan", "ls", "/sys/class/net"])?;
    ensure!(links.split_whitespace().collect::<Vec<_>>() == ["eth1", "lo"], "{links:?}");
    ok(&lab, &["network", "connect", "bridge", "dan"])?;
    ok(&lab, &["network", "disconnect", "two", "dan"])?;
    ensure!(place(&lab, "dan", "two")?.is_null() && !attachments(&lab, "two")?.contains(&"dan".to_owned()));
    eventually(SOON, "its name is gone", || {
        ensure!(look_up(&lab, "cat", "dan").is_err());
        Ok(())
    })?;
    refused(&lab, &["network", "disconnect", "two", "dan"], "is not connected to network two")?;
    refused(&lab, &["network", "connect", "shut", "dan"], "not manually attachable")?;
    refused(&lab, &["network", "connect", "host", "dan"], "host network")?;

    // Managers take one off: it leaves, and runs on.
    ok(&lab, &["network", "connect", "net", "dan"])?;
    lab.ctl(&["network", "detach", &attachment(&lab, "dan")?])?.success()?;
    eventually(SOON, "it is on the node's own network only", || {
        ensure!(place(&lab, "dan", "net")?.is_null(), "it is still there");
        ensure!(ok(&lab, &["exec", "dan", "ls", "/sys/class/net"])?.split_whitespace().collect::<Vec<_>>() == ["eth0", "lo"]);
        Ok(())
    })?;

    // Over a death of the daemon a container keeps its network; one that ended meanwhile gives its place back.
    let before = (address(&lab, "ann", "net")?, inspect(&lab, &["inspect", "ann"])?["State"]["Pid"].clone());
    let pid = inspect(&lab, &["inspect", "bob"])?["State"]["Pid"].to_string();
    lab.kill_skepd();
    run("kill", &["-9", &pid])?;
    lab.start_skepd()?;
    eventually(SOON, "one is as it was, and the place of the other is free", || {
        ensure!((address(&lab, "ann", "net")?, inspect(&lab, &["inspect", "ann"])?["State"]["Pid"].clone()) == before);
        let names = attachments(&lab, "net")?;
        ensure!(names.contains(&"ann".to_owned()) && !names.contains(&"bob".to_owned()), "{names:?}");
        Ok(())
    })?;
    reaches(&lab, "ann", "both", "both")?;
    reaches(&lab, "both", "first", "ann")?;
    // Started again it gets a place anew.
    ok(&lab, &["start", "bob"])?;
    reaches(&lab, "ann", "bob", "bob")?;
    ok(&lab, &["update", "--restart", "always", "bob"])?;
    run("kill", &["-9", &inspect(&lab, &["inspect", "bob"])?["State"]["Pid"].to_string()])?;
    eventually(SOON, "it is started again", || {
        ensure!(inspect(&lab, &["inspect", "bob"])?["RestartCount"] == json!(1));
        Ok(())
    })?;
    reaches(&lab, "ann", "bob", "bob")?;
    refused(&lab, &["network", "rm", "two"], "in use")?;

    // Nothing is left of them.
    ok(&lab, &["stop", "-t", "0", "bob"])?;
    eventually(SOON, "a container that was stopped holds no place", || {
        ensure!(!attachments(&lab, "net")?.contains(&"bob".to_owned()));
        ensure!(place(&lab, "bob", "net")?["IPAddress"] == json!(""));
        Ok(())
    })?;
    ok(&lab, &["rm", "-f", "ann", "bob", "both", "cat", "dan"])?;
    ok(&lab, &["service", "rm", "web"])?;
    for network in ["net", "two", "shut"] {
        eventually(SOON, "the network is removed", || ok(&lab, &["network", "rm", network]))?;
    }
    for dir in ["agent/attachments", "agent/containers"] {
        let left: Vec<_> = std::fs::read_dir(lab.data_dir().join(dir)).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        ensure!(left.is_empty(), "{left:?}");
    }
    Ok(())
}

#[test]
fn containers_of_two_nodes_meet_on_a_network_of_the_cluster() -> Result<()> {
    let Some(mut hosts) = hosts("docker run --network on two nodes", Size { managers: 1, workers: 1 })? else { return Ok(()) };
    ok(&hosts[0], &["swarm", "init", "--advertise-addr", &hosts.address(0)])?;
    let token = ok(&hosts[0], &["swarm", "join-token", "-q", "worker"])?.trim().to_owned();
    ok(&hosts[1], &["swarm", "join", "--token", &token, &format!("{}:2377", hosts.address(0))])?;
    for at in 0..2 {
        load_as(&hosts[at], &["box:1"], &["sh"], Extra::default())?;
    }
    ok(&hosts[0], &["network", "create", "-d", "overlay", "--attachable", "net"])?;
    ok(&hosts[0], &["network", "create", "-d", "overlay", "shut"])?;
    ok(
        &hosts[0],
        &["service", "create", "-q", "-d", "--no-resolve-image", "--name", "web", "--network", "net", "box:1", "sh", "-c", SERVES, "web"],
    )?;
    serve(&hosts[0], "near", &["--network", "net"])?;
    serve(&hosts[1], "far", &["--network", "net", "--network-alias", "away"])?;
    refused(&hosts[1], &["run", "--network", "shut", "box:1", "true"], "network shut not manually attachable")?;
    refused(&hosts[1], &["run", "--network", "nothing", "box:1", "true"], "network nothing not found")?;
    let meet = |hosts: &skep_kit::Cluster| -> Result<()> {
        for (at, from, name, who) in
            [(0, "near", "far", "far"), (0, "near", "away", "far"), (1, "far", "near", "near"), (1, "far", "web", "web")]
        {
            reaches(&hosts[at], from, name, who)?;
        }
        Ok(())
    };
    meet(&hosts)?;
    // Live, on the worker.
    serve(&hosts[1], "late", &[])?;
    ok(&hosts[1], &["network", "connect", "net", "late"])?;
    reaches(&hosts[0], "near", "late", "late")?;
    ok(&hosts[1], &["network", "disconnect", "net", "late"])?;
    for at in 0..2 {
        hosts[at].kill_skepd();
        hosts[at].start_skepd()?;
    }
    meet(&hosts)?;
    // Its machine's end: what the daemon finds ended is given back.
    let pid = inspect(&hosts[1], &["inspect", "far"])?["State"]["Pid"].to_string();
    hosts[1].kill_skepd();
    run("kill", &["-9", &pid])?;
    hosts[1].start_skepd()?;
    eventually(SOON, "its name is gone", || {
        ensure!(look_up(&hosts[0], "near", "far").is_err());
        Ok(())
    })?;
    ok(&hosts[1], &["rm", "-f", "far", "late"])?;
    ok(&hosts[0], &["rm", "-f", "near"])?;
    ok(&hosts[0], &["service", "rm", "web"])?;
    eventually(SOON, "the network is removed", || ok(&hosts[0], &["network", "rm", "net"])).map(drop)
}

/// What becomes of a container on a network, told to a daemon that may die in the middle of it.
fn lives_of_one(on: &Host) {
    let steps: [&[&str]; 6] = [
        &["run", "-d", "--name", "eve", "--network", "net", "box:1", "sh", "-c", SERVES, "eve"],
        &["network", "connect", "two", "eve"],
        &["network", "disconnect", "net", "eve"],
        &["stop", "-t", "0", "eve"],
        &["start", "eve"],
        &["rm", "-f", "eve"],
    ];
    for step in steps {
        // The agent may be on its way, and the daemon may die meanwhile.
        let _ =
            eventually(SOON / 3, "it is done, or nobody is there to do it", || if on.is_alive() { ok(on, step).map(drop) } else { Ok(()) });
        if !on.is_alive() {
            return;
        }
    }
}

#[test]
fn a_daemon_that_dies_at_any_point_leaks_no_place() -> Result<()> {
    let Some(mut lab) = lab("docker run --network, and kill -9 at every fail-point")? else { return Ok(()) };
    load(&lab)?;
    for (name, subnet) in [("net", "10.77.1.0/24"), ("two", "10.77.2.0/24")] {
        ok(&lab, &["network", "create", "-d", "overlay", "--attachable", "--subnet", subnet, name])?;
    }
    serve(&lab, "ann", &["--network", "two"])?;
    let points = [
        "agent.local.place_asked",
        "agent.local.places_recorded",
        "agent.local.joined",
        "agent.local.started",
        "agent.local.connect_recorded",
        "agent.network.changed",
        "netlb.task.unlinked",
        "agent.local.disconnected",
        "agent.local.end_recorded",
        "agent.attachment.noted",
        "agent.attachment.detached",
    ];
    for point in points {
        let mut died = !lab.arm(Some(point))?;
        if !died {
            lives_of_one(&lab);
            died = eventually(SOON, "it dies", || if lab.is_alive() { Err(anyhow::anyhow!("it lives")) } else { Ok(true) })
                .with_context(|| point.to_owned())?;
        }
        ensure!(died && lab.arm(None)?, "{point}");
        eventually(SOON, "what holds a place is a container that runs", || {
            let running = inspect(&lab, &["inspect", "eve"]).is_ok_and(|eve| eve["State"]["Running"] == json!(true));
            for network in ["net", "two"] {
                let held = attachments(&lab, network)?.contains(&"eve".to_owned());
                let shown =
                    if running { place(&lab, "eve", network)?["EndpointID"].as_str().is_some_and(|id| !id.is_empty()) } else { false };
                ensure!(held == shown, "{point}: {network}: held: {held}, shown: {shown}");
            }
            if running && attachments(&lab, "two")?.contains(&"eve".to_owned()) {
                reaches(&lab, "ann", "eve", "eve")?;
            }
            Ok(())
        })?;
        let _ = docker(&lab, &["rm", "-f", "eve"]); // it may be gone
        eventually(SOON, "nothing of it is left", || {
            for network in ["net", "two"] {
                let names = attachments(&lab, network)?;
                ensure!(!names.contains(&"eve".to_owned()), "{point}: {network}: {names:?}");
            }
            Ok(())
        })?;
    }
    ok(&lab, &["rm", "-f", "ann"])?;
    for network in ["net", "two"] {
        eventually(SOON, "the network is removed", || ok(&lab, &["network", "rm", network]))?;
    }
    Ok(())
}
