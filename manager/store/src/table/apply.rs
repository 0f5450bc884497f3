//! Transactions against the tables: all actions or none.

use super::Tables;
use super::object::{Stored, Table};
use serde::{Deserialize, Serialize};
use skep_types::{Action, Change, Kind, Object, Task, TaskId, TaskState, TaskStatus, Timestamp, Version};
use std::sync::Arc;

/// Why a transaction was not applied. Nothing of it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ApplyError {
    /// The object has moved on since the action was decided.
    #[error("{kind:?} {id} is at version {}, not at {}; read it again and decide anew", .stored.0, .wanted.0)]
    Stale { kind: Kind, id: String, stored: Version, wanted: Version },
    /// Another object of the kind has the name; `id` is the one that has it.
    #[error("the name {name:?} is taken by {kind:?} {id}; choose another name")]
    NameTaken { kind: Kind, name: String, id: String },
    #[error("{kind:?} {id} exists already")]
    IdTaken { kind: Kind, id: String },
    /// An update of what is not there (any more).
    #[error("{kind:?} {id} does not exist")]
    Missing { kind: Kind, id: String },
}

impl Tables {
    /// Applies `actions` in their order, together or not at all.
    ///
    /// Every object written gets `version` and `now`; a transaction that changes nothing leaves the revision as it is and
    /// returns no changes. The changes come in the order of the actions. An object that is written twice in one
    /// transaction gives two changes; the second [`Action::Update`] of an object is stale, because the first gave it
    /// the new version.
    ///
    /// # Errors
    /// The first action that does not fit. The tables are unchanged then.
    pub fn apply(&mut self, version: Version, now: Timestamp, actions: &[Action]) -> Result<Vec<Change>, ApplyError> {
        if let [only] = actions {
            // An action checks before it writes: there is nothing to take back. What a copy shares with the tables would be copied
            // for each transaction, and here once for all that are applied between two views.
            return self.apply_in_place(version, now, std::slice::from_ref(only));
        }
        let mut next = self.clone();
        let changes = next.apply_in_place(version, now, actions)?;
        if !changes.is_empty() {
            *self = next;
        }
        Ok(changes)
    }

    /// The actions before the first that does not fit stay applied.
    fn apply_in_place(&mut self, version: Version, now: Timestamp, actions: &[Action]) -> Result<Vec<Change>, ApplyError> {
        let mut applying = Applying { tables: self, version, now, changes: Vec::with_capacity(actions.len()) };
        for action in actions {
            applying.action(action)?;
        }
        let changes = applying.changes;
        if !changes.is_empty() {
            self.revision = version;
        }
        Ok(changes)
    }
}

struct Applying<'a> {
    tables: &'a mut Tables,
    version: Version,
    now: Timestamp,
    changes: Vec<Change>,
}

/// Runs `$body` with `$object` and the `$table` it belongs to, for tasks too.
macro_rules! per_kind {
    ($self:ident, $value:expr, $call:ident) => {
        match $value {
            Object::Cluster(object) => $self.$call(object, |tables| &mut tables.clusters),
            Object::Node(object) => $self.$call(object, |tables| &mut tables.nodes),
            Object::Service(object) => $self.$call(object, |tables| &mut tables.services),
            Object::Network(object) => $self.$call(object, |tables| &mut tables.networks),
            Object::Secret(object) => $self.$call(object, |tables| &mut tables.secrets),
            Object::Config(object) => $self.$call(object, |tables| &mut tables.configs),
            Object::Task(object) => $self.$call(object, |tables| &mut tables.tasks),
        }
    };
}

