//! Names of links, tables and namespaces, made so that several daemons share one host and find their own again.
//!
//! A link name holds 15 bytes (`IFNAMSIZ` less the NUL). What lives in the host's namespace carries the tag of the
//! instance; what lives in a namespace of ours does not need to.

use crate::wanted::{Mac, Network};
use skep_types::{NetworkId, TaskId};
use std::net::IpAddr;

/// The end of a sandbox's way out, inside the sandbox.
pub(crate) const GATEWAY_LINK: &str = "gw";
/// What the sandbox's ends of tasks' links begin with.
pub(crate) const TASK_LINK_PREFIX: &str = "t";
/// The VXLAN device of a sandbox, to those of other nodes.
pub(crate) const OVERLAY_LINK: &str = "vx0";
/// nf_tables table inside a sandbox.
pub(crate) const SANDBOX_TABLE: &str = "skep";
const SANDBOX_PREFIX: &str = "sbx-";
const TAG_LENGTH: usize = 5;

/// Tells apart the instances on one host: five characters made from the instance's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tag(String);

impl Tag {
    pub(crate) fn new(instance: &str) -> Self {
        let mut text = skep_types::base36(&hash(&[instance.as_bytes()]).to_be_bytes(), TAG_LENGTH);
        text.drain(..text.len() - TAG_LENGTH);
        Self(text)
    }

    /// What every link of this instance in the host's namespace begins with.
    pub(crate) fn link_prefix(&self) -> String {
        format!("sk{}", self.0)
    }

    /// The host's end of the link to a network's sandbox.
    pub(crate) fn host_link(&self, network: &Network) -> String {
        format!("{}g{:x}", self.link_prefix(), network.vni & 0x00ff_ffff)
    }

    /// What the links of this instance's tunnels to other nodes begin with; with none of the above.
    pub(crate) fn tunnel_prefix(&self) -> String {
        format!("sw{}", self.0)
    }

    /// The name of the tables that keep encrypted networks from travelling in clear.
    pub(crate) fn guard_table(&self) -> String {
        format!("skep-{}-clear", self.0)
    }

    /// The name of this instance's tables, one in the family ip and one in ip6.
    pub(crate) fn table(&self) -> String {
        format!("skep-{}", self.0)
    }
}

/// Whether a link of the host's namespace has a name that some instance would give it, this one or another.
pub(crate) fn is_some_instances(link: &str) -> bool {
    let rest = link.strip_prefix("sk").or_else(|| link.strip_prefix("sw")).unwrap_or_default();
    rest.len() > TAG_LENGTH && rest.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// FNV-1a, 64 bits: names need a spread that stays the same from release to release, not secrecy.
fn hash(parts: &[&[u8]]) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325u64;
    for byte in parts.iter().flat_map(|part| part.iter().chain(&[0xff])) {
        state = (state ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    state ^ (state >> 29)
}

/// The sandbox's end of a task's link. The end of an id is as random as its beginning.
pub(crate) fn task_link(task: &TaskId) -> String {
    let text = task.as_str();
    if text.len() == skep_types::ID_LENGTH {
        format!("{TASK_LINK_PREFIX}{}", &text[text.len() - 14..])
    } else {
        format!("{TASK_LINK_PREFIX}{}", skep_types::base36(&hash(&[text.as_bytes()]).to_be_bytes(), 13))
    }
}

/// The file in the namespace directory that holds a network's sandbox.
pub(crate) fn sandbox_file(network: &NetworkId) -> String {
    format!("{SANDBOX_PREFIX}{network}")
}

pub(crate) fn is_sandbox_file(file: &str) -> bool {
    file.starts_with(SANDBOX_PREFIX)
}

/// A task's hardware address where the manager gave none: locally administered, the same after every restart.
#[must_use]
pub fn task_mac(task: &TaskId, network: &NetworkId) -> Mac {
    let [_, b, c, d, e, f, ..] = hash(&[task.as_str().as_bytes(), network.as_str().as_bytes()]).to_be_bytes();
    Mac([0x02, b, c, d, e, f])
}

/// The hardware address of a task on the hosts' own network.
pub(crate) fn lan_mac(address: IpAddr) -> Mac {
    let low = match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            [a, b, c, d]
        }
    };
    let [a, b, c, d] = low;
    Mac([0x02, 0x53, a, b, c, d])
}

/// The sandbox's address towards all of its tasks; each link has two ends only, so one serves all.
pub(crate) fn sandbox_mac(network: &Network) -> Mac {
    let [_, b, c, d] = network.vni.to_be_bytes();
    Mac([0x02, 0x53, 0x4b, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(vni: u32) -> Network {
        Network { id: NetworkId::for_test(1), name: "n".into(), vni, subnets: vec![], mtu: 1450, internal: false, ingress: false }
    }

    #[test]
    fn link_names_fit_into_fifteen_bytes() {
        let tag = Tag::new("/run/skep");
        assert!(tag.host_link(&network(0xff_ffff)).len() <= 15);
        assert_eq!(task_link(&TaskId::for_test(12)).len(), 15);
        assert!(task_link(&"short".parse().unwrap()).len() <= 15);
    }

    #[test]
    fn instances_do_not_share_names() {
        assert_ne!(Tag::new("/run/skep"), Tag::new("/run/skep-b"));
        assert_ne!(task_link(&TaskId::for_test(1)), task_link(&TaskId::for_test(2)));
    }

    #[test]
    fn a_task_has_an_address_per_network_that_is_local_and_no_group() {
        let (a, b) = (NetworkId::for_test(1), NetworkId::for_test(2));
        let task = TaskId::for_test(1);
        assert_ne!(task_mac(&task, &a), task_mac(&task, &b));
        assert_eq!(task_mac(&task, &a).0[0], 2);
    }
}
