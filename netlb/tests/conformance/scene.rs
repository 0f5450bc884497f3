//! Two hosts, tasks on both, and what leads to them.

use crate::hosts::*;
use crate::support::*;
use skep_netlb::*;
use skep_types::TaskId;
use std::collections::BTreeMap;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::Mutex;

/// Runs one check of the list.
pub fn run<F: Future<Output = ()>>(driver: LbDriver, name: &str, check: impl FnOnce(Scene) -> F) {
    let name = format!("{driver}::{name}");
    if driver == LbDriver::Ipvs && !kernel_has_ipvs() {
        assert!(std::env::var("SKEP_VM").is_err(), "the virtual machine's kernel has no IPVS; see testing/vm/modules");
        eprintln!("SKIPPED: {name}: the kernel has no IPVS; make vm runs it");
        return;
    }
    overlay_test(&name, async |world| check(Scene::new(driver, world)).await);
}

/// By a daemon that asks for it: the kernel loads the module then.
pub fn kernel_has_ipvs() -> bool {
    let run_dir = std::env::temp_dir().join(format!("skep-has-ipvs-{}", std::process::id()));
    let config = Config { run_dir: run_dir.clone(), instance: "probe".into(), lb_driver: LbDriver::Ipvs };
    let started = Netlb::start_with(config, Oversight::OnDemand);
    let _ = std::fs::remove_dir_all(run_dir);
    let Err(error @ NetlbError::NoIpvs(_)) = started else {
        return true; // or it is not root, and nothing else runs either
    };
    assert!(error.to_string().contains("--lb-driver nftables"), "it says what to do");
    false
}

/// What a check starts with: two hosts, nothing on them.
pub struct Scene {
    pub driver: LbDriver,
    /// Its end is that of the client.
    _world: World,
    pub hosts: Vec<Host>,
    pub cluster: Cluster,
    /// `T1` and `T3` are on the first host, `T2` is on the second.
    pub tasks: Vec<PathBuf>,
    /// What each host was told last.
    told: Mutex<BTreeMap<u8, Wanted>>,
}

/// The virtual addresses, with what a client at `.99` and the gateway are called in that family.
pub const FAMILIES: [(&str, &str, &str); 2] =
    [("10.0.2.100", "10.0.2.99", "10.0.2.1"), ("fd00:0:0:2::100", "fd00:0:0:2::63", "fd00:0:0:2::1")];

impl Scene {
    fn new(driver: LbDriver, world: World) -> Self {
        Self {
            driver,
            _world: world,
            hosts: hosts_with(2, driver),
            cluster: Cluster::new(2, &[network(2, false)]),
            tasks: Vec::new(),
            told: Mutex::default(),
        }
    }

    /// Starts the three tasks on `network`.
    pub async fn three_on(&mut self, network: Network) {
        self.cluster.networks = vec![network.clone()];
        for (number, host) in [(1, 0), (2, 1), (3, 0)] {
            let attachments = vec![attach(&network, 10 + number)];
            let path = self.place(host, number, attachments).await;
            self.tasks.push(path);
        }
    }

    /// Places a task and lets it answer, from this process: to start one takes its time where the processor is emulated.
    async fn place(&mut self, host: usize, number: u8, attachments: Vec<Attachment>) -> PathBuf {
        let task = task(number, attachments);
        let host = &self.hosts[host];
        let path = host.netlb.ensure_task(task.clone()).await.unwrap().path;
        let (tcp, udp) = within(&path, || (TcpListener::bind("[::]:80").unwrap(), UdpSocket::bind("[::]:80").unwrap()));
        std::thread::spawn(move || serve(&format!("T{number}"), tcp, udp));
        self.cluster.tasks.push((task, host.index));
        path
    }

    /// The three tasks on a network that has virtual addresses, and a client on the first host.
    pub async fn with_client(&mut self) -> PathBuf {
        self.three_on(network(2, false)).await;
        let attachments = vec![attach(&self.cluster.networks[0], 99)];
        self.place(0, 9, attachments).await
    }

    /// Virtual addresses of both families lead to the tasks of these numbers from now on.
    pub async fn lead_to(&mut self, numbers: &[u8]) {
        let of = |vip: &str| {
            let address: IpAddr = vip.parse().unwrap();
            let backends = self.addresses(numbers).filter(|backend| backend.is_ipv4() == address.is_ipv4()).collect();
            Vip { address, backends }
        };
        self.cluster.vips = FAMILIES.map(|(vip, ..)| of(vip)).to_vec();
        self.tell().await;
    }

    /// Port 8080 of every host, TCP and UDP, leads to the tasks of these numbers from now on.
    pub async fn publish_to(&mut self, numbers: &[u8]) {
        self.publish_as(numbers, |port| port).await;
    }

    /// The same, with whatever else is to be said of the port.
    pub async fn publish_as(&mut self, numbers: &[u8], how: impl Fn(PublishedPort) -> PublishedPort) {
        let backends: Vec<Backend> = self.addresses(numbers).map(|address| Backend { address, port: 80 }).collect();
        let port = |protocol| PublishedPort::new(protocol, 8080, PublishMode::Ingress { backends: backends.clone() });
        self.cluster.ports = vec![how(port(Protocol::Tcp)), how(port(Protocol::Udp))];
        self.tell().await;
    }

