//! The deciders on a draft and on what was written of it.

use super::deciders::Deciders;
use super::draft::Draft;
use skep_plan::Beginning;
use skep_store::{Tables, View};
use skep_types::{
    Action, Annotations, ClusterView as _, ContainerSpec, Kind, Node, NodeId, NodeState, Object, Placement, RestartCondition,
    RestartPolicy, Service, ServiceId, ServiceMode, ServiceSpec, Task, TaskSpec, TaskState, TaskStatus, Timestamp, Version,
};
use std::sync::Arc;
use std::time::Duration;

/// Three replicas that only nodes with a fast disk take.
fn waiting_service() -> Service {
    let container = ContainerSpec { image: "web:1".into(), ..ContainerSpec::default() };
    let task = TaskSpec {
        placement: Some(Placement { constraints: vec!["node.labels.disk == ssd".into()], ..Placement::default() }),
        ..TaskSpec::new(container)
    };
    Service {
        spec_version: Some(Version(0)),
        ..Service::new(
            ServiceId::for_test(1),
            ServiceSpec {
                annotations: Annotations { name: "web".into(), ..Annotations::default() },
                task: Arc::new(task),
                mode: ServiceMode::Replicated { replicas: 3 },
                update: None,
                rollback: None,
                networks: Vec::new(),
                endpoint: None,
            },
        )
    }
}

fn fast_node() -> Node {
    let mut node = Node::new(NodeId::for_test(1));
    node.status.state = NodeState::Ready;
    node.spec.annotations.labels.insert("disk".into(), "ssd".into());
    node
}

/// A cluster whose deciders have nothing to do: three tasks run on a node.
struct Calm {
    tables: Tables,
    deciders: Deciders,
    now: Timestamp,
}

impl Calm {
    fn new() -> Self {
        let now = Timestamp::from_secs(1_000);
        let mut service = waiting_service();
        let restart = RestartPolicy { condition: RestartCondition::Any, delay: Some(Duration::ZERO), ..RestartPolicy::default() };
        Arc::make_mut(&mut service.spec.task).restart = Some(restart);
        let mut tables = Tables::new();
        let objects = [Object::Service(Arc::new(service)), Object::Node(Arc::new(fast_node()))];
        tables.apply(Version(1), now, &objects.map(Action::Create)).unwrap();
        let deciders =
            Deciders::new(&View::from(tables.clone()), Duration::from_secs(86_400), Beginning { at: now, revision: Version(0) }, now);
        let mut this = Self { tables, deciders, now };
        this.draft_and_write();
        let reports: Vec<Action> = this.view().tasks().map(|task| report(task, TaskState::Running, now)).collect();
        this.write(&reports);
        assert!(this.draft().is_empty());
        this.now = now + Duration::from_secs(600);
        this
    }

    fn view(&self) -> View {
        View::from(self.tables.clone())
    }

    fn draft(&mut self) -> Draft {
        let mut draft = Draft::new(self.view());
        decide(&mut self.deciders, &mut draft, self.now);
        draft
    }

    fn take_back(&mut self, draft: Draft) {
        draft.undo().for_each(|change| self.deciders.take_back(&change, self.now));
    }

    /// A commit of somebody else.
    fn write(&mut self, actions: &[Action]) {
        let version = Version(self.tables.revision().0 + 1);
        for change in self.tables.apply(version, self.now, actions).unwrap() {
            self.deciders.observe(&change, self.now);
        }
    }

    fn draft_and_write(&mut self) {
        let draft = self.draft();
        let version = Version(self.tables.revision().0 + 1);
        for change in self.tables.apply(version, self.now, &draft.actions()).unwrap() {
            self.deciders.confirm(&change);
        }
    }
}

fn report(task: &Task, state: TaskState, now: Timestamp) -> Action {
    let status = TaskStatus { timestamp: now, state, applied_at: Some(now), ..TaskStatus::default() };
    Action::SetTaskStatus { task: task.id.clone(), status }
}

