//! What one node should have, and what has to be said to get it there. Pure.
//!
//! An [`AssignmentSet`] remembers what one Assignments stream has said so far. Given the tasks that may have changed, it
//! compares them with the view and returns the difference: cost O(tasks that changed), whatever the size of the cluster.
//!
//! Rules: spec wire-behaviour 8.6 (`SK/manager/dispatcher/assignments.go`).

use super::trail::Step;
use skep_types::{ClusterView, Config, ConfigId, NodeId, ResourceKind, Secret, SecretId, Task, TaskId, TaskState};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

/// One thing an agent is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Task(Arc<Task>),
    TaskGone(TaskId),
    Secret(Arc<Secret>),
    SecretGone(SecretId),
    Config(Arc<Config>),
    ConfigGone(ConfigId),
}

/// Who uses what: an object is sent with its first user and taken back after its last.
#[derive(Debug)]
struct References<Id> {
    users: HashMap<Id, HashSet<TaskId>>,
}

impl<Id> Default for References<Id> {
    fn default() -> Self {
        Self { users: HashMap::new() }
    }
}

impl<Id: Eq + Hash + Clone> References<Id> {
    /// Whether this is the first user.
    fn add(&mut self, id: &Id, task: &TaskId) -> bool {
        let users = self.users.entry(id.clone()).or_default();
        users.insert(task.clone()) && users.len() == 1
    }

    /// Whether this was the last user.
    fn release(&mut self, id: &Id, task: &TaskId) -> bool {
        let Some(users) = self.users.get_mut(id) else { return false };
        let was_user = users.remove(task);
        if users.is_empty() {
            self.users.remove(id);
        }
        was_user && !self.users.contains_key(id)
    }
}

/// What one stream has told its agent.
#[derive(Debug)]
pub struct AssignmentSet {
    node: NodeId,
    tasks: HashMap<TaskId, Known>,
    secrets: References<SecretId>,
    configs: References<ConfigId>,
}

#[derive(Debug)]
struct Known {
    task: Arc<Task>,
    /// The secrets and configs that were counted for it, and are released with it.
    needs: Needs,
}

/// The secrets and configs a task reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    secrets: BTreeSet<SecretId>,
    configs: BTreeSet<ConfigId>,
}

impl Needs {
    pub fn of(task: &Task) -> Self {
        let mut needs = Self::default();
        for reference in &task.spec.resource_references {
            match reference.kind {
                ResourceKind::Secret => needs.secrets.extend(reference.resource_id.parse::<SecretId>().ok()),
                ResourceKind::Config => needs.configs.extend(reference.resource_id.parse::<ConfigId>().ok()),
                ResourceKind::Task | ResourceKind::Volume => {}
            }
        }
        if let Some(container) = task.spec.container() {
            needs.secrets.extend(container.secrets.iter().map(|reference| reference.secret_id.clone()));
            needs.configs.extend(container.configs.iter().map(|reference| reference.config_id.clone()));
        }
        needs
    }

    pub fn add(&mut self, other: Self) {
        self.secrets.extend(other.secrets);
        self.configs.extend(other.configs);
    }
}

impl AssignmentSet {
    pub fn new(node: NodeId) -> Self {
        Self { node, tasks: HashMap::new(), secrets: References::default(), configs: References::default() }
    }

    /// Everything for a stream that has said nothing yet.
    pub fn complete(&mut self, view: &impl ClusterView) -> Vec<Change> {
        let mut ids: Vec<TaskId> = view.tasks_on_node(&self.node).map(|task| task.id.clone()).collect();
        ids.sort_unstable();
        self.difference(view, ids)
    }

    /// For a stream whose agent was told everything by another one, up to a revision: what it missed. `steps` are all steps of
    /// its node behind that revision, and perhaps some that `view` does not show yet.
    ///
    /// What the agent was told exactly is not known: the other stream may have been ahead of the revision it named. So a task
    /// that had any step is told as it is now, or that it is gone, and what any of its editions needed is brought in order.
    /// Saying a thing twice does no harm.
    pub fn resume(&mut self, view: &impl ClusterView, steps: &[Step]) -> Vec<Change> {
        // From here on this stream knows as much as one that had said it all itself.
        drop(self.complete(view));
        let mut changes = Vec::new();
        let mut missing = Needs::default();
        let mut doubtful = Needs::default();
        for step in steps {
            if step.new_needs
                && let Some(known) = self.tasks.get(&step.task)
            {
                missing.add(known.needs.clone());
            }
            doubtful.add(step.needs.clone());
        }
        changes.extend(missing.secrets.iter().filter_map(|id| view.secret(id).cloned().map(Change::Secret)));
        changes.extend(missing.configs.iter().filter_map(|id| view.config(id).cloned().map(Change::Config)));
        let told: BTreeSet<&TaskId> = steps.iter().filter(|step| step.told).map(|step| &step.task).collect();
        changes.extend(told.into_iter().map(|id| match self.tasks.get(id) {
            Some(known) => Change::Task(known.task.clone()),
            None => Change::TaskGone(id.clone()),
        }));
        changes.extend(doubtful.secrets.into_iter().filter(|id| !self.secrets.users.contains_key(id)).map(Change::SecretGone));
        changes.extend(doubtful.configs.into_iter().filter(|id| !self.configs.users.contains_key(id)).map(Change::ConfigGone));
        changes
    }

