//! The tasks of this node whose network exists, and what is to become of each. Pure.

use super::convert::{bad, joined, overlays, port, protocol, wants_bridge};
use crate::error::NetworkError;
use ipnet::IpNet;
use skep_netlb::Protocol;
use skep_types::{PortConfig, PublishMode as WireMode, PublishPlace, Task, TaskId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where a port is looked for when the node may choose one (as dockerd's range).
const CHOICE: std::ops::RangeInclusive<u16> = 49153..=65535;

/// How far a task of this node is, as this node knows it: ahead of what managers know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its network is there. It may run, but does not answer yet.
    Attached,
    /// Connections may come to it.
    Serving,
    /// None may come any more. `others_may_lead_here`: it served, and no manager said yet that every node has it out.
    Leaving { others_may_lead_here: bool },
}

/// A task whose network exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub task: Arc<Task>,
    pub phase: Phase,
    /// Its host-mode ports as they really are.
    pub host_ports: Vec<PortConfig>,
    /// The host name that its service wishes, as this node fills it in.
    pub hostname: Option<String>,
    /// Its address on this node's bridge, if it is on that.
    pub bridge: Option<IpNet>,
}

impl Held {
    pub fn is_serving(&self) -> bool {
        self.phase == Phase::Serving
    }
}

/// The host-mode ports of a task, with those chosen that the node may choose.
///
/// # Errors
/// A port that another task or program of this node holds, by name.
pub fn host_ports(
    task: &Task,
    held: &BTreeMap<TaskId, Held>,
    taken: impl Fn(Protocol, u16, &PublishPlace) -> bool,
) -> Result<Vec<PortConfig>, NetworkError> {
    let holder = |config: &PortConfig, number: u32| {
        let wish = PortConfig { published_port: number, ..config.clone() };
        let same = |other: &PortConfig| other.meets(&wish);
        let other = held.values().find(|other| other.task.id != task.id && other.host_ports.iter().any(same));
        other.map(|other| format!("task {}", other.task.name()))
    };
    let wish = task.endpoint.iter().flat_map(|endpoint| if endpoint.ports.is_empty() { &endpoint.spec.ports } else { &endpoint.ports });
    let mut ports: Vec<PortConfig> = wish.filter(|config| config.publish_mode == WireMode::Host).cloned().collect();
    if let (false, false, Some(lan), None) = (ports.is_empty(), wants_bridge(task), joined(task).next(), overlays(task).next()) {
        let reason = "a host-mode port of this node cannot lead into it: its tasks answer at their own addresses; \
                      publish nothing, or add another network";
        return Err(bad(&lan.network, reason));
    }
    if let (false, false, Some(internal)) =
        (ports.is_empty(), wants_bridge(task), overlays(task).find(|attachment| attachment.network.spec.internal))
        && overlays(task).all(|attachment| attachment.network.spec.internal)
    {
        return Err(bad(&internal.network, "it is internal, so no port of this node can lead into it; add another network"));
    }
    for config in &mut ports {
        let kind = protocol(config.protocol);
        if config.published_port == 0 {
            let free = CHOICE.clone().find(|number| holder(config, u32::from(*number)).is_none() && !taken(kind, *number, &config.place));
            let none = || NetworkError::PortTaken { port: 0, protocol: config.protocol.name(), holder: "others, as all are".into() };
            config.published_port = u32::from(free.ok_or_else(none)?);
            continue;
        }
        let number = config.published_port;
        let other = port(number).is_some_and(|number| taken(kind, number, &config.place)).then(|| "another program".to_owned());
        if let Some(holder) = holder(config, number).or(other) {
            return Err(NetworkError::PortTaken { port: number, protocol: config.protocol.name(), holder });
        }
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::fixtures::{attached, overlay, published, table, web};
    use crate::testing::task;
    use skep_types::Endpoint as TaskEndpoint;

    #[test]
    fn a_host_port_into_an_internal_network_is_refused() {
        let mut network = (*overlay(3, "closed", false)).clone();
        network.spec.internal = true;
        let mut task = task(1, "web");
        task.networks = vec![attached(Arc::new(network), "10.0.3.5/24")];
        task.endpoint = Some(TaskEndpoint { ports: vec![published(80, 9000, WireMode::Host)], ..TaskEndpoint::default() });
        let error = host_ports(&task, &table(vec![]), |_, _, _| false).unwrap_err();
        assert!(error.to_string().starts_with("network closed cannot be joined: it is internal"), "{error}");
    }

    #[test]
    fn a_taken_host_port_names_its_holder_and_zero_is_chosen() {
        let mut first = web(1, true);
        first.host_ports = vec![published(80, 9000, WireMode::Host)];
        let held = table(vec![first]);
        let mut second = task(2, "web");
        let wish = |number| Some(TaskEndpoint { ports: vec![published(80, number, WireMode::Host)], ..TaskEndpoint::default() });
        second.endpoint = wish(9000);
        let error = host_ports(&second, &held, |_, _, _| false).unwrap_err();
        assert!(error.to_string().starts_with("port 9000/tcp of this node is already taken by task web.1."), "{error}");
        let error = host_ports(&second, &table(vec![]), |_, _, _| true).unwrap_err();
        assert_eq!(error.to_string(), "port 9000/tcp of this node is already taken by another program");
        // At another address than that one's the number is free.
        let at = |last: u8| PublishPlace::Address([192, 0, 2, last].into());
        let mut one = held.values().next().unwrap().clone();
        one.host_ports[0].place = at(1);
        for (last, is_free) in [(1, false), (2, true)] {
            let port = PortConfig { place: at(last), ..published(80, 9000, WireMode::Host) };
            second.endpoint = Some(TaskEndpoint { ports: vec![port], ..TaskEndpoint::default() });
            assert_eq!(host_ports(&second, &table(vec![one.clone()]), |_, _, _| false).is_ok(), is_free);
        }
        second.endpoint = wish(0);
        assert_eq!(host_ports(&second, &held, |_, port, _| port < 50000).unwrap()[0].published_port, 50000);
    }
}