    /// Tells all hosts what differs from what they were told before, as a manager does, and waits until they are so.
    pub async fn tell(&self) {
        for host in &self.hosts {
            let wanted = self.cluster.for_node(host.index);
            let before = self.told.lock().unwrap().insert(host.index, wanted.clone());
            match before.and_then(|before| difference(&before, &wanted)) {
                Some(delta) => host.netlb.change(delta),
                None => host.netlb.set_wanted(wanted),
            };
        }
        for host in &self.hosts {
            host.applied().await;
        }
    }

    /// The task of that number has ended and everybody knows; what still talks to it is in this process, so its link goes by hand.
    pub async fn end(&mut self, number: u8) {
        let id = task(number, Vec::new()).task;
        let at = self.cluster.tasks.iter().position(|(task, _)| task.task == id).unwrap();
        let (_, node) = self.cluster.tasks.remove(at);
        sh(&format!("nsenter --net={} ip link del eth0", self.tasks[usize::from(number) - 1].display()));
        let host = self.hosts.iter().find(|host| host.index == node).unwrap();
        host.netlb.remove_task(id).await.unwrap();
        self.tell().await;
    }

    fn addresses(&self, numbers: &[u8]) -> impl Iterator<Item = IpAddr> {
        let chosen = numbers.iter().map(|number| &self.cluster.tasks[usize::from(*number) - 1].0);
        let tasks: Vec<TaskNetwork> = chosen.cloned().collect();
        backends(&tasks, 80).into_iter().map(|backend| backend.address)
    }

    /// A host's daemon that begins anew.
    pub fn start(&self, index: u8) -> Host {
        self.told.lock().unwrap().remove(&index);
        Host::balanced_by(index, self.driver)
    }

    /// A line of shell that shows what the driver has beside tables.
    pub fn shown_by(&self) -> &'static str {
        match self.driver {
            LbDriver::Ipvs => "cat /proc/net/ip_vs | tail -n +4",
            LbDriver::Nftables | LbDriver::Auto => "true",
        }
    }

    pub async fn all_are_as_wanted(&self) {
        all_are_as_wanted(&self.hosts).await;
    }

    /// What others do to a load balancer, as lines of shell for the sandbox.
    pub fn damages(&self) -> &'static [&'static str] {
        match self.driver {
            LbDriver::Ipvs => &[
                "nft flush ruleset",
                "nft flush map ip skep connections",
                "ip route flush table local proto 83",
                "ipvsadm -C",
                "ipvsadm -d -f 1342177280 -r 10.0.2.12",
                "ipvsadm -e -f 1342177281 -r 10.0.2.12 -m -w 0",
                "ipvsadm -a -f 1342177280 -r 10.0.2.77 -m",
                "ipvsadm -D -f 1342177280 -6",
                "ipvsadm -E -f 1342177280 -s sh",
            ],
            LbDriver::Nftables | LbDriver::Auto => &["nft flush ruleset", "nft flush map ip skep be", "nft flush chain ip6 skep enter"],
        }
    }
}

/// A client that keeps its port.
pub fn udp_client(netns: &std::path::Path, like: &str) -> UdpSocket {
    let any = if like.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
    within(netns, || UdpSocket::bind(any).unwrap())
}

/// The name of whom answers.
pub fn who(answer: Result<String, String>) -> String {
    let answer = answer.unwrap();
    answer.split(' ').next().unwrap().to_owned()
}

/// As a change; nothing if there are other networks than before.
fn difference(before: &Wanted, now: &Wanted) -> Option<Delta> {
    let spans = |wanted: &Wanted| wanted.networks.iter().map(|of| (of.network.clone(), of.overlay.clone())).collect::<Vec<_>>();
    if spans(before) != spans(now) || before.encryption != now.encryption {
        return None;
    }
    let mut delta = Delta::default();
    for (old, new) in before.networks.iter().zip(&now.networks) {
        let gone = old.endpoints.iter().map(|endpoint| (endpoint.task.clone(), None));
        let come = new.endpoints.iter().filter(|endpoint| !old.endpoints.contains(endpoint));
        let kept = |task: &TaskId| new.endpoints.iter().any(|endpoint| endpoint.task == *task);
        let endpoints =
            gone.filter(|(task, _)| !kept(task)).chain(come.map(|endpoint| (endpoint.task.clone(), Some(endpoint.clone())))).collect();
        let dropped = old.vips.iter().filter(|vip| !new.vips.iter().any(|other| other.address == vip.address));
        let told = new.vips.iter().filter(|vip| !old.vips.contains(vip));
        let vips = dropped.map(|vip| (vip.address, None)).chain(told.map(|vip| (vip.address, Some(vip.backends.clone())))).collect();
        delta.networks.insert(new.network.id.clone(), NetworkDelta::Members { endpoints, vips });
    }
    let ports = |wanted: &Wanted| {
        let mut by_number: BTreeMap<(Protocol, u16), Vec<PublishedPort>> = BTreeMap::new();
        wanted.published.iter().for_each(|port| by_number.entry((port.protocol, port.port)).or_default().push(port.clone()));
        by_number
    };
    let (old, mut new) = (ports(before), ports(now));
    for key in old.keys() {
        new.entry(*key).or_default();
    }
    delta.published = new.into_iter().filter(|(key, ports)| old.get(key) != Some(ports)).collect();
    let tasks = before.tasks.symmetric_difference(&now.tasks);
    delta.tasks = tasks.map(|task| (task.clone(), now.tasks.contains(task))).collect();
    Some(delta)
}
