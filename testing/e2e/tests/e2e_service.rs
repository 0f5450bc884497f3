//! A service from `swarmctl service create` to answers on its port, and all that can be done with it.

#[path = "e2e_service/images.rs"]
mod images; // digests and platforms
#[path = "e2e_service/policies.rs"]
mod policies; // updates that roll back, restarts that end
#[path = "e2e_service/volumes.rs"]
mod volumes; // volumes that are mounts

use anyhow::{Context, Result, ensure};
use skep_kit::{Inventory, Lab, LabOptions, eventually, need_root};
use std::collections::BTreeSet;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// The host names that answer within so many requests.
fn who_answers(lab: &Lab, url: &str, requests: usize) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for _ in 0..requests {
        let line = lab.curl(url)?;
        names.insert(line.split_whitespace().find_map(|word| word.strip_prefix("host=")).context("no host in the answer")?.to_owned());
    }
    Ok(names)
}

fn running(lab: &Lab, service: &str) -> Result<usize> {
    let text = lab.ctl(&["service", "ps", service, "--format", "{{.DesiredState}} {{.CurrentState}}"])?.success()?;
    Ok(text.lines().filter(|line| line.starts_with("Running Running")).count())
}

#[test]
fn three_replicas_answer_with_the_clients_own_address_and_leave_nothing_behind() -> Result<()> {
    if !need_root("three replicas") {
        return Ok(());
    }
    let lab = Lab::swarm(LabOptions::default())?;
    let before = eventually(SOON, "ingress is there", || Inventory::take(&lab))?;
    lab.ctl(&["service", "create", "-q", "--name", "web", "--replicas", "3", "--publish", "8080:8080", "whoami"])?.success()?;

    let v4 = format!("http://{}:8080/", Lab::HOST);
    let names = eventually(SOON, "all three answer", || {
        let names = who_answers(&lab, &v4, 30)?;
        ensure!(names.len() == 3, "{names:?}");
        Ok(names)
    })?;
    ensure!(lab.curl(&v4)?.contains(&format!("client={}", Lab::CLIENT)), "the client's address was lost");
    ensure!(who_answers(&lab, "http://[fd18::1]:8080/", 30)? == names, "IPv6 does not reach the same replicas");
    ensure!(lab.curl("http://[fd18::1]:8080/")?.contains("client=fd18::2"), "the client's IPv6 address was lost");
    ensure!(lab.curl_on_host("http://127.0.0.1:8080/")?.contains("host="), "loopback does not answer");
    ensure!(lab.curl_on_host("http://[::1]:8080/")?.contains("host="), "IPv6 loopback does not answer");
    ensure!(lab.curl_on_host(&v4)?.contains("host="), "the host's own address does not answer from the host");

    let listed = lab.ctl(&["service", "ls", "--format", "{{.Name}} {{.Replicas}} {{.Ports}}"])?.success()?;
    ensure!(listed == "web 3/3 *:8080->8080/tcp\n", "{listed:?}");
    let logs = lab.ctl(&["service", "logs", "web"])?.success()?;
    ensure!(logs.matches("listening on port 8080").count() == 3, "{logs}");
    ensure!(logs.contains(&format!("{} GET / HTTP/1.1", Lab::CLIENT)), "{logs}");

    lab.ctl(&["service", "scale", "-q", "web=5"])?.success()?;
    eventually(SOON, "five answer", || {
        ensure!(who_answers(&lab, &v4, 60)?.len() == 5);
        Ok(())
    })?;
    lab.ctl(&["service", "scale", "-q", "web=1"])?.success()?;
    eventually(SOON, "one answers", || {
        ensure!(running(&lab, "web")? == 1);
        ensure!(who_answers(&lab, &v4, 20)?.len() == 1);
        Ok(())
    })?;
    lab.ctl(&["service", "rm", "web"])?.success()?;
    eventually(SOON, "nothing is left", || Inventory::take(&lab)?.same_as(&before))?;
    ensure!(lab.curl(&v4).is_err(), "the port still answers");
    Ok(())
}

