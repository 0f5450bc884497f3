//! `cluster init`, `cluster join`, `cluster join-token`.

use super::edit;
use crate::connect::Connection;
use crate::failure::Failure;
use crate::flags::{duration, manager_address};
use crate::{output, secret};
use skep_proto::skep::{InitRequest, JoinRequest, StatusRequest, init_request, status_response};
use skep_proto::v1;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Where a manager is; workers keep it for the day they are promoted.
#[derive(Debug, clap::Args)]
pub struct Addresses {
    /// Address that the other nodes reach this one at (IP[:PORT]; default: found out)
    #[arg(long, value_name = "ADDRESS")]
    pub advertise_addr: Option<String>,
    /// Address to listen on (IP:PORT; default: the daemon's, 0.0.0.0:2377)
    #[arg(long, value_name = "ADDRESS")]
    pub listen_addr: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Init {
    #[command(flatten)]
    addresses: Addresses,
    /// Managers need an unlock key after each start
    #[arg(long)]
    autolock: bool,
    /// Pool from which networks get their subnets (CIDR; may be repeated; default 10.0.0.0/8); what overlaps a subnet of a node's own is left out
    #[arg(long, value_name = "CIDR")]
    default_addr_pool: Vec<String>,
    /// Prefix length of the subnets cut from the pools (default 20, or 24 if a pool has no room for that)
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u32).range(1..=30))]
    default_addr_pool_mask_length: Option<u32>,
    /// UDP port over which networks span hosts (1024 to 49151; default 4789)
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1024..=49151))]
    data_path_port: Option<u16>,
    /// How long node certificates are valid (default 2160h)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    cert_expiry: Option<Duration>,
    /// active, pause or drain
    #[arg(long, default_value = "active", value_parser = ["active", "pause", "drain"])]
    availability: String,
}

#[derive(Debug, clap::Args)]
pub struct Join {
    /// The token of the role to join in, as `swarmctl cluster join-token` prints it
    #[arg(long, value_name = "TOKEN", required_unless_present = "token_file", conflicts_with = "token_file")]
    token: Option<String>,
    /// File with the token (- = standard input): other users of this machine see a command line, but no file
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    addresses: Addresses,
    /// active, pause or drain
    #[arg(long, default_value = "active", value_parser = ["active", "pause", "drain"])]
    availability: String,
    /// Any manager, or several, of which one must answer
    #[arg(required = true, value_name = "HOST[:PORT]", value_parser = manager_address)]
    managers: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub struct JoinToken {
    /// worker or manager
    #[arg(value_parser = ["worker", "manager"])]
    role: String,
    /// Make a new one first: the old one lets nobody in any more
    #[arg(long)]
    rotate: bool,
    /// Only print the token
    #[arg(long, short = 'q')]
    quiet: bool,
}

fn availability(text: &str) -> init_request::Availability {
    match text {
        "pause" => init_request::Availability::Pause,
        "drain" => init_request::Availability::Drain,
        _ => init_request::Availability::Active,
    }
}

/// The command for the next machine.
struct JoinCommand<'a> {
    role: &'a str,
    token: &'a str,
    address: &'a str,
}

impl fmt::Display for JoinCommand<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { role, token, address } = self;
        write!(out, "To add a {role}, run this on the machine:\n\n    swarmctl cluster join --token {token} {address}\n")
    }
}

