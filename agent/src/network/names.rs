//! Who is called what on the networks of this node's tasks: what the DNS servers of the tasks answer from. Pure.
//!
//! As in [`super::wanted`] managers tell of other nodes, and this node knows better about its own tasks.

use super::convert::{bare, joined, port, protocol, subnets};
use super::held::{Held, Phase};
use super::picture::{NetworkPicture, Parts, Picture, Readiness as Told, SpannedService, Touched};
use super::wanted::vips;
use skep_netlb::TaskNetwork;
use skep_netlb::dns::{Asker, NamedPort, Names, NetworkNames, Reach, Readiness, ServiceNames, TaskNames};
use skep_types::{Network, NetworkAttachment, NetworkId, ServiceId, Task, TaskId};
use std::collections::{BTreeMap, BTreeSet};

/// The label of a service that a stack made.
const STACK: &str = "com.docker.stack.namespace";

/// Whose questions a task's server answers.
pub fn asker(task: &Task, network: &TaskNetwork) -> Asker {
    Asker { stack: task.service_annotations.labels.get(STACK).cloned(), ..Asker::on(network) }
}

/// What is to be done to the table of names, made before the table is locked.
#[derive(Debug)]
pub enum Change {
    Replace(NetworkId, NetworkNames),
    Remove(NetworkId),
    Edit { network: NetworkId, revision: u64, tasks: Vec<(TaskId, Option<TaskNames>)>, services: Vec<(ServiceId, Option<ServiceNames>)> },
}

/// The parts of the networks that a task of this node is part of.
pub fn touched_by(task: &Task) -> Touched {
    let parts = || Parts::Some { tasks: [task.id.clone()].into(), services: task.service_id.iter().cloned().collect() };
    joined(task).map(|attachment| (attachment.network.id.clone(), parts())).collect()
}

/// What the changes of the given parts mean for the table. `named` are the networks that it has, and will have.
pub fn changes(touched: &Touched, named: &mut BTreeSet<NetworkId>, held: &BTreeMap<TaskId, Held>, picture: &Picture) -> Vec<Change> {
    let mut changes = Vec::new();
    for (id, parts) in touched {
        let place = Place { id, known: picture.networks.get(id), picture, held };
        // The ingress network has no names: it joins services that share nothing else.
        let Some(cluster) = place.cluster().filter(|cluster| !cluster.spec.ingress) else {
            changes.extend(named.remove(id).then(|| Change::Remove(id.clone())));
            continue;
        };
        match parts {
            Parts::Some { tasks, services } if named.contains(id) => changes.push(Change::Edit {
                network: id.clone(),
                revision: picture.revision,
                tasks: tasks.iter().map(|task| (task.clone(), place.task(task))).collect(),
                services: services.iter().map(|service| (service.clone(), place.service(service))).collect(),
            }),
            Parts::Some { .. } | Parts::Whole => {
                named.insert(id.clone());
                changes.push(Change::Replace(id.clone(), place.whole(cluster)));
            }
        }
    }
    changes
}

/// Carries the changes out.
pub fn apply(names: &mut Names, changes: Vec<Change>) {
    for change in changes {
        match change {
            Change::Replace(network, new) => names.replace(network, new),
            Change::Remove(network) => names.remove(&network),
            Change::Edit { network, revision, tasks, services } => {
                let Some(table) = names.network_mut(&network) else { continue };
                for (id, service) in services {
                    match service {
                        Some(service) => table.set_service(service),
                        None => table.remove_service(&id),
                    }
                }
                for (id, task) in tasks {
                    match task {
                        Some(task) => table.set_task(task),
                        None => table.remove_task(&id),
                    }
                }
                set_revision(table, revision);
            }
        }
    }
}

/// 0: no manager said anything yet.
fn set_revision(table: &mut NetworkNames, revision: u64) {
    if revision != 0 {
        table.set_revision(revision);
    }
}

/// One network, and all that is known of it here.
struct Place<'a> {
    id: &'a NetworkId,
    known: Option<&'a NetworkPicture>,
    picture: &'a Picture,
    held: &'a BTreeMap<TaskId, Held>,
}

