//! Tasks as the network sees them: from the set of tasks to what netlb is asked for ([`wanted`], pure), and the adapter.

use crate::error::{NetworkError, chain};
use crate::executor::{Network, Sandbox};
use async_trait::async_trait;
use ipnet::{IpNet, Ipv6Net};
use skep_netlb::{
    Attachment, Backend, Endpoint, Location, Netlb, NetlbError, Protocol, PublishMode, PublishedPort, Subnet, TaskNetwork, Vip, Wanted,
    WantedNetwork,
};
use skep_types::{
    Network as ClusterNetwork, NetworkAttachment, NetworkId, PortConfig, Protocol as WireProtocol, PublishMode as WireMode, Task, TaskId,
    VXLAN_IDS_OPTION,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a packet may measure on an overlay: 50 bytes less than Ethernet's 1500, for VXLAN's headers.
const MTU: u32 = 1450;
/// For rules to be in place; a slow kernel must not hold a stop up for ever.
const APPLY_LIMIT: Duration = Duration::from_secs(3);
/// Of the bridge; overlays have VXLAN ids from 4096 on, given by the allocator from below.
const BRIDGE_VNI: u32 = 0x00FF_FFFF;
/// Of the bridge, unless configured: beyond what dockerd takes first.
const BRIDGE_SUBNET: &str = "172.31.240.0/20";
/// Of the bridge in IPv6: the /64 behind the one that netlb numbers its links from, out of its unique local range.
const BRIDGE_RANGE_V6: Ipv6Addr = Ipv6Addr::new(0xfd73, 0x6b65, 0x7001, 0, 0, 0, 0, 0);

/// Where a port is looked for when the node may choose one (as dockerd's range).
const CHOICE: std::ops::RangeInclusive<u16> = 49153..=65535;

/// A task whose network exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub task: Arc<Task>,
    /// Connections may come to it.
    pub serving: bool,
    /// Its host-mode ports as they really are.
    pub host_ports: Vec<PortConfig>,
    /// Its address on this node's bridge, if it is on no network of the cluster.
    pub bridge: Option<IpNet>,
}

/// The network of tasks that are on none of the cluster's: a way out, and a way in for host-mode ports, on this node only.
fn bridge_network(address: IpNet) -> skep_netlb::Network {
    let range = address.trunc();
    let gateway =
        IpNet::new(range.hosts().next().unwrap_or_else(|| range.addr()), range.prefix_len()).expect("the prefix of the same family");
    let ranges = both_families(gateway).into_iter();
    skep_netlb::Network {
        id: "node-bridge".parse().expect("letters and a dash make an id"),
        name: "bridge".into(),
        vni: BRIDGE_VNI,
        subnets: ranges.map(|gateway| Subnet { range: gateway.trunc(), gateway: gateway.addr() }).collect(),
        mtu: 1500,
        internal: false,
        ingress: false,
    }
}

/// An address of the bridge, and the IPv6 address that goes with it: as unique, and nothing more to keep.
fn both_families(address: IpNet) -> Vec<IpNet> {
    let IpNet::V4(v4) = address else { return vec![address] };
    let v6 = Ipv6Addr::from(u128::from(BRIDGE_RANGE_V6) | u128::from(u32::from(v4.addr())));
    vec![address, IpNet::V6(Ipv6Net::new(v6, 64).expect("64 is a prefix length"))]
}

fn needs_bridge(task: &Task) -> bool {
    overlays(task).next().is_none()
}

fn bad(network: &ClusterNetwork, reason: impl Into<String>) -> NetworkError {
    NetworkError::BadNetwork { network: network.spec.annotations.name.clone(), reason: reason.into() }
}

/// Whether the task shares the host's network.
#[must_use]
pub fn uses_host_network(task: &Task) -> bool {
    task.networks.iter().any(|attachment| attachment.network.is_predefined() && attachment.network.spec.annotations.name == "host")
}

