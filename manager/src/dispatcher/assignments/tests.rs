use super::*;
use crate::dispatcher::trail::Trail;
use skep_store::{Commit, Tables, View};
use skep_types::{
    Action, Annotations, ConfigSpec, ContainerSpec, Object, SecretReference, SecretSpec, Sensitive, TaskSpec, TaskStatus, Timestamp,
    Version,
};

/// A little cluster that can be changed.
pub(crate) struct World {
    tables: Tables,
    version: u64,
    pub(crate) commits: Vec<Commit>,
}

pub(crate) fn node() -> NodeId {
    NodeId::for_test(1)
}

pub(crate) fn task_id(number: u64) -> TaskId {
    TaskId::for_test(number)
}

fn secret_id(number: u64) -> SecretId {
    SecretId::for_test(number)
}

impl World {
    pub(crate) fn new() -> Self {
        let mut this = Self { tables: Tables::new(), version: 0, commits: Vec::new() };
        for number in 100..104 {
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
        let version = Version(self.version + 1);
        let changes = self.tables.apply(version, Timestamp(0), &[action]).unwrap();
        if !changes.is_empty() {
            self.version = version.0;
            self.commits.push(Commit { version, changes });
        }
    }

    pub(crate) fn version(&self) -> Version {
        Version(self.version)
    }

    pub(crate) fn view(&self) -> View {
        View::from(self.tables.clone())
    }

    /// A task on our node that reads these secrets.
    pub(crate) fn add(&mut self, number: u64, secrets: &[u64], state: TaskState) {
        self.add_on(node(), number, secrets, state);
    }

    pub(crate) fn add_on(&mut self, node: NodeId, number: u64, secrets: &[u64], state: TaskState) {
        let secrets = secrets
            .iter()
            .map(|&number| SecretReference { secret_id: secret_id(number), secret_name: format!("s{number}"), file: None })
            .collect();
        let spec = TaskSpec::new(ContainerSpec { secrets, ..ContainerSpec::default() });
        let task = Task {
            id: task_id(number),
            meta: Default::default(),
            spec: Arc::new(spec),
            spec_version: None,
            service_id: None,
            slot: 1,
            node_id: Some(node),
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

    pub(crate) fn report(&mut self, number: u64, state: TaskState) {
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

/// What an agent has after the messages it got: tasks with their wishes, and secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Has {
    tasks: BTreeSet<(TaskId, TaskState)>,
    secrets: BTreeSet<SecretId>,
    configs: BTreeSet<ConfigId>,
}

impl Has {
    fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Task(task) => {
                    self.tasks.retain(|(id, _)| *id != task.id);
                    self.tasks.insert((task.id.clone(), task.desired_state));
                }
                Change::TaskGone(gone) => self.tasks.retain(|(id, _)| id != gone),
                Change::Secret(secret) => drop(self.secrets.insert(secret.id.clone())),
                Change::SecretGone(id) => drop(self.secrets.remove(id)),
                Change::Config(config) => drop(self.configs.insert(config.id.clone())),
                Change::ConfigGone(id) => drop(self.configs.remove(id)),
            }
        }
    }

    /// What a complete message gives.
    fn complete(view: &View) -> Self {
        let mut has = Self::default();
        has.apply(&AssignmentSet::new(node()).complete(view));
        has
    }
}

/// Even numbers from one seed (SplitMix64), so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

impl World {
    /// Something that may happen in a cluster.
    fn happen(&mut self, dice: &mut Dice, next: &mut u64) {
        use TaskState::{Assigned, Failed, New, Pending, Preparing, Running, Shutdown};
        let some = 1 + dice.below((*next).max(2) - 1);
        let known = self.tables.task(&task_id(some)).is_some();
        match dice.below(8) {
            0 | 1 => {
                let secrets: Vec<u64> = (100..104).filter(|_| dice.below(3) == 0).collect();
                let on = NodeId::for_test(1 + dice.below(2));
                let state = [New, Pending, Assigned, Assigned, Running, Failed][dice.below(6) as usize];
                self.add_on(on, *next, &secrets, state);
                *next += 1;
            }
            2..=4 if known => {
                let state = [Assigned, Preparing, Running, Failed, Shutdown][dice.below(5) as usize];
                let before = self.tables.task(&task_id(some)).map(|task| task.status.state);
                if before.is_some_and(|before| before < state) {
                    self.report(some, state);
                }
            }
            5 if known => self.want(some, if dice.below(2) == 0 { Shutdown } else { TaskState::Remove }),
            6 if known => self.remove(some),
            _ => {}
        }
    }
}

/// A stream, the agent at its end, and how far the router has got.
struct Stream {
    set: AssignmentSet,
    has: Has,
    /// What the agent would offer to another manager.
    named: Version,
}

impl Stream {
    fn begin(view: &View) -> Self {
        let mut set = AssignmentSet::new(node());
        let mut has = Has::default();
        has.apply(&set.complete(view));
        Self { set, has, named: view.version() }
    }

