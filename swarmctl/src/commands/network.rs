//! `swarmctl network …`

use super::attach::{self, ATTACH_HELP, AttachFlags};
use super::{InspectFlags, ListFlags, each, short, task};
use crate::connect::Connection;
use crate::failure::Failure;
use crate::flags::NetworkFlags;
use crate::output::{self, Table};
use crate::resolve;
use ipnet::IpNet;
use serde_json::{Value, json};
use skep_proto::skep::UpdateNetworkRequest;
use skep_proto::{FromWire, ToWire, v1};
use skep_types::{Network, Service, Task, TaskState};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tonic::{Code, Status};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a network
    Create {
        #[command(flatten)]
        flags: Box<NetworkFlags>,
        #[arg(value_name = "NETWORK")]
        name: String,
    },
    /// List networks
    Ls(ListFlags),
    /// Show networks in full: subnets and how many of their addresses are used, services and tasks on them
    Inspect {
        #[arg(required = true, value_name = "NETWORK")]
        networks: Vec<String>,
        #[command(flatten)]
        flags: InspectFlags,
    },
    /// Put a container of this node that no service started on an attachable network
    #[command(after_help = ATTACH_HELP)]
    Attach {
        #[command(flatten)]
        flags: AttachFlags,
        #[arg(value_name = "NETWORK")]
        network: String,
    },
    /// Take containers of this node off the networks they were attached to
    Detach {
        /// As `network attach` printed them
        #[arg(required = true, value_name = "ATTACHMENT")]
        attachments: Vec<String>,
    },
    /// Change a network that spans hosts while it is used
    Update {
        /// Size of its packets in bytes, 1280 to 65535; auto: the largest that fits between its hosts, followed when that changes
        #[arg(long, required = true, value_name = "BYTES|auto", value_parser = mtu)]
        mtu: u32,
        #[arg(value_name = "NETWORK")]
        network: String,
    },
    /// Remove networks; one that is used stays, and it is said by whom
    Rm {
        #[arg(required = true, value_name = "NETWORK")]
        networks: Vec<String>,
    },
}

/// 0: the nodes find it out.
fn mtu(text: &str) -> Result<u32, String> {
    match text.parse() {
        _ if text == "auto" => Ok(0),
        Ok(bytes) if (1280..=65_535).contains(&bytes) => Ok(bytes),
        _ => Err("give a number of bytes from 1280 to 65535, or auto".into()),
    }
}

pub async fn run(command: Command, connection: &Connection) -> Result<(), Failure> {
    match command {
        Command::Create { flags, name } => {
            let spec = flags.spec(name).map_err(Failure::failed)?;
            let request = v1::CreateNetworkRequest { spec: Some(spec.to_wire()) };
            let answer = connection.control().create_network(request).await?.into_inner();
            output::put(&format!("{}\n", answer.network.map(|network| network.id).unwrap_or_default()))
        }
        Command::Ls(flags) => list(&flags, connection).await,
        Command::Attach { flags, network } => attach::attach(&flags, network, connection).await,
        Command::Detach { attachments } => each(&attachments, async |id| attach::detach(id, connection).await).await,
        Command::Inspect { networks, flags } => inspect(&networks, &flags, connection).await,
        Command::Update { mtu, network } => {
            let found = resolve::network(connection, &network).await?;
            let request = UpdateNetworkRequest { network_id: found.id, mtu };
            connection.network_settings().update(request).await.map_err(not_there)?;
            output::put(&format!("{network}\n"))
        }
        Command::Rm { networks } => {
            each(&networks, async |name| {
                let network = resolve::network(connection, name).await?;
                let request = v1::RemoveNetworkRequest { name: String::new(), network_id: network.id };
                connection.control().remove_network(request).await?;
                output::put(&format!("{name}\n"))
            })
            .await
        }
    }
}

/// A manager of the original has no such call.
fn not_there(status: Status) -> Failure {
    match status.code() {
        Code::Unimplemented => Failure::failed("the managers of this cluster cannot change a network; remove it and make it anew"),
        _ => status.into(),
    }
}

async fn list(flags: &ListFlags, connection: &Connection) -> Result<(), Failure> {
    let found = connection.control().list_networks(v1::ListNetworksRequest::default()).await?.into_inner().networks;
    let mut networks = found.into_iter().map(Network::from_wire).collect::<Result<Vec<_>, _>>()?;
    networks.sort_by(|a, b| a.spec.annotations.name.cmp(&b.spec.annotations.name));
    if flags.quiet {
        return output::put(&networks.iter().map(|network| format!("{}\n", network.id)).collect::<String>());
    }
    let mut table = Table::new(&["ID", "NAME", "DRIVER", "SCOPE", "SUBNETS"]);
    for network in &networks {
        table.row(vec![
            short(network.id.as_str(), flags.no_trunc),
            network.spec.annotations.name.clone(),
            network.driver_name().to_owned(),
            "swarm".into(),
            subnets(network).map(|net| net.to_string()).collect::<Vec<_>>().join(", "),
        ]);
    }
    table.print(&flags.format)
}

fn subnets(network: &Network) -> impl Iterator<Item = IpNet> {
    network.ipam.iter().flat_map(|ipam| &ipam.configs).filter_map(|config| config.subnet.parse().ok())
}

