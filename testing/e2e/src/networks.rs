//! Looks at networks that span hosts, from tasks and from clients.

use anyhow::{Context, Result, ensure};
pub use skep_kit::inside;
use skep_kit::{Cluster, Task};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// For one request; a starved machine is no failure.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// `whoami`'s own.
pub const PORT: u16 = 8080;

/// One request over a connection of its own. Whoever answers must not have been told to end before the request began, and must have been
/// found healthy if it is to be (invariant I13).
pub fn ask(to: SocketAddr) -> Result<String> {
    let began = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("connect to {to}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /trace HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).with_context(|| format!("read from {to}"))?;
    let line = text.lines().last().unwrap_or_default();
    ensure!(line.starts_with("host="), "{to} answers {text:?}");
    let told: u128 = field(line, "told").parse().with_context(|| format!("{to} answers {line:?}"))?;
    ensure!(told == 0 || told >= began, "I13: {to} led to a task that was told to end {} ns before: {line}", began - told);
    ensure!(field(line, "unchecked").is_empty(), "I13: {to} led to a task that was not found healthy yet: {line}");
    Ok(line.to_owned())
}

/// A field of `whoami`'s line.
pub fn field<'a>(line: &'a str, name: &str) -> &'a str {
    line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
}

/// Asks until every one of `hosts` answered, and returns the addresses that they took for the client's.
pub fn until_all_answer(to: SocketAddr, hosts: &BTreeSet<String>) -> Result<BTreeSet<String>> {
    let (mut seen, mut clients) = (BTreeSet::new(), BTreeSet::new());
    // Each draw is at random: with three, the chance to miss one in 200 is (2/3)^200.
    for _ in 0..200 {
        let line = ask(to)?;
        seen.insert(field(&line, "host").to_owned());
        clients.insert(field(&line, "client").to_owned());
        if seen == *hosts {
            return Ok(clients);
        }
    }
    anyhow::bail!("{to}: {seen:?} answer instead of {hosts:?}")
}

/// What the C library makes of a name in a namespace, with this `resolv.conf`: the addresses, in order.
pub fn look_up(namespace: &Path, resolv_conf: &Path, name: &str) -> Result<Vec<IpAddr>> {
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
    let found: BTreeSet<IpAddr> = words.map(str::parse).collect::<Result<_, _>>()?;
    Ok(found.into_iter().collect())
}

/// A task that looks at the network from within.
pub struct View {
    pub namespace: PathBuf,
    resolv_conf: PathBuf,
}

impl View {
    pub fn of(cluster: &Cluster, task: &Task) -> Result<Self> {
        let host = &cluster[task.host.context("it is on a host")?];
        let namespace = host.run_dir().join("netns").join(&task.id);
        Ok(Self { namespace, resolv_conf: host.data_dir().join("agent/etc").join(&task.id).join("resolv.conf") })
    }

    /// What the C library makes of a name with the task's own `resolv.conf`: the addresses, in order.
    pub fn look_up(&self, name: &str) -> Result<Vec<IpAddr>> {
        look_up(&self.namespace, &self.resolv_conf, name)
    }

    /// Its own address on the way to another.
    pub fn address_towards(&self, to: SocketAddr) -> Result<String> {
        inside(&self.namespace, || {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(to)?;
            Ok(socket.local_addr()?.ip().to_string())
        })
    }
}

/// The tasks of a service that run.
pub fn running(cluster: &Cluster, through: usize, service: &str) -> Result<Vec<Task>> {
    Ok(cluster.tasks(through, service)?.into_iter().filter(Task::runs).collect())
}

/// As containers are called without a wish of the service: the beginning of the task's id.
pub fn names(tasks: &[Task]) -> BTreeSet<String> {
    tasks.iter().map(|task| task.id.chars().take(12).collect()).collect()
}

/// A client that asks one address again and again.
#[derive(Clone, Copy)]
pub struct Client<'a> {
    /// Its network namespace.
    pub at: &'a Path,
    pub to: SocketAddr,
    pub ask: fn(SocketAddr) -> Result<()>,
}

impl Client<'_> {
    /// Until told to stop; returns how often, and what went wrong. `asked` counts for all.
    fn run(self, stop: &AtomicBool, asked: &AtomicUsize) -> (usize, Vec<String>) {
        let (mut count, mut failures) = (0, Vec::new());
        while !stop.load(Ordering::Relaxed) {
            count += 1;
            if let Err(error) = (self.ask)(self.to) {
                failures.push(format!("request {count}: {error:#}"));
            }
            asked.fetch_add(1, Ordering::Relaxed);
        }
        (count, failures)
    }
}

/// Does something while clients in these network namespaces ask these addresses without a pause; no request may fail.
///
/// # Errors
/// What the requests or the doing ended with.
pub fn undisturbed(clients: &[(&Path, SocketAddr)], act: impl FnOnce() -> Result<()>) -> Result<()> {
    let clients: Vec<Client<'_>> = clients.iter().map(|(at, to)| Client { at, to: *to, ask: |to| ask(to).map(drop) }).collect();
    under_load(&clients, |_| act())
}

/// The same of clients that ask in ways of their own. `act` can see how many requests have ended.
///
/// # Errors
/// What the requests or the doing ended with.
pub fn under_load(clients: &[Client<'_>], act: impl FnOnce(&AtomicUsize) -> Result<()>) -> Result<()> {
    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let (stop, asked) = (&stop, &asked);
        let loops: Vec<_> =
            clients.iter().map(|client| scope.spawn(move || inside(client.at, || Ok((client.to, client.run(stop, asked)))))).collect();
        let outcome = act(asked);
        stop.store(true, Ordering::Relaxed);
        let mut failed = Vec::new();
        for ended in loops {
            let (to, (count, failures)) = ended.join().expect("no panic in a thread")?;
            eprintln!("{count} requests to {to}, {} failed", failures.len());
            ensure!(count > 0, "{to} was never asked");
            failed.extend(failures.into_iter().take(5));
        }
        outcome?;
        ensure!(failed.is_empty(), "{failed:#?}");
        Ok(())
    })
}

/// A connection that is kept, and asked over again and again.
pub struct Kept {
    to: SocketAddr,
    stream: BufReader<TcpStream>,
}

impl Kept {
    /// From the client outside.
    pub fn open(cluster: &Cluster, to: SocketAddr) -> Result<Self> {
        inside(&Path::new("/run/netns").join(cluster.client_namespace()), || {
            let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(Self { to, stream: BufReader::new(stream) })
        })
    }

    pub fn ask(&mut self) -> Result<()> {
        let Self { to, stream } = self;
        stream
            .get_mut()
            .write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            .with_context(|| format!("I12: a kept connection to {to}"))?;
        let mut line = String::new();
        while line.trim() != "healthy" {
            line.clear();
            let read = stream.read_line(&mut line).with_context(|| format!("I12: a kept connection to {to}"))?;
            ensure!(read > 0, "I12: a kept connection to {to} was closed");
        }
        Ok(())
    }
}

/// Does something while these connections are asked over again and again; none may end (invariant I12).
///
/// # Errors
/// What a connection or the doing ended with.
pub fn unbroken(kept: &mut [Kept], act: impl FnOnce() -> Result<()>) -> Result<()> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                kept.iter_mut().try_for_each(Kept::ask)?;
                std::thread::sleep(Duration::from_millis(100));
            }
            // Once more, when all is over.
            kept.iter_mut().try_for_each(Kept::ask)
        });
        let outcome = act();
        stop.store(true, Ordering::Relaxed);
        asking.join().expect("no panic in a thread")?;
        outcome
    })
}
