//! Processes beside a container's own that people talk with: pipes both ways, a terminal, an end.
//!
//! A shim opens the pipes of a process while it starts it, and waits for the other ends. They are open before it is asked, reading and
//! writing, so that neither side ever waits; once the process runs, only the ends that are needed stay, and the end of a stream shows.

use super::client::{CALL_LIMIT, CallError, PROCESS_LIMIT};
use super::files::TaskDir;
use super::run::{ContainerdExecutor, Shared};
use super::stop::KILL_LIMIT;
use super::{rootfs, spec};
use crate::board::What;
use crate::error::ExecError;
use containerd_client::services::v1::snapshots::MountsRequest;
use containerd_client::services::v1::{
    CloseIoRequest, DeleteProcessRequest, ExecProcessRequest, GetRequest, PauseTaskRequest, ResizePtyRequest, ResumeTaskRequest,
    StartRequest,
};
use containerd_client::types::Mount;
use containerd_client::types::v1::Status as ProcessStatus;
use oci_spec::runtime::Process;
use prost_types::Any;
use skep_failpoint::failpoint;
use skep_types::{Task, TaskId};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tonic::Code;

/// What the names of such processes and their pipes begin with.
pub(super) const PREFIX: &str = "exec-";
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// A process that was killed is gone within moments; then it can be deleted.
const DELETE_ATTEMPTS: u32 = 20;
const DELETE_PAUSE: Duration = Duration::from_millis(250);

/// A process that is to be run in a container. What is empty is as the container's own process has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    pub command: Vec<String>,
    pub env: Vec<String>,
    pub user: String,
    pub dir: String,
    pub has_stdin: bool,
    pub has_terminal: bool,
    /// With every capability there is.
    pub is_privileged: bool,
}

/// One that runs.
pub(crate) struct Begun {
    pub pid: u32,
    pub stdin: Option<pipe::Sender>,
    pub stdout: pipe::Receiver,
    /// A terminal has one stream only.
    pub stderr: Option<pipe::Receiver>,
    /// Gone without a word: look with [`ContainerdExecutor::exec_status`].
    pub ended: oneshot::Receiver<i32>,
}

struct Pipes {
    paths: [Option<PathBuf>; 3],
    stdin: Option<pipe::Sender>,
    stdout: pipe::Receiver,
    stderr: Option<pipe::Receiver>,
    /// Both ends of what it writes, until it runs.
    held: Vec<File>,
}

fn pipe_name(exec: &str, stream: &str) -> String {
    format!("{exec}.{stream}")
}

fn make_pipes(dir: &TaskDir, exec: &str, program: &Program) -> Result<Pipes, ExecError> {
    let mut held = Vec::new();
    let mut output = |stream: &str| {
        let path = dir.make_fifo(&pipe_name(exec, stream))?;
        let both = std::fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path);
        held.push(both.map_err(ExecError::io("open the pipe", &path))?);
        let receiver = pipe::OpenOptions::new().open_receiver(&path).map_err(ExecError::io("open the pipe", &path))?;
        Ok::<_, ExecError>((path, receiver))
    };
    let (stdout_path, stdout) = output("stdout")?;
    let (stderr_path, stderr) = match program.has_terminal {
        true => (None, None),
        false => output("stderr").map(|(path, receiver)| (Some(path), Some(receiver)))?,
    };
    let (stdin_path, stdin) = match program.has_stdin {
        false => (None, None),
        true => {
            let path = dir.make_fifo(&pipe_name(exec, "stdin"))?;
            let sender = pipe::OpenOptions::new().read_write(true).open_sender(&path).map_err(ExecError::io("open the pipe", &path))?;
            (Some(path), Some(sender))
        }
    };
    Ok(Pipes { paths: [stdin_path, Some(stdout_path), stderr_path], stdin, stdout, stderr, held })
}

impl Shared {
    /// The directories of a container's root file system, the uppermost first.
    pub(super) async fn root_of(&self, task: &TaskId) -> Result<Vec<Mount>, ExecError> {
        let snapshotter = self.config.task_dir(task).kept().map_or_else(|| self.config.snapshotter.clone(), |kept| kept.snapshotter);
        let request = self.client.request(MountsRequest { snapshotter, key: task.to_string() });
        let answer = self.client.call("find the root file system", CALL_LIMIT, self.client.snapshots().mounts(request)).await;
        Ok(answer.map_err(self.explain())?.mounts)
    }

