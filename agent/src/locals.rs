//! Containers that people run on this node by hand (`docker run`). No manager knows of them, and none is needed.
//!
//! Each is made as a task's container is, by the same executor, and has a record of its own on the disk
//! (`<data>/agent/containers/<id>.json`), written before anything is made and removed when nothing is left: what a crash leaves is gone
//! on with by the next agent, or removed. Its root file system and volumes stay from one life of its process to the next.
//!
//! Start with [`Locals::create`]. Tasks: one per running container that waits for its end, one per operation under way, so that a client
//! that goes away leaves nothing half done; all end with the agent, which leaves the containers running.

mod life; // starting, ending, starting again
mod places; // on networks of the cluster
mod policy; // when it is started again
mod ports; // one of a range
mod record; // what is remembered

pub use policy::{RestartWish, Restarts};
pub use record::{Local, LocalWish, Place, predefined};

use crate::board::{Board, What};
use crate::containerd::ContainerdExecutor;
use crate::containers::ContainersError;
use crate::error::AgentError;
use crate::executor::{Executor as _, Network};
use crate::places::{Allocator, Places};
use crate::records::RecordDir;
use crate::task::Event;
use crate::task::drive::now;
use skep_failpoint::failpoint;
use skep_types::{ContainerSpec, MountType, Task, TaskId};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// For what is under way to be finished when the agent ends: a start or an end takes seconds at most.
const LAST_WORK: Duration = Duration::from_secs(10);

/// All of this node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Locals(Arc<Inner>);

struct Inner {
    executor: ContainerdExecutor,
    network: Arc<dyn Network>,
    board: Board,
    places: Places,
    allocator: Arc<dyn Allocator>,
    records: RecordDir<Local>,
    table: Mutex<BTreeMap<TaskId, Arc<Entry>>>,
    work: TaskTracker,
    stop: CancellationToken,
}

struct Entry {
    /// One operation after the other.
    turn: Arc<tokio::sync::Mutex<()>>,
    state: watch::Sender<Local>,
    /// Cancelled: it is not started again.
    again: Mutex<CancellationToken>,
    /// Cancelled: its health is not looked at any more.
    watching: Mutex<CancellationToken>,
}

impl Entry {
    fn new(local: Local) -> Arc<Self> {
        Arc::new(Self { turn: Arc::default(), state: watch::Sender::new(local), again: Mutex::default(), watching: Mutex::default() })
    }

    fn local(&self) -> Local {
        self.state.borrow().clone()
    }

    fn renew(token: &Mutex<CancellationToken>) -> CancellationToken {
        let new = CancellationToken::new();
        std::mem::replace(&mut *token.lock().expect("no panic while held"), new.clone()).cancel();
        new
    }
}

