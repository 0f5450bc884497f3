//! Subnets: where they come from and the addresses inside.

use super::ranges::{RangeSet, Serial};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use skep_types::Cluster;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Default pool and the size cut from it (wire-behaviour 16.1).
const DEFAULT_POOL: &str = "10.0.0.0/8";
const DEFAULT_SUBNET_SIZE: u8 = 24;
/// Where nobody named pools and the nodes' own networks leave nothing of the default one: the rest of RFC 1918.
const SPARE_POOLS: [&str; 2] = ["172.16.0.0/12", "192.168.0.0/16"];

pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn address(number: u128, like: &IpNet) -> IpAddr {
    match like {
        IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX))),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

fn bounds(net: &IpNet) -> (u128, u128) {
    (number(net.network()), number(net.broadcast()))
}

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// The address of a CIDR text or of a bare address.
pub(crate) fn address_of(text: &str) -> Option<IpAddr> {
    text.parse::<IpNet>().map(|net| net.addr()).or_else(|_| text.parse()).ok()
}

/// Why no subnet could be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    #[error("{0:?} is not a subnet; write an address and a prefix length, such as 10.20.0.0/24")]
    NotASubnet(String),
    #[error("subnet {0} overlaps with another network of the cluster; choose another one or leave it out")]
    Overlaps(IpNet),
    #[error("the address pools of the cluster are used up for subnets of /{0}; remove networks or give a subnet")]
    PoolsUsedUp(u8),
    #[error(
        "the address pools of the cluster have no room left for a subnet of /{prefix} beside the nodes' own networks, such as {near}; \
             remove networks or give a subnet"
    )]
    NodesInTheWay { prefix: u8, near: IpNet },
    #[error("{text:?} is not an address inside {subnet}")]
    NotInside { text: String, subnet: IpNet },
}

/// All subnets of the cluster.
#[derive(Debug, Default)]
pub(crate) struct Subnets {
    v4: RangeSet,
    v6: RangeSet,
}

impl Subnets {
    fn set(&mut self, net: &IpNet) -> &mut RangeSet {
        match net {
            IpNet::V4(_) => &mut self.v4,
            IpNet::V6(_) => &mut self.v6,
        }
    }

    pub fn insert(&mut self, net: &IpNet) {
        let (start, end) = bounds(net);
        self.set(net).insert_range(start, end);
    }

    pub fn remove(&mut self, net: &IpNet) {
        let (start, end) = bounds(net);
        self.set(net).remove_range(start, end);
    }

    pub fn claim(&mut self, net: IpNet) -> Result<IpNet, SubnetError> {
        let net = net.trunc();
        let (start, end) = bounds(&net);
        if self.set(&net).overlaps(start, end) {
            return Err(SubnetError::Overlaps(net));
        }
        self.insert(&net);
        Ok(net)
    }

    /// The first free subnet of the cluster's pools that is none of the nodes' own networks: hosts there could not be told from tasks.
    pub fn take_v4(&mut self, cluster: Option<&Cluster>, prefix: Option<u8>, nodes: &BTreeSet<IpNet>) -> Result<IpNet, SubnetError> {
        let size =
            cluster.map(|cluster| cluster.subnet_size).filter(|size| (1..=30).contains(size)).and_then(|size| u8::try_from(size).ok());
        let prefix = prefix.or(size).unwrap_or(DEFAULT_SUBNET_SIZE);
        let given: Vec<Ipv4Net> =
            cluster.map_or(&[][..], |cluster| &cluster.default_address_pool).iter().filter_map(|pool| pool.parse().ok()).collect();
        let default = || std::iter::once(DEFAULT_POOL).chain(SPARE_POOLS).map(|pool| pool.parse().expect("a subnet")).collect();
        let pools: Vec<Ipv4Net> = if given.is_empty() { default() } else { given };
        let mut used = self.v4.clone();
        for net in nodes.iter().filter(|net| matches!(net, IpNet::V4(_))) {
            let (start, end) = bounds(net);
            used.insert_range(start, end);
        }
        let free = |used: &RangeSet| pools.iter().find_map(|pool| free_within(used, &IpNet::V4(*pool), prefix));
        let net = free(&used).ok_or_else(|| match free(&self.v4) {
            None => SubnetError::PoolsUsedUp(prefix),
            Some(net) => {
                let near = nodes.iter().find(|own| own.contains(&net) || net.contains(*own));
                near.map_or(SubnetError::PoolsUsedUp(prefix), |near| SubnetError::NodesInTheWay { prefix, near: *near })
            }
        })?;
        self.insert(&net);
        Ok(net)
    }

