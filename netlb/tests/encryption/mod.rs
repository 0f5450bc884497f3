//! A cluster with an encrypted network, somebody who listens on the cable, and somebody who forges packets.
#![allow(dead_code, unused_imports, reason = "each test file uses a part of it")]

mod cable;
mod forged;
mod traffic;

pub use cable::Cable;
pub use forged::{Ear, Forged, Way};
pub use traffic::{Stream, throughput};

use crate::hosts::*;
use crate::support::*;
use skep_netlb::*;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The ports of the tunnels as `/proc/net/udp6` shows them.
pub const UDP_51820: &str = ":CA6C ";
pub const UDP_51821: &str = ":CA6D ";

/// What encrypts in these tests.
pub fn driver() -> Driver {
    match std::env::var("SKEP_WIREGUARD").as_deref() {
        Ok("kernel") => Driver::Kernel,
        Ok("userspace") => Driver::Userspace,
        Ok(other) => panic!("SKEP_WIREGUARD is {other}; say kernel or userspace"),
        // The virtual machine is there for the kernel's.
        Err(_) if std::env::var("SKEP_VM").is_ok() => Driver::Kernel,
        Err(_) => Driver::Auto,
    }
}

/// Runs `body` on a cable of its own, if this machine can encrypt.
pub fn encrypted_test<F: Future<Output = ()>>(name: &str, body: impl FnOnce(World) -> F) {
    overlay_test(name, async |world| match can_encrypt(driver()) {
        Ok(_) => body(world).await,
        Err(error) => {
            assert!(std::env::var("SKEP_REQUIRE_REAL").is_err(), "{error}");
            eprintln!("SKIPPED: {name}: {error}");
        }
    });
}

/// Hosts with a task each on one network, `T1` at 10.0.2.11 on the first, and what is told about their encryption.
pub struct Secured {
    pub hosts: Vec<Host>,
    pub cluster: Cluster,
    pub tasks: Vec<PathBuf>,
    pub network: Network,
    pub encrypted: bool,
    pub epochs: Vec<u32>,
    pub sending: u32,
    pub path_mtu: u32,
    pub driver: Driver,
    /// Nodes of which the others are told a key that is not theirs.
    pub forged: BTreeSet<u8>,
    /// Nodes of which the others are told nothing.
    pub strangers: BTreeSet<u8>,
}

impl Secured {
    /// So many hosts with an encrypted network.
    pub async fn spread(world: &mut World, count: u8, underlay: Underlay) -> Self {
        let mut secured = Self::of(hosts(count), count, underlay);
        secured.tasks = one_on_each(world, &mut secured.cluster, &secured.hosts).await;
        secured.tell().await;
        secured
    }

    /// Two, of which the first is there already, with a task that nobody answers in.
    pub async fn two_with_the_first(host: Host) -> Self {
        let mut secured = Self::of(vec![host], 2, Underlay::V4);
        for index in [1, 2] {
            let task = task(index, vec![attach(&secured.network, 10 + index)]);
            secured.cluster.tasks.push((task, index));
        }
        secured.cluster.ensure_tasks(&secured.hosts).await;
        secured
    }

    fn of(hosts: Vec<Host>, count: u8, underlay: Underlay) -> Self {
        let mtu = encrypted_sizes(1500, underlay == Underlay::V6).unwrap().network;
        let network = Network { mtu, ..network(2, false) };
        let mut cluster = Cluster::new(count, std::slice::from_ref(&network));
        cluster.underlay = underlay;
        let (forged, strangers) = (BTreeSet::new(), BTreeSet::new());
        let (tasks, epochs, sending, path_mtu) = (vec![], vec![4], 4, 1500);
        Self { hosts, cluster, tasks, network, encrypted: true, epochs, sending, path_mtu, driver: driver(), forged, strangers }
    }

    pub fn keyring(&self, index: u8) -> Keyring {
        Keyring::open(Path::new(&format!("/run/h{index}/wireguard"))).unwrap()
    }

    pub fn public(&self, index: u8, epoch: u32) -> PublicKey {
        self.keyring(index).key(KeyEpoch(epoch)).unwrap().public()
    }

    pub fn forge(&mut self, index: u8) {
        self.forged.insert(index);
    }

    fn port(epoch: u32) -> u16 {
        if epoch.is_multiple_of(2) { 51820 } else { 51821 }
    }

