//! `node update` and the filters of `node ls`.

use super::grammar::set;
use super::values::pair;
use clap::Args;
use skep_proto::v1;
use skep_types::{Availability, Labels, NodeRole, NodeSpec, UpdateOrder};

/// `node update`.
#[derive(Debug, Default, PartialEq, Args)]
pub struct NodeFlags {
    /// worker or manager
    #[arg(long, value_name = "ROLE", value_parser = role)]
    role: Option<NodeRole>,
    /// active (takes tasks), pause (keeps what it has) or drain (gives its tasks up)
    #[arg(long, value_name = "AVAILABILITY", value_parser = availability)]
    availability: Option<Availability>,
    /// Add or change a label
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    label_add: Vec<(String, String)>,
    /// Remove a label
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
}

impl NodeFlags {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub fn apply(&self, spec: &mut NodeSpec) -> Result<(), String> {
        set(&mut spec.desired_role, self.role);
        if let Some(availability) = self.availability {
            // In what order a drain goes is said with `node drain`.
            (spec.availability, spec.drain_order) = (availability, UpdateOrder::default());
        }
        change_labels(&mut spec.annotations.labels, &self.label_rm, &self.label_add)
    }
}

/// A label that is to go and is not there was probably misspelt, so it is an error.
pub fn change_labels(labels: &mut Labels, removed: &[String], added: &[(String, String)]) -> Result<(), String> {
    for key in removed {
        if labels.remove(key).is_none() {
            let known: Vec<&str> = labels.keys().map(String::as_str).collect();
            return Err(match known.as_slice() {
                [] => format!("there is no label {key}; there are none"),
                known => format!("there is no label {key}; there are: {}", known.join(", ")),
            });
        }
    }
    labels.extend(added.iter().cloned());
    Ok(())
}

pub fn role(text: &str) -> Result<NodeRole, String> {
    match text {
        "worker" => Ok(NodeRole::Worker),
        "manager" => Ok(NodeRole::Manager),
        other => Err(format!("{other:?} is not a role; use worker or manager")),
    }
}

pub fn availability(text: &str) -> Result<Availability, String> {
    match text {
        "active" => Ok(Availability::Active),
        "pause" => Ok(Availability::Pause),
        "drain" => Ok(Availability::Drain),
        other => Err(format!("{other:?} is not an availability; use active, pause or drain")),
    }
}

/// One `--filter` of `node ls`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeFilter {
    Id(String),
    Name(String),
    EngineLabel(String, String),
    NodeLabel(String, String),
    Membership(v1::node_spec::Membership),
    Role(v1::NodeRole),
}

pub fn node_filter(text: &str) -> Result<NodeFilter, String> {
    let known = "id, name, label, node.label, membership, role";
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?}: write KEY=VALUE with one of {known}"))?;
    Ok(match key.trim() {
        "id" => NodeFilter::Id(value.into()),
        "name" => NodeFilter::Name(value.into()),
        "label" | "engine.label" => pair(value).map(|(key, value)| NodeFilter::EngineLabel(key, value))?,
        "node.label" => pair(value).map(|(key, value)| NodeFilter::NodeLabel(key, value))?,
        "membership" => NodeFilter::Membership(match value {
            "accepted" => v1::node_spec::Membership::Accepted,
            "pending" => v1::node_spec::Membership::Pending,
            other => return Err(format!("{other:?} is not a membership; use accepted or pending")),
        }),
        "role" => NodeFilter::Role(match role(value)? {
            NodeRole::Manager => v1::NodeRole::Manager,
            NodeRole::Worker => v1::NodeRole::Worker,
        }),
        other => return Err(format!("{other:?} is not a filter of nodes; use {known}")),
    })
}

/// Values of one kind widen, kinds narrow each other; the manager does it.
pub fn node_filters(wanted: &[NodeFilter]) -> v1::list_nodes_request::Filters {
    let mut filters = v1::list_nodes_request::Filters::default();
    for filter in wanted.iter().cloned() {
        match filter {
            NodeFilter::Id(prefix) => filters.id_prefixes.push(prefix),
            NodeFilter::Name(prefix) => filters.name_prefixes.push(prefix),
            NodeFilter::EngineLabel(key, value) => filters.labels.extend([(key, value)]),
            NodeFilter::NodeLabel(key, value) => filters.node_labels.extend([(key, value)]),
            NodeFilter::Membership(membership) => filters.memberships.push(membership as i32),
            NodeFilter::Role(role) => filters.roles.push(role as i32),
        }
    }
    filters
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Update {
        #[command(flatten)]
        flags: NodeFlags,
    }

    fn update(spec: &mut NodeSpec, flags: &[&str]) -> Result<(), String> {
        Update::try_parse_from(std::iter::once(&"update").chain(flags)).unwrap().flags.apply(spec)
    }

    #[test]
    fn only_what_was_given_changes() {
        let mut spec = NodeSpec { desired_role: NodeRole::Manager, ..NodeSpec::default() };
        spec.annotations.labels.extend([("disk".into(), "ssd".into()), ("rack".into(), "1".into())]);
        update(&mut spec, &["--availability", "drain", "--label-add", "rack=2", "--label-rm", "disk"]).unwrap();
        assert_eq!((spec.desired_role, spec.availability), (NodeRole::Manager, Availability::Drain));
        assert_eq!(spec.annotations.labels, Labels::from([("rack".into(), "2".into())]));
        assert!(Update::try_parse_from(["update"]).unwrap().flags.is_empty());
    }

    #[test]
    fn a_label_that_is_not_there_is_named_with_those_that_are() {
        let mut spec = NodeSpec::default();
        spec.annotations.labels.insert("disk".into(), "ssd".into());
        assert_eq!(update(&mut spec, &["--label-rm", "disc"]).unwrap_err(), "there is no label disc; there are: disk");
    }

    #[test]
    fn filters_are_those_of_docker() {
        let filters: Vec<NodeFilter> =
            ["role=manager", "name=w", "name=m", "node.label=disk=ssd", "membership=accepted", "label=os", "id=ab"]
                .into_iter()
                .map(|text| node_filter(text).unwrap())
                .collect();
        let wanted = v1::list_nodes_request::Filters {
            id_prefixes: vec!["ab".into()],
            name_prefixes: vec!["w".into(), "m".into()],
            labels: [("os".to_owned(), String::new())].into_iter().collect(),
            node_labels: [("disk".to_owned(), "ssd".to_owned())].into_iter().collect(),
            memberships: vec![v1::node_spec::Membership::Accepted as i32],
            roles: vec![v1::NodeRole::Manager as i32],
            ..Default::default()
        };
        assert_eq!(node_filters(&filters), wanted);
        for wrong in ["role", "role=leader", "membership=maybe", "state=ready", "node.label==x"] {
            assert!(node_filter(wrong).is_err(), "{wrong}");
        }
    }
}
