//! A cluster in memory: applies actions as the store does, plays the agents, and keeps what must always hold.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use skep_plan::{Allocator, Plan, Scheduler, new_service, plan_service};
use skep_types::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

#[derive(Default, Clone)]
pub struct World {
    pub version: u64,
    pub now: Timestamp,
    cluster: Option<Arc<Cluster>>,
    nodes: BTreeMap<NodeId, Arc<Node>>,
    services: BTreeMap<ServiceId, Arc<Service>>,
    tasks: BTreeMap<TaskId, Arc<Task>>,
    networks: BTreeMap<NetworkId, Arc<Network>>,
    secrets: BTreeMap<SecretId, Arc<Secret>>,
    configs: BTreeMap<ConfigId, Arc<Config>>,
    next_id: u64,
    /// Nobody may walk over all tasks of a service.
    pub no_walks: bool,
}

macro_rules! apply_object {
    ($world:expr, $map:ident, $kind:ident, $object:expr, $create:expr) => {{
        let mut new = $object;
        let old = $world.$map.get(&new.id).cloned();
        match (&old, $create) {
            (Some(_), true) => panic!("{} exists already", new.id),
            (None, false) => panic!("stale: {} is gone", new.id),
            (Some(old), false) => assert_eq!(old.meta.version, new.meta.version, "stale update of {}", new.id),
            (None, true) => {}
        }
        let (version, now) = (Version($world.version), $world.now);
        let meta = &mut Arc::make_mut(&mut new).meta;
        meta.version = version;
        meta.updated_at = now;
        (meta.created_at, meta.created) = match &old {
            Some(old) => (old.meta.created_at, old.meta.created),
            None => (now, version),
        };
        $world.$map.insert(new.id.clone(), Arc::clone(&new));
        match old {
            None => Change::Created(Object::$kind(new)),
            Some(old) => Change::Updated { old: Object::$kind(old), new: Object::$kind(new) },
        }
    }};
}

impl World {
    pub fn new() -> Self {
        let mut world = Self { now: Timestamp::from_secs(1_000_000), ..Self::default() };
        world.cluster = Some(Arc::new(Cluster::new(ClusterId::for_test(1))));
        world
    }

    pub fn set_history(&mut self, limit: i64) -> Vec<Change> {
        let cluster = self.cluster.as_mut().expect("set at birth");
        let old = Arc::clone(cluster);
        Arc::make_mut(cluster).spec.task_history_retention_limit = limit;
        vec![Change::Updated { old: Object::Cluster(old), new: Object::Cluster(Arc::clone(cluster)) }]
    }

    pub fn set_pools(&mut self, pools: &[&str], size: u32) {
        let cluster = Arc::make_mut(self.cluster.as_mut().expect("set at birth"));
        cluster.default_address_pool = pools.iter().map(|pool| (*pool).to_owned()).collect();
        cluster.subnet_size = size;
    }

    pub fn ids(&mut self) -> impl FnMut() -> [u8; 17] + use<> {
        self.next_id += 1;
        let (seed, mut count) = (self.next_id, 0u64);
        move || {
            count += 1;
            let mut bytes = [0u8; 17];
            // The last bits of the bytes do not reach the id.
            bytes[1..9].copy_from_slice(&(seed << 24 | count).to_be_bytes());
            bytes
        }
    }

    pub fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    /// Applies all actions as one commit.
    pub fn commit(&mut self, actions: Vec<Action>) -> Vec<Change> {
        self.version += 1;
        actions.into_iter().filter_map(|action| self.apply(action)).collect()
    }

    fn put(&mut self, object: Object, create: bool) -> Change {
        match object {
            Object::Node(new) => apply_object!(self, nodes, Node, new, create),
            Object::Service(mut new) => {
                let before = self.services.get(&new.id).and_then(|old| old.update_status.clone());
                if let Some(status) = &mut Arc::make_mut(&mut new).update_status {
                    let goes_on = before.filter(|before| before.started_at == status.started_at);
                    status.began = goes_on.map_or(Version(self.version), |before| before.began);
                }
                apply_object!(self, services, Service, new, create)
            }
            Object::Task(new) => {
                if let Some(old) = self.tasks.get(&new.id) {
                    assert!(
                        new.status.state >= old.status.state,
                        "task {} went back from {} to {}",
                        new.id,
                        old.status.state,
                        new.status.state
                    );
                    assert!(new.desired_state >= old.desired_state, "the wish for {} went back", new.id);
                }
                apply_object!(self, tasks, Task, new, create)
            }
            Object::Network(new) => apply_object!(self, networks, Network, new, create),
            Object::Secret(new) => apply_object!(self, secrets, Secret, new, create),
            Object::Config(new) => apply_object!(self, configs, Config, new, create),
            Object::Cluster(_) => panic!("the cluster object is not changed by plans"),
        }
    }