#[test]
fn an_update_replaces_the_tasks_and_a_label_replaces_none() -> Result<()> {
    if !need_root("update") {
        return Ok(());
    }
    let lab = Lab::swarm(LabOptions::default())?;
    lab.ctl(&[
        "service",
        "create",
        "-q",
        "--name",
        "web",
        "--replicas",
        "2",
        "--publish",
        "8080:8080",
        "--update-monitor",
        "1s",
        "whoami",
    ])?
    .success()?;
    let ids = |lab: &Lab| -> Result<BTreeSet<String>> {
        let text = lab.ctl(&["service", "ps", "web", "--no-trunc", "--format", "{{.ID}} {{.DesiredState}}"])?.success()?;
        Ok(text.lines().filter_map(|line| line.strip_suffix(" Running")).map(str::to_owned).collect())
    };
    let first = ids(&lab)?;
    lab.ctl(&["service", "update", "-q", "--label-add", "a=b", "web"])?.success()?;
    ensure!(ids(&lab)? == first, "a label restarted tasks");
    lab.ctl(&["service", "update", "-q", "--env-add", "GREETING=hello", "web"])?.success()?;
    ensure!(ids(&lab)?.is_disjoint(&first), "the tasks were not replaced");
    let env = lab.curl(&format!("http://{}:8080/env", Lab::HOST))?;
    ensure!(env.contains("GREETING=hello"), "{env}");
    lab.ctl(&["service", "rollback", "-q", "web"])?.success()?;
    let env = eventually(SOON, "the old environment is back", || {
        let env = lab.curl(&format!("http://{}:8080/env", Lab::HOST))?;
        ensure!(!env.contains("GREETING"), "{env}");
        Ok(env)
    })?;
    ensure!(env.contains("PATH="), "{env}");
    Ok(())
}

#[test]
fn a_task_that_crashes_is_replaced_and_one_that_cannot_start_says_why() -> Result<()> {
    if !need_root("crashes") {
        return Ok(());
    }
    let lab = Lab::swarm(LabOptions::default())?;
    lab.ctl(&["service", "create", "-q", "--name", "web", "--publish", "8080:8080", "--restart-delay", "0s", "whoami"])?.success()?;
    let _ = lab.curl(&format!("http://{}:8080/exit?3", Lab::HOST));
    eventually(SOON, "it is replaced", || {
        ensure!(running(&lab, "web")? == 1);
        let errors = lab.ctl(&["service", "ps", "web", "--format", "{{.Error}}"])?.success()?;
        ensure!(errors.contains("exit (3)") || errors.contains("exit code 3") || errors.contains("non-zero exit"), "{errors}");
        lab.curl(&format!("http://{}:8080/", Lab::HOST))
    })?;

    let why = |name: &str, flags: &[&str], words: &str| -> Result<()> {
        let mut arguments = vec!["service", "create", "-d", "--name", name, "--restart-condition", "none"];
        arguments.extend(flags);
        lab.ctl(&arguments)?.success()?;
        eventually(SOON, name, || {
            let errors = lab.ctl(&["service", "ps", name, "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}"])?.success()?;
            ensure!(errors.to_lowercase().contains(words), "wanted {words:?}, got {errors}");
            Ok(())
        })
    };
    why("no-image", &["127.0.0.1:1/no/such:image"], "no such image")?;
    why("bad-command", &["--entrypoint", "/no/such/program", "whoami"], "/no/such/program")?;
    why("no-memory", &["--reserve-memory", "100t", "whoami"], "insufficient")?;
    why("no-mount", &["--mount", "type=bind,source=/no/such/dir,target=/x", "whoami"], "/no/such/dir")?;

    // A port that another program on the host holds.
    let mut listener = lab.host_command("python3").args(["-m", "http.server", "9999"]).spawn()?;
    eventually(SOON, "the other program listens", || lab.curl_on_host("http://127.0.0.1:9999/"))?;
    let taken = why("port-taken", &["--publish", "published=9999,target=8080,mode=host", "whoami"], "9999");
    listener.kill()?;
    listener.wait()?;
    taken
}

