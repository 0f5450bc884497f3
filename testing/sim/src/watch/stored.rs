//! What is stored, told and acknowledged.

use super::Watch;
use crate::raft::short;
use crate::transitions::may_run;
use skep_manager::pure::same_but_status;
use skep_store::View;
use skep_types::{Action, ClusterView as _, NodeId, Object, PublishMode, ServiceId, Task, TaskId, TaskState, Version};
use std::collections::BTreeMap;
use std::sync::Arc;

impl Watch {
    /// I11 among what is stored.
    pub(super) fn unique(&mut self, view: &View) {
        let mut addresses = BTreeMap::<(String, String), String>::new();
        let mut ports = BTreeMap::<(NodeId, u32), TaskId>::new();
        let mut ingress = BTreeMap::<u32, ServiceId>::new();
        let mut found = None;
        for service in view.services() {
            let endpoint = service.endpoint.iter();
            for vip in endpoint.clone().flat_map(|endpoint| &endpoint.virtual_ips) {
                let owner = addresses.insert((vip.network_id.to_string(), bare(&vip.addr)), format!("service {}", service.name()));
                found = found.or(owner.map(|owner| format!("{} is an address of {owner} and of service {}", vip.addr, service.name())));
            }
            for port in endpoint.flat_map(|endpoint| &endpoint.ports).filter(|port| port.publish_mode == PublishMode::Ingress) {
                let owner = ingress.insert(port.published_port, service.id.clone()).filter(|owner| *owner != service.id);
                found = found.or(owner.map(|_| format!("port {} belongs to two services", port.published_port)));
            }
        }
        for task in view.tasks().filter(|task| task.status.state <= TaskState::Running) {
            for attached in &task.networks {
                for address in attached.addresses.iter().filter(|address| !address.is_empty()) {
                    let owner = addresses.insert((attached.network.id.to_string(), bare(address)), format!("task {}", task.id));
                    found = found.or(owner.map(|owner| format!("{address} is an address of {owner} and of task {}", task.id)));
                }
            }
            let Some(node) = task.node_id.as_ref().filter(|_| may_run(task.status.state)) else { continue };
            for port in host_ports(task) {
                let owner = ports.insert((node.clone(), port), task.id.clone());
                found = found.or(owner.map(|owner| format!("port {port} of a node belongs to task {owner} and to task {}", task.id)));
            }
        }
        if let Some(words) = found {
            self.fail("I11", words);
        }
    }

    /// I8: what an agent has been told by a message that names a revision.
    pub fn told(&mut self, node: &NodeId, told: &BTreeMap<TaskId, Arc<Task>>, view: Option<&View>, revision: Version) {
        let Some(view) = view else { return };
        let wanted = view.tasks_on_node(node).filter(|task| task.status.state >= TaskState::Assigned);
        let mut count = 0;
        for task in wanted {
            count += 1;
            let words = match told.get(&task.id) {
                Some(known) if same_but_status(known, &as_heard(task)) => continue,
                Some(known) => format!("has task {} to be {} and not {}", task.id, known.desired_state, task.desired_state),
                None => format!("was not told of task {}", task.id),
            };
            return self.fail("I8", format!("node {} at revision {}: {words}", short(node.as_str()), revision.0));
        }
        if count != told.len() {
            self.fail("I8", format!("node {} at revision {} has tasks that are not its own", short(node.as_str()), revision.0));
        }
    }

    /// A user was told that this is written.
    pub fn acknowledged(&mut self, actions: &[Action]) {
        for action in actions {
            if let Action::Create(Object::Service(service)) | Action::Update(Object::Service(service)) = action {
                self.acknowledged.insert((service.id.clone(), service.spec_version));
            }
        }
    }

    /// I1, when all is over.
    pub fn check_acknowledged(&mut self) {
        let lost = self.acknowledged.difference(&self.written).next().map(|(service, _)| service.clone());
        if let Some(service) = lost {
            self.fail("I1", format!("a user was told that service {service} is written, and it is not"));
        }
    }
}

/// What does not travel is not told.
fn as_heard(task: &Task) -> Task {
    let mut heard = task.clone();
    for attached in &mut heard.networks {
        Arc::make_mut(&mut attached.network).meta.created = Version::default();
    }
    heard
}

/// Without the length of the prefix.
fn bare(address: &str) -> String {
    address.split('/').next().unwrap_or_default().to_owned()
}

fn host_ports(task: &Task) -> impl Iterator<Item = u32> + '_ {
    let ports = task.endpoint.iter().flat_map(|endpoint| &endpoint.spec.ports);
    ports.filter(|port| port.publish_mode == PublishMode::Host && port.published_port > 0).map(|port| port.published_port)
}
