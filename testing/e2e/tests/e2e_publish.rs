//! Who may come to a published port, where, and to which task: by any host of a cluster, as clients outside see it.

use anyhow::{Result, ensure};
use skep_e2e::networks::{self, field, inside};
use skep_kit::{Cluster, Scenario, Task, eventually};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// One request from the client outside: the name of the task that answers.
fn ask(cluster: &Cluster, to: SocketAddr) -> Result<String> {
    let client = Path::new("/run/netns").join(cluster.client_namespace());
    inside(&client, || networks::ask(to)).map(|line| field(&line, "host").to_owned())
}

/// The port is closed to this client, and says so.
fn is_refused(cluster: &Cluster, to: SocketAddr) -> Result<()> {
    let error = match ask(cluster, to) {
        Ok(name) => anyhow::bail!("{name} answers at {to}"),
        Err(error) => error,
    };
    let refused = error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
    ensure!(refused, "{to} does not refuse: {error:#}");
    Ok(())
}

/// A port of every host, in both families.
fn entries(cluster: &Cluster, port: u16) -> Result<Vec<SocketAddr>> {
    let hosts = cluster.managers().chain(cluster.workers());
    let addresses = hosts.flat_map(|host| [cluster.address(host), cluster.address_v6(host)]);
    addresses.map(|address| Ok(SocketAddr::new(address.parse()?, port))).collect()
}

/// Whoever answers at these, each asked a few times.
fn answering(cluster: &Cluster, entries: &[SocketAddr]) -> Result<BTreeSet<String>> {
    (0..6).flat_map(|_| entries).map(|to| ask(cluster, *to)).collect()
}

fn running(cluster: &Cluster, service: &str) -> Result<BTreeSet<String>> {
    Ok(cluster.tasks(0, service)?.into_iter().filter(Task::runs).map(|task| task.id.chars().take(12).collect()).collect())
}

fn publish(cluster: &Cluster, service: &str, port: &str) -> Result<()> {
    cluster.ctl(0, &["service", "update", "-d", "--publish-add", port, service])?.success().map(drop)
}

#[test]
fn a_port_tells_its_clients_apart_by_whichever_host_they_come() -> Result<()> {
    Scenario::new("publish", 1, 2).run(|cluster| {
        let create = ["service", "create", "-d", "--mode", "global"];
        let web = ["--name", "web", "--publish", "published=8080,target=8080,affinity=source", "whoami"];
        cluster.ctl(0, &[&create[..], &web].concat())?.success()?;
        cluster.wait_running(0, "web", 3)?;
        let truth = cluster.watch_networks();
        let tasks = running(cluster, "web")?;
        let all = entries(cluster, 8080)?;
        let (v4, v6): (Vec<_>, Vec<_>) = all.iter().copied().partition(SocketAddr::is_ipv4);

        // A client comes to one task by all hosts, for all of them know the same three tasks.
        for family in [&v4, &v6] {
            eventually(SOON, "the client has its task", || {
                let answered = answering(cluster, family)?;
                ensure!(answered.len() == 1 && answered.is_subset(&tasks), "{answered:?} of {tasks:?}");
                Ok(())
            })?;
        }
        // Without affinity it comes to all of them, and the tasks stay what they are.
        publish(cluster, "web", "published=8080,target=8080")?;
        for family in [&v4, &v6] {
            eventually(SOON, "every task has the client", || {
                let answered = answering(cluster, family)?;
                ensure!(answered == tasks, "{answered:?} of {tasks:?}");
                Ok(())
            })?;
        }

        // Who may come, said anew without a new task.
        publish(cluster, "web", "published=8080,target=8080,allow=203.0.113.0/24,allow=2001:db8::/32")?;
        eventually(SOON, "the client is shut out everywhere", || all.iter().try_for_each(|to| is_refused(cluster, *to)))?;
        publish(cluster, "web", "published=8080,target=8080,allow=203.0.113.0/24,allow=198.18.0.2")?;
        eventually(SOON, "the client is let in by its address", || {
            let answered = answering(cluster, &v4)?;
            ensure!(answered == tasks, "{answered:?} of {tasks:?}");
            v6.iter().try_for_each(|to| is_refused(cluster, *to))
        })?;
        ensure!(running(cluster, "web")? == tasks, "the tasks are those from the beginning");

        // One number at two addresses is two ports, each on its own host.
        let place = |host: usize| format!("published=8081,target=8080,address={}", cluster.address(host));
        for (host, name) in [(0, "first"), (1, "second")] {
            cluster.ctl(0, &[&create[..], &["--name", name, "--publish", &place(host), "whoami"]].concat())?.success()?;
            cluster.wait_running(0, name, 3)?;
        }
        for (host, name) in [(0, "first"), (1, "second")] {
            let tasks = running(cluster, name)?;
            let to = SocketAddr::new(cluster.address(host).parse()?, 8081);
            eventually(SOON, "the address leads to its service", || {
                let answered = answering(cluster, &[to])?;
                ensure!(answered == tasks, "{answered:?} of {tasks:?}");
                Ok(())
            })?;
        }
        is_refused(cluster, SocketAddr::new(cluster.address(2).parse()?, 8081))?;
        is_refused(cluster, SocketAddr::new(cluster.address_v6(0).parse()?, 8081))?;
        let third = cluster.ctl(0, &[&create[..], &["--name", "third", "--publish", "8081:8080", "whoami"]].concat())?;
        ensure!(third.success().is_err_and(|error| format!("{error:#}").contains("already in use by service")), "it meets both");
        let listed = cluster.ctl(0, &["service", "ls"])?.success()?;
        ensure!(listed.contains("*:8080->8080/tcp from 203.0.113.0/24 and 1 more"), "{listed:?}");
        truth.end().map(drop)
    })
}