/// A network of the cluster as netlb wants it.
fn network(cluster: &ClusterNetwork) -> Result<skep_netlb::Network, NetworkError> {
    let driver = cluster.driver_state.as_ref().ok_or_else(|| bad(cluster, "it has not been allocated yet"))?;
    let vni = driver.options.get(VXLAN_IDS_OPTION).and_then(|list| list.split(',').next()).unwrap_or_default();
    let vni = vni.trim().parse().map_err(|_| bad(cluster, format!("it has no VXLAN id ({vni:?})")))?;
    let configs = cluster.ipam.iter().flat_map(|ipam| &ipam.configs);
    let subnets = configs.map(|config| {
        let range: IpNet = config.subnet.parse().map_err(|_| bad(cluster, format!("subnet {:?} is not one", config.subnet)))?;
        let gateway = config.gateway.split('/').next().unwrap_or_default();
        let gateway = gateway.parse().map_err(|_| bad(cluster, format!("gateway {:?} is not an address", config.gateway)))?;
        Ok(Subnet { range, gateway })
    });
    Ok(skep_netlb::Network {
        id: cluster.id.clone(),
        name: cluster.spec.annotations.name.clone(),
        vni,
        subnets: subnets.collect::<Result<_, NetworkError>>()?,
        mtu: MTU,
        internal: cluster.spec.internal,
        ingress: cluster.spec.ingress,
    })
}

fn addresses(attachment: &NetworkAttachment) -> Result<Vec<IpNet>, NetworkError> {
    let parse = |text: &String| text.parse().map_err(|_| bad(&attachment.network, format!("address {text:?} is not one with a prefix")));
    attachment.addresses.iter().map(parse).collect()
}

/// The attachments that are overlay networks.
fn overlays(task: &Task) -> impl Iterator<Item = &NetworkAttachment> {
    task.networks.iter().filter(|attachment| !attachment.network.is_predefined())
}

/// The network of one task.
///
/// # Errors
/// An attachment that is incomplete, by the network's name.
pub fn task_network(task: &Task, bridge: Option<IpNet>) -> Result<TaskNetwork, NetworkError> {
    let attach = |attachment: &NetworkAttachment| {
        Ok(Attachment { network: network(&attachment.network)?, addresses: addresses(attachment)?, mac: None })
    };
    // The ingress network last: `eth0` and the default route are those of the user's own network.
    let mut list: Vec<&NetworkAttachment> = overlays(task).collect();
    list.sort_by_key(|attachment| attachment.network.spec.ingress);
    let mut attachments = list.into_iter().map(attach).collect::<Result<Vec<_>, NetworkError>>()?;
    attachments.extend(bridge.map(|address| Attachment { network: bridge_network(address), addresses: both_families(address), mac: None }));
    Ok(TaskNetwork { task: task.id.clone(), attachments })
}

fn protocol(wire: WireProtocol) -> Protocol {
    match wire {
        WireProtocol::Tcp => Protocol::Tcp,
        WireProtocol::Udp => Protocol::Udp,
        WireProtocol::Sctp => Protocol::Sctp,
    }
}

fn port(number: u32) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}

fn bare(attachment: &NetworkAttachment) -> Vec<IpAddr> {
    addresses(attachment).unwrap_or_default().iter().map(IpNet::addr).collect()
}

/// Where a task's host-mode ports are reached: on the network through which this host gets to it.
fn entry(task: &Task, bridge: Option<IpNet>) -> Option<(NetworkId, Vec<IpAddr>)> {
    let ingress = overlays(task).find(|attachment| attachment.network.spec.ingress);
    let attachment = ingress.or_else(|| overlays(task).find(|attachment| !attachment.network.spec.internal));
    let overlay = attachment.map(|attachment| (attachment.network.id.clone(), bare(attachment)));
    let on_bridge = |address| both_families(address).iter().map(IpNet::addr).collect();
    overlay.or_else(|| bridge.map(|address| (bridge_network(address).id, on_bridge(address))))
}

