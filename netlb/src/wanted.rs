//! What the network of this node should be: plain data, the whole node at once.

use crate::secure::Encryption;
use ipnet::IpNet;
use skep_types::{Affinity, NetworkId, PublishPlace, TaskId};
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

/// A hardware address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// A network as every node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub id: NetworkId,
    pub name: String,
    /// VXLAN network id, 24 bits, unique in the cluster.
    pub vni: u32,
    /// At most one per family is used.
    pub subnets: Vec<Subnet>,
    /// What a packet of a task may measure, headers of IP included, in bytes.
    pub mtu: u32,
    /// No way out of the network and none in: tasks reach each other only.
    pub internal: bool,
    /// The network over which published ports reach tasks.
    pub ingress: bool,
}

/// One range of addresses of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    pub range: IpNet,
    /// Answered by the sandbox of the network on every node.
    pub gateway: IpAddr,
}

/// The network of one task, as needed to start it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskNetwork {
    pub task: TaskId,
    /// `eth0`, `eth1` and so on, in this order unless they say otherwise. May be empty: the task then has loopback only.
    pub attachments: Vec<Attachment>,
    /// On the hosts' own networks. Their links follow those of the attachments. Not in somebody else's namespace.
    pub lans: Vec<Lan>,
    /// The namespace is somebody else's, to be found here: it gets the link to its one network and the way there, no more, and stays
    /// when the task goes. `None`: it is made for the task.
    pub foreign: Option<PathBuf>,
}

/// A task's place in one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    pub network: Network,
    /// At most one per family, with the prefix length of the subnet.
    pub addresses: Vec<IpNet>,
    /// Made from the task's id if absent; never from the address, which is used again.
    pub mac: Option<Mac>,
    /// The number of its link, no other's of the task: of a task whose networks come and go while it runs. `None`: as it is placed.
    pub link: Option<u32>,
}

/// A task's place on a network that this host is on itself: a link of its own (`macvlan`) on one of the host's, with nothing of ours in
/// between. What is published or balanced does not come there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lan {
    pub network: NetworkId,
    /// For people.
    pub name: String,
    /// The host's link.
    pub parent: String,
    pub mode: LanMode,
    /// At most one per family is used. The gateway is a router of that network, or nobody.
    pub subnets: Vec<Subnet>,
    /// What a packet may measure, headers of IP included, in bytes; `None`: as much as on the host's link.
    pub mtu: Option<u32>,
    /// The router is not used.
    pub internal: bool,
    /// At most one per family, with the prefix length of the subnet. The first one makes the hardware address: who takes over an
    /// address takes over both, so that nobody on that network knows a wrong one.
    pub addresses: Vec<IpNet>,
}

/// Whom the links on one link of the host reach (`linux/if_link.h`, `enum macvlan_mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LanMode {
    /// Each other, and who is outside.
    #[default]
    Bridge,
    /// Who is outside, not each other.
    Private,
    /// Each other by a switch outside that sends back what comes.
    Vepa,
    /// There is one only, and it has all of the host's link.
    Passthru,
}

/// Everything this node's network should be. Sets, not steps: the latest one counts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Those of all tasks of this node at least; a sandbox that is in use stays all the same, but without other nodes.
    pub networks: Vec<WantedNetwork>,
    pub published: Vec<PublishedPort>,
    /// The tasks this node still holds, in whatever state. The namespace of any other task is removed by an audit,
    /// except of those that [`crate::Netlb::ensure_task`] made in this process.
    pub tasks: BTreeSet<TaskId>,
    /// `None`: no network is encrypted.
    pub encryption: Option<Encryption>,
}

/// A network and who is on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedNetwork {
    pub network: Network,
    /// How it spans nodes; `None` for a network of this node only.
    pub overlay: Option<Overlay>,
    /// The tasks on it, on whatever node. If an address is remote here, a task of this node that has it gets nothing sent
    /// to it any more: the latest wanted state tells where an address is. Each task once; if two are said to have one address,
    /// the one with the greater id has it.
    pub endpoints: Vec<Endpoint>,
    pub vips: Vec<Vip>,
}

/// The nodes that a network spans, as VXLAN joins them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// This node, as its peers know it.
    pub this: Peer,
    /// UDP port of VXLAN, the same on all nodes. 4789 unless other software of the hosts has it.
    pub port: u16,
    /// The other nodes. Their underlay addresses are of the family of this node's.
    pub peers: Vec<Peer>,
}

/// A node of an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its number in the cluster, 1 or more; its link-local address in every network is `fe80::<index>`.
    pub node_index: u32,
    /// Where packets for it go, and come from: an address of its host.
    pub underlay: IpAddr,
    /// Of its VXLAN device in this network: given by the manager, never made from an address, which is used again.
    pub mac: Mac,
}

/// A task on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub task: TaskId,
    /// At most one per family.
    pub addresses: Vec<IpAddr>,
    pub location: Location,
}

/// Where an endpoint runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    Local,
    /// On that peer. Is it none (it left, or is not known yet), the address is unreachable.
    Remote {
        node_index: u32,
    },
}

/// A service's address: every new connection goes to one of the backends, whatever its port and protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vip {
    pub address: IpAddr,
    /// Of the same family as the address; others are left out.
    pub backends: Vec<IpAddr>,
}

/// The protocols that have ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// The number in the IP header.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// Where a connection to a published port may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    pub address: IpAddr,
    pub port: u16,
}

/// A port of this node that leads to tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedPort {
    pub protocol: Protocol,
    pub port: u16,
    /// Where on this host it answers.
    pub place: PublishPlace,
    /// Clients within these only, by the addresses that they have on this host; others are refused. Empty: all.
    pub allow: Vec<IpNet>,
    /// Whether a client keeps its backend.
    pub affinity: Affinity,
    pub mode: PublishMode,
}

impl PublishedPort {
    /// One for everybody, on all addresses.
    #[must_use]
    pub fn new(protocol: Protocol, port: u16, mode: PublishMode) -> Self {
        Self { protocol, port, place: PublishPlace::Everywhere, allow: Vec::new(), affinity: Affinity::None, mode }
    }

    /// Where connections may end, of both families.
    pub(crate) fn backends(&self) -> &[Backend] {
        match &self.mode {
            PublishMode::Ingress { backends } | PublishMode::Host { backends, .. } => backends,
        }
    }

    /// The network into which this host leads the port by a route of its own.
    pub(crate) fn host_network(&self) -> Option<&NetworkId> {
        match &self.mode {
            PublishMode::Ingress { .. } => None,
            PublishMode::Host { network, .. } => Some(network),
        }
    }
}

/// How a port is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishMode {
    /// On every node, to any running task of the service: give only those that may get connections now.
    /// Without a backend the port answers as if nothing were published.
    Ingress { backends: Vec<Backend> },
    /// On this node only, to one task of it.
    Host {
        /// The network on which the task is reached.
        network: NetworkId,
        /// One backend per family.
        backends: Vec<Backend>,
    },
}
