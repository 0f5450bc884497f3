//! The cluster as one Docker host: the genuine client at `docker-cluster.sock` of a manager, and a container on another node.

use crate::box_image::{Extra, load_as};
use crate::support::{SOON, client, docker, hosts, ok, request_at};
use anyhow::{Context as _, Result, ensure};
use skep_kit::{Host, Output, Size, binary, eventually, run};

fn socket(on: &Host) -> String {
    on.run_dir().join("docker-cluster.sock").display().to_string()
}

/// A shell's line in which `docker` is the client of the cluster.
fn shell(on: &Host, line: &str) -> Result<Output> {
    let program = client().context("the client was there when the test began")?;
    let line = format!("docker() {{ command {program} \"$@\"; }}; {line}");
    let (socket, config) =
        (format!("DOCKER_HOST=unix://{}", socket(on)), format!("DOCKER_CONFIG={}", on.dir().join("docker-config").display()));
    run("timeout", &["300", "env", "-u", "DOCKER_CONTEXT", &socket, &config, "sh", "-c", &line])
}

/// What the client of the cluster prints when it succeeds.
fn all(on: &Host, line: &str) -> Result<String> {
    shell(on, &format!("docker {line}"))?.success().with_context(|| line.to_owned())
}

fn refused(on: &Host, line: &str, words: &str) -> Result<()> {
    let answer = shell(on, &format!("docker {line}"))?;
    ensure!(answer.status != 0 && answer.stderr.contains(words), "{line}: {answer:?}");
    Ok(())
}

/// The full id of the container of a service's one task.
fn container(on: &Host, service: &str) -> Result<String> {
    eventually(SOON, "its container runs", || {
        let ids = all(on, &format!("ps -q --no-trunc --filter status=running --filter label=com.docker.swarm.service.name={service}"))?;
        ensure!(ids.lines().count() == 1, "{ids:?}");
        Ok(ids.trim().to_owned())
    })
}

#[test]
fn containers_of_all_nodes_are_reached_by_a_manager() -> Result<()> {
    let Some(mut hosts) = hosts("docker-cluster.sock", Size { managers: 1, workers: 1 })? else { return Ok(()) };
    ok(&hosts[0], &["swarm", "init", "--advertise-addr", &hosts.address(0)])?;
    let token = ok(&hosts[0], &["swarm", "join-token", "-q", "worker"])?.trim().to_owned();
    ok(&hosts[1], &["swarm", "join", "--token", &token, &format!("{}:2377", hosts.address(0))])?;
    for at in 0..2 {
        load_as(&hosts[at], &["box:1"], &["sh"], Extra::default())?;
    }
    {
        let (manager, worker) = (&hosts[0], &hosts[1]);
        // The swarm's own calls are as on the other socket.
        for (name, role) in [("far", "worker"), ("near", "manager")] {
            let program = "sh -c 'echo hello; echo oops >&2; exec sleep 3600'";
            all(manager, &format!("service create -q -d --no-resolve-image --name {name} --constraint node.role=={role} box:1 {program}"))?;
        }
        ensure!(all(manager, "node ls -q")?.lines().count() == 2 && all(manager, "service ls -q")?.lines().count() == 2);
        let (far, near) = (container(manager, "far")?, container(manager, "near")?);
        seen(manager, worker, &far, &near)?;
        entered(manager, &far)?;
        ended(manager, &far)?;
        refused(worker, "ps", "This node is not a swarm manager")?;
    }
    let far = container(&hosts[0], "far")?;
    hosts[1].kill_skepd();
    eventually(SOON, "what cannot be asked is told by the managers", || {
        let listed = all(&hosts[0], "ps --no-trunc --format '{{.ID}} {{.Names}} {{.Status}}'")?;
        let line = listed.lines().find(|line| line.starts_with(&far)).context(listed.clone())?;
        ensure!(line.contains(" far.1.") && line.ends_with(" Unknown (its node does not answer)"), "{line}");
        ensure!(listed.lines().count() == 2 && listed.contains(" near.1.") && listed.contains(" Up "), "{listed}");
        Ok(())
    })?;
    let head = run(
        "curl",
        &["-sS", "-D", "-", "-o", "/dev/null", "--max-time", "60", "--unix-socket", &socket(&hosts[0]), "http://docker/containers/json"],
    )?;
    ensure!(head.stdout.to_lowercase().contains("warning: 199 skep \"node "), "{head:?}");
    refused(&hosts[0], &format!("logs {far}"), "node ")?;
    hosts[1].start_skepd()?;
    eventually(SOON, "it is reached again", || {
        ensure!(all(&hosts[0], &format!("exec {far} echo back"))? == "back\n");
        Ok(())
    })
}

fn seen(manager: &Host, worker: &Host, far: &str, near: &str) -> Result<()> {
    ensure!(ok(manager, &["ps", "-q", "--no-trunc"])?.trim() == near && ok(worker, &["ps", "-q", "--no-trunc"])?.trim() == far);
    let listed = all(manager, "ps -a --no-trunc --format '{{.ID}} {{.Image}} {{.State}}'")?;
    ensure!(listed.lines().count() == 2 && [far, near].iter().all(|id| listed.contains(&format!("{id} box:1 running"))), "{listed}");
    ensure!(all(manager, "ps -q --filter name=far")?.lines().count() == 1 && all(manager, "ps -q -n 1")?.lines().count() == 1);
    refused(manager, "ps --filter status=odd", "invalid filter")?;
    eventually(SOON, "both lines are in the log", || {
        let said = shell(manager, &format!("docker logs {far}"))?;
        ensure!(said.stdout == "hello\n" && said.stderr == "oops\n", "{said:?}");
        Ok(())
    })?;
    let name = all(manager, &format!("inspect --format '{{{{.Name}}}} {{{{.State.Status}}}}' {}", &far[..12]))?;
    let name = name.trim().strip_suffix(" running").and_then(|name| name.strip_prefix('/')).context(name.clone())?.to_owned();
    ensure!(all(manager, &format!("top {name}"))?.contains("sleep 3600") && all(manager, &format!("port {name}"))?.is_empty());
    let used = all(manager, &format!("stats --no-stream --no-trunc --format '{{{{.ID}}}} {{{{.PIDs}}}}' {far} {near}"))?;
    ensure!(used.contains(&format!("{far} 1\n")) && used.contains(&format!("{near} 1\n")), "{used:?}");
    refused(manager, "logs nothing", "No such container: nothing")?;
    refused(manager, "exec far true", "No such container: far")?;
    refused(manager, "run box:1 true", "docker service create")?;
    refused(manager, "volume create x", "each node's own")
}

