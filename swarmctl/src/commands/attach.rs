//! `swarmctl network attach` and `detach`.

use crate::connect::Connection;
use crate::failure::Failure;
use crate::output;
use skep_proto::{FromWire, v1};
use skep_types::{Task, TaskState};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tonic::Code;

pub const ATTACH_HELP: &str = "\
The namespace gets a link with an address of the network and the way to the network's other addresses; its own links, routes and
way out stay as they are. Names of the network are answered at 127.0.0.11 inside: put `nameserver 127.0.0.11` first in the
container's resolv.conf. Others find the container by its aliases. A namespace can be attached once. What was attached stays so
over a restart of skepd and ends with the process or the namespace. What is printed is the attachment's id, for `network detach`.";

/// How long to wait for the container to be on the network; then it is said that it is not yet.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub struct AttachFlags {
    #[command(flatten)]
    container: Container,
    /// Name by which others on the network find it; may be repeated
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,
    /// Address on the network, one per family (default: the next free one)
    #[arg(long, value_name = "IP")]
    ip: Vec<IpAddr>,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Container {
    /// Process id of the container's first process on this host
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pid: Option<u32>,
    /// File that the container's network namespace is mounted on, such as /run/netns/NAME
    #[arg(long, value_name = "PATH")]
    netns: Option<PathBuf>,
}

impl Container {
    /// As the node reads it.
    fn id(&self) -> Result<String, String> {
        if let Some(path) = &self.netns {
            let path = std::path::absolute(path).map_err(|error| format!("--netns {}: {error}", path.display()))?;
            let text = path.to_str().ok_or_else(|| format!("--netns {}: not in UTF-8", path.display()))?;
            return Ok(format!("netns:{text}"));
        }
        // One of the two is there.
        Ok(format!("pid:{}", self.pid.unwrap_or_default()))
    }
}

pub async fn attach(flags: &AttachFlags, network: String, connection: &Connection) -> Result<(), Failure> {
    let config = v1::NetworkAttachmentConfig {
        target: network,
        aliases: flags.alias.clone(),
        addresses: flags.ip.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    let container_id = flags.container.id().map_err(Failure::failed)?;
    let request = v1::AttachNetworkRequest { config: Some(config), container_id };
    let id = connection.attachments().attach_network(request).await?.into_inner().attachment_id;
    match settled(&id, connection).await {
        Ok(()) => output::put(&format!("{id}\n")),
        Err(failure) => {
            // It is of no use to anybody; if it cannot be removed, its failure is what matters.
            let _ = detach(&id, connection).await;
            Err(failure)
        }
    }
}

/// Waits until the container is on the network. On a worker nobody can say: the id is all there is to be had.
async fn settled(id: &str, connection: &Connection) -> Result<(), Failure> {
    let begin = Instant::now();
    loop {
        let answer = connection.control().get_task(v1::GetTaskRequest { task_id: id.to_owned() }).await;
        let task = match answer {
            Ok(answer) => answer.into_inner().task,
            Err(status) if status.code() == Code::FailedPrecondition => {
                eprintln!("asked for; `swarmctl task inspect {id}` on a manager says how far it is");
                return Ok(());
            }
            Err(status) => return Err(status.into()),
        };
        let Some(task) = task else { return Err(Failure::failed("the attachment is gone")) };
        let status = Task::from_wire(task)?.status;
        match status.state {
            TaskState::Running => return Ok(()),
            state if state > TaskState::Running => return Err(Failure::failed(format!("it could not be attached: {}", status.err))),
            state if begin.elapsed() > PATIENCE => {
                let why = if status.err.is_empty() { status.message } else { status.err };
                return Err(Failure::failed(format!("it is not attached after {} s: {state}, {why}", PATIENCE.as_secs())));
            }
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}

pub async fn detach(id: &str, connection: &Connection) -> Result<(), Failure> {
    let request = v1::DetachNetworkRequest { attachment_id: id.to_owned() };
    connection.attachments().detach_network(request).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        flags: AttachFlags,
    }

    fn id(line: &str) -> Result<String, String> {
        let words = std::iter::once("attach").chain(line.split_whitespace());
        Line::try_parse_from(words).map_err(|error| error.to_string())?.flags.container.id()
    }

    #[test]
    fn a_container_is_a_process_or_a_namespace() {
        assert_eq!(id("--pid 12").as_deref(), Ok("pid:12"));
        assert_eq!(id("--netns /run/netns/x --alias db").as_deref(), Ok("netns:/run/netns/x"));
        assert!(id("--netns x").unwrap().starts_with("netns:/"), "where the node looks is not where the caller is");
        for line in ["", "--pid 0", "--pid 12 --netns /x", "--ip x --pid 1"] {
            assert!(id(line).is_err(), "{line}");
        }
    }
}
