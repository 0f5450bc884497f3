use super::*;
use proptest::prelude::*;
use skep_types::{
    Action, Annotations, Change, ClusterView, ContainerSpec, Kind, Meta, Secret, SecretId, SecretSpec, ServiceMode, ServiceSpec, TaskId,
    TaskSpec, TaskStatus, Timestamp, UpdateState, UpdateStatus,
};
use std::collections::BTreeMap;

fn task_spec(force_update: u64) -> Arc<TaskSpec> {
    Arc::new(TaskSpec { force_update, ..TaskSpec::new(ContainerSpec::default()) })
}

fn service(id: u64, name: &str, version: u64) -> Object {
    Object::Service(Arc::new(Service {
        meta: Meta { version: Version(version), ..Meta::default() },
        ..Service::new(
            ServiceId::for_test(id),
            ServiceSpec {
                annotations: Annotations { name: name.into(), ..Annotations::default() },
                task: task_spec(id),
                mode: ServiceMode::Replicated { replicas: 1 },
                update: None,
                rollback: None,
                networks: vec![],
                endpoint: None,
            },
        )
    }))
}

fn task(id: u64, service: Option<u64>, node: Option<u64>, state: TaskState, version: u64) -> Object {
    Object::Task(Arc::new(Task {
        id: TaskId::for_test(id),
        meta: Meta { version: Version(version), ..Meta::default() },
        spec: task_spec(service.unwrap_or(0)),
        spec_version: None,
        service_id: service.map(ServiceId::for_test),
        slot: 1,
        node_id: node.map(NodeId::for_test),
        annotations: Annotations::default(),
        service_annotations: Annotations::default(),
        status: TaskStatus { state, ..TaskStatus::default() },
        desired_state: TaskState::New,
        networks: vec![],
        endpoint: None,
        log_driver: None,
        assigned_generic_resources: vec![],
        job_iteration: None,
    }))
}

fn secret(id: u64, name: &str, version: u64) -> Object {
    let spec = SecretSpec { annotations: Annotations { name: name.into(), ..Annotations::default() }, ..SecretSpec::default() };
    Object::Secret(Arc::new(Secret {
        id: SecretId::for_test(id),
        meta: Meta { version: Version(version), ..Meta::default() },
        spec,
        internal: false,
    }))
}

/// The same rules, without indexes and without sharing.
#[derive(Clone, Default)]
struct Model {
    revision: u64,
    objects: BTreeMap<(Kind, String), Object>,
}

#[derive(Debug, PartialEq)]
enum Outcome {
    Done(usize),
    Stale,
    NameTaken,
    IdTaken,
    Missing,
}

fn name(object: &Object) -> String {
    match object {
        Object::Service(service) => service.spec.annotations.name.to_lowercase(),
        Object::Secret(secret) => secret.spec.annotations.name.to_lowercase(),
        _ => String::new(),
    }
}

fn with_meta(object: &Object, meta: Meta) -> Object {
    let mut object = object.clone();
    match &mut object {
        Object::Service(service) => Arc::make_mut(service).meta = meta,
        Object::Secret(secret) => Arc::make_mut(secret).meta = meta,
        Object::Task(task) => Arc::make_mut(task).meta = meta,
        _ => unreachable!("not generated"),
    }
    object
}

fn meta(object: &Object) -> Meta {
    match object {
        Object::Service(service) => service.meta,
        Object::Secret(secret) => secret.meta,
        Object::Task(task) => task.meta,
        _ => unreachable!("not generated"),
    }
}

impl Model {
    fn apply(&mut self, now: Timestamp, actions: &[Action]) -> Outcome {
        let before = self.clone();
        let version = Version(self.revision + 1);
        let mut changes = 0;
        for action in actions {
            match self.one(version, now, action) {
                Ok(changed) => changes += usize::from(changed),
                Err(outcome) => {
                    *self = before;
                    return outcome;
                }
            }
        }
        if changes > 0 {
            self.revision = version.0;
        }
        Outcome::Done(changes)
    }

