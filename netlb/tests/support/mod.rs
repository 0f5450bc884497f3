//! A host of its own for each test: the test runs itself again under `unshare`, in a fresh network and mount namespace
//! with an empty /run, so that nothing is left behind whatever happens.
#![allow(dead_code, reason = "each test file uses a part of it")]

use nix::sched::{CloneFlags, setns};
use skep_netlb::*;
use skep_types::{NetworkId, TaskId};
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const INSIDE: &str = "SKEP_NETLB_INSIDE";
const RESPONDER: &str = "SKEP_NETLB_RESPONDER";
const SCENARIO: &str = "SKEP_NETLB_SCENARIO";
// WireGuard asks for a lost handshake again after five seconds, and an emulated processor takes its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `body` on a host of its own. `name` is the test's full name.
pub fn on_own_host<F: Future<Output = ()>>(name: &str, body: impl FnOnce(World) -> F) {
    if std::env::var(INSIDE).as_deref() == Ok(name) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(body(World::new()));
        return;
    }
    if !nix::unistd::geteuid().is_root() || run_quietly("unshare", &["-n", "-m", "true"]).is_err() {
        assert!(std::env::var("SKEP_REQUIRE_REAL").is_err(), "needs root and the unshare program");
        eprintln!("SKIPPED: {name} needs root and the unshare program");
        return;
    }
    let status = Command::new("unshare")
        .args(["-n", "-m", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1", "--include-ignored"])
        .env(INSIDE, name)
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed on its host, see above");
}

pub fn run_quietly(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() { Ok(text) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// Runs a line of shell and gives its output.
pub fn sh(line: &str) -> String {
    run_quietly("sh", &["-ec", line]).unwrap_or_else(|error| panic!("{line}: {error}"))
}

/// Commands of `ip`, with these options for all of them. One process for all, for each takes its time where the processor
/// is emulated.
pub fn ip(options: &[&str], commands: &str) {
    let mut child = Command::new("ip").args(options).args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    let lines: String = commands.split([';', '\n']).map(|command| format!("{}\n", command.trim())).collect();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "ip {options:?}: {commands}");
}

/// What a line of shell shows of a host, without the state of the uplink, which comes and goes for a second after it was
/// made (the kernel tells of carriers once a second).
pub fn look(line: &str) -> String {
    let steady = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().map(|word| if word == "DOWN" { "UP" } else { word }).collect();
        words.join(" ").replace("NO-CARRIER,", "")
    };
    let is_uplink = |line: &str| line.contains("up0@if2") || line.contains("eth0@if2: ");
    sh(line).lines().map(|line| if is_uplink(line) { steady(line) + "\n" } else { format!("{line}\n") }).collect()
}

/// A host with an uplink to a client.
pub struct World {
    responders: Vec<Child>,
}

pub const HOST: &str = "198.18.0.1";
pub const HOST6: &str = "2001:db8::1";
pub const CLIENT: &str = "198.18.0.9";
pub const CLIENT6: &str = "2001:db8::9";

impl World {
    fn new() -> Self {
        sh("mount -t tmpfs none /run");
        ip(
            &[],
            "link set lo up; netns add client; link add up0 type veth peer name eth0 netns client
             addr add 198.18.0.1/24 dev up0; addr add 2001:db8::1/64 dev up0 nodad; link set up0 up",
        );
        ip(&["-n", "client"], "link set lo up; addr add 198.18.0.9/24 dev eth0; addr add 2001:db8::9/64 dev eth0 nodad; link set eth0 up");
        Self { responders: Vec::new() }
    }

    pub fn client() -> PathBuf {
        "/run/netns/client".into()
    }

    pub fn config() -> Config {
        Config { run_dir: "/run/skep".into(), instance: "/run/skep".into(), lb_driver: LbDriver::Auto }
    }

    pub fn netlb() -> Netlb {
        Netlb::start_with(Self::config(), Oversight::OnDemand).unwrap()
    }

    /// One that looks after the network by itself.
    pub fn watchful_netlb() -> Netlb {
        Netlb::start(Self::config()).unwrap()
    }

    /// A program in a task's namespace that tells who it is and whom it saw, on TCP and UDP port 80.
    pub fn respond(&mut self, netns: &Path, name: &str) {
        let mut child = Command::new("nsenter")
            .arg(format!("--net={}", netns.display()))
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "responder", "--nocapture"])
            .env(RESPONDER, name)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = child.stdout.take().unwrap();
        let mut heard = String::new();
        while !heard.contains("ready") {
            let mut byte = [0];
            assert_eq!(out.read(&mut byte).unwrap(), 1, "the responder ended: {heard}");
            heard.push(byte[0] as char);
        }
        // Kept open: after a minute the test harness says that it has been running for long, and ends if nobody can hear it.
        child.stdout = Some(out);
        self.responders.push(child);
    }

    /// Stops the one that was started last.
    pub fn stop_last_responder(&mut self) {
        let mut child = self.responders.pop().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn stop_responders(&mut self) {
        for mut child in self.responders.drain(..) {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop_responders();
    }
}

/// The body of the test named `responder`: does nothing unless asked to.
pub fn responder() {
    let Ok(name) = std::env::var(RESPONDER) else { return };
    let tcp = TcpListener::bind("[::]:80").unwrap();
    let udp = UdpSocket::bind("[::]:80").unwrap();
    println!("ready");
    serve(&name, tcp, udp);
}

/// Tells who it is and whom it saw, as long as the process lives.
pub fn serve(name: &str, tcp: TcpListener, udp: UdpSocket) {
    let udp_name = name.to_owned();
    std::thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok((_, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(format!("{udp_name} saw {}", from.ip().to_canonical()).as_bytes(), from);
        }
    });
    for stream in tcp.incoming() {
        let Ok(mut stream) = stream else { continue };
        let name = name.to_owned();
        std::thread::spawn(move || {
            let from = stream.peer_addr().unwrap().ip().to_canonical();
            let _ = stream.write_all(format!("{name} saw {from}\n").as_bytes());
            let mut rest = [0; 10];
            // A second line for those who keep the connection: an echo.
            if let Ok(length @ 1..) = stream.read(&mut rest) {
                let _ = stream.write_all(&rest[..length]);
            }
        });
    }
}

