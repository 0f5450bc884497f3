//! What nodes say to a task, grouped, and the changes that would make one of them take it.

use super::{NAMED, NodeGroup, count};
use crate::constraint::{Constraint, Key, Operator};
use crate::resources::{Bytes, Cpus, Lack};
use crate::scheduler::{Misfit, NodeVerdict, normal_architecture};
use skep_types::{ClusterView, GenericResource, Node, Platform, PublishMode, Task};
use std::collections::BTreeMap;

/// So many cures are told.
const CURES: usize = 3;

/// The constraints of the task that do not hold for the node.
fn broken<'a>(task: &'a Task, node: &Node) -> Vec<&'a str> {
    let all = task.spec.placement.iter().flat_map(|placement| &placement.constraints);
    all.filter(|text| !Constraint::parse(text).is_ok_and(|constraint| constraint.matches(node))).map(String::as_str).collect()
}

/// As images name it.
fn platform(platform: &Platform) -> String {
    match (platform.os.as_str(), normal_architecture(&platform.architecture)) {
        ("", architecture) => architecture.to_owned(),
        (os, "") => os.to_owned(),
        (os, architecture) => format!("{os}/{architecture}"),
    }
}

/// What the image runs on: several are alternatives.
fn image_platforms(task: &Task) -> String {
    let all: Vec<String> = task.spec.placement.iter().flat_map(|placement| &placement.platforms).map(platform).collect();
    all.join(" or ")
}

fn node_platform(node: &Node) -> String {
    let said = node.description.as_ref().map(|description| platform(&description.platform)).unwrap_or_default();
    if said.is_empty() { "of a platform that it did not say".into() } else { said }
}

/// Whether the node has anything of this kind, free or not.
fn has_any(node: &Node, wanted: &str) -> bool {
    let generic = node.description.iter().flat_map(|description| &description.resources.generic);
    generic.into_iter().any(|one| {
        let (GenericResource::Named { kind, .. } | GenericResource::Discrete { kind, .. }) = one;
        kind == wanted
    })
}

/// Without the amounts in which nodes differ.
fn reason(task: &Task, node: &Node, misfit: &Misfit) -> String {
    match misfit {
        Misfit::Down => "it is down".into(),
        Misfit::Drained => "it is drained".into(),
        Misfit::Paused => "it is paused".into(),
        Misfit::NotReady => "it is not ready".into(),
        Misfit::Resources(Lack::Cpu { wanted, .. }) => format!("needs {}", Cpus(*wanted)),
        Misfit::Resources(Lack::Memory { wanted, .. }) => format!("needs {} of memory", Bytes(*wanted)),
        Misfit::Resources(Lack::Generic { kind, wanted, .. }) => format!("needs {wanted} {kind}"),
        Misfit::Plugin { kind, name } => format!("has no {} driver {name}", kind.to_lowercase()),
        Misfit::Constraints => match broken(task, node).as_slice() {
            [one] => format!("the constraint {one} does not hold"),
            several => format!("the constraints {} do not hold", several.join(" and ")),
        },
        Misfit::Platform => format!("the image is for {}, it is {}", image_platforms(task), node_platform(node)),
        Misfit::CannotEncrypt(why) => format!("it cannot encrypt networks: {why}"),
        Misfit::HostPort(kind, port) => format!("host port {port}/{} is taken", kind.name()),
        Misfit::MaxReplicas(limit) => format!("it has {limit} of the service, as many as are allowed on a node"),
        Misfit::SameSlot => "another task of the same slot still stops there".into(),
    }
}

fn free(misfit: &Misfit) -> Option<i64> {
    match misfit {
        Misfit::Resources(Lack::Cpu { free, .. } | Lack::Memory { free, .. } | Lack::Generic { free, .. }) => Some(*free),
        _ => None,
    }
}

fn amount(misfit: &Misfit, free: i64) -> String {
    match misfit {
        Misfit::Resources(Lack::Cpu { .. }) => Cpus(free).to_string(),
        Misfit::Resources(Lack::Memory { .. }) => Bytes(free).to_string(),
        _ => free.to_string(),
    }
}

