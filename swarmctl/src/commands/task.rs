//! `swarmctl task …`, and the table of tasks that `service ps` shares.

use super::visit::{Visit, encoded};
use super::{InspectFlags, ListFlags, copy, exec, forward, logs, short};
use crate::connect::Connection;
use crate::failure::{Exit, Failure};
use crate::output::{self, Table};
use crate::{resolve, when};
use skep_proto::{FromWire, v1};
use skep_types::{Node, NodeId, NodeState, PublishMode, Task, TaskState, Timestamp};
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
    /// Run a program in a task's container, wherever it is; ends with the program's exit status. With -it it has this terminal
    Exec(exec::ExecFlags),
    /// Show the processes of a task, wherever it is
    Top {
        task: String,
        /// Arguments of ps
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "PS-ARGUMENTS")]
        arguments: Vec<String>,
    },
    /// Copy files out of a task's container or into it, wherever it is
    Cp(copy::CopyFlags),
    /// Lead ports of this machine into a task, wherever it is
    PortForward(forward::ForwardFlags),
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
        Command::Top { task, arguments } => top(&task, &arguments, connection).await,
        Command::Cp(flags) => copy::run(flags, connection).await,
        Command::PortForward(flags) => forward::run(flags, connection).await,
    }
}

/// Titles and rows are the node's `ps`'s.
async fn top(task: &str, arguments: &[String], connection: &Connection) -> Result<(), Failure> {
    let mut visit = Visit::to(connection, task).await?;
    let query = if arguments.is_empty() { String::new() } else { format!("?ps_args={}", encoded(&arguments.join(" "))) };
    let path = visit.path(&format!("top{query}"));
    let answer = visit.ask(http::Method::GET, &path, None).await?;
    let cells = |row: &serde_json::Value| -> Vec<String> {
        row.as_array().into_iter().flatten().map(|cell| cell.as_str().unwrap_or_default().to_owned()).collect()
    };
    let rows: Vec<Vec<String>> =
        std::iter::once(&answer["Titles"]).chain(answer["Processes"].as_array().into_iter().flatten()).map(cells).collect();
    output::put(&aligned(&rows))
}

/// Columns as wide as their widest cell; the last one as it is.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// Host names of all nodes by id.
pub async fn node_names(connection: &Connection) -> Result<BTreeMap<String, String>, Failure> {
    let nodes = connection.control().list_nodes(v1::ListNodesRequest::default()).await?.into_inner().nodes;
    Ok(nodes.into_iter().map(|node| (node.id.clone(), node.description.map_or(node.id, |known| known.hostname))).collect())
}

async fn nodes(connection: &Connection) -> Result<BTreeMap<NodeId, Node>, Failure> {
    let nodes = connection.control().list_nodes(v1::ListNodesRequest::default()).await?.into_inner().nodes;
    let parsed = nodes.into_iter().map(Node::from_wire).collect::<Result<Vec<_>, _>>()?;
    Ok(parsed.into_iter().map(|node| (node.id.clone(), node)).collect())
}

/// A task in the state that was last heard of it, or one of which nothing is heard since its node is down.
fn current_state(task: &Task, node: Option<&Node>, now: Timestamp) -> String {
    let last = title(&task.status.state.to_string());
    match node.filter(|node| node.status.state == NodeState::Down) {
        Some(node) if (TaskState::Assigned..=TaskState::Running).contains(&task.status.state) => {
            format!("Unknown since {} ago (was {last})", when::about(now.since(node.meta.updated_at)))
        }
        _ => format!("{last} {} ago", when::about(now.since(task.status.timestamp))),
    }
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
    let nodes = nodes(connection).await?;
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
        let node = task.node_id.as_ref().and_then(|id| nodes.get(id));
        table.row(vec![
            short(task.id.as_str(), flags.no_trunc),
            if older { format!(" \\_ {name}") } else { name },
            image(task, flags.no_trunc),
            node.map_or_else(|| task.node_id.as_ref().map(ToString::to_string).unwrap_or_default(), |node| node.display_name().to_owned()),
            title(&task.desired_state.to_string()),
            current_state(task, node, now),
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

/// The image, in full with the digest that pins it.
fn image(task: &Task, in_full: bool) -> String {
    let image = task.spec.container().map(|container| container.image.as_str()).unwrap_or_default();
    if in_full { image.to_owned() } else { super::service::unpinned(image).to_owned() }
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

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{Service, ServiceId, ServiceMode, ServiceSpec, TaskId, TaskSpec};

    #[test]
    fn of_a_task_on_a_lost_node_it_is_not_known_how_it_is() {
        let mut node = Node::new(NodeId::for_test(1));
        node.meta.updated_at = Timestamp::from_secs(100);
        let spec = ServiceSpec {
            annotations: skep_types::Annotations::default(),
            task: TaskSpec::new(skep_types::ContainerSpec::default()).into(),
            mode: ServiceMode::Global,
            update: None,
            rollback: None,
            networks: Vec::new(),
            endpoint: None,
        };
        let service = Service::new(ServiceId::for_test(1), spec);
        let mut task = Task::of_service(TaskId::for_test(1), &service, 1, None, Timestamp::default());
        (task.status.state, task.status.timestamp) = (TaskState::Running, Timestamp::from_secs(10));
        let now = Timestamp::from_secs(130);
        let told = |task: &Task, node: &Node| current_state(task, Some(node), now);
        assert_eq!(told(&task, &node), format!("Running {} ago", when::about(now.since(Timestamp::from_secs(10)))));
        node.status.state = NodeState::Down;
        assert_eq!(told(&task, &node), format!("Unknown since {} ago (was Running)", when::about(now.since(Timestamp::from_secs(100)))));
        task.status.state = TaskState::Failed;
        assert!(told(&task, &node).starts_with("Failed "), "an end is an end");
    }
}
