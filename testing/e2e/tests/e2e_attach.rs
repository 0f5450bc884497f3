//! Networks that end at a node, and containers that no service started on networks of the cluster.

use anyhow::{Context, Result, ensure};
use skep_e2e::networks::{PATIENCE, PORT, View, ask, field, inside, look_up, names, running};
use skep_kit::{Cluster, Scenario, eventually};
use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// The name of the container that answers.
fn asked(to: IpAddr) -> Result<String> {
    Ok(field(&ask(SocketAddr::new(to, PORT))?, "host").to_owned())
}

fn tool(program: &str, arguments: &[&str]) -> Result<String> {
    skep_kit::run(program, arguments)?.success()
}

/// A container that somebody else started: a namespace and a process in it. Both go with it.
struct Guest {
    name: String,
    process: Child,
    resolv_conf: tempfile::NamedTempFile,
}

impl Guest {
    /// `name` begins as the host's things do, so that the next test finds what a killed one left.
    fn start(name: String) -> Result<Self> {
        tool("ip", &["netns", "add", &name])?;
        let sleep = Command::new("nsenter").arg(format!("--net=/run/netns/{name}")).args(["sleep", "3600"]).stdin(Stdio::null()).spawn();
        let mut resolv_conf = tempfile::NamedTempFile::new()?;
        resolv_conf.write_all(b"nameserver 127.0.0.11\noptions ndots:0\n")?;
        Ok(Self { name, process: sleep?, resolv_conf })
    }

