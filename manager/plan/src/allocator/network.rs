//! Subnets, gateways and VXLAN ids of networks.

use super::subnet::{Addresses, Family, SubnetError, default_gateway};
use super::{Allocator, Lease, is_ingress};
use crate::Plan;
use ipnet::IpNet;
use skep_types::{Action, AddressFamily, ClusterView, Driver, IpamConfig, IpamOptions, Network, NetworkDriver, Object, VXLAN_IDS_OPTION};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

/// The subnets of a network that has them.
fn subnets(network: &Network) -> impl Iterator<Item = (&IpamConfig, IpNet)> {
    let ours = network.has_addresses();
    let configs = network.ipam.iter().flat_map(|ipam| &ipam.configs).filter(move |_| ours);
    configs.filter_map(|config| config.subnet.parse::<IpNet>().ok().map(|net| (config, net.trunc())))
}

/// The families of virtual addresses on a network: the first subnet of each counts, IPv4 before IPv6. None where nothing of ours
/// stands between the tasks, which could translate them.
pub(super) fn families(network: &Network) -> impl Iterator<Item = Family> {
    let translates = network.driver() != NetworkDriver::Macvlan;
    Family::ALL.into_iter().filter(move |family| translates && subnets(network).any(|(_, net)| Family::of(net.addr()) == *family))
}

pub(super) fn vnis(driver: Option<&Driver>) -> Vec<u32> {
    let list = driver.and_then(|driver| driver.options.get(VXLAN_IDS_OPTION));
    list.map_or(Vec::new(), |list| list.split(',').filter_map(|vni| vni.trim().parse().ok()).collect())
}

fn is_allocated(network: &Network) -> bool {
    network.driver_state.is_some() && network.ipam.is_some()
}

impl Allocator {
    pub(super) fn observe_network(&mut self, old: Option<&Arc<Network>>, new: Option<&Arc<Network>>) {
        let same_ids = |old: &Network, new: &Network| {
            old.driver_state.is_some() == new.driver_state.is_some() && vnis(old.driver_state.as_ref()) == vnis(new.driver_state.as_ref())
        };
        // Other options of the driver may change while addresses are in use.
        let unchanged = matches!((old, new), (Some(old), Some(new)) if old.ipam == new.ipam && same_ids(old, new));
        if !unchanged {
            if let Some(old) = old.filter(|old| is_allocated(old)) {
                subnets(old).for_each(|(_, net)| self.subnets.remove(&net));
                for vni in vnis(old.driver_state.as_ref()) {
                    if !self.another_has(&Lease::Vni(vni)) {
                        self.vnis.release(u128::from(vni));
                    }
                }
                self.networks.remove(&old.id);
                self.shared.retain(|held, _| !matches!(held, Lease::Address(network, _) if *network == old.id));
                self.quarantine.forget(&old.id);
                self.embargo.forget(&old.id);
                self.freed = true;
            }
            if let Some(new) = new.filter(|new| is_allocated(new)) {
                self.adopt(new);
            }
        }
        match new {
            Some(new) => {
                self.stuck_networks.remove(&new.id);
                if !is_allocated(new) && !new.pending_delete {
                    self.dirty_networks.insert(new.id.clone());
                }
                if is_ingress(new) {
                    self.ingress = Some(new.id.clone());
                    if !unchanged {
                        self.dirty_nodes.extend(self.uses.keys().cloned());
                    }
                }
            }
            None => {
                if let Some(old) = old {
                    self.dirty_networks.remove(&old.id);
                    self.stuck_networks.remove(&old.id);
                    if self.ingress.as_ref() == Some(&old.id) {
                        self.ingress = None;
                        self.dirty_nodes.extend(self.uses.keys().cloned());
                    }
                }
            }
        }
        // Services and tasks may wait for this network.
        self.freed = true;
    }

    fn adopt(&mut self, network: &Network) {
        let mut all = Vec::new();
        for (config, net) in subnets(network) {
            self.leases.remove(&Lease::Subnet(net));
            self.subnets.insert(&net);
            all.push(Addresses::new(net, config.range.parse().ok(), config.gateway.parse().ok()));
        }
        for vni in vnis(network.driver_state.as_ref()) {
            let is_known = self.leases.remove(&Lease::Vni(vni));
            if !self.vnis.claim(u128::from(vni)) && !is_known {
                self.share(Lease::Vni(vni));
            }
        }
        self.networks.insert(network.id.clone(), all);
    }

    pub(super) fn plan_networks(&mut self, view: &dyn ClusterView, plan: &mut Plan) {
        // In the order of creation, so that subnets are, too.
        let mut dirty: Vec<_> = std::mem::take(&mut self.dirty_networks).into_iter().filter_map(|id| view.network(&id)).collect();
        dirty.sort_by_key(|network| (!is_ingress(network), network.meta.created_at, network.meta.version, network.id.clone()));
        for network in dirty {
            if is_allocated(network) || network.pending_delete {
                continue;
            }
            // Until the commit is seen it stays dirty: a plan that was not carried out is made again.
            match self.allocate_network(view, network) {
                Ok(allocated) => {
                    self.dirty_networks.insert(network.id.clone());
                    plan.changes.push(Action::Update(Object::Network(Arc::new(allocated))));
                }
                Err(problem) => {
                    self.stuck_networks.insert(network.id.clone(), problem.to_string());
                }
            }
        }
    }

