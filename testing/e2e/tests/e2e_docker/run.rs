//! `docker run`, `create`, `start`, `attach`, `rename`, `update`: containers that no service made.

use crate::box_image::load;
use crate::support::{SOON, command, docker, inspect, lab, ok, request};
use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use skep_kit::{Host, Lab, Output, eventually, run};
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

/// The client with an input of its own, which ends.
fn docker_with(on: &Host, input: &[u8], arguments: &[&str]) -> Result<Output> {
    let all = command(on)?;
    let mut child = Command::new("timeout")
        .args(["300"])
        .args(all)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("it has an input")?.write_all(input)?;
    let ended = child.wait_with_output()?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Output { status: ended.status.code().unwrap_or(-1), stdout: text(ended.stdout), stderr: text(ended.stderr) })
}

/// What is left of containers: records, files, logs, snapshots, volumes without a name.
fn left(lab: &Lab) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let dirs = [
        lab.data_dir().join("agent/containers"),
        lab.data_dir().join("agent/etc"),
        lab.data_dir().join("agent/logs"),
        lab.data_dir().join("agent/volumes"),
        lab.run_dir().join("tasks"),
        lab.run_dir().join("netns"),
    ];
    for dir in dirs {
        let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        // Networks keep namespaces of their own beside those of containers.
        let own =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|name| name.len() >= 25 && !name.contains("net"));
        names.extend(own.map(|name| format!("{}/{name}", dir.display())));
    }
    Ok(names)
}

