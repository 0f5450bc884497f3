//! Virtual IPs and published ports of services.

use super::network::families;
use super::port::Held;
use super::subnet::{Family, address_of};
use super::{Allocator, Lease, publishes_on_ingress, resolve_network};
use crate::Plan;
use skep_types::{
    Action, ClusterView, Endpoint, Network, NetworkId, Object, PortConfig, PublishMode, ResolutionMode, Service, ServiceId, VirtualIp,
};
use std::net::IpAddr;
use std::sync::Arc;

pub(super) fn vips(service: &Service) -> Vec<(NetworkId, IpAddr)> {
    let all = service.endpoint.iter().flat_map(|endpoint| &endpoint.virtual_ips);
    all.filter_map(|vip| address_of(&vip.addr).map(|address| (vip.network_id.clone(), address))).collect()
}

fn ingress_ports(service: &Service) -> Vec<Held> {
    let all = service.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
    let ingress = all.filter(|port| port.publish_mode == PublishMode::Ingress && port.published_port != 0);
    ingress.filter_map(|port| u16::try_from(port.published_port).ok().map(|number| held(port, number))).collect()
}

fn held(port: &PortConfig, number: u16) -> Held {
    Held { protocol: port.protocol, number, place: port.place.clone() }
}

/// Whether the virtual IP is the network's of that family.
fn is_for(vip: &VirtualIp, network: &NetworkId, family: Family) -> bool {
    vip.network_id == *network && address_of(&vip.addr).is_some_and(|address| Family::of(address) == family)
}

/// Whether the service's tasks may get their addresses.
fn is_ready(view: &dyn ClusterView, service: &Service) -> bool {
    let Some(endpoint) = &service.endpoint else { return service.spec.endpoint.is_none() && service.networks().is_empty() };
    endpoint.spec == service.spec.endpoint.clone().unwrap_or_default()
        && wanted_networks(view, service).is_ok_and(|networks| {
            let spec_is_vip = endpoint.spec.mode == ResolutionMode::Vip;
            let networks = networks.iter().filter(|_| spec_is_vip);
            let wanted: Vec<_> = networks.flat_map(|network| families(network).map(move |family| (network, family))).collect();
            wanted.len() == endpoint.virtual_ips.len()
                && wanted.iter().all(|(network, family)| endpoint.virtual_ips.iter().any(|vip| is_for(vip, &network.id, *family)))
        })
}

/// Of a network that waits for its subnet; why it waits is known to the allocator.
pub(super) fn no_subnet(network: &Network) -> String {
    format!("network {} has no subnet yet", network.spec.annotations.name)
}

/// The networks a service is on, ingress first.
pub(super) fn wanted_networks<'a>(view: &'a dyn ClusterView, service: &Service) -> Result<Vec<&'a Arc<Network>>, String> {
    let mut all = Vec::<&Arc<Network>>::new();
    if publishes_on_ingress(service) {
        let ingress = view.networks().find(|network| super::is_ingress(network));
        all.push(ingress.ok_or("the service publishes ports, but the cluster has no ingress network")?);
    }
    for config in service.networks() {
        let network = resolve_network(view, &config.target).ok_or_else(|| format!("network {} does not exist", config.target))?;
        if !all.iter().any(|known| known.id == network.id) {
            all.push(network);
        }
    }
    match all.iter().find(|network| network.driver_state.is_none()) {
        Some(network) => Err(no_subnet(network)),
        None => Ok(all),
    }
}

impl Allocator {
    pub(super) fn observe_service(&mut self, old: Option<&Arc<Service>>, new: Option<&Arc<Service>>) {
        let before = old.map(|old| vips(old)).unwrap_or_default();
        let after = new.map(|new| vips(new)).unwrap_or_default();
        self.exchange_addresses(&before, &after);
        let before = old.map(|old| ingress_ports(old)).unwrap_or_default();
        let after = new.map(|new| ingress_ports(new)).unwrap_or_default();
        for port in before.iter().filter(|port| !after.contains(port)) {
            self.ports.release(port);
            self.freed = true;
        }
        if let Some(new) = new {
            for port in after.iter().filter(|port| !before.contains(port)) {
                self.leases.remove(&Lease::Port(port.clone()));
                self.ports.claim(port, &new.id);
            }
            self.dirty_services.insert(new.id.clone());
            self.wake_tasks_of(&new.id);
        } else if let Some(old) = old {
            self.dirty_services.remove(&old.id);
            self.stuck_services.remove(&old.id);
            self.wake_tasks_of(&old.id);
        }
    }

    fn wake_tasks_of(&mut self, service: &ServiceId) {
        self.new_tasks.extend(self.behind_service.remove(service).into_iter().flatten());
    }

    pub(super) fn plan_services(&mut self, view: &dyn ClusterView, plan: &mut Plan) {
        for id in std::mem::take(&mut self.dirty_services) {
            let Some(service) = view.service(&id) else { continue };
            self.stuck_services.remove(&id);
            match self.allocate_service(view, service) {
                Ok(endpoint) if endpoint == service.endpoint => {}
                Ok(endpoint) => {
                    self.dirty_services.insert(id);
                    plan.changes.push(Action::Update(Object::Service(Arc::new(Service { endpoint, ..Service::clone(service) }))));
                }
                Err(problem) => {
                    let problem = self.with_cause(view, service, problem);
                    self.wake_tasks_of(&id); // so that they say why they wait
                    self.stuck_services.insert(id, problem);
                }
            }
        }
    }

    /// Says too why a network of the service has no subnet, if that is what it lacks.
    fn with_cause(&self, view: &dyn ClusterView, service: &Service, problem: String) -> String {
        let networks = service.networks().iter().filter_map(|config| resolve_network(view, &config.target));
        let cause = networks.filter(|network| problem == no_subnet(network)).find_map(|network| self.problem_of_network(&network.id));
        cause.map_or(problem.clone(), |cause| format!("{problem}: {cause}"))
    }

