//! What happened to the tasks of this node lately and how healthy they are, for those who look and listen.
//!
//! In memory only, and bounded: the last [`REMEMBERED`] happenings, the last [`RESULTS`] health checks of each task.

use crate::containerd::StoryMount;
use crate::executor::Probe;
use crate::network::OWN_NETWORK;
use crate::task::drive::now;
use crate::task::{Event, Outcome};
use skep_types::{Network, Task, TaskId, Timestamp};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use tokio::sync::broadcast;

/// As dockerd: so many are told again to those who ask for the past. A listener that falls behind by as many misses some.
const REMEMBERED: usize = 256;
/// Health checks kept of each task (as Docker).
const RESULTS: usize = 5;

/// Something that happened to a task's container.
#[derive(Debug, Clone)]
pub struct Happened {
    pub task: Arc<Task>,
    pub what: What,
    pub time: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Create,
    Start,
    Kill {
        signal: i32,
    },
    Stop,
    Pause,
    Unpause,
    OutOfMemory,
    /// How long it ran, if that is known.
    Die {
        exit_code: i32,
        ran: Option<std::time::Duration>,
    },
    Health {
        is_healthy: bool,
    },
    Destroy,
    Attach,
    Update,
    Restart,
    /// Its terminal, in characters.
    Resize {
        width: u32,
        height: u32,
    },
    /// Somebody looked at its processes.
    Top,
    /// Somebody took files out of it.
    ReadFiles,
    WriteFiles,
    Rename {
        old: String,
    },
    ExecCreate {
        exec: String,
        command: Vec<String>,
    },
    ExecStart {
        exec: String,
        command: Vec<String>,
    },
    ExecDie {
        exec: String,
        exit_code: i32,
    },
    /// It is on a network from now on.
    Connect(NetworkName),
    Disconnect(NetworkName),
    /// A network of the cluster came to this node with its first container there.
    CreateNetwork(NetworkName),
    DestroyNetwork(NetworkName),
    /// A volume is in it from now on.
    Mount(StoryMount),
    Unmount {
        volume: String,
    },
    /// A volume was made for it.
    CreateVolume {
        volume: String,
    },
    /// One that nobody gave a name went with it.
    DestroyVolume {
        volume: String,
    },
}

/// A network, for whoever hears of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkName {
    /// [`OWN_NETWORK`](crate::OWN_NETWORK): this node's own.
    pub id: String,
    pub name: String,
    pub driver: String,
    /// It is on a node only while a container there is on it.
    pub comes_and_goes: bool,
}

impl From<&Network> for NetworkName {
    fn from(network: &Network) -> Self {
        let name = network.spec.annotations.name.clone();
        let comes_and_goes = !network.is_predefined() && !network.spec.ingress;
        Self { id: network.id.to_string(), name, driver: network.driver_name().to_owned(), comes_and_goes }
    }
}

/// All networks of a container; who is on none by name is on the node's own.
fn networks(task: &Task) -> Vec<NetworkName> {
    let named: Vec<NetworkName> = task.networks.iter().map(|place| NetworkName::from(&*place.network)).collect();
    match named.is_empty() {
        true => vec![NetworkName { id: OWN_NETWORK.into(), name: "bridge".into(), driver: "bridge".into(), comes_and_goes: false }],
        false => named,
    }
}

/// The health of a container with a check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HealthView {
    /// `None`: no success and not too many failures yet.
    pub is_healthy: Option<bool>,
    pub failures_in_a_row: u32,
    /// The last ones, oldest first.
    pub results: VecDeque<HealthResult>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthResult {
    pub began: Timestamp,
    pub ended: Timestamp,
    /// `None`: it did not end in time.
    pub exit_code: Option<i32>,
    pub output: String,
}

/// Written by the tasks' drivers, read by anybody. Cheap to clone.
#[derive(Clone)]
pub struct Board(Arc<Shared>);

struct Shared {
    table: Mutex<Table>,
    live: broadcast::Sender<Arc<Happened>>,
    mounts: Box<Mounts>,
}

/// What is mounted in a task's container, as it was made.
type Mounts = dyn Fn(&TaskId) -> Vec<StoryMount> + Send + Sync;

#[derive(Default)]
struct Table {
    tasks: BTreeMap<TaskId, Seen>,
    past: VecDeque<Arc<Happened>>,
    /// Who is on the networks of the cluster, by their ids.
    networks: BTreeMap<String, BTreeSet<TaskId>>,
}

#[derive(Default)]
struct Seen {
    started_at: Option<Timestamp>,
    is_dead: bool,
    is_oom: bool,
    health: Option<HealthView>,
}

impl Default for Board {
    fn default() -> Self {
        Self::new(|_| Vec::new())
    }
}

impl Board {
    pub(crate) fn new(mounts: impl Fn(&TaskId) -> Vec<StoryMount> + Send + Sync + 'static) -> Self {
        let (live, _) = broadcast::channel(REMEMBERED);
        Self(Arc::new(Shared { table: Mutex::default(), live, mounts: Box::new(mounts) }))
    }

