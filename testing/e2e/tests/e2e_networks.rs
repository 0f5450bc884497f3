//! Networks that span hosts: names, virtual addresses and published ports lead to tasks wherever they are, and go on doing so
//! through updates, restarts of daemons, and without managers.

use anyhow::{Context, Result, ensure};
use skep_e2e::networks::{self, Kept, PORT, View, ask, inside, names, running, unbroken, until_all_answer};
use skep_kit::{Cluster, Scenario, Task, eventually};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// Does something while clients outside, at every host, and tasks inside ask without a pause; no request may fail.
fn undisturbed(cluster: &Cluster, views: &[View], vip: SocketAddr, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let client = Path::new("/run/netns").join(cluster.client_namespace());
    let outside = cluster.managers().chain(cluster.workers()).map(|host| Ok(SocketAddr::new(cluster.address(host).parse()?, PORT)));
    let outside = outside.collect::<Result<Vec<_>>>()?;
    let under_way = outside.iter().map(|to| (client.as_path(), *to)).chain(views.iter().map(|view| (view.namespace.as_path(), vip)));
    networks::undisturbed(&under_way.collect::<Vec<_>>(), act)
}

#[test]
fn names_addresses_and_ports_lead_to_tasks_on_any_host() -> Result<()> {
    Scenario::new("networks", 1, 2).run(lead_to_tasks_on_any_host)
}

#[test]
fn names_addresses_and_ports_lead_to_tasks_on_any_of_six_hosts() -> Result<()> {
    Scenario::new("networks of six", 3, 3).long().run(lead_to_tasks_on_any_host)
}

