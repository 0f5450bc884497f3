//! The names of one network, kept so that a lookup and a change cost the same whatever the network's size.

use super::names::{NamedPort, Reach, Readiness, ServiceNames, TaskNames};
use ipnet::IpNet;
use skep_types::{ServiceId, TaskId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::net::IpAddr;

/// Services and tasks of one network under all of their names.
#[derive(Debug, Default)]
pub struct NetworkNames {
    /// As all names here in lower case: DNS does not tell case apart.
    name: String,
    subnets: Vec<IpNet>,
    revision: Option<u64>,
    services: HashMap<ServiceId, ServiceNames>,
    tasks: HashMap<TaskId, TaskNames>,
    /// In order: most names have one holder, so a list is the smallest that serves.
    by_name: HashMap<String, Vec<Holder>>,
    by_address: HashMap<IpAddr, Vec<Holder>>,
    /// Also of services that are not known (yet).
    members: HashMap<ServiceId, BTreeMap<Option<u64>, BTreeSet<TaskId>>>,
}

/// Who has a name. The lesser one has it alone: a service's own name goes before another's alias.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Holder {
    Service(ServiceId),
    Alias(ServiceId),
    Task(TaskId),
    Hostname(TaskId),
}

impl Holder {
    fn rank(&self) -> u8 {
        match self {
            Self::Service(_) => 0,
            Self::Alias(_) => 1,
            Self::Task(_) => 2,
            Self::Hostname(_) => 3,
        }
    }
}

/// What a name leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target<'a> {
    /// Its own name, to which `.<network>` may be added.
    pub(super) name: &'a str,
    pub(super) network: &'a str,
    pub(super) addresses: &'a [IpAddr],
    pub(super) ports: &'a [NamedPort],
}

impl NetworkNames {
    /// A network without anyone on it. Its subnets tell whose reverse names are ours alone.
    #[must_use]
    pub fn new(name: &str, subnets: Vec<IpNet>) -> Self {
        Self { name: name.to_ascii_lowercase(), subnets, ..Self::default() }
    }

    /// Of the cluster's state that the names come from; to be seen with a question for TXT.
    pub fn set_revision(&mut self, revision: u64) {
        self.revision = Some(revision);
    }

    /// Adds a service or puts it in its own place.
    pub fn set_service(&mut self, service: ServiceNames) {
        self.remove_service(&service.id);
        for (name, holder) in service_keys(&service) {
            enter(&mut self.by_name, name, holder);
        }
        for address in virtual_addresses(&service) {
            enter(&mut self.by_address, *address, Holder::Service(service.id.clone()));
        }
        self.services.insert(service.id.clone(), service);
    }

    /// Its tasks stay until they are removed, too. One that is not there is no error.
    pub fn remove_service(&mut self, id: &ServiceId) {
        let Some(service) = self.services.remove(id) else { return };
        for (name, holder) in service_keys(&service) {
            leave(&mut self.by_name, &name, &holder);
        }
        for address in virtual_addresses(&service) {
            leave(&mut self.by_address, address, &Holder::Service(id.clone()));
        }
    }

    /// Adds a task or puts it in its own place; its service may come later.
    pub fn set_task(&mut self, task: TaskNames) {
        self.remove_task(&task.id);
        for (name, holder) in task_keys(&task) {
            enter(&mut self.by_name, name, holder);
        }
        for address in &task.addresses {
            enter(&mut self.by_address, *address, Holder::Task(task.id.clone()));
        }
        if let Some(service) = &task.service {
            self.members.entry(service.clone()).or_default().entry(task.slot).or_default().insert(task.id.clone());
        }
        self.tasks.insert(task.id.clone(), task);
    }

    /// One that is not there is no error.
    pub fn remove_task(&mut self, id: &TaskId) {
        let Some(task) = self.tasks.remove(id) else { return };
        for (name, holder) in task_keys(&task) {
            leave(&mut self.by_name, &name, &holder);
        }
        for address in &task.addresses {
            leave(&mut self.by_address, address, &Holder::Task(id.clone()));
        }
        if let Some(service) = &task.service
            && let Some(slots) = self.members.get_mut(service)
            && let Some(tasks) = slots.get_mut(&task.slot)
        {
            tasks.remove(id);
            if tasks.is_empty() {
                slots.remove(&task.slot);
            }
            if slots.is_empty() {
                self.members.remove(service);
            }
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn subnets(&self) -> &[IpNet] {
        &self.subnets
    }

    pub(super) fn revision(&self) -> Option<u64> {
        self.revision
    }

    /// What a name in lower case leads to. `None` if nobody has it; nothing in it if the name is there and nobody is behind it
    /// now, such as a `dnsrr` service without a ready task.
    pub(super) fn find(&self, name: &str, stack: Option<&str>) -> Option<Vec<Target<'_>>> {
        if let Some(holders) = self.holders(name, stack) {
            return Some(self.behind(holders));
        }
        if let Some(services) = name.strip_prefix("tasks.").and_then(|rest| self.services_called(rest, stack)) {
            return Some(self.tasks_of(&services, |readiness| readiness == Readiness::Ready));
        }
        if let Some(services) = name.strip_prefix("all.").and_then(|rest| self.services_called(rest, stack)) {
            return Some(self.tasks_of(&services, is_started));
        }
        self.slot(name, stack)
    }

    /// Who has the address.
    pub(super) fn find_address(&self, address: IpAddr) -> Option<Vec<Target<'_>>> {
        let holders = self.by_address.get(&address)?;
        let named = holders.iter().filter_map(|holder| match holder {
            Holder::Service(id) | Holder::Alias(id) => self.services.get(id).map(|service| self.of_service(service)),
            Holder::Task(id) | Holder::Hostname(id) => self.tasks.get(id).map(|task| self.of_task(task)),
        });
        Some(named.collect())
    }

