mod cuts; // what the switch does not pass on
mod managers; // what each manager holds, and who leads
mod members; // founding, joining, leaving
mod tasks; // what runs where

pub use managers::Replica;
pub use tasks::Task;

use crate::api::Api;
use crate::audit::Inventory;
use crate::dockerd::Dockerd;
use crate::host::{Host, curl_from};
use crate::process::{Output, run};
use crate::sweep::{self, Debris};
use crate::switch::{Switch, address_v4, address_v6, client_v4};
use anyhow::Result;
use std::collections::BTreeMap;
use std::ops::{Index, IndexMut};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

/// Long enough for anything that is meant to happen by itself on a starved machine.
const SOON: Duration = Duration::from_secs(60);

/// How many hosts of which kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub managers: usize,
    pub workers: usize,
}

/// Hosts on a switch, numbered from 0: first those meant to be managers (`m1`, `m2`, …), then the workers (`w1`, …).
///
/// Each has an address in 198.18.0.0/24 and one in fd18::/64, which exist only inside the namespaces. `cluster[0]` is the first
/// [`Host`]. Everything is taken away when it is dropped.
pub struct Cluster {
    size: Size,
    hosts: Vec<Host>,
    switch: Switch,
    /// Cables that lead to something that is no host of ours.
    guests: Vec<String>,
    /// Which host is which node, as far as that was asked for.
    known: Mutex<BTreeMap<String, usize>>,
    tag: String,
    dir: PathBuf,
    stays: bool,
    // Removed last.
    _temporary: Option<tempfile::TempDir>,
}

impl Cluster {
    /// Hosts with containerd and skepd, in no cluster yet.
    ///
    /// # Errors
    /// If anything cannot be made; what was made is removed.
    pub fn hosts(size: Size) -> Result<Self> {
        let mut cluster = Self::dark(size)?;
        cluster.start_all()?;
        Ok(cluster)
    }

    /// Hosts on which nothing runs yet.
    ///
    /// # Errors
    /// See [`hosts`](Self::hosts).
    pub fn dark(size: Size) -> Result<Self> {
        sweep::clear_the_dead();
        let tag = sweep::new_tag();
        let dir = sweep::new_dir(&tag)?;
        Self::lay_out(size, tag, dir.path().to_owned(), Some(dir))
    }

    /// Hosts that outlive this process; `prefix` begins the names of namespaces and cgroups.
    pub(crate) fn that_stays(size: Size, prefix: &str, dir: PathBuf) -> Result<Self> {
        let mut cluster = Self::lay_out(size, prefix.to_owned(), dir, None)?;
        cluster.hosts.iter_mut().for_each(Host::let_outlive);
        Ok(cluster)
    }

    /// From here on nothing is taken away.
    pub(crate) fn stay(&mut self) {
        self.stays = true;
    }

    fn lay_out(size: Size, tag: String, dir: PathBuf, temporary: Option<tempfile::TempDir>) -> Result<Self> {
        let switch = Switch::new(format!("{tag}switch"))?;
        let (hosts, guests, known) = (Vec::new(), Vec::new(), Mutex::default());
        let mut cluster = Self { size, hosts, switch, guests, known, tag, dir, stays: false, _temporary: temporary };
        let managers = (1..=size.managers).map(|number| format!("m{number}"));
        for name in managers.chain((1..=size.workers).map(|number| format!("w{number}"))) {
            let named = format!("{}{name}", cluster.tag);
            let mut host = Host::new(&name, cluster.dir.join(&name), named.clone(), named)?;
            host.set_log_level(if std::env::var_os("SKEP_E2E_DEBUG").is_some() { "debug" } else { "info" });
            cluster.hosts.push(host);
            let number = cluster.hosts.len() - 1;
            cluster.switch.plug(number, cluster.hosts[number].namespace())?;
        }
        Ok(cluster)
    }

    /// See [`Host::give_name`].
    pub fn give_names(&mut self) {
        self.hosts.iter_mut().for_each(Host::give_name);
    }

    /// Starts containerd and skepd on every host, all at the same time.
    ///
    /// # Errors
    /// If one does not answer.
    pub fn start_all(&mut self) -> Result<()> {
        each(&mut self.hosts, |host| {
            host.start_containerd()?;
            host.start_skepd()
        })
    }