impl Applying<'_> {
    fn action(&mut self, action: &Action) -> Result<(), ApplyError> {
        match action {
            Action::Create(object) => per_kind!(self, object, create),
            Action::Update(object) => per_kind!(self, object, update),
            Action::Remove { kind, id, version } => match kind {
                Kind::Cluster => self.remove(id, *version, |tables| &mut tables.clusters),
                Kind::Node => self.remove(id, *version, |tables| &mut tables.nodes),
                Kind::Service => self.remove(id, *version, |tables| &mut tables.services),
                Kind::Network => self.remove(id, *version, |tables| &mut tables.networks),
                Kind::Secret => self.remove(id, *version, |tables| &mut tables.secrets),
                Kind::Config => self.remove(id, *version, |tables| &mut tables.configs),
                Kind::Task => self.remove(id, *version, |tables| &mut tables.tasks),
            },
            Action::SetTaskStatus { task, status } => {
                self.set_status(task, status);
                Ok(())
            }
            Action::SetTaskDesired { task, desired } => {
                self.set_desired(task, *desired);
                Ok(())
            }
        }
    }

    fn create<T: Held>(&mut self, object: &Arc<T>, table: fn(&mut Tables) -> &mut Table<T>) -> Result<(), ApplyError> {
        let rows = table(self.tables);
        // There is one cluster object; a second one would make `cluster()` ambiguous.
        let taken = if T::KIND == Kind::Cluster { rows.first() } else { rows.get(object.id()) };
        if let Some(taken) = taken {
            return Err(ApplyError::IdTaken { kind: T::KIND, id: taken.id().to_string() });
        }
        check_name(rows, object)?;
        let mut object = T::clone(object);
        *object.meta_mut() = skep_types::Meta { version: self.version, created_at: self.now, updated_at: self.now, created: self.version };
        object.note_beginning(None, self.version);
        let object = T::put(self.tables, Arc::new(object), table).1;
        self.changes.push(Change::Created(T::wrap(object)));
        Ok(())
    }

    fn update<T: Held>(&mut self, object: &Arc<T>, table: fn(&mut Tables) -> &mut Table<T>) -> Result<(), ApplyError> {
        let rows = table(self.tables);
        let Some(old) = rows.get(object.id()) else {
            return Err(ApplyError::Missing { kind: T::KIND, id: object.id().to_string() });
        };
        check_version(&**old, object.meta().version)?;
        check_name(rows, object)?;
        let mut new = T::clone(object);
        new.meta_mut().created_at = old.meta().created_at;
        new.meta_mut().created = old.meta().created;
        new.note_beginning(Some(&**old), self.version);
        self.replace(new, table);
        Ok(())
    }

    fn remove<T: Held>(&mut self, id: &str, version: Option<Version>, table: fn(&mut Tables) -> &mut Table<T>) -> Result<(), ApplyError> {
        // What cannot be an id names nothing that could be there.
        let Ok(id) = id.parse::<T::Id>() else { return Ok(()) };
        let Some(old) = table(self.tables).get(&id) else { return Ok(()) };
        if let Some(version) = version {
            check_version(&**old, version)?;
        }
        if let Some(old) = T::take(self.tables, &id, table) {
            self.changes.push(Change::Removed(T::wrap(old)));
        }
        Ok(())
    }

    fn set_status(&mut self, id: &TaskId, status: &TaskStatus) {
        let Some(old) = self.tables.tasks.get(id) else { return };
        // Who gave a task up, or called it rejected, did not know yet that it had ended: its end is heard and stays. A job that completed
        // would begin again otherwise.
        if matches!(status.state, TaskState::Orphaned | TaskState::Rejected) && old.status.state.is_terminal() {
            return;
        }
        let mut advanced = old.status.clone();
        // What is known already is not a change: agents repeat their reports after a reconnect.
        if advanced.advance(status.clone()).is_err() || advanced == old.status {
            return;
        }
        let mut new = Task::clone(old);
        new.status = advanced;
        self.replace(new, |tables| &mut tables.tasks);
    }

    fn set_desired(&mut self, id: &TaskId, desired: TaskState) {
        let Some(old) = self.tables.tasks.get(id) else { return };
        if desired <= old.desired_state {
            return;
        }
        let mut new = Task::clone(old);
        new.desired_state = desired;
        self.replace(new, |tables| &mut tables.tasks);
    }

    fn replace<T: Held>(&mut self, mut new: T, table: fn(&mut Tables) -> &mut Table<T>) {
        let meta = new.meta_mut();
        meta.version = self.version;
        meta.updated_at = self.now;
        if let (Some(old), new) = T::put(self.tables, Arc::new(new), table) {
            self.changes.push(Change::Updated { old: T::wrap(old), new: T::wrap(new) });
        }
    }
}

fn check_version<T: Stored>(stored: &T, wanted: Version) -> Result<(), ApplyError> {
    if stored.meta().version == wanted {
        return Ok(());
    }
    Err(ApplyError::Stale { kind: T::KIND, id: stored.id().to_string(), stored: stored.meta().version, wanted })
}

fn check_name<T: Stored>(rows: &Table<T>, object: &T) -> Result<(), ApplyError> {
    match rows.get_by_name(object.unique_name()) {
        Some(other) if other.id() != object.id() => {
            Err(ApplyError::NameTaken { kind: T::KIND, name: object.unique_name().to_owned(), id: other.id().to_string() })
        }
        _ => Ok(()),
    }
}

/// How a kind is put and taken: tasks have more indexes than the others.
trait Held: Stored {
    /// The former object and the stored one.
    fn put(tables: &mut Tables, object: Arc<Self>, table: fn(&mut Tables) -> &mut Table<Self>) -> (Option<Arc<Self>>, Arc<Self>) {
        let old = table(tables).put(Arc::clone(&object));
        (old, object)
    }
    fn take(tables: &mut Tables, id: &Self::Id, table: fn(&mut Tables) -> &mut Table<Self>) -> Option<Arc<Self>> {
        table(tables).take(id)
    }
    /// Notes the revision of what begins with this write, where an object has such a thing.
    fn note_beginning(&mut self, _old: Option<&Self>, _version: Version) {}
}

impl Held for skep_types::Cluster {}
impl Held for skep_types::Node {}
impl Held for skep_types::Service {
    fn note_beginning(&mut self, old: Option<&Self>, version: Version) {
        let before = old.and_then(|old| old.update_status.as_ref());
        if let Some(status) = &mut self.update_status {
            let goes_on = before.filter(|before| before.started_at == status.started_at);
            status.began = goes_on.map_or(version, |before| before.began);
        }
    }
}
impl Held for skep_types::Network {}
impl Held for skep_types::Secret {}
impl Held for skep_types::Config {}
impl Held for Task {
    fn put(tables: &mut Tables, mut object: Arc<Self>, _table: fn(&mut Tables) -> &mut Table<Self>) -> (Option<Arc<Self>>, Arc<Self>) {
        tables.share_spec(&mut object);
        (tables.put_task(Arc::clone(&object)), object)
    }
    fn take(tables: &mut Tables, id: &TaskId, _table: fn(&mut Tables) -> &mut Table<Self>) -> Option<Arc<Self>> {
        tables.take_task(id)
    }
}