#[test]
fn a_crash_loop_is_slowed_down_and_ends_after_its_attempts() -> Result<()> {
    if !need_root("crash loop") {
        return Ok(());
    }
    let lab = Lab::swarm(LabOptions::default())?;
    let flags =
        ["service", "create", "-d", "--name", "loop", "--restart-delay", "100ms", "--restart-max-attempts", "2", "whoami", "exit", "7"];
    lab.ctl(&flags)?.success()?;
    eventually(SOON, "three attempts, then none", || {
        let text = lab.ctl(&["service", "ps", "loop", "--format", "{{.CurrentState}}"])?.success()?;
        ensure!(text.lines().filter(|line| line.starts_with("Failed")).count() == 3, "{text}");
        Ok(())
    })?;
    std::thread::sleep(Duration::from_secs(1));
    let text = lab.ctl(&["service", "ps", "loop", "--format", "{{.CurrentState}}"])?.success()?;
    ensure!(text.lines().count() == 3, "it went on: {text}");
    Ok(())
}

#[test]
fn health_decides_who_answers() -> Result<()> {
    if !need_root("health") {
        return Ok(());
    }
    let lab = Lab::swarm(LabOptions::default())?;
    let health = ["--health-exec", "/whoami check", "--health-interval", "300ms", "--health-retries", "2", "--health-timeout", "2s"];
    let mut flags = vec!["service", "create", "-q", "--name", "web", "--publish", "8080:8080", "--restart-delay", "0s"];
    flags.extend(health);
    flags.push("whoami");
    lab.ctl(&flags)?.success()?;
    let url = format!("http://{}:8080/", Lab::HOST);
    let first = lab.curl(&url)?;
    lab.curl(&format!("{url}fail"))?;
    eventually(SOON, "the unhealthy task is replaced", || {
        let now = lab.curl(&url)?;
        ensure!(now != first, "still {now}");
        Ok(())
    })?;
    let errors = lab.ctl(&["service", "ps", "web", "--no-trunc", "--format", "{{.Error}}"])?.success()?;
    ensure!(errors.contains("unhealthy"), "{errors}");
    Ok(())
}

#[test]
fn limits_and_logs_are_what_was_asked() -> Result<()> {
    if !need_root("limits") {
        return Ok(());
    }
    let lab = Lab::swarm(LabOptions::default())?;
    lab.ctl(&["service", "create", "-d", "--name", "lines", "--restart-condition", "none", "whoami", "lines", "5"])?.success()?;
    eventually(SOON, "it wrote its lines", || {
        let output = lab.ctl(&["service", "logs", "--raw", "lines"])?;
        ensure!(
            output.status == 0 && output.stdout == "out 0\nout 1\nout 2\nout 3\nout 4\n" && output.stderr.matches("err").count() == 5,
            "{output:?}"
        );
        Ok(())
    })?;
    let tail = lab.ctl(&["service", "logs", "--raw", "--tail", "2", "lines"])?;
    ensure!(tail.stdout.lines().count() + tail.stderr.lines().count() == 2, "{tail:?}");
    let state = lab.ctl(&["service", "ps", "lines", "--format", "{{.CurrentState}}"])?.success()?;
    ensure!(state.starts_with("Complete"), "{state}");

    lab.ctl(&[
        "service",
        "create",
        "-q",
        "--name",
        "small",
        "--limit-memory",
        "64m",
        "--limit-cpu",
        "0.5",
        "--limit-pids",
        "50",
        "--init",
        "whoami",
        "sleep",
    ])?
    .success()?;
    let id = lab.ctl(&["service", "ps", "small", "-q"])?.success()?;
    let group = |controller: &str| format!("/sys/fs/cgroup/{controller}/{}/{}", lab.cgroup(), id.trim());
    let (memory, quota) = if std::path::Path::new("/sys/fs/cgroup/memory").exists() {
        (format!("{}/memory.limit_in_bytes", group("memory")), format!("{}/cpu.cfs_quota_us", group("cpu")))
    } else {
        (
            format!("/sys/fs/cgroup/{}/{}/memory.max", lab.cgroup(), id.trim()),
            format!("/sys/fs/cgroup/{}/{}/cpu.max", lab.cgroup(), id.trim()),
        )
    };
    ensure!(std::fs::read_to_string(&memory).context(memory)?.trim() == (64 << 20).to_string());
    ensure!(std::fs::read_to_string(&quota).context(quota)?.trim().starts_with("50000"));
    // The image holds one static program and nothing else: a dynamic init would not run in it.
    let tasks = lab.ctr(&["tasks", "ls"])?.success()?;
    let pid = tasks.lines().find_map(|line| line.strip_prefix(id.trim())?.split_whitespace().next()).context("no such container")?;
    // For a moment after its start it is still runc's.
    eventually(SOON, "the program runs", || {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
        ensure!(line == "/sbin/docker-init\0--\0/whoami\0sleep\0", "{line:?}");
        Ok(())
    })
}

