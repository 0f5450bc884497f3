//! Addresses of tasks: NEW becomes PENDING.

use super::service::no_subnet;
use super::subnet::address_of;
use super::{Allocator, Lease, TASKS_PER_PLAN, addresses, holds_addresses, is_overlay, publishes_on_ingress, resolve_network};
use crate::Plan;
use crate::orphan::set_state;
use skep_types::{
    Action, ClusterView, Network, NetworkAttachment, NetworkAttachmentConfig, NetworkId, NodeId, Object, Service, ServiceId, Task,
    TaskState, TaskStatus, Timestamp,
};
use std::collections::HashMap;
use std::sync::Arc;

/// Why a task does not get its addresses now.
enum Wait {
    /// For its service; the reason if there is more to say than "a moment".
    Service(String),
    /// For something to be freed or changed.
    Stuck(String),
}

/// Why services are not ready, found out once per plan. `None` = ready.
type Hindrances = HashMap<ServiceId, Option<String>>;

fn uses(task: &Task) -> Option<(&NodeId, Vec<&NetworkId>)> {
    let node = task.node_id.as_ref().filter(|_| holds_addresses(task))?;
    Some((
        node,
        task.networks.iter().filter(|attachment| is_overlay(&attachment.network)).map(|attachment| &attachment.network.id).collect(),
    ))
}

impl Allocator {
    pub(super) fn observe_task(&mut self, old: Option<&Arc<Task>>, new: Option<&Arc<Task>>) {
        let held =
            |task: Option<&Arc<Task>>| task.filter(|task| holds_addresses(task)).map(|task| addresses(&task.networks)).unwrap_or_default();
        let same_networks =
            matches!((old, new), (Some(old), Some(new)) if holds_addresses(old) == holds_addresses(new) && old.networks == new.networks);
        if !same_networks {
            self.exchange_addresses(&held(old), &held(new));
        }
        let same_node = matches!((old, new), (Some(old), Some(new)) if old.node_id == new.node_id);
        if !(same_networks && same_node) {
            if let Some((node, networks)) = new.and_then(|new| uses(new)) {
                networks.into_iter().for_each(|network| self.note_use(node, network));
            }
            if let Some((node, networks)) = old.and_then(|old| uses(old)) {
                networks.into_iter().for_each(|network| self.drop_use(node, network));
            }
        }
        match (old, new) {
            (_, Some(new)) if new.status.state == TaskState::New => {
                // A new explanation alone is no reason to try again.
                let same = old.is_some_and(|old| old.status.state == new.status.state && old.desired_state == new.desired_state);
                if !same {
                    self.new_tasks.insert(new.id.clone());
                }
            }
            (Some(old), _) if old.status.state == TaskState::New => {
                self.new_tasks.remove(&old.id);
                self.stuck_tasks.remove(&old.id);
            }
            _ => {}
        }
    }

    pub(super) fn plan_tasks(&mut self, view: &dyn ClusterView, now: Timestamp, plan: &mut Plan) {
        let mut left = TASKS_PER_PLAN;
        let mut services = Hindrances::new();
        for id in std::mem::take(&mut self.new_tasks) {
            let Some(task) = view.task(&id).filter(|task| task.status.state == TaskState::New) else { continue };
            if left == 0 {
                self.new_tasks.insert(id);
                plan.wake(now);
                continue;
            }
            left -= 1;
            if task.desired_state >= TaskState::Shutdown {
                self.new_tasks.insert(id);
                plan.changes.push(set_state(task, TaskState::Shutdown, "stopped before it was placed", "", now));
                continue;
            }
            match self.allocate_task(view, task, &mut services, now) {
                Ok(allocated) => {
                    self.new_tasks.insert(id);
                    plan.changes.push(Action::Update(Object::Task(Arc::new(allocated))));
                }
                Err(Wait::Service(reason)) => {
                    if let Some(service) = &task.service_id {
                        self.behind_service.entry(service.clone()).or_default().push(id);
                    }
                    explain(task, reason, now, plan);
                }
                Err(Wait::Stuck(reason)) => {
                    self.stuck_tasks.insert(id);
                    explain(task, reason, now, plan);
                }
            }
        }
    }