    async fn exec_process(&self, task: &TaskId, program: &Program) -> Result<Process, ExecError> {
        let own = self.process(task).await?;
        let user = match program.user.as_str() {
            "" => None,
            user => Some(rootfs::resolve_user(&rootfs::layers(&self.root_of(task).await?), user, &[])?),
        };
        spec::exec_program(&own, program, user.as_ref())
    }

    async fn try_exec(&self, task: &TaskId, exec: &str, program: &Program) -> Result<Begun, ExecError> {
        let id = task.as_str();
        let process = self.exec_process(task, program).await?;
        let Pipes { paths, stdin, stdout, stderr, held } = make_pipes(&self.config.task_dir(task), exec, program)?;
        let [stdin_path, stdout_path, stderr_path] = paths.map(|path| path.map(|path| path.display().to_string()).unwrap_or_default());
        let text =
            serde_json::to_vec(&process).map_err(|error| ExecError::Runtime { step: "encode the process", reason: error.to_string() })?;
        let request = self.client.request(ExecProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            stdin: stdin_path,
            stdout: stdout_path,
            stderr: stderr_path,
            terminal: program.has_terminal,
            spec: Some(Any { type_url: PROCESS_TYPE.into(), value: text }),
        });
        failpoint!("agent.exec.piped");
        self.client.call("add the process", PROCESS_LIMIT, self.client.tasks().exec(request)).await.map_err(self.explain())?;
        failpoint!("agent.exec.added");
        let ended = self.exits.exec_ended(id, exec);
        let request = self.client.request(StartRequest { container_id: id.to_owned(), exec_id: exec.to_owned() });
        let started = self.client.call("start the process", PROCESS_LIMIT, self.client.tasks().start(request)).await;
        let pid = started.map_err(self.explain())?.pid;
        failpoint!("agent.exec.started");
        // From here on the shim holds the other ends; they close when the process and its children have closed theirs.
        drop(held);
        Ok(Begun { pid, stdin, stdout, stderr, ended })
    }

    async fn delete_exec(&self, id: &str, exec: &str) -> Result<(), ExecError> {
        let mut attempts = 0..DELETE_ATTEMPTS;
        loop {
            let request = self.client.request(DeleteProcessRequest { container_id: id.to_owned(), exec_id: exec.to_owned() });
            match self.client.call("delete the process", PROCESS_LIMIT, self.client.tasks().delete_process(request)).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is(Code::NotFound) => return Ok(()),
                // It runs, which shims of containerd 1.6 say in words only.
                Err(CallError::Status(..)) if attempts.next().is_some() => {
                    let _ = self.kill(id, exec, libc::SIGKILL).await; // a second one does no harm
                    tokio::time::sleep(DELETE_PAUSE).await;
                }
                Err(error) => return Err(self.client.explain(error)),
            }
        }
    }

    /// Ends what is left of processes that an earlier agent began: nobody takes what they write.
    pub(super) async fn clear_execs(&self, task: &TaskId) {
        let dir = self.config.task_dir(task);
        let names = std::fs::read_dir(dir.path()).into_iter().flatten().flatten();
        let execs: BTreeSet<String> = names
            .filter_map(|entry| entry.file_name().to_str()?.split_once('.').map(|(exec, _)| exec.to_owned()))
            .filter(|exec| exec.starts_with(PREFIX))
            .collect();
        for exec in &execs {
            dir.abandon_fifos(exec);
            if let Err(error) = self.delete_exec(task.as_str(), exec).await {
                tracing::warn!(%task, exec, error = %error.words(), "a process that an earlier agent began may be left");
            }
        }
    }
}

impl ContainerdExecutor {
    /// Starts a process beside a container's own. Must be polled to its end, and [`Self::end_exec`] called after the process's: a shim
    /// that waits for pipes does nothing else meanwhile.
    pub(crate) async fn begin_exec(&self, task: &TaskId, exec: &str, program: &Program) -> Result<Begun, ExecError> {
        let begun = self.0.try_exec(task, exec, program).await;
        if begun.is_err() {
            self.end_exec(task, exec).await;
        }
        begun
    }

    /// Kills it if it still runs and removes what there is of it.
    pub(crate) async fn end_exec(&self, task: &TaskId, exec: &str) {
        self.0.exits.forget_exec(task.as_str(), exec);
        // First, as a shim that still waits for them answers nobody.
        self.0.config.task_dir(task).abandon_fifos(&format!("{exec}."));
        // A container that is being removed takes its processes along.
        if let Err(error) = self.0.delete_exec(task.as_str(), exec).await {
            tracing::debug!(%task, exec, error = %error.words(), "could not delete a process");
        }
    }