    fn allocate_network(&mut self, view: &dyn ClusterView, network: &Network) -> Result<Network, SubnetError> {
        let mut allocated = network.clone();
        let options = network.spec.driver.as_ref().map(|driver| driver.options.clone()).unwrap_or_default();
        let mut driver = Driver { name: network.driver_name().to_owned(), options };
        if !network.has_addresses() {
            allocated.driver_state = Some(driver);
            allocated.ipam = Some(IpamOptions::default());
            return Ok(allocated);
        }
        let mut taken = Vec::new();
        let configs = match self.allocate_subnets(view, network, &mut taken) {
            Ok(configs) => configs,
            Err(problem) => {
                for net in taken {
                    self.subnets.remove(&net);
                }
                return Err(problem);
            }
        };
        self.leases.extend(taken.into_iter().map(Lease::Subnet));
        let mut vnis = vnis(network.spec.driver.as_ref());
        // One that ends at the node has a number too: its devices are named by it. The devices of one on the hosts' network are the hosts'.
        let wanted = if network.driver() == NetworkDriver::Macvlan {
            0
        } else {
            configs.iter().filter(|config| config.family == AddressFamily::Ipv4).count().max(1)
        };
        while vnis.len() < wanted {
            let Some(vni) = self.vnis.take().and_then(|vni| u32::try_from(vni).ok()) else { break };
            self.leases.insert(Lease::Vni(vni));
            vnis.push(vni);
        }
        if !vnis.is_empty() {
            let list: Vec<_> = vnis.iter().map(u32::to_string).collect();
            driver.options.insert(VXLAN_IDS_OPTION.into(), list.join(","));
        }
        allocated.driver_state = Some(driver);
        let ipam = network.spec.ipam.as_ref().map(|ipam| ipam.driver.clone()).unwrap_or_default();
        let name = if ipam.name.is_empty() { "default".into() } else { ipam.name };
        allocated.ipam = Some(IpamOptions { driver: Driver { name, options: ipam.options }, configs });
        Ok(allocated)
    }

    fn allocate_subnets(
        &mut self,
        view: &dyn ClusterView,
        network: &Network,
        taken: &mut Vec<IpNet>,
    ) -> Result<Vec<IpamConfig>, SubnetError> {
        let cluster = view.cluster().map(Arc::as_ref);
        let mut wanted: Vec<IpamConfig> = network.spec.ipam.as_ref().map(|ipam| ipam.configs.clone()).unwrap_or_default();
        let is_v6 = |config: &IpamConfig| config.family == AddressFamily::Ipv6 || config.subnet.contains(':');
        if !wanted.iter().any(|config| !is_v6(config)) {
            wanted.insert(0, IpamConfig::default());
        }
        if network.spec.ipv6_enabled && !wanted.iter().any(is_v6) {
            wanted.push(IpamConfig { family: AddressFamily::Ipv6, ..IpamConfig::default() });
        }
        let own = own_networks(view);
        let mut done = Vec::new();
        for mut config in wanted {
            let given = match config.subnet.as_str() {
                "" => None,
                text => Some(text.parse::<IpNet>().map_err(|_| SubnetError::NotASubnet(text.to_owned()))?),
            };
            let net = match given {
                Some(net) if !net.addr().is_unspecified() => self.subnets.claim(net)?,
                Some(IpNet::V4(size)) => self.subnets.take_v4(cluster, Some(size.prefix_len()), &own)?,
                None if !is_v6(&config) => self.subnets.take_v4(cluster, None, &own)?,
                Some(IpNet::V6(_)) | None => self.subnets.take_v6(cluster)?,
            };
            taken.push(net);
            config.family = if matches!(net, IpNet::V4(_)) { AddressFamily::Ipv4 } else { AddressFamily::Ipv6 };
            config.subnet = net.to_string();
            config.gateway = gateway(&config, &net)?.to_string();
            done.push(config);
        }
        Ok(done)
    }
}

/// The networks that the nodes' own devices are in, as far as they said.
fn own_networks(view: &dyn ClusterView) -> BTreeSet<IpNet> {
    let all = view.nodes().filter_map(|node| node.overlay.as_ref()).flat_map(|overlay| &overlay.local_prefixes);
    all.filter_map(|text| text.parse().ok()).collect()
}

fn gateway(config: &IpamConfig, net: &IpNet) -> Result<IpAddr, SubnetError> {
    let outside = |text: &str| SubnetError::NotInside { text: text.to_owned(), subnet: *net };
    if config.gateway.is_empty() {
        let inside = config.range.parse::<IpNet>().ok().filter(|range| net.contains(range));
        return Ok(default_gateway(&inside.unwrap_or(*net)));
    }
    config.gateway.parse().ok().filter(|address| net.contains(address)).ok_or_else(|| outside(&config.gateway))
}