impl<'a> Place<'a> {
    fn own(&self) -> impl Iterator<Item = (&'a Held, &'a NetworkAttachment)> {
        let on_it = |one: &'a Held| joined(&one.task).map(move |attachment| (one, attachment));
        self.held.values().flat_map(on_it).filter(|(_, attachment)| attachment.network.id == *self.id)
    }

    fn cluster(&self) -> Option<&'a Network> {
        self.known.map(|known| &*known.network).or_else(|| self.own().next().map(|(_, attachment)| &*attachment.network))
    }

    fn whole(&self, cluster: &Network) -> NetworkNames {
        let subnets = subnets(cluster).unwrap_or_default();
        let mut table = NetworkNames::new(&cluster.spec.annotations.name, subnets.iter().map(|subnet| subnet.range).collect());
        let known = self.known.into_iter();
        let mut services: BTreeSet<&ServiceId> = known.clone().flat_map(|known| known.services.keys()).collect();
        let mut tasks: BTreeSet<&TaskId> = known.flat_map(|known| known.tasks.keys()).collect();
        for (one, _) in self.own() {
            services.extend(&one.task.service_id);
            tasks.insert(&one.task.id);
        }
        services.into_iter().filter_map(|id| self.service(id)).for_each(|service| table.set_service(service));
        tasks.into_iter().filter_map(|id| self.task(id)).for_each(|task| table.set_task(task));
        set_revision(&mut table, self.picture.revision);
        table
    }

    fn service(&self, id: &ServiceId) -> Option<ServiceNames> {
        if let Some(service) = self.known.and_then(|known| known.services.get(id)) {
            return Some(as_told(service));
        }
        let (one, attachment) = self.own().find(|(one, _)| one.task.service_id.as_ref() == Some(id))?;
        Some(as_seen_here(id, &one.task, attachment))
    }

    fn task(&self, id: &TaskId) -> Option<TaskNames> {
        let told = self.known.and_then(|known| known.tasks.get(id));
        let one = self.held.get(id).and_then(|one| Some((one, joined(&one.task).find(|attachment| attachment.network.id == *self.id)?)));
        // One that is said to be here and is not has ended or is not begun.
        let told_elsewhere = told.filter(|told| one.is_some() || told.node_index != self.picture.node_index);
        let readiness = readiness(one.map(|(one, _)| one.phase), told_elsewhere.map(|told| told.readiness))?;
        match (told, one) {
            (Some(told), _) => Some(TaskNames {
                id: id.clone(),
                service: told.service.clone(),
                slot: Some(told.slot).filter(|slot| *slot != 0),
                name: told.name.clone(),
                hostnames: told.hostnames.clone(),
                addresses: told.addresses.clone(),
                readiness,
            }),
            (None, Some((one, attachment))) => Some(TaskNames {
                id: id.clone(),
                service: one.task.service_id.clone(),
                slot: Some(one.task.slot).filter(|slot| *slot != 0),
                name: one.task.name(),
                hostnames: hostnames(one, attachment),
                addresses: bare(attachment),
                readiness,
            }),
            (None, None) => None,
        }
    }
}

/// `None`: nothing leads to the task by any name yet.
fn readiness(here: Option<Phase>, told: Option<Told>) -> Option<Readiness> {
    match (here, told) {
        (_, Some(Told::Leaving)) | (Some(Phase::Leaving { .. }), _) => Some(Readiness::Leaving),
        (Some(Phase::Serving), _) | (None, Some(Told::Ready)) => Some(Readiness::Ready),
        // Begun again without managers, it is READY for them all the time.
        (Some(Phase::Attached), Some(Told::Starting | Told::Ready)) | (None, Some(Told::Starting)) => Some(Readiness::Starting),
        (Some(Phase::Attached) | None, Some(Told::Planned) | None) => None,
    }
}

