//! Health checks: a process beside the container's own, and what it prints.

use super::client::{CALL_LIMIT, PROCESS_LIMIT};
use super::run::Shared;
use super::spec;
use super::stop::KILL_LIMIT;
use crate::error::ExecError;
use crate::executor::Probe;
use containerd_client::services::v1::{DeleteProcessRequest, ExecProcessRequest, GetContainerRequest, StartRequest};
use oci_spec::runtime::{Process, Spec};
use prost_types::Any;
use skep_types::TaskId;
use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};

const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// What the names of health checks' processes and pipes begin with.
pub(super) const PREFIX: &str = "probe-";
/// Output of a health check that is kept, bytes (as Docker's).
const PROBE_OUTPUT: usize = 4096;
/// Bytes of a health check's output after which it is read slowly: one that prints without end must not keep us busy.
const MUCH_OUTPUT: usize = 1 << 20;

impl Shared {
    /// The process of a container, which an agent that adopted it does not know.
    pub(super) async fn process(&self, task: &TaskId) -> Result<Process, ExecError> {
        if let Some(process) = self.processes.lock().expect("no panic while held").get(task) {
            return Ok(process.clone());
        }
        let request = self.client.request(GetContainerRequest { id: task.to_string() });
        let answer = self.client.call("find the container", CALL_LIMIT, self.client.containers().get(request)).await;
        let spec = answer.map_err(self.explain())?.container.and_then(|container| container.spec);
        let spec: Option<Spec> = spec.and_then(|any| serde_json::from_slice(&any.value).ok());
        let process = spec.and_then(|spec| spec.process().clone());
        let missing = || ExecError::Runtime { step: "find the container's process", reason: "it has none".into() };
        let process = process.ok_or_else(missing)?;
        self.processes.lock().expect("no panic while held").insert(task.clone(), process.clone());
        Ok(process)
    }

    pub(super) async fn probe(&self, task: &TaskId, command: &[String], timeout: Duration) -> Result<Probe, ExecError> {
        let id = task.as_str();
        let process = spec::exec_process(&self.process(task).await?, command);
        let exec = format!("{PREFIX}{}-{}", std::process::id(), self.probes.fetch_add(1, Ordering::Relaxed));
        let dir = self.config.task_dir(task);
        let pipe = dir.make_fifo(&exec)?;
        let probed = self.run_probe(id, &exec, &pipe, process, timeout).await;
        self.exits.forget_exec(id, &exec);
        let request = self.client.request(DeleteProcessRequest { container_id: id.to_owned(), exec_id: exec });
        let _ = self.client.call("delete the health check", PROCESS_LIMIT, self.client.tasks().delete_process(request)).await;
        let _ = std::fs::remove_file(pipe); // else it goes with the directory
        probed
    }

    async fn run_probe(&self, id: &str, exec: &str, pipe: &Path, process: Process, timeout: Duration) -> Result<Probe, ExecError> {
        let receiver = tokio::net::unix::pipe::OpenOptions::new().read_write(true).open_receiver(pipe);
        let mut receiver = receiver.map_err(ExecError::io("open the pipe", pipe))?;
        let text = serde_json::to_vec(&process)
            .map_err(|error| ExecError::Runtime { step: "encode the health check", reason: error.to_string() })?;
        let request = self.client.request(ExecProcessRequest {
            container_id: id.to_owned(),
            stdout: pipe.display().to_string(),
            stderr: pipe.display().to_string(),
            spec: Some(Any { type_url: PROCESS_TYPE.into(), value: text }),
            exec_id: exec.to_owned(),
            ..ExecProcessRequest::default()
        });
        self.client.call("add the health check", PROCESS_LIMIT, self.client.tasks().exec(request)).await.map_err(self.explain())?;
        let mut ended = self.exits.exec_ended(id, exec);
        let request = self.client.request(StartRequest { container_id: id.to_owned(), exec_id: exec.to_owned() });
        self.client.call("start the health check", PROCESS_LIMIT, self.client.tasks().start(request)).await.map_err(self.explain())?;
        let mut output = Vec::new();
        let ending = async {
            let exit_code = tokio::time::timeout(timeout, &mut ended).await.ok().and_then(Result::ok);
            if exit_code.is_none() && self.kill(id, exec, libc::SIGKILL).await? {
                let late = tokio::time::timeout(KILL_LIMIT, ended).await;
                drop(late); // too late to count
            }
            Ok::<_, ExecError>(exit_code)
        };
        let exit_code = tokio::select! {
            exit_code = ending => exit_code?,
            never = take_in(&mut receiver, &mut output) => match never {},
        };
        // The pipe never ends, as we hold it open ourselves: take what is there.
        let _ = tokio::time::timeout(Duration::from_millis(1), take_in(&mut receiver, &mut output)).await;
        Ok(Probe { exit_code, output: String::from_utf8_lossy(&output).into_owned() })
    }
}

/// Reads on, so that a health check that prints a whole page does not wait for us; keeps the beginning.
async fn take_in(receiver: &mut (impl AsyncRead + Unpin), output: &mut Vec<u8>) -> Infallible {
    let mut buffer = vec![0; 16 * 1024];
    let mut total = 0;
    while let Ok(count @ 1..) = receiver.read(&mut buffer).await {
        output.extend_from_slice(&buffer[..count.min(PROBE_OUTPUT - output.len())]);
        total += count;
        if total > MUCH_OUTPUT {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_health_check_may_print_more_than_is_kept() {
        use tokio::io::AsyncWriteExt;
        let (mut there, mut here) = tokio::io::duplex(64);
        let mut output = Vec::new();
        let printing = async {
            there.write_all(b"begin ").await.unwrap();
            there.write_all(&vec![b'x'; 200_000]).await.unwrap();
        };
        tokio::select! {
            () = printing => {}
            never = take_in(&mut here, &mut output) => match never {},
        }
        assert_eq!(output.len(), PROBE_OUTPUT);
        assert!(output.starts_with(b"begin xxx"));
    }
}
