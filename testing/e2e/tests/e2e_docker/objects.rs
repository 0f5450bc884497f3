//! `docker secret …`, `docker config …`, `docker network …`.

use crate::support::{docker, inspect, lab, ok, request};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use skep_kit::Lab;

fn refused(lab: &Lab, arguments: &[&str], words: &str) -> Result<()> {
    let output = docker(lab, arguments)?;
    ensure!(output.status != 0 && output.stderr.contains(words), "{arguments:?} without {words:?}: {output:?}");
    Ok(())
}

#[test]
fn secrets_and_configs_are_made_read_changed_and_removed() -> Result<()> {
    let Some(lab) = lab("docker secret, docker config")? else { return Ok(()) };
    let file = lab.dir().join("payload").to_string_lossy().into_owned();
    std::fs::write(&file, "hunter2\n")?;
    for kind in ["secret", "config"] {
        let id = ok(&lab, &[kind, "create", "-l", "tier=front", "--template-driver", "golang", "first", &file])?.trim().to_owned();
        ensure!(id.len() == 25, "{id}");
        refused(&lab, &[kind, "create", "first", &file], &format!("{kind} first already exists"))?;
        refused(&lab, &[kind, "create", "not good", &file], "rpc error: code = InvalidArgument desc = ")?;
        refused(&lab, &[kind, "inspect", "nothing"], &format!("{kind} nothing not found"))?;
        refused(&lab, &[kind, "rm", "nothing"], &format!("{kind} nothing not found"))?;
        ok(&lab, &[kind, "create", "second", &file])?;
        for (filter, names) in [
            ("name=fir", "first\n"),
            ("label=tier=front", "first\n"),
            ("label=tier", "first\n"),
            (&format!("id={}", &id[..8]), "first\n"),
            ("name=nothing", ""),
        ] {
            let listed = ok(&lab, &[kind, "ls", "--filter", filter, "--format", "{{.Name}}"])?;
            ensure!(listed == names, "{kind} {filter}: {listed:?}");
        }
        refused(&lab, &[kind, "ls", "--filter", "colour=red"], "invalid filter 'colour'")?;

        // Full id, name and beginning of the id mean the same object.
        let object = inspect(&lab, &[kind, "inspect", "first"])?;
        ensure!(object == inspect(&lab, &[kind, "inspect", &id])? && object == inspect(&lab, &[kind, "inspect", &id[..7]])?);
        let mut spec = json!({"Name": "first", "Labels": {"tier": "front"}, "Templating": {"Name": "golang"}});
        if kind == "config" {
            spec["Data"] = json!("aHVudGVyMgo=");
        }
        ensure!(object["Spec"] == spec, "{object}");
        ensure!(ok(&lab, &[kind, "inspect", "--pretty", "first"])?.contains("tier=front"));

        // Written back as it was read, nothing is different; labels change, data does not.
        let version = |object: &Value| object["Version"]["Index"].as_u64().unwrap_or_default();
        let update = |version: u64, spec: &Value| {
            request(&lab, "POST", &format!("/{kind}s/first/update?version={version}"), Some(&spec.to_string()))
        };
        ensure!(update(version(&object), &spec)? == (200, String::new()));
        let again = inspect(&lab, &[kind, "inspect", "first"])?;
        ensure!(again["Spec"] == spec && version(&again) > version(&object), "{again}");
        let (status, body) = update(version(&object), &spec)?;
        ensure!(status == 500 && body.contains("rpc error: code = Unknown desc = update out of sequence"), "{status} {body}");
        let mut labelled = spec.clone();
        labelled["labels"] = json!({"x": "y"});
        labelled.as_object_mut().map(|fields| fields.remove("Labels"));
        ensure!(update(version(&again), &labelled)?.0 == 200);
        let again = inspect(&lab, &[kind, "inspect", "first"])?;
        ensure!(again["Spec"]["Labels"] == json!({"x": "y"}), "{again}");
        labelled["Data"] = json!("b3RoZXI=");
        let (status, body) = update(version(&again), &labelled)?;
        ensure!(status == 400 && body.contains("only updates to Labels are allowed"), "{status} {body}");

        // In use, it stays.
        let reference = format!("--{kind}");
        ok(&lab, &["service", "create", "-d", "--no-resolve-image", "--name", kind, &reference, "first", "whoami", "sleep"])?;
        refused(&lab, &[kind, "rm", "first"], &format!("is in use by the following service: {kind}"))?;
        ok(&lab, &["service", "rm", kind])?;
        ensure!(ok(&lab, &[kind, "rm", "first", "second"])? == "first\nsecond\n");
        ensure!(ok(&lab, &[kind, "ls", "-q"])?.is_empty());
    }
    Ok(())
}

