//! The set of tasks of this node: takes assignments in, owns one driver per task, and cleans up what nobody wants.

use crate::applied::Ledger;
use crate::error::AgentError;
use crate::executor::Found;
use crate::records::Record;
use crate::task::Alone;
use crate::task::drive::{COMMANDS, Command, Context, drive};
use skep_failpoint::failpoint;
use skep_types::{Task, TaskId, TaskState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// For containerd to come up; then the start fails and says so.
const SURVEY_LIMIT: Duration = Duration::from_secs(20);
const SURVEY_RETRY: Duration = Duration::from_millis(300);

/// What the worker is asked to do.
#[derive(Debug)]
pub enum Assign {
    /// All tasks of this node; others are removed.
    Complete(Vec<Task>),
    Update(Box<Task>),
    Remove(TaskId),
    /// All that a message said was handed over: from now on managers may build on it. `bare`: the node holds no payloads.
    Applied {
        name: String,
        bare: bool,
    },
    /// Stop and remove everything, answer when it is done, take nothing any more (wire-behaviour 9.3).
    Leave(oneshot::Sender<()>),
}

/// The tasks of this node, for those who look only.
#[derive(Debug, Clone)]
pub struct TaskList(watch::Receiver<Arc<BTreeMap<TaskId, Arc<Task>>>>);

impl TaskList {
    #[must_use]
    pub fn now(&self) -> Arc<BTreeMap<TaskId, Arc<Task>>> {
        Arc::clone(&self.0.borrow())
    }

    /// Waits until a task came or went; false when the worker ended.
    pub async fn changed(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}

struct Handle {
    commands: mpsc::Sender<Command>,
    unassigned: bool,
}

/// Owner of all drivers.
pub(crate) struct Worker {
    context: Arc<Context>,
    ledger: Ledger,
    handles: BTreeMap<TaskId, Handle>,
    drivers: JoinSet<TaskId>,
    /// Of earlier tasks that no record names; adopted if the first complete assignment wants them, else removed.
    strays: BTreeMap<TaskId, Found>,
    list: watch::Sender<Arc<BTreeMap<TaskId, Arc<Task>>>>,
    leaving: Option<oneshot::Sender<()>>,
    stop: CancellationToken,
}

impl Worker {
    pub(crate) fn new(context: Arc<Context>, ledger: Ledger, stop: CancellationToken) -> (Self, TaskList) {
        let (list, reader) = watch::channel(Arc::default());
        let worker =
            Self { context, ledger, handles: BTreeMap::new(), drivers: JoinSet::new(), strays: BTreeMap::new(), list, leaving: None, stop };
        (worker, TaskList(reader))
    }

    /// Adopts what an earlier agent left: reads the records, looks at what runs, and goes on with each task.
    pub(crate) async fn recover(&mut self) -> Result<(), AgentError> {
        let records = self.context.records.load()?;
        let mut found = self.survey().await?;
        failpoint!("agent.recover.surveyed");
        let runs =
            |record: &Record| record.status.state == TaskState::Running && matches!(found.get(&record.task.id), Some(Found::Running(_)));
        let mut tasks: Vec<(Task, bool)> = records.iter().map(|record| (record.task.clone(), runs(record))).collect();
        tasks.extend(self.context.executor.others());
        if let Err(error) = self.context.network.recover(&tasks).await {
            tracing::warn!(%error, "the network of earlier tasks is not as it should be yet");
        }
        failpoint!("agent.recover.network");
        // All before the first begins: who waits has to see for whom.
        for record in &records {
            self.enter(record, found.get(&record.task.id));
        }
        for record in records {
            let found = found.remove(&record.task.id);
            if !record.unassigned {
                self.ledger.assigned(&record.task);
            }
            self.begin(record, found);
        }
        for task in found.keys() {
            tracing::warn!(task = %task, "found remains of an unknown task");
        }
        self.strays = found;
        self.ledger.recover(self.strays.is_empty());
        Ok(())
    }

    /// containerd may be starting at the same time as we are.
    async fn survey(&self) -> Result<BTreeMap<TaskId, Found>, AgentError> {
        let begin = tokio::time::Instant::now();
        loop {
            match self.context.executor.survey().await {
                Err(error) if error.is_temporary() && begin.elapsed() < SURVEY_LIMIT => {
                    tracing::warn!(error = %error.words(), "cannot see yet what runs on this node");
                    tokio::time::sleep(SURVEY_RETRY).await;
                }
                other => return other.map_err(AgentError::Survey),
            }
        }
    }

    pub(crate) async fn run(mut self, mut inbox: mpsc::Receiver<Assign>) {
        let stop = self.stop.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = self.drivers.join_next(), if !self.drivers.is_empty() => match ended {
                    Ok(task) => self.ended(&task),
                    Err(error) => tracing::error!(%error, "a task's driver ended badly"),
                },
                message = inbox.recv() => match message {
                    Some(message) => self.take(message).await,
                    None => break,
                },
            }
            if self.handles.is_empty()
                && let Some(done) = self.leaving.take()
            {
                let _ = done.send(()); // nobody waits any more: as good
            }
        }
        // Each driver stops by itself; nothing is done to the tasks.
        while self.drivers.join_next().await.is_some() {}
    }

    async fn take(&mut self, message: Assign) {
        match message {
            Assign::Leave(done) => {
                self.complete(Vec::new()).await;
                self.ledger.forget();
                self.leaving = Some(done);
            }
            _ if self.leaving.is_some() => {}
            Assign::Complete(tasks) => self.complete(tasks).await,
            Assign::Update(task) => self.assign(*task).await,
            Assign::Remove(task) => self.unassign(&task).await,
            Assign::Applied { name, bare } => self.ledger.applied(name, bare),
        }
    }

    async fn complete(&mut self, tasks: Vec<Task>) {
        let wanted: BTreeSet<TaskId> = tasks.iter().map(|task| task.id.clone()).collect();
        let unwanted: Vec<TaskId> = self.handles.keys().filter(|id| !wanted.contains(id)).cloned().collect();
        // All of it before anything begins: in whichever order they are named, who takes another's place waits for it.
        self.context.slots.send_modify(|slots| {
            unwanted.iter().for_each(|id| slots.unassigned(id));
            tasks.iter().for_each(|task| slots.told(task));
        });
        for id in unwanted {
            self.unassign(&id).await;
        }
        for task in tasks {
            self.assign(task).await;
        }
        failpoint!("agent.assign.before_strays");
        for id in std::mem::take(&mut self.strays).into_keys() {
            let context = Arc::clone(&self.context);
            self.drivers.spawn(async move {
                tracing::info!(task = %id, "removing remains of an unknown task");
                if let Err(error) = context.executor.release(&id).await {
                    tracing::warn!(task = %id, error = %error.words(), "could not remove remains; the next start tries again");
                }
                if let Err(error) = context.executor.forget(&id).await {
                    tracing::warn!(task = %id, error = %error.words(), "could not remove logs");
                }
                id
            });
        }
    }

    async fn assign(&mut self, task: Task) {
        match self.handles.get(&task.id) {
            Some(handle) if handle.unassigned => {
                tracing::warn!(task = %task.id, "assigned again while it is being removed; ignored");
            }
            Some(handle) => {
                self.publish(&task);
                self.ledger.assigned(&task);
                self.context.slots.send_modify(|slots| slots.told(&task));
                // Waits while the task has many messages unread; it reads them between two actions, never later.
                let _ = handle.commands.send(Command::Update(Box::new(task))).await;
            }
            None => {
                let found = self.strays.remove(&task.id);
                self.ledger.assigned(&task);
                let status = task.status.clone();
                let record = Record { task, status, alone: Alone::default(), unassigned: false };
                self.enter(&record, found.as_ref());
                self.begin(record, found);
            }
        }
    }

    async fn unassign(&mut self, id: &TaskId) {
        if let Some(handle) = self.handles.get_mut(id)
            && !std::mem::replace(&mut handle.unassigned, true)
        {
            self.context.slots.send_modify(|slots| slots.unassigned(id));
            let _ = handle.commands.send(Command::Unassign).await;
        }
        self.ledger.unassigned(id);
    }

    /// Makes the task known to others of its slot.
    fn enter(&self, record: &Record, found: Option<&Found>) {
        let id = &record.task.id;
        self.context.slots.send_modify(|slots| {
            slots.told(&record.task);
            if record.unassigned {
                slots.unassigned(id);
            }
            if matches!(found, Some(Found::Running(_))) {
                slots.found(id);
            }
        });
    }

    fn begin(&mut self, mut record: Record, found: Option<Found>) {
        // A node only runs what was assigned to it, whatever the message says of earlier states.
        record.status.state = record.status.state.max(TaskState::Assigned);
        let (commands, inbox) = mpsc::channel(COMMANDS);
        let id = record.task.id.clone();
        self.publish(&record.task);
        // Before the first session, which tells of all that is remembered.
        self.context.reports.remember(&id, record.status.clone());
        self.handles.insert(id.clone(), Handle { commands, unassigned: record.unassigned });
        let driver = drive(Arc::clone(&self.context), record, found, inbox, self.stop.clone());
        self.drivers.spawn(async move {
            driver.await;
            id
        });
    }

    fn publish(&self, task: &Task) {
        self.list.send_modify(|list| {
            Arc::make_mut(list).insert(task.id.clone(), Arc::new(task.clone()));
        });
    }

    fn ended(&mut self, id: &TaskId) {
        if self.handles.remove(id).is_some() {
            self.context.slots.send_modify(|slots| slots.forget(id));
            self.list.send_modify(|list| {
                Arc::make_mut(list).remove(id);
            });
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