#[test]
fn bad_input_is_refused_with_the_fields_name_and_changes_nothing() -> Result<()> {
    if !need_root("bad input") {
        return Ok(());
    }
    let lab = Lab::swarm(LabOptions::default())?;
    lab.ctl(&["service", "create", "-q", "--name", "web", "--publish", "8080:8080", "whoami"])?.success()?;
    let long = "x".repeat(1 << 20);
    for (flags, words) in [
        (vec!["--name", "web", "whoami"], "web"),
        (vec!["--name", "a.b", "whoami"], "name"),
        (vec!["--name", "x", "--publish", "8080:1", "whoami"], "8080"),
        (vec!["--name", "x", "--limit-memory", "1m", "whoami"], "memory"),
        (vec!["--name", "x", "--constraint", "node.role=manager", "whoami"], "constraint"),
        (vec!["--name", "x", "--mount", "source=a,target=/x", "--mount", "source=b,target=/x/", "whoami"], "mount"),
        (vec!["--name", "x", "BAD IMAGE"], "image"),
        (vec!["--name", "x", "-p", "1:1", "-p", "1:2", "whoami"], "port"),
        (vec!["--name", "x", "--endpoint-mode", "dnsrr", "-p", "1:1", "whoami"], "ingress"),
        (vec!["--name", "x", "--network", "nowhere", "whoami"], "nowhere"),
        (vec!["--name", "x", "--secret", "nothing", "whoami"], "nothing"),
    ] {
        let mut arguments = vec!["service", "create", "-d"];
        arguments.extend(flags);
        let output = lab.ctl(&arguments)?;
        ensure!(output.status != 0 && output.stderr.to_lowercase().contains(words), "{arguments:?}: {output:?}");
    }
    ensure!(lab.ctl(&["service", "update", "-d", "--hostname", &long[..100_000], "web"])?.status != 0);
    ensure!(lab.ctl(&["service", "inspect", "nothing"])?.status == 3);
    ensure!(lab.ctl(&["service", "ls", "-q"])?.success()?.lines().count() == 1);
    ensure!(lab.curl(&format!("http://{}:8080/", Lab::HOST)).is_ok());
    Ok(())
}

