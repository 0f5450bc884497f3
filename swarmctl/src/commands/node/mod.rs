//! `swarmctl node …`

mod drain; // node drain
mod pretty; // node inspect --pretty
mod role; // promote, demote

use super::{InspectFlags, ListFlags, TRIES, each, short, task};
use crate::connect::Connection;
use crate::failure::{Exit, Failure};
use crate::flags::{NodeFilter, NodeFlags, node_filter, node_filters};
use crate::output::{self, Table};
use crate::resolve;
use serde_json::Value;
use skep_proto::skep::StatusRequest;
use skep_proto::{FromWire, ToWire, v1};
use skep_types::{Availability, ManagerStatus, Node, NodeRole, NodeSpec, NodeState, Reachability};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List nodes
    Ls {
        #[command(flatten)]
        flags: ListFlags,
        /// Only those with id=, name=, role=, membership=, label= (engine), node.label=
        #[arg(long, short = 'f', value_name = "KEY=VALUE", value_parser = node_filter)]
        filter: Vec<NodeFilter>,
    },
    /// Show nodes in full; `self` is this one
    Inspect {
        /// Host name, id, or the beginning of an id (default: self)
        #[arg(value_name = "NODE")]
        nodes: Vec<String>,
        #[command(flatten)]
        flags: InspectFlags,
        /// For people
        #[arg(long, conflicts_with = "format")]
        pretty: bool,
    },
    /// List the tasks of nodes (default: of this one)
    Ps {
        #[arg(value_name = "NODE")]
        nodes: Vec<String>,
        #[command(flatten)]
        flags: ListFlags,
    },
    /// Make nodes managers
    Promote(RoleChange),
    /// Make managers workers
    Demote(RoleChange),
    /// Change a node's role, availability or labels
    Update {
        #[command(flatten)]
        flags: NodeFlags,
        node: String,
    },
    /// Give a node's tasks up and wait until they stopped and run elsewhere
    Drain(drain::Flags),
    /// Remove nodes: their certificates are refused from now on
    Rm {
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
        /// Also nodes that are up
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, clap::Args)]
pub struct RoleChange {
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
    /// Do not wait until the node has its new role
    #[arg(long, short = 'd')]
    detach: bool,
}

pub async fn run(command: Command, connection: &Connection) -> Result<(), Failure> {
    match command {
        Command::Ls { flags, filter } => list(&flags, &filter, connection).await,
        Command::Inspect { nodes, flags, pretty } => inspect(or_self(nodes), &flags, pretty, connection).await,
        Command::Ps { nodes, flags } => ps(or_self(nodes), &flags, connection).await,
        Command::Promote(flags) => role::set(&flags.nodes, NodeRole::Manager, flags.detach, connection).await,
        Command::Demote(flags) => role::set(&flags.nodes, NodeRole::Worker, flags.detach, connection).await,
        Command::Update { flags, node } => update(&flags, &node, connection).await,
        Command::Drain(flags) => drain::run(&flags, connection).await,
        Command::Rm { nodes, force } => remove(&nodes, force, connection).await,
    }
}

fn or_self(nodes: Vec<String>) -> Vec<String> {
    if nodes.is_empty() { vec!["self".into()] } else { nodes }
}

/// A node and, if it is a manager, its place among them.
struct Found {
    node: Node,
    manager: Option<ManagerStatus>,
}

impl Found {
    fn from_wire(mut wire: v1::Node) -> Result<Self, Failure> {
        let manager = wire.manager_status.take().map(ManagerStatus::from_wire).transpose()?;
        Ok(Self { node: Node::from_wire(wire)?, manager })
    }

    fn manager_word(&self) -> &'static str {
        match &self.manager {
            None => "",
            Some(status) if status.leader => "Leader",
            Some(status) => reachability(status.reachability),
        }
    }

    fn engine_version(&self) -> &str {
        let engine = self.node.description.as_ref().and_then(|known| known.engine.as_ref());
        engine.map(|engine| engine.engine_version.as_str()).unwrap_or_default()
    }

    fn json(&self) -> Result<Value, Failure> {
        let mut value = output::readable(&self.node)?;
        if let (Value::Object(fields), Some(manager)) = (&mut value, &self.manager) {
            fields.insert("manager_status".into(), output::readable(manager)?);
        }
        Ok(value)
    }
}

fn reachability(reachability: Reachability) -> &'static str {
    match reachability {
        Reachability::Unreachable => "Unreachable",
        Reachability::Reachable => "Reachable",
        Reachability::Unknown => "Unknown",
    }
}

