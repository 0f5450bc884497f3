//! Who decides what, and what each has to look at.

use skep_plan::{Allocator, Concerned, Plan, Scheduler};
use skep_store::View;
use skep_types::{Change, ClusterView as _, Node, NodeId, NodeState, Object, ServiceId, Task, TaskId, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Services looked at before a plan is committed: a leader's first look at thousands is cut into pieces.
const SERVICES_PER_PLAN: usize = 64;

/// Things to look at, now or at a given time.
#[derive(Debug)]
struct Agenda<K> {
    now: BTreeSet<K>,
    later: BTreeMap<K, Timestamp>,
    /// The same by time, so that the next one is found at once among thousands.
    by_time: BTreeSet<(Timestamp, K)>,
}

impl<K> Default for Agenda<K> {
    fn default() -> Self {
        Self { now: BTreeSet::new(), later: BTreeMap::new(), by_time: BTreeSet::new() }
    }
}

impl<K: Ord + Clone> Agenda<K> {
    fn add(&mut self, key: K) {
        self.now.insert(key);
    }

    /// The earlier of two wishes counts.
    fn at(&mut self, key: K, when: Timestamp) {
        if self.later.get(&key).is_none_or(|before| when < *before) {
            self.forget_later(&key);
            self.later.insert(key.clone(), when);
            self.by_time.insert((when, key));
        }
    }

    fn forget_later(&mut self, key: &K) {
        if let Some(when) = self.later.remove(key) {
            self.by_time.remove(&(when, key.clone()));
        }
    }

    /// What is due, at most `limit` of it.
    fn take(&mut self, now: Timestamp, limit: usize) -> Vec<K> {
        while let Some((when, _)) = self.by_time.first()
            && *when <= now
        {
            let Some((_, key)) = self.by_time.pop_first() else { break };
            self.later.remove(&key);
            self.now.insert(key);
        }
        let mut taken = Vec::new();
        while taken.len() < limit
            && let Some(key) = self.now.pop_first()
        {
            // A look now settles anew when to look again.
            self.forget_later(&key);
            taken.push(key);
        }
        taken
    }

    /// When something is due next.
    fn next(&self, now: Timestamp) -> Option<Timestamp> {
        if self.now.is_empty() { self.by_time.first().map(|(when, _)| *when) } else { Some(now) }
    }
}

/// All deciders with what they have to look at.
pub(super) struct Deciders {
    services: Agenda<ServiceId>,
    concerned: Concerned,
    allocator: Allocator,
    scheduler: Scheduler,
    reaping: BTreeSet<ServiceId>,
    /// The history limit has changed.
    reap_all: bool,
    strays: BTreeMap<TaskId, Arc<Task>>,
    enforcing: BTreeSet<NodeId>,
    /// Nodes that are DOWN, since when as far as this leader knows, and nodes that are gone.
    down: BTreeMap<NodeId, Timestamp>,
    /// How long a node may be down before its tasks count as lost.
    orphan_after: Duration,
    orphaning: Agenda<NodeId>,
}

impl Deciders {
    pub(super) const COUNT: usize = NAMES.len();

    pub(super) fn name(index: usize) -> &'static str {
        NAMES[index]
    }

    /// As a new leader begins: everything is looked at once.
    pub(super) fn new(view: &View, orphan_after: Duration, now: Timestamp) -> Self {
        let services = skep_plan::all_services(view);
        let mut this = Self {
            services: Agenda { now: services.clone(), ..Agenda::default() },
            concerned: Concerned::default(),
            allocator: Allocator::new(view),
            scheduler: Scheduler::new(view),
            reaping: services,
            reap_all: false,
            strays: BTreeMap::new(),
            enforcing: view.nodes().map(|node| node.id.clone()).collect(),
            down: BTreeMap::new(),
            orphan_after,
            orphaning: Agenda::default(),
        };
        for task in view.tasks() {
            if let Some(node) = &task.node_id
                && view.node(node).is_none()
            {
                this.orphaning.add(node.clone());
            }
            this.note_stray(task);
        }
        for node in view.nodes().filter(|node| node.status.state == NodeState::Down) {
            this.down.insert(node.id.clone(), now);
            this.orphaning.add(node.id.clone());
        }
        this
    }

    fn note_stray(&mut self, task: &Arc<Task>) {
        if task.service_id.is_none() {
            self.strays.insert(task.id.clone(), task.clone());
        }
    }

    /// A committed change.
    pub(super) fn observe(&mut self, change: &Change, now: Timestamp) {
        self.allocator.observe(change);
        self.scheduler.observe(change);
        self.concerned.add(change);
        match change {
            Change::Created(Object::Task(task)) => {
                self.reaping.extend(task.service_id.clone());
                self.note_stray(task);
            }
            Change::Updated { old: Object::Task(old), new: Object::Task(new) } => {
                let has_ended = new.status.state.is_terminal() && !old.status.state.is_terminal();
                if has_ended || skep_plan::is_removable(new) {
                    self.reaping.extend(new.service_id.clone());
                }
                self.note_stray(new);
            }
            Change::Removed(Object::Task(task)) => {
                self.strays.remove(&task.id);
            }
            Change::Removed(Object::Service(service)) => {
                self.reaping.insert(service.id.clone());
            }
            Change::Created(Object::Node(node)) | Change::Updated { new: Object::Node(node), .. } => {
                if !matches!(change, Change::Updated { old: Object::Node(old), .. } if is_as_fit(old, node)) {
                    self.enforcing.insert(node.id.clone());
                }
                if node.status.state == NodeState::Down {
                    self.down.entry(node.id.clone()).or_insert(now);
                    self.orphaning.add(node.id.clone());
                } else {
                    self.down.remove(&node.id);
                }
            }
            Change::Removed(Object::Node(node)) => {
                self.down.remove(&node.id);
                self.orphaning.add(node.id.clone());
            }
            Change::Updated { old: Object::Cluster(old), new: Object::Cluster(new) } => {
                self.reap_all |= old.spec.task_history_retention_limit != new.spec.task_history_retention_limit;
            }
            _ => {}
        }
    }

    /// A change of a draft has been written. What was tried out had a version of its own for each step, and the store gave another:
    /// who keeps objects to propose something about them later needs that one.
    pub(super) fn confirm(&mut self, change: &Change) {
        self.scheduler.confirm(change.object());
    }

    /// What one decider proposes. `wake_at` of an empty plan says when it wants to be asked again.
    pub(super) fn plan(&mut self, index: usize, view: &View, now: Timestamp) -> Plan {
        match index {
            0 => self.plan_services(view, now),
            1 => self.plan_enforcement(view, now),
            2 => self.allocator.plan(view, now),
            3 => self.scheduler.schedule(now),
            4 => self.plan_orphans(view, now),
            _ => self.plan_reaping(view),
        }
    }

    fn plan_services(&mut self, view: &View, now: Timestamp) -> Plan {
        let Concerned { services, nodes } = std::mem::take(&mut self.concerned);
        self.services.now.extend(services);
        for node in nodes {
            self.services.now.extend(skep_plan::services_of_node(view, &node));
        }
        let mut plan = Plan::default();
        loop {
            let due = self.services.take(now, SERVICES_PER_PLAN);
            if due.is_empty() {
                break;
            }
            for service in due {
                let Plan { changes, wake_at } = skep_plan::plan_service(view, &service, &mut rand::random::<[u8; 17]>, now);
                if let Some(when) = wake_at {
                    self.services.at(service.clone(), when);
                }
                plan.changes.extend(changes);
            }
            if !plan.changes.is_empty() {
                break;
            }
        }
        plan.wake_at = self.services.next(now);
        plan
    }

    fn plan_enforcement(&mut self, view: &View, now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        for node in std::mem::take(&mut self.enforcing) {
            plan.merge(skep_plan::plan_enforcement(view, &node, now));
        }
        plan
    }

    fn plan_orphans(&mut self, view: &View, now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        for node in self.orphaning.take(now, usize::MAX) {
            let since = self.down.get(&node).copied().unwrap_or(now);
            let Plan { changes, wake_at } = skep_plan::plan_orphans(view, &node, since, self.orphan_after, now);
            plan.changes.extend(changes);
            if let Some(when) = wake_at {
                self.orphaning.at(node, when);
            }
        }
        plan.wake_at = self.orphaning.next(now);
        plan
    }

    fn plan_reaping(&mut self, view: &View) -> Plan {
        let mut plan = Plan::default();
        if std::mem::take(&mut self.reap_all) {
            self.reaping = skep_plan::all_services(view);
        }
        for service in std::mem::take(&mut self.reaping) {
            plan.merge(skep_plan::plan_reaping(view, &service));
        }
        let strays = std::mem::take(&mut self.strays).into_values().filter(|task| view.task(&task.id).is_some());
        plan.merge(skep_plan::plan_reaping_of_strays(strays));
        plan
    }
}