#[test]
fn networks_are_made_read_used_and_removed() -> Result<()> {
    let Some(lab) = lab("docker network")? else { return Ok(()) };
    let create = [
        "network",
        "create",
        "-d",
        "overlay",
        "--attachable",
        "--subnet",
        "10.99.0.0/24",
        "--gateway",
        "10.99.0.7",
        "--ip-range",
        "10.99.0.128/25",
        "--label",
        "tier=back",
        "--opt",
        "encrypted",
        "back",
    ];
    let id = ok(&lab, &create)?.trim().to_owned();
    refused(&lab, &create, "network with name back already exists")?;
    for name in ["host", "bridge", "none"] {
        refused(&lab, &["network", "create", "-d", "overlay", name], "operation is not permitted on predefined")?;
        refused(&lab, &["network", "rm", name], "operation is not permitted on predefined")?;
    }
    refused(&lab, &["network", "create", "local"], "-d overlay")?;
    refused(&lab, &["network", "create", "-d", "overlay", "--opt", "colour=red", "x"], "rpc error: code = InvalidArgument desc = ")?;
    refused(&lab, &["network", "inspect", "nothing"], "network nothing not found")?;
    ok(&lab, &["network", "create", "-d", "overlay", "--internal", "front"])?;

    let network = inspect(&lab, &["network", "inspect", "back"])?;
    ensure!(network == inspect(&lab, &["network", "inspect", &id[..9]])?, "{network}");
    ensure!(network["Id"] == json!(id) && network["Scope"] == "swarm" && network["Driver"] == "overlay" && network["Attachable"] == true);
    ensure!(
        network["IPAM"]["Config"] == json!([{"Subnet": "10.99.0.0/24", "IPRange": "10.99.0.128/25", "Gateway": "10.99.0.7"}]),
        "{network}"
    );
    ensure!(network["Options"]["encrypted"] == "" && network["Labels"] == json!({"tier": "back"}) && network["Containers"].is_null());
    let vxlan = network["Options"]["com.docker.network.driver.overlay.vxlanid_list"].as_str().unwrap_or_default();
    ensure!(vxlan.parse::<u32>().is_ok_and(|vxlan| vxlan >= 4096), "{network}");
    let front = inspect(&lab, &["network", "inspect", "front"])?;
    ensure!(front["Internal"] == true && front["Labels"].is_null() && front["Ingress"] == false, "{front}");
    let (_, old) = request(&lab, "GET", "/v1.46/networks/back", None)?;
    ensure!(!old.contains("EnableIPv4") && network["EnableIPv4"] == true, "{old}");

    for (filter, names) in [
        ("name=ack", "back\n"),
        ("label=tier=back", "back\n"),
        ("driver=overlay", "back\nfront\ningress\n"),
        ("scope=local", "bridge\nhost\nnone\n"),
        ("type=custom", "back\nfront\ningress\n"),
        ("dangling=true", "back\nfront\ningress\n"),
        ("dangling=false", "bridge\nhost\nnone\n"),
        (&format!("id={}", &id[..8]), "back\n"),
    ] {
        let listed = ok(&lab, &["network", "ls", "--filter", filter, "--format", "{{.Name}}"])?;
        ensure!(listed == names, "{filter}: {listed:?}");
    }
    for (filter, words) in [("scope=moon", "scope=moon"), ("colour=red", "invalid filter 'colour'")] {
        refused(&lab, &["network", "ls", "--filter", filter], words)?;
    }

    // A task of this node is among the containers, and the service keeps the network.
    ok(&lab, &["service", "create", "-q", "--no-resolve-image", "--name", "web", "--network", "front", "whoami", "sleep"])?;
    let task = ok(&lab, &["service", "ps", "-q", "--no-trunc", "web"])?;
    let used = inspect(&lab, &["network", "inspect", "-v", "front"])?;
    let containers: Vec<&Value> = used["Containers"].as_object().map(|all| all.values().collect()).unwrap_or_default();
    ensure!(containers.len() == 1 && containers[0]["Name"] == json!(format!("web.1.{}", task.trim())), "{used}");
    let address = containers[0]["IPv4Address"].as_str().unwrap_or_default();
    let service = &used["Services"]["web"];
    ensure!(
        service["Tasks"][0]["EndpointIP"] == json!(address.split('/').next()) && !service["VIP"].as_str().unwrap_or_default().is_empty(),
        "{used}"
    );
    ensure!(used["Peers"][0]["IP"] == Lab::HOST, "{used}");
    refused(&lab, &["network", "rm", "front"], "is in use by service web")?;
    ensure!(ok(&lab, &["network", "prune", "-f"])? == "Deleted Networks:\nback\n\n");
    refused(&lab, &["network", "connect", "front", "web"], "not manually attachable")?;
    ok(&lab, &["service", "rm", "web"])?;
    // At once: tasks that are on their way out do not hold it.
    ensure!(ok(&lab, &["network", "rm", "front"])? == "front\n");
    let names = ok(&lab, &["network", "ls", "--format", "{{.Name}}"])?;
    ensure!(names == "bridge\nhost\ningress\nnone\n", "{names}");
    // The objects of the cluster behind the networks that every node has.
    let (status, body) = request(&lab, "GET", "/networks/host?scope=swarm", None)?;
    ensure!(status == 200 && body.contains("\"Scope\":\"swarm\""), "{status} {body}");
    Ok(())
}
