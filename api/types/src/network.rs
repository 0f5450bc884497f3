//! Networks, and how tasks and nodes are attached to them.

use crate::{Annotations, Driver, Labels, Meta, NetworkId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The label of the two networks that exist as objects only: `bridge` and `host`.
pub const PREDEFINED_LABEL: &str = "com.docker.swarm.predefined";

/// The driver option in which the VXLAN ids are stored, comma-separated, in subnet order.
pub const VXLAN_IDS_OPTION: &str = "com.docker.network.driver.overlay.vxlanid_list";

/// The driver options that say what a packet of a task may measure, in bytes: docker's name and the short one.
pub const MTU_OPTIONS: [&str; 2] = ["com.docker.network.driver.mtu", "mtu"];

/// The driver option of networks whose packets travel between hosts encrypted; its value is empty or `true`.
pub const ENCRYPTED_OPTION: &str = "encrypted";

/// The driver option that names the host's link on which a macvlan network lies, the same on every node.
pub const PARENT_OPTION: &str = "parent";

/// The driver option that says whom the tasks on a macvlan network reach without leaving their host.
pub const MACVLAN_MODE_OPTION: &str = "macvlan_mode";

/// How a network joins its tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkDriver {
    /// Across hosts.
    Overlay,
    /// Those of one node, each node for itself.
    Bridge,
    /// To the hosts' own network, beside the hosts.
    Macvlan,
    /// They share the host's network.
    Host,
    /// None that is known here.
    Other,
}

/// IPv4 or IPv6, or what the subnet says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AddressFamily {
    #[default]
    Unknown,
    Ipv4,
    Ipv6,
}

/// One subnet of a network. Texts, because a client may leave any of them empty for the allocator to fill.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpamConfig {
    pub family: AddressFamily,
    /// CIDR.
    pub subnet: String,
    /// CIDR inside the subnet from which addresses are given; empty = the whole subnet.
    pub range: String,
    /// Bare IP address.
    pub gateway: String,
    pub reserved: Labels,
}

/// Address management of a network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpamOptions {
    pub driver: Driver,
    pub configs: Vec<IpamConfig>,
}

/// What a user wants of a network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkSpec {
    pub annotations: Annotations,
    /// `None` = `overlay`.
    pub driver: Option<Driver>,
    pub ipv6_enabled: bool,
    pub internal: bool,
    pub ipam: Option<IpamOptions>,
    pub attachable: bool,
    pub ingress: bool,
    /// Name of a network whose configuration is taken; empty = none.
    pub config_from: String,
}

/// A network of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub id: NetworkId,
    #[serde(default)]
    pub meta: Meta,
    #[serde(default)]
    pub spec: NetworkSpec,
    /// Set by the allocator: the driver with its final options. `None` = not allocated yet.
    #[serde(default)]
    pub driver_state: Option<Driver>,
    /// Set by the allocator: subnets and gateways in use.
    #[serde(default)]
    pub ipam: Option<IpamOptions>,
    #[serde(default)]
    pub pending_delete: bool,
}

impl Network {
    #[must_use]
    pub fn new(id: NetworkId, spec: NetworkSpec) -> Self {
        Self { id, meta: Meta::default(), spec, driver_state: None, ipam: None, pending_delete: false }
    }

    /// The driver asked for, `overlay` when none is.
    #[must_use]
    pub fn driver_name(&self) -> &str {
        match &self.spec.driver {
            Some(driver) if !driver.name.is_empty() => &driver.name,
            _ => "overlay",
        }
    }

    #[must_use]
    pub fn driver(&self) -> NetworkDriver {
        match self.driver_name() {
            "overlay" => NetworkDriver::Overlay,
            "bridge" => NetworkDriver::Bridge,
            "macvlan" => NetworkDriver::Macvlan,
            "host" => NetworkDriver::Host,
            _ => NetworkDriver::Other,
        }
    }

    /// Whether the cluster gives the tasks on it their addresses. Not on the predefined `bridge`, which each node numbers by itself.
    #[must_use]
    pub fn has_addresses(&self) -> bool {
        let drivers = [NetworkDriver::Overlay, NetworkDriver::Bridge, NetworkDriver::Macvlan];
        !self.is_predefined() && drivers.contains(&self.driver())
    }

    /// The host's link on which it lies.
    #[must_use]
    pub fn parent(&self) -> Option<&str> {
        self.spec.driver.as_ref()?.options.get(PARENT_OPTION).map(String::as_str)
    }

    /// Of a macvlan network; empty = bridge.
    #[must_use]
    pub fn macvlan_mode(&self) -> &str {
        let option = self.spec.driver.as_ref().and_then(|driver| driver.options.get(MACVLAN_MODE_OPTION));
        option.map(String::as_str).unwrap_or_default()
    }

    /// What a packet of a task may measure if its user says so, in bytes.
    #[must_use]
    pub fn wanted_mtu(&self) -> Option<u32> {
        let options = self.spec.driver.as_ref().map(|driver| &driver.options)?;
        MTU_OPTIONS.iter().find_map(|name| options.get(*name)).and_then(|text| text.parse().ok())
    }

    /// Whether its packets are to travel between hosts encrypted. The option counts whatever its value, as in the original: what is
    /// misread must not be in clear.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.spec.driver.as_ref().is_some_and(|driver| driver.options.contains_key(ENCRYPTED_OPTION))
    }

    #[must_use]
    pub fn is_predefined(&self) -> bool {
        self.spec.annotations.labels.get(PREDEFINED_LABEL).is_some_and(|value| value == "true")
    }
}

/// A network that a service's tasks are to be on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkAttachmentConfig {
    /// Id or name of the network.
    pub target: String,
    pub aliases: Vec<String>,
    /// Wanted addresses, bare or CIDR.
    pub addresses: Vec<String>,
    pub driver_attachment_opts: Labels,
}

/// A network that a task or a node is on, with its addresses there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAttachment {
    /// The network as it was when the addresses were given.
    pub network: Arc<Network>,
    /// CIDR texts: at most one IPv4 and one IPv6.
    #[serde(default)]
    pub addresses: Vec<String>,
    #[serde(default)]
    pub aliases: Vec<String>,
    #[serde(default)]
    pub driver_attachment_opts: Labels,
}