#[test]
fn secrets_and_configs_are_files_in_memory_and_go_with_their_tasks() -> Result<()> {
    if !need_root("secrets") {
        return Ok(());
    }
    let lab = Lab::swarm(LabOptions::default())?;
    let file = |name: &str, data: &str| -> Result<String> {
        let path = lab.dir().join(name);
        std::fs::write(&path, data)?;
        Ok(path.to_string_lossy().into_owned())
    };
    let (first, second, motd) = (file("first", "hunter2")?, file("second", "hunter3")?, file("motd", "{{.Service.Name}} {{env \"X\"}}!")?);
    for arguments in [
        &["secret", "create", "--label", "tier=back", "password-1", &first][..],
        &["secret", "create", "password-2", &second],
        &["config", "create", "--template-driver", "golang", "motd", &motd],
        &["config", "create", "plain", &motd],
    ] {
        lab.ctl(arguments)?.success()?;
    }
    let listed = lab.ctl(&["secret", "ls", "--filter", "label=tier", "--format", "{{.Name}} {{.Labels}}"])?.success()?;
    ensure!(listed == "password-1 tier=back\n", "{listed:?}");
    let shown = lab.ctl(&["secret", "inspect", "password-1"])?.success()?;
    ensure!(shown.contains("password-1") && !shown.contains("hunter2") && !shown.contains("\"data\""), "{shown}");
    let shown = lab.ctl(&["config", "inspect", "--format", "{{.spec.data}}", "plain"])?.success()?;
    ensure!(shown == "{{.Service.Name}} {{env \"X\"}}!\n", "{shown:?}");
    for (arguments, status, words) in [
        (&["secret", "create", "password-1", &first][..], 4, "already exists"),
        (&["secret", "create", "-bad", &first], 2, "-b"),
        (&["secret", "create", "bad/name", &first], 1, "not a valid name"),
        (&["config", "create", "empty", "/dev/null"], 1, "is empty"),
        (&["config", "inspect", "nothing"], 3, "nothing"),
    ] {
        let output = lab.ctl(arguments)?;
        ensure!(output.status == status && output.stderr.contains(words), "{arguments:?}: {output:?}");
    }

    let secret = "source=password-1,target=password,uid=1000,gid=50,mode=0440";
    let flags = ["service", "create", "-q", "--name", "web", "--publish", "8080:8080", "-e", "X=hello", "--update-monitor", "1s"];
    let grants = ["--secret", secret, "--config", "source=motd,target=/motd", "--config", "plain", "whoami"];
    lab.ctl(&[&flags[..], &grants[..]].concat())?.success()?;
    let read = |path: &str| lab.curl(&format!("http://{}:8080/file?{path}", Lab::HOST));
    ensure!(read("/run/secrets/password")? == "1000:50 440 hunter2\n");
    ensure!(read("/motd")? == "0:0 444 web hello!\n", "{}", read("/motd")?);
    ensure!(read("/plain")? == "0:0 444 {{.Service.Name}} {{env \"X\"}}!\n");
    ensure!(
        read("/proc/mounts")?.lines().any(|line| line.starts_with("tmpfs /run/secrets/password tmpfs ro")),
        "{}",
        read("/proc/mounts")?
    );

    for (arguments, name) in [(&["secret", "rm", "password-1"][..], "password-1"), (&["config", "rm", "motd"], "motd")] {
        let output = lab.ctl(arguments)?;
        ensure!(
            output.status == 1 && output.stderr.contains(name) && output.stderr.contains("in use by the following service: web"),
            "{output:?}"
        );
    }
    let change = ["--secret-rm", "password-1", "--secret-add", "source=password-2,target=password", "--config-rm", "motd", "web"];
    lab.ctl(&[&["service", "update", "-q"], &change[..]].concat())?.success()?;
    eventually(SOON, "the new secret is there", || {
        ensure!(read("/run/secrets/password")? == "0:0 444 hunter3\n", "{}", read("/run/secrets/password")?);
        ensure!(lab.curl(&format!("http://{}:8080/file?/motd", Lab::HOST)).is_err(), "the config is still there");
        Ok(())
    })?;
    lab.ctl(&["secret", "rm", "password-1"])?.success()?;
    lab.ctl(&["service", "rm", "web"])?.success()?;
    lab.ctl(&["secret", "rm", "password-2"])?.success()?;
    lab.ctl(&["config", "rm", "motd", "plain"])?.success()?;
    ensure!(lab.ctl(&["secret", "ls", "-q"])?.success()?.is_empty() && lab.ctl(&["config", "ls", "-q"])?.success()?.is_empty());
    Ok(())
}

