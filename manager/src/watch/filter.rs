//! What a watch asks for. Pure (`SK/manager/watchapi/watch.go`).

use skep_proto::v1::{self, select_by::By};
use skep_types::{Annotations, Change, FieldError, Kind, Membership, NodeRole, Object};
use std::mem::discriminant;

const CREATE: i32 = 1;
const UPDATE: i32 = 2;
const REMOVE: i32 = 4;

/// One kind of object with what must hold for it.
#[derive(Debug)]
pub(super) struct Entry {
    kind: Kind,
    /// Bit set.
    actions: i32,
    filters: Vec<By>,
}

/// Entries for kinds we do not have (extensions, volumes, resources) are left out: nothing ever happens to them.
pub(super) fn parse(entries: Vec<v1::watch_request::WatchEntry>) -> Result<Vec<Entry>, FieldError> {
    let mut parsed = Vec::new();
    for (index, entry) in entries.into_iter().enumerate() {
        parsed.extend(parse_one(entry).map_err(|error| error.inside(&format!("entries[{index}]")))?);
    }
    Ok(parsed)
}

fn parse_one(entry: v1::watch_request::WatchEntry) -> Result<Option<Entry>, FieldError> {
    let filters: Vec<By> = entry.filters.into_iter().filter_map(|filter| filter.by).collect();
    for (index, filter) in filters.iter().enumerate() {
        if filters[..index].iter().any(|other| discriminant(other) == discriminant(filter)) {
            return Err(FieldError::new(format!("filters[{index}]"), "filters by the same field as one before; give each field once"));
        }
    }
    let kind = match entry.kind.as_str() {
        "" => return Err(FieldError::new("kind", "is missing; use node, service, task, network, cluster, secret or config")),
        "node" => Kind::Node,
        "service" => Kind::Service,
        "task" => Kind::Task,
        "network" => Kind::Network,
        "cluster" => Kind::Cluster,
        "secret" => Kind::Secret,
        "config" => Kind::Config,
        _ => return Ok(None),
    };
    Ok(Some(Entry { kind, actions: entry.action, filters }))
}

impl Entry {
    pub(super) fn matches(&self, change: &Change) -> bool {
        let action = match change {
            Change::Created(_) => CREATE,
            Change::Updated { .. } => UPDATE,
            Change::Removed(_) => REMOVE,
        };
        let object = change.object();
        self.actions & action != 0 && object.kind() == self.kind && self.filters.iter().all(|filter| holds(filter, object))
    }
}

fn annotations(object: &Object) -> &Annotations {
    match object {
        Object::Cluster(cluster) => &cluster.spec.annotations,
        Object::Node(node) => &node.spec.annotations,
        Object::Service(service) => &service.spec.annotations,
        Object::Task(task) => &task.annotations,
        Object::Network(network) => &network.spec.annotations,
        Object::Secret(secret) => &secret.spec.annotations,
        Object::Config(config) => &config.spec.annotations,
    }
}

fn name(object: &Object) -> &str {
    match object {
        Object::Node(node) => node.description.as_ref().map_or("", |description| &description.hostname),
        other => &annotations(other).name,
    }
}

/// A filter that the kind does not have is ignored.
fn holds(filter: &By, object: &Object) -> bool {
    let custom = |wanted: &v1::SelectByCustom, test: fn(&str, &str) -> bool| {
        annotations(object).indices.iter().any(|(key, value)| *key == wanted.index && test(value, &wanted.value))
    };
    match (filter, object) {
        (By::Id(id), _) => object.id() == id,
        (By::IdPrefix(prefix), _) => object.id().starts_with(prefix.as_str()),
        (By::Name(wanted), _) => name(object).eq_ignore_ascii_case(wanted),
        (By::NamePrefix(prefix), _) => name(object).to_lowercase().starts_with(&prefix.to_lowercase()),
        (By::Custom(wanted), _) => custom(wanted, |value, wanted| value == wanted),
        (By::CustomPrefix(wanted), _) => custom(wanted, |value, wanted| value.starts_with(wanted)),
        (By::ServiceId(id), Object::Task(task)) => task.service_id.as_ref().map_or("", |id| id.as_str()) == id,
        (By::NodeId(id), Object::Task(task)) => task.node_id.as_ref().map_or("", |id| id.as_str()) == id,
        (By::Slot(wanted), Object::Task(task)) => {
            task.slot == wanted.slot && task.service_id.as_ref().map_or("", |id| id.as_str()) == wanted.service_id
        }
        (By::DesiredState(state), Object::Task(task)) => task.desired_state as i32 == *state,
        (By::Role(role), Object::Node(node)) => (node.role == NodeRole::Manager) == (*role == v1::NodeRole::Manager as i32),
        (By::Membership(membership), Object::Node(node)) => {
            (node.spec.membership == Membership::Accepted) == (*membership == v1::node_spec::Membership::Accepted as i32)
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{Node, NodeId};
    use std::sync::Arc;

    fn entry(kind: &str, action: i32, filters: Vec<By>) -> v1::watch_request::WatchEntry {
        let filters = filters.into_iter().map(|by| v1::SelectBy { by: Some(by) }).collect();
        v1::watch_request::WatchEntry { kind: kind.into(), action, filters }
    }

    fn created() -> Change {
        Change::Created(Object::Node(Arc::new(Node::new(NodeId::for_test(7)))))
    }

    #[test]
    fn kind_action_and_every_filter_must_fit() {
        let id = NodeId::for_test(7).to_string();
        let matches =
            |kind, action, filters| parse(vec![entry(kind, action, filters)]).unwrap().iter().any(|entry| entry.matches(&created()));
        assert!(matches("node", CREATE | REMOVE, vec![By::Id(id.clone())]));
        assert!(!matches("node", UPDATE, vec![]));
        assert!(!matches("task", CREATE, vec![]));
        assert!(!matches("node", CREATE, vec![By::Id(id.clone()), By::Role(v1::NodeRole::Manager as i32)]));
        assert!(matches("node", CREATE, vec![By::ServiceId("ignored".into())]));
        assert!(!matches("volume", CREATE, vec![]));
    }

    #[test]
    fn an_entry_without_kind_or_with_a_field_twice_is_refused() {
        assert_eq!(parse(vec![entry("", CREATE, vec![])]).unwrap_err().field, "entries[0].kind");
        let twice = vec![By::Id("a".into()), By::Id("b".into())];
        assert_eq!(parse(vec![entry("node", CREATE, twice)]).unwrap_err().field, "entries[0].filters[1]");
    }
}
