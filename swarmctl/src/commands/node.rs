//! `swarmctl node …`

use super::{InspectFlags, ListFlags, short};
use crate::connect::Connection;
use crate::failure::Failure;
use crate::output::{self, Table};
use crate::resolve;
use skep_proto::FromWire;
use skep_proto::skep::StatusRequest;
use skep_types::{Availability, Node, NodeState, Reachability};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List nodes
    Ls(ListFlags),
    /// Show nodes in full; `self` is this one
    Inspect {
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
        #[command(flatten)]
        flags: InspectFlags,
    },
}

pub async fn run(command: Command, connection: &Connection) -> Result<(), Failure> {
    match command {
        Command::Ls(flags) => list(flags, connection).await,
        Command::Inspect { nodes, flags } => {
            let mut found = Vec::new();
            for name in nodes {
                found.push(output::readable(&Node::from_wire(resolve::node(connection, &name).await?)?)?);
            }
            output::inspect(&found, flags.format.as_deref())
        }
    }
}

async fn list(flags: ListFlags, connection: &Connection) -> Result<(), Failure> {
    let own = connection.node().status(StatusRequest {}).await?.into_inner().node_id;
    let answer = connection.control().list_nodes(skep_proto::v1::ListNodesRequest::default()).await?.into_inner();
    let mut table = Table::new(&["ID", "HOSTNAME", "STATUS", "AVAILABILITY", "MANAGER STATUS", "ENGINE VERSION"]);
    let mut ids = String::new();
    for wire in answer.nodes {
        let manager = wire.manager_status.clone();
        let node = Node::from_wire(wire)?;
        ids += &format!("{}\n", node.id);
        let mark = if node.id.as_str() == own { " *" } else { "" };
        let manager = match manager {
            None => "",
            Some(status) if status.leader => "Leader",
            Some(status) if status.reachability == Reachability::Unreachable as i32 => "Unreachable",
            Some(_) => "Reachable",
        };
        let description = node.description.as_ref();
        table.row(vec![
            format!("{}{mark}", short(node.id.as_str(), flags.no_trunc)),
            description.map(|known| known.hostname.clone()).unwrap_or_default(),
            match node.status.state {
                NodeState::Ready => "Ready",
                NodeState::Down => "Down",
                NodeState::Unknown => "Unknown",
                NodeState::Disconnected => "Disconnected",
            }
            .into(),
            match node.spec.availability {
                Availability::Active => "Active",
                Availability::Pause => "Pause",
                Availability::Drain => "Drain",
            }
            .into(),
            manager.into(),
            description.and_then(|known| known.engine.as_ref()).map(|engine| engine.engine_version.clone()).unwrap_or_default(),
        ]);
    }
    if flags.quiet { output::put(&ids) } else { table.print(&flags.format) }
}