/// Nodes with the same reasons together, the largest group first. Those that would take the task are a group too.
pub(super) fn groups(task: &Task, verdicts: &[NodeVerdict]) -> Vec<NodeGroup> {
    struct Open<'a> {
        example: &'a [Misfit],
        most_free: Vec<Option<i64>>,
        nodes: Vec<&'a Node>,
    }
    let mut open = BTreeMap::<Vec<String>, Open<'_>>::new();
    for verdict in verdicts {
        let key = verdict.misfits.iter().map(|misfit| reason(task, &verdict.node, misfit)).collect();
        let group = open.entry(key).or_insert_with(|| Open {
            example: &verdict.misfits,
            most_free: vec![None; verdict.misfits.len()],
            nodes: Vec::new(),
        });
        for (most, misfit) in group.most_free.iter_mut().zip(&verdict.misfits) {
            *most = (*most).max(free(misfit));
        }
        group.nodes.push(&verdict.node);
    }
    let close = |(reasons, group): (Vec<String>, Open<'_>)| {
        let at_most = if group.nodes.len() == 1 { "" } else { "at most " };
        let told = reasons.into_iter().zip(group.example).zip(&group.most_free).map(|((reason, misfit), most)| match most {
            Some(free) => format!("{reason}, {at_most}{} free", amount(misfit, *free)),
            None => reason,
        });
        let reason = told.collect::<Vec<_>>().join("; ");
        let names = group.nodes.iter().take(NAMED).map(|node| node.display_name().to_owned()).collect();
        NodeGroup { reason: if reason.is_empty() { "would take it".into() } else { reason }, count: group.nodes.len(), names }
    };
    let mut groups: Vec<_> = open.into_iter().map(close).collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.count));
    groups
}

/// Memory of which a node surely has no less; flags take it in this form.
fn mebibytes(bytes: i64) -> i64 {
    bytes >> 20
}

/// What would make one more node take the task, the nearest first: changes of which one alone suffices, or else the node with the fewest
/// obstacles.
pub(super) fn cures(view: &dyn ClusterView, task: &Task, verdicts: &[NodeVerdict]) -> Vec<String> {
    if verdicts.is_empty() {
        return vec!["add a node: `swarmctl cluster join-token worker` on a manager tells how".into()];
    }
    if let Some(taker) = verdicts.iter().find(|verdict| verdict.misfits.is_empty()) {
        return vec![format!("{} would take it now: it is about to be placed", taker.node.display_name())];
    }
    let mut found = BTreeMap::<String, Cure>::new();
    for verdict in verdicts {
        let [misfit] = verdict.misfits.as_slice() else { continue };
        let (effort, key, words) = single(view, task, &verdict.node, misfit);
        // Of nodes that have too little each lacks something else.
        let alike = usize::from(!matches!(misfit, Misfit::Resources(_)));
        let known = found.entry(key).or_insert_with(|| Cure { effort, words: words.clone(), nodes: 0 });
        known.nodes += alike;
        if effort < known.effort {
            (known.effort, known.words) = (effort, words);
        }
    }
    let mut found: Vec<_> = found.into_values().collect();
    found.sort();
    if found.is_empty() {
        let nearest = verdicts.iter().min_by_key(|verdict| verdict.misfits.len()).expect("there are nodes");
        let all: Vec<_> = nearest.misfits.iter().map(|misfit| reason(task, &nearest.node, misfit)).collect();
        return vec![format!("{} is nearest, and more than one thing is against it: {}", nearest.node.display_name(), all.join("; "))];
    }
    let told = |cure: Cure| match cure.nodes {
        0 | 1 => cure.words,
        several => format!("{} (alike on {})", cure.words, count(several - 1, "more node")),
    };
    found.into_iter().take(CURES).map(told).collect()
}

/// What is to be done, so that many nodes in the same state are one line.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Cure {
    effort: u32,
    words: String,
    /// For how many the same would do.
    nodes: usize,
}