    /// A /64 of the cluster's own part of fd00::/8. The part follows from the cluster id, so no random number is needed and
    /// clusters that are joined by a router hardly ever collide (RFC 4193 asks for 40 bits that look random).
    pub fn take_v6(&mut self, cluster: Option<&Cluster>) -> Result<IpNet, SubnetError> {
        let id = cluster.map_or("skep", |cluster| cluster.id.as_str());
        let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let prefix = (0xfd_u128 << 120) | (u128::from(hash >> 24) << 80);
        let pool = IpNet::V6(Ipv6Net::new(Ipv6Addr::from(prefix), 48).expect("48 is a prefix length").trunc());
        let net = free_within(&self.v6, &pool, 64).ok_or(SubnetError::PoolsUsedUp(64))?;
        self.insert(&net);
        Ok(net)
    }
}

fn free_within(used: &RangeSet, pool: &IpNet, prefix: u8) -> Option<IpNet> {
    let bits = if matches!(pool, IpNet::V4(_)) { 32 } else { 128 };
    if prefix < pool.prefix_len() || u32::from(prefix) > bits {
        return None;
    }
    let size = 1u128 << (bits - u32::from(prefix));
    let (mut start, last) = bounds(pool);
    while start.checked_add(size - 1)? <= last {
        if !used.overlaps(start, start + size - 1) {
            return IpNet::new(address(start, pool), prefix).ok();
        }
        // Behind whatever is in the way, aligned.
        let free = used.next_free(start)?.max(start + 1);
        start = free.div_ceil(size).checked_mul(size)?;
    }
    None
}

/// The addresses of one subnet.
#[derive(Debug)]
pub(crate) struct Addresses {
    pub net: IpNet,
    serial: Serial,
}

impl Addresses {
    /// All addresses of `net`, or of `range` inside it, but the gateway, the first and (IPv4) the last one.
    pub fn new(net: IpNet, range: Option<IpNet>, gateway: Option<IpAddr>) -> Self {
        let (first, last) = bounds(&net);
        let (from, to) = range.as_ref().map_or((first, last), bounds);
        let narrow = last - first < 2; // point-to-point subnets have no network or broadcast address
        let top = if matches!(net, IpNet::V4(_)) && !narrow { last - 1 } else { last };
        let bottom = if narrow { first } else { first + 1 };
        let mut serial = Serial::new(from.max(bottom), to.min(top));
        if let Some(gateway) = gateway {
            serial.claim(number(gateway));
        }
        Self { net, serial }
    }

    pub fn take(&mut self) -> Option<IpNet> {
        let address = address(self.serial.take()?, &self.net);
        IpNet::new(address, self.net.prefix_len()).ok()
    }

    pub fn claim(&mut self, address: IpAddr) -> bool {
        self.net.contains(&address) && self.serial.claim(number(address))
    }

    pub fn release(&mut self, address: IpAddr) -> bool {
        self.net.contains(&address) && self.serial.release(number(address))
    }

    pub fn cancel(&mut self, address: IpAddr) -> bool {
        self.net.contains(&address) && self.serial.cancel(number(address))
    }

    pub fn is_used(&self, address: IpAddr) -> bool {
        self.serial.is_used(number(address))
    }

    /// All addresses in use, the gateway among them.
    pub fn used(&self) -> impl Iterator<Item = IpAddr> {
        self.serial.used().map(|number| address(number, &self.net))
    }

    pub fn seek_end(&mut self) {
        self.serial.seek_end();
    }
}

