//! Changes of the cluster's objects as what happened. Who leads the managers and whom they reach is in no object, and not told.

use skep_docker_api::Happening;
use skep_types::{Availability, Change, Labels, Node, NodeState, Object, Service, ServiceMode, Timestamp};
use std::sync::Arc;

fn image(service: &Service) -> &str {
    service.spec.task.container().map(|spec| spec.image.as_str()).unwrap_or_default()
}

fn replicas(service: &Service) -> String {
    match service.spec.mode {
        ServiceMode::Replicated { replicas } => replicas.to_string(),
        _ => String::new(),
    }
}

fn update_state(service: &Service) -> String {
    service.update_status.as_ref().map(|status| status.state.to_string()).unwrap_or_default()
}

fn availability(node: &Node) -> &'static str {
    match node.spec.availability {
        Availability::Active => "active",
        Availability::Pause => "pause",
        Availability::Drain => "drain",
    }
}

fn state(node: &Node) -> &'static str {
    match node.status.state {
        NodeState::Unknown => "unknown",
        NodeState::Down => "down",
        NodeState::Ready => "ready",
        NodeState::Disconnected => "disconnected",
    }
}

fn node_name(node: &Node) -> String {
    match node.spec.annotations.name.as_str() {
        "" => node.description.as_ref().map(|description| description.hostname.clone()).unwrap_or_default(),
        given => given.to_owned(),
    }
}

/// Kind and name; `None` of what this API does not tell of.
fn called(object: &Object) -> Option<(&'static str, String)> {
    Some(match object {
        Object::Service(service) => ("service", service.spec.annotations.name.clone()),
        Object::Node(node) => ("node", node_name(node)),
        Object::Network(network) => ("network", network.spec.annotations.name.clone()),
        Object::Secret(secret) => ("secret", secret.spec.annotations.name.clone()),
        Object::Config(config) => ("config", config.spec.annotations.name.clone()),
        Object::Cluster(_) | Object::Task(_) => return None,
    })
}

/// What an update changed of that which clients ask for: `what.old` and `what.new`.
fn differences(old: &Object, new: &Object) -> Vec<(&'static str, String, String)> {
    let all = match (old, new) {
        (Object::Service(old), Object::Service(new)) => vec![
            ("image", image(old).to_owned(), image(new).to_owned()),
            ("replicas", replicas(old), replicas(new)),
            ("updatestate", update_state(old), update_state(new)),
        ],
        (Object::Node(old), Object::Node(new)) => vec![
            ("availability", availability(old).to_owned(), availability(new).to_owned()),
            ("role", old.spec.desired_role.to_string(), new.spec.desired_role.to_string()),
            ("state", state(old).to_owned(), state(new).to_owned()),
        ],
        _ => Vec::new(),
    };
    all.into_iter().filter(|(_, old, new)| old != new).collect()
}

/// Whether an update is one that somebody asked for, or one that people watch for: services and nodes are written far oftener.
fn is_news(old: &Object, new: &Object) -> bool {
    let same_spec = match (old, new) {
        (Object::Service(old), Object::Service(new)) => Arc::ptr_eq(old, new) || old.spec == new.spec,
        (Object::Node(old), Object::Node(new)) => old.spec == new.spec,
        // Who waits for its addresses hears when it has them.
        (Object::Network(old), Object::Network(new)) => (&old.spec, &old.ipam) == (&new.spec, &new.ipam),
        _ => false,
    };
    !same_spec || !differences(old, new).is_empty()
}

pub fn happening(change: &Change, time: Timestamp) -> Option<Happening> {
    let (kind, name) = called(change.object())?;
    let mut attributes = Labels::from([("name".to_owned(), name)]);
    let action = match change {
        Change::Created(_) => "create",
        Change::Removed(_) => "remove",
        Change::Updated { old, new } if is_news(old, new) => {
            for (what, old, new) in differences(old, new) {
                attributes.insert(format!("{what}.old"), old);
                attributes.insert(format!("{what}.new"), new);
            }
            "update"
        }
        Change::Updated { .. } => return None,
    };
    let id = change.object().id().to_owned();
    Some(Happening { kind, action: action.into(), id, attributes, time, is_local: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{Annotations, SecretId, SecretSpec};

    #[test]
    fn what_is_made_and_removed_is_told_by_name() {
        let annotations = Annotations { name: "key".into(), ..Annotations::default() };
        let spec = SecretSpec { annotations, ..SecretSpec::default() };
        let secret = Arc::new(skep_types::Secret { id: SecretId::for_test(7), meta: Default::default(), spec, internal: false });
        let told = happening(&Change::Created(Object::Secret(Arc::clone(&secret))), Timestamp(5)).unwrap();
        assert_eq!((told.kind, told.action.as_str(), told.attributes["name"].as_str(), told.is_local), ("secret", "create", "key", false));
        let gone = happening(&Change::Removed(Object::Secret(secret)), Timestamp(5)).unwrap();
        assert_eq!((gone.action.as_str(), gone.id.as_str()), ("remove", SecretId::for_test(7).as_str()));
    }
}