/// Effort, kind, and words for the only thing that is against a node.
fn single(view: &dyn ClusterView, task: &Task, node: &Node, misfit: &Misfit) -> (u32, String, String) {
    let name = node.display_name();
    let part = |wanted: i64, free: i64| 10 + u32::try_from((wanted - free).saturating_mul(80) / wanted.max(1)).unwrap_or(80);
    let active = format!("`swarmctl node update --availability active {name}`: it would take it");
    match misfit {
        Misfit::SameSlot => (0, "slot".into(), format!("nothing to do: {name} takes it when the task before has stopped")),
        Misfit::Resources(Lack::Memory { wanted, free }) if mebibytes(*free) > 0 => {
            let fits = mebibytes(*free);
            let less = Bytes((wanted - (fits << 20) + (1 << 20) - 1) >> 20 << 20);
            (part(*wanted, *free), "memory".into(), format!("fits {name} with {less} less reserved memory: --reserve-memory {fits}m"))
        }
        Misfit::Resources(Lack::Cpu { wanted, free }) if *free > 0 => {
            let fits = Cpus(*free).to_string();
            let fits = fits.trim_end_matches(" CPUs");
            (part(*wanted, *free), "cpu".into(), format!("fits {name} with {} less reserved: --reserve-cpu {fits}", Cpus(wanted - free)))
        }
        Misfit::Resources(Lack::Generic { kind, wanted, free }) if *free > 0 => {
            let less = wanted - free;
            (
                part(*wanted, *free),
                format!("generic {kind}"),
                format!("fits {name} with {less} {kind} less: --generic-resource {kind}={free}"),
            )
        }
        Misfit::Resources(Lack::Generic { kind, wanted, .. }) if !has_any(node, kind) => {
            let words =
                format!("nodes have what their skepd is told: if {name} has {kind}, start it with --generic-resource {kind}={wanted}");
            (85, format!("generic {kind}"), words)
        }
        Misfit::Resources(lack) => (95, "room".into(), format!("make room on {name}: {lack}")),
        Misfit::Paused => (20, "paused".into(), active),
        Misfit::Drained => (25, "drained".into(), active),
        Misfit::Constraints => constraint(task, node),
        Misfit::HostPort(kind, port) => {
            let (kind, holder) = (kind.name(), holder(view, node, task, *port));
            match holder {
                Some(holder) if holder.service_id == task.service_id => {
                    let words = format!(
                        "one task of the service per node can have host port {port}/{kind}: fewer replicas, more nodes, or mode=ingress"
                    );
                    (40, "own port".into(), words)
                }
                Some(holder) => {
                    let words =
                        format!("host port {port}/{kind} of {name} is held by {}: publish another one, or stop that", holder.name());
                    (41, "port".into(), words)
                }
                None => (41, "port".into(), format!("publish another port than {port}/{kind}, which is taken on {name}")),
            }
        }
        Misfit::MaxReplicas(limit) => {
            (45, "replicas".into(), format!("allow more on a node: --replicas-max-per-node {}; or add a node", limit.saturating_add(1)))
        }
        Misfit::NotReady => {
            (50, "not ready".into(), format!("{name} would take it once it is ready: does its skepd run, and reach a manager?"))
        }
        Misfit::Down => (60, "down".into(), format!("bring {name} back: it would take it")),
        Misfit::Platform => {
            let (has, wants) = (node_platform(node), image_platforms(task));
            (90, format!("platform {has}"), format!("an image for {has}, which {name} is; or a node of {wants}"))
        }
        Misfit::Plugin { kind, name: driver } => (
            80,
            format!("plugin {kind} {driver}"),
            format!("install the {} driver {driver} on {name}, or use another", kind.to_lowercase()),
        ),
        Misfit::CannotEncrypt(why) => {
            (70, "encrypt".into(), format!("make {name} able to encrypt ({why}), or use a network without encryption"))
        }
    }
}

fn constraint(task: &Task, node: &Node) -> (u32, String, String) {
    let name = node.display_name();
    let texts = broken(task, node);
    let [text] = texts.as_slice() else {
        let all = texts.join(" and ");
        return (75, format!("constraints {all}"), format!("without the constraints {all}, {name} would take it"));
    };
    let label = match Constraint::parse(text) {
        Ok(Constraint { key: Key::NodeLabel(label), operator: Operator::Equal, value }) => {
            format!(", or `swarmctl node update --label-add {label}={value} {name}`")
        }
        _ => String::new(),
    };
    (30, format!("constraint {text}"), format!("without the constraint {text}, {name} would take it{label}"))
}

/// Who has the port there.
fn holder<'a>(view: &'a dyn ClusterView, node: &Node, task: &Task, port: u32) -> Option<&'a Task> {
    let has = |other: &&std::sync::Arc<Task>| {
        let ports = other.endpoint.iter().flat_map(|endpoint| endpoint.spec.ports.iter().chain(&endpoint.ports));
        other.id != task.id
            && !other.status.state.is_terminal()
            && ports.into_iter().any(|other| other.publish_mode == PublishMode::Host && other.published_port == port)
    };
    view.tasks_on_node(&node.id).find(has).map(std::convert::AsRef::as_ref)
}
