//! `docker swarm join`, `docker node …` with two hosts.

use crate::support::{SOON, docker, hosts, inspect, ok, request};
use anyhow::{Result, ensure};
use serde_json::json;
use skep_kit::{Host, Size, eventually};

fn info(on: &Host, what: &str) -> Result<String> {
    Ok(ok(on, &["info", "--format", &format!("{{{{.Swarm.{what}}}}}")])?.trim().to_owned())
}

#[test]
fn nodes_join_change_leave_and_are_removed() -> Result<()> {
    let Some(hosts) = hosts("docker node", Size { managers: 1, workers: 1 })? else { return Ok(()) };
    let (first, second) = (&hosts[0], &hosts[1]);
    ok(first, &["swarm", "init", "--advertise-addr", &hosts.address(0)])?;
    let token = ok(first, &["swarm", "join-token", "-q", "worker"])?.trim().to_owned();
    let manager = format!("{}:2377", hosts.address(0));
    let join = |token: &str, remote: &str| docker(second, &["swarm", "join", "--token", token, remote]);
    let output = join("nonsense", &manager)?;
    ensure!(output.status != 0 && output.stderr.contains("invalid join token"), "{output:?}");
    let wrong = format!("SWMTKN-1-{}-{}", "0".repeat(50), "0".repeat(25));
    ensure!(join(&wrong, &manager)?.status != 0 && info(second, "LocalNodeState")? == "inactive", "a wrong token let it in");
    let out = join(&token, &manager)?.success()?;
    ensure!(out == "This node joined a swarm as a worker.\n", "{out}");
    ensure!(info(second, "LocalNodeState")? == "active" && info(second, "ControlAvailable")? == "false");
    let id = info(second, "NodeID")?;
    let refused = docker(second, &["node", "ls"])?;
    ensure!(refused.stderr.contains("Worker nodes can't be used to view or modify cluster state"), "{refused:?}");
    let remote = ok(second, &["info", "--format", "{{json .Swarm.RemoteManagers}}"])?;
    ensure!(remote.contains(&manager), "{remote}");

    eventually(SOON, "both are ready", || {
        let listed = ok(first, &["node", "ls", "--format", "{{.ID}} {{.Status}} {{.ManagerStatus}}"])?;
        ensure!(listed.lines().count() == 2 && listed.contains(&format!("{id} Ready \n")) && listed.contains("Ready Leader"), "{listed}");
        Ok(())
    })?;
    let node = inspect(first, &["node", "inspect", &id])?;
    ensure!(node.get("ManagerStatus").is_none() && node["Spec"]["Role"] == "worker" && node["Status"]["Addr"] == json!(hosts.address(1)));
    ensure!(node["Description"]["Platform"]["OS"] == "linux" && node["Description"]["Resources"]["NanoCPUs"].as_i64() > Some(0), "{node}");
    ensure!(ok(first, &["node", "inspect", "--pretty", "self"])?.contains("Leader:"));
    for (filter, count) in
        [("role=manager", 1), ("role=worker", 1), ("membership=accepted", 2), (&format!("id={}", &id[..6]), 1), ("name=nothing", 0)]
    {
        let listed = ok(first, &["node", "ls", "-q", "--filter", filter])?;
        ensure!(listed.lines().count() == count, "{filter}: {listed}");
    }
    for (filter, words) in [("role=boss", "invalid role filter"), ("colour=red", "invalid filter 'colour'")] {
        let refused = docker(first, &["node", "ls", "--filter", filter])?;
        ensure!(refused.status != 0 && refused.stderr.contains(words), "{refused:?}");
    }

    ok(first, &["node", "update", "--label-add", "rack=7", "--availability", "drain", &id])?;
    ensure!(ok(first, &["node", "ls", "-q", "--filter", "node.label=rack=7"])?.trim() == id);
    ensure!(inspect(first, &["node", "inspect", &id])?["Spec"]["Availability"] == "drain");
    let told = first.ctl(&["node", "inspect", &id])?.success()?;
    ensure!(told.contains("rack") && told.to_lowercase().contains("drain"), "swarmctl sees something else: {told}");
    ok(first, &["node", "update", "--label-rm", "rack", "--availability", "active", &id])?;
    let (status, body) =
        request(first, "POST", &format!("/nodes/{id}/update?version=1"), Some(r#"{"Role":"worker","Availability":"active"}"#))?;
    ensure!(status == 500 && body.contains("update out of sequence"), "{status} {body}");
    let (status, body) = request(first, "POST", &format!("/nodes/{id}/update?version=1"), Some(r#"{"Role":"boss"}"#))?;
    ensure!(status == 400 && body.contains("invalid Role"), "{status} {body}");

    let own = info(first, "NodeID")?;
    let refused = docker(first, &["node", "demote", &own])?;
    ensure!(refused.stderr.contains("attempting to demote the last manager of the swarm"), "{refused:?}");
    let refused = docker(first, &["node", "rm", "--force", &own])?;
    ensure!(refused.stderr.contains("is a member of the raft cluster. It must be demoted to worker before removal"), "{refused:?}");

    let out = ok(first, &["node", "promote", &id])?;
    ensure!(out == format!("Node {id} promoted to a manager in the swarm.\n"), "{out}");
    eventually(SOON, "it is a manager", || {
        ensure!(info(second, "ControlAvailable")? == "true" && info(second, "Managers")? == "2");
        Ok(())
    })?;
    ensure!(ok(first, &["info"])?.contains("two-manager configuration") || docker(first, &["info"])?.stderr.contains("two-manager"));
    ensure!(ok(second, &["node", "ls", "--format", "{{.Self}} {{.ManagerStatus}}"])?.contains("true Reachable"));
    ensure!(ok(first, &["node", "promote", &id])?.contains("is already a manager"));
    let refused = docker(second, &["swarm", "leave"])?;
    ensure!(refused.stderr.contains("Removing this node leaves 1 managers out of 2. Without a Raft quorum"), "{refused:?}");
    ok(first, &["node", "demote", &id])?;
    eventually(SOON, "it is a worker", || {
        ensure!(info(second, "ControlAvailable")? == "false" && info(second, "LocalNodeState")? == "active");
        Ok(())
    })?;

    let refused = docker(first, &["node", "rm", &id])?;
    ensure!(refused.status != 0 && refused.stderr.contains("is not down and can't be removed"), "{refused:?}");
    ensure!(ok(second, &["swarm", "leave"])? == "Node left the swarm.\n" && info(second, "LocalNodeState")? == "inactive");
    eventually(SOON, "it is down", || {
        ensure!(ok(first, &["node", "ls", "--format", "{{.ID}} {{.Status}}"])?.contains(&format!("{id} Down")));
        Ok(())
    })?;
    ensure!(ok(first, &["node", "rm", &id])?.trim() == id && ok(first, &["node", "ls", "-q"])?.lines().count() == 1);
    let refused = docker(first, &["node", "rm", &id])?;
    ensure!(refused.stderr.contains(&format!("node {id} not found")), "{refused:?}");

    // A new token: the old one lets nobody in any more.
    let new = ok(first, &["swarm", "join-token", "--rotate", "-q", "worker"])?.trim().to_owned();
    ensure!(join(&token, &manager)?.status != 0, "the old token lets nodes in");
    join(&new, &manager)?.success()?;
    Ok(())
}

#[test]
fn a_manager_without_a_majority_says_so() -> Result<()> {
    let Some(mut hosts) = hosts("docker without a majority", Size { managers: 2, workers: 0 })? else { return Ok(()) };
    ok(&hosts[0], &["swarm", "init", "--advertise-addr", &hosts.address(0)])?;
    let token = ok(&hosts[0], &["swarm", "join-token", "-q", "manager"])?.trim().to_owned();
    let manager = format!("{}:2377", hosts.address(0));
    let out = ok(&hosts[1], &["swarm", "join", "--token", &token, &manager])?;
    ensure!(out == "This node joined a swarm as a manager.\n", "{out}");
    hosts[1].kill_skepd();
    eventually(SOON, "it is told that there is no leader", || {
        let refused = docker(&hosts[0], &["node", "ls"])?;
        ensure!(refused.status != 0 && refused.stderr.contains("The swarm does not have a leader"), "{refused:?}");
        Ok(())
    })?;
    let (status, body) = request(&hosts[0], "GET", "/services", None)?;
    ensure!(status == 500 && body.contains("rpc error: code = Unknown desc = The swarm does not have a leader"), "{status} {body}");
    // The node itself answers, and tells why the cluster does not.
    ensure!(info(&hosts[0], "LocalNodeState")? == "active" && info(&hosts[0], "Error")?.contains("leader"), "docker info");
    hosts[1].start_skepd()?;
    eventually(SOON, "the swarm works again", || ok(&hosts[0], &["node", "ls"]).map(drop))?;
    Ok(())
}