fn state(state: NodeState) -> &'static str {
    match state {
        NodeState::Ready => "Ready",
        NodeState::Down => "Down",
        NodeState::Unknown => "Unknown",
        NodeState::Disconnected => "Disconnected",
    }
}

fn availability(availability: Availability) -> &'static str {
    match availability {
        Availability::Active => "Active",
        Availability::Pause => "Pause",
        Availability::Drain => "Drain",
    }
}

/// Whether the node has its certificate from the root it is to have it from, in docker's words.
fn tls_status(node: &Node, root: &[u8]) -> &'static str {
    match node.description.as_ref().and_then(|known| known.tls_info.as_ref()) {
        None => "Unknown",
        Some(tls) if tls.trust_root.trim_ascii() != root.trim_ascii() => "Needs Rotation",
        Some(_) => "Ready",
    }
}

async fn list(flags: &ListFlags, filters: &[NodeFilter], connection: &Connection) -> Result<(), Failure> {
    let own = connection.node().status(StatusRequest::default()).await?.into_inner().node_id;
    let mut client = connection.control();
    let request = v1::ListNodesRequest { filters: Some(node_filters(filters)) };
    let answer = client.list_nodes(request).await?.into_inner().nodes;
    let mut found = answer.into_iter().map(Found::from_wire).collect::<Result<Vec<_>, _>>()?;
    found.sort_by(|a, b| (a.node.display_name(), &a.node.id).cmp(&(b.node.display_name(), &b.node.id)));
    if flags.quiet {
        return output::put(&found.iter().map(|item| format!("{}\n", item.node.id)).collect::<String>());
    }
    let clusters = client.list_clusters(v1::ListClustersRequest::default()).await?.into_inner().clusters;
    let root = clusters.into_iter().next().and_then(|cluster| cluster.root_ca).unwrap_or_default();
    let wanted = root.root_rotation.map_or(root.ca_cert, |rotation| rotation.ca_cert);
    table(&found, &own, &wanted, flags.no_trunc).print(&flags.format)
}

fn table(found: &[Found], own: &str, root: &[u8], in_full: bool) -> Table {
    let mut table = Table::new(&["ID", "HOSTNAME", "STATUS", "AVAILABILITY", "MANAGER STATUS", "ENGINE VERSION"]);
    for item in found {
        let node = &item.node;
        let is_own = node.id.as_str() == own;
        let id = short(node.id.as_str(), in_full);
        table.row_with(
            vec![
                format!("{id}{}", if is_own { " *" } else { "" }),
                node.description.as_ref().map(|known| known.hostname.clone()).unwrap_or_default(),
                state(node.status.state).into(),
                availability(node.spec.availability).into(),
                item.manager_word().into(),
                item.engine_version().into(),
            ],
            vec![("ID", id), ("Self", is_own.to_string()), ("Role", node.role.to_string()), ("TLSStatus", tls_status(node, root).into())],
        );
    }
    table
}

async fn inspect(nodes: Vec<String>, flags: &InspectFlags, is_pretty: bool, connection: &Connection) -> Result<(), Failure> {
    let mut found = Vec::new();
    for name in nodes {
        found.push(Found::from_wire(resolve::node(connection, &name).await?)?);
    }
    if is_pretty {
        let texts: Vec<String> = found.iter().map(pretty::text).collect();
        return output::put(&output::plain_lines(&texts.join("\n")));
    }
    output::inspect(&found.iter().map(Found::json).collect::<Result<Vec<_>, _>>()?, flags.format.as_deref())
}

async fn ps(nodes: Vec<String>, flags: &ListFlags, connection: &Connection) -> Result<(), Failure> {
    let mut node_ids = Vec::new();
    for name in &nodes {
        node_ids.push(resolve::node(connection, name).await?.id);
    }
    let filters = v1::list_tasks_request::Filters { node_ids, ..Default::default() };
    let found = connection.control().list_tasks(v1::ListTasksRequest { filters: Some(filters) }).await?.into_inner().tasks;
    task::print(found, flags, connection).await
}

/// What a change did.
enum Changed {
    Yes,
    /// It was so already.
    No,
}

