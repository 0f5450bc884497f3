//! `docker service …`.

use crate::support::{SOON, command, docker, inspect, is_old_client, lab, ok};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use skep_kit::{Lab, eventually};
use std::collections::BTreeSet;

/// The ids of tasks that run and are meant to.
fn running(lab: &Lab, service: &str) -> Result<BTreeSet<String>> {
    let format = "{{.ID}} {{.DesiredState}} {{.CurrentState}}";
    let text = ok(lab, &["service", "ps", service, "--no-trunc", "--format", format])?;
    let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    Ok(words.filter(|words| words.get(1..3) == Some(&["Running", "Running"])).map(|words| words[0].to_owned()).collect())
}

#[test]
fn a_service_is_created_seen_changed_and_removed() -> Result<()> {
    let Some(lab) = lab("docker service")? else { return Ok(()) };
    let id = ok(
        &lab,
        &[
            "service",
            "create",
            "-q",
            "--no-resolve-image",
            "--name",
            "web",
            "--replicas",
            "2",
            "-p",
            "8080:8080",
            "--update-monitor",
            "1s",
            "--rollback-monitor",
            "1s",
            "-e",
            "GREETING=hello",
            "whoami",
        ],
    )?;
    let id = id.trim();
    ensure!(id.len() == 25, "{id:?}");
    let listed = ok(&lab, &["service", "ls", "--format", "{{.ID}} {{.Name}} {{.Mode}} {{.Replicas}} {{.Image}} {{.Ports}}"])?;
    ensure!(listed == format!("{} web replicated 2/2 whoami:latest *:8080->8080/tcp\n", &id[..12]), "{listed:?}");
    let tasks = ok(&lab, &["service", "ps", "web", "--format", "{{.Name}} {{.Image}} {{.DesiredState}}"])?;
    ensure!(tasks == "web.1 whoami:latest Running\nweb.2 whoami:latest Running\n", "{tasks:?}");
    let url = format!("http://{}:8080", Lab::HOST);
    ensure!(eventually(SOON, "it answers", || lab.curl(&format!("{url}/env")))?.contains("GREETING=hello"));

    let logs = ok(&lab, &["service", "logs", "web"])?;
    let lines: Vec<&str> = logs.lines().filter(|line| line.contains("listening on port 8080")).collect();
    ensure!(
        lines.len() == 2 && lines.iter().all(|line| line.starts_with("web.") && line.contains("@") && line.contains("    | ")),
        "{logs}"
    );
    let tail = ok(&lab, &["service", "logs", "--raw", "-n", "1", "web"])?;
    ensure!(tail.lines().count() == 2, "one line of each task: {tail}");

    let first = running(&lab, "web")?;
    let task = first.first().context("no task runs")?;
    ensure!(ok(&lab, &["service", "logs", "-t", task])?.contains("listening on port 8080"), "a task's logs");
    ensure!(inspect(&lab, &["inspect", task])?["ServiceID"] == json!(id), "docker inspect finds tasks");

    // A label is none of the tasks' business, the environment is.
    ok(&lab, &["service", "update", "-q", "--label-add", "a=b", "web"])?;
    ensure!(running(&lab, "web")? == first, "a label restarted tasks");
    let out = ok(&lab, &["service", "update", "--env-add", "GREETING=moin", "web"])?;
    ensure!(out.contains("converged"), "{out}");
    ensure!(running(&lab, "web")?.is_disjoint(&first), "the tasks were not replaced");
    ensure!(lab.curl(&format!("{url}/env"))?.contains("GREETING=moin"));
    ok(&lab, &["service", "rollback", "web"])?;
    eventually(SOON, "the old environment is back", || {
        ensure!(lab.curl(&format!("{url}/env"))?.contains("GREETING=hello"));
        Ok(())
    })?;
    let state = inspect(&lab, &["service", "inspect", "web"])?["UpdateStatus"]["State"].clone();
    ensure!(state == json!("rollback_completed"), "{state}");
    let out = ok(&lab, &["service", "scale", "web=3"])?;
    ensure!(out.contains("web scaled to 3"), "{out}");
    ensure!(running(&lab, "web")?.len() == 3);
    ensure!(ok(&lab, &["service", "ls", "--filter", "mode=global", "-q"])?.is_empty(), "a filter that nothing passes");
    ensure!(ok(&lab, &["service", "ps", "--filter", "desired-state=shutdown", "-q", "web"])?.lines().count() >= 4, "history");

    ensure!(ok(&lab, &["service", "rm", "web"])? == "web\n");
    ensure!(ok(&lab, &["service", "ls", "-q"])?.is_empty());
    let gone = docker(&lab, &["service", "inspect", "web"])?;
    ensure!(gone.status == 1 && gone.stderr.to_lowercase().contains("no such service: web"), "{gone:?}");
    let gone = docker(&lab, &["service", "rm", "web"])?;
    // The old client makes words of its own of a 404.
    let words = if is_old_client() { "No such service: web" } else { "service web not found" };
    ensure!(gone.status == 1 && gone.stderr.contains(words), "{gone:?}");
    Ok(())
}

