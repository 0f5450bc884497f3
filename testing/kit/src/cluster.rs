use crate::api::Api;
use crate::audit::Inventory;
use crate::dockerd::Dockerd;
use crate::host::{Host, curl_from};
use crate::process::{Output, run, whoami_image};
use crate::sweep::{self, Debris};
use crate::switch::{Cut, Switch, address_v4, address_v6, client_v4};
use crate::wait::eventually;
use anyhow::{Context, Result, bail, ensure};
use skep_proto::skep::status_response::Role;
use skep_proto::v1::{self, TaskState};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Index, IndexMut};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

/// Long enough for anything that is meant to happen by itself on a starved machine.
const SOON: Duration = Duration::from_secs(40);

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

/// A manager's copy of the state, as it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    pub host: usize,
    pub leads: bool,
    pub raft_id: u64,
    pub term: u64,
    pub revision: u64,
    pub hash: Vec<u8>,
}

/// What a test wants to know of a task.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Task {
    pub id: String,
    pub service: String,
    pub slot: u64,
    /// The host it is on, if it is one of ours.
    pub host: Option<usize>,
    pub desired: TaskState,
    pub state: TaskState,
    pub message: String,
    pub error: String,
    /// Process id of the container's first process; 0 if none is known.
    pub pid: i32,
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

    /// Hosts that are one cluster: the first founded it, the others joined by its tokens, and all are ready. Every host has the
    /// demonstration image `whoami:latest`.
    ///
    /// # Errors
    /// See [`hosts`](Self::hosts).
    pub fn formed(size: Size) -> Result<Self> {
        let mut cluster = Self::hosts(size)?;
        cluster.form(&[])?;
        Ok(cluster)
    }

    /// Founds the cluster (`flags` go to `cluster init`) and joins all others.
    ///
    /// # Errors
    /// If a step is refused.
    pub fn form(&mut self, flags: &[&str]) -> Result<()> {
        let address = self.address(0);
        self.ctl(0, &[&["cluster", "init", "--advertise-addr", &address][..], flags].concat())?.success().context("cluster init")?;
        for host in 1..self.hosts.len() {
            self.join(host, if host < self.size.managers { "manager" } else { "worker" })?;
        }
        self.load_image()?;
        self.wait_ready(SOON)
    }

    /// Makes a host join as `manager` or `worker`, through the first host.
    ///
    /// # Errors
    /// If it is refused.
    pub fn join(&self, host: usize, role: &str) -> Result<()> {
        self.join_through(host, role, 0)
    }

    /// Makes a host join through the manager on host `through`.
    ///
    /// # Errors
    /// If it is refused.
    pub fn join_through(&self, host: usize, role: &str, through: usize) -> Result<()> {
        let token = self.token(through, role)?;
        let (own, manager) = (self.address(host), format!("{}:2377", self.address(through)));
        let arguments = ["cluster", "join", "--token", &token, "--advertise-addr", &own, &manager];
        self.ctl(host, &arguments)?.success().with_context(|| format!("{} joins as {role}", self.hosts[host].name()))?;
        Ok(())
    }

    /// # Errors
    /// If the manager on that host does not tell.
    pub fn token(&self, host: usize, role: &str) -> Result<String> {
        Ok(self.ctl(host, &["cluster", "join-token", "-q", role])?.success()?.trim().to_owned())
    }

    /// Gives every host that runs the demonstration image.
    ///
    /// # Errors
    /// If one does not take it.
    pub fn load_image(&mut self) -> Result<()> {
        let image = whoami_image()?.to_string_lossy().into_owned();
        each(&mut self.hosts, |host| {
            if host.runs() && host.containerd_pid().is_some() {
                host.ctl(&["image", "load", "-q", "-i", &image])?.success().context("image load")?;
            }
            Ok(())
        })
    }

    /// Waits until every host that runs is a ready node, by the word of the manager on the first host that is one.
    ///
    /// # Errors
    /// If that takes longer than `limit`, with what is missing.
    pub fn wait_ready(&self, limit: Duration) -> Result<()> {
        let wanted = self.hosts.iter().filter(|host| host.is_up()).count();
        eventually(limit, "all nodes are ready", || {
            let nodes = self.api(self.a_manager()?)?.nodes()?;
            let state = |node: &v1::Node| node.status.as_ref().map_or(0, |status| status.state);
            let ready = nodes.iter().filter(|node| state(node) == v1::node_status::State::Ready as i32).count();
            ensure!(ready >= wanted, "{ready} of {wanted} nodes are ready");
            Ok(())
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
    /// If nothing answers within 3 s or the answer is not a success.
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

    /// Passes on nothing of what the host and the others send each other. The client still reaches it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn cut(&mut self, host: usize) -> Result<()> {
        self.switch.cut(Cut::Host(host))
    }

    /// Passes on nothing of what `from` sends to `to`.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn cut_one_way(&mut self, from: usize, to: usize) -> Result<()> {
        self.switch.cut(Cut::Way { from, to })
    }

    /// Loses one packet in so many, of what goes to or comes from the host.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn lose(&mut self, host: usize, one_in: u32) -> Result<()> {
        self.switch.cut(Cut::Loss { host, one_in })
    }

    /// Ends everything that [`cut`](Self::cut) and the others began.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn heal(&mut self) -> Result<()> {
        self.switch.heal(None)
    }

    /// Ends what concerns this host.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn heal_host(&mut self, host: usize) -> Result<()> {
        self.switch.heal(Some(host))
    }

    /// # Errors
    /// If skepd does not answer, or runs no manager.
    pub fn replica(&self, host: usize) -> Result<Replica> {
        ensure!(!self.hosts[host].is_paused(), "{} is paused", self.hosts[host].name());
        let status = self.api(host)?.status(true)?;
        let replica = status.replica.with_context(|| format!("{} runs no manager: {}", self.hosts[host].name(), status.problem))?;
        Ok(Replica {
            host,
            leads: status.leader,
            raft_id: replica.raft_id,
            term: replica.term,
            revision: replica.revision,
            hash: replica.hash,
        })
    }

    /// What all managers say that answer.
    #[must_use]
    pub fn replicas(&self) -> Vec<Replica> {
        (0..self.hosts.len()).filter(|host| self.hosts[*host].is_up()).filter_map(|host| self.replica(host).ok()).collect()
    }

    /// The first host that says that it is a manager.
    ///
    /// # Errors
    /// If there is none.
    pub fn a_manager(&self) -> Result<usize> {
        let manages = |host: &usize| self.api(*host).and_then(|api| api.status(false)).is_ok_and(|status| status.role() == Role::Manager);
        (0..self.hosts.len()).filter(|host| self.hosts[*host].is_up()).find(manages).context("no manager answers")
    }

    /// The host that leads: of those that say so, the one in the latest term.
    ///
    /// # Errors
    /// If none says so.
    pub fn leader(&self) -> Result<usize> {
        let replicas = self.replicas();
        let leader = replicas.iter().filter(|replica| replica.leads).max_by_key(|replica| replica.term);
        Ok(leader.with_context(|| format!("nobody leads: {replicas:?}"))?.host)
    }

    /// # Errors
    /// If nobody leads within `limit`.
    pub fn wait_leader(&self, limit: Duration) -> Result<usize> {
        eventually(limit, "a leader", || self.leader())
    }

    /// A manager that does not lead.
    ///
    /// # Errors
    /// If there is none.
    pub fn follower(&self) -> Result<usize> {
        let found = self.replicas().into_iter().find(|replica| !replica.leads);
        Ok(found.context("every manager that answers leads")?.host)
    }

    /// # Errors
    /// If nobody leads.
    pub fn term(&self) -> Result<u64> {
        self.replicas().iter().map(|replica| replica.term).max().context("no manager answers")
    }

    /// Waits until these managers hold the same state, and one of them leads in the term they all are in.
    ///
    /// # Errors
    /// If they do not within `limit`, with what each has.
    pub fn wait_converged(&self, hosts: impl IntoIterator<Item = usize> + Clone, limit: Duration) -> Result<Replica> {
        eventually(limit, "all managers hold the same", || {
            let replicas = hosts.clone().into_iter().map(|host| self.replica(host)).collect::<Result<Vec<_>>>()?;
            let first = replicas.first().context("no managers")?;
            let same = |other: &Replica| (other.term, other.revision, &other.hash) == (first.term, first.revision, &first.hash);
            ensure!(replicas.iter().all(same), "they differ: {:#?}", replicas.iter().map(brief).collect::<Vec<_>>());
            let leaders: Vec<&Replica> = replicas.iter().filter(|replica| replica.leads).collect();
            ensure!(leaders.len() == 1, "{} lead", leaders.len());
            Ok(leaders[0].clone())
        })
    }

    /// # Errors
    /// If the host is no node.
    pub fn node_id(&self, host: usize) -> Result<String> {
        let id = self.api(host)?.status(false)?.node_id;
        ensure!(!id.is_empty(), "{} is in no cluster", self.hosts[host].name());
        Ok(id)
    }

    /// A host's node, as the manager on `through` knows it.
    ///
    /// # Errors
    /// If there is none.
    pub fn node(&self, through: usize, host: usize) -> Result<v1::Node> {
        let id = self.node_id(host)?;
        let nodes = self.api(through)?.nodes()?;
        nodes.into_iter().find(|node| node.id == id).with_context(|| format!("no node {id}"))
    }

    /// The tasks of a service, as the manager on `through` knows them.
    ///
    /// # Errors
    /// If there is no such service or no answer.
    pub fn tasks(&self, through: usize, service: &str) -> Result<Vec<Task>> {
        let api = self.api(through)?;
        let services = api.ask(|mut control| async move { control.list_services(v1::ListServicesRequest::default()).await })?.services;
        let named = |found: &v1::Service| {
            found.spec.as_ref().and_then(|spec| spec.annotations.as_ref()).is_some_and(|annotations| annotations.name == service)
        };
        let id = services.into_iter().find(named).with_context(|| format!("no service {service}"))?.id;
        let tasks: Vec<v1::Task> = api.tasks()?.into_iter().filter(|task| task.service_id == id).collect();
        let mut known = self.known.lock().expect("no panic while held");
        if tasks.iter().any(|task| !task.node_id.is_empty() && !known.contains_key(&task.node_id)) {
            let up = (0..self.hosts.len()).filter(|host| self.hosts[*host].is_up());
            known.extend(up.filter_map(|host| Some((self.node_id(host).ok()?, host))));
        }
        Ok(tasks.into_iter().map(|task| understand(task, &known)).collect())
    }

    /// Host and process of each task of the service that runs and should.
    ///
    /// # Errors
    /// See [`tasks`](Self::tasks).
    pub fn pids(&self, through: usize, service: &str) -> Result<BTreeSet<(Option<usize>, i32)>> {
        let tasks = self.tasks(through, service)?;
        Ok(tasks.into_iter().filter(Task::runs).map(|task| (task.host, task.pid)).collect())
    }

    /// Waits until so many tasks of the service run, and tells their processes.
    ///
    /// # Errors
    /// If there are not so many within a generous time.
    pub fn wait_running(&self, through: usize, service: &str, count: usize) -> Result<BTreeSet<(Option<usize>, i32)>> {
        eventually(SOON, &format!("{count} tasks of {service} run"), || {
            let tasks = self.tasks(through, service)?;
            let running = tasks.iter().filter(|task| task.runs()).count();
            ensure!(running == count, "{running}: {tasks:#?}");
            Ok(tasks.into_iter().filter(Task::runs).map(|task| (task.host, task.pid)).collect())
        })
    }

    /// Whether any service runs two tasks in one slot.
    ///
    /// # Errors
    /// If one does.
    pub fn no_slot_runs_twice(&self, through: usize) -> Result<()> {
        let mut seen = BTreeMap::new();
        for task in self.api(through)?.tasks()? {
            let task = understand(task, &BTreeMap::new());
            if task.runs()
                && task.slot != 0
                && let Some(other) = seen.insert((task.service.clone(), task.slot), task.id.clone())
            {
                bail!("slot {} of service {} runs twice: tasks {other} and {}", task.slot, task.service, task.id);
            }
        }
        Ok(())
    }

    /// Takes stock of every host.
    ///
    /// # Errors
    /// See [`Inventory::take`].
    pub fn inventories(&self) -> Result<Vec<Inventory>> {
        self.hosts.iter().map(Inventory::take).collect()
    }

    /// Makes every host leave, workers first, and looks whether anything is left that was not there before (`empty`, for each host).
    ///
    /// # Errors
    /// If a host cannot leave, or something is left.
    pub(crate) fn everybody_leaves(&mut self, empty: &[Inventory]) -> Result<()> {
        for host in self.workers().chain(self.managers()).filter(|host| self.hosts[*host].is_up()) {
            let status = self.api(host)?.status(false)?;
            if !status.node_id.is_empty() {
                self.ctl(host, &["cluster", "leave", "--force"])?
                    .success()
                    .with_context(|| format!("{} leaves", self.hosts[host].name()))?;
            }
        }
        for (host, empty) in self.hosts.iter().zip(empty).filter(|(host, _)| host.is_up()) {
            eventually(SOON, &format!("nothing is left on {}", host.name()), || {
                let leaked = Inventory::take(host)?.leaked_since(empty);
                ensure!(leaked.is_empty(), "{leaked:#?}");
                Ok(())
            })?;
        }
        Ok(())
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

fn brief(replica: &Replica) -> String {
    let hash: String = replica.hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let leads = if replica.leads { ", leads" } else { "" };
    format!("host {}: term {}, revision {}, state {hash}…{leads}", replica.host, replica.term, replica.revision)
}

fn understand(task: v1::Task, hosts: &BTreeMap<String, usize>) -> Task {
    let (desired, status) = (task.desired_state(), task.status.unwrap_or_default());
    let state = status.state();
    let pid = match &status.runtime_status {
        Some(v1::task_status::RuntimeStatus::Container(container)) => container.pid,
        None => 0,
    };
    Task {
        id: task.id,
        service: task.service_id,
        slot: task.slot,
        host: hosts.get(&task.node_id).copied(),
        desired,
        state,
        message: status.message,
        error: status.err,
        pid,
    }
}

impl Task {
    /// Whether it runs and is meant to.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.state == TaskState::Running && self.desired == TaskState::Running
    }
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
