//! What a service cannot do yet on more than one host, said where it is asked for.
//!
//! Networks between hosts are not built: tasks of an overlay network reach those on their own host, and a published port answers on the
//! hosts that run a task. On one host nothing is missing, and nothing is said.

use crate::connect::Connection;
use crate::failure::Failure;
use skep_proto::{FromWire, v1};
use skep_types::{Availability, Network, Node, NodeState, PublishMode, ServiceMode, ServiceSpec};

/// Warns on standard error. What cannot be found out is not warned of: the service itself is as good as without this.
pub async fn warn(spec: &ServiceSpec, connection: &Connection) {
    match warnings(spec, connection).await {
        Ok(lines) => lines.iter().for_each(|line| eprintln!("swarmctl: {line}")),
        Err(failure) => eprintln!("swarmctl: whether the service's networks reach all its hosts is not known: {failure}"),
    }
}

async fn warnings(spec: &ServiceSpec, connection: &Connection) -> Result<Vec<String>, Failure> {
    if spec.task.networks.is_empty() && spec.endpoint.is_none() {
        return Ok(Vec::new());
    }
    let mut control = connection.control();
    let nodes = control.list_nodes(v1::ListNodesRequest::default()).await?.into_inner().nodes;
    let networks = control.list_networks(v1::ListNetworksRequest::default()).await?.into_inner().networks;
    let nodes = nodes.into_iter().map(Node::from_wire).collect::<Result<Vec<_>, _>>()?;
    let networks = networks.into_iter().map(Network::from_wire).collect::<Result<Vec<_>, _>>()?;
    Ok(decide(spec, &nodes, &networks))
}

fn decide(spec: &ServiceSpec, nodes: &[Node], networks: &[Network]) -> Vec<String> {
    let hosts = nodes.iter().filter(|node| node.spec.availability == Availability::Active && node.status.state != NodeState::Down).count();
    if hosts < 2 || is_bound_to_a_node(spec) {
        return Vec::new();
    }
    let mut lines = Vec::new();
    let is_wanted = |network: &&Network| spec.task.networks.iter().any(|wanted| wanted.target == network.id.as_str());
    // `host`, `none` and the like are the node's own.
    let overlays: Vec<&str> = networks
        .iter()
        .filter(is_wanted)
        .filter(|network| !network.is_predefined())
        .map(|network| network.spec.annotations.name.as_str())
        .collect();
    if !overlays.is_empty() {
        lines.push(format!(
            "warning: networks do not join hosts yet, and {hosts} hosts can run tasks: on network {} a task reaches only those on its own \
             host; keep what talks to each other on one host with --constraint node.hostname==NAME",
            overlays.join(", ")
        ));
    }
    let ingress = |port: &&skep_types::PortConfig| port.publish_mode == PublishMode::Ingress;
    let is_published = spec.endpoint.iter().flat_map(|endpoint| &endpoint.ports).any(|port| ingress(&port));
    if is_published && spec.mode != ServiceMode::Global {
        lines.push(format!(
            "note: networks do not join hosts yet, and {hosts} hosts can run tasks: published ports answer on those that run a task of the \
             service (`swarmctl service ps` shows them)"
        ));
    }
    lines
}

/// Whether a constraint leaves one host.
fn is_bound_to_a_node(spec: &ServiceSpec) -> bool {
    let constraints = spec.task.placement.iter().flat_map(|placement| &placement.constraints);
    constraints.map(|text| text.replace(' ', "")).any(|text| text.starts_with("node.hostname==") || text.starts_with("node.id=="))
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{EndpointSpec, NetworkAttachmentConfig, NetworkId, NetworkSpec, NodeId, Placement, PortConfig};
    use std::sync::Arc;

    fn spec(networks: &[u64], published: bool) -> ServiceSpec {
        let flags = <crate::flags::CreateFlags as clap::FromArgMatches>::from_arg_matches(
            &<crate::flags::CreateFlags as clap::Args>::augment_args(clap::Command::new("create")).get_matches_from(["create"]),
        )
        .unwrap();
        let (mut spec, _) = flags.spec("nginx", &[], "web".into(), String::new()).unwrap();
        let target = |number: &u64| NetworkAttachmentConfig { target: NetworkId::for_test(*number).to_string(), ..Default::default() };
        Arc::make_mut(&mut spec.task).networks = networks.iter().map(target).collect();
        let port = PortConfig { target_port: 80, published_port: 80, ..PortConfig::default() };
        spec.endpoint = published.then(|| EndpointSpec { ports: vec![port], ..EndpointSpec::default() });
        spec
    }

    fn network(number: u64, name: &str) -> Network {
        let mut network = Network::new(NetworkId::for_test(number), NetworkSpec::default());
        network.spec.annotations.name = name.into();
        network
    }

    fn nodes(count: u64) -> Vec<Node> {
        let node = |number| {
            let mut node = Node::new(NodeId::for_test(number));
            node.status.state = NodeState::Ready;
            node
        };
        (0..count).map(node).collect()
    }

    #[test]
    fn on_one_host_nothing_is_missing() {
        let networks = [network(1, "back")];
        assert!(decide(&spec(&[1], true), &nodes(1), &networks).is_empty());
        let mut two = nodes(2);
        two[1].status.state = NodeState::Down;
        assert!(decide(&spec(&[1], true), &two, &networks).is_empty(), "one that is down runs nothing");
        two[1].status.state = NodeState::Ready;
        two[0].spec.availability = Availability::Drain;
        assert!(decide(&spec(&[1], true), &two, &networks).is_empty(), "nor does one that is drained");
    }

    #[test]
    fn several_hosts_are_told_of_with_the_cure() {
        let networks = [network(1, "back"), network(2, "front")];
        let lines = decide(&spec(&[1], false), &nodes(3), &networks);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].contains("3 hosts") && lines[0].contains("network back ") && lines[0].contains("--constraint"), "{}", lines[0]);
        assert!(decide(&spec(&[], false), &nodes(3), &networks).is_empty());
        let lines = decide(&spec(&[], true), &nodes(3), &networks);
        assert!(lines.len() == 1 && lines[0].contains("published ports answer on those that run a task"), "{lines:?}");
        let mut global = spec(&[], true);
        global.mode = ServiceMode::Global;
        assert!(decide(&global, &nodes(3), &networks).is_empty(), "it answers everywhere");
    }

    #[test]
    fn who_has_taken_the_cure_is_left_alone() {
        let mut bound = spec(&[1], true);
        let constraints = vec!["node.hostname == m1".to_owned()];
        Arc::make_mut(&mut bound.task).placement = Some(Placement { constraints, ..Placement::default() });
        assert!(decide(&bound, &nodes(3), &[network(1, "back")]).is_empty());
    }
}