pub async fn init(flags: Init, connection: &Connection) -> Result<(), Failure> {
    let cert_expiry = flags.cert_expiry.map(prost_types::Duration::try_from).transpose();
    let request = InitRequest {
        listen_addr: flags.addresses.listen_addr.unwrap_or_default(),
        advertise_addr: flags.addresses.advertise_addr.unwrap_or_default(),
        default_address_pool: flags.default_addr_pool,
        subnet_size: flags.default_addr_pool_mask_length.unwrap_or(0),
        node_cert_expiry: cert_expiry.map_err(|_| Failure::failed("--cert-expiry is too long"))?,
        availability: availability(&flags.availability) as i32,
        auto_lock_managers: flags.autolock,
        data_path_port: flags.data_path_port.map(u32::from).unwrap_or_default(),
    };
    let made = connection.node().init(request).await.map_err(Failure::of_daemon)?.into_inner();
    let mut text = format!("Swarm initialised: this node ({}) is its first manager.\n\n", made.node_id);
    for (role, token) in [("worker", &made.worker_token), ("manager", &made.manager_token)] {
        text += &format!("{}\n", JoinCommand { role, token, address: &made.advertise_addr });
    }
    if !made.unlock_key.is_empty() {
        text += &format!("{}\n", super::lock::advice(&made.unlock_key));
    }
    text += "To run a service:\n\n    swarmctl service create --name web --replicas 3 --publish 8080:8080 IMAGE\n";
    output::put(&text)
}

pub async fn join(flags: Join, connection: &Connection) -> Result<(), Failure> {
    let token = match flags.token {
        Some(token) => token,
        None => secret::read_line("join token", flags.token_file.as_deref())?,
    };
    let request = JoinRequest {
        token,
        remote_addrs: flags.managers,
        listen_addr: flags.addresses.listen_addr.unwrap_or_default(),
        advertise_addr: flags.addresses.advertise_addr.unwrap_or_default(),
        availability: availability(&flags.availability) as i32,
    };
    let joined = connection.node().join(request).await.map_err(Failure::of_daemon)?.into_inner();
    let role = if joined.role() == status_response::Role::Manager { "manager" } else { "worker" };
    output::put(&format!("This node ({}) joined the swarm as a {role}.\n", joined.node_id))
}

pub async fn join_token(flags: &JoinToken, connection: &Connection) -> Result<(), Failure> {
    let is_manager = flags.role == "manager";
    if flags.rotate {
        let rotation = v1::KeyRotation { worker_join_token: !is_manager, manager_join_token: is_manager, ..v1::KeyRotation::default() };
        edit::change(connection, rotation, |_| Ok(())).await?;
    }
    let tokens = edit::cluster(connection).await?.root_ca.and_then(|root| root.join_tokens).unwrap_or_default();
    let token = if is_manager { tokens.manager } else { tokens.worker };
    if flags.quiet {
        return output::put(&format!("{token}\n"));
    }
    let address = connection.node().status(StatusRequest::default()).await?.into_inner().advertise_addr;
    let news =
        if flags.rotate { format!("The {} token is new; the old one lets nobody in any more.\n\n", flags.role) } else { String::new() };
    output::put(&format!("{news}{}", JoinCommand { role: &flags.role, token: &token, address: &address }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct JoinLine {
        #[command(flatten)]
        join: Join,
    }

    #[test]
    fn the_command_that_is_printed_can_be_run() {
        let text = JoinCommand { role: "worker", token: "SWMTKN-1-a-b", address: "192.0.2.1:2377" }.to_string();
        assert_eq!(text, "To add a worker, run this on the machine:\n\n    swarmctl cluster join --token SWMTKN-1-a-b 192.0.2.1:2377\n");
        let line = text.lines().last().unwrap().trim().strip_prefix("swarmctl cluster ").unwrap();
        let parsed = JoinLine::try_parse_from(line.split(' ')).unwrap().join;
        assert_eq!((parsed.token.as_deref(), parsed.managers.as_slice()), (Some("SWMTKN-1-a-b"), &["192.0.2.1:2377".to_owned()][..]));
    }

    #[test]
    fn joining_needs_a_token_and_a_manager() {
        assert!(JoinLine::try_parse_from(["join", "m1"]).is_err());
        assert!(JoinLine::try_parse_from(["join", "--token", "t"]).is_err());
        assert!(JoinLine::try_parse_from(["join", "--token", "t", "--token-file", "f", "m1"]).is_err());
        assert!(JoinLine::try_parse_from(["join", "--token-file", "f", "m1", "m2:2378"]).is_ok());
    }
}