    fn volumes(&self, task: &TaskId) -> impl Iterator<Item = StoryMount> + use<> {
        (self.0.mounts)(task).into_iter().filter(|mount| mount.kind == "volume")
    }

    fn with<R>(&self, act: impl FnOnce(&mut Table) -> R) -> R {
        act(&mut self.0.table.lock().expect("no panic while held"))
    }

    pub(crate) fn tell(&self, task: &Arc<Task>, what: What) {
        let happened = Arc::new(Happened { task: Arc::clone(task), what, time: now() });
        self.with(|table| {
            if table.past.len() >= REMEMBERED {
                table.past.pop_front();
            }
            table.past.push_back(Arc::clone(&happened));
            // Within the lock, so that a new listener hears everything once. Nobody listening is as good.
            let _ = self.0.live.send(happened);
        });
    }

    pub(crate) fn connected(&self, task: &Arc<Task>, network: NetworkName) {
        let is_first = network.comes_and_goes
            && self.with(|table| {
                let users = table.networks.entry(network.id.clone()).or_default();
                users.insert(task.id.clone()) && users.len() == 1
            });
        if is_first {
            self.tell(task, What::CreateNetwork(network.clone()));
        }
        self.tell(task, What::Connect(network));
    }

    pub(crate) fn disconnected(&self, task: &Arc<Task>, network: NetworkName) {
        self.tell(task, What::Disconnect(network.clone()));
        let is_last = self.with(|table| {
            let users = table.networks.get_mut(&network.id);
            let is_last = users.is_some_and(|users| users.remove(&task.id) && users.is_empty());
            is_last && table.networks.remove(&network.id).is_some()
        });
        if is_last {
            self.tell(task, What::DestroyNetwork(network));
        }
    }

    /// What a task's driver was told. Of tasks that have no container nothing is.
    pub(crate) fn saw(&self, task: &Arc<Task>, event: &Event) {
        if task.spec.container().is_none() {
            return;
        }
        match event {
            Event::Prepared => {
                self.with(|table| {
                    table.tasks.entry(task.id.clone()).or_default();
                });
                self.tell(task, What::Create);
            }
            Event::Started { health, .. } => {
                self.with(|table| {
                    let health = health.as_ref().map(|_| HealthView::default());
                    table.tasks.insert(task.id.clone(), Seen { started_at: Some(now()), health, ..Seen::default() });
                });
                networks(task).into_iter().for_each(|network| self.connected(task, network));
                self.volumes(&task.id).for_each(|mount| self.tell(task, What::Mount(mount)));
                self.tell(task, What::Start);
            }
            Event::Healthy => self.tell(task, What::Health { is_healthy: true }),
            Event::Unhealthy(_) => self.tell(task, What::Health { is_healthy: false }),
            Event::Ended(outcome) => self.ended(task, outcome),
            Event::Stopped(Some(outcome)) => {
                self.ended(task, outcome);
                self.tell(task, What::Stop);
            }
            _ => {}
        }
    }

    /// Told once of each life, whoever sees its end first.
    fn ended(&self, task: &Arc<Task>, outcome: &Outcome) {
        let before = self.with(|table| {
            let seen = table.tasks.entry(task.id.clone()).or_default();
            seen.is_oom |= outcome.words.is_some();
            (!std::mem::replace(&mut seen.is_dead, true)).then_some(seen.started_at)
        });
        let Some(started_at) = before else { return };
        if outcome.words.is_some() {
            self.tell(task, What::OutOfMemory);
        }
        self.tell(task, What::Die { exit_code: outcome.exit_code, ran: started_at.map(|at| now().since(at)) });
        networks(task).into_iter().for_each(|network| self.disconnected(task, network));
        self.volumes(&task.id).for_each(|mount| self.tell(task, What::Unmount { volume: mount.name }));
    }

    /// Whether the end of its present life was told, or nothing is known of it.
    pub(crate) fn told_end(&self, task: &TaskId) -> bool {
        self.with(|table| table.tasks.get(task).is_none_or(|seen| seen.is_dead))
    }

    pub(crate) fn forget(&self, task: &Arc<Task>) {
        if self.with(|table| table.tasks.remove(&task.id)).is_some() {
            self.tell(task, What::Destroy);
        }
    }

    /// It was there before this agent: its end is told, too.
    pub(crate) fn remember(&self, task: &TaskId) {
        self.with(|table| {
            table.tasks.entry(task.clone()).or_default();
        });
    }

    /// Its health is watched from now on.
    pub(crate) fn watched(&self, task: &TaskId, is_healthy: bool) {
        self.with(|table| {
            let view = table.tasks.entry(task.clone()).or_default().health.get_or_insert_default();
            view.is_healthy = view.is_healthy.or(is_healthy.then_some(true));
        });
    }

    /// One health check was made; `retries` failures in a row are too many, if they count.
    pub(crate) fn probed(&self, task: &TaskId, began: Timestamp, probe: &Probe, counts: bool, retries: u32) {
        let result = HealthResult { began, ended: now(), exit_code: probe.exit_code, output: probe.output.clone() };
        self.with(|table| {
            let view = table.tasks.entry(task.clone()).or_default().health.get_or_insert_default();
            if probe.exit_code == Some(0) {
                (view.failures_in_a_row, view.is_healthy) = (0, Some(true));
            } else if counts {
                view.failures_in_a_row += 1;
                if view.failures_in_a_row >= retries {
                    view.is_healthy = Some(false);
                }
            }
            if view.results.len() >= RESULTS {
                view.results.pop_front();
            }
            view.results.push_back(result);
        });
    }