    fn apply(&mut self, action: Action) -> Option<Change> {
        match action {
            Action::Create(object) => Some(self.put(object, true)),
            Action::Update(object) => Some(self.put(object, false)),
            Action::Remove { kind, id, .. } => match kind {
                Kind::Task => self.tasks.remove(&id.parse().expect("an id")).map(|old| Change::Removed(Object::Task(old))),
                Kind::Node => self.nodes.remove(&id.parse().expect("an id")).map(|old| Change::Removed(Object::Node(old))),
                Kind::Service => self.services.remove(&id.parse().expect("an id")).map(|old| Change::Removed(Object::Service(old))),
                Kind::Network => self.networks.remove(&id.parse().expect("an id")).map(|old| Change::Removed(Object::Network(old))),
                _ => panic!("not removed in these tests"),
            },
            Action::SetTaskStatus { task, status } => {
                let mut new = Task::clone(self.tasks.get(&task)?);
                new.status.advance(status).ok()?;
                Some(self.put(Object::Task(Arc::new(new)), false))
            }
            Action::SetTaskDesired { task, desired } => {
                let mut new = Task::clone(self.tasks.get(&task)?);
                if new.desired_state >= desired {
                    return None;
                }
                new.desired_state = desired;
                Some(self.put(Object::Task(Arc::new(new)), false))
            }
        }
    }

    pub fn add_node(&mut self, number: u64, change: impl FnOnce(&mut Node)) -> NodeId {
        let mut node = Node::new(NodeId::for_test(number));
        node.status.state = NodeState::Ready;
        node.description = Some(NodeDescription {
            hostname: format!("node{number}"),
            resources: Resources { nano_cpus: 4_000_000_000, memory_bytes: 8 << 30, generic: Vec::new() },
            ..NodeDescription::default()
        });
        change(&mut node);
        let id = node.id.clone();
        self.commit(vec![Action::Create(Object::Node(Arc::new(node)))]);
        id
    }

    pub fn change_node(&mut self, id: &NodeId, change: impl FnOnce(&mut Node)) -> Vec<Change> {
        let mut node = Node::clone(&self.nodes[id]);
        change(&mut node);
        self.commit(vec![Action::Update(Object::Node(Arc::new(node)))])
    }

    pub fn add_network(&mut self, number: u64, name: &str, change: impl FnOnce(&mut NetworkSpec)) -> NetworkId {
        let mut spec = NetworkSpec { annotations: Annotations { name: name.into(), ..Annotations::default() }, ..NetworkSpec::default() };
        change(&mut spec);
        let id = NetworkId::for_test(number);
        self.commit(vec![Action::Create(Object::Network(Arc::new(Network::new(id.clone(), spec))))]);
        id
    }

    pub fn add_service(&mut self, number: u64, change: impl FnOnce(&mut ServiceSpec)) -> ServiceId {
        let mut spec = spec(&format!("service{number}"), 1);
        change(&mut spec);
        let service = new_service(ServiceId::for_test(number), spec, self.now);
        let id = service.id.clone();
        self.commit(vec![Action::Create(Object::Service(Arc::new(service)))]);
        id
    }

    /// As the Control API does it.
    pub fn update_service(&mut self, id: &ServiceId, change: impl FnOnce(&mut ServiceSpec)) {
        let service = Arc::clone(&self.services[id]);
        let mut spec = service.spec.clone();
        change(&mut spec);
        let service = skep_plan::updated(&service, spec, service.meta.version, self.now);
        self.commit(vec![Action::Update(Object::Service(Arc::new(service)))]);
    }

    pub fn replace_service(&mut self, service: Service) {
        self.commit(vec![Action::Update(Object::Service(Arc::new(service)))]);
    }