fn as_told(service: &SpannedService) -> ServiceNames {
    let name = |name: &String| Some(name.clone()).filter(|name| !name.is_empty());
    ServiceNames {
        id: service.id.clone(),
        name: service.name.clone(),
        aliases: service.aliases.clone(),
        reach: reach(service.virtual_ips.clone()),
        ports: service.ports.iter().map(|p| NamedPort { name: name(&p.name), protocol: protocol(p.protocol), port: p.target }).collect(),
    }
}

/// While no manager tells: from one of its tasks.
fn as_seen_here(id: &ServiceId, task: &Task, attachment: &NetworkAttachment) -> ServiceNames {
    let ports = task.endpoint.iter().flat_map(|endpoint| &endpoint.ports).filter_map(|config| {
        let name = Some(config.name.clone()).filter(|name| !name.is_empty());
        Some(NamedPort { name, protocol: protocol(config.protocol), port: port(config.target_port)? })
    });
    ServiceNames {
        id: id.clone(),
        name: task.service_annotations.name.clone(),
        aliases: attachment.aliases.clone(),
        reach: reach(vips(task, &attachment.network.id).collect()),
        ports: ports.collect(),
    }
}

fn reach(virtual_ips: Vec<std::net::IpAddr>) -> Reach {
    if virtual_ips.is_empty() { Reach::EachTask } else { Reach::Virtual(virtual_ips) }
}