/// Runs `work` in that namespace.
pub fn within<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let enter = || {
            setns(std::fs::File::open(netns).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        scope.spawn(enter).join().unwrap()
    })
}

/// The whole of the test `scenario`, which is none but what [`killed_at`] kills.
pub fn scenario(steps: impl Future<Output = ()>) {
    if std::env::var(SCENARIO).is_ok() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(steps);
    }
}

/// Runs the test `scenario` of this program until it is killed at that visit of the fail-point. `false` if it came to its end, which it
/// may only for want of another visit than the first.
pub fn killed_at(point: &str, visit: u32) -> bool {
    let ended = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "scenario", "--nocapture"])
        .env(SCENARIO, "1")
        .env("SKEP_FAILPOINT", format!("{point}:{visit}"))
        .output()
        .unwrap();
    let heard = || format!("{}{}", String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    let signal = ended.status.signal();
    if visit > 1 && signal.is_none() {
        assert!(ended.status.success(), "{point}: {}", heard());
        return false;
    }
    assert_eq!(signal, Some(9), "{point} lies on the path: {}", heard());
    true
}

pub fn connect(to: &str, port: u16) -> Result<TcpStream, String> {
    let address = SocketAddr::new(to.parse().unwrap(), port);
    let stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(|error| format!("{address}: {error}"))?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Ok(stream)
}

/// Whether a TCP port takes a connection within half a second.
pub fn answers_soon(to: &str, port: u16) -> bool {
    let address = SocketAddr::new(to.parse().unwrap(), port);
    TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok()
}

/// A call with a time limit that a machine which was stopped and goes on interrupts is made again.
pub fn patiently<T>(mut call: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// The line a TCP port answers with.
pub fn tcp(to: &str, port: u16) -> Result<String, String> {
    let mut stream = connect(to, port)?;
    let mut buffer = [0; 200];
    let length = patiently(|| stream.read(&mut buffer)).map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&buffer[..length]).trim().to_owned())
}

/// What a UDP port answers with. It is asked again every few seconds: a starved machine loses datagrams while it looks for a neighbour.
pub fn udp(to: &str, port: u16) -> Result<String, String> {
    let to: IpAddr = to.parse().unwrap();
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
    socket.set_read_timeout(Some(PATIENCE / 12)).unwrap();
    let mut buffer = [0; 200];
    let start = Instant::now();
    loop {
        socket.send_to(b"hello", (to, port)).map_err(|error| error.to_string())?;
        match patiently(|| socket.recv(&mut buffer)) {
            Ok(length) => return Ok(String::from_utf8_lossy(&buffer[..length]).into_owned()),
            Err(error) if error.kind() != ErrorKind::WouldBlock || start.elapsed() >= PATIENCE => return Err(error.to_string()),
            Err(_) => {}
        }
    }
}