/// Whether nothing changed that constraints or reservations ask about.
fn is_as_fit(old: &Node, new: &Node) -> bool {
    old.spec == new.spec && old.description == new.description && old.role == new.role && old.status.addr == new.status.addr
}

const NAMES: [&str; 6] = ["orchestrators", "constraint enforcer", "allocator", "scheduler", "orphan keeper", "task reaper"];

#[cfg(test)]
mod tests {
    use super::super::draft::Draft;
    use super::*;
    use skep_store::Tables;
    use skep_types::{
        Action, Annotations, ContainerSpec, Placement, Runtime, Service, ServiceMode, ServiceSpec, TaskSpec, TaskState, Version,
    };

    fn waiting_service() -> Service {
        let container = ContainerSpec { image: "web:1".into(), ..ContainerSpec::default() };
        let task = TaskSpec {
            runtime: Runtime::Container(Box::new(container)),
            resources: None,
            restart: None,
            placement: Some(Placement { constraints: vec!["node.labels.disk == ssd".into()], ..Placement::default() }),
            log_driver: None,
            networks: Vec::new(),
            force_update: 0,
            resource_references: Vec::new(),
        };
        Service {
            id: ServiceId::for_test(1),
            meta: skep_types::Meta::default(),
            spec: ServiceSpec {
                annotations: Annotations { name: "web".into(), ..Annotations::default() },
                task: Arc::new(task),
                mode: ServiceMode::Replicated { replicas: 3 },
                update: None,
                rollback: None,
                networks: Vec::new(),
                endpoint: None,
            },
            spec_version: Some(Version(0)),
            previous_spec: None,
            previous_spec_version: None,
            endpoint: None,
            update_status: None,
            job_status: None,
            pending_delete: false,
        }
    }

