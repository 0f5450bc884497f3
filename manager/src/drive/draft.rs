//! What the deciders propose, before it is written: tried out on a copy of the tables. Pure.
//!
//! A new service needs four answers that build on each other: tasks, their addresses, their nodes, their ports. Each decider sees
//! what those before it proposed, and all of it is committed at once: one write to the disk instead of four, and a task
//! reaches the log as one object that has everything.
//!
//! The deciders are told of changes that may never come true. [`Draft::undo`] is what they are told then.

use skep_store::{ApplyError, Tables, View};
use skep_types::{Action, Change, ClusterView as _, Kind, Object, TaskId, TaskState, TaskStatus, Timestamp, Version};
use std::collections::HashMap;

/// Proposals on top of a view.
pub struct Draft {
    base: View,
    tables: Tables,
    view: View,
    changes: Vec<Change>,
    /// Objects in the order they were first touched.
    order: Vec<Key>,
    touched: HashMap<Key, Touch>,
}

type Key = (Kind, String);

/// How an object was touched.
#[derive(Default)]
struct Touch {
    /// Created, updated or removed: the outcome counts.
    whole: bool,
    /// Reports and wishes only: they are never stale, so they stay what they are.
    status: Option<(TaskId, TaskStatus)>,
    desired: Option<(TaskId, TaskState)>,
}

impl Draft {
    #[must_use]
    pub fn new(base: View) -> Self {
        let tables = base.tables().clone();
        Self { view: base.clone(), base, tables, changes: Vec::new(), order: Vec::new(), touched: HashMap::new() }
    }

    /// The cluster as it would be.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.touched.is_empty()
    }

    /// Objects that would be written.
    #[must_use]
    pub fn len(&self) -> usize {
        self.touched.len()
    }

    /// Adds a proposal. Returns what it would change; nothing if it would change nothing.
    ///
    /// # Errors
    /// The action that does not fit, with nothing added: a decider had an old picture.
    pub fn add(&mut self, actions: &[Action], now: Timestamp) -> Result<&[Change], ApplyError> {
        let version = Version(self.tables.revision().0 + 1);
        let changes = self.tables.apply(version, now, actions)?;
        if changes.is_empty() {
            return Ok(&[]);
        }
        for action in actions {
            self.touch(action);
        }
        self.view = View::from(self.tables.clone());
        let first = self.changes.len();
        self.changes.extend(changes);
        Ok(&self.changes[first..])
    }

    fn touch(&mut self, action: &Action) {
        let key = match action {
            Action::Create(object) | Action::Update(object) => (object.kind(), object.id().to_owned()),
            Action::Remove { kind, id, .. } => (*kind, id.clone()),
            Action::SetTaskStatus { task, .. } | Action::SetTaskDesired { task, .. } => (Kind::Task, task.to_string()),
        };
        let order = &mut self.order;
        let touch = self.touched.entry(key).or_insert_with_key(|key| {
            order.push(key.clone());
            Touch::default()
        });
        match action {
            Action::Create(_) | Action::Update(_) | Action::Remove { .. } => touch.whole = true,
            Action::SetTaskStatus { task, status } => {
                if touch.status.as_ref().is_none_or(|(_, before)| before.state <= status.state) {
                    touch.status = Some((task.clone(), status.clone()));
                }
            }
            Action::SetTaskDesired { task, desired } => {
                if touch.desired.as_ref().is_none_or(|(_, before)| before < desired) {
                    touch.desired = Some((task.clone(), *desired));
                }
            }
        }
    }

    /// The fewest actions with the same outcome.
    #[must_use]
    pub fn actions(&self) -> Vec<Action> {
        let mut actions = Vec::with_capacity(self.order.len());
        for key in &self.order {
            let touch = &self.touched[key];
            if !touch.whole {
                actions.extend(touch.status.clone().map(|(task, status)| Action::SetTaskStatus { task, status }));
                actions.extend(touch.desired.clone().map(|(task, desired)| Action::SetTaskDesired { task, desired }));
                continue;
            }
            let (kind, id) = key;
            match (find(&self.base, *kind, id), find(&self.view, *kind, id)) {
                (None, Some(new)) => actions.push(Action::Create(new)),
                (Some(old), Some(new)) => actions.push(Action::Update(with_version(new, old.version()))),
                (Some(_), None) => {
                    // What was said of a task before it was deleted is said: nobody is to see one go that ran a moment ago.
                    actions.extend(touch.status.clone().map(|(task, status)| Action::SetTaskStatus { task, status }));
                    actions.push(Action::Remove { kind: *kind, id: id.clone(), version: None });
                }
                (None, None) => {}
            }
        }
        actions
    }

    /// Whether a commit of somebody else wrote an object of this draft.
    #[must_use]
    pub fn meets(&self, changes: &[Change]) -> bool {
        changes.iter().any(|change| {
            let object = change.object();
            self.touched.contains_key(&(object.kind(), object.id().to_owned()))
        })
    }

    /// What takes everything back, in order.
    pub fn undo(self) -> impl Iterator<Item = Change> {
        self.changes.into_iter().rev().map(|change| match change {
            Change::Created(object) => Change::Removed(object),
            Change::Removed(object) => Change::Created(object),
            Change::Updated { old, new } => Change::Updated { old: new, new: old },
        })
    }
}