fn entered(manager: &Host, far: &str) -> Result<()> {
    ensure!(all(manager, &format!("exec {far} echo here"))? == "here\n");
    let ended = shell(manager, &format!("docker exec {far} sh -c 'echo wrong >&2; exit 7'"))?;
    ensure!(ended.status == 7 && ended.stderr == "wrong\n", "{ended:?}");
    ensure!(shell(manager, &format!("echo question | docker exec -i {far} sh -c 'cat; echo answer'"))?.success()? == "question\nanswer\n");
    // Much more than a tunnel's window, in each direction.
    ensure!(shell(manager, &format!("head -c 3000000 /dev/zero | docker exec -i {far} wc -c"))?.success()?.trim() == "3000000");
    ensure!(shell(manager, &format!("docker exec {far} head -c 3000000 /dev/zero | wc -c"))?.success()?.trim() == "3000000");
    let (socket, body) = (socket(manager), r#"{"Cmd":["sleep","3600"],"Tty":true,"AttachStdin":true,"AttachStdout":true}"#);
    let (status, made) = request_at(&socket, "POST", &format!("/containers/{far}/exec"), Some(body))?;
    let exec: serde_json::Value = serde_json::from_str(&made).context(made)?;
    let exec = exec["Id"].as_str().context("no id")?;
    ensure!(status == 201 && exec.len() == 64, "{status} {exec}");
    let (status, told) = request_at(&socket, "POST", &format!("/exec/{exec}/start"), Some(r#"{"Detach":true,"Tty":true}"#))?;
    ensure!(status == 200, "{status} {told}");
    let (status, told) = request_at(&socket, "POST", &format!("/exec/{exec}/resize?h=30&w=90"), None)?;
    ensure!(status == 200, "{status} {told}");
    // It goes on without a client.
    let (status, told) = request_at(&socket, "GET", &format!("/exec/{exec}/json"), None)?;
    ensure!(status == 200 && told.contains(far) && told.contains(r#""Running":true"#), "{status} {told}");
    let (status, told) = request_at(&socket, "GET", &format!("/exec/{}/json", "f".repeat(64)), None)?;
    ensure!(status == 404 && told.contains("No such exec instance"), "{status} {told}");

    // The same way by our own client.
    ensure!(manager.ctl(&["task", "exec", "far.1", "echo", "here"])?.success()? == "here\n");
    let ended = manager.ctl(&["task", "exec", "-e", "A=b", "-w", "/tmp", "far.1", "sh", "-c", "echo $A >&2; pwd; exit 7"])?;
    ensure!(ended.status == 7 && ended.stderr == "b\n" && ended.stdout == "/tmp\n", "{ended:?}");
    let (program, local) = (binary("swarmctl")?, manager.socket());
    let line = format!("echo question | {} --socket {} task exec -i far.1 sh -c 'cat; echo answer'", program.display(), local.display());
    ensure!(run("timeout", &["300", "sh", "-c", &line])?.success()? == "question\nanswer\n");
    let refused = manager.ctl(&["task", "exec", "far.9", "true"])?;
    ensure!(refused.status == 3 && refused.stderr.contains("no such task"), "{refused:?}");
    crate::task_commands::work(manager)?;

    let dir = manager.dir().join("copied");
    std::fs::create_dir_all(&dir)?;
    let text = |name: &str| dir.join(name).display().to_string();
    std::fs::write(dir.join("there"), (0..2_000_000u32).map(|at| (at % 251) as u8).collect::<Vec<u8>>())?;
    all(manager, &format!("cp {} {far}:/tmp/there", text("there")))?;
    all(manager, &format!("cp {far}:/tmp/there {}", text("back")))?;
    ensure!(std::fs::read(dir.join("there"))? == std::fs::read(dir.join("back"))?, "the copy is another");
    ensure!(all(manager, &format!("diff {far}"))?.contains("A /tmp/there"));
    Ok(())
}

/// By a signal, and its service puts another one in its place; who follows its log and waits for it hears of the end.
fn ended(manager: &Host, far: &str) -> Result<()> {
    let line = format!("docker logs -f {far} & docker wait {far} & docker kill {far}; wait");
    let said = shell(manager, &line)?.success()?;
    ensure!(said.contains("hello") && said.contains("137") && said.contains(far), "{said}");
    let next = container(manager, "far")?;
    ensure!(next != far, "the killed one is still there");
    Ok(())
}

/// What is not for clients of this node alone stays theirs.
#[test]
fn a_host_in_no_swarm_has_no_cluster_to_show() -> Result<()> {
    let Some(lab) = crate::support::alone("docker-cluster.sock without a swarm")? else { return Ok(()) };
    refused(&lab, "ps", "This node is not a swarm manager")?;
    ensure!(docker(&lab, &["ps", "-q"])?.success()?.is_empty());
    Ok(())
}
