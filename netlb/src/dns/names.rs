//! Who has which name: what the caller says about each network.

use super::table::NetworkNames;
use crate::wanted::{Protocol, TaskNetwork};
use skep_types::{NetworkId, ServiceId, TaskId};
use std::collections::HashMap;
use std::net::IpAddr;

/// The names of all networks that have tasks on this node.
#[derive(Debug, Default)]
pub struct Names {
    networks: HashMap<NetworkId, NetworkNames>,
}

impl Names {
    /// Puts a network in the place of what was known of it: what a complete state calls for. Make it before the lock is taken.
    pub fn replace(&mut self, id: NetworkId, names: NetworkNames) {
        self.networks.insert(id, names);
    }

    /// To change single services and tasks: each change costs by itself, not by the size of the network.
    pub fn network_mut(&mut self, id: &NetworkId) -> Option<&mut NetworkNames> {
        self.networks.get_mut(id)
    }

    /// Forgets a network; one that is not there is no error.
    pub fn remove(&mut self, id: &NetworkId) {
        self.networks.remove(id);
    }

    pub(super) fn of<'a>(&'a self, asker: &'a Asker) -> impl Iterator<Item = &'a NetworkNames> + Clone {
        asker.networks.iter().filter_map(|id| self.networks.get(id))
    }
}

/// A service on one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceNames {
    pub id: ServiceId,
    /// In full, with the stack's part: `shop_web`.
    pub name: String,
    /// What else it is called on this network.
    pub aliases: Vec<String>,
    pub reach: Reach,
    /// For SRV.
    pub ports: Vec<NamedPort>,
}

/// What a service's plain name leads to; `tasks.<name>` and `all.<name>` lead to tasks in any case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// Endpoint mode `vip`: the service's addresses on this network.
    Virtual(Vec<IpAddr>),
    /// Endpoint mode `dnsrr`: the addresses of all tasks that are ready.
    EachTask,
}

/// A port that the service's tasks listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPort {
    /// SRV is asked for as `_<name>._<protocol>.<service>`, or with the number in the name's place.
    pub name: Option<String>,
    pub protocol: Protocol,
    pub port: u16,
}

/// A task, or a container attached from outside, on one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskNames {
    pub id: TaskId,
    /// Absent for a container that was attached from outside.
    pub service: Option<ServiceId>,
    /// Absent for tasks of global services.
    pub slot: Option<u64>,
    /// `<service>.<slot>.<id>`, or the container's name.
    pub name: String,
    /// Its host name and what else it alone is called.
    pub hostnames: Vec<String>,
    /// On this network.
    pub addresses: Vec<IpAddr>,
    pub readiness: Readiness,
}

/// Which names lead to a task. Its own name and its address do in any case, until it is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Started, not yet healthy: `all.<service>`, its slot and its host names, so that a cluster can form before it is healthy.
    Starting,
    /// The same, `tasks.<service>` and the service's own name with `dnsrr`.
    Ready,
    /// About to be stopped: nothing new should find it.
    Leaving,
}

/// Whose questions are answered: what a task may see, and in which order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Asker {
    /// The first network that has a name answers for it.
    pub networks: Vec<NetworkId>,
    /// The stack of the task: `db` is then first its own `<stack>_db`, whoever else is called `db` on a network.
    pub stack: Option<String>,
    /// Domains of the cluster: names in them are looked up without the domain and never asked of others.
    pub domains: Vec<String>,
    /// Whether foreign names may be asked of resolvers. Never where all networks are internal: such a question is a packet
    /// that leaves the network.
    pub outside: bool,
}

impl Asker {
    /// What follows from the task's networks. The ingress network has no names: it joins services that share nothing else.
    #[must_use]
    pub fn on(network: &TaskNetwork) -> Self {
        let of_users = || network.attachments.iter().map(|attachment| &attachment.network).filter(|network| !network.ingress);
        let mut networks = Vec::new();
        for network in of_users() {
            if !networks.contains(&network.id) {
                networks.push(network.id.clone());
            }
        }
        networks.extend(network.lans.iter().map(|lan| lan.network.clone()));
        let is_open = || of_users().any(|network| !network.internal) || network.lans.iter().any(|lan| !lan.internal);
        // As the default route goes: ingress is a way out only for a task that has no other network.
        let outside = if networks.is_empty() { !network.attachments.is_empty() } else { is_open() };
        Self { networks, outside, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wanted::{Attachment, Network};

    fn outside(kinds: &[(bool, bool)]) -> (usize, bool) {
        let attachment = |(number, (internal, ingress)): (usize, &(bool, bool))| Attachment {
            network: Network {
                id: NetworkId::for_test(number as u64),
                name: format!("n{number}"),
                vni: 4096,
                subnets: vec![],
                mtu: 1450,
                internal: *internal,
                ingress: *ingress,
            },
            addresses: vec![],
            mac: None,
            link: None,
        };
        let asker = Asker::on(&TaskNetwork {
            task: TaskId::for_test(1),
            attachments: kinds.iter().enumerate().map(attachment).collect(),
            lans: vec![],
            foreign: None,
        });
        (asker.networks.len(), asker.outside)
    }

    #[test]
    fn only_a_network_with_a_way_out_lets_questions_out() {
        let (plain, internal, ingress) = ((false, false), (true, false), (false, true));
        assert_eq!(outside(&[]), (0, false));
        assert_eq!(outside(&[plain]), (1, true));
        assert_eq!(outside(&[internal]), (1, false));
        assert_eq!(outside(&[internal, ingress]), (1, false));
        assert_eq!(outside(&[internal, plain]), (2, true));
        assert_eq!(outside(&[ingress]), (0, true));
    }
}