/// Reads a node, changes its spec, writes it back with the version it was read at; looks again if it was overtaken.
async fn change(
    name: &str,
    connection: &Connection,
    edit: impl Fn(&mut NodeSpec) -> Result<(), Failure>,
) -> Result<(Node, Changed), Failure> {
    let mut tries = 0;
    loop {
        let node = Node::from_wire(resolve::node(connection, name).await?)?;
        let mut spec = node.spec.clone();
        edit(&mut spec)?;
        if spec == node.spec {
            return Ok((node, Changed::No));
        }
        let request = v1::UpdateNodeRequest {
            node_id: node.id.to_string(),
            node_version: Some(v1::Version { index: node.meta.version.0 }),
            spec: Some(spec.to_wire()),
        };
        tries += 1;
        match connection.control().update_node(request).await.map_err(Failure::from) {
            Ok(_) => return Ok((node, Changed::Yes)),
            Err(failure) if failure.exit == Exit::Conflict && tries < TRIES => {}
            Err(failure) => return Err(failure),
        }
    }
}

async fn update(flags: &NodeFlags, name: &str, connection: &Connection) -> Result<(), Failure> {
    if flags.is_empty() {
        return Err(Failure::failed("nothing to change was given; use --role, --availability, --label-add or --label-rm"));
    }
    change(name, connection, |spec| flags.apply(spec).map_err(Failure::failed)).await?;
    output::put(&format!("{name}\n"))
}

async fn remove(nodes: &[String], force: bool, connection: &Connection) -> Result<(), Failure> {
    each(nodes, async |name| {
        let node_id = resolve::node(connection, name).await?.id;
        connection.control().remove_node(v1::RemoveNodeRequest { node_id, force }).await?;
        output::put(&format!("{name}\n"))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{EngineDescription, NodeDescription, NodeId, TlsInfo};

    pub(super) fn found(number: u64, manager: Option<ManagerStatus>) -> Found {
        let mut node = Node::new(NodeId::for_test(number));
        let engine = Some(EngineDescription { engine_version: "0.1.0".into(), ..EngineDescription::default() });
        let tls_info = Some(TlsInfo { trust_root: b"root".to_vec(), ..TlsInfo::default() });
        node.description = Some(NodeDescription { hostname: format!("n{number}"), engine, tls_info, ..NodeDescription::default() });
        node.status.state = NodeState::Ready;
        if manager.is_some() {
            node.role = NodeRole::Manager;
        }
        Found { node, manager }
    }

    fn manager(leader: bool, reachability: Reachability) -> Option<ManagerStatus> {
        Some(ManagerStatus { raft_id: 1, addr: "192.0.2.1:2377".into(), leader, reachability })
    }

    #[test]
    fn the_table_marks_this_node_and_the_leader() {
        let mut nodes =
            vec![found(1, manager(true, Reachability::Reachable)), found(2, manager(false, Reachability::Unreachable)), found(3, None)];
        nodes[2].node.spec.availability = Availability::Drain;
        nodes[1].node.status.state = NodeState::Down;
        let own = NodeId::for_test(1).to_string();
        let table = table(&nodes, &own, b"root\n", false);
        let wanted = "ID               HOSTNAME   STATUS   AVAILABILITY   MANAGER STATUS   ENGINE VERSION\n\
                      000000000000 *   n1         Ready    Active         Leader           0.1.0\n\
                      000000000000     n2         Down     Active         Unreachable      0.1.0\n\
                      000000000000     n3         Ready    Drain                           0.1.0\n";
        assert_eq!(table.text(&"table".parse().unwrap()).unwrap(), wanted);
        let template = "{{.Hostname}} {{.Self}} {{.Role}} {{.TLSStatus}}".parse().unwrap();
        assert_eq!(table.text(&template).unwrap(), "n1 true manager Ready\nn2 false manager Ready\nn3 false worker Ready\n");
    }

    #[test]
    fn inspect_shows_a_managers_place_and_a_workers_lack_of_one() {
        assert_eq!(found(1, manager(true, Reachability::Reachable)).json().unwrap()["manager_status"]["leader"], true);
        assert!(found(3, None).json().unwrap().get("manager_status").is_none());
    }

    #[tokio::test]
    async fn one_that_fails_does_not_keep_the_others() {
        let done = std::sync::Mutex::new(Vec::new());
        let names = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let outcome = each(&names, async |name| {
            done.lock().unwrap().push(name.to_owned());
            if name == "c" { Ok(()) } else { Err(Failure::not_found("node", name, "")) }
        });
        let failure = outcome.await.unwrap_err();
        assert_eq!((failure.exit, *done.lock().unwrap() == names), (Exit::NotFound, true));
        assert!(failure.to_string().contains("node: a"));
    }
}
