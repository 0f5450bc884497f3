//! Nodes.

use super::common::Head;
use super::resources::Resources;
use super::swarm::TlsInfo;
use super::value::{is_default, words};
use crate::{ApiError, NodeEntry};
use serde::{Deserialize, Serialize};
use skep_types::{Annotations, FieldError, Labels, Membership, NodeState, Reachability};

words! {
    /// What the node is asked to be.
    role: skep_types::NodeRole { "worker" = Worker, "manager" = Manager }
}
words! {
    /// Whether the node takes tasks.
    availability: skep_types::Availability { "active" = Active, "pause" = Pause, "drain" = Drain }
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Node {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(flatten)]
    pub head: Head,
    pub spec: NodeSpec,
    pub description: Description,
    pub status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manager_status: Option<ManagerStatus>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct NodeSpec {
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    pub labels: Labels,
    #[serde(skip_serializing_if = "is_default")]
    pub role: String,
    #[serde(skip_serializing_if = "is_default")]
    pub availability: String,
}

#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Description {
    #[serde(skip_serializing_if = "is_default")]
    pub hostname: String,
    pub platform: Platform,
    pub resources: Resources,
    pub engine: Engine,
    #[serde(rename = "TLSInfo")]
    pub tls_info: TlsInfo,
}

#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Platform {
    #[serde(rename = "Architecture", skip_serializing_if = "is_default")]
    pub architecture: String,
    #[serde(rename = "OS", skip_serializing_if = "is_default")]
    pub os: String,
}

#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Engine {
    #[serde(skip_serializing_if = "is_default")]
    pub engine_version: String,
    #[serde(skip_serializing_if = "is_default")]
    pub labels: Labels,
    #[serde(skip_serializing_if = "is_default")]
    pub plugins: Vec<Plugin>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Plugin {
    #[serde(rename = "Type")]
    pub kind: String,
    pub name: String,
}

#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Status {
    pub state: &'static str,
    #[serde(skip_serializing_if = "is_default")]
    pub message: String,
    #[serde(skip_serializing_if = "is_default")]
    pub addr: String,
}

#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ManagerStatus {
    #[serde(skip_serializing_if = "is_default")]
    pub leader: bool,
    pub reachability: &'static str,
    #[serde(skip_serializing_if = "is_default")]
    pub addr: String,
}

pub(crate) fn state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::Unknown => "unknown",
        NodeState::Down => "down",
        NodeState::Ready => "ready",
        NodeState::Disconnected => "disconnected",
    }
}

pub(crate) fn reachability_name(reachability: Reachability) -> &'static str {
    match reachability {
        Reachability::Unknown => "unknown",
        Reachability::Unreachable => "unreachable",
        Reachability::Reachable => "reachable",
    }
}

pub(crate) fn membership_name(membership: Membership) -> &'static str {
    match membership {
        Membership::Pending => "pending",
        Membership::Accepted => "accepted",
    }
}

impl From<&skep_types::NodeDescription> for Description {
    fn from(description: &skep_types::NodeDescription) -> Self {
        let engine = description.engine.clone().unwrap_or_default();
        Self {
            hostname: description.hostname.clone(),
            platform: Platform { architecture: description.platform.architecture.clone(), os: description.platform.os.clone() },
            resources: (&description.resources).into(),
            engine: Engine {
                engine_version: engine.engine_version,
                labels: engine.labels,
                plugins: engine.plugins.into_iter().map(|plugin| Plugin { kind: plugin.kind, name: plugin.name }).collect(),
            },
            tls_info: description.tls_info.as_ref().map(Into::into).unwrap_or_default(),
        }
    }
}

impl From<&NodeEntry> for Node {
    fn from(NodeEntry { node, manager }: &NodeEntry) -> Self {
        let spec = &node.spec;
        Self {
            id: node.id.to_string(),
            head: (&node.meta).into(),
            spec: NodeSpec {
                name: spec.annotations.name.clone(),
                labels: spec.annotations.labels.clone(),
                role: role::to(spec.desired_role).into(),
                availability: availability::to(spec.availability).into(),
            },
            description: node.description.as_ref().map(Into::into).unwrap_or_default(),
            status: Status { state: state_name(node.status.state), message: node.status.message.clone(), addr: node.status.addr.clone() },
            manager_status: manager.as_ref().map(|manager| ManagerStatus {
                leader: manager.leader,
                reachability: reachability_name(manager.reachability),
                addr: manager.addr.clone(),
            }),
        }
    }
}

impl NodeSpec {
    /// The spec that is meant, of a node whose membership is that.
    ///
    /// # Errors
    /// 400 in dockerd's words.
    pub fn into_spec(self, membership: Membership) -> Result<skep_types::NodeSpec, ApiError> {
        let Self { name, labels, role: role_word, availability: availability_word } = self;
        let wrong = |what: &str, word: &str| {
            let word = word.to_owned();
            let what = what.to_owned();
            move |_: FieldError| ApiError::invalid(format!("invalid {what}: {word:?}"))
        };
        Ok(skep_types::NodeSpec {
            annotations: Annotations { name, labels, indices: Vec::new() },
            desired_role: role::from("Role", &role_word).map_err(wrong("Role", &role_word))?,
            membership,
            availability: availability::from("Availability", &availability_word).map_err(wrong("Availability", &availability_word))?,
            drain_order: skep_types::UpdateOrder::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::NodeId;

    #[test]
    fn a_worker_has_no_manager_status_and_followers_no_leader() {
        let node = skep_types::Node::new(NodeId::for_test(1));
        let worker = serde_json::to_value(Node::from(&NodeEntry { node: node.clone(), manager: None })).unwrap();
        assert!(worker.get("ManagerStatus").is_none());
        assert_eq!(worker["Spec"], serde_json::json!({"Labels": {}, "Role": "worker", "Availability": "active"}));
        assert_eq!(worker["Description"], serde_json::json!({"Platform": {}, "Resources": {}, "Engine": {}, "TLSInfo": {}}));
        let status = skep_types::ManagerStatus { reachability: Reachability::Reachable, addr: "a:1".into(), ..Default::default() };
        let follower = serde_json::to_value(Node::from(&NodeEntry { node, manager: Some(status) })).unwrap();
        assert_eq!(follower["ManagerStatus"], serde_json::json!({"Reachability": "reachable", "Addr": "a:1"}));
    }

    #[test]
    fn words_that_are_none_are_refused() {
        let spec =
            |role: &str, availability: &str| NodeSpec { role: role.into(), availability: availability.into(), ..NodeSpec::default() };
        assert!(spec("Manager", "drain").into_spec(Membership::Accepted).is_ok());
        assert_eq!(spec("boss", "").into_spec(Membership::Accepted).unwrap_err().message, "invalid Role: \"boss\"");
        assert_eq!(spec("", "off").into_spec(Membership::Accepted).unwrap_err().message, "invalid Availability: \"off\"");
    }
}