async fn inspect(names: &[String], flags: &InspectFlags, connection: &Connection) -> Result<(), Failure> {
    let mut networks = Vec::new();
    for name in names {
        networks.push(Network::from_wire(resolve::network(connection, name).await?)?);
    }
    let mut client = connection.control();
    let services = client.list_services(v1::ListServicesRequest::default()).await?.into_inner().services;
    let services = services.into_iter().map(Service::from_wire).collect::<Result<Vec<_>, _>>()?;
    let tasks = client.list_tasks(v1::ListTasksRequest::default()).await?.into_inner().tasks;
    let tasks = tasks.into_iter().map(Task::from_wire).collect::<Result<Vec<_>, _>>()?;
    let nodes = task::node_names(connection).await?;
    let shown = networks.iter().map(|network| {
        let mut value = output::readable(network)?;
        if let Value::Object(fields) = &mut value {
            let (more, used) = users(network, &services, &tasks, &nodes);
            fields.insert("encrypted".into(), network.is_encrypted().into());
            fields.insert("address_use".into(), address_use(network, &used));
            fields.extend(more);
        }
        Ok(value)
    });
    let shown = shown.collect::<Result<Vec<_>, Failure>>()?;
    output::inspect(&shown, flags.format.as_deref())
}

fn address(text: &str) -> Option<IpAddr> {
    text.split('/').next()?.parse().ok()
}

/// Services with their virtual addresses and live tasks with their own, and all these addresses.
fn users(
    network: &Network,
    services: &[Service],
    tasks: &[Task],
    nodes: &BTreeMap<String, String>,
) -> ([(String, Value); 2], BTreeSet<IpAddr>) {
    let mut used = BTreeSet::new();
    let mut entries = Vec::new();
    for service in services {
        let vips = service.endpoint.iter().flat_map(|endpoint| &endpoint.virtual_ips).filter(|vip| vip.network_id == network.id);
        let vips: Vec<IpAddr> = vips.filter_map(|vip| address(&vip.addr)).collect();
        let is_on_it = service.networks().iter().any(|wanted| wanted.target == network.id.as_str());
        if is_on_it || !vips.is_empty() {
            entries.push(json!({"id": service.id, "name": service.name(), "virtual_ips": vips}));
        }
        used.extend(vips);
    }
    let mut endpoints = Vec::new();
    for task in tasks.iter().filter(|task| task.status.state <= TaskState::Running) {
        let Some(attachment) = task.networks.iter().find(|attachment| attachment.network.id == network.id) else { continue };
        used.extend(attachment.addresses.iter().filter_map(|text| address(text)));
        let node = task.node_id.as_ref().map(|id| nodes.get(id.as_str()).cloned().unwrap_or_else(|| id.to_string()));
        endpoints.push(json!({
            "task": task.id, "name": task.name(), "node": node, "addresses": attachment.addresses, "state": task.status.state.to_string(),
        }));
    }
    ([("services".to_owned(), Value::Array(entries)), ("endpoints".to_owned(), Value::Array(endpoints))], used)
}

/// How many addresses of each subnet are given out, of how many that can be: all but the network's own, the last and the gateway.
fn address_use(network: &Network, used: &BTreeSet<IpAddr>) -> Value {
    let one = |config: &skep_types::IpamConfig| {
        let subnet: IpNet = config.subnet.parse().ok()?;
        let range = config.range.parse::<IpNet>().unwrap_or(subnet);
        let bits = range.max_prefix_len() - range.prefix_len();
        // A /64 of IPv6 has more than anyone counts.
        let size = if bits < 64 { (1u64 << bits).saturating_sub(if range == subnet { 2 } else { 0 }) } else { u64::MAX };
        let gateway = address(&config.gateway).is_some_and(|gateway| range.contains(&gateway));
        let count = used.iter().filter(|address| subnet.contains(*address)).count();
        Some(json!({"subnet": config.subnet, "used": count, "usable": size.saturating_sub(u64::from(gateway))}))
    };
    network.ipam.iter().flat_map(|ipam| &ipam.configs).filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{IpamConfig, IpamOptions, NetworkId, NetworkSpec};

    #[test]
    fn a_size_is_a_number_or_left_to_the_nodes() {
        assert_eq!([mtu("1280"), mtu("9000"), mtu("auto")], [Ok(1280), Ok(9000), Ok(0)]);
        assert!(["0", "1279", "65536", "-1", "big", ""].into_iter().all(|text| mtu(text).is_err()));
    }

    #[test]
    fn use_of_addresses_is_counted_by_subnet() {
        let config = |subnet: &str, range: &str, gateway: &str| IpamConfig {
            subnet: subnet.into(),
            range: range.into(),
            gateway: gateway.into(),
            ..IpamConfig::default()
        };
        let mut network = Network::new(NetworkId::for_test(1), NetworkSpec::default());
        let configs = vec![
            config("10.9.0.0/24", "", "10.9.0.1"),
            config("10.8.0.0/24", "10.8.0.128/25", "10.8.0.1"),
            config("fd00::/64", "", "fd00::1"),
        ];
        network.ipam = Some(IpamOptions { configs, ..IpamOptions::default() });
        let used = ["10.9.0.2", "10.9.0.3", "10.8.0.130", "fd00::2"].map(|text| text.parse().unwrap()).into();
        let value = address_use(&network, &used);
        let numbers: Vec<_> = value.as_array().unwrap().iter().map(|one| (one["used"].as_u64(), one["usable"].as_u64())).collect();
        assert_eq!(numbers, [(Some(2), Some(253)), (Some(1), Some(128)), (Some(1), Some(u64::MAX - 1))]);
    }
}