/// As its service wishes. A container that others started has the names that it was attached with.
fn hostnames(one: &Held, attachment: &NetworkAttachment) -> Vec<String> {
    let own = if one.task.service_id.is_none() { attachment.aliases.clone() } else { Vec::new() };
    one.hostname.iter().filter(|_| one.task.service_id.is_some()).cloned().chain(own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::fixtures::{back, remote, service1, table, web};
    use crate::network::picture::{Changes, Delta};
    use skep_netlb::dns::{Answer, Transport, answer};
    use std::sync::Arc;

    struct Bench {
        held: BTreeMap<TaskId, Held>,
        picture: Picture,
        named: BTreeSet<NetworkId>,
        names: Names,
    }

    fn back_id() -> NetworkId {
        NetworkId::for_test(2)
    }

    impl Bench {
        fn new(held: Vec<Held>) -> Self {
            let mut this = Self { held: table(held), picture: Picture::default(), named: BTreeSet::new(), names: Names::default() };
            let tasks: Vec<Arc<Task>> = this.held.values().map(|one| Arc::clone(&one.task)).collect();
            tasks.iter().for_each(|task| drop(this.touch(&touched_by(task))));
            this
        }

        fn touch(&mut self, touched: &Touched) -> Vec<&'static str> {
            let changes = changes(touched, &mut self.named, &self.held, &self.picture);
            let kind = |change: &Change| match change {
                Change::Replace(..) => "replace",
                Change::Remove(_) => "remove",
                Change::Edit { .. } => "edit",
            };
            let kinds = changes.iter().map(kind).collect();
            apply(&mut self.names, changes);
            kinds
        }

        fn told(&mut self, complete: bool, delta: Delta) -> Vec<&'static str> {
            let changes =
                Changes { revision: self.picture.revision + 1, complete, networks: vec![delta], node_index: 1, ..Changes::default() };
            let (touched, _) = self.picture.change(changes);
            self.touch(&touched)
        }

        fn phase(&mut self, number: u64, phase: Phase) -> Vec<&'static str> {
            let one = self.held.get_mut(&TaskId::for_test(number)).unwrap();
            one.phase = phase;
            let task = Arc::clone(&one.task);
            self.touch(&touched_by(&task))
        }

        /// The last bytes of the addresses that a name leads to, in order; `None` if there is no such name.
        fn find(&self, name: &str) -> Option<Vec<u8>> {
            let asker = Asker { networks: vec![back_id()], ..Asker::default() };
            let mut question = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            for label in name.split('.') {
                question.push(u8::try_from(label.len()).unwrap());
                question.extend(label.as_bytes());
            }
            question.extend([0, 0, 1, 0, 1]);
            let Answer::Reply(bytes) = answer(&question, Transport::Udp, &self.names, &asker, 1) else { panic!("{name}") };
            if bytes[3] & 15 == 3 {
                return None;
            }
            let count = usize::from(bytes[7]);
            // Each record: a pointer to the question's name, type, class, time, length, 4 bytes (RFC 1035 §4.1.3).
            let mut found: Vec<u8> = (0..count).map(|at| bytes[question.len() + 16 * at + 15]).collect();
            found.sort_unstable();
            Some(found)
        }
    }

    fn told(tasks: &[(u64, u32, Told)]) -> Delta {
        let known = back(&[1, 2], tasks);
        Delta {
            network: Some(known.network.clone()),
            tasks: known.tasks.into_values().collect(),
            services: known.services.into_values().collect(),
            peers: known.peers.into_values().collect(),
            ..Delta::of(back_id())
        }
    }

    #[test]
    fn without_a_manager_this_node_s_tasks_have_their_names() {
        let mut bench = Bench::new(vec![web(1, true), web(2, false)]);
        assert_eq!(bench.find("web"), Some(vec![2]), "the virtual address");
        assert_eq!(bench.find("tasks.web"), Some(vec![11]));
        assert_eq!(bench.find("www"), None);
        assert_eq!(bench.phase(2, Phase::Serving), ["edit"]);
        assert_eq!(bench.find("tasks.web"), Some(vec![11, 12]));
        bench.phase(1, Phase::Leaving { others_may_lead_here: false });
        assert_eq!(bench.find("tasks.web"), Some(vec![12]));
        let gone = bench.held.remove(&TaskId::for_test(1)).unwrap();
        assert_eq!(bench.touch(&touched_by(&gone.task)), ["edit"]);
        let last = bench.held.remove(&TaskId::for_test(2)).unwrap();
        assert_eq!(bench.touch(&touched_by(&last.task)), ["remove"]);
        assert_eq!(bench.find("tasks.web"), None);
    }

    #[test]
    fn tasks_of_other_nodes_have_theirs() {
        let mut bench = Bench::new(vec![web(1, false)]);
        assert_eq!(bench.told(true, told(&[(1, 1, Told::Starting), (3, 2, Told::Ready), (4, 2, Told::Planned)])), ["replace"]);
        assert_eq!(bench.find("tasks.web"), Some(vec![13]));
        assert_eq!(bench.find("all.web"), Some(vec![11, 13]));
        assert_eq!((bench.find("www"), bench.find("host3")), (Some(vec![2]), Some(vec![13])));
        let change = Delta { tasks: vec![remote(2, 4, 2, Told::Ready), remote(2, 3, 2, Told::Leaving)], ..Delta::of(back_id()) };
        assert_eq!(bench.told(false, change), ["edit"]);
        assert_eq!(bench.find("tasks.web"), Some(vec![14]));
        assert_eq!(bench.phase(1, Phase::Serving), ["edit"]);
        assert_eq!(bench.find("tasks.web"), Some(vec![11, 14]), "before a manager knows");
        let change =
            Delta { tasks: vec![remote(2, 1, 1, Told::Leaving)], removed_tasks: vec![TaskId::for_test(3)], ..Delta::of(back_id()) };
        bench.told(false, change);
        assert_eq!((bench.find("tasks.web"), bench.find("host3")), (Some(vec![14]), None));
    }

    #[test]
    fn a_task_that_is_said_to_be_here_and_is_not_has_no_name() {
        let mut bench = Bench::new(vec![]);
        bench.told(true, told(&[(1, 1, Told::Ready), (3, 2, Told::Ready)]));
        assert_eq!(bench.find("tasks.web"), Some(vec![13]));
    }

    #[test]
    fn the_ingress_network_has_no_names() {
        let bench = Bench::new(vec![web(1, true)]);
        assert_eq!(bench.named.iter().collect::<Vec<_>>(), [&back_id()]);
        assert_eq!(bench.picture.networks.len(), 0);
        assert!(back(&[1], &[]).services.contains_key(&service1()));
    }
}
