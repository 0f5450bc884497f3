use super::{Place, look};
use crate::api::Api;
use anyhow::{Result, bail};
use skep_proto::v1::{self, TaskState};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// All that networks follow from.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Store {
    nodes: Vec<v1::Node>,
    networks: Vec<v1::Network>,
    services: Vec<v1::Service>,
    tasks: Vec<v1::Task>,
}

/// What one node's part in one network should be.
#[derive(Debug, Default)]
pub(super) struct Expected {
    /// Virtual address and backend.
    pub(super) backends: BTreeSet<(IpAddr, IpAddr)>,
    /// Addresses that must be reached, and whether on this node.
    pub(super) reached: BTreeMap<IpAddr, bool>,
    /// Addresses that may be, in addition.
    pub(super) may_be_reached: BTreeSet<IpAddr>,
    /// What names lead to, for a task of this node.
    pub(super) names: BTreeMap<String, BTreeSet<IpAddr>>,
}

impl Expected {
    /// What of it is of IPv4, or of IPv6; without names.
    pub(super) fn of(&self, v4: bool) -> Self {
        Self {
            backends: self.backends.iter().filter(|(vip, _)| vip.is_ipv4() == v4).copied().collect(),
            reached: self.reached.iter().filter(|(address, _)| address.is_ipv4() == v4).map(|(address, here)| (*address, *here)).collect(),
            may_be_reached: self.may_be_reached.iter().filter(|address| address.is_ipv4() == v4).copied().collect(),
            names: BTreeMap::new(),
        }
    }

    pub(super) fn names_addresses(&self) -> bool {
        !self.reached.is_empty() || !self.may_be_reached.is_empty()
    }
}

impl Store {
    /// As the first manager tells it that answers.
    pub(super) fn read(places: &[Place]) -> Result<Self> {
        for place in places {
            let Ok(api) = Api::new(&place.socket) else { continue };
            let Ok(status) = api.status(false) else { continue };
            if !status.leader {
                continue;
            }
            let networks = api.ask(|mut control| async move { control.list_networks(v1::ListNetworksRequest::default()).await })?.networks;
            let services = api.ask(|mut control| async move { control.list_services(v1::ListServicesRequest::default()).await })?.services;
            return Ok(Self { nodes: api.nodes()?, networks, services, tasks: api.tasks()? });
        }
        bail!("no manager leads")
    }

    /// What differs on the nodes that are up, in words. `nodes`: which place is which node, filled in on the way.
    pub(super) fn differences(&self, places: &[Place], nodes: &mut BTreeMap<String, usize>) -> Result<Vec<String>> {
        let ready = |node: &&v1::Node| node.status.as_ref().is_some_and(|status| status.state() == v1::node_status::State::Ready);
        let mut found = Vec::new();
        for node in self.nodes.iter().filter(ready) {
            if !nodes.contains_key(&node.id) {
                for (number, place) in places.iter().enumerate() {
                    if let Ok(status) = Api::new(&place.socket).and_then(|api| api.status(false)) {
                        nodes.insert(status.node_id, number);
                    }
                }
            }
            let Some(place) = nodes.get(&node.id).map(|number| &places[*number]) else { continue };
            for network in self.networks.iter().filter(|network| is_overlay(network)) {
                let Some(inside) = self.tasks.iter().find(|task| task.node_id == node.id && runs(task) && is_on(task, network)) else {
                    continue;
                };
                let expected = self.expected(node, network, inside);
                let name = network.spec.as_ref().and_then(|spec| spec.annotations.as_ref()).map_or("", |spec| spec.name.as_str());
                let differences = look::differences(&place.namespaces, &network.id, &inside.id, &expected)?;
                found.extend(differences.into_iter().map(|what| format!("{} in network {name}: {what}", place.name)));
            }
        }
        Ok(found)
    }

    fn expected(&self, node: &v1::Node, network: &v1::Network, inside: &v1::Task) -> Expected {
        let mut expected = Expected::default();
        for task in &self.tasks {
            let addresses = addresses(task, network);
            match state(task) {
                TaskState::Starting | TaskState::Running => {
                    expected.reached.extend(addresses.map(|address| (address, task.node_id == node.id)));
                }
                TaskState::Assigned | TaskState::Accepted | TaskState::Preparing | TaskState::Ready => {
                    expected.may_be_reached.extend(addresses);
                }
                _ => {}
            }
        }
        let is_ingress = network.spec.as_ref().is_some_and(|spec| spec.ingress);
        for service in &self.services {
            let tasks = || self.tasks.iter().filter(|task| task.service_id == service.id && runs(task));
            let vips = |on: &v1::Network| -> Vec<IpAddr> {
                let all = service.endpoint.iter().flat_map(|endpoint| &endpoint.virtual_ips);
                all.filter(|vip| vip.network_id == on.id).filter_map(|vip| bare(&vip.addr)).collect()
            };
            for vip in vips(network) {
                let backends = tasks().flat_map(|task| addresses(task, network)).filter(|address| address.is_ipv4() == vip.is_ipv4());
                expected.backends.extend(backends.map(|address| (vip, address)));
            }
            let Some(name) = service.spec.as_ref().and_then(|spec| spec.annotations.as_ref()).map(|spec| spec.name.clone()) else {
                continue;
            };
            // A task is answered from all networks that it is on.
            let shared = self
                .networks
                .iter()
                .filter(|other| is_overlay(other) && !other.spec.as_ref().is_some_and(|spec| spec.ingress) && is_on(inside, other));
            let shared: Vec<&v1::Network> = shared.collect();
            let all: BTreeSet<IpAddr> = tasks().flat_map(|task| shared.iter().flat_map(|on| addresses(task, on))).collect();
            if is_ingress || all.is_empty() || all.len() > look::MOST_ANSWERS {
                continue;
            }
            let virtual_ips: BTreeSet<IpAddr> = shared.iter().flat_map(|on| vips(on)).collect();
            expected.names.insert(format!("tasks.{name}"), all.clone());
            expected.names.insert(name, if virtual_ips.is_empty() { all } else { virtual_ips });
        }
        expected
    }
}

fn is_overlay(network: &v1::Network) -> bool {
    network.driver_state.as_ref().is_some_and(|driver| driver.name == "overlay") && network.ipam.is_some()
}

fn state(task: &v1::Task) -> TaskState {
    task.status.as_ref().map(v1::TaskStatus::state).unwrap_or_default()
}

/// It serves.
fn runs(task: &v1::Task) -> bool {
    state(task) == TaskState::Running && task.desired_state() == TaskState::Running
}

fn bare(text: &str) -> Option<IpAddr> {
    text.split('/').next()?.parse().ok()
}

fn addresses(task: &v1::Task, network: &v1::Network) -> impl Iterator<Item = IpAddr> {
    let on_it = |attachment: &&v1::NetworkAttachment| attachment.network.as_ref().is_some_and(|known| known.id == network.id);
    task.networks.iter().find(on_it).into_iter().flat_map(|attachment| &attachment.addresses).filter_map(|text| bare(text))
}

fn is_on(task: &v1::Task, network: &v1::Network) -> bool {
    addresses(task, network).next().is_some()
}