/// Asks all until nobody adds anything, as the loop does; a proposal that does not fit fails the test.
fn decide(deciders: &mut Deciders, draft: &mut Draft, now: Timestamp) {
    loop {
        let before = draft.len();
        for index in 0..Deciders::COUNT {
            let plan = deciders.plan(index, draft.view(), &mut rand::random::<[u8; 17]>, now);
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
    let mut deciders =
        Deciders::new(&View::from(tables.clone()), Duration::from_secs(86_400), Beginning { at: now, revision: Version(0) }, now);
    let mut draft = Draft::new(View::from(tables.clone()));
    decide(&mut deciders, &mut draft, now);
    // Somebody else wrote first, so the store gives a version that no step of the draft had.
    for change in tables.apply(Version(20), now, &draft.actions()).unwrap() {
        deciders.confirm(&change);
    }
    for change in tables.apply(Version(21), now, &[Action::Create(Object::Node(Arc::new(fast_node())))]).unwrap() {
        deciders.observe(&change, now);
    }
    let mut draft = Draft::new(View::from(tables.clone()));
    decide(&mut deciders, &mut draft, now + Duration::from_secs(60));
    tables.apply(Version(22), now, &draft.actions()).unwrap();
    let placed = View::from(tables).tasks().filter(|task| task.status.state == TaskState::Assigned).count();
    assert_eq!(placed, 3);
}

/// The report of the failure, this write, and the report that the new one runs: no step in between costs another.
#[test]
fn a_failed_task_is_replaced_in_one_write() {
    let mut calm = Calm::new();
    let failed = calm.view().tasks().next().unwrap().clone();
    calm.write(&[report(&failed, TaskState::Failed, calm.now)]);
    calm.draft_and_write();
    let view = calm.view();
    let mut slot = view.tasks().filter(|task| task.slot == failed.slot && task.id != failed.id);
    let replacement = slot.next().unwrap().clone();
    assert_eq!((replacement.status.state, replacement.desired_state), (TaskState::Assigned, TaskState::Running));
    assert_eq!(view.task(&failed.id).unwrap().desired_state, TaskState::Shutdown);
    assert!(calm.draft().is_empty());
    calm.write(&[report(&replacement, TaskState::Running, calm.now)]);
    assert!(calm.draft().is_empty(), "that it runs asks for nothing");
}

/// The wishes for the tasks that are too many were tried out and taken back: the service has to be counted again.
#[test]
fn what_was_decided_about_a_whole_service_and_taken_back_is_decided_again() {
    let mut calm = Calm::new();
    let mut service = Service::clone(calm.view().services().next().unwrap());
    service.spec.mode = ServiceMode::Replicated { replicas: 1 };
    calm.write(&[Action::Update(Object::Service(Arc::new(service)))]);
    let draft = calm.draft();
    let first = draft.actions();
    assert_eq!(first.len(), 2, "{first:?}");
    calm.take_back(draft);
    assert_eq!(calm.draft().actions(), first);
}

/// That they are lost is looked at when the node goes; a task that reported at that moment had the decision refused.
#[test]
fn that_tasks_of_a_removed_node_are_lost_is_decided_again_if_it_was_taken_back() {
    let mut calm = Calm::new();
    let node = calm.view().nodes().next().unwrap().id.clone();
    calm.write(&[Action::Remove { kind: Kind::Node, id: node.to_string(), version: None }]);
    let lost = |draft: &Draft| draft.view().tasks().filter(|task| task.status.state == TaskState::Orphaned).count();
    let draft = calm.draft();
    assert_eq!(lost(&draft), 3);
    calm.take_back(draft);
    let reports: Vec<Action> = calm.view().tasks().map(|task| report(task, TaskState::Running, calm.now)).collect();
    calm.write(&reports);
    assert_eq!(lost(&calm.draft()), 3);
}

/// The same of tasks that have to leave a node as it does not suit them any more.
#[test]
fn that_tasks_do_not_suit_their_node_is_decided_again_if_it_was_taken_back() {
    let mut calm = Calm::new();
    let mut node = Node::clone(calm.view().nodes().next().unwrap());
    node.spec.annotations.labels.clear();
    calm.write(&[Action::Update(Object::Node(Arc::new(node)))]);
    let asked = |draft: &Draft| draft.view().tasks().filter(|task| task.desired_state == TaskState::Shutdown).count();
    let draft = calm.draft();
    let decided = asked(&draft);
    assert_eq!(decided, 3);
    calm.take_back(draft);
    let reports: Vec<Action> = calm.view().tasks().map(|task| report(task, TaskState::Running, calm.now)).collect();
    calm.write(&reports);
    assert_eq!(asked(&calm.draft()), decided);
}