/// What the whole node's network should be, given the tasks whose network exists.
#[must_use]
pub fn wanted(held: &BTreeMap<TaskId, Held>) -> Wanted {
    let mut networks: BTreeMap<NetworkId, WantedNetwork> = BTreeMap::new();
    let mut vips: BTreeMap<(NetworkId, IpAddr), BTreeSet<IpAddr>> = BTreeMap::new();
    let mut ingress: BTreeMap<(Protocol, u16), BTreeSet<Backend>> = BTreeMap::new();
    let mut published = Vec::new();
    for one in held.values() {
        let task = &one.task;
        for attachment in overlays(task) {
            // A network that is not understood was refused when the task was attached.
            let Ok(network) = network(&attachment.network) else { continue };
            let entry = networks.entry(network.id.clone()).or_insert_with(|| WantedNetwork {
                network,
                overlay: None,
                endpoints: Vec::new(),
                vips: Vec::new(),
            });
            let own = bare(attachment);
            for vip in task.endpoint.iter().flat_map(|endpoint| &endpoint.virtual_ips).filter(|vip| vip.network_id == attachment.network.id)
            {
                if let Some(address) = vip.addr.split('/').next().and_then(|text| text.parse::<IpAddr>().ok()) {
                    let backends = vips.entry((vip.network_id.clone(), address)).or_default();
                    if one.serving {
                        backends.extend(own.iter().filter(|backend| backend.is_ipv4() == address.is_ipv4()));
                    }
                }
            }
            entry.endpoints.push(Endpoint { task: task.id.clone(), addresses: own, location: Location::Local });
        }
        if let Some(address) = one.bridge {
            let network = bridge_network(address);
            let (id, task) = (network.id.clone(), task.id.clone());
            let entry =
                networks.entry(id).or_insert_with(|| WantedNetwork { network, overlay: None, endpoints: Vec::new(), vips: Vec::new() });
            let addresses = both_families(address).iter().map(IpNet::addr).collect();
            entry.endpoints.push(Endpoint { task, addresses, location: Location::Local });
        }
        let ports = task.endpoint.iter().flat_map(|endpoint| &endpoint.ports).filter(|p| p.publish_mode == WireMode::Ingress);
        let on_ingress = overlays(task).find(|attachment| attachment.network.spec.ingress);
        for config in ports {
            let (Some(published), Some(target)) = (port(config.published_port), port(config.target_port)) else { continue };
            let backends = ingress.entry((protocol(config.protocol), published)).or_default();
            if one.serving {
                backends.extend(on_ingress.iter().flat_map(|a| bare(a)).map(|address| Backend { address, port: target }));
            }
        }
        let Some((network, addresses)) = entry(task, one.bridge).filter(|_| one.serving) else { continue };
        for config in &one.host_ports {
            let (Some(number), Some(target)) = (port(config.published_port), port(config.target_port)) else { continue };
            let backends = addresses.iter().map(|address| Backend { address: *address, port: target }).collect();
            let mode = PublishMode::Host { network: network.clone(), backends, address: None };
            published.push(PublishedPort { protocol: protocol(config.protocol), port: number, mode });
        }
    }
    for ((network, address), backends) in vips {
        if let Some(entry) = networks.get_mut(&network) {
            entry.vips.push(Vip { address, backends: backends.into_iter().collect() });
        }
    }
    let shared = ingress.into_iter().map(|((protocol, port), backends)| PublishedPort {
        protocol,
        port,
        mode: PublishMode::Ingress { backends: backends.into_iter().collect() },
    });
    published.extend(shared);
    Wanted { networks: networks.into_values().collect(), published, tasks: held.keys().cloned().collect() }
}