    /// `None`: it has no check, or none was made since this agent began.
    #[must_use]
    pub fn health(&self, task: &TaskId) -> Option<HealthView> {
        self.with(|table| table.tasks.get(task).and_then(|seen| seen.health.clone()))
    }

    /// Whether its memory ran out, as far as this agent saw.
    #[must_use]
    pub fn ran_out_of_memory(&self, task: &TaskId) -> bool {
        self.with(|table| table.tasks.get(task).is_some_and(|seen| seen.is_oom))
    }

    /// What is remembered, and everything from then on.
    #[must_use]
    pub fn listen(&self) -> (Vec<Arc<Happened>>, broadcast::Receiver<Arc<Happened>>) {
        self.with(|table| (table.past.iter().cloned().collect(), self.0.live.subscribe()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::task;

    #[test]
    fn an_end_is_told_once_of_each_life() {
        let mount = |kind: &str| StoryMount { kind: kind.into(), name: "data".into(), ..StoryMount::default() };
        let board = Board::new(move |_| vec![mount("volume"), mount("bind")]);
        let task = Arc::new(task(1, "busybox"));
        let started = || Event::Started { container: Default::default(), health: None };
        let outcome = Outcome { exit_code: 3, words: None };
        for event in [Event::Prepared, started(), Event::Ended(outcome.clone()), Event::Stopped(Some(outcome.clone())), started()] {
            board.saw(&task, &event);
        }
        board.saw(&task, &Event::Ended(outcome));
        board.forget(&task);
        board.forget(&task);
        let told: Vec<String> =
            board.listen().0.iter().map(|one| format!("{:?}", one.what).split([' ', '(']).next().unwrap().to_owned()).collect();
        let life = |end: &[&'static str]| [&["Connect", "Mount", "Start", "Die", "Disconnect", "Unmount"], end].concat();
        assert_eq!(told, [vec!["Create"], life(&["Stop"]), life(&["Destroy"])].concat());
        let place = board.listen().0.iter().find_map(|one| match &one.what {
            What::Connect(network) => Some(network.clone()),
            _ => None,
        });
        assert_eq!(place.map(|network| (network.id, network.name)), Some((OWN_NETWORK.to_owned(), "bridge".to_owned())));
    }

    #[test]
    fn a_network_of_the_cluster_comes_with_its_first_container_and_goes_with_its_last() {
        let board = Board::default();
        let mut network = Network::new(skep_types::NetworkId::for_test(5), skep_types::NetworkSpec::default());
        network.spec.annotations.name = "net".into();
        let name = NetworkName::from(&network);
        assert!(name.comes_and_goes);
        let (one, other) = (Arc::new(task(1, "busybox")), Arc::new(task(2, "busybox")));
        board.connected(&one, name.clone());
        board.connected(&other, name.clone());
        board.disconnected(&one, name.clone());
        board.disconnected(&other, name.clone());
        // Nobody was seen to come.
        board.disconnected(&other, name);
        let told: Vec<String> =
            board.listen().0.iter().map(|one| format!("{:?}", one.what).split('(').next().unwrap().to_owned()).collect();
        let expected = ["CreateNetwork", "Connect", "Connect", "Disconnect", "Disconnect", "DestroyNetwork", "Disconnect"];
        assert_eq!(told, expected);
        network.spec.ingress = true;
        assert!(!NetworkName::from(&network).comes_and_goes);
    }

    #[test]
    fn the_last_health_checks_are_kept() {
        let (board, task) = (Board::default(), task(1, "busybox"));
        assert_eq!(board.health(&task.id), None);
        for exit_code in [Some(1), Some(1), None, Some(1), Some(1), Some(1)] {
            board.probed(&task.id, Timestamp(1), &Probe { exit_code, output: String::new() }, true, 7);
        }
        let view = board.health(&task.id).unwrap();
        assert_eq!((view.is_healthy, view.failures_in_a_row, view.results.len()), (None, 6, RESULTS));
        board.probed(&task.id, Timestamp(1), &Probe { exit_code: Some(1), output: String::new() }, true, 7);
        assert_eq!(board.health(&task.id).unwrap().is_healthy, Some(false));
        board.probed(&task.id, Timestamp(1), &Probe { exit_code: Some(0), output: String::new() }, true, 7);
        assert_eq!(board.health(&task.id).map(|view| (view.is_healthy, view.failures_in_a_row)), Some((Some(true), 0)));
    }

    #[test]
    fn the_past_is_bounded() {
        let (board, task) = (Board::default(), Arc::new(task(1, "busybox")));
        for _ in 0..REMEMBERED + 10 {
            board.tell(&task, What::Pause);
        }
        assert_eq!(board.listen().0.len(), REMEMBERED);
    }
}
