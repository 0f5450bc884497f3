//! `docker ps`, `inspect`, `logs`, `exec`, `cp` and the like: the node as a Docker host, for the containers of tasks.

use crate::box_image::{Registry, load};
use crate::support::{SOON, docker, inspect, lab, ok, request};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use skep_kit::{Lab, Output, eventually, run};
use std::path::Path;

/// A service of one task that says two lines and waits.
fn service(lab: &Lab, name: &str, more: &[&str]) -> Result<String> {
    let mut all = vec!["service", "create", "-q", "-d", "--no-resolve-image", "--name", name];
    all.extend(more);
    all.extend(["box:1", "sh", "-c", "echo hello; echo oops >&2; exec sleep 3600"]);
    ok(lab, &all)?;
    container(lab, name)
}

/// The full id of the one container of a service that runs, once it does.
fn container(lab: &Lab, service: &str) -> Result<String> {
    eventually(SOON, "the container runs", || {
        let filter = format!("label=com.docker.swarm.service.name={service}");
        let ids = ok(lab, &["ps", "-q", "--no-trunc", "--filter", &filter])?;
        ensure!(ids.lines().count() == 1, "{ids:?}");
        Ok(ids.trim().to_owned())
    })
}

/// A shell's line in which `docker` is the client of this host.
fn shell(lab: &Lab, line: &str) -> Result<Output> {
    let socket = format!("DOCKER_HOST=unix://{}", lab.run_dir().join("docker.sock").display());
    let config = format!("DOCKER_CONFIG={}", lab.dir().join("docker-config").display());
    run("timeout", &["300", "env", "-u", "DOCKER_CONTEXT", &socket, &config, "sh", "-c", line])
}

fn pipes_left(run_dir: &Path) -> usize {
    let tasks = std::fs::read_dir(run_dir.join("tasks")).into_iter().flatten().flatten();
    let files = tasks.flat_map(|task| std::fs::read_dir(task.path()).into_iter().flatten().flatten());
    files.filter(|file| file.file_name().to_string_lossy().starts_with("exec-")).count()
}