/// The host-mode ports of a task, with those chosen that the node may choose.
///
/// # Errors
/// A port that another task or program of this node holds, by name.
fn host_ports(task: &Task, held: &BTreeMap<TaskId, Held>, taken: impl Fn(Protocol, u16) -> bool) -> Result<Vec<PortConfig>, NetworkError> {
    let holder = |config: &PortConfig, number: u32| {
        let same = |other: &PortConfig| other.protocol == config.protocol && other.published_port == number;
        let other = held.values().find(|other| other.task.id != task.id && other.host_ports.iter().any(same));
        other.map(|other| format!("task {}", other.task.name()))
    };
    let wish = task.endpoint.iter().flat_map(|endpoint| if endpoint.ports.is_empty() { &endpoint.spec.ports } else { &endpoint.ports });
    let mut ports: Vec<PortConfig> = wish.filter(|config| config.publish_mode == WireMode::Host).cloned().collect();
    if let (false, Some(internal)) = (ports.is_empty(), overlays(task).find(|attachment| attachment.network.spec.internal))
        && overlays(task).all(|attachment| attachment.network.spec.internal)
    {
        return Err(bad(&internal.network, "it is internal, so no port of this node can lead into it; add another network"));
    }
    for config in &mut ports {
        let kind = protocol(config.protocol);
        if config.published_port == 0 {
            let free = CHOICE.clone().find(|number| holder(config, u32::from(*number)).is_none() && !taken(kind, *number));
            let none = || NetworkError::PortTaken { port: 0, protocol: name(kind), holder: "others, as all are".into() };
            config.published_port = u32::from(free.ok_or_else(none)?);
            continue;
        }
        let number = config.published_port;
        let other = port(number).is_some_and(|number| taken(kind, number)).then(|| "another program".to_owned());
        if let Some(holder) = holder(config, number).or(other) {
            return Err(NetworkError::PortTaken { port: number, protocol: name(kind), holder });
        }
    }
    Ok(ports)
}

fn name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// The tasks' network on this node, by netlb. Cheap to clone.
#[derive(Clone)]
pub struct NetlbNetwork {
    netlb: Netlb,
    held: Arc<Mutex<BTreeMap<TaskId, Held>>>,
    bridge: Bridge,
}

/// Gives out addresses of the bridge; kept in files, one per task, as long as the task's network exists.
#[derive(Debug, Clone)]
struct Bridge {
    range: IpNet,
    dir: PathBuf,
    last: Arc<Mutex<usize>>,
}

impl Bridge {
    fn kept(&self, task: &TaskId) -> Option<IpNet> {
        std::fs::read_to_string(self.dir.join(task.as_str())).ok()?.parse().ok()
    }

    /// The task's address, a new one if it has none. Addresses go round, so that one that was freed rests for long.
    fn take(&self, task: &TaskId, held: &BTreeMap<TaskId, Held>) -> Result<IpNet, NetworkError> {
        let used = |address: IpAddr| held.values().any(|one| one.bridge.is_some_and(|other| other.addr() == address));
        if let Some(address) = self.kept(task).filter(|address| !used(address.addr())) {
            return Ok(address);
        }
        let mut last = self.last.lock().expect("no panic while held");
        // The first is the gateway's.
        let hosts = self.range.hosts().enumerate().skip(1);
        let free = hosts
            .clone()
            .find(|(at, address)| *at > *last && !used(*address))
            .or_else(|| hosts.clone().find(|(_, address)| !used(*address)));
        let full = || NetworkError::BadNetwork { network: "bridge".into(), reason: format!("all addresses of {} are taken", self.range) };
        let (at, address) = free.ok_or_else(full)?;
        *last = at;
        let address = IpNet::new(address, self.range.prefix_len()).expect("the prefix of the same family");
        let keep = || {
            std::fs::create_dir_all(&self.dir)?;
            std::fs::write(self.dir.join(task.as_str()), address.to_string())
        };
        keep().map_err(|error| NetworkError::Kernel { step: "keep the address of", reason: error.to_string() })?;
        Ok(address)
    }

    fn free(&self, task: &TaskId) {
        let _ = std::fs::remove_file(self.dir.join(task.as_str())); // most tasks have none
    }
}

fn kernel(step: &'static str) -> impl FnOnce(NetlbError) -> NetworkError {
    move |error| NetworkError::Kernel { step, reason: chain(&error) }
}

impl NetlbNetwork {
    #[must_use]
    pub fn new(netlb: Netlb) -> Self {
        let range = BRIDGE_SUBNET.parse().expect("a constant that is tested");
        Self::with_bridge(netlb, range)
    }

    /// With another range for tasks that are on no network of the cluster.
    #[must_use]
    pub fn with_bridge(netlb: Netlb, range: IpNet) -> Self {
        let dir = netlb.netns_dir().with_file_name("bridge");
        Self { netlb, held: Arc::default(), bridge: Bridge { range: range.trunc(), dir, last: Arc::default() } }
    }

