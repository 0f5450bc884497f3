//! The one thread that owns the node's network: sockets, what was told to the kernel, what is wanted.
//!
//! Its calls to the kernel block for micro- to milliseconds, so they are made right here, one message after the other;
//! only making a namespace (2 ms and no lock of ours needed) goes to a thread of its own, so that many start at once.

mod apply; // carrying out what is wanted
mod audit; // looking everything over
mod gone; // connections to who is gone
mod ipvs; // letting it balance
mod overlay; // joining a sandbox to those of other nodes
mod oversight; // doing so all the time
mod sandbox; // a network's namespace and the host's link to it
mod secure; // tunnels to other nodes
mod task; // a task's namespace

use self::audit::Depth;
use self::gone::Gone;
use self::ipvs::Balancing;
use self::overlay::Told;
pub use self::oversight::Oversight;
use self::oversight::Watch;
use self::secure::Secure;
use crate::delta::{Desired, Dirty, Said};
use crate::error::NetlbError;
use crate::handle::{Audit, EncryptionStatus, Generation, TaskNetns};
use crate::names::Tag;
use crate::netlink::route::{Failed, RouteSocket};
use crate::netns::Namespace;
use crate::nft::Family;
use crate::nft::socket::Nft;
use crate::plan::State;
use crate::plan::layout::Slot;
use crate::plan::tables::{HostTable, SandboxTable};
use crate::said::Listener;
use crate::sysctl;
use crate::wanted::{Network, TaskNetwork};
use skep_types::{NetworkId, TaskId};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{debug, error, warn};

/// After a failure what is wanted is tried again, first soon, then at most this rarely.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_LAST: Duration = Duration::from_secs(30);
/// Namespaces being made at a time; their threads wait here when there are more.
const MADE_AT_ONCE: usize = 64;

pub(crate) type Reply<T> = oneshot::Sender<Result<T, NetlbError>>;

/// What the handle asks.
#[derive(Debug)]
pub(crate) enum Request {
    Ensure { network: TaskNetwork, reply: Reply<TaskNetns> },
    Remove { task: TaskId, reply: Reply<()> },
    Audit(Reply<Audit>),
    FirewallWarning(Reply<Option<String>>),
    Encryption(Reply<EncryptionStatus>),
    RemoveEverything(Reply<()>),
}

/// How far the wanted state was carried out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Applied {
    pub(crate) generation: Generation,
    /// Why the latest attempt failed, in words.
    pub(crate) failure: Option<String>,
}

/// The next attempt after a failed one.
#[derive(Debug, Clone, Copy)]
struct Retry {
    due: Instant,
    after: Duration,
}

/// A namespace made on a thread of its own.
struct Made {
    task: TaskId,
    namespace: Result<Namespace, NetlbError>,
}

/// A task whose namespace is being made.
struct Pending {
    network: TaskNetwork,
    replies: Vec<Reply<TaskNetns>>,
    removed: bool,
}

/// How much we know of a table in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Nothing: it may be absent, or of an earlier run.
    No,
    /// It is there from an earlier run and serves until the first wanted state replaces it.
    Adopted,
    /// It holds what we told it.
    Yes,
}

/// A network's namespace on this node.
struct Sandbox {
    network: Network,
    slot: Slot,
    namespace: Namespace,
    tables: Vec<(SandboxTable, Known)>,
    /// The tables were made from all that is wanted, and from each change since.
    planned: bool,
    /// `None`: to be read from the kernel.
    told: Option<Told>,
    /// `None`: the tables balance.
    balancing: Option<Balancing>,
}

/// See the module's description.
struct Owner {
    tag: Tag,
    dir: PathBuf,
    ipv6: bool,
    /// IPVS balances, not the tables.
    ipvs: bool,
    host: RouteSocket,
    nft: Nft,
    host_forwards: bool,
    /// Links and routes of ours in the host's namespace, as told to the kernel.
    host_state: State,
    tables: Vec<(Family, HostTable, Known)>,
    secure: Secure,
    sandboxes: BTreeMap<NetworkId, Sandbox>,
    tasks: BTreeMap<TaskId, TaskNetwork>,
    pending: BTreeMap<TaskId, Pending>,
    /// Shared while it is carried out, so that changing it clones nothing.
    wanted: Option<Arc<Desired>>,
    made: mpsc::Sender<Made>,
    watch: Watch,
    gone: Gone,
}

/// Where a task's namespace is mounted.
pub(crate) fn task_path(dir: &Path, task: &TaskId) -> PathBuf {
    dir.join(task.as_str())
}

