use super::*;
use skep_store::{Tables, View};
use skep_types::{
    Action, Annotations, ConfigSpec, ContainerSpec, Object, Runtime, SecretReference, SecretSpec, Sensitive, TaskSpec, TaskStatus,
    Timestamp, Version,
};

/// A little cluster that can be changed.
struct World {
    tables: Tables,
    version: u64,
}

fn node() -> NodeId {
    NodeId::for_test(1)
}

fn task_id(number: u64) -> TaskId {
    TaskId::for_test(number)
}

fn secret_id(number: u64) -> SecretId {
    SecretId::for_test(number)
}

impl World {
    fn new() -> Self {
        let mut this = Self { tables: Tables::new(), version: 0 };
        for number in [100, 101] {
            let annotations = Annotations { name: format!("s{number}"), ..Annotations::default() };
            let spec = SecretSpec { annotations, data: Sensitive(vec![1]), ..SecretSpec::default() };
            let secret = Secret { id: secret_id(number), meta: Default::default(), spec, internal: false };
            this.apply(Action::Create(Object::Secret(Arc::new(secret))));
        }
        let config = Config { id: ConfigId::for_test(200), meta: Default::default(), spec: ConfigSpec::default() };
        this.apply(Action::Create(Object::Config(Arc::new(config))));
        this
    }

    fn apply(&mut self, action: Action) {
        self.version += 1;
        self.tables.apply(Version(self.version), Timestamp(0), &[action]).unwrap();
    }

    fn view(&self) -> View {
        View::from(self.tables.clone())
    }

    /// A task on our node that reads these secrets.
    fn add(&mut self, number: u64, secrets: &[u64], state: TaskState) {
        let secrets = secrets
            .iter()
            .map(|&number| SecretReference { secret_id: secret_id(number), secret_name: format!("s{number}"), file: None })
            .collect();
        let spec = TaskSpec {
            runtime: Runtime::Container(Box::new(ContainerSpec { secrets, ..ContainerSpec::default() })),
            resources: None,
            restart: None,
            placement: None,
            log_driver: None,
            networks: Vec::new(),
            force_update: 0,
            resource_references: Vec::new(),
        };
        let task = Task {
            id: task_id(number),
            meta: Default::default(),
            spec: Arc::new(spec),
            spec_version: None,
            service_id: None,
            slot: 1,
            node_id: Some(node()),
            annotations: Annotations::default(),
            service_annotations: Annotations::default(),
            status: TaskStatus { state, ..TaskStatus::default() },
            desired_state: TaskState::Running,
            networks: Vec::new(),
            endpoint: None,
            log_driver: None,
            assigned_generic_resources: Vec::new(),
            job_iteration: None,
        };
        self.apply(Action::Create(Object::Task(Arc::new(task))));
    }

    fn report(&mut self, number: u64, state: TaskState) {
        let status = TaskStatus { state, ..TaskStatus::default() };
        self.apply(Action::SetTaskStatus { task: task_id(number), status });
    }

    fn want(&mut self, number: u64, desired: TaskState) {
        self.apply(Action::SetTaskDesired { task: task_id(number), desired });
    }

    fn remove(&mut self, number: u64) {
        self.apply(Action::Remove { kind: skep_types::Kind::Task, id: task_id(number).to_string(), version: None });
    }
}

/// Changes in a form that is easy to compare.
fn said(changes: &[Change]) -> Vec<String> {
    let short = |id: &str| id.trim_start_matches('0').to_owned();
    let text = |change: &Change| match change {
        Change::Task(task) => format!("task {}", short(task.id.as_str())),
        Change::TaskGone(id) => format!("no task {}", short(id.as_str())),
        Change::Secret(secret) => format!("secret {}", short(secret.id.as_str())),
        Change::SecretGone(id) => format!("no secret {}", short(id.as_str())),
        Change::Config(config) => format!("config {}", short(config.id.as_str())),
        Change::ConfigGone(id) => format!("no config {}", short(id.as_str())),
    };
    changes.iter().map(text).collect()
}