#[test]
fn a_task_s_container_is_seen() -> Result<()> {
    let Some(lab) = lab("docker ps, inspect, logs, top, stats")? else { return Ok(()) };
    load(&lab)?;
    let id = service(
        &lab,
        "web",
        &["--label", "x=y", "--container-label", "a=b", "-e", "A=1", "--mount", "type=volume,source=data,target=/data"],
    )?;
    ensure!(id.len() == 64 && id.bytes().all(|digit| digit.is_ascii_hexdigit()), "{id:?}");
    let line = ok(&lab, &["ps", "--format", "{{.ID}} {{.Image}} {{.State}} {{.Label \"a\"}} {{.Mounts}}"])?;
    ensure!(line == format!("{} box:1 running b data\n", &id[..12]), "{line:?}");
    ensure!(
        ok(&lab, &["ps", "-q", "--filter", "name=web", "--filter", "ancestor=box:1", "--filter", "is-task=true"])?.lines().count() == 1
    );
    ensure!(ok(&lab, &["ps", "-q", "--filter", "name=other"])?.is_empty());

    let found = inspect(&lab, &["inspect", &id[..12]])?;
    ensure!(found["State"]["Running"] == json!(true) && found["State"]["Pid"].as_i64() > Some(1), "{}", found["State"]);
    ensure!(found["Path"] == json!("sh") && found["Config"]["Labels"]["a"] == json!("b"), "{found}");
    ensure!(found["Config"]["Env"].as_array().context("no environment")?.contains(&json!("A=1")), "{}", found["Config"]);
    ensure!(found["Mounts"][0]["Name"] == json!("data") && found["Mounts"][0]["Destination"] == json!("/data"), "{}", found["Mounts"]);
    let image = inspect(&lab, &["image", "inspect", "box:1"])?;
    ensure!(found["Image"] == image["Id"], "{} is not {}", found["Image"], image["Id"]);
    // Who names a task means the task, which names its container.
    let task = ok(&lab, &["service", "ps", "-q", "--no-trunc", "web"])?;
    let seen = inspect(&lab, &["inspect", task.trim()])?;
    ensure!(seen["Status"]["ContainerStatus"]["ContainerID"] == json!(id), "{}", seen["Status"]);
    ensure!(docker(&lab, &["inspect", "--type", "container", "nothing"])?.stderr.contains("No such container: nothing"));

    let said = eventually(SOON, "both lines are in the log", || {
        let said = docker(&lab, &["logs", &id])?;
        ensure!(said.stdout == "hello\n" && said.stderr == "oops\n", "{said:?}");
        Ok(said)
    })?;
    ensure!(said.status == 0);
    ensure!(shell(&lab, &format!("docker logs --tail 1 -t {id} 2>&1"))?.success()?.contains("Z "), "a time before the line");
    ensure!(ok(&lab, &["logs", "--since", "1h", "--until", "30m", &id])?.is_empty());

    ensure!(ok(&lab, &["top", &id])?.contains("sleep 3600"));
    ensure!(ok(&lab, &["top", &id, "-o", "pid,comm"])?.contains("sleep"));
    let used = ok(&lab, &["stats", "--no-stream", "--no-trunc", "--format", "{{.ID}} {{.PIDs}} {{.MemUsage}}", &id])?;
    ensure!(used.starts_with(&format!("{id} 1 ")) && !used.contains(" 0B / "), "{used:?}");
    ensure!(docker(&lab, &["port", &id])?.success()?.is_empty());

    ok(&lab, &["pause", &id])?;
    ensure!(ok(&lab, &["ps", "--format", "{{.Status}}"])?.contains("(Paused)"));
    ensure!(docker(&lab, &["exec", &id, "true"])?.stderr.contains("paused"), "an exec in a paused container");
    ok(&lab, &["unpause", &id])?;
    ensure!(docker(&lab, &["unpause", &id])?.stderr.contains("is not paused"));
    for (refused, words) in [
        (vec!["rename", &id, "other"], "cannot be changed"),
        (vec!["rm", &id], "container is running: stop the container before removing or force remove"),
        (vec!["start", "nothing"], "No such container"),
    ] {
        let answer = docker(&lab, &refused)?;
        ensure!(answer.status != 0 && answer.stderr.contains(words), "{refused:?}: {answer:?}");
    }
    Ok(())
}