    /// The endpoint the service should have; what it has already stays. On failure nothing stays reserved.
    fn allocate_service(&mut self, view: &dyn ClusterView, service: &Arc<Service>) -> Result<Option<Endpoint>, String> {
        if service.spec.endpoint.is_none() && service.networks().is_empty() {
            return Ok(None);
        }
        let networks = wanted_networks(view, service)?;
        let spec = service.spec.endpoint.clone().unwrap_or_default();
        let mut new = Vec::new();
        let parts = self.allocate_ports(view, service, &spec.ports, &mut new).and_then(|ports| {
            let virtual_ips = if spec.mode == ResolutionMode::Vip { self.allocate_vips(service, &networks, &mut new)? } else { Vec::new() };
            Ok((ports, virtual_ips))
        });
        match parts {
            Ok((ports, virtual_ips)) => {
                self.leases.extend(new);
                Ok(Some(Endpoint { spec, ports, virtual_ips }))
            }
            Err(problem) => {
                let others = std::mem::replace(&mut self.leases, new.into_iter().collect());
                let freed = self.freed;
                self.expire_leases();
                (self.leases, self.freed) = (others, freed);
                Err(problem)
            }
        }
    }

    fn allocate_ports(
        &mut self,
        view: &dyn ClusterView,
        service: &Service,
        wanted: &[PortConfig],
        new: &mut Vec<Lease>,
    ) -> Result<Vec<PortConfig>, String> {
        let before = ingress_ports(service);
        let mut kept = Vec::<Held>::new();
        let mut ports = wanted.to_vec();
        // Given numbers first: a chosen one must not get in their way.
        for port in ports.iter().filter(|port| port.publish_mode == PublishMode::Ingress && port.published_port != 0) {
            let number = u16::try_from(port.published_port).map_err(|_| format!("port {} does not exist", port.published_port))?;
            let wanted = held(port, number);
            if kept.iter().any(|other| other.meets(&wanted)) {
                return Err(format!("port {number}/{} is published twice by the service itself", port.protocol.name()));
            }
            if let Some(holder) = self.ports.other_holder(&wanted, &service.id) {
                let name = view.service(holder).map_or(holder.as_str(), |holder| holder.name());
                let protocol = port.protocol.name();
                return Err(format!("port {number}/{protocol} is already published by service {name}; choose another one or leave it out"));
            }
            if !before.contains(&wanted) {
                self.ports.claim(&wanted, &service.id);
                new.push(Lease::Port(wanted.clone()));
            }
            kept.push(wanted);
        }
        for port in ports.iter_mut().filter(|port| port.publish_mode == PublishMode::Ingress && port.published_port == 0) {
            // A port that was chosen for the same target and place before stays.
            let chosen = service.endpoint.iter().flat_map(|endpoint| &endpoint.ports).find(|before| {
                let same = before.name == port.name && before.protocol == port.protocol && before.target_port == port.target_port;
                same && before.publish_mode == PublishMode::Ingress
                    && before.place == port.place
                    && u16::try_from(before.published_port)
                        .is_ok_and(|number| number != 0 && !kept.iter().any(|other| other.meets(&held(port, number))))
            });
            let number = match chosen.and_then(|before| u16::try_from(before.published_port).ok()) {
                Some(number) => number,
                None => {
                    let number = self.ports.take(port.protocol, &port.place, &service.id);
                    let number = number.ok_or("all ports from 30000 to 32767 are in use; name a free one")?;
                    new.push(Lease::Port(held(port, number)));
                    number
                }
            };
            kept.push(held(port, number));
            port.published_port = u32::from(number);
        }
        Ok(ports)
    }

    fn allocate_vips(&mut self, service: &Service, networks: &[&Arc<Network>], new: &mut Vec<Lease>) -> Result<Vec<VirtualIp>, String> {
        let mut vips = Vec::new();
        let wanted = networks.iter().flat_map(|network| families(network).map(move |family| (network, family)));
        for (network, family) in wanted {
            let mut held = service.endpoint.iter().flat_map(|endpoint| &endpoint.virtual_ips);
            let known = held.find(|vip| is_for(vip, &network.id, family));
            if let Some(known) = known.filter(|known| self.is_inside(&network.id, &known.addr)) {
                vips.push(known.clone());
                continue;
            }
            if let Some(reason) = self.closed(network) {
                return Err(reason);
            }
            let subnets = self.networks.get_mut(&network.id).into_iter().flatten();
            let given = subnets.filter(|subnet| Family::of(subnet.net.addr()) == family).find_map(|subnet| subnet.take());
            let given = given.ok_or_else(|| format!("network {} has no free address left", network.spec.annotations.name))?;
            new.push(Lease::Address(network.id.clone(), given.addr()));
            vips.push(VirtualIp { network_id: network.id.clone(), addr: given.to_string() });
        }
        Ok(vips)
    }

    fn is_inside(&self, network: &NetworkId, text: &str) -> bool {
        let subnets = self.networks.get(network).into_iter().flatten();
        address_of(text).is_some_and(|address| subnets.into_iter().any(|subnet| subnet.is_used(address) && subnet.net.contains(&address)))
    }

    /// Why the tasks of a service cannot get their addresses yet; `None` = they can.
    pub(super) fn hindrance(&self, view: &dyn ClusterView, service: &Service) -> Option<String> {
        if let Some(problem) = self.stuck_services.get(&service.id) {
            return Some(problem.clone());
        }
        (self.dirty_services.contains(&service.id) || !is_ready(view, service)).then(String::new)
    }
}
