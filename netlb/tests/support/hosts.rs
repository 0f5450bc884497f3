//! Several hosts and a client on one cable: a network namespace each, joined by a bridge in the test's own.
#![allow(dead_code, reason = "each test file uses a part of it")]

use crate::support::*;
use skep_netlb::*;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// However busy the machine is.
pub const LONG: Duration = Duration::from_secs(120);

/// A host, and what runs its network.
pub struct Host {
    pub index: u8,
    pub netlb: Netlb,
}

/// The family of the addresses between which VXLAN packets go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Underlay {
    V4,
    V6,
}

/// Whether the kernel has what an overlay needs; says so loudly if not.
pub fn kernel_has_overlays(name: &str) -> bool {
    let probe = "link add probe0 type vxlan id 1 dstport 14789 nolearning\nlink set probe0 up\nnexthop add id 1 via fe80::1 dev probe0\nlink del probe0";
    match run_quietly("sh", &["-ec", &format!("echo '{probe}' | ip -batch -")]) {
        Ok(_) => true,
        Err(error) => {
            assert!(std::env::var("SKEP_REQUIRE_REAL").is_err(), "the kernel has no VXLAN, no IPv6 or no next-hop objects: {error}");
            eprintln!("SKIPPED: {name}: the kernel has no VXLAN, no IPv6 or no next-hop objects: {error}");
            false
        }
    }
}

/// Hosts 1 to `count`, on the client's cable.
pub fn hosts(count: u8) -> Vec<Host> {
    hosts_with(count, LbDriver::Auto)
}

/// The same where that balances.
pub fn hosts_with(count: u8, driver: LbDriver) -> Vec<Host> {
    let cable = (1..=count).map(|index| {
        format!("netns add h{index}; link add p{index} type veth peer name eth0 netns h{index}; link set p{index} master br0 up; ")
    });
    ip(
        &[],
        &format!("addr flush dev up0; link add br0 type bridge; link set up0 master br0; link set br0 up; {}", cable.collect::<String>()),
    );
    (1..=count)
        .map(|index| {
            ip(
                &["-n", &format!("h{index}")],
                &format!(
                    "link set lo up; addr add {0}/24 dev eth0; addr add {1}/64 dev eth0 nodad; link set eth0 up",
                    address(index),
                    address6(index)
                ),
            );
            Host::balanced_by(index, driver)
        })
        .collect()
}

impl Host {
    /// One that is there already, such as after a crash.
    pub fn start(index: u8) -> Self {
        Self::balanced_by(index, LbDriver::Auto)
    }

    pub fn balanced_by(index: u8, driver: LbDriver) -> Self {
        Self::with(index, Oversight::OnDemand, driver)
    }

    /// One that looks after its network by itself, all of it each second.
    pub fn watchful(index: u8) -> Self {
        Self::with(index, Oversight::Every(Duration::from_secs(1)), LbDriver::Auto)
    }

    fn with(index: u8, oversight: Oversight, lb_driver: LbDriver) -> Self {
        let run_dir = format!("/run/h{index}");
        let config = Config { run_dir: run_dir.clone().into(), instance: run_dir, lb_driver };
        let netlb = within(&netns(index), || Netlb::start_with(config, oversight).unwrap());
        Self { index, netlb }
    }

    /// The output of a line of shell on the host.
    pub fn sh(&self, line: &str) -> String {
        run_quietly("nsenter", &[&format!("--net=/run/netns/h{}", self.index), "sh", "-ec", line])
            .unwrap_or_else(|error| panic!("host {}: {line}: {error}", self.index))
    }

    pub fn netns(&self) -> PathBuf {
        netns(self.index)
    }

    /// Where the network's sandbox is mounted.
    pub fn sandbox(&self, network: &Network) -> String {
        format!("/run/h{}/netns/sbx-{}", self.index, network.id)
    }

    /// The output of a line of shell in the network's sandbox.
    pub fn in_sandbox(&self, network: &Network, line: &str) -> String {
        self.sh(&format!("nsenter --net={} sh -ec '{line}'", self.sandbox(network)))
    }

