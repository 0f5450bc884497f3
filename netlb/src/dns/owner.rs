//! Who holds the servers: one for each task, started and ended here.

use super::counters::{Counters, DnsCounters};
use super::error::DnsError;
use super::forward::Forwarder;
use super::limits::DnsLimits;
use super::names::{Asker, Names};
use super::serve::Server;
use super::socket::{Place, Sockets};
use super::upstream::Resolver;
use skep_types::TaskId;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

/// Whose questions a server answers, and who is asked for foreign names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asking {
    pub asker: Asker,
    /// In this order; those of [`Dns::set_host_resolvers`] if absent.
    pub resolvers: Option<Arc<[Resolver]>>,
}

/// What all servers of a node share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) limits: DnsLimits,
    /// Held for reading while a question is answered, so for microseconds; changes are small, see [`Names`].
    pub(super) names: RwLock<Names>,
    host_resolvers: RwLock<Arc<[Resolver]>>,
    pub(super) forwarder: Forwarder,
    pub(super) asked_at_once: Arc<Semaphore>,
    pub(super) counters: Arc<Counters>,
}

impl Shared {
    pub(super) fn host_resolvers(&self) -> Arc<[Resolver]> {
        self.host_resolvers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The DNS of a node. Clones are the same; the servers end when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Dns {
    shared: Arc<Shared>,
    /// Held while a server starts, a millisecond or two.
    served: Arc<Mutex<Servers>>,
}

#[derive(Debug, Default)]
struct Servers {
    running: HashMap<TaskId, Running>,
    /// How many were started.
    count: u64,
}

/// A server and how to end it.
#[derive(Debug)]
struct Running {
    place: Place,
    port: u16,
    path: PathBuf,
    asking: watch::Sender<Arc<Asking>>,
    stop: DropGuard,
    tasks: JoinSet<()>,
}

impl Dns {
    /// Nothing is known and nobody is served yet.
    #[must_use]
    pub fn new(limits: DnsLimits) -> Self {
        let counters = Arc::<Counters>::default();
        let shared = Shared {
            limits,
            names: RwLock::default(),
            host_resolvers: RwLock::new(Arc::new([])),
            forwarder: Forwarder::new(&limits, counters.clone()),
            asked_at_once: Arc::new(Semaphore::new(limits.asked_at_once_on_node)),
            counters,
        };
        Self { shared: Arc::new(shared), served: Arc::default() }
    }

    /// Changes what names lead to. The next question sees all of the change: when this returns, it is programmed. No question is
    /// answered meanwhile, so make large parts before.
    pub fn change_names<T>(&self, change: impl FnOnce(&mut Names) -> T) -> T {
        change(&mut self.shared.names.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Who is asked for foreign names where a task has no resolvers of its own.
    pub fn set_host_resolvers(&self, resolvers: Vec<Resolver>) {
        *self.shared.host_resolvers.write().unwrap_or_else(PoisonError::into_inner) = resolvers.into();
    }

    /// Serves a task in the namespace mounted at `path`. May be repeated: what changed takes effect, and port 53 is led to the
    /// server again should the task have flushed its tables. A namespace that was made anew gets a new server.
    pub async fn serve(&self, task: &TaskId, path: &Path, asking: Asking) -> Result<(), DnsError> {
        let mut servers = self.served.lock().await;
        if let Some(running) = servers.running.get_mut(task) {
            if running.is_well() && running.place.is_at(path) {
                running.asking.send_replace(Arc::new(asking));
                return running.place.redirect(path, running.port).await;
            }
            if let Some(running) = servers.running.remove(task) {
                running.end().await;
            }
        }
        let place = Place::open(path)?;
        let sockets = place.listen(path).await?;
        servers.count += 1;
        let number = servers.count;
        let running = self.start(place, path, sockets, asking, number)?;
        debug!(%task, port = running.port, "dns serves");
        servers.running.insert(task.clone(), running);
        Ok(())
    }

    fn start(&self, place: Place, path: &Path, sockets: Sockets, asking: Asking, number: u64) -> Result<Running, DnsError> {
        let failed = |source| DnsError::Listen { path: path.to_owned(), source };
        let udp = tokio::net::UdpSocket::from_std(sockets.udp).map_err(failed)?;
        let tcp = tokio::net::TcpListener::from_std(sockets.tcp).map_err(failed)?;
        let (asking, receiver) = watch::channel(Arc::new(asking));
        let server = Arc::new(Server::new(self.shared.clone(), receiver, place.clone(), number));
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(server.clone().serve_udp(udp, stop.clone()));
        tasks.spawn(server.serve_tcp(tcp, stop.clone()));
        Ok(Running { place, port: sockets.port, path: path.to_owned(), asking, stop: stop.drop_guard(), tasks })
    }

    /// Ends a task's server and waits until its sockets are closed: they keep the namespace alive. One that is not there is no
    /// error. Until the namespace goes, questions in it stay without an answer.
    pub async fn stop(&self, task: &TaskId) {
        let running = self.served.lock().await.running.remove(task);
        if let Some(running) = running {
            running.end().await;
            debug!(%task, "dns ended");
        }
    }

    /// Ends all servers and waits for them.
    pub async fn stop_all(&self) {
        let all = std::mem::take(&mut self.served.lock().await.running);
        for (_, running) in all {
            running.end().await;
        }
    }

    /// What was done since the start.
    #[must_use]
    pub fn counters(&self) -> DnsCounters {
        self.shared.counters.read()
    }
}

impl Running {
    /// Both loops go on until they are stopped, unless one panicked.
    fn is_well(&mut self) -> bool {
        self.tasks.try_join_next().is_none()
    }

    async fn end(mut self) {
        drop(self.stop);
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(path = %self.path.display(), %error, "a dns server broke off");
            }
        }
    }
}