/// Versions of what was tried out exist nowhere: the outcome is written on what was really there.
fn with_version(object: Object, version: Version) -> Object {
    macro_rules! set {
        ($object:expr, $kind:ident) => {{
            let mut object = $object;
            std::sync::Arc::make_mut(&mut object).meta.version = version;
            Object::$kind(object)
        }};
    }
    match object {
        Object::Cluster(object) => set!(object, Cluster),
        Object::Node(object) => set!(object, Node),
        Object::Service(object) => set!(object, Service),
        Object::Task(object) => set!(object, Task),
        Object::Network(object) => set!(object, Network),
        Object::Secret(object) => set!(object, Secret),
        Object::Config(object) => set!(object, Config),
    }
}

fn find(view: &View, kind: Kind, id: &str) -> Option<Object> {
    match kind {
        Kind::Cluster => view.cluster().filter(|cluster| cluster.id.as_str() == id).cloned().map(Object::Cluster),
        Kind::Node => view.node(&id.parse().ok()?).cloned().map(Object::Node),
        Kind::Service => view.service(&id.parse().ok()?).cloned().map(Object::Service),
        Kind::Task => view.task(&id.parse().ok()?).cloned().map(Object::Task),
        Kind::Network => view.network(&id.parse().ok()?).cloned().map(Object::Network),
        Kind::Secret => view.secret(&id.parse().ok()?).cloned().map(Object::Secret),
        Kind::Config => view.config(&id.parse().ok()?).cloned().map(Object::Config),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{Node, NodeId, NodeState};
    use std::sync::Arc;

    fn node(number: u64, state: NodeState) -> Node {
        let mut node = Node::new(NodeId::for_test(number));
        node.status.state = state;
        node
    }

    fn world() -> View {
        let mut tables = Tables::new();
        let create = Action::Create(Object::Node(Arc::new(node(1, NodeState::Unknown))));
        tables.apply(Version(5), Timestamp(0), &[create]).unwrap();
        View::from(tables)
    }

    #[test]
    fn what_is_created_and_then_changed_is_written_once() {
        let mut draft = Draft::new(world());
        draft.add(&[Action::Create(Object::Node(Arc::new(node(2, NodeState::Unknown))))], Timestamp(1)).unwrap();
        let mut changed = Node::clone(draft.view().node(&NodeId::for_test(2)).unwrap());
        changed.status.state = NodeState::Ready;
        draft.add(&[Action::Update(Object::Node(Arc::new(changed)))], Timestamp(1)).unwrap();
        let mut first = Node::clone(draft.view().node(&NodeId::for_test(1)).unwrap());
        first.status.state = NodeState::Down;
        draft.add(&[Action::Update(Object::Node(Arc::new(first)))], Timestamp(1)).unwrap();
        let actions = draft.actions();
        match &actions[..] {
            [Action::Create(Object::Node(created)), Action::Update(Object::Node(updated))] => {
                assert_eq!(created.status.state, NodeState::Ready);
                assert_eq!((updated.status.state, updated.meta.version), (NodeState::Down, Version(5)));
            }
            other => panic!("{other:?}"),
        }
        // The outcome is the same on the real tables.
        let mut real = world().tables().clone();
        real.apply(Version(6), Timestamp(2), &actions).unwrap();
        assert_eq!(View::from(real).node(&NodeId::for_test(2)).unwrap().status.state, NodeState::Ready);
    }

    #[test]
    fn undoing_goes_back_step_by_step() {
        let mut draft = Draft::new(world());
        draft.add(&[Action::Create(Object::Node(Arc::new(node(2, NodeState::Unknown))))], Timestamp(1)).unwrap();
        draft.add(&[Action::Remove { kind: Kind::Node, id: NodeId::for_test(2).to_string(), version: None }], Timestamp(1)).unwrap();
        assert!(draft.actions().is_empty(), "nothing is left to write");
        let undone: Vec<Change> = draft.undo().collect();
        assert!(matches!(&undone[..], [Change::Created(_), Change::Removed(_)]));
    }

    #[test]
    fn a_proposal_on_an_old_picture_adds_nothing() {
        let mut draft = Draft::new(world());
        let stale = Node { meta: skep_types::Meta { version: Version(4), ..Default::default() }, ..node(1, NodeState::Down) };
        assert!(draft.add(&[Action::Update(Object::Node(Arc::new(stale)))], Timestamp(1)).is_err());
        assert!(draft.is_empty());
    }
}