    pub async fn applied(&self) {
        self.netlb.applied().await.unwrap_or_else(|error| panic!("host {}: {error}", self.index));
    }

    pub async fn is_as_wanted(&self) {
        assert_eq!(self.netlb.audit().await.unwrap(), Audit::default(), "host {}", self.index);
    }
}

fn netns(index: u8) -> PathBuf {
    format!("/run/netns/h{index}").into()
}

pub fn address(index: u8) -> String {
    format!("198.18.0.{index}")
}

pub fn address6(index: u8) -> String {
    format!("2001:db8::{index}")
}

/// The tasks of a cluster, where they are, and what leads to them: what a manager knows.
#[derive(Clone)]
pub struct Cluster {
    pub underlay: Underlay,
    pub nodes: BTreeSet<u8>,
    pub networks: Vec<Network>,
    /// With the number of the node.
    pub tasks: Vec<(TaskNetwork, u8)>,
    /// On the first network.
    pub vips: Vec<Vip>,
    pub ports: Vec<PublishedPort>,
}

impl Cluster {
    pub fn new(nodes: u8, networks: &[Network]) -> Self {
        let nodes = (1..=nodes).collect();
        Self { underlay: Underlay::V4, nodes, networks: networks.to_vec(), tasks: vec![], vips: vec![], ports: vec![] }
    }

    fn node(&self, index: u8, network: &Network) -> Peer {
        let underlay = if self.underlay == Underlay::V4 { address(index) } else { address6(index) };
        let [.., high, low] = network.vni.to_be_bytes();
        Peer { node_index: u32::from(index), underlay: underlay.parse().unwrap(), mac: Mac([2, 0xab, high, low, 0, index]) }
    }

    /// What the manager tells that node.
    pub fn for_node(&self, index: u8) -> Wanted {
        let tasks: Vec<TaskNetwork> = self.tasks.iter().map(|(task, _)| task.clone()).collect();
        let mut all = wanted(&self.networks, &tasks, self.ports.clone());
        all.tasks = self.tasks.iter().filter(|(_, node)| *node == index).map(|(task, _)| task.task.clone()).collect();
        for of in &mut all.networks {
            let others = self.nodes.iter().filter(|node| **node != index);
            let peers = others.map(|node| self.node(*node, &of.network)).collect();
            of.overlay = Some(Overlay { this: self.node(index, &of.network), port: 4789, peers });
            for endpoint in &mut of.endpoints {
                let (_, node) = self.tasks.iter().find(|(task, _)| task.task == endpoint.task).unwrap();
                if *node != index {
                    endpoint.location = Location::Remote { node_index: u32::from(*node) };
                }
            }
        }
        all.networks[0].vips.clone_from(&self.vips);
        all
    }

    /// Tells all of these hosts, and waits until they are so.
    pub async fn tell(&self, hosts: &[Host]) {
        for host in hosts.iter().filter(|host| self.nodes.contains(&host.index)) {
            host.netlb.set_wanted(self.for_node(host.index));
        }
        for host in hosts.iter().filter(|host| self.nodes.contains(&host.index)) {
            host.applied().await;
        }
    }

    /// Gives these hosts the tasks that are placed on them, such as after their daemons were gone.
    pub async fn ensure_tasks(&self, hosts: &[Host]) {
        for host in hosts {
            for (task, _) in self.tasks.iter().filter(|(_, node)| *node == host.index) {
                host.netlb.ensure_task(task.clone()).await.unwrap();
            }
        }
    }

    /// Places a task and starts a responder in it that is called `T<number>`.
    pub async fn place(&mut self, world: &mut World, host: &Host, number: u8, attachments: Vec<Attachment>) -> PathBuf {
        let task = task(number, attachments);
        let path = host.netlb.ensure_task(task.clone()).await.unwrap().path;
        world.respond(&path, &format!("T{number}"));
        self.tasks.push((task, host.index));
        path
    }
}

