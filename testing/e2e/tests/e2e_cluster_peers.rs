//! Genuine peers: Debian's dockerd 20.10 as a worker of ours, and our daemon as a worker of dockerd's.

use anyhow::{Context, Result, ensure};
use skep_kit::{Cluster, Dockerd, Scenario, eventually, need_dockerd};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// Runs the script with a dockerd, if there is one, and prints dockerd's log if it failed.
fn with_dockerd(cluster: &mut Cluster, script: impl FnOnce(&mut Cluster, &Dockerd) -> Result<()>) -> Result<()> {
    if !need_dockerd("genuine peers") {
        return Ok(());
    }
    let docker = cluster.add_dockerd()?;
    docker.load_image()?;
    script(cluster, &docker).inspect_err(|_| eprintln!("{}", docker.log_tail()))
}

fn states(cluster: &Cluster, service: &str) -> Result<String> {
    cluster.ctl(0, &["service", "ps", service, "--no-trunc", "--format", "{{.DesiredState}} {{.CurrentState}} {{.Error}}"])?.success()
}

#[test]
fn a_genuine_dockerd_is_a_worker_of_ours() -> Result<()> {
    Scenario::new("dockerd joins us", 1, 0).long().run(|cluster| {
        with_dockerd(cluster, |cluster, docker| {
            let token = cluster.token(0, "worker")?;
            let manager = format!("{}:2377", cluster.address(0));
            docker
                .docker(&["swarm", "join", "--token", &token, "--advertise-addr", docker.address(), &manager])?
                .success()
                .context("docker swarm join")?;
            let id = docker.docker(&["info", "--format", "{{.Swarm.NodeID}}"])?.success()?.trim().to_owned();
            eventually(SOON, "it is listed as ready", || {
                let nodes =
                    cluster.ctl(0, &["node", "ls", "--no-trunc", "--format", "{{.ID}} {{.Status}} {{.EngineVersion}}"])?.success()?;
                ensure!(nodes.lines().any(|line| line.contains(&id) && line.contains("Ready") && line.contains("20.10")), "{nodes}");
                Ok(())
            })?;

            let on_it = format!("node.id=={id}");
            let create = |name: &str, flags: &[&str]| -> Result<()> {
                let all = [&["service", "create", "-d", "--name", name, "--constraint", &on_it][..], flags, &["whoami"]].concat();
                cluster.ctl(0, &all)?.success().with_context(|| name.to_owned())?;
                Ok(())
            };
            let answers = |port: u16| {
                let url = format!("http://{}:{port}/", docker.address());
                eventually(SOON, "it answers", || cluster.curl(&url))
            };
            create("hostnet", &["--network", "host"])?;
            eventually(SOON, "the task on the host's network runs", || {
                let states = states(cluster, "hostnet")?;
                ensure!(states.contains("Running Running"), "{states}");
                Ok(())
            })?;
            answers(8080)?;
            create("hostport", &["--publish", "published=9090,target=8080,mode=host"])?;
            eventually(SOON, "the task with a port runs", || {
                let states = states(cluster, "hostport")?;
                ensure!(states.contains("Running Running"), "{states}");
                Ok(())
            })?;
            answers(9090)?;
            let logs = eventually(SOON, "its logs come through", || {
                let logs = cluster.ctl(0, &["service", "logs", "hostport"])?.success()?;
                ensure!(logs.contains("listening on port"), "{logs:?}");
                Ok(logs)
            })?;
            ensure!(logs.contains("GET / "), "{logs}");

            // A task that crashes there is replaced there.
            let _ = cluster.curl(&format!("http://{}:9090/exit?3", docker.address()));
            eventually(SOON, "the crashed task is replaced", || {
                let states = states(cluster, "hostport")?;
                ensure!(states.contains("Failed") && states.contains("Running Running"), "{states}");
                cluster.curl(&format!("http://{}:9090/", docker.address()))
            })?;

            let refusal = cluster.ctl(0, &["node", "promote", &id])?;
            eprintln!("promote: {}", refusal.stderr.trim());
            ensure!(refusal.status != 0 && refusal.stderr.len() > 40, "a dockerd was promoted: {refusal:?}");

            cluster.ctl(0, &["node", "update", "--availability", "drain", &id])?.success()?;
            eventually(SOON, "it is drained", || {
                let left = docker.docker(&["ps", "-q"])?.success()?;
                ensure!(left.trim().is_empty(), "containers run: {left}");
                let states = states(cluster, "hostport")?;
                ensure!(!states.contains("Running Running"), "{states}");
                Ok(())
            })?;
            for service in ["hostnet", "hostport"] {
                cluster.ctl(0, &["service", "rm", service])?.success()?;
            }
            docker.docker(&["swarm", "leave"])?.success().context("docker swarm leave")?;
            eventually(SOON, "it is down", || {
                let nodes = cluster.ctl(0, &["node", "ls", "--no-trunc", "--format", "{{.ID}} {{.Status}}"])?.success()?;
                ensure!(nodes.lines().any(|line| line.contains(&id) && line.contains("Down")), "{nodes}");
                Ok(())
            })?;
            cluster.ctl(0, &["node", "rm", &id])?.success()?;
            Ok(())
        })
    })
}