impl Locals {
    /// Reads the records, and tells the executor which containers are none of tasks.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn open(
        data_dir: &Path,
        executor: ContainerdExecutor,
        network: Arc<dyn Network>,
        board: Board,
        (places, allocator): (Places, Arc<dyn Allocator>),
        stop: CancellationToken,
    ) -> Result<Self, AgentError> {
        let records = RecordDir::<Local>::open(&data_dir.join("agent/containers"))?;
        let all = records.load()?;
        // With the ports that were chosen for it.
        executor.know_locals(all.iter().map(|local| Task { status: local.status.clone(), ..(*local.task).clone() }));
        for local in &all {
            places.hold(&local.task.id, local.attachments().cloned());
        }
        let table = all.into_iter().map(|local| (local.task.id.clone(), Entry::new(local))).collect();
        let table = Mutex::new(table);
        Ok(Self(Arc::new(Inner { executor, network, board, places, allocator, records, table, work: TaskTracker::new(), stop })))
    }

    fn with<R>(&self, act: impl FnOnce(&mut BTreeMap<TaskId, Arc<Entry>>) -> R) -> R {
        act(&mut self.0.table.lock().expect("no panic while held"))
    }

    fn entries(&self) -> Vec<Arc<Entry>> {
        self.with(|table| table.values().cloned().collect())
    }

    fn entry(&self, id: &TaskId) -> Result<Arc<Entry>, ContainersError> {
        let found = self.with(|table| table.get(id).cloned());
        found.ok_or_else(|| ContainersError::NotFound { container: id.to_string() })
    }

    /// All, in order of their ids.
    pub fn list(&self) -> Vec<Local> {
        // What is not whole yet is nobody's to see.
        self.entries().iter().map(|entry| entry.local()).filter(|local| local.image.is_some()).collect()
    }

    pub fn get(&self, id: &TaskId) -> Option<Local> {
        self.entry(id).ok().map(|entry| entry.local()).filter(|local| local.image.is_some())
    }

    /// What becomes of one.
    pub fn follow(&self, id: &TaskId) -> Option<watch::Receiver<Local>> {
        self.entry(id).ok().map(|entry| entry.state.subscribe())
    }

    /// Ids of those that have a volume.
    pub fn users_of_volume(&self, name: &str) -> Vec<TaskId> {
        let names = |task: &Task| task.spec.container().is_some_and(|spec| has_volume(spec, name)) || is_own_volume(&task.id, name);
        self.list().into_iter().map(|local| local.task).filter(|task| names(task)).map(|task| task.id.clone()).collect()
    }

    /// Runs to its end whatever becomes of the client.
    async fn owned<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, ContainersError>> + Send + 'static,
    ) -> Result<T, ContainersError> {
        if self.0.stop.is_cancelled() {
            return Err(ContainersError::Ending);
        }
        self.0.work.spawn(work).await.map_err(|_| ContainersError::Ending)?
    }

    fn record(&self, local: &Local) -> std::io::Result<()> {
        // One that goes with its end has nothing to be remembered over a power cut: what is left of it is removed as a stranger's.
        if local.auto_remove { self.0.records.save(local) } else { self.0.records.save_for_good(local) }
    }

    fn save(&self, local: &Local) {
        if let Err(error) = self.record(local) {
            tracing::warn!(container = %local.task.id, %error, "could not record on disk how a container is");
        }
    }

    /// Changes what is known of one, and writes it.
    fn change(&self, entry: &Entry, change: impl FnOnce(&mut Local)) -> Local {
        entry.state.send_modify(change);
        let local = entry.local();
        self.save(&local);
        local
    }

    /// Makes one that is not started. Its record comes first.
    ///
    /// # Errors
    /// If the name is taken, or something of it cannot be had: nothing is left then.
    pub async fn create(&self, wish: LocalWish) -> Result<TaskId, ContainersError> {
        let this = self.clone();
        self.owned(async move { this.create_now(wish).await }).await
    }

    async fn create_now(&self, wish: LocalWish) -> Result<TaskId, ContainersError> {
        let reference = wish.reference.clone();
        let local = Local::new(wish, now());
        let (id, task) = (local.task.id.clone(), Arc::clone(&local.task));
        let entry = Entry::new(local.clone());
        let _turn = entry.turn.lock().await;
        self.with(|table| {
            check_name(table, &task.annotations.name, None)?;
            table.insert(id.clone(), Arc::clone(&entry));
            Ok::<_, ContainersError>(())
        })?;
        let recorded = self.record(&local);
        failpoint!("agent.local.recorded");
        let made = match recorded {
            Ok(()) => self.0.executor.make_local(&task, &reference).await.map_err(ContainersError::from),
            Err(error) => Err(ContainersError::io("record", id.as_str())(error)),
        };
        match made {
            Ok(image) => {
                self.change(&entry, |local| local.image = Some(image));
                failpoint!("agent.local.made");
                self.0.board.saw(&task, &Event::Prepared);
                Ok(id)
            }
            Err(error) => {
                if let Err(left) = self.clear(&entry, true).await {
                    tracing::warn!(container = %id, error = %left.words(), "parts of a container may be left; the next start removes them");
                }
                Err(error)
            }
        }
    }

    /// Removes everything there is of one that does not run, and its record last.
    async fn clear(&self, entry: &Entry, with_volumes: bool) -> Result<(), ContainersError> {
        let task = Arc::clone(&entry.state.borrow().task);
        for volume in self.0.executor.remove_local(&task.id, with_volumes).await? {
            self.0.board.tell(&task, What::DestroyVolume { volume });
        }
        self.0.executor.forget(&task.id).await?;
        failpoint!("agent.local.cleared");
        self.0.places.release(&task.id, None);
        self.0.records.remove(&task.id).map_err(ContainersError::io("remove the record of", task.id.as_str()))?;
        self.with(|table| table.remove(&task.id));
        entry.state.send_modify(|local| local.is_gone = true);
        self.0.board.forget(&task);
        Ok(())
    }

    /// Keeps one that does not run as it is for as long as the guard lives: nobody starts or removes it. Nothing of an earlier life is
    /// left then. `None`: it runs.
    ///
    /// # Errors
    /// If there is no such container.
    pub async fn hold(&self, id: &TaskId) -> Result<Option<tokio::sync::OwnedMutexGuard<()>>, ContainersError> {
        let entry = self.entry(id)?;
        let turn = Arc::clone(&entry.turn).lock_owned().await;
        let local = entry.local();
        if local.is_gone || local.image.is_none() {
            return Err(ContainersError::NotFound { container: id.to_string() });
        }
        if local.is_running() {
            return Ok(None);
        }
        if local.has_remains {
            self.retire(&entry).await;
        }
        Ok(Some(turn))
    }

    /// Gives it another name.
    ///
    /// # Errors
    /// If that is taken, or there is no such container.
    pub async fn rename(&self, id: &TaskId, name: &str) -> Result<(), ContainersError> {
        let (this, entry, name) = (self.clone(), self.entry(id)?, name.to_owned());
        self.owned(async move {
            let _turn = entry.turn.lock().await;
            if entry.state.borrow().attachments().next().is_some() {
                return Err(ContainersError::NamedOnNetworks { container: entry.state.borrow().task.id.to_string() });
            }
            let old = this.with(|table| {
                let id = entry.state.borrow().task.id.clone();
                check_name(table, &name, Some(&id))?;
                let old = entry.state.borrow().task.annotations.name.clone();
                entry.state.send_modify(|local| local.change_task(|task| task.annotations.name.clone_from(&name)));
                Ok::<_, ContainersError>(old)
            })?;
            let local = this.change(&entry, |_| ());
            this.0.board.tell(&local.task, What::Rename { old });
            Ok(())
        })
        .await
    }

    /// Other limits, at once if it runs, and another wish for restarts. `change` is told the container as it is.
    ///
    /// # Errors
    /// If the limits cannot be kept; then all is as it was.
    pub async fn update(
        &self,
        id: &TaskId,
        change: impl FnOnce(&mut Local) -> Result<(), ContainersError> + Send + 'static,
    ) -> Result<(), ContainersError> {
        let (this, entry) = (self.clone(), self.entry(id)?);
        self.owned(async move {
            let _turn = entry.turn.lock().await;
            let mut changed = entry.local();
            change(&mut changed)?;
            let limits = this.0.executor.limits_of(&changed.task)?;
            if changed.is_running() {
                this.0.executor.limit(&changed.task.id, &limits).await?;
            }
            let Local { task, restart, asked, .. } = changed;
            let local = this.change(&entry, |local| (local.task, local.restart, local.asked) = (task, restart, asked));
            this.0.board.tell(&local.task, What::Update);
            Ok(())
        })
        .await
    }

    /// Waits for the agent's end, and for what is under way then.
    pub async fn keep(self) {
        tokio::select! {
            () = self.0.stop.cancelled() => {}
            () = self.follow_losses() => {}
        }
        self.0.work.close();
        if tokio::time::timeout(LAST_WORK, self.0.work.wait()).await.is_err() {
            tracing::warn!("what is under way with a container takes too long to end; going on without it");
        }
    }
}

fn has_volume(spec: &ContainerSpec, name: &str) -> bool {
    spec.mounts.iter().any(|mount| mount.kind == MountType::Volume && mount.source == name)
}

/// Those without a name are called as their container.
fn is_own_volume(id: &TaskId, name: &str) -> bool {
    name.strip_prefix(id.as_str()).is_some_and(|rest| rest.starts_with('-'))
}

fn check_name(table: &BTreeMap<TaskId, Arc<Entry>>, name: &str, own: Option<&TaskId>) -> Result<(), ContainersError> {
    let holder = table.iter().find(|(id, entry)| Some(*id) != own && entry.state.borrow().task.annotations.name == name);
    match holder {
        Some((id, _)) => Err(ContainersError::NameTaken { name: name.to_owned(), container: id.to_string() }),
        None => Ok(()),
    }
}
