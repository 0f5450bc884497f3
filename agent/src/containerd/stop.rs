//! From a process to its end, and from a container back to nothing.

use super::client::{CALL_LIMIT, CallError, PROCESS_LIMIT};
use super::run::Shared;
use super::volumes;
use crate::board::What;
use crate::error::ExecError;
use crate::task::Outcome;
use containerd_client::services::v1::snapshots::RemoveSnapshotRequest;
use containerd_client::services::v1::{DeleteContainerRequest, DeleteTaskRequest, KillRequest};
use skep_failpoint::failpoint;
use skep_types::{Task, TaskId};
use std::sync::Arc;
use std::time::Duration;
use tonic::Code;

/// As Docker's.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);
/// SIGKILL takes effect at once unless the process hangs in the kernel.
pub(super) const KILL_LIMIT: Duration = Duration::from_secs(10);

impl Shared {
    /// Sends a signal; false if there is no process.
    pub(super) async fn kill(&self, id: &str, exec: &str, signal: i32) -> Result<bool, ExecError> {
        let message = KillRequest { container_id: id.to_owned(), exec_id: exec.to_owned(), signal: signal.unsigned_abs(), all: false };
        let request = self.client.request(message);
        match self.client.call("send a signal", PROCESS_LIMIT, self.client.tasks().kill(request)).await {
            Ok(_) => Ok(true),
            Err(error) if error.is(Code::NotFound) => Ok(false),
            Err(error) => Err(self.client.explain(error)),
        }
    }

    pub(super) async fn stop(&self, task: &Task) -> Result<Option<Outcome>, ExecError> {
        let id = task.id.as_str();
        if !self.touched.lock().expect("no panic while held").contains(&task.id) {
            return Ok(None);
        }
        let kept = self.config.task_dir(&task.id).kept();
        let signal = kept.map_or(libc::SIGTERM, |kept| kept.stop_signal);
        let grace = task.spec.container().and_then(|spec| spec.stop_grace_period).unwrap_or(DEFAULT_GRACE);
        let mut ended = self.exits.ended(id);
        let mut outcome = ended.try_recv().ok();
        if outcome.is_none() && self.kill(id, "", signal).await? {
            self.board.tell(&Arc::new(task.clone()), What::Kill { signal });
            failpoint!("agent.stop.signalled");
            outcome = tokio::time::timeout(grace, &mut ended).await.ok().and_then(Result::ok);
            if outcome.is_none() && self.kill(id, "", libc::SIGKILL).await? {
                self.board.tell(&Arc::new(task.clone()), What::Kill { signal: libc::SIGKILL });
                failpoint!("agent.stop.killed");
                outcome = tokio::time::timeout(KILL_LIMIT, &mut ended).await.ok().and_then(Result::ok);
            }
        }
        failpoint!("agent.stop.ended");
        self.release(&task.id).await?;
        Ok(outcome)
    }

    async fn delete_process(&self, id: &str) -> Result<(), CallError> {
        let request = self.client.request(DeleteTaskRequest { container_id: id.to_owned() });
        match self.client.call("delete the process", PROCESS_LIMIT, self.client.tasks().delete(request)).await {
            Err(error) if !error.is(Code::NotFound) => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) async fn remove_process(&self, id: &str) -> Result<(), ExecError> {
        let first = self.delete_process(id).await;
        if !first.as_ref().is_err_and(|error| error.is(Code::FailedPrecondition)) {
            return first.map_err(self.explain());
        }
        // It runs: what a start left whose answer never came.
        self.exits.started(id);
        let ended = self.exits.ended(id);
        if self.kill(id, "", libc::SIGKILL).await? {
            let _ = tokio::time::timeout(KILL_LIMIT, ended).await; // if it is still there, deleting says so
        }
        self.delete_process(id).await.map_err(self.explain())
    }

    pub(super) async fn remove_container(&self, id: &str) -> Result<(), ExecError> {
        let request = self.client.request(DeleteContainerRequest { id: id.to_owned() });
        match self.client.call("delete the container", CALL_LIMIT, self.client.containers().delete(request)).await {
            Err(error) if !error.is(Code::NotFound) => Err(self.client.explain(error)),
            _ => Ok(()),
        }
    }

    async fn remove_snapshot(&self, id: &str, snapshotter: String) -> Result<(), ExecError> {
        let request = self.client.request(RemoveSnapshotRequest { snapshotter, key: id.to_owned() });
        match self.client.call("remove the root file system", CALL_LIMIT, self.client.snapshots().remove(request)).await {
            Err(error) if !error.is(Code::NotFound) => Err(self.client.explain(error)),
            _ => Ok(()),
        }
    }

    /// Goes on after a failure and returns the first; what is left is found by the next attempt.
    pub(super) async fn release(&self, task: &TaskId) -> Result<(), ExecError> {
        if !self.touched.lock().expect("no panic while held").contains(task) {
            return Ok(());
        }
        let id = task.as_str();
        let dir = self.config.task_dir(task);
        let kept = dir.kept();
        let snapshotter = kept.as_ref().map_or_else(|| self.config.snapshotter.clone(), |kept| kept.snapshotter.clone());
        self.remove_process(id).await?;
        failpoint!("agent.release.process");
        let (container, network, logs) = tokio::join!(self.remove_container(id), self.network.detach(task), self.logs.finish(task));
        failpoint!("agent.release.container");
        let snapshot = self.remove_snapshot(id, snapshotter).await;
        failpoint!("agent.release.snapshot");
        let remove_own = || kept.map_or(Ok(()), |kept| volumes::remove_own(&self.config.volumes_dir(), &kept.own_volumes));
        let own = self.config.shelf().let_go(task).and_then(|()| remove_own());
        container.and(network.map_err(ExecError::from)).and(logs).and(snapshot).and(own)?;
        failpoint!("agent.release.volumes");
        self.config.task_etc(task).remove()?;
        dir.remove()?;
        failpoint!("agent.release.files");
        self.exits.untrack(id);
        self.prepared.lock().expect("no panic while held").remove(task);
        self.processes.lock().expect("no panic while held").remove(task);
        self.touched.lock().expect("no panic while held").remove(task);
        Ok(())
    }
}
