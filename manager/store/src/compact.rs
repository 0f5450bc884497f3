//! A thousand tasks of a service carry the same spec and the same networks: on disk and on the wire they are written once.
//!
//! In a task's place for them stands a number: of an entry of the transaction's own lists, or, in snapshots, "that of its
//! service". Pure.

use serde::{Deserialize, Serialize};
use skep_types::{Action, Network, NetworkAttachment, NetworkId, NetworkSpec, Object, Runtime, Task, TaskSpec, Timestamp};
use std::sync::{Arc, OnceLock};

/// A transaction as it is written.
#[derive(Serialize, Deserialize)]
pub(crate) struct Compacted {
    now: Timestamp,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    specs: Vec<Arc<TaskSpec>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    networks: Vec<Arc<Network>>,
    actions: Vec<Action>,
}

/// A number in a task's record that stands for nothing.
#[derive(Debug, thiserror::Error)]
#[error("task {task} refers to a shared part that is not there")]
pub struct Dangling {
    task: String,
}

/// The kind of the stand-in specs and the name of the stand-in networks.
const STAND_IN: &str = "#";

impl Compacted {
    pub(crate) fn new(now: Timestamp, actions: &[Action]) -> Self {
        let mut compacted = Self { now, specs: Vec::new(), networks: Vec::new(), actions: Vec::with_capacity(actions.len()) };
        for action in actions {
            let action = match action {
                Action::Create(Object::Task(task)) => Action::Create(Object::Task(compacted.compact(task))),
                Action::Update(Object::Task(task)) => Action::Update(Object::Task(compacted.compact(task))),
                other => other.clone(),
            };
            compacted.actions.push(action);
        }
        compacted
    }

    fn compact(&mut self, task: &Task) -> Arc<Task> {
        let mut task = task.clone();
        task.spec = stand_in_spec(position(&mut self.specs, &task.spec));
        for attachment in &mut task.networks {
            attachment.network = stand_in_network(position(&mut self.networks, &attachment.network));
        }
        Arc::new(task)
    }

    pub(crate) fn expand(self) -> Result<(Timestamp, Vec<Action>), Dangling> {
        let Self { now, specs, networks, actions } = self;
        let expand = |task: Arc<Task>| {
            let dangling = || Dangling { task: task.id.to_string() };
            let mut full = Task::clone(&task);
            full.spec = spec_number(&full.spec).and_then(|number| specs.get(number)).cloned().ok_or_else(dangling)?;
            for NetworkAttachment { network, .. } in &mut full.networks {
                *network = network_number(network).and_then(|number| networks.get(number)).cloned().ok_or_else(dangling)?;
            }
            Ok(Object::Task(Arc::new(full)))
        };
        let actions = actions.into_iter().map(|action| {
            Ok(match action {
                Action::Create(Object::Task(task)) => Action::Create(expand(task)?),
                Action::Update(Object::Task(task)) => Action::Update(expand(task)?),
                other => other,
            })
        });
        Ok((now, actions.collect::<Result<_, _>>()?))
    }
}

/// Where the part is in the list; it is added if it is not. Parts are shared by reference, so that comparing those is enough
/// but for parts that were read one by one.
fn position<T: PartialEq>(list: &mut Vec<Arc<T>>, part: &Arc<T>) -> usize {
    if let Some(at) = list.iter().rposition(|known| Arc::ptr_eq(known, part)) {
        return at;
    }
    if list.last().is_some_and(|known| known == part) {
        return list.len() - 1;
    }
    list.push(Arc::clone(part));
    list.len() - 1
}

fn stand_in_spec(number: usize) -> Arc<TaskSpec> {
    let runtime = Runtime::Generic { kind: STAND_IN.into(), type_url: number.to_string(), payload: Vec::new() };
    Arc::new(TaskSpec::new(runtime))
}

fn spec_number(spec: &TaskSpec) -> Option<usize> {
    match &spec.runtime {
        Runtime::Generic { kind, type_url, .. } if kind == STAND_IN => type_url.parse().ok(),
        Runtime::Generic { .. } | Runtime::Container(_) | Runtime::Attachment { .. } => None,
    }
}

fn stand_in_network(number: usize) -> Arc<Network> {
    let id: NetworkId = number.to_string().parse().expect("digits are an id");
    let mut spec = NetworkSpec::default();
    spec.annotations.name = STAND_IN.into();
    Arc::new(Network::new(id, spec))
}

fn network_number(network: &Network) -> Option<usize> {
    (network.spec.annotations.name == STAND_IN).then(|| network.id.as_str().parse().ok()).flatten()
}

/// One object in a snapshot, and in the state hash.
#[derive(Serialize, Deserialize)]
pub(crate) struct Record {
    /// A task whose spec is that of its service: a stand-in is written for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    of_service: bool,
    object: Object,
}