/// The first address for hosts of a subnet, which its gateway gets.
pub(crate) fn default_gateway(net: &IpNet) -> IpAddr {
    let (first, last) = bounds(net);
    address(if last - first < 2 { first } else { first + 1 }, net)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a subnet")
    }

    #[test]
    fn subnets_are_cut_from_the_pool_in_order_around_those_in_use() {
        let mut subnets = Subnets::default();
        assert_eq!(subnets.take_v4(None, None, &BTreeSet::new()), Ok(net("10.0.0.0/24")));
        assert_eq!(subnets.claim(net("10.0.1.128/25")), Ok(net("10.0.1.128/25")));
        assert_eq!(subnets.take_v4(None, None, &BTreeSet::new()), Ok(net("10.0.2.0/24")));
        assert_eq!(subnets.take_v4(None, Some(25), &BTreeSet::new()), Ok(net("10.0.1.0/25")));
        assert_eq!(subnets.claim(net("10.0.2.7/30")), Err(SubnetError::Overlaps(net("10.0.2.4/30"))));
        subnets.remove(&net("10.0.0.0/24"));
        assert_eq!(subnets.take_v4(None, None, &BTreeSet::new()), Ok(net("10.0.0.0/24")));
    }

    #[test]
    fn a_clusters_pools_are_used_up_one_after_the_other() {
        let mut cluster = Cluster::new(skep_types::ClusterId::for_test(1));
        cluster.default_address_pool = vec!["172.30.0.0/25".into(), "172.31.0.0/26".into()];
        cluster.subnet_size = 26;
        let mut subnets = Subnets::default();
        let taken: Vec<_> = (0..4).map(|_| subnets.take_v4(Some(&cluster), None, &BTreeSet::new())).collect();
        assert_eq!(
            taken,
            [Ok(net("172.30.0.0/26")), Ok(net("172.30.0.64/26")), Ok(net("172.31.0.0/26")), Err(SubnetError::PoolsUsedUp(26))]
        );
    }

    #[test]
    fn a_node_s_own_network_is_left_out() {
        let own: BTreeSet<IpNet> = [net("10.0.0.0/23"), net("10.0.3.128/26"), net("2001:db8::/64")].into();
        let mut subnets = Subnets::default();
        assert_eq!(subnets.take_v4(None, None, &own), Ok(net("10.0.2.0/24")));
        assert_eq!(subnets.take_v4(None, None, &own), Ok(net("10.0.4.0/24")));
        let mut cluster = Cluster::new(skep_types::ClusterId::for_test(1));
        cluster.default_address_pool = vec!["10.0.0.0/23".into()];
        let near = net("10.0.0.0/23");
        assert_eq!(subnets.take_v4(Some(&cluster), None, &own), Err(SubnetError::NodesInTheWay { prefix: 24, near }));
        assert_eq!(subnets.claim(net("10.0.1.0/24")), Ok(net("10.0.1.0/24")), "who names it knows why");
        let wide: BTreeSet<IpNet> = [net("10.0.0.0/8"), net("172.16.0.0/16")].into();
        assert_eq!(subnets.take_v4(None, None, &wide), Ok(net("172.17.0.0/24")), "nobody asked for 10.0.0.0/8");
    }

    #[test]
    fn ipv6_subnets_are_unique_local_and_differ_by_cluster() {
        let one = Subnets::default().take_v6(Some(&Cluster::new(skep_types::ClusterId::for_test(1)))).expect("free");
        let two = Subnets::default().take_v6(Some(&Cluster::new(skep_types::ClusterId::for_test(2)))).expect("free");
        assert!(net("fd00::/8").contains(&one) && one.prefix_len() == 64 && one != two);
    }

    #[test]
    fn the_ends_of_a_subnet_and_its_gateway_are_not_given() {
        let mut addresses = Addresses::new(net("10.0.0.0/29"), None, Some(default_gateway(&net("10.0.0.0/29"))));
        let all: Vec<_> = std::iter::from_fn(|| addresses.take()).map(|address| address.to_string()).collect();
        assert_eq!(all, ["10.0.0.2/29", "10.0.0.3/29", "10.0.0.4/29", "10.0.0.5/29", "10.0.0.6/29"]);
    }
}