#[test]
fn we_are_a_worker_of_a_genuine_dockerd() -> Result<()> {
    Scenario::new("we join dockerd", 0, 1).long().unformed().run(|cluster| {
        with_dockerd(cluster, |cluster, docker| {
            cluster.load_image()?;
            docker.docker(&["swarm", "init", "--advertise-addr", docker.address()])?.success()?;
            let token = docker.docker(&["swarm", "join-token", "-q", "worker"])?.success()?.trim().to_owned();
            let own = cluster.address(0);
            let manager = format!("{}:2377", docker.address());
            cluster
                .ctl(0, &["cluster", "join", "--token", &token, "--advertise-addr", &own, &manager])?
                .success()
                .context("cluster join")?;
            let id = cluster.node_id(0)?;
            eventually(SOON, "docker node ls has it ready", || {
                let nodes = docker.docker(&["node", "ls", "--format", "{{.ID}} {{.Status}} {{.Availability}}"])?.success()?;
                ensure!(nodes.lines().any(|line| line == format!("{id} Ready Active")), "{nodes}");
                Ok(())
            })?;

            let on_it = format!("node.id=={id}");
            let ps = |name: &str| {
                docker
                    .docker(&["service", "ps", name, "--no-trunc", "--format", "{{.DesiredState}} {{.CurrentState}} {{.Error}}"])?
                    .success()
            };
            let create = |name: &str, flags: &[&str]| -> Result<()> {
                let fixed = ["service", "create", "-d", "--no-resolve-image", "--name", name, "--constraint", &on_it];
                docker.docker(&[&fixed[..], flags, &["whoami:latest"]].concat())?.success().with_context(|| name.to_owned())?;
                Ok(())
            };
            create("hostnet", &["--network", "host"])?;
            eventually(SOON, "docker service ps tells that it runs", || {
                let states = ps("hostnet")?;
                ensure!(states.contains("Running Running"), "{states}");
                Ok(())
            })?;
            eventually(SOON, "it answers", || cluster.curl(&format!("http://{own}:8080/")))?;
            let logs = docker.docker(&["service", "logs", "hostnet"])?;
            eprintln!("docker service logs: {logs:?}");

            docker.docker(&["network", "create", "-d", "overlay", "over"])?.success()?;
            create("overlay", &["--network", "over", "--restart-condition", "none"])?;
            eventually(SOON, "the overlay task is refused in words", || {
                let states = ps("overlay")?;
                ensure!(states.contains("Rejected") && states.to_lowercase().contains("overlay"), "{states}");
                Ok(())
            })?;

            let _ = cluster.curl(&format!("http://{own}:8080/exit?3"));
            eventually(SOON, "the crash is told, and the task is replaced", || {
                let states = ps("hostnet")?;
                ensure!(states.contains("Failed") && states.contains("Running Running"), "{states}");
                Ok(())
            })?;
            // We cannot manage beside a dockerd: promoted, we go on as the worker we are, and say so.
            docker.docker(&["node", "promote", &id])?.success()?;
            std::thread::sleep(Duration::from_secs(10));
            let status = cluster.api(0)?.status(false)?;
            eprintln!("promoted by dockerd: {status:?}");
            ensure!(status.connected && !status.problem.is_empty(), "{status:?}");
            let states = ps("hostnet")?;
            ensure!(states.contains("Running Running"), "{states}");
            // dockerd itself knows no way back: it looks for the manager to be demoted in its raft group, where we never were.

            docker.docker(&["service", "rm", "hostnet", "overlay"])?.success()?;
            eventually(SOON, "nothing runs here", || {
                let left = cluster[0].ctr(&["tasks", "ls", "-q"])?.success()?;
                ensure!(left.trim().is_empty(), "{left}");
                Ok(())
            })?;
            cluster.ctl(0, &["cluster", "leave", "--force"])?.success()?;
            eventually(SOON, "docker node ls has it down", || {
                let nodes = docker.docker(&["node", "ls", "--format", "{{.ID}} {{.Status}}"])?.success()?;
                ensure!(nodes.lines().any(|line| line == format!("{id} Down")), "{nodes}");
                Ok(())
            })
        })
    })
}
