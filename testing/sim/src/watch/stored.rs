//! What is stored, told and acknowledged.

use super::Watch;
use crate::raft::short;
use skep_manager::pure::same_but_status;
use skep_store::View;
use skep_types::{Action, ClusterView as _, NodeId, Object, Task, TaskId, TaskState, Version};
use std::collections::BTreeMap;
use std::sync::Arc;

impl Watch {
    /// I11 among what is stored: what this commit gave.
    pub(super) fn unique(&mut self) {
        if let Some(words) = self.owners.twice() {
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
            let known = told.get(&task.id);
            let same = |(known, (one, two)): (&Arc<Task>, &(Arc<Task>, Arc<Task>))| Arc::ptr_eq(known, one) && Arc::ptr_eq(task, two);
            if known.zip(self.compared.get(&task.id)).is_some_and(same) {
                continue;
            }
            let words = match known {
                Some(known) if same_but_status(known, &as_heard(task)) => {
                    self.compared.insert(task.id.clone(), (Arc::clone(known), Arc::clone(task)));
                    continue;
                }
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