    fn namespace(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    fn look_up(&self, name: &str) -> Result<Vec<IpAddr>> {
        look_up(&self.namespace(), self.resolv_conf.path(), name)
    }

    fn links(&self) -> Result<usize> {
        Ok(tool("ip", &["-n", &self.name, "-o", "link"])?.lines().count())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = tool("ip", &["netns", "del", &self.name]);
    }
}

#[test]
fn a_bridge_joins_the_tasks_of_one_node() -> Result<()> {
    Scenario::new("bridges", 1, 1).run(|cluster| {
        for (flags, reason) in [
            (&["--driver", "bridge", "--opt", "encrypted"][..], "options[encrypted]"),
            (&["--driver", "host", "--internal"], "internal"),
            (&["--driver", "ipvlan"], "not supported"),
        ] {
            let refused = cluster.ctl(0, &[&["network", "create"], flags, &["no"]].concat())?;
            ensure!(refused.status != 0 && refused.stderr.contains(reason), "{flags:?}: {refused:?}");
        }
        cluster.ctl(0, &["network", "create", "--driver", "bridge", "near"])?.success()?;
        let create = |flags: &[&str], args: &[&str]| -> Result<()> {
            let all = [&["service", "create", "-d", "--network", "near", "--mode", "global"], flags, &["whoami"], args].concat();
            cluster.ctl(0, &all)?.success().map(drop)
        };
        create(&["--name", "web"], &[])?;
        create(&["--name", "looker"], &["sleep"])?;
        cluster.wait_running(0, "web", 2)?;
        cluster.wait_running(0, "looker", 2)?;
        let web = running(cluster, 0, "web")?;
        let mut own = BTreeSet::<IpAddr>::new();
        for looker in running(cluster, 0, "looker")? {
            let view = View::of(cluster, &looker)?;
            let here = web.iter().find(|task| task.host == looker.host).context("one is on each host")?;
            let found = eventually(SOON, "the task of this host has a name", || view.look_up("tasks.web"))?;
            ensure!(found.len() == 1, "{found:?}");
            own.extend(&found);
            let vips = view.look_up("web")?;
            let vip = *vips.first().context("the service has an address")?;
            ensure!(!found.contains(&vip), "{vip} is the task's");
            for to in found.into_iter().chain([vip]) {
                let answers = eventually(SOON, "it answers", || inside(&view.namespace, || asked(to)))?;
                ensure!(here.id.starts_with(&answers), "{to} leads to {answers}, which is not on the same host");
            }
        }
        ensure!(own.len() == 2, "an address was given twice: {own:?}");
        for service in ["web", "looker"] {
            cluster.ctl(0, &["service", "rm", service])?.success()?;
        }
        eventually(SOON, "the network is removed", || cluster.ctl(0, &["network", "rm", "near"])?.success()).map(drop)
    })
}

#[test]
fn containers_of_others_are_attached_and_let_go() -> Result<()> {
    Scenario::new("attachments", 1, 1).run(|cluster| {
        cluster.ctl(0, &["network", "create", "--attachable", "open"])?.success()?;
        cluster.ctl(0, &["network", "create", "shut"])?.success()?;
        let truth = cluster.watch_networks();
        let service = ["service", "create", "-d", "--network", "open", "--mode", "global", "--name", "web", "whoami"];
        cluster.ctl(0, &service)?.success()?;
        cluster.wait_running(0, "web", 2)?;
        let web = running(cluster, 0, "web")?;
        let hosts = names(&web);

        // One by its process beside the manager, one by its namespace beside a worker.
        let guests = (0..2).map(|host| Guest::start(format!("{}g", cluster[host].namespace()))).collect::<Result<Vec<_>>>()?;
        let links = guests[1].links()?;
        let pid = guests[0].process.id().to_string();
        let namespace = guests[1].namespace().display().to_string();
        let refused = cluster.ctl(0, &["network", "attach", "shut", "--pid", &pid])?;
        ensure!(refused.status != 0 && refused.stderr.contains("not attachable"), "{refused:?}");
        let first = cluster.ctl(0, &["network", "attach", "open", "--pid", &pid, "--alias", "first"])?.success()?;
        let second = cluster.ctl(1, &["network", "attach", "open", "--netns", &namespace, "--alias", "second"])?.success()?;
        let (first, second) = (first.trim().to_owned(), second.trim().to_owned());
        let again = cluster.ctl(0, &["network", "attach", "open", "--pid", &pid])?;
        ensure!(again.status != 0 && again.stderr.contains(&first), "{again:?}");
        let none = cluster.ctl(0, &["network", "attach", "open", "--netns", "/run/netns/no-such-namespace"])?;
        ensure!(none.status != 0 && none.stderr.contains("No such file"), "{none:?}");

        // Each finds the service wherever it runs, and they find each other.
        let works = |cluster: &Cluster| -> Result<()> {
            for (guest, other) in [(&guests[0], "second"), (&guests[1], "first")] {
                eventually(SOON, "the service and the other are found", || {
                    let tasks = guest.look_up("tasks.web")?;
                    ensure!(tasks.len() == 2, "{tasks:?}");
                    ensure!(guest.look_up(other)?.len() == 1);
                    let to = tasks.into_iter().chain(guest.look_up("web")?);
                    let answers = inside(&guest.namespace(), || to.map(asked).collect::<Result<BTreeSet<_>>>())?;
                    ensure!(hosts.is_subset(&answers), "{answers:?}");
                    Ok(())
                })?;
            }
            let to = *guests[0].look_up("second")?.first().context("it has an address")?;
            let listener = inside(&guests[1].namespace(), || Ok(TcpListener::bind(("0.0.0.0", 7))?))?;
            // From the other container, and from a task.
            let task = web.iter().find(|task| task.host == Some(0)).context("one is on the first host")?;
            for from in [guests[0].namespace(), View::of(cluster, task)?.namespace] {
                inside(&from, || Ok(TcpStream::connect_timeout(&SocketAddr::new(to, 7), PATIENCE)?))?;
                listener.accept()?;
            }
            Ok(())
        };
        works(cluster)?;

        // It stays over a restart of the daemon.
        for host in 0..2 {
            cluster[host].kill_skepd();
            cluster[host].start_skepd()?;
        }
        cluster.wait_leader(SOON)?;
        cluster.wait_ready(SOON)?;
        works(cluster)?;
        truth.end()?;

        // Detached, it is as it was; nobody else may do so.
        let refused = cluster.ctl(0, &["network", "detach", &second])?;
        ensure!(refused.status != 0 && refused.stderr.contains("another node"), "{refused:?}");
        ensure!(guests[1].links()? == links + 1, "it has one of ours");
        cluster.ctl(1, &["network", "detach", &second])?.success()?;
        eventually(SOON, "nothing of ours is left in it", || {
            ensure!(guests[1].links()? == links);
            let tables = tool("nsenter", &[&format!("--net={namespace}"), "nft", "list", "tables"])?;
            ensure!(tables.trim().is_empty(), "{tables}");
            Ok(())
        })?;
        eventually(SOON, "its name is gone", || {
            ensure!(guests[0].look_up("second").is_err());
            Ok(())
        })?;

        // One whose namespace is gone ends by itself, and its network can be removed.
        drop(guests);
        cluster.ctl(0, &["service", "rm", "web"])?.success()?;
        eventually(SOON, "the network is removed", || cluster.ctl(0, &["network", "rm", "open"])?.success())?;
        eventually(SOON, "nothing holds the namespace", || {
            ensure!(!cluster[0].run_dir().join("netns").join(&first).exists());
            Ok(())
        })
    })
}
