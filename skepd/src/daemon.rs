//! The daemon: starting, serving requests about this node's life, stopping.
//!
//! Tasks it owns: the servers of the local socket and of the Docker API; while the node is in a cluster, everything of [`Swarm`]; the watchdog; this
//! loop itself, which is the only one that starts, changes and ends a [`Swarm`]. Channel: 16 orders; callers wait when it is full.

mod orders; // what the local socket's callers ask for

use crate::config::Config;
use crate::docker::{
    ClusterCalls, DockerApi, Local, NodeContainers, NodeHappenings, NodeImages, NodeVolumes, Outside, ThisNode, Visits, remember_cluster,
};
use crate::local::{LocalNodeService, Order};
use crate::parts::NodeParts;
use crate::router::Routes;
use crate::state::NodeFile;
use crate::status::Board;
use crate::swarm::{Event, Swarm};
use crate::vault::{Found, Vault};
use anyhow::{Context, Result, anyhow};
use nix::fcntl::{Flock, FlockArg};
use skep_ca::SecurityConfig;
use skep_docker_api::Backend;
use skep_proto::skep::local_images_server::LocalImagesServer;
use skep_proto::skep::local_node_server::LocalNodeServer;
use skep_systemd::{Notifier, PassedSockets, watchdog, watchdog_period};
use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const NOT_IN_A_SWARM: &str = "this node is not a manager of a swarm; make one with `swarmctl cluster init`, or ask a manager";

/// How often the main loop proves to the watchdog that it turns.
const PULSE: Duration = Duration::from_secs(2);
/// What is under way when the daemon is told to stop gets this long. Then it is broken off: whatever the moment, the next start
/// finds its way.
const LAST_WORK: Duration = Duration::from_secs(5);
/// Requests are short, but for the pieces of a backup.
const MAX_REQUEST: usize = 4 << 20;

/// Runs until SIGTERM or SIGINT; tasks go on after it.
///
/// # Errors
/// If the node cannot do its work: directories, sockets, a damaged store. The text says what to do.
pub async fn run(config: Config) -> Result<()> {
    // Before files are opened that could be mistaken for them.
    let passed = PassedSockets::from_env();
    let _lock = take_directories(&config)?;
    let stop = CancellationToken::new();
    let _stop_on_drop = stop.clone().drop_guard();
    let notifier = Notifier::from_env();
    let config = Arc::new(config);
    let vault = Vault::new(&config.data_dir);
    let found = vault.find()?;
    let security = SecurityConfig::without_identity()?;
    let mut parts = NodeParts::start(&config, &security, &vault)?;

    let (routes, board) = (Routes::closed(NOT_IN_A_SWARM), Board::new(&security));
    let (orders, inbox) = mpsc::channel(16);
    let node = LocalNodeService::new(orders, board.clone(), &config.data_dir);
    let service = LocalNodeServer::new(node.clone()).max_decoding_message_size(MAX_REQUEST);
    let local = tonic::service::Routes::from(routes.router())
        .add_service(service)
        .add_service(LocalImagesServer::new(parts.image_service()).max_decoding_message_size(MAX_REQUEST));
    let listener = skep_ca::bind_local(&config.socket()).with_context(|| format!("cannot listen on {}", config.socket().display()))?;
    let mut servers = JoinSet::new();
    servers.spawn(skep_manager::serve(skep_ca::serve_local(listener, &security), local, stop.clone()));
    let told = Local::default();
    let outside = Outside::new(&config, &security, &routes, &board);
    let backend = docker_backend(&parts, &routes, &board, (node, outside.clone()), told.clone())?;
    parts.tunnels = Some(Arc::new(Visits::new(backend.clone(), &stop)));
    let reach = Arc::new(ClusterCalls::new(&routes, board.clone()));
    let mut docker = DockerApi::start(&config, (backend, reach), &outside, passed, &stop)?;
    docker.spawn(remember_cluster(board.clone(), told, stop.clone()));
    let pulse = Arc::new(AtomicBool::new(true));
    let turning = Arc::clone(&pulse);
    let watching =
        tokio::spawn(watchdog(notifier.clone(), watchdog_period(), move || turning.swap(false, Ordering::Relaxed), stop.clone()));

    let mut daemon = Daemon { parts, routes, board, swarm: None };
    daemon.parts.sweep().await;
    daemon.resume(found).await?;
    notifier.ready(daemon.board.summary());
    tracing::info!(version = env!("CARGO_PKG_VERSION"), socket = %config.socket().display(), "ready");

    let mut turns = Turns { signals: Signals::new()?, pulse, tick: tokio::time::interval(PULSE) };
    let outcome = turns.run(&mut daemon, inbox, &mut servers, &notifier).await;
    notifier.stopping("leaving tasks running");
    tracing::info!("stopping; tasks go on");
    if let Some(swarm) = daemon.swarm.take() {
        swarm.stop().await;
    }
    stop.cancel();
    while servers.join_next().await.is_some() {}
    docker.ended().await;
    let _ = watching.await;
    outcome
}

