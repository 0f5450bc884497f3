//! `swarmctl cluster …`

use super::InspectFlags;
use crate::connect::Connection;
use crate::failure::{Exit, Failure};
use crate::flags::duration;
use crate::output;
use skep_proto::skep::{InitRequest, LeaveRequest, StatusRequest, init_request, status_response};
use skep_proto::{FromWire, v1};
use std::time::Duration;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make this node the first manager of a new cluster
    Init(Init),
    /// Show the cluster's settings
    Inspect(InspectFlags),
    /// Show what this node is, in the cluster or not
    Status,
    /// Print the commands with which machines join
    JoinToken {
        /// worker or manager
        #[arg(value_parser = ["worker", "manager"])]
        role: String,
        /// Only print the token
        #[arg(long, short = 'q')]
        quiet: bool,
    },
    /// Stop this node's tasks and forget the cluster
    Leave {
        /// Leave even as the last manager: the cluster's state is lost
        #[arg(long, short = 'f')]
        force: bool,
    },
}

#[derive(Debug, clap::Args)]
pub struct Init {
    /// Address that the other nodes reach this one at (IP[:PORT])
    #[arg(long, value_name = "ADDRESS")]
    advertise_addr: Option<String>,
    /// Address to listen on (IP:PORT; default: the daemon's, 0.0.0.0:2377)
    #[arg(long, value_name = "ADDRESS")]
    listen_addr: Option<String>,
    /// Pool from which networks get their subnets (CIDR; default 10.0.0.0/8)
    #[arg(long, value_name = "CIDR")]
    default_addr_pool: Vec<String>,
    /// Prefix length of the subnets cut from the pools (default 24)
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u32).range(1..=30))]
    default_addr_pool_mask_length: Option<u32>,
    /// How long node certificates are valid (default 2160h)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    cert_expiry: Option<Duration>,
    /// active, pause or drain
    #[arg(long, default_value = "active", value_parser = ["active", "pause", "drain"])]
    availability: String,
}

pub async fn run(command: Command, connection: &Connection) -> Result<(), Failure> {
    match command {
        Command::Init(flags) => init(flags, connection).await,
        Command::Inspect(flags) => {
            let cluster = skep_types::Cluster::from_wire(cluster(connection).await?)?;
            output::inspect(&[output::readable(&cluster)?], flags.format.as_deref())
        }
        Command::Status => status(connection).await,
        Command::JoinToken { role, quiet } => join_token(&role, quiet, connection).await,
        Command::Leave { force } => {
            connection.node().leave(LeaveRequest { force }).await?;
            output::put("This node has left the cluster.\n")
        }
    }
}

async fn cluster(connection: &Connection) -> Result<v1::Cluster, Failure> {
    let answer = connection.control().list_clusters(v1::ListClustersRequest::default()).await?.into_inner();
    answer
        .clusters
        .into_iter()
        .next()
        .ok_or_else(|| Failure::new(Exit::NotFound, "this node is not in a cluster; make one with `swarmctl cluster init`"))
}

async fn init(flags: Init, connection: &Connection) -> Result<(), Failure> {
    let availability = match flags.availability.as_str() {
        "pause" => init_request::Availability::Pause,
        "drain" => init_request::Availability::Drain,
        _ => init_request::Availability::Active,
    };
    let request = InitRequest {
        listen_addr: flags.listen_addr.unwrap_or_default(),
        advertise_addr: flags.advertise_addr.unwrap_or_default(),
        default_address_pool: flags.default_addr_pool,
        subnet_size: flags.default_addr_pool_mask_length.unwrap_or(0),
        node_cert_expiry: flags
            .cert_expiry
            .map(prost_types_duration)
            .transpose()
            .map_err(|()| Failure::failed("--cert-expiry is too long"))?,
        availability: availability as i32,
    };
    let made = connection.node().init(request).await?.into_inner();
    output::put(&format!(
        "Swarm initialised: this node ({}) is its first manager.\n\nTo run a service:\n\n    swarmctl service create --name web --replicas 3 --publish 8080:8080 IMAGE\n",
        made.node_id,
    ))
}

fn prost_types_duration(length: Duration) -> Result<prost_types::Duration, ()> {
    prost_types::Duration::try_from(length).map_err(|_| ())
}

async fn join_token(role: &str, quiet: bool, connection: &Connection) -> Result<(), Failure> {
    let tokens = cluster(connection).await?.root_ca.and_then(|root| root.join_tokens).unwrap_or_default();
    let token = if role == "manager" { tokens.manager } else { tokens.worker };
    if quiet {
        return output::put(&format!("{token}\n"));
    }
    let address = connection.node().status(StatusRequest {}).await?.into_inner().advertise_addr;
    output::put(&format!("The token with which a {role} joins (at {address}):\n\n    {token}\n"))
}

async fn status(connection: &Connection) -> Result<(), Failure> {
    let status = connection.node().status(StatusRequest {}).await?.into_inner();
    let role = match status.role() {
        status_response::Role::None => "not in a cluster",
        status_response::Role::Worker => "worker",
        status_response::Role::Manager if status.leader => "manager (leader)",
        status_response::Role::Manager => "manager",
    };
    let mut lines = vec![("Version", status.version.clone()), ("Role", role.to_owned())];
    if !status.node_id.is_empty() {
        lines.push(("Node", status.node_id.clone()));
        lines.push(("Cluster", status.cluster_id.clone()));
        lines.push(("Address", format!("{} (listening on {})", status.advertise_addr, status.listen_addr)));
        lines.push(("Session", if status.connected { "connected to a manager".into() } else { "no manager reached".into() }));
        if let Some(at) = &status.certificate_expires_at {
            lines.push(("Certificate", format!("valid until {}", crate::when::rfc3339(skep_types::Timestamp::from_secs(at.seconds)))));
        }
    }
    if !status.runtime.is_empty() {
        lines.push(("Runtime", status.runtime.clone()));
    }
    if !status.problem.is_empty() {
        lines.push(("Problem", status.problem.clone()));
    }
    output::put(&lines.iter().map(|(name, value)| format!("{:<13}{value}\n", format!("{name}:"))).collect::<String>())
}
