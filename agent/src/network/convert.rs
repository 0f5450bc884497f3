//! The cluster's networks and a task's place on them, in netlb's words. Pure.

use super::bridge::{self, both_families, bridge_network};
use crate::attachment::{Target, target};
use crate::error::NetworkError;
use ipnet::IpNet;
use skep_netlb::{Attachment, Lan, LanMode, Protocol, Subnet, TaskNetwork, encrypted_sizes};
use skep_types::{
    IpamConfig, Network as ClusterNetwork, NetworkAttachment, NetworkDriver, Protocol as WireProtocol, Task, VXLAN_IDS_OPTION,
};
use std::net::IpAddr;

/// Of a packet on the hosts' own network. A network whose hosts have less says so with its option `mtu`.
const ETHERNET: u32 = 1500;
/// RFC 7348 §5: Ethernet's header inside, VXLAN's, UDP's; and IPv4's, or IPv6's, 20 bytes longer.
const OVER_IPV4: u32 = 50;
const OVER_IPV6: u32 = 70;

pub fn bad(network: &ClusterNetwork, reason: impl Into<String>) -> NetworkError {
    NetworkError::BadNetwork { network: network.spec.annotations.name.clone(), reason: reason.into() }
}

/// The subnets of a network, with their gateways.
pub fn subnets(cluster: &ClusterNetwork) -> Result<Vec<Subnet>, NetworkError> {
    let one = |config: &IpamConfig| {
        let range: IpNet = config.subnet.parse().map_err(|_| bad(cluster, format!("subnet {:?} is not one", config.subnet)))?;
        let gateway = config.gateway.split('/').next().unwrap_or_default();
        let gateway = gateway.parse().map_err(|_| bad(cluster, format!("gateway {:?} is not an address", config.gateway)))?;
        Ok(Subnet { range, gateway })
    };
    cluster.ipam.iter().flat_map(|ipam| &ipam.configs).map(one).collect()
}

/// A place on the hosts' own network as netlb wants it.
fn lan(attachment: &NetworkAttachment) -> Result<Lan, NetworkError> {
    let cluster = &*attachment.network;
    let mode = match cluster.macvlan_mode() {
        "" | "bridge" => LanMode::Bridge,
        "private" => LanMode::Private,
        "vepa" => LanMode::Vepa,
        "passthru" => LanMode::Passthru,
        other => return Err(bad(cluster, format!("mode {other:?} of a macvlan is not known to this node"))),
    };
    Ok(Lan {
        network: cluster.id.clone(),
        name: cluster.spec.annotations.name.clone(),
        parent: cluster.parent().ok_or_else(|| bad(cluster, "it names no link of the hosts (option parent)"))?.to_owned(),
        mode,
        subnets: subnets(cluster)?,
        mtu: cluster.wanted_mtu(),
        internal: cluster.spec.internal,
        addresses: addresses(attachment)?,
    })
}

/// A network of the cluster as netlb wants it. `underlay_is_ipv6`: of the nodes it spans.
pub fn network(cluster: &ClusterNetwork, underlay_is_ipv6: bool) -> Result<skep_netlb::Network, NetworkError> {
    let driver = cluster.driver_state.as_ref().ok_or_else(|| bad(cluster, "it has not been allocated yet"))?;
    let vni = driver.options.get(VXLAN_IDS_OPTION).and_then(|list| list.split(',').next()).unwrap_or_default();
    let vni = vni.trim().parse().map_err(|_| bad(cluster, format!("it has no VXLAN id ({vni:?})")))?;
    let headers = match (spans(cluster), underlay_is_ipv6) {
        (false, _) => 0,
        (true, ipv6) if cluster.is_encrypted() => ETHERNET - encrypted_sizes(ETHERNET, ipv6).map_or(0, |sizes| sizes.network),
        (true, false) => OVER_IPV4,
        (true, true) => OVER_IPV6,
    };
    Ok(skep_netlb::Network {
        id: cluster.id.clone(),
        name: cluster.spec.annotations.name.clone(),
        vni,
        subnets: subnets(cluster)?,
        mtu: cluster.wanted_mtu().unwrap_or(ETHERNET - headers),
        internal: cluster.spec.internal,
        ingress: cluster.spec.ingress,
    })
}

fn addresses(attachment: &NetworkAttachment) -> Result<Vec<IpNet>, NetworkError> {
    let parse = |text: &String| text.parse().map_err(|_| bad(&attachment.network, format!("address {text:?} is not one with a prefix")));
    attachment.addresses.iter().map(parse).collect()
}

/// Without prefix; none of an attachment that is not understood.
pub fn bare(attachment: &NetworkAttachment) -> Vec<IpAddr> {
    addresses(attachment).unwrap_or_default().iter().map(IpNet::addr).collect()
}

/// The attachments to networks on which the cluster gives addresses and names.
pub fn joined(task: &Task) -> impl Iterator<Item = &NetworkAttachment> {
    task.networks.iter().filter(|attachment| attachment.network.has_addresses())
}

/// Those of them that have a sandbox on this node.
pub fn overlays(task: &Task) -> impl Iterator<Item = &NetworkAttachment> {
    joined(task).filter(|attachment| !is_lan(&attachment.network))
}

/// Whether it is the hosts' own network, where nothing of ours leads packets.
pub fn is_lan(cluster: &ClusterNetwork) -> bool {
    cluster.driver() == NetworkDriver::Macvlan
}

/// Whether managers tell of those on it on other nodes.
pub fn is_told_of(cluster: &ClusterNetwork) -> bool {
    spans(cluster) || is_lan(cluster)
}

/// Whether packets to tasks on other nodes travel between the nodes in packets of theirs.
pub fn spans(cluster: &ClusterNetwork) -> bool {
    cluster.driver() == NetworkDriver::Overlay
}