#[test]
fn a_container_is_run_by_hand() -> Result<()> {
    let Some(lab) = lab("docker run")? else { return Ok(()) };
    load(&lab)?;
    // Output, exit codes, input with its end, both streams apart.
    ensure!(ok(&lab, &["run", "--rm", "box:1", "true"])?.is_empty());
    let said = docker(&lab, &["run", "--rm", "box:1", "sh", "-c", "echo out; echo err >&2; exit 7"])?;
    ensure!(said.status == 7 && said.stdout == "out\n" && said.stderr == "err\n", "{said:?}");
    let echoed = docker_with(&lab, b"one\ntwo", &["run", "--rm", "-i", "box:1", "cat"])?;
    ensure!(echoed.status == 0 && echoed.stdout == "one\ntwo", "{echoed:?}");
    let count = ok(&lab, &["run", "--rm", "box:1", "sh", "-c", "seq 200000 | wc -l; seq 100000"])?;
    ensure!(count.lines().count() == 100_001 && count.ends_with("100000\n"), "{} lines", count.lines().count());
    let missing = docker(&lab, &["run", "--rm", "box:1", "/no/such"])?;
    ensure!(missing.status == 127, "{missing:?}");
    ensure!(docker(&lab, &["run", "--pull", "never", "none:1", "true"])?.stderr.contains("No such image: none:1"));
    // What it is given.
    let given = [
        "run",
        "--rm",
        "-e",
        "A=1",
        "-w",
        "/tmp",
        "-u",
        "5:6",
        "-h",
        "own",
        "-v",
        "/etc:/host:ro",
        "--tmpfs",
        "/t",
        "--read-only",
        "box:1",
        "sh",
        "-c",
        "echo $A; pwd; id -u; cat /etc/hostname; test -d /host/init.d -o -e /host/passwd && echo host; touch /x 2>/dev/null || echo ro",
    ];
    ensure!(ok(&lab, &given)? == "1\n/tmp\n5\nown\nhost\nro\n", "{}", ok(&lab, &given)?);
    ensure!(ok(&lab, &["run", "--rm", "--network", "none", "box:1", "ls", "/sys/class/net"])?.trim() == "lo");
    let own = ok(&lab, &["run", "--rm", "--network", "bridge", "box:1", "ls", "/sys/class/net"])?;
    ensure!(own.contains("eth0"), "{own}");
    // A volume that is a mount, for as long as somebody uses it.
    ok(&lab, &["volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=1m", "small"])?;
    let refused = docker(&lab, &["volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "small"])?;
    ensure!(refused.status == 1 && refused.stderr.contains("exists with other driver options"), "{refused:?}");
    let options = ok(&lab, &["volume", "inspect", "-f", "{{.Options.o}}", "small"])?;
    ensure!(options == "size=1m\n", "{options}");
    let seen = ok(&lab, &["run", "--rm", "-v", "small:/d", "box:1", "cat", "/proc/mounts"])?;
    ensure!(seen.lines().any(|line| line.contains(" /d tmpfs ") && line.contains("size=1024k")), "{seen}");
    eventually(SOON, "nobody uses it", || ok(&lab, &["volume", "rm", "small"]).map(drop))?;
    for (arguments, words) in [
        (&["run", "--privileged", "box:1", "true"][..], "HostConfig.Privileged is not supported"),
        (&["run", "--cpu-shares", "5", "box:1", "true"], "HostConfig.CpuShares is not supported"),
        (&["run", "--network", "container:x", "box:1", "true"], "HostConfig.NetworkMode"),
        (&["run", "-v", "/no:relative", "box:1", "true"], "invalid"),
    ] {
        let refused = docker(&lab, arguments)?;
        ensure!(refused.status == 125 && refused.stderr.contains(words), "{arguments:?}: {refused:?}");
    }
    // A terminal.
    let line = format!("{} run --rm -it box:1 sh -c 'test -t 0 && echo yes'", command(&lab)?.join(" "));
    let typed = run("timeout", &["300", "script", "-qec", &line, "/dev/null"])?;
    // The end of `script`'s own input may be echoed, before it or behind it.
    ensure!(typed.status == 0 && typed.stdout.contains("yes\r\n"), "{typed:?}");
    // The cluster knows nothing of them, and nothing is left.
    ensure!(ok(&lab, &["node", "ps"])?.lines().count() == 1, "a task");
    ok(&lab, &["container", "prune", "-f"])?;
    eventually(SOON, "nothing is left of any", || {
        let left = left(&lab)?;
        ensure!(left.is_empty(), "{left:?}");
        ensure!(ok(&lab, &["ps", "-aq"])?.is_empty());
        Ok(())
    })
}

#[test]
fn a_container_lives_more_than_once() -> Result<()> {
    let Some(mut lab) = lab("docker create, start, restart, rename, update, and a daemon that dies")? else { return Ok(()) };
    load(&lab)?;
    let made = ok(
        &lab,
        &[
            "create",
            "--name",
            "pet",
            "-v",
            "/data",
            "-l",
            "a=b",
            "box:1",
            "sh",
            "-c",
            "echo x >>/n; echo y >>/data/n; wc -l </n; sleep 3600",
        ],
    )?;
    let id = made.trim().to_owned();
    let taken = docker(&lab, &["create", "--name", "pet", "box:1"])?;
    ensure!(taken.stderr.contains("The container name \"/pet\" is already in use by container"), "{taken:?}");
    let found = inspect(&lab, &["inspect", "pet"])?;
    ensure!(
        found["Id"] == json!(id) && found["State"]["Status"] == json!("created") && found["Config"]["Labels"] == json!({ "a": "b" }),
        "{found}"
    );
    ok(&lab, &["start", "pet"])?;
    ok(&lab, &["start", "pet"])?; // it runs: as good
    ensure!(ok(&lab, &["exec", "pet", "cat", "/data/n"])? == "y\n");
    ensure!(docker(&lab, &["rm", "pet"])?.stderr.contains("container is running"));
    ok(&lab, &["restart", "-t", "0", "pet"])?;
    eventually(SOON, "what it wrote is still there", || {
        let said = ok(&lab, &["logs", "pet"])?;
        ensure!(said == "1\n2\n", "{said:?}");
        Ok(())
    })?;
    ok(&lab, &["rename", "pet", "dog"])?;
    ok(&lab, &["update", "--memory", "64m", "--restart", "unless-stopped", "dog"])?;
    let found = inspect(&lab, &["inspect", "dog"])?;
    ensure!(
        found["HostConfig"]["Memory"] == json!(64 << 20) && found["HostConfig"]["RestartPolicy"]["Name"] == json!("unless-stopped"),
        "{found}"
    );

    // A daemon that dies: what runs runs on; what ends meanwhile is started again, or removed if it was to be.
    ok(&lab, &["run", "-d", "--rm", "--name", "brief", "box:1", "sleep", "3600"])?;
    let pid = inspect(&lab, &["inspect", "brief"])?["State"]["Pid"].to_string();
    let before = inspect(&lab, &["inspect", "dog"])?["State"]["Pid"].clone();
    lab.kill_skepd();
    run("kill", &["-9", &pid])?;
    lab.start_skepd()?;
    eventually(SOON, "one goes on and the other is gone", || {
        let all = ok(&lab, &["ps", "-a", "--format", "{{.Names}} {{.State}}"])?;
        ensure!(all == "dog running\n", "{all:?}");
        ensure!(inspect(&lab, &["inspect", "dog"])?["State"]["Pid"] == before);
        Ok(())
    })?;
    // Its process dies: it is started again, and then stopped for good.
    run("kill", &["-9", &before.to_string()])?;
    eventually(SOON, "it is started again", || {
        let found = inspect(&lab, &["inspect", "dog"])?;
        ensure!(found["State"]["Running"] == json!(true) && found["RestartCount"] == json!(1), "{}", found["State"]);
        Ok(())
    })?;
    ok(&lab, &["stop", "-t", "0", "dog"])?;
    let found = inspect(&lab, &["inspect", "dog"])?;
    ensure!(found["State"]["Status"] == json!("exited") && found["State"]["ExitCode"] == json!(137), "{}", found["State"]);
    ensure!(ok(&lab, &["wait", "dog"])?.trim() == "137");

    // Typing into one that runs, and leaving it.
    ok(&lab, &["run", "-d", "-i", "--name", "cat", "box:1", "cat"])?;
    let socket = lab.run_dir().join("docker.sock");
    let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(SOON))?;
    let head =
        "POST /v1.41/containers/cat/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nhi";
    stream.write_all(head.as_bytes())?;
    let mut seen = Vec::new();
    while !seen.ends_with(b"\x01\0\0\0\0\0\0\x02hi") {
        let mut byte = [0];
        stream.read_exact(&mut byte).with_context(|| String::from_utf8_lossy(&seen).into_owned())?;
        seen.push(byte[0]);
    }
    ensure!(seen.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&seen));
    drop(stream);
    ensure!(inspect(&lab, &["inspect", "cat"])?["State"]["Running"] == json!(true), "it ended with a client");

    // The client's now is that of the last whole second.
    eventually(SOON, "all of it is told again", || {
        let told = ok(&lab, &["events", "--since", "1h", "--until", "0s", "--format", "{{.Action}} {{.Actor.Attributes.name}}"])?;
        for what in ["start dog", "die dog", "attach cat"] {
            ensure!(told.contains(what), "no {what}: {told}");
        }
        Ok(())
    })?;
    let volume = inspect(&lab, &["inspect", "dog"])?["Mounts"][0]["Name"].as_str().context("it has a volume")?.to_owned();
    ensure!(docker(&lab, &["volume", "rm", &volume])?.stderr.contains("in use"));
    ok(&lab, &["rm", "-f", "-v", "dog", "cat"])?;
    let (status, _) = request(&lab, "GET", &format!("/volumes/{volume}"), None)?;
    ensure!(status == 404, "a volume without a name is left");
    let left = left(&lab)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}