    fn one(&mut self, version: Version, now: Timestamp, action: &Action) -> Result<bool, Outcome> {
        let key = |object: &Object| (object.kind(), object.id().to_owned());
        let clash = |model: &Self, object: &Object| {
            !name(object).is_empty()
                && model
                    .objects
                    .values()
                    .any(|other| other.kind() == object.kind() && other.id() != object.id() && name(other) == name(object))
        };
        match action {
            Action::Create(object) => {
                if self.objects.contains_key(&key(object)) {
                    return Err(Outcome::IdTaken);
                }
                if clash(self, object) {
                    return Err(Outcome::NameTaken);
                }
                self.objects.insert(key(object), with_meta(object, Meta { version, created_at: now, updated_at: now, created: version }));
                Ok(true)
            }
            Action::Update(object) => {
                let old = self.objects.get(&key(object)).ok_or(Outcome::Missing)?;
                if old.version() != object.version() {
                    return Err(Outcome::Stale);
                }
                if clash(self, object) {
                    return Err(Outcome::NameTaken);
                }
                let new = with_meta(object, Meta { version, updated_at: now, ..meta(old) });
                self.objects.insert(key(object), new);
                Ok(true)
            }
            Action::Remove { kind, id, version } => {
                let Some(old) = self.objects.get(&(*kind, id.clone())) else { return Ok(false) };
                if version.is_some_and(|version| version != old.version()) {
                    return Err(Outcome::Stale);
                }
                self.objects.remove(&(*kind, id.clone()));
                Ok(true)
            }
            Action::SetTaskStatus { task, status } => Ok(self.task(version, now, task, |task| {
                let old = task.status.clone();
                let is_given_up = matches!(status.state, TaskState::Orphaned | TaskState::Rejected) && old.state.is_terminal();
                !is_given_up && task.status.advance(status.clone()).is_ok() && task.status != old
            })),
            Action::SetTaskDesired { task, desired } => Ok(self.task(version, now, task, |task| {
                let higher = *desired > task.desired_state;
                task.desired_state = task.desired_state.max(*desired);
                higher
            })),
        }
    }

    fn task(&mut self, version: Version, now: Timestamp, id: &TaskId, change: impl FnOnce(&mut Task) -> bool) -> bool {
        let Some(Object::Task(task)) = self.objects.get_mut(&(Kind::Task, id.to_string())) else { return false };
        let task = Arc::make_mut(task);
        let changed = change(task);
        if changed {
            task.meta.version = version;
            task.meta.updated_at = now;
        }
        changed
    }
}

fn outcome(result: &Result<Vec<Change>, ApplyError>) -> Outcome {
    match result {
        Ok(changes) => Outcome::Done(changes.len()),
        Err(ApplyError::Stale { .. }) => Outcome::Stale,
        Err(ApplyError::NameTaken { .. }) => Outcome::NameTaken,
        Err(ApplyError::IdTaken { .. }) => Outcome::IdTaken,
        Err(ApplyError::Missing { .. }) => Outcome::Missing,
    }
}

/// An action with a hint whether its version is to be the stored one.
#[derive(Debug, Clone)]
enum Step {
    Create(Object),
    Update { object: Object, fresh: bool },
    Remove { kind: Kind, id: String, fresh: Option<bool> },
    Other(Action),
}

fn state() -> impl Strategy<Value = TaskState> {
    prop::sample::select(TaskState::ALL.to_vec())
}