/// What the Docker API is answered from.
fn docker_backend(
    parts: &NodeParts,
    routes: &Routes,
    board: &Board,
    (node, outside): (LocalNodeService, Outside),
    told: Local,
) -> Result<Backend> {
    let config = &parts.config;
    Ok(Backend {
        cluster: Arc::new(ClusterCalls::new(routes, board.clone())),
        node: Arc::new(ThisNode::new(Arc::clone(config), board.clone(), node, outside)?),
        containers: Arc::new(NodeContainers::new(board.clone())),
        images: Arc::new(NodeImages::new(parts.image_store().clone(), told.clone())),
        volumes: Arc::new(NodeVolumes::new(&config.data_dir, board.clone(), told.clone())),
        happenings: Arc::new(NodeHappenings::new(board.clone(), told)),
    })
}

/// What ends a daemon.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn come(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

enum Work {
    Order(Order),
    Event(Event),
}

/// The main loop: one piece of work at a time, with an ear for signals and a hand for the watchdog meanwhile.
struct Turns {
    signals: Signals,
    pulse: Arc<AtomicBool>,
    tick: tokio::time::Interval,
}

impl Turns {
    async fn run(
        &mut self,
        daemon: &mut Daemon,
        mut inbox: mpsc::Receiver<Order>,
        servers: &mut JoinSet<Result<(), skep_manager::ServeError>>,
        notifier: &Notifier,
    ) -> Result<()> {
        loop {
            let work = tokio::select! {
                () = self.signals.come() => return Ok(()),
                _ = self.tick.tick() => {
                    self.pulse.store(true, Ordering::Relaxed);
                    continue;
                }
                order = inbox.recv() => Work::Order(order.ok_or_else(|| anyhow!("the local socket's service ended"))?),
                event = daemon.next() => Work::Event(event),
                ended = servers.join_next() => return Err(match ended {
                    Some(Ok(Err(error))) => anyhow!(error).context("the local socket's server ended"),
                    _ => anyhow!("the local socket's server ended"),
                }),
            };
            if !self.carry_out(daemon, work).await? {
                return Ok(());
            }
            notifier.status(daemon.board.summary());
        }
    }

    /// `false`: a signal came meanwhile.
    async fn carry_out(&mut self, daemon: &mut Daemon, work: Work) -> Result<bool> {
        let mut work = std::pin::pin!(daemon.work(work));
        loop {
            tokio::select! {
                outcome = &mut work => return outcome.map(|()| true),
                _ = self.tick.tick() => self.pulse.store(true, Ordering::Relaxed),
                () = self.signals.come() => break,
            }
        }
        if tokio::time::timeout(LAST_WORK, work).await.is_err() {
            tracing::warn!("what was under way is broken off");
        }
        Ok(false)
    }
}

/// Makes both directories for root alone and locks the data directory against a second daemon.
fn take_directories(config: &Config) -> Result<Flock<File>> {
    for dir in [&config.data_dir, &config.run_dir] {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.and_then(|()| std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)))
            .with_context(|| format!("cannot make {} and make it private", dir.display()))?;
    }
    let path = config.data_dir.join("lock");
    let file =
        File::options().create(true).truncate(false).write(true).open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| anyhow!("another skepd uses {}; stop it, or give this one directories of its own", config.data_dir.display()))
}

struct Daemon {
    parts: NodeParts,
    routes: Routes,
    board: Board,
    /// `None`: in no cluster.
    swarm: Option<Swarm>,
}

impl Daemon {
    /// Goes on where the last start ended: in the cluster, or clearing away an initialisation, a join or a leaving that was cut
    /// short.
    async fn resume(&mut self, found: Found) -> Result<()> {
        match NodeFile::load(&self.parts.config.data_dir)? {
            Some(node) => self.swarm = Some(Swarm::open(&self.parts, node, found).await?),
            // node.json is written last and removed first: without it, the rest is debris.
            None => {
                if !matches!(found, Found::Nothing) {
                    tracing::info!("clearing away a cluster that was made, joined or left half-way");
                }
                self.parts.agent(None, None).clear().await;
                self.parts.forget().await?;
            }
        }
        self.show();
        Ok(())
    }

    /// Lets callers see what has changed.
    fn show(&self) {
        match &self.swarm {
            Some(swarm) => match swarm.manager() {
                Some(part) => self.routes.set(part.local_routes()),
                None => match swarm.worker_routes() {
                    Some((service, routes)) => self.routes.close_but(swarm.refusal(), service, routes),
                    None => self.routes.close(swarm.refusal()),
                },
            },
            None => self.routes.close(NOT_IN_A_SWARM),
        }
        self.board.show(self.swarm.as_ref().map(Swarm::shown));
    }

    /// What the swarm needs done; never while there is none.
    async fn next(&mut self) -> Event {
        match &mut self.swarm {
            Some(swarm) => swarm.next().await,
            None => std::future::pending().await,
        }
    }

    async fn work(&mut self, work: Work) -> Result<()> {
        match work {
            Work::Order(order) => self.obey(order).await,
            Work::Event(event) => {
                if let Some(swarm) = &mut self.swarm {
                    swarm.handle(event).await?;
                }
                self.show();
            }
        }
        Ok(())
    }
}