#[test]
fn programs_are_run_in_a_container_and_leave_nothing_behind() -> Result<()> {
    let Some(lab) = lab("docker exec, cp")? else { return Ok(()) };
    load(&lab)?;
    let id = service(&lab, "web", &[])?;
    ensure!(ok(&lab, &["exec", &id, "echo", "hi"])? == "hi\n");
    let failed = docker(&lab, &["exec", &id, "sh", "-c", "echo no >&2; exit 7"])?;
    ensure!(failed.status == 7 && failed.stderr == "no\n" && failed.stdout.is_empty(), "{failed:?}");
    let missing = docker(&lab, &["exec", &id, "nosuch"])?;
    ensure!(missing.status == 127 && format!("{missing:?}").contains("executable file not found"), "{missing:?}");
    let said = ok(&lab, &["exec", "-w", "/etc", "-e", "A=b", "-u", "7:8", &id, "sh", "-c", "echo $A $(pwd) $(id -u) $(id -g)"])?;
    ensure!(said == "b /etc 7 8\n", "{said:?}");
    ensure!(docker(&lab, &["exec", "-u", "nobody-here", &id, "true"])?.status != 0);

    // The end of what a client types is not the end of what it reads.
    ensure!(shell(&lab, &format!("echo question | docker exec -i {id} sh -c 'cat; echo answer'"))?.success()? == "question\nanswer\n");
    ensure!(shell(&lab, &format!("head -c 3000000 /dev/zero | docker exec -i {id} wc -c"))?.success()?.trim() == "3000000");
    ensure!(shell(&lab, &format!("docker exec {id} head -c 5000000 /dev/zero | wc -c"))?.success()?.trim() == "5000000");
    let tty =
        shell(&lab, &format!("script -qec \"docker exec -it {id} sh -c 'test -t 0 && test -t 1 && echo terminal'\" /dev/null </dev/null"))?;
    if run("which", &["script"])?.status == 0 {
        ensure!(tty.stdout.contains("terminal"), "{tty:?}");
    }
    ok(&lab, &["exec", "-d", &id, "sh", "-c", "echo here >/tmp/file"])?;
    eventually(SOON, "a detached program has run", || {
        ensure!(ok(&lab, &["exec", &id, "cat", "/tmp/file"])? == "here\n");
        Ok(())
    })?;

    // As clients do it that know nothing of upgrades.
    let wish = r#"{"AttachStdout":true,"cmd":["echo","plain"]}"#;
    let (status, made) = request(&lab, "POST", &format!("/containers/{id}/exec"), Some(wish))?;
    let exec = serde_json::from_str::<Value>(&made)?["Id"].as_str().context("no id")?.to_owned();
    ensure!(status == 201, "{status} {made}");
    let (status, stream) = request(&lab, "POST", &format!("/exec/{exec}/start"), Some("{}"))?;
    ensure!(status == 200 && stream == "\u{1}\0\0\0\0\0\0\u{6}plain\n", "{status} {stream:?}");
    let (_, ended) = request(&lab, "GET", &format!("/exec/{exec}/json"), None)?;
    let ended: Value = serde_json::from_str(&ended)?;
    ensure!(ended["ExitCode"] == json!(0) && ended["Running"] == json!(false) && ended["ContainerID"] == json!(id), "{ended}");
    ensure!(request(&lab, "POST", &format!("/exec/{exec}/start"), Some("{}"))?.0 == 409, "it ran twice");

    // A client that goes away leaves the program running, and nothing of it when that ends.
    let gone = shell(&lab, &format!("timeout 2 docker exec {id} sh -c 'sleep 4; echo still >/tmp/still'"))?;
    ensure!(gone.status == 124, "{gone:?}");
    eventually(SOON, "the program went on", || ok(&lab, &["exec", &id, "cat", "/tmp/still"]).map(drop))?;
    eventually(SOON, "no pipe is left", || {
        ensure!(pipes_left(&lab.run_dir()) == 0, "{} pipes", pipes_left(&lab.run_dir()));
        Ok(())
    })?;

    let there = lab.dir().join("copied");
    std::fs::create_dir_all(&there)?;
    let there_text = there.to_string_lossy().into_owned();
    ok(&lab, &["cp", &format!("{id}:/tmp"), &there_text])?;
    ensure!(std::fs::read_to_string(there.join("tmp/file"))? == "here\n");
    std::fs::write(there.join("mine"), "from the host\n")?;
    ok(&lab, &["cp", &there.join("mine").to_string_lossy(), &format!("{id}:/tmp/yours")])?;
    ensure!(ok(&lab, &["exec", &id, "cat", "/tmp/yours"])? == "from the host\n");
    ensure!(docker(&lab, &["cp", &format!("{id}:/none"), &there_text])?.stderr.contains("Could not find the file /none"));
    // No link of a container leads to the host's files.
    ok(&lab, &["exec", &id, "ln", "-s", "/../../../../../../proc/1/root/etc", "/tmp/out"])?;
    let stolen = docker(&lab, &["cp", "-L", &format!("{id}:/tmp/out/hostname"), &there_text])?;
    ensure!(
        stolen.status != 0 || std::fs::read_to_string(there.join("hostname"))? != std::fs::read_to_string("/etc/hostname")?,
        "{stolen:?}"
    );
    let changed = ok(&lab, &["diff", &id])?;
    ensure!(changed.contains("A /tmp/file") || changed.contains("A /tmp\n"), "{changed}");
    Ok(())
}

