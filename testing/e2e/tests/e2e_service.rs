//! A service from `swarmctl service create` to answers on its port, and all that can be done with it.

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
    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
    ensure!(line == "/sbin/docker-init\0--\0/whoami\0sleep\0", "{line:?}");
    Ok(())
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