/// Starts the thread. It ends when `requests` is closed.
pub(crate) fn start(
    tag: Tag,
    dir: PathBuf,
    ipvs: bool,
    oversight: Oversight,
    requests: mpsc::Receiver<Request>,
    wanted: Listener,
    report: watch::Sender<Applied>,
) -> Result<(), NetlbError> {
    let failed = |step| {
        let path = dir.clone();
        move |source| NetlbError::Namespace { path, step, source }
    };
    std::fs::create_dir_all(&dir).map_err(failed("make the directory of"))?;
    let netlink = |source| NetlbError::Netlink { place: "the host".into(), source };
    let ipv6 = sysctl::host_speaks_ipv6();
    let families = if ipv6 { vec![Family::V4, Family::V6] } else { vec![Family::V4] };
    let (made, made_queue) = mpsc::channel(MADE_AT_ONCE);
    let owner = Owner {
        host: RouteSocket::open().map_err(netlink)?,
        nft: Nft::open().map_err(netlink)?,
        tables: families.into_iter().map(|family| (family, HostTable::new(family, tag.clone()), Known::No)).collect(),
        tag,
        ipv6,
        ipvs,
        host_forwards: false,
        host_state: State::default(),
        secure: Secure::default(),
        sandboxes: BTreeMap::new(),
        tasks: BTreeMap::new(),
        pending: BTreeMap::new(),
        wanted: None,
        made,
        watch: Watch::new(oversight),
        gone: Gone::default(),
        dir: dir.clone(),
    };
    // Built on the thread itself: the caller may be within a runtime, where another must not be dropped.
    let run = move || match tokio::runtime::Builder::new_current_thread().enable_time().build() {
        Ok(runtime) => runtime.block_on(owner.run(requests, made_queue, wanted, report)),
        Err(error) => error!(%error, "the network part could not start"),
    };
    std::thread::Builder::new().name("skep-netlb".into()).spawn(run).map_err(failed("start a thread for"))?;
    Ok(())
}

impl Owner {
    async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        mut made: mpsc::Receiver<Made>,
        mut wanted: Listener,
        report: watch::Sender<Applied>,
    ) {
        let mut retry: Option<Retry> = None;
        loop {
            let again = at(retry.map(|retry| retry.due));
            let (watch, gone) = (at(self.watch_due()), at(self.gone.due()));
            tokio::select! {
                biased;
                Some(made) = made.recv() => self.finish(made),
                () = watch => self.watch(),
                request = requests.recv() => match request {
                    Some(request) => {
                        if matches!(request, Request::RemoveEverything(_)) {
                            // What was wanted before goes with the rest, though it may not have been carried out yet.
                            let (generation, _) = wanted.take();
                            report.send_replace(Applied { generation, failure: None });
                            retry = None;
                        }
                        self.answer(request);
                    }
                    None => return,
                },
                true = wanted.heard() => retry = self.carry_out(&mut wanted, &report, RETRY_FIRST),
                () = again => {
                    let next = retry.map_or(RETRY_FIRST, |retry| (retry.after * 2).min(RETRY_LAST));
                    retry = self.carry_out(&mut wanted, &report, next);
                }
                () = gone => self.forget_gone(),
            }
        }
    }

    /// Applies what is wanted, what failed before included; when it is to be tried again if it failed.
    fn carry_out(&mut self, wanted: &mut Listener, report: &watch::Sender<Applied>, after: Duration) -> Option<Retry> {
        let (generation, said) = wanted.take();
        let was_in_place = report.borrow().failure.is_none();
        let dirty = self.want(said);
        // After a failure nobody knows what of it is in place.
        let dirty = if was_in_place { dirty } else { Dirty::everything() };
        let failure = self.apply(&dirty).err().map(|error| error.chain());
        if let Some(reasons) = &failure {
            warn!(%reasons, retry_in_ms = after.as_millis(), "the wanted network is not in place");
        } else {
            debug!(generation = generation.0, "the wanted network is in place");
        }
        let retry = failure.is_some().then(|| Retry { due: Instant::now() + after, after });
        report.send_replace(Applied { generation, failure });
        retry
    }

    /// Takes over what was said and says what must be told to the kernel.
    fn want(&mut self, said: Said) -> Dirty {
        let is_first = self.wanted.is_none();
        if let Some(whole) = said.whole {
            self.wanted = Some(Arc::new(whole));
            return Dirty::everything();
        }
        if said.delta.is_empty() {
            return Dirty::default();
        }
        let dirty = Arc::make_mut(self.wanted.get_or_insert_default()).change(said.delta);
        if is_first { Dirty::everything() } else { dirty }
    }

    fn answer(&mut self, request: Request) {
        // A caller that went away does not want to hear how it went.
        match request {
            Request::Ensure { network, reply } => self.ensure_task(network, reply),
            Request::Remove { task, reply } => drop(reply.send(self.remove_task(&task))),
            Request::Audit(reply) => drop(reply.send(self.audit(Depth::All))),
            Request::FirewallWarning(reply) => drop(reply.send(self.firewall_warning())),
            Request::Encryption(reply) => drop(reply.send(self.encryption())),
            Request::RemoveEverything(reply) => drop(reply.send(self.remove_everything())),
        }
    }
}

/// Returns at that time, or never.
async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Names what could not be changed, and where.
fn refused(place: &str, failed: Vec<Failed>) -> Vec<NetlbError> {
    let error = |(change, source): Failed| NetlbError::Change { place: place.to_owned(), change: format!("{change:?}"), source };
    failed.into_iter().map(error).collect()
}