/// Whether the task shares the host's network.
#[must_use]
pub fn uses_host_network(task: &Task) -> bool {
    task.networks.iter().any(|attachment| attachment.network.driver() == NetworkDriver::Host)
}

/// The driver of the network on which nobody is: the container has none but its own loopback.
pub const NO_NETWORK: &str = "null";

/// Whether the container is to reach nobody.
pub fn uses_no_network(task: &Task) -> bool {
    task.networks.iter().any(|attachment| attachment.network.is_predefined() && attachment.network.driver_name() == NO_NETWORK)
}

/// Whether the task is on the node's own network: by itself, or because nothing else is said.
pub fn wants_bridge(task: &Task) -> bool {
    let is_named = task.networks.iter().any(|attachment| attachment.network.id.as_str() == bridge::ID);
    is_named || joined(task).next().is_none() && !uses_no_network(task)
}

/// Says of a container's place which number its link has. Never seen by managers.
const LINK: &str = "skep.link";

/// The place with a link of that number.
pub fn with_link(mut attachment: NetworkAttachment, number: u32) -> NetworkAttachment {
    attachment.driver_attachment_opts.insert(LINK.into(), number.to_string());
    attachment
}

fn link_of(attachment: &NetworkAttachment) -> Option<u32> {
    attachment.driver_attachment_opts.get(LINK)?.parse().ok()
}

/// Whether the task only stands for the place of a container of this node.
pub fn is_place(task: &Task) -> bool {
    matches!(target(task), Ok(Some(Target::Container(_))))
}

/// The network of one task.
///
/// # Errors
/// An attachment that is incomplete, by the network's name.
pub fn task_network(task: &Task, bridge: Option<IpNet>) -> Result<TaskNetwork, NetworkError> {
    let attach = |attachment: &NetworkAttachment| {
        let link = link_of(attachment);
        Ok(Attachment { network: network(&attachment.network, false)?, addresses: addresses(attachment)?, mac: None, link })
    };
    // The ingress network last: `eth0` and the default route are those of the user's own network.
    let mut list: Vec<&NetworkAttachment> = overlays(task).collect();
    list.sort_by_key(|attachment| attachment.network.spec.ingress);
    let mut attachments = list.into_iter().map(attach).collect::<Result<Vec<_>, NetworkError>>()?;
    let named = task.networks.iter().find(|attachment| attachment.network.id.as_str() == bridge::ID);
    attachments.extend(bridge.map(|address| Attachment {
        network: bridge_network(address),
        addresses: both_families(address),
        mac: None,
        link: named.and_then(link_of),
    }));
    // Where links have numbers, the way out is by the first of them.
    attachments.sort_by_key(|attachment| attachment.link);
    let lans = joined(task).filter(|attachment| is_lan(&attachment.network)).map(lan).collect::<Result<_, _>>()?;
    let foreign = target(task).map_err(|error| NetworkError::NotAttached(error.to_string()))?.and_then(|target| target.path());
    Ok(TaskNetwork { task: task.id.clone(), attachments, lans, foreign })
}

pub fn protocol(wire: WireProtocol) -> Protocol {
    match wire {
        WireProtocol::Tcp => Protocol::Tcp,
        WireProtocol::Udp => Protocol::Udp,
        WireProtocol::Sctp => Protocol::Sctp,
    }
}

/// 0 is none.
pub fn port(number: u32) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::fixtures::{attached, overlay, web};
    use crate::testing::task;
    use skep_types::{NetworkId, NetworkSpec};
    use std::sync::Arc;

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
    fn a_macvlan_is_a_link_on_one_of_the_host_s() {
        let mut cluster = (*overlay(3, "lan", false)).clone();
        let options = [("parent".to_owned(), "eth1".to_owned()), ("macvlan_mode".to_owned(), "private".to_owned())].into();
        cluster.spec.driver = Some(skep_types::Driver { name: "macvlan".into(), options });
        let mut task = web(1, true).task.as_ref().clone();
        task.networks.push(attached(Arc::new(cluster), "10.0.3.5/24"));
        let network = task_network(&task, None).unwrap();
        assert_eq!(network.attachments.len(), 2);
        let [lan] = network.lans.as_slice() else { panic!("{:?}", network.lans) };
        assert_eq!((lan.parent.as_str(), lan.mode, lan.mtu), ("eth1", LanMode::Private, None));
        assert_eq!((lan.subnets[0].gateway.to_string(), lan.addresses[0].to_string()), ("10.0.3.1".into(), "10.0.3.5/24".into()));
    }

    #[test]
    fn packets_leave_room_for_the_headers_round_them() {
        let mut cluster = (*overlay(2, "back", false)).clone();
        let sizes = |cluster: &ClusterNetwork| (network(cluster, false).unwrap().mtu, network(cluster, true).unwrap().mtu);
        assert_eq!(sizes(&cluster), (1450, 1430));
        let options = [(skep_types::ENCRYPTED_OPTION.to_owned(), String::new())].into();
        cluster.spec.driver = Some(skep_types::Driver { name: "overlay".into(), options });
        assert_eq!(sizes(&cluster), (1370, 1350));
        let options = [("com.docker.network.driver.mtu".to_owned(), "1300".to_owned())].into();
        cluster.spec.driver = Some(skep_types::Driver { name: "overlay".into(), options });
        assert_eq!(sizes(&cluster), (1300, 1300));
        cluster.spec.driver = Some(skep_types::Driver { name: "bridge".into(), ..Default::default() });
        assert_eq!(sizes(&cluster), (1500, 1500), "nothing goes round packets that stay on the host");
    }
}