#[test]
fn the_first_message_holds_everything_with_each_secret_once() {
    let mut world = World::new();
    world.add(1, &[100], TaskState::Assigned);
    world.add(2, &[100, 101], TaskState::Running);
    world.add(3, &[101], TaskState::Pending);
    world.add(4, &[101], TaskState::Failed);
    let mut set = AssignmentSet::new(node());
    let changes = set.complete(&world.view());
    assert_eq!(said(&changes), ["secret 100", "secret 101", "task 1", "task 2", "task 4"]);
}

#[test]
fn progress_of_a_task_is_not_told_to_the_agent_that_reported_it() {
    let mut world = World::new();
    world.add(1, &[], TaskState::Assigned);
    let mut set = AssignmentSet::new(node());
    set.complete(&world.view());
    world.report(1, TaskState::Running);
    assert_eq!(said(&set.difference(&world.view(), [task_id(1)])), Vec::<String>::new());
    world.want(1, TaskState::Shutdown);
    assert_eq!(said(&set.difference(&world.view(), [task_id(1)])), ["task 1"]);
    assert_eq!(said(&set.difference(&world.view(), [task_id(1)])), Vec::<String>::new(), "nothing is said twice");
}

#[test]
fn a_secret_goes_with_its_last_user() {
    let mut world = World::new();
    world.add(1, &[100], TaskState::Assigned);
    world.add(2, &[100], TaskState::Assigned);
    let mut set = AssignmentSet::new(node());
    set.complete(&world.view());
    world.report(1, TaskState::Failed);
    assert_eq!(said(&set.difference(&world.view(), [task_id(1)])), Vec::<String>::new());
    world.remove(2);
    assert_eq!(said(&set.difference(&world.view(), [task_id(2)])), ["no task 2", "no secret 100"]);
    world.remove(1);
    assert_eq!(said(&set.difference(&world.view(), [task_id(1)])), ["no task 1"]);
}

#[test]
fn a_secret_that_passes_from_one_task_to_the_next_in_one_message_stays() {
    let mut world = World::new();
    world.add(1, &[100], TaskState::Running);
    let mut set = AssignmentSet::new(node());
    set.complete(&world.view());
    world.report(1, TaskState::Failed);
    world.add(2, &[100], TaskState::Assigned);
    let changes = set.difference(&world.view(), [task_id(1), task_id(2)]);
    assert_eq!(said(&changes), ["secret 100", "task 2"]);
}

#[test]
fn a_missing_secret_is_skipped_and_a_task_elsewhere_is_none_of_ours() {
    let mut world = World::new();
    world.add(1, &[999], TaskState::Assigned);
    let mut set = AssignmentSet::new(node());
    assert_eq!(said(&set.complete(&world.view())), ["task 1"]);
    let mut other = AssignmentSet::new(NodeId::for_test(2));
    assert_eq!(said(&other.complete(&world.view())), Vec::<String>::new());
    assert_eq!(said(&other.difference(&world.view(), [task_id(1)])), Vec::<String>::new());
}

#[test]
fn an_agent_is_woken_only_for_what_concerns_it() {
    let mut world = World::new();
    world.add(1, &[], TaskState::Assigned);
    let task = |world: &World| world.view().task(&task_id(1)).unwrap().clone();
    let mut before = task(&world);
    let mut step = |world: &mut World, change: fn(&mut World)| {
        change(world);
        let after = task(world);
        let concerns = concerns_agent(&before, &after);
        before = after;
        concerns
    };
    assert!(!step(&mut world, |world| world.report(1, TaskState::Preparing)));
    assert!(!step(&mut world, |world| world.report(1, TaskState::Running)));
    assert!(step(&mut world, |world| world.want(1, TaskState::Shutdown)));
    assert!(step(&mut world, |world| world.report(1, TaskState::Shutdown)), "its secrets are released");
}