    /// Says what it was woken for: the commits behind `from` up to `routed`, while the view may be ahead.
    fn talk(&mut self, world: &World, routed: Version) {
        let woken: Vec<TaskId> = world
            .commits
            .iter()
            .filter(|commit| commit.version <= routed)
            .flat_map(|commit| &commit.changes)
            .filter_map(|change| match change {
                skep_types::Change::Created(Object::Task(task)) | skep_types::Change::Removed(Object::Task(task)) => Some(task.id.clone()),
                skep_types::Change::Updated { new: Object::Task(task), .. } => Some(task.id.clone()),
                _ => None,
            })
            .collect();
        let changes = self.set.difference(&world.view(), woken);
        self.has.apply(&changes);
        self.named = self.named.max(routed);
    }
}

#[test]
fn an_agent_that_goes_on_with_another_leader_has_what_a_complete_message_would_give() {
    // How often one forgotten step would have been noticed: a test that cannot fail says nothing.
    let mut noticed = 0;
    for seed in 0..500 {
        let mut dice = Dice(seed);
        let (mut world, mut next) = (World::new(), 1);
        let mut stream = Stream::begin(&world.view());
        let mut routed = world.version();
        for leader in 0..4 {
            for _ in 0..dice.below(40) {
                world.happen(&mut dice, &mut next);
                // The router follows, and so does the stream, each a bit behind.
                if dice.below(3) == 0 {
                    routed = Version(routed.0 + dice.below(world.version().0 - routed.0 + 1));
                }
                if dice.below(3) == 0 {
                    stream.talk(&world, routed);
                }
            }
            // Whoever leads next has applied everything. Its trail may have got a few more steps than its view shows.
            let view = world.view();
            for _ in 0..dice.below(4) {
                world.happen(&mut dice, &mut next);
            }
            let mut trail = Trail::new(Version(0));
            world.commits.iter().for_each(|commit| trail.add(commit));
            let steps = trail.since(&node(), stream.named).expect("everything was kept");
            if let Some((_, rest)) = steps.split_last() {
                let mut has = stream.has.clone();
                has.apply(&AssignmentSet::new(node()).resume(&view, rest));
                noticed += usize::from(has != Has::complete(&view));
            }
            let mut set = AssignmentSet::new(node());
            let changes = set.resume(&view, &steps);
            stream.has.apply(&changes);
            assert_eq!(stream.has, Has::complete(&view), "seed {seed}, leader {leader}, said {:?}", said(&changes));
            stream.set = set;
            stream.named = stream.named.max(view.version());
            // From here the new stream goes on as any other.
            routed = world.version();
            stream.talk(&world, routed);
            assert_eq!(stream.has, Has::complete(&world.view()), "seed {seed}, behind leader {leader}");
        }
    }
    assert!(noticed > 100, "{noticed}");
}

#[test]
fn an_agent_that_missed_nothing_is_told_nothing() {
    let mut world = World::new();
    world.add(1, &[100], TaskState::Assigned);
    let stream = Stream::begin(&world.view());
    let mut trail = Trail::new(Version(0));
    world.report(1, TaskState::Running);
    world.add_on(NodeId::for_test(2), 2, &[100], TaskState::Assigned);
    world.commits.iter().for_each(|commit| trail.add(commit));
    let steps = trail.since(&node(), stream.named).unwrap();
    assert_eq!(AssignmentSet::new(node()).resume(&world.view(), &steps), []);
}

#[test]
fn a_task_that_ended_meanwhile_gives_its_secret_back_and_is_not_told_again() {
    let mut world = World::new();
    world.add(1, &[100], TaskState::Running);
    let stream = Stream::begin(&world.view());
    let mut trail = Trail::new(Version(0));
    world.report(1, TaskState::Failed);
    world.commits.iter().for_each(|commit| trail.add(commit));
    let steps = trail.since(&node(), stream.named).unwrap();
    assert_eq!(said(&AssignmentSet::new(node()).resume(&world.view(), &steps)), ["no secret 100"]);
}