/// The flags of `service create` that do not exclude each other, with values that a host can carry out.
const FLAGS: &[&str] = &[
    "--name",
    "many",
    "--label",
    "tier=front",
    "--container-label",
    "app=web",
    "-e",
    "A=1",
    "-e",
    "B={{.Service.Name}}.{{.Task.Slot}}",
    "-w",
    "/tmp",
    "-u",
    "1000:50",
    "--group",
    "44",
    "--hostname",
    "h-{{.Task.Slot}}",
    "--host",
    "db:10.1.2.3",
    "--dns",
    "8.8.8.8",
    "--dns-search",
    "example.org",
    "--dns-option",
    "ndots:2",
    "--mount",
    "type=tmpfs,target=/tmp,tmpfs-size=65536,tmpfs-mode=1777",
    "--mount",
    "type=bind,source=/etc,target=/host,readonly,bind-propagation=rslave",
    "--mount",
    "type=volume,source=data,target=/data,volume-nocopy,volume-label=x=y",
    "--read-only",
    "--init",
    "--stop-signal",
    "SIGTERM",
    "--stop-grace-period",
    "3s",
    "--no-healthcheck",
    "--ulimit",
    "nofile=100:200",
    "--cap-add",
    "NET_ADMIN",
    "--cap-drop",
    "MKNOD",
    "--oom-score-adj",
    "100",
    "--limit-cpu",
    "0.5",
    "--limit-memory",
    "64m",
    "--limit-pids",
    "50",
    "--reserve-cpu",
    "0.1",
    "--reserve-memory",
    "16m",
    "--constraint",
    "node.role==manager",
    "--placement-pref",
    "spread=node.labels.rack",
    "--replicas-max-per-node",
    "3",
    "--replicas",
    "1",
    "--restart-condition",
    "on-failure",
    "--restart-delay",
    "1s",
    "--restart-max-attempts",
    "5",
    "--restart-window",
    "60s",
    "--update-parallelism",
    "2",
    "--update-delay",
    "100ms",
    "--update-monitor",
    "1s",
    "--update-failure-action",
    "continue",
    "--update-max-failure-ratio",
    "0.5",
    "--update-order",
    "start-first",
    "--rollback-parallelism",
    "1",
    "--rollback-delay",
    "100ms",
    "--rollback-monitor",
    "1s",
    "--rollback-failure-action",
    "continue",
    "--rollback-max-failure-ratio",
    "0.25",
    "--rollback-order",
    "stop-first",
    "--endpoint-mode",
    "vip",
    "--publish",
    "published=8081,target=8080,protocol=tcp,mode=ingress",
    "--publish",
    "published=8082,target=8080,mode=host",
    "--network",
    "name=back,alias=other",
    "--log-driver",
    "json-file",
    "--log-opt",
    "max-size=1m",
];

