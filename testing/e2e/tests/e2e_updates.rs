//! Rolling updates of a service that is asked all the time: nobody is ever led to a task that is not there yet or not there any more.

use anyhow::{Context, Result, ensure};
use skep_e2e::networks::{Client, PATIENCE, PORT, View, ask, names, running, under_load};
use skep_kit::{Dice, Scenario, eventually};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

const UPDATES: u64 = 100;
/// While one update goes on, at least, all taken together.
const REQUESTS: usize = 10_000;
const REPLICAS: usize = 10;
/// Clients with requests that take a second.
const SLOW: usize = 100;
const SOON: Duration = Duration::from_secs(60);

/// A request that is answered after a second, over a connection of its own.
fn ask_slowly(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("connect to {to}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /slow?1000 HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).with_context(|| format!("read from {to}"))?;
    ensure!(text.contains(" 200 ") && text.ends_with("slow\n"), "{to} answers {text:?}");
    Ok(())
}

#[test]
fn a_hundred_updates_fail_none_of_a_million_requests() -> Result<()> {
    Scenario::new("updates under load", 1, 2).long().run(|cluster| {
        cluster.ctl(0, &["network", "create", "back"])?.success()?;
        let create =
            |args: &[&str]| cluster.ctl(0, &[&["service", "create", "-d", "--network", "back"], args].concat())?.success().map(drop);
        let replicas = REPLICAS.to_string();
        let truth = cluster.watch_networks();
        let health = [
            "--env",
            "EXPECT_CHECK=yes",
            "--health-exec",
            "/whoami check",
            "--health-interval",
            "300ms",
            "--health-timeout",
            "20s",
            "--stop-grace-period",
            "30s",
        ];
        let rolling = ["--update-parallelism", "5", "--update-monitor", "0s", "--publish", "published=8080,target=8080"];
        create(&[&["--name", "web", "--replicas", &replicas][..], &health, &rolling, &["whoami", "graceful"]].concat())?;
        create(&["--name", "looker", "--mode", "global", "whoami", "sleep"])?;
        cluster.wait_running(0, "web", REPLICAS)?;
        cluster.wait_running(0, "looker", 3)?;
        let views = running(cluster, 0, "looker")?.iter().map(|task| View::of(cluster, task)).collect::<Result<Vec<_>>>()?;
        let vip = eventually(SOON, "the service has a name", || {
            views.iter().try_for_each(|view| view.look_up("web").map(drop))?;
            views[0].look_up("web")?.first().copied().context("it has an address")
        })?;
        let outside = Path::new("/run/netns").join(cluster.client_namespace());
        let hosts = cluster.managers().chain(cluster.workers());
        let ports = hosts.map(|host| Ok(SocketAddr::new(cluster.address(host).parse()?, PORT))).collect::<Result<Vec<_>>>()?;

        let quick = |at, to| Client { at, to, ask: |to| ask(to).map(drop) };
        let mut clients: Vec<Client<'_>> = ports.iter().map(|to| quick(outside.as_path(), *to)).collect();
        clients.extend(views.iter().map(|view| quick(view.namespace.as_path(), SocketAddr::new(vip, PORT))));
        clients.extend((0..SLOW).map(|number| Client { at: &outside, to: ports[number % ports.len()], ask: ask_slowly }));
        under_load(&clients, |asked| {
            let wanted = usize::try_from(Dice::rounds(UPDATES).end)?;
            let (mut updates, mut known) = (0, names(&running(cluster, 0, "web")?));
            while updates < wanted || asked.load(Ordering::Relaxed) < wanted * REQUESTS {
                updates += 1;
                let order = if updates % 2 == 0 { "start-first" } else { "stop-first" };
                let mark = format!("UPDATE={updates}");
                cluster.ctl(0, &["service", "update", "-d", "--update-order", order, "--env-add", &mark, "web"])?.success()?;
                eventually(10 * SOON, "all tasks are new", || {
                    let now = running(cluster, 0, "web")?;
                    ensure!(now.len() == REPLICAS && names(&now).is_disjoint(&known), "{now:#?}");
                    Ok(())
                })?;
                known = names(&running(cluster, 0, "web")?);
            }
            eprintln!("{updates} updates of {REPLICAS} tasks, {} requests", asked.load(Ordering::Relaxed));
            Ok(())
        })?;
        eprintln!("the networks were found as the store has them {} times", truth.end()?);
        for service in ["web", "looker"] {
            cluster.ctl(0, &["service", "rm", service])?.success()?;
        }
        eventually(SOON, "the network is removed", || cluster.ctl(0, &["network", "rm", "back"])?.success())?;
        Ok(())
    })
}