/// Asks until the answer has all these words.
fn explained(lab: &Lab, arguments: &[&str], words: &[&str]) -> Result<()> {
    let arguments = [&["explain"], arguments].concat();
    eventually(SOON, &arguments.join(" "), || {
        let told = lab.ctl(&arguments)?.success()?;
        for words in words {
            ensure!(told.contains(words), "no {words:?} in:\n{told}");
        }
        Ok(())
    })
}

#[test]
fn a_new_user_is_told_why_a_service_does_not_run() -> Result<()> {
    if !need_root("explain") {
        return Ok(());
    }
    let lab = Lab::swarm(LabOptions::default())?;
    let node = lab.ctl(&["node", "ls", "--format", "{{.Hostname}}"])?.success()?.trim().to_owned();
    let service = |name: &str, flags: &[&str]| lab.ctl(&[&["service", "create", "-d", "--name", name], flags].concat())?.success();
    service("held", &["--publish", "published=9000,target=8080,mode=host", "whoami"])?;
    explained(&lab, &["service", "held"], &["1 of 1 tasks run, on"])?;
    explained(&lab, &["task", "held.1"], &["is running on", "where the service has fewest"])?;
    for (name, flags, words) in [
        ("memory", &["--reserve-memory", "100t", "whoami"][..], &["none takes it now", "of memory", "--reserve-memory"][..]),
        ("cpu", &["--reserve-cpu", "1000", "whoami"], &["needs 1000 CPUs", "--reserve-cpu"]),
        ("label", &["--constraint", "node.labels.disk==ssd", "whoami"], &["node.labels.disk==ssd", "node update --label-add disk=ssd"]),
        ("gpu", &["--generic-resource", "gpu=1", "whoami"], &["needs 1 gpu"]),
        ("port", &["--publish", "published=9000,target=8080,mode=host", "whoami"], &["host port 9000/tcp", "is held by held.1."]),
        ("twice", &["--replicas", "2", "--replicas-max-per-node", "1", "whoami"], &["1 of 2 tasks run", "--replicas-max-per-node 2"]),
        ("image", &["--restart-condition", "none", "127.0.0.1:1/no/such:image"], &["could not be started", "127.0.0.1:1/no/such:image"]),
        ("loop", &["--restart-delay", "0s", "--restart-max-attempts", "1", "whoami", "exit", "7"], &["failed", "(7)", "service logs loop"]),
        ("mount", &["--restart-condition", "none", "--mount", "type=bind,source=/no/such,target=/x", "whoami"], &["/no/such"]),
        ("nothing", &["--replicas", "0", "whoami"], &["0 replicas are asked for"]),
    ] {
        service(name, flags)?;
        explained(&lab, &["service", name], words)?;
    }

    let dry = |flags: &[&str]| lab.ctl(&[&["service", "create", "--dry-run", "--name", "dry"], flags].concat());
    let fits = dry(&["--replicas", "3", "whoami"])?.success()?;
    ensure!(fits.contains("tasks would go to") && fits.contains(&format!("{node}: 3 tasks")), "{fits}");
    let waits = dry(&["--reserve-memory", "100t", "whoami"])?;
    ensure!(waits.status == 1 && waits.stdout.contains("of memory") && waits.stderr.contains("nothing was created"), "{waits:?}");
    let refused = dry(&["--limit-memory", "1m", "whoami"])?;
    ensure!(refused.status == 1 && refused.stderr.contains("memory"), "{refused:?}");
    ensure!(!lab.ctl(&["service", "ls", "--format", "{{.Name}}"])?.success()?.lines().any(|name| name == "dry"));

    lab.ctl(&["node", "update", "--availability", "pause", &node])?.success()?;
    service("paused", &["whoami"])?;
    explained(&lab, &["service", "paused"], &["it is paused", "node update --availability active"])?;
    explained(&lab, &["node", "self"], &["paused: it keeps its tasks", "tasks of paused wait"])?;
    ensure!(lab.ctl(&["explain", "service", "nobody"])?.status == 3);
    Ok(())
}
