//! `docker stack deploy` of files as people have them (testing/clients/compose), by the genuine client: all of it runs, a second deploy changes
//! nothing, and a removal leaves nothing.

use crate::box_image::{Extra, load_as};
use crate::images::Registry;
use crate::support::{SOON, command, docker, has_client, ok};
use anyhow::{Context as _, Result, ensure};
use skep_kit::{Host, Scenario, eventually, run};
use std::path::Path;

/// The file, its services, and how many tasks of them run.
const FILES: [(&str, usize, usize); 5] = [("voting", 6, 7), ("wordpress", 2, 3), ("traefik", 2, 4), ("monitoring", 3, 3), ("cron", 3, 1)];
const IMAGES: [&str; 15] = [
    "redis:alpine",
    "postgres:15",
    "vote:before",
    "result:before",
    "worker:latest",
    "visualizer:stable",
    "mysql:8.0",
    "wordpress:latest",
    "traefik:v2.11",
    "whoami:v1.10",
    "prometheus:v2.51.0",
    "grafana:10.4.0",
    "node-exporter:v1.7.0",
    "swarm-cronjob:1.13",
    "busybox:1.36",
];

fn deploy(on: &Host, registry: &str, name: &str) -> Result<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../clients/compose").join(format!("{name}.yml"));
    let variables = [format!("REGISTRY={registry}"), format!("DOCKER_SOCK={}", on.run_dir().join("docker.sock").display())];
    let mut all: Vec<String> = vec!["300".into(), "env".into()];
    all.extend(variables);
    all.extend(command(on)?);
    all.extend(["stack", "deploy", "-c", &file.to_string_lossy(), name].map(str::to_owned));
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    run("timeout", &all)?.success().with_context(|| format!("docker stack deploy {name}"))
}

/// Specs of all services and ids of all tasks that are to run.
fn state(on: &Host, name: &str) -> Result<(String, String)> {
    let services = ok(on, &["stack", "services", "-q", name])?;
    let mut all = vec!["service", "inspect", "--format", "{{.Spec.Name}} {{json .Spec}}"];
    all.extend(services.lines());
    let mut specs: Vec<String> = ok(on, &all)?.lines().map(str::to_owned).collect();
    specs.sort();
    let mut tasks: Vec<String> =
        ok(on, &["stack", "ps", "-q", "--no-trunc", "--filter", "desired-state=running", name])?.lines().map(str::to_owned).collect();
    tasks.sort();
    Ok((specs.join("\n"), tasks.join(" ")))
}

fn try_one(on: &Host, registry: &str, name: &str, services: usize, tasks: usize) -> Result<()> {
    deploy(on, registry, name)?;
    ensure!(ok(on, &["stack", "services", "-q", name])?.lines().count() == services);
    eventually(2 * SOON, "all tasks run", || {
        let states = ok(on, &["stack", "ps", "--filter", "desired-state=running", "--format", "{{.CurrentState}}", name])?;
        let running = states.lines().filter(|state| state.starts_with("Running")).count();
        ensure!(running == tasks, "{}", docker(on, &["stack", "ps", "--no-trunc", name])?.stdout);
        Ok(())
    })?;
    let before = state(on, name)?;
    deploy(on, registry, name)?;
    let after = state(on, name)?;
    ensure!(before == after, "the second deploy changed\n{}\n{}\nto\n{}\n{}", before.0, before.1, after.0, after.1);
    ok(on, &["stack", "rm", name])?;
    eventually(2 * SOON, "nothing of the stack is left", || {
        for kind in [&["service", "ls", "-q"][..], &["secret", "ls", "-q"], &["config", "ls", "-q"], &["ps", "-aq"]] {
            let left = ok(on, kind)?;
            ensure!(left.is_empty(), "{kind:?}: {left}");
        }
        let networks = ok(on, &["network", "ls", "--filter", "label=com.docker.stack.namespace", "-q"])?;
        ensure!(networks.is_empty(), "networks: {networks}");
        Ok(())
    })?;
    // Volumes stay, as with dockerd.
    for volume in ok(on, &["volume", "ls", "-q"])?.lines() {
        eventually(SOON, "its volume is nobody's", || ok(on, &["volume", "rm", volume]).map(drop))?;
    }
    Ok(())
}

#[test]
fn files_as_people_have_them_are_deployed() -> Result<()> {
    let name = "five Compose files";
    Scenario::new(name, 1, 0).long().run(|cluster| {
        if !has_client(name) {
            return Ok(());
        }
        let host = &cluster[0];
        let Some(_registry) = Registry::start(host)? else { return Ok(()) };
        let registry = "127.0.0.1:5000";
        let names: Vec<String> = IMAGES.iter().map(|name| format!("{registry}/{name}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        load_as(host, &names, &["sleep", "100000"], Extra::default())?;
        for name in &names {
            ok(host, &["push", "-q", name])?;
        }
        for (name, services, tasks) in FILES {
            try_one(host, registry, name, services, tasks).with_context(|| format!("{name}.yml"))?;
        }
        // The scenario looks for what is left of images that it did not load.
        eventually(SOON, "no image is left", || {
            ok(host, &["image", "prune", "-af"])?;
            let left = ok(host, &["images", "-q"])?;
            ensure!(left.is_empty(), "{left}");
            Ok(())
        })
    })
}