    pub fn remove(&mut self, kind: Kind, id: &str) -> Vec<Change> {
        self.commit(vec![Action::Remove { kind, id: id.into(), version: None }])
    }

    pub fn plan_service(&mut self, id: &ServiceId) -> Plan {
        let mut ids = self.ids();
        plan_service(&*self, id, &mut ids, self.now)
    }

    /// Plans and commits until nothing is left to do at this moment. Returns when it wants to be asked again.
    pub fn settle(&mut self, id: &ServiceId) -> Option<Timestamp> {
        for _ in 0..50 {
            let plan = self.plan_service(id);
            if plan.is_empty() {
                return plan.wake_at;
            }
            self.commit(plan.changes);
        }
        panic!("planning does not come to rest");
    }

    /// Sets the observed state of a task, as an agent's report would.
    pub fn report(&mut self, id: &TaskId, state: TaskState) -> Vec<Change> {
        let status = TaskStatus { timestamp: self.now, state, applied_at: Some(self.now), ..TaskStatus::default() };
        self.commit(vec![Action::SetTaskStatus { task: id.clone(), status }])
    }

    /// Puts every new task on a node, round robin, without the allocator and the scheduler.
    pub fn place_all(&mut self) {
        let nodes: Vec<NodeId> = self
            .nodes
            .values()
            .filter(|node| node.status.state == NodeState::Ready && node.spec.availability == Availability::Active)
            .map(|node| node.id.clone())
            .collect();
        let new: Vec<Arc<Task>> = self
            .tasks
            .values()
            .filter(|task| task.status.state == TaskState::New && task.desired_state <= TaskState::Complete)
            .cloned()
            .collect();
        for (index, task) in new.into_iter().enumerate() {
            let mut task = Task::clone(&task);
            if task.node_id.is_none() {
                task.node_id = Some(nodes[index % nodes.len()].clone());
            }
            task.status.state = TaskState::Assigned;
            self.commit(vec![Action::Update(Object::Task(Arc::new(task)))]);
        }
    }

    /// Lets the agents do all they are asked to do.
    pub fn obey(&mut self) {
        self.place_all();
        let tasks: Vec<Arc<Task>> = self.tasks.values().cloned().collect();
        for task in tasks {
            let state = task.status.state;
            let silent =
                task.node_id.as_ref().and_then(|node| self.nodes.get(node)).is_none_or(|node| node.status.state == NodeState::Down);
            let next = match task.desired_state {
                _ if state.is_terminal() || silent => continue,
                TaskState::Shutdown | TaskState::Remove => TaskState::Shutdown,
                TaskState::Ready => TaskState::Ready,
                TaskState::Running | TaskState::Complete => TaskState::Running,
                _ => continue,
            };
            if next > state {
                self.report(&task.id, next);
            }
        }
    }

    /// Settles and obeys until both are at rest.
    pub fn converge(&mut self, id: &ServiceId) -> Option<Timestamp> {
        for _ in 0..200 {
            let before = self.version;
            let wake = self.settle(id);
            self.obey();
            if self.version == before {
                return wake;
            }
        }
        panic!("the cluster does not come to rest");
    }

    pub fn service(&self, id: &ServiceId) -> &Service {
        &self.services[id]
    }

    pub fn all_tasks(&self) -> Vec<Arc<Task>> {
        self.tasks.values().cloned().collect()
    }

    pub fn task(&self, id: &TaskId) -> &Arc<Task> {
        &self.tasks[id]
    }

    /// Slots of live tasks, sorted.
    pub fn live_slots(&self) -> Vec<u64> {
        let mut slots: Vec<_> = self.live().iter().map(|task| task.slot).collect();
        slots.sort_unstable();
        slots
    }

    pub fn live(&self) -> Vec<Arc<Task>> {
        let mut live: Vec<_> = self.tasks.values().filter(|task| task.desired_state <= TaskState::Complete).cloned().collect();
        live.sort_by_key(|task| (task.slot, task.meta.created_at, task.id.clone()));
        live
    }

    pub fn running(&self) -> Vec<Arc<Task>> {
        self.live().into_iter().filter(|task| task.status.state == TaskState::Running).collect()
    }
}