/// A task on each of the hosts with those numbers: `T1` at 10.0.n.11 on the first, and so on.
pub async fn one_on_each(world: &mut World, cluster: &mut Cluster, hosts: &[Host]) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    let network = cluster.networks[0].clone();
    for host in hosts {
        let attachments = vec![attach(&network, 10 + host.index)];
        paths.push(cluster.place(world, host, host.index, attachments).await);
    }
    paths
}

/// So many hosts, a network that spans them, and a task on each.
pub async fn spread(world: &mut World, count: u8, network: Network) -> (Vec<Host>, Cluster, Vec<PathBuf>) {
    let (hosts, mut cluster) = (hosts(count), Cluster::new(count, &[network]));
    let tasks = one_on_each(world, &mut cluster, &hosts).await;
    (hosts, cluster, tasks)
}

/// Audits find nothing on any of them.
pub async fn all_are_as_wanted(hosts: &[Host]) {
    for host in hosts {
        host.is_as_wanted().await;
    }
}

/// The line a TCP port answers with. Waits long, and for one answer.
pub fn ask(to: &str, port: u16) -> Result<String, String> {
    let address = SocketAddr::new(to.parse().unwrap(), port);
    let mut stream = TcpStream::connect_timeout(&address, LONG).map_err(|error| format!("{address}: {error}"))?;
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut buffer = [0; 200];
    let length = patiently(|| stream.read(&mut buffer)).map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&buffer[..length]).trim().to_owned())
}

/// What a UDP port answers with; asks again as clients do, for UDP loses.
pub fn ask_udp(to: &str, port: u16) -> Result<String, String> {
    let to: IpAddr = to.parse().unwrap();
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
    ask_udp_from(&socket, to, port)
}

/// The same from a socket that is kept. Only an answer of whom was asked is one.
pub fn ask_udp_from(socket: &UdpSocket, to: IpAddr, port: u16) -> Result<String, String> {
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let end = Instant::now() + LONG;
    loop {
        socket.send_to(b"hello", (to, port)).map_err(|error| error.to_string())?;
        let mut buffer = [0; 200];
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) if from.ip() == to => return Ok(String::from_utf8_lossy(&buffer[..length]).into_owned()),
            Ok((_, from)) => return Err(format!("{from} answered, and {to} was asked")),
            Err(error) if Instant::now() > end => return Err(error.to_string()),
            Err(_) => {}
        }
    }
}

/// Asks until every one of `names` has answered; every answer must name the client so.
pub fn all_answer(names: &[&str], seen_as: &str, asked: impl Fn() -> Result<String, String>) {
    let mut answered = BTreeSet::new();
    for _ in 0..200 {
        let answer = asked().unwrap_or_else(|error| panic!("{error}"));
        let (name, seen) = answer.split_once(" saw ").unwrap_or_else(|| panic!("odd answer {answer:?}"));
        assert_eq!(seen, seen_as, "{answer}");
        assert!(names.contains(&name), "{answer}");
        answered.insert(name.to_owned());
        if answered.len() == names.len() {
            return;
        }
    }
    panic!("only {answered:?} answered");
}

/// A connection that is kept.
pub struct Kept(TcpStream);

impl Kept {
    /// To a responder, which must greet so.
    pub fn open(connect: impl Fn() -> Result<TcpStream, String>, greeting: &str) -> Self {
        let mut stream = connect().unwrap_or_else(|error| panic!("{error}"));
        stream.set_read_timeout(Some(LONG)).unwrap();
        let mut buffer = [0; 200];
        let length = patiently(|| stream.read(&mut buffer)).unwrap();
        assert_eq!(String::from_utf8_lossy(&buffer[..length]).trim(), greeting);
        Self(stream)
    }

    /// The responder says one more thing.
    pub fn still_answers(mut self) {
        self.say("still");
        self.hears("still");
    }

    pub fn say(&mut self, word: &str) {
        self.0.write_all(word.as_bytes()).unwrap();
    }

    pub fn hears(mut self, word: &str) {
        let mut buffer = vec![0; word.len()];
        self.0.read_exact(&mut buffer).unwrap();
        assert_eq!(buffer, word.as_bytes());
    }
}