    /// Asks all until nobody adds anything, as the loop does; a proposal that does not fit fails the test.
    fn decide(deciders: &mut Deciders, draft: &mut Draft, now: Timestamp) {
        loop {
            let before = draft.len();
            for index in 0..Deciders::COUNT {
                let plan = deciders.plan(index, draft.view(), now);
                for change in draft.add(&plan.changes, now).expect("it fits") {
                    deciders.observe(change, now);
                }
            }
            if draft.len() == before {
                return;
            }
        }
    }

    /// Services whose tasks cannot be placed at once, and large ones whose draft is written in pieces: the scheduler remembered the
    /// versions of the draft.
    #[test]
    fn a_task_that_had_to_wait_is_placed_on_what_was_really_written() {
        let now = Timestamp::from_secs(1_000);
        let mut tables = Tables::new();
        tables.apply(Version(1), now, &[Action::Create(Object::Service(Arc::new(waiting_service())))]).unwrap();
        let mut deciders = Deciders::new(&View::from(tables.clone()), Duration::from_secs(86_400), now);
        let mut draft = Draft::new(View::from(tables.clone()));
        decide(&mut deciders, &mut draft, now);
        // Somebody else wrote first, so the store gives a version that no step of the draft had.
        for change in tables.apply(Version(20), now, &draft.actions()).unwrap() {
            deciders.confirm(&change);
        }
        let mut node = Node::new(NodeId::for_test(1));
        node.status.state = NodeState::Ready;
        node.spec.annotations.labels.insert("disk".into(), "ssd".into());
        for change in tables.apply(Version(21), now, &[Action::Create(Object::Node(Arc::new(node)))]).unwrap() {
            deciders.observe(&change, now);
        }
        let mut draft = Draft::new(View::from(tables.clone()));
        decide(&mut deciders, &mut draft, now + Duration::from_secs(60));
        tables.apply(Version(22), now, &draft.actions()).unwrap();
        let placed = View::from(tables).tasks().filter(|task| task.status.state == TaskState::Assigned).count();
        assert_eq!(placed, 3);
    }

    #[test]
    fn an_agenda_gives_what_is_due_and_says_when_the_next_is() {
        let mut agenda = Agenda::default();
        agenda.add("now");
        agenda.at("later", Timestamp(20));
        agenda.at("later", Timestamp(30));
        assert_eq!(agenda.next(Timestamp(5)), Some(Timestamp(5)));
        assert_eq!(agenda.take(Timestamp(5), 10), ["now"]);
        assert_eq!(agenda.next(Timestamp(5)), Some(Timestamp(20)));
        assert_eq!(agenda.take(Timestamp(19), 10), Vec::<&str>::new());
        assert_eq!(agenda.take(Timestamp(20), 10), ["later"]);
        assert_eq!(agenda.next(Timestamp(20)), None);
    }

    #[test]
    fn a_long_agenda_is_taken_in_pieces() {
        let mut agenda = Agenda::default();
        (0..5).for_each(|n| agenda.add(n));
        assert_eq!(agenda.take(Timestamp(0), 3), [0, 1, 2]);
        assert_eq!(agenda.next(Timestamp(7)), Some(Timestamp(7)));
        assert_eq!(agenda.take(Timestamp(0), 3), [3, 4]);
    }
}