    fn with<R>(&self, act: impl FnOnce(&mut BTreeMap<TaskId, Held>) -> R) -> R {
        act(&mut self.held.lock().expect("no panic while held"))
    }

    /// Says what is wanted now; within the lock, so that a later state is never overtaken by an earlier one.
    fn tell(&self, change: impl FnOnce(&mut BTreeMap<TaskId, Held>)) {
        self.with(|held| {
            change(held);
            self.netlb.set_wanted(wanted(held));
        });
    }

    async fn applied(&self, step: &'static str) -> Result<(), NetworkError> {
        match tokio::time::timeout(APPLY_LIMIT, self.netlb.applied()).await {
            Ok(applied) => applied.map_err(kernel(step)),
            Err(_) => Err(NetworkError::Kernel { step, reason: format!("not done within {} s", APPLY_LIMIT.as_secs()) }),
        }
    }
}

#[async_trait]
impl Network for NetlbNetwork {
    async fn attach(&self, task: &Task) -> Result<Sandbox, NetworkError> {
        if uses_host_network(task) {
            return Ok(Sandbox::default());
        }
        // Held from here on: two tasks that want one port cannot both find it free.
        let (network, bridge) = self.with(|held| {
            let host_ports = host_ports(task, held, skep_netlb::port_is_taken)?;
            held.remove(&task.id);
            let bridge = if needs_bridge(task) { Some(self.bridge.take(&task.id, held)?) } else { None };
            let network = task_network(task, bridge)?;
            held.insert(task.id.clone(), Held { task: Arc::new(task.clone()), serving: false, host_ports, bridge });
            Ok::<_, NetworkError>((network, bridge))
        })?;
        let every = network.attachments.iter().flat_map(|attachment| &attachment.addresses).map(IpNet::addr);
        // The task's name does not lead to the bridge's IPv6, which a host may not have.
        let addresses = every.filter(|address| bridge.is_none_or(|bridge| *address == bridge.addr())).collect();
        skep_failpoint::failpoint!("agent.network.held");
        let made = self.netlb.ensure_task(network).await.map_err(kernel("make"))?;
        Ok(Sandbox { namespace: Some(made.path), addresses, nameservers: Vec::new() })
    }

    async fn serve(&self, task: &Task) -> Result<Vec<PortConfig>, NetworkError> {
        let mut ports = Vec::new();
        self.tell(|held| {
            if let Some(one) = held.get_mut(&task.id) {
                one.serving = true;
                one.task = Arc::new(task.clone());
                ports.clone_from(&one.host_ports);
            }
        });
        self.applied("open").await?;
        Ok(ports)
    }

    async fn withdraw(&self, task: &TaskId) {
        let mut served = false;
        self.with(|held| {
            if let Some(one) = held.get_mut(task) {
                served = std::mem::replace(&mut one.serving, false);
                // A replacement may take its ports now.
                one.host_ports.clear();
                if served {
                    self.netlb.set_wanted(wanted(held));
                }
            }
        });
        if served && let Err(error) = self.applied("close").await {
            tracing::warn!(task = %task, error = %chain(&error), "connections may still come to a task that is being stopped");
        }
    }

    async fn detach(&self, task: &TaskId) -> Result<(), NetworkError> {
        self.netlb.remove_task(task.clone()).await.map_err(kernel("remove"))?;
        skep_failpoint::failpoint!("agent.network.removed");
        self.bridge.free(task);
        let was = self.with(|held| held.remove(task).is_some());
        if was {
            self.tell(|_| {});
        }
        Ok(())
    }