#[test]
fn every_flag_is_kept_and_read_back() -> Result<()> {
    let Some(lab) = lab("docker service create with many flags")? else { return Ok(()) };
    ok(&lab, &["network", "create", "-d", "overlay", "back"])?;
    let network = inspect(&lab, &["network", "inspect", "back"])?["Id"].clone();
    let secret = lab.dir().join("secret");
    std::fs::write(&secret, "hunter2")?;
    let secret = secret.to_string_lossy().into_owned();
    ok(&lab, &["secret", "create", "password", &secret])?;
    ok(&lab, &["config", "create", "motd", &secret])?;
    // What 20.10 has not.
    let flags: Vec<&str> = match is_old_client() {
        true => FLAGS.iter().copied().filter(|word| !matches!(*word, "--oom-score-adj" | "100")).collect(),
        false => FLAGS.to_vec(),
    };
    let grants = ["--secret", "source=password,target=pw,uid=1000,gid=50,mode=0440", "--config", "source=motd,target=/motd,mode=0444"];
    let arguments = [&["service", "create", "-q", "--no-resolve-image"][..], &flags, &grants, &["whoami"]].concat();
    ok(&lab, &arguments)?;

    let service = inspect(&lab, &["service", "inspect", "many"])?;
    let raw = inspect_raw(&lab, "many")?;
    let container = &raw["Spec"]["TaskTemplate"]["ContainerSpec"];
    let expected = json!({
        "Image": "whoami:latest",
        "Labels": {"app": "web"},
        "Hostname": "h-{{.Task.Slot}}",
        "Env": ["A=1", "B={{.Service.Name}}.{{.Task.Slot}}"],
        "Dir": "/tmp",
        "User": "1000:50",
        "Groups": ["44"],
        "Init": true,
        "StopSignal": "SIGTERM",
        "ReadOnly": true,
        "Mounts": [
            {"Type": "tmpfs", "Target": "/tmp", "TmpfsOptions": {"SizeBytes": 65536, "Mode": 1023}},
            {"Type": "bind", "Source": "/etc", "Target": "/host", "ReadOnly": true, "BindOptions": {"Propagation": "rslave"}},
            {"Type": "volume", "Source": "data", "Target": "/data", "VolumeOptions": {"NoCopy": true, "Labels": {"x": "y"}, "DriverConfig": {}}}
        ],
        "StopGracePeriod": 3_000_000_000u64,
        "Healthcheck": {"Test": ["NONE"]},
        "Hosts": ["10.1.2.3 db"],
        "DNSConfig": {"Nameservers": ["8.8.8.8"], "Search": ["example.org"], "Options": ["ndots:2"]},
        "Isolation": "default",
        "CapabilityAdd": ["CAP_NET_ADMIN"],
        "CapabilityDrop": ["CAP_MKNOD"],
        "Ulimits": [{"Name": "nofile", "Soft": 100, "Hard": 200}],
        "OomScoreAdj": 100
    });
    for (field, value) in expected.as_object().context("an object")? {
        if field == "OomScoreAdj" && is_old_client() {
            continue;
        }
        ensure!(container[field] == *value, "{field}: {} instead of {value}", container[field]);
    }
    ensure!(container["Secrets"][0]["File"] == json!({"Name": "pw", "UID": "1000", "GID": "50", "Mode": 288}), "{container}");
    ensure!(container["Configs"][0]["File"] == json!({"Name": "/motd", "UID": "0", "GID": "0", "Mode": 292}), "{container}");
    let task = &raw["Spec"]["TaskTemplate"];
    for (field, value) in [
        (
            "Resources",
            json!({
                "Limits": {"NanoCPUs": 500_000_000, "MemoryBytes": 64 << 20, "Pids": 50},
                "Reservations": {"NanoCPUs": 100_000_000, "MemoryBytes": 16 << 20}
            }),
        ),
        ("RestartPolicy", json!({"Condition": "on-failure", "Delay": 1_000_000_000, "MaxAttempts": 5, "Window": 60_000_000_000u64})),
        (
            "Placement",
            json!({
                "Constraints": ["node.role==manager"],
                "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.rack"}}],
                "MaxReplicas": 3
            }),
        ),
        ("Networks", json!([{"Target": network, "Aliases": ["other"]}])),
        ("LogDriver", json!({"Name": "json-file", "Options": {"max-size": "1m"}})),
        ("Runtime", json!("container")),
    ] {
        ensure!(task[field] == value, "{field}: {} instead of {value}", task[field]);
    }
    let update = json!({
        "Parallelism": 2, "Delay": 100_000_000, "FailureAction": "continue", "Monitor": 1_000_000_000, "MaxFailureRatio": 0.5,
        "Order": "start-first"
    });
    ensure!(raw["Spec"]["UpdateConfig"] == update, "{}", raw["Spec"]["UpdateConfig"]);
    ensure!(raw["Endpoint"]["Spec"] == raw["Spec"]["EndpointSpec"], "{}", raw["Endpoint"]);
    let ips = raw["Endpoint"]["VirtualIPs"].as_array().context("no virtual IPs")?;
    ensure!(ips.iter().any(|ip| ip["NetworkID"] == network) && ips.len() > 1, "ingress and back: {ips:?}");
    ensure!(service["Spec"]["Name"] == json!("many") && service["Spec"]["Labels"] == json!({"tier": "front"}));

    // The container has what was asked for.
    let url = format!("http://{}:8081", Lab::HOST);
    let answer = eventually(SOON, "it answers", || lab.curl(&url))?;
    ensure!(answer.contains("host=h-1"), "{answer}");
    ensure!(lab.curl(&format!("{url}/env"))?.contains("B=many.1\n"));
    ensure!(lab.curl(&format!("{url}/file?/run/secrets/pw"))? == "1000:50 440 hunter2\n");
    let ports = ok(&lab, &["service", "ps", "many", "--format", "{{.Ports}}"])?;
    ensure!(ports.contains("*:8082->8080/tcp"), "host-mode ports: {ports}");
    let pretty = ok(&lab, &["service", "inspect", "--pretty", "many"])?;
    for words in ["Name:\t\tmany", "Service Mode:\tReplicated", "Networks: back", "PublishedPort = 8081"] {
        ensure!(pretty.contains(words), "no {words:?} in {pretty}");
    }

    // What a client reads it can write back, and nothing is different.
    ok(&lab, &["service", "update", "-q", "--label-add", "x=y", "many"])?;
    ok(&lab, &["service", "update", "-q", "--label-rm", "x", "many"])?;
    let again = inspect_raw(&lab, "many")?;
    ensure!(again["Spec"] == raw["Spec"], "{} instead of {}", again["Spec"], raw["Spec"]);
    ensure!(ok(&lab, &["service", "ps", "many", "-q"])?.lines().count() == 1, "the label restarted the task");
    Ok(())
}

