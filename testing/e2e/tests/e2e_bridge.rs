//! Networks that end at a node.

use anyhow::{Context, Result, ensure};
use skep_kit::{Cluster, Scenario, eventually};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
/// For one request; a starved machine is no failure.
const PATIENCE: Duration = Duration::from_secs(20);
/// `whoami`'s own.
const PORT: u16 = 8080;

/// Runs on a thread of its own in a network namespace.
fn inside<T: Send>(namespace: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let file = File::open(namespace).with_context(|| namespace.display().to_string())?;
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?;
            work()
        });
        thread.join().expect("no panic in a thread")
    })
}

/// The host name that `whoami` answers with.
fn ask(to: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("connect to {to}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).with_context(|| format!("read from {to}"))?;
    let line = text.lines().last().unwrap_or_default();
    let host = line.split(' ').find_map(|word| word.strip_prefix("host="));
    host.map(str::to_owned).with_context(|| format!("{to} answers {text:?}"))
}

/// What the C library makes of a name in a namespace, with this `resolv.conf`.
fn look_up(namespace: &Path, resolv_conf: &Path, name: &str) -> Result<BTreeSet<IpAddr>> {
    let script = "mount --bind \"$0\" /etc/resolv.conf && exec getent ahosts \"$1\"";
    let output = Command::new("nsenter")
        .arg(format!("--net={}", namespace.display()))
        .args(["unshare", "--mount", "sh", "-c", script])
        .arg(resolv_conf)
        .arg(name)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{name}: {}{text}", String::from_utf8_lossy(&output.stderr));
    let words = text.lines().filter_map(|line| line.split_whitespace().next());
    Ok(words.map(str::parse).collect::<Result<_, _>>()?)
}

/// The tasks of a service by their hosts, as (task id, host).
fn placed(cluster: &Cluster, service: &str) -> Result<Vec<(String, usize)>> {
    let tasks = cluster.tasks(0, service)?.into_iter().filter(skep_kit::Task::runs);
    tasks.map(|task| Ok((task.id.clone(), task.host.context("it is on a host")?))).collect()
}

fn of_task(cluster: &Cluster, host: usize, task: &str) -> (PathBuf, PathBuf) {
    let host = &cluster[host];
    (host.run_dir().join("netns").join(task), host.data_dir().join("agent/etc").join(task).join("resolv.conf"))
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
        let web = placed(cluster, "web")?;
        let mut own = BTreeSet::<IpAddr>::new();
        for (looker, host) in placed(cluster, "looker")? {
            let (namespace, resolv_conf) = of_task(cluster, host, &looker);
            let (here, _) = web.iter().find(|(_, place)| *place == host).context("one is on each host")?;
            let found = eventually(SOON, "the task of this host has a name", || look_up(&namespace, &resolv_conf, "tasks.web"))?;
            ensure!(found.len() == 1, "{found:?}");
            own.extend(&found);
            let vips = look_up(&namespace, &resolv_conf, "web")?;
            let vip = *vips.first().context("the service has an address")?;
            ensure!(!found.contains(&vip), "{vip} is the task's");
            for to in found.into_iter().chain([vip]) {
                let answers = eventually(SOON, "it answers", || inside(&namespace, || ask(SocketAddr::new(to, PORT))))?;
                ensure!(here.starts_with(&answers), "{to} leads to {answers}, which is not on the same host");
            }
        }
        ensure!(own.len() == 2, "an address was given twice: {own:?}");
        for service in ["web", "looker"] {
            cluster.ctl(0, &["service", "rm", service])?.success()?;
        }
        eventually(SOON, "the network is removed", || cluster.ctl(0, &["network", "rm", "near"])?.success()).map(drop)
    })
}
