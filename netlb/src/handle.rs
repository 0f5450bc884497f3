//! What the agent holds: a handle that sends messages to the owner of the node's network.

use crate::delta::Delta;
use crate::error::NetlbError;
use crate::lb::LbDriver;
use crate::names::Tag;
use crate::owner::{self, Applied, Oversight, Request};
use crate::said::{self, Speaker};
use crate::secure::{Backend as WireGuard, Dropped, KeyEpoch};
use crate::wanted::{TaskNetwork, Wanted};
use skep_types::TaskId;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Callers wait when so many requests are queued: each takes milliseconds.
const QUEUE: usize = 64;

/// Where an instance lives.
#[derive(Debug, Clone)]
pub struct Config {
    /// Namespaces are mounted in `<run_dir>/netns`.
    pub run_dir: PathBuf,
    /// Tells apart the instances in one network namespace of a host; goes into names of links and tables as a hash. The
    /// same after a restart: the run directory's path will do.
    pub instance: String,
    /// Who balances. Another one than before a restart ends connections to virtual addresses that IPVS led.
    pub lb_driver: LbDriver,
}

/// A task's network namespace, ready for a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskNetns {
    /// To be given to containerd.
    pub path: PathBuf,
}

/// Numbers the calls of [`Netlb::set_wanted`] and [`Netlb::change`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(pub u64);

/// What an audit found and mended, in words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audit {
    pub repaired: Vec<String>,
}

/// How encryption between nodes is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncryptionStatus {
    /// What encrypts; `None` while nothing is to be encrypted, or nothing can.
    pub by: Option<WireGuard>,
    pub dropped: Dropped,
    /// Of all tunnels, by epoch and number.
    pub peers: Vec<PeerStatus>,
}

/// The other end of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerStatus {
    pub epoch: KeyEpoch,
    pub node_index: u32,
    /// Time since it proved its key last, which it does every two minutes while packets flow; `None`: never.
    pub handshake: Option<Duration>,
}

/// The node's network. Clones are the same; the owner's thread ends when the last one is dropped, and leaves the network
/// as it is.
#[derive(Debug, Clone)]
pub struct Netlb {
    requests: mpsc::Sender<Request>,
    wanted: Speaker,
    applied: watch::Receiver<Applied>,
    netns_dir: PathBuf,
}

impl Netlb {
    /// Starts the owner in the network namespace of the calling thread. Changes nothing in the kernel yet, but makes the
    /// directory.
    ///
    /// From the first wanted state on it looks after the network by itself: tables that others change or flush are mended
    /// within seconds, links and routes within about a minute, and each repair is logged.
    pub fn start(config: Config) -> Result<Self, NetlbError> {
        Self::start_with(config, Oversight::default())
    }

    /// The same, looking after the network as often as said.
    pub fn start_with(config: Config, oversight: Oversight) -> Result<Self, NetlbError> {
        let (requests, queue) = mpsc::channel(QUEUE);
        let (wanted, heard) = said::channel();
        let (report, applied) = watch::channel(Applied::default());
        let netns_dir = config.run_dir.join("netns");
        let ipvs = config.lb_driver.is_ipvs()?;
        owner::start(Tag::new(&config.instance), netns_dir.clone(), ipvs, oversight, queue, heard, report)?;
        Ok(Self { requests, wanted, applied, netns_dir })
    }

    /// Makes the task's namespace and puts it on its networks; one that is there is looked over and mended, never made
    /// anew, for a process may be in it. The networks' sandboxes are made as needed.
    pub async fn ensure_task(&self, network: TaskNetwork) -> Result<TaskNetns, NetlbError> {
        self.ask(|reply| Request::Ensure { network, reply }).await?
    }

    /// Removes the task's namespace; one that is not there is no error. Processes in it lose their network only when
    /// the last of them has ended, for the kernel keeps the namespace as long.
    pub async fn remove_task(&self, task: TaskId) -> Result<(), NetlbError> {
        self.ask(|reply| Request::Remove { task, reply }).await?
    }

    /// Where [`Netlb::ensure_task`] puts a task's namespace.
    #[must_use]
    pub fn task_path(&self, task: &TaskId) -> PathBuf {
        owner::task_path(&self.netns_dir, task)
    }

    /// The directory of the namespaces.
    #[must_use]
    pub fn netns_dir(&self) -> &Path {
        &self.netns_dir
    }

    /// Says what the whole node should be. Returns at once; a later call takes the place of one not yet carried out.
    /// What fails is tried again until it works or something else is wanted.
    ///
    /// Call [`Netlb::ensure_task`] first for tasks that are running, so that their links are known to be wanted.
    pub fn set_wanted(&self, wanted: Wanted) -> Generation {
        self.wanted.say(|said| said.set(wanted))
    }

    /// Says what is wanted otherwise than before, and costs what changes and not what there is. Returns at once. Not before
    /// [`Netlb::set_wanted`]: what is changed would be a node on which nothing is wanted.
    ///
    /// What is encrypted changes by `set_wanted` only.
    pub fn change(&self, delta: Delta) -> Generation {
        self.wanted.say(|said| said.change(delta))
    }

    /// Waits until what was wanted last is in place; an error if the latest attempt failed (it will be repeated).
    pub async fn applied(&self) -> Result<(), NetlbError> {
        let latest = self.wanted.latest();
        let mut applied = self.applied.clone();
        let outcome = applied.wait_for(|applied| applied.generation >= latest).await.map_err(|_| NetlbError::Stopped)?;
        match &outcome.failure {
            None => Ok(()),
            Some(reasons) => Err(NetlbError::NotApplied(reasons.clone())),
        }
    }

    /// Reads all that is ours in the kernel, mends what differs from what is wanted, and, once something was wanted,
    /// removes what nobody wants.
    pub async fn audit(&self) -> Result<Audit, NetlbError> {
        self.ask(Request::Audit).await?
    }

    /// What the host's administrator should know: a chain of another firewall drops forwarded packets by its policy and has
    /// no rule for our links, so tasks may reach nobody and nobody them. In words, with the cure. Logged as well, once,
    /// when it is first seen after something was wanted.
    pub async fn host_firewall_warning(&self) -> Result<Option<String>, NetlbError> {
        self.ask(Request::FirewallWarning).await?
    }

    /// How encryption between nodes is doing.
    pub async fn encryption(&self) -> Result<EncryptionStatus, NetlbError> {
        self.ask(Request::Encryption).await?
    }

    /// Removes every namespace, link and table of this instance, running tasks' too. Goes on after a failure.
    pub async fn remove_everything(&self) -> Result<(), NetlbError> {
        self.ask(Request::RemoveEverything).await?
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, NetlbError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| NetlbError::Stopped)?;
        answer.await.map_err(|_| NetlbError::Stopped)
    }
}