impl Record {
    /// `service_spec` is the spec of the task's service. Equal specs are written once whether they are shared or not, so that the
    /// bytes depend on the state alone.
    pub(crate) fn new<'a>(object: Object, service_spec: impl FnOnce(&Task) -> Option<&'a Arc<TaskSpec>>) -> Self {
        static STAND_IN_OF_SERVICE: OnceLock<Arc<TaskSpec>> = OnceLock::new();
        if let Object::Task(task) = &object
            && service_spec(task).is_some_and(|spec| Arc::ptr_eq(spec, &task.spec) || **spec == *task.spec)
        {
            let mut task = Task::clone(task);
            task.spec = Arc::clone(STAND_IN_OF_SERVICE.get_or_init(|| stand_in_spec(0)));
            return Self { of_service: true, object: Object::Task(Arc::new(task)) };
        }
        Self { of_service: false, object }
    }

    pub(crate) fn object<'a>(self, service_spec: impl FnOnce(&Task) -> Option<&'a Arc<TaskSpec>>) -> Result<Object, Dangling> {
        let Object::Task(task) = &self.object else { return Ok(self.object) };
        if !self.of_service {
            return Ok(self.object);
        }
        let mut full = Task::clone(task);
        full.spec = Arc::clone(service_spec(task).ok_or_else(|| Dangling { task: task.id.to_string() })?);
        Ok(Object::Task(Arc::new(full)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{ServiceId, TaskId, Version};

    fn spec(number: u64) -> Arc<TaskSpec> {
        let mut spec = TaskSpec::clone(&stand_in_spec(0)); // a user may even write such a thing
        spec.force_update = number;
        Arc::new(spec)
    }

    fn task(number: u64, spec: &Arc<TaskSpec>, network: &Arc<Network>) -> Object {
        let service = Some(ServiceId::for_test(1));
        let attachment = NetworkAttachment {
            network: Arc::clone(network),
            addresses: vec!["10.0.0.2/24".into()],
            aliases: Vec::new(),
            driver_attachment_opts: Default::default(),
        };
        Object::Task(Arc::new(Task {
            id: TaskId::for_test(number),
            meta: Default::default(),
            spec: Arc::clone(spec),
            spec_version: None,
            service_id: service,
            slot: number,
            node_id: None,
            annotations: Default::default(),
            service_annotations: Default::default(),
            status: Default::default(),
            desired_state: skep_types::TaskState::Running,
            networks: vec![attachment],
            endpoint: None,
            log_driver: None,
            assigned_generic_resources: Vec::new(),
            job_iteration: None,
        }))
    }

    #[test]
    fn what_is_shared_is_written_once_and_comes_back() {
        let (one, two) = (spec(1), spec(2));
        let network = Arc::new(Network::new(NetworkId::for_test(1), NetworkSpec::default()));
        // A spec that was read apart is known again if it follows its like.
        let actions: Vec<Action> = (0..100)
            .map(|number| match number % 3 {
                0 => Action::Create(task(number, &one, &network)),
                1 => Action::Update(task(number, &two, &network)),
                _ => Action::Create(task(number, &Arc::new(TaskSpec::clone(&two)), &network)),
            })
            .chain([Action::Remove { kind: skep_types::Kind::Task, id: "x".into(), version: Some(Version(3)) }])
            .collect();
        let compacted = Compacted::new(Timestamp(9), &actions);
        assert_eq!((compacted.specs.len(), compacted.networks.len()), (2, 1));
        assert_eq!(compacted.expand().unwrap(), (Timestamp(9), actions.clone()));
        let mut broken = Compacted::new(Timestamp(9), &actions);
        broken.specs.pop();
        assert!(broken.expand().is_err());
    }

    #[test]
    fn a_record_depends_on_the_state_and_not_on_sharing() {
        let network = Arc::new(Network::new(NetworkId::for_test(1), NetworkSpec::default()));
        let (own, service) = (spec(1), spec(1));
        let shared = task(1, &service, &network);
        let apart = task(1, &own, &network);
        let bytes = |object: &Object| crate::codec::encode("object", &Record::new(object.clone(), |_| Some(&service))).unwrap();
        assert_eq!(bytes(&shared), bytes(&apart));
        let back: Record = crate::codec::decode("object", &bytes(&apart)).unwrap();
        assert_eq!(back.object(|_| Some(&service)).unwrap(), apart);
        // One of its own stays its own, however it looks.
        let other = task(1, &spec(2), &network);
        let back: Record = crate::codec::decode("object", &bytes(&other)).unwrap();
        assert_eq!(back.object(|_| Some(&service)).unwrap(), other);
    }
}
