//! From a container that is ready to a process.

use super::client::PROCESS_LIMIT;
use super::run::Shared;
use super::story::Story;
use crate::error::ExecError;
use crate::executor::Started;
use crate::task::drive::now;
use containerd_client::services::v1::{CreateTaskRequest, StartRequest};
use skep_failpoint::failpoint;
use skep_types::{ContainerStatus, Task};
use std::path::PathBuf;
use std::time::Duration;

/// For the subscription to containerd's events to be live.
const LIVE_LIMIT: Duration = Duration::from_secs(10);

impl Shared {
    pub(super) async fn start(&self, task: &Task) -> Result<Started, ExecError> {
        let id = task.id.as_str();
        let prepared = self.prepared.lock().expect("no panic while held").remove(&task.id);
        // Only after a restart of the agent, which prepares again: a repeated attempt, not an error of the task.
        let prepared = prepared.ok_or(ExecError::Timeout { step: "prepare the container", seconds: 0 })?;
        let _permit = self.starts.acquire().await.map_err(|_| ExecError::Cancelled)?;
        tokio::time::timeout(LIVE_LIMIT, self.exits.wait_live())
            .await
            .map_err(|_| ExecError::Unreachable { socket: self.config.socket.clone(), reason: "its events are not heard".into() })?;
        self.exits.track(id);
        let dir = self.config.task_dir(&task.id);
        let path = |path: Option<PathBuf>| path.map(|path| path.display().to_string()).unwrap_or_default();
        let request = self.client.request(CreateTaskRequest {
            container_id: id.to_owned(),
            rootfs: prepared.mounts,
            stdin: path(prepared.stdin),
            stdout: path(Some(dir.join("stdout"))),
            stderr: path((!prepared.terminal).then(|| dir.join("stderr"))),
            terminal: prepared.terminal,
            ..CreateTaskRequest::default()
        });
        failpoint!("agent.start.before_create");
        let created = self.client.call("create the process", PROCESS_LIMIT, self.client.tasks().create(request)).await;
        let pid = created.map_err(self.explain())?.pid;
        failpoint!("agent.start.created");
        let request = self.client.request(StartRequest { container_id: id.to_owned(), exec_id: String::new() });
        let started = self.client.call("start the process", PROCESS_LIMIT, self.client.tasks().start(request)).await;
        started.map_err(self.explain())?;
        failpoint!("agent.start.started");
        self.exits.started(id);
        if let Some(mut story) = Story::load(&self.config, &task.id) {
            story.started_at = Some(now());
            let _ = story.save(&self.config, &task.id); // only for those who look
        }
        let container = ContainerStatus { container_id: id.to_owned(), pid: pid.cast_signed(), exit_code: 0 };
        Ok(Started { container, health: prepared.health })
    }
}
