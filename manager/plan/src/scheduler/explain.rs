//! Why a task has no node, for people: grouped by reason, with how near the nearest node is.

use super::Scheduler;
use super::need::{Misfit, Need};
use super::node::Place;
use crate::constraint::Constraints;
use crate::resources::{Bytes, Cpus, Lack};
use skep_types::{GenericResource, Node, Placement, Task};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// What a node says to a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeVerdict {
    pub node: Arc<Node>,
    /// All that speaks against it, in the order of the filters; empty = it would take the task.
    pub misfits: Vec<Misfit>,
}

/// Why no node takes a task, in groups. Its text goes into the task's status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusal {
    /// Reason to number of nodes and detail, in the order of the filters.
    groups: BTreeMap<(u8, String), (usize, Option<i64>)>,
    nodes: usize,
}

impl Refusal {
    fn add(&mut self, misfit: &Misfit) {
        let (order, name, free) = match misfit {
            Misfit::Resources(Lack::Cpu { wanted, free }) => (0, format!("cpu\0{wanted}"), Some(*free)),
            Misfit::Resources(Lack::Memory { wanted, free }) => (1, format!("memory\0{wanted}"), Some(*free)),
            Misfit::Resources(Lack::Generic { kind, wanted, free }) => (2, format!("{kind}\0{wanted}"), Some(*free)),
            Misfit::Plugin { kind, name } => (3, format!("missing {} plugin {name}", kind.to_lowercase()), None),
            Misfit::Constraints => (4, "constraints not satisfied".to_owned(), None),
            Misfit::Platform => (5, "unsupported platform".to_owned(), None),
            Misfit::HostPort(kind, port) => (6, format!("host port {port}/{} in use", kind.name()), None),
            Misfit::MaxReplicas(limit) => (7, format!("maximum of {limit} replicas reached"), None),
            Misfit::SameSlot => (12, "another task of the slot still stops".to_owned(), None),
            Misfit::CannotEncrypt(why) => (13, format!("encrypted networks not possible ({why})"), None),
            Misfit::Down => (8, "down".to_owned(), None),
            Misfit::Drained => (9, "drained".to_owned(), None),
            Misfit::Paused => (10, "paused".to_owned(), None),
            Misfit::NotReady => (11, "not ready".to_owned(), None),
        };
        let group = self.groups.entry((order, name)).or_default();
        group.0 += 1;
        group.1 = group.1.max(free);
    }
}

fn nodes(count: usize) -> String {
    if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") }
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return out.write_str("no suitable node (the cluster has no nodes)");
        }
        out.write_str("no suitable node (")?;
        for (index, ((order, name), (count, free))) in self.groups.iter().enumerate() {
            if index > 0 {
                out.write_str("; ")?;
            }
            let (name, wanted) = name.split_once('\0').unwrap_or((name, ""));
            let (wanted, free) = (wanted.parse().unwrap_or(0), free.unwrap_or(0));
            let count = nodes(*count);
            match order {
                0 => write!(out, "insufficient CPU on {count}: needs {}, best has {} free", Cpus(wanted), Cpus(free))?,
                1 => write!(out, "insufficient memory on {count}: needs {}, best has {} free", Bytes(wanted), Bytes(free))?,
                2 => write!(out, "insufficient {name} on {count}: needs {wanted}, best has {free} free")?,
                8..=11 => write!(out, "{count} {} {name}", if count.starts_with("1 ") { "is" } else { "are" })?,
                _ => write!(out, "{name} on {count}")?,
            }
        }
        out.write_str(")")
    }
}

/// Why the node that a task is bound to does not take it.
pub(super) fn on_its_node(misfit: Option<&Misfit>) -> String {
    match misfit {
        None => "its node does not exist".to_owned(),
        Some(misfit) => {
            let mut refusal = Refusal { nodes: 1, ..Refusal::default() };
            refusal.add(misfit);
            refusal.to_string()
        }
    }
}

/// Everything that speaks against a place: what is found is taken from the needs, and the rest asked again. Each round leaves fewer
/// needs than the one before.
fn obstacles(place: &Place, need: &Need, here: u32) -> Vec<Misfit> {
    let mut found: Vec<Misfit> = place.unreadiness().into_iter().collect();
    let mut constraints = constraints_of(need);
    let mut need = need.clone();
    while let Some(misfit) = place.misfit_if_ready(&need, &constraints, here) {
        let fixed = &mut need.fixed;
        match &misfit {
            Misfit::Resources(Lack::Cpu { .. }) => need.reservations.nano_cpus = 0,
            Misfit::Resources(Lack::Memory { .. }) => need.reservations.memory_bytes = 0,
            Misfit::Resources(Lack::Generic { kind, .. }) => need.reservations.generic.retain(|wanted| kind_of(wanted) != kind),
            Misfit::Plugin { kind, name } => fixed.plugins.retain(|wanted| (wanted.0, &wanted.1) != (*kind, name)),
            Misfit::Constraints => constraints = Constraints::default(),
            Misfit::Platform => fixed.platforms.clear(),
            Misfit::CannotEncrypt(_) => fixed.encrypted = false,
            Misfit::HostPort(protocol, number) => need.host_ports.retain(|port| (port.protocol, port.number) != (*protocol, *number)),
            Misfit::MaxReplicas(_) => need.max_replicas = 0,
            Misfit::SameSlot => need.avoid.clear(),
            Misfit::Down | Misfit::Drained | Misfit::Paused | Misfit::NotReady => return found,
        }
        found.push(misfit);
    }
    found
}

fn kind_of(resource: &GenericResource) -> &str {
    let (GenericResource::Named { kind, .. } | GenericResource::Discrete { kind, .. }) = resource;
    kind
}

fn constraints_of(need: &Need) -> Constraints {
    Constraints::of(Some(&Placement { constraints: need.fixed.constraints.clone(), ..Placement::default() }))
}

impl Scheduler {
    /// What every node says to `task` now, by node.
    #[must_use]
    pub fn verdicts(&self, task: &Task) -> Vec<NodeVerdict> {
        let need = self.need_of(task);
        let load = task.service_id.as_ref().and_then(|service| self.loads.get(service));
        let say = |(number, place): (usize, &Place)| {
            let here = load.map_or(0, |load| load.count(number as u32));
            Some(NodeVerdict { node: Arc::clone(place.node.as_ref()?), misfits: obstacles(place, &need, here) })
        };
        let mut verdicts: Vec<_> = self.places.iter().enumerate().filter_map(say).collect();
        verdicts.sort_by(|a, b| a.node.id.cmp(&b.node.id));
        verdicts
    }

    /// The reasons against `task` over all nodes. Nodes that would take it are left out.
    #[must_use]
    pub fn refusal_of(&self, task: &Task) -> Refusal {
        let need = self.need_of(task);
        let constraints = constraints_of(&need);
        let load = task.service_id.as_ref().and_then(|service| self.loads.get(service));
        let mut refusal = Refusal { nodes: self.numbers.len(), ..Refusal::default() };
        for (number, place) in self.places.iter().enumerate() {
            let here = load.map_or(0, |load| load.count(number as u32));
            if let Some(misfit) = place.misfit(&need, &constraints, here) {
                refusal.add(&misfit);
            }
        }
        refusal
    }
}
