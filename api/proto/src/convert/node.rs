//! Nodes: what they are asked to be, what they report, how they are.

use super::{FromWire, ToWire, full, message, number, plain};
use crate::v1;
use skep_types::{
    Availability, EngineDescription, FieldError, ManagerStatus, Membership, Node, NodeDescription, NodeRole, NodeSpec, NodeState,
    NodeStatus, Plugin, Reachability, TlsInfo,
};

number!(NodeRole, v1::NodeRole { Worker = Worker, Manager = Manager });
number!(Membership, v1::node_spec::Membership { Pending = Pending, Accepted = Accepted });
number!(Availability, v1::node_spec::Availability { Active = Active, Pause = Pause, Drain = Drain });
number!(NodeState, v1::node_status::State { Unknown = Unknown, Down = Down, Ready = Ready, Disconnected = Disconnected });
number!(Reachability, v1::raft_member_status::Reachability { Unknown = Unknown, Unreachable = Unreachable, Reachable = Reachable });

message!(NodeSpec <=> v1::NodeSpec { annotations => full, desired_role, membership, availability, drain_order });
message!(NodeStatus <=> v1::NodeStatus { state, message => as_is, addr });
message!(Plugin <=> v1::PluginDescription { kind: r#type => as_is, name => as_is });
message!(EngineDescription <=> v1::EngineDescription { engine_version => as_is, labels => as_is, plugins });
message!(TlsInfo <=> v1::NodeTlsInfo {
    trust_root => as_is,
    cert_issuer_subject => as_is,
    cert_issuer_public_key => as_is,
});
// What a node says of its CSI plugins is of use to a scheduler of CSI volumes only.
message!(NodeDescription <=> v1::NodeDescription {
    hostname => as_is,
    platform => full,
    resources => full,
    engine,
    tls_info,
    fips,
} drops { csi_info });
message!(ManagerStatus <=> v1::ManagerStatus { raft_id, addr, leader, reachability });

impl FromWire for Node {
    type Wire = v1::Node;

    /// `manager_status` belongs to answers and is parsed on its own. The deprecated single attachment counts when it is
    /// all there is.
    #[expect(deprecated, reason = "managers of the original before 18.09 fill `attachment` only")]
    fn from_wire(wire: v1::Node) -> Result<Self, FieldError> {
        let v1::Node {
            id,
            meta,
            spec,
            description,
            status,
            manager_status: _,
            attachment,
            certificate,
            role,
            mut attachments,
            vxlanudp_port,
        } = wire;
        if attachments.is_empty() {
            attachments.extend(attachment.filter(|attachment| attachment.network.is_some()));
        }
        Ok(Self {
            id: plain::from("id", id)?,
            meta: full::from("meta", meta)?,
            spec: full::from("spec", spec)?,
            description: plain::from("description", description)?,
            status: full::from("status", status)?,
            certificate: full::from("certificate", certificate)?,
            role: plain::from("role", role)?,
            attachments: plain::from("attachments", attachments)?,
            vxlan_port: vxlanudp_port,
            overlay: None,
        })
    }
}

impl ToWire for Node {
    type Wire = v1::Node;

    #[expect(deprecated, reason = "`attachment` is left empty: every worker of the original that can join reads `attachments`")]
    fn to_wire(&self) -> v1::Node {
        let Self { id, meta, spec, description, status, certificate, role, attachments, vxlan_port, overlay: _ } = self;
        v1::Node {
            id: id.to_wire(),
            meta: full::to(meta),
            spec: full::to(spec),
            description: description.to_wire(),
            status: full::to(status),
            manager_status: None,
            attachment: None,
            certificate: full::to(certificate),
            role: role.to_wire(),
            attachments: attachments.to_wire(),
            vxlanudp_port: *vxlan_port,
        }
    }
}