fn lead_to_tasks_on_any_host(cluster: &mut Cluster) -> Result<()> {
    let (count, worker) = (cluster.managers().chain(cluster.workers()).count(), cluster.workers().start);
    let before = cluster.inventories()?;
    cluster.ctl(0, &["network", "create", "back"])?.success()?;
    let create = |flags: &[&str], args: &[&str]| -> Result<()> {
        let all = [&["service", "create", "-d", "--network", "back"], flags, &["whoami"], args].concat();
        cluster.ctl(0, &all)?.success().map(drop)
    };
    // A task is asked from the moment in which it answers itself.
    let truth = cluster.watch_networks();
    // `EXPECT_CHECK`: it tells who is led to it before.
    let health = ["--env", "EXPECT_CHECK=yes", "--health-exec", "/whoami check", "--health-interval", "300ms", "--health-timeout", "5s"];
    let rolling = [&["--update-parallelism", "1", "--update-monitor", "0s"][..], &health].concat();
    let web = ["--name", "web", "--mode", "global", "--publish", "published=8080,target=8080"];
    create(&[&web[..], &rolling].concat(), &["graceful"])?;
    create(&["--name", "looker", "--mode", "global"], &["sleep"])?;
    cluster.wait_running(0, "web", count)?;
    cluster.wait_running(0, "looker", count)?;
    let lookers = running(cluster, 0, "looker")?;
    let views = lookers.iter().map(|task| View::of(cluster, task)).collect::<Result<Vec<_>>>()?;
    let web = names(&running(cluster, 0, "web")?);

    // Names and the virtual address, from every host to every host.
    let vips: Vec<IpAddr> = eventually(SOON, "the service has a name", || views[0].look_up("web"))?;
    let [vip] = vips.as_slice() else { anyhow::bail!("web is {vips:?}") };
    let vip = SocketAddr::new(*vip, PORT);
    for view in &views {
        eventually(SOON, "every task has the names", || {
            ensure!(view.look_up("web")? == [vip.ip()]);
            let tasks = view.look_up("tasks.web")?;
            ensure!(tasks.len() == count && !tasks.contains(&vip.ip()), "{tasks:?}");
            Ok(())
        })?;
        let clients =
            eventually(SOON, "the virtual address leads to every host", || inside(&view.namespace, || until_all_answer(vip, &web)))?;
        // Its own task sees the gateway's address, if it asked itself; this service never does.
        ensure!(clients == [view.address_towards(vip)?].into(), "the tasks see {clients:?}");
        ensure!(view.look_up("nosuch.example.invalid").is_err(), "what does not exist has an address");
    }

    // Published ports on every host, with the client's own address, in both families.
    let client = Path::new("/run/netns").join(cluster.client_namespace());
    for host in 0..count {
        for (address, own) in [(cluster.address(host), "198.18.0.2"), (cluster.address_v6(host), "fd18::2")] {
            let to = SocketAddr::new(address.parse()?, PORT);
            let clients = eventually(SOON, "the port leads to every host", || inside(&client, || until_all_answer(to, &web)))?;
            ensure!(clients == [own.to_owned()].into(), "by {to} the tasks see {clients:?}");
        }
    }

    truth.holds()?;
    a_route_that_is_gone_is_seen(&truth, &views[0], vip)?;

    // A rolling update: nobody notices.
    undisturbed(cluster, &views, vip, || {
        cluster.ctl(0, &["service", "update", "-d", "--env-add", "TASK=new", "web"])?.success()?;
        eventually(SOON * u32::try_from(count)?, "all tasks are new", || {
            let now = running(cluster, 0, "web")?;
            ensure!(now.len() == count && names(&now).is_disjoint(&web), "{now:#?}");
            Ok(())
        })
    })?;
    let web = names(&running(cluster, 0, "web")?);
    let hosts = || cluster.managers().chain(cluster.workers());
    let late: usize = hosts().map(|host| cluster[host].log().matches("not every node said in time").count()).sum();
    ensure!(late < count, "no task was cleared by the other nodes before it was stopped");

    // The same of a service with one task: the new one is there before the old one goes.
    create(&[&["--name", "one", "--update-order", "start-first"][..], &rolling].concat(), &["graceful"])?;
    cluster.wait_running(0, "one", 1)?;
    let old = names(&running(cluster, 0, "one")?);
    let one = eventually(SOON, "the service has a name", || views[1].look_up("one"))?;
    let one = SocketAddr::new(*one.first().context("it has an address")?, PORT);
    for view in &views {
        eventually(SOON, "every host leads to the task", || inside(&view.namespace, || until_all_answer(one, &old)))?;
    }
    undisturbed(cluster, &views, one, || {
        cluster.ctl(0, &["service", "update", "-d", "--env-add", "TASK=new", "one"])?.success()?;
        eventually(2 * SOON, "the task is new", || {
            let now = running(cluster, 0, "one")?;
            ensure!(now.len() == 1 && names(&now).is_disjoint(&old), "{now:#?}");
            Ok(())
        })
    })?;

    // A worker's daemon dies: no connection does.
    let by_worker = SocketAddr::new(cluster.address(worker).parse()?, PORT);
    let mut kept = (0..6).map(|_| Kept::open(cluster, by_worker)).collect::<Result<Vec<_>>>()?;
    kept.iter_mut().try_for_each(Kept::ask)?;
    cluster[worker].kill_skepd();
    undisturbed(cluster, &views, vip, || {
        unbroken(&mut kept, || {
            std::thread::sleep(Duration::from_secs(2));
            Ok(())
        })
    })?;
    cluster[worker].start_skepd()?;
    undisturbed(cluster, &views, vip, || unbroken(&mut kept, || truth.holds()))?;

    // No managers: names and addresses go on, also on a worker whose daemon begins anew meanwhile.
    cluster.wait_ready(SOON)?;
    unbroken(&mut kept, || {
        for manager in cluster.managers() {
            cluster[manager].kill_skepd();
        }
        cluster[worker + 1].kill_skepd();
        cluster[worker + 1].start_skepd()
    })?;
    let is_on_worker = |view: &&View| cluster.workers().any(|host| view.namespace.starts_with(cluster[host].run_dir()));
    for view in views.iter().filter(is_on_worker) {
        ensure!(eventually(SOON, "names are answered", || view.look_up("web"))? == [vip.ip()]);
        ensure!(view.look_up("tasks.web")?.len() == count);
        inside(&view.namespace, || until_all_answer(vip, &web))?;
    }
    let own = inside(&client, || until_all_answer(SocketAddr::new(cluster.address(worker + 1).parse()?, PORT), &web))?;
    ensure!(own == ["198.18.0.2".to_owned()].into(), "the tasks see {own:?}");
    unbroken(&mut kept, || {
        for manager in cluster.managers() {
            cluster[manager].start_skepd()?;
        }
        cluster.wait_leader(SOON)?;
        cluster.wait_ready(SOON)
    })?;
    eprintln!("the networks were found as the store has them {} times", truth.end()?);

    // And nothing is left when the services are gone.
    for service in ["web", "one", "looker"] {
        cluster.ctl(0, &["service", "rm", service])?.success()?;
    }
    eventually(SOON, "the network is removed", || cluster.ctl(0, &["network", "rm", "back"])?.success())?;
    for (host, before) in before.iter().enumerate() {
        eventually(SOON, &format!("nothing is left on {}", cluster[host].name()), || {
            let leaked = skep_kit::Inventory::take(&cluster[host])?.leaked_since(before);
            ensure!(leaked.is_empty(), "{leaked:#?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Takes the route to a task away for a moment: the comparison with the store must name it.
fn a_route_that_is_gone_is_seen(truth: &skep_kit::Truth, view: &View, vip: SocketAddr) -> Result<()> {
    let address = view.address_towards(vip)?;
    let ip = |sandbox: &Path, arguments: &str| -> Result<String> {
        let all = format!("--net={} ip -4 route {arguments}", sandbox.display());
        skep_kit::run("nsenter", &all.split_whitespace().collect::<Vec<_>>())?.success()
    };
    let namespaces = std::fs::read_dir(view.namespace.parent().context("it is in a directory")?)?;
    let mut paths = namespaces.filter_map(|entry| Some(entry.ok()?.path()));
    let is_sandbox = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("sbx-"));
    let (sandbox, route) = paths
        .find_map(|path| {
            Some((path.clone(), ip(&path, &format!("show {address}/32")).ok()?)).filter(|(path, text)| is_sandbox(path) && !text.is_empty())
        })
        .context("a sandbox has the route to the task")?;
    ip(&sandbox, &format!("del {address}/32"))?;
    let differences = truth.differences();
    ip(&sandbox, &format!("add {route}"))?;
    let differences = differences?;
    ensure!(differences.iter().any(|what| what.contains(&format!("there is no route to {address}"))), "{differences:?}");
    Ok(())
}

#[test]
fn a_host_that_dies_or_comes_later_is_left_or_found() -> Result<()> {
    Scenario::new("networks and hosts", 1, 2).run(|cluster| {
        cluster.ctl(0, &["network", "create", "--ipv6", "back"])?.success()?;
        let web = ["--name", "web", "--mode", "global", "--publish", "published=8080,target=8080"];
        cluster.ctl(0, &[&["service", "create", "-d", "--network", "back"][..], &web, &["whoami"]].concat())?.success()?;
        cluster.wait_running(0, "web", 3)?;
        let tasks = running(cluster, 0, "web")?;
        let first = tasks.iter().find(|task| task.host == Some(0)).context("one is on the first host")?;
        let view = View::of(cluster, first)?;
        let vips = eventually(SOON, "the service has a name", || view.look_up("web"))?;
        let client = Path::new("/run/netns").join(cluster.client_namespace());
        let port = SocketAddr::new(cluster.address(0).parse()?, PORT);
        let all_lead_to = |tasks: &[Task]| {
            let hosts = names(tasks);
            // Of itself a task is told by another address; that is no matter here.
            for vip in &vips {
                inside(&view.namespace, || until_all_answer(SocketAddr::new(*vip, PORT), &hosts))?;
            }
            inside(&client, || until_all_answer(port, &hosts))?;
            let found = view.look_up("tasks.web")?;
            for address in found.iter().filter(|address| address.is_ipv6()) {
                inside(&view.namespace, || ask(SocketAddr::new(*address, PORT)))?;
            }
            let found = found.len();
            ensure!(found == 2 * tasks.len(), "{found} addresses of {} tasks", tasks.len());
            Ok(())
        };
        eventually(SOON, "names, addresses and ports lead to every host", || all_lead_to(&tasks))?;
        let truth = cluster.watch_networks();

        // A host that nobody hears of any more is left as soon as managers give it up.
        cluster.cut(2)?;
        let alive: Vec<Task> = tasks.iter().filter(|task| task.host != Some(2)).cloned().collect();
        eventually(2 * SOON, "nobody is led to the host that is gone", || all_lead_to(&alive))?;
        cluster.heal()?;
        cluster.wait_ready(SOON)?;
        let tasks = eventually(2 * SOON, "it has a task again", || {
            let tasks = running(cluster, 0, "web")?;
            ensure!(tasks.len() == 3, "{tasks:#?}");
            Ok(tasks)
        })?;
        eventually(SOON, "all hosts are led to", || all_lead_to(&tasks))?;

        // One that leaves in order, and comes back as another node.
        cluster.ctl(2, &["cluster", "leave"])?.success()?;
        let alive: Vec<Task> = tasks.iter().filter(|task| task.host != Some(2)).cloned().collect();
        eventually(SOON, "nobody is led to the host that left", || all_lead_to(&alive))?;
        cluster.join(2, "worker")?;
        cluster.load_image()?;
        let tasks = eventually(2 * SOON, "it has a task again", || {
            let tasks = running(cluster, 0, "web")?;
            ensure!(tasks.len() == 3, "{tasks:#?}");
            Ok(tasks)
        })?;
        eventually(SOON, "the new node is found", || all_lead_to(&tasks))?;
        truth.end().map(drop)
    })
}

#[test]
fn tasks_are_on_the_hosts_own_network_as_hosts_are() -> Result<()> {
    Scenario::new("macvlan", 1, 1).run(|cluster| {
        let lan = |parent: &str, range: &str, name: &str| -> Vec<String> {
            let subnet = ["--driver", "macvlan", "--subnet", "198.18.0.0/24", "--gateway", "198.18.0.2", "--ip-range", range, "--opt"];
            let all = ["network", "create"].iter().chain(&subnet).map(ToString::to_string);
            all.chain([format!("parent={parent}"), name.to_owned()]).collect()
        };
        let create = |cluster: &Cluster, network: &[String]| cluster.ctl(0, &network.iter().map(String::as_str).collect::<Vec<_>>());
        create(cluster, &lan("eth0", "198.18.0.128/26", "lan"))?.success()?;
        let service = |cluster: &Cluster, network: &str, name: &str, args: &[&str]| -> Result<()> {
            let all = [&["service", "create", "-d", "--network", network, "--mode", "global", "--name", name, "whoami"], args].concat();
            cluster.ctl(0, &all)?.success().map(drop)
        };
        let web = ["service", "create", "-d", "--network", "lan", "--mode", "global", "--name", "web", "--hostname"];
        cluster.ctl(0, &[&web[..], &["web-{{.Node.ID}}", "whoami"]].concat())?.success()?;
        service(cluster, "lan", "looker", &["sleep"])?;
        cluster.wait_running(0, "web", 2)?;
        cluster.wait_running(0, "looker", 2)?;

        // By its name each task finds those of both hosts; nothing stands between, so there is no virtual address.
        let web = (0..2).map(|host| Ok(format!("web-{}", cluster.node_id(host)?))).collect::<Result<BTreeSet<String>>>()?;
        let mut addresses = Vec::new();
        for looker in running(cluster, 0, "looker")? {
            let view = View::of(cluster, &looker)?;
            addresses = eventually(SOON, "the tasks of both hosts have their names", || {
                let found = view.look_up("web")?;
                ensure!(found.len() == 2 && found == view.look_up("tasks.web")?, "{found:?}");
                Ok(found)
            })?;
            let answers = |to: &IpAddr| eventually(SOON, "it answers", || inside(&view.namespace, || ask(SocketAddr::new(*to, PORT))));
            let lines = addresses.iter().map(answers).collect::<Result<Vec<_>>>()?;
            let hosts = lines.iter().map(|line| networks::field(line, "host").to_owned()).collect();
            ensure!(web == hosts, "{lines:?}");
            // Host names that their nodes filled in are names, too.
            let by_host = web.iter().map(|name| eventually(SOON, "the host name is known", || view.look_up(name)));
            let by_host: BTreeSet<IpAddr> = by_host.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
            ensure!(by_host == addresses.iter().copied().collect(), "{by_host:?}");
        }
        // So does who is on that network himself, under his own address.
        let client = Path::new("/run/netns").join(cluster.client_namespace());
        for address in &addresses {
            let line = eventually(SOON, "it answers", || inside(&client, || ask(SocketAddr::new(*address, PORT))))?;
            ensure!(networks::field(&line, "client") == "198.18.0.2", "{line}");
        }

        // The daemon of a host begins anew: its tasks stay as they are.
        let by_worker = addresses.iter().map(|to| SocketAddr::new(*to, PORT));
        let mut kept = by_worker.map(|to| Kept::open(cluster, to)).collect::<Result<Vec<_>>>()?;
        cluster[1].kill_skepd();
        cluster[1].start_skepd()?;
        cluster.wait_ready(SOON)?;
        kept.iter_mut().try_for_each(Kept::ask)?;

        // A host without such a link says so.
        for service in ["web", "looker"] {
            cluster.ctl(0, &["service", "rm", service])?.success()?;
        }
        eventually(SOON, "the network is removed", || cluster.ctl(0, &["network", "rm", "lan"])?.success())?;
        create(cluster, &lan("nosuch0", "198.18.0.192/26", "nowhere"))?.success()?;
        service(cluster, "nowhere", "lost", &[])?;
        eventually(SOON, "the reason is told", || {
            let tasks = cluster.tasks(0, "lost")?;
            let told = |task: &Task| task.error.contains("network nowhere cannot be joined by link nosuch0 of this host");
            ensure!(tasks.iter().any(told), "{tasks:#?}");
            Ok(())
        })?;
        let refused = cluster.ctl(0, &["network", "create", "--driver", "macvlan", "--subnet", "10.9.0.0/24", "no"])?;
        ensure!(refused.status != 0 && refused.stderr.contains("options[parent]"), "{refused:?}");
        Ok(())
    })
}
