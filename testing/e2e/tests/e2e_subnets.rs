//! Networks that run out of addresses, and networks whose packets get another size, under tasks that run.

use anyhow::{Context, Result, ensure};
use skep_e2e::networks::{PORT, View, ask, inside, names, running, undisturbed, until_all_answer};
use skep_kit::{Cluster, Scenario, eventually};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
/// An address that was freed is kept back until every node knows, or for a minute.
const KEPT_BACK: Duration = Duration::from_secs(60);

fn create(cluster: &Cluster, name: &str, flags: &[&str], args: &[&str]) -> Result<()> {
    let all = [&["service", "create", "-d", "--name", name], flags, &["whoami"], args].concat();
    cluster.ctl(0, &all)?.success().map(drop)
}

/// Waits until `service ps` says so.
fn says(cluster: &Cluster, service: &str, words: &str) -> Result<()> {
    eventually(SOON, &format!("{service} says why it waits"), || {
        let listed = cluster.ctl(0, &["service", "ps", service])?.success()?;
        ensure!(listed.contains(words), "{listed}");
        Ok(())
    })
}

/// The addresses of a service's tasks, as one on the same network finds them.
fn addresses(view: &View, service: &str, count: usize) -> Result<BTreeSet<IpAddr>> {
    eventually(SOON, &format!("{service} has {count} addresses"), || {
        let found: BTreeSet<IpAddr> = view.look_up(&format!("tasks.{service}"))?.into_iter().collect();
        ensure!(found.len() == count, "{found:?}");
        Ok(found)
    })
}

#[test]
fn a_network_without_a_free_address_says_so_and_gives_the_next_that_is_freed() -> Result<()> {
    Scenario::new("a small subnet", 1, 1).run(|cluster| {
        // .1 is the gateway, .2 to .6 are for virtual addresses and tasks.
        cluster.ctl(0, &["network", "create", "--subnet", "10.77.0.0/29", "small"])?.success()?;
        let small = ["--network", "small"];
        let plain = [&small[..], &["--endpoint-mode", "dnsrr"]].concat();
        create(cluster, "looker", &plain, &["sleep"])?;
        create(cluster, "web", &[&small[..], &["--replicas", "3"]].concat(), &["graceful"])?;
        cluster.wait_running(0, "looker", 1)?;
        cluster.wait_running(0, "web", 3)?;
        let looker = running(cluster, 0, "looker")?;
        let view = View::of(cluster, looker.first().context("one looks")?)?;
        let before = addresses(&view, "web", 3)?;

        // One that wants an address for its task only, and one that has not even one for itself.
        create(cluster, "late", &plain, &[])?;
        create(cluster, "later", &small, &[])?;
        for service in ["late", "later"] {
            says(cluster, service, "network small has no free address left")?;
        }
        let vips = view.look_up("web")?;
        let vip = SocketAddr::new(*vips.first().context("it has an address")?, PORT);
        let port = |address: IpAddr| SocketAddr::new(address, PORT);

        // Space comes back: whoever waits gets what was freed, and nobody else is disturbed.
        undisturbed(&[(&view.namespace, vip)], || {
            cluster.ctl(0, &["service", "rm", "later"])?.success()?;
            cluster.ctl(0, &["service", "scale", "-d", "web=2"])?.success()?;
            eventually(SOON + KEPT_BACK, "the task has an address", || {
                ensure!(running(cluster, 0, "late")?.len() == 1);
                Ok(())
            })
        })?;
        let now = addresses(&view, "web", 2)?;
        let late = addresses(&view, "late", 1)?;
        let freed: BTreeSet<IpAddr> = before.difference(&now).copied().collect();
        ensure!(now.is_subset(&before) && late == freed, "web had {before:?} and has {now:?}, late has {late:?}");
        let name = names(&running(cluster, 0, "late")?);
        for to in late {
            eventually(SOON, "it leads to the new task", || inside(&view.namespace, || until_all_answer(port(to), &name)))?;
        }
        eventually(SOON, "the virtual address leads to those that stay", || {
            inside(&view.namespace, || until_all_answer(vip, &names(&running(cluster, 0, "web")?)))
        })?;
        for service in ["web", "late", "looker"] {
            cluster.ctl(0, &["service", "rm", service])?.success()?;
        }
        eventually(SOON, "the network is removed", || cluster.ctl(0, &["network", "rm", "small"])?.success()).map(drop)
    })
}