    fn allocate_task(&mut self, view: &dyn ClusterView, task: &Task, services: &mut Hindrances, now: Timestamp) -> Result<Task, Wait> {
        let service = match &task.service_id {
            Some(id) => Some(view.service(id).ok_or_else(|| Wait::Stuck(String::new()))?),
            None => None,
        };
        if let Some(service) = service {
            let known = services.entry(service.id.clone()).or_insert_with(|| self.hindrance(view, service));
            if let Some(reason) = known {
                return Err(Wait::Service(reason.clone()));
            }
        }
        let ingress = self.ingress.as_ref().and_then(|id| view.network(id));
        let wanted = task_networks(view, ingress, task, service).map_err(Wait::Stuck)?;
        let mut given = Vec::new();
        let mut networks = Vec::new();
        for (network, config) in wanted {
            match self.attach_task(network, config, &mut given) {
                Ok(attachment) => networks.push(attachment),
                Err(reason) => {
                    let freed = self.freed;
                    given.into_iter().for_each(|(network, address)| self.cancel_address(&network, address));
                    self.freed = freed;
                    return Err(Wait::Stuck(reason));
                }
            }
        }
        self.leases.extend(given.into_iter().map(|(network, address)| Lease::Address(network, address)));
        let status =
            TaskStatus { timestamp: now, state: TaskState::Pending, message: "pending task scheduling".into(), ..TaskStatus::default() };
        let endpoint = service.map_or_else(|| task.endpoint.clone(), |service| service.endpoint.clone());
        Ok(Task { status: TaskStatus { applied_at: Some(now), ..status }, networks, endpoint, ..task.clone() })
    }

    fn attach_task(
        &mut self,
        network: &Arc<Network>,
        config: Option<&NetworkAttachmentConfig>,
        given: &mut Vec<(NetworkId, std::net::IpAddr)>,
    ) -> Result<NetworkAttachment, String> {
        let name = &network.spec.annotations.name;
        let mut addresses = Vec::new();
        if network.has_addresses() {
            if let Some(reason) = self.closed(network) {
                return Err(reason);
            }
            let wanted: Vec<_> = config.iter().flat_map(|config| &config.addresses).filter_map(|text| address_of(text)).collect();
            for subnet in self.networks.get_mut(&network.id).into_iter().flatten() {
                let is_v4 = matches!(subnet.net, ipnet::IpNet::V4(_));
                let has_family = addresses.iter().any(|address: &ipnet::IpNet| matches!(address, ipnet::IpNet::V4(_)) == is_v4);
                if has_family {
                    continue; // a second subnet of this family
                }
                let requested = wanted.iter().find(|address| subnet.net.contains(*address));
                let address = match requested {
                    Some(address) if subnet.claim(*address) => ipnet::IpNet::new(*address, subnet.net.prefix_len()).ok(),
                    Some(address) if self.quarantine.holds(&network.id, *address) => {
                        return Err(format!(
                            "the wanted address {address} of network {name} was freed a moment ago; some nodes still know it"
                        ));
                    }
                    Some(address) => return Err(format!("the wanted address {address} of network {name} is in use")),
                    None => subnet.take(),
                };
                if let Some(address) = address {
                    given.push((network.id.clone(), address.addr()));
                    addresses.push(address);
                }
            }
            if addresses.is_empty() {
                return Err(format!("network {name} has no free address left"));
            }
        }
        Ok(NetworkAttachment {
            network: Arc::clone(network),
            addresses: addresses.iter().map(ToString::to_string).collect(),
            aliases: config.map(|config| config.aliases.clone()).unwrap_or_default(),
            driver_attachment_opts: config.map(|config| config.driver_attachment_opts.clone()).unwrap_or_default(),
        })
    }
}

/// The networks of a task with what it asked for there, ingress first.
fn task_networks<'a>(
    view: &'a dyn ClusterView,
    ingress: Option<&'a Arc<Network>>,
    task: &'a Task,
    service: Option<&'a Arc<Service>>,
) -> Result<Vec<(&'a Arc<Network>, Option<&'a NetworkAttachmentConfig>)>, String> {
    let mut all = Vec::<(&Arc<Network>, Option<&NetworkAttachmentConfig>)>::new();
    if service.is_some_and(|service| publishes_on_ingress(service)) {
        all.push((ingress.ok_or("the cluster has no ingress network")?, None));
    }
    let configs = match service {
        Some(service) if task.spec.networks.is_empty() => &service.spec.networks,
        _ => &task.spec.networks,
    };
    for config in configs {
        let network = resolve_network(view, &config.target).ok_or_else(|| format!("network {} does not exist", config.target))?;
        if network.driver_state.is_none() {
            return Err(no_subnet(network));
        }
        if !all.iter().any(|(known, _)| known.id == network.id) {
            all.push((network, Some(config)));
        }
    }
    Ok(all)
}

/// Says in the task why it waits, if that is not said yet.
fn explain(task: &Task, reason: String, now: Timestamp, plan: &mut Plan) {
    if task.status.err != reason && !reason.is_empty() {
        plan.changes.push(set_state(task, TaskState::New, &task.status.message, &reason, now));
    }
}
