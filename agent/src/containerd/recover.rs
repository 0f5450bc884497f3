//! Finds what earlier lives of the agent left: containers, processes, snapshots, directories, logs.

use super::client::{CALL_LIMIT, Client};
use super::config::{ContainerdConfig, OWNER_LABEL, TASK_LABEL};
use super::files::TaskDir;
use super::probe;
use crate::error::ExecError;
use crate::executor::{Found, Started};
use crate::task::Outcome;
use containerd_client::services::v1::snapshots::ListSnapshotsRequest;
use containerd_client::services::v1::{ListContainersRequest, ListTasksRequest};
use containerd_client::types::v1::{Process, Status as ProcessStatus};
use skep_types::{ContainerStatus, TaskId};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

/// How often containerd is asked for what it cannot tell; it waits two seconds for a shim.
const LOOKS: usize = 5;
const AGAIN: Duration = Duration::from_millis(300);

/// Only what this skepd made: several may use one containerd.
fn owned(config: &ContainerdConfig) -> Vec<String> {
    vec![format!("labels.\"{OWNER_LABEL}\"==\"{}\"", config.owner())]
}

/// Everything there is, by task.
pub async fn survey(client: &Client, config: &ContainerdConfig) -> Result<BTreeMap<TaskId, Found>, ExecError> {
    for id in names(&config.tasks_dir())? {
        config.task_dir(&id).abandon_fifos(probe::PREFIX);
    }
    let processes = processes(client).await?;
    let mut found = BTreeMap::new();
    for (dir, kind) in [(config.logs_dir(), Found::Logs), (config.etc_dir(), Found::Remains), (config.tasks_dir(), Found::Remains)] {
        for id in names(&dir)? {
            found.insert(id, kind.clone());
        }
    }
    for id in snapshots(client, config).await? {
        found.insert(id, Found::Remains);
    }
    for id in containers(client, config).await? {
        let state = processes.get(id.as_str()).map_or(Found::Remains, |process| state(process, &config.task_dir(&id)));
        found.insert(id, state);
    }
    Ok(found)
}

/// What runs in containerd. A shim that does not answer is asked again: that says nothing about its process.
async fn processes(client: &Client) -> Result<HashMap<String, Process>, ExecError> {
    let mut looks = 1..=LOOKS;
    loop {
        let request = client.request(ListTasksRequest::default());
        let listed = client.call("list tasks", CALL_LIMIT, client.tasks().list(request)).await;
        let tasks = listed.map_err(|error| client.explain(error))?.tasks;
        looks.next();
        match tasks.iter().find(|process| process.status == ProcessStatus::Unknown as i32) {
            Some(process) if !looks.is_empty() => {
                tracing::warn!(container = process.id, "containerd cannot tell how this container is; asking again");
                tokio::time::sleep(AGAIN).await;
            }
            _ => return Ok(tasks.into_iter().map(|process| (process.id.clone(), process)).collect()),
        }
    }
}

fn state(process: &Process, dir: &TaskDir) -> Found {
    match ProcessStatus::try_from(process.status) {
        Ok(ProcessStatus::Running | ProcessStatus::Paused | ProcessStatus::Pausing) => {
            let container = ContainerStatus { container_id: process.id.clone(), pid: process.pid.cast_signed(), exit_code: 0 };
            Found::Running(Started { container, health: dir.kept().and_then(|kept| kept.health) })
        }
        Ok(ProcessStatus::Stopped) => Found::Ended(Outcome { exit_code: process.exit_status.cast_signed(), words: None }),
        // Created but not started: whoever wanted it starts from the beginning.
        Ok(ProcessStatus::Created | ProcessStatus::Unknown) | Err(_) => Found::Remains,
    }
}

async fn containers(client: &Client, config: &ContainerdConfig) -> Result<Vec<TaskId>, ExecError> {
    // A stream: specifications are long, and a list of hundreds would not fit into one message.
    let request = client.request(ListContainersRequest { filters: owned(config) });
    let list = client.call("list containers", CALL_LIMIT, async {
        let mut stream = client.containers().list_stream(request).await?.into_inner();
        let mut ids = Vec::new();
        while let Some(message) = stream.message().await? {
            let label = message.container.and_then(|mut container| container.labels.remove(TASK_LABEL));
            ids.extend(label.and_then(|text| text.parse().ok()));
        }
        Ok(tonic::Response::new(ids))
    });
    list.await.map_err(|error| client.explain(error))
}

async fn snapshots(client: &Client, config: &ContainerdConfig) -> Result<Vec<TaskId>, ExecError> {
    let message = ListSnapshotsRequest { snapshotter: config.snapshotter.clone(), filters: owned(config) };
    let request = client.request(message);
    let list = client.call("list snapshots", CALL_LIMIT, async {
        let mut stream = client.snapshots().list(request).await?.into_inner();
        let mut ids = Vec::new();
        while let Some(message) = stream.message().await? {
            ids.extend(message.info.into_iter().filter_map(|mut info| info.labels.remove(TASK_LABEL)?.parse().ok()));
        }
        Ok(tonic::Response::new(ids))
    });
    list.await.map_err(|error| client.explain(error))
}

/// The tasks that have an entry in a directory.
fn names(dir: &Path) -> Result<Vec<TaskId>, ExecError> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(ExecError::io("read", dir))?,
    };
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}
