//! Two hosts, tasks on both, and what leads to them.

use crate::hosts::*;
use crate::support::*;
use skep_netlb::*;
use std::net::{IpAddr, UdpSocket};
use std::path::PathBuf;

/// Who balances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    Nftables,
}

/// Runs one check of the list.
pub fn run<F: Future<Output = ()>>(driver: Driver, name: &str, check: impl FnOnce(Scene) -> F) {
    let module = format!("{driver:?}").to_lowercase();
    overlay_test(&format!("{module}::{name}"), async |world| check(Scene::new(driver, world)).await);
}

/// What a check starts with: two hosts, nothing on them.
pub struct Scene {
    pub driver: Driver,
    pub world: World,
    pub hosts: Vec<Host>,
    pub cluster: Cluster,
    /// `T1` and `T3` are on the first host, `T2` is on the second.
    pub tasks: Vec<PathBuf>,
}

/// The virtual addresses, with what a client at `.99` and the gateway are called in that family.
pub const FAMILIES: [(&str, &str, &str); 2] =
    [("10.0.2.100", "10.0.2.99", "10.0.2.1"), ("fd00:0:0:2::100", "fd00:0:0:2::63", "fd00:0:0:2::1")];

impl Scene {
    fn new(driver: Driver, world: World) -> Self {
        Self { driver, world, hosts: hosts(2), cluster: Cluster::new(2, &[network(2, false)]), tasks: Vec::new() }
    }

    /// Starts the three tasks on `network`.
    pub async fn three_on(&mut self, network: Network) {
        self.cluster.networks = vec![network.clone()];
        for (number, host) in [(1, 0), (2, 1), (3, 0)] {
            let attachments = vec![attach(&network, 10 + number)];
            let path = self.cluster.place(&mut self.world, &self.hosts[host], number, attachments).await;
            self.tasks.push(path);
        }
    }

    /// The three tasks on a network that has virtual addresses, and a client on the first host.
    pub async fn with_client(&mut self) -> PathBuf {
        self.three_on(network(2, false)).await;
        let attachments = vec![attach(&self.cluster.networks[0], 99)];
        self.cluster.place(&mut self.world, &self.hosts[0], 9, attachments).await
    }

    /// Virtual addresses of both families lead to the tasks of these numbers from now on.
    pub async fn lead_to(&mut self, numbers: &[u8]) {
        let of = |vip: &str| {
            let address: IpAddr = vip.parse().unwrap();
            let backends = self.addresses(numbers).filter(|backend| backend.is_ipv4() == address.is_ipv4()).collect();
            Vip { address, backends }
        };
        self.cluster.vips = FAMILIES.map(|(vip, ..)| of(vip)).to_vec();
        self.cluster.tell(&self.hosts).await;
    }

    /// Port 8080 of every host, TCP and UDP, leads to the tasks of these numbers from now on.
    pub async fn publish_to(&mut self, numbers: &[u8]) {
        let backends: Vec<Backend> = self.addresses(numbers).map(|address| Backend { address, port: 80 }).collect();
        let port = |protocol| PublishedPort { protocol, port: 8080, mode: PublishMode::Ingress { backends: backends.clone() } };
        self.cluster.ports = vec![port(Protocol::Tcp), port(Protocol::Udp)];
        self.cluster.tell(&self.hosts).await;
    }

    fn addresses(&self, numbers: &[u8]) -> impl Iterator<Item = IpAddr> {
        let chosen = numbers.iter().map(|number| &self.cluster.tasks[usize::from(*number) - 1].0);
        let tasks: Vec<TaskNetwork> = chosen.cloned().collect();
        backends(&tasks, 80).into_iter().map(|backend| backend.address)
    }

    /// A host's daemon that begins anew.
    pub fn start(&self, index: u8) -> Host {
        match self.driver {
            Driver::Nftables => Host::start(index),
        }
    }

    /// A line of shell that shows what the driver has beside tables.
    pub fn shown_by(&self) -> &'static str {
        match self.driver {
            Driver::Nftables => "true",
        }
    }

    pub async fn all_are_as_wanted(&self) {
        for host in &self.hosts {
            host.is_as_wanted().await;
        }
    }

    /// What others do to a load balancer, as lines of shell for the sandbox.
    pub fn damages(&self) -> &'static [&'static str] {
        match self.driver {
            Driver::Nftables => &["nft flush ruleset", "nft flush map ip skep be", "nft flush chain ip6 skep enter"],
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