#[test]
fn a_container_that_is_ended_by_hand_is_replaced() -> Result<()> {
    let Some(lab) = lab("docker kill, stop, wait, rm, events")? else { return Ok(()) };
    load(&lab)?;
    let first = service(&lab, "web", &["--restart-delay", "1s"])?;
    let socket = lab.run_dir().join("docker.sock");
    let waiting = std::thread::spawn({
        let host = format!("unix://{}", socket.display());
        let id = first.clone();
        move || run("timeout", &["300", "docker", "-H", &host, "wait", &id])
    });
    let following = std::thread::spawn({
        let host = format!("unix://{}", socket.display());
        let id = first.clone();
        move || run("timeout", &["300", "docker", "-H", &host, "logs", "-f", &id])
    });
    ok(&lab, &["exec", &first, "true"])?;
    ok(&lab, &["kill", &first])?;
    let code = waiting.join().expect("no panic")?.success()?;
    ensure!(code.trim() == "137", "{code:?}");
    let followed = following.join().expect("no panic")?;
    ensure!(followed.status == 0 && followed.stdout == "hello\n", "{followed:?}");
    let second = eventually(SOON, "another one runs", || {
        let id = container(&lab, "web")?;
        ensure!(id != first);
        Ok(id)
    })?;
    let all = ok(&lab, &["ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.Status}}"])?;
    ensure!(all.lines().any(|line| line.starts_with(&format!("{first} Exited (137) "))), "{all}");
    ensure!(inspect(&lab, &["inspect", &first])?["State"]["ExitCode"] == json!(137));
    ensure!(ok(&lab, &["logs", &first])?.contains("hello"), "the log of one that ended");
    ensure!(docker(&lab, &["exec", &first, "true"])?.stderr.contains("is not running"));

    ok(&lab, &["stop", "-t", "1", &second])?;
    let third = eventually(SOON, "a third one runs", || {
        let id = container(&lab, "web")?;
        ensure!(id != second);
        Ok(id)
    })?;
    ok(&lab, &["rm", &first])?;
    ok(&lab, &["rm", "-f", &third])?;
    eventually(SOON, "those that were removed are seen no more", || {
        let all = ok(&lab, &["ps", "-a", "-q", "--no-trunc"])?;
        ensure!(!all.contains(&first) && !all.contains(&third), "{all}");
        Ok(())
    })?;
    let told = ok(&lab, &["events", "--since", "1h", "--until", "0s", "--format", "{{.Type}} {{.Action}} {{.Actor.ID}}"])?;
    for what in ["start", "exec_die", "kill", "die"] {
        ensure!(told.contains(&format!("container {what} {first}")), "no {what}: {told}");
    }
    // A space behind the last word, as dockerd has it.
    ensure!(told.contains(&format!("container exec_create: true  {first}")), "{told}");

    // Of the cluster as well, as it happens: the client takes its time to listen, and ends with the second line at the latest.
    let listening = std::thread::spawn({
        let host = format!("unix://{}", socket.display());
        let line =
            format!("docker -H {host} events --filter type=service --format '{{{{.Action}}}} {{{{json .Actor.Attributes}}}}' | head -n 1");
        move || run("timeout", &["300", "sh", "-c", &line])
    });
    let mut count = 0;
    while !listening.is_finished() {
        count += 1;
        ok(&lab, &["service", "update", "-q", "-d", "--label-add", &format!("count={count}"), "web"])?;
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    let heard = listening.join().expect("no panic")?.stdout;
    ensure!(heard.starts_with("update ") && heard.contains("\"name\":\"web\""), "{heard:?}");
    Ok(())
}

#[test]
fn a_program_goes_with_the_daemon_that_began_it() -> Result<()> {
    let Some(mut lab) = lab("docker exec and a daemon that dies")? else { return Ok(()) };
    load(&lab)?;
    let id = service(&lab, "web", &[])?;
    let running = |lab: &Lab| Ok::<_, anyhow::Error>(ok(lab, &["top", &id])?.contains("sleep 4321"));
    for is_killed in [true, false] {
        let client = std::thread::spawn({
            let host = format!("unix://{}", lab.run_dir().join("docker.sock").display());
            let id = id.clone();
            move || run("timeout", &["300", "docker", "-H", &host, "exec", &id, "sleep", "4321"])
        });
        eventually(SOON, "the program runs", || {
            ensure!(running(&lab)?);
            Ok(())
        })?;
        if is_killed {
            lab.kill_skepd();
            ensure!(pipes_left(&lab.run_dir()) > 0, "a daemon that was killed cleaned up");
        } else {
            lab.stop_skepd()?;
            ensure!(pipes_left(&lab.run_dir()) == 0, "{} pipes", pipes_left(&lab.run_dir()));
        }
        let ended = client.join().expect("no panic")?;
        ensure!(ended.status != 0, "{ended:?}");
        lab.start_skepd()?;
        eventually(SOON, "nothing of it is left, and the container runs on", || {
            ensure!(!running(&lab)? && pipes_left(&lab.run_dir()) == 0);
            ensure!(ok(&lab, &["exec", &id, "echo", "still here"])? == "still here\n");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn images_are_pulled_from_a_registry() -> Result<()> {
    let Some(lab) = lab("docker pull")? else { return Ok(()) };
    load(&lab)?;
    let registry = Registry::start(&lab)?;
    let name = registry.image.as_str();
    let pulled = ok(&lab, &["pull", name])?;
    ensure!(pulled.contains("Pulling from box") && pulled.contains(&format!("Status: Downloaded newer image for {name}")), "{pulled}");
    ensure!(ok(&lab, &["pull", name])?.contains(&format!("Status: Image is up to date for {name}")));
    ensure!(inspect(&lab, &["image", "inspect", name])?["Id"] == inspect(&lab, &["image", "inspect", "box:1"])?["Id"], "the same image");
    let missing = docker(&lab, &["pull", &name.replace(":v1", ":none")])?;
    ensure!(missing.status != 0 && missing.stderr.contains("not found"), "{missing:?}");
    let (status, said) = request(&lab, "GET", &format!("/distribution/{name}/json"), None)?;
    let said: Value = serde_json::from_str(&said)?;
    ensure!(status == 200 && said["Platforms"][0]["os"] == json!("linux"), "{status} {said}");
    let digests = inspect(&lab, &["image", "inspect", name])?["RepoDigests"].clone();
    let digest = said["Descriptor"]["digest"].as_str().context("no digest")?;
    ensure!(digests.to_string().contains(digest), "{digests} has no {digest}");
    Ok(())
}

#[test]
fn images_and_volumes_of_the_node_are_kept() -> Result<()> {
    let Some(lab) = lab("docker images, volume")? else { return Ok(()) };
    load(&lab)?;
    let listed = ok(&lab, &["images", "--format", "{{.Repository}}:{{.Tag}}"])?;
    ensure!(listed.lines().any(|line| line == "box:1"), "{listed}");
    ok(&lab, &["tag", "box:1", "host.example:5000/a/box:2"])?;
    ensure!(ok(&lab, &["images", "-q", "host.example:5000/a/box"])?.lines().count() == 1);
    ensure!(ok(&lab, &["history", "-q", "box:1"])?.starts_with("sha256:") || ok(&lab, &["history", "box:1"])?.contains("IMAGE"));
    let removed = ok(&lab, &["rmi", "host.example:5000/a/box:2"])?;
    ensure!(removed == "Untagged: host.example:5000/a/box:2\n", "{removed:?}");
    ensure!(docker(&lab, &["image", "inspect", "none:1"])?.stderr.contains("No such image: none:1"));

    ok(&lab, &["volume", "create", "--label", "a=b", "empty"])?;
    let volume = inspect(&lab, &["volume", "inspect", "empty"])?;
    ensure!(volume["Labels"]["a"] == json!("b") && volume["Driver"] == json!("local"), "{volume}");
    service(&lab, "web", &["--mount", "type=volume,source=data,target=/data"])?;
    ensure!(ok(&lab, &["volume", "ls", "-q"])? == "data\nempty\n");
    let refused = docker(&lab, &["volume", "rm", "data"])?;
    ensure!(refused.stderr.contains("volume is in use"), "{refused:?}");
    ensure!(docker(&lab, &["rmi", "box:1"])?.stderr.contains("is using its referenced image"), "an image in use");
    ok(&lab, &["volume", "rm", "empty"])?;
    ensure!(docker(&lab, &["volume", "inspect", "empty"])?.stderr.contains("no such volume"));
    ensure!(ok(&lab, &["system", "df"])?.contains("Local Volumes"));
    ok(&lab, &["system", "prune", "-f"])?;
    ensure!(ok(&lab, &["volume", "ls", "-q"])? == "data\n");
    Ok(())
}