impl Kept {
    /// What is said next is answered by a reset.
    pub fn ends_with_a_reset(mut self) {
        let mut buffer = [0; 5];
        let said = self.0.write_all(b"still");
        let error = said.and_then(|()| self.0.read_exact(&mut buffer)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
}

/// From a port that other connections may have, too.
pub fn connect_from(port: u16, to: &str, at: u16) -> Result<TcpStream, String> {
    use socket2::{Domain, Socket, Type};
    let to = SocketAddr::new(to.parse().unwrap(), at);
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let connect = || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        if to.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&SocketAddr::new(any, port).into())?;
        socket.connect_timeout(&to.into(), LONG)?;
        Ok::<_, std::io::Error>(socket.into())
    };
    connect().map_err(|error| format!("{to} from port {port}: {error}"))
}

/// Listens to what changes of the routes of a sandbox.
pub struct Monitor {
    child: Child,
    sandbox: String,
    out: String,
}

impl Monitor {
    pub fn start(host: &Host, network: &Network) -> Self {
        let (sandbox, out) = (host.sandbox(network), format!("/run/monitor{}", host.index));
        let file = std::fs::File::create(&out).unwrap();
        let mut command = Command::new("nsenter");
        command.args([&format!("--net={sandbox}"), "ip", "-o", "monitor", "route"]).stdout(file);
        let monitor = Self { child: command.spawn().unwrap(), sandbox, out };
        // It hears from when it hears this.
        eventually("the monitor hears", || {
            monitor.call("192.0.2.1");
            monitor.heard().contains("192.0.2.1")
        });
        monitor
    }

    /// A route that comes and goes.
    fn call(&self, address: &str) {
        sh(&format!("nsenter --net={} sh -ec 'ip route add unreachable {address}; ip route del unreachable {address}'", self.sandbox));
    }

    fn heard(&self) -> String {
        std::fs::read_to_string(&self.out).unwrap()
    }

    /// What was heard since the start, a line per event.
    pub fn until_now(self) -> String {
        self.call("192.0.2.2");
        eventually("the monitor heard all", || self.heard().matches("192.0.2.2").count() == 2);
        let heard = self.heard();
        heard.lines().filter(|line| !line.contains("192.0.2.")).map(|line| format!("{line}\n")).collect()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// [`eventually`] for what is asked of netlb.
pub async fn eventually_async(what: &str, holds: impl AsyncFn() -> bool) {
    let end = Instant::now() + LONG;
    while !holds().await {
        assert!(Instant::now() < end, "{what} did not come true");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Runs `body` on a cable of its own, if the kernel can.
pub fn overlay_test<F: Future<Output = ()>>(name: &str, body: impl FnOnce(World) -> F) {
    on_own_host(name, async |world| {
        if kernel_has_overlays(name) {
            body(world).await;
        }
    });
}

/// A virtual address of all tasks.
pub fn vip(address: &str, cluster: &Cluster) -> Vip {
    let address: IpAddr = address.parse().unwrap();
    let tasks: Vec<TaskNetwork> = cluster.tasks.iter().map(|(task, _)| task.clone()).collect();
    let backends = backends(&tasks, 80).into_iter().map(|backend| backend.address);
    Vip { address, backends: backends.filter(|backend| backend.is_ipv4() == address.is_ipv4()).collect() }
}

/// Publishes port 8080 of every host, TCP and UDP, to all tasks.
pub fn publish(cluster: &mut Cluster) {
    let tasks: Vec<TaskNetwork> = cluster.tasks.iter().map(|(task, _)| task.clone()).collect();
    cluster.ports = vec![ingress_port(Protocol::Tcp, 8080, &tasks), ingress_port(Protocol::Udp, 8080, &tasks)];
}

/// Publishes port 8080 of every host, TCP, to the second task.
pub fn publish_second(cluster: &mut Cluster) {
    cluster.ports = vec![ingress_port(Protocol::Tcp, 8080, &[cluster.tasks[1].0.clone()])];
}