/// What a packet on the way to that address may measure on the first link.
fn mtu(namespace: &Path, to: IpAddr) -> Result<u32> {
    let at = format!("--net={}", namespace.display());
    let route = skep_kit::run("nsenter", &[&at, "ip", "-o", "route", "get", &to.to_string()])?.success()?;
    let mut words = route.split_whitespace().skip_while(|word| *word != "dev").skip(1);
    let link = words.next().context("a route leads there")?;
    let link = skep_kit::run("nsenter", &[&at, "ip", "-o", "link", "show", link])?.success()?;
    let mut words = link.split_whitespace().skip_while(|word| *word != "mtu").skip(1);
    Ok(words.next().context("it has a size")?.parse()?)
}

#[test]
fn a_networks_size_of_packets_is_changed_under_tasks_that_run() -> Result<()> {
    Scenario::new("sizes of packets", 1, 1).run(|cluster| {
        cluster.ctl(0, &["network", "create", "back"])?.success()?;
        create(cluster, "web", &["--network", "back", "--mode", "global"], &[])?;
        cluster.wait_running(0, "web", 2)?;
        let tasks = running(cluster, 0, "web")?;
        let views = tasks.iter().map(|task| View::of(cluster, task)).collect::<Result<Vec<_>>>()?;
        let vips = eventually(SOON, "the service has a name", || views[0].look_up("web"))?;
        let vip = *vips.first().context("it has an address")?;
        let are_all = |wanted: u32| {
            eventually(SOON, &format!("packets of {wanted} bytes"), || {
                for view in &views {
                    let found = mtu(&view.namespace, vip)?;
                    ensure!(found == wanted, "{}: {found}", view.namespace.display());
                }
                Ok(())
            })
        };
        // The cables' 1500 bytes less those of VXLAN over IPv4.
        are_all(1450)?;
        let to = SocketAddr::new(vip, PORT);
        let asking: Vec<_> = views.iter().map(|view| (view.namespace.as_path(), to)).collect();
        for view in &views {
            eventually(SOON, "both tasks answer", || inside(&view.namespace, || until_all_answer(to, &names(&tasks))))?;
        }
        undisturbed(&asking, || {
            for (wanted, bytes) in [("1400", 1400), ("1300", 1300), ("auto", 1450)] {
                cluster.ctl(0, &["network", "update", "--mtu", wanted, "back"])?.success()?;
                are_all(bytes)?;
            }
            Ok(())
        })?;
        ensure!(names(&running(cluster, 0, "web")?) == names(&tasks), "the tasks are those from the beginning");

        // A task that begins later, and a daemon that begins anew, have the size that was chosen.
        cluster.ctl(0, &["network", "update", "--mtu", "1350", "back"])?.success()?;
        are_all(1350)?;
        cluster[1].kill_skepd();
        cluster[1].start_skepd()?;
        cluster.wait_ready(SOON)?;
        create(cluster, "new", &["--network", "back", "--mode", "global"], &[])?;
        cluster.wait_running(0, "new", 2)?;
        are_all(1350)?;
        for task in running(cluster, 0, "new")? {
            let found = mtu(&View::of(cluster, &task)?.namespace, vip)?;
            ensure!(found == 1350, "a new task has {found}");
        }
        let refused = cluster.ctl(0, &["network", "update", "--mtu", "1000", "back"])?;
        ensure!(refused.status != 0, "{refused:?}");
        inside(&views[0].namespace, || ask(to))?;
        for service in ["web", "new"] {
            cluster.ctl(0, &["service", "rm", service])?.success()?;
        }
        eventually(SOON, "the network is removed", || cluster.ctl(0, &["network", "rm", "back"])?.success()).map(drop)
    })
}