pub fn spec(name: &str, replicas: u64) -> ServiceSpec {
    ServiceSpec {
        annotations: Annotations { name: name.into(), ..Annotations::default() },
        task: Arc::new(TaskSpec::new(ContainerSpec { image: "web:1".into(), ..ContainerSpec::default() })),
        mode: ServiceMode::Replicated { replicas },
        update: None,
        rollback: None,
        networks: Vec::new(),
        endpoint: None,
    }
}

pub fn replicas(spec: &mut ServiceSpec, replicas: u64) {
    spec.mode = ServiceMode::Replicated { replicas };
}

pub fn task_spec(spec: &mut ServiceSpec) -> &mut TaskSpec {
    Arc::make_mut(&mut spec.task)
}

pub fn image(spec: &mut ServiceSpec, image: &str) {
    if let Runtime::Container(container) = &mut task_spec(spec).runtime {
        container.image = image.into();
    }
}

pub fn restart(spec: &mut ServiceSpec, condition: RestartCondition, delay: Duration, max_attempts: u64) {
    task_spec(spec).restart = Some(RestartPolicy { condition, delay: Some(delay), max_attempts, window: None });
}

pub fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Feeds changes to both caches.
pub fn observe(changes: &[Change], allocator: &mut Allocator, scheduler: &mut Scheduler) {
    for change in changes {
        allocator.observe(change);
        scheduler.observe(change);
    }
}

impl ClusterView for World {
    fn version(&self) -> Version {
        Version(self.version)
    }
    fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.as_ref()
    }
    fn node(&self, id: &NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(id)
    }
    fn nodes(&self) -> Objects<'_, Node> {
        Box::new(self.nodes.values())
    }
    fn service(&self, id: &ServiceId) -> Option<&Arc<Service>> {
        self.services.get(id)
    }
    fn service_by_name(&self, name: &str) -> Option<&Arc<Service>> {
        self.services.values().find(|service| service.name().eq_ignore_ascii_case(name))
    }
    fn services(&self) -> Objects<'_, Service> {
        Box::new(self.services.values())
    }
    fn task(&self, id: &TaskId) -> Option<&Arc<Task>> {
        self.tasks.get(id)
    }
    fn tasks(&self) -> Objects<'_, Task> {
        Box::new(self.tasks.values())
    }
    fn tasks_of_service(&self, id: &ServiceId) -> Objects<'_, Task> {
        assert!(!self.no_walks, "all tasks of {id} are looked at");
        let id = id.clone();
        Box::new(self.tasks.values().filter(move |task| task.service_id.as_ref() == Some(&id)))
    }
    fn tasks_on_node(&self, id: &NodeId) -> Objects<'_, Task> {
        let id = id.clone();
        Box::new(self.tasks.values().filter(move |task| task.node_id.as_ref() == Some(&id)))
    }
    fn tasks_in_state(&self, state: TaskState) -> Objects<'_, Task> {
        Box::new(self.tasks.values().filter(move |task| task.status.state == state))
    }
    fn network(&self, id: &NetworkId) -> Option<&Arc<Network>> {
        self.networks.get(id)
    }
    fn network_by_name(&self, name: &str) -> Option<&Arc<Network>> {
        self.networks.values().find(|network| network.spec.annotations.name.eq_ignore_ascii_case(name))
    }
    fn networks(&self) -> Objects<'_, Network> {
        Box::new(self.networks.values())
    }
    fn secret(&self, id: &SecretId) -> Option<&Arc<Secret>> {
        self.secrets.get(id)
    }
    fn secret_by_name(&self, name: &str) -> Option<&Arc<Secret>> {
        self.secrets.values().find(|secret| secret.spec.annotations.name.eq_ignore_ascii_case(name))
    }
    fn secrets(&self) -> Objects<'_, Secret> {
        Box::new(self.secrets.values())
    }
    fn config(&self, id: &ConfigId) -> Option<&Arc<Config>> {
        self.configs.get(id)
    }
    fn config_by_name(&self, name: &str) -> Option<&Arc<Config>> {
        self.configs.values().find(|config| config.spec.annotations.name.eq_ignore_ascii_case(name))
    }
    fn configs(&self) -> Objects<'_, Config> {
        Box::new(self.configs.values())
    }
}