pub fn network(number: u8, ingress: bool) -> Network {
    let subnet = |range: String, gateway: String| Subnet { range: range.parse().unwrap(), gateway: gateway.parse().unwrap() };
    Network {
        id: NetworkId::for_test(u64::from(number)),
        name: format!("net{number}"),
        vni: 4096 + u32::from(number),
        subnets: vec![
            subnet(format!("10.0.{number}.0/24"), format!("10.0.{number}.1")),
            subnet(format!("fd00:0:0:{number}::/64"), format!("fd00:0:0:{number}::1")),
        ],
        mtu: 1450,
        internal: false,
        ingress,
    }
}

pub fn attach(network: &Network, last: u8) -> Attachment {
    let number = network.vni - 4096;
    let addresses = [format!("10.0.{number}.{last}/24"), format!("fd00:0:0:{number}::{last:x}/64")];
    Attachment { network: network.clone(), addresses: addresses.map(|text| text.parse().unwrap()).to_vec(), mac: None, link: None }
}

pub fn task(number: u8, attachments: Vec<Attachment>) -> TaskNetwork {
    TaskNetwork { task: TaskId::for_test(u64::from(number)), attachments, lans: vec![], foreign: None }
}

/// Both addresses of a task on its first network, with a port.
pub fn backends(tasks: &[TaskNetwork], port: u16) -> Vec<Backend> {
    let addresses = tasks.iter().flat_map(|task| &task.attachments[0].addresses);
    addresses.map(|address| Backend { address: address.addr(), port }).collect()
}

pub fn ingress_port(protocol: Protocol, port: u16, tasks: &[TaskNetwork]) -> PublishedPort {
    PublishedPort::new(protocol, port, PublishMode::Ingress { backends: backends(tasks, 80) })
}

pub fn wanted(networks: &[Network], tasks: &[TaskNetwork], published: Vec<PublishedPort>) -> Wanted {
    let on = |network: &Network| WantedNetwork {
        network: network.clone(),
        overlay: None,
        endpoints: tasks
            .iter()
            .flat_map(|task| task.attachments.iter().map(move |attachment| (task, attachment)))
            .filter(|(_, attachment)| attachment.network == *network)
            .map(|(task, attachment)| Endpoint {
                task: task.task.clone(),
                addresses: attachment.addresses.iter().map(|address| address.addr()).collect(),
                location: Location::Local,
            })
            .collect(),
        vips: vec![],
    };
    Wanted {
        networks: networks.iter().map(on).collect(),
        published,
        tasks: tasks.iter().map(|task| task.task.clone()).collect::<BTreeSet<_>>(),
        encryption: None,
    }
}

/// Three tasks on ingress with responders, port 8080 for TCP and UDP.
pub async fn three_tasks(world: &mut World, netlb: &Netlb) -> (Network, Vec<TaskNetwork>) {
    let ingress = network(1, true);
    let tasks: Vec<TaskNetwork> = (1..=3).map(|n| task(n, vec![attach(&ingress, 10 + n)])).collect();
    for (index, task) in tasks.iter().enumerate() {
        let netns = netlb.ensure_task(task.clone()).await.unwrap();
        world.respond(&netns.path, &format!("T{}", index + 1));
    }
    let ports = vec![ingress_port(Protocol::Tcp, 8080, &tasks), ingress_port(Protocol::Udp, 8080, &tasks)];
    netlb.set_wanted(wanted(&[ingress.clone()], &tasks, ports));
    netlb.applied().await.unwrap();
    (ingress, tasks)
}

/// Asks until each of the three answered; every answer must name the client so.
pub fn all_three_answer(seen_as: &str, ask: impl Fn() -> Result<String, String>) {
    let mut answered = BTreeSet::new();
    for _ in 0..100 {
        let answer = ask().unwrap_or_else(|error| {
            // For whoever looks into a failure: what the host looks like now.
            if let Ok(look) = std::env::var("SKEP_NETLB_LOOK") {
                eprintln!("{}", sh(&look));
            }
            panic!("{error}")
        });
        let (name, seen) = answer.split_once(" saw ").unwrap_or_else(|| panic!("odd answer {answer:?}"));
        assert_eq!(seen, seen_as);
        answered.insert(name.to_owned());
        if answered.len() == 3 {
            return;
        }
    }
    panic!("only {answered:?} answered");
}

/// Waits for what the kernel does in the background.
pub fn eventually(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(120);
    while !holds() {
        assert!(Instant::now() < end, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// CPU time of this process and the kernel on its behalf, in milliseconds.
pub fn cpu_ms() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let of = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e3 + time.tv_usec() as f64 / 1e3;
    of(usage.user_time()) + of(usage.system_time())
}
