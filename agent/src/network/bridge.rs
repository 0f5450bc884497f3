//! The network of tasks that are on none of the cluster's: a way out, and a way in for host-mode ports, on this node only.

use super::held::Held;
use crate::error::NetworkError;
use ipnet::{IpNet, Ipv6Net};
use skep_netlb::Subnet;
use skep_types::TaskId;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// Beyond those of overlays, which the allocator gives from 4096 upwards.
const VNI: u32 = 0x00FF_FFFF;
/// The id of the node's own network.
pub const ID: &str = "node-bridge";
/// Unless configured: beyond what dockerd takes first.
const SUBNET: &str = "172.31.240.0/20";
/// In IPv6: the /64 behind the one that netlb numbers its links from, out of its unique local range.
const RANGE_V6: Ipv6Addr = Ipv6Addr::new(0xfd73, 0x6b65, 0x7001, 0, 0, 0, 0, 0);

/// The range unless another is configured.
pub fn default_range() -> IpNet {
    SUBNET.parse().expect("a constant that is tested")
}

/// The network of which this is an address.
pub fn bridge_network(address: IpNet) -> skep_netlb::Network {
    let range = address.trunc();
    let gateway =
        IpNet::new(range.hosts().next().unwrap_or_else(|| range.addr()), range.prefix_len()).expect("the prefix of the same family");
    let ranges = both_families(gateway).into_iter();
    skep_netlb::Network {
        id: ID.parse().expect("letters and a dash make an id"),
        name: "bridge".into(),
        vni: VNI,
        subnets: ranges.map(|gateway| Subnet { range: gateway.trunc(), gateway: gateway.addr() }).collect(),
        mtu: 1500,
        internal: false,
        ingress: false,
    }
}

/// An address of the bridge, and the IPv6 address that goes with it: as unique, and nothing more to keep.
pub fn both_families(address: IpNet) -> Vec<IpNet> {
    let IpNet::V4(v4) = address else { return vec![address] };
    let v6 = Ipv6Addr::from(u128::from(RANGE_V6) | u128::from(u32::from(v4.addr())));
    vec![address, IpNet::V6(Ipv6Net::new(v6, 64).expect("64 is a prefix length"))]
}

/// Gives out addresses of the bridge; kept in files, one per task, as long as the task's network exists.
#[derive(Debug, Clone)]
pub struct Bridge {
    range: IpNet,
    dir: PathBuf,
    last: Arc<Mutex<usize>>,
}

impl Bridge {
    pub fn new(range: IpNet, dir: PathBuf) -> Self {
        Self { range: range.trunc(), dir, last: Arc::default() }
    }

    pub fn kept(&self, task: &TaskId) -> Option<IpNet> {
        std::fs::read_to_string(self.dir.join(task.as_str())).ok()?.parse().ok()
    }

    /// The task's address, a new one if it has none. Addresses go round, so that one that was freed rests for long.
    pub fn take(&self, task: &TaskId, held: &BTreeMap<TaskId, Held>) -> Result<IpNet, NetworkError> {
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

    pub fn free(&self, task: &TaskId) {
        let _ = std::fs::remove_file(self.dir.join(task.as_str())); // most tasks have none
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_go_round_and_are_kept_per_task() {
        let dir = tempfile::tempdir().unwrap();
        let bridge = Bridge::new("10.9.0.0/29".parse().unwrap(), dir.path().join("b"));
        let held = BTreeMap::new();
        let take = |number| bridge.take(&TaskId::for_test(number), &held).unwrap().to_string();
        assert_eq!((take(1), take(2), take(1)), ("10.9.0.2/29".into(), "10.9.0.3/29".into(), "10.9.0.2/29".into()));
        bridge.free(&TaskId::for_test(1));
        assert_eq!(take(1), "10.9.0.4/29");
        assert_eq!(default_range().to_string(), SUBNET);
    }
}