/// As the daemon keeps it, without defaults.
fn inspect_raw(lab: &Lab, service: &str) -> Result<Value> {
    let (status, body) = crate::support::request(lab, "GET", &format!("/v1.50/services/{service}"), None)?;
    ensure!(status == 200, "{status} {body}");
    Ok(serde_json::from_str(&body)?)
}

#[test]
fn jobs_global_services_and_their_progress() -> Result<()> {
    let Some(lab) = lab("docker service create of other modes")? else { return Ok(()) };
    let create = |flags: &[&str]| ok(&lab, &[&["service", "create", "--no-resolve-image"], flags].concat());
    let out = create(&["--name", "job", "--mode", "replicated-job", "--replicas", "3", "--max-concurrent", "2", "whoami", "exit", "0"])?;
    ensure!(out.contains("job complete"), "{out}");
    let out = create(&["--name", "everywhere", "--mode", "global", "--update-monitor", "1s", "whoami", "sleep"])?;
    ensure!(out.contains("converged"), "{out}");
    ensure!(create(&["--name", "once", "--mode", "global-job", "whoami", "exit", "0"])?.contains("job complete"));
    let listed = ok(&lab, &["service", "ls", "--format", "{{.Name}} {{.Mode}} {{.Replicas}}"])?;
    let wanted = "everywhere global 1/1\njob replicated job 0/2 (3/3 completed)\nonce global job 0/0 (1/1 completed)\n";
    ensure!(listed == wanted, "{listed:?}");
    let states = ok(&lab, &["service", "ps", "job", "--format", "{{.CurrentState}}"])?;
    ensure!(states.lines().count() == 3 && states.lines().all(|line| line.starts_with("Complete")), "{states}");

    // A name is made up where none is given.
    let id = create(&["-d", "whoami", "sleep"])?;
    let name = ok(&lab, &["service", "inspect", "--format", "{{.Spec.Name}}", id.trim()])?;
    ensure!(name.contains('_'), "{name}");
    Ok(())
}