    fn peer(&self, index: u8, epoch: u32) -> TunnelPeer {
        let address = if self.cluster.underlay == Underlay::V4 { address(index) } else { address6(index) };
        let key = if self.forged.contains(&index) { PublicKey([0x42; 32]) } else { self.public(index, epoch) };
        TunnelPeer { node_index: u32::from(index), key, endpoint: SocketAddr::new(address.parse().unwrap(), Self::port(epoch)) }
    }

    /// What the manager tells that node.
    pub fn for_node(&self, index: u8) -> Wanted {
        let mut wanted = self.cluster.for_node(index);
        let tunnel = |epoch: &u32| {
            let others = self.cluster.nodes.iter().filter(|node| **node != index && !self.strangers.contains(*node));
            let peers = others.map(|node| self.peer(*node, *epoch)).collect();
            let key = self.keyring(index).key(KeyEpoch(*epoch)).unwrap();
            Tunnel { epoch: KeyEpoch(*epoch), key, port: Self::port(*epoch), peers }
        };
        let encryption = || Encryption {
            networks: [self.network.id.clone()].into(),
            node_index: u32::from(index),
            path_mtu: self.path_mtu,
            driver: self.driver,
            tunnels: self.epochs.iter().map(tunnel).collect(),
            sending: KeyEpoch(self.sending),
        };
        wanted.encryption = self.encrypted.then(encryption);
        wanted
    }

    /// Tells all hosts, and waits until they are so.
    pub async fn tell(&self) {
        let all: Vec<u8> = self.hosts.iter().map(|host| host.index).collect();
        self.tell_only(&all).await;
    }

    pub async fn tell_only(&self, indexes: &[u8]) {
        let told = || self.hosts.iter().filter(|host| indexes.contains(&host.index));
        for host in told() {
            host.netlb.set_wanted(self.for_node(host.index));
        }
        for host in told() {
            host.applied().await;
        }
    }

    /// A host whose daemon was gone.
    pub async fn start_again(&mut self, index: u8) {
        let host = Host::start(index);
        self.cluster.ensure_tasks(std::slice::from_ref(&host)).await;
        self.hosts.insert(usize::from(index) - 1, host);
    }

    fn addresses(to: usize) -> [String; 2] {
        let last = 11 + to;
        [format!("10.0.2.{last}"), format!("fd00:0:0:2::{last:x}")]
    }

    /// Every task every other, over TCP and UDP of both families.
    pub fn all_reach_each_other(&self) {
        for from in 0..self.tasks.len() {
            for to in (0..self.tasks.len()).filter(|to| *to != from) {
                self.reach(from, to);
            }
        }
    }

    /// One task another, however long it takes.
    pub fn reach(&self, from: usize, to: usize) {
        let netns = &self.tasks[from];
        for (address, seen) in Self::addresses(to).iter().zip(Self::addresses(from)) {
            let wanted = format!("T{} saw {seen}", to + 1);
            assert_eq!(within(netns, || ask(address, 80)).as_ref(), Ok(&wanted));
            assert_eq!(within(netns, || ask_udp(address, 80)).as_ref(), Ok(&wanted));
        }
    }

    /// Whether a task, counted from 0, gets a connection to another one soon.
    pub fn reaches(&self, from: usize, to: usize) -> bool {
        Self::addresses(to).iter().all(|address| within(&self.tasks[from], || answers_soon(address, 80)))
    }

    /// Takes everything away, and looks whether it is gone.
    pub async fn end(self, world: &mut World) {
        world.stop_responders();
        for host in &self.hosts {
            host.netlb.remove_everything().await.unwrap();
            let left = host.sh("ip -br link; nft list ruleset; ip -6 route; cat /proc/net/udp6");
            for trace in ["sw", "skep", "fd4e", UDP_51820, UDP_51821] {
                assert!(!left.contains(trace), "host {}: {trace} is left: {left}", host.index);
            }
        }
    }
}

impl Host {
    /// The first host, looking after its network by itself.
    pub async fn watchful_again(secured: &Secured) -> Self {
        secured.hosts[0].netlb.remove_everything().await.unwrap();
        let host = Self::watchful(1);
        // Its tasks are new, and nobody answers in them: that is not asked of it.
        secured.cluster.ensure_tasks(std::slice::from_ref(&host)).await;
        host.netlb.set_wanted(secured.for_node(1));
        host.applied().await;
        host
    }
}
