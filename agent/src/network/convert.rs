//! The cluster's networks and a task's place on them, in netlb's words. Pure.

use super::bridge::{both_families, bridge_network};
use crate::attachment::target;
use crate::error::NetworkError;
use ipnet::IpNet;
use skep_netlb::{Attachment, Protocol, Subnet, TaskNetwork, encrypted_sizes};
use skep_types::{Network as ClusterNetwork, NetworkAttachment, NetworkDriver, Protocol as WireProtocol, Task, VXLAN_IDS_OPTION};
use std::net::IpAddr;

/// Of a packet on the hosts' own network. A network whose hosts have less says so with its option `mtu`.
const ETHERNET: u32 = 1500;
/// RFC 7348 §5: Ethernet's header inside, VXLAN's, UDP's; and IPv4's, or IPv6's, 20 bytes longer.
const OVER_IPV4: u32 = 50;
const OVER_IPV6: u32 = 70;

pub fn bad(network: &ClusterNetwork, reason: impl Into<String>) -> NetworkError {
    NetworkError::BadNetwork { network: network.spec.annotations.name.clone(), reason: reason.into() }
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

/// The attachments to networks on which the cluster gives addresses.
pub fn overlays(task: &Task) -> impl Iterator<Item = &NetworkAttachment> {
    task.networks.iter().filter(|attachment| attachment.network.has_addresses())
}

/// Whether managers tell of those on it on other nodes: it spans them.
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

/// The network of one task.
///
/// # Errors
/// An attachment that is incomplete, by the network's name.
pub fn task_network(task: &Task, bridge: Option<IpNet>) -> Result<TaskNetwork, NetworkError> {
    let attach = |attachment: &NetworkAttachment| {
        Ok(Attachment { network: network(&attachment.network, false)?, addresses: addresses(attachment)?, mac: None })
    };
    // The ingress network last: `eth0` and the default route are those of the user's own network.
    let mut list: Vec<&NetworkAttachment> = overlays(task).collect();
    list.sort_by_key(|attachment| attachment.network.spec.ingress);
    let mut attachments = list.into_iter().map(attach).collect::<Result<Vec<_>, NetworkError>>()?;
    attachments.extend(bridge.map(|address| Attachment { network: bridge_network(address), addresses: both_families(address), mac: None }));
    let foreign = target(task).map_err(|error| NetworkError::NotAttached(error.to_string()))?.map(|target| target.path());
    Ok(TaskNetwork { task: task.id.clone(), attachments, foreign })
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