fn object() -> impl Strategy<Value = Object> {
    let names = || prop::sample::select(vec!["web", "WEB", "db", "Db", "", "x"]);
    prop_oneof![
        (0..6u64, names()).prop_map(|(id, name)| service(id, name, 0)),
        (0..6u64, names()).prop_map(|(id, name)| secret(id, name, 0)),
        (0..12u64, prop::option::of(0..4u64), prop::option::of(0..4u64), state())
            .prop_map(|(id, service, node, state)| task(id, service, node, state, 0)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let kinds = || prop::sample::select(vec![Kind::Service, Kind::Secret, Kind::Task]);
    prop_oneof![
        4 => object().prop_map(Step::Create),
        4 => (object(), prop::bool::weighted(0.9)).prop_map(|(object, fresh)| Step::Update { object, fresh }),
        2 => (kinds(), 0..12u64, prop::option::of(prop::bool::weighted(0.9)))
            .prop_map(|(kind, id, fresh)| Step::Remove { kind, id: TaskId::for_test(id).to_string(), fresh }),
        2 => (0..12u64, state()).prop_map(|(id, state)| Step::Other(Action::SetTaskStatus {
            task: TaskId::for_test(id),
            status: TaskStatus { state, ..TaskStatus::default() },
        })),
        1 => (0..12u64, state())
            .prop_map(|(id, desired)| Step::Other(Action::SetTaskDesired { task: TaskId::for_test(id), desired })),
    ]
}

fn action(model: &Model, step: Step) -> Action {
    let stored = |kind, id: &str| model.objects.get(&(kind, id.to_owned())).map_or(Version(0), Object::version);
    match step {
        Step::Create(object) => Action::Create(object),
        Step::Update { object, fresh } => {
            let version = stored(object.kind(), object.id());
            let version = if fresh { version } else { Version(version.0 + 1) };
            Action::Update(with_meta(&object, Meta { version, ..Meta::default() }))
        }
        Step::Remove { kind, id, fresh } => {
            let version = fresh.map(|fresh| if fresh { stored(kind, &id) } else { Version(u64::MAX) });
            Action::Remove { kind, id, version }
        }
        Step::Other(action) => action,
    }
}

fn ids<'a>(tasks: impl Iterator<Item = &'a Arc<Task>>) -> Vec<String> {
    tasks.map(|task| task.id.to_string()).collect()
}

fn same(tables: &Tables, model: &Model) {
    assert_eq!(tables.revision().0, model.revision);
    let objects: BTreeMap<_, _> = tables.objects().map(|object| ((object.kind(), object.id().to_owned()), object)).collect();
    assert_eq!(objects, model.objects);
    let tasks = || model.objects.values().filter_map(|object| if let Object::Task(task) = object { Some(task) } else { None });
    for number in 0..6 {
        let (service, node) = (ServiceId::for_test(number), NodeId::for_test(number));
        assert_eq!(ids(tables.tasks_of_service(&service)), ids(tasks().filter(|task| task.service_id.as_ref() == Some(&service))));
        assert_eq!(ids(tables.tasks_on_node(&node)), ids(tasks().filter(|task| task.node_id.as_ref() == Some(&node))));
        for task in tables.tasks_of_service(&service) {
            assert!(Arc::ptr_eq(task, tables.task(&task.id).unwrap()), "an index shows an old object");
        }
    }
    for state in TaskState::ALL {
        assert_eq!(ids(tables.tasks_in_state(state)), ids(tasks().filter(|task| task.status.state == state)));
    }
    for wanted in ["wEb", "db", "x", ""] {
        let by_name = |kind: Kind| {
            let found =
                model.objects.values().find(|object| object.kind() == kind && !wanted.is_empty() && name(object) == wanted.to_lowercase());
            found.map(|object| object.id().to_owned())
        };
        assert_eq!(tables.service_by_name(wanted).map(|service| service.id.to_string()), by_name(Kind::Service));
        assert_eq!(tables.secret_by_name(wanted).map(|secret| secret.id.to_string()), by_name(Kind::Secret));
    }
}

proptest! {
    #[test]
    fn tables_do_what_a_plain_list_of_objects_would(transactions in prop::collection::vec(prop::collection::vec(step(), 0..5), 0..40)) {
        let (mut tables, mut model) = (Tables::new(), Model::default());
        for (nth, steps) in transactions.into_iter().enumerate() {
            let actions: Vec<Action> = steps.into_iter().map(|step| action(&model, step)).collect();
            let now = Timestamp(i64::try_from(nth).unwrap());
            let before = tables.clone();
            let hash = before.state_hash();
            let result = tables.apply(Version(tables.revision().0 + 1), now, &actions);
            prop_assert_eq!(outcome(&result), model.apply(now, &actions));
            same(&tables, &model);
            prop_assert_eq!(before.state_hash(), hash, "a view changed under its reader");
        }
        // Loaded in another order, the state is the same.
        let mut loaded = Tables::new();
        loaded.set_revision(tables.revision());
        let mut objects: Vec<Object> = tables.objects().collect();
        objects.reverse();
        objects.into_iter().for_each(|object| loaded.restore(object));
        same(&loaded, &model);
        prop_assert_eq!(loaded.state_hash(), tables.state_hash());
    }
}

#[test]
fn tasks_share_the_spec_of_their_service() {
    let mut tables = Tables::new();
    tables.apply(Version(1), Timestamp(0), &[Action::Create(service(1, "web", 0))]).unwrap();
    let tasks: Vec<Action> = (0..3).map(|id| Action::Create(task(id, Some(1), None, TaskState::New, 0))).collect();
    tables.apply(Version(2), Timestamp(0), &tasks).unwrap();
    let spec = &tables.service_by_name("web").unwrap().spec.task;
    assert!(tables.tasks().all(|task| Arc::ptr_eq(&task.spec, spec)));
}

#[test]
fn a_task_that_ended_is_not_given_up() {
    let mut tables = Tables::new();
    let id = TaskId::for_test(1);
    tables.apply(Version(1), Timestamp(0), &[Action::Create(task(1, None, Some(1), TaskState::Running, 0))]).unwrap();
    let mut report = |version, state| {
        let status = TaskStatus { state, ..TaskStatus::default() };
        tables.apply(Version(version), Timestamp(0), &[Action::SetTaskStatus { task: id.clone(), status }]).unwrap();
        tables.tasks().find(|task| task.id == id).unwrap().status.state
    };
    assert_eq!(report(2, TaskState::Complete), TaskState::Complete);
    assert_eq!(report(3, TaskState::Orphaned), TaskState::Complete);
    assert_eq!(report(3, TaskState::Rejected), TaskState::Complete);
}

#[test]
fn there_is_one_cluster_object() {
    let mut tables = Tables::new();
    let cluster = |n| Action::Create(Object::Cluster(Arc::new(Cluster::new(skep_types::ClusterId::for_test(n)))));
    tables.apply(Version(1), Timestamp(5), &[cluster(1)]).unwrap();
    let second = tables.apply(Version(2), Timestamp(6), &[cluster(2)]);
    assert_eq!(second, Err(ApplyError::IdTaken { kind: Kind::Cluster, id: skep_types::ClusterId::for_test(1).to_string() }));
    assert_eq!(tables.cluster().unwrap().meta.created_at, Timestamp(5));
    assert_eq!(tables.revision(), Version(1));
}

#[test]
fn an_update_of_a_service_begins_with_the_write_that_sets_its_time() {
    let mut tables = Tables::new();
    tables.apply(Version(1), Timestamp(0), &[Action::Create(service(1, "web", 0))]).unwrap();
    let mut write = |version, started_at, state| {
        let mut service = Service::clone(tables.service_by_name("web").unwrap());
        // What a writer says of it does not count.
        service.update_status =
            Some(UpdateStatus { started_at: Some(Timestamp(started_at)), state, began: Version(99), ..UpdateStatus::default() });
        tables.apply(Version(version), Timestamp(0), &[Action::Update(Object::Service(Arc::new(service)))]).unwrap();
        let service = tables.service_by_name("web").unwrap();
        (service.update_status.as_ref().unwrap().began.0, service.meta.created.0)
    };
    assert_eq!(write(2, 50, UpdateState::Updating), (2, 1));
    assert_eq!(write(3, 50, UpdateState::Paused), (2, 1), "it goes on");
    assert_eq!(write(4, 40, UpdateState::RollbackStarted), (4, 1));
}
