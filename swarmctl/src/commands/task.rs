//! `swarmctl task …`, and the table of tasks that `service ps` shares.

use super::{InspectFlags, ListFlags, exec, logs, short};
use crate::connect::Connection;
use crate::failure::{Exit, Failure};
use crate::output::{self, Table};
use crate::{resolve, when};
use skep_proto::{FromWire, v1};
use skep_types::{PublishMode, Task};
use std::collections::BTreeMap;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List tasks of all services
    Ls {
        #[command(flatten)]
        flags: ListFlags,
        /// Show finished tasks too
        #[arg(long, short = 'a')]
        all: bool,
    },
    /// Show tasks in full
    Inspect {
        #[arg(required = true, value_name = "TASK")]
        tasks: Vec<String>,
        #[command(flatten)]
        flags: InspectFlags,
    },
    /// Show what a task wrote
    Logs {
        task: String,
        #[command(flatten)]
        flags: logs::LogFlags,
    },
    /// Run a program in a task's container, wherever it is; ends with the program's exit status. For a terminal use docker's own client:
    /// docker -H unix:///run/skep/docker-cluster.sock exec -it CONTAINER sh
    Exec(exec::ExecFlags),
}

pub async fn run(command: Command, connection: &Connection) -> Result<(), Failure> {
    match command {
        Command::Ls { flags, all } => {
            let found = connection.control().list_tasks(v1::ListTasksRequest::default()).await?.into_inner().tasks;
            let found = found.into_iter().filter(|task| all || task.desired_state <= v1::TaskState::Complete as i32).collect();
            print(found, &flags, connection).await
        }
        Command::Inspect { tasks, flags } => {
            let mut found = Vec::new();
            for name in tasks {
                found.push(output::readable(&Task::from_wire(resolve::task(connection, &name).await?)?)?);
            }
            output::inspect(&found, flags.format.as_deref())
        }
        Command::Logs { task, flags } => {
            let task = resolve::task(connection, &task).await?;
            let selector = v1::LogSelector { task_ids: vec![task.id], ..Default::default() };
            logs::follow(selector, &flags, connection).await
        }
        Command::Exec(flags) => match exec::run(flags, connection).await? {
            0 => Ok(()),
            status => Err(Failure::new(Exit::Program(status), "")),
        },
    }
}

/// Host names of all nodes by id.
pub async fn node_names(connection: &Connection) -> Result<BTreeMap<String, String>, Failure> {
    let nodes = connection.control().list_nodes(v1::ListNodesRequest::default()).await?.into_inner().nodes;
    Ok(nodes.into_iter().map(|node| (node.id.clone(), node.description.map_or(node.id, |known| known.hostname))).collect())
}

/// Newest first within a slot, as `docker service ps` shows them; older ones are indented.
pub async fn print(found: Vec<v1::Task>, flags: &ListFlags, connection: &Connection) -> Result<(), Failure> {
    let mut tasks = found.into_iter().map(Task::from_wire).collect::<Result<Vec<_>, _>>()?;
    let slot_of = |task: &Task| {
        let node = if task.slot == 0 { task.node_id.as_ref().map(ToString::to_string).unwrap_or_default() } else { String::new() };
        (task.service_annotations.name.clone(), task.slot, node)
    };
    tasks.sort_by(|a, b| {
        slot_of(a).cmp(&slot_of(b)).then(b.meta.created_at.cmp(&a.meta.created_at)).then(b.meta.version.cmp(&a.meta.version))
    });
    if flags.quiet {
        return output::put(&tasks.iter().map(|task| format!("{}\n", task.id)).collect::<String>());
    }
    let nodes = node_names(connection).await?;
    let mut table = Table::new(&["ID", "NAME", "IMAGE", "NODE", "DESIRED STATE", "CURRENT STATE", "ERROR", "PORTS"]);
    let mut previous = None;
    let now = when::now();
    for task in &tasks {
        let slot = slot_of(task);
        let older = previous.as_ref() == Some(&slot);
        let name = match task.slot {
            0 if task.job_iteration.is_none() => format!("{}.{}", slot.0, short(&slot.2, flags.no_trunc)),
            number => format!("{}.{number}", slot.0),
        };
        previous = Some(slot);
        table.row(vec![
            short(task.id.as_str(), flags.no_trunc),
            if older { format!(" \\_ {name}") } else { name },
            image(task),
            task.node_id.as_ref().map(|id| nodes.get(id.as_str()).cloned().unwrap_or_else(|| id.to_string())).unwrap_or_default(),
            title(&task.desired_state.to_string()),
            format!("{} {} ago", title(&task.status.state.to_string()), when::about(now.since(task.status.timestamp))),
            error(task, flags.no_trunc),
            ports(task),
        ]);
    }
    table.print(&flags.format)
}

fn title(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().to_string() + letters.as_str()).unwrap_or_default()
}

/// The image without the digest that pins it.
fn image(task: &Task) -> String {
    let image = task.spec.container().map(|container| container.image.as_str()).unwrap_or_default();
    image.split_once('@').map_or(image, |(name, _)| name).to_owned()
}

fn error(task: &Task, in_full: bool) -> String {
    let text = task.status.err.replace(['\n', '\r', '\t'], " ");
    match text.char_indices().nth(100) {
        Some((end, _)) if !in_full => format!("\"{}…\"", &text[..end]),
        _ if text.is_empty() => text,
        _ => format!("\"{text}\""),
    }
}

fn ports(task: &Task) -> String {
    let host = task.status.ports.iter().filter(|port| port.publish_mode == PublishMode::Host);
    host.map(super::service::port_text).collect::<Vec<_>>().join(",")
}