    /// The exit code of a process that ended; `None` while it runs, 137 if nothing is known of it any more.
    pub(crate) async fn exec_status(&self, task: &TaskId, exec: &str) -> Option<i32> {
        let client = &self.0.client;
        let request = client.request(GetRequest { container_id: task.to_string(), exec_id: exec.to_owned() });
        match client.call("look at the process", CALL_LIMIT, client.tasks().get(request)).await {
            Ok(answer) => answer
                .process
                .filter(|process| process.status == ProcessStatus::Stopped as i32)
                .map(|process| process.exit_status.cast_signed()),
            Err(error) if error.is(Code::NotFound) => Some(128 + libc::SIGKILL),
            Err(_) => None,
        }
    }

    /// The process reads the end of its input once it has read what was written.
    pub(crate) async fn close_stdin(&self, task: &TaskId, exec: &str) -> Result<(), ExecError> {
        let client = &self.0.client;
        let request = client.request(CloseIoRequest { container_id: task.to_string(), exec_id: exec.to_owned(), stdin: true });
        client.call("end the input", CALL_LIMIT, client.tasks().close_io(request)).await.map(drop).map_err(|error| client.explain(error))
    }

    /// Of an exec, or with an empty id of the container's own process. Characters.
    pub(crate) async fn resize(&self, task: &TaskId, exec: &str, width: u32, height: u32) -> Result<(), ExecError> {
        let client = &self.0.client;
        let request = client.request(ResizePtyRequest { container_id: task.to_string(), exec_id: exec.to_owned(), width, height });
        let answer = client.call("resize the terminal", CALL_LIMIT, client.tasks().resize_pty(request)).await;
        answer.map(drop).map_err(|error| client.explain(error))
    }

    /// Sends a signal to the container's own process, or to an exec; false if there is none.
    pub(crate) async fn signal(&self, task: &TaskId, exec: &str, signal: i32) -> Result<bool, ExecError> {
        self.0.kill(task.as_str(), exec, signal).await
    }

    pub(crate) async fn pause(&self, task: &TaskId) -> Result<(), ExecError> {
        let client = &self.0.client;
        let request = client.request(PauseTaskRequest { container_id: task.to_string() });
        client
            .call("pause the container", PROCESS_LIMIT, client.tasks().pause(request))
            .await
            .map(drop)
            .map_err(|error| client.explain(error))
    }

    pub(crate) async fn unpause(&self, task: &TaskId) -> Result<(), ExecError> {
        let client = &self.0.client;
        let request = client.request(ResumeTaskRequest { container_id: task.to_string() });
        let answer = client.call("let the container go on", PROCESS_LIMIT, client.tasks().resume(request)).await;
        answer.map(drop).map_err(|error| client.explain(error))
    }

    /// Asks the container's process to end, and kills it if it does not within `patience`; `None` waits for as long as it takes. False
    /// if there is none.
    pub(crate) async fn end(&self, task: &Arc<Task>, signal: i32, patience: Option<Duration>) -> Result<bool, ExecError> {
        let (this, id) = (&self.0, task.id.as_str());
        let mut ended = this.exits.ended(id);
        if !this.kill(id, "", signal).await? {
            return Ok(false);
        }
        this.board.tell(task, What::Kill { signal });
        let Some(patience) = patience else { return Ok(ended.await.is_ok()) };
        if tokio::time::timeout(patience, &mut ended).await.is_err() && this.kill(id, "", libc::SIGKILL).await? {
            if signal != libc::SIGKILL {
                this.board.tell(task, What::Kill { signal: libc::SIGKILL });
            }
            let _ = tokio::time::timeout(KILL_LIMIT, ended).await; // whoever looks sees that it is still there
        }
        Ok(true)
    }

    /// With which a container's process is asked to end.
    pub(crate) fn stop_signal(&self, task: &TaskId) -> i32 {
        self.0.config.task_dir(task).kept().map_or(libc::SIGTERM, |kept| kept.stop_signal)
    }

    /// The mounts of a container's root file system, as its snapshotter gives them.
    pub(crate) async fn root_mounts(&self, task: &TaskId) -> Result<Vec<Mount>, ExecError> {
        self.0.root_of(task).await
    }

    pub(crate) fn config(&self) -> &super::ContainerdConfig {
        &self.0.config
    }
}