    #[must_use]
    pub fn size(&self) -> Size {
        self.size
    }

    #[must_use]
    pub fn managers(&self) -> std::ops::Range<usize> {
        0..self.size.managers
    }

    #[must_use]
    pub fn workers(&self) -> std::ops::Range<usize> {
        self.size.managers..self.hosts.len()
    }

    /// The host's IPv4 address.
    #[must_use]
    pub fn address(&self, host: usize) -> String {
        address_v4(host)
    }

    /// The host's IPv6 address.
    #[must_use]
    pub fn address_v6(&self, host: usize) -> String {
        address_v6(host)
    }

    /// The address every host has its default route through, which is the client's.
    #[must_use]
    pub fn gateway(&self) -> String {
        client_v4()
    }

    /// The client's namespace, which is the switch's.
    #[must_use]
    pub fn client_namespace(&self) -> &str {
        self.switch.namespace()
    }

    /// `swarmctl` on a host.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn ctl(&self, host: usize, arguments: &[&str]) -> Result<Output> {
        self.hosts[host].ctl(arguments)
    }

    /// What the client gets from a URL.
    ///
    /// # Errors
    /// If nothing answers within 10 s or the answer is not a success.
    pub fn curl(&self, url: &str) -> Result<String> {
        curl_from(self.switch.namespace(), url)
    }

    /// # Errors
    /// If TLS cannot be set up.
    pub fn api(&self, host: usize) -> Result<Api> {
        Api::new(&self.hosts[host].socket())
    }

    /// Sockets of these hosts, for a [`Journal`](crate::Journal).
    #[must_use]
    pub fn sockets(&self, hosts: impl IntoIterator<Item = usize>) -> Vec<PathBuf> {
        hosts.into_iter().map(|host| self.hosts[host].socket()).collect()
    }

    /// Takes stock of every host.
    ///
    /// # Errors
    /// See [`Inventory::take`].
    pub fn inventories(&self) -> Result<Vec<Inventory>> {
        self.hosts.iter().map(Inventory::take).collect()
    }

    /// A dockerd with a host of its own on the switch, in no cluster. `program` is the demonstration program, which becomes its image.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn add_dockerd(&mut self) -> Result<Dockerd> {
        let number = self.hosts.len() + self.guests.len();
        let name = format!("{}d{number}", self.tag);
        run("ip", &["netns", "add", &name])?.success()?;
        self.guests.push(name.clone());
        run("ip", &["-n", &name, "link", "set", "lo", "up"])?.success()?;
        self.switch.plug(number, &name)?;
        Dockerd::start(&name, address_v4(number))
    }

    /// The ends of all logs.
    #[must_use]
    pub fn log_tails(&self) -> String {
        self.hosts.iter().map(Host::log_tail).collect::<Vec<_>>().join("\n\n")
    }
}

/// Does the same on all hosts at the same time; the first failure is the result.
fn each(hosts: &mut [Host], work: impl Fn(&mut Host) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = hosts.iter_mut().map(|host| scope.spawn(move || work(host))).collect();
        let outcomes: Vec<Result<()>> = threads.into_iter().map(|thread| thread.join().expect("no panic in a thread")).collect();
        outcomes.into_iter().collect()
    })
}

impl Index<usize> for Cluster {
    type Output = Host;
    fn index(&self, host: usize) -> &Host {
        &self.hosts[host]
    }
}

impl IndexMut<usize> for Cluster {
    fn index_mut(&mut self, host: usize) -> &mut Host {
        &mut self.hosts[host]
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log_tails());
        }
        self.hosts.iter_mut().for_each(Host::kill_all);
        let namespaces = self.hosts.iter().map(|host| host.namespace().to_owned());
        let namespaces = namespaces.chain(self.guests.iter().cloned()).chain([self.switch.namespace().to_owned()]).collect();
        sweep::sweep_loudly(&Debris {
            dir: self.dir.clone(),
            hosts: self.hosts.iter().map(|host| host.dir().to_owned()).collect(),
            namespaces,
            cgroups: self.hosts.iter().map(|host| host.cgroup().to_owned()).collect(),
        });
    }
}