    async fn recover(&self, tasks: &[(Task, bool)]) -> Result<(), NetworkError> {
        let mut failed = Ok(());
        for (task, running) in tasks.iter().filter(|(task, _)| !uses_host_network(task)) {
            let host_ports = self.with(|held| host_ports(task, held, |_, _| false)).unwrap_or_default();
            // Ports that the node had chosen are told in the task's status.
            let chosen = &task.status.ports;
            let host_ports = if chosen.is_empty() { host_ports } else { chosen.clone() };
            if *running {
                let bridge = self.bridge.kept(&task.id).filter(|_| needs_bridge(task));
                let ensured = match task_network(task, bridge) {
                    Ok(network) => self.netlb.ensure_task(network).await.map(drop).map_err(kernel("find")),
                    Err(error) => Err(error),
                };
                failed = failed.and(ensured);
                self.with(|held| held.insert(task.id.clone(), Held { task: Arc::new(task.clone()), serving: true, host_ports, bridge }));
            }
        }
        self.tell(|_| {});
        failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::task;
    use skep_types::{Driver, Endpoint as TaskEndpoint, IpamConfig, IpamOptions, NetworkSpec, VirtualIp};

    fn overlay(number: u64, name: &str, ingress: bool) -> Arc<ClusterNetwork> {
        let mut network = ClusterNetwork::new(NetworkId::for_test(number), NetworkSpec { ingress, ..NetworkSpec::default() });
        network.spec.annotations.name = name.into();
        let options = [(VXLAN_IDS_OPTION.to_owned(), format!("{}", 4095 + number))].into();
        network.driver_state = Some(Driver { name: "overlay".into(), options });
        let config = IpamConfig { subnet: format!("10.0.{number}.0/24"), gateway: format!("10.0.{number}.1"), ..IpamConfig::default() };
        network.ipam = Some(IpamOptions { configs: vec![config], ..IpamOptions::default() });
        Arc::new(network)
    }

    fn attached(network: Arc<ClusterNetwork>, address: &str) -> NetworkAttachment {
        NetworkAttachment { network, addresses: vec![address.into()], aliases: Vec::new(), driver_attachment_opts: Default::default() }
    }

    fn published(target: u32, published: u32, mode: WireMode) -> PortConfig {
        PortConfig { target_port: target, published_port: published, publish_mode: mode, ..PortConfig::default() }
    }

    fn web(number: u64, serving: bool) -> Held {
        let mut task = task(number, "web");
        task.networks = vec![
            attached(overlay(1, "ingress", true), &format!("10.0.1.{}/24", 10 + number)),
            attached(overlay(2, "back", false), &format!("10.0.2.{}/24", 10 + number)),
        ];
        let vip = VirtualIp { network_id: NetworkId::for_test(2), addr: "10.0.2.2/24".into() };
        task.endpoint =
            Some(TaskEndpoint { ports: vec![published(80, 8080, WireMode::Ingress)], virtual_ips: vec![vip], ..TaskEndpoint::default() });
        Held { task: Arc::new(task), serving, host_ports: Vec::new(), bridge: None }
    }

    fn table(list: Vec<Held>) -> BTreeMap<TaskId, Held> {
        list.into_iter().map(|held| (held.task.id.clone(), held)).collect()
    }

    #[test]
    fn only_serving_tasks_are_behind_ports_and_virtual_addresses() {
        let wanted = wanted(&table(vec![web(1, true), web(2, false), web(3, true)]));
        let backend = |text: &str| Backend { address: text.parse().unwrap(), port: 80 };
        let mode = PublishMode::Ingress { backends: vec![backend("10.0.1.11"), backend("10.0.1.13")] };
        assert_eq!(wanted.published, [PublishedPort { protocol: Protocol::Tcp, port: 8080, mode }]);
        let back = wanted.networks.iter().find(|network| network.network.name == "back").unwrap();
        assert_eq!(
            back.vips,
            [Vip { address: "10.0.2.2".parse().unwrap(), backends: vec!["10.0.2.11".parse().unwrap(), "10.0.2.13".parse().unwrap()] }]
        );
        assert_eq!(back.endpoints.len(), 3);
        assert_eq!((back.network.vni, wanted.tasks.len()), (4097, 3));
    }

    #[test]
    fn the_user_s_network_comes_before_ingress() {
        let network = task_network(&web(1, true).task, None).unwrap();
        assert_eq!(network.attachments.iter().map(|a| a.network.name.as_str()).collect::<Vec<_>>(), ["back", "ingress"]);
    }

    #[test]
    fn an_unallocated_network_is_refused_by_name() {
        let mut task = task(1, "web");
        let network = ClusterNetwork::new(NetworkId::for_test(5), NetworkSpec::default());
        task.networks = vec![attached(Arc::new(network), "10.0.1.5/24")];
        assert!(task_network(&task, None).unwrap_err().to_string().contains("it has not been allocated yet"));
    }

    #[test]
    fn a_task_on_no_network_is_on_the_bridge_with_its_host_ports() {
        let address: IpNet = "172.31.240.5/20".parse().unwrap();
        let task = task(1, "web");
        assert!(needs_bridge(&task));
        let network = task_network(&task, Some(address)).unwrap();
        assert_eq!(network.attachments[0].network.subnets[0].gateway, "172.31.240.1".parse::<IpAddr>().unwrap());
        let held =
            Held { task: Arc::new(task), serving: true, host_ports: vec![published(80, 9000, WireMode::Host)], bridge: Some(address) };
        let wanted = wanted(&table(vec![held]));
        assert_eq!(wanted.networks[0].network.name, "bridge");
        let PublishMode::Host { backends, .. } = &wanted.published[0].mode else { panic!("{:?}", wanted.published) };
        let backends: Vec<String> = backends.iter().map(|backend| backend.address.to_string()).collect();
        assert_eq!(backends, ["172.31.240.5", "fd73:6b65:7001::ac1f:f005"], "both families");
        assert_eq!(wanted.networks[0].endpoints[0].addresses.len(), 2);
        let gateways: Vec<String> = network.attachments[0].network.subnets.iter().map(|subnet| subnet.gateway.to_string()).collect();
        assert_eq!(gateways, ["172.31.240.1", "fd73:6b65:7001::ac1f:f001"]);
    }

    #[test]
    fn addresses_of_the_bridge_go_round_and_are_kept_per_task() {
        let dir = tempfile::tempdir().unwrap();
        let bridge = Bridge { range: "10.9.0.0/29".parse().unwrap(), dir: dir.path().join("b"), last: Arc::default() };
        let held = BTreeMap::new();
        let take = |number| bridge.take(&TaskId::for_test(number), &held).unwrap().to_string();
        assert_eq!((take(1), take(2), take(1)), ("10.9.0.2/29".into(), "10.9.0.3/29".into(), "10.9.0.2/29".into()));
        bridge.free(&TaskId::for_test(1));
        assert_eq!(take(1), "10.9.0.4/29");
    }

    #[test]
    fn a_host_port_into_an_internal_network_is_refused() {
        let mut network = (*overlay(3, "closed", false)).clone();
        network.spec.internal = true;
        let mut task = task(1, "web");
        task.networks = vec![attached(Arc::new(network), "10.0.3.5/24")];
        task.endpoint = Some(TaskEndpoint { ports: vec![published(80, 9000, WireMode::Host)], ..TaskEndpoint::default() });
        let error = host_ports(&task, &table(vec![]), |_, _| false).unwrap_err();
        assert!(error.to_string().starts_with("network closed cannot be joined: it is internal"), "{error}");
    }

    #[test]
    fn a_taken_host_port_names_its_holder_and_zero_is_chosen() {
        let mut first = web(1, true);
        first.host_ports = vec![published(80, 9000, WireMode::Host)];
        let held = table(vec![first]);
        let mut second = task(2, "web");
        let wish = |number| Some(TaskEndpoint { ports: vec![published(80, number, WireMode::Host)], ..TaskEndpoint::default() });
        second.endpoint = wish(9000);
        let error = host_ports(&second, &held, |_, _| false).unwrap_err();
        assert!(error.to_string().starts_with("port 9000/tcp of this node is already taken by task web.1."), "{error}");
        let error = host_ports(&second, &table(vec![]), |_, _| true).unwrap_err();
        assert_eq!(error.to_string(), "port 9000/tcp of this node is already taken by another program");
        second.endpoint = wish(0);
        assert_eq!(host_ports(&second, &held, |_, port| port < 50000).unwrap()[0].published_port, 50000);
    }
}