    /// Those of the least rank; a service of the asker's own stack alone if there is one.
    fn holders(&self, name: &str, stack: Option<&str>) -> Option<&[Holder]> {
        if let Some(stack) = stack
            && !name.contains('.')
            && let Some(own) = self.by_name.get(&format!("{}_{name}", stack.to_ascii_lowercase()))
            && let own = least(own)
            && matches!(own, [Holder::Service(_), ..])
        {
            return Some(own);
        }
        self.by_name.get(name).map(|all| least(all))
    }

    fn services_called(&self, name: &str, stack: Option<&str>) -> Option<Vec<&ServiceNames>> {
        let services = self.holders(name, stack)?.iter().filter_map(|holder| match holder {
            Holder::Service(id) | Holder::Alias(id) => self.services.get(id),
            Holder::Task(_) | Holder::Hostname(_) => None,
        });
        let services: Vec<_> = services.collect();
        (!services.is_empty()).then_some(services)
    }

    fn behind(&self, holders: &[Holder]) -> Vec<Target<'_>> {
        let mut targets = Vec::with_capacity(holders.len());
        for holder in holders {
            match holder {
                Holder::Service(id) | Holder::Alias(id) => match self.services.get(id) {
                    Some(service) if service.reach == Reach::EachTask => {
                        targets.extend(self.tasks_of(&[service], |readiness| readiness == Readiness::Ready));
                    }
                    Some(service) => targets.push(self.of_service(service)),
                    None => {}
                },
                Holder::Task(id) => targets.extend(self.tasks.get(id).map(|task| self.of_task(task))),
                Holder::Hostname(id) => {
                    let started = self.tasks.get(id).filter(|task| is_started(task.readiness));
                    targets.extend(started.map(|task| self.of_task(task)));
                }
            }
        }
        targets
    }

    fn tasks_of(&self, services: &[&ServiceNames], counts: impl Fn(Readiness) -> bool) -> Vec<Target<'_>> {
        let members = services.iter().filter_map(|service| self.members.get(&service.id)).flat_map(BTreeMap::values).flatten();
        let tasks = members.filter_map(|id| self.tasks.get(id)).filter(|task| counts(task.readiness));
        tasks.map(|task| self.of_task(task)).collect()
    }

    /// `<service>.<slot>` and `<service>-<slot>.<service>`: whichever task is in the slot now. An empty slot may be filled
    /// later, so its name is there.
    fn slot(&self, name: &str, stack: Option<&str>) -> Option<Vec<Target<'_>>> {
        let (left, right) = name.rsplit_once('.')?;
        let dashed = left.rsplit_once('-').filter(|(service, _)| *service == right);
        let (service, slot) = dashed.unwrap_or((left, right));
        let slot = Some(slot.parse::<u64>().ok()?);
        let services = self.services_called(service, stack)?;
        let slots = services.iter().filter_map(|service| self.members.get(&service.id));
        let tasks = slots.filter_map(|slots| slots.get(&slot)).flatten().filter_map(|id| self.tasks.get(id));
        Some(tasks.filter(|task| is_started(task.readiness)).map(|task| self.of_task(task)).collect())
    }

    fn of_service<'a>(&'a self, service: &'a ServiceNames) -> Target<'a> {
        let addresses: &[IpAddr] = match &service.reach {
            Reach::Virtual(addresses) => addresses,
            Reach::EachTask => &[],
        };
        Target { name: &service.name, network: &self.name, addresses, ports: &service.ports }
    }

    fn of_task<'a>(&'a self, task: &'a TaskNames) -> Target<'a> {
        let service = task.service.as_ref().and_then(|id| self.services.get(id));
        let ports = service.map_or(&[][..], |service| &service.ports);
        Target { name: &task.name, network: &self.name, addresses: &task.addresses, ports }
    }
}

fn is_started(readiness: Readiness) -> bool {
    readiness != Readiness::Leaving
}

fn virtual_addresses(service: &ServiceNames) -> &[IpAddr] {
    match &service.reach {
        Reach::Virtual(addresses) => addresses,
        Reach::EachTask => &[],
    }
}

fn service_keys(service: &ServiceNames) -> impl Iterator<Item = (String, Holder)> {
    let alias = |name: &String| (name.to_ascii_lowercase(), Holder::Alias(service.id.clone()));
    let own = (service.name.to_ascii_lowercase(), Holder::Service(service.id.clone()));
    std::iter::once(own).chain(service.aliases.iter().map(alias))
}

fn task_keys(task: &TaskNames) -> impl Iterator<Item = (String, Holder)> {
    let hostname = |name: &String| (name.to_ascii_lowercase(), Holder::Hostname(task.id.clone()));
    std::iter::once((task.name.to_ascii_lowercase(), Holder::Task(task.id.clone()))).chain(task.hostnames.iter().map(hostname))
}

/// Those of the first one's rank.
fn least(holders: &[Holder]) -> &[Holder] {
    let rank = holders.first().map(Holder::rank);
    &holders[..holders.partition_point(|holder| Some(holder.rank()) == rank)]
}

fn enter<K: Eq + Hash>(index: &mut HashMap<K, Vec<Holder>>, key: K, holder: Holder) {
    let holders = index.entry(key).or_default();
    if let Err(at) = holders.binary_search(&holder) {
        holders.insert(at, holder);
    }
}

fn leave<K: Eq + Hash>(index: &mut HashMap<K, Vec<Holder>>, key: &K, holder: &Holder) {
    if let Some(holders) = index.get_mut(key) {
        if let Ok(at) = holders.binary_search(holder) {
            holders.remove(at);
        }
        if holders.is_empty() {
            index.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