#[test]
fn lines_come_in_order_of_their_task_and_go_on_coming() -> Result<()> {
    let Some(lab) = lab("docker service logs")? else { return Ok(()) };
    let create = ["service", "create", "-d", "--no-resolve-image", "--restart-condition", "none", "--name"];
    ok(&lab, &[&create[..], &["lines", "whoami", "lines", "5"]].concat())?;
    eventually(SOON, "it wrote its lines", || {
        let output = docker(&lab, &["service", "logs", "--raw", "lines"])?;
        ensure!(output.status == 0 && output.stdout == "out 0\nout 1\nout 2\nout 3\nout 4\n", "{output:?}");
        ensure!(output.stderr == "err 0\nerr 1\nerr 2\nerr 3\nerr 4\n", "{output:?}");
        Ok(())
    })?;
    let stamped = docker(&lab, &["service", "logs", "--raw", "-t", "-n", "2", "lines"])?;
    let stamped: Vec<&str> = stamped.stdout.lines().chain(stamped.stderr.lines()).collect();
    let stamp = stamped.first().and_then(|line| line.split_whitespace().next()).unwrap_or_default();
    ensure!(stamped.len() == 2 && stamp.len() == "2026-01-02T03:04:05.000000000Z".len() && stamp.ends_with('Z'), "{stamped:?}");
    ensure!(docker(&lab, &["service", "logs", "--since", "2100-01-01T00:00:00Z", "--raw", "lines"])?.success()?.is_empty());

    // Following ends when the client does, and shows what came meanwhile.
    ok(&lab, &[&create[..], &["web", "-p", "8080:8080", "whoami"]].concat())?;
    let url = format!("http://{}:8080/", Lab::HOST);
    eventually(SOON, "it answers", || lab.curl(&url))?;
    let file = lab.dir().join("followed");
    let words = command(&lab)?;
    let mut command = std::process::Command::new(&words[0]);
    command.args(&words[1..]).args(["service", "logs", "-f", "web"]);
    let mut follower = command.stdout(std::fs::File::create(&file)?).spawn()?;
    let seen = eventually(SOON, "new lines are followed", || {
        lab.curl(&url)?;
        let text = std::fs::read_to_string(&file)?;
        ensure!(text.matches("GET /").count() >= 3, "{text}");
        Ok(())
    });
    follower.kill()?;
    follower.wait()?;
    seen
}

#[test]
fn what_cannot_be_done_is_refused_with_a_reason() -> Result<()> {
    let Some(lab) = lab("docker service refusals")? else { return Ok(()) };
    let create = ["service", "create", "-d", "--no-resolve-image"];
    ok(&lab, &[&create[..], &["--name", "web", "-p", "8080:8080", "whoami"]].concat())?;
    for (flags, words) in [
        (&["--name", "web", "whoami"][..], "name conflicts with an existing object"),
        (&["--name", "a.b", "whoami"], "name"),
        (&["--name", "x", "-p", "8080:1", "whoami"], "8080"),
        (&["--name", "x", "--limit-memory", "1m", "whoami"], "memory"),
        (&["--name", "x", "--mount", "type=image,source=whoami,target=/x", "whoami"], "invalid MountType"),
        (&["--name", "x", "--network", "nowhere", "whoami"], "nowhere"),
        (&["--name", "x", "--secret", "nothing", "whoami"], "secret not found: nothing"),
        (&["--name", "x", "--endpoint-mode", "dnsrr", "-p", "1:1", "whoami"], "ingress"),
        (&["--name", "x", "--generic-resource", "gpu=-1", "whoami"], "gpu"),
    ] {
        let output = docker(&lab, &[&create[..], flags].concat())?;
        ensure!(output.status != 0 && output.stderr.contains(words), "{flags:?}: {output:?}");
    }
    ensure!(ok(&lab, &["service", "ls", "-q"])?.lines().count() == 1, "something was created all the same");
    Ok(())
}