    /// The tasks the agent was told of.
    pub fn known(&self) -> impl Iterator<Item = TaskId> + '_ {
        self.tasks.keys().cloned()
    }

    /// What to say about these tasks now. Tasks that are as they were said to be add nothing.
    ///
    /// Secrets and configs come before the tasks that read them; what is taken back comes last.
    pub fn difference(&mut self, view: &impl ClusterView, candidates: impl IntoIterator<Item = TaskId>) -> Vec<Change> {
        let mut dependencies = Vec::new();
        let mut tasks = Vec::new();
        let mut gone = Vec::new();
        for id in candidates {
            let wanted =
                view.task(&id).filter(|task| task.node_id.as_ref() == Some(&self.node) && task.status.state >= TaskState::Assigned);
            match wanted {
                Some(task) => self.tell(view, task, &mut dependencies, &mut tasks, &mut gone),
                None => {
                    if let Some(known) = self.tasks.remove(&id) {
                        self.release(&id, &known.needs, &mut gone);
                        tasks.push(Change::TaskGone(id));
                    }
                }
            }
        }
        dependencies.extend(tasks);
        // An object released by one task and needed by a later one in the same batch stays.
        gone.retain(|change| match change {
            Change::SecretGone(id) => !self.secrets.users.contains_key(id),
            Change::ConfigGone(id) => !self.configs.users.contains_key(id),
            _ => true,
        });
        dependencies.extend(gone);
        dependencies
    }

    fn tell(
        &mut self,
        view: &impl ClusterView,
        task: &Arc<Task>,
        dependencies: &mut Vec<Change>,
        tasks: &mut Vec<Change>,
        gone: &mut Vec<Change>,
    ) {
        let alive = task.status.state <= TaskState::Running;
        let Some(known) = self.tasks.get_mut(&task.id) else {
            // A task already past RUNNING is sent without what it would need to run.
            let needs = if alive { Needs::of(task) } else { Needs::default() };
            for id in &needs.secrets {
                if self.secrets.add(id, &task.id) {
                    dependencies.extend(view.secret(id).cloned().map(Change::Secret));
                }
            }
            for id in &needs.configs {
                if self.configs.add(id, &task.id) {
                    dependencies.extend(view.config(id).cloned().map(Change::Config));
                }
            }
            tasks.push(Change::Task(task.clone()));
            self.tasks.insert(task.id.clone(), Known { task: task.clone(), needs });
            return;
        };
        let released = if alive { Needs::default() } else { std::mem::take(&mut known.needs) };
        if known.task.meta.version != task.meta.version && (task.status.state <= TaskState::Assigned || !same_but_status(&known.task, task))
        {
            tasks.push(Change::Task(task.clone()));
        }
        known.task = task.clone();
        self.release(&task.id, &released, gone);
    }

    fn release(&mut self, task: &TaskId, needs: &Needs, gone: &mut Vec<Change>) {
        for id in &needs.secrets {
            if self.secrets.release(id, task) {
                gone.push(Change::SecretGone(id.clone()));
            }
        }
        for id in &needs.configs {
            if self.configs.release(id, task) {
                gone.push(Change::ConfigGone(id.clone()));
            }
        }
    }
}

/// Whether a change from `old` to `new` may have to be said to an agent. Decides, without knowing any stream, whether one
/// is woken up at all: most commits are status reports that no agent needs to hear of.
pub fn concerns_agent(old: &Task, new: &Task) -> bool {
    new.status.state >= TaskState::Assigned
        && (new.status.state <= TaskState::Assigned
            || (old.status.state <= TaskState::Running && new.status.state > TaskState::Running)
            || !same_but_status(old, new))
}

/// Whether two versions of a task differ at most in what agents report (`status`) and what the store sets (`meta`).
pub fn same_but_status(a: &Task, b: &Task) -> bool {
    // Every field by name: a new one must be thought about here.
    let Task {
        id,
        meta: _,
        spec,
        spec_version,
        service_id,
        slot,
        node_id,
        annotations,
        service_annotations,
        status: _,
        desired_state,
        networks,
        endpoint,
        log_driver,
        assigned_generic_resources,
        job_iteration,
    } = a;
    *id == b.id
        && *desired_state == b.desired_state
        && *slot == b.slot
        && *spec_version == b.spec_version
        && *service_id == b.service_id
        && *node_id == b.node_id
        && *job_iteration == b.job_iteration
        && (Arc::ptr_eq(spec, &b.spec) || spec == &b.spec)
        && *annotations == b.annotations
        && *service_annotations == b.service_annotations
        && *networks == b.networks
        && *endpoint == b.endpoint
        && *log_driver == b.log_driver
        && *assigned_generic_resources == b.assigned_generic_resources
}

#[cfg(test)]
pub(crate) mod tests;
